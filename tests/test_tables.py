"""Trials as rows, text and data frames, and from tables."""

from __future__ import annotations

import csv
import io
import math
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from strategies import make_study, make_trial

from llamatune_torch import (
    Categorical,
    Curve,
    Integer,
    ParamsError,
    Real,
    SearchSpace,
    SettingsError,
    Trial,
    TrialState,
)
from llamatune_torch.tables import (
    decode_table,
    html_table,
    read_table,
    show_params,
    show_value,
    to_csv,
    to_dataframe,
    to_row,
    trials_table,
)

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


HARD = {
    "how": Categorical(["=cmd()", "'=cmd()", "-1", -1, "@x", "\x1b[2J", "plain"]),
    "x": Real(-1, 1),
}


def hard_trials() -> list[Trial]:
    """Trials with all that a row can have, whose texts are formulas, lines and escapes."""
    ends: list[dict[str, Any]] = [
        {"value": -0.5, "notes": {"from": "here", "=1": "+2\nlines"}, "outcomes": {"gb": -1.5}},
        {"reason": "=reason", "error": '@error\n  line 7, of "many"', "cost": 2.5},
        {"value": math.inf, "curve": Curve((1, 2), (0.5, 0.25), (None, 1.0)), "worker": "host:7:abc"},
    ]
    choices = HARD["how"].choices
    times = {"started": 1.5, "finished": 4.0}
    return [make_trial(i, {"how": choice, "x": -0.25}, **times, **ends[i % 3]) for i, choice in enumerate(choices)]


def test_a_row_has_all_that_people_ask_for() -> None:
    row = to_row(hard_trials()[1], ["how", "x"])
    assert (row["reason"], row["error"], row["cost"]) == ("=reason", '@error\n  line 7, of "many"', 2.5)
    assert row["started"] == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)
    assert row["finished"] == datetime(1970, 1, 1, 0, 0, 4, tzinfo=UTC)
    row = to_row(hard_trials()[2], ["how", "x"])
    assert (row["curve_length"], row["worker"], row["retry_of"]) == (2, "host:7:abc", None)
    assert to_row(hard_trials()[0], ["how", "x"])["notes.=1"] == "+2\nlines"
    for impossible in (math.nan, math.inf, 1e300, -1e18):
        assert to_row(make_trial(0, {}, 1.0, started=impossible), [])["started"] is None


def test_a_dataframe_has_times_notes_and_errors() -> None:
    pandas = pytest.importorskip("pandas", reason="the extra `report` is not installed")
    frame = to_dataframe(hard_trials(), ["how", "x"])
    assert pandas.api.types.is_datetime64_any_dtype(frame["started"])
    assert (frame["finished"] - frame["started"]).dt.total_seconds().tolist() == [2.5] * len(frame)
    assert frame["notes.from"].tolist()[0] == "here"
    assert frame["curve_length"].tolist()[:3] == [0, 0, 2]
    assert "error" in frame
    assert "worker" in frame


def test_a_written_table_runs_nothing_and_is_read_back() -> None:
    trials = hard_trials()
    file = io.StringIO()
    to_csv([to_row(trial, ["how", "x"]) for trial in trials], file)
    table = list(csv.reader(io.StringIO(file.getvalue())))
    numbers = {i for i, name in enumerate(table[0]) if name in ("value", "params.x", "outcomes.gb")}
    for row in table[1:]:
        for i, cell in enumerate(row):
            if i not in numbers and cell != "-1":  # the choice that is a number
                assert cell[:1] not in ("=", "+", "-", "@", "\t"), (table[0][i], cell)
                assert "\x1b" not in cell
    assert {row[table[0].index("params.x")] for row in table[1:]} == {"-0.25"}
    again = read_table([file.getvalue()], SearchSpace(HARD), "value")
    for new, old in zip(again, trials, strict=True):
        assert (new.params, type(new.params["how"])) == (old.params, type(old.params["how"]))
        assert (new.state, new.value, new.outcomes, new.cost) == (old.state, old.value, old.outcomes, old.cost)
        assert (new.reason, new.error, new.notes) == (old.reason, old.error, old.notes)


def test_html_is_escaped_and_short() -> None:
    trial = make_trial(0, {"<b>": "<script>alert(1)</script>"}, None, reason="\x1b[2J & " + "long " * 100)
    shown = html_table([trial], "<i>loss")
    assert "<script" not in shown
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "\x1b" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert len(shown) < 1000
    assert shown.count("<tr>") == 2


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


SCORED = SearchSpace({"x": Real(0, 1), "fp16": Categorical([True, False]), "n": Categorical([8, 16])})


