"""THE page: a pure function of the history, in the right order, that learns from failures."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import make_study, make_trial

from llamatune_torch import (
    Categorical,
    Integer,
    Real,
    SearchSpace,
    Settings,
    SpaceExhaustedError,
    Study,
    Trial,
    TrialState,
)
from llamatune_torch.engine.candidates import is_new
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import training_data
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.recommend import recommend
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.surrogate import fit_gp
from llamatune_torch.seeds import derived_seed
from llamatune_torch.trial import Suggestion

MIXED = SearchSpace(
    {
        "lr": Real(1e-5, 1e-3, prior="log-uniform"),
        "batch": Integer(1, 64, prior="log-uniform"),
        "opt": ["adamw", "sgd", None],
        "size": Categorical(["small", "base", "large"], ordered=True),
    }
)
LINE = SearchSpace({"x": Real(0, 1)})


def quick(**knobs: Any) -> Settings:
    return Settings(**{"n_initial": 4, "num_restarts": 1, "num_screened": 64, "mc_samples": 32, **knobs})


def score(params: dict[str, Any]) -> float:
    return -((math.log10(params["lr"]) + 4) ** 2) + 0.1 * (params["opt"] == "adamw") - 1e-3 * params["batch"]


def explored(direction: Any = "maximize", sign: float = 1.0) -> Study:
    """Five completed trials, one failed, one running: everything that the surrogate may see."""
    rows = [s.params for s in suggest(Study(MIXED), quick(seed=11), 7)]
    tried: list[tuple[dict[str, Any], float | None]] = [(params, sign * score(params)) for params in rows[:5]]
    return make_study(MIXED, [*tried, (rows[5], None)], running=[rows[6]], direction=direction)


def play(
    study: Study, evaluate: Callable[[dict[str, Any]], float | None], num_trials: int, settings: Settings
) -> Study:
    """The loop of an optimizer, without a clock."""
    for _ in range(num_trials):
        params, origin, _ = suggest(study, settings)[0]
        study = study.with_trial(make_trial(len(study.trials), params, evaluate(params), origin=origin))
    return study


def params_of(suggestions: list[Suggestion]) -> list[dict[str, Any]]:
    return [suggestion.params for suggestion in suggestions]


# --- Same history, same advice -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def advice() -> list[Suggestion]:
    """The advice that the tests below expect again."""
    return suggest(explored(), quick(), 2)


@contextmanager
def other_generators() -> Iterator[None]:
    """Other states of every global generator; afterwards all as before."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(987)
    np.random.seed(987)
    random.seed(987)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def test_same_history_same_advice_whatever_the_global_generators(advice: list[Suggestion]) -> None:
    with other_generators():
        assert suggest(explored(), quick(), 2) == advice
    assert [s.origin for s in advice] == ["surrogate", "surrogate"]


def test_global_generators_and_defaults_are_left_as_they_were() -> None:
    before = torch.get_rng_state(), np.random.get_state(), random.getstate(), torch.get_default_dtype()
    suggest(explored(), quick(acquisition="qlognei"), 2)
    suggest(Study(MIXED), quick(), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    now: Any = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(now, before[1], strict=True))
    assert random.getstate() == before[2]
    assert torch.get_default_dtype() == before[3]
    assert not torch.are_deterministic_algorithms_enabled()


@contextmanager
def gradients_left_off() -> Iterator[None]:
    """What an evaluation may leave behind."""
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


