"""The initial design: the user's points first, then the study's Sobol sequence, each point once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from strategies import make_study, make_trial
from test_suggest import LINE, MIXED, params_of, play, quick

from llamatune_torch import Categorical, Integer, Real, SearchSpace, SpaceExhaustedError, Study, Trial, TrialState
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.initial import CENTRED_FROM, initial_suggestions, next_sobol_points
from llamatune_torch.engine.qmc import quasi_random, sobol
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.partial import validate_part
from llamatune_torch.trial import Suggestion


def test_it_ends_where_the_surrogate_can_take_over() -> None:
    begun = make_study(LINE, [({"x": 0.9}, 1.0), ({"x": 0.1}, 0.0)], initial_points=[{"x": 0.5}])
    found = initial_suggestions(begun, quick(n_initial=4), 9)
    assert [s.origin for s in found] == ["initial", "sobol"]
    nothing_completed = make_study(LINE, [({"x": 0.9}, None)] * 5)
    assert len(initial_suggestions(nothing_completed, quick(n_initial=4), 9)) == 9


def test_the_default_comes_first_once_and_counts_as_a_point_of_the_design() -> None:
    space = SearchSpace(LINE, default={"x": 0.75})
    study = make_study(space, initial_points=[{"x": 0.5}, {"x": 0.75}])
    found = initial_suggestions(study, quick(n_initial=4), 4)
    assert [(s.params.get("x"), s.origin) for s in found[:2]] == [(0.75, "default"), (0.5, "initial")]
    assert [s.origin for s in found[2:]] == ["sobol", "sobol"]
    without = initial_suggestions(make_study(LINE, initial_points=[{"x": 0.5}]), quick(n_initial=4), 3)
    assert found[1:] == without  # the sequence is the same
    tried = replace(study, trials=(make_trial(0, {"x": 0.75}, 1.0, origin="default"),))
    assert initial_suggestions(tried, quick(n_initial=4), 9) == found[1:]
    lost = replace(study, trials=(make_trial(0, {"x": 0.75}, state=TrialState.LOST, origin="default"),))
    assert initial_suggestions(lost, quick(n_initial=4), 1) == found[:1]


def test_a_partial_point_does_not_become_the_default() -> None:
    space = SearchSpace({"i": [1, 2], "j": [1, 2]}, default={"i": 1, "j": 1})
    study = Study(space, initial_points=({"i": 1},))
    assert [s.params for s in initial_suggestions(study, quick(), 2)] == [{"i": 1, "j": 1}, {"i": 1, "j": 2}]


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


def large(n: int = CENTRED_FROM, **options: Any) -> SearchSpace:
    """``n`` parameters that vary, and one that does not."""
    return SearchSpace({**{f"x{i}": Real(0.0, 1.0) for i in range(n)}, "constant": Categorical([7])}, **options)


def test_a_large_space_is_tried_in_its_centre_first_and_then_as_ever() -> None:
    found = initial_suggestions(Study(large()), quick(), 3)
    assert found[0] == Suggestion({**{f"x{i}": 0.5 for i in range(CENTRED_FROM)}, "constant": 7}, "sobol")
    assert [s.params for s in found[1:]] == Cube(large()).decode_all(sobol(Cube(large()), 3, 0)[1:])
    one_by_one = play(Study(large()), lambda params: params["x0"], 3, quick())
    assert [trial.params for trial in one_by_one.trials] == [s.params for s in found]


@pytest.mark.parametrize(
    "space",
    [
        large(CENTRED_FROM - 1),
        large(default={**{f"x{i}": 0.25 for i in range(CENTRED_FROM)}, "constant": 7}),
        large(rule=lambda params: params["x0"] != params["x1"]),
    ],
    ids=["smaller", "with a default", "with a rule against its centre"],
)
def test_the_centre_is_left_out(space: SearchSpace) -> None:
    found = [s.params for s in initial_suggestions(Study(space), quick(), 4) if s.origin == "sobol"]
    assert found == Cube(space).decode_all(sobol(Cube(space), len(found), 0))


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


TREE = SearchSpace(
    {
        "x": Real(0, 1),
        "method": ["full", "lora"],
        "rank": Integer(1, 64, when={"method": "lora"}),
        "y": Real(0, 1),
    }
)


def played(points: Sequence[Mapping[str, Any]], n: int, seed: int = 3) -> list[Trial]:
    start = Study(TREE, initial_points=tuple(validate_part(TREE, point) for point in points))
    return list(play(start, lambda params: params["x"], n, quick(n_initial=9, seed=seed)).trials)


PARTS: list[dict[str, Any]] = [
    {"rank": 8},
    {"x": 0.5},
    {"x": 0.25, "method": "full", "y": 0.5},
    {"rank": 8},
    {"x": 0.5},
]


def test_partial_points_are_completed_each_otherwise_and_tried_once() -> None:
    trials = played(PARTS, 7)
    assert [trial.origin for trial in trials] == ["initial"] * 5 + ["sobol"] * 2
    for trial, part in zip(trials, PARTS, strict=False):
        assert TREE.validate(trial.params) == trial.params
        assert trial.params.items() >= part.items()
    filled = [trial.params["y"] for trial in trials]
    assert len(set(filled)) == 7  # the Sobol points behind them are others too
    assert trials[2].params == PARTS[2]


def test_a_partial_point_is_completed_from_the_opening_design() -> None:
    (first, second) = (trial.params for trial in played([{"x": 0.5}, {"method": "lora"}], 2))
    design = quasi_random(4, 2, seed=3)
    assert first == TREE.decode([0.5, *design[0, 1:].tolist()])
    assert second == TREE.decode([float(design[1, 0]), 0.75, *design[1, 2:].tolist()])


def test_partial_points_are_the_same_for_a_seed_one_by_one_or_at_once() -> None:
    one_by_one = [trial.params for trial in played(PARTS, 5)]
    study = Study(TREE, initial_points=tuple(validate_part(TREE, point) for point in PARTS))
    assert params_of(suggest(study, quick(seed=3), 5)) == one_by_one
    assert [trial.params for trial in played(PARTS, 5)] == one_by_one
    assert [trial.params for trial in played(PARTS, 5, seed=4)] != one_by_one


def test_a_lost_partial_point_comes_again_and_a_told_one_does_not_with_another_seed() -> None:
    study = Study(TREE, initial_points=({"x": 0.5}, {"x": 0.75}))
    first = suggest(study, quick(seed=3))[0].params
    lost = study.with_trial(make_trial(0, first, state=TrialState.LOST, origin="initial"))
    assert suggest(lost, quick(seed=3))[0].params == first
    done = study.with_trial(make_trial(0, first, 1.0, origin="initial"))
    assert suggest(done, quick(seed=4))[0].params["x"] == 0.75
    assert [s.origin for s in suggest(done, quick(seed=4), 3)] == ["initial", "sobol", "sobol"]


def test_a_partial_point_that_can_become_nothing_new_is_left_out() -> None:
    space = SearchSpace({"a": [1, 2], "b": [1, 2, 3]})
    study = make_study(space, [({"a": 1, "b": b}, 0.5) for b in (1, 3)])
    study = replace(study, initial_points=({"a": 1}, {"a": 1}, {"a": 2}))
    batch = suggest(study, quick(), 3)
    assert batch[0] == Suggestion({"a": 1, "b": 2}, "initial")
    assert (batch[1].origin, batch[1].params["a"]) == ("initial", 2)
    assert batch[2].origin == "sobol"


def test_whole_points_leave_the_sobol_sequence_where_it_is() -> None:
    whole = make_study(LINE, initial_points=[{"x": 0.5}])
    assert suggest(whole, quick(seed=5), 2)[1].params == suggest(Study(LINE), quick(seed=5))[0].params
