"""Problems with a known optimum: for tests, for benchmarks, and for trying an optimizer out.

    branin, hartmann6     the classic smooth test functions
    mixed                 a real, a log real, an integer and a choice that interact
    fine_tuning           a simulated fine-tune: a ridge in the learning rate that moves with the batch size, a
                          cliff beyond it where runs diverge, a flat top with the noise of a seed
    memory_limited        the same, with a wall: what does not fit into memory fails
    switched_off          regularisation that is best off, though the least of it does harm; and some best left on
    adapters              full fine-tuning, LoRA or QLoRA, each with parameters that only it has

Each problem maps parameters to the value of a run; ``true_value`` is that value without noise. Others map them to
a learning curve, and differ in what its begin says of its end (``CURVES``, and ``NOISY_CURVES``):

    fine_tune_4, _7, _12  tells good from bad, not the best from the good; in so many parameters
    crossing, reversed    the opposite, until the curves cross
    useless               nothing, until 80 % of the run
    late_divergence       what leads until it diverges
    cliffs                what falls soon, not what falls deep
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.trial import Direction

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A function to optimize.

    Args:
        name: for tables.
        space: where it is defined.
        direction: which values are good.
        optimum: the best value of ``true_value`` in the space.
        true_value: parameters -> value without noise; raises ``MemoryError`` where a run would fail.
        noise: standard deviation of the noise that ``evaluate`` adds.
    """

    name: str
    space: SearchSpace
    direction: Direction
    optimum: float
    true_value: Callable[[Params], float]
    noise: float = 0.0

    def evaluate(self, params: Params, generator: np.random.Generator) -> float:
        """The value that one run at ``params`` returns."""
        return self.true_value(params) + self.noise * float(generator.standard_normal())

    def regret(self, params: Params) -> float:
        """The distance of the true value at ``params`` from the optimum; never negative but for rounding."""
        difference = self.true_value(params) - self.optimum
        return difference if self.direction == "minimize" else -difference


def _branin(params: Params) -> float:
    x, y = params["x"], params["y"]
    parabola = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return float(parabola**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


branin = Problem(
    name="branin",
    space=SearchSpace({"x": Real(-5, 10), "y": Real(0, 15)}),
    direction="minimize",
    optimum=0.39788735772973816,  # at (-pi, 12.275), (pi, 2.275) and (3 pi, 2.475)
    true_value=_branin,
)

_HARTMANN_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN_WEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])


def _hartmann6(params: Params) -> float:
    x = np.array([params[f"x{i}"] for i in range(6)])
    distances = (_HARTMANN_A * (x - _HARTMANN_P) ** 2).sum(axis=1)
    return -float(_HARTMANN_WEIGHTS @ np.exp(-distances))


hartmann6 = Problem(
    name="hartmann6",
    space=SearchSpace({f"x{i}": Real(0, 1) for i in range(6)}),
    direction="minimize",
    optimum=-3.322368011415512,
    true_value=_hartmann6,
)

_MIXED_LEARNING_RATE = {"adamw": 3e-4, "lion": 5e-5, "sgd": 2e-2}
_MIXED_HANDICAP = {"adamw": 0.1, "lion": 0.0, "sgd": 0.6}


def _mixed(params: Params) -> float:
    off: float = math.log10(params["learning_rate"] / _MIXED_LEARNING_RATE[params["optimizer"]])
    layers: float = (params["layers"] - 9) / 4
    dropout: float = (params["dropout"] - 0.1 - 0.02 * (params["layers"] - 9)) / 0.2
    return off**2 + 0.3 * layers**2 + 0.5 * dropout**2 + _MIXED_HANDICAP[params["optimizer"]]


mixed = Problem(
    name="mixed",
    space=SearchSpace(
        {
            "learning_rate": Real(1e-6, 1e-1, prior="log-uniform"),
            "dropout": Real(0, 0.5),
            "layers": Integer(2, 24),
            "optimizer": Categorical(["adamw", "lion", "sgd"]),
        }
    ),
    direction="minimize",
    optimum=0.0,  # lion, 5e-5, 9 layers, dropout 0.1
    true_value=_mixed,
)

_FINE_TUNING_SPACE = SearchSpace(
    {
        "learning_rate": Real(1e-6, 1e-2, prior="log-uniform"),
        "batch_size": Integer(4, 128, prior="log-uniform"),
        "epochs": Integer(1, 5),
        "weight_decay": Real(0, 0.3),
        "warmup": Real(0, 0.3),
        "dropout": Real(0, 0.3),
    }
)
_CHANCE = 0.33


def _fine_tuning(params: Params) -> float:
    # The best learning rate grows with the batch; a rate too high costs more than one too low, and from
    # 8 times too high the run ends at chance. Warm-up moves that cliff a little.
    best_rate = 3e-5 * (params["batch_size"] / 16) ** 0.31
    off = math.log10(params["learning_rate"] / best_rate)
    if off > 0.9 + params["warmup"]:
        return _CHANCE
    slope = 0.05 if off > 0 else 0.02
    return float(
        0.88
        - slope * off**2
        - 0.004 * (5 - params["epochs"]) / 4
        - 0.02 * (params["dropout"] - 0.1) ** 2
        - 0.005 * (params["weight_decay"] - 0.05) ** 2
    )


