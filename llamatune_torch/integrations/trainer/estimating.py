"""The memory of all configurations of a space, before any of them is trained.

The factory is called for some of them, and its Trainer's model is run on tensors without numbers (``memory.py``).
First comes one configuration with each parameter changed in turn: it shows which parameters matter to memory at all. A
parameter that is the batch size, or the number of tokens, is known by its values. Memory is computed for all of these
at once from two to four passes; any other combination that matters is run.

All of this happens in a process of its own. It may run out of memory, or be brought down by a model that does not like
such tensors. The factory itself is called in the ordinary way: on tensors without numbers it would take no memory, but
PEFT's models then damage that of the process (torch 2.13).
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import Trainer

from llamatune_torch.constraints import Estimate
from llamatune_torch.engine.estimates import points_to_estimate
from llamatune_torch.integrations.trainer.memory import (
    Footprint,
    as_measured,
    first_principles,
    footprint,
    keeps_no_activations,
    length_of,
    sample_batch,
)
from llamatune_torch.partial import is_complete
from llamatune_torch.runtime.process import TrialProcess, pickled
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Study
from llamatune_torch.trial import Outcome, Trial

logger = logging.getLogger(__name__)

SECONDS = 30.0  # for the estimates of a space
PATIENCE = 600.0  # seconds, after which a process that looks ahead is killed
NUM_LENGTHS = 3  # at which a footprint is measured: it is a parabola in the number of tokens
MORE_OF_A_KIND = 4  # batches and lengths for which one footprint is used, where footprints are few

#: Fields of a model's configuration whose value does not matter to memory, only that they are above zero.
_RATES = ("drop", "prob")


@dataclass(frozen=True)
class Estimated(Outcome):
    """The estimates of a space, and those of its first configuration for all batches.

    Args:
        estimates: of ``memory_gb``.
        footprint: of the first configuration; ``None`` where a formula stands in.
        batch, length: of the first configuration.
        seconds: that all of this took.
        formula: why a formula stands in for real passes, if it does.
    """

    estimates: tuple[Estimate, ...] = ()
    footprint: Footprint | None = None
    batch: int = 0
    length: int = 0
    seconds: float = 0.0
    formula: str = ""


@dataclass(frozen=True)
class Built:
    """A Trainer, and what of it matters to memory besides its batch and its length."""

    trainer: Trainer
    batch: int
    length: int
    kind: str
    device: torch.device


#: Bytes of a kind of configuration, for a batch of so many sequences of so many tokens.
Bytes = Callable[[float, float], float]


class Roles(NamedTuple):
    """The parameters that matter to memory.

    batch, length   the names of the batch size and of the number of tokens; "" if no parameter is that
    others          the names of the others, whose values make the kind of a configuration
    """

    batch: str
    length: str
    others: list[str]

    def kind_of(self, params: Params) -> str:
        """Returns the kind of a configuration."""
        return repr([params.get(name) for name in self.others])

    def size_of(self, params: Params, first: Built) -> tuple[int, int]:
        """Returns the batch and the length of a configuration; what is no parameter is as in the ``first`` one."""
        return params.get(self.batch, first.batch), params.get(self.length, first.length)


@dataclass
class MemoryEstimator:
    """An evaluation that estimates memory instead of training; ``trial.params`` is the first configuration.

    Args:
        trainer_factory: as of ``tune``.
        space: of the study, with the values of labels.
        seconds: after which it stops with what it has.
    """

    trainer_factory: Callable[[Params], Trainer]
    space: SearchSpace
    seconds: float = SECONDS

    def __call__(self, trial: Trial) -> Estimated:
        began = time.monotonic()
        self._deadline = began + self.seconds
        transformers.logging.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trials themselves will warn
            return self._estimate(trial.params, trial.seed, began)

    def _estimate(self, first: Params, seed: int, began: float) -> Estimated:
        points = [first, *points_to_estimate(self.space, seed)]
        built = self._build(first)
        roles = self._screen(points, built)
        sizes = [roles.size_of(point, built) for point in points]
        of_kinds: dict[str, Bytes] = {}
        of_first, formula = None, ""
        for point in points:
            kind = roles.kind_of(point)
            if kind in of_kinds or (time.monotonic() > self._deadline and of_kinds):
                continue
            other = built if point is first else self._built_or_none(point)
            if other is None:
                continue
            batches = [batch for batch, _ in sizes] if roles.batch else [other.batch]
            lengths = [length for _, length in sizes] if roles.length else [other.length]
            try:
                measured = footprint(other.trainer, (min(batches), max(batches)), _spread(lengths))
            except Exception as error:  # whatever a model does on tensors without numbers
                formula = f"{type(error).__name__}: {error}"
                of_kinds[kind] = partial(first_principles, self._build(point).trainer)
            else:
                of_kinds[kind] = measured.bytes
                of_first = measured if point is first else of_first
        found = [
            (params, of_kinds[kind](*roles.size_of(params, built))) for params, kind in _pair(points, roles, of_kinds)
        ]
        estimates = [Estimate("memory_gb", params, as_measured(size, built.device) / 1e9) for params, size in found]
        return Estimated(
            1.0,
            estimates=tuple(estimates),
            footprint=of_first,
            batch=built.batch,
            length=built.length,
            seconds=time.monotonic() - began,
            formula=formula,
        )

    def _build(self, params: Params) -> Built:
        transformers.set_seed(0)
        trainer = self.trainer_factory(self.space.values_of(params))
        length = length_of(sample_batch(trainer))
        return Built(
            trainer, int(trainer.args.per_device_train_batch_size), length, kind_of(trainer), trainer.args.device
        )

    def _built_or_none(self, params: Params) -> Built | None:
        """Builds a Trainer, unless the factory refuses these parameters; their trial will say why."""
        try:
            return self._build(params)
        except Exception as error:  # whatever a user's factory may raise
            logger.info("no estimate for %s: %s", params, error)
            return None

    def _screen(self, points: Sequence[Params], first: Built) -> Roles:
        """Finds the parameters that matter, and among them the batch size and the number of tokens."""
        relevant, seen = [], [(points[0], first)]
        for name in self.space.names:
            base = next((point for point in points if name in point), None)
            if base is None:
                continue
            for other in self._variations(base, name, points):
                if time.monotonic() > self._deadline - self.seconds / 2:
                    relevant.append(name)  # as far as is known
                    break
                before, after = first if base is points[0] else self._built_or_none(base), self._built_or_none(other)
                if before is None or after is None:
                    relevant.append(name)  # as far as is known
                    break
                seen += [(base, before), (other, after)]
                if (before.kind, before.batch, before.length) != (after.kind, after.batch, after.length):
                    relevant.append(name)
                    break
        batches = [n for n in relevant if all(params.get(n) == built.batch for params, built in seen)]
        lengths = [n for n in relevant if all(params.get(n) == built.length for params, built in seen)]
        batch, length = (batches or [""])[0], (lengths or [""])[0]
        return Roles(batch, length, [name for name in relevant if name not in (batch, length)])

    def _variations(self, base: Params, name: str, points: Sequence[Params]) -> list[Params]:
        """``base`` with each other choice of a parameter, or with the value that is farthest away."""
        space, column = self.space, self.space.names.index(name)
        x = space.encode(base)
        others = {repr(point[name]): space.encode(point)[column] for point in points if name in point}
        coordinates = [u for value, u in others.items() if value != repr(base[name])]
        if column not in space.categorical_columns:
            coordinates = sorted(coordinates, key=lambda u: -abs(u - x[column]))[:1]
        varied = []
        for u in coordinates:
            changed = x.copy()
            changed[column] = u
            varied.append(space.decode(changed))
        return [params for params in varied if space.keeps_rules(params)]


def first_params(study: Study) -> Params:
    """Returns the default, or else the first initial point that leaves nothing out, or else the middle of the space."""
    if study.space.default is not None:
        return dict(study.space.default)
    whole = (point for point in study.initial_points if is_complete(study.space, point))
    middle = study.space.decode(np.full(study.space.dim, 0.5))
    allowed = [middle] if study.space.keeps_rules(middle) else points_to_estimate(study.space, seed=0)
    return next(whole, allowed[0])


def run_apart(evaluate: Callable[[Trial], Outcome], params: Params, seed: int) -> Outcome:
    """Runs an evaluation of some parameters in a process of its own, before any trial.

    Raises:
        LlamaTuneError: the evaluation raised it; as ExecutorError, it cannot be sent to another process.
    """
    trial = Trial(0, params, seed, "initial")
    process = TrialProcess({}, fresh=True, timeout=PATIENCE)
    outcome = process.run(pickled(evaluate, trial), lambda kind, content: None)
    if isinstance(outcome, Outcome):
        return outcome
    raise outcome


def kind_of(trainer: Trainer) -> str:
    """Describes all of a Trainer that matters to memory, besides its batch and the length of its sequences."""
    model: Any = trainer.model
    args = trainer.args
    weights = [(tuple(p.shape), p.dtype, p.requires_grad) for p in model.parameters()]
    config = model.config.to_dict() if hasattr(getattr(model, "config", None), "to_dict") else {}
    config = {key: bool(value) if any(word in key for word in _RATES) else value for key, value in config.items()}
    rates = sorted({module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout)})
    arguments = (args.bf16, args.fp16, args.optim, keeps_no_activations(args), args.gradient_accumulation_steps > 1)
    return repr((weights, sorted(config.items(), key=str), rates, arguments, bool(args.max_grad_norm)))


def _spread(lengths: Sequence[int]) -> tuple[int, ...]:
    low, high = min(lengths), max(lengths)
    return tuple(sorted({low, (low + high) // 2, high}))[-NUM_LENGTHS:]


def _pair(points: Sequence[Params], roles: Roles, known: Mapping[str, Bytes]) -> Iterator[tuple[Params, str]]:
    """Pairs points with their kind, where that is known; where few are, other points take the values of one."""
    kinds: dict[str, Params] = {}
    for point in points:
        kind = roles.kind_of(point)
        if kind in known:
            kinds.setdefault(kind, point)
            yield point, kind
    left = [point for point in points if roles.kind_of(point) not in known]
    for i, point in enumerate(left[: MORE_OF_A_KIND * len(kinds)]):
        kind, like = list(kinds.items())[i % len(kinds)]
        params = {**point, **{name: like[name] for name in roles.others if name in like}}
        if params.keys() == like.keys():
            yield params, kind
