"""A durable study, shared by any number of processes.

A result counts once. A trial whose worker has stalled is LOST, and its parameters run again as a new trial. If that
happens once too often, the last one is FAILED: it counts, and the search steers away. A worker that was only suspended
still brings its late result, which is recorded on its own trial. The budget counts both trials as one.

``session.py`` makes every change a transaction; ``turns.py`` says how trials start; ``unsaved.py`` keeps results that
cannot be written.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llamatune_torch.constraints import Estimate
from llamatune_torch.curve import Curve
from llamatune_torch.decisions import Start, start_trial
from llamatune_torch.errors import StorageError, StorageWarning, StudyMismatchError
from llamatune_torch.settings import Place
from llamatune_torch.space import Params
from llamatune_torch.storage import heartbeat
from llamatune_torch.storage.definition import Definition, check_values, compare_scores, describe_mismatch
from llamatune_torch.storage.heartbeat import Doubts, Heartbeat, beat_interval, give_sign_of_life
from llamatune_torch.storage.serialization import write_space
from llamatune_torch.storage.session import LockedStudy, StudySession
from llamatune_torch.storage.store import Change, Choose, check_number, is_settled
from llamatune_torch.storage.turns import Ask, start_trials, wait_for_others
from llamatune_torch.storage.unsaved import Once, UnsavedResults, find_added, has_come_through
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Direction, Trial

logger = logging.getLogger(__name__)

REPORT_PATIENCE = 2.0  # seconds: a point of a curve goes with the next write too


class DurableStore:
    """A study in a database; a ``Store``.

    ``session`` is this process's view of the study. ``worker`` is this object's name among those who run trials.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql://...``.
        name: the study's name; a database holds any number of studies.
        study: the definition to open the study with; it has no trials.
        settings: what a later start or another worker may want to know; those of the last start count.
        extend: as of ``Place``.
        grace: seconds without a sign of life after which a worker has stalled, and its trials are LOST.
        retries: how often at most the parameters of such a trial run again; if the last time ends so too, they
            have FAILED.

    Raises:
        SettingsError: a bad URL or name, or a knob out of its range.
        SpaceError: a parameter that cannot be stored.
        StudyMismatchError: the stored study has another space, direction or metric.
        StorageError: the database cannot be opened.
    """

    def __init__(
        self,
        url: str,
        name: str,
        study: Study,
        *,
        settings: Mapping[str, Any] | None = None,
        extend: bool | Mapping[str, Any] = False,
        grace: float = 120.0,
        retries: int = 2,
    ) -> None:
        # All refuse what they do not like, before a file is made.
        Place(url, name, extend, grace, retries)
        write_space(study.space)
        canonical = extend if isinstance(extend, bool) else check_values(study.space, extend)
        self.name = name
        self.grace = grace
        self.retries = retries
        self.session = StudySession(url, name, Definition(study, settings or {}), canonical)
        self.token: str = self.settings["token"]
        self._unsaved = UnsavedResults(self.session)
        self._unwritten: dict[int, Curve] = {}  # of reports that could not be written
        self._asking = threading.Lock()  # one suggestion at a time
        self._become_worker()
        self._unsaved.pick_up()
        trials = self.study.trials
        if outside := sum(trial.cause is Cause.OUTSIDE for trial in trials):
            logger.warning("%d of %d trials do not fit the space: on record, used for nothing", outside, len(trials))

    @property
    def study(self) -> Study:
        return self.session.study

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the study, those of this start among them."""
        return self.session.settings

    # --- Starting trials -----------------------------------------------------------------------------------------

    def may_start(self, max_evals: int, least: float = 1.0) -> bool:
        return True  # others may have given some back: the start sees

    def start(
        self,
        n: int,
        choose: Choose,
        seed: int,
        max_evals: int,
        least: float = 1.0,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> list[Trial]:
        """See ``Store``."""
        if os.getpid() != self._pid:  # after a fork: what ran is the parent's
            self._become_worker()
        if self._unsaved.waiting:
            self._unsaved.pick_up()
        with self._asking:
            ask = self._ask(n, max_evals, seed, least)._replace(goes_on=goes_on)
            trials = start_trials(self.session, ask, choose)
            self._heartbeat.add(trial.number for trial in trials)
        return trials

    def wait_for_others(self, max_evals: int, goes_on: Callable[[], bool], least: float = 1.0) -> bool:
        """See ``Store``. It takes ``grace`` seconds and a second look at most."""
        return wait_for_others(self.session, self._ask(1, max_evals, least=least), goes_on)

    def _ask(self, n: int, max_evals: int, seed: int = 0, least: float = 1.0) -> Ask:
        begun = self._heartbeat.numbers
        return Ask(n, seed, max_evals, least, self.worker, begun, self.grace, self.retries, self._doubts)

    def _become_worker(self) -> None:
        """Takes a name of its own, and runs nothing yet."""
        self._pid = os.getpid()
        self.worker = f"{socket.gethostname()}:{self._pid}:{uuid.uuid4().hex[:8]}"
        self._heartbeat = Heartbeat(self.beat, beat_interval(self.grace))
        self._doubts = Doubts(heartbeat.LOOKS_APART * beat_interval(self.grace))

    def beat(self) -> None:
        """Gives a sign of life."""
        database = self.session.database
        work = partial(give_sign_of_life, worker=self.worker)
        database.keep_trying(lambda: database.write(work, durable=False), "a sign of life", patience=0.0)

    # --- Changing trials -----------------------------------------------------------------------------------------

    def change(self, trial: Trial | int, change: Change) -> Trial:
        """See ``Store``. What cannot be written is kept in a file, which the next start picks up.

        Raises:
            StorageError: no attempt succeeded; the message has the value, and says where it is kept.
        """
        once = Once(lambda current, now: change(self._with_unwritten(current), now))

        def write(locked: LockedStudy) -> Trial:
            current = locked.read(check_number(trial, len(locked.trials)))
            if once.result is not None and has_come_through(once.result, current):
                return once.result  # an earlier attempt did, though it seemed to fail
            changed = once(locked.find_open(trial), locked.now)
            locked.put(changed)
            return changed

        def compute_here() -> Trial:
            return once.result or once(self.session.find_open(trial), time.time())

        try:
            changed = self._unsaved.write_or_keep(write, compute_here, "the end of a trial to be written")
        except StorageError:
            changed = compute_here()
            self.session.remember(changed)  # so that nothing gives it back
            self._heartbeat.remove(changed.number)
            raise
        self._unwritten.pop(changed.number, None)
        self._heartbeat.remove(changed.number)
        return changed

    def report(self, trial: Trial | int, change: Change) -> Trial:
        """See ``Store``. What cannot be written at once goes with the next report, or with the result."""

        def write(locked: LockedStudy) -> Trial:
            reported = change(self._with_unwritten(locked.find_open(trial)), locked.now)
            locked.put(reported)
            return reported

        patience = min(REPORT_PATIENCE, self.session.patience)
        try:
            reported = self.session.write(write, "a report to be written", patience=patience, durable=False)
        except StorageError as error:
            reported = change(self._with_unwritten(self.session.find_open(trial)), time.time())
            self._unwritten[reported.number] = reported.curve
            self.session.remember(reported)
            warnings.warn(f"{error}; it is kept until the next write", StorageWarning, stacklevel=4)
            return reported
        self._unwritten.pop(reported.number, None)
        return reported

    def add(self, params: Params, seed: int, finish: Change) -> Trial:
        """See ``Store``. What cannot be written is kept in a file, as by :meth:`change`."""
        once = Once(finish)

        def compute(number: int, now: float) -> Trial:
            started = now if once.result is None or once.result.started is None else once.result.started
            return once(start_trial(number, Start(params, "added"), seed, started), started)

        def write(locked: LockedStudy) -> Trial:
            if once.result is not None and (written := find_added(locked.trials, once.result)):
                return written  # an earlier attempt has come through, though it seemed to fail
            added = compute(len(locked.trials), locked.now)
            locked.put(added)
            return added

        def compute_here() -> Trial:
            return once.result or compute(len(self.study.trials), time.time())

        return self._unsaved.write_or_keep(write, compute_here, "a trial to be added")

    def settle(self, metric: str, direction: Direction) -> None:
        """See ``Store``.

        Raises:
            StudyMismatchError: the study has trials with another metric or direction.
        """

        def write(locked: LockedStudy) -> None:
            given = replace(locked.study, goal=replace(locked.study.goal, direction=direction, metric=metric))
            lines = compare_scores(locked.study, given, named=locked.row["metric"] is not None)
            if lines and is_settled(locked.study, self.worker):
                database = self.session.database.display_url
                raise StudyMismatchError(describe_mismatch(self.name, database, lines, extensible=False))
            locked.settle(metric, direction)

        self.session.write(write, "the metric to be written")

    def estimate(self, estimates: Sequence[Estimate]) -> None:
        """See ``Store``."""
        self.session.write(lambda locked: locked.estimate(estimates), "estimates to be written")

    def conclude(self, reason: str) -> None:
        """See ``Store``."""
        self.session.write(lambda locked: locked.conclude(reason), "the end of the search to be written")

    def _with_unwritten(self, trial: Trial) -> Trial:
        curve = self._unwritten.get(trial.number)
        return trial if curve is None else replace(trial, curve=curve)
