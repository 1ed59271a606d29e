"""All ranks under ``torchrun`` as one runner: rank 0 asks and tells, all train together and stop together."""

from __future__ import annotations

import atexit
import os
import sys
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from typing import Any

from llamatune_torch.errors import LlamaTuneError
from llamatune_torch.runtime.evaluation import Evaluate, is_of_one_trial, run_trial
from llamatune_torch.runtime.interrupts import Interrupts
from llamatune_torch.runtime.runners import Job, Post
from llamatune_torch.runtime.search import Search
from llamatune_torch.trial import Outcome, Trial

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A trial may take days, and the ranks need not end at the same time.
_PATIENCE = timedelta(days=30)


def world_size() -> int:
    """The number of processes that work on each trial together; 1 without ``torchrun`` or the like."""
    if (group := _group()) is not None:
        return int(group.get_world_size())
    if not all(name in os.environ for name in _OF_TORCHRUN):
        return 1
    import torch.distributed as dist  # only here: it takes a second to load

    return int(os.environ["WORLD_SIZE"]) if dist.is_available() else 1


def rank() -> int:
    """The number of this process among them; rank 0 holds the study."""
    if world_size() == 1:
        return 0
    group = _group()
    return int(os.environ["RANK"] if group is None else group.get_rank())


def _group() -> Any:
    """``torch.distributed`` where the processes have found each other; ``None`` otherwise, also without torch."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


class TorchrunRunner:
    """Runs each trial on all ranks at once. Rank 0 runs the loop, the others :meth:`follow` it.

    The ranks exchange messages in a gloo group of their own, which needs no GPU and does not mix with the training's.
    """

    capacity = 1
    synchronous = True

    def __init__(self, search: Search) -> None:
        import torch.distributed as dist

        self._search, self._dist = search, dist
        if not dist.is_initialized():
            dist.init_process_group()
            # Later trainers need the group. At the end of the interpreter, its threads could abort the process.
            atexit.register(_leave)
        self.rank = dist.get_rank()
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._closed = False

    def check(self, evaluate: Evaluate) -> None: ...

    def submit(self, evaluate: Evaluate, trial: Trial, post: Post) -> Job:
        self._broadcast(trial)
        mine: Outcome | LlamaTuneError | None = None
        try:
            mine = run_trial(evaluate, trial, lambda *point: post(trial.number, "report", point))
        finally:  # after Ctrl-C as well, because the others wait for it
            outcomes = self._gather(mine)
        if None in outcomes:
            raise KeyboardInterrupt
        job: Future[Outcome | LlamaTuneError] = Future()
        job.set_result(_agree(outcomes))
        return job

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._broadcast(None)
            self._dist.destroy_process_group(self._group)

    def follow(self, evaluate: Evaluate) -> None:
        """Evaluates the trials of rank 0 on another rank, until rank 0 says that this is the end."""
        mine: Outcome | LlamaTuneError | None = None
        with Interrupts() as interrupts:
            while (trial := self._receive()) is not None:
                mine = None
                try:
                    with interrupts.allowed():
                        mine = run_trial(evaluate, trial)  # without reports, which come from rank 0
                except KeyboardInterrupt:
                    self._search.interrupted = True
                self._gather(mine)
        self._dist.destroy_process_group(self._group)
        if isinstance(mine, LlamaTuneError) and not is_of_one_trial(mine, self._search.study):
            raise mine

    def _broadcast(self, trial: Trial | None) -> None:
        """Sends a trial to evaluate, or the end, with the study and what rank 0 has decided for the trial."""
        search = self._search
        study = replace(search.study, space=search.study.space.without_values())  # each rank has its own values
        self._dist.broadcast_object_list([trial, study, search.worker, search.orders], src=0, group=self._group)

    def _receive(self) -> Trial | None:
        message: list[Any] = [None] * 4
        self._dist.broadcast_object_list(message, src=0, group=self._group)
        trial, *rest = message
        self._search.follow(*rest)
        assert trial is None or isinstance(trial, Trial)
        return trial

    def _gather(self, mine: Outcome | LlamaTuneError | None) -> list[Outcome | LlamaTuneError | None]:
        outcomes: list[Any] = [None] * self._dist.get_world_size()
        self._dist.all_gather_object(outcomes, mine, group=self._group)
        return outcomes


def _leave() -> None:
    if (group := _group()) is not None:
        group.destroy_process_group()


def _agree(outcomes: list[Any]) -> Outcome | LlamaTuneError:
    """Returns rank 0's outcome, or the failure of another rank, which spoils what all have trained together."""
    for rank, outcome in enumerate(outcomes):
        if isinstance(outcome, LlamaTuneError):
            return outcome
        assert isinstance(outcome, Outcome)
        if rank > 0 and outcome.error is not None and outcomes[0].error is None:
            error = f"rank {rank}: {outcome.error}"
            return Outcome.failure(outcome.reason or "error", error, cost=outcome.cost, cause=outcome.cause)
    own: Outcome = outcomes[0]
    return own
