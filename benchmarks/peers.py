"""Other people's optimizers behind one small face, for ``regret.py`` and anyone who compares.

Each is asked for parameters and told what came of them, in its own default set-up, seeded, with integers, choices and
logarithmic scales declared the way its documentation says; a failed run is told the way it says, too:

    random       uniform draws from the space's own unit cube
    optuna-tpe   TPESampler(multivariate=True); a failed trial is told as FAIL
    optuna-gp    GPSampler; the same
    ax           Client; a failed run is told as abandoned, since what is told as failed is suggested again and again.
                 It recommends by its own model (get_best_parameterization)
    smac         HyperparameterOptimizationFacade, deterministic, so that it spends no evaluation on repeats; a failed
                 run is told as CRASHED at the worst cost so far (with its default crash_cost, inf, the fit breaks)
    hebo         HEBO; a failed run is told as nan, which it leaves out. In a small space of choices alone (nmt_lora)
                 its evolution looks for new points almost for ever: that run ends by the time limit
    saas-map     BoTorch's EnsembleMapSaasSingleTaskGP (Eriksson & Jankowiak, 2021, by MAP for four values of tau
                 instead of NUTS) with qLogNoisyExpectedImprovement, its search also around the best. 10 Sobol points;
                 integers and choices by their places in the unit cube, rounded; a failed run is left out
    skopt        Optimizer; it has no word for a failure: told as the worst cost so far

The libraries are imported when they are used, so that one that is missing is missing alone.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from llamatune_torch import Categorical, Integer, Real, SearchSpace
from llamatune_torch.parameter_base import Parameter
from llamatune_torch.problems import Problem
from llamatune_torch.space import Params

Value = float | None  # in the problem's own direction; None for a run that failed


class Searcher(Protocol):
    """What the benchmark needs of an optimizer."""

    def ask(self, q: int) -> list[Params]:
        """The next ``q`` parameter sets, to be evaluated at the same time."""

    def tell(self, values: list[Value]) -> None:
        """What came of the parameter sets asked for last, in their order."""

    def recommended(self) -> Params | None:
        """The parameters it would hand to a user now; ``None``: those that look best."""


class RandomSearch:
    """Uniform draws from the unit cube of the space."""

    def __init__(self, problem: Problem, evals: int, seed: int) -> None:
        self.space = problem.space
        self.generator = torch.Generator().manual_seed(seed)

    def ask(self, q: int) -> list[Params]:
        U = torch.rand(q, self.space.dim, generator=self.generator, dtype=torch.float64)
        return self.space.decode_all(self.space.snap(U))

    def tell(self, values: list[Value]) -> None:
        pass

    def recommended(self) -> None:
        return None


class Optuna:
    """Optuna 5, define-by-run."""

    def __init__(self, problem: Problem, evals: int, seed: int, sampler: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space = problem.space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate=True is called experimental
            if sampler == "tpe":
                chosen: Any = optuna.samplers.TPESampler(seed=seed, multivariate=True)
            else:
                chosen = optuna.samplers.GPSampler(seed=seed)
        self.study = optuna.create_study(sampler=chosen, direction=problem.direction)
        self.failed = optuna.trial.TrialState.FAIL
        self.asked: list[Any] = []

    def ask(self, q: int) -> list[Params]:
        rows = []
        self.asked = []
        for _ in range(q):
            # Parameters are drawn before the next trial is asked for, so that it knows of this one.
            trial = self.study.ask()
            params: Params = {}
            # Define-by-run: conditions in its own manner, by asking for the active parameters only.
            for name in self.space.parents_first:
                condition = self.space.conditions[name]
                if all(parent in params and params[parent] in values for parent, values in condition.items()):
                    params[name] = self.suggested(trial, name, self.space[name])
            rows.append(self.space.validate(params))
            self.asked.append(trial)
        return rows

    @staticmethod
    def suggested(trial: Any, name: str, parameter: Parameter) -> Any:
        if isinstance(parameter, Categorical):
            return trial.suggest_categorical(name, list(parameter.choices))
        if parameter.special:  # by a choice that comes before the range
            kind = trial.suggest_categorical(f"kind of {name}", ["ordinary", *parameter.special])
            if kind != "ordinary":
                return kind
        if isinstance(parameter, Integer):
            return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.prior == "log-uniform")
        assert isinstance(parameter, Real)
        return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.prior == "log-uniform")

    def tell(self, values: list[Value]) -> None:
        for trial, value in zip(self.asked, values, strict=True):
            if value is None:
                self.study.tell(trial, state=self.failed)
            else:
                self.study.tell(trial, value)

    def recommended(self) -> None:
        return None


class Ax:
    """Ax by its ``Client``."""

    def __init__(self, problem: Problem, evals: int, seed: int) -> None:
        from ax.api.client import Client
        from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

        for name in list(logging.root.manager.loggerDict):
            if name.split(".")[0] == "ax":  # a line for each of its trials; each of its loggers has a level of its own
                logging.getLogger(name).setLevel(logging.CRITICAL)
        self.labels = Labels(plain(problem.space))
        self.client = Client(random_seed=seed)
        parameters: list[Any] = []
        for name, parameter in problem.space.parameters.items():
            if isinstance(parameter, Categorical):
                labels = self.labels.of(parameter)
                parameters.append(
                    ChoiceParameterConfig(name, labels, parameter_type="str", is_ordered=parameter.ordered)
                )
            else:
                assert isinstance(parameter, (Real, Integer))
                kind: Any = "int" if isinstance(parameter, Integer) else "float"
                scaling: Any = "log" if parameter.prior == "log-uniform" else "linear"
                unit = self.unit(parameter)
                bounds = (parameter.low / unit, parameter.high / unit)
                parameters.append(RangeParameterConfig(name, bounds, parameter_type=kind, scaling=scaling))
        self.client.configure_experiment(parameters=parameters)
        self.client.configure_optimization(objective="value" if problem.direction == "maximize" else "-value")
        self.asked: list[int] = []

    def ask(self, q: int) -> list[Params]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on its own inputs' scaling
            trials = self.client.get_next_trials(max_trials=q)
            # It may hand out fewer at once than were asked for.
            while len(trials) < q:
                more = self.client.get_next_trials(max_trials=q - len(trials))
                if not more:
                    raise RuntimeError(f"asked for {q} trials at once, Ax gives {len(trials)}")
                trials.update(more)
        self.asked = list(trials)
        return [self.params(row) for row in trials.values()]

    @staticmethod
    def unit(parameter: Real | Integer) -> float:
        """It refuses ranges as narrow as 1e-10 to 1e-5, and asks to scale them; on a log scale nothing else changes."""
        return parameter.low if isinstance(parameter, Real) and parameter.prior == "log-uniform" else 1

    def params(self, row: Mapping[str, Any]) -> Params:
        units = {n: self.unit(p) for n, p in self.labels.space.parameters.items() if isinstance(p, (Real, Integer))}
        return self.labels.params(
            {name: value * units[name] if name in units else value for name, value in row.items()}
        )

    def tell(self, values: list[Value]) -> None:
        for index, value in zip(self.asked, values, strict=True):
            if value is None:
                self.client.mark_trial_abandoned(index)
            else:
                self.client.complete_trial(index, raw_data={"value": value})

    def recommended(self) -> Params | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.params(self.client.get_best_parameterization()[0])


class Smac:
    """SMAC3 by ask and tell."""

    def __init__(self, problem: Problem, evals: int, seed: int) -> None:
        import ConfigSpace
        from smac import HyperparameterOptimizationFacade, Scenario

        self.labels = Labels(plain(problem.space))
        space = ConfigSpace.ConfigurationSpace(seed=seed)
        for name, parameter in problem.space.parameters.items():
            if isinstance(parameter, Categorical):
                labels = self.labels.of(parameter)
                ordinal = ConfigSpace.OrdinalHyperparameter if parameter.ordered else None
                space.add((ordinal or ConfigSpace.CategoricalHyperparameter)(name, labels))
            else:
                assert isinstance(parameter, (Real, Integer))
                kind = ConfigSpace.Float if isinstance(parameter, Real) else ConfigSpace.Integer
                space.add(kind(name, (parameter.low, parameter.high), log=parameter.prior == "log-uniform"))
        self.folder = tempfile.TemporaryDirectory()  # it wants to save its run
        scenario = Scenario(
            space, n_trials=evals, deterministic=True, seed=seed, output_directory=self.folder.name
        )  # fmt: skip
        self.facade = HyperparameterOptimizationFacade(
            scenario, lambda config, seed=0: 0.0, logging_level=False, overwrite=True
        )
        self.worst = WorstCost(problem)
        self.asked: list[Any] = []

    def ask(self, q: int) -> list[Params]:
        self.asked = [self.facade.ask() for _ in range(q)]
        return [self.labels.params(dict(info.config)) for info in self.asked]

    def tell(self, values: list[Value]) -> None:
        from smac.runhistory import StatusType, TrialValue

        for info, value, cost in zip(self.asked, values, self.worst.costs(values), strict=True):
            status = StatusType.CRASHED if value is None else StatusType.SUCCESS
            self.facade.tell(info, TrialValue(cost=cost, status=status), save=False)

    def recommended(self) -> None:
        return None


class Hebo:
    """HEBO by suggest and observe."""

    def __init__(self, problem: Problem, evals: int, seed: int) -> None:
        import numpy as np
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO

        # Its choice among the Pareto front and its evolution draw from the global generators.
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.labels = Labels(plain(problem.space))
        self.sign = minimized(problem)
        rows: list[dict[str, Any]] = []
        for name, parameter in problem.space.parameters.items():
            if isinstance(parameter, Categorical):
                rows.append({"name": name, "type": "cat", "categories": self.labels.of(parameter)})
            else:
                assert isinstance(parameter, (Real, Integer))
                log = parameter.prior == "log-uniform"
                kind = ("pow" if log else "num") if isinstance(parameter, Real) else ("pow_int" if log else "int")
                rows.append({"name": name, "type": kind, "lb": parameter.low, "ub": parameter.high})
        self.optimizer = HEBO(DesignSpace().parse(rows), scramble_seed=seed)
        self.asked: Any = None

    def ask(self, q: int) -> list[Params]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.asked = self.optimizer.suggest(n_suggestions=q)
        return [self.labels.params(row) for row in self.asked.to_dict("records")]

    def tell(self, values: list[Value]) -> None:
        import numpy as np

        costs = [math.nan if value is None else self.sign * value for value in values]
        self.optimizer.observe(self.asked, np.array(costs).reshape(-1, 1))

    def recommended(self) -> None:
        return None


class Skopt:
    """scikit-optimize by its ``Optimizer``."""

    def __init__(self, problem: Problem, evals: int, seed: int) -> None:
        from skopt import Optimizer
        from skopt import space as dimensions

        self.labels = Labels(plain(problem.space))
        self.names = problem.space.names
        axes: list[Any] = []
        for name, parameter in problem.space.parameters.items():
            if isinstance(parameter, Categorical):
                axes.append(dimensions.Categorical(self.labels.of(parameter), name=name))
            else:
                assert isinstance(parameter, (Real, Integer))
                kind = dimensions.Real if isinstance(parameter, Real) else dimensions.Integer
                axes.append(kind(parameter.low, parameter.high, prior=parameter.prior, name=name))
        self.optimizer = Optimizer(axes, random_state=seed)
        self.asked: list[list[Any]] = []
        self.worst = WorstCost(problem)

    def ask(self, q: int) -> list[Params]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it asks for a point again, and says so
            self.asked = [self.optimizer.ask()] if q == 1 else self.optimizer.ask(n_points=q)
        return [self.labels.params(dict(zip(self.names, row, strict=True))) for row in self.asked]

    def tell(self, values: list[Value]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.optimizer.tell(self.asked, self.worst.costs(values))

    def recommended(self) -> None:
        return None


class SaasMap:
    """BoTorch's sparse axis-aligned subspaces, in the space's own unit cube."""

    NUM_INITIAL = 10

    def __init__(self, problem: Problem, evals: int, seed: int) -> None:
        self.space, self.sign, self.seed = plain(problem.space), -minimized(problem), seed
        self.X = torch.zeros(0, self.space.dim, dtype=torch.float64)
        self.Y = torch.zeros(0, 1, dtype=torch.float64)
        self.design = torch.quasirandom.SobolEngine(self.space.dim, scramble=True, seed=seed)
        self.asked = self.X

    def ask(self, q: int) -> list[Params]:
        num_told = len(self.Y)
        U = self.searched(q) if num_told >= self.NUM_INITIAL else self.design.draw(q, dtype=torch.float64)
        self.asked = torch.from_numpy(self.space.snap(U.numpy()))
        return self.space.decode_all(self.asked.numpy())

    def searched(self, q: int) -> torch.Tensor:
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models.map_saas import EnsembleMapSaasSingleTaskGP
        from botorch.optim import optimize_acqf
        from botorch.sampling import SobolQMCNormalSampler
        from gpytorch.mlls import ExactMarginalLogLikelihood

        d = self.space.dim
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")  # that a fit or a search for candidates has ended early
            torch.manual_seed(self.seed + len(self.Y))  # both draw from the global generator
            model = EnsembleMapSaasSingleTaskGP(self.X, self.Y)  # it standardises
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
            sampler = SobolQMCNormalSampler(torch.Size([64]), seed=self.seed)
            value = qLogNoisyExpectedImprovement(model, self.X, sampler)
            bounds = torch.tensor([[0.0] * d, [1.0] * d], dtype=torch.float64)
            found, _ = optimize_acqf(
                value, bounds, q, num_restarts=8, raw_samples=512, options={"sample_around_best": True, "maxiter": 100}
            )
        return found.detach()

    def tell(self, values: list[Value]) -> None:
        worked = torch.tensor([value is not None for value in values])
        told = torch.tensor([[self.sign * value] for value in values if value is not None], dtype=torch.float64)
        self.X, self.Y = torch.cat([self.X, self.asked[worked]]), torch.cat([self.Y, told.reshape(-1, 1)])

    def recommended(self) -> None:
        return None


class WorstCost:
    """Costs (small is good) for libraries that want a number of every run: a failed one is as bad as the worst so far.

    Until one has worked, that is 0 where large values are good (an accuracy), and 10 where small ones are (a loss).
    """

    def __init__(self, problem: Problem) -> None:
        self.sign = minimized(problem)
        self.assumed = 0.0 if problem.direction == "maximize" else 10.0
        self.seen: list[float] = []

    def costs(self, values: list[Value]) -> list[float]:
        self.seen += [self.sign * value for value in values if value is not None]
        worst = max(self.seen, default=self.assumed)
        return [worst if value is None else self.sign * value for value in values]


class Labels:
    """Choices as strings, which every library takes, and the way back to the space's own parameters."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    @staticmethod
    def of(parameter: Categorical) -> list[str]:
        return [repr(choice) for choice in parameter.choices]

    def params(self, row: dict[str, Any]) -> Params:
        params: Params = {}
        for name, parameter in self.space.parameters.items():
            value = row[name]
            if isinstance(parameter, Categorical):
                value = parameter.choices[self.of(parameter).index(str(value))]
            elif isinstance(parameter, (Real, Integer)):
                # Rounding on the way through a logarithm may end a hair outside.
                value = min(max(value.item() if hasattr(value, "item") else value, parameter.low), parameter.high)
            params[name] = value
        return self.space.validate(params)


