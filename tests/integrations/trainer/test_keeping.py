"""Where the study is: the best model is kept, and nothing else is left on disk."""

from __future__ import annotations

import copy
import json
import math
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from durable import everybody_falls_silent
from tiny import (
    CHECKPOINTS,
    SPACE,
    At,
    Calls,
    Parity,
    evaluated,
    folders_of,
    left_in,
    raises,
    scripted,
    tiny_trainer,
    tuned,
)
from transformers import AutoTokenizer, GPT2TokenizerFast, Trainer, TrainerCallback, TrainingArguments

from llamatune_torch import (
    CheckpointWarning,
    Listener,
    LlamaTune,
    Outcome,
    SettingsError,
    Study,
    Trial,
    TrialState,
    load_study,
)
from llamatune_torch.integrations.trainer import locks
from llamatune_torch.integrations.trainer.best import Best
from llamatune_torch.integrations.trainer.finetune import FineTune
from llamatune_torch.integrations.trainer.keeping import Keeper
from llamatune_torch.integrations.trainer.metric import Metric
from llamatune_torch.integrations.trainer.tune import prepare
from llamatune_torch.runtime.evaluation import run_trial
from llamatune_torch.runtime.runners import make_runner

# --- What a fine-tune must know of the study ----------------------------------------------------


