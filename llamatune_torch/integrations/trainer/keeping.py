"""The side of a fine-tune where the study is: settles the metric, keeps the best model, removes folders."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from llamatune_torch.engine.strategies.strategy import best_first
from llamatune_torch.errors import CheckpointWarning, EstimateWarning, ExecutorError
from llamatune_torch.integrations.trainer.best import Best
from llamatune_torch.integrations.trainer.checkpoints import adopt, newest_complete, settle_in
from llamatune_torch.integrations.trainer.estimating import Estimated, MemoryEstimator, first_params, run_apart
from llamatune_torch.integrations.trainer.finetune import FineTune, FineTuned, Orders, warn_not_kept
from llamatune_torch.integrations.trainer.folders import KEPT_RECORD, Folders, checkpoints_in, read_record, size_of
from llamatune_torch.integrations.trainer.metric import Metric
from llamatune_torch.integrations.trainer.splitting import DIVIDED
from llamatune_torch.runtime.events import Listener
from llamatune_torch.runtime.optimizer import LlamaTune
from llamatune_torch.runtime.runners import ExecutorRunner, InlineRunner, Runner
from llamatune_torch.runtime.torchrun import rank, world_size
from llamatune_torch.storage.store import to_retry
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Outcome, Trial, TrialState

logger = logging.getLogger(__name__)


class Keeper(Listener):
    """Runs a search over fine-tunes, and does what needs the study.

    A fine-tune in this thread settles the metric through the keeper before its training, and learns the best value from
    it. One that runs elsewhere takes along what the keeper has written in ``FineTune.settled`` and ``FineTune.best``,
    and brings its metric back with its outcome. A result is on record before anything happens to its files.

    Args:
        optimizer: holds the study; its metric is settled here.
        fine_tune: evaluates the trials.
    """

    def __init__(self, optimizer: LlamaTune, fine_tune: FineTune) -> None:
        self.optimizer = optimizer
        optimizer.can_pause = True
        self.fine_tune = fine_tune
        self.folders = Folders(fine_tune.orders.folders.output_dir, optimizer.name, optimizer.token)
        self.best = None if fine_tune.keep is None else Best(self.folders, fine_tune.overwrite)
        fine_tune.orders = Orders(self.folders, resumable=optimizer.retries > 0)
        fine_tune.space = optimizer.study.space
        self._settled = self._running = False
        # Trials that say they have saved their model, and one whose model could not be moved.
        self._saved: set[int] = set()
        self._waiting: int | None = None

    def run(self, runner: Runner) -> Study:
        """Fine-tunes until the budget is used up; returns the study.

        Raises:
            SettingsError: ``output_dir`` cannot be written, or holds another's best model; before the first trial.
        """
        optimizer = self.optimizer
        optimizer.study.space.require_values()
        # Under torchrun, an InlineRunner stands for all ranks.
        evaluate = self.fine_tune_here if isinstance(runner, InlineRunner) else self.fine_tune
        optimizer.callbacks.insert(0, self)
        try:
            if rank() > 0:
                return optimizer.run(evaluate, runner, self.on_outcome)
            self._estimate_memory()
            # An executor may run them on other machines, which have disks of their own.
            with self._tidied(here=not isinstance(runner, ExecutorRunner)):
                return optimizer.run(evaluate, runner, self.on_outcome)
        finally:
            optimizer.callbacks.remove(self)

    def _estimate_memory(self) -> None:
        """Puts on record what memory is computed to be, where it is limited, before anything is trained."""
        optimizer, study = self.optimizer, self.optimizer.study
        limited = any(limit.name == "memory_gb" for limit in study.constraints)
        if not limited or not self.fine_tune.estimate_memory or study.estimates or study.completed or world_size() > 1:
            return
        estimator = MemoryEstimator(self.fine_tune.trainer_factory, study.space)
        try:
            found = run_apart(estimator, first_params(study), optimizer.settings.seed)
            error = (found.error or str(found.reason)).strip().splitlines()[-1]
        except ExecutorError as refused:
            found, error = Outcome(), str(refused)
        if not isinstance(found, Estimated):
            message = f"the memory of fine-tunes could not be computed beforehand, and is learnt from trials: {error}"
            warnings.warn(message, EstimateWarning, stacklevel=2)
            return
        values = [estimate.value for estimate in found.estimates]
        logger.info(
            "memory, computed in %.0f s%s: %.3g to %.3g GB over the space, %.3g GB at first",
            *(found.seconds, " by a formula" if found.formula else "", min(values), max(values), values[0]),
        )
        optimizer.estimate(found.estimates)

    def fine_tune_here(self, trial: Trial) -> Outcome:
        """Evaluates a trial in this thread; under ``torchrun``, on each rank."""
        self._update_best()
        self.fine_tune.orders = self.optimizer.orders
        return self.fine_tune(trial, self.settle)

    def settle(self, metric: Metric) -> None:
        """Names the metric in the study, once.

        Raises:
            StudyMismatchError, TrialStateError: as ``LlamaTune.settle_metric``.
        """
        if not self._settled:
            self.fine_tune.settled = metric
            self.optimizer.settle_metric(metric.name, metric.direction)
            self._settled = True

    def on_start(self, search: Any, trial: Trial) -> None:
        """Decides what a fine-tune that is about to begin, or to be sent elsewhere, has to know."""
        self._update_best()
        self._clear(self._left(self._stopped()), set())
        self._order(None)
        self.folders.create(trial)
        if trial.retry_of is not None:
            self._order(self._adopt(trial))

    def on_pause(self, search: Any, trial: Trial) -> None:
        """Keeps the checkpoints of the best paused fine-tunes, as many as there is room for.

        The others would begin anew if they went on. That is rare: it is the best that go on.
        """
        study, most, room = self.optimizer.study, self.fine_tune.max_paused, self.fine_tune.max_disk_gb
        sizes = {
            paused.number: sum(size_of(path) for _, path in checkpoints_in(self.folders.trial(paused))) / 1e9
            for paused in self._left(study.paused)
        }
        if not any(sizes.values()):
            return
        if room is None:
            room = (shutil.disk_usage(self.folders.study).free / 1e9 + sum(sizes.values())) / 2
        used = kept = 0.0
        for paused in best_first(study, (study.trials[number] for number, size in sizes.items() if size > 0)):
            size = sizes[paused.number]
            if kept < most and used + size <= room:
                used, kept = used + size, kept + 1
                continue
            self.folders.clear_checkpoints(paused)
            logger.info(
                "trial %d: its checkpoint of %.2g GB is deleted, since %d better paused runs have theirs "
                "(max_paused=%d, max_disk_gb=%.3g)",
                *(paused.number, size, kept, most, room),
            )

    def on_resume(self, search: Any, trial: Trial) -> None:
        """Finds the checkpoint from which a paused fine-tune goes on; without one, it begins anew."""
        self._update_best()
        self._clear(self._left(self._stopped()), set())
        folder = self.folders.trial(trial)
        checkpoint, why = None, f"{folder} has no checkpoint of it"
        try:
            if self.folders.holds(trial) and (checkpoint := newest_complete([folder])) is not None:
                settle_in(checkpoint)
        except OSError as error:
            checkpoint, why = None, f"its checkpoint cannot be used: {error}"
        if checkpoint is None:
            warnings.warn(f"trial {trial.number} starts anew, because {why}", CheckpointWarning, stacklevel=2)
            self.folders.create(trial)
        self._order(checkpoint)

    def on_outcome(self, trial: Trial, outcome: Outcome) -> Outcome:
        """Settles the metric, with the outcome of a trial that ran here or elsewhere.

        Raises:
            MetricError: no evaluation has ever had the metric.
        """
        if isinstance(outcome, FineTuned):  # unless the training raised an exception, or its process died
            if outcome.metric is not None:
                self.settle(outcome.metric)
            # After a trial that has worked, a missing metric is this trial's failure, and no reason to lose the others.
            if outcome.no_metric is not None and not self.optimizer.study.has_worked:
                raise outcome.no_metric
            if outcome.saved is not None:
                self._saved.add(trial.number)
        return outcome

    def on_finish(self, search: Any, trial: Trial) -> None:
        """Keeps and cleans up, now that a trial is on record."""
        self._keep()
        # Also what other workers have left behind that fell silent with the same parameters.
        self._clear([other for other in self.optimizer.study.trials if other.first == trial.first], self._due())

    @contextmanager
    def _tidied(self, here: bool) -> Iterator[None]:
        """Holds ``output_dir/best`` for a run, and cleans up before and after it; ``here`` the trials need the disk."""
        process, made = os.getpid(), not self.folders.output_dir.exists()
        if here:
            self.folders.check_writable()
        with nullcontext() if self.best is None else self.best.held():
            self._tidy(self._due())  # after an earlier run that was killed
            self._running = True
            try:
                yield
            finally:
                self._running = False
                clear_device_cache(garbage_collection=True)  # after Ctrl-C, what the last trial held
                if os.getpid() == process:  # else a fork of the user's has come here, and the search goes on
                    # A study in memory ends here, and nothing of it runs again.
                    self._tidy(set() if self.optimizer.worker is None else self._due())
        if made:
            with suppress(OSError):  # not empty, or never made
                self.folders.output_dir.rmdir()

    def _tidy(self, due: set[int]) -> None:
        self._keep()
        self._clear(self._left(self.optimizer.study.trials), due)

    def _stopped(self) -> list[Trial]:
        return self.optimizer.study.in_state(TrialState.STOPPED)

    def _left(self, trials: Iterable[Trial]) -> list[Trial]:
        """Finds those of some trials that have a folder on this machine."""
        try:
            left = set(self.folders.study.iterdir())
        except FileNotFoundError:
            return []
        return [trial for trial in trials if self.folders.trial(trial) in left]

    def _order(self, resume: Path | None) -> None:
        divided = [trial for trial in self.optimizer.study.trials if DIVIDED in trial.notes]
        most = min((int(trial.outcomes["sequences_at_once"]) for trial in divided), default=None)
        self.fine_tune.orders = self.optimizer.orders = replace(self.fine_tune.orders, resume=resume, most=most)

    def _adopt(self, trial: Trial) -> Path | None:
        """Takes the newest complete checkpoint of the trials that this one repeats into its own folder."""
        same = [other for other in self.optimizer.study.trials if other.first == trial.first]
        try:
            checkpoint = newest_complete(self.folders.trial(other) for other in same if self.folders.holds(other))
            if checkpoint is None or not self.folders.holds(trial):
                return None
            adopted = adopt(checkpoint, self.folders.trial(trial))
        except OSError as error:
            message = f"trial {trial.number} starts anew, because no checkpoint could be copied: {error}"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
            return None
        logger.info("trial %d: goes on from %s", trial.number, checkpoint)
        return adopted

    def _update_best(self) -> None:
        study = self.optimizer.study
        self.fine_tune.best = study.by_value()[0].value if study.feasible else None

    def _keep(self) -> None:
        """Puts the model of the best trial in ``output_dir/best``, if it has been saved and not moved yet.

        A model that cannot be moved stays where it is, and the next start tries again.
        """
        study, self._waiting = self.optimizer.study, None
        if self.best is None or not study.feasible:
            return
        trial = study.by_value()[0]  # of one run, not of a mean over seeds
        saved = self.folders.model(trial)
        record = read_record(saved / KEPT_RECORD)
        if record is not None and record["value"] == trial.value:  # else it was told by hand
            try:
                self.best.put(saved, study.direction)
            except OSError as error:
                self._waiting = trial.number
                warn_not_kept(trial, self.best.path, f"{error}; it is in {saved}")
        elif record is None and trial.number in self._saved and not self.best.holds(trial):
            warn_not_kept(trial, self.best.path, f"there is no {saved} on this machine: all must share output_dir")
        self._saved.discard(trial.number)

    def _due(self) -> set[int]:
        """Numbers of the trials that will run again, and may go on from their checkpoints."""
        study = self.optimizer.study
        return {trial.first for trial in to_retry(study.trials, study.space, self.optimizer.retries)}

    def _clear(self, trials: Iterable[Trial], due: set[int]) -> None:
        """Deletes the files of those trials that nobody needs any more."""
        for trial in trials:
            if trial.first not in due and trial.number != self._waiting and self._is_over(trial):
                self.folders.clear(trial)

    def _is_over(self, trial: Trial) -> bool:
        if trial.state is TrialState.PAUSED:
            return self.optimizer.worker is None and not self._running
        if trial.cause is not Cause.SILENT:
            return trial.state is not TrialState.RUNNING
        # A machine that was suspended may come back and go on with its checkpoints, until another one has the result.
        same = [other for other in self.optimizer.study.trials if other.first == trial.first]
        ended = (TrialState.COMPLETE, TrialState.FAILED)
        return any(other.state in ended and other.cause is not Cause.SILENT for other in same)
