"""What the kernels see of a point of the unit cube, where a coordinate says too little or too much.

A number with special values becomes two features: where its value stands on the numeric scale, and of which kind it is
(ordinary, or which special value). The kernel's categorical factor between kinds has a length scale of its own: a long
one means that "off" is merely a small value, a short one that the outcome jumps there.

Inactive parameters hold one and the same coordinate, so they add no distance between points, and the column of an
unordered parent tells active from inactive. An ordered parent says that neighbours are alike, which they are not where
one of them switches parameters on; then "is it active?" is a feature too.

All other columns are features as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamatune_torch.parameters import Number
from llamatune_torch.space import SearchSpace


class Features:
    """The map from the unit cube to features: ``... x d`` to ``... x f``, the new features behind the ``d`` columns.

    Differentiable in real columns, wherever they are ordinary. For a space with neither special values nor conditions
    it is the identity; then :func:`features_of` gives ``None``, and nobody pays for it.

    Example:
        >>> features = Features(SearchSpace({"dropout": Real(0, 0.4, special=[0.0])}))
        >>> features(torch.tensor([[0.125], [0.25], [1.0]]))  # off, nearly off, 0.4
        tensor([[0., 1.],
                [0., 1.],
                [1., 0.]])
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.numbers = {j: p for j, p in enumerate(space) if isinstance(p, Number) and p.special}
        self.switched = _switched_by_order(space)
        #: The features that are mere labels.
        self.categorical = [
            *space.categorical_columns,
            *range(space.dim, space.dim + len(self.numbers) + len(self.switched)),
        ]

    def __call__(self, X: Tensor) -> Tensor:
        columns = list(X.unbind(dim=-1))
        labels = []
        for j, number in self.numbers.items():
            U = columns[j]
            labels.append((number.special_of(U) + 1).to(X) / len(number.special))
            columns[j] = number.position(U)
        if self.switched:
            labels += self.space.active(X)[..., self.switched].to(X).unbind(dim=-1)
        return torch.stack(columns + labels, dim=-1)


def features_of(space: SearchSpace) -> Features | None:
    """The map that a space calls for; ``None`` if its columns serve as they are."""
    features = Features(space)
    return features if features.numbers or features.switched else None


def _switched_by_order(space: SearchSpace) -> list[int]:
    """For each condition on an ordered parent, a column that is active while it holds."""
    columns: dict[str, int] = {}
    for j, condition in enumerate(space.conditions.values()):
        if any(space[parent].ordered for parent in condition):
            columns.setdefault(repr(condition), j)
    return list(columns.values())