fine_tuning = Problem(
    name="fine_tuning",
    space=_FINE_TUNING_SPACE,
    direction="maximize",
    optimum=0.88,
    true_value=_fine_tuning,
    noise=0.001,
)


def _memory_limited(params: Params) -> float:
    gigabytes = 6 + 0.25 * params["batch_size"]
    if gigabytes > 16:
        raise MemoryError(f"out of memory: {gigabytes:.1f} GB needed, 16 GB there")
    # Larger batches come out better, so that the optimum leans against the wall.
    return _fine_tuning(params) + 0.01 * (math.log2(params["batch_size"] / 40))


memory_limited = Problem(
    name="memory_limited",
    space=_FINE_TUNING_SPACE,
    direction="maximize",
    optimum=0.88,
    true_value=_memory_limited,
    noise=0.001,
)


def _switched_off(params: Params) -> float:
    loss: float = math.log10(params["learning_rate"] / 3e-4) ** 2
    # Off is best, and there is no way to it down the slope: the best of what is on lies at 1e-2.
    if params["weight_decay"] > 0:
        loss += 0.4 + 0.2 * math.log10(params["weight_decay"] / 1e-2) ** 2
    # These two are better on.
    loss += 0.5 if params["dropout"] == 0 else ((params["dropout"] - 0.1) / 0.3) ** 2
    loss += 0.5 if params["warmup_steps"] == 0 else 0.2 * math.log10(params["warmup_steps"] / 100) ** 2
    return loss


switched_off = Problem(
    name="switched_off",
    space=SearchSpace(
        {
            "learning_rate": Real(1e-5, 1e-2, prior="log-uniform"),
            "weight_decay": Real(1e-4, 1, prior="log-uniform", special=[0.0]),
            "dropout": Real(0, 0.5, special=[0.0]),
            "warmup_steps": Integer(10, 1000, prior="log-uniform", special=[0]),
        }
    ),
    direction="minimize",
    optimum=0.0,  # 3e-4, no weight decay, dropout 0.1, 100 steps of warm-up
    true_value=_switched_off,
)


def _adapters(params: Params) -> float:
    if params["method"] == "full":
        return 0.2 + 0.5 * math.log10(params["learning_rate"] / 2e-5) ** 2
    loss = 0.5 * math.log10(params["adapter_learning_rate"] / 2e-4) ** 2
    loss += 0.1 * math.log2(params["rank"] / 32) ** 2 / 4 + 0.1 * math.log2(params["alpha"] / params["rank"] / 2) ** 2
    if params["method"] == "qlora":
        loss += 0.1 if params["bits"] == 8 else 0.15
    return loss


adapters = Problem(
    name="adapters",
    space=SearchSpace(
        {
            "method": Categorical(["full", "lora", "qlora"]),
            "learning_rate": Real(1e-6, 1e-3, prior="log-uniform", when={"method": "full"}),
            "adapter_learning_rate": Real(1e-5, 1e-2, prior="log-uniform", when={"method": ["lora", "qlora"]}),
            "rank": Integer(2, 256, prior="log-uniform", when={"method": ["lora", "qlora"]}),
            "alpha": Integer(4, 512, prior="log-uniform", when={"method": ["lora", "qlora"]}),
            "bits": Categorical([4, 8], ordered=True, when={"method": "qlora"}),
        }
    ),
    direction="minimize",
    optimum=0.0,  # LoRA with 2e-4, rank 32, alpha 64
    true_value=_adapters,
)

ALL = (branin, hartmann6, mixed, fine_tuning, memory_limited, switched_off, adapters)

#: Steps of a run after which its value is known, all of one length.
NUM_STEPS = 10


@dataclass(frozen=True)
class CurveProblem:
    """A problem whose evaluations are runs with learning curves, of ``NUM_STEPS`` equal steps.

    Args:
        name, space, direction, optimum: as of ``Problem``; a run's value is the last one of its curve.
        true_curve: parameters -> the value after each step, without noise.
        noise: standard deviation of the noise that ``curve`` adds to each value.

    Example:
        >>> curve = crossing.curve({f"x{j}": 0.5 for j in range(5)}, seed=0)
        >>> len(curve)
        10
    """

    name: str
    space: SearchSpace
    direction: Direction
    optimum: float
    true_curve: Callable[[Params], Sequence[float]]
    noise: float = 0.0

    def curve(self, params: Params, seed: int) -> list[float]:
        """The values that a run at ``params`` shows, step by step; the noise is of these parameters and this seed."""
        generator = np.random.default_rng([seed, zlib.crc32(repr(sorted(params.items())).encode())])
        noise = self.noise * generator.standard_normal(NUM_STEPS)
        return [float(value) for value in np.asarray(self.true_curve(params)) + noise]

    def true_value(self, params: Params) -> float:
        """The value at the end of a run, without noise."""
        return float(self.true_curve(params)[-1])

    def regret(self, params: Params) -> float:
        """The distance of the true value at ``params`` from the optimum; never negative but for rounding."""
        difference = self.true_value(params) - self.optimum
        return difference if self.direction == "minimize" else -difference


