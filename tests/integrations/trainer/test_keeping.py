"""Where the study is: the best model is kept, and nothing else is left on disk."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from durable import everybody_falls_silent
from tiny import CHECKPOINTS, SPACE, At, Calls, Parity, evaluated, raises, scripted, tiny_trainer, tuned
from transformers import AutoTokenizer, GPT2TokenizerFast, Trainer, TrainingArguments

from llamatune_torch import CheckpointWarning, Listener, LlamaTune, SettingsError, Study, Trial, TrialState
from llamatune_torch.integrations.trainer.finetune import FineTune
from llamatune_torch.integrations.trainer.metric import Metric
from llamatune_torch.integrations.trainer.tune import prepare
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
        "trial": study.best_trial.number,
        "metric": "eval_loss",
        "value": study.best_value,
        "params": study.best_params,
        "seed": study.best_trial.seed,
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["best"]


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

    tuned(tmp_path, keep="best", metric="score", max_evals=4, callbacks=[look], trainer={"compute_metrics": scores})
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
    tuned(tmp_path, keep="best", metric="score", trainer={"compute_metrics": scripted([0.1, 0.1])})
    before = {path.name: path.read_bytes() for path in (out / "best").iterdir()}
    (out / "trial-0000").mkdir()
    (out / "trial-0000" / "model").write_text("in the way")
    with pytest.warns(CheckpointWarning, match=r"the model of trial 0 could not be kept in .*best: .*File exists"):
        study = tuned(tmp_path, keep="best", metric="score", trainer={"compute_metrics": scripted([0.2, 0.2])})
    assert study.best_value == 0.2
    assert {path.name: path.read_bytes() for path in (out / "best").iterdir()} == before


def test_a_later_search_replaces_the_model_of_an_earlier_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        study = tuned(tmp_path, keep="best", seed=seed)
        assert json.loads((tmp_path / "out" / "best" / "trial.json").read_text())["seed"] == study.best_trial.seed


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
        seen.append(sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("checkpoint-*")))

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
    assert seen == [[f"out/trial-{number:04d}/checkpoint-2", "own/checkpoint-2"] for number in range(3)]
    assert [trial.value for trial in study.trials] == [0.9] * 3
    assert list((tmp_path / "out").iterdir()) == []
    assert (own / "precious.bin").read_text() == "mine"


def test_checkpoints_of_a_failed_trial_go_away_too(tmp_path: Path) -> None:
    trainer = {**CHECKPOINTS, "callbacks": [At("on_save", 4, raises(OSError, "disk full"))]}
    study = tuned(tmp_path, trainer=trainer)
    assert study.trials[0].reason == "OSError"
    assert list((tmp_path / "out").iterdir()) == []


def test_checkpoints_of_a_silent_worker_stay_until_its_trial_has_run_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    stored = {"storage": url, "name": "tiny", "max_evals": 1}
    suspended = LlamaTune(SPACE, n_initial=50, metric=None, **stored)
    trial = suspended.ask()
    theirs = tmp_path / "out" / "trial-0000" / "checkpoint-2"
    theirs.mkdir(parents=True)

    def runs(**more: Any) -> Study:
        everybody_falls_silent(url)
        return tuned(tmp_path, **stored, **more)

    interrupted = runs(trainer={**CHECKPOINTS, "callbacks": [At("on_save", 2, raises(KeyboardInterrupt))]})
    assert [(t.state, t.reason) for t in interrupted.trials] == [
        (TrialState.LOST, "worker silent"),
        (TrialState.LOST, "interrupted"),
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["trial-0000"]
    assert theirs.exists()
    study = runs()
    assert (study.best_trial.number, study.best_trial.first) == (2, trial.number)
    assert not list((tmp_path / "out").iterdir())


def test_checkpoints_of_parameters_that_silenced_each_worker_stay(tmp_path: Path) -> None:
    """As long as their results may still come."""
    url = f"sqlite:///{tmp_path}/study.db"
    stored = {"storage": url, "name": "tiny", "max_evals": 2, "retries": 0}
    LlamaTune(SPACE, n_initial=50, metric=None, **stored).ask()
    theirs = tmp_path / "out" / "trial-0000" / "checkpoint-2"
    theirs.mkdir(parents=True)
    everybody_falls_silent(url)
    study = tuned(tmp_path, **stored)
    assert [trial.state for trial in study.trials] == [TrialState.FAILED, TrialState.COMPLETE]
    assert theirs.exists()


def test_other_files_in_a_trials_folder_stay(tmp_path: Path) -> None:
    log = tmp_path / "out" / "trial-0000" / "runs" / "events.log"
    log.parent.mkdir(parents=True)
    log.write_text("a TensorBoard log")
    tuned(tmp_path, trainer=CHECKPOINTS)
    assert log.read_text() == "a TensorBoard log"
    assert [path.name for path in log.parent.parent.iterdir()] == ["runs"]


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