@pytest.mark.parametrize("word", ["running", "RUNNING", "TrialState.RUNNING", "scheduled", "WAITING"])
def test_a_row_that_is_running_is_not_complete_though_it_has_a_value(word: str) -> None:
    (trial,) = read_table(["x,state,value\n", f"0.5,{word},0.25\n"], SearchSpace({"x": Real(0, 1)}), "value")
    assert (trial.state, trial.value) == (TrialState.LOST, None)
    assert trial.reason == word.lower().removeprefix("trialstate.")


@pytest.mark.parametrize("word", ["stopped", "PRUNED", "TrialState.PRUNED", "early-stopped", "Early_Stopped"])
def test_a_row_that_was_stopped_early_is_a_stopped_trial(word: str) -> None:
    (trial,) = read_table(["x,state,value\n", f"0.5,{word},0.25\n"], SearchSpace({"x": Real(0, 1)}), "value")
    assert (trial.state, trial.value, trial.cause, trial.error) == (TrialState.STOPPED, None, None, None)
    assert trial.reason == word.lower().removeprefix("trialstate.")


@pytest.mark.parametrize("word", ["failed", "FAIL", "crashed", "Error"])
def test_a_row_that_crashed_is_a_failed_trial(word: str) -> None:
    (trial,) = read_table(["x,Status,value\n", f"0.5,{word},0.25\n"], SearchSpace({"x": Real(0, 1)}), "value")
    assert (trial.state, trial.value) == (TrialState.FAILED, None)


def test_a_state_that_nobody_knows_is_named() -> None:
    with pytest.raises(SettingsError, match=r"row 1, column 'state': must be one of .*, but got 'so la la'"):
        read_table(["x,state,value\n", "0.5,so la la,0.25\n"], SearchSpace({"x": Real(0, 1)}), "value")


@pytest.mark.parametrize("cell", ["true", "TRUE", "True", "yes", "1"])
def test_a_boolean_as_other_programs_write_it(cell: str) -> None:
    (trial,) = read_table(["x,fp16,n,value\n", f"0.5,{cell},16.0,0.25\n"], SCORED, "value")
    assert (trial.params["fp16"], trial.params["n"]) == (True, 16)
    assert isinstance(trial.params["n"], int)


@pytest.mark.parametrize("column", ["eval_loss", "eval/loss", "metrics.eval_loss", "summary.eval/loss"])
@pytest.mark.parametrize("prefix", ["", "params.", "config.", "config/", "params_"])
def test_the_columns_of_other_programs(column: str, prefix: str) -> None:
    (trial,) = read_table([f"{prefix}x,{column}\n", "0.5,0.25\n"], SearchSpace({"x": Real(0, 1)}), "eval_loss")
    assert (trial.params, trial.value) == ({"x": 0.5}, 0.25)


def test_columns_may_be_named() -> None:
    columns = {"x": "Learning rate", "value": "F1 (dev)", "cost": "Runtime"}
    lines = ["Learning rate,value,F1 (dev),Runtime\n", "0.5,9,0.25,60\n"]
    (trial,) = read_table(lines, SearchSpace({"x": Real(0, 1)}), "f1", columns)
    assert (trial.params, trial.value, trial.cost) == ({"x": 0.5}, 0.25, 60)
    with pytest.raises(SettingsError, match=r"a column can be given for one of .* but got .'y'"):
        read_table(lines, SearchSpace({"x": Real(0, 1)}), "f1", columns | {"y": "value"})
    with pytest.raises(SettingsError, match="needs a column for parameter 'x', 'lr', but has"):
        read_table(lines, SearchSpace({"x": Real(0, 1)}), "f1", {"x": "lr"})


@pytest.mark.parametrize(
    "data",
    [
        "\ufeffx;value\r\n0,5;0,25\r\n;;\r\n".encode(),  # a spreadsheet where a comma is the decimal sign
        b"sep=;\nx;value\n0,5;0,25\n",
        "x\tvalue\n0.5\t0.25\n".encode("utf-16"),  # "Unicode text"
        b'"x","value"\n"0.5","0.25"',
    ],
)
def test_what_spreadsheets_write(data: bytes) -> None:
    (trial,) = read_table([decode_table(data)], SearchSpace({"x": Real(0, 1)}), "value")
    assert (trial.params, trial.value) == ({"x": 0.5}, 0.25)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("x,value\n0.5,0.5,7\n", "row 1 has 3 cells, but the header has 2"),
        ("x,x,value\n0.5,0.5,7\n", "several columns 'x'"),
        ('x,value\n"' + "1" * 200_000 + '",7\n', "cannot be read: field larger than"),
    ],
)
def test_a_table_that_is_out_of_joint(table: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_table([table], SearchSpace({"x": Real(0, 1)}), "value")
