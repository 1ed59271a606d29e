"""``Categorical``: choices of any kind, in the record as plain values or as labels.

The ``i``-th of ``k`` choices sits at ``(i + 1/2) / k``, ordered or not. The position of an unordered choice means
nothing, and the surrogate knows that.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from llamatune_torch.errors import ParamsError, SpaceError
from llamatune_torch.parameter_base import (
    Floats,
    Ints,
    Parameter,
    as_json,
    compact,
    conditions,
    copy_json,
    describe,
    to_python,
    type_key,
)


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Categorical(Parameter):
    """One of a list of choices: texts, numbers, booleans, ``None``, and lists and dicts of these, mixed as you like.

    A member of an enum that is a text or a number, such as transformers' ``SchedulerType.LINEAR``, is taken for that
    text or number: ``params`` has ``"linear"``. A tuple is taken for a list. Lists and dicts are compared by value, and
    each evaluation gets its own.

    Any other object is a choice by a label: ``Categorical({"qv": ["q_proj", "v_proj"], "all": "all-linear"})``. The
    record has the label: trials, tables, exports. The evaluation gets the value, as do ``ask()`` and ``best_params``.
    A database keeps the values that are JSON, so that processes with other values under the same labels do not mix;
    of all others, it has the labels alone.

    ``ordered=True`` says that neighbours in the list are alike (``["small", "base", "large"]``), and the surrogate
    then uses that. It is the default for three or more increasing numbers (``[8, 16, 32, 64]``); ``ordered=False``
    turns it off. ``1``, ``1.0`` and ``True`` are three different choices. With ``when={"method": "lora"}`` the
    parameter matters only then; see ``SearchSpace``.

    Args:
        choices: a list, or a dict from labels to values.
        ordered: whether their order means something; by default, whether they are three or more increasing numbers.
        when: as of ``Real``.
        values: the values that are known here of ``choices`` that are labels. A study that was read from a database
            may lack some.

    Raises:
        SpaceError: no choices; the same one twice, or two that look the same in the record; an object without a label.

    Example:
        >>> targets = Categorical({"qv": ["q_proj", "v_proj"], "all": "all-linear"})
        >>> targets.decode([0.1]), targets.value_of("qv")
        (['qv'], ['q_proj', 'v_proj'])
    """

    choices: tuple[Any, ...]
    ordered: bool
    when: Mapping[str, Any]
    values: Mapping[str, Any] | None

    def __init__(
        self,
        choices: Sequence[Any] | Mapping[str, Any],
        ordered: bool | None = None,
        when: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(choices, Mapping):
            if values is not None:
                raise SpaceError("values must be left out where choices are a dict of labels and values")
            values, choices = choices, list(choices)
        if isinstance(choices, str) or not isinstance(choices, Sequence):
            raise SpaceError(f"choices must be a list, a tuple or a dict of labels, but got {describe(choices)}")
        if not choices:
            raise SpaceError("choices must not be empty, but got []")
        try:
            recorded = tuple(as_json(choice) for choice in choices)
        except SpaceError as error:
            raise SpaceError(f"a choice {error}") from None
        # A frozen dataclass sets its fields this way; `choices` is stored as a tuple of plain values.
        object.__setattr__(self, "choices", recorded)
        object.__setattr__(self, "ordered", _increase(recorded) if ordered is None else bool(ordered))
        object.__setattr__(self, "when", conditions({} if when is None else when))
        object.__setattr__(self, "values", None if values is None else _labelled(recorded, values))
        texts = [compact(choice) if isinstance(choice, (list, dict)) else choice for choice in recorded]
        if len(set(map(type_key, texts))) < len(recorded):
            raise SpaceError(f"choices must differ from each other, also in the record, but got {list(recorded)!r}")

    @property
    def size(self) -> int:
        return len(self.choices)

    @property
    def json_values(self) -> dict[str, Any] | None:
        """The values of labels, those that are JSON; ``None`` without labels."""
        if self.values is None:
            return None
        known = {label: _json_or(value, _NO_JSON) for label, value in self.values.items()}
        return {label: value for label, value in known.items() if value is not _NO_JSON}

    def validate(self, value: Any) -> Any:
        plain = _json_or(value, value)
        try:
            return copy_json(self.choices[self._numbers[type_key(plain)]])
        except (KeyError, TypeError, ValueError, RecursionError):  # what is no JSON has no key, or no hash
            pass
        for label, own in (self.values or {}).items():
            if _is_same(value, own) or _is_same(plain, _json_or(own, _NO_JSON)):
                return label
        raise ParamsError(f"must be one of {list(self.choices)!r}, but got {describe(plain)}")

    def value_of(self, recorded: Any) -> Any:
        if self.values is None:
            return copy_json(recorded)
        if recorded not in self.values:
            raise ParamsError(
                f"has no value for the label {recorded!r} in this process: the record has labels only, so give the "
                "space with its values"
            )
        return copy_json(self.values[recorded])

    def encode(self, values: Sequence[Any]) -> Floats:
        numbers = self._numbers
        return self.coordinate(np.array([numbers[type_key(v)] for v in values], dtype=np.int64))

    def decode(self, U: ArrayLike) -> list[Any]:
        return [copy_json(self.choices[i]) for i in self.index_of(np.asarray(U, dtype=np.float64)).tolist()]

    def index_of(self, U: Floats) -> Ints:
        return np.floor(U * self.size).clip(0, self.size - 1).astype(np.int64)

    def coordinate(self, index: Ints) -> Floats:
        return (index + 0.5) / self.size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Categorical):
            return False
        return self._identity() == other._identity() and self.when == other.when

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> Hashable:
        known = None if self.values is None else compact(self.json_values)
        return tuple(type_key(choice) for choice in self.choices), self.ordered, known

    @cached_property
    def _numbers(self) -> dict[Hashable, int]:
        return {type_key(choice): i for i, choice in enumerate(self.choices)}


_NO_JSON = object()


def _json_or(value: Any, default: Any) -> Any:
    """A value as JSON has it, or else the ``default``."""
    try:
        return as_json(value)
    except SpaceError:
        return default


def _is_same(value: Any, other: Any) -> bool:
    """True for equal scalars of one type, the same object, and lists, tuples or dicts of these."""
    if value is other or type(value) is not type(other):
        return value is other
    if type(value) in (list, tuple):
        return len(value) == len(other) and all(map(_is_same, value, other))
    if type(value) is dict:
        return value.keys() == other.keys() and all(_is_same(value[key], other[key]) for key in value)
    return type(value) in (str, bool, int, float) and bool(value == other)


def _labelled(labels: Sequence[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by their labels, as a copy, in the order of the labels."""
    for label in labels:
        if not isinstance(label, str) or not label:
            raise SpaceError(f"a label must be a text that is not empty, but got {describe(label)}")
    if not isinstance(values, Mapping):
        raise SpaceError(f"values must be a dict of labels and values, but got {describe(values)}")
    given = {to_python(label): copy_json(value) for label, value in values.items()}
    if unknown := [label for label in given if label not in labels]:
        raise SpaceError(f"values must belong to one of the labels {list(labels)!r}, but got {unknown!r}")
    seen: dict[Hashable, str] = {}
    for label, value in given.items():
        plain = _json_or(value, _NO_JSON)
        key = id(value) if plain is _NO_JSON else type_key(plain)
        if key in seen:
            raise SpaceError(f"labels must have different values, but {seen[key]!r} and {label!r} have the same")
        seen[key] = label
        if isinstance(plain, str) and plain in labels and plain != label:
            raise SpaceError(f"the value of the label {label!r} must not be another label, but got {plain!r}")
    return {label: given[label] for label in labels if label in given}


def _increase(choices: Sequence[Any]) -> bool:
    """True for three or more numbers, each larger than the one before; two have no order to learn from."""
    numbers = all(type(choice) in (int, float) for choice in choices)
    return numbers and len(choices) > 2 and all(low < high for low, high in pairwise(choices))
