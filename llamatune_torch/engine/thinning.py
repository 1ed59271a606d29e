"""Thinning: which trials the models are given, once there are more than they can take.

The time of an exact GP grows as the cube of its observations. Up to ``MAX_CONDITIONED`` completed and failed trials,
all of them count. Above, so many are kept, in the proportion in which trials have worked; but of either kind at least
a quarter, so that rare ones are not lost. Of the completed ones that are kept

- a third are the best, among which the search decides;
- a third are the newest, which tell what it has just learnt;
- the rest are spread over the space: each is the one farthest from those before it, so that nothing becomes unknown
  again.

Of failed ones none is best: half are the newest. Outcomes are made robust before, by all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CONDITIONED = 1000  # completed and failed trials; benchmarks/README.md has what an ask takes


def keep(X: Tensor, Y: Tensor, X_failed: Tensor) -> tuple[Tensor, Tensor]:
    """The rows to keep of completed and of failed trials, as indices in the order of the record.

    Args:
        X: completed trials in the unit cube, ``n x d``, oldest first.
        Y: their outcomes, larger is better, shape ``n``.
        X_failed: failed trials, ``m x d``, oldest first.
    """
    n, m = len(X), len(X_failed)
    if n + m <= MAX_CONDITIONED:
        return torch.arange(n), torch.arange(m)
    least = MAX_CONDITIONED // 4
    num_failed = min(m, max(least, MAX_CONDITIONED - n, min(MAX_CONDITIONED - least, MAX_CONDITIONED * m // (n + m))))
    num_completed = min(n, MAX_CONDITIONED - num_failed)
    best = Y.cpu().argsort(descending=True, stable=True)
    return (
        _choose(X, [(best, num_completed // 3), (_newest(n), num_completed // 3)], num_completed),
        _choose(X_failed, [(_newest(m), num_failed // 2)], num_failed),
    )


def without(X: Tensor, rows: Tensor) -> Tensor:
    """``X`` (``n x d``) without those ``rows``."""
    left = torch.ones(len(X), dtype=torch.bool)
    left[rows] = False
    return X[left.to(X.device)]


def _newest(n: int) -> Tensor:
    return torch.arange(n - 1, -1, -1)


def _choose(X: Tensor, ranked: list[tuple[Tensor, int]], k: int) -> Tensor:
    """``k`` rows of ``X``: the first few of each order in ``ranked``, then the farthest from those chosen."""
    chosen = torch.zeros(len(X), dtype=torch.bool)
    for order, count in ranked:
        free = order[~chosen[order]]
        chosen[free[:count]] = True
    return farthest_added(X.cpu(), chosen, k).nonzero().squeeze(-1)


def farthest_added(X: Tensor, chosen: Tensor, k: int) -> Tensor:
    """Marks ``k`` rows of ``X`` (``n x d``): those ``chosen`` (boolean, ``n``), then the farthest from all of them."""
    chosen = chosen.clone()
    missing = k - int(chosen.sum())
    if missing <= 0:
        return chosen
    distance = torch.full_like(X[:, 0], torch.inf)
    for some in X[chosen].split(256):
        distance = torch.minimum(distance, torch.cdist(X, some).amin(dim=-1))
    distance[chosen] = -1.0  # farther than none, also from a row that coincides
    for _ in range(missing):
        i = int(distance.argmax())
        chosen[i] = True
        distance = torch.minimum(distance, (X - X[i]).square().sum(dim=-1).sqrt())
        distance[i] = -1.0
    return chosen
