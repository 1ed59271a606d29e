"""Words for a choice: what is expected of the parameters that a search has chosen, and how they differ from the best.

    expected 0.912 (0.897 to 0.921), 4 % chance to fail; next to trial 12, the best: learning_rate x 2.1,
    method 'lora' instead of 'full', all else alike

The interval holds the value of a run with a probability of 90 %, says the surrogate that chose.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from llamatune_torch.engine.acquisition import Acquisition
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import TrainingData, in_the_metric
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.tables import show_value
from llamatune_torch.trial import Trial

REACH = NormalDist().inv_cdf(0.95)  # standard deviations to either end of an interval of 90 %
FAILURES = ("works", "raises nothing")  # the factors of ``crash.py``
ALIKE = 0.05  # of a column of the unit cube: what differs by less is not spoken of
MOST_NAMED = 3  # parameters
RATIO = 1.5  # numbers that differ by more, and have one sign, are said to be so many times as large


@torch.no_grad()
def say_why(study: Study, data: TrainingData, surrogate: Surrogate, acquisition: Acquisition, x: Tensor) -> str:
    """Says in a line why ``x`` (shape ``d``) was chosen.

    Args:
        study: the record.
        data: of the study.
        surrogate: of the value, or of the first of several objectives.
        acquisition: whose maximiser ``x`` is.
        x: a point of the unit cube.
    """
    parts = {name: float(log.exp()) for name, log in acquisition.parts(x.view(1, 1, -1)).items()}
    said = []
    if not study.goal.others:
        middle, low, high = expect(study, data, surrogate, x)
        said.append(f"expected {middle:.4g} ({low:.4g} to {high:.4g})")
    said += {"exploration": ["where least is known"], "hypervolume": ["to widen the Pareto front"]}.get(
        acquisition.factors[0].name, []
    )
    works = math.prod(parts[name] for name in FAILURES if name in parts)
    if any(name in parts for name in FAILURES):
        said.append(f"{1 - works:.0%} chance to fail")
    limits = {str(limit): limit for limit in study.constraints}
    said += [f"{share:.0%} chance to keep {name}" for name, share in parts.items() if name in limits]
    if not study.feasible:
        return ", ".join(said)
    return f"{', '.join(said)}; {_next_to(study.best_trial, Cube(study.space), x)}"


def expect(study: Study, data: TrainingData, surrogate: Surrogate, x: Tensor) -> tuple[float, float, float]:
    """The value expected of a run at ``x`` (shape ``d``), in the metric, and the bounds of its interval."""
    posterior = surrogate.posterior(x.unsqueeze(0), observation_noise=True)
    mean, half = posterior.mean.reshape(1), REACH * posterior.variance.reshape(1).sqrt()
    middle, *ends = in_the_metric(study, data, torch.cat([mean, mean - half, mean + half])).tolist()
    return middle, min(ends), max(ends)


def _next_to(best: Trial, cube: Cube, x: Tensor) -> str:
    """The parameters that differ most from those of the best trial."""
    params = cube.decode(x)
    distance = (x - cube.encode(best.params).to(x)).abs()
    names = [name for name in cube.space.names if name in params]
    far = [name for name in names if _differs(name, params, best, float(distance[cube.space.names.index(name)]))]
    far.sort(key=lambda name: -float(distance[cube.space.names.index(name)]))
    said = [_change(name, params, best) for name in far[:MOST_NAMED]]
    rest = len(names) - len(said)
    if rest:
        said.append("all else alike" if len(far) <= MOST_NAMED else f"{len(far) - MOST_NAMED} more differ")
    return f"next to trial {best.number}, the best: {', '.join(said)}"


def _differs(name: str, params: Params, best: Trial, distance: float) -> bool:
    if name not in best.params or isinstance(params[name], (bool, str)) or params[name] is None:
        return name not in best.params or repr(params[name]) != repr(best.params[name])
    return distance > ALIKE


def _change(name: str, params: Params, best: Trial) -> str:
    value, old = params[name], best.params.get(name)
    if name not in best.params:
        return f"{name} {show_value(value)}"
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (value, old))
    if numbers and value * old > 0 and max(value / old, old / value) > RATIO:
        return f"{name} x {value / old:.2g}"
    return f"{name} {show_value(value)} instead of {show_value(old)}"
