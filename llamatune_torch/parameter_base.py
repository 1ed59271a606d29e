"""The base of all hyperparameters; ``parameters.py`` has the kinds."""

from __future__ import annotations

import json
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llamatune_torch.errors import ParamsError, SpaceError

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

    #: What other parameters must be for this one to matter: ``{parent: values}``, or ``{parent: ("> 0",)}``.
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

    def value_of(self, recorded: Any) -> Any:
        """The value that an evaluation gets for a canonical one, which is what the record has.

        They differ where choices have labels. Of lists and dicts, it is a copy.
        """
        return copy_json(recorded)

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

    def default_near(self, value: Any) -> list[Any]:
        """The value to use by default, in a list, given that of another parameter of the name; empty if unknown."""
        try:
            return [self.validate(value)]
        except ParamsError:
            return self.decode(np.array([0.5])) if self.size == 1 else []

    def belief_at(self) -> tuple[float, float] | None:
        """The centre and the standard deviation of a user's belief on the unit interval; ``None`` without one."""
        return None

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # each is a dataclass
        special, when = shown.pop("special", ()), shown.pop("when")
        shown = {name: value for name, value in shown.items() if (name, value) not in _DEFAULTS}
        if special:
            shown["special"] = list(special)
        if when:
            alone = {parent: len(vs) == 1 and not isinstance(vs[0], list) for parent, vs in when.items()}
            shown["when"] = {parent: vs[0] if alone[parent] else list(vs) for parent, vs in when.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


#: Fields that a parameter's repr leaves out, with their defaults.
_DEFAULTS = [("step", 1), ("powers_of", None), ("values", None), ("belief", None)]
_PLAIN = frozenset({str, bool, int, float, type(None)})

#: How deep lists and dicts may hold others.
MAX_DEPTH = 32

_COMPARISON = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Comparison:
    """A condition on a number: ``> 0``."""

    operator: str
    number: float

    def holds(self, value: Any) -> Any:
        """True for a number that meets it; for an array of numbers, an array of booleans."""
        return _OPERATORS[self.operator](value, self.number)

    def __str__(self) -> str:
        return f"{self.operator} {self.number!r}"


def read_comparison(text: Any) -> Comparison | None:
    """The comparison that a text such as ``"> 0"`` spells; ``None`` if it spells none."""
    found = _COMPARISON.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    for kind in (int, float):
        try:
            number = kind(found[2])
        except ValueError:
            continue
        return Comparison(found[1], number) if math.isfinite(number) else None
    return None


def meets(value: Any, wanted: Sequence[Any]) -> bool:
    """True if a canonical value is one of those ``wanted``, or meets the comparison among them."""
    return any(w.holds(value) if isinstance(w, Comparison) else type_key(w) == type_key(value) for w in wanted)


def conditions(when: Any) -> dict[str, tuple[Any, ...]]:
    """``when`` in canonical form: for each parent a tuple of values, or of one comparison as text."""
    if not isinstance(when, Mapping):
        raise SpaceError(f"when must be a dict of parents and their values, but got {describe(when)}")
    conditions = {
        to_python(parent): tuple(_plain(v) for v in (values if isinstance(values, (list, tuple)) else [values]))
        for parent, values in when.items()
    }
    for parent, values in conditions.items():
        if not values:
            raise SpaceError(f"when must name at least one value of {parent!r}, but got []")
    return conditions


def _plain(value: Any) -> Any:
    return as_json(value) if isinstance(value, (list, tuple, dict)) else to_python(value)


def as_json(value: Any, depth: int = 0) -> Any:
    """A value in the one form that JSON has for it, a copy: plain scalars, lists, dicts with sorted texts as keys.

    A tuple becomes a list.

    Raises:
        SpaceError: it is, or holds, something else: an object, infinity, nan, a key that is no text.

    Example:
        >>> as_json({"b": (1, 2), "a": None})
        {'a': None, 'b': [1, 2]}
    """
    if depth > MAX_DEPTH:
        raise SpaceError(f"must not hold lists and dicts more than {MAX_DEPTH} deep")
    if isinstance(value, (list, tuple)):
        return [as_json(inner, depth + 1) for inner in value]
    if isinstance(value, Mapping):
        plain = {to_python(key): as_json(inner, depth + 1) for key, inner in value.items()}
        if not all(isinstance(key, str) for key in plain):
            raise SpaceError(f"must be a dict whose keys are texts, but got {describe(value)}")
        return dict(sorted(plain.items()))
    plain = to_python(value)
    if type(plain) not in _PLAIN:
        raise SpaceError(f"must be a JSON value, or have a label, but got {describe(value)}")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise SpaceError(f"must be finite, but got {plain!r}")
    return plain


def copy_json(value: Any) -> Any:
    """A copy of lists, tuples and dicts, at any depth; whatever else they hold is the same object."""
    if type(value) in (list, tuple):
        return type(value)(copy_json(inner) for inner in value)
    return {key: copy_json(inner) for key, inner in value.items()} if type(value) is dict else value


def compact(value: Any) -> str:
    """A list or dict as JSON on one line without spaces; equal ones have equal text."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def to_python(value: Any) -> Any:
    """The plain text or number that a scalar holds; anything else as it is.

    A scalar is one of numpy or torch. So is an instance of a subclass of ``str``, ``int`` or ``float``, such as the
    member of a ``StrEnum``. Only plain values are equal, in hash and type as well, to what comes back from a file.

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
    """A key that tells ``1``, ``1.0`` and ``True`` apart, also for lists and dicts."""
    return type(value), compact(value) if isinstance(value, (list, dict)) else value


def describe(value: Any) -> str:
    """A value and its type, for messages; a long value is cut."""
    try:
        shown = repr(value)
    except Exception:  # its own __repr__ may raise
        shown = "a value without a repr"
    return f"{shown if len(shown) <= 300 else f'{shown[:300]}...'} ({type(value).__name__})"
