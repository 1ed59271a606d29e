"""One fine-tune as an evaluation: a fresh ``Trainer``, trained, judged, recorded, released, whatever happened."""

from __future__ import annotations

import copy
import json
import math
import shutil
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

try:
    import torch
    import transformers
    from accelerate.utils.memory import clear_device_cache
    from transformers import Trainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"tune() needs {error.name}: pip install 'llamatune-torch[hf]'", name=error.name
    ) from error

from llamatune_torch.errors import (
    CheckpointWarning,
    IgnoredParameterWarning,
    MetricError,
    TrainerError,
)
from llamatune_torch.integrations.trainer.callback import Recorder, evaluation_prefixes, is_stock
from llamatune_torch.integrations.trainer.metric import (
    Metric,
    MetricFunction,
    always_reported,
    is_trainers_own,
    resolve_metric,
)
from llamatune_torch.integrations.trainer.readlog import ReadLog
from llamatune_torch.runtime.evaluation import report, run_guarded
from llamatune_torch.runtime.optimizer import LlamaTune
from llamatune_torch.runtime.runners import Runner
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.trial import Direction, Outcome, Trial, TrialState

TrainerFactory = Callable[[Params], Trainer]

#: The file beside a kept model that says which trial it is from.
KEPT_RECORD = "trial.json"

# The trainable weights of the trials that a worker process has run; see FineTune._check_fresh.
_TRAINED_HERE: list[weakref.ref[Any]] = []


@dataclass(frozen=True)
class FineTuned(Outcome):
    """An outcome, and what else there is to say where the study is."""

    metric: Metric | None = None
    #: Where the model lies, if it may be the best.
    saved: Path | None = None
    no_metric: MetricError | None = None