def plain(space: SearchSpace) -> SearchSpace:
    """The space, if its parameters are of the kinds that every library knows.

    Raises:
        NotImplementedError: a parameter is conditional or has special values.
    """
    for name, parameter in space.parameters.items():
        for trait, given in (("when", space.conditions[name]), ("special", parameter.special)):
            if given:
                raise NotImplementedError(f"{name!r} has {trait}=, which is not translated for this library")
    return space


def minimized(problem: Problem) -> float:
    """The sign that makes small values good."""
    return 1.0 if problem.direction == "minimize" else -1.0


METHODS: dict[str, Callable[[Problem, int, int], Searcher]] = {
    "random": RandomSearch,
    "optuna-tpe": lambda problem, evals, seed: Optuna(problem, evals, seed, "tpe"),
    "optuna-gp": lambda problem, evals, seed: Optuna(problem, evals, seed, "gp"),
    "ax": Ax,
    "smac": Smac,
    "hebo": Hebo,
    "skopt": Skopt,
    "saas-map": SaasMap,
}

# The distribution that a method is made of, for its version.
PACKAGES = {
    "random": "torch",
    "optuna-tpe": "optuna",
    "optuna-gp": "optuna",
    "ax": "ax-platform",
    "smac": "smac",
    "hebo": "HEBO",
    "skopt": "scikit-optimize",
    "saas-map": "botorch",
}


def version(method: str) -> str | None:
    """Name and version of what a method is made of; ``None`` if it is not installed."""
    if method == "llamatune":
        return "this checkout"
    try:
        return f"{PACKAGES[method]} {importlib.metadata.version(PACKAGES[method])}"
    except importlib.metadata.PackageNotFoundError:
        return None
