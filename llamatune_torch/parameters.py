"""Hyperparameters as people write them: ``Real``, ``Integer``, ``Categorical``.

Every parameter owns one column of the unit cube, and its own way there and back:

- ``Real``: affine, or affine in the logarithm; 0 is ``low`` and 1 is ``high``, exactly.
- ``Integer``: the value's cell of equal (logarithmic) width; uniform draws are unbiased after rounding.
- ``Categorical``: the ``i``-th of ``k`` choices sits at ``(i + 1/2) / k``, whether ordered or not; only an
  ordered one means anything by that position, and the surrogate is told which is which.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from llamatune_torch.errors import ParamsError, SpaceError

Prior = Literal["uniform", "log-uniform"]

# Integers beyond this would share a cell of the unit cube with their neighbours in double precision.
MAX_INTEGER = 10**12


class Parameter(ABC):
    """One hyperparameter: a set of values and its map to one column of the unit cube.

    ``size`` is the number of values, ``None`` for a continuum. A parameter with a ``size`` also numbers its
    values ``0 .. size - 1``: ``index_of`` and ``coordinate`` translate between numbers and coordinates.
    """

    #: Whether neighbouring coordinates mean neighbouring values (false for unordered choices only).
    ordered: bool = True

    @property
    @abstractmethod
    def size(self) -> int | None:
        """How many values there are; ``None`` if they form a continuum."""

    @abstractmethod
    def validate(self, value: Any) -> Any:
        """The value in its canonical form.

        Raises:
            ParamsError: the value is not one of this parameter's.
        """

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """Coordinates in [0, 1] of canonical values, shape ``n``, float64."""

    @abstractmethod
    def decode(self, U: Tensor) -> list[Any]:
        """The values at the coordinates ``U`` in [0, 1], shape ``n``."""

    def index_of(self, U: Tensor) -> Tensor:
        """The number of the value whose cell holds each coordinate; int64, the shape of ``U``."""
        raise NotImplementedError(f"{type(self).__name__} is a continuum")

    def coordinate(self, index: Tensor) -> Tensor:
        """The coordinate of the value with each number; float64, the shape of ``index``."""
        raise NotImplementedError(f"{type(self).__name__} is a continuum")

    def snap(self, U: Tensor) -> Tensor:
        """The nearest coordinates that stand for a value; the identity on a continuum."""
        return U if self.size is None else self.coordinate(self.index_of(U)).to(U)


@dataclass(frozen=True)
class Real(Parameter):
    """A real number in ``[low, high]``, both ends included.

    ``prior="log-uniform"`` spreads the search evenly over orders of magnitude (learning rates). Values are
    kept to 12 significant digits (of the width, for a uniform prior), so that they survive the way to the
    unit cube and back.

    Raises:
        SpaceError: ``low < high`` does not hold, a bound is not finite, or a log prior meets ``low <= 0``.

    Example:
        >>> Real(1e-5, 1e-3, prior="log-uniform").decode(torch.tensor([0.0, 0.5, 1.0]))
        [1e-05, 0.0001, 0.001]
    """

    low: float
    high: float
    prior: Prior = "uniform"

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if not _is_number(bound) or not _is_finite(bound):
                raise SpaceError(f"bounds must be finite numbers, but got {self!r}")
        if not self.low < self.high:
            constant = f"; a constant is written Categorical([{self.low!r}])" if self.low == self.high else ""
            raise SpaceError(f"low < high must hold, but got {self!r}{constant}")
        if not math.isfinite(float(self.high) - float(self.low)):
            raise SpaceError(f"high - low must be finite, but got {self!r}")
        _check_prior(self, self.prior, self.low > 0, "low > 0")
        start, end = self._ends().tolist()
        if not start < end:
            raise SpaceError(f"the logarithms of low and high must differ, but got {self!r}")

    @property
    def size(self) -> None:
        return None

    def validate(self, value: Any) -> float:
        if not _is_number(value):
            raise ParamsError(f"must be a number, but got {show(value)}")
        if not self.low <= value <= self.high:  # also refuses nan
            raise ParamsError(f"must lie in [{self.low}, {self.high}], but got {value!r}")
        return self._canonical(float(value))

    def encode(self, values: Sequence[float]) -> Tensor:
        low, high = self._ends()
        scaled = self._scale(torch.tensor(values, dtype=torch.float64))
        coordinates: Tensor = (scaled - low) / (high - low)
        return coordinates.clamp(0.0, 1.0)

    def decode(self, U: Tensor) -> list[float]:
        low, high = self._ends()
        scaled = low + (high - low) * U.to(low)
        values = scaled.exp() if self.prior == "log-uniform" else scaled
        return [
            float(self.low) if u <= 0 else float(self.high) if u >= 1 else self._canonical(value)
            for u, value in zip(U.tolist(), values.tolist(), strict=True)
        ]

    def _scale(self, values: Tensor) -> Tensor:
        return values.log() if self.prior == "log-uniform" else values

    def _ends(self) -> Tensor:
        return self._scale(torch.tensor([self.low, self.high], dtype=torch.float64))

    def _canonical(self, value: float) -> float:
        low, high = float(self.low), float(self.high)
        if low < value < high:
            rounded = self._rounded(value)
            # So close to a bound that their coordinates may coincide: then it is the bound.
            value = low if rounded == self._rounded(low) else high if rounded == self._rounded(high) else rounded
        return min(max(value, low), high)

    def _rounded(self, value: float) -> float:
        if self.prior == "log-uniform":
            return float(f"{value:.12g}")
        # A grid of 1e-12 of the width, but never finer than what doubles of this magnitude resolve.
        width, magnitude = self.high - self.low, max(abs(self.low), abs(self.high))
        return round(value, min(12 - _exponent(width), 14 - _exponent(magnitude)))


@dataclass(frozen=True)
class Integer(Parameter):
    """An integer in ``{low, ..., high}``, both ends included.

    With ``prior="uniform"`` every value has the same share of the unit interval; with ``"log-uniform"`` the
    value ``v`` has the share of ``[v - 1/2, v + 1/2]`` on a logarithmic axis.

    Raises:
        SpaceError: ``low < high`` does not hold, a bound is no integer or beyond ``MAX_INTEGER``, or a log
            prior meets ``low < 1``.

    Example:
        >>> Integer(8, 32).decode(torch.tensor([0.0, 0.5, 1.0]))
        [8, 20, 32]
    """

    low: int
    high: int
    prior: Prior = "uniform"

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if not _is_integer(bound):
                raise SpaceError(f"bounds must be integers, but got {self!r}")
            if abs(bound) > MAX_INTEGER:
                raise SpaceError(f"bounds must not exceed {MAX_INTEGER} in size, but got {self!r}")
        if not self.low < self.high:
            constant = f"; a constant is written Categorical([{self.low!r}])" if self.low == self.high else ""
            raise SpaceError(f"low < high must hold, but got {self!r}{constant}")
        _check_prior(self, self.prior, self.low >= 1, "low >= 1")

    @property
    def size(self) -> int:
        return int(self.high) - int(self.low) + 1

    def validate(self, value: Any) -> int:
        if not _is_integer(value):
            raise ParamsError(f"must be an integer, but got {show(value)}")
        if not self.low <= value <= self.high:
            raise ParamsError(f"must lie in [{self.low}, {self.high}], but got {value!r}")
        return int(value)

    def encode(self, values: Sequence[int]) -> Tensor:
        return self.coordinate(torch.tensor(values, dtype=torch.int64) - int(self.low))

    def decode(self, U: Tensor) -> list[int]:
        return [int(self.low) + int(i) for i in self.index_of(U).tolist()]

    def index_of(self, U: Tensor) -> Tensor:
        U = U.to(torch.float64)
        if self.prior == "log-uniform":
            start, end = self._log_ends()
            index = (start + (end - start) * U).exp().round() - int(self.low)
        else:
            index = (U * self.size).floor()
        return index.clamp(0, self.size - 1).to(torch.int64)

    def coordinate(self, index: Tensor) -> Tensor:
        if self.prior == "log-uniform":
            start, end = self._log_ends()
            return ((index + int(self.low)).to(torch.float64).log() - start) / (end - start)
        return (index.to(torch.float64) + 0.5) / self.size

    def _log_ends(self) -> tuple[float, float]:
        return math.log(self.low - 0.5), math.log(self.high + 0.5)


@dataclass(frozen=True, init=False, eq=False)
class Categorical(Parameter):
    """One of a list of choices: strings, numbers, booleans or ``None``, mixed as you like.

    ``ordered=True`` says that neighbours in the list are alike (``["small", "base", "large"]``), which the
    surrogate then uses. ``1``, ``1.0`` and ``True`` are three different choices.

    Raises:
        SpaceError: no choices, the same one twice, or one that is no JSON scalar.
    """

    choices: tuple[Any, ...]
    ordered: bool

    def __init__(self, choices: Sequence[Any], ordered: bool = False) -> None:
        if isinstance(choices, str) or not isinstance(choices, Sequence):
            raise SpaceError(f"choices must be a list or tuple, but got {show(choices)}")
        scalars = tuple(plain(choice) for choice in choices)
        # A frozen dataclass sets its fields this way; `choices` is stored as a tuple of plain values.
        object.__setattr__(self, "choices", scalars)
        object.__setattr__(self, "ordered", bool(ordered))
        if not scalars:
            raise SpaceError("choices must not be empty, but got []")
        for choice in scalars:
            if not isinstance(choice, (str, bool, int, float, type(None))):
                raise SpaceError(f"choices must be JSON scalars, but got {show(choice)}")
            if isinstance(choice, float) and not math.isfinite(choice):
                raise SpaceError(f"choices must be finite, but got {choice!r}")
        if len(self._numbers()) < len(scalars):
            raise SpaceError(f"choices must differ from each other, but got {list(scalars)!r}")

    @property
    def size(self) -> int:
        return len(self.choices)

    def validate(self, value: Any) -> Any:
        value = plain(value)
        try:
            return self.choices[self._numbers()[_typed(value)]]
        except (KeyError, TypeError):  # TypeError: a list or another unhashable value
            raise ParamsError(f"must be one of {list(self.choices)!r}, but got {show(value)}") from None

    def encode(self, values: Sequence[Any]) -> Tensor:
        numbers = self._numbers()
        return self.coordinate(torch.tensor([numbers[_typed(v)] for v in values]))

    def decode(self, U: Tensor) -> list[Any]:
        return [self.choices[i] for i in self.index_of(U).tolist()]

    def index_of(self, U: Tensor) -> Tensor:
        return (U * self.size).floor().clamp(0, self.size - 1).to(torch.int64)

    def coordinate(self, index: Tensor) -> Tensor:
        return (index.to(torch.float64) + 0.5) / self.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Categorical) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> Hashable:
        return tuple(_typed(choice) for choice in self.choices), self.ordered

    def _numbers(self) -> dict[Hashable, int]:
        return {_typed(choice): i for i, choice in enumerate(self.choices)}


def _check_prior(parameter: Parameter, prior: str, has_logarithm: bool, rule: str) -> None:
    if prior not in ("uniform", "log-uniform"):
        raise SpaceError(f"prior must be 'uniform' or 'log-uniform', but got {parameter!r}")
    if prior == "log-uniform" and not has_logarithm:
        raise SpaceError(f"a log-uniform prior needs {rule}, but got {parameter!r}")


def plain(value: Any) -> Any:
    """A numpy or torch scalar as the Python value it holds; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value


def _is_number(value: Any) -> bool:
    value = plain(value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int too large for a float
        return False


def _is_integer(value: Any) -> bool:
    value = plain(value)
    return value.is_integer() if isinstance(value, float) else _is_number(value)


def _typed(value: Any) -> Hashable:
    """A key that tells ``1``, ``1.0`` and ``True`` apart."""
    return type(value), value


def _exponent(magnitude: float) -> int:
    return math.floor(math.log10(magnitude))


def show(value: Any) -> str:
    """A value and its type, for messages."""
    return f"{value!r} ({type(value).__name__})"
