"""The learning curve of one trial: a value that never changes, and grows by a new one in constant time.

A training run may report a hundred thousand points, and each report makes a new record. So a curve is a chain from its
last point back to the first. Curves that grow out of one another share its links.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self

from llamatune_torch.errors import OutcomeError
from llamatune_torch.parameter_base import describe, to_python

# Sums of shares miss 1 by this at most.
_ROUNDING = 1e-6


class Point(NamedTuple):
    """One report: the step, the value, and the share of the full training run in [0, 1], ``None`` where unknown."""

    step: float
    value: float
    progress: float | None = None


class _Link(NamedTuple):
    before: _Link | None
    point: Point
    length: int


class Curve:
    """Intermediate values of one trial, in the order they were reported.

    ``steps`` counts what the caller counts, such as optimizer steps. ``progress`` is the share in [0, 1] of the full
    training run at that step, ``None`` where unknown. Curves of different trials compare by progress, not by
    steps: a run of 300 steps is further at step 300 than a run of 3,000.

    A curve is a sequence of :class:`Point`; ``last`` and ``len`` take constant time, columns and iteration take longer.

    Args:
        steps: finite numbers that do not decrease.
        values: the score at each step.
        progress: the share at each step.

    Raises:
        OutcomeError: the columns differ in length, or a point cannot be (:meth:`reported`).

    Example:
        >>> curve = Curve().reported(10, 0.5, 0.1).reported(20, 0.25, 0.2)
        >>> curve.values, curve.last.step
        ((0.5, 0.25), 20.0)
    """

    def __init__(
        self, steps: Sequence[float] = (), values: Sequence[float] = (), progress: Sequence[float | None] = ()
    ) -> None:
        columns = (steps, values, progress)
        if not all(isinstance(column, (tuple, list)) and len(column) == len(steps) for column in columns):
            raise OutcomeError(
                f"steps, values and progress of a curve must be tuples of one length, but got {describe(columns)}"
            )
        points = [_checked(*point) for point in zip(*columns, strict=True)]
        for before, after in pairwise(points):
            if after.step < before.step:
                raise OutcomeError(f"steps must not decrease, but got {after.step} after {before.step}")
        self._end = _chained(None, points)

    @classmethod
    def _ending(cls, end: _Link | None) -> Self:
        curve = cls.__new__(cls)
        curve._end = end
        return curve

    def __len__(self) -> int:
        return _length(self._end)

    def __iter__(self) -> Iterator[Point]:
        return iter(self._points)

    @property
    def last(self) -> Point | None:
        """The point that was reported last; ``None`` if there is none."""
        return None if self._end is None else self._end.point

    @property
    def reached(self) -> float:
        """The last known share of the run; 0 if there is none."""
        return next((point.progress for point in reversed(self._points) if point.progress is not None), 0.0)

    @property
    def steps(self) -> tuple[float, ...]:
        return tuple(point.step for point in self._points)

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(point.value for point in self._points)

    @property
    def progress(self) -> tuple[float | None, ...]:
        return tuple(point.progress for point in self._points)

    def reported(self, step: float, value: float, progress: float | None = None) -> Curve:
        """The curve with one more point; a second report at the last step replaces the first.

        Raises:
            OutcomeError: one of them is no number, the step went backwards, or the share is not in [0, 1].
        """
        point, end = _checked(step, value, progress), self._end
        if end is not None and point.step < end.point.step:
            raise OutcomeError(f"steps must not decrease, but got {step} after {end.point.step}")
        if end is not None and point.step == end.point.step:
            end = end.before
        return Curve._ending(_chained(end, [point]))

    def before(self, step: float) -> Curve:
        """The curve of the points before a step, for a run that goes on from there."""
        end = self._end
        while end is not None and end.point.step >= step:
            end = end.before
        return Curve._ending(end)

    def up_to(self, length: int) -> Curve:
        """The curve of the first ``length`` points."""
        end = self._end
        while end is not None and end.length > length:
            end = end.before
        return Curve._ending(end)

    def beyond(self, length: int) -> list[Point]:
        """The points behind the first ``length``; it takes as long as they are many."""
        points, link = [], self._end
        while link is not None and link.length > length:
            points.append(link.point)
            link = link.before
        return points[::-1]

    def followed_by(self, points: Iterable[Point]) -> Curve:
        """The curve with points behind it that were part of a curve before, and are not checked again."""
        return Curve._ending(_chained(self._end, points))

    def shared_with(self, other: Curve) -> int:
        """A number of first points that are the same in another curve.

        Where both have grown out of one curve, these are its points, found in as much time as there are others. For
        other curves, all first points that are equal count.
        """
        mine, theirs = self._end, other._end
        while mine is not theirs:
            if _length(mine) >= _length(theirs):
                mine = mine and mine.before
            else:
                theirs = theirs and theirs.before
        if mine is not None:
            return mine.length
        same = 0
        for one, another in zip(self, other, strict=False):
            if one != another:
                break
            same += 1
        return same

    @cached_property
    def _points(self) -> tuple[Point, ...]:
        return tuple(self.beyond(0))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Curve):
            return NotImplemented
        return self._end is other._end or self._points == other._points

    def __hash__(self) -> int:
        return hash(self._points)

    def __repr__(self) -> str:
        return f"Curve(steps={self.steps}, values={self.values}, progress={self.progress})"

    def __reduce__(self) -> tuple[Any, ...]:  # a chain of a hundred thousand links is too deep for pickle
        return Curve, (self.steps, self.values, self.progress)


def as_plain_number(value: Any, rule: str) -> float:
    """A float, from Python's, numpy's or torch's numbers; an integer too large for one is an infinity.

    Raises:
        OutcomeError: anything else; ``rule`` begins its message.
    """
    try:
        plain = to_python(value)
    except Exception as error:  # a tensor without data, or one whose computation has failed
        raise OutcomeError(f"{rule}, but {describe(value)} cannot be read: {error}") from error
    if not isinstance(plain, (int, float)) or isinstance(plain, bool):
        raise OutcomeError(f"{rule}, but got {describe(plain)}")
    try:
        return float(plain)
    except OverflowError:
        return math.inf if plain > 0 else -math.inf


def _checked(step: Any, value: Any, progress: Any) -> Point:
    """A point in plain numbers; a share that is beyond 0 or 1 by rounding alone is that bound."""
    step = as_plain_number(step, "a step must be a number")
    value = as_plain_number(value, "a value must be a number")
    if not math.isfinite(step):
        raise OutcomeError(f"a step must be finite, but got {step}")
    if progress is None:
        return Point(step, value)
    share = as_plain_number(progress, "progress must be a number")
    if not -_ROUNDING <= share <= 1 + _ROUNDING:
        raise OutcomeError(f"progress must lie in [0, 1], but got {progress}")
    return Point(step, value, min(max(share, 0.0), 1.0))


def _chained(end: _Link | None, points: Iterable[Point]) -> _Link | None:
    for point in points:
        end = _Link(end, point, _length(end) + 1)
    return end


def _length(end: _Link | None) -> int:
    return 0 if end is None else end.length
