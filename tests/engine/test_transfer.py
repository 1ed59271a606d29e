"""What past studies say of a new one, how far they are trusted, and when they are not listened to."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal

from llamatune_torch import Integer, LlamaTune, Outcome, Real, SearchSpace, Settings
from llamatune_torch.engine import transfer
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.outcome import robust
from llamatune_torch.engine.sources import fit_sources
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.transfer import CONTRAST, FIRST_GUESS, SCALES, Judge, consult, prior_of_scale
from llamatune_torch.errors import PastError
from llamatune_torch.past import PastStudy, PastTrial
from llamatune_torch.space import Params
from llamatune_torch.study import Goal, Study
from llamatune_torch.tables import read_table

SPACE = SearchSpace({"lr": Real(1e-5, 1e-1, prior="log-uniform"), "wd": Real(0, 0.3)})
Function = Callable[[Params], float]


def loss(best: float) -> Function:
    return lambda p: math.log10(p["lr"] / best) ** 2 + 4 * (p["wd"] - 0.1) ** 2


def old(function: Function, n: int = 20, seed: int = 0, space: SearchSpace = SPACE, name: str = "old") -> PastStudy:
    X = torch.quasirandom.SobolEngine(space.dim, scramble=True, seed=seed).draw(n, dtype=torch.float64)
    trials = []
    for params in Cube(space).decode_all(Cube(space).snap(X)):
        try:
            trials.append(PastTrial(params, function(params)))
        except MemoryError:
            trials.append(PastTrial(params, None))
    return PastStudy(name, "minimize", tuple(trials))


def search(function: Function, n: int, past: Any = (), space: SearchSpace = SPACE, **knobs: Any) -> Study:
    def evaluate(params: Params) -> float | Outcome:
        try:
            return function(params)
        except MemoryError:
            return Outcome.failure("out of memory")

    tuner = LlamaTune(space, evaluate, n, direction="minimize", past=past, progress=False, **knobs)
    tuner.optimize()
    return tuner.study


def test_the_first_trial_is_where_the_past_was_good_and_the_second_may_contradict() -> None:
    study = search(loss(3e-3), 7, [old(loss(3e-3))])
    first, second, third, *_ = study.trials
    assert first.value is not None
    assert first.value < 0.1
    assert first.notes == {"past": FIRST_GUESS}
    assert (second.origin, second.notes) == ("sobol", {"past": CONTRAST})
    assert study.trials[5].notes == {"past": CONTRAST}
    assert third.origin == "surrogate"
    assert third.notes["past"].startswith("1 of 1 past studies agree, weight ")


def test_a_study_of_the_same_function_saves_most_of_the_search() -> None:
    regrets = {}
    for past in ((), (old(loss(3e-3), seed=5),)):
        regrets[len(past)] = [search(loss(3e-3), 5, past, seed=seed).best_value for seed in range(5)]
    assert sum(regrets[1]) < 0.25 * sum(regrets[0])


def test_without_past_studies_advice_is_what_it_always_was() -> None:
    cold = search(loss(3e-3), 8)
    assert [t.params for t in search(loss(3e-3), 8, []).trials] == [t.params for t in cold.trials]
    assert all("past" not in trial.notes for trial in cold.trials)


def upside_down(params: Params) -> float:
    return -loss(3e-3)(params)


def test_a_past_that_says_the_opposite_is_switched_off_for_good_and_advice_is_the_cold_searchs() -> None:
    study = search(loss(3e-3), 12, [old(upside_down)])
    note = study.trials[-1].notes["past"]
    assert note.startswith("past studies are not listened to any more: at ")
    assert note in study.summary()
    cold = replace(study, past=())
    assert [s[:2] for s in suggest(study, Settings(), 3)] == [s[:2] for s in suggest(cold, Settings(), 3)]
    assert consult(cold) is None


def test_three_that_do_not_predict_each_other_are_never_listened_to() -> None:
    waves = [old(lambda p, k=k: math.sin(9 * math.log10(p["lr"]) + 40 * p["wd"] + 2 * k)) for k in range(3)]
    study = search(loss(3e-3), 3, waves)
    assert all("they do not predict each other" in trial.notes["past"] for trial in study.trials)
    assert [t.params for t in study.trials] == [t.params for t in search(loss(3e-3), 3).trials]


def test_the_order_of_past_studies_and_their_names_do_not_matter() -> None:
    three = [old(loss(best), name=str(best)) for best in (1e-3, 3e-3, 1e-2)]
    ways = [three, three[::-1], [replace(past, name="x") for past in three], [*three, three[0]]]
    found = [[t.params for t in search(loss(4e-3), 8, way).trials] for way in ways]
    assert all(a == b for a, b in pairwise(found))


PROGRAM = """
from tests_of_transfer import *
print([t.params for t in search(loss(4e-3), 7, [old(loss(b)) for b in (1e-3, 1e-2)]).trials])
"""


def test_the_same_history_gives_the_same_advice_in_any_process() -> None:
    program = f"import importlib.util as u, sys\nspec = u.spec_from_file_location('tests_of_transfer', {__file__!r})\n"
    program += "sys.modules[spec.name] = m = u.module_from_spec(spec)\nspec.loader.exec_module(m)\n" + PROGRAM
    shown = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                       env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PATH": ""}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(shown) == 1
    assert shown.pop().count("lr") == 7


# --- The weights -----------------------------------------------------------------------------------------------------


def test_the_prior_of_the_scale_is_a_probability_around_the_agreement() -> None:
    for agreement in (0.05, 0.5, 0.97):
        prior = prior_of_scale(agreement)
        assert prior.sum() == pytest.approx(1.0)
        assert prior[0] == pytest.approx(0.1)
    assert SCALES[int(prior_of_scale(0.97).argmax())] == 1.0
    assert SCALES[int(prior_of_scale(0.5).argmax())] == 0.5


def test_evidence_is_a_normal_likelihood_with_the_best_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    K, Z = A @ A.mT, torch.randn(5, generator=generator, dtype=torch.float64)
    M = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    judge = Judge(M, K.clone(), 0.05, 0.5)
    noisy = K + 0.05 * torch.eye(5, dtype=torch.float64)
    found = judge.log_evidence(Z, M)
    expected = torch.zeros(len(SCALES), 2, dtype=torch.float64)
    for i, b in enumerate(SCALES):
        for s in range(2):
            r = Z - b * M[:, s]
            inverse = noisy.inverse()
            c = (inverse @ r).sum() / inverse.sum()
            expected[i, s] = multivariate_normal(torch.full((5,), float(c)).numpy(), noisy.numpy()).logpdf(r.numpy())
    assert torch.allclose(found - found[0, 0], expected - expected[0, 0])
    # The first three alone: the leading block of the root.
    shorter = Judge(M[:3], K[:3, :3].clone(), 0.05, 0.5).log_evidence(Z[:3], M[:3])
    assert torch.allclose(judge.log_evidence(Z[:3], M[:3]), shorter)


def test_the_study_that_agrees_gets_the_weight() -> None:
    study = search(loss(3e-3), 6)
    agreeing, opposing = old(loss(2e-3), seed=1), old(loss(1e-5), seed=2)
    past = consult(replace(study, past=(agreeing, opposing)))
    assert past is not None
    assert past.weights[0] > 0.8
    assert past.note == f"1 of 2 past studies agree, weight {past.scale:.2g}"
    assert 0.2 < past.scale <= 1.5


def test_pairs_that_are_ordered_otherwise_mislead() -> None:
    M = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    K = torch.eye(4, dtype=torch.float64)
    values = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    judge = Judge(M, K, 0.05, 0.5)
    assert not judge.misleads(values)
    assert judge.misleads(-values)
    assert not judge.misleads(torch.tensor([0.0, 1.0, 3.0, 2.0], dtype=torch.float64))
    assert robust(values).argmax() == 3


# --- What it goes together with --------------------------------------------------------------------------------------


def walled(limit: float) -> Function:
    def evaluate(params: Params) -> float:
        if params["lr"] > limit:
            raise MemoryError
        return -math.log10(params["lr"])  # the best leans on the wall

    return evaluate


def failed(study: Study) -> int:
    return len(study.failed)


def test_failures_of_the_past_are_not_repeated() -> None:
    def evaluate(params: Params) -> float:
        walled(5e-3)(params)
        return loss(1e-3)(params)

    past = [old(evaluate, seed=seed) for seed in range(3)]
    with_past = [search(evaluate, 6, past, seed=seed) for seed in range(5)]
    cold = [search(evaluate, 6, seed=seed) for seed in range(5)]
    assert sum(map(failed, with_past)) < 0.6 * sum(map(failed, cold))
    assert all(trial.notes["past"] == CONTRAST for study in with_past for trial in study.failed)


def test_a_wall_that_is_elsewhere_is_not_believed_for_long() -> None:
    study = search(walled(1e-1), 14, [old(walled(1e-4), seed=seed) for seed in range(3)])
    assert study.best_params["lr"] > 5e-2


def test_several_at_once_are_different_and_know_of_each_other() -> None:
    past = [old(loss(best)) for best in (1e-3, 3e-3, 1e-2)]
    for n in (2, 4, 8):
        study = Study(SPACE, Goal("minimize"), past=tuple(past))
        batch = suggest(study, Settings(), n)
        assert len({repr(s.params) for s in batch}) == n
        assert [s.notes["past"] for s in batch[:2]] == [FIRST_GUESS, CONTRAST]
    tuner = LlamaTune(SPACE, direction="minimize", past=past, progress=False)
    for _ in range(3):
        trials = tuner.ask(3)
        for trial in trials:
            tuner.tell(trial, loss(4e-3)(trial.params))
    assert tuner.study.best_value < 0.1


def test_with_limits_the_best_that_is_allowed_is_found() -> None:
    def evaluate(params: Params) -> Outcome:
        return Outcome(loss(3e-3)(params), outcomes={"memory_gb": 10 * params["wd"]})

    tuner = LlamaTune(SPACE, evaluate, 10, direction="minimize", past=[old(loss(3e-3))],
                      constraints={"memory_gb": "<= 0.5"}, progress=False)  # fmt: skip
    tuner.optimize()
    assert tuner.study.best_trial.outcomes["memory_gb"] <= 0.5
    assert tuner.study.best_value < 0.05


def test_conditions_and_special_values_go_along() -> None:
    space = SearchSpace(
        {
            "method": ["full", "lora"],
            "lr": Real(1e-5, 1e-1, prior="log-uniform"),
            "rank": Integer(1, 64, prior="log-uniform", when={"method": "lora"}),
            "decay": Real(1e-3, 0.3, prior="log-uniform", special=[0.0]),
        }
    )

    def evaluate(p: Params) -> float:
        off = 0.2 if p["decay"] else 0.0
        by_rank = 0.05 * math.log2(p["rank"] / 16) ** 2 if p["method"] == "lora" else 0.5
        return math.log10(p["lr"] / (1e-2 if p["method"] == "lora" else 1e-3)) ** 2 + off + by_rank

    past = [old(evaluate, 40, seed, space) for seed in range(2)]
    study = search(evaluate, 6, past, space)
    assert study.best_params["method"] == "lora"
    assert study.best_params["decay"] == 0.0
    assert study.best_value < 0.3


def test_users_points_come_first_and_do_not_count_as_the_searchs() -> None:
    point = {"lr": 1e-4, "wd": 0.2}
    study = search(loss(3e-3), 3, [old(loss(3e-3))], initial_points=[point])
    assert study.trials[0].params == point
    assert study.trials[1].notes == {"past": FIRST_GUESS}
    assert study.trials[2].notes == {"past": CONTRAST}


# --- Odd pasts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        old(loss(3e-3), 1),
        PastStudy("failures", "minimize", tuple(PastTrial({"lr": 10.0**-k, "wd": 0.1}, None) for k in range(2, 5))),
        PastStudy("all alike", "minimize", tuple(PastTrial({"lr": 10.0**-k, "wd": 0.1}, 1.0) for k in range(2, 5))),
    ],
    ids=["one trial", "only failures", "all alike"],
)  # fmt: skip
def test_a_past_that_says_nothing_changes_nothing(odd: PastStudy) -> None:
    study = search(loss(3e-3), 5, [odd])
    assert [t.params for t in study.trials] == [t.params for t in search(loss(3e-3), 5).trials]


def test_a_table_and_values_that_are_nan() -> None:
    rows = [f"{10**-k:g},0.1,{loss(3e-3)({'lr': 10**-k, 'wd': 0.1}):g}" for k in (1.5, 2, 2.5, 3, 3.5, 4)]
    trials = read_table(["lr,wd,loss", *rows, "0.1,0.1,nan"], SPACE, "loss")
    past = Study(SPACE, Goal("minimize", "loss"), trials=tuple(trials)).as_past("table")
    assert past.num_completed == 6
    assert search(loss(3e-3), 1, [past]).best_value < 0.1
    odd = PastStudy("odd", "minimize", (*past.trials, PastTrial({"lr": 0.05, "wd": 0.1}, math.nan)))
    assert search(loss(3e-3), 1, [odd]).best_value < 0.1


def test_infinite_losses_are_ranked_last() -> None:
    diverged = old(lambda p: math.inf if p["lr"] > 1e-2 else loss(3e-3)(p))
    assert search(loss(3e-3), 1, [diverged]).best_value < 0.3


def test_five_thousand_trials_and_fifty_studies() -> None:
    large = old(loss(3e-3), 5000)
    assert search(loss(3e-3), 3, [large]).best_value < 0.05
    many = [old(loss(3e-3 * 10 ** (0.01 * k)), 12, seed=k) for k in range(50)]
    sources = fit_sources(SPACE, tuple(many), {})
    assert sources is not None
    assert sources.num_studies == 50
    assert search(loss(3e-3), 1, many).best_value < 0.1


def test_several_objectives_do_not_go_with_past_studies() -> None:
    with pytest.raises(PastError, match="past studies order trials by one metric"):
        LlamaTune(SPACE, past=[old(loss(3e-3))], objectives={"a": "minimize", "b": "minimize"}, progress=False)


def test_many_own_trials_are_judged_by_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    study = search(loss(3e-3), 12)
    monkeypatch.setattr(transfer, "JUDGES", 6)
    past = consult(replace(study, past=(old(loss(3e-3)),)))
    assert past is not None
    assert past.off is None


# --- Beliefs ---------------------------------------------------------------------------------------------------------


def believing(rate: float) -> SearchSpace:
    return SearchSpace({**SPACE.parameters, "lr": Real(1e-5, 1e-1, prior="log-uniform", belief=rate)})


def test_a_right_belief_helps_at_once_and_a_wrong_one_is_given_up() -> None:
    right = search(loss(3e-3), 4, space=believing(3e-3))
    assert right.trials[0].params["lr"] == pytest.approx(3e-3, rel=0.01)
    assert right.trials[0].notes == {"past": FIRST_GUESS}
    assert right.trials[3].notes["past"].startswith("a belief, weight ")
    assert "belief in trial 3: a belief" in right.summary()
    wrong = search(loss(3e-3), 15, space=believing(1e-5))
    assert wrong.best_value < 0.02
    assert "not listened to" in wrong.trials[-1].notes["past"] or wrong.trials[-1].notes["past"].endswith(
        ("weight 0", "weight 0.0")
    ) or float(wrong.trials[-1].notes["past"].split()[-1]) < 0.3  # fmt: skip


def test_beliefs_and_past_studies_go_together() -> None:
    study = search(loss(3e-3), 5, [old(loss(3e-3))], believing(3e-3))
    assert study.trials[4].notes["past"].startswith("1 of 1 past studies agree, belief confirmed, weight ")