_SHARES = np.arange(1, NUM_STEPS + 1) / NUM_STEPS  # of a run, at its steps
_CHANCE_LOSS = 3.0


def _bowl(x: Array, centre: Array) -> Array:
    """Losses above the best, 0 at ``centre``: a bowl with dents, in which each next parameter matters less.

    Args:
        x: parameters in [0, 1], of shape ``d``.
        centre: the best of them, ``... x d``.
    """
    away = x - centre
    return np.asarray((0.7 ** np.arange(len(x)) * (away**2 + 0.002 * (1 - np.cos(25 * away)))).sum(axis=-1))


def _centre(dim: int) -> Array:
    return np.asarray(0.5 + 0.25 * np.cos(1.7 * np.arange(dim) + 1))


def _other_centre(dim: int) -> Array:
    """The centre's opposite on a circle: half of the range away in each parameter."""
    return (_centre(dim) + 0.5) % 1.0


def _turn(begin: float, end: float) -> Array:
    """Share of a change that happens between two shares of a run, at its steps."""
    return np.asarray(np.clip((_SHARES - begin) / (end - begin), 0.0, 1.0))


def _fine_tune_curve(x: Array) -> Array:
    # Early in a run, other parameters are best, and move to those of its end with the logarithm of the steps; so early
    # values tell good from bad, not the best from the good. Runs with a rate much too high diverge soon.
    if x[0] > 0.9:
        return np.full(NUM_STEPS, _CHANCE_LOSS)
    early = 1 - np.log10(NUM_STEPS * _SHARES) / np.log10(NUM_STEPS)
    shift = 0.28 * np.sin(2.3 * np.arange(len(x)) + 0.5)
    luck = 0.065 * np.sin(23 * x[:4] + np.arange(4)).sum()
    return np.asarray(1 + early * (1 + luck) + _bowl(x, _centre(len(x)) + early[:, None] * shift))


def _crossing_curve(x: Array) -> Array:
    # Until 40 % those lead that are far from the best at the end; by 80 % all have crossed.
    late = _turn(0.4, 0.8)
    return 2 - _SHARES + (1 - late) * _bowl(x, _other_centre(len(x))) + late * _bowl(x, _centre(len(x)))


def _reversed_curve(x: Array) -> Array:
    # The order of the ends, upside down, until half of the run is over.
    return 2 - _SHARES + (2 * _turn(0.2, 0.8) - 1) * _bowl(x, _centre(len(x)))


def _useless_curve(x: Array) -> Array:
    # Until 80 % differences mean nothing.
    late = _turn(0.8, 1.0)
    noise = 0.1 * np.sin(17 * x + np.arange(len(x))).sum()
    return np.asarray(2 - _SHARES + (1 - late) * noise + late * _bowl(x, _centre(len(x))))


def _late_divergence_curve(x: Array) -> Array:
    # The higher the rate beyond an edge, the better, until the run diverges: the higher, the sooner.
    edge = _centre(len(x))[0] + 0.1
    hot = max(0.0, (x[0] - edge) / (1 - edge))
    losses = 2 - _SHARES + _bowl(x, _centre(len(x))) - 0.5 * hot
    return np.where((hot > 0) & (_SHARES >= 0.95 - 0.5 * hot), _CHANCE_LOSS, losses)


def _cliffs_curve(x: Array) -> Array:
    # At chance, then down a cliff; those that fall first are not those that fall deepest.
    falls_at = 0.05 + 1.2 * abs(x[0] - _other_centre(len(x))[0])
    return np.where(_SHARES >= falls_at, 1 + _bowl(x, _centre(len(x))), _CHANCE_LOSS)


def _curve_problems(noise: float, ending: str) -> tuple[CurveProblem, ...]:
    def made(name: str, dim: int, curve: Callable[[Array], Array]) -> CurveProblem:
        space = SearchSpace({f"x{j}": Real(0, 1) for j in range(dim)})

        def true_curve(params: Params) -> Sequence[float]:
            return [float(value) for value in curve(np.array([params[name] for name in space.names]))]

        return CurveProblem(name + ending, space, "minimize", 1.0, true_curve, noise)  # best at the centre of the bowl

    return (
        made("fine_tune_4", 4, _fine_tune_curve),
        made("fine_tune_7", 7, _fine_tune_curve),
        made("fine_tune_12", 12, _fine_tune_curve),
        made("crossing", 5, _crossing_curve),
        made("reversed", 4, _reversed_curve),
        made("useless", 6, _useless_curve),
        made("late_divergence", 5, _late_divergence_curve),
        made("cliffs", 8, _cliffs_curve),
    )


CURVES = _curve_problems(0.0, "")
#: The same, with noise of about a tenth of what lies between the quartiles of the best quarter.
NOISY_CURVES = _curve_problems(0.0065, "_noisy")