class FineTune:
    """One fine-tune as an evaluation: from a trial to its outcome, in whatever process.

    It is called where the trial runs, and knows nothing there of the study; ``landed`` is called where the study is.
    """

    def __init__(
        self,
        optimizer: LlamaTune,
        trainer_factory: TrainerFactory,
        metric: str | MetricFunction | None,
        direction: Direction | None,
        keep: Literal["best"] | None,
        output_dir: Path,
    ) -> None:
        self.optimizer: LlamaTune | None = optimizer
        # In another process, the best value when its trial began.
        self.best: float | None = None
        self.trainer_factory = trainer_factory
        self.wanted_metric = metric
        self.wanted_direction = direction
        self.keep = keep
        self.output_dir = output_dir
        # Known as soon as there is a Trainer to ask for its own metric.
        self.metric: Metric | None = None
        self._settled = False
        self._warned: set[str] = set()
        # The trainable weights of earlier trials; those that are still alive must not come back.
        self._trained: list[weakref.ref[Any]] = []

    def run(self, where: Runner) -> Study:
        """Fine-tunes until the budget is used up; the study."""
        assert self.optimizer is not None
        try:
            return self.optimizer.run(self, where, self.landed)
        finally:
            clear_device_cache(garbage_collection=True)  # after Ctrl-C, what the last trial held
            # Not what others ran: a machine that was suspended may come back and go on with its checkpoints.
            for trial in self.optimizer.study.in_state(TrialState.LOST, TrialState.FAILED):
                if trial.worker == self.optimizer.worker:
                    self.clean_up(trial)

    def __call__(self, trial: Trial) -> Outcome:
        try:
            return run_guarded(self._fine_tune, trial)
        except MetricError as error:
            return FineTuned.failure("no metric", str(error), no_metric=error, metric=self.metric)
        finally:
            # By now no frame holds the trainer any more, so its memory can really go.
            clear_device_cache(garbage_collection=True)

    def _fine_tune(self, trial: Trial) -> FineTuned:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer = self._fresh_trainer(trial)
        metric = self._metric_of(trainer)
        # A copy, because the user may share the arguments between trainers. The rotation of checkpoints must
        # not see other trials'.
        args = trainer.args
        trainer.args = copy.copy(args)
        trainer.args.output_dir = str(self._folder(trial))
        recorder = Recorder(trainer, metric, report)
        trainer.add_callback(recorder)
        try:
            trainer.train()
            outcome = recorder.outcome(trainer)
            saved = None
            if self.keep == "best" and self._may_be_best(outcome.value, metric):
                saved = self._save(trainer, trial, metric, outcome.value)
            found = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
            return FineTuned(**found, metric=metric, saved=saved)
        finally:
            # Whoever kept the trainer finds it as it was.
            trainer.args = args
            trainer.remove_callback(recorder)
            if args.world_size == 1:  # else another rank may still read them: landed() deletes them
                for checkpoint in self._folder(trial).glob("checkpoint-*"):
                    shutil.rmtree(checkpoint, ignore_errors=True)

    def _fresh_trainer(self, trial: Trial) -> Trainer:
        """The factory's Trainer, checked before it costs anything."""
        transformers.set_seed(trial.seed)
        params = ReadLog(trial.params)
        trainer = self.trainer_factory(params)
        if not isinstance(trainer, Trainer):
            raise TrainerError(
                f"trainer_factory must return a transformers.Trainer, but got "
                f"{trainer if trainer is None else f'an object of type {type(trainer).__name__}'}"
            )
        self._check_fresh(trainer)
        _check_evaluates(trainer)
        if trainer.args.auto_find_batch_size:
            raise TrainerError(
                "auto_find_batch_size trains with another batch size than the trial's: set it to False; a batch "
                "that does not fit is a failed trial, from which the search learns"
            )
        for name in params.unread():
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"trainer_factory never reads params[{name!r}], so it has no effect: "
                    f"use it, or take {name!r} out of the space",
                    IgnoredParameterWarning,
                    stacklevel=2,
                )
        return trainer

    def _check_fresh(self, trainer: Trainer) -> None:
        model: Any = trainer.model
        alive = [ref for ref in self._trained if ref() is not None]
        trained = {id(ref()) for ref in alive}
        if trainer.state.global_step > 0 or any(id(weight) in trained for weight in model.parameters()):
            raise TrainerError(
                "trainer_factory must build a fresh Trainer and a fresh model at every call, but it returned "
                "one that an earlier trial has trained"
            )
        self._trained[:] = alive + [weakref.ref(w) for w in model.parameters() if w.requires_grad]

    def _metric_of(self, trainer: Trainer) -> Metric:
        """The metric that counts, settled with the first Trainer and the same ever after."""
        if self.metric is not None:
            return self.metric
        args = trainer.args
        metric = resolve_metric(self.wanted_metric, self.wanted_direction, args)
        _check_metric(metric, trainer)
        own = metric.function is None and is_trainers_own(metric.name, args)
        if args.load_best_model_at_end and own and args.greater_is_better != (metric.direction == "maximize"):
            warnings.warn(
                f"the study will {metric.direction} {metric.name}, but the Trainer keeps the checkpoint with "
                f"the {'highest' if args.greater_is_better else 'lowest'}: set greater_is_better="
                f"{metric.direction == 'maximize'} in its TrainingArguments",
                CheckpointWarning,
                stacklevel=2,
            )
        self.metric = metric
        self._settle()  # before the training, where the study is here
        return metric

    def _settle(self) -> None:
        if self.metric is not None and self.optimizer is not None and not self._settled:
            self.optimizer.settle_metric(self.metric.name, self.metric.direction)
            self._settled = True

    def _may_be_best(self, value: float | None, metric: Metric) -> bool:
        """Whether a model is worth saving, by what was known when its trial began."""
        best = self.best if self.optimizer is None else _best_value(self.optimizer.study)
        if value is None or not math.isfinite(value):
            return False
        return best is None or (value > best if metric.direction == "maximize" else value < best)

    def _save(self, trainer: Trainer, trial: Trial, metric: Metric, value: float | None) -> Path | None:
        """Saves the model next to the trial's checkpoints; where, unless that failed."""
        saved = self._folder(trial) / "model"
        record = {"trial": trial.number, "metric": metric.name, "value": value}
        record |= {"params": trial.params, "seed": trial.seed}
        try:
            trainer.save_model(str(saved))
            if trainer.args.should_save:  # under torchrun one rank writes, though all must be there
                (saved / KEPT_RECORD).write_text(json.dumps(record, indent=2) + "\n")
        except Exception as error:  # a full disk (safetensors has its own error) must not cost the result as well
            shutil.rmtree(saved, ignore_errors=True)
            _warn_not_kept(trial, self.output_dir / "best", error)
            return None
        return saved

    def landed(self, trial: Trial, outcome: Outcome) -> Outcome:
        """What is to be done where the study is, with what came back from where the trial was.

        Raises:
            MetricError: the metric has never been there.
        """
        assert self.optimizer is not None
        back = outcome if isinstance(outcome, FineTuned) else FineTuned()
        self.metric = self.metric or back.metric
        self._settle()
        study = self.optimizer.study
        # Once the metric has been there, its absence is this trial's trouble, and no reason to lose the others.
        if back.no_metric is not None and not study.completed:
            raise back.no_metric
        if back.saved is not None and self.metric is not None and self._may_be_best(outcome.value, self.metric):
            self._keep(trial, back.saved)
        self.clean_up(trial)
        for other in study.in_state(TrialState.LOST):
            if other.first == trial.first:  # of a worker that fell silent, whose result is here by now
                self.clean_up(other)
        return outcome

    def _keep(self, trial: Trial, saved: Path) -> None:
        """Puts a saved model in ``output_dir/best``; the former best stays until the new one is complete."""
        best, former = self.output_dir / "best", self.output_dir / "best.former"
        try:
            shutil.rmtree(former, ignore_errors=True)
            if best.exists():
                best.rename(former)
            saved.rename(best)
            shutil.rmtree(former, ignore_errors=True)
        except OSError as error:  # a disk that the trial's machine does not share, for example
            if former.exists() and not best.exists():
                former.rename(best)
            _warn_not_kept(trial, best, error)

    def clean_up(self, trial: Trial) -> None:
        """Deletes what a trial has left on disk, also one whose process was killed."""
        folder = self._folder(trial)
        for left in (*folder.glob("checkpoint-*"), folder / "model"):
            shutil.rmtree(left, ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _folder(self, trial: Trial) -> Path:
        return self.output_dir / f"trial-{trial.number:04d}"

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has no study: the factory, and what it must know of the other trials."""
        assert self.optimizer is not None
        return self.__dict__ | {"optimizer": None, "best": _best_value(self.optimizer.study), "_trained": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._trained = _TRAINED_HERE


def _best_value(study: Study) -> float | None:
    return study.best_value if study.completed else None


def _warn_not_kept(trial: Trial, best: Path, error: Exception) -> None:
    message = f"the model of trial {trial.number} could not be kept in {best}: {error}"
    warnings.warn(message, CheckpointWarning, stacklevel=3)


def _check_evaluates(trainer: Trainer) -> None:
    data = trainer.eval_dataset
    needs_data = is_stock(trainer.evaluate) and is_stock(trainer.get_eval_dataloader)
    if needs_data and (data is None or (hasattr(data, "__len__") and len(data) == 0)):
        state = "None" if data is None else "empty"
        raise TrainerError(f"the Trainer needs an eval_dataset to be judged by, but its eval_dataset is {state}")


def _check_metric(metric: Metric, trainer: Trainer) -> None:
    """Finds a metric that cannot be, before any training; what compute_metrics adds shows only afterwards.

    Raises:
        MetricError: the metric does not exist.
    """
    if metric.function is not None or type(trainer) is not Trainer:  # a subclass may report what it likes
        return
    prefixes = evaluation_prefixes(trainer)
    known = always_reported(prefixes)
    computed = trainer.compute_metrics is not None
    if metric.name in known or (computed and any(metric.name.startswith(f"{prefix}_") for prefix in prefixes)):
        return
    more = f", and {', '.join(f'{p}_<name>' for p in prefixes)} for what compute_metrics returns" if computed else ""
    raise MetricError(f"there is no metric {metric.name!r}, the Trainer reports: {', '.join(known)}{more}")
