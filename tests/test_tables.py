"""Trials as rows, text and data frames, and from tables."""

from __future__ import annotations

import io
import math
import sys
from typing import Any

import pytest
from strategies import make_study

from llamatune_torch import Categorical, Integer, ParamsError, Real, SearchSpace, SettingsError, TrialState
from llamatune_torch.tables import read_table, show_params, show_value, trials_table

SPACE = SearchSpace({"lr": (0.0, 1.0), "opt": ["adamw", "sgd"]})


def point(lr: float, opt: str = "adamw") -> dict[str, object]:
    return {"lr": lr, "opt": opt}


def test_values_are_shown_to_four_significant_digits() -> None:
    assert [show_value(v) for v in (2.84561e-05, 0.1, 16, None, True, "adamw")] == [
        "2.846e-05",
        "0.1",
        "16",
        "None",
        "True",
        "'adamw'",
    ]
    assert show_params({"learning_rate": 2.8e-05, "batch_size": 16}) == "{'learning_rate': 2.8e-05, 'batch_size': 16}"


def test_the_table_has_a_line_for_each_trial() -> None:
    study = make_study(SPACE, [(point(0.25), 0.5), (point(0.5), None)])
    lines = trials_table(study.trials).splitlines()
    assert lines[0].split() == ["trial", "value", "lr", "opt", "seconds", "state"]
    assert lines[1].split() == ["0", "0.5", "0.25", "'adamw'", "-", "complete"]
    assert lines[2].split() == ["1", "-", "0.5", "'adamw'", "-", "failed"]
    assert trials_table([]) == "no trials"


CONDITIONAL = SearchSpace({"method": ["full", "lora"], "rank": Integer(1, 8, when={"method": "lora"}), "x": (0.0, 1.0)})
BRANCHES: list[tuple[dict[str, Any], float | None]] = [
    ({"method": "full", "x": 0.5}, 0.5),
    ({"method": "lora", "rank": 4, "x": 0.25}, 0.75),
]


def test_inactive_parameters_are_dashes_in_the_table_and_absent_from_the_summary() -> None:
    study = make_study(CONDITIONAL, BRANCHES)
    lines = [line.split() for line in trials_table(study.trials).splitlines()]
    assert lines[0] == ["trial", "value", "method", "x", "rank", "seconds", "state"]
    assert lines[1] == ["0", "0.5", "'full'", "0.5", "-", "-", "complete"]
    assert lines[2] == ["1", "0.75", "'lora'", "0.25", "4", "-", "complete"]
    assert "rank" not in make_study(CONDITIONAL, BRANCHES[:1]).summary()


def test_inactive_parameters_are_nan_in_the_dataframe() -> None:
    pytest.importorskip("pandas", reason="the extra `report` is not installed")
    frame = make_study(CONDITIONAL, BRANCHES).dataframe()
    assert [name for name in frame if name.startswith("params.")] == ["params.method", "params.rank", "params.x"]
    assert math.isnan(frame["params.rank"][0])
    assert frame["params.rank"][1] == 4


def test_dataframe_has_a_row_for_each_trial_and_a_column_for_each_parameter() -> None:
    pytest.importorskip("pandas", reason="the extra `report` is not installed")
    study = make_study(SPACE, [(point(0.25), 0.5), (point(0.5), None)])
    frame = study.dataframe()
    assert list(frame["number"]) == [0, 1]
    assert list(frame["params.lr"]) == [0.25, 0.5]
    assert list(frame["state"]) == ["complete", "failed"]
    assert frame["value"][0] == 0.5
    assert math.isnan(frame["value"][1])


def test_dataframe_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pandas: pip install 'llamatune-torch\[report\]'"):
        make_study(SPACE).dataframe()


TABLE = """\
number,state,value,params.lr,params.fp16,params.clip,params.rank,cost,reason,outcomes.gb
0,complete,0.5,0.001,True,,4,2.5,,7.5
1,failed,,1e-05,False,1.0,2.0,,out of memory,
2,complete,nan,1e-05,False,1.0,2,,,
3,running,,1e-05,False,1.0,2,,,
4,,0.25,0.01,True,1.0,,,,
"""
TABLE_SPACE = {
    "rank": Integer(1, 8, when={"fp16": True, "clip": None}),
    "lr": Real(1e-5, 1e-2, prior="log-uniform"),
    "fp16": Categorical([True, False]),
    "clip": Categorical([None, 1.0]),
}


def test_a_table_by_hand() -> None:
    trials = read_table(io.StringIO(TABLE), SearchSpace(TABLE_SPACE), "value")
    assert [trial.state for trial in trials] == ["complete", "failed", "failed", "lost", "complete"]
    assert trials[0].params == {"lr": 0.001, "fp16": True, "clip": None, "rank": 4}
    assert isinstance(trials[0].params["rank"], int)
    assert (trials[0].value, trials[0].cost, trials[0].outcomes) == (0.5, 2.5, {"gb": 7.5})
    assert (trials[1].reason, trials[1].value, trials[1].outcomes) == ("out of memory", None, {})
    assert trials[4].params == {"lr": 0.01, "fp16": True, "clip": 1.0}


def test_the_plainest_table_has_names_and_a_score() -> None:
    space = SearchSpace({"x": Real(0, 1), "how": Categorical(["a", "b"])})
    (trial,) = read_table(["how,x,note,accuracy\n", "b, 0.25 ,hello,0.5\n"], space, "accuracy")
    assert (trial.params, trial.value, trial.state) == ({"x": 0.25, "how": "b"}, 0.5, TrialState.COMPLETE)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("", SettingsError, "needs a column for parameter 'x', 'params.x' or 'x', but has []"),
        ("x\n0.5\n", SettingsError, "needs a column for the value, 'value'"),
        ("x,value\nfast,0.5\n", SettingsError, "row 1, column 'x': must be a number, but got 'fast'"),
        ("x,value\n0.5,0.5\n0.5,good\n", SettingsError, "row 2, column 'value': must be a number, but got 'good'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(table: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        read_table(io.StringIO(table), SearchSpace({"x": Real(0, 1)}), "value")
    assert message in str(caught.value)


def test_a_choice_that_does_not_exist() -> None:
    space = SearchSpace({"how": Categorical(["a", None])})
    with pytest.raises(ParamsError, match=r"row 1, column 'how': must be one of \['a', ''\], but got 'c'"):
        read_table(["how,value\n", "c,1\n"], space, "value")
