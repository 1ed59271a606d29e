"""``tell``: a result entered by hand."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from commands import SPACE, Cli

from llamatune_torch import LlamaTune, load_study


def test_a_result_by_hand(cli: Cli, mine: LlamaTune, tmp_path: Path) -> None:
    first, second, third = mine.ask(), mine.ask(), mine.ask()
    told = cli("tell", first.number, 0.125, "--cost", 60)
    assert told.out == f"trial {first.number} of study 'mine': complete, value=0.125\n"
    assert cli("tell", second.number, "--failed", "node down").out.endswith("failed: node down\n")
    assert cli("tell", third.number, "nan").code == 0
    study = load_study(f"sqlite:///{tmp_path}/llamatune.db")
    assert (study.trials[first.number].value, study.trials[first.number].cost) == (0.125, 60.0)
    assert study.trials[first.number].notes == {"told": "by hand"}
    assert [t.reason for t in study.failed] == ["out of memory", "node down", "nan"]
    assert study.best_trial.number == first.number


def test_a_negative_value_is_a_value(cli: Cli, mine: LlamaTune, tmp_path: Path) -> None:
    for text, value in (("-0.5", -0.5), ("-1e-3", -1e-3), ("inf", math.inf)):
        number = mine.ask().number
        assert cli("tell", number, text).code == 0, text
        assert load_study(f"sqlite:///{tmp_path}/llamatune.db").trials[number].value == value


def test_telling_leaves_the_settings_and_the_metric_as_they_were(cli: Cli, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/llamatune.db"
    trials = LlamaTune(SPACE, max_evals=17, n_initial=5, seed=3, metric=None, storage=url, name="mine").ask(2)
    assert cli("tell", trials[0].number, 0.5).code == 0
    again = LlamaTune(SPACE, max_evals=17, metric="eval_loss", direction="minimize", storage=url, name="mine")
    assert again.settings.seed == 3  # and the metric could still be named
    shown = json.loads(cli("status", "--json").out)
    assert (shown["max_evals"], shown["metric"]) == (17, "eval_loss")


def test_the_result_of_a_worker_that_fell_silent(cli: Cli, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/llamatune.db"
    gone = LlamaTune(SPACE, storage=url, name="mine", grace=0.05, n_initial=1000)
    trial = gone.ask()
    gone._store._heartbeat.remove(trial.number)  # type: ignore[attr-defined]  # dead, as far as others can see
    time.sleep(0.3)
    other = LlamaTune(SPACE, storage=url, name="mine", grace=0.05, n_initial=1000)
    assert other.ask().retry_of == trial.number
    assert cli("tell", trial.number, 0.25).code == 0
    study = load_study(url)
    assert study.trials[trial.number].value == 0.25
    assert study.spent == 1
