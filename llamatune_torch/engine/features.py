"""Features: what the kernels see of a point of the unit cube, where a coordinate says too little or too much.

A number with special values becomes two features: the place of its value in the ordinary range, and its kind (ordinary,
or which special value). The kernel's categorical factor between kinds has a length scale of its own. A long one means
that "off" is much like "on"; a short one means that the outcome jumps there. A special value stands in the middle,
wherever it might lie as a number. So knowledge about the good part of the range counts for it too. At its own end of
the range it would be judged by small values, and be left untried for good where these are bad.

Inactive parameters stand in the middle too, so they add no distance between points. The column of an unordered parent
tells active from inactive. An ordered parent says that neighbours are alike. They are not where one of them switches
parameters on; then "is it active?" is a feature too.

A constant has a column, but is no feature: there is nothing to learn from it. All other columns are features as they
are. A space with neither special values, nor conditions on ordered parents has no other features: the
map is then the identity, and costs nothing.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from llamatune_torch.engine.cube import Cube, inner, special_of
from llamatune_torch.parameters import Number
from llamatune_torch.space import SearchSpace


class Features:
    """The map from the unit cube to features: ``... x d`` to ``... x f``, the new features behind the ``d`` columns.

    Differentiable in real columns, wherever they are ordinary.

    Args:
        space: says which columns have special values, conditions, or mere labels.

    Attributes:
        numeric: the features whose order means something.
        categorical: the features that are mere labels.

    Example:
        >>> features = Features(SearchSpace({"dropout": Real(0, 0.4, special=[0.0])}))
        >>> features(torch.tensor([[0.125], [0.25001], [1.0]]))  # off, the least, 0.4
        tensor([[0.5000, 1.0000],
                [0.0000, 0.0000],
                [1.0000, 0.0000]])
    """

    def __init__(self, space: SearchSpace) -> None:
        self.cube = Cube(space)
        self.numbers = {j: p for j, p in enumerate(space) if isinstance(p, Number) and p.special}
        self.switched = _columns_switched_by_order(space)
        added = range(space.dim, space.dim + len(self.numbers) + len(self.switched))
        varied = space.varied_columns or [0]  # a kernel needs something to look at
        self.numeric = [j for j in space.numeric_columns if j in varied]
        self.categorical = [*(j for j in space.categorical_columns if j in varied), *added]
        self.is_identity = not added

    def of(self, columns: list[int]) -> Features:
        """The same features, of which kernels look only at those that come from ``columns``, or from conditions."""
        sources = [*range(self.cube.dim), *self.numbers]
        known = [j for j, column in enumerate(sources) if column in columns]
        switches = range(len(sources), len(sources) + len(self.switched))
        part = copy(self)
        part.numeric = [j for j in self.numeric if j in known]
        part.categorical = [j for j in self.categorical if j in known or j in switches]
        return part

    def __call__(self, X: Tensor) -> Tensor:
        if self.is_identity:
            return X
        columns = list(X.unbind(dim=-1))
        labels = []
        for j, number in self.numbers.items():
            kind = special_of(number, columns[j])
            labels.append((kind + 1).to(X) / len(number.special))
            columns[j] = torch.where(kind < 0, inner(columns[j]), 0.5)
        if self.switched:
            labels += self.cube.active(X)[..., self.switched].to(X).unbind(dim=-1)
        return torch.stack(columns + labels, dim=-1)


def _columns_switched_by_order(space: SearchSpace) -> list[int]:
    """For each condition on an ordered parent, a column that is active while it holds."""
    columns: dict[str, int] = {}
    for j, condition in enumerate(space.conditions.values()):
        if any(space[parent].ordered for parent in condition):
            columns.setdefault(repr(condition), j)
    return list(columns.values())
