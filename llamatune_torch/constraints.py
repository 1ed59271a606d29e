"""Limits on what evaluations measure besides the score: ``Constraint("memory_gb", upper=8)``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llamatune_torch.errors import ConstraintError
from llamatune_torch.parameter_base import describe, read_comparison, to_python

# Spellings of limits: {"memory_gb": "<= 8"}, {"latency_ms": [">= 1", "<= 20"]}, or Constraints.
Constraints = Mapping[str, Any] | Iterable["Constraint"]


@dataclass(frozen=True)
class Constraint:
    """A limit on an outcome of an evaluation (``Outcome.outcomes``), such as memory, seconds or latency.

    Args:
        name: the outcome's name.
        lower, upper: the bounds, both included; at least one of them.

    Raises:
        ConstraintError: the name is no text, neither bound is given, or they are no finite numbers in order.

    Example:
        >>> limit = Constraint("memory_gb", upper=8)
        >>> str(limit), limit.is_kept({"memory_gb": 7.5}), limit.is_kept({})
        ('memory_gb <= 8', True, False)
    """

    name: str
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        for field in ("name", "lower", "upper"):  # a frozen dataclass sets its fields this way
            object.__setattr__(self, field, to_python(getattr(self, field)))
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise ConstraintError(f"a constraint needs the name of an outcome, but got {describe(self.name)}")
        bounds = [bound for bound in (self.lower, self.upper) if bound is not None]
        for bound in bounds:
            if not isinstance(bound, (int, float)) or isinstance(bound, bool) or not math.isfinite(bound):
                raise ConstraintError(f"constraint {self.name!r}: a bound must be a finite number, but got {bound!r}")
        if not bounds:
            raise ConstraintError(f"constraint {self.name!r} must have a bound: upper=8, or lower=0.5")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ConstraintError(
                f"constraint {self.name!r}: lower <= upper must hold, but got {self.lower!r} and {self.upper!r}"
            )

    def value_in(self, outcomes: Mapping[str, float]) -> float:
        """The outcome that is limited; nan where it was not measured."""
        return float(outcomes.get(self.name, math.nan))

    def is_kept(self, outcomes: Mapping[str, float]) -> bool:
        """True if the outcome was measured and lies within the bounds."""
        value = self.value_in(outcomes)
        low, high = -math.inf if self.lower is None else self.lower, math.inf if self.upper is None else self.upper
        return low <= value <= high

    def excess(self, value: float) -> float:
        """The distance of a value from the nearer bound: positive outside, negative inside, nan for nan."""
        below = -math.inf if self.lower is None else self.lower - value
        above = -math.inf if self.upper is None else value - self.upper
        return math.nan if math.isnan(value) else max(below, above)

    def __str__(self) -> str:
        if self.lower is None:
            return f"{self.name} <= {self.upper:g}"
        if self.upper is None:
            return f"{self.name} >= {self.lower:g}"
        return f"{self.lower:g} <= {self.name} <= {self.upper:g}"


@dataclass(frozen=True)
class Estimate:
    """A belief about an outcome of some parameters, before anything is measured, such as a computed memory.

    Args:
        name: the outcome's name.
        params: canonical parameters.
        value: a number above zero; the search learns by what factor it is off.

    Raises:
        ConstraintError: the value is none.

    Example:
        >>> Estimate("memory_gb", {"batch": 8}, 5.2).value
        5.2
    """

    name: str
    params: Mapping[str, Any]
    value: float

    def __post_init__(self) -> None:
        value = to_python(self.value)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConstraintError(f"an estimate of {self.name!r} must be a number above zero, but got {value!r}")
        object.__setattr__(self, "value", float(value))


def read_constraints(given: Constraints | None) -> tuple[Constraint, ...]:
    """Reads limits in any of their spellings; the result is in the order of their names.

    Raises:
        ConstraintError: a limit is none of these, or two are on the same outcome.

    Example:
        >>> [str(limit) for limit in read_constraints({"seconds": "<= 3600", "latency_ms": [">= 1", "<= 20"]})]
        ['1 <= latency_ms <= 20', 'seconds <= 3600']
    """
    if given is None:
        return ()
    rule = 'constraints must be Constraints, or a dict such as {"memory_gb": "<= 8"}'
    if isinstance(given, Mapping):
        read = [_spelled(name, limit) for name, limit in given.items()]
    elif isinstance(given, (list, tuple)) and all(isinstance(limit, Constraint) for limit in given):
        read = list(given)
    else:
        raise ConstraintError(f"{rule}, but got {describe(given)}")
    names = [limit.name for limit in read]
    if len(set(names)) < len(names):
        raise ConstraintError(f"each outcome can have one constraint, but got {', '.join(map(str, read))}")
    return tuple(sorted(read, key=lambda limit: limit.name))


def _spelled(name: str, limit: Any) -> Constraint:
    bounds: dict[str, float] = {}
    for text in limit if isinstance(limit, (list, tuple)) else [limit]:
        comparison = read_comparison(text)
        side = {"<=": "upper", ">=": "lower"}.get(comparison.operator) if comparison else None
        if comparison is None or side is None or side in bounds:
            raise ConstraintError(
                f'constraint {name!r} must be spelled "<= 8", ">= 0.5" or [">= 1", "<= 20"], but got {describe(limit)}'
            )
        bounds[side] = comparison.number
    return Constraint(name, **bounds)
