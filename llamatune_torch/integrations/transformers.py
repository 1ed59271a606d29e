"""A Hugging Face ``Trainer`` as the objective: ``tune(trainer_factory, space)``.

Each trial builds a fresh ``Trainer``, trains and evaluates it, records every evaluation in the trial's curve,
and releases its memory, whatever happened.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

try:
    import torch
    import transformers
    from accelerate.utils.memory import clear_device_cache
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"tune() needs {error.name}: pip install 'llamatune-torch[hf]'", name=error.name
    ) from error

from llamatune_torch.errors import (
    CheckpointWarning,
    IgnoredParameterWarning,
    MetricError,
    SettingsError,
    TrainerError,
)
from llamatune_torch.integrations.metric import (
    ALWAYS_REPORTED,
    Metric,
    MetricFunction,
    numbers_among,
    resolve_metric,
)
from llamatune_torch.runtime.evaluation import run_guarded
from llamatune_torch.runtime.optimizer import LlamaTune
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Direction, Outcome, Study, Trial

TrainerFactory = Callable[[Params], Trainer]


def tune(
    trainer_factory: TrainerFactory,
    space: Mapping[str, Any] | SearchSpace,
    *,
    metric: str | MetricFunction | None = None,
    direction: Direction | None = None,
    max_evals: int = 20,
    keep: Literal["best"] | None = None,
    output_dir: str | Path = "llamatune_output",
    **search: Any,
) -> Study:
    """Finds the hyperparameters for which a fine-tune comes out best.

    A trial that raises, runs out of memory or meets a nan is FAILED, with its reason, and the search goes on
    and steers away. Before each trial the global seeds are set to the trial's own, so that the new layers of
    a model start the same when the trial is repeated.

    Args:
        trainer_factory: builds a fresh ``transformers.Trainer`` with a fresh model from a dict of parameters.
        space: ``{name: Real | Integer | Categorical}``.
        metric: the name of an evaluation metric, with or without "eval_"; "perplexity"; or a function of the
            metrics' dict. By default the Trainer's ``metric_for_best_model``, else ``eval_loss``.
        direction: by default what the metric's name says: losses, errors and perplexities are minimised.
        max_evals: how many fine-tunes in total.
        keep: "best" leaves the best model and its tokenizer in ``output_dir/best``, ready for
            ``from_pretrained``, with the trial's record in ``trial.json``.
        output_dir: where checkpoints go instead of the Trainer's own ``output_dir``: to a folder for each
            trial, so that they do not mix, and deleted with the trial's end, so that the disk does not fill up.
        **search: all other arguments of :class:`LlamaTune`, such as ``initial_points``, ``seed``, ``timeout``.

    Returns:
        The study: ``best_params``, ``best_value``, ``best_trial``, ``trials``, ``dataframe()``, ``summary()``.
        The value that counts is the best evaluation where the Trainer keeps its best checkpoint
        (``load_best_model_at_end``), else the last; ``trial.notes["value"]`` says which.

    Raises:
        SpaceError, ParamsError, SettingsError: before the factory is called.
        TrainerError: the factory returned no ``Trainer``, a used one, or one that has nothing to evaluate on.
        MetricError: the metric does not exist; the message lists those that do.

    Warns:
        IgnoredParameterWarning: the factory never reads one of the parameters.
        CheckpointWarning: the Trainer keeps the worst checkpoint instead of the best, or saving failed.
    """
    if not callable(trainer_factory):
        raise SettingsError(f"trainer_factory must be callable, but got {trainer_factory!r}")
    if keep not in (None, "best"):
        raise SettingsError(f"keep must be 'best' or None, but got {keep!r}")
    if not (metric is None or isinstance(metric, str) or callable(metric)):
        raise SettingsError(f"metric must be a name or a function of the metrics, but got {metric!r}")
    optimizer = LlamaTune(space, max_evals=max_evals, direction=direction or "maximize", **search)
    objective = FineTune(optimizer, trainer_factory, metric, direction, keep, Path(output_dir))
    return optimizer.run(objective)


class FineTune:
    """One fine-tune as an evaluation: from a trial to its outcome."""

    def __init__(
        self,
        optimizer: LlamaTune,
        trainer_factory: TrainerFactory,
        metric: str | MetricFunction | None,
        direction: Direction | None,
        keep: Literal["best"] | None,
        output_dir: Path,
    ) -> None:
        self.optimizer = optimizer
        self.trainer_factory = trainer_factory
        self.wanted_metric = metric
        self.wanted_direction = direction
        self.keep = keep
        self.output_dir = output_dir
        # Known as soon as there is a Trainer to ask for its own metric.
        self.metric: Metric | None = None
        self._warned: set[str] = set()
        self._last_model: Callable[[], Any] = lambda: None

    def __call__(self, trial: Trial) -> Outcome:
        try:
            outcome: Outcome = run_guarded(self._fine_tune, trial)
            return outcome
        finally:
            # By now no frame holds the trainer any more, so its memory can really go.
            clear_device_cache(garbage_collection=True)

    def _fine_tune(self, trial: Trial) -> Outcome:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer = self._fresh_trainer(trial)
        metric = self._metric_of(trainer)
        folder = self.output_dir / f"trial-{trial.number:04d}"
        trainer.args.output_dir = str(folder)  # the rotation of checkpoints must not see other trials'
        num_sets = len(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else 1
        recorder = Recorder(metric, num_sets, lambda *point: self.optimizer.report(trial, *point))
        trainer.add_callback(recorder)
        try:
            trainer.train()
            if recorder.failure is None and not recorder.covers(trainer):
                trainer.evaluate()
            if recorder.failure is not None:
                return Outcome.failure("nan", recorder.failure)
            outcome = recorder.outcome(trainer)
            if self.keep == "best" and self._is_best(outcome.value):
                self._keep(trainer, trial, outcome)
            return outcome
        finally:
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _fresh_trainer(self, trial: Trial) -> Trainer:
        """The factory's Trainer, checked before it costs anything."""
        transformers.set_seed(trial.seed)
        params = ReadLog(trial.params)
        trainer = self.trainer_factory(params)
        if not isinstance(trainer, Trainer):
            raise TrainerError(
                f"trainer_factory must return a transformers.Trainer, but got {trainer!r} ({type(trainer).__name__})"
            )
        if trainer.state.global_step > 0 or trainer.model is self._last_model():
            raise TrainerError(
                "trainer_factory must build a fresh Trainer and a fresh model at every call, but it returned "
                "one that an earlier trial has trained"
            )
        self._last_model = weakref.ref(trainer.model)
        if trainer.eval_dataset is None:
            raise TrainerError("the Trainer needs an eval_dataset, but its eval_dataset is None")
        for name in sorted(set(params) - params.read - self._warned):
            self._warned.add(name)
            warnings.warn(
                f"trainer_factory never reads params[{name!r}], so it has no effect: "
                f"use it, or take {name!r} out of the space",
                IgnoredParameterWarning,
                stacklevel=2,
            )
        return trainer

    def _metric_of(self, trainer: Trainer) -> Metric:
        """The metric that counts, settled with the first Trainer and the same ever after."""
        if self.metric is not None:
            return self.metric
        args = trainer.args
        metric = resolve_metric(self.wanted_metric, self.wanted_direction, args)
        # Subclasses and several evaluation sets may report more; for them the first evaluation will tell.
        plain = type(trainer) is Trainer and not isinstance(trainer.eval_dataset, dict)
        known = metric.function is not None or metric.name in ALWAYS_REPORTED
        if plain and trainer.compute_metrics is None and not known:
            raise MetricError(
                f"there is no metric {metric.name!r}: without compute_metrics the Trainer reports: "
                f"{', '.join(ALWAYS_REPORTED)}"
            )
        own = args.metric_for_best_model or ""
        same = own.removeprefix("eval_") == metric.name.removeprefix("eval_")
        if args.load_best_model_at_end and same and args.greater_is_better != (metric.direction == "maximize"):
            warnings.warn(
                f"the study will {metric.direction} {metric.name}, but the Trainer keeps the checkpoint with "
                f"the {'highest' if args.greater_is_better else 'lowest'}: set greater_is_better="
                f"{metric.direction == 'maximize'} in its TrainingArguments",
                CheckpointWarning,
                stacklevel=2,
            )
        self.optimizer.settle_metric(metric.name, metric.direction)
        self.metric = metric
        return metric

    def _is_best(self, value: float | None) -> bool:
        study = self.optimizer.study
        if value is None or not math.isfinite(value):
            return False
        return not study.completed or study.better(value, study.best_value)

    def _keep(self, trainer: Trainer, trial: Trial, outcome: Outcome) -> None:
        """Puts the model in ``output_dir/best``; the former best stays until the new one is complete."""
        best, arriving = self.output_dir / "best", self.output_dir / "best.arriving"
        try:
            shutil.rmtree(arriving, ignore_errors=True)
            trainer.save_model(str(arriving))
            record = {"trial": trial.number, "metric": self.optimizer.study.metric, "value": outcome.value}
            text = json.dumps({**record, "params": trial.params, "seed": trial.seed}, indent=2)
            (arriving / "trial.json").write_text(text + "\n")
            shutil.rmtree(best, ignore_errors=True)
            arriving.rename(best)
        except OSError as error:  # a full disk must not cost the result as well
            warnings.warn(
                f"the model of trial {trial.number} could not be kept in {best}: {error}",
                CheckpointWarning,
                stacklevel=2,
            )


