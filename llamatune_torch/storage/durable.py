"""A durable study, shared by any number of processes.

Every change is one short transaction that takes the study for itself first, so that changes come one after the other
and each sees those before it. A suggestion takes from a millisecond to many seconds and is computed outside: whoever
asks reads the record, leaves word that a suggestion is under way (others then wait, instead of computing one that would
be refused), and starts the trial only if no other has started meanwhile. That last check is what counts; the word is a
courtesy that expires, so that nobody waits for a dead process. Times are the database's, never a machine's own.

A result counts once. A trial whose worker fell silent is LOST, and its parameters run again as a new trial; if that
happens once too often, the last one is FAILED, so that it counts, and the search steers away. If a worker was only
suspended, its late result is recorded on its own trial all the same, and the budget counts the two as one.
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
from pathlib import Path
from typing import Any, NamedTuple

from llamatune_torch.errors import (
    BudgetSpentError,
    SettingsError,
    StorageError,
    StorageWarning,
    StudyMismatchError,
    TrialStateError,
)
from llamatune_torch.space import Params
from llamatune_torch.storage.database import Transaction
from llamatune_torch.storage.definition import mismatch, score_differences
from llamatune_torch.storage.heartbeat import Heartbeat, mark_stalled, signs_of_life
from llamatune_torch.storage.serialization import read_trial, write_space, write_trial
from llamatune_torch.storage.session import LockedStudy, StudySession, recover
from llamatune_torch.storage.store import (
    Change,
    Choose,
    check_open,
    is_settled,
    num_left,
    number_of,
    started_trial,
    to_retry,
)
from llamatune_torch.storage.unsaved import Journal, result_of, unwritten
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Curve, Direction, Suggestion, Trial, TrialState

logger = logging.getLogger(__name__)

REPORT_PATIENCE = 2.0  # seconds: a point of a curve goes with the next write too
# Others wait for a suggestion under way as long as the last one took, times three, within these bounds (seconds).
SHORTEST_WAIT, LONGEST_WAIT = 0.25, 300.0


class DurableStore(StudySession):
    """A study in a database; a ``Store``.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql://...``.
        name: of the study; a database holds any number of them.
        study: what it is opened with, without trials.
        settled: whether the metric and direction of ``study`` are meant, or may be learnt later (``settle``).
        settings: what a later start or another worker may want to know; those of the last start count.
        extend: whether ranges and choices may differ from those stored.
        grace: seconds without a sign of life after which a worker's trials are LOST.
        retries: how often at most the parameters of such a trial are run again; if the last time ends so too, they
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
        settled: bool = True,
        settings: Mapping[str, Any] | None = None,
        extend: bool = False,
        grace: float = 120.0,
        retries: int = 2,
    ) -> None:
        _check_knobs(name, grace, retries)
        write_space(study.space)  # refused before a file is made
        super().__init__(url, name, study, settled, settings or {}, extend)
        self.grace = grace
        self.retries = retries
        self._journal = Journal(name, self._database.display_url, self._database.file)
        #: This object's name among those who run trials.
        self.worker = _new_name()
        self._pid = os.getpid()
        self._asking = threading.Lock()  # one suggestion at a time
        self._has_unsaved = False
        self._unwritten: dict[int, Curve] = {}  # of reports that could not be written
        self._heartbeat = Heartbeat(self.beat, min(10.0, grace / 4))
        self._pick_up()
        trials = self._study.trials
        if outside := sum(trial.cause is Cause.OUTSIDE for trial in trials):
            logger.warning("%d of %d trials do not fit the space: on record, used for nothing", outside, len(trials))

    def may_start(self, max_evals: int) -> bool:
        return True  # others may have given some back: the start sees

    # --- Starting trials -----------------------------------------------------------------------------------------

    def start(self, n: int, choose: Choose, seed: int, max_evals: int) -> list[Trial]:
        """See ``Store``. Trials to run again come first."""
        if os.getpid() != self._pid:  # after a fork: what ran is the parent's
            self.worker, self._pid = _new_name(), os.getpid()
            self._heartbeat = Heartbeat(self.beat, self._heartbeat.interval)
        if self._has_unsaved:
            self._pick_up()
        with self._asking:
            while True:
                plan = self._plan(n, max_evals)
                if plan.started:
                    return self._now_running(list(plan.started))
                if plan.pause:
                    self._wait_for_turn(plan.pause)
                    continue
                if plan.left < n:
                    raise BudgetSpentError(self._spent(n, plan.left, max_evals))
                trials = self._suggest_and_start(plan, n, choose, seed, max_evals)
                if trials:
                    return self._now_running(trials)

    def wait_for_others(self, max_evals: int, goes_on: Callable[[], bool]) -> bool:
        """See ``Store``. It takes ``grace`` seconds at most."""

        def look(claim: LockedStudy) -> tuple[int, dict[int, float]]:
            mark_stalled(claim, self.grace, self.retries, self.worker)
            due = to_retry(claim.trials, claim.known.space, self.retries)
            return num_left(claim.study, max_evals, due), signs_of_life(claim, self.worker)

        first: dict[int, float] = {}
        while True:
            left, signs = self._write(look, "to be read", durable=False)
            if left > 0:
                return True
            if not first and signs:
                logger.info("waiting for a sign of life of %d trials that run elsewhere", len(signs))
            elif not any(first.get(number, sign) == sign for number, sign in signs.items()):
                return False
            first = {**signs, **first}
            next_look = time.monotonic() + min(1.0, self.grace / 20)
            while (pause := next_look - time.monotonic()) > 0:
                if not goes_on():
                    return False
                time.sleep(min(0.1, pause))

    def _wait_for_turn(self, pause: float) -> None:
        """Waits until no suggestion is under way; looks every ``pause`` seconds, quick ones soon less often."""

        def under_way(transaction: Transaction) -> bool:
            query = "SELECT asking, asking_until FROM llamatune_studies WHERE id = :study"
            (row,) = transaction.rows(query, study=self._id)
            return row["asking"] is not None and row["asking_until"] > transaction.now

        busy = True
        while busy:
            time.sleep(pause)
            pause = max(pause, min(1.2 * pause, 0.02))
            busy = self._database.patiently(lambda: self._database.read(under_way), "to be read", self.patience)

    def _plan(self, n: int, max_evals: int) -> Plan:
        what = "the next trial to be started"
        # Not worth waiting for the disk: if this is undone, the transaction that starts the trial finds out.
        return self._write(lambda claim: self._planned(claim, n, max_evals), what, durable=False)

    def _planned(self, claim: LockedStudy, n: int, max_evals: int) -> Plan:
        mark_stalled(claim, self.grace, self.retries, self.worker)
        due = to_retry(claim.trials, claim.known.space, self.retries)[:n]
        unacknowledged = self._unacknowledged(claim)
        if len(unacknowledged) >= n:
            return Plan(claim.study, started=unacknowledged[:n])
        for stray in unacknowledged:  # of an ask that was interrupted
            claim.put(stray.given_up(Cause.ABANDONED, "never begun", claim.now))
        study, left = claim.study, num_left(claim.study, max_evals, due)
        if left < n:
            return Plan(study, left=left)
        if len(due) == n:
            return Plan(study, started=self._put_started(claim, due, []))
        if claim.row["asking"] not in (None, self.worker) and claim.row["asking_until"] > claim.now:
            return Plan(study, pause=min(0.05, max(0.002, claim.row["ask_seconds"] / 4)), left=left)
        wait = min(max(3 * claim.row["ask_seconds"], SHORTEST_WAIT), LONGEST_WAIT)
        claim.transaction.run(
            "UPDATE llamatune_studies SET asking = :asking, asking_until = :until WHERE id = :study",
            study=self._id,
            asking=self.worker,
            until=claim.now + wait,
        )
        for trial in due:
            study = study.with_trial(trial)
        return Plan(study, due=due, known=len(claim.trials), left=left)

    def _suggest_and_start(self, plan: Plan, n: int, choose: Choose, seed: int, max_evals: int) -> list[Trial]:
        """The trials that were started; none if others have started some in the meantime."""
        began = time.monotonic()
        try:
            suggestions = choose(plan.study, n - len(plan.due))
        except BaseException:
            self._write(lambda claim: self._stop_asking(claim, None), "a suggestion to be given up")
            raise
        seconds = time.monotonic() - began

        def work(claim: LockedStudy) -> list[Trial]:
            if unacknowledged := self._unacknowledged(claim):  # this very attempt, which seemed to fail
                return unacknowledged
            self._stop_asking(claim, seconds)
            due = to_retry(claim.trials, claim.known.space, self.retries)[:n]
            same = len(claim.trials) == plan.known and [t.params for t in due] == [t.params for t in plan.due]
            if not same or num_left(claim.study, max_evals, due) < n:
                return []
            return self._put_started(claim, due, [(s, seed) for s in suggestions])

        return self._write(work, "the next trial to be started")

    def _put_started(
        self, claim: LockedStudy, due: Sequence[Trial], new: Sequence[tuple[Suggestion, int]]
    ) -> list[Trial]:
        claim.transaction.run(
            "INSERT INTO llamatune_workers (id, host, pid, started, heartbeat) VALUES (:id, :host, :pid, :now, :now) "
            "ON CONFLICT (id) DO UPDATE SET heartbeat = excluded.heartbeat",
            id=self.worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            now=claim.now,
        )
        first = len(claim.trials)
        trials = [replace(trial, number=first + i, started=claim.now) for i, trial in enumerate(due)]
        first += len(due)
        trials += [started_trial(first + i, suggestion, seed, claim.now) for i, (suggestion, seed) in enumerate(new)]
        trials = [replace(trial, worker=self.worker) for trial in trials]
        for trial in trials:
            claim.put(trial)
        return trials

    def _stop_asking(self, claim: LockedStudy, seconds: float | None) -> None:
        claim.transaction.run(
            "UPDATE llamatune_studies SET asking = NULL, ask_seconds = :seconds WHERE id = :study AND asking = :asking",
            study=self._id,
            asking=self.worker,
            seconds=claim.row["ask_seconds"] if seconds is None else seconds,
        )

    def _now_running(self, trials: list[Trial]) -> list[Trial]:
        self._heartbeat.add(trial.number for trial in trials)
        return trials

    def _unacknowledged(self, claim: LockedStudy) -> list[Trial]:
        """Trials that an earlier attempt of this object's has started, though it seemed to fail."""
        return [
            trial
            for trial in claim.trials
            if trial.worker == self.worker
            and trial.state is TrialState.RUNNING
            and trial.number not in self._heartbeat.numbers
        ]

    def _spent(self, n: int, left: int, max_evals: int) -> str:
        what = f"the budget of max_evals={max_evals} trials of study {self.name!r}"
        if left > 0:
            return f"{what} has only {left} left, but {n} were asked for"
        running = len(self._study.pending)
        return f"{what} is used up" + (f"; {running} of them are running" if running else "")

    def beat(self) -> None:
        """Gives a sign of life."""

        def work(transaction: Transaction) -> None:
            transaction.run(
                "UPDATE llamatune_workers SET heartbeat = :now WHERE id = :id", id=self.worker, now=transaction.now
            )

        self._database.patiently(lambda: self._database.write(work, durable=False), "a sign of life", patience=0.0)

    # --- Changing trials -----------------------------------------------------------------------------------------

    def change(self, trial: Trial | int, change: Change) -> Trial:
        """See ``Store``. What cannot be written is kept in a file, which the next start picks up.

        Raises:
            StorageError: not even in the end; the message has the value, and says where it is kept.
        """
        before: Trial | None = None
        after: Trial | None = None
        kept: Path | None = None

        def changed_from(current: Trial, now: float) -> Trial:
            nonlocal before, after
            if after is None or before is None or write_trial(current) != write_trial(before):
                before, after = current, change(self._with_unwritten(check_open(current, trial)), now)
            return after  # the same in each attempt

        def work(claim: LockedStudy) -> Trial:
            current = claim.recorded(number_of(trial, len(claim.trials)))
            if after is not None and write_trial(current) == write_trial(after):
                return after  # an earlier attempt has come through, though it seemed to fail
            new = changed_from(current, claim.now)
            claim.put(new)
            return new

        def keep() -> None:
            nonlocal kept
            if after is None:  # the database could not even be read: what is known here has to do
                changed_from(self._known(trial), time.time())
            assert after is not None
            kept = self._journal.keep(f"{after.number}-{self.worker[-8:]}", self._entry(after))

        try:
            changed = self._write(work, "the end of a trial to be written", at_failure=keep)
        except StorageError as error:
            if kept is None:
                keep()
            assert after is not None
            self._remember(after)
            self._heartbeat.remove(after.number)
            self._has_unsaved = kept is not None
            raise StorageError(unwritten(error, after, kept)) from error
        if kept is not None:
            kept.unlink(missing_ok=True)
        self._unwritten.pop(changed.number, None)
        self._heartbeat.remove(changed.number)
        return changed

    def report(self, trial: Trial | int, change: Change) -> Trial:
        """See ``Store``. What cannot be written at once goes with the next report, or with the result."""

        def work(claim: LockedStudy) -> Trial:
            current = claim.recorded(number_of(trial, len(claim.trials)))
            after = change(self._with_unwritten(check_open(current, trial)), claim.now)
            claim.put(after)
            return after

        try:
            reported = self._write(work, "a report to be written", min(REPORT_PATIENCE, self.patience), durable=False)
        except StorageError as error:
            reported = change(self._with_unwritten(self._known(trial)), time.time())
            self._unwritten[reported.number] = reported.curve
            self._remember(reported)
            warnings.warn(f"{error}; it is kept until the next write", StorageWarning, stacklevel=4)
            return reported
        self._unwritten.pop(reported.number, None)
        return reported

    def add(self, params: Params, seed: int, finish: Change) -> Trial:
        """See ``Store``."""
        after: Trial | None = None
        kept: Path | None = None

        def work(claim: LockedStudy) -> Trial:
            nonlocal after
            if after is not None:  # has an earlier attempt come through, though it seemed to fail?
                same = [t for t in claim.trials if (t.params, t.started) == (after.params, after.started)]
                if same:
                    return same[0]
            new = started_trial(len(claim.trials), Suggestion(params, "added"), seed, claim.now)
            after = finish(new, claim.now)
            claim.put(after)
            return after

        def keep() -> None:
            nonlocal after, kept
            if after is None:
                now = time.time()
                new = started_trial(len(self._study.trials), Suggestion(params, "added"), seed, now)
                after = finish(new, now)
            kept = self._journal.keep(f"added-{uuid.uuid4().hex[:8]}", self._entry(after))

        try:
            added = self._write(work, "a trial to be added", at_failure=keep)
        except StorageError as error:
            if kept is None:
                keep()
            assert after is not None
            raise StorageError(unwritten(error, after, kept)) from error
        if kept is not None:
            kept.unlink(missing_ok=True)
        return added

    def settle(self, metric: str, direction: Direction) -> None:
        """See ``Store``.

        Raises:
            StudyMismatchError: the study has trials with another metric or direction.
        """

        def work(claim: LockedStudy) -> None:
            given = replace(claim.study, metric=metric, direction=direction)
            lines = score_differences(claim.study, given, claim.row["metric"] is not None)
            if lines and is_settled(claim.study, self.worker):
                raise StudyMismatchError(mismatch(self.name, self._database.display_url, lines, extensible=False))
            claim.transaction.run(
                "UPDATE llamatune_studies SET metric = :metric, direction = :direction WHERE id = :study",
                study=self._id,
                metric=metric,
                direction=direction,
            )
            claim.known = given

        self._write(work, "the metric to be written")

    # --- What could not be written -------------------------------------------------------------------------------

    def _with_unwritten(self, trial: Trial) -> Trial:
        curve = self._unwritten.get(trial.number)
        return trial if curve is None else replace(trial, curve=curve)

    def _entry(self, trial: Trial) -> dict[str, Any]:
        return {"study": self.name, "database": self._database.display_url, "trial": write_trial(trial)}

    def _pick_up(self) -> None:
        """Writes what an earlier run could not."""
        self._has_unsaved = False
        for path, entry in self._journal.entries():
            if entry.get("study") != self.name:
                continue
            recorded = read_trial(entry["trial"])
            try:
                self._write(partial(recover, recorded), "a kept result to be written")
            except TrialStateError as error:
                refused = path.rename(path.with_suffix(".refused"))
                result = result_of(recorded)
                warnings.warn(f"{refused} has a result of no use ({result}): {error}", StorageWarning, stacklevel=2)
                continue
            path.unlink(missing_ok=True)
            logger.info("picked up the result of trial %d, %s, from %s", recorded.number, result_of(recorded), path)


class Plan(NamedTuple):
    """What an ask found: trials that it could start at once, or how things stand before a suggestion is computed."""

    study: Study
    started: Sequence[Trial] = ()
    pause: float = 0.0
    left: int = 0
    due: Sequence[Trial] = ()
    known: int = 0


def _new_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def _check_knobs(name: Any, grace: Any, retries: Any) -> None:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise SettingsError(f"the name of a stored study must be a line of text, but got {name!r}")
    if not isinstance(grace, (int, float)) or isinstance(grace, bool) or not 0 < grace < float("inf"):
        raise SettingsError(f"grace must be a number of seconds > 0, but got {grace!r}")
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise SettingsError(f"retries must be an integer >= 0, but got {retries!r}")
