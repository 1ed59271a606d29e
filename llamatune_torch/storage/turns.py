"""Turns of the workers of one study: who computes the next suggestion, and which trials start.

A suggestion takes from a millisecond to many seconds, so it is computed outside of any transaction. An ask has two
steps, and starts again if another worker was quicker:

    plan     in a transaction: mark stalled trials; are enough of the budget left? take the lease; read the record
                 another worker has the lease          -> wait for it, then plan again
                 too few trials are left               -> BudgetSpentError
    decide   outside: compute decisions for the record as it was
    start    in a transaction: give the lease back
                 other trials have started since then  -> plan again
                 else                                  -> carry the decisions out

The lease is short. It only saves work: correctness comes from the check at the start of the trials. A lease expires, so
that nobody waits for a dead process. Times are the database's, never a machine's own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, NamedTuple

from llamatune_torch.decisions import ROUNDING, Decision, Finish
from llamatune_torch.errors import BudgetSpentError
from llamatune_torch.storage.database import Transaction
from llamatune_torch.storage.heartbeat import Doubts, mark_stalled, register_worker, signs_of_life
from llamatune_torch.storage.session import LockedStudy, StudySession, check_lease
from llamatune_torch.storage.store import Choose, carry_out, may_decide, num_left, to_retry
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Trial, TrialState

logger = logging.getLogger(__name__)

# A lease lasts three times as long as the last suggestion took, within these bounds (seconds).
SHORTEST_LEASE, LONGEST_LEASE = 0.25, 300.0

STARTING = "the next trial to be started"


class Ask(NamedTuple):
    """A worker's request for trials.

    Args:
        n: the number of trials.
        seed: the study's seed.
        max_evals: the number of full runs that may count, over all workers.
        least: the share of a full run that a trial needs at least.
        worker: the name of the one who asks.
        begun: the numbers of the trials that it knows it is running; may change at any time.
        grace: seconds without a sign of life after which a worker has stalled.
        retries: how often at most the parameters of a stalled worker run again.
        doubts: the silences that this worker has seen once.
        goes_on: tells whether trials are still wanted, while another worker's suggestion is waited for.
    """

    n: int
    seed: int
    max_evals: int
    least: float
    worker: str
    begun: AbstractSet[int]
    grace: float
    retries: int
    doubts: Doubts
    goes_on: Callable[[], bool] = lambda: True


class Plan(NamedTuple):
    """The state of affairs before a suggestion is computed.

    Args:
        study: the record to decide from, in which ``due`` are running.
        left: the number of full runs that may start.
        due: the trials to run again, at most as many as were asked for.
        state: tells if others have started trials since, ``due`` ones not among them.
        wait: seconds after which to look again, since another worker has the lease; 0 if nothing is in the way.
        started: the trials to hand out at once, since an earlier ask has started them.
    """

    study: Study
    left: float = 0.0
    due: Sequence[Trial] = ()
    state: Any = None
    wait: float = 0.0
    started: Sequence[Trial] = ()


def start_trials(session: StudySession, ask: Ask, choose: Choose) -> list[Trial]:
    """Starts trials for a worker when it is its turn; those to run again come first.

    The list is empty if ``ask.goes_on()`` has become False before, or if something has to end or pause first.

    Raises:
        BudgetSpentError: too few of ``max_evals`` are left, or nothing is to start any more.
        SpaceExhaustedError: from ``choose``.
        StorageError: the database cannot be reached.
    """
    while True:
        # Not worth waiting for the disk: if this is undone, the transaction that starts the trials finds out.
        plan = session.write(lambda locked: make_plan(locked, ask), STARTING, durable=False)
        if plan.started:
            return list(plan.started)
        if not may_decide(plan.study, plan.left, ask.n, ask.least):
            raise BudgetSpentError(describe_budget(session, ask, plan.left))
        if plan.wait:
            if not wait_for_lease(session, plan.wait, ask.goes_on):
                return []
        elif (trials := decide_and_start(session, ask, plan, choose)) is not None:
            return trials


def make_plan(locked: LockedStudy, ask: Ask) -> Plan:
    """Takes stock, and takes the lease if a suggestion is needed and nobody else has it."""
    mark_stalled(locked, ask.grace, ask.retries, ask.worker, ask.doubts)
    unacknowledged = find_unacknowledged(locked, ask)
    if len(unacknowledged) >= ask.n:
        return Plan(locked.study, started=unacknowledged[: ask.n])
    for trial in unacknowledged:  # of an ask that was interrupted
        locked.put(trial.given_up(Cause.ABANDONED, "never begun", locked.now))
    study = locked.study
    due = to_retry(study.trials, study.space, ask.retries)[: ask.n]
    left = num_left(study, ask.max_evals, due)
    needs_lease = ask.n > len(due) and may_decide(study, left, ask.n, ask.least)
    wait = take_lease(locked, ask.worker) if needs_lease else 0.0
    state = _state(study.trials)
    for trial in due:
        study = study.with_trial(trial)
    return Plan(study, left, due, state, wait)


def decide_and_start(session: StudySession, ask: Ask, plan: Plan, choose: Choose) -> list[Trial] | None:
    """Decides what a plan lacks, and starts it; returns ``None`` if others have started trials in the meantime.

    Raises:
        BudgetSpentError: nothing is to start any more.
    """
    decisions: Sequence[Decision] = []
    seconds: float | None = None
    if ask.n > len(plan.due):
        began = time.monotonic()
        try:
            decisions = choose(plan.study, ask.n - len(plan.due), num_left(plan.study, ask.max_evals, []))
        except BaseException:
            session.write(lambda locked: release_lease(locked, ask.worker), "a suggestion to be given up")
            raise
        seconds = time.monotonic() - began

    def start(locked: LockedStudy) -> list[Trial] | None:
        release_lease(locked, ask.worker, seconds)
        due = to_retry(locked.trials, locked.space, ask.retries)[: ask.n]
        same = _state(locked.trials) == plan.state and [t.params for t in due] == [t.params for t in plan.due]
        if not same or num_left(locked.study, ask.max_evals, due) < plan.left:
            return None  # also if an earlier attempt came through, though it seemed to fail: the next plan finds that
        return put_started(locked, ask, due, decisions)

    trials = session.write(start, STARTING)
    if trials == [] and isinstance(decisions[-1], Finish):
        if stages(session.study) != stages(plan.study):  # a trial has ended meanwhile, or was stopped just now
            return None
        raise BudgetSpentError(f"study {session.name!r}: {decisions[-1].reason}")
    return trials


def put_started(locked: LockedStudy, ask: Ask, due: Sequence[Trial], decisions: Sequence[Decision]) -> list[Trial]:
    """Writes down that the worker runs these trials from now on."""
    started = []

    def put(trial: Trial) -> Study:
        if trial.number < len(locked.trials):  # as it was written, not as it counts in the space of now
            written = locked.read(trial.number)
            trial = replace(trial, params=written.params, notes=written.notes)
        if trial.state is TrialState.RUNNING:
            trial = replace(trial, worker=ask.worker)
        locked.put(trial)
        if trial.state is TrialState.RUNNING:
            started.append(locked.trials[trial.number])
        return locked.study

    register_worker(locked, ask.worker)
    for trial in due:
        put(replace(trial, started=locked.now))
    carry_out(locked.study, decisions, ask.seed, locked.now, put)
    return started


def _state(trials: Sequence[Trial]) -> tuple[int, list[tuple[int, int]]]:
    """Returns what changes whenever a trial starts, goes on or is stopped."""
    return len(trials), [(trial.number, trial.pauses) for trial in trials if trial.state is TrialState.PAUSED]


def stages(study: Study) -> list[tuple[TrialState, int]]:
    """Returns what changes whenever a trial starts, pauses, goes on or ends."""
    return [(trial.state, trial.pauses) for trial in study.trials]


def find_unacknowledged(locked: LockedStudy, ask: Ask) -> list[Trial]:
    """Finds trials that the worker has started without knowing: the attempt seemed to fail, or was interrupted."""
    return [
        trial
        for trial in locked.trials
        if trial.worker == ask.worker and trial.state is TrialState.RUNNING and trial.number not in ask.begun
    ]


def take_lease(locked: LockedStudy, worker: str) -> float:
    """Takes the lease on computing the next suggestion; returns 0, or the seconds to wait if another worker has it."""
    row = locked.row
    if row["lease_owner"] != worker and is_leased(row, locked.now):
        return float(min(0.05, max(0.002, row["suggest_seconds"] / 4)))
    locked.transaction.run(
        "UPDATE llamatune_studies SET lease_owner = :worker, lease_until = :until WHERE id = :study",
        study=locked.id,
        worker=worker,
        until=locked.now + lease_seconds(row),
    )
    return 0.0


def lease_seconds(row: Mapping[str, Any]) -> float:
    """Returns how long a lease lasts that is taken now."""
    return float(min(max(3 * row["suggest_seconds"], SHORTEST_LEASE), LONGEST_LEASE))


def is_leased(row: Mapping[str, Any], now: float) -> bool:
    """Tells whether a worker has the lease; one that would end later than a new one is from before a clock was set."""
    return row["lease_owner"] is not None and now < row["lease_until"] <= now + lease_seconds(row)


def release_lease(locked: LockedStudy, worker: str, seconds: float | None = None) -> None:
    """Gives the lease back, if the worker has it; ``seconds`` is the time that the suggestion took, if there is one."""
    locked.transaction.run(
        "UPDATE llamatune_studies SET lease_owner = NULL, suggest_seconds = :seconds "
        "WHERE id = :study AND lease_owner = :worker",
        study=locked.id,
        worker=worker,
        seconds=locked.row["suggest_seconds"] if seconds is None else seconds,
    )


def wait_for_lease(session: StudySession, pause: float, goes_on: Callable[[], bool]) -> bool:
    """Waits until nobody has the lease, and returns True; False if ``goes_on()`` has become False before.

    It looks every ``pause`` seconds at first, and soon every 20 ms at most.
    """

    def is_taken(transaction: Transaction) -> bool:
        query = "SELECT lease_owner, lease_until, suggest_seconds FROM llamatune_studies WHERE id = :study"
        (row,) = transaction.rows(query, study=session.id)
        check_lease(row, session.id)
        return is_leased(row, transaction.now)

    taken = True
    while taken:
        if not goes_on():
            return False
        time.sleep(pause)
        pause = max(pause, min(1.2 * pause, 0.02))
        taken = session.read(is_taken)
    return True


def wait_for_others(session: StudySession, ask: Ask, goes_on: Callable[[], bool]) -> bool:
    """Waits for the trials of other workers, as ``Store.wait_for_others``: ``grace`` and a second look at most.

    Something may be left of the budget for which nobody has a use. So it takes a change of the record since the last
    ask.
    """
    known = stages(session.study)

    def look(locked: LockedStudy) -> tuple[bool, dict[int, float]]:
        mark_stalled(locked, ask.grace, ask.retries, ask.worker, ask.doubts)
        due = to_retry(locked.trials, locked.space, ask.retries)
        left = num_left(locked.study, ask.max_evals, due)
        is_left = left >= ask.least - ROUNDING and stages(locked.study) != known
        return is_left, signs_of_life(locked, ask.worker)

    first: dict[int, float] = {}
    while True:
        is_left, signs = session.write(look, "to be read", durable=False)
        if is_left:
            return True
        if not first and signs:
            logger.info("waiting for a sign of life of %d trials that run elsewhere", len(signs))
        elif not any(first.get(number, sign) == sign for number, sign in signs.items()):
            return False
        first = {**signs, **first}
        next_look = time.monotonic() + min(1.0, ask.grace / 20)
        while (pause := next_look - time.monotonic()) > 0:
            if not goes_on():
                return False
            time.sleep(min(0.1, pause))


def describe_budget(session: StudySession, ask: Ask, left: float) -> str:
    """Says why too few trials are left."""
    budget = f"the budget of max_evals={ask.max_evals} trials of study {session.name!r}"
    if left > ROUNDING:
        return f"{budget} has only {left:g} left, but {ask.n} were asked for"
    running = len(session.study.pending)
    return f"{budget} is used up" + (f"; {running} of them are running" if running else "")
