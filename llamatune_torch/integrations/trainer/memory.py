"""The peak memory of a fine-tune before it is run: two steps of its Trainer on tensors that hold no numbers.

PyTorch's ``FakeTensorMode`` carries shapes, types and devices through real code, without memory. ``Tally`` adds up what
is alive. So the real model, loss, optimizer and gradient checkpointing are measured, whatever they are, on a machine
that could not run them. The totals are those of ``torch.distributed._tools.mem_tracker.MemTracker``, which also says
which module holds what, and takes five times as long.

With ``b`` sequences of ``l`` tokens a pass through a transformer takes

    s + b (a_0 + a_1 l + a_2 l^2)    bytes,

and a step of the optimizer a number of its own. So two or four such runs tell the peak for all batches
(:class:`Footprint`).

Where a model does not run on such tensors, a formula stands in (:func:`first_principles`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from transformers import Trainer, TrainingArguments

from llamatune_torch.integrations.trainer.measuring import sizes_of

NUM_BATCHES = 8  # of the training data, of which the longest counts

BLOCK = 512  # bytes; CUDA's allocator rounds up to a multiple of it


#: On a CPU a process grows by more than its tensors take: the C library leaves gaps, and libraries are loaded. In the
#: median of nine cells by this factor and these bytes (benchmarks/README.md); on a GPU by nothing.
CPU_FACTOR, CPU_MORE = 1.35, 3e7


class Tally(TorchDispatchMode):
    """Adds up the bytes of all tensors that come to be inside its ``with`` block, while they are alive.

    Args:
        device: the type of the device whose tensors count.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        #: Bytes that are alive, and the most since the last :meth:`reset`.
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def reset(self) -> None:
        """Begins a new peak, at what is alive."""
        self.peak = self.now

    def add(self, tensor: Tensor) -> None:
        """Counts the storage of a tensor, once."""
        storage = tensor.untyped_storage()
        if tensor.device.type != self.device or storage in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return result


class Peaks(NamedTuple):
    """The most bytes that are alive at once: in passes through the model, and in a step of the optimizer."""

    passes: float
    step: float


@dataclass(frozen=True)
class Footprint:
    """The peak memory of a Trainer as a function of its batch: ``fixed + b (a_0 + a_1 l + a_2 l^2)`` bytes.

    Args:
        fixed: bytes of weights, gradients and the optimizer's state.
        each: the coefficients ``a_0, a_1, a_2`` of a sequence, by its number of tokens.
        least: bytes in a step of the optimizer, whatever the batch.

    Example:
        >>> Footprint(2e9, (0.0, 4e6, 0.0), 3e9).bytes(batch=4, length=512)
        10192000000.0
    """

    fixed: float
    each: tuple[float, float, float]
    least: float

    def bytes(self, batch: float, length: float) -> float:
        """Returns the peak for ``batch`` sequences of ``length`` tokens at a time."""
        return max(self.least, self.fixed + batch * sum(a * length**k for k, a in enumerate(self.each)))

    def largest_batch(self, limit: float, length: float) -> int:
        """Returns the number of sequences of ``length`` tokens that fit into ``limit`` bytes; 0 if none does."""
        if self.bytes(1, length) > limit:
            return 0
        return int((limit - self.fixed) / sum(a * length**k for k, a in enumerate(self.each)))


def footprint(trainer: Trainer, batches: tuple[int, int], lengths: tuple[int, ...]) -> Footprint:
    """Measures how the peak of a Trainer's memory depends on its batch; the Trainer cannot be used afterwards.

    Args:
        trainer: fresh.
        batches: the smallest and the largest number of sequences.
        lengths: numbers of tokens, one to three, increasing.

    Raises:
        Exception: whatever a model raises that does not run on tensors without numbers.
    """
    low, high = batches if batches[0] < batches[1] else (batches[0], batches[0] + 1)
    with _Passes(trainer) as passes:
        passes.peaks(low, lengths[0])  # makes the optimizer's state
        below, above = passes.peaks(low, lengths[-1]), passes.peaks(high, lengths[-1])
        slope = (above.passes - below.passes) / (high - low)
        fixed = below.passes - low * slope
        others = [(passes.peaks(high, length).passes - fixed) / high for length in lengths[:-1]]
    powers = np.array([[float(length) ** k for k in range(len(lengths))] for length in lengths])
    a = [*map(float, np.linalg.solve(powers, np.array([*others, slope]))), 0.0, 0.0]
    return Footprint(fixed, (a[0], a[1], a[2]), max(below.step, above.step))


