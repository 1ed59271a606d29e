"""Hypervolume: the front by hand, the factor next to BoTorch's own models, advice that depends on the record alone."""

from __future__ import annotations

import math

import pytest
import torch

from llamatune_torch import LlamaTune, Objective, ObjectiveError, Outcome, Real, SearchSpace, Settings, Study
from llamatune_torch.engine.data import training_data
from llamatune_torch.engine.hypervolume import (
    fit_objectives,
    hypervolume_improvement,
    hypervolume_trace,
    infer_reference,
    may_be_on_front,
    spread_front,
    tame,
)
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.study import Goal
from llamatune_torch.trial import Trial, TrialState

FROM = Goal("maximize", "a", others=(Objective("b", "minimize", 10.0),), reference=0.0)
FREE = Goal("maximize", "a", others=(Objective("b", "minimize"),))
GRID = torch.linspace(0, 1, 9, dtype=torch.float64).tolist()


def study_of(points: list[tuple[float, float, float | None]], goal: Goal = FREE, limit: bool = False) -> Study:
    """A study of trials ``(x, a, b)``, the value of ``b`` being ``None`` where it was not measured."""
    trials = tuple(
        Trial(i, {"x": x}, i, "sobol", TrialState.COMPLETE, a, outcomes={} if b is None else {"b": b})
        for i, (x, a, b) in enumerate(points)
    )
    return Study(SearchSpace({"x": Real(0, 1)}), goal, trials=trials)


def opposed(goal: Goal = FREE) -> Study:
    """Two parabolas with their tops at 0.3 and 0.7: every point between them is on the front."""
    return study_of([(x, -((x - 0.3) ** 2), (x - 0.7) ** 2) for x in GRID], goal)


def test_the_trace_is_the_area_above_the_reference_by_hand() -> None:
    # Above a = 0 and below b = 10: 2 x 6 = 12; then 12 + (4 - 2) x 2 = 16; beyond the reference nothing is added.
    study = study_of([(0.1, 2.0, 4.0), (0.2, 4.0, 8.0), (0.3, 1.0, 5.0), (0.4, 9.0, 12.0), (0.5, 3.0, None)], FROM)
    assert hypervolume_trace(study) == pytest.approx([12.0, 16.0, 16.0, 16.0, 16.0])


def test_without_references_the_trace_takes_one_from_the_whole_study() -> None:
    # The front (2, -4), (4, -8) is 2 and 4 wide, so the reference is (1.8, -8.4).
    study = study_of([(0.1, 2.0, 4.0), (0.2, 4.0, 8.0)])
    assert hypervolume_trace(study) == pytest.approx([0.2 * 4.4, 0.2 * 4.4 + 2.0 * 0.4])


def test_a_trace_of_one_objective_is_refused() -> None:
    with pytest.raises(ObjectiveError, match="has one"):
        LlamaTune({"x": (0.0, 1.0)}, progress=False).hypervolume_trace()


