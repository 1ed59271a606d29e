"""The search space as the engine sees it: points of the unit cube are tensors.

A ``SearchSpace`` keeps points as numpy arrays, so that a record can be read without torch. On the CPU both share their
memory, and nothing is copied; on a GPU points go there and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamatune_torch.parameter_base import Parameter
from llamatune_torch.parameters import SPECIAL_SHARE, Number
from llamatune_torch.space import Params, SearchSpace


class Cube:
    """A search space whose points are tensors; ``d`` columns.

    Points that come out are on the device and have the dtype of those that go in, or else are float64 on the CPU.

    Example:
        >>> cube = Cube(SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform"), "batch": (8, 32)}))
        >>> cube.snap(torch.tensor([[0.5, 1.0]], dtype=torch.float64))
        tensor([[0.5000, 0.9800]], dtype=torch.float64)
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.dim = space.dim
        self.size = space.size
        self.numeric_columns = space.numeric_columns
        self.categorical_columns = space.categorical_columns
        self.real_columns = space.real_columns
        self.special_columns = space.special_columns
        self.parent_columns = space.parent_columns
        self.compared_columns = space.compared_columns

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.space)

    def encode(self, params: Mapping[str, Any]) -> Tensor:
        """``SearchSpace.encode``; shape ``d``."""
        return torch.from_numpy(self.space.encode(params))

    def encode_all(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """``SearchSpace.encode_all``; shape ``n x d``, also for ``n = 0``."""
        return torch.from_numpy(self.space.encode_all(rows))

    def decode(self, x: Tensor) -> Params:
        """``SearchSpace.decode``; ``x`` has shape ``d``."""
        return self.space.decode(to_numpy(x))

    def decode_all(self, X: Tensor) -> list[Params]:
        """``SearchSpace.decode_all``; ``X`` has shape ``n x d``."""
        return self.space.decode_all(to_numpy(X))

    def active(self, X: Tensor) -> Tensor:
        """``SearchSpace.active``; boolean, shape ``... x d``."""
        return torch.from_numpy(self.space.active(to_numpy(X))).to(X.device)

    def is_special(self, X: Tensor) -> Tensor:
        """True where a coordinate stands for a special value of its parameter; boolean, shape ``... x d``."""
        U = to_numpy(X)
        columns = [parameter.special_of(U[..., j]) >= 0 for j, parameter in enumerate(self)]
        return torch.from_numpy(np.stack(columns, axis=-1)).to(X.device)

    def allows(self, X: Tensor) -> Tensor:
        """True for points whose parameters keep the rules of the space; boolean, shape ``n`` for ``n x d`` points."""
        if not self.space.rules:
            return torch.ones(len(X), dtype=torch.bool, device=X.device)
        kept = [self.space.keeps_rules(params) for params in self.decode_all(X)]
        return torch.tensor(kept, dtype=torch.bool, device=X.device)

    def snap(self, X: Tensor) -> Tensor:
        """``SearchSpace.snap``; shape ``... x d``."""
        return torch.from_numpy(self.space.snap(to_numpy(X))).to(X)

    def centre(self) -> Tensor:
        """The middle of all ranges and of the order of choices, with nothing special; shape ``d``."""
        x = torch.full((self.dim,), 0.5, dtype=torch.float64)
        x[self.special_columns] = (1 + SPECIAL_SHARE) / 2  # special values stand below the ordinary range
        return self.snap(x)

    def resolved(self, X: Tensor) -> Tensor:
        """``SearchSpace.resolved``; shape ``... x d``."""
        return torch.from_numpy(self.space.resolved(to_numpy(X))).to(X)

    def grid(self) -> Tensor:
        """``SearchSpace.grid``; shape ``size x d``."""
        return torch.from_numpy(self.space.grid())


def special_of(number: Number, U: Tensor) -> Tensor:
    """``number.special_of`` of coordinates that are ordinary or lie in the special quarter, in torch.

    An ordinary coordinate that happens to stand for a special value counts as ordinary: ``snap`` leaves none of those.
    """
    cell = (U * (len(number.special) / SPECIAL_SHARE)).floor().clamp_min(0)
    return torch.where(U < SPECIAL_SHARE, cell, -1.0)


def inner(U: Tensor) -> Tensor:
    """Places within the ordinary range of a number with special values, from its coordinates; differentiable."""
    return ((U - SPECIAL_SHARE) / (1 - SPECIAL_SHARE)).clamp(0.0, 1.0)


def to_numpy(X: Tensor) -> NDArray[np.float64]:
    """The numbers in a tensor, without their gradients; in the tensor's own memory, if that is float64 on the CPU."""
    return X.numpy(force=True).astype(np.float64, copy=False)
