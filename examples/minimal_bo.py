"""One step of Bayesian optimization by hand: read this first.

    python examples/minimal_bo.py

Eight fine-tunes are on record. Which learning rate and batch size to train with next? Every line below is what
``suggest`` does inside (``llamatune_torch/engine/suggest.py``), and the last one checks that it agrees.
"""

import math

import torch

from llamatune_torch import Integer, Real, SearchSpace, Settings, Study, Trial, TrialState
from llamatune_torch.engine.acquisition import make_acquisition, posterior_mean
from llamatune_torch.engine.candidates import maximize
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import robust
from llamatune_torch.engine.qmc import sobol
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.surrogate import fit_gp
from llamatune_torch.seeds import derived_seed


def accuracy(params: dict) -> float:
    """A stand-in for a fine-tune: best near a learning rate of 3e-5 and a batch of 16."""
    off = math.log10(params["learning_rate"] / 3e-5)
    return 0.9 - 0.05 * off**2 - 0.01 * math.log2(params["batch_size"] / 16) ** 2


def main() -> None:
    # 1. A space, and its map to the unit cube, where points are tensors.
    space = SearchSpace({"learning_rate": Real(1e-6, 1e-3, prior="log-uniform"), "batch_size": Integer(4, 64)})
    cube = Cube(space)

    # 2. The record: eight quasi-random points and what came of them.
    rows = cube.decode_all(sobol(cube, 8, seed=0))
    X = cube.encode_all(rows)  # 8 x 2
    Y = torch.tensor([accuracy(params) for params in rows], dtype=torch.float64)  # 8

    # 3. The surrogate: an exact GP on outcomes made robust.
    surrogate = fit_gp(ProductKernel(Features(space)), X, robust(Y))

    # 4. The acquisition: log expected improvement over the best posterior mean.
    settings = Settings(n_initial=8)
    seed = derived_seed(settings.seed, len(rows), 0)
    nothing = X[:0]
    acquisition = make_acquisition(settings, surrogate, X, X_pending=nothing, further=[], seed=seed)

    # 5. The candidate: where that is largest. Starts are screened, then climbed with gradients.
    incumbents = X[posterior_mean(surrogate, X).topk(4).indices]
    x = maximize(acquisition, cube, incumbents, X, settings.num_restarts, settings.num_screened, seed)
    candidate = cube.decode(x)

    best = rows[int(Y.argmax())]
    print(f"best of 8:  {best} -> {accuracy(best):.4f}")
    print(f"train next: {candidate} -> {accuracy(candidate):.4f}")

    # The same in one call: a study goes in, parameters come out.
    trials = tuple(
        Trial(k, params, seed=0, origin="sobol", state=TrialState.COMPLETE, value=accuracy(params))
        for k, params in enumerate(rows)
    )
    assert suggest(Study(space, trials=trials), settings)[0].params == candidate


if __name__ == "__main__":
    main()
