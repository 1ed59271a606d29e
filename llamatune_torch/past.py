"""Past studies: what a new search takes from an old one, and how it fits another space.

A past study may have other ranges, a parameter more or less, another metric and direction. Only the order of its
outcomes and the places of its trials count (``engine/transfer.py``). So a snapshot holds parameters and values alone,
with the sizes (``context``) that tell a small model from a large one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from llamatune_torch.errors import PastError
from llamatune_torch.parameter_base import Floats, Parameter, describe
from llamatune_torch.parameters import Categorical, Number
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.trial import Cause, Direction, Trial, TrialState

#: How far out of the target's range, in widths of it, a past value still counts as that far out.
MARGIN = 1.0

#: Completed trials; fewer say nothing about where it is good.
LEAST = 3

#: The kinds of failure that say something about parameters in another study too.
TELLING = (Cause.OUT_OF_MEMORY, Cause.DIVERGED, Cause.TIMEOUT)


class PastTrial(NamedTuple):
    """A trial of a past study: its parameters as they were recorded, and its value; ``None`` if it failed."""

    params: Params
    value: float | None


@dataclass(frozen=True, eq=False)
class PastStudy:
    """A snapshot of an old study, for a new one. Two of the same content are equal.

    Args:
        name: for people.
        direction: of its values.
        trials: completed and failed ones.
        context: sizes, such as ``{"parameters": 1.2e9, "tokens": 2e10}``, all above zero.

    Raises:
        PastError: a size that is no number above zero.
    """

    name: str
    direction: Direction
    trials: tuple[PastTrial, ...]
    context: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", check_context(self.context))

    @cached_property
    def key(self) -> str:
        """The hash of the content, whatever its name, which is the same in all processes."""
        content = {**self.to_json(), "name": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The content as JSON values; an infinity is the text "inf" or "-inf"."""
        return {
            "name": self.name,
            "direction": self.direction,
            "context": dict(self.context),
            "trials": [[dict(trial.params), _to_strict(trial.value)] for trial in self.trials],
        }

    @property
    def num_completed(self) -> int:
        """The number of trials with a value."""
        return sum(trial.value is not None for trial in self.trials)

    def describe(self, space: SearchSpace) -> str:
        """Says what of it can be used in a space, and what cannot."""
        fitted = fit_into(space, self)
        trials = f"{fitted.num_completed} completed and {len(fitted.X) - fitted.num_completed} failed trials"
        few = [f"fewer than {LEAST} completed trials say nothing"] if fitted.num_completed < LEAST else []
        return "; ".join([f"{self.name}: {trials}", *few, *fitted.remarks])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PastStudy) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"PastStudy({self.name!r}, {self.num_completed} of {len(self.trials)} trials completed)"


@runtime_checkable
class HasPast(Protocol):
    """A ``Study``, which knows how to make a snapshot of itself."""

    def as_past(self, name: str) -> PastStudy: ...


class Fitted(NamedTuple):
    """A past study as points of another space's unit cube.

    X         n x d   trials that fit; a value outside of its range lies outside of [0, 1], by ``MARGIN`` at most
    values    n       larger is better; nan where the trial failed
    columns           those whose parameters the past study has varied in or known of; the others are at the middle
    remarks           what cannot be used, a line each
    """

    X: Floats
    values: Floats
    columns: list[int]
    remarks: list[str]

    @property
    def num_completed(self) -> int:
        """The number of rows with a value."""
        return int((~np.isnan(self.values)).sum())


def fit_into(space: SearchSpace, past: PastStudy) -> Fitted:
    """Places the trials of a past study in the unit cube of a space.

    Example:
        >>> old = PastStudy("old", "minimize", (PastTrial({"lr": 1e-2}, 0.3), PastTrial({"lr": 1e-4}, 0.1)))
        >>> fit_into(SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform"), "batch": (8, 32)}), old).X
        array([[1.5, 0.5],
               [0.5, 0.5]])
    """
    known = {name for trial in past.trials for name in trial.params}
    shared = [name for name in space.names if name in known]
    rows, values, misfits = [], [], Counter[str]()
    sign = 1.0 if past.direction == "maximize" else -1.0
    for trial in past.trials:
        places = [0.5] * space.dim
        odd = None
        for name in shared:
            if name in trial.params:
                place = place_of(space[name], trial.params[name])
                if place is None:
                    odd = f"{name}={trial.params[name]!r}"
                    break
                places[space.names.index(name)] = place
        if odd is None:
            rows.append(places)
            values.append(math.nan if trial.value is None else sign * trial.value)
        else:
            misfits[odd] += 1
    remarks = [f"{n} of {len(past.trials)} trials are left out: this space has no {odd}" for odd, n in misfits.items()]
    if extra := sorted(known - set(space.names)):
        remarks.append(f"its {', '.join(extra)} {'is' if len(extra) == 1 else 'are'} not in this space")
    if missing := [name for name in space.names if name not in known]:
        remarks.append(f"it says nothing about {', '.join(missing)}")
    X = np.array(rows, dtype=np.float64).reshape(-1, space.dim)
    return Fitted(X, np.array(values, dtype=np.float64), [space.names.index(name) for name in shared], remarks)


