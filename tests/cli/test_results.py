"""``best``, ``trials`` and ``tell``."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import FULL, LORA, Cli
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON_VALUES

from llamatune_torch import Categorical, LlamaTune, Outcome, Real, TrialState
from llamatune_torch.cli.results import arguments
from llamatune_torch.parameter_base import compact
from llamatune_torch.tables import plain
from llamatune_torch.text import quote


def test_best_for_people(cli: Cli, mine: LlamaTune) -> None:
    assert cli("best").out.splitlines() == [
        "loss = 0.5 in trial 0 (of 2; minimize)",
        "  lr = 3e-05",
        "  text = 'two words'",
        "  fp16 = True",
        "  clip = None",
        "  method = 'full'",
        "  (value: last evaluation)",
    ]


def test_the_price_of_a_limit(cli: Cli, tmp_path: Path) -> None:
    def train(params: dict[str, Any]) -> Outcome:
        return Outcome(params["x"], outcomes={"memory_gb": 10 * params["x"]})

    search = LlamaTune(
        {"x": (0.0, 1.0)},
        train,
        10,
        constraints={"memory_gb": "<= 5"},
        progress=False,
        storage="sqlite:///llamatune.db",
    )
    search.optimize()
    *_, limit, gain = cli("best", "--relax").out.splitlines()
    assert limit.endswith("(memory_gb <= 5)")
    assert gain == f"  {search.relaxations()[0]}"
    assert "better by" not in cli("best").out
    for other in ("--json", "--args"):
        result = cli("best", "--relax", other)
        assert (result.code, "--relax is for people to read" in result.err) == (2, True)


def test_the_front_of_several_objectives(cli: Cli, tmp_path: Path) -> None:
    objectives = {"accuracy": "maximize", "latency_ms": "minimize"}
    search = LlamaTune({"x": (0.0, 1.0)}, objectives=objectives, storage="sqlite:///llamatune.db", progress=False)
    for x, latency in ((0.5, 5.0), (0.9, 30.0), (0.4, 6.0)):
        search.add_trial({"x": x}, Outcome(x, outcomes={"latency_ms": latency}))
    front = "Pareto front (maximize accuracy, minimize latency_ms): 2 trials"
    assert cli("best").out.splitlines()[-3:] == [
        front,
        "  accuracy 0.9, latency_ms 30 in trial 1",
        "  accuracy 0.5, latency_ms 5 in trial 0",
    ]
    assert front in cli("status").out
    assert json.loads(cli("best", "--json").out)["pareto"] == [
        {"trial": 1, "accuracy": 0.9, "latency_ms": 30.0, "params": {"x": 0.9}},
        {"trial": 0, "accuracy": 0.5, "latency_ms": 5.0, "params": {"x": 0.5}},
    ]


def test_best_for_programs(cli: Cli, mine: LlamaTune) -> None:
    assert json.loads(cli("best", "--json").out) == {
        "study": "mine",
        "metric": "loss",
        "direction": "minimize",
        "trial": 0,
        "value": 0.5,
        "params": FULL,
    }


def test_best_for_a_training_command(cli: Cli, mine: LlamaTune) -> None:
    line = cli("best", "--args").out
    assert line == "--lr 3e-05 --text 'two words' --fp16 True --method full\n"
    assert shlex.split(line)[2:4] == ["--text", "two words"]
    assert shlex.split(arguments(LORA))[3] == "it's"


def test_booleans_as_flags(cli: Cli, mine: LlamaTune) -> None:
    """As scripts with ``action="store_true"`` want them."""
    assert cli("best", "--args", "--flags").out == "--lr 3e-05 --text 'two words' --fp16 --method full\n"
    assert arguments(LORA, flags=True) == "--lr 0.001 --text 'it'\"'\"'s' --clip 1.0 --method lora --rank 8"
    assert arguments({"a b": True, "off": False, "n": 1, "zero": 0}, flags=True) == "'--a b' --n 1 --zero 0"
    parser = argparse.ArgumentParser()
    parser.add_argument("--fp16", action="store_true")
    for fp16 in (True, False):
        assert parser.parse_args(shlex.split(arguments({"fp16": fp16}, flags=True))).fp16 is fp16
    for alone in (["--flags"], ["--json", "--flags"]):
        result = cli("best", *alone)
        assert (result.code, "--flags is about" in result.err) == (2, True)


def test_a_value_with_a_minus_is_no_option() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bias", type=float)
    parser.add_argument("--text")
    line = arguments({"bias": -1e-05, "text": "-it's"})
    assert vars(parser.parse_args(shlex.split(line))) == {"bias": -1e-05, "text": "-it's"}


def test_what_is_printed_is_read_by_the_parser_of_transformers(cli: Cli, mine: LlamaTune, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    parser = transformers.HfArgumentParser(transformers.TrainingArguments)
    params = {"learning_rate": 3.25e-05, "per_device_train_batch_size": 16, "use_cpu": True, "optim": "adamw_torch"}
    (parsed,) = parser.parse_args_into_dataclasses(shlex.split(f"--output_dir {tmp_path} {arguments(params)}"))
    assert {name: getattr(parsed, name) for name in params} == params


def test_the_recommended_trial(cli: Cli, tmp_path: Path) -> None:
    """A single lucky value next to a place that is good again and again."""
    lucky = LlamaTune({"x": Real(0, 1)}, storage=f"sqlite:///{tmp_path}/llamatune.db", name="lucky")
    for i, value in enumerate([0.5, 0.52, 0.49, 0.51, 0.1, 0.3, 0.2, 0.0]):
        lucky.add_trial({"x": 0.7 if i < 4 else i / 10 - 0.4}, value)
    expected = lucky.recommend()
    found = json.loads(cli("best", "--recommended", "--json").out)
    assert (found["trial"], found["params"]) == (expected.number, expected.params)
    assert "best on average, of 8" in cli("best", "--recommended").out
    sure = json.loads(cli("best", "--confidence", "--json").out)
    known = lucky.recommendation()
    assert (sure["trial"], sure["low"], sure["beats_runner_up"]) == (
        expected.number,
        pytest.approx(known.low),
        pytest.approx(known.beats_runner_up),
    )
    assert (sure["default"], sure["runner_up"]) == (None, known.runner_up and known.runner_up.number)
    assert f"a run on a fresh seed lies between {known.low:.6g} and" in cli("best", "--confidence").out


def test_looks_load_no_torch(mine: LlamaTune, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/llamatune.db"
    for look in (["best"], ["status", "--once"], ["trials"], ["best", "--args"]):
        code = f"import sys; from llamatune_torch.cli.main import main; main({[*look, '--storage', storage]!r})"
        loaded = "; sys.exit(any(name in sys.modules for name in ('torch', 'scipy')))"
        done = subprocess.run([sys.executable, "-c", code + loaded], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (look, done.stderr)


def test_the_table_of_trials(cli: Cli, mine: LlamaTune) -> None:
    lines = cli("trials").out.splitlines()
    assert lines[0].split() == ["trial", "loss", "lr", "text", "fp16", "clip", "method", "rank", "seconds", "state"]
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert rows["0"][1:3] == ["0.5", "3e-05"]
    assert rows["0"][-3:] == ["-", "12.5", "complete"]  # no rank without lora
    assert rows["1"][-3:] == ["8", "3.0", "complete"]
    assert rows["2"][-4:] == ["failed:", "out", "of", "memory"]


def test_the_table_of_trials_on_a_narrow_terminal(cli: Cli, mine: LlamaTune, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a line folds, so that columns stay columns."""
    mine.tell(mine.ask(), Outcome.failure("out of memory " * 5))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    lines = re.sub(r"\x1b\[[\d;]*m", "", cli("trials").out).splitlines()  # as it is seen, without the styles
    assert max(map(len, lines)) == 100
    assert sum(line.count("memory") for line in lines) == 1 + 5
    assert sum("memory" in line for line in lines) > 2


