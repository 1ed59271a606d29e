"""The confirmation of the winner: rounds on shared seeds, who goes, when it ends; whole searches that are confirmed."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from llamatune_torch import BudgetSpentError, LlamaTune, Outcome, SettingsError, StillRunningError, Trial
from llamatune_torch.decisions import Finish, Start, Wait, carried_out
from llamatune_torch.engine.confirm import (
    affordable,
    chances_to_be_best,
    confirmation_seed,
    next_confirmation,
    searched,
)
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study

SPACE: dict[str, Any] = {"x": (0.0, 1.0), "y": (0.0, 1.0)}


def value_of(trial: Trial, noise: float) -> float:
    """A hill, and the noise of these parameters and this seed."""
    chance = Random(f"{trial.seed} {trial.params!r}")
    return 1 - (trial.params["x"] - 0.3) ** 2 - (trial.params["y"] - 0.6) ** 2 + noise * chance.gauss(0, 1)


def tuner(max_evals: int = 21, noise: float = 0.05, **knobs: Any) -> LlamaTune:
    settings: dict[str, Any] = {"n_initial": 10**6, "progress": False, "confirm": 3, **knobs}
    return LlamaTune(SPACE, None, max_evals, **settings)


def play(search: LlamaTune, noise: float = 0.05, workers: int = 1, at_most: int = 1000) -> str:
    """Plays a search to its end, as the loop does; the reason of its end."""
    running: list[Trial] = []
    chance, reason = Random(1), ""
    while at_most:
        while len(running) < workers and search.may_ask():
            try:
                running.append(search.ask())
            except StillRunningError:
                break
            except BudgetSpentError as error:
                reason = str(error)
                break
        if not running:
            return reason
        trial = running.pop(chance.randrange(len(running)))
        search.tell(trial, value_of(trial, noise))
        at_most -= 1
    return "interrupted"


def confirmations(study: Study) -> list[Trial]:
    return [trial for trial in study.trials if trial.origin == "confirm"]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_best_few_train_again_on_shared_seeds_within_the_budget(workers: int) -> None:
    search = tuner()
    reason = play(search, workers=workers)
    study, again = search.study, confirmations(search.study)
    assert [trial.origin for trial in study.trials[:12]] == ["sobol"] * 12  # 21 less 3 times 3
    assert len(study.trials) <= 21
    assert len({repr(trial.params) for trial in again[:3]}) == 3
    seeds = [confirmation_seed(0, number) for number in range(9)]
    for params in {repr(trial.params) for trial in again}:
        own = [trial.seed for trial in again if repr(trial.params) == params]
        assert sorted(own, key=seeds.index) == seeds[: len(own)]
    found = study.confirmed()
    assert found is not None
    assert found.trial == search.recommend() == study.best_trial
    assert found.num_seeds >= 2
    assert reason == study.ended
    known = search.recommendation()
    assert (known.mean, known.low, known.high) == (found.mean, found.low, found.high)


@pytest.mark.parametrize("x", [0.05, 0.31, 0.95])
def test_a_winner_has_beaten_the_default_on_record_or_on_fresh_seeds(x: float) -> None:
    search = tuner(default={"x": x, "y": 0.6})
    play(search)
    study = search.study
    found, default = study.confirmed(), study.default_trial
    assert found is not None
    assert default is not None
    assert study.trials[0] == default
    again = [trial.value or 0.0 for trial in confirmations(study) if trial.params == default.params]
    assert not study.better(default.value or 0.0, found.trial.value or 0.0) or found.num_seeds >= len(again) > 0
    assert "the default (trial 0)" in study.summary()


def test_a_winner_that_is_clear_ends_it_early_and_one_alone_has_the_most_seeds() -> None:
    search = tuner()
    reason = play(search, noise=1e-4)
    again = confirmations(search.study)
    assert len(again) == 4  # a seed for each, and another one for the winner
    assert reason == f"trial {search.study.best_trial.number} is confirmed on 2 fresh seeds"
    assert again[-1].params == search.study.best_params


def test_candidates_that_cannot_be_told_apart_use_up_what_is_kept_for_them() -> None:
    search = tuner(noise=3.0)
    reason = play(search, noise=3.0)
    assert len(search.study.trials) >= 19
    assert not reason or "candidates are left after" in reason or "is confirmed on" in reason


def test_restarted_at_any_point_it_goes_on_the_same(tmp_path: Any) -> None:
    whole = tuner(24, confirm_evals=10)
    play(whole)
    place = {"storage": f"sqlite:///{tmp_path}/s.db"}
    for _ in range(40):
        part = tuner(24, confirm_evals=10, **place)
        if play(part, at_most=2) != "interrupted":
            break
    fields = [[(t.params, t.seed, t.origin, t.value) for t in search.study.trials] for search in (whole, part)]
    assert fields[0] == fields[1]
    count = len(part.study.trials)
    assert part.study.ended is not None
    assert part.study.ended in play(tuner(24, confirm_evals=10, **place))
    assert len(tuner(24, confirm_evals=10, **place).study.trials) == count


def test_a_larger_budget_searches_on_and_confirms_anew_with_what_is_known(tmp_path: Any) -> None:
    place = {"storage": f"sqlite:///{tmp_path}/s.db"}
    play(tuner(21, **place))
    first = tuner(40, **place).study
    play(longer := tuner(40, **place))
    study = longer.study
    assert study.trials[: len(first.trials)] == first.trials
    assert len(searched(study).trials) >= 31
    assert study.trials[-1].origin == "confirm"
    assert study.spent <= 40
    runs = {(repr(trial.params), trial.seed) for trial in confirmations(study)}
    assert len(runs) == len(confirmations(study))  # no candidate has trained on a seed twice


def test_it_waits_for_the_search_and_for_the_round() -> None:
    search = tuner()
    for _ in range(11):
        trial = search.ask()
        search.tell(trial, value_of(trial, 0.05))
    last = search.ask()
    (decision,) = search.decide()
    assert decision == Wait("the last trials of the search are running")
    search.tell(last, value_of(last, 0.05))
    assert [type(decision) for decision in search.decide(5)] == [Start, Start, Start, Wait]
    one, other, third = search.ask(3)
    search.tell(one, 0.5)
    assert search.decide() == [Wait("candidates are running on fresh seed 1")]
    search.abandon(other, "taken away")
    (again,) = search.decide()
    assert isinstance(again, Start)
    assert (again.params, again.seed) == (other.params, other.seed)
    search.tell(search.ask(), Outcome.failure("nan"))
    search.tell(third, 0.4)
    following = [decision for decision in search.decide(3) if isinstance(decision, Start)]
    assert other.params not in [decision.params for decision in following]  # it has failed once


def test_no_candidate_without_a_feasible_trial() -> None:
    settings = Settings(confirm=2)
    study = Study(tuner().study.space)
    assert isinstance(next_confirmation(study, settings, 9.0), Finish)


def test_a_round_starts_whole_or_not_at_all() -> None:
    search = tuner(16, confirm_evals=4, noise=1.0)
    play(search, noise=1.0)
    counts = [trial.seed for trial in confirmations(search.study)]
    assert counts[:3] == [confirmation_seed(0, 0)] * 3
    assert len(counts) in (3, 4)  # one alone may have trained once more


def test_chances_are_those_of_two_normal_variables() -> None:
    search = tuner(noise=0.2)
    play(search, noise=0.2, at_most=12)
    study, settings = search.study, Settings()
    one, other = study.by_value()[:2]
    found = chances_to_be_best(study, [one, other], settings)
    assert math.fsum(found) == pytest.approx(1)
    assert chances_to_be_best(study, [other, one], settings) == pytest.approx(found[::-1], abs=0.02)
    assert chances_to_be_best(study, [study.by_value()[0], study.by_value()[-1]], settings)[0] > 0.9


def test_max_cost_keeps_what_confirmations_cost() -> None:
    search = tuner(100, max_cost=210.0)
    for _ in range(100):
        try:
            trial = search.ask()
        except BudgetSpentError:
            break
        search.tell(trial, Outcome(value_of(trial, 0.05), cost=10.0))
    assert len(searched(search.study).trials) == 12
    assert search.study.cost <= 210
    assert search.study.confirmed() is not None
    assert affordable(search.study, None) == math.inf
    assert affordable(search.study, search.study.cost + 25) == pytest.approx(2.5)


def test_optimize_returns_the_winner_and_its_mean() -> None:
    def train(params: dict[str, Any]) -> float:
        return 1 - (params["x"] - 0.3) ** 2 - (params["y"] - 0.6) ** 2 + 0.01 * chance.gauss(0, 1)

    chance = Random(3)
    settings: dict[str, Any] = {"n_initial": 10**6, "progress": False, "confirm": 2}
    search = LlamaTune(SPACE, train, 14, **settings)
    params, value = search.optimize()
    found = search.study.confirmed()
    assert found is not None
    assert (params, value) == (found.trial.params, found.mean)
    assert f": {found} in trial {found.trial.number}" in search.study.summary()


def test_it_comes_after_the_opening_and_the_engine_of_a_strategy_in_which_runs_pause() -> None:
    search = tuner(18, strategy="screen", n_initial=4)
    while True:
        try:
            trial = search.ask()
        except BudgetSpentError:
            break
        search.report(trial, 100 * trial.until, value_of(trial, 0.01), trial.until)
        if trial.until < 1:
            search.pause(trial)
        else:
            search.tell(trial, value_of(trial, 0.01))
    assert search.study.confirmed() is not None
    assert not search.study.paused
    assert search.study.spent <= 18 + 1e-9


def test_it_comes_after_a_search_that_has_ended_by_itself() -> None:
    search = tuner(60, noise=0.2, stopping="auto", min_evals=20, n_initial=20, num_screened=64, num_restarts=1)
    play(search, noise=0.2)
    assert search.study.confirmed() is not None
    assert len(searched(search.study).trials) <= 51


def test_a_budget_that_leaves_no_search_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"confirm=3 keeps 9 evaluations, so that max_evals=9 leaves none"):
        tuner(9)


def test_a_start_with_a_seed_of_its_own_has_it() -> None:
    study = Study(tuner().study.space)
    trial = carried_out(study, Start({"x": 0.5, "y": 0.5}, "confirm", seed=7), 0, 0.0)
    assert trial is not None
    assert trial.seed == 7
