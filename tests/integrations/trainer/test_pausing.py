"""A run that pauses and goes on is the same as one that does not, to the last digit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import Clock, Losses, Steps, cut_off, same_result
from test_trl import texts, trl_trainer
from tiny import (
    CHECKPOINTS,
    SPACE,
    At,
    Parity,
    evaluated,
    language_model,
    left_in,
    raises,
    scripted,
    text_trainer,
    tiny_model,
    tiny_trainer,
    tuned,
)
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from llamatune_torch import (
    Cause,
    CheckpointWarning,
    Integer,
    Listener,
    Study,
    Trial,
    TrialState,
)
from llamatune_torch.decisions import Decision, Discard, Resume
from llamatune_torch.engine.strategies.strategy import next_rung, start

TWELVE_STEPS = {"train_dataset": Parity(64, seed=0), "num_train_epochs": 3, "logging_steps": 1}


@dataclass(frozen=True)
class Stages:
    """Each run pauses at each rung, and goes on at once."""

    rungs: tuple[float, ...]
    least: float = 0.01

    def decide(self, study: Study, settings: Any, left: float) -> Decision:
        for trial in study.paused:
            return Resume(trial.number, next_rung(self.rungs, trial.reached), "the next stage")
        return start(study, settings, self.rungs[0], left)


class Run:
    """One trial of one search, and all that its training has shown.

    Args:
        folder: an empty one.
        steps: at which it pauses.
        trainer: builds a Trainer of the parameters, a folder and callbacks.
        **search: further arguments of ``tune``.
    """

    def __init__(self, folder: Path, steps: list[int], trainer: Callable[..., Trainer], **search: Any) -> None:
        self.losses, self.steps = Losses(), list[int]()
        self.stages = Stages(tuple(step / 12 for step in (*steps, 12)))
        self.folder = folder

        def factory(params: Any) -> Trainer:
            return trainer(params, folder, [self.losses, Steps(self.steps)])

        arguments = {"strategy": self.stages, "keep": "best", **search}
        self.study = tuned(folder, factory, **arguments)
        self.trial = self.study.trials[0]

    @property
    def weights(self) -> bytes:
        (file,) = (self.folder / "out" / "best").glob("*.safetensors")
        return file.read_bytes()


def both(folder: Path, steps: list[int], trainer: Callable[..., Trainer], **search: Any) -> tuple[Run, Run]:
    """A run that is not interrupted, and the same that pauses at some steps."""
    return Run(folder / "whole", [], trainer, **search), Run(folder / "paused", steps, trainer, **search)


def assert_the_same(paused: Run, whole: Run, steps: list[int]) -> None:
    """Compares all that two runs have shown; the paused one has looked at ``steps``, too."""
    assert (whole.trial.pauses, paused.trial.pauses) == (0, len(steps))
    assert paused.steps == whole.steps  # none is trained twice
    assert paused.losses.at == whole.losses.at
    assert [point for point in paused.trial.curve if point in set(whole.trial.curve)] == list(whole.trial.curve)
    assert {*paused.trial.curve.steps} - {*whole.trial.curve.steps} <= {*steps}
    assert {*steps} <= {*paused.trial.curve.steps}
    own = {"eval_num_tokens"}  # TRL's SFTTrainer counts anew in each process
    outcomes = [{k: v for k, v in run.trial.outcomes.items() if k not in own} for run in (paused, whole)]
    assert same_result(
        replace(paused.trial, curve=whole.trial.curve, outcomes=outcomes[0]), replace(whole.trial, outcomes=outcomes[1])
    )
    assert paused.trial.notes == whole.trial.notes
    assert paused.weights == whole.weights
    assert not list(paused.folder.glob("out/*/*/checkpoint-*"))  # TRL's Trainers leave their README


def plain(**changes: Any) -> Callable[..., Trainer]:
    return lambda params, folder, callbacks: tiny_trainer(
        params, folder, **{**TWELVE_STEPS, "callbacks": callbacks, **changes}
    )


def best_first(params: Any, folder: Path, callbacks: list[TrainerCallback]) -> Trainer:
    """The first epoch is the best, and a patience of one more ends the run before its last."""
    clock = Clock()
    changes: dict[str, Any] = {
        **TWELVE_STEPS,
        **CHECKPOINTS,
        "metric_for_best_model": "score",
        "compute_metrics": lambda prediction: {"score": 1 / clock.step},
        "callbacks": [clock, *callbacks, EarlyStoppingCallback(early_stopping_patience=1)],
    }
    return tiny_trainer(params, folder, **changes)


class Stream(IterableDataset[dict[str, Any]]):
    """Rows without a number; after ``n`` of them it begins again."""

    def __init__(self, n: int) -> None:
        self.rows = Parity(n, seed=0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.rows[i] for i in range(len(self.rows)))


STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        (plain(), [2, 5]),
        (plain(), [4, 8]),
        (plain(), [1, 4, 11]),
        (plain(gradient_accumulation_steps=2, per_device_train_batch_size=8, lr_scheduler_type="cosine"), [2, 4, 7]),
        (plain(eval_strategy="no"), [2, 4]),
        (plain(eval_strategy="steps", eval_steps=3, eval_on_start=True), [3, 5]),
        (plain(**CHECKPOINTS), [1, 5]),
        (plain(**CHECKPOINTS), [4, 9]),
        (plain(**STEPS, eval_steps=1, save_steps=1), [3, 4]),
        (plain(**STEPS, eval_steps=3, save_steps=3, save_total_limit=1), [2, 3, 7]),
        (best_first, [1, 4]),
        (best_first, [4, 6]),
        (plain(train_dataset=Stream(512), num_train_epochs=1, max_steps=12), [2, 5]),
        (plain(lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 2}), [3, 7]),
        (plain(max_steps=12, warmup_steps=4, max_grad_norm=0.1, optim="sgd"), [3]),
    ],
    ids=[
        "in the middle of epochs",
        "at the end of epochs",
        "before the first evaluation",
        "accumulation",
        "no evaluations",
        "evaluations at steps",
        "best checkpoint, in the middle",
        "best checkpoint, at an end",
        "best checkpoint at each step",
        "best checkpoint at some steps",
        "early stopping, in the middle",
        "early stopping, at an end",
        "streamed data",
        "a schedule that restarts",
        "warm-up",
    ],
)
def test_a_run_that_pauses_is_the_same_as_one_that_does_not(
    trainer: Callable[..., Trainer], steps: list[int], tmp_path: Path
) -> None:
    """With dropout, its losses, its curve and its weights."""
    whole, paused = both(tmp_path, steps, trainer, metric="score" if trainer is best_first else "loss")
    assert_the_same(paused, whole, steps)
    if trainer is best_first:
        assert whole.steps == list(range(1, 9))


def adapted(params: Any, folder: Path, callbacks: list[TrainerCallback]) -> Trainer:
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install 'llamatune-torch[trl]'")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
    model = peft.get_peft_model(language_model(), lora)
    changes = {"model": model, "label_names": ["labels"], "callbacks": callbacks}
    return text_trainer(params, folder, num_train_epochs=6, logging_steps=1, **changes)


def supervised(params: Any, folder: Path, callbacks: list[TrainerCallback]) -> Trainer:
    more = {"max_steps": 12, "max_length": 16, "eval_strategy": "steps", "eval_steps": 4, "logging_steps": 1}
    return trl_trainer("SFT", folder, texts(text=8), {"callbacks": callbacks}, **more, **params)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("trainer", [adapted, supervised], ids=["PEFT", "TRL"])
def test_an_adapter_and_a_supervised_fine_tune_pause_too(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    whole, paused = both(tmp_path, [3, 4, 7], trainer)
    assert_the_same(paused, whole, [3, 4, 7])


def in_steps(params: Any) -> Trainer:
    return plain(max_steps=params["steps"], eval_strategy="no")(params, Path(), [])


def in_epochs(params: Any) -> Trainer:
    return plain(num_train_epochs=params["epochs"], eval_strategy="no")(params, Path(), [])


@pytest.mark.parametrize("factory", [in_steps, in_epochs])
def test_a_pause_is_at_a_share_of_the_runs_own_length(factory: Callable[..., Trainer], tmp_path: Path) -> None:
    name, most = ("steps", 40) if factory is in_steps else ("epochs", 10)
    points = [{name: most // 10, "learning_rate": 0.01}, {name: most, "learning_rate": 0.01}]
    space = {**SPACE, name: Integer(1, most)}
    study = tuned(tmp_path, factory, space=space, max_evals=2, initial_points=points, strategy=Stages((0.3, 1.0)))
    assert [trial.curve.steps[0] for trial in study.trials] == [2, 12]
    assert [trial.curve.steps[-1] for trial in study.trials] == [4, 40]
    assert [trial.pauses for trial in study.trials] == [1, 1]
    assert [trial.reached for trial in study.trials] == [0.5, 0.3]


class Heard(Listener):
    """The events of a search, with the points that were reported."""

    def __init__(self) -> None:
        self.events: list[tuple[str, float | None]] = []

    def on_start(self, search: Any, trial: Trial) -> None:
        self.events.append(("start", None))

    def on_report(self, search: Any, trial: Trial) -> None:
        assert trial.curve.last is not None
        self.events.append(("report", trial.curve.last.step))

    def on_pause(self, search: Any, trial: Trial) -> None:
        self.events.append(("pause", trial.reached))

    def on_resume(self, search: Any, trial: Trial) -> None:
        self.events.append(("resume", trial.until))

    def on_finish(self, search: Any, trial: Trial) -> None:
        self.events.append((str(trial.state), None))


@pytest.mark.parametrize("stored", [True, False])
def test_a_listener_hears_each_point_once(stored: bool, tmp_path: Path) -> None:
    heard = Heard()
    place = {"storage": f"sqlite:///{tmp_path}/study.db"} if stored else {}
    run = Run(tmp_path, [3, 6], plain(), callbacks=[heard], **place)
    assert heard.events == [
        *[("start", None), ("report", 3), ("pause", 0.25)],
        *[("resume", 0.5), ("report", 4), ("report", 6), ("pause", 0.5)],
        *[("resume", 1.0), ("report", 8), ("report", 12), ("complete", None)],
    ]
    assert run.trial.curve.steps == (3, 4, 6, 8, 12)


def test_a_checkpoint_that_the_trainer_would_take_for_its_best_is_none_of_the_pauses(tmp_path: Path) -> None:
    """It evaluates at each step, and saves at every third: so it pauses there."""
    trainer = plain(**STEPS, eval_steps=1, save_steps=3)
    whole, paused = both(tmp_path, [4], trainer)
    assert paused.trial.curve == whole.trial.curve
    assert paused.trial.reached == 0.5
    assert paused.trial.notes == whole.trial.notes
    assert paused.weights == whole.weights


def test_a_paused_run_goes_on_in_a_fresh_process(tmp_path: Path) -> None:
    """Compared to one in this process."""
    trials, weights = [], []
    for rungs, place in (((1.0,), {}), ((5 / 12, 1.0), {"isolate": True})):
        out = tmp_path / f"{len(rungs)} stages"
        search: dict[str, Any] = {"keep": "best", "output_dir": out, **place}
        trials += tuned(tmp_path, elsewhere, strategy=Stages(rungs), **search).trials
        weights.append((out / "best" / "model.safetensors").read_bytes())
    whole, paused = trials
    assert (whole.pauses, paused.pauses) == (0, 1)
    assert paused.curve.steps == (4, 5, 8, 12)
    assert [point for point in paused.curve if point.step != 5] == list(whole.curve)
    assert same_result(replace(paused, curve=whole.curve), whole)
    assert weights[0] == weights[1]


def elsewhere(params: Any) -> Trainer:
    torch.set_num_threads(1)  # more change the last digit
    return plain()(params, Path("own"), [])


# --- What stands in the way ----------------------------------------------------------------------


def paused_at_5(folder: Path, **search: Any) -> Run:
    """A stored study with one run that has paused."""
    return Run(folder, [5], plain(), **{**stored(folder), "callbacks": [Leave()], **search})


def stored(folder: Path) -> dict[str, Any]:
    return {"storage": f"sqlite:///{folder}/study.db", "name": "tiny", "keep": None}


class Leave(Listener):
    """Ends a search at the first pause."""

    def on_pause(self, search: Any, trial: Trial) -> None:
        search.stop()


def folder_of(run: Run) -> Path:
    (folder,) = (run.folder / "out").glob("tiny-*/trial-0000")
    return folder


def test_a_checkpoint_stays_while_its_run_may_go_on(tmp_path: Path) -> None:
    first = paused_at_5(tmp_path)
    assert first.trial.state is TrialState.PAUSED
    assert left_in(folder_of(first)) == [".llamatune", "checkpoint-5"]
    second = Run(tmp_path, [5], plain(), **stored(tmp_path))
    assert second.steps == list(range(6, 13))
    assert left_in(tmp_path / "out") == []


def test_a_checkpoint_of_a_search_in_memory_goes_with_it(tmp_path: Path) -> None:
    run = paused_at_5(tmp_path, storage=None, name=None)
    assert run.trial.state is TrialState.PAUSED
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("damage", "warning"),
    [
        (lambda folder: shutil.rmtree(folder / "checkpoint-5"), "has no checkpoint of it"),
        (lambda folder: shutil.rmtree(folder), "has no checkpoint of it"),
        (lambda folder: shutil.rmtree(folder.parents[1]), "has no checkpoint of it"),
        (lambda folder: cut_off(folder / "checkpoint-5" / "optimizer.pt"), "optimizer.pt is cut off"),
        (lambda folder: cut_off(folder / "checkpoint-5" / "trainer_state.json"), "no trainer_state.json of step 5"),
        (lambda folder: make_wider(folder / "checkpoint-5"), "checkpoint-5 could not be loaded"),
        (lambda folder: (folder / ".llamatune" / "trial.json").write_text("{}"), "has no checkpoint of it"),
    ],
    ids=["checkpoint", "folder", "output_dir", "half an optimizer", "half a state", "other weights", "not ours"],
)
@pytest.mark.filterwarnings("ignore:trial 0 starts anew")
def test_a_run_that_has_lost_its_checkpoint_starts_anew(
    damage: Callable[[Path], Any], warning: str, tmp_path: Path
) -> None:
    first = paused_at_5(tmp_path)
    damage(folder_of(first))
    with pytest.warns(CheckpointWarning, match=warning):
        second = Run(tmp_path, [5], plain(), **stored(tmp_path))
    assert second.steps == list(range(1, 13))
    whole = Run(tmp_path / "whole", [], plain())
    assert second.trial.value == whole.trial.value
    assert second.trial.curve.steps == (4, 5, 8, 12)


def make_wider(checkpoint: Path) -> None:
    other = tiny_trainer({"learning_rate": 0.0}, checkpoint, model=tiny_model(n_embd=16))
    other.save_model(str(checkpoint / "wide"))
    shutil.copy(checkpoint / "wide" / "model.safetensors", checkpoint)
    shutil.rmtree(checkpoint / "wide")


def test_the_curve_of_a_run_that_starts_anew_is_another_one(tmp_path: Path) -> None:
    """As on a GPU, where a second run has other digits."""
    changes = {"metric_for_best_model": "score"}
    first = Run(
        tmp_path, [5], plain(compute_metrics=scripted([0.1, 0.2]), **changes), callbacks=[Leave()], **stored(tmp_path)
    )
    assert first.trial.curve.values == (0.1, 0.2)
    shutil.rmtree(folder_of(first))
    other = scripted([0.3, 0.2, 0.4, 0.5])
    with pytest.warns(CheckpointWarning, match="trial 0 starts anew"):
        second = Run(
            tmp_path,
            [5],
            plain(compute_metrics=other, eval_strategy="steps", eval_steps=3, **changes),
            **stored(tmp_path),
        )
    assert second.trial.curve.values == (0.3, 0.2, 0.4, 0.5)


def test_a_folder_that_was_moved_is_as_good(tmp_path: Path) -> None:
    """On another machine it may have another path, also that of the best checkpoint before the pause."""
    whole = Run(tmp_path / "whole", [], best_first, metric="score")
    paused = tmp_path / "paused"
    paused.mkdir()
    Run(paused, [6], best_first, metric="score", callbacks=[Leave()], **stored(paused))
    (paused / "out").rename(tmp_path / "moved")
    second = Run(paused, [6], best_first, metric="score", **{**stored(paused), "output_dir": tmp_path / "moved"})
    assert second.steps == [7, 8]
    assert same_result(second.trial, replace(whole.trial, curve=second.trial.curve))
    assert second.trial.notes == whole.trial.notes
    assert second.trial.notes["value"] == "best evaluation, at step 4 of 12"


class FullDisk(Trainer):
    """Its disk is full in the middle of its second file, until ``full`` is False."""

    full = True

    def _save_optimizer_and_scheduler(self, output_dir: str | None) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super()._save_optimizer_and_scheduler(output_dir)


def test_a_run_that_pauses_on_a_full_disk_begins_anew_when_it_goes_on(tmp_path: Path) -> None:
    first = None
    with pytest.warns(CheckpointWarning, match=r"checkpoint-5 could not be written, .* No space left on device"):
        first = Run(tmp_path, [5], plain(kind=FullDisk), callbacks=[Leave()], **stored(tmp_path))
    assert (first.trial.state, first.trial.reached) == (TrialState.PAUSED, pytest.approx(5 / 12))
    assert left_in(folder_of(first)) == [".llamatune"]
    with pytest.warns(CheckpointWarning, match="trial 0 starts anew"):
        second = Run(tmp_path, [5], plain(), **stored(tmp_path))
    assert second.steps == list(range(1, 13))
    assert second.trial.state is TrialState.COMPLETE


def test_a_full_disk_at_the_trainers_own_checkpoint_is_the_trials_failure(tmp_path: Path) -> None:
    """It could not load its best one at the end."""
    run = Run(tmp_path, [5], plain(kind=FullDisk, **CHECKPOINTS), **stored(tmp_path))
    assert (run.trial.state, run.trial.reason, run.steps) == (TrialState.FAILED, "OSError", [1, 2, 3, 4])


def test_a_stream_that_begins_again_goes_on_to_its_end(tmp_path: Path) -> None:
    """A Trainer skips what it has read, and that is only right in the first round."""
    trainer = plain(train_dataset=Stream(64), num_train_epochs=1, max_steps=12)
    with pytest.warns(CheckpointWarning, match="its stream of data has begun again"):
        whole, paused = both(tmp_path, [6], trainer)
    assert paused.trial.pauses == 0
    assert_the_same(paused, whole, [])
    assert both(tmp_path / "first", [3], trainer)[1].trial.pauses == 1


def test_a_nan_at_the_pause_is_a_failure_at_once(tmp_path: Path) -> None:
    nan = plain(metric_for_best_model="score", compute_metrics=scripted([float("nan")]))
    run = Run(tmp_path, [3], nan, metric="score")
    assert (run.trial.state, run.trial.cause, run.steps) == (TrialState.FAILED, Cause.DIVERGED, [1, 2, 3])
    assert left_in(tmp_path / "out") == []


def test_a_run_that_is_stopped_where_it_would_pause_is_over(tmp_path: Path) -> None:
    def stop(control: Any) -> None:
        control.should_training_stop = True

    trainer = lambda params, folder, callbacks: plain()(  # noqa: E731
        params, folder, [*callbacks, At("on_step_end", 4, stop)]
    )
    run = Run(tmp_path, [4], trainer)
    assert (run.trial.state, run.trial.pauses, run.steps) == (TrialState.COMPLETE, 0, [1, 2, 3, 4])


class Rarely(Trainer):
    """Its metric is there at the end of an epoch only."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        if float(self.state.epoch or 0).is_integer():
            metrics["eval_rare"] = 1.0
        return metrics