def numbers(shown: str) -> list[int]:
    return [int(line.split()[0]) for line in shown.splitlines() if line.strip()[:1].isdigit()]


def test_some_of_the_trials(cli: Cli, mine: LlamaTune) -> None:
    assert numbers(cli("trials").out) == [0, 1, 2]
    assert numbers(cli("trials", "--state", "complete").out) == [0, 1]
    assert numbers(cli("trials", "--by-value").out) == [0, 1]  # small is good here
    assert numbers(cli("trials", "--last", 2).out) == [1, 2]
    for state in TrialState:
        expected = {"complete": [0, 1], "failed": [2]}.get(state, [])
        assert numbers(cli("trials", "--state", state).out) == expected


def test_all_about_one_trial(cli: Cli, mine: LlamaTune) -> None:
    shown = cli("trials", 1).out
    assert "trial 1 of study 'mine'" in shown
    assert "  rank: 8" in shown
    assert "loss: 0.75" in shown
    assert "  step 10  (50%): 0.875" in shown
    assert "  clip: None" in cli("trials", 0).out
    assert "memory_gb: 7.5" in cli("trials", 0).out
    assert cli("trials", 2).out.endswith("Traceback\n  line 7\nMemoryError\n")


EVIL = "\x1b]0;owned\x07"


