"""The search space: hyperparameters as people write them, and as points of the unit cube.

Every parameter owns one column of the unit cube, and its own way there and back:

- ``Real``: affine, or affine in the logarithm; 0 is ``low`` and 1 is ``high``, exactly.
- ``Integer``: the value's cell of equal (logarithmic) width; uniform draws are unbiased after rounding.
- ``Categorical``: the ``i``-th of ``k`` choices sits at ``(i + 1/2) / k``, whether ordered or not; only an
  ordered one means anything by that position, and the surrogate is told which is which.

The law, kept by a property test: ``space.decode(space.encode(params)) == params`` for every ``params`` that
``space.validate`` returned.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from llamatune_torch.errors import ParamsError, SpaceError

Prior = Literal["uniform", "log-uniform"]
Params = dict[str, Any]

# Integers beyond this would share a cell of the unit cube with their neighbours in double precision.
MAX_INTEGER = 10**12


class Parameter(ABC):
    """One hyperparameter: a set of values and its map to one column of the unit cube.

    ``size`` is the number of values, ``None`` for a continuum. A parameter with a ``size`` also numbers its
    values ``0 .. size - 1``: ``index_of`` and ``coordinate`` translate between numbers and coordinates.
    """

    #: Whether neighbouring coordinates mean neighbouring values (false for unordered choices only).
    ordered: bool = True

    @property
    @abstractmethod
    def size(self) -> int | None:
        """How many values there are; ``None`` if they form a continuum."""

    @abstractmethod
    def validate(self, value: Any) -> Any:
        """The value in its canonical form.

        Raises:
            ParamsError: the value is not one of this parameter's.
        """

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """Coordinates in [0, 1] of canonical values, shape ``n``, float64."""

    @abstractmethod
    def decode(self, U: Tensor) -> list[Any]:
        """The values at the coordinates ``U`` in [0, 1], shape ``n``."""

    def index_of(self, U: Tensor) -> Tensor:
        """The number of the value whose cell holds each coordinate; int64, the shape of ``U``."""
        raise NotImplementedError(f"{type(self).__name__} is a continuum")

    def coordinate(self, index: Tensor) -> Tensor:
        """The coordinate of the value with each number; float64, the shape of ``index``."""
        raise NotImplementedError(f"{type(self).__name__} is a continuum")

    def snap(self, U: Tensor) -> Tensor:
        """The nearest coordinates that stand for a value; the identity on a continuum."""
        return U if self.size is None else self.coordinate(self.index_of(U)).to(U)


@dataclass(frozen=True)
class Real(Parameter):
    """A real number in ``[low, high]``, both ends included.

    ``prior="log-uniform"`` spreads the search evenly over orders of magnitude (learning rates). Values are
    kept to 12 significant digits (of the width, for a uniform prior), so that they survive the way to the
    unit cube and back.

    Raises:
        SpaceError: ``low < high`` does not hold, a bound is not finite, or a log prior meets ``low <= 0``.

    Example:
        >>> Real(1e-5, 1e-3, prior="log-uniform").decode(torch.tensor([0.0, 0.5, 1.0]))
        [1e-05, 0.0001, 0.001]
    """

    low: float
    high: float
    prior: Prior = "uniform"

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if not _is_number(bound) or not _is_finite(bound):
                raise SpaceError(f"bounds must be finite numbers, but got {self!r}")
        if not self.low < self.high:
            raise SpaceError(
                f"low < high must hold, but got {self!r}; a constant is written Categorical([{self.low!r}])"
            )
        if not math.isfinite(float(self.high) - float(self.low)):
            raise SpaceError(f"high - low must be finite, but got {self!r}")
        _check_prior(self, self.prior, self.low > 0, "low > 0")

    @property
    def size(self) -> None:
        return None

    def validate(self, value: Any) -> float:
        if not _is_number(value):
            raise ParamsError(f"must be a number, but got {_show(value)}")
        if not self.low <= value <= self.high:  # also refuses nan
            raise ParamsError(f"must lie in [{self.low}, {self.high}], but got {value!r}")
        return self._canonical(float(value))

    def encode(self, values: Sequence[float]) -> Tensor:
        low, high = self._ends()
        scaled = self._scale(torch.tensor(values, dtype=torch.float64))
        coordinates: Tensor = (scaled - low) / (high - low)
        return coordinates.clamp(0.0, 1.0)

    def decode(self, U: Tensor) -> list[float]:
        low, high = self._ends()
        scaled = low + (high - low) * U.to(low)
        values = scaled.exp() if self.prior == "log-uniform" else scaled
        return [
            float(self.low) if u <= 0 else float(self.high) if u >= 1 else self._canonical(value)
            for u, value in zip(U.tolist(), values.tolist(), strict=True)
        ]

    def _scale(self, values: Tensor) -> Tensor:
        return values.log() if self.prior == "log-uniform" else values

    def _ends(self) -> Tensor:
        return self._scale(torch.tensor([self.low, self.high], dtype=torch.float64))

    def _canonical(self, value: float) -> float:
        low, high = float(self.low), float(self.high)
        if low < value < high:
            rounded = self._rounded(value)
            # So close to a bound that their coordinates may coincide: then it is the bound.
            value = low if rounded == self._rounded(low) else high if rounded == self._rounded(high) else rounded
        return min(max(value, low), high)

    def _rounded(self, value: float) -> float:
        if self.prior == "log-uniform":
            return float(f"{value:.12g}")
        # A grid of 1e-12 of the width, but never finer than what doubles of this magnitude resolve.
        width, magnitude = self.high - self.low, max(abs(self.low), abs(self.high))
        return round(value, min(12 - _exponent(width), 14 - _exponent(magnitude)))


@dataclass(frozen=True)
class Integer(Parameter):
    """An integer in ``{low, ..., high}``, both ends included.

    With ``prior="uniform"`` every value has the same share of the unit interval; with ``"log-uniform"`` the
    value ``v`` has the share of ``[v - 1/2, v + 1/2]`` on a logarithmic axis.

    Raises:
        SpaceError: ``low < high`` does not hold, a bound is no integer or beyond ``MAX_INTEGER``, or a log
            prior meets ``low < 1``.

    Example:
        >>> Integer(8, 32).decode(torch.tensor([0.0, 0.5, 1.0]))
        [8, 20, 32]
    """

    low: int
    high: int
    prior: Prior = "uniform"

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if not _is_integer(bound):
                raise SpaceError(f"bounds must be integers, but got {self!r}")
            if abs(bound) > MAX_INTEGER:
                raise SpaceError(f"bounds must not exceed {MAX_INTEGER} in size, but got {self!r}")
        if not self.low < self.high:
            raise SpaceError(
                f"low < high must hold, but got {self!r}; a constant is written Categorical([{self.low!r}])"
            )
        _check_prior(self, self.prior, self.low >= 1, "low >= 1")

    @property
    def size(self) -> int:
        return int(self.high) - int(self.low) + 1

    def validate(self, value: Any) -> int:
        if not _is_integer(value):
            raise ParamsError(f"must be an integer, but got {_show(value)}")
        if not self.low <= value <= self.high:
            raise ParamsError(f"must lie in [{self.low}, {self.high}], but got {value!r}")
        return int(value)

    def encode(self, values: Sequence[int]) -> Tensor:
        return self.coordinate(torch.tensor(values, dtype=torch.int64) - int(self.low))

    def decode(self, U: Tensor) -> list[int]:
        return [int(self.low) + int(i) for i in self.index_of(U).tolist()]

    def index_of(self, U: Tensor) -> Tensor:
        U = U.to(torch.float64)
        if self.prior == "log-uniform":
            start, end = self._log_ends()
            index = (start + (end - start) * U).exp().round() - int(self.low)
        else:
            index = (U * self.size).floor()
        return index.clamp(0, self.size - 1).to(torch.int64)

    def coordinate(self, index: Tensor) -> Tensor:
        if self.prior == "log-uniform":
            start, end = self._log_ends()
            return ((index + int(self.low)).to(torch.float64).log() - start) / (end - start)
        return (index.to(torch.float64) + 0.5) / self.size

    def _log_ends(self) -> tuple[float, float]:
        return math.log(self.low - 0.5), math.log(self.high + 0.5)


@dataclass(frozen=True, init=False)
class Categorical(Parameter):
    """One of a list of choices: strings, numbers, booleans or ``None``, mixed as you like.

    ``ordered=True`` says that neighbours in the list are alike (``["small", "base", "large"]``), which the
    surrogate then uses. ``1``, ``1.0`` and ``True`` are three different choices.

    Raises:
        SpaceError: no choices, the same one twice, or one that is no JSON scalar.
    """

    choices: tuple[Any, ...]
    ordered: bool

    def __init__(self, choices: Sequence[Any], ordered: bool = False) -> None:
        if isinstance(choices, str) or not isinstance(choices, Sequence):
            raise SpaceError(f"choices must be a list or tuple, but got {_show(choices)}")
        plain = tuple(_plain(choice) for choice in choices)
        # A frozen dataclass sets its fields this way; `choices` is stored as a tuple of plain values.
        object.__setattr__(self, "choices", plain)
        object.__setattr__(self, "ordered", bool(ordered))
        if not plain:
            raise SpaceError("choices must not be empty, but got []")
        for choice in plain:
            if not isinstance(choice, (str, bool, int, float, type(None))):
                raise SpaceError(f"choices must be JSON scalars, but got {_show(choice)}")
            if isinstance(choice, float) and not math.isfinite(choice):
                raise SpaceError(f"choices must be finite, but got {choice!r}")
        if len(self._numbers()) < len(plain):
            raise SpaceError(f"choices must differ from each other, but got {list(plain)!r}")

    @property
    def size(self) -> int:
        return len(self.choices)

    def validate(self, value: Any) -> Any:
        value = _plain(value)
        try:
            return self.choices[self._numbers()[_typed(value)]]
        except (KeyError, TypeError):  # TypeError: a list or another unhashable value
            raise ParamsError(f"must be one of {list(self.choices)!r}, but got {_show(value)}") from None

    def encode(self, values: Sequence[Any]) -> Tensor:
        numbers = self._numbers()
        return self.coordinate(torch.tensor([numbers[_typed(v)] for v in values]))

    def decode(self, U: Tensor) -> list[Any]:
        return [self.choices[i] for i in self.index_of(U).tolist()]

    def index_of(self, U: Tensor) -> Tensor:
        return (U * self.size).floor().clamp(0, self.size - 1).to(torch.int64)

    def coordinate(self, index: Tensor) -> Tensor:
        return (index.to(torch.float64) + 0.5) / self.size

    def _numbers(self) -> dict[Hashable, int]:
        return {_typed(choice): i for i, choice in enumerate(self.choices)}


class SearchSpace:
    """Named parameters, in order: the box that is searched.

    Args:
        parameters: ``{name: Real | Integer | Categorical}``. As shorthands, a ``(low, high)`` tuple means
            ``Integer`` if both are integers, else ``Real``, and a list means ``Categorical``.

    Raises:
        SpaceError: an empty space, a name that is not a non-empty string, or a bad parameter.

    Example:
        >>> space = SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform"), "batch": (8, 32)})
        >>> space.decode(torch.tensor([0.5, 1.0]))
        {'lr': 0.0001, 'batch': 32}
    """

    def __init__(self, parameters: Mapping[str, Any] | SearchSpace) -> None:
        if isinstance(parameters, SearchSpace):
            parameters = parameters.parameters
        if not isinstance(parameters, Mapping):
            raise SpaceError(f"a space is a dict of parameters, but got {_show(parameters)}")
        if not parameters:
            raise SpaceError("a space must have at least one parameter, but got {}")
        self.parameters: dict[str, Parameter] = {
            name: _parameter(name, definition) for name, definition in parameters.items()
        }

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
    def size(self) -> int | None:
        """How many different points the space has; ``None`` if it holds a continuum."""
        sizes = [parameter.size for parameter in self]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def validate(self, params: Mapping[str, Any]) -> Params:
        """The parameters in canonical form: plain Python values, in the order of the space.

        Raises:
            ParamsError: unknown or missing names, or a value that its parameter does not have.
        """
        if not isinstance(params, Mapping):
            raise ParamsError(f"parameters must be a dict, but got {_show(params)}")
        unknown = [name for name in params if name not in self.parameters]
        if unknown:
            raise ParamsError(f"unknown parameters {unknown}; the space has {self.names}")
        missing = [name for name in self.names if name not in params]
        if missing:
            raise ParamsError(f"missing parameters {missing}; the space has {self.names}")
        canonical: Params = {}
        for name, parameter in self.parameters.items():
            try:
                canonical[name] = parameter.validate(params[name])
            except ParamsError as error:
                raise ParamsError(f"parameter {name!r} {error}") from None
        return canonical

    def encode(self, params: Mapping[str, Any]) -> Tensor:
        """The point of the unit cube that stands for ``params``; shape ``d``, float64.

        Raises:
            ParamsError: as :meth:`validate`.
        """
        return self.encode_all([self.validate(params)])[0]

    def encode_all(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The points of many canonical parameter sets (as in a study's trials); shape ``n x d``, float64."""
        columns = [parameter.encode([row[name] for row in rows]) for name, parameter in self.parameters.items()]
        return torch.stack(columns, dim=-1)

    def decode(self, x: Tensor) -> Params:
        """The parameters that a point ``x`` of the unit cube stands for; ``x`` has shape ``d``."""
        return self.decode_all(x.unsqueeze(0))[0]

    def decode_all(self, X: Tensor) -> list[Params]:
        """The parameters that the rows of ``X`` stand for; ``X`` has shape ``n x d``."""
        X = X.detach().to(device="cpu", dtype=torch.float64)
        columns = [parameter.decode(X[:, j]) for j, parameter in enumerate(self)]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def snap(self, X: Tensor) -> Tensor:
        """The nearest points that stand for parameters: whole integers, one choice; shape ``... x d``."""
        return torch.stack([parameter.snap(X[..., j]) for j, parameter in enumerate(self)], dim=-1)

    def grid(self) -> Tensor:
        """All points of a finite space, in order; shape ``size x d``, float64."""
        if self.size is None:
            raise SpaceError(f"only a finite space can be listed; {self.real_columns} are real")
        axes = [p.coordinate(torch.arange(p.size or 0)) for p in self]
        return torch.cartesian_prod(*axes).reshape(self.size, self.dim)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters.values())

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        return self.parameters[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and list(self.parameters.items()) == list(other.parameters.items())

    def __hash__(self) -> int:
        return hash(tuple(self.parameters.items()))

    def __repr__(self) -> str:
        return f"SearchSpace({self.parameters!r})"


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
            low, high = (_plain(bound) for bound in definition)
            whole = isinstance(low, int) and isinstance(high, int)
            return Integer(low, high) if whole else Real(low, high)
    except SpaceError as error:
        raise SpaceError(f"parameter {name!r}: {error}") from None
    raise SpaceError(
        f"parameter {name!r} must be Real, Integer, Categorical, a (low, high) tuple or a list of choices, "
        f"but got {_show(definition)}"
    )


def _check_prior(parameter: Parameter, prior: str, has_logarithm: bool, rule: str) -> None:
    if prior not in ("uniform", "log-uniform"):
        raise SpaceError(f"prior must be 'uniform' or 'log-uniform', but got {parameter!r}")
    if prior == "log-uniform" and not has_logarithm:
        raise SpaceError(f"a log-uniform prior needs {rule}, but got {parameter!r}")


def _plain(value: Any) -> Any:
    """A numpy or torch scalar as the Python value it holds; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value


def _is_number(value: Any) -> bool:
    value = _plain(value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int too large for a float
        return False


def _is_integer(value: Any) -> bool:
    value = _plain(value)
    return value.is_integer() if isinstance(value, float) else _is_number(value)


def _typed(value: Any) -> Hashable:
    """A key that tells ``1``, ``1.0`` and ``True`` apart."""
    return type(value), value


def _exponent(magnitude: float) -> int:
    return math.floor(math.log10(magnitude))


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
