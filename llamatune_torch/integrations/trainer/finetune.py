"""One fine-tune as an evaluation: builds a fresh ``Trainer``, trains, evaluates and releases it, whatever happens."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

try:
    import torch
    import transformers
    from accelerate.utils.memory import clear_device_cache
    from transformers import Trainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"tune() needs {error.name}: pip install 'llamatune-torch[hf]'", name=error.name
    ) from error

from llamatune_torch.curve import Point
from llamatune_torch.errors import (
    CheckpointWarning,
    IgnoredParameterWarning,
    MetricError,
    MetricWarning,
    SettingsError,
    TrainerError,
)
from llamatune_torch.integrations.trainer.callback import Recorder, evaluation_prefixes, is_stock, keeps_best
from llamatune_torch.integrations.trainer.checkpoints import ResumeError, train, with_checkpoints
from llamatune_torch.integrations.trainer.folders import KEPT_RECORD, Folders, step_of
from llamatune_torch.integrations.trainer.measuring import Meter
from llamatune_torch.integrations.trainer.metric import (
    Metric,
    MetricFunction,
    always_reported,
    is_trainers_own,
    resolve_metric,
)
from llamatune_torch.integrations.trainer.pausing import Pauser
from llamatune_torch.integrations.trainer.readlog import ReadLog
from llamatune_torch.integrations.trainer.splitting import DIVIDED, divide
from llamatune_torch.integrations.trainer.trackers import TrackerRuns
from llamatune_torch.runtime.evaluation import report, run_guarded
from llamatune_torch.runtime.torchrun import world_size
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.trial import Cause, Direction, Outcome, Trial, cause_of

logger = logging.getLogger(__name__)

TrainerFactory = Callable[[Params], Trainer]

# The trainable weights that trials in this process have had, by id, as long as somebody keeps them alive.
_trained: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()


@dataclass(frozen=True)
class FineTuned(Outcome):
    """An outcome, and what the ``Keeper`` needs to know besides.

    Args:
        metric: the metric that was read, if a Trainer was there to ask.
        saved: the folder of the saved model, if it may be the best one.
        no_metric: the error, if the metric was not among those of an evaluation.
    """

    metric: Metric | None = None
    saved: Path | None = None
    no_metric: MetricError | None = None


@dataclass(frozen=True)
class Orders:
    """The decisions of the ``Keeper`` for the trial that runs next; all ranks under ``torchrun`` get the same.

    Args:
        folders: where its files go.
        resumable: True if it writes checkpoints for a later trial to go on from, should its worker die.
        resume: the checkpoint in the trial's folder that it goes on from itself.
        most: sequences to pass through the model at a time, with ``auto_batch``; ``None`` for no limit.
    """

    folders: Folders
    resumable: bool = False
    resume: Path | None = None
    most: int | None = None


@dataclass
class FineTune:
    """One fine-tune as an evaluation: from a trial to its outcome, in this or in another process.

    It knows nothing of the study but what the ``Keeper`` has written in ``settled``, ``best`` and ``orders``. They go
    along when it is pickled.

    Args:
        trainer_factory, metric, direction, keep, output_dir, overwrite, max_paused, max_disk_gb,
            estimate_memory, auto_batch: as in ``tune``.

    Raises:
        SettingsError: one of them is not what it should be, or ``output_dir/best`` holds something else.
    """

    trainer_factory: TrainerFactory
    metric: str | MetricFunction | None = None
    direction: Direction | None = None
    keep: Literal["best"] | None = None
    output_dir: str | Path = "llamatune_output"
    overwrite: bool = False
    max_paused: int = 10
    max_disk_gb: float | None = None
    estimate_memory: bool = True
    auto_batch: bool = False
    #: The metric that counts, from the first Trainer on, which knows its own.
    settled: Metric | None = field(default=None, init=False)
    #: The best value of the study when a trial begins; only a model that beats it is saved.
    best: float | None = field(default=None, init=False)
    orders: Orders = field(init=False)
    #: The space of the study, which has the values of labels.
    space: SearchSpace | None = field(default=None, init=False)
    _warned: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.trainer_factory):
            raise SettingsError(f"trainer_factory must be callable, but got {self.trainer_factory!r}")
        if not (self.metric is None or isinstance(self.metric, str) or callable(self.metric)):
            raise SettingsError(f"metric must be a name or a function of the metrics, but got {self.metric!r}")
        if callable(self.metric) and self.direction is None:
            raise SettingsError("metric is a function, so direction must say which way: 'maximize' or 'minimize'")
        if not isinstance(self.max_paused, int) or isinstance(self.max_paused, bool) or self.max_paused < 0:
            raise SettingsError(f"max_paused must be an integer >= 0, but got {self.max_paused!r}")
        if self.max_disk_gb is not None and not (isinstance(self.max_disk_gb, (int, float)) and self.max_disk_gb > 0):
            raise SettingsError(f"max_disk_gb must be a number of gigabytes > 0, but got {self.max_disk_gb!r}")
        for name in ("estimate_memory", "auto_batch"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} must be True or False, but got {getattr(self, name)!r}")
        if self.keep not in (None, "best"):
            raise SettingsError(f"keep must be 'best' or None, but got {self.keep!r}")
        try:
            # Resolved once: the factory may change the working directory, and other processes have their own.
            self.output_dir = Path(self.output_dir).absolute()
        except FileNotFoundError:
            raise SettingsError(
                f"output_dir={str(self.output_dir)!r} is relative to a working directory that is gone"
            ) from None
        # The keeper of a stored study has a token that all of its workers know.
        folders = Folders(self.output_dir, "study", uuid.uuid4().hex)
        self.orders = Orders(folders)
        if self.keep == "best" and folders.best.exists() and not (folders.best / KEPT_RECORD).exists():
            raise SettingsError(
                f"{folders.best} exists and is no model that tune() has kept: choose another output_dir"
            )

    def may_be_best(self, value: float | None) -> bool:
        """True if a value beats ``best``."""
        if value is None or self.settled is None or not math.isfinite(value):
            return False
        if self.best is None:
            return True
        return value > self.best if self.settled.direction == "maximize" else value < self.best

    def __call__(self, trial: Trial, on_metric: Callable[[Metric], Any] = lambda metric: None) -> Outcome:
        """Fine-tunes with the parameters of a trial.

        Args:
            trial: what to train.
            on_metric: called with the metric before the training, if it was not ``settled`` yet.

        Raises:
            TrainerError: as :func:`tune`. A ``MetricError`` comes with the outcome instead, because only the ``Keeper``
                can tell if it ends the search or is the failure of one trial.
        """
        folders = self.orders.folders
        shared = folders.holds(trial)  # the Keeper has made its folder, so it deletes it, once the result is on record
        owned = folders.create(trial)
        if owned and self.orders.resume is None and world_size() == 1:
            folders.clear_checkpoints(trial)  # of the same trial, which an executor runs again after a worker's death
        meter = Meter(trial.outcomes if trial.pauses else {})
        try:
            with meter.watching():
                outcome = run_guarded(partial(self._fine_tune, on_metric=on_metric, meter=meter), trial)
        except MetricError as error:
            outcome = FineTuned.failure("no metric", str(error), no_metric=error, metric=self.settled)
        finally:
            # No frame holds the trainer any more, so its memory can be released.
            clear_device_cache(garbage_collection=True)
        outcome = replace(outcome, outcomes={**meter.outcomes(), **outcome.outcomes})
        if owned and not shared and world_size() == 1 and not outcome.paused:
            folders.clear_checkpoints(trial)
            if not isinstance(outcome, FineTuned) or outcome.saved is None:
                folders.clear(trial)
        return outcome

    def _fine_tune(self, trial: Trial, on_metric: Callable[[Metric], Any], meter: Meter) -> FineTuned:
        """Trains, in smaller and smaller parts of the batch for as long as memory runs out (``auto_batch``)."""
        while True:
            try:
                return self._train_or_begin_anew(trial, on_metric, meter)
            except Exception as error:
                passed = meter.passed
                if not self.auto_batch or cause_of(error) is not Cause.OUT_OF_MEMORY or passed < 2 or world_size() > 1:
                    raise
            # No frame of the error holds the trainer any more.
            clear_device_cache(garbage_collection=True)
            logger.info("trial %d: out of memory with %d sequences at a time; half of them", trial.number, passed)
            self.orders = replace(self.orders, most=passed // 2)

    def _train_or_begin_anew(self, trial: Trial, on_metric: Callable[[Metric], Any], meter: Meter) -> FineTuned:
        resume = self.orders.resume
        if resume is not None:
            try:
                return self._train(trial, on_metric, meter, resume)
            except ResumeError as error:
                message = f"trial {trial.number} starts anew, because {resume} could not be loaded: {error}"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
            self.orders.folders.clear_checkpoints(trial)  # a later retry would meet it again
            clear_device_cache(garbage_collection=True)
        return self._train(trial, on_metric, meter)

    def _train(
        self, trial: Trial, on_metric: Callable[[Metric], Any], meter: Meter, checkpoint: Path | None = None
    ) -> FineTuned:
        runs = TrackerRuns(trial)
        trainer = self.build(trial)
        batch = trainer.args.per_device_train_batch_size
        if self.auto_batch:
            meter.passed = divide(trainer, self.orders.most or batch)
        if self.settled is None:
            self.settled = self.resolve_metric_of(trainer, self.values_of(trial))
            on_metric(self.settled)
        folders, args, settled = self.orders.folders, trainer.args, self.settled
        self._check_meaning(settled, trainer, self.values_of(trial))
        trainer.args = with_checkpoints(args, folders.trial(trial), self.orders.resumable, pauses=trial.until < 1)
        known = set(trial.curve)  # of a run that goes on

        def report_new(step: float, value: float, progress: float | None) -> None:
            if Point(step, value, progress) not in known:
                known.clear()  # the curve is another one from here on
                report(step, value, progress)

        recorder = Recorder(trainer, settled, report_new, trial.breakdown)
        pauser = Pauser(trainer, recorder, trial.until)

        def record(step: int, metrics: Mapping[str, Any]) -> None:
            if settled.is_in(metrics):  # else a user's own evaluate() has added it later
                recorder.record(step, metrics)

        try:
            study = folders.study.name if folders.name == "study" else folders.name
            with runs.of(trainer, study), recorder, pauser, meter.of(trainer):
                train(trainer, checkpoint, record)
                runs.paused = pauser.paused
                outcome = Outcome(paused=True) if pauser.paused else recorder.outcome()
                runs.failed = outcome.value is None and not outcome.paused
                meter.agree()
            if outcome.paused:
                outcome = replace(outcome, notes=runs.notes)
            if 0 < meter.passed < batch:
                notes = {**outcome.notes, DIVIDED: f"{batch} sequences, {meter.passed} at a time"}
                outcome = replace(outcome, notes=notes)
            if checkpoint is not None and not trial.pauses:
                notes = {**outcome.notes, "resumed": f"from a checkpoint, at step {step_of(checkpoint)}"}
                outcome = replace(outcome, notes=notes)
            kept = self.keep == "best" and self.may_be_best(outcome.value)
            saved = self._save(trainer, trial, outcome.value) if kept else None
            return FineTuned(**vars(outcome), metric=settled, saved=saved)
        finally:
            trainer.args = args  # a user who has kept the trainer finds it as it was

    def values_of(self, trial: Trial) -> Params:
        """The parameters as the factory gets them: a copy, with values in the place of labels."""
        return dict(trial.params) if self.space is None else self.space.values_of(trial.params)

    def build(self, trial: Trial) -> Trainer:
        """Builds the factory's Trainer and checks it before it costs anything."""
        transformers.set_seed(trial.seed)
        params = ReadLog(self.values_of(trial))
        trainer = self.trainer_factory(params)
        if not isinstance(trainer, Trainer):
            raise TrainerError(
                f"trainer_factory must return a transformers.Trainer, but got "
                f"{trainer if trainer is None else f'an object of type {type(trainer).__name__}'}"
            )
        if trial.origin == "confirm":  # the Trainer's own seed makes the order of the data and the dropout
            trainer.args = copy.copy(trainer.args)
            trainer.args.seed = trial.seed
            trainer.args.data_seed = None
            transformers.set_seed(trial.seed)
        _check_fresh(trainer)
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

    def resolve_metric_of(self, trainer: Trainer, params: Params) -> Metric:
        """Finds the metric that counts, with the first Trainer; it stays the same ever after."""
        args = trainer.args
        metric = resolve_metric(self.metric, self.direction, trainer, params)
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
        return metric

    def _check_meaning(self, metric: Metric, trainer: Trainer, params: Params) -> None:
        for name in metric.changed_by(trainer, params):
            if (said := f"args.{name}") not in self._warned:
                self._warned.add(said)
                warnings.warn(
                    f"values of {metric.name} do not compare across trials, since {name} differs between their "
                    f"Trainers: keep {name} the same, or choose a metric that does not depend on it",
                    MetricWarning,
                    stacklevel=2,
                )

    def _save(self, trainer: Trainer, trial: Trial, value: float | None) -> Path | None:
        """Saves the model next to the trial's checkpoints, and returns its folder; ``None`` if that failed."""
        assert self.settled is not None
        folders = self.orders.folders
        saved = folders.model(trial)
        record = {"study": folders.name, "token": folders.token, "trial": trial.number, "metric": self.settled.name}
        record |= {"value": value, "params": trial.params, "seed": trial.seed}
        try:
            if keeps_best(trainer) and not Path(str(trainer.state.best_model_checkpoint)).is_dir():
                raise FileNotFoundError(f"somebody has deleted its checkpoint {trainer.state.best_model_checkpoint}")
            trainer.save_model(str(saved))
            if trainer.args.should_save:  # under torchrun one rank writes, though all must be there
                (saved / KEPT_RECORD).write_text(json.dumps(record, indent=2, default=repr) + "\n")
        except Exception as error:  # a full disk (safetensors has its own error) must not cost the result as well
            shutil.rmtree(saved, ignore_errors=True)
            warn_not_kept(trial, folders.best, str(error))
            return None
        return saved