def test_a_reference_is_inferred_even_where_the_front_has_no_width() -> None:
    Y = torch.tensor([[1.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(infer_reference(Y), torch.tensor([0.9, 0.95], dtype=torch.float64))
    torch.testing.assert_close(infer_reference(Y[:1]), torch.tensor([0.9, 0.9], dtype=torch.float64))


def test_a_diverged_run_is_brought_nearer_and_nothing_else_changes() -> None:
    Y = torch.tensor([-1e6, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    spread = math.sqrt((0 + 1 + 4) / 3)
    torch.testing.assert_close(tame(Y), torch.tensor([1 - 10 * spread, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    assert torch.equal(tame(torch.ones(3)), torch.ones(3))


def test_the_factor_is_large_on_the_front_and_small_off_it() -> None:
    study = study_of([(x, -((x - 0.3) ** 2), (x - 0.7) ** 2) for x in (0.0, 0.25, 0.3, 0.7, 0.75, 1.0)])
    data = training_data(study, torch.device("cpu"), [])
    objectives = fit_objectives(study, data)
    assert objectives is not None
    factor = hypervolume_improvement(objectives, data.X_pending, 64, seed=0)
    between, outside = factor.log_value(torch.tensor([[[0.5]], [[0.95]]], dtype=torch.float64)).tolist()
    assert between > outside + 1
    pending = hypervolume_improvement(objectives, torch.tensor([[0.5]], dtype=torch.float64), 64, seed=0)
    assert pending.log_value(torch.tensor([[[0.5]]], dtype=torch.float64)).item() < between - 1


def test_the_points_to_improve_on_are_those_of_the_front() -> None:
    study = opposed()
    objectives = fit_objectives(study, training_data(study, torch.device("cpu"), []))
    assert objectives is not None
    on_front = [0.25 <= x <= 0.75 for x in GRID]
    kept = may_be_on_front(objectives, seed=0)
    assert all(kept[i] for i, on in enumerate(on_front) if on)
    assert not kept[0]
    assert not kept[-1]
    ends = spread_front(objectives, 2).squeeze(-1).tolist()
    assert sorted(ends) == [0.25, 0.75]


def test_what_was_not_measured_is_left_out_of_its_objective_only() -> None:
    points: list[tuple[float, float, float | None]] = [(0.1, 1.0, 2.0), (0.5, 2.0, 3.0), (0.9, 3.0, None)]
    study = study_of(points)
    objectives = fit_objectives(study, training_data(study, torch.device("cpu"), []))
    assert objectives is not None
    assert [len(s.train_targets) for s in objectives.surrogates] == [3, 2]
    assert objectives.X.squeeze(-1).tolist() == [0.1, 0.5]
    unmeasured = study_of([(0.1, 1.0, None)])
    assert fit_objectives(unmeasured, training_data(unmeasured, torch.device("cpu"), [])) is None


def test_the_unit_of_a_given_reference_is_the_surrogates() -> None:
    study = opposed(Goal("maximize", "a", others=(Objective("b", "minimize", 0.49),), reference=-0.09))
    data = training_data(study, torch.device("cpu"), [])
    objectives = fit_objectives(study, data)
    assert objectives is not None
    # At x = 0 the outcomes are just these references.
    at_zero = torch.stack([s.train_targets[0] for s in objectives.surrogates])
    torch.testing.assert_close(objectives.reference, at_zero)


def test_the_same_history_gives_the_same_advice_and_a_batch_is_spread() -> None:
    study, settings = opposed(), Settings(seed=3)
    batch = [s.params["x"] for s in suggest(study, settings, 4)]
    torch.manual_seed(99)
    assert [s.params["x"] for s in suggest(study, settings, 4)] == batch
    assert len(set(batch)) == 4
    assert sum(0.2 < x < 0.8 for x in batch) >= 3


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_the_unit_of_an_objective_does_not_matter(scale: float) -> None:
    points = [(x, -((x - 0.3) ** 2), scale * (x - 0.7) ** 2) for x in GRID]
    (suggestion,) = suggest(study_of(points), Settings())
    (plain,) = suggest(opposed(), Settings())
    assert suggestion.params["x"] == pytest.approx(plain.params["x"], abs=1e-3)


def test_a_limit_keeps_the_search_of_the_front_in_its_half() -> None:
    def evaluate(params: dict[str, float]) -> Outcome:
        x = params["x"]
        return Outcome(-((x - 0.3) ** 2), outcomes={"b": (x - 0.7) ** 2, "m": x})

    objectives = {"a": "maximize", "b": "minimize"}
    search = LlamaTune(
        {"x": (0.0, 1.0)}, evaluate, 13, objectives=objectives, constraints={"m": "<= 0.5"}, progress=False
    )
    search.optimize()
    front = search.study.pareto()
    assert all(trial.params["x"] <= 0.5 for trial in front)
    assert len(front) >= 6
    late = [trial.params["x"] for trial in search.study.trials[7:]]
    assert sum(x > 0.5 for x in late) <= 2
