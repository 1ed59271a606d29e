"""The side of a fine-tune where the study is: settles the metric, keeps the best model, removes folders."""

from __future__ import annotations

import shutil
from typing import Any

from accelerate.utils.memory import clear_device_cache

from llamatune_torch.integrations.trainer.finetune import FineTune, FineTuned, warn_not_kept
from llamatune_torch.integrations.trainer.metric import Metric
from llamatune_torch.runtime.events import Listener
from llamatune_torch.runtime.optimizer import LlamaTune
from llamatune_torch.runtime.runners import InlineRunner, Runner
from llamatune_torch.study import Study
from llamatune_torch.trial import Outcome, Trial, TrialState


class Keeper(Listener):
    """Runs a search over fine-tunes, and does what needs the study.

    A fine-tune in this thread settles the metric through the keeper before its training, and learns the best value from
    it. One that runs elsewhere takes along what the keeper has written in ``FineTune.settled`` and ``FineTune.best``,
    and brings its metric back with its outcome.

    Args:
        optimizer: holds the study; its metric is settled here.
        fine_tune: evaluates the trials.
    """

    def __init__(self, optimizer: LlamaTune, fine_tune: FineTune) -> None:
        self.optimizer = optimizer
        self.fine_tune = fine_tune
        self._settled = False

    def run(self, runner: Runner) -> Study:
        """Fine-tunes until the budget is used up; returns the study."""
        optimizer = self.optimizer
        # Under torchrun, an InlineRunner stands for all ranks.
        evaluate = self.fine_tune_here if isinstance(runner, InlineRunner) else self.fine_tune
        optimizer.callbacks.insert(0, self)
        try:
            return optimizer.run(evaluate, runner, self.on_outcome)
        finally:
            optimizer.callbacks.remove(self)
            clear_device_cache(garbage_collection=True)  # after Ctrl-C, what the last trial held
            # Not of other workers: a machine that was suspended may come back and go on with its checkpoints.
            for trial in optimizer.study.in_state(TrialState.LOST, TrialState.FAILED):
                if trial.worker == optimizer.worker:
                    self.remove_files(trial)

    def fine_tune_here(self, trial: Trial) -> Outcome:
        """Evaluates a trial in this thread; under ``torchrun``, on each rank."""
        self._update_best()
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
        """Tells a fine-tune that is about to be sent elsewhere the best value so far."""
        self._update_best()

    def on_outcome(self, trial: Trial, outcome: Outcome) -> Outcome:
        """Settles, keeps and cleans up, with the outcome of a trial that ran here or elsewhere.

        Raises:
            MetricError: no evaluation has ever had the metric.
        """
        study = self.optimizer.study
        if isinstance(outcome, FineTuned):  # unless the training raised an exception, or its process died
            if outcome.metric is not None:
                self.settle(outcome.metric)
            # After a completed trial, a missing metric is this trial's failure, and no reason to lose the others.
            if outcome.no_metric is not None and not study.completed:
                raise outcome.no_metric
            self._keep(trial, outcome)
        self.remove_files(trial)
        for other in study.in_state(TrialState.LOST):
            if other.first == trial.first:  # of a worker that fell silent, whose result is here by now
                self.remove_files(other)
        return outcome

    def remove_files(self, trial: Trial) -> None:
        """Deletes the checkpoints and the model of a trial, also of one whose process was killed."""
        folder = self.fine_tune.folder(trial)
        for left in (*folder.glob("checkpoint-*"), folder / "model"):
            shutil.rmtree(left, ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _update_best(self) -> None:
        study = self.optimizer.study
        self.fine_tune.best = study.best_value if study.completed else None

    def _keep(self, trial: Trial, outcome: FineTuned) -> None:
        """Puts a saved model in ``output_dir/best``, if it still is the best when its trial ends.

        The former best model stays until the new one is complete.
        """
        self._update_best()
        if outcome.saved is None or not self.fine_tune.may_be_best(outcome.value):
            return
        best = self.fine_tune.best_folder
        former = best.with_name("best.former")
        try:
            shutil.rmtree(former, ignore_errors=True)
            if best.exists():
                best.rename(former)
            outcome.saved.rename(best)
            shutil.rmtree(former, ignore_errors=True)
        except OSError as error:  # for example a disk that the trial's machine does not share
            if former.exists() and not best.exists():
                former.rename(best)
            warn_not_kept(trial, best, error)
