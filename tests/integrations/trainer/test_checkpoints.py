"""A trial that repeats another goes on from its checkpoint, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from durable import everybody_falls_silent
from tiny import (
    CHECKPOINTS,
    SPACE,
    At,
    Parity,
    evaluated,
    folders_of,
    left_in,
    raises,
    scripted,
    tiny_model,
    tiny_trainer,
    tuned,
)
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from llamatune_torch import Cause, CheckpointWarning, LlamaTune, Outcome, Trial, TrialState
from llamatune_torch.integrations.trainer.checkpoints import adopt, find_flaw, newest_complete
from llamatune_torch.integrations.trainer.finetune import FineTune

EACH_STEP = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}


class Losses(TrainerCallback):
    """The training losses, by their step."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.at[state.global_step] = logs["loss"]


class Search:
    """One trial that runs through, and the same in a study whose worker was killed after a checkpoint.

    Args:
        folder: an empty one.
        step: of the last checkpoint that the killed worker has written.
        changes: builds changes for tiny_trainer anew, for each training.
        **search: further arguments of ``tune``.
    """

    def __init__(self, folder: Path, step: int, changes: Callable[[], dict[str, Any]] = dict, **search: Any) -> None:
        self.folder = folder
        self.changes = changes
        self.out = folder / "out"
        self.stored = {"storage": f"sqlite:///{folder}/study.db", "name": "tiny", "max_evals": 1}
        self.search = search
        copied = folder / "copied"

        def copy(control: Any) -> None:
            (trial,) = (folder / "whole").glob("*/trial-0000")
            shutil.copytree(trial, copied)

        self.losses = Losses()
        through = {"storage": f"sqlite:///{folder}/whole.db", "output_dir": folder / "whole"}
        self.whole = self.run([At("on_save", step, copy)], **through).trials[0]
        killed = LlamaTune(SPACE, n_initial=50, metric=None, **self.stored)
        self.trial = killed.ask()
        assert (self.trial.params, self.trial.seed) == (self.whole.params, self.whole.seed)
        folders = folders_of(self.out, killed, "tiny")
        folders.create(self.trial)
        #: What the killed worker has left.
        self.left = folders.trial(self.trial)
        for path in copied.glob("checkpoint-*"):
            shutil.copytree(path, self.left / path.name)
            state = json.loads((path / "trainer_state.json").read_text())
            if state["best_model_checkpoint"] is not None:
                state["best_model_checkpoint"] = str(self.left / Path(state["best_model_checkpoint"]).name)
                (self.left / path.name / "trainer_state.json").write_text(json.dumps(state))

    def run(self, callbacks: list[TrainerCallback], **search: Any) -> Any:
        self.steps: list[int] = []

        refs: list[weakref.ref[Trainer]] = []
        #: How many trainers are alive at each call of the factory.
        self.alive: list[int] = []

        def factory(params: Any) -> Trainer:
            self.alive.append(sum(ref() is not None for ref in refs))
            changes = {**EACH_STEP, **self.changes()}
            more = [*changes.pop("callbacks", []), *callbacks, self.losses, Steps(self.steps)]
            trainer = tiny_trainer(params, self.folder, callbacks=more, **changes)
            refs.append(weakref.ref(trainer))
            return trainer

        return tuned(self.folder, factory, **{**self.stored, "output_dir": self.out, **self.search, **search})

    def repeated(self, *callbacks: TrainerCallback, **search: Any) -> Trial:
        """The record of the trial that repeats the one that was killed."""
        self.losses = Losses()
        everybody_falls_silent(str(self.stored["storage"]))
        study = self.run(list(callbacks), **search)
        assert [trial.state for trial in study.trials] == [TrialState.LOST, TrialState.COMPLETE]
        assert left_in(self.out) == (["best"] if "keep" in search else [])
        trial: Trial = study.trials[1]
        return trial


class Clock(TrainerCallback):
    """The present step, for ``compute_metrics``."""

    step = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step


