"""The goal of a search, how its space has changed since it began, and why it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from llamatune_torch.constraints import Constraint, read_constraints
from llamatune_torch.errors import SettingsError
from llamatune_torch.objectives import Objective
from llamatune_torch.parameter_base import to_python
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.trial import Direction


@dataclass(frozen=True)
class Goal:
    """The goal of a search.

    Args:
        direction: whether large values are good ("maximize") or small ones ("minimize").
        metric: the name of the value, for tables and messages; ``None`` until the first trial teaches it, as a Trainer
            does, and the direction with it.
        constraints: limits on other outcomes, which the best trial has to keep.
        others: the objectives beside the metric, which is the first of them.
        reference: that of the metric, as of :class:`Objective`.

    Raises:
        SettingsError: the direction is neither, or the metric is no text; as ConstraintError, a limit is none.
    """

    direction: Direction = "maximize"
    metric: str | None = "value"
    constraints: tuple[Constraint, ...] = ()
    others: tuple[Objective, ...] = ()
    reference: float | None = None

    def __post_init__(self) -> None:
        for name in ("direction", "metric"):  # a frozen dataclass sets its fields this way
            object.__setattr__(self, name, to_python(getattr(self, name)))
        if self.direction not in get_args(Direction):
            raise SettingsError(f"direction must be 'maximize' or 'minimize', but got {self.direction!r}")
        if self.metric is not None and not (isinstance(self.metric, str) and self.metric.isprintable()):
            raise SettingsError(f"metric must be a line of text or None, but got {self.metric!r}")
        object.__setattr__(self, "constraints", read_constraints(self.constraints))


@dataclass(frozen=True)
class Extension:
    """The parameters that a space has gained and lost since the study began (``extend``).

    Args:
        values: for each parameter that was added, the value that trials without it have had.
        dropped: the names of those that are no longer in the space.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def applied_to(self, params: Params, space: SearchSpace) -> Params:
        """Parameters of an older trial as they are now: without those dropped, and with the values of those added."""
        if not self.values and not self.dropped:
            return params
        kept = {name: value for name, value in params.items() if name not in self.dropped}
        return space.with_values(kept, dict(self.values))


class End(NamedTuple):
    """The end of a search: why nothing starts any more, when the study had so many ``trials``."""

    trials: int
    reason: str


#: The extension of a space that is as it was.
UNCHANGED = Extension()
