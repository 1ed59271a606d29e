"""The search space: named parameters, and the unit cube they are searched in.

The law, kept by a property test: ``space.decode(space.encode(params)) == params`` for every ``params`` that
``space.validate`` returned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llamatune_torch.errors import ParamsError, SpaceError
from llamatune_torch.parameters import Categorical, Integer, Parameter, Real, plain, show

Params = dict[str, Any]

# Reals closer than this share of their (logarithmic) range count as the same: the runs would not differ.
RESOLUTION = 1e-4


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
            raise SpaceError(f"a space is a dict of parameters, but got {show(parameters)}")
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
            raise ParamsError(f"parameters must be a dict, but got {show(params)}")
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

    def resolved(self, X: Tensor) -> Tensor:
        """Points in units of the smallest difference that matters; shape ``... x d``.

        That is one value of a discrete parameter, RESOLUTION of the range of a real one.
        """
        columns = [
            X[..., j] / RESOLUTION if p.size is None else p.index_of(X[..., j]).to(X) for j, p in enumerate(self)
        ]
        return torch.stack(columns, dim=-1)

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
            low, high = (plain(bound) for bound in definition)
            whole = isinstance(low, int) and isinstance(high, int)
            return Integer(low, high) if whole else Real(low, high)
    except SpaceError as error:
        raise SpaceError(f"parameter {name!r}: {error}") from None
    raise SpaceError(
        f"parameter {name!r} must be Real, Integer, Categorical, a (low, high) tuple or a list of choices, "
        f"but got {show(definition)}"
    )
