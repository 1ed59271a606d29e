"""A look at a fine-tune before the first trial."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import SPACE, tiny_trainer
from transformers import Trainer

from llamatune_torch import MetricError, TrainerError, tune
from llamatune_torch.cli.main import main
from llamatune_torch.integrations.trainer import check
from llamatune_torch.integrations.trainer.check import Check, look_ahead
from llamatune_torch.integrations.trainer.tune import prepare
from llamatune_torch.runtime.evaluation import run_trial
from llamatune_torch.trial import Outcome, Trial

SPEC = """
from pathlib import Path
from llamatune_torch import Real
from tiny import tiny_trainer

space = {"learning_rate": Real(1e-3, 1e-1, prior="log-uniform")}
search = {"metric": "accuracy", "constraints": {"memory_gb": "<= 2"}}

def trainer_factory(params):
    return tiny_trainer(params, Path(__file__).parent)

def evaluate(params):
    return 1.0
"""


def factory(folder: Path, params: dict[str, Any], **changes: Any) -> Trainer:
    return tiny_trainer(params, folder, **changes)


def looked(build: Any, **arguments: Any) -> list[str]:
    keeper = prepare(build, SPACE, progress=False, **arguments)
    trial = Trial(0, {"learning_rate": 1e-2}, 0, "initial")
    return list(Check(keeper.fine_tune, keeper.optimizer.study.constraints)(trial).lines)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks here: a process takes seconds to load transformers. The command line's test has a real one."""

    def run_here(evaluate: Any, params: Any, seed: int) -> Outcome:
        outcome = run_trial(evaluate, Trial(0, params, seed, "initial"))
        if isinstance(outcome, Outcome):
            return outcome
        raise outcome

    monkeypatch.setattr(check, "run_apart", run_here)


def test_a_look_says_what_fits_how_long_it_takes_and_what_counts(tmp_path: Path) -> None:
    constraints = {"memory_gb": "<= 2"}
    lines = looked(partial(factory, tmp_path), metric="accuracy", output_dir=tmp_path / "o", constraints=constraints)
    checked, memory, metric, time, evaluation = lines
    assert checked == "checked with learning_rate=0.01"
    assert memory.startswith("memory: batch ")
    assert " at length 4 fits into 2 GB, " in memory
    assert metric == "metric: eval_accuracy, to maximize; evaluated on 32 examples, after each epoch"
    assert time.startswith("time: a step takes ")
    assert ", so 4 steps take about " in time
    assert evaluation.startswith("evaluation: works, eval_accuracy = ")
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_model_that_does_not_fit_at_all_is_said(tmp_path: Path) -> None:
    limit = {"memory_gb": "<= 0.001"}
    lines = looked(partial(factory, tmp_path), output_dir=tmp_path / "o", constraints=limit)
    assert "not even one sequence of length 4 fits into 0.001 GB" in lines[1]


@pytest.mark.usefixtures("in_this_process")
def test_a_wrong_metric_and_a_wrong_factory_are_found(tmp_path: Path) -> None:
    keeper = prepare(partial(factory, tmp_path), SPACE, metric="f1", output_dir=tmp_path / "o", progress=False)
    with pytest.raises(MetricError, match="eval_f1"):
        look_ahead(keeper.fine_tune, keeper.optimizer.study, 0)
    silent = prepare(lambda params: 1 / 0, SPACE, output_dir=tmp_path / "o", progress=False)
    with pytest.raises(TrainerError, match=r"(?s)the check failed: .*ZeroDivisionError"):
        look_ahead(silent.fine_tune, silent.optimizer.study, 0)


@pytest.mark.usefixtures("in_this_process")
def test_tune_looks_before_the_first_trial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="llamatune_torch"):
        tune(partial(factory, tmp_path), SPACE, max_evals=1, check=True, output_dir=tmp_path / "o", progress=False)
    said = [message for message in caplog.messages if message.startswith(("memory:", "time:", "trial 0"))]
    assert [message.split(":")[0] for message in said] == ["memory", "time", "trial 0"]


def test_the_command_line_looks_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec_to_check.py").write_text(SPEC)
    assert main(["check", f"{tmp_path}/spec_to_check.py:trainer_factory"]) == 0
    assert "metric: eval_accuracy, to maximize" in capsys.readouterr().out
    assert main(["check", f"{tmp_path}/spec_to_check.py:evaluate"]) == 2
    assert "check looks at a trainer_factory" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.db"))