class Recorder(TrainerCallback):
    """Listens to one training run: its evaluations, and the first sign that it has broken down."""

    def __init__(self, metric: Metric, num_sets: int, report: Callable[[float, float, float | None], Any]) -> None:
        self.metric = metric
        self.num_sets = num_sets
        self.report = report
        self._num_calls = 0
        #: All metrics of each evaluation, by the step it took place at.
        self.evaluations: dict[int, dict[str, float]] = {}
        #: What broke down, if anything did.
        self.failure: str | None = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        gathered = self.evaluations.setdefault(state.global_step, {})
        gathered.update(metrics or {})
        self._num_calls += 1
        if self._num_calls % self.num_sets:
            return  # of several evaluation sets, each calls once; the others are still to come
        broken = [n for n, v in gathered.items() if n.endswith("loss") and not math.isfinite(v)]
        if broken:
            self._break_down(control, f"{broken[0]} is {gathered[broken[0]]} at step {state.global_step}")
            return
        value = self.metric.read(gathered)
        if math.isnan(value):
            self._break_down(control, f"{self.metric.name} is nan at step {state.global_step}")
            return
        share = min(1.0, state.global_step / state.max_steps) if state.max_steps > 0 else None
        self.report(state.global_step, value, share)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # The Trainer's logged loss hides nan (logging_nan_inf_filter); the gradient's norm does not. Under
        # fp16 an infinite norm is routine: the loss scaler skips the step.
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(float(value)):
                self._break_down(control, f"{name} is {value} at step {state.global_step}")

    def covers(self, trainer: Trainer) -> bool:
        """Whether the model that training left behind has been evaluated."""
        return self._step_that_counts(trainer) in self.evaluations

    def outcome(self, trainer: Trainer) -> Outcome:
        """What the run is worth: the evaluation of the model that training left behind."""
        step = self._step_that_counts(trainer)
        metrics = self.evaluations[step]
        which = "best" if trainer.args.load_best_model_at_end else "last"
        outcomes = numbers_among(metrics)
        if torch.cuda.is_available():
            outcomes["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return Outcome(
            value=self.metric.read(metrics),
            outcomes=outcomes,
            notes={"value": f"{which} evaluation, at step {step} of {trainer.state.max_steps}"},
        )

    def _step_that_counts(self, trainer: Trainer) -> int:
        state = trainer.state
        kept = state.best_global_step if trainer.args.load_best_model_at_end else None
        return state.global_step if kept is None else kept

    def _break_down(self, control: TrainerControl, failure: str) -> None:
        self.failure = self.failure or failure
        control.should_training_stop = True


class ReadLog(dict[str, Any]):
    """A dict that remembers which of its values somebody has looked at (``read``)."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.read.add(name)
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        # Overridden so that ** and dict() ask for each value instead of copying the table unseen.
        return super().__iter__()

    def items(self) -> Any:
        self.read.update(self)
        return super().items()

    def values(self) -> Any:
        self.read.update(self)
        return super().values()

    def copy(self) -> dict[str, Any]:
        self.read.update(self)
        return super().copy()
