"""Measurements of every fine-tune, also of one that fails: memory, time, throughput, size.

A trial's ``outcomes`` get them by these names:

    memory_gb            the peak of the memory, in 10^9 bytes, the highest of all ranks; see :class:`Meter`
    seconds              of training alone, over all stages of the run
    seconds_per_step     of those, for an optimizer step
    startup_seconds      from the call of the factory to the first step
    evaluation_seconds, checkpoint_seconds
    samples_per_second, tokens_per_second    of training alone, over all ranks; tokens where there are ``input_ids``
    sequences_at_once    that pass through the model, with ``auto_batch``
    num_trainable        parameters that are trained
    model_bytes          of all parameters and buffers
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamatune_torch.runtime.process import ISOLATED

_LOOK = 0.05  # seconds between looks at the resident memory

#: What stages of a run add up to; the others are replaced by the newest, but the memory, of which the highest counts.
_SUMS = ("seconds", "startup_seconds", "evaluation_seconds", "checkpoint_seconds")


class Meter(TrainerCallback):
    """Measures one stage of one training run.

    Inside :meth:`watching` it samples the memory. On CUDA that is the peak of PyTorch's allocator. On a CPU it is the
    resident memory of the process, where the process is there for this trial alone (``isolate``); elsewhere only its
    rise, because the process holds other things as well. Inside :meth:`of` it stands in front of the Trainer's
    methods, to tell training from the rest.

    Args:
        before: the outcomes of the stages before this one.
    """

    def __init__(self, before: Mapping[str, float]) -> None:
        self._before = before
        self._created = time.perf_counter()
        self._first_step: float | None = None
        self._last_step: float | None = None
        self._steps = 0
        self._aside = {"evaluation_seconds": 0.0, "checkpoint_seconds": 0.0}
        self._aside_in_training = 0.0
        self._samples = self._tokens = 0
        self._world_size = 1
        self._sizes: dict[str, float] = {}
        self._peak = 0.0
        #: Sequences that pass through the model at a time, where ``auto_batch`` says so.
        self.passed = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the memory until the block ends."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            try:
                yield
            finally:
                self._peak = max(self._peak, float(torch.cuda.max_memory_allocated()))
            return
        process, stop = psutil.Process(), threading.Event()
        ground = 0 if ISOLATED in os.environ else process.memory_info().rss

        def look() -> None:
            self._peak = max(self._peak, process.memory_info().rss - ground)

        def watch() -> None:
            while not stop.wait(_LOOK):
                look()

        watcher = threading.Thread(target=watch, name="llamatune-memory", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            look()
            stop.set()
            watcher.join()

    @contextmanager
    def of(self, trainer: Trainer) -> Iterator[None]:
        """Measures the training of ``trainer`` until the block ends."""
        self._world_size = trainer.args.world_size
        self._sizes = sizes_of(trainer.model)
        instead: dict[str, Callable[..., Any]] = {
            "evaluation_loop": partial(self._timed, "evaluation_seconds", trainer.evaluation_loop),
            "_save_checkpoint": partial(self._timed, "checkpoint_seconds", trainer._save_checkpoint),
            "training_step": partial(self._counted, trainer.training_step),
        }
        own = vars(trainer)
        former = {name: own[name] for name in instead if name in own}
        own.update(instead)
        trainer.add_callback(self)
        try:
            yield
        finally:
            trainer.remove_callback(self)
            for name in instead:
                del own[name]
            own.update(former)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._first_step is None:
            self._first_step = time.perf_counter()
            self._aside = dict.fromkeys(self._aside, 0.0)  # an evaluation before the first step is part of the start

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._steps += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last_step = time.perf_counter()
        self._aside_in_training = sum(self._aside.values())

    def agree(self) -> None:
        """Takes the highest memory of all ranks; each must call it."""
        if self._world_size > 1:
            on_cuda = torch.cuda.is_available()
            peak = float(torch.cuda.max_memory_allocated()) if on_cuda else self._peak
            highest = torch.tensor(peak, dtype=torch.float64, device="cuda" if on_cuda else "cpu")
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            self._peak = float(highest)

    def outcomes(self) -> dict[str, float]:
        """All that was measured, with the stages before; what was never reached is left out."""
        now, before = time.perf_counter(), self._before
        measured = {**self._sizes, "startup_seconds": (self._first_step or now) - self._created}
        if self._first_step is not None:
            aside = sum(self._aside.values()) if self._last_step is None else self._aside_in_training
            measured["seconds"] = seconds = max(0.0, (self._last_step or now) - self._first_step - aside)
            measured |= self._aside
            if self._steps:
                measured["seconds_per_step"] = seconds / self._steps
        for name in _SUMS:
            if name in measured or name in before:
                measured[name] = measured.get(name, 0.0) + before.get(name, 0.0)
        for rate, count in (("samples_per_second", self._samples), ("tokens_per_second", self._tokens)):
            in_all = count * self._world_size + before.get(rate, 0.0) * before.get("seconds", 0.0)
            if in_all and measured.get("seconds"):
                measured[rate] = in_all / measured["seconds"]
        if self.passed:
            measured["sequences_at_once"] = float(self.passed)
        measured["memory_gb"] = max(self._peak / 1e9, before.get("memory_gb", 0.0))
        return measured

    def _timed(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            self._aside[name] += time.perf_counter() - started

    def _counted(self, method: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, Mapping):
            tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim() > 0]
            self._samples += len(tensors[0]) if tensors else 0
            ids = inputs.get("input_ids")
            self._tokens += ids.numel() if isinstance(ids, torch.Tensor) else 0
        return method(model, inputs, *args, **kwargs)


def sizes_of(model: Any) -> dict[str, float]:
    """The number of trained parameters of a model, and the bytes of all its parameters and buffers.

    Example:
        >>> sizes_of(torch.nn.Linear(3, 2))
        {'num_trainable': 8.0, 'model_bytes': 32.0}
    """
    parameters = list(model.parameters())
    return {
        "num_trainable": float(sum(p.numel() for p in parameters if p.requires_grad)),
        "model_bytes": float(sum(t.numel() * t.element_size() for t in (*parameters, *model.buffers()))),
    }