class _Passes:
    """Runs a Trainer's model, loss and optimizer on tensors without numbers, inside its ``with`` block."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer: Any = trainer
        self.device = trainer.args.device
        self.sample = sample_batch(trainer)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)  # a model may have constants of its own
        self.tally = Tally(self.device.type)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.mode)
            stack.enter_context(self.tally)
            self._prepare()
            self._stack = stack.pop_all()  # unless the model does not run so
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _prepare(self) -> None:
        trainer, model = self.trainer, self.trainer.model
        take_numbers_away(model, self.mode, self.device)
        model.train()
        if keeps_no_activations(trainer.args):
            newer = hasattr(model, "activation_checkpointing_enable")
            enable = model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable
            enable({"use_reentrant": False})  # the older kind runs a whole pass within the backward pass
        self.model = trainer.accelerator.prepare_model(model, device_placement=False)
        trainer.optimizer = None
        self.optimizer = trainer.create_optimizer()

    def peaks(self, batch: int, length: int) -> Peaks:
        """Measures a step with ``batch`` sequences of ``length`` tokens."""
        args, tally = self.trainer.args, self.tally
        inputs = {name: self._resized(value, batch, length) for name, value in self.sample.items()}
        tally.reset()
        for _ in range(min(2, args.gradient_accumulation_steps)):
            loss = self.trainer.compute_loss(self.model, dict(inputs))
            loss.backward()
            del loss
        passes = tally.peak
        tally.reset()
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        self.optimizer.step()
        self.model.zero_grad()
        return Peaks(passes, tally.peak)

    def _resized(self, value: Any, batch: int, length: int) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        tokens = length_of(self.sample)
        shape = [batch, *(length if size == tokens else size for size in value.shape[1:])]
        return torch.zeros(shape, dtype=value.dtype, device=self.device)


def keeps_no_activations(args: TrainingArguments) -> bool:
    """True where activations are computed again for the gradient, under either of the argument's names."""
    newer = getattr(args, "activation_checkpointing", None)
    return bool(args.gradient_checkpointing if newer is None else newer)


def sample_batch(trainer: Trainer) -> dict[str, Any]:
    """Takes the longest of the first batches of the training data."""
    args = trainer.args
    workers, args.dataloader_num_workers = args.dataloader_num_workers, 0
    persistent, args.dataloader_persistent_workers = args.dataloader_persistent_workers, False
    prefetch, args.dataloader_prefetch_factor = args.dataloader_prefetch_factor, None
    try:
        batches = list(islice(iter(trainer.get_train_dataloader()), NUM_BATCHES))
    finally:
        args.dataloader_num_workers, args.dataloader_persistent_workers = workers, persistent
        args.dataloader_prefetch_factor = prefetch
    return max((dict(batch) for batch in batches), key=length_of)


def length_of(batch: Mapping[str, Any]) -> int:
    """Returns the number of tokens of a batch's sequences; 1 if it has none."""
    ids = batch.get("input_ids")
    wide = [v.shape[1] for v in batch.values() if isinstance(v, Tensor) and v.dim() > 1]
    return int(ids.shape[1]) if isinstance(ids, Tensor) and ids.dim() > 1 else max(wide, default=1)


def take_numbers_away(model: torch.nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Puts tensors without numbers in the place of a model's parameters and buffers; tied ones stay tied."""
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            fakes[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return fakes[id(tensor)]

    for tensor in model.parameters():
        tensor.grad = None
    with mode:
        for module in model.modules():
            tensors: list[dict[str, Any]] = [module._parameters, module._buffers]
            for own in tensors:
                own.update({name: fake(tensor) for name, tensor in own.items() if tensor is not None})


def first_principles(trainer: Trainer, batch: float, length: float) -> float:
    """Estimates the peak bytes of a training step from a model's sizes alone, for what :func:`footprint` cannot run.

    The weights, the gradients and the two moments of Adam count as in Rajbhandari et al. (2020, section 3.1). A layer
    keeps ``l b h (34 + 5 a l / h)`` bytes of activations in 16 bit, as in Korthikanti et al. (2022, equation 2), and
    twice as many in 32 bit. The second term is left out where attention keeps no matrix of weights. With gradient
    checkpointing, layers keep their inputs, and one is there as a whole. A language model has the logits, their
    logarithms and their gradients, in 32 bit.

    Args:
        trainer: of a transformer whose configuration has the usual names.
        batch: sequences at a time.
        length: tokens of each.
    """
    model: Any = trainer.model
    config, sizes = model.config, sizes_of(model)
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    heads, vocabulary = int(config.num_attention_heads), int(getattr(config, "vocab_size", 0))
    matrix = getattr(config, "_attn_implementation", None) == "eager"
    states = sizes["model_bytes"] + sizes["num_trainable"] * 12
    halves = 1.0 if trainer.args.bf16 or trainer.args.fp16 else 2.0
    layer = activation_bytes(batch, length, hidden, heads if matrix else 0) * halves
    passed_on = 2 * batch * length * hidden * halves
    activations = layers * passed_on + layer if keeps_no_activations(trainer.args) else layers * layer
    is_language_model = any(name in type(model).__name__ for name in ("LMHead", "CausalLM", "MaskedLM"))
    logits = 3 * 4.0 * batch * length * vocabulary if is_language_model else 0.0
    return states + activations + logits


def activation_bytes(batch: float, length: float, hidden: int, heads: int) -> float:
    """Returns the bytes that one transformer layer keeps for its gradient, in 16 bit (Korthikanti et al., 2022, eq. 2).

    Example:
        >>> activation_bytes(1, 2048, 12288, 96) / (2048 * 12288)  # GPT-3: 34 + 80, as published
        114.0
    """
    return length * batch * hidden * (34 + 5 * heads * length / hidden)


def as_measured(computed: float, device: torch.device) -> float:
    """Returns the bytes by which a process grows on a device whose tensors take the computed number."""
    return CPU_MORE + CPU_FACTOR * computed if device.type == "cpu" else computed


def as_computed(measured: float, device: torch.device) -> float:
    """Returns what :func:`as_measured` takes to give a number of bytes."""
    return (measured - CPU_MORE) / CPU_FACTOR if device.type == "cpu" else measured


def memory_of_device(device: torch.device) -> float:
    """Returns the bytes that a process may take on a device: all of a GPU, what is available of a machine's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return float(psutil.virtual_memory().available)
