"""Hyperparameters as people write them: ``Real``, ``Integer``, ``Categorical``.

Every parameter has one column of the unit cube, and its own map there and back:

- ``Real``: affine, or affine in the logarithm; 0 is ``low`` and 1 is ``high``, exactly.
- ``Integer``: the value's cell of equal (logarithmic) width; uniform draws are unbiased after rounding. With ``step``
  or ``powers_of``, the values are those only, in cells of equal width.
- ``Categorical``: see ``categorical.py``.

A number may have special values besides its range: "off" is a kind of its own (no dropout, no weight decay), not
merely the smallest value. Special values share the first quarter of the unit interval, in equal cells, and sit at
their centres; the range has the rest.

``when={"method": "lora"}`` or ``when={"rank": "> 0"}`` makes a parameter conditional; ``space.py`` says what follows
from that.

``belief=2e-4`` says that good values lie there, and ``belief=(2e-4, 0.3)`` how sure that is: the standard deviation,
in decades where the scale is logarithmic. It is a hint, not a bound: every value of the range may be tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from llamatune_torch.categorical import Categorical as Categorical
from llamatune_torch.errors import ParamsError, SpaceError
from llamatune_torch.hints import warn_if_wide
from llamatune_torch.number import SPECIAL_SHARE as SPECIAL_SHARE
from llamatune_torch.number import Number as Number
from llamatune_torch.number import Prior as Prior
from llamatune_torch.number import is_finite, is_number
from llamatune_torch.parameter_base import Bools, Floats, Ints, Parameter, describe, to_python

# Integers beyond this would share a cell of the unit cube with their neighbours in double precision.
MAX_INTEGER = 10**12

# A range of reals that holds fewer values, as they are rounded, is no continuum.
MIN_STEPS = 100


@dataclass(frozen=True, repr=False)
class Real(Number):
    """A real number in ``[low, high]``, both ends included, or one of the ``special`` values.

    ``prior="log-uniform"`` spreads the search evenly over orders of magnitude (learning rates). Values are
    kept to 12 significant digits, for a uniform prior to 12 digits of the width. So they survive the way to the
    unit cube and back.

    Args:
        low, high: the bounds.
        prior: "uniform", the default, or "log-uniform".
        special: values of a kind of their own, inside the range or not: ``Real(1e-4, 1, prior="log-uniform",
            special=[0.0])`` is a weight decay that may be off.
        when: ``{"method": "lora"}``, ``{"method": ["lora", "qlora"]}`` or ``{"rank": "> 0"}``: matters only then; see
            ``SearchSpace``.
        belief: a value that is believed to be good, or ``(value, spread)``. The spread is a standard deviation: in
            decades with a log-uniform prior (0.5 by default), else as a share of the range (0.25). It is part of the
            space: a stored study that is opened with another belief is another search, which ``extend=True`` accepts.

    Raises:
        SpaceError: ``low < high`` does not hold, or by rounding alone; a bound or special value is not finite; special
            values are not different; a log prior meets ``low <= 0``; a believed value is outside the range, or its
            spread is no number above zero.

    Warns:
        SpaceWarning: the range spans two decades or more, and no ``prior`` is given.

    Example:
        >>> Real(1e-5, 1e-3, prior="log-uniform").decode([0.0, 0.5, 1.0])
        [1e-05, 0.0001, 0.001]
        >>> Real(1e-5, 1e-3, prior="log-uniform", belief=(1e-4, 0.5)).belief_at()
        (0.5, 0.25)
    """

    def __post_init__(self) -> None:
        is_said = self.prior is not None
        self._settle(lambda value: is_number(value) and is_finite(value), "finite numbers", float)
        for bound in (self.low, self.high):
            if not is_number(bound) or not is_finite(bound):
                raise SpaceError(f"bounds must be finite numbers, but got {self!r}")
        if not self.low < self.high:
            constant = f"; a constant is written {self.low!r}" if self.low == self.high else ""
            raise SpaceError(f"low < high must hold, but got {self!r}{constant}")
        if not math.isfinite(float(self.high) - float(self.low)):
            raise SpaceError(f"high - low must be finite, but got {self!r}")
        _check_prior(self, self.prior, self.low > 0, "low > 0")
        start, end = self._ends().tolist()
        if not start < end:
            raise SpaceError(f"the logarithms of low and high must differ, but got {self!r}")
        if self.high - self.low < MIN_STEPS * min(self._grid(self.low), self._grid(self.high)):
            raise SpaceError(f"low and high must differ by more than values are rounded by, but got {self!r}")
        self._settle_belief(self.prior == "log-uniform")
        if not is_said:
            warn_if_wide(self.low, self.high, f"Real({self.low!r}, {self.high!r})")

    @property
    def size(self) -> None:
        return None

    def validate(self, value: Any) -> float:
        if not is_number(value):
            raise ParamsError(f"must be a number, but got {describe(value)}")
        if value in self.special:
            return self.special[self.special.index(value)]
        if not (self.low <= value <= self.high or self._is_rounded(value)):  # also refuses nan
            raise self._outside(value)
        return self._canonical(float(value))

    def encode(self, values: Sequence[float]) -> Floats:
        U = self._outer(self._places(values))
        if not self.special:
            return U
        number = np.array([self.special.index(v) if v in self.special else -1 for v in values], dtype=np.int64)
        return np.where(number < 0, U, self.special_coordinates()[number])

    def decode(self, U: ArrayLike) -> list[float]:
        U = np.asarray(U, dtype=np.float64)
        ordinary = self._ordinary(U)
        return [self.special[i] if i >= 0 else v for i, v in zip(self._cell(U).tolist(), ordinary, strict=True)]

    def belief_at(self) -> tuple[float, float] | None:
        if not isinstance(self.belief, tuple):
            return None
        value, spread = self.belief
        low, high = map(float, self._ends())
        width = spread * math.log(10) / (high - low) if self.prior == "log-uniform" else spread
        return self._believed_at(float(self._places([value])[0]), width)

    def special_of(self, U: Floats) -> Ints:
        number = self._cell(U)
        for i, place in enumerate(self._outer(self._places(self.special))):
            # A special value inside the range also has coordinates there, where `decode` rounds to it.
            near = (U >= SPECIAL_SHARE) & (np.abs(U - place) <= self._rounding())
            if self.low <= self.special[i] <= self.high and near.any():
                hit = [value == self.special[i] for value in self._ordinary(U[near])]
                number[near] = np.where(hit, i, number[near])
        return number

    def snap(self, U: Floats) -> Floats:
        if not self.special:
            return U
        number = self.special_of(U)
        return np.where(number < 0, U, self.special_coordinates()[number])

    def stands_for(self, U: Floats, values: Sequence[float]) -> Bools:
        """As for any parameter, but the ``values`` must be special ones."""
        return np.isin(self.special_of(U), [self.special.index(value) for value in values])

    def _places(self, values: Sequence[float]) -> Floats:
        """Places of values on the (logarithmic) way from ``low`` to ``high``, at most at its ends; in [0, 1]."""
        low, high = self._ends()
        inside = np.array(values, dtype=np.float64).clip(self.low, self.high)
        places: Floats = (self._scale(inside) - low) / (high - low)
        return places.clip(0.0, 1.0)

    def _ordinary(self, U: Floats) -> list[float]:
        """The values that the coordinates, shape ``n``, have in the ordinary range."""
        low, high = self._ends()
        inner = self._inner(U)
        scaled = low + (high - low) * inner
        values = np.exp(scaled) if self.prior == "log-uniform" else scaled
        return [
            self._canonical(self.low if u <= 0 else self.high if u >= 1 else value)
            for u, value in zip(inner.tolist(), values.tolist(), strict=True)
        ]

    def _scale(self, values: Floats) -> Floats:
        return np.log(values) if self.prior == "log-uniform" else values

    def _ends(self) -> Floats:
        return self._scale(np.array([self.low, self.high], dtype=np.float64))

    def _canonical(self, value: float) -> float:
        low, high = float(self.low), float(self.high)
        if low < value < high:
            rounded = self._rounded(value)
            # Next to a bound the coordinates of both may coincide: then the value is the bound.
            value = low if rounded == self._rounded(low) else high if rounded == self._rounded(high) else rounded
        return min(max(value, low), high) + 0.0  # of the two zeros, the one without a sign

    def _rounded(self, value: float) -> float:
        if self.prior == "log-uniform":
            return float(f"{value:.12g}")
        return round(value, self._decimals())

    def _decimals(self) -> int:
        # A grid of 1e-12 of the width, but never finer than what doubles of this magnitude resolve.
        width, magnitude = self.high - self.low, max(abs(self.low), abs(self.high))
        return min(12 - _exponent(width), 14 - _exponent(magnitude))

    def _is_rounded(self, value: float) -> bool:
        """True for a value that is outside by rounding alone, as exp(log(low)) may be; nan is not."""
        return bool(self.low - self._grid(self.low) <= value <= self.high + self._grid(self.high))

    def _grid(self, value: float) -> float:
        """The distance of a value from its neighbours, since values are rounded."""
        return abs(value) * 1e-12 if self.prior == "log-uniform" else math.pow(10.0, -self._decimals())

    def _rounding(self) -> float:
        """A bound on how far, in the unit interval, a coordinate and that of its rounded value are apart."""
        low, high = map(float, self._ends())
        grid = 1e-11 if self.prior == "log-uniform" else math.pow(10.0, -self._decimals())
        return max(1e-9, 2 * grid / (high - low))


@dataclass(frozen=True, repr=False)
class Integer(Number):
    """An integer in ``{low, ..., high}``, both ends included, or one of the ``special`` values.

    With ``prior="uniform"`` every value has the same share of the unit interval; with ``"log-uniform"`` the
    value ``v`` has the share of ``[v - 1/2, v + 1/2]`` on a logarithmic axis. The special values are numbered first,
    then the others in order.

    Args:
        low, high: the bounds.
        prior: "uniform", the default, or "log-uniform"; with ``step`` or ``powers_of`` it must be uniform.
        special: values of a kind of their own, inside the range or not: ``Integer(10, 1000, special=[0])``.
        when: ``{"method": "lora"}``, ``{"method": ["lora", "qlora"]}`` or ``{"rank": "> 0"}``: matters only then; see
            ``SearchSpace``.
        step: the distance between neighbouring values; ``Integer(8, 64, step=8)`` is 8, 16, ..., 64.
        powers_of: the base, if only its powers are values; ``Integer(1, 64, powers_of=2)`` is 1, 2, 4, ..., 64. They
            have equal shares, as on a logarithmic axis.
        belief: as of ``Real``; the spread of powers is in decades as well. It need be no value itself: 45 is possible
            between powers of 2.

    Raises:
        SpaceError: ``low < high`` does not hold; a bound or special value is no integer, or beyond ``MAX_INTEGER``;
            special values are not different; a log prior meets ``low < 1``; a bound is no value of its ``step`` or
            ``powers_of``; two of ``step``, ``powers_of`` and a log prior are given; or ``belief`` is none, as of
            ``Real``.

    Example:
        >>> Integer(8, 32).decode([0.0, 0.5, 1.0])
        [8, 20, 32]
        >>> Integer(1, 64, powers_of=2).decode([0.0, 0.5, 1.0])
        [1, 8, 64]
    """

    low: int
    high: int
    step: int = 1
    powers_of: int | None = None

    def __post_init__(self) -> None:
        self._settle(
            lambda value: _is_integer(value) and abs(value) <= MAX_INTEGER, f"integers within {MAX_INTEGER}", int
        )
        for bound in (self.low, self.high):
            if not _is_integer(bound):
                raise SpaceError(f"bounds must be integers, but got {self!r}")
            if abs(bound) > MAX_INTEGER:
                raise SpaceError(f"bounds must not exceed {MAX_INTEGER} in size, but got {self!r}")
        if not self.low < self.high:
            constant = f"; a constant is written {self.low!r}" if self.low == self.high else ""
            raise SpaceError(f"low < high must hold, but got {self!r}{constant}")
        _check_prior(self, self.prior, self.low >= 1, "low >= 1")
        self._check_grid()
        self._settle_belief(self.prior == "log-uniform" or self.powers_of is not None)

    def _check_grid(self) -> None:
        """Checks ``step`` and ``powers_of``, and that the bounds are values."""
        for name, least in (("step", 1), ("powers_of", 2)):
            given = to_python(getattr(self, name))
            if given is None and name == "powers_of":
                continue
            if not _is_integer(given) or given < least:
                raise SpaceError(f"{name} must be an integer >= {least}, but got {describe(given)}")
            object.__setattr__(self, name, int(given))
        if (self.step > 1) + (self.powers_of is not None) + (self.prior == "log-uniform") > 1:
            raise SpaceError(f"step, powers_of and a log-uniform prior exclude each other, but got {self!r}")
        if self.powers_of is not None:
            for bound in (self.low, self.high):
                nearest = _nearest_power(int(bound), self.powers_of)
                if nearest != bound:
                    rule = f"bounds must be powers of {self.powers_of}; the nearest to {bound} is {nearest}"
                    raise SpaceError(f"{rule}, but got {self!r}")
        elif beyond := (int(self.high) - int(self.low)) % self.step:
            below = int(self.high) - beyond
            nearest = below if 2 * beyond <= self.step and below > self.low else below + self.step
            raise SpaceError(
                f"high must be low plus a multiple of step={self.step}; the nearest is {nearest}, but got {self!r}"
            )

    @property
    def count(self) -> int:
        """The number of values in the range."""
        return (int(self.high) - int(self.low)) // self.step + 1 if self.powers_of is None else len(self._powers)

    @property
    def size(self) -> int:
        return self.count + len(self.special) - len(self._special_inside())

    def validate(self, value: Any) -> int:
        value = to_python(value)
        if not _is_integer(value):
            raise ParamsError(f"must be an integer, but got {describe(value)}")
        if value not in self.special:
            if not self.low <= value <= self.high:
                raise self._outside(value)
            if not self._is_on_grid(int(value)):
                rule = f"{self.low} plus a multiple of {self.step}"
                rule = rule if self.powers_of is None else f"a power of {self.powers_of}"
                raise ParamsError(f"must be {rule}, but got {value!r}")
        return int(value)

    def encode(self, values: Sequence[int]) -> Floats:
        return self.coordinate(self._index(np.array(values, dtype=np.int64)))

    def decode(self, U: ArrayLike) -> list[int]:
        values: list[int] = self._value(self.index_of(np.asarray(U, dtype=np.float64))).tolist()
        return values

    def index_of(self, U: Floats) -> Ints:
        U = np.asarray(U, dtype=np.float64)  # single precision would not do for a wide range
        inner, count = self._inner(U), self.count
        if self.prior == "log-uniform":
            start, end = self._log_ends()
            steps = np.exp(start + (end - start) * inner).round() - int(self.low)
        else:
            steps = np.floor(inner * count)
        index = self._index(self._at(steps.clip(0, count - 1).astype(np.int64)))
        return np.where(U < SPECIAL_SHARE, self._cell(U), index) if self.special else index

    def coordinate(self, index: Ints) -> Floats:
        values = self._value(index).clip(int(self.low), int(self.high))  # special ones may have no logarithm
        U = self._outer(self._inner_coordinate(values))
        if not self.special:
            return U
        centres = self.special_coordinates()
        return np.where(index < len(centres), centres[np.minimum(index, len(centres) - 1)], U)

    def special_of(self, U: Floats) -> Ints:
        index = self.index_of(U)
        return np.where(index < len(self.special), index, -1)

    def belief_at(self) -> tuple[float, float] | None:
        if not isinstance(self.belief, tuple):
            return None
        value, spread = self.belief
        if self.prior == "log-uniform":
            start, end = self._log_ends()
            return self._believed_at((math.log(value) - start) / (end - start), spread * math.log(10) / (end - start))
        if self.powers_of is not None:
            rank, cells = math.log(value / self.low, self.powers_of), spread / math.log10(self.powers_of)
        else:
            rank, cells = (value - self.low) / self.step, spread * (self.count - 1)
        return self._believed_at((rank + 0.5) / self.count, cells / self.count)

    def _inner_coordinate(self, values: Ints) -> Floats:
        """The centres of the values' cells in the ordinary range."""
        if self.prior == "log-uniform":
            start, end = self._log_ends()
            return (np.log(values) - start) / (end - start)
        return (self._rank(values) + 0.5) / self.count

    def values_in_range(self) -> list[int]:
        """All values but the special ones, ascending."""
        values: list[int] = self._at(np.arange(self.count)).tolist()
        return values

    @cached_property
    def _powers(self) -> Ints:
        """The values, if they are powers."""
        base = self.powers_of or 2
        powers = [base**i for i in range(MAX_INTEGER.bit_length())]
        return np.array([power for power in powers if self.low <= power <= self.high], dtype=np.int64)

    def _is_on_grid(self, value: int) -> bool:
        """True for a value in the range that ``step`` or ``powers_of`` allows."""
        if self.powers_of is not None:
            return value in self._powers
        return bool(self.low <= value <= self.high) and (value - int(self.low)) % self.step == 0

    def _rank(self, values: Ints) -> Ints:
        """The number of values in the range that are smaller than each of ``values``."""
        if self.powers_of is not None:
            return np.searchsorted(self._powers, values).astype(np.int64)
        return values - int(self.low) if self.step == 1 else (values - int(self.low)) // self.step

    def _at(self, rank: Ints) -> Ints:
        """The inverse of :meth:`_rank`."""
        if self.powers_of is not None:
            powers: Ints = self._powers[np.asarray(rank).clip(0, self.count - 1)]
            return powers
        return int(self.low) + rank * self.step

    def _special_inside(self) -> list[int]:
        """The special values that are also values of the range, ascending."""
        return sorted(int(value) for value in self.special if self._is_on_grid(int(value)))

    def _index(self, values: Ints) -> Ints:
        """The numbers of values: special ones first, then the others in order."""
        index = len(self.special) + self._rank(values)
        for value in self._special_inside():
            index = index - (values > value)
        for i, special in enumerate(self.special):
            index = np.where(values == special, i, index)
        return index

    def _value(self, index: Ints) -> Ints:
        """The inverse of :meth:`_index`."""
        rank = index - len(self.special)
        for inside in self._rank(np.array(self._special_inside(), dtype=np.int64)).tolist():
            rank = rank + (rank >= inside)
        values = self._at(rank)
        for i, special in enumerate(self.special):
            values = np.where(index == i, int(special), values)
        return values

    def _log_ends(self) -> tuple[float, float]:
        return math.log(self.low - 0.5), math.log(self.high + 0.5)


def _nearest_power(number: int, base: int) -> int:
    """The power of ``base`` that is nearest to a number, the smaller one of two."""
    power = 1
    while power * base <= number:
        power *= base
    return power if abs(number - power) <= abs(power * base - number) else power * base


def _check_prior(parameter: Parameter, prior: str | None, has_logarithm: bool, rule: str) -> None:
    if prior not in ("uniform", "log-uniform"):
        raise SpaceError(f"prior must be 'uniform' or 'log-uniform', but got {parameter!r}")
    if prior == "log-uniform" and not has_logarithm:
        raise SpaceError(f"a log-uniform prior needs {rule}, but got {parameter!r}")


def _is_integer(value: Any) -> bool:
    value = to_python(value)
    return value.is_integer() if isinstance(value, float) else is_number(value)


def _exponent(magnitude: float) -> int:
    return math.floor(math.log10(magnitude))
