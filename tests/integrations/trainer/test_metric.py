"""Which metric counts, and which way."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from llamatune_torch import MetricError
from llamatune_torch.integrations.trainer.metric import Metric, numbers_among, perplexity, resolve_metric

METRICS = {"eval_loss": 2.0, "eval_accuracy": 0.75, "eval_set2_loss": 3.0, "eval_runtime": 0.1, "epoch": 1.0}


@pytest.fixture
def arguments(tmp_path: Path) -> Any:
    return functools.partial(TrainingArguments, output_dir=str(tmp_path), report_to="none", use_cpu=True)


@pytest.mark.parametrize("name", ["accuracy", "eval_accuracy"])
def test_a_name_works_with_and_without_prefix(name: str, arguments: Any) -> None:
    assert resolve_metric(name, None, arguments()) == Metric("eval_accuracy", "maximize")


@pytest.mark.parametrize("own", ["f1", "eval_f1"])
def test_without_a_name_the_trainers_own_metric_counts(own: str, arguments: Any) -> None:
    assert resolve_metric(None, None, arguments(metric_for_best_model=own)) == Metric("eval_f1", "maximize")


def test_without_any_name_the_loss_counts(arguments: Any) -> None:
    assert resolve_metric(None, None, arguments()) == Metric("eval_loss", "minimize")


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("loss", "minimize"),
        ("eval_set2_loss", "minimize"),
        ("perplexity", "minimize"),
        ("wer", "minimize"),
        ("error_rate", "minimize"),
        ("MSE", "minimize"),
        ("runtime", "minimize"),
        ("accuracy", "maximize"),
        ("power", "maximize"),  # holds "wer" but is not made of it
        ("losslessness", "maximize"),
        ("samples_per_second", "maximize"),
        ("matthews_correlation", "maximize"),
    ],
)
def test_direction_follows_the_name(name: str, direction: str, arguments: Any) -> None:
    assert resolve_metric(name, None, arguments()).direction == direction


@pytest.mark.parametrize(
    ("own", "greater_is_better", "direction"),
    [
        ("surprise", False, "minimize"),
        ("neg_loss", True, "maximize"),
        ("loss", None, "minimize"),
        ("accuracy", None, "maximize"),
        ("wer", False, "minimize"),
        # The Trainer guesses "greater is better" here; the name knows better.
        ("wer", None, "minimize"),
    ],
)
def test_direction_follows_greater_is_better_where_somebody_set_it(
    own: str, greater_is_better: bool | None, direction: str, arguments: Any
) -> None:
    args = arguments(metric_for_best_model=own, greater_is_better=greater_is_better)
    assert resolve_metric(None, None, args).direction == direction
    assert resolve_metric(f"eval_{own}", None, args).direction == direction


def test_greater_is_better_says_nothing_about_another_metric(arguments: Any) -> None:
    args = arguments(metric_for_best_model="surprise", greater_is_better=False)
    assert resolve_metric("accuracy", None, args).direction == "maximize"


def test_the_users_direction_wins(arguments: Any) -> None:
    args = arguments(metric_for_best_model="loss")
    assert resolve_metric("loss", "maximize", args).direction == "maximize"
    assert resolve_metric("accuracy", "minimize", args).direction == "minimize"
    assert resolve_metric(lambda metrics: 0.0, "minimize", args).direction == "minimize"


def test_a_function_is_named_and_maximised(arguments: Any) -> None:
    def balance(metrics: Any) -> float:
        return float(metrics["eval_accuracy"] - metrics["eval_loss"])

    metric = resolve_metric(balance, None, arguments(metric_for_best_model="loss"))
    assert (metric.name, metric.direction) == ("balance", "maximize")
    assert metric.read(METRICS) == -1.25
    assert resolve_metric(lambda metrics: 0.0, None, arguments()).name == "metric"
    assert resolve_metric(functools.partial(balance), None, arguments()).name == "partial"


def test_a_function_cannot_change_the_record() -> None:
    metrics = dict(METRICS)
    assert Metric("pops", "maximize", lambda m: m.pop("eval_loss")).read(metrics) == 2.0
    assert metrics == METRICS


@pytest.mark.parametrize(("name", "loss"), [("eval_perplexity", 2.0), ("eval_set2_perplexity", 3.0)])
def test_perplexity_comes_from_the_loss_of_its_set(name: str, loss: float) -> None:
    assert Metric(name, "minimize").read(METRICS) == pytest.approx(math.exp(loss), rel=1e-12)


def test_a_reported_perplexity_comes_first() -> None:
    assert Metric("eval_perplexity", "minimize").read({**METRICS, "eval_perplexity": 5.0}) == 5.0


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5)])
def test_any_number_will_do(value: Any) -> None:
    assert Metric("custom", "maximize", lambda metrics: value).read(METRICS) == 0.5


@pytest.mark.parametrize("value", ["0.5", None, [0.5], True])
def test_a_value_that_is_no_number_is_an_error(value: Any) -> None:
    with pytest.raises(MetricError, match=r"metric 'eval_f1' must be a number, but is .*\(\w+\)"):
        Metric("eval_f1", "maximize").read({"eval_f1": value})
    assert not Metric("eval_f1", "maximize").is_in({"eval_f1": value})


def test_a_missing_metric_is_an_error_that_lists_the_others() -> None:
    metric = Metric("eval_f1", "maximize")
    with pytest.raises(MetricError) as caught:
        metric.read(METRICS)
    assert str(caught.value) == (
        "there is no metric 'eval_f1', the Trainer reports: eval_accuracy, eval_loss, eval_perplexity, "
        "eval_runtime, eval_set2_loss, eval_set2_perplexity"
    )
    assert not metric.is_in(METRICS)
    assert metric.is_in({"eval_f1": 0})


def test_a_perplexity_without_its_loss_is_missing() -> None:
    with pytest.raises(MetricError, match="no metric 'eval_set1_perplexity'"):
        Metric("eval_set1_perplexity", "minimize").read(METRICS)


def test_a_function_that_needs_a_missing_metric_is_told_which() -> None:
    with pytest.raises(MetricError, match=r"metric 'wants_f1' needs 'eval_f1', the Trainer reports: eval_accuracy"):
        Metric("wants_f1", "maximize", lambda metrics: metrics["eval_f1"]).read(METRICS)


def test_outcomes_are_the_plain_numbers() -> None:
    metrics = {"loss": 1.5, "steps": 3, "done": True, "name": "x", "matrix": [[1]], "missing": None}
    assert numbers_among(metrics) == {"loss": 1.5, "steps": 3.0}
