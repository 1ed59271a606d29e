"""Batches that are divided until they fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import SPACE, language_model, text_trainer, tiny_model, tiny_trainer
from transformers import Trainer

from llamatune_torch import SettingsError, tune
from llamatune_torch.integrations.trainer.splitting import divide, divides_by_items

STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
STEPS = {"max_steps": 6, "logging_steps": 1, "eval_strategy": "no"}


def classifier(folder: Path, **changes: Any) -> Trainer:
    transformers.set_seed(0)
    return tiny_trainer({"learning_rate": 1e-2}, folder, model=tiny_model(**STILL), **STEPS, **changes)


def writer(folder: Path, **changes: Any) -> Trainer:
    transformers.set_seed(0)
    return text_trainer({"learning_rate": 1e-2}, folder, model=language_model(**STILL), **STEPS, **changes)


def losses(trainer: Trainer) -> list[tuple[float, float]]:
    trainer.train()
    return [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry]


@pytest.mark.parametrize("build", [classifier, writer])
@pytest.mark.parametrize("most", [8, 5, 1])
def test_losses_and_gradients_do_not_depend_on_the_parts(
    build: Callable[..., Trainer], most: int, tmp_path: Path
) -> None:
    whole, divided = build(tmp_path), build(tmp_path)
    assert divide(divided, most) == {8: 8, 5: 4, 1: 1}[most]
    assert divided.args.per_device_train_batch_size * divided.args.gradient_accumulation_steps == 16
    for one, other in zip(losses(whole), losses(divided), strict=True):
        assert one == pytest.approx(other, rel=2e-3)  # the log rounds


def test_accumulation_of_the_users_own_stays(tmp_path: Path) -> None:
    trainer = classifier(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert divide(trainer, 4) == 4
    assert trainer.args.gradient_accumulation_steps == 4
    assert losses(trainer)[0] == pytest.approx(losses(classifier(tmp_path))[0], rel=2e-3)


def test_a_batch_that_fits_is_left_alone(tmp_path: Path) -> None:
    trainer = classifier(tmp_path)
    assert divide(trainer, 16) == 16
    assert trainer.args.gradient_accumulation_steps == 1
    assert trainer.model_accepts_loss_kwargs


def test_whether_a_model_divides_by_items_is_tried_out_and_leaves_no_trace(tmp_path: Path) -> None:
    trainer = classifier(tmp_path)
    assert trainer.model_accepts_loss_kwargs  # by its signature
    state = torch.get_rng_state()
    assert not divides_by_items(trainer)
    assert bool((torch.get_rng_state() == state).all())
    assert divides_by_items(writer(tmp_path))
    model: Any = trainer.model
    assert model.training


class Small(Trainer):
    """Has memory for some sequences at a time."""

    room = 4

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().training_step(model, inputs, *args, **kwargs)


def test_a_trial_that_runs_out_of_memory_begins_anew_in_smaller_parts(tmp_path: Path) -> None:
    tried: list[int] = []

    class Watched(Small):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            tried.append(int(self.args.per_device_train_batch_size))
            return super().train(*args, **kwargs)

    def factory(params: dict[str, Any]) -> Trainer:
        return tiny_trainer(params, tmp_path, kind=Watched)

    study = tune(factory, SPACE, max_evals=2, output_dir=tmp_path / "out", auto_batch=True, progress=False)
    assert tried == [16, 8, 4, 4]  # the second trial begins with what has worked
    assert [trial.outcomes["sequences_at_once"] for trial in study.trials] == [4.0, 4.0]
    assert study.trials[0].notes["batch"] == "16 sequences, 4 at a time"
    assert len(study.trials[0].curve) == 2


def test_one_sequence_that_does_not_fit_is_a_failure(tmp_path: Path) -> None:
    class Full(Small):
        room = 0

    def factory(params: dict[str, Any]) -> Trainer:
        return tiny_trainer(params, tmp_path, kind=Full if params["learning_rate"] < 2e-2 else Trainer)

    points = [{"learning_rate": 5e-2}, {"learning_rate": 1e-2}]
    study = tune(
        factory, SPACE, max_evals=2, output_dir=tmp_path / "out", auto_batch=True, progress=False, initial_points=points
    )
    assert study.trials[1].reason == "out of memory"
    assert study.trials[1].outcomes["sequences_at_once"] == 1.0


def test_auto_batch_is_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="auto_batch must be True or False, but got 8"):
        tune(lambda params: classifier(tmp_path), SPACE, auto_batch=8)  # type: ignore[arg-type]