def test_a_run_whose_metric_is_not_there_in_the_middle_goes_on_to_its_end(tmp_path: Path) -> None:
    with pytest.warns(CheckpointWarning, match="an evaluation in the middle of its training does not have the metric"):
        run = Run(tmp_path, [5], plain(kind=Rarely), metric="rare", direction="maximize")
    assert (run.trial.pauses, run.trial.curve.steps) == (0, (4, 8, 12))


def test_a_trainer_that_fails_while_it_goes_on_has_failed(tmp_path: Path) -> None:
    trainer = lambda params, folder, callbacks: plain()(  # noqa: E731
        params, folder, [*callbacks, At("on_step_end", 7, raises(torch.OutOfMemoryError))]
    )
    run = Run(tmp_path, [5], trainer)
    assert (run.trial.state, run.trial.cause, run.trial.pauses) == (TrialState.FAILED, Cause.OUT_OF_MEMORY, 1)
    assert left_in(tmp_path / "out") == []


def test_a_run_that_is_interrupted_while_it_goes_on_is_paused_again(tmp_path: Path) -> None:
    trainer = lambda params, folder, callbacks: plain()(  # noqa: E731
        params, folder, [*callbacks, At("on_step_end", 7, raises(KeyboardInterrupt))]
    )
    run = Run(tmp_path, [5], trainer, **stored(tmp_path))
    assert (run.trial.state, run.trial.pauses) == (TrialState.PAUSED, 1)
    assert left_in(folder_of(run)) == [".llamatune", "checkpoint-5"]
    assert Run(tmp_path, [5], plain(), **stored(tmp_path)).steps == list(range(6, 13))


