"""A Trainer callback that records the evaluations of a training run, and the first sign of a breakdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamatune_torch.errors import MetricError
from llamatune_torch.integrations.trainer.metric import Metric, is_trainers_own, numbers_among
from llamatune_torch.runtime.evaluation import Report
from llamatune_torch.trial import Outcome


def evaluation_prefixes(trainer: Trainer) -> list[str]:
    """The prefixes of a Trainer's metric names, one for each evaluation set."""
    if isinstance(trainer.eval_dataset, dict):
        return [f"eval_{name}" for name in trainer.eval_dataset]
    return ["eval"]


def is_stock(method: Callable[..., Any]) -> bool:
    """True if a Trainer's method is one of transformers', not overridden by a user."""
    return method.__module__.startswith("transformers.")


class Recorder(TrainerCallback):
    """Records the evaluations of one training run, reports the metric, and stops a run that has broken down."""

    def __init__(self, trainer: Trainer, metric: Metric, report: Report) -> None:
        self.metric = metric
        self.report = report
        self.prefixes = evaluation_prefixes(trainer)
        # A user's own evaluate() may add metrics after on_evaluate was called; transformers' never does.
        self.sees_all = is_stock(trainer.evaluate)
        #: All metrics of each evaluation, by its step.
        self.evaluations: dict[int, dict[str, Any]] = {}
        #: The value of the metric at each step where it was read.
        self.values: dict[int, float] = {}
        #: The failure, if the run has broken down.
        self.failure: Outcome | None = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Called once for each evaluation set, and also for sets that other callbacks evaluate on their own.
        gathered = {**self.evaluations.get(state.global_step, {}), **(metrics or {})}
        self.evaluations[state.global_step] = gathered
        if not all(f"{prefix}_runtime" in gathered for prefix in self.prefixes):
            return
        if self.sees_all:
            _check_own_metric(args, gathered)
        if self.sees_all or self.metric.is_in(gathered):
            self.record(state, state.global_step, gathered)
        if self.failure is not None:
            self._stop(control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The Trainer's logged loss hides nan (logging_nan_inf_filter); the gradient's norm does not. Under
        # fp16 an infinite norm is routine: the loss scaler skips the step.
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            self._check(name, float((logs or {}).get(name, 0.0)), state.global_step)
        if self.failure is not None:
            self._stop(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.failure is not None:
            self._stop(control)

    def record(self, state: TrainerState, step: int, metrics: Mapping[str, Any]) -> None:
        """Records a complete evaluation of the model as it was at ``step``.

        Raises:
            MetricError: the metric is not among ``metrics``.
        """
        self.evaluations[step] = dict(metrics)
        for prefix in self.prefixes:
            self._check(f"{prefix}_loss", numbers_among(metrics).get(f"{prefix}_loss", 0.0), step)
        if self.failure is not None:
            return
        value = self.metric.read(metrics)
        if math.isnan(value):
            self._check(self.metric.name, value, step)
            return
        if step >= max(self.values, default=step):
            self.report(step, value, min(1.0, step / state.max_steps) if state.max_steps > 0 else None)
        self.values[step] = value

    def outcome(self, trainer: Trainer) -> Outcome:
        """Returns the value of the model that the training left behind, which is evaluated now if need be.

        Raises:
            MetricError: the metric is not in its evaluation.
        """
        step = kept_step(trainer)
        if self.failure is None and step not in self.values:
            self.record(trainer.state, step, trainer.evaluate())
        if self.failure is not None:
            return self.failure
        outcomes = numbers_among(self.evaluations[step])
        if torch.cuda.is_available():
            outcomes["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return Outcome(
            value=self.values[step],
            outcomes=outcomes,
            notes={"value": f"{self._which(trainer)} evaluation, at step {step} of {trainer.state.max_steps}"},
        )

    def _which(self, trainer: Trainer) -> str:
        if not keeps_best(trainer):
            return "last"
        by = trainer.args.metric_for_best_model
        return "best" if is_trainers_own(self.metric.name, trainer.args) else f"best (by {by})"

    def _check(self, name: str, value: float, step: int) -> None:
        if self.failure is None and not math.isfinite(value):
            reason = "nan" if math.isnan(value) else "infinite"
            self.failure = Outcome.failure(reason, f"{name} is {value} at step {step}")

    @staticmethod
    def _stop(control: TrainerControl) -> None:
        control.should_training_stop = True
        control.should_evaluate = control.should_save = False


def keeps_best(trainer: Trainer) -> bool:
    """True if the trained model is the best checkpoint, not the last."""
    return bool(trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint)


def kept_step(trainer: Trainer) -> int:
    """The step of the trained model's weights."""
    if not keeps_best(trainer):
        return int(trainer.state.global_step)
    # Not `best_global_step`: if the best evaluation falls between two checkpoints, another step is loaded.
    return int(str(trainer.state.best_model_checkpoint).rpartition("-")[2])


def _check_own_metric(args: TrainingArguments, metrics: Mapping[str, Any]) -> None:
    own = args.metric_for_best_model
    if own is not None and f"eval_{own.removeprefix('eval_')}" not in metrics:
        # The Trainer would raise a KeyError right after this, in every trial.
        names = ", ".join(sorted({*metrics} - {"epoch"}))
        raise MetricError(f"metric_for_best_model={own!r} is not among what the Trainer reports: {names}")
