"""The initial design: the user's points first, then the study's Sobol sequence, each point once."""

from __future__ import annotations

import pytest
from strategies import make_study, make_trial
from test_suggest import LINE, MIXED, params_of, play, quick

from llamatune_torch import Integer, Real, SearchSpace, SpaceExhaustedError, Study, TrialState
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.initial import initial_suggestions, next_sobol_points
from llamatune_torch.engine.qmc import sobol
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.trial import Suggestion


def test_it_ends_where_the_surrogate_can_take_over() -> None:
    begun = make_study(LINE, [({"x": 0.9}, 1.0), ({"x": 0.1}, 0.0)], initial_points=[{"x": 0.5}])
    found = initial_suggestions(begun, quick(n_initial=4), 9)
    assert [s.origin for s in found] == ["initial", "sobol"]
    nothing_completed = make_study(LINE, [({"x": 0.9}, None)] * 5)
    assert len(initial_suggestions(nothing_completed, quick(n_initial=4), 9)) == 9


def test_sobol_points_are_those_of_the_sequence_that_are_not_taken() -> None:
    X = sobol(Cube(MIXED), 6, seed=5)
    found = next_sobol_points(Study(MIXED), quick(seed=5), X[[0, 2]], 3)
    assert found == Cube(MIXED).decode_all(X[[1, 3, 4]])


def test_a_finite_space_is_listed_before_it_is_called_exhausted() -> None:
    space = SearchSpace({"i": (1, 7)})
    taken = Cube(space).encode_all([{"i": i} for i in range(1, 7)])
    assert next_sobol_points(Study(space), quick(), taken, 1) == [{"i": 7}]
    with pytest.raises(SpaceExhaustedError, match=r"all 7 points of the space are done or running"):
        next_sobol_points(Study(space), quick(), taken, 2)


def test_an_initial_point_that_is_on_record_is_not_tried_again() -> None:
    study = make_study(LINE, [({"x": 0.5}, 1.0)], initial_points=[{"x": 0.5}, {"x": 0.25}, {"x": 0.25}])
    batch = suggest(study, quick(n_initial=4), 2)
    assert batch[0] == Suggestion({"x": 0.25}, "initial")
    assert batch[1].origin == "sobol"


def test_initial_points_that_differ_in_type_only_are_all_tried() -> None:
    study = make_study({"c": [1, True, 1.0, 2]}, initial_points=[{"c": 1}, {"c": True}, {"c": 1.0}])
    assert [repr(s.params["c"]) for s in suggest(study, quick(), 3)] == ["1", "True", "1.0"]


def test_a_lost_trial_counts_for_nothing_but_its_sobol_point_is_not_drawn_twice() -> None:
    study = play(Study(LINE), lambda params: params["x"], 2, quick())
    lost = study.with_trial(make_trial(2, suggest(study, quick())[0].params, state=TrialState.LOST))
    nxt = suggest(lost, quick())[0]
    assert nxt.origin == "sobol"
    assert nxt.params not in [trial.params for trial in lost.trials]


@pytest.mark.parametrize("seed", range(40))
def test_the_initial_design_visits_every_parameters_special_values(seed: int) -> None:
    space = SearchSpace(
        {
            "wd": Real(1e-4, 1, prior="log-uniform", special=[0.0]),
            "dropout": Real(0, 0.5, special=[0.0]),
            "lr": Real(1e-5, 1e-3, prior="uniform"),
            "warmup": Integer(10, 1000, special=[0]),
        }
    )
    batch = params_of(suggest(Study(space), quick(seed=seed, n_initial=4), 4))
    for name in ("wd", "dropout", "warmup"):
        assert sorted(params[name] == 0 for params in batch) == [False, False, False, True]


def test_the_first_points_of_a_conditional_space_try_its_choices() -> None:
    methods = ["full", "lora", "qlora"]
    space = SearchSpace({"method": methods, "rank": Integer(1, 64, when={"method": ["lora", "qlora"]})})
    batch = params_of(suggest(Study(space), quick(n_initial=6), 6))
    assert {params["method"] for params in batch} == set(methods)
    assert all(("rank" in params) == (params["method"] != "full") for params in batch)
    assert sum(params["method"] == "full" for params in batch) == 1  # there is but one such point