def test_the_metric_is_settled_before_the_first_training_here(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def factory(params: Any) -> Trainer:
        return tiny_trainer(params, tmp_path, callbacks=[At("on_step_end", 1, look)])

    def look(control: Any) -> None:
        seen.append((keeper.optimizer.study.metric, keeper.optimizer.study.direction))

    keeper = prepare(factory, SPACE, max_evals=1, progress=False, output_dir=tmp_path / "out")
    keeper.run(make_runner())
    assert seen == [("eval_loss", "minimize")]


class Elsewhere:
    """An executor that pickles what it runs, as one of other processes does."""

    def __init__(self) -> None:
        self.fine_tunes: list[FineTune] = []

    def submit(self, function: Callable[..., Any], /, evaluate: Any, *args: Any) -> Future[Any]:
        self.fine_tunes.append(pickle.loads(pickle.dumps(evaluate)))
        future: Future[Any] = Future()
        future.set_result(function(copy.deepcopy(self.fine_tunes[-1]), *args))
        return future


FOLDER = Path()


def scored_by_rate(params: dict[str, Any]) -> Trainer:
    return tiny_trainer(params, FOLDER, compute_metrics=lambda prediction: {"score": params["learning_rate"]})


def test_a_fine_tune_elsewhere_is_sent_the_settled_metric_and_the_best_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_keeping.FOLDER", tmp_path)
    elsewhere = Elsewhere()
    points = [{"learning_rate": rate} for rate in (0.02, 0.01, 0.03, 0.02)]
    study = tuned(
        *(tmp_path, scored_by_rate),
        metric="score",
        max_evals=4,
        strategy="full",
        initial_points=points,
        keep="best",
        executor=elsewhere,
        n_workers=1,
    )
    score = Metric("eval_score", "maximize")
    assert [fine_tune.settled for fine_tune in elsewhere.fine_tunes] == [None, score, score, score]
    assert [fine_tune.best for fine_tune in elsewhere.fine_tunes] == [None, 0.02, 0.02, 0.03]
    assert (study.metric, study.best_trial.number) == ("eval_score", 2)
    assert json.loads((tmp_path / "out" / "best" / "trial.json").read_text())["trial"] == 2


def test_the_users_callbacks_are_as_before_after_a_search(tmp_path: Path) -> None:
    mine = [Listener()]
    keeper = prepare(scored_by_rate, SPACE, callbacks=mine, timeout=1e-9, progress=False, output_dir=tmp_path)
    keeper.run(make_runner())
    assert keeper.optimizer.callbacks == mine


# --- The model that is kept ---------------------------------------------------------------------


def tokenizer() -> GPT2TokenizerFast:
    return GPT2TokenizerFast(vocab={chr(97 + i): i for i in range(16)}, merges=[], pad_token="a", unk_token="a")


@pytest.mark.parametrize("checkpoints", [{}, CHECKPOINTS], ids=["last weights", "best checkpoint"])
def test_the_kept_model_is_the_one_with_the_best_value(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    # From good to bad to better: the first is replaced once, by the last.
    points = [{"learning_rate": rate} for rate in (0.01, 1e-3, 0.03)]
    trainer = {"processing_class": tokenizer(), "num_train_epochs": 4, "train_dataset": Parity(64, 0), **checkpoints}
    study = tuned(tmp_path, max_evals=3, initial_points=points, keep="best", trainer=trainer)
    values = [trial.value for trial in study.trials]
    assert len(set(values)) == 3
    assert study.best_trial.number != 0
    best = tmp_path / "out" / "best"
    assert evaluated(best, tmp_path)["eval_loss"] == pytest.approx(study.best_value, rel=1e-6)
    assert AutoTokenizer.from_pretrained(best)("abc")["input_ids"] == [0, 1, 2]
    record = json.loads((best / "trial.json").read_text())
    assert record == {
        "study": "study",
        "token": record["token"],
        "trial": study.best_trial.number,
        "metric": "eval_loss",
        "value": study.best_value,
        "params": study.best_params,
        "seed": study.best_trial.seed,
    }
    assert left_in(tmp_path / "out") == ["best"]


def test_a_best_checkpoint_from_the_middle_is_the_one_kept(tmp_path: Path) -> None:
    study = tuned(
        tmp_path,
        keep="best",
        metric="score",
        trainer={
            "compute_metrics": scripted([0.9, 0.1]),
            "metric_for_best_model": "score",
            **CHECKPOINTS,
        },
    )
    trial = study.best_trial
    assert trial.value == 0.9
    kept = evaluated(tmp_path / "out" / "best", tmp_path)["eval_loss"]
    assert kept == pytest.approx(trial.outcomes["eval_loss"], rel=1e-6)


def test_a_kept_model_is_replaced_by_a_better_one_only(tmp_path: Path) -> None:
    scores = scripted(score for score in (0.5, 0.5, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6))
    kept: list[int] = []

    def look(optimizer: LlamaTune, trial: Trial) -> None:
        kept.append(json.loads((tmp_path / "out" / "best" / "trial.json").read_text())["trial"])

    trainer = {"compute_metrics": scores}
    tuned(tmp_path, keep="best", metric="score", max_evals=4, callbacks=[look], trainer=trainer, strategy="full")
    assert kept == [0, 0, 0, 3]  # the earliest among equals, like best_trial


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    tuned(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_diverged_model_is_not_kept(tmp_path: Path) -> None:
    scores = scripted([-math.inf, -math.inf])
    study = tuned(tmp_path, keep="best", metric="score", trainer={"compute_metrics": scores})
    assert study.best_value == -math.inf
    assert not (tmp_path / "out" / "best").exists()


def test_a_failed_save_warns_and_loses_no_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    before: dict[str, bytes] = {}

    def is_in_the_way(control: Any) -> None:
        before.update({path.name: path.read_bytes() for path in (out / "best").iterdir()})
        (folder,) = out.glob("study-*/trial-0001/.llamatune")
        (folder / "model").write_text("in the way")

    def factory(params: Any) -> Trainer:
        score, callbacks = (0.1, []) if not (out / "best").exists() else (0.2, [At("on_step_end", 4, is_in_the_way)])
        return tiny_trainer(params, tmp_path, compute_metrics=scripted([score] * 2), callbacks=callbacks)

    with pytest.warns(CheckpointWarning, match=r"the model of trial 1 could not be kept in .*best: .*File exists"):
        study = tuned(tmp_path, factory, keep="best", metric="score", max_evals=2)
    assert study.best_value == 0.2
    assert {path.name: path.read_bytes() for path in (out / "best").iterdir()} == before


def test_the_model_of_another_search_is_replaced_only_if_that_is_meant(tmp_path: Path) -> None:
    first = tuned(tmp_path, keep="best")
    kept = tmp_path / "out" / "best" / "trial.json"
    before = kept.read_text()
    calls = Calls(tmp_path)
    for stored in ({}, {"storage": f"sqlite:///{tmp_path}/study.db", "name": "tiny"}):
        with pytest.raises(SettingsError) as caught:
            tuned(tmp_path, calls, keep="best", seed=2, **stored)
        assert str(caught.value) == (
            f"{kept.parent} has the model of trial 0 of study 'study' (eval_loss {first.best_value}), which is another "
            "search: overwrite=True replaces it, else choose another output_dir"
        )
    assert calls.trainers == []
    assert kept.read_text() == before
    study = tuned(tmp_path, keep="best", overwrite=True, seed=2)
    assert json.loads(kept.read_text())["seed"] == study.best_trial.seed != first.best_trial.seed
    assert left_in(tmp_path / "out") == ["best"]


def test_later_starts_of_a_stored_study_replace_its_model_by_a_better_one_only(tmp_path: Path) -> None:
    stored = {"storage": f"sqlite:///{tmp_path}/study.db", "name": "tiny", "keep": "best", "metric": "score"}
    for number, (score, best) in enumerate([(0.5, 0), (0.4, 0), (0.6, 2)]):
        trainer = {"compute_metrics": scripted([score] * 2)}
        tuned(tmp_path, max_evals=number + 1, trainer=trainer, **stored)
        assert json.loads((tmp_path / "out" / "best" / "trial.json").read_text())["trial"] == best


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "best" / "thesis.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    calls = Calls(tmp_path)
    with pytest.raises(SettingsError, match=r"best exists and is no model that tune\(\) has kept"):
        tuned(tmp_path, calls, keep="best")
    assert calls.trainers == []
    assert theirs.read_text() == "years of work"


# --- The disk, and what belongs to the user ------------------------------------------------------


def test_checkpoints_go_to_a_folder_for_each_trial_and_then_away(tmp_path: Path) -> None:
    own = tmp_path / "own" / "checkpoint-2"
    own.mkdir(parents=True)
    (own / "precious.bin").write_text("mine")
    seen: list[list[str]] = []

    def look(control: Any) -> None:
        found = tmp_path.rglob("checkpoint-*")
        seen.append(sorted((f"{path.parent.name}/{path.name}" for path in found), reverse=True))

    def factory(params: Any) -> Trainer:
        return tiny_trainer(
            params,
            tmp_path,
            **CHECKPOINTS,
            save_total_limit=1,
            metric_for_best_model="score",
            compute_metrics=scripted([0.9, 0.1]),
            callbacks=[At("on_train_end", 4, look)],
        )

    study = tuned(tmp_path, factory, metric="score", max_evals=3)
    # The best checkpoint of each trial lived until its end: no rotation by another trial's.
    assert seen == [[f"trial-{number:04d}/checkpoint-2", "own/checkpoint-2"] for number in range(3)]
    assert [trial.value for trial in study.trials] == [0.9] * 3
    assert left_in(tmp_path / "out") == []
    assert (own / "precious.bin").read_text() == "mine"


def test_a_trials_files_stay_until_its_result_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed before that would otherwise have to train it all again."""
    seen: list[list[str]] = []
    on_outcome = Keeper.on_outcome

    def look(keeper: Keeper, trial: Trial, outcome: Outcome) -> Outcome:
        seen.append(sorted(path.name for path in (tmp_path / "out").glob("*/*/checkpoint-*")))
        return on_outcome(keeper, trial, outcome)

    monkeypatch.setattr(Keeper, "on_outcome", look)
    tuned(tmp_path, trainer=CHECKPOINTS)
    assert seen == [["checkpoint-2", "checkpoint-4"]]
    assert left_in(tmp_path / "out") == []


def test_a_machine_that_does_not_share_the_disk_deletes_its_own_files(tmp_path: Path) -> None:
    fine_tune = FineTune(lambda params: tiny_trainer(params, tmp_path, **CHECKPOINTS), output_dir=tmp_path / "out")
    outcome = run_trial(fine_tune, Trial(0, {"learning_rate": 0.01}, 1, "sobol"))
    assert isinstance(outcome, Outcome)
    assert outcome.value is not None
    assert left_in(tmp_path / "out") == []


def saves_of(tmp_path: Path, trainer: dict[str, Any], **search: Any) -> list[list[str]]:
    """The checkpoints on disk after each save of a training of four steps that the user has told to save at each."""
    seen: list[list[str]] = []

    class Look(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*")))

    trainer = {"save_strategy": "steps", "save_steps": 1, "callbacks": [Look()], **trainer}
    tuned(tmp_path, trainer=trainer, **search)
    assert left_in(tmp_path / "out") == []
    return seen


def test_no_checkpoint_is_written_that_nobody_can_use(tmp_path: Path) -> None:
    stored = {"storage": f"sqlite:///{tmp_path}/study.db"}
    assert saves_of(tmp_path, {}) == []
    assert saves_of(tmp_path, {}, **stored, name="a", retries=0) == []
    one_by_one = [[f"checkpoint-{step}"] for step in (1, 2, 3, 4)]
    assert saves_of(tmp_path, {"save_only_model": True}, **stored, name="b") == one_by_one
    assert saves_of(tmp_path, {"save_strategy": "no"}, **stored, name="c") == []
    best = [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"]]
    assert saves_of(tmp_path, CHECKPOINTS) == best
    assert saves_of(tmp_path, CHECKPOINTS, **stored, name="d") == best


def test_checkpoints_of_a_failed_trial_go_away_too(tmp_path: Path) -> None:
    trainer = {**CHECKPOINTS, "callbacks": [At("on_save", 4, raises(OSError, "disk full"))]}
    study = tuned(tmp_path, trainer=trainer)
    assert study.trials[0].reason == "OSError"
    assert left_in(tmp_path / "out") == []


def left_by(optimizer: LlamaTune, trial: Trial, out: Path) -> Path:
    """A checkpoint of a trial whose worker has fallen silent."""
    folders = folders_of(out, optimizer, "tiny")
    folders.create(trial)
    checkpoint = folders.trial(trial) / "checkpoint-2"
    checkpoint.mkdir()
    return checkpoint


def test_checkpoints_of_a_silent_worker_stay_until_its_trial_has_run_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    stored = {"storage": url, "name": "tiny", "max_evals": 1}
    suspended = LlamaTune(SPACE, n_initial=50, metric=None, **stored)
    trial = suspended.ask()
    theirs = left_by(suspended, trial, tmp_path / "out")

    def runs(**more: Any) -> Study:
        everybody_falls_silent(url)
        return tuned(tmp_path, **stored, **more)

    with pytest.warns(CheckpointWarning, match="checkpoint-2 is skipped"):  # it is empty
        interrupted = runs(trainer={**CHECKPOINTS, "callbacks": [At("on_step_end", 1, raises(KeyboardInterrupt))]})
    assert [(t.state, t.reason) for t in interrupted.trials] == [
        (TrialState.LOST, "worker silent"),
        (TrialState.LOST, "interrupted"),
    ]
    assert theirs.exists()
    with pytest.warns(CheckpointWarning, match="checkpoint-2 is skipped"):
        study = runs()
    assert (study.best_trial.number, study.best_trial.first) == (2, trial.number)
    assert left_in(tmp_path / "out") == []


def test_checkpoints_of_parameters_that_silenced_each_worker_stay(tmp_path: Path) -> None:
    """As long as their results may still come."""
    url = f"sqlite:///{tmp_path}/study.db"
    stored = {"storage": url, "name": "tiny", "max_evals": 2, "retries": 0}
    suspended = LlamaTune(SPACE, n_initial=50, metric=None, **stored)
    theirs = left_by(suspended, suspended.ask(), tmp_path / "out")
    everybody_falls_silent(url)
    study = tuned(tmp_path, **stored)
    assert [trial.state for trial in study.trials] == [TrialState.FAILED, TrialState.COMPLETE]
    assert theirs.exists()


def test_what_a_finished_trial_has_left_behind_goes_away_at_the_next_start(tmp_path: Path) -> None:
    """As when its process was killed just after the result was on record."""
    stored = {"storage": f"sqlite:///{tmp_path}/study.db", "name": "tiny", "max_evals": 1}
    study = tuned(tmp_path, **stored)
    killed = LlamaTune(SPACE, metric="eval_loss", direction="minimize", **stored)
    theirs = left_by(killed, study.trials[0], tmp_path / "out")
    tuned(tmp_path, raises(AssertionError), **stored)
    assert not theirs.exists()
    assert left_in(tmp_path / "out") == []


def test_other_files_in_a_trials_folder_stay(tmp_path: Path) -> None:
    def log(control: Any) -> None:
        (folder,) = (tmp_path / "out").glob("study-*/trial-0000")
        (folder / "runs").mkdir()
        (folder / "runs" / "events.log").write_text("a TensorBoard log")

    tuned(tmp_path, trainer={**CHECKPOINTS, "callbacks": [At("on_step_end", 1, log)]})
    (folder,) = (tmp_path / "out").glob("study-*/trial-0000")
    assert (folder / "runs" / "events.log").read_text() == "a TensorBoard log"
    assert left_in(folder) == ["runs"]


def test_folders_of_the_user_with_names_like_ours_are_left_alone(tmp_path: Path) -> None:
    theirs = [
        tmp_path / "out" / name / "precious.bin"
        for name in ("best.former", "trial-0000", "trial-0000/model", "trial-0000/checkpoint-2")
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for keep in (None, "best"):
        tuned(tmp_path, keep=keep, trainer=CHECKPOINTS)
        assert all(path.read_text() == "mine" for path in theirs)


def test_two_searches_in_one_output_dir_do_not_see_each_others_weights(tmp_path: Path) -> None:
    seen: list[Path] = []

    def best_is(scores: list[float], *callbacks: Any) -> dict[str, Any]:
        return {
            **CHECKPOINTS,
            "metric_for_best_model": "score",
            "compute_metrics": scripted(scores),
            "callbacks": [*callbacks, At("on_train_end", 4, look)],
        }

    def look(control: Any) -> None:
        seen.extend(sorted((tmp_path / "out").glob("*/*/checkpoint-*")))

    def another_search(control: Any) -> None:
        other = tuned(tmp_path, metric="score", trainer=best_is([0.1, 0.2]), seed=5)
        assert (other.best_value, other.best_trial.notes["value"]) == (0.2, "best evaluation, at step 4 of 4")

    # When the first one loads its best checkpoint, the second has come and gone.
    trainer = best_is([0.9, 0.1], At("on_step_end", 3, another_search))
    study = tuned(tmp_path, metric="score", keep="best", trainer=trainer)
    assert study.best_trial.notes["value"] == "best evaluation, at step 2 of 4"
    kept = evaluated(tmp_path / "out" / "best", tmp_path)["eval_loss"]
    assert kept == pytest.approx(study.best_trial.outcomes["eval_loss"], rel=1e-6)
    assert len({path.parents[1] for path in seen}) == 2
    assert left_in(tmp_path / "out") == ["best"]


def test_a_second_search_that_keeps_its_best_model_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    monkeypatch.setattr(locks, "PATIENCE", 0.1)

    def another_search(control: Any) -> None:
        with pytest.raises(SettingsError) as caught:
            tuned(tmp_path, raises(AssertionError), keep="best")
        refused.append(str(caught.value))

    study = tuned(tmp_path, keep="best", trainer={"callbacks": [At("on_step_end", 1, another_search)]})
    assert len(study.completed) == 1
    assert "another search keeps its best model in" in refused[0]


def test_workers_of_one_study_share_its_folders_and_keep_the_best_of_all(tmp_path: Path) -> None:
    stored = {"storage": f"sqlite:///{tmp_path}/study.db", "name": "tiny", "keep": "best", "metric": "score"}
    stored["grace"] = 4.0  # for which the second one waits a quarter, to see that the first is alive

    def another_worker(control: Any) -> None:
        tuned(tmp_path, max_evals=2, trainer={"compute_metrics": scripted([0.9] * 2), **CHECKPOINTS}, **stored)

    trainer = {
        "compute_metrics": scripted([0.1, 0.1, 0.2, 0.2]),
        "callbacks": [At("on_step_end", 3, another_worker)],
        **CHECKPOINTS,
    }
    study = tuned(tmp_path, max_evals=2, trainer=trainer, **stored)
    assert [trial.value for trial in study.trials] == [0.1, 0.9]
    assert json.loads((tmp_path / "out" / "best" / "trial.json").read_text())["trial"] == 1
    assert left_in(tmp_path / "out") == ["best"]


def test_a_relative_folder_is_that_of_the_first_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def factory(params: Any) -> Trainer:
        monkeypatch.chdir(tmp_path / "elsewhere")
        return tiny_trainer(params, tmp_path, **CHECKPOINTS)

    tuned(tmp_path, factory, keep="best", output_dir="tuned", max_evals=2)
    assert left_in(tmp_path / "tuned") == ["best"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_relative_folder_in_a_working_directory_that_is_gone_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SettingsError, match="output_dir='tuned' is relative to a working directory that is gone"):
        tuned(tmp_path, raises(AssertionError), output_dir="tuned")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("keep", [None, "best"])
@pytest.mark.parametrize("folder", ["/proc/nothing/tuned", "/dev/null/tuned"])
def test_a_folder_that_cannot_be_written_is_an_error_before_the_first_trial(
    folder: str, keep: Any, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=f"output_dir='{folder}' cannot be written: "):
        tuned(tmp_path, raises(AssertionError), output_dir=folder, keep=keep)


def test_a_folder_that_cannot_be_deleted_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"storage": f"sqlite:///{tmp_path}/study.db", "name": "tiny"}

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        assert load_study(stored["storage"]).trials[0].state is TrialState.COMPLETE  # on record before
        if not ignore_errors:
            raise OSError("Stale file handle") if path.exists() else FileNotFoundError(path)

    monkeypatch.setattr("llamatune_torch.integrations.trainer.folders.shutil.rmtree", refuse)
    with pytest.warns(CheckpointWarning, match=r"trial-0000/\.llamatune could not be deleted: Stale file handle"):
        study = tuned(tmp_path, **stored)
    assert load_study(stored["storage"]).best_value == study.best_value


def test_a_model_that_cannot_be_moved_waits_for_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"storage": f"sqlite:///{tmp_path}/study.db", "name": "tiny", "keep": "best"}

    def refuse(*_: Any) -> None:
        raise OSError("No space left on device")

    put = Best.put
    monkeypatch.setattr(Best, "put", refuse)
    with pytest.warns(CheckpointWarning, match="No space left on device; it is in /"):
        study = tuned(tmp_path, max_evals=2, **stored)
    monkeypatch.setattr(Best, "put", put)
    assert not (tmp_path / "out" / "best").exists()
    tuned(tmp_path, raises(AssertionError), max_evals=2, **stored)
    assert json.loads((tmp_path / "out" / "best" / "trial.json").read_text())["trial"] == study.best_trial.number
    assert left_in(tmp_path / "out") == ["best"]


def test_weights_whose_checkpoint_somebody_has_deleted_are_not_kept(tmp_path: Path) -> None:
    def delete(control: Any) -> None:
        (checkpoint,) = (tmp_path / "out").glob("*/*/checkpoint-2")
        shutil.rmtree(checkpoint)

    trainer = {
        **CHECKPOINTS,
        "metric_for_best_model": "score",
        "compute_metrics": scripted([0.9, 0.1]),
        "callbacks": [At("on_step_end", 3, delete)],
    }
    with pytest.warns(CheckpointWarning, match=r"model of trial 0 could not be kept .*deleted its checkpoint"):
        study = tuned(tmp_path, keep="best", metric="score", trainer=trainer)
    assert study.best_value == 0.9
    assert not (tmp_path / "out" / "best").exists()


def test_the_users_arguments_and_trainer_are_left_as_they_were(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "own"), report_to="none", use_cpu=True, max_steps=2, eval_strategy="epoch"
    )
    before = arguments.to_dict()
    calls = Calls(tmp_path, args=arguments)

    def factory(params: Any) -> Trainer:
        arguments.learning_rate = params["learning_rate"]
        return calls(params)

    study = tuned(tmp_path, factory, max_evals=2)
    assert len(study.completed) == 2
    assert arguments.to_dict() == before | {"learning_rate": study.trials[1].params["learning_rate"]}
    trainer = calls.trainers[0]
    assert trainer.args is arguments
    assert trainer.evaluate()["eval_loss"] == study.trials[0].value  # at leisure, after the search