def warn_not_kept(trial: Trial, best: Path, why: str) -> None:
    """Warns that a trial's model could not be put in the folder ``best``."""
    message = f"the model of trial {trial.number} could not be kept in {best}: {why}"
    warnings.warn(message, CheckpointWarning, stacklevel=3)


def _check_fresh(trainer: Trainer) -> None:
    model: Any = trainer.model
    used = any(_trained.get(id(weight)) is weight for weight in model.parameters())
    if trainer.state.global_step > 0 or used:
        raise TrainerError(
            "trainer_factory must build a fresh Trainer and a fresh model at every call, but it returned "
            "one that an earlier trial has trained"
        )
    _trained.update({id(weight): weight for weight in model.parameters() if weight.requires_grad})


def _check_evaluates(trainer: Trainer) -> None:
    data = trainer.eval_dataset
    needs_data = is_stock(trainer.evaluate) and is_stock(trainer.get_eval_dataloader)
    if needs_data and (data is None or (hasattr(data, "__len__") and len(data) == 0)):
        state = "None" if data is None else "empty"
        raise TrainerError(f"the Trainer needs an eval_dataset to be judged by, but its eval_dataset is {state}")


def _check_metric(metric: Metric, trainer: Trainer) -> None:
    """Refuses a metric that cannot exist, before any training. The names that compute_metrics adds show only later.

    Raises:
        MetricError: the metric does not exist.
    """
    if metric.function is not None or type(trainer) is not Trainer:  # a subclass may report what it likes
        return
    prefixes = evaluation_prefixes(trainer)
    known = always_reported(prefixes, metric.cross_entropy)
    computed = trainer.compute_metrics is not None
    if metric.name in known or (computed and any(metric.name.startswith(f"{prefix}_") for prefix in prefixes)):
        return
    more = f", and {', '.join(f'{p}_<name>' for p in prefixes)} for what compute_metrics returns" if computed else ""
    raise MetricError(f"there is no metric {metric.name!r}, the Trainer reports: {', '.join(known)}{more}{metric.hint}")