MODES: list[Callable[[], AbstractContextManager[Any]]] = [gradients_left_off, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize("mode", MODES)
def test_same_advice_whatever_the_modes_of_torch(
    mode: Callable[[], AbstractContextManager[Any]], advice: list[Suggestion]
) -> None:
    study = explored()
    with mode():
        assert suggest(study, quick(), 2) == advice
        assert recommend(study) == study.best_trial
        assert not torch.is_grad_enabled()
    assert suggest(study, quick(), 2) == advice


def test_same_advice_in_another_process_with_another_hash_seed(advice: list[Suggestion]) -> None:
    code = (
        "import json\n"
        "from test_suggest import explored, quick, suggest, Study, MIXED\n"
        "print(json.dumps([suggest(explored(), quick(), 2), suggest(Study(MIXED), quick(), 2)]))"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "4242",
        "PYTHONPATH": os.pathsep.join(folders),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    here = [advice, suggest(Study(MIXED), quick(), 2)]
    assert json.loads(result.stdout) == json.loads(json.dumps(here))


def test_clocks_costs_seeds_and_notes_of_trials_change_nothing(advice: list[Suggestion]) -> None:
    study = explored()

    def dressed(trial: Trial) -> Trial:
        return replace(trial, started=1.0, finished=2.0, cost=3.0, seed=99, notes={"a": "b"}, outcomes={"memory": 4.0})

    other = replace(study, trials=tuple(dressed(trial) for trial in study.trials))
    assert suggest(other, quick()) == advice[:1]


def test_seeds_give_different_starts() -> None:
    assert params_of(suggest(Study(MIXED), quick(seed=1), 2)) != params_of(suggest(Study(MIXED), quick(seed=2), 2))


def test_derived_seeds_differ_by_each_key_and_never_change() -> None:
    assert derived_seed(0, 1) == 3964924996 == int(np.random.SeedSequence((0, 1)).generate_state(1)[0])
    assert len({derived_seed(a, b) for a in range(20) for b in range(20)}) == 400


def test_minimising_the_negated_values_gives_the_same_advice(advice: list[Suggestion]) -> None:
    assert [s[:2] for s in suggest(explored("minimize", sign=-1.0), quick(), 2)] == [s[:2] for s in advice]


def test_the_study_is_left_as_it_was() -> None:
    study = explored()
    before = repr(study)
    suggest(study, quick(), 2)
    assert repr(study) == before


# --- Initial points, then Sobol, then the surrogate --------------------------------------------------------------


def test_phases_come_in_order() -> None:
    study = make_study(LINE, initial_points=[{"x": 0.125}, {"x": 0.75}])
    study = play(study, lambda params: -abs(params["x"] - 0.3), 7, quick(n_initial=4))
    assert [t.origin for t in study.trials] == ["initial"] * 2 + ["sobol"] * 2 + ["surrogate"] * 3
    assert [t.params["x"] for t in study.trials[:2]] == [0.125, 0.75]


def test_a_batch_may_span_the_phases() -> None:
    study = make_study(LINE, [({"x": 0.9}, 1.0)], initial_points=[{"x": 0.5}])
    batch = suggest(study, quick(n_initial=3), 4)
    assert [s.origin for s in batch] == ["initial", "sobol", "surrogate", "surrogate"]
    assert len({s.params["x"] for s in batch}) == 4


def test_sobol_points_of_a_batch_are_those_asked_for_one_by_one() -> None:
    batch = params_of(suggest(Study(MIXED), quick(n_initial=6), 6))
    alone = play(Study(MIXED), score, 6, quick(n_initial=6))
    assert [trial.params for trial in alone.trials] == batch


def test_the_surrogate_waits_until_something_has_completed() -> None:
    study = make_study(LINE, [({"x": 0.1 * i}, None) for i in range(1, 8)])
    assert [s.origin for s in suggest(study, quick(n_initial=2), 2)] == ["sobol", "sobol"]


def test_with_n_initial_zero_the_surrogate_starts_from_added_trials() -> None:
    study = make_study(LINE, [({"x": 0.1}, 1.0), ({"x": 0.9}, 2.0)])
    assert suggest(study, quick(n_initial=0))[0].origin == "surrogate"


# --- New points only ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_initial", [0, 40])
def test_nothing_done_or_running_is_advised_again_and_a_batch_has_no_duplicates(n_initial: int) -> None:
    study = explored()
    batch = params_of(suggest(study, quick(n_initial=n_initial), 4))
    cube = Cube(MIXED)
    X = cube.encode_all([trial.params for trial in study.trials] + batch)
    for i in range(1, len(X)):
        assert is_new(cube, X[[i]], X[:i]).all()


def test_a_point_under_evaluation_sends_the_next_one_elsewhere() -> None:
    tried = [({"x": x}, -((x - 0.6) ** 2)) for x in (0.05, 0.3, 0.7, 0.95)]
    (alone,) = suggest(make_study(LINE, tried), quick())
    (beside,) = suggest(make_study(LINE, tried, running=[alone.params]), quick())
    assert abs(beside.params["x"] - alone.params["x"]) > 0.02


@pytest.mark.parametrize("n_initial", [2, 20])
def test_a_finite_space_is_used_up_then_exhausted(n_initial: int) -> None:
    space = SearchSpace({"i": (1, 3), "c": ["a", None]})
    study = play(Study(space), lambda params: float(params["i"]), 6, quick(n_initial=n_initial))
    assert len({repr(trial.params) for trial in study.trials}) == 6
    with pytest.raises(SpaceExhaustedError, match=r"all 6 points of the space are done or running"):
        suggest(study, quick(n_initial=n_initial))


def test_a_batch_larger_than_what_is_left_is_refused() -> None:
    space = SearchSpace({"i": (1, 5)})
    tried = [({"i": 1}, 1.0), ({"i": 2}, None)]
    for n_initial in (0, 10):
        assert len(suggest(make_study(space, tried), quick(n_initial=n_initial), 3)) == 3
        with pytest.raises(SpaceExhaustedError):
            suggest(make_study(space, tried), quick(n_initial=n_initial), 4)


# --- The same parameters evaluated again -------------------------------------------------------------------------


def repeated(spread: float) -> Study:
    """Five places, evaluated three times each; ``spread`` is how far apart the outcomes of one place are."""
    tried = [({"x": x}, -((x - 0.6) ** 2) + e * spread) for x in (0.1, 0.3, 0.5, 0.7, 0.9) for e in (-1, 0, 1)]
    return make_study(LINE, tried)


def test_repeated_evaluations_teach_the_noise() -> None:
    def learned(spread: float) -> tuple[float, torch.Tensor]:
        data = training_data(repeated(spread), torch.device("cpu"), [])
        surrogate = fit_gp(ProductKernel(data.features), data.X, data.Y)
        means = surrogate.posterior(data.X[:1]).mean
        return surrogate.likelihood.noise.item(), torch.cat([means.flatten(), data.Y[:3]]).detach()

    quiet, _ = learned(0.0)
    loud, (mean, *values) = learned(0.1)
    assert quiet < 0.01 < 0.1 < loud
    assert min(values) < mean < max(values)


def test_what_was_evaluated_several_times_is_not_advised_once_more() -> None:
    study = repeated(0.02)
    batch = params_of(suggest(study, quick(), 3))
    cube = Cube(LINE)
    X = cube.encode_all([trial.params for trial in study.trials])
    assert is_new(cube, cube.encode_all(batch), X).all()


# --- It finds what is good and avoids what fails -----------------------------------------------------------------


def test_it_closes_in_on_the_optimum_of_a_mixed_space() -> None:
    space = SearchSpace({"x": Real(-1, 1), "n": Integer(1, 40), "c": ["a", "b", "c"]})

    def value(params: dict[str, Any]) -> float:
        return -((params["x"] - 0.3) ** 2) - (params["n"] / 40 - 0.5) ** 2 - 0.2 * (params["c"] != "b")

    study = play(Study(space), value, 18, quick(seed=1, n_initial=6))
    assert study.best_value > -0.01
    assert study.best_params["c"] == "b"


def test_branches_that_fail_are_left_alone() -> None:
    """The crash model knows special values and conditions too."""
    space = SearchSpace(
        {
            "method": ["full", "lora"],
            "batch": Real(0, 1, special=[0.0]),
            "rank": Real(0, 1, when={"method": "lora"}),
        }
    )
    study = play(Study(space), lambda p: None if p["batch"] == 0.0 else 1 - p["batch"] + p.get("rank", 0), 14, quick())
    assert num_failed(study.trials[6:]) <= 2
    assert study.best_value > 1.3


def num_failed(trials: Sequence[Trial]) -> int:
    return sum(trial.state is TrialState.FAILED for trial in trials)


def test_after_some_failures_few_more_follow() -> None:
    """Half of the space fails; the best is in the other half."""
    space = SearchSpace({"x": Real(0, 1), "y": Real(0, 1)})

    def value(params: dict[str, Any]) -> float | None:
        return -((params["x"] - 0.3) ** 2) - (params["y"] - 0.6) ** 2 if params["x"] < 0.5 else None

    study = play(Study(space), value, 12, quick(seed=2))
    assert num_failed(study.trials[:4]) >= 1
    assert num_failed(study.trials[4:]) <= 2
    assert study.best_value > -0.01


def test_hardly_any_fail_where_values_grow_towards_the_wall() -> None:
    """The best is where runs just do not fail. Without a crash model nearly all of the 8 do; with it hardly one."""
    space = SearchSpace({"x": Real(0, 1), "y": Real(0, 1)})
    study = play(Study(space), lambda p: p["x"] if p["x"] < 0.5 else None, 14, quick(seed=2))
    assert num_failed(study.trials[6:]) <= 2
    assert study.best_value > 0.45


def test_a_choice_that_always_fails_is_left_alone() -> None:
    space = SearchSpace({"c": ["works", "fails", "works too"], "x": Real(0, 1)})
    study = play(Study(space), lambda p: None if p["c"] == "fails" else p["x"], 14, quick(n_initial=6))
    assert sum(trial.params["c"] == "fails" for trial in study.trials[6:]) <= 2


@pytest.mark.parametrize("values", [[1.0] * 5, [-math.inf, 0.5, 0.6, -math.inf, 0.7], [0.0, 1e4, 1.0, 2.0, 3.0]])
def test_outcomes_of_any_kind_lead_to_advice(values: list[float]) -> None:
    study = make_study(LINE, [({"x": (i + 0.5) / 5}, value) for i, value in enumerate(values)])
    (advice,) = suggest(study, quick())
    assert 0 <= advice.params["x"] <= 1


def test_what_the_kernels_see_is_described_once_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the surrogate, the crash model and the search for dead ends alike."""
    made, real = [], Features.__init__

    def counting(features: Features, space: SearchSpace) -> None:
        made.append(features)
        real(features, space)

    monkeypatch.setattr(Features, "__init__", counting)
    suggest(explored(), quick(), 2)
    assert len(made) == 1


def test_advice_comes_from_any_device(device: torch.device) -> None:
    for n_initial in (0, 40):
        batch = suggest(explored(), quick(device=str(device), n_initial=n_initial), 2)
        assert all(MIXED.validate(params) == params for params in params_of(batch))
