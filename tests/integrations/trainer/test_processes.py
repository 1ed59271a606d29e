"""Fine-tunes in other processes: the same results, curves, models and mistakes as in this one."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SPACE, At, left_in, tiny_model, tiny_trainer
from transformers import Trainer

from llamatune_torch import (
    IgnoredParameterWarning,
    MetricError,
    Real,
    SettingsError,
    Study,
    TrainerError,
    tune,
)

FOLDER = "LLAMATUNE_TEST_FOLDER"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the factories, which run in processes that know nothing of the test."""
    monkeypatch.setenv(FOLDER, str(tmp_path))


def factory(params: dict[str, Any]) -> Trainer:
    torch.set_num_threads(1)
    return tiny_trainer(params, Path(os.environ[FOLDER]))


def dies_at_high_rates(params: dict[str, Any]) -> Trainer:
    trainer = tiny_trainer(params, Path(os.environ[FOLDER]), save_strategy="steps", save_steps=1)
    if params["learning_rate"] > 0.05:
        trainer.add_callback(At("on_step_end", 3, lambda control: os._exit(3)))
    return trainer


def ignores(params: dict[str, Any]) -> Trainer:
    return tiny_trainer({"learning_rate": 1e-3}, Path(os.environ[FOLDER]))


_SHARED: list[Any] = []


def shares_its_model(params: dict[str, Any]) -> Trainer:
    if not _SHARED:
        _SHARED.append(tiny_model())
    return tiny_trainer(params, Path(os.environ[FOLDER]), model=_SHARED[0])


def searched(tmp_path: Path, factory: Any, max_evals: int = 3, **more: Any) -> Study:
    search: dict[str, Any] = {"n_initial": 50, "progress": False, "output_dir": tmp_path / "out", **more}
    return tune(factory, search.pop("space", SPACE), max_evals=max_evals, **search)


def test_processes_find_what_this_one_finds_and_the_best_model_is_kept(tmp_path: Path) -> None:
    here = searched(tmp_path, factory, metric="accuracy", seed=3)
    # As a lambda, which nothing can import.
    there = searched(tmp_path, lambda params: factory(params), metric="accuracy", seed=3, n_workers=2, keep="best")
    assert (there.metric, there.direction) == (here.metric, here.direction) == ("eval_accuracy", "maximize")
    for one, other in zip(here.trials, there.trials, strict=True):
        assert (one.params, one.value, one.curve) == (other.params, other.value, other.curve)
        assert other.curve.progress == (0.5, 1.0)
        assert one.notes == other.notes
        assert set(one.outcomes) == set(other.outcomes)
    kept = json.loads((tmp_path / "out" / "best" / "trial.json").read_text())
    assert (kept["trial"], kept["value"]) == (there.best_trial.number, there.best_value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["best"]


def test_a_fine_tune_that_kills_its_process_is_a_failure_and_leaves_no_checkpoints(tmp_path: Path) -> None:
    points = [{"learning_rate": 0.09}, {"learning_rate": 0.01}]
    study = searched(tmp_path, dies_at_high_rates, 2, isolate=True, initial_points=points)
    assert [trial.reason for trial in study.trials] == ["exit code 3", None]
    assert len(study.trials[0].curve) == 1  # the evaluation after the first epoch got through
    assert left_in(tmp_path / "out") == []


def test_threads_are_refused_but_for_one_at_a_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(SettingsError, match="fine-tunes cannot share a process"):
            searched(tmp_path, factory, executor=pool)
        study = searched(tmp_path, factory, 2, executor=pool, n_workers=1)
    assert [len(trial.curve) for trial in study.completed] == [2, 2]
    assert (study.metric, study.direction) == ("eval_loss", "minimize")


@pytest.mark.slow
def test_what_is_wrong_with_a_factory_is_found_out_in_other_processes_too(tmp_path: Path) -> None:
    with pytest.warns(IgnoredParameterWarning, match="never reads params") as caught:
        searched(tmp_path, ignores, 2, isolate=True)
    assert len([w for w in caught if w.category is IgnoredParameterWarning]) == 1
    with pytest.raises(TrainerError, match="one that an earlier trial has trained"):
        searched(tmp_path, shares_its_model, 2, n_workers=1)
    with pytest.raises(MetricError, match=r"the Trainer reports: .*eval_accuracy"):
        searched(tmp_path, factory, 2, n_workers=1, metric="f1")


def test_arguments_are_checked_before_the_factory_is_called(tmp_path: Path) -> None:
    def never(params: dict[str, Any]) -> Trainer:
        pytest.fail("it was called")

    with pytest.raises(SettingsError, match="n_workers must be an integer >= 1"):
        searched(tmp_path, never, n_workers=0, space={"x": Real(0, 1)})
