"""Every run is trained to its end."""

from __future__ import annotations

from random import Random

from simulated import kinds, next_of, play, record, run, search

from llamatune_torch.decisions import Start
from llamatune_torch.engine.breakdown import find_bounds
from llamatune_torch.engine.decide import decide
from llamatune_torch.engine.strategies.full import Full
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.settings import Settings


def test_it_is_the_engine() -> None:
    study, knobs = record(*(run(i, [i / 10] * 10) for i in range(6))), Settings(n_initial=4)
    bounds = find_bounds(study)
    expected = [Start.of(suggestion)._replace(bounds=bounds) for suggestion in suggest(study, knobs, 3)]
    assert decide(study, knobs, Full(), 3) == expected


def test_it_ends_with_the_budget() -> None:
    assert kinds(next_of(record(), "full", left=2.5, n=9)) == ["start 1", "start 1", "finish"]
    (decision,) = next_of(record(), "full", left=0.0)
    assert decision.reason == "the budget is used up"  # type: ignore[union-attr]


def test_what_another_strategy_has_paused_is_finished_first() -> None:
    study = record(run(0, [0.1] * 3), run(1, [0.1] * 10))
    assert kinds(next_of(study, "full", n=2)) == ["resume 0 1", "start 1"]
    assert kinds(next_of(study, "full", left=0.7)) == ["resume 0 1"]
    assert kinds(next_of(study, "full", left=0.5)) == ["finish"]


def test_a_search_has_as_many_runs_as_its_budget() -> None:
    tuner = search(5, "full")
    play(tuner, workers=2, chance=Random(0))
    assert len(tuner.study.completed) == len(tuner.study.trials) == tuner.study.spent == 5
