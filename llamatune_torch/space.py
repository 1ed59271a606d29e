"""The search space: named parameters, and the unit cube they are searched in.

The law, kept by a property test: ``space.decode(space.encode(params)) == params`` for every ``params`` that
``space.validate`` returned.

A parameter with a condition (``when``) is active while each of its parents is active, and has one of the values named
or meets the comparison. Otherwise it is absent from ``params``. Its column is always there, and holds the middle while
it is inactive, so that all points with the same parameters are the same point.

Points are numpy arrays, float64. Methods that take points accept anything that numpy can make an array of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any
from warnings import warn

import numpy as np
from numpy.typing import ArrayLike

from llamatune_torch.conditions import group_values, holds, order_parents_first, read_condition, with_condition
from llamatune_torch.errors import ParamsError, SpaceError, SpaceWarning
from llamatune_torch.hints import warn_if_wide
from llamatune_torch.parameter_base import Bools, Comparison, Floats, Parameter, describe, meets, to_python
from llamatune_torch.parameters import SPECIAL_SHARE, Categorical, Integer, Real
from llamatune_torch.rules import Rule, Unknown, is_kept, name_of_rule, read_rules

Params = dict[str, Any]

# Reals closer than this share of their (logarithmic) range count as the same: the runs would not differ.
RESOLUTION = 1e-4


class SearchSpace:
    """Named parameters, in order: the box that is searched.

    Args:
        parameters: ``{name: Real | Integer | Categorical}``. As shorthands, a ``(low, high)`` tuple means
            ``Integer`` if both are integers, else ``Real``; a list means ``Categorical``; and a text, a number, a
            boolean or ``None`` is a constant, a parameter with that one value.
        rule: a function of a dict of parameters, or ``Linear(...)``, or a list of such: True for what may be tried.
        default: the parameters that you would use without a search, none left out. A search tries them first, and says
            how much better the best is.

    A condition names values of a parent, ``when={"method": ["lora", "qlora"]}``, or compares it to a number,
    ``when={"rank": "> 0"}``. ``<``, ``<=``, ``>``, ``>=``, ``==`` and ``!=`` are for parents that are numbers: ranges,
    and choices that are numbers all. Elsewhere, a text is one of the choices. A choice with a label is named by it.
    Parents may be conditional as well. Of a ``Real``, only special values can be named.

    Raises:
        RuleError: a rule is none.
        ParamsError: the default is not in the space, or breaks a rule.
        SpaceError: an empty space; a name that is not a non-empty string; a bad parameter; a condition on an
            unknown parameter, on a value that its parent does not have, or that holds always or never; parameters
            that depend on themselves.

    Example:
        >>> space = SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform"), "batch": (8, 32)})
        >>> space.decode([0.5, 1.0])
        {'lr': 0.0001, 'batch': 32}
        >>> space = SearchSpace({"method": ["full", "lora"], "rank": Integer(1, 64, when={"method": "lora"})})
        >>> space.decode([0.0, 0.5]), space.decode([1.0, 0.5])
        ({'method': 'full'}, {'method': 'lora', 'rank': 33})

    ``|`` combines spaces as it does dicts: the right one counts, and may be a plain dict. Rules of both hold. The
    default is that of both, where it fits. A parameter without one takes the value believed in, its only value, or the
    nearest to the left one's default. :meth:`without` leaves parameters out.

        >>> space = SearchSpace({"lr": (0.0, 1.0), "rank": (1, 8)}, default={"lr": 0.5, "rank": 8})
        >>> (space | {"rank": (1, 4)}).default
        {'lr': 0.5, 'rank': 4}
    """

    def __init__(
        self,
        parameters: Mapping[str, Any] | SearchSpace,
        *,
        rule: Rule | Sequence[Rule] | None = None,
        default: Mapping[str, Any] | None = None,
    ) -> None:
        own: tuple[Rule, ...] = ()
        if isinstance(parameters, SearchSpace):
            own = parameters.rules
            default = parameters.default if default is None else default
            parameters = parameters.parameters
        #: What parameters must keep besides; of a space that was read from a database, functions are ``Unknown``.
        self.rules: tuple[Rule, ...] = (*own, *read_rules(rule))
        if not isinstance(parameters, Mapping):
            raise SpaceError(f"a space is a dict of parameters, but got {describe(parameters)}")
        if not parameters:
            raise SpaceError("a space must have at least one parameter, but got {}")
        self.parameters: dict[str, Parameter] = {
            name: _parameter(name, definition)
            for name, definition in zip(map(to_python, parameters), parameters.values(), strict=True)
        }
        #: For each parameter the values that each of its parents must have, or one ``Comparison``.
        self.conditions: dict[str, dict[str, tuple[Any, ...]]] = {
            name: read_condition(name, self.parameters) for name in self.parameters
        }
        for name, condition in self.conditions.items():
            self.parameters[name] = with_condition(self.parameters[name], condition)
        #: The names, parents before their children.
        self.parents_first: list[str] = order_parents_first(self.conditions)
        #: The canonical parameters of the default, ``None`` without one.
        self.default: Params | None = None
        if default is not None:
            self.default = self._read_default(default)

    @property
    def names(self) -> list[str]:
        return list(self.parameters)

    @property
    def dim(self) -> int:
        """The number ``d`` of parameters, which is the number of columns."""
        return len(self.parameters)

    @property
    def numeric_columns(self) -> list[int]:
        """Columns whose order means something: reals, integers, ordered choices."""
        return [j for j, parameter in enumerate(self) if parameter.ordered]

    @property
    def categorical_columns(self) -> list[int]:
        """Columns of unordered choices."""
        return [j for j, parameter in enumerate(self) if not parameter.ordered]

    @property
    def real_columns(self) -> list[int]:
        """Columns that are a continuum: those a gradient can move."""
        return [j for j, parameter in enumerate(self) if parameter.size is None]

    @property
    def varied_columns(self) -> list[int]:
        """Columns of parameters with more than one value: all but the constants."""
        return [j for j, parameter in enumerate(self) if parameter.size != 1]

    @property
    def compared_columns(self) -> list[int]:
        """Columns of reals that other parameters compare to a number."""
        compared = {
            parent
            for condition in self.conditions.values()
            for parent, values in condition.items()
            if isinstance(values[0], Comparison)
        }
        return [j for j in self.real_columns if self.names[j] in compared]

    @property
    def special_columns(self) -> list[int]:
        """Columns of numbers that have special values."""
        return [j for j, parameter in enumerate(self) if parameter.special]

    @property
    def parent_columns(self) -> list[int]:
        """Columns that decide whether others are active; empty for a space without conditions."""
        parents = {parent for condition in self.conditions.values() for parent in condition}
        return [j for j, name in enumerate(self.parameters) if name in parents]

    @cached_property
    def size(self) -> int | None:
        """The number of different points; ``None`` if there is a continuum among the parameters."""
        if any(parameter.size is None for parameter in self):
            return None
        # The number of points so far for each combination of later conditions that hold already.
        counts: Counter[frozenset[tuple[str, str]]] = Counter({frozenset(): 1})
        for i, name in enumerate(self.parents_first):
            later = self.parents_first[i + 1 :]
            wanted = {child: self.conditions[child][name] for child in later if name in self.conditions[child]}
            kinds: Counter[frozenset[tuple[str, str]]] = Counter()
            for value, num in group_values(self.parameters[name], wanted.values()):
                kinds[frozenset((child, name) for child, values in wanted.items() if meets(value, values))] += num
            after: Counter[frozenset[tuple[str, str]]] = Counter()
            for held, count in counts.items():
                kept = frozenset((child, parent) for child, parent in held if child != name)
                if all((name, parent) in held for parent in self.conditions[name]):
                    for now, num in kinds.items():
                        after[kept | now] += count * num
                else:
                    after[kept] += count
            counts = after
        return sum(counts.values())

    def active(self, X: ArrayLike) -> Bools:
        """True for the parameters that matter at each point; shape ``... x d``."""
        X = np.asarray(X, dtype=np.float64)
        active = np.ones(X.shape, dtype=np.bool_)
        for name in self.parents_first:
            j = self.names.index(name)
            for parent, values in self.conditions[name].items():
                i = self.names.index(parent)
                active[..., j] &= active[..., i] & holds(self.parameters[parent], X[..., i], values)
        return active

    def validate(self, params: Mapping[str, Any]) -> Params:
        """The parameters in canonical form: plain Python values, in the order of the space.

        Raises:
            ParamsError: unknown, missing or inactive names, or a value that its parameter does not have.
        """
        if not isinstance(params, Mapping):
            raise ParamsError(f"parameters must be a dict, but got {describe(params)}")
        params = dict(zip(map(to_python, params), params.values(), strict=True))
        unknown = [name for name in params if name not in self.parameters]
        if unknown:
            raise ParamsError(f"unknown parameters {unknown}; the space has {self.names}")
        canonical: Params = {}
        missing, inactive = [], []
        for name in self.parents_first:
            if not self._is_active(name, canonical):
                inactive += [name] if name in params else []
            elif name not in params:
                missing.append(name)
            else:
                try:
                    canonical[name] = self.parameters[name].validate(params[name])
                except ParamsError as error:
                    raise ParamsError(f"parameter {name!r} {error}") from None
        if missing:
            raise ParamsError(f"missing parameters {missing}; the space has {self.names}")
        for name in inactive:
            raise ParamsError(
                f"parameter {name!r} is inactive unless {self._condition_text(name)}: leave it out, "
                f"but got {params[name]!r}"
            )
        valid = {name: canonical[name] for name in self.parameters if name in canonical}
        known = [rule for rule in self.rules if not isinstance(rule, Unknown)]
        if broken := [name_of_rule(rule) for rule in known if not is_kept([rule], self._seen_by_rules(valid))]:
            raise ParamsError(f"parameters break the rule {', '.join(broken)}: {valid}")
        return valid

    def keeps_rules(self, params: Params) -> bool:
        """True if canonical parameters keep all rules, which see values in the place of labels.

        Raises:
            RuleError: a rule raises an exception, or is not known in this process.
        """
        return not self.rules or is_kept(self.rules, self._seen_by_rules(params))

    def _seen_by_rules(self, params: Params) -> Params:
        try:
            return self.values_of(params)
        except ParamsError:  # of a label whose value is not known here
            return params

    def values_of(self, params: Mapping[str, Any]) -> Params:
        """The parameters that an evaluation gets: values in the place of labels. Canonical ones go in.

        Lists and dicts are copies, so that the record stays as it is, whatever becomes of them.

        Raises:
            ParamsError: the value of a label is not known in this process.

        Example:
            >>> space = SearchSpace({"targets": Categorical({"qv": ["q_proj", "v_proj"], "all": "all-linear"})})
            >>> space.values_of({"targets": "qv"})
            {'targets': ['q_proj', 'v_proj']}
        """
        values: Params = {}
        for name, recorded in params.items():
            try:
                values[name] = self.parameters[name].value_of(recorded)
            except ParamsError as error:
                raise ParamsError(f"parameter {name!r} {error}") from None
        return values

    def without_values(self) -> SearchSpace:
        """The same space with labels alone, which can be sent to any process."""
        return SearchSpace(
            {
                name: Categorical(parameter.choices, parameter.ordered, parameter.when, values={})
                if isinstance(parameter, Categorical) and parameter.values is not None
                else parameter
                for name, parameter in self.parameters.items()
            },
            rule=self.rules,
            default=self.default,
        )

    def require_values(self) -> None:
        """Checks that the values of all labels are known in this process.

        Raises:
            SpaceError: some are not.
        """
        for name, parameter in self.parameters.items():
            if isinstance(parameter, Categorical):
                try:
                    for choice in parameter.choices:
                        parameter.value_of(choice)
                except ParamsError as error:
                    raise SpaceError(f"parameter {name!r} {error}") from None

    def encode(self, params: Mapping[str, Any]) -> Floats:
        """The point of the unit cube that stands for ``params``; shape ``d``.

        Raises:
            ParamsError: as :meth:`validate`.
        """
        x: Floats = self.encode_all([self.validate(params)])[0]
        return x

    def encode_all(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """The points of many canonical parameter sets (as in a study's trials); shape ``n x d``."""
        X = np.tile(self._middle, (len(rows), 1))
        for j, (name, parameter) in enumerate(self.parameters.items()):
            given = [name in row for row in rows] if self.conditions[name] else slice(None)
            X[given, j] = parameter.encode([row[name] for row in rows if name in row])
        return X

    def with_values(self, params: Params, values: Params) -> Params:
        """``params``, and from ``values`` what is missing there though it is active; in the order of the space."""
        full = dict(params)
        for name in self.parents_first:
            if name in values and name not in full and self._is_active(name, full):
                full[name] = values[name]
        known = {name: full[name] for name in self.parameters if name in full}
        return known | full

    def decode(self, x: ArrayLike) -> Params:
        """The parameters that a point ``x`` of the unit cube stands for; ``x`` has shape ``d``."""
        return self.decode_all(np.asarray(x, dtype=np.float64)[np.newaxis])[0]

    def decode_all(self, X: ArrayLike) -> list[Params]:
        """The parameters that the rows of ``X`` stand for; ``X`` has shape ``n x d``."""
        X = np.asarray(X, dtype=np.float64)
        columns = [parameter.decode(X[:, j]) for j, parameter in enumerate(self)]
        rows = [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]
        for row in rows:
            for name in self.parents_first:
                if not self._is_active(name, row):
                    del row[name]
        return rows

    def snap(self, X: ArrayLike) -> Floats:
        """The nearest points that stand for parameters, shape ``... x d``.

        Integers are whole, choices and special values are at their coordinates, inactive columns in the middle.
        """
        X = np.asarray(X, dtype=np.float64)
        snapped = np.stack([parameter.snap(X[..., j]) for j, parameter in enumerate(self)], axis=-1)
        return np.where(self.active(X), snapped, self._middle) if self.parent_columns else snapped

    def resolved(self, X: ArrayLike) -> Floats:
        """Points in units of the smallest difference that matters; shape ``... x d``.

        The unit is one value of a discrete parameter, and RESOLUTION of the range of a real one.
        """
        X = self.snap(X)
        for j, parameter in enumerate(self):
            share = 1 - SPECIAL_SHARE if parameter.special else 1.0
            is_real = parameter.size is None
            X[..., j] = X[..., j] / (share * RESOLUTION) if is_real else parameter.index_of(X[..., j])
        return X

    def grid(self) -> Floats:
        """All points of a finite space, in the order of its parameters, parents first; ``size x d``."""
        if self.size is None:
            raise SpaceError(f"only a finite space can be listed; {self.real_columns} are real")
        X = self._middle[np.newaxis]
        for name in self.parents_first:
            j, size = self.names.index(name), self.parameters[name].size or 0
            # Each row becomes as many as the parameter has values there: one, if it is inactive.
            active = self.active(X)[:, j]
            counts = np.where(active, size, 1)
            index = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            X = np.repeat(X, counts, axis=0)
            changed = np.repeat(active, counts)
            X[changed, j] = self.parameters[name].coordinate(index[changed])
        return X

    @cached_property
    def _middle(self) -> Floats:
        """The point that all parameters stand at where they are inactive; shape ``d``."""
        return np.concatenate([parameter.snap(np.array([0.5])) for parameter in self])

    def _is_active(self, name: str, params: Params) -> bool:
        """True if a parameter matters, given the canonical values of its active parents."""
        return all(
            parent in params and meets(params[parent], values) for parent, values in self.conditions[name].items()
        )

    def _condition_text(self, name: str) -> str:
        return " and ".join(
            f"{parent} {values[0]}"
            if isinstance(values[0], Comparison)
            else f"{parent} == {values[0]!r}"
            if len(values) == 1
            else f"{parent} in {list(values)!r}"
            for parent, values in self.conditions[name].items()
        )

    def without(self, *names: str) -> SearchSpace:
        """The space without some of its parameters.

        Raises:
            SpaceError: there is no such parameter, another one depends on it, or none is left.

        Example:
            >>> SearchSpace({"lr": (0.0, 1.0), "dropout": (0.0, 0.1)}).without("dropout").names
            ['lr']
        """
        if unknown := [name for name in names if name not in self.parameters]:
            raise SpaceError(f"there are no parameters {unknown}; the space has {self.names}")
        left = SearchSpace({n: p for n, p in self.parameters.items() if n not in names}, rule=self.rules)
        return left._with_default_of(self.default or {})

    def __or__(self, other: Mapping[str, Any] | SearchSpace) -> SearchSpace:
        if isinstance(other, Mapping):
            both = SearchSpace({**self.parameters, **other}, rule=self.rules)
            return both._with_default_of(self.default or {})
        if not isinstance(other, SearchSpace):
            return NotImplemented
        rules = (*self.rules, *(rule for rule in other.rules if rule not in self.rules))
        both = SearchSpace({**self.parameters, **other.parameters}, rule=rules)
        return both._with_default_of({**(self.default or {}), **(other.default or {})})

    def __ror__(self, other: Mapping[str, Any]) -> SearchSpace:
        if not isinstance(other, Mapping):
            return NotImplemented
        return SearchSpace({**other, **self.parameters}, rule=self.rules)._with_default_of(self.default or {})

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters.values())

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        return self.parameters[name]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchSpace) or list(self.parameters.items()) != list(other.parameters.items()):
            return False
        # The conditions once more, because 1, 1.0 and True are different choices.
        return repr(self.conditions) == repr(other.conditions)

    def __hash__(self) -> int:
        return hash(tuple(self.parameters.items()))

    def __repr__(self) -> str:
        default = "" if self.default is None else f", default={self.default!r}"
        return f"SearchSpace({self.parameters!r}{default})"

    def _with_default_of(self, known: Params) -> SearchSpace:
        """The space with the default that follows from one of other spaces, ``known``; without, if that is empty."""
        default: Params = {}
        for name in self.parents_first if known else []:
            if self._is_active(name, default):
                values = self.parameters[name].default_near(known.get(name, object()))
                if not values:
                    reason = f"{name!r} has none; write SearchSpace({{{name!r}: ...}}, default={{{name!r}: ...}})"
                    warn(f"the default is left out: {reason}", SpaceWarning, stacklevel=3)
                    return self
                default[name] = values[0]
        try:
            return SearchSpace(self, default=default) if default else self
        except ParamsError as error:
            warn(f"the default is left out: {error}", SpaceWarning, stacklevel=3)
            return self

    def _read_default(self, default: Mapping[str, Any]) -> Params:
        try:
            return self.validate(default)
        except ParamsError as error:
            raise ParamsError(f"default: {error}") from None


def _parameter(name: Any, definition: Any) -> Parameter:
    """The parameter that a definition or a shorthand stands for; errors name it."""
    if not isinstance(name, str) or not name:
        raise SpaceError(f"the name of a parameter must be a non-empty string, but got {name!r}")
    if isinstance(definition, Parameter):
        return definition
    try:
        if isinstance(definition, list):
            return Categorical(definition)
        if isinstance(definition, tuple) and len(definition) == 2:
            low, high = (to_python(bound) for bound in definition)
            if isinstance(low, int) and isinstance(high, int):
                return Integer(low, high)
            real = Real(low, high, prior="uniform")
            warn_if_wide(low, high, f"parameter {name!r}: ({low!r}, {high!r})")
            return real
        if definition is None or isinstance(to_python(definition), (str, int, float)):
            return Categorical([definition])
    except SpaceError as error:
        raise SpaceError(f"parameter {name!r}: {error}") from None
    raise SpaceError(
        f"parameter {name!r} must be Real, Integer, Categorical, a (low, high) tuple, a list of choices or a constant"
        f"{', and labels are written Categorical({...})' if isinstance(definition, Mapping) else ''}, "
        f"but got {describe(definition)}"
    )
