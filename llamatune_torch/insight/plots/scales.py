"""Axes as plain numbers: where a value lies, and the few values that are named. No drawing.

Ranges may be as wide as double precision. So what lies beyond a scale is put at its end, and ticks are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from llamatune_torch.number import SPECIAL_SHARE, Number
from llamatune_torch.parameter_base import Parameter
from llamatune_torch.parameters import Integer
from llamatune_torch.tables import show_value
from llamatune_torch.text import printable
from llamatune_torch.trial import Direction

#: Characters of a label in a figure.
MAX_LABEL = 18
#: Values beyond it are put there: matplotlib computes with their differences.
HUGE = 1e100
#: Bad values further from the middle than so many times the distance of the best ones from it are put at the end.
REACH = 3.0


def label(value: Any, length: int = MAX_LABEL) -> str:
    """A text for a figure: short, on one line, and nothing in it is a formula to matplotlib."""
    text = printable(value if isinstance(value, str) else show_value(value)).replace("\n", " ").replace("\t", " ")
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return text.replace("$", r"\$")


@dataclass(frozen=True)
class Scale:
    """A linear axis from ``low`` to ``high``, and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The ticks as text, all with as many decimals as tell them apart."""
        gaps = [b - a for a, b in pairwise(self.ticks)]
        least, most = min(gaps, default=1.0), max(map(abs, self.ticks), default=0.0)
        if not 1e-4 <= most < 1e6:
            return [f"{tick:.3g}" for tick in self.ticks]
        for decimals in range(9):
            if all(abs(round(tick, decimals) - tick) <= 1e-3 * least for tick in self.ticks):
                break
        return [f"{tick:.{decimals}f}" for tick in self.ticks]

    def place(self, value: float) -> float:
        """The position of a value: its own, or the end that it lies beyond; nan for nan."""
        return value if math.isnan(value) else min(max(value, self.low), self.high)

    def holds(self, value: float) -> bool:
        """True if a value lies within the ends."""
        return self.low <= value <= self.high

    @classmethod
    def around(
        cls, values: Iterable[float], direction: Direction | None = None, margin: float = 0.06, most: int = 5
    ) -> Self:
        """The scale that holds the values, with ``most`` ticks; with a direction, without bad ones that hide others."""
        finite = sorted(min(max(value, -HUGE), HUGE) for value in values if math.isfinite(value))
        low, high = (finite[0], finite[-1]) if finite else (0.0, 1.0)
        if direction is not None and finite:
            middle = finite[len(finite) // 2]
            if direction == "minimize":
                high = min(high, middle + REACH * max(middle - low, _width_of(finite)))
            else:
                low = max(low, middle - REACH * max(high - middle, _width_of(finite)))
        least = 1e-6 * max(abs(low), abs(high)) or 1.0
        if high - low < least:
            low, high = low - least / 2, high + least / 2
        pad = margin * (high - low)
        return cls(low - pad, high + pad, nice(low - pad, high + pad, most))


def _width_of(ordered: Sequence[float]) -> float:
    """The distance between the quartiles."""
    return ordered[(3 * len(ordered)) // 4] - ordered[len(ordered) // 4]


def nice(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Round numbers within a range, at most so many, as 1, 2 or 5 times a power of ten apart.

    Example:
        >>> nice(0.0, 1.0)
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    width = high - low
    if not (math.isfinite(width) and width > 1e-9 * max(abs(low), abs(high)) and width > 1e-290):
        return (low, high) if low < high else (low,)
    power = 10.0 ** math.floor(math.log10(width / most))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return tuple(round(k * step, 12 - math.floor(math.log10(step))) + 0.0 for k in range(first, last + 1))
    return (low, high)


@dataclass(frozen=True)
class Ruler:
    """The axis of a parameter: the unit interval that the search sees, special values in its first quarter.

    Args:
        parameter: whose values are placed.
        most: the number of ticks at most.
    """

    parameter: Parameter
    most: int = 5

    def place(self, value: Any) -> float:
        """The position of a value in [0, 1]."""
        return float(self.parameter.encode([value])[0])

    @property
    def num_special(self) -> int:
        return len(self.parameter.special)

    @property
    def divide(self) -> float | None:
        """The position between special values and the range; ``None`` without special ones."""
        return SPECIAL_SHARE if self.num_special else None

    def ticks(self, length: int = MAX_LABEL, letter: float = 0.0) -> tuple[list[float], list[str]]:
        """The positions that are named, and their labels, none upon another.

        Args:
            length: characters of a label at most.
            letter: the width of a character, as a share of the axis, where labels stand side by side.
        """
        kept: list[tuple[float, str]] = []
        for value in self._values():
            place, text = self.place(value), label(value, length)
            widths = [letter * (len(text) + len(other) + 2) / 2 for _, other in kept]
            least = 0.5 / (self.most + 1)
            if all(abs(place - at) >= max(least, width) for (at, _), width in zip(kept, widths, strict=True)):
                kept.append((place, text))
        return [place for place, _ in kept], [text for _, text in kept]

    def _values(self) -> list[Any]:
        parameter = self.parameter
        if not isinstance(parameter, Number):
            choices = list(getattr(parameter, "choices", ()))
            step = max(1, math.ceil(len(choices) / (2 * self.most)))
            return choices[::step]
        low, high = parameter.low, parameter.high
        is_whole = isinstance(parameter, Integer)
        if self._is_log:
            found = [value for value in _decades(low, high, self.most) if not is_whole or value == int(value)]
        else:
            found = [min(max(value, low), high) for value in nice(low, high, self.most)]
        if is_whole:
            found = parameter.decode([self.place(int(value)) for value in found if value == int(value)])
        if len(found) < 2:
            found = [low, high]
        return [*parameter.special, *dict.fromkeys(found)]

    @property
    def _is_log(self) -> bool:
        return getattr(self.parameter, "prior", None) == "log-uniform" or bool(
            getattr(self.parameter, "powers_of", None)
        )


def _decades(low: float, high: float, most: int) -> list[float]:
    """Powers of ten within a range, or its ends where there are too few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 1:
        return [low, *(float(f"1e{k}") for k in range(first, last + 1) if low < float(f"1e{k}") < high), high]
    step = max(1, math.ceil((last - first + 1) / most))
    return [min(max(float(f"1e{k}"), low), high) for k in range(first, last + 1, step) if k > -308]
