"""Under ``torchrun``: rank 0 asks and tells, all ranks train with the same parameters and stop together."""

from __future__ import annotations

import atexit
import os
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from llamatune_torch.errors import LlamaTuneError
from llamatune_torch.runtime.evaluation import Evaluate, run_trial
from llamatune_torch.runtime.interrupts import Interrupts
from llamatune_torch.runtime.runners import Job, Post
from llamatune_torch.runtime.search import Search
from llamatune_torch.trial import Outcome, Trial

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A trial may take days, and ranks need not end at the same time.
_PATIENCE = timedelta(days=30)


def world_size() -> int:
    """How many processes work on each trial together: 1 but under ``torchrun`` or the like."""
    if not dist.is_available():
        return 1
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _OF_TORCHRUN) else 1


def rank() -> int:
    """Which of them this one is: the one with the study is 0."""
    if world_size() == 1:
        return 0
    return dist.get_rank() if dist.is_initialized() else int(os.environ["RANK"])


class TorchrunRunner:
    """All ranks as the one place where trials run: on rank 0 for the loop, on the others :meth:`follow`.

    Messages go through a gloo group of their own, so that they need no GPU and do not mix with the training's.
    """

    capacity = 1
    synchronous = True

    def __init__(self, tuner: Search) -> None:
        self._tuner = tuner
        if not dist.is_initialized():
            dist.init_process_group()
            # Later trainers need it; but left to the interpreter's end, its threads can abort the process.
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
        finally:  # after Ctrl-C as well: the others wait for it
            everybodys = self._gather(mine)
        if None in everybodys:
            raise KeyboardInterrupt
        job: Future[Outcome | LlamaTuneError] = Future()
        job.set_result(_agreed(everybodys))
        return job

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._broadcast(None)
            dist.destroy_process_group(self._group)

    def follow(self, evaluate: Evaluate) -> None:
        """What the other ranks do: evaluate what rank 0 asks for, until it says that this is the end."""
        mine: Outcome | LlamaTuneError | None = None
        with Interrupts() as interrupts:
            while (trial := self._receive()) is not None:
                mine = None
                try:
                    with interrupts.allowed():
                        # Rank 0 reports.
                        mine = run_trial(evaluate, trial)
                except KeyboardInterrupt:
                    self._tuner.interrupted = True
                self._gather(mine)
        dist.destroy_process_group(self._group)
        if isinstance(mine, LlamaTuneError):
            raise mine

    def _broadcast(self, trial: Trial | None) -> None:
        """A trial to evaluate, or the end; with all that is known, so that each rank can say what is best."""
        dist.broadcast_object_list([trial, self._tuner.study, self._tuner.worker], src=0, group=self._group)

    def _receive(self) -> Trial | None:
        message: list[Any] = [None, None, None]
        dist.broadcast_object_list(message, src=0, group=self._group)
        trial, study, worker = message
        self._tuner.follow(study, worker)
        assert trial is None or isinstance(trial, Trial)
        return trial

    def _gather(self, mine: Outcome | LlamaTuneError | None) -> list[Outcome | LlamaTuneError | None]:
        everybodys: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybodys, mine, group=self._group)
        return everybodys


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _agreed(outcomes: list[Any]) -> Outcome | LlamaTuneError:
    """Rank 0's outcome, unless another rank has failed: then nothing that was trained together is worth anything."""
    for rank, outcome in enumerate(outcomes):
        if isinstance(outcome, LlamaTuneError):
            return outcome
        assert isinstance(outcome, Outcome)
        if rank > 0 and outcome.error is not None and outcomes[0].error is None:
            error = f"rank {rank}: {outcome.error}"
            return Outcome.failure(outcome.reason or "error", error, cost=outcome.cost, cause=outcome.cause)
    own: Outcome = outcomes[0]
    return own
