"""Conditions of a space: ``when={"method": "lora"}`` and ``when={"rank": "> 0"}``, read, checked and looked up."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any

import numpy as np

from llamatune_torch.errors import ParamsError, SpaceError
from llamatune_torch.parameter_base import Bools, Comparison, Floats, Parameter, read_comparison
from llamatune_torch.parameters import Categorical, Integer, Number, Real


def read_condition(name: str, parameters: Mapping[str, Parameter]) -> dict[str, tuple[Any, ...]]:
    """The canonical values of each parent that a parameter depends on; errors name the parameter."""
    condition = {}
    for parent, values in parameters[name].when.items():
        if parent not in parameters:
            raise SpaceError(f"parameter {name!r} depends on {parent!r}, but the space has {list(parameters)}")
        comparisons = [read_comparison(value) for value in values] if _is_numeric(parameters[parent]) else []
        if any(comparisons):
            condition[parent] = (_comparison(name, parent, parameters[parent], comparisons),)
            continue
        try:
            canonical = tuple(parameters[parent].validate(value) for value in values)
        except ParamsError as error:
            raise SpaceError(f"parameter {name!r} depends on {parent!r}, which {error}") from None
        special = parameters[parent].special
        if parameters[parent].size is None and not set(canonical) <= set(special):
            raise SpaceError(
                f"parameter {name!r} depends on {parent!r}, a Real: that must be one of its special values "
                f"{list(special)} or a comparison such as '> 0', but got {list(canonical)}"
            )
        condition[parent] = canonical
    return condition


def _is_numeric(parameter: Parameter) -> bool:
    """True for numbers: ranges, and choices that are numbers all."""
    if isinstance(parameter, Categorical):
        return parameter.values is None and all(type(choice) in (int, float) for choice in parameter.choices)
    return isinstance(parameter, Number)


def _comparison(name: str, parent: str, number: Parameter, comparisons: Sequence[Comparison | None]) -> Comparison:
    """The one comparison of a condition on a number; errors name the parameter."""
    comparison = comparisons[0]
    if comparison is None or len(comparisons) > 1:
        shown = [str(comparison) for comparison in comparisons if comparison]
        raise SpaceError(f"parameter {name!r} depends on {parent!r}: a comparison must stand alone, but got {shown}")
    if number.size is None and comparison.operator in ("==", "!=") and comparison.number not in number.special:
        raise SpaceError(
            f"parameter {name!r} depends on {parent!r}, a Real: == and != need one of its special values "
            f"{list(number.special)}, but got '{comparison}'"
        )
    holding = {comparison.holds(value) for value in _samples(number, comparison)}
    if len(holding) == 1:
        every = "every value" if True in holding else "no value"
        raise SpaceError(f"parameter {name!r} depends on {parent!r}: '{comparison}' holds for {every} of {number!r}")
    return comparison


def _samples(number: Parameter, comparison: Comparison) -> list[Any]:
    """Values of which some meet a comparison, and some do not, if that is so of all values."""
    if isinstance(number, Real):
        return [*number.special, number.low, number.high]
    return [value for value, _ in group_values(number, [(comparison,)])]


def with_condition(parameter: Parameter, condition: Mapping[str, tuple[Any, ...]]) -> Parameter:
    """The parameter with its condition in canonical form, as it is stored."""
    when = {
        parent: tuple(str(value) if isinstance(value, Comparison) else value for value in values)
        for parent, values in condition.items()
    }
    if repr(when) == repr(dict(parameter.when)):
        return parameter
    canonical = copy(parameter)
    object.__setattr__(canonical, "when", when)
    return canonical


def holds(parameter: Parameter, U: Floats, wanted: Sequence[Any]) -> Bools:
    """True where a coordinate stands for one of the values ``wanted``, or meets the comparison; the shape of ``U``."""
    if not isinstance(wanted[0], Comparison):
        return parameter.stands_for(U, wanted)
    holds: Bools = wanted[0].holds(np.array(parameter.decode(U.ravel()), dtype=np.float64)).reshape(U.shape)
    return holds


def group_values(parameter: Parameter, conditions: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, int]]:
    """One value of each group whose values meet the same ``conditions``, and the number of values in the group."""
    size = parameter.size or 0

    def value_at(i: int) -> Any:
        return parameter.decode(parameter.coordinate(np.array([i])))[0]

    edges = {0, size}
    for wanted in (wanted for condition in conditions for wanted in condition):
        if not isinstance(wanted, Comparison):
            (i,) = parameter.index_of(parameter.encode([wanted])).tolist()
            edges |= {i, i + 1}
        elif isinstance(parameter, Integer):  # after the special values, the others ascend
            first = len(parameter.special)
            edges |= set(range(first + 1))
            edges |= {bisect(range(size), wanted.number, first, key=value_at) for bisect in (bisect_left, bisect_right)}
        else:
            edges = set(range(size + 1))
    for start, end in pairwise(sorted(edges)):
        yield value_at(start), end - start


def order_parents_first(conditions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names, each followed by the children that it was the last parent of, otherwise in their order."""
    order: list[str] = []

    def place(name: str) -> None:
        order.append(name)
        for child, condition in conditions.items():
            if name in condition and child not in order and all(parent in order for parent in condition):
                place(child)

    for name, condition in conditions.items():
        if not condition:
            place(name)
    stuck = [name for name in conditions if name not in order]
    if stuck:  # each of these has a parent among them
        path = stuck[:1]
        while path[-1] not in path[:-1]:
            path.append(next(parent for parent in conditions[path[-1]] if parent in stuck))
        cycle = " -> ".join(map(repr, path[path.index(path[-1]) :]))
        raise SpaceError(f"no parameter may depend on itself, but got {cycle}")
    return order
