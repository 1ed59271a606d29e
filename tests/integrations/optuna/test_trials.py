"""One trial to and from Optuna; whole studies are in test_studies.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra `optuna` is not installed")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial
from strategies import make_trial

from llamatune_torch import Categorical, Curve, Integer, ParamsError, Real, SearchSpace, Trial, TrialState
from llamatune_torch.integrations.optuna.trials import from_frozen_trial, to_frozen_trial
from llamatune_torch.trial import Cause

SPACE = SearchSpace({"x": Real(0, 1, special=[0.0])})
TRIAL = Trial(
    4,
    {"x": 0.5},
    seed=7,
    origin="surrogate",
    state=TrialState.COMPLETE,
    value=0.25,
    curve=Curve((1.0, 2.0), (0.5, 0.25), (0.5, 1.0)),
    outcomes={"memory_gb": 7.5},
    cost=3.0,
    notes={"value": "last"},
    started=100.0,
    finished=103.0,
)
FAILED = replace(
    TRIAL, state=TrialState.FAILED, value=None, reason="out of memory", error="no", cause=Cause.OUT_OF_MEMORY
)


@pytest.mark.parametrize(
    "trial", [TRIAL, replace(TRIAL, params={"x": 0.0}), FAILED], ids=["plain", "special", "failed"]
)
def test_an_exported_trial_comes_back_as_it_was(trial: Trial) -> None:
    back = from_frozen_trial(to_frozen_trial(trial, SPACE), 4, SPACE, "maximize", exported=True)
    assert back == replace(trial, origin="added")


def test_a_special_value_is_a_choice_of_its_own() -> None:
    frozen = to_frozen_trial(replace(TRIAL, params={"x": 0.0}), SPACE)
    assert (frozen.params, frozen.distributions) == (
        {"x (special)": 0.0},
        {"x (special)": CategoricalDistribution((0.0,))},
    )


def test_of_somebody_elses_trial_the_user_attributes_mean_nothing() -> None:
    frozen = create_trial(
        params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}, value=1.0, user_attrs={"seed": 3, "cost": 9.0}
    )
    trial = from_frozen_trial(frozen, 2, SPACE, "maximize")
    assert (trial.number, trial.value, trial.seed, trial.origin) == (2, 1.0, 0, "added")
    assert trial.cost != 9.0


def test_a_pruned_trial_is_stopped_and_a_value_too_good_to_be_true_a_failure() -> None:
    x = {"params": {"x": 0.5}, "distributions": {"x": FloatDistribution(0, 1)}}
    pruned = create_trial(state=OptunaState.PRUNED, intermediate_values={1: 0.5}, **x)
    stopped = from_frozen_trial(pruned, 0, SPACE, "maximize")
    assert (stopped.state, stopped.reason, stopped.cause, stopped.reached) == (TrialState.STOPPED, "pruned", None, 0.0)
    for direction, state in (("maximize", TrialState.FAILED), ("minimize", TrialState.COMPLETE)):
        assert from_frozen_trial(create_trial(value=float("inf"), **x), 0, SPACE, direction).state is state


def test_a_stopped_trial_is_pruned_there_and_stopped_again_here() -> None:
    curve = Curve((1.0, 2.0, 3.0), (0.1, 0.3, 0.2), (0.1, 0.2, None))
    stopped = make_trial(
        4, {"x": 0.5}, state=TrialState.STOPPED, curve=curve, reason="not among the best", reached=0.2, pauses=1
    )
    there = to_frozen_trial(stopped, SPACE)
    assert there.state == OptunaState.PRUNED
    assert there.intermediate_values == {1: 0.1, 2: 0.3, 3: 0.2}
    back = from_frozen_trial(there, 0, SPACE, "maximize", exported=True)
    assert (back.state, back.reason, back.curve, back.reached) == (TrialState.STOPPED, stopped.reason, curve, 0.2)
    assert (back.cause, back.error, back.value, back.is_open) == (None, None, None, False)


def test_parameters_that_do_not_fit_are_refused() -> None:
    frozen = create_trial(params={"x": 1.5}, distributions={"x": FloatDistribution(0, 2)}, value=1.0)
    with pytest.raises(ParamsError, match="x"):
        from_frozen_trial(frozen, 0, SPACE, "maximize")


KINDS = SearchSpace(
    {
        "targets": Categorical({"qv": ["q", "v"], "dtype": float}),
        "layers": Categorical([[1, 2], {"a": [3]}, "none"]),
        "batch": Integer(8, 64, step=8),
        "size": Integer(1, 64, powers_of=2),
        "rank": Integer(2, 8, special=[0], when={"size": "> 1"}),
        "model": "gpt2",
    }
)


@pytest.mark.parametrize(
    "params",
    [
        {"targets": "qv", "layers": {"a": [3]}, "batch": 24, "size": 16, "rank": 0, "model": "gpt2"},
        {"targets": "dtype", "layers": "none", "batch": 64, "size": 1, "model": "gpt2"},
    ],
)
def test_labels_lists_steps_powers_comparisons_and_constants_come_back(params: dict[str, Any]) -> None:
    trial = replace(TRIAL, params=params)
    frozen = to_frozen_trial(trial, KINDS)
    assert frozen.distributions["targets"] == CategoricalDistribution(("qv", "dtype"))
    assert frozen.distributions["layers"] == CategoricalDistribution(("[1,2]", '{"a":[3]}', '"none"'))
    assert frozen.distributions["batch"] == IntDistribution(8, 64, step=8)
    assert frozen.distributions["size"] == CategoricalDistribution((1, 2, 4, 8, 16, 32, 64))
    assert frozen.distributions["model"] == CategoricalDistribution(("gpt2",))
    assert from_frozen_trial(frozen, 4, KINDS, "maximize", exported=True) == replace(trial, origin="added")