class Steps(TrainerCallback):
    """Lists the steps that were trained."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


def same_result(one: Trial, other: Trial) -> bool:
    measured = [
        {k: v for k, v in t.outcomes.items() if not any(word in k for word in ("second", "runtime", "memory"))}
        for t in (one, other)
    ]
    return (one.value, one.curve, *measured[:1]) == (other.value, other.curve, *measured[1:])


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "changes",
    [
        dict,
        lambda: {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8, "lr_scheduler_type": "cosine"},
    ],
    ids=["plain", "accumulation"],
)
def test_the_losses_are_those_of_a_run_that_was_not_interrupted(
    changes: Callable[[], dict[str, Any]], step: int, tmp_path: Path
) -> None:
    """With dropout, in the middle of an epoch, at its end and at the very end."""
    search = Search(tmp_path, step, changes)
    losses = search.losses.at
    assert sorted(losses) == [1, 2, 3, 4]
    repeated = search.repeated()
    assert search.steps == list(range(step + 1, 5))
    assert search.losses.at == {at: loss for at, loss in losses.items() if at > step}
    assert same_result(repeated, search.whole)
    assert len(repeated.curve) == 2
    assert repeated.notes["resumed"] == f"from a checkpoint, at step {step}"
    assert repeated.retry_of == 0


def best_first() -> dict[str, Any]:
    """Nine epochs of two steps, of which the first is the best."""
    clock = Clock()
    return {
        **CHECKPOINTS,
        "num_train_epochs": 9,
        "metric_for_best_model": "score",
        "compute_metrics": lambda prediction: {"score": 1 / clock.step},
        "callbacks": [clock, EarlyStoppingCallback(early_stopping_patience=2)],
    }


def test_a_best_checkpoint_and_the_patience_of_early_stopping_survive(tmp_path: Path) -> None:
    search = Search(tmp_path, 4, best_first, metric="score")
    assert search.steps == [1, 2, 3, 4, 5, 6]
    assert search.whole.notes["value"] == "best evaluation, at step 2 of 18"

    def wakes_up(control: Any) -> None:
        shutil.rmtree(search.left)

    repeated = search.repeated(At("on_step_end", 5, wakes_up), keep="best")
    assert search.steps == [5, 6]
    assert same_result(repeated, search.whole)
    assert repeated.notes["value"] == "best evaluation, at step 2 of 18"
    kept = evaluated(tmp_path / "out" / "best", tmp_path)["eval_loss"]
    assert kept == pytest.approx(search.whole.outcomes["eval_loss"], rel=1e-6)


def test_several_evaluation_sets_have_their_curve_too(tmp_path: Path) -> None:
    sets = {"a": Parity(8, seed=2), "b": Parity(8, seed=3)}
    search = Search(tmp_path, 3, lambda: {"eval_dataset": sets}, metric="b_loss")
    assert same_result(search.repeated(), search.whole)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def test_a_half_written_checkpoint_is_skipped_with_a_warning(tmp_path: Path) -> None:
    search = Search(tmp_path, 3)
    half = search.left / "checkpoint-4"
    shutil.copytree(search.left / "checkpoint-3", half)
    (half / "trainer_state.json").unlink()
    with pytest.warns(CheckpointWarning, match=r"checkpoint-4 is skipped, because .*no trainer_state.json of step 4"):
        repeated = search.repeated()
    assert search.steps == [4]
    assert same_result(repeated, search.whole)


def test_a_trial_without_a_complete_checkpoint_starts_anew(tmp_path: Path) -> None:
    search = Search(tmp_path, 3)
    cut_off(search.left / "checkpoint-3" / "optimizer.pt")
    with pytest.warns(CheckpointWarning, match=r"checkpoint-3 is skipped, .*: checkpoint-3/optimizer.pt is cut off"):
        repeated = search.repeated()
    assert search.steps == [1, 2, 3, 4]
    assert same_result(repeated, search.whole)
    assert "resumed" not in repeated.notes


def test_a_checkpoint_that_cannot_be_loaded_means_that_the_trial_starts_anew(tmp_path: Path) -> None:
    search = Search(tmp_path, 3)
    other = tiny_trainer({"learning_rate": 0.0}, tmp_path, model=wide_model())
    other.save_model(str(tmp_path / "wide"))
    shutil.copy(tmp_path / "wide" / "model.safetensors", search.left / "checkpoint-3" / "model.safetensors")
    with pytest.warns(CheckpointWarning, match=r"trial 1 starts anew, because .*checkpoint-3 could not be loaded: "):
        repeated = search.repeated()
    assert search.alive == [0, 0]  # the first one holds no memory any more
    assert search.steps == [1, 2, 3, 4]
    assert same_result(repeated, search.whole)


def test_a_checkpoint_that_cannot_be_copied_means_that_the_trial_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    search = Search(tmp_path, 3)
    monkeypatch.setattr("shutil.copytree", refuse)
    with pytest.warns(
        CheckpointWarning, match="trial 1 starts anew, because no checkpoint could be copied: No space left"
    ):
        repeated = search.repeated()
    assert search.steps == [1, 2, 3, 4]
    assert same_result(repeated, search.whole)


def test_a_failure_after_the_checkpoint_was_loaded_is_the_trials_own(tmp_path: Path) -> None:
    search = Search(tmp_path, 3)
    everybody_falls_silent(str(search.stored["storage"]))
    study = search.run([At("on_step_end", 4, raises(ValueError, "no"))])
    assert study.trials[1].reason == "ValueError"
    assert search.steps == []
    assert left_in(search.out) == []


def test_an_interrupted_retry_keeps_what_it_has_done(tmp_path: Path) -> None:
    search = Search(tmp_path, 1)
    everybody_falls_silent(str(search.stored["storage"]))
    study = search.run([At("on_step_end", 4, raises(KeyboardInterrupt))])
    assert [(trial.state, trial.reason) for trial in study.trials][1] == (TrialState.LOST, "interrupted")
    everybody_falls_silent(str(search.stored["storage"]))
    study = search.run([])
    assert search.steps == [4]
    assert (study.best_trial.number, study.best_trial.notes["resumed"]) == (2, "from a checkpoint, at step 3")
    assert same_result(study.best_trial, search.whole)
    assert left_in(search.out) == []


class KillsFirst:
    """An executor whose first trial is killed by somebody after it has written what ``left`` copies."""

    def __init__(self, left: Callable[[Path], Any]) -> None:
        self.left = left
        self.evaluations: list[FineTune] = []

    def submit(self, function: Callable[..., Any], /, evaluate: FineTune, trial: Trial, *args: Any) -> Future[Any]:
        self.evaluations.append(evaluate)
        future: Future[Any] = Future()
        if len(self.evaluations) == 1:
            evaluate.orders.folders.create(trial)
            self.left(evaluate.orders.folders.trial(trial))
            future.set_result(Outcome.failure("killed by signal 9 (SIGKILL)", cause=Cause.KILLED))
        else:
            future.set_result(function(evaluate, trial, *args))
        return future


@pytest.mark.parametrize("stored", [True, False])
def test_a_trial_whose_process_was_killed_goes_on_from_its_checkpoint(stored: bool, tmp_path: Path) -> None:
    search = Search(tmp_path, 4, best_first, metric="score")

    def leave(folder: Path) -> None:
        for path in search.left.glob("checkpoint-*"):
            shutil.copytree(path, folder / path.name)

    executor = KillsFirst(leave)
    place = {"storage": f"sqlite:///{tmp_path}/killed.db"} if stored else {"storage": None, "name": None}
    study = search.run([], executor=executor, n_workers=1, output_dir=tmp_path / "new", **place)
    assert [trial.cause for trial in study.trials] == [Cause.KILLED, None]
    assert search.steps == [5, 6]
    assert same_result(study.trials[1], search.whole)
    assert left_in(tmp_path / "new") == []


def test_a_killed_trial_of_a_search_in_memory_that_ends_leaves_nothing_behind(tmp_path: Path) -> None:
    executor = KillsFirst(lambda folder: (folder / "checkpoint-2").mkdir())
    arguments = {"executor": executor, "n_workers": 1, "callbacks": [lambda search, trial: search.stop()]}
    study = tuned(tmp_path, raises(AssertionError), **arguments)
    assert [trial.cause for trial in study.trials] == [Cause.KILLED]
    assert left_in(tmp_path / "out") == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tiny import At, tuned
kill = At("on_step_end", 4, lambda control: os.kill(os.getpid(), signal.SIGKILL))
trainer = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3, "callbacks": [kill]}
tuned(Path("."), trainer=trainer, keep="best", storage="sqlite:///study.db", name="tiny", output_dir="out")
"""


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Its locks are gone with it."""
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path}
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    trainer = {**EACH_STEP, "num_train_epochs": 3}
    stored = {"storage": f"sqlite:///{tmp_path}/study.db", "name": "tiny"}
    everybody_falls_silent(stored["storage"])
    study = tuned(tmp_path, trainer=trainer, keep="best", **stored)
    whole = tuned(tmp_path, trainer=trainer, output_dir=tmp_path / "whole")
    assert study.best_trial.notes["resumed"] == "from a checkpoint, at step 3"
    assert same_result(study.best_trial, whole.best_trial)
    assert left_in(tmp_path / "out") == ["best"]


# --- Files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints at steps 2 and 4, the first of which is the best, as a Trainer writes them."""
    folder = tmp_path_factory.mktemp("written")
    changes = {**CHECKPOINTS, "metric_for_best_model": "score", "compute_metrics": scripted([0.9, 0.1])}
    tiny_trainer({"learning_rate": 0.01}, folder, **changes).train()
    return folder / "own"


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "trial")
    return tmp_path / "trial" / "checkpoint-4"


