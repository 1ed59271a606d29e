"""The memory of all configurations of a space, and searches that know it."""

from __future__ import annotations

import os
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_trainer
from transformers import Trainer

from llamatune_torch import (
    Categorical,
    EstimateWarning,
    Integer,
    LlamaTune,
    Outcome,
    Real,
    SearchSpace,
    load_study,
    tune,
)
from llamatune_torch.integrations.trainer.estimating import Estimated, MemoryEstimator, first_params, run_apart
from llamatune_torch.integrations.trainer.memory import CPU_FACTOR, CPU_MORE, footprint
from llamatune_torch.trial import Trial

SIZES = {"n_embd": 32, "n_head": 4, "n_positions": 8, "vocab_size": 64}
SPACE = SearchSpace(
    {
        "learning_rate": Real(1e-3, 1e-1, prior="log-uniform"),
        "batch": Integer(2, 16, prior="log-uniform"),
        "layers": Categorical([1, 4], ordered=False),
    }
)
FIRST = {"learning_rate": 1e-2, "batch": 8, "layers": 1}


def factory(folder: Path, params: dict[str, Any]) -> Trainer:
    model = tiny_model(**SIZES, n_layer=params["layers"])
    return tiny_trainer(params, folder, model=model, per_device_train_batch_size=params["batch"])


def stranger(folder: Path, params: dict[str, Any]) -> Trainer:
    """A model that looks at numbers, which tensors without numbers do not have."""
    trainer = factory(folder, params)
    forward = trainer.model.forward  # type: ignore[union-attr]

    def looking(*args: Any, **kwargs: Any) -> Any:
        assert float(kwargs["input_ids"].sum()) > 0
        return forward(*args, **kwargs)

    trainer.model.forward = looking  # type: ignore[union-attr, method-assign]
    return trainer


def estimated(folder: Path, build: Any = factory) -> Estimated:
    return MemoryEstimator(partial(build, folder), SPACE, seconds=300)(Trial(0, FIRST, 0, "initial"))


def test_estimates_cover_the_space_and_are_those_of_the_configurations_themselves(tmp_path: Path) -> None:
    found = estimated(tmp_path)
    assert len(found.estimates) == 65
    assert (found.batch, found.formula) == (8, "")
    assert {estimate.params["layers"] for estimate in found.estimates} == {1, 4}
    for estimate in found.estimates[:4]:
        batch = estimate.params["batch"]
        alone = footprint(factory(tmp_path, dict(estimate.params)), (batch, batch + 1), (4,)).bytes(batch, 4)
        assert estimate.value * 1e9 == pytest.approx(CPU_MORE + CPU_FACTOR * alone, rel=0.02)


def test_a_formula_stands_in_for_a_model_that_looks_at_numbers(tmp_path: Path) -> None:
    found = estimated(tmp_path, stranger)
    assert "Error" in found.formula or "Exception" in found.formula
    assert found.footprint is None
    assert len(found.estimates) == 65
    large = [e.value for e in found.estimates if e.params["layers"] == 4]
    assert min(large) > min(e.value for e in found.estimates)


def test_configurations_that_the_factory_refuses_have_no_estimate(tmp_path: Path) -> None:
    def choosy(folder: Path, params: dict[str, Any]) -> Trainer:
        if params["layers"] == 4:
            raise ValueError("four layers are too many")
        return factory(folder, params)

    found = estimated(tmp_path, choosy)
    assert {estimate.params["layers"] for estimate in found.estimates} == {1}
    assert len(found.estimates) > 16


def test_rules_hold_for_what_is_built(tmp_path: Path) -> None:
    def small(params: dict[str, Any]) -> bool:
        return bool(params["layers"] * params["batch"] <= 16)

    def checking(params: dict[str, Any]) -> Trainer:
        assert small(params)
        return factory(tmp_path, params)

    found = MemoryEstimator(checking, SearchSpace(SPACE, rule=small), seconds=300)(Trial(0, FIRST, 0, "initial"))
    assert {estimate.params["layers"] for estimate in found.estimates} == {1, 4}


def test_a_process_that_dies_is_a_failure_that_says_why(tmp_path: Path) -> None:
    def killed(params: dict[str, Any]) -> Trainer:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError

    found = run_apart(MemoryEstimator(killed, SPACE), FIRST, 0)
    assert not isinstance(found, Estimated)
    assert "SIGSEGV" in str(found.error)


def test_the_first_configuration_is_an_initial_point_or_the_middle() -> None:
    points = [{"batch": 4}, FIRST]
    assert first_params(LlamaTune(SPACE, initial_points=points).study) == FIRST
    assert first_params(LlamaTune(SPACE).study)["learning_rate"] == pytest.approx(1e-2)


def test_tune_estimates_once_and_a_stored_study_keeps_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    arguments: dict[str, Any] = {"constraints": {"memory_gb": "<= 100"}, "progress": False, "storage": url}
    arguments |= {"output_dir": tmp_path / "out", "strategy": "full"}
    study = tune(partial(factory, tmp_path), SPACE, max_evals=1, **arguments)
    assert len(study.estimates) > 16
    assert load_study(url).estimates == study.estimates
    again = tune(partial(factory, tmp_path), SPACE, max_evals=2, **arguments)
    assert again.estimates == study.estimates


def test_a_space_that_cannot_be_estimated_is_said_and_searched_all_the_same(tmp_path: Path) -> None:
    home = os.getpid()

    def here_only(params: dict[str, Any]) -> Trainer:
        if os.getpid() != home:
            raise RuntimeError("no such file here")
        return factory(tmp_path, params)

    with pytest.warns(
        EstimateWarning, match="could not be computed beforehand, and is learnt from trials: .*no such file"
    ):
        study = tune(
            here_only,
            SPACE,
            max_evals=1,
            constraints={"memory_gb": "<= 100"},
            progress=False,
            output_dir=tmp_path / "o",
        )
    assert study.completed
    assert study.estimates == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        tune(
            here_only, SPACE, max_evals=1, constraints={"memory_gb": "<= 100"}, progress=False,
            output_dir=tmp_path / "o", estimate_memory=False,
        )  # fmt: skip


def test_estimates_of_a_function_are_stored_and_exported(tmp_path: Path) -> None:
    from llamatune_torch.storage.document import from_document, to_document
    from llamatune_torch.storage.reader import Reader

    url = f"sqlite:///{tmp_path}/study.db"
    given = {"memory_gb": lambda params: 1 + params["batch"]}
    arguments: dict[str, Any] = {"constraints": {"memory_gb": "<= 8"}, "progress": False, "storage": url}
    tuner = LlamaTune(SPACE, lambda params: Outcome(1.0, outcomes={"memory_gb": 5.0}), estimates=given, **arguments)
    assert len(tuner.study.estimates) == 64
    stored = Reader(url).look("study")
    assert stored.study.estimates == tuner.study.estimates
    assert from_document(to_document(stored)).study.estimates == tuner.study.estimates
    assert LlamaTune(SPACE, **arguments).study.estimates == tuner.study.estimates
