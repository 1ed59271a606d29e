"""The base of all hyperparameters; ``parameters.py`` has the kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llamatune_torch.errors import SpaceError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Parameter(ABC):
    """One hyperparameter: a set of values and its map to one column of the unit cube.

    Coordinates are numpy arrays, float64. ``size`` is the number of values, ``None`` for a continuum. A parameter with
    a ``size`` also numbers its values ``0 .. size - 1``: ``index_of`` and ``coordinate`` translate between numbers and
    coordinates.
    """

    #: True if neighbouring coordinates mean neighbouring values; false for unordered choices only.
    ordered: bool = True

    #: Values of a kind of their own; only numbers have any.
    special: Sequence[float] = ()

    #: The values that other parameters must have for this one to matter: ``{parent: values}``.
    when: Mapping[str, Any]

    @property
    @abstractmethod
    def size(self) -> int | None:
        """The number of values; ``None`` if they form a continuum."""

    @abstractmethod
    def validate(self, value: Any) -> Any:
        """The value in its canonical form.

        Raises:
            ParamsError: the value is not one of this parameter's.
        """

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Floats:
        """The coordinates in [0, 1] of canonical values, shape ``n``."""

    @abstractmethod
    def decode(self, U: ArrayLike) -> list[Any]:
        """The values at the coordinates ``U`` in [0, 1], shape ``n``."""

    def index_of(self, U: Floats) -> Ints:
        """The number of the value whose cell holds each coordinate, in the shape of ``U``."""
        raise NotImplementedError(f"{type(self).__name__} is a continuum")

    def coordinate(self, index: Ints) -> Floats:
        """The coordinate of the value with each number, in the shape of ``index``."""
        raise NotImplementedError(f"{type(self).__name__} is a continuum")

    def special_of(self, U: Floats) -> Ints:
        """The number in ``special`` of the value at each coordinate, -1 for an ordinary value."""
        return np.full(np.shape(U), -1)

    def snap(self, U: Floats) -> Floats:
        """The nearest coordinates that stand for a value; the identity on a continuum."""
        return U if self.size is None else self.coordinate(self.index_of(U))

    def stands_for(self, U: Floats, values: Sequence[Any]) -> Bools:
        """True where a coordinate stands for one of the canonical ``values``; the shape of ``U``."""
        return np.isin(self.index_of(U), self.index_of(self.encode(values)))

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # each is a dataclass
        special, when = shown.pop("special", ()), shown.pop("when")
        if special:
            shown["special"] = list(special)
        if when:
            shown["when"] = {parent: vs[0] if len(vs) == 1 else list(vs) for parent, vs in when.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_PLAIN = frozenset({str, bool, int, float, type(None)})


def conditions(when: Any) -> dict[str, tuple[Any, ...]]:
    """``when`` in canonical form: for each parent a tuple of values."""
    if not isinstance(when, Mapping):
        raise SpaceError(f"when must be a dict of parents and their values, but got {describe(when)}")
    conditions = {
        to_python(parent): tuple(to_python(v) for v in (values if isinstance(values, (list, tuple)) else [values]))
        for parent, values in when.items()
    }
    for parent, values in conditions.items():
        if not values:
            raise SpaceError(f"when must name at least one value of {parent!r}, but got []")
    return conditions


def to_python(value: Any) -> Any:
    """The plain text or number that a scalar holds; anything else as it is.

    A scalar is one of numpy or torch, or an instance of a subclass of ``str``, ``int`` or ``float``, such as the member
    of a ``StrEnum``. Only plain values are equal, in hash and type as well, to what comes back from a file.

    Example:
        >>> to_python(np.float32(0.5)), to_python(HTTPStatus.OK)
        (0.5, 200)
    """
    if type(value) in _PLAIN:
        return value
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        value = item()
    for kind in () if type(value) in _PLAIN else (str, int, float):
        if isinstance(value, kind):
            # The kind's own method, since an enum's str() may be its name.
            return getattr(kind, f"__{kind.__name__}__")(value)
    return value


def type_key(value: Any) -> Hashable:
    """A key that tells ``1``, ``1.0`` and ``True`` apart."""
    return type(value), value


def describe(value: Any) -> str:
    """A value and its type, for messages; a long value is cut."""
    try:
        shown = repr(value)
    except Exception:  # its own __repr__ may raise
        shown = "a value without a repr"
    return f"{shown if len(shown) <= 300 else f'{shown[:300]}...'} ({type(value).__name__})"
