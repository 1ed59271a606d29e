"""The base of ``Real`` and ``Integer``: a range and its scale, special values, a user's belief."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

from llamatune_torch.errors import ParamsError, SpaceError
from llamatune_torch.hints import refuse_misnamed
from llamatune_torch.parameter_base import Floats, Ints, Parameter, conditions, describe, to_python

Prior = Literal["uniform", "log-uniform"]

# The share of the unit interval that special values have. A quarter, because of four points of a Sobol sequence, from a
# multiple of four on, one falls into each quarter: an initial design visits a special value for certain.
SPECIAL_SHARE = 0.25

# How far off a belief may well be: in decades on a logarithmic scale, else as a share of the range. Recorded searches
# suffered most from beliefs that were too sure.
SPREAD_DECADES = 0.5
SPREAD_SHARE = 0.25

#: A believed value, or that and its spread.
Belief = float | tuple[float, float]


@dataclass(frozen=True, repr=False)
class Number(Parameter):
    """The base of ``Real`` and ``Integer``: a range, its scale, and special values."""

    low: float
    high: float
    prior: Prior | None = None  # "uniform", which is what a number without one gets
    special: Sequence[float] = ()
    when: Mapping[str, Any] = field(default_factory=dict, hash=False)
    belief: Belief | None = field(default=None, kw_only=True)  # a value and its spread, once it is settled

    def __new__(cls, *args: Any, **named: Any) -> Self:
        refuse_misnamed(cls.__name__, named)
        return super().__new__(cls)

    def special_coordinates(self) -> Floats:
        """The coordinates of the special values, in order."""
        return (np.arange(len(self.special)) + 0.5) * SPECIAL_SHARE / max(len(self.special), 1)

    def _cell(self, U: Floats) -> Ints:
        """The number of the special value whose cell holds each coordinate, -1 beyond the special quarter."""
        if not self.special:
            return np.full(np.shape(U), -1)
        cell = np.floor(U * (len(self.special) / SPECIAL_SHARE)).clip(min=0)
        return np.where(U < SPECIAL_SHARE, cell, -1.0).astype(np.int64)

    def _inner(self, U: Floats) -> Floats:
        """Coordinates within the ordinary range, from ordinary coordinates of the unit interval."""
        return ((U - SPECIAL_SHARE) / (1 - SPECIAL_SHARE)).clip(0.0, 1.0) if self.special else U

    def _outer(self, U: Floats) -> Floats:
        """The inverse of :meth:`_inner`."""
        return SPECIAL_SHARE + (1 - SPECIAL_SHARE) * U if self.special else U

    def _settle(self, is_value: Callable[[Any], bool], kind: str, convert: Callable[[Any], float]) -> None:
        """Checks ``special`` and ``when``, and stores all fields in canonical form."""
        # A frozen dataclass sets its fields this way.
        for name in ("low", "high", "prior"):
            object.__setattr__(self, name, to_python(getattr(self, name)))
        if self.prior is None:
            object.__setattr__(self, "prior", "uniform")
        if isinstance(self.special, str) or not isinstance(self.special, Sequence):
            raise SpaceError(f"special must be a list of values, but got {describe(self.special)}")
        for value in self.special:
            if not is_value(value):
                raise SpaceError(f"special values must be {kind}, but got {describe(value)}")
        special = tuple(convert(to_python(value)) for value in self.special)
        if len(set(special)) < len(special):
            raise SpaceError(f"special values must differ from each other, but got {list(special)!r}")
        object.__setattr__(self, "special", special)
        object.__setattr__(self, "when", conditions(self.when))

    def _settle_belief(self, is_logarithmic: bool) -> None:
        """Checks ``belief``, whose range is known to be one, and stores it as a value and its spread."""
        if self.belief is None:
            return
        given: Any = self.belief
        pair = tuple(given) if isinstance(given, (tuple, list)) else (given, None)
        if len(pair) != 2:
            raise SpaceError(f"belief must be a value, or a value and its spread, but got {describe(given)}")
        value = to_python(pair[0])
        spread = to_python(pair[1])
        if spread is None:
            spread = SPREAD_DECADES if is_logarithmic else SPREAD_SHARE
        if not is_number(value) or not self.low <= value <= self.high:
            raise SpaceError(f"a believed value must lie in [{self.low}, {self.high}], but got {describe(value)}")
        if not is_number(spread) or not (is_finite(spread) and spread > 0):
            unit = "decades" if is_logarithmic else "shares of the range"
            raise SpaceError(
                f"the spread of a belief must be a finite number of {unit} > 0, but got {describe(spread)}"
            )
        object.__setattr__(self, "belief", (float(value), float(spread)))

    def _believed_at(self, centre: float, spread: float) -> tuple[float, float]:
        """A belief on the unit interval, from one on the ordinary range."""
        share = 1 - SPECIAL_SHARE if self.special else 1.0
        return float(self._outer(np.array(centre))), share * spread

    def default_near(self, value: Any) -> list[Any]:
        if known := super().default_near(value):
            return known
        if self.belief is None and is_number(value):
            return replace(self, belief=min(max(to_python(value), self.low), self.high)).default_near(value)
        believed = self.belief_at()
        return [] if believed is None else self.decode(self.snap(np.array([believed[0]])))

    def _outside(self, value: float) -> ParamsError:
        besides = f" or be one of the special values {list(self.special)}" if self.special else ""
        return ParamsError(f"must lie in [{self.low}, {self.high}]{besides}, but got {value!r}")


def is_number(value: Any) -> bool:
    """True for a number, of Python or a library, that is no boolean."""
    value = to_python(value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(number: float) -> bool:
    """True for a number that a float can hold, other than infinity and nan."""
    try:
        return math.isfinite(number)
    except OverflowError:  # an int too large for a float
        return False