def test_no_command_obeys_escapes(cli: Cli, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/llamatune.db"
    space = {f"x {EVIL}": Real(0, 1), "how": Categorical([EVIL, "it's"])}
    tuner = LlamaTune(space, storage=url, name="mine", n_initial=1000, max_evals=9)
    tuner.tell(tuner.ask(), Outcome(0.5, notes={EVIL: EVIL}, outcomes={EVIL: 1.0}))
    tuner.tell(tuner.ask(), Outcome.failure(EVIL, f"first\n{EVIL}"))
    tuner.ask()
    looks = [
        "status",
        "best",
        "best --args",
        "best --json",
        "trials",
        "trials 0",
        "trials 1",
        "export --csv",
        "export --json",
    ]
    for look in looks:
        result = cli(*look.split())
        assert result.code == 0, result
        assert "\x1b" not in result.out + result.err, look
        assert "\x07" not in result.out + result.err, look
    assert "\x1b" not in tuner.study.summary()
    result = cli("status", "--name", EVIL)
    assert (result.code, "\x1b" in result.err) == (1, False)
    cli("export", "--csv", "trials.csv")
    assert cli("import", "--csv", "trials.csv").out == "2 trials added\n"  # the table has its names and choices still


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.one_of(st.text(), JSON_VALUES), min_size=1)
)
def test_names_and_values_of_any_kind_come_back_from_a_shells_words(params: dict[str, Any]) -> None:
    printable = {name: value for name, value in params.items() if not _needs_bash(name, value)}
    expected: list[str] = []
    for name, value in printable.items():
        text = compact(value) if isinstance(value, (list, dict)) else str(value)
        if value is not None:  # a minus is tied to its name
            expected += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    assert shlex.split(arguments(printable)) == expected


def _needs_bash(*texts: Any) -> bool:
    """True for what is quoted as $'...', which shlex does not know."""
    return any(quote(str(plain(text))).startswith("$") for text in texts)


def test_names_with_spaces_and_labels(cli: Cli, tmp_path: Path) -> None:
    space = {"learning rate": Real(0, 1), "it's": Categorical({"qv": [object], "all": 1}), "layers": [[1, 2], [3]]}
    made = LlamaTune(space, storage=f"sqlite:///{tmp_path}/llamatune.db", name="odd names")
    made.add_trial({"learning rate": 0.5, "it's": [object], "layers": [1, 2]}, 1.0)
    assert shlex.split(cli("best", "--args").out) == [
        *("--learning rate", "0.5", "--it's", "qv", "--layers", "[1,2]"),
    ]
    assert json.loads(cli("best", "--json").out)["params"] == {"learning rate": 0.5, "it's": "qv", "layers": [1, 2]}
    assert "  layers = [1,2]\n" in cli("best").out
    assert cli("trials").out.splitlines()[1].split()[2:5] == ["0.5", "'qv'", "[1,2]"]
    assert "  layers: [1,2]\n" in cli("trials", "0").out


def test_limits_and_rules_from_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "limited.py").write_text(
        "from llamatune_torch import Linear, Outcome, Real\n"
        "space = {'a': Real(0, 1)}\n"
        "search = {'max_evals': 4, 'n_initial': 4, 'constraints': {'memory_gb': '<= 5'}}\n"
        "search['rule'] = [lambda p: p['a'] > 0.1, Linear({'a': 1}, upper=0.8)]\n"
        "def evaluate(p):\n"
        "    return Outcome(p['a'], outcomes={'memory_gb': 10 * p['a'] + EXTRA})\n"
        "EXTRA = 0\n"
    )
    assert cli("run", "limited.py", "--name", "limited").code == 0
    best = float(json.loads(cli("best", "--name", "limited", "--json").out)["value"])
    assert 0.1 < best <= 0.5
    assert cli("best", "--name", "limited").out.splitlines()[-1] == f"  memory_gb = {10 * best:.4g} (memory_gb <= 5)"
    assert cli("run", "limited.py", "--name", "limited", "--trials", "5").code == 0  # the same limits and rules
    other = (tmp_path / "limited.py").read_text().replace("EXTRA = 0", "EXTRA = 9")
    (tmp_path / "none.py").write_text(other)
    assert cli("run", "none.py", "--name", "none").code != 0
    assert "no completed trial keeps the limits: memory_gb <= 5" in cli("status", "--name", "none").out
    failed = cli("best", "--name", "none")
    assert failed.code != 0
    assert "none of 4 completed trials keeps the limits: memory_gb <= 5 (nearest: " in failed.err
