"""Studies in memory, which live as long as their process."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from llamatune_torch.constraints import Estimate
from llamatune_torch.decisions import Finish, Start, start_trial
from llamatune_torch.errors import BudgetSpentError, SettingsError, StudyMismatchError
from llamatune_torch.space import Params
from llamatune_torch.storage.store import (
    Change,
    Choose,
    carry_out,
    check_direction,
    check_number,
    check_open,
    is_settled,
    may_decide,
    num_left,
    to_retry,
)
from llamatune_torch.study import End, Study
from llamatune_torch.trial import Direction, Trial


class MemoryStore:
    """A study that lives as long as its process; a ``Store``."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.name = "study"
        self.token = uuid.uuid4().hex
        self.worker: str | None = None  # there is only this one
        self.retries = 0
        self._lock = threading.RLock()

    def may_start(self, max_evals: int, least: float = 1.0) -> bool:
        study = self.study
        return may_decide(study, num_left(study, max_evals, to_retry(study.trials, study.space)), 1, least)

    def start(
        self,
        n: int,
        choose: Choose,
        seed: int,
        max_evals: int,
        least: float = 1.0,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> list[Trial]:
        # Only this process starts trials, so the loop itself counts the budget.
        with self._lock:
            study, now = self.study, time.time()
            due = [replace(trial, started=now) for trial in to_retry(study.trials, study.space)[:n]]
            for trial in due:
                study = study.with_trial(trial)
            decisions = choose(study, n - len(due), num_left(study, max_evals, [])) if len(due) < n else []
            self.study = study
            started = due + carry_out(study, decisions, seed, now, self._put)
        if not started and decisions and isinstance(decisions[-1], Finish):
            raise BudgetSpentError(decisions[-1].reason)
        return started

    def _put(self, trial: Trial) -> Study:
        self.study = self.study.with_trial(trial)
        return self.study

    def wait_for_others(self, max_evals: int, goes_on: Callable[[], bool], least: float = 1.0) -> bool:
        return False  # there are none

    def change(self, trial: Trial | int, change: Change) -> Trial:
        with self._lock:
            trials = self.study.trials
            changed = change(check_open(trials[check_number(trial, len(trials))], trial), time.time())
            self.study = self.study.with_trial(changed)
        return changed

    report = change

    def add(self, params: Params, seed: int, finish: Change) -> Trial:
        with self._lock:
            number, now = len(self.study.trials), time.time()
            added = finish(start_trial(number, Start(params, "added"), seed, now), now)
            self.study = self.study.with_trial(added)
        return added

    def settle(self, metric: str, direction: Direction) -> None:
        with self._lock:
            check_direction(self.study, direction)
            self.study = replace(self.study, goal=replace(self.study.goal, direction=direction, metric=metric))

    def estimate(self, estimates: Sequence[Estimate]) -> None:
        with self._lock:
            self.study = replace(self.study, estimates=self.study.estimates or tuple(estimates))

    def conclude(self, reason: str) -> None:
        with self._lock:
            self.study = replace(self.study, end=End(len(self.study.trials), reason))


class FollowerStore(MemoryStore):
    """A copy of rank 0's stored study, on the other ranks under ``torchrun``; only rank 0 writes to the database."""

    def __init__(self, study: Study, worker: str | None = None) -> None:
        super().__init__(study)
        self.worker = worker

    def start(
        self,
        n: int,
        choose: Choose,
        seed: int,
        max_evals: int,
        least: float = 1.0,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> list[Trial]:
        raise SettingsError("under torchrun only rank 0 asks for trials of a stored study; optimize() and tune() do")

    def settle(self, metric: str, direction: Direction) -> None:
        # Rank 0 does the same at this moment: a rank that went on alone would wait for the others within its training.
        same = direction == self.study.direction and self.study.metric in ("value", metric)
        if not same and is_settled(self.study, self.worker):
            raise StudyMismatchError("the study of rank 0 has another metric or direction")
        super().settle(metric, direction)