# --- The default ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "stored"),
    [({"eval_strategy": "no", "max_steps": 20}, True), (CHECKPOINTS, False), ({"save_strategy": "no"}, True)],
)
def test_a_search_of_several_runs_pauses_most_of_them(changes: dict[str, Any], stored: bool, tmp_path: Path) -> None:
    place = {"storage": f"sqlite:///{tmp_path}/study.db"} if stored else {}
    study = tuned(tmp_path, trainer=changes, max_evals=4, keep="best", **place)
    assert len(study.trials) > 10
    assert 1 <= len(study.completed) <= 4
    assert study.best_trial.pauses or study.best_trial.until == 1
    assert study.trained <= 4 + 1e-9
    kept = evaluated(tmp_path / "out" / "best", tmp_path)["eval_loss"]
    assert kept == pytest.approx(study.best_value, rel=1e-6)
    left = {path.name for path in (tmp_path / "out").glob("*/trial-*")}
    assert left == {f"trial-{trial.number:04d}" for trial in study.paused if stored}


def test_the_checkpoint_of_a_stopped_run_is_deleted(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Discards(Stages):
        def decide(self, study: Study, settings: Any, left: float) -> Decision:
            for trial in study.paused:
                return Discard(trial.number, "enough")
            return start(study, settings, 0.5, left)

    seen: list[list[str]] = []

    def look(search: Any, trial: Trial) -> None:
        seen.append(sorted(path.name for path in (tmp_path / "out").glob("*/trial-*")))

    class Look(Listener):
        on_start = staticmethod(look)  # type: ignore[assignment]

    study = tuned(tmp_path, strategy=Discards((1.0,)), max_evals=2, callbacks=[Look()])
    assert [trial.state for trial in study.trials] == [TrialState.STOPPED] * 4
    assert seen == [[f"trial-000{number}"] for number in range(4)]
    assert left_in(tmp_path / "out") == []


def test_a_paused_run_holds_no_memory(tmp_path: Path) -> None:
    import weakref

    alive: list[int] = []
    refs: list[weakref.ref[Trainer]] = []

    def factory(params: Any) -> Trainer:
        trainer = tiny_trainer(params, tmp_path)
        refs.append(weakref.ref(trainer))
        return trainer

    class Watch(Listener):
        def on_pause(self, search: Any, trial: Trial) -> None:
            alive.append(sum(ref() is not None for ref in refs))

    tuned(tmp_path, factory, strategy=Stages((0.25, 0.5, 1.0)), max_evals=2, callbacks=[Watch()])
    assert alive == [0] * 4
