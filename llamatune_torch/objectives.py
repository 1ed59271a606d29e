"""Objectives beside each other: ``{"eval_accuracy": "maximize", "latency_ms": "minimize"}``, and which trials are best.

One trial dominates another if it is no worse in any objective, and better in one. The Pareto front is made of the
trials that none dominates: of these, somebody has to choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from llamatune_torch.errors import ObjectiveError
from llamatune_torch.parameter_base import describe, to_python
from llamatune_torch.trial import Direction

# Spellings: {"latency_ms": "minimize"}, with a reference {"latency_ms": ("minimize", 50)}, or Objectives.
Objectives = Mapping[str, Any] | Iterable["Objective"]


@dataclass(frozen=True)
class Objective:
    """One objective of several.

    Args:
        name: of an outcome (``Outcome.outcomes``); of the first objective, the name of the value itself.
        direction: "maximize" or "minimize".
        reference: the worst value that is of any use. The search looks for trials beyond it, and the hypervolume is
            measured from it. By default it is a little worse than the worst value on the Pareto front.

    Raises:
        ObjectiveError: the name is no text, the direction is neither, or the reference is no finite number.

    Example:
        >>> Objective("latency_ms", "minimize", reference=50).signed(20.0)
        -20.0
    """

    name: str
    direction: Direction
    reference: float | None = None

    def __post_init__(self) -> None:
        for field in ("name", "direction", "reference"):  # a frozen dataclass sets its fields this way
            object.__setattr__(self, field, to_python(getattr(self, field)))
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise ObjectiveError(f"an objective needs the name of an outcome, but got {describe(self.name)}")
        if self.direction not in get_args(Direction):
            raise ObjectiveError(
                f"objective {self.name!r} must be 'maximize' or 'minimize', but got {describe(self.direction)}"
            )
        number = isinstance(self.reference, (int, float)) and not isinstance(self.reference, bool)
        if self.reference is not None and not (number and math.isfinite(self.reference)):
            raise ObjectiveError(
                f"objective {self.name!r}: a reference must be a finite number, but got {describe(self.reference)}"
            )

    def signed(self, value: float) -> float:
        """The value with the sign with which larger is better."""
        return value if self.direction == "maximize" else -value

    def __str__(self) -> str:
        return f"{self.direction} {self.name}" + ("" if self.reference is None else f" from {self.reference:g}")


def read_objectives(given: Objectives | None) -> tuple[Objective, ...]:
    """Reads objectives in any of their spellings, in the given order; two at least, or none.

    Raises:
        ObjectiveError: one is none of these, two have the same name, or there is only one.

    Example:
        >>> [str(each) for each in read_objectives({"accuracy": "maximize", "latency_ms": ("minimize", 50)})]
        ['maximize accuracy', 'minimize latency_ms from 50']
    """
    if given is None:
        return ()
    if isinstance(given, Mapping):
        read = [_spelled(name, text) for name, text in given.items()]
    elif isinstance(given, (list, tuple)) and all(isinstance(each, Objective) for each in given):
        read = list(given)
    else:
        raise ObjectiveError(
            'objectives must be Objectives, or a dict such as {"accuracy": "maximize", "latency_ms": "minimize"}, '
            f"but got {describe(given)}"
        )
    if len({each.name for each in read}) < len(read):
        raise ObjectiveError(f"each objective needs a name of its own, but got {', '.join(map(str, read))}")
    if len(read) == 1:
        raise ObjectiveError(
            f"objectives must be two or more, but got {read[0]}: a single one is metric=... and direction=..."
        )
    return tuple(read)


def _spelled(name: str, given: Any) -> Objective:
    if isinstance(given, (list, tuple)):
        if len(given) != 2:
            raise ObjectiveError(
                f'objective {name!r} must be spelled "minimize", or ("minimize", 50), but got {describe(given)}'
            )
        return Objective(name, *given)
    return Objective(name, given)


def find_front(scores: Sequence[Sequence[float]]) -> list[int]:
    """The places of the points that no other dominates, in their order; of equal points, all. Larger is better.

    Example:
        >>> find_front([(1.0, 0.0), (0.0, 1.0), (0.0, 0.5), (1.0, 0.0)])
        [0, 1, 3]
    """
    return [i for i, own in enumerate(scores) if not any(_dominates(other, own) for other in scores)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
