"""The end of a search: its rule by hand, and when it is not asked at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from strategies import make_study

from llamatune_torch import BudgetSpentError, LlamaTune, Outcome, Real, SearchSpace, Study, Trial, TrialState
from llamatune_torch.decisions import Finish, Start, Wait
from llamatune_torch.engine import stopping
from llamatune_torch.engine.data import training_data
from llamatune_torch.engine.decide import decide
from llamatune_torch.engine.stopping import Verdict, assess
from llamatune_torch.engine.strategies.full import Full
from llamatune_torch.engine.suggest import fit_surrogate
from llamatune_torch.settings import Settings

LINE = SearchSpace({"x": Real(0, 1)})
AUTO = Settings(stopping="auto")


def hill(x: float) -> float:
    return 1 - 4 * (x - 0.4) ** 2


def searched(n: int = 24, noise: float = 0.05, direction: Any = "maximize", unit: float = 1.0) -> Study:
    """Trials all over a hill."""
    rng = np.random.default_rng(1)
    sign = unit if direction == "maximize" else -unit
    rows = [(x, sign * (hill(x) + noise * rng.standard_normal())) for x in np.linspace(0, 1, n).round(4).tolist()]
    return make_study(LINE, [({"x": x}, value) for x, value in rows], direction=direction)


def with_running(study: Study) -> Study:
    return study.with_trial(Trial(len(study.trials), {"x": 0.123}, 0, "surrogate"))


def test_the_gain_is_the_largest_that_one_more_trial_can_bring() -> None:
    study = searched()
    verdict = assess(study, AUTO)
    assert verdict is not None
    # By hand, on a grid: E[(f - m*)+], by the quantiles of a normal variable.
    data = training_data(study, torch.device("cpu"), [])
    gp = fit_surrogate(data)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        mean, variance = gp.prediction().given.moments(grid)
        best = gp.prediction().given.moments(data.X)[0].max()
    sd = variance.sqrt()
    z = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    gains = (mean - best + sd.unsqueeze(-1) * z).clamp_min(0).mean(dim=-1)
    assert verdict.gain / verdict.threshold == pytest.approx(
        float(gains.max()) / (stopping.FRACTION * float(gp.noise.sqrt())), rel=0.02
    )


def test_the_figures_are_in_the_unit_of_the_metric() -> None:
    one, many = assess(searched(), AUTO), assess(searched(unit=1000.0), AUTO)
    assert one is not None
    assert many is not None
    assert many.gain == pytest.approx(1000 * one.gain, rel=0.01)
    assert many.threshold == pytest.approx(1000 * one.threshold, rel=0.01)
    noisy = assess(searched(80, noise=0.1), AUTO)  # the noise, of which the rule takes a fraction
    assert noisy is not None
    assert 0.05 < noisy.threshold / stopping.FRACTION < 0.2


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_search_that_knows_the_top_ends_and_one_that_has_not_seen_it_goes_on(direction: Any) -> None:
    known = assess(searched(60, noise=0.1, direction=direction), AUTO)
    half = searched(60, noise=0.01, direction=direction)
    unseen = assess(replace(half, trials=half.trials[:20]), AUTO)  # up to x = 0.32, and it is rising
    assert known is not None
    assert known.ends
    assert unseen is not None
    assert not unseen.ends


def test_it_is_too_early_before_the_least_number_of_trials() -> None:
    assert assess(searched(19), AUTO) is None
    assert assess(searched(20), AUTO) is not None
    assert assess(searched(24), replace(AUTO, min_evals=25)) is None
    assert assess(searched(12), replace(AUTO, min_evals=12)) is not None
    assert Settings().least_evals(3) == 20
    assert Settings().least_evals(6) == 30


def test_trials_from_elsewhere_do_not_make_it_less_early() -> None:
    study = searched(24)
    added = replace(study, trials=tuple(replace(trial, origin="added") for trial in study.trials))
    assert assess(added, AUTO) is None


def test_it_is_too_early_while_outcomes_say_nothing() -> None:
    flat = make_study(LINE, [({"x": x}, 0.5) for x in np.linspace(0, 1, 24).round(4).tolist()])
    assert assess(flat, AUTO) is None
    rng = np.random.default_rng(0)
    noise = make_study(LINE, [({"x": x}, rng.standard_normal()) for x in np.linspace(0, 1, 40).round(4).tolist()])
    assert assess(noise, AUTO) is None


def test_decisions_end_the_search_and_wait_for_what_runs() -> None:
    study = searched(60, noise=0.1)
    (decision,) = decide(study, AUTO, Full(), 3, 40.0)
    assert isinstance(decision, Finish)
    assert decision.reason == str(assess(study, AUTO))
    assert "expected to gain" in decision.reason
    assert isinstance(decide(with_running(study), AUTO, Full(), 1, 40.0)[0], Wait)
    assert isinstance(decide(study, Settings(), Full(), 1, 40.0)[0], Start)
    assert isinstance(decide(study, replace(AUTO, min_evals=61), Full(), 1, 40.0)[0], Start)


def test_the_same_record_has_the_same_verdict() -> None:
    study = searched(40)
    assert assess(study, AUTO) == assess(replace(study, trials=tuple(study.trials)), AUTO)


def noisy_hill(params: dict[str, Any]) -> float:
    x = params["x"]
    return hill(x) + 0.1 * math.sin(1e6 * x)  # the noise of a seed, the same each time


def test_a_search_ends_early_says_why_and_ends_at_once_when_it_is_started_again(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def tuner(max_evals: int = 100, **knobs: Any) -> LlamaTune:
        place = {"storage": f"sqlite:///{tmp_path}/s.db"}
        knobs = {"stopping": "auto", "progress": False, **place, **knobs}
        return LlamaTune(LINE, noisy_hill, max_evals, **knobs)

    with caplog.at_level("INFO"):
        first = tuner()
        first.optimize()
    ended_at = len(first.study.trials)
    assert 20 <= ended_at < 100
    assert "expected to gain" in caplog.text
    assert first.study.ended is not None
    assert first.study.ended in first.study.summary()
    again = tuner()
    assert again.study.ended == first.study.ended
    again.optimize()
    assert len(again.study.trials) == ended_at
    longer = tuner(min_evals=ended_at + 2)
    longer.optimize()
    assert len(longer.study.trials) >= ended_at + 2
    whole = tuner(max_evals=ended_at + 8, stopping=None)
    whole.optimize()
    assert len(whole.study.trials) == ended_at + 8
    assert whole.study.ended is None


def test_a_study_in_memory_ends_early_too_also_for_those_who_ask() -> None:
    tuner = LlamaTune(LINE, None, 100, stopping="auto", progress=False)

    def go_on() -> None:
        for _ in range(100):
            trial = tuner.ask()
            tuner.tell(trial, Outcome(noisy_hill(trial.params)))

    with pytest.raises(BudgetSpentError, match="expected to gain"):
        go_on()
    assert tuner.study.ended is not None
    assert len(tuner.study.in_state(TrialState.COMPLETE)) < 100


def test_a_verdict_says_both_figures() -> None:
    assert str(Verdict(0.001, 0.002)) == "a further trial is expected to gain 0.001, below 0.002"
    assert not Verdict(0.002, 0.002).ends
