"""A Trainer callback that records the evaluations of a training run, and the first sign of a breakdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

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
    """True if a Trainer's method is one of transformers' or TRL's, not overridden by a user."""
    return method.__module__.startswith(("transformers.", "trl."))


class Recorder(TrainerCallback):
    """Records the evaluations of one training run, reports the metric, and stops a run that has broken down.

    Inside its ``with`` block it is a callback of the Trainer and stands in front of ``trainer.evaluate``. A callback
    alone gets metrics that other callbacks may have changed, and misses those that a user's own ``evaluate`` adds.
    """

    def __init__(
        self,
        trainer: Trainer,
        metric: Metric,
        report: Report,
        breakdown: Callable[[float], str | None] = lambda value: None,
    ) -> None:
        self.trainer = trainer
        self.breakdown = breakdown
        self.metric = metric
        self.report = report
        self.prefixes = evaluation_prefixes(trainer)
        self.evaluate = trainer.evaluate
        #: All metrics of each evaluation, by its step.
        self.evaluations: dict[int, dict[str, Any]] = {}
        #: The value of the metric at each step where it was read.
        self.values: dict[int, float] = {}
        #: The failure, if the run has broken down.
        self.failure: Outcome | None = None

    def __enter__(self) -> Self:
        self.trainer.add_callback(self)
        self._former = {name: own for name, own in vars(self.trainer).items() if name == "evaluate"}
        vars(self.trainer)["evaluate"] = self.evaluate_and_record
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.remove_callback(self)
        del vars(self.trainer)["evaluate"]
        vars(self.trainer).update(self._former)

    def evaluate_and_record(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as the Trainer does, and records what it says of its own evaluation sets.

        Raises:
            MetricError: the metric, or the Trainer's own, is not among what an evaluation reports.
        """
        trainer = self.trainer
        already = len(trainer.state.log_history)
        metrics = self.evaluate(*args, **kwargs)
        if not _is_of_own_sets(*args, **kwargs):
            return metrics
        complete = self._completed(metrics, trainer.state.log_history[already:])
        _check_own_metric(trainer.args, complete)
        # A user's own evaluate() may leave out a metric that takes long, but at the end it must be there.
        if is_stock(self.evaluate) or self.metric.is_in(complete) or not trainer.is_in_train:
            self.record(trainer.state.global_step if trainer.is_in_train else kept_step(trainer), complete)
        if self.failure is not None:
            self._stop(trainer.control)
        return metrics

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The Trainer's logged loss hides nan (logging_nan_inf_filter); the gradient's norm does not. Under
        # fp16 an infinite norm is routine: the loss scaler skips the step. The log's history has what other callbacks
        # may have taken out of `logs`.
        logged = numbers_among({**(logs or {}), **(state.log_history or [{}])[-1]})
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            self._check(name, logged.get(name, 0.0), state.global_step)
        if self.failure is not None:
            self._stop(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.failure is not None:
            self._stop(control)
        elif _ends(state, control) and kept_step(self.trainer) not in self.values:
            # While the training lasts: after on_train_end, trackers have closed their runs and would open new ones.
            control.should_evaluate = True

    def record(self, step: int, metrics: Mapping[str, Any]) -> None:
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
            most = self.trainer.state.max_steps
            self.report(step, value, min(1.0, step / most) if most > 0 else None)
        self.values[step] = value
        # At its end a run has nothing left to lose, and its value says more than that it has failed.
        if step < self.trainer.state.max_steps and (why := self.breakdown(value)) is not None:
            self.failure = Outcome.failure("diverged", f"{self.metric.name} at step {step}: {why}")

    def outcome(self) -> Outcome:
        """Returns the value of the model that the training left behind, which is evaluated now if need be.

        Raises:
            MetricError: the metric is not in its evaluation.
        """
        step = kept_step(self.trainer)
        if self.failure is None and step not in self.values:
            self.trainer.evaluate()
        if self.failure is not None:
            return self.failure
        return Outcome(
            value=self.values[step],
            outcomes=numbers_among(self.evaluations[step]),
            notes={"value": f"{self._which()} evaluation, at step {step} of {self.trainer.state.max_steps}"},
        )

    def _which(self) -> str:
        if not keeps_best(self.trainer):
            return "last"
        by = self.trainer.args.metric_for_best_model
        return "best" if is_trainers_own(self.metric.name, self.trainer.args) else f"best (by {by})"

    def _completed(self, metrics: Mapping[str, Any] | None, logged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Completes what an evaluation returned by what was logged before any callback could change it."""
        first: dict[str, Any] = {}
        for entry in reversed(logged):  # a callback may evaluate other data meanwhile
            if any(f"{prefix}_runtime" in entry for prefix in self.prefixes):
                first |= entry
        first.pop("step", None)
        # What a user's own evaluate() has changed is meant so.
        return {**(metrics or {}), **first} if is_stock(self.evaluate) else {**first, **(metrics or {})}

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
    """The step of the trained model's weights, or while the training lasts, of those that it would leave behind now."""
    if not keeps_best(trainer):
        return int(trainer.state.global_step)
    # Not `best_global_step`: if the best evaluation falls between two checkpoints, another step is loaded.
    return int(str(trainer.state.best_model_checkpoint).rpartition("-")[2])


def _ends(state: TrainerState, control: TrainerControl) -> bool:
    """True at the end of the last epoch; all epochs end, also those that are stopped."""
    return control.should_training_stop or math.ceil(state.epoch or 0) >= state.num_train_epochs


def _is_of_own_sets(
    eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **more: Any
) -> bool:
    """True for the arguments of ``evaluate`` with which it evaluates the Trainer's own sets."""
    return eval_dataset is None and metric_key_prefix == "eval"


def _check_own_metric(args: TrainingArguments, metrics: Mapping[str, Any]) -> None:
    own = args.metric_for_best_model
    if own is not None and f"eval_{own.removeprefix('eval_')}" not in metrics:
        # The Trainer would raise a KeyError right after this, in every trial.
        names = ", ".join(sorted({*metrics} - {"epoch"}))
        raise MetricError(f"metric_for_best_model={own!r} is not among what the Trainer reports: {names}")