def place_of(parameter: Parameter, value: Any) -> float | None:
    """The coordinate that a recorded value would have; ``None`` where there is no such value.

    Numbers outside of the range lie outside of [0, 1], on the same scale.
    """
    if isinstance(parameter, Categorical):
        place = next((c for c in parameter.choices if type(c) is type(value) and c == value), _NOTHING)
        return None if place is _NOTHING else float(parameter.encode([place])[0])
    assert isinstance(parameter, Number), describe(parameter)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    if value in parameter.special:
        return float(parameter.encode([value])[0])
    logarithmic = parameter.prior == "log-uniform"
    if logarithmic and value <= 0:
        return None
    if parameter.low == parameter.high:
        return 0.5
    ends = parameter.encode([parameter.low, parameter.high])
    low, high, at = (math.log(v) if logarithmic else float(v) for v in (parameter.low, parameter.high, value))
    share = (at - low) / (high - low)
    return float(ends[0] + (ends[1] - ends[0]) * min(max(share, -MARGIN), 1 + MARGIN))


def read_past(given: Any, space: SearchSpace) -> tuple[PastStudy, ...]:
    """The snapshots that ``past=`` spells, each once, in an order that does not depend on theirs.

    Args:
        given: studies and snapshots.
        space: that of the new study.

    Raises:
        PastError: something else; or a past study of which nothing can be used.
    """
    if isinstance(given, (str, HasPast, PastStudy)) or not isinstance(given, Iterable):
        raise PastError(f"past must be a list of studies, such as [load_study('sqlite:///old.db')], but got {given!r}")
    read: dict[str, PastStudy] = {}
    for i, each in enumerate(given):
        if not isinstance(each, (HasPast, PastStudy)):
            raise PastError(f"past[{i}] must be a Study, such as load_study('sqlite:///old.db'), but got {each!r}")
        past = each if isinstance(each, PastStudy) else each.as_past(f"no. {i + 1}")
        check_usable(past, space)
        read.setdefault(past.key, past)
    return tuple(read[key] for key in sorted(read))


def check_usable(past: PastStudy, space: SearchSpace) -> Fitted:
    """Refuses a past study of which nothing can be used in a space, since somebody expects it to be.

    Raises:
        PastError: it has no trials, no parameter of the space, or only choices that the space has not.
    """
    if not past.trials:
        raise PastError(
            f"past study {past.name}: no trial has completed or failed, so that there is nothing to learn from it"
        )
    fitted = fit_into(space, past)
    if not fitted.columns:
        known = sorted({name for trial in past.trials for name in trial.params})
        raise PastError(
            f"past study {past.name}: its parameters {known} have other names than those of this space, {space.names}"
        )
    if len(fitted.X) == 0:
        raise PastError(f"past study {past.name}: none of its trials fits this space: {'; '.join(fitted.remarks)}")
    return fitted


def check_context(context: Any) -> dict[str, float]:
    """The sizes of a study as plain numbers.

    Raises:
        PastError: it is no dict of numbers above zero.
    """
    rule = "context must be a dict of sizes above zero, such as {'parameters': 1.2e9}"
    if not isinstance(context, Mapping):
        raise PastError(f"{rule}, but got {context!r}")
    for name, size in context.items():
        number = isinstance(size, (int, float)) and not isinstance(size, bool)
        if not isinstance(name, str) or not number or not 0 < size < math.inf:
            raise PastError(f"{rule}, but got {name!r}: {size!r}")
    return {name: float(size) for name, size in context.items()}


_NOTHING = object()


def teaches(trial: Trial) -> bool:
    """True if another study can learn from a trial."""
    if trial.state is TrialState.COMPLETE:
        return trial.value is not None and not math.isnan(trial.value)
    return trial.state is TrialState.FAILED and trial.cause in TELLING


def _to_strict(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
