"""Choices with labels in a search: who gets values, and who sees labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llamatune_torch import (
    Categorical,
    Integer,
    LlamaTune,
    ParamsError,
    Real,
    SearchSpace,
    SpaceError,
    TrialState,
    load_study,
)

DTYPES = {"half": torch.float16, "single": torch.float32}
SPACE = {
    "x": Real(-1, 1),
    "targets": Categorical({"qv": ["q_proj", "v_proj"], "all": "all-linear"}),
    "dtype": Categorical(DTYPES),
    "layers": Categorical([[1, 2], [3]]),
}
POINT = {"x": 0.5, "targets": ["q_proj", "v_proj"], "dtype": torch.float16, "layers": (1, 2)}
RECORD = {"x": 0.5, "targets": "qv", "dtype": "half", "layers": [1, 2]}


def spoil(params: dict[str, Any]) -> float:
    """Takes values only, and changes all that it is given."""
    assert params["dtype"] in DTYPES.values()
    assert params["targets"] == "all-linear" or params["targets"] == ["q_proj", "v_proj"]
    assert params["layers"] in ([1, 2], [3])
    score = params["x"] + len(params["layers"])
    if isinstance(params["targets"], list):
        params["targets"].append("k_proj")
    params["layers"].clear()
    params.clear()
    return score


def tuner(function: Any = None, **changes: Any) -> LlamaTune:
    return LlamaTune(SPACE, function, 6, **{"n_initial": 100, "progress": False, **changes})


def check_records(search: LlamaTune) -> None:
    for trial in search.study.trials:
        assert trial.params["targets"] in ("qv", "all")
        assert trial.params["dtype"] in DTYPES
        assert trial.params["layers"] in ([1, 2], [3])
        assert search.study.space.validate(trial.params) == trial.params


def test_the_function_gets_values_of_its_own_and_the_study_keeps_labels() -> None:
    search = tuner(spoil, initial_points=[POINT, {**RECORD, "x": 0.25}])
    best_params, best_value = search.optimize()
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE] * 6
    assert search.study.trials[0].params == RECORD
    assert search.study.trials[1].params == {**RECORD, "x": 0.25}
    check_records(search)
    assert best_params["dtype"] in DTYPES.values()
    assert spoil(best_params) == best_value
    spoil(search.study.best_params)
    assert spoil(search.study.best_params) == best_value  # another copy
    check_records(search)
    assert "torch" not in search.study.summary()
    assert {row["params.layers"] for row in search.study.rows()} <= {"[1,2]", "[3]"}


def test_a_search_goes_on_with_the_surrogate_over_labels_and_lists() -> None:
    search = tuner(spoil, n_initial=4)
    search.optimize()
    assert [trial.origin for trial in search.study.trials[4:]] == ["surrogate"] * 2
    check_records(search)


@pytest.mark.parametrize("stored", [False, True])
def test_ask_hands_out_values_and_tell_takes_the_trial_back_however_it_was_changed(stored: bool, tmp_path: Any) -> None:
    search = tuner(**({"storage": f"sqlite:///{tmp_path}/s.db"} if stored else {}), initial_points=[POINT])
    trial = search.ask()
    assert trial.params == {**POINT, "layers": [1, 2]}
    search.report(trial, 1, 0.5)
    spoil(trial.params)
    assert search.study.trials[0].params == RECORD
    assert search.tell(trial, 0.5).params == RECORD
    first, second = search.ask(2)
    assert {first.params["dtype"], second.params["dtype"]} <= set(DTYPES.values())
    search.abandon(first, "no")
    assert search.add_trial(POINT, 0.75).params == search.add_trial(RECORD, 0.75).params == RECORD
    assert search.recommend().params == RECORD


def test_other_processes_get_the_values_too() -> None:
    search = LlamaTune(SPACE, spoil, 2, n_initial=100, progress=False)
    search.optimize(n_workers=1)
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE] * 2
    check_records(search)


def test_who_has_labels_alone_is_told_before_anything_runs(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    search = tuner(storage=url, name="s", initial_points=[POINT])
    search.tell(search.ask(), 0.5)
    read = load_study(url, "s")
    assert read.best_trial.params == RECORD
    with pytest.raises(ParamsError, match=r"parameter 'dtype' has no value for the label 'half' in this process"):
        _ = read.best_params
    called: list[Any] = []
    blind = LlamaTune(read.space, called.append, 6, storage=url, name="s", progress=False)
    for act in (blind.ask, blind.optimize):
        with pytest.raises(SpaceError, match=r"'dtype' has no value for the label 'half'.*give the space"):
            act()
    assert not called
    assert len(load_study(url, "s").trials) == 1
    blind.add_trial(RECORD, math.pi)  # labels are enough for a record


def test_a_constant_is_in_each_record_and_costs_no_point() -> None:
    space = SearchSpace({"model": "gpt2", "epochs": 3, "flag": True, "nothing": None, "n": (1, 3)})
    assert space["epochs"] == Categorical([3])
    assert space.size == 3
    seen: list[dict[str, Any]] = []

    def evaluate(params: dict[str, Any]) -> float:
        seen.append(params)
        return float(params["n"])

    LlamaTune(space, evaluate, 3, n_initial=2, progress=False).optimize()
    assert sorted(params["n"] for params in seen) == [1, 2, 3]
    assert all(
        params | {"n": 0} == {"model": "gpt2", "epochs": 3, "flag": True, "nothing": None, "n": 0} for params in seen
    )


def test_a_search_follows_comparisons_and_steps() -> None:
    space = {
        "dropout": Real(0, 0.5),
        "rank": Categorical([0, 8, 16, 32]),
        "batch": Integer(8, 64, step=8),
        "size": Integer(1, 64, powers_of=2),
        "alpha": Categorical([1, 2], when={"rank": "> 0"}),
        "where": Categorical(["all", "top"], when={"dropout": ">= 0.2"}),
    }

    def evaluate(params: dict[str, Any]) -> float:
        assert (params["batch"] % 8, params["size"].bit_count()) == (0, 1)
        assert ("alpha" in params) == (params["rank"] > 0)
        assert ("where" in params) == (params["dropout"] >= 0.2)
        return -abs(params["dropout"] - 0.25) - 0.1 * (params.get("where") != "top") + params.get("alpha", 0) / 10

    search = LlamaTune(space, evaluate, 14, n_initial=6, progress=False, max_failures=0)
    best_params, _ = search.optimize()
    assert len(search.study.completed) == 14
    assert best_params["rank"] > 0