def wide_model() -> Any:
    return tiny_model(n_embd=16)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write(path: Path, text: str) -> None:
    path.write_text(text)


def test_what_a_trainer_writes_is_complete(checkpoint: Path) -> None:
    assert find_flaw(checkpoint, 4) is None
    assert newest_complete([checkpoint.parent, checkpoint.parent / "none"]) == checkpoint


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "there is no trainer_state.json of step 4"),
        (lambda folder: cut_off(folder / "trainer_state.json"), "there is no trainer_state.json of step 4"),
        (lambda folder: write(folder / "trainer_state.json", "[]"), "there is no trainer_state.json of step 4"),
        (lambda folder: cut_off(folder / "model.safetensors"), "checkpoint-4/model.safetensors is cut off"),
        (lambda folder: empty(folder / "model.safetensors"), "checkpoint-4/model.safetensors is cut off"),
        (lambda folder: cut_off(folder / "optimizer.pt"), "checkpoint-4/optimizer.pt is cut off"),
        (lambda folder: empty(folder / "rng_state.pth"), "checkpoint-4/rng_state.pth is cut off"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "the state of the optimizer is missing"),
        (lambda folder: shutil.rmtree(folder.parent / "checkpoint-2"), "the best checkpoint before it, checkpoint-2"),
        (lambda folder: cut_off(folder.parent / "checkpoint-2" / "model.safetensors"), "checkpoint-2/model.safetens"),
        (
            lambda folder: write(
                folder / "model.safetensors.index.json", '{"weight_map": {"w": "part-2.safetensors"}}'
            ),
            "checkpoint-4/model.safetensors.index.json is cut off",
        ),
    ],
)
def test_each_damage_is_found(damage: Callable[[Path], Any], flaw: str, checkpoint: Path) -> None:
    damage(checkpoint)
    assert str(find_flaw(checkpoint, 4)).startswith(flaw)


@pytest.mark.parametrize("links", [True, False])
def test_an_adopted_checkpoint_is_on_its_own(links: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr("os.link", raises(OSError, "Operation not permitted"))
    weights = torch.load(checkpoint / "optimizer.pt")
    before = (checkpoint / "trainer_state.json").read_text()
    folder = checkpoint.parents[1] / "retry"
    (folder / ".llamatune").mkdir(parents=True)
    adopted = adopt(checkpoint, folder)
    assert adopted == folder / "checkpoint-4"
    assert os.path.samefile(adopted / "optimizer.pt", checkpoint / "optimizer.pt") == links
    assert (checkpoint / "trainer_state.json").read_text() == before
    state = json.loads((adopted / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(folder / "checkpoint-2")
    shutil.rmtree(checkpoint.parent)
    assert find_flaw(adopted, 4) is None
    assert str(torch.load(adopted / "optimizer.pt")) == str(weights)
    assert sorted(path.name for path in folder.iterdir()) == [".llamatune", "checkpoint-2", "checkpoint-4"]
