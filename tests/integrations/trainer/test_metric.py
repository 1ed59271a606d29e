"""Which metric counts, and which way."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import language_model, tiny_model, tiny_trainer
from transformers import BertConfig, BertForMaskedLM, GPT2LMHeadModel, Trainer

from llamatune_torch import MetricError
from llamatune_torch.integrations.trainer.metric import Metric, numbers_among, perplexity, resolve_metric

METRICS = {"eval_loss": 2.0, "eval_accuracy": 0.75, "eval_set2_loss": 3.0, "eval_runtime": 0.1, "epoch": 1.0}


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """Makes a classifier's Trainer with changed arguments."""
    return functools.partial(tiny_trainer, {"learning_rate": 1e-3}, tmp_path)


def resolved(metric: Any, direction: Any, trainer: Trainer, **params: Any) -> Metric:
    return resolve_metric(metric, direction, trainer, params)


@pytest.mark.parametrize("name", ["accuracy", "eval_accuracy"])
def test_a_name_works_with_and_without_prefix(name: str, trainer: Any) -> None:
    assert resolved(name, None, trainer()) == Metric("eval_accuracy", "maximize")


@pytest.mark.parametrize("own", ["f1", "eval_f1"])
def test_without_a_name_the_trainers_own_metric_counts(own: str, trainer: Any) -> None:
    assert resolved(None, None, trainer(metric_for_best_model=own)) == Metric("eval_f1", "maximize")


def test_without_any_name_the_loss_counts(trainer: Any) -> None:
    assert resolved(None, None, trainer()) == Metric("eval_loss", "minimize")


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
def test_direction_follows_the_name(name: str, direction: str, trainer: Any) -> None:
    assert resolved(name, None, trainer()).direction == direction


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
    own: str, greater_is_better: bool | None, direction: str, trainer: Any
) -> None:
    made = trainer(metric_for_best_model=own, greater_is_better=greater_is_better)
    assert resolved(None, None, made).direction == direction
    assert resolved(f"eval_{own}", None, made).direction == direction


def test_greater_is_better_says_nothing_about_another_metric(trainer: Any) -> None:
    made = trainer(metric_for_best_model="surprise", greater_is_better=False)
    assert resolved("accuracy", None, made).direction == "maximize"


def test_the_users_direction_wins(trainer: Any) -> None:
    made = trainer(metric_for_best_model="loss")
    assert resolved("loss", "maximize", made).direction == "maximize"
    assert resolved("accuracy", "minimize", made).direction == "minimize"
    assert resolved(lambda metrics: 0.0, "minimize", made).direction == "minimize"


def test_a_function_has_a_name(trainer: Any) -> None:
    def balance(metrics: Any) -> float:
        return float(metrics["eval_accuracy"] - metrics["eval_loss"])

    metric = resolved(balance, "maximize", trainer(metric_for_best_model="loss"))
    assert metric.name == "balance"
    assert metric.read(METRICS) == -1.25
    assert resolved(lambda metrics: 0.0, "maximize", trainer()).name == "metric"
    assert resolved(functools.partial(balance), "maximize", trainer()).name == "partial"


def test_a_function_cannot_change_the_record() -> None:
    metrics = dict(METRICS)
    assert Metric("pops", "maximize", lambda m: m.pop("eval_loss")).read(metrics) == 2.0
    assert metrics == METRICS


@pytest.mark.parametrize(("name", "loss"), [("eval_perplexity", 2.0), ("eval_set2_perplexity", 3.0)])
def test_perplexity_comes_from_the_loss_of_its_set(name: str, loss: float) -> None:
    assert Metric(name, "minimize").read(METRICS) == pytest.approx(math.exp(loss), rel=1e-12)


def test_a_reported_perplexity_comes_first() -> None:
    assert Metric("eval_perplexity", "minimize").read({**METRICS, "eval_perplexity": 5.0}) == 5.0


def of_masked_language_model() -> Any:
    return BertForMaskedLM(
        BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )


class OwnModel(GPT2LMHeadModel):
    """A user's subclass is a language model, too."""


class OwnLoss(Trainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ({"model": language_model}, True),
        ({"model": of_masked_language_model}, True),
        ({"model": lambda: OwnModel(tiny_model().config)}, True),
        ({"model": tiny_model}, False),
        ({"model": language_model, "label_smoothing_factor": 0.1}, False),
        ({"model": language_model, "compute_loss_func": lambda outputs, labels, **_: outputs.logits.mean()}, False),
        ({"model": language_model, "kind": OwnLoss}, False),
    ],
)
def test_a_perplexity_is_offered_where_the_loss_is_the_cross_entropy_of_a_language_model(
    changes: dict[str, Any], offered: bool, trainer: Any
) -> None:
    metric = resolved("perplexity", None, trainer(**{**changes, "model": changes["model"]()}))
    assert metric.is_in({"eval_loss": 2.0}) is offered
    assert metric.is_in({"eval_perplexity": 2.0})  # what compute_metrics reports is its business
    with pytest.raises(MetricError) as caught:
        metric.read({"eval_runtime": 2.0})
    assert ("a perplexity is offered where the loss is the cross entropy" in str(caught.value)) is not offered


def test_a_metric_changes_its_meaning_with_the_arguments_of_the_trainer(trainer: Any) -> None:
    plain, smoothed = trainer(), trainer(label_smoothing_factor=0.1)
    for name in ("loss", "eval_set2_loss", None):
        metric = resolved(name, None, plain)
        assert metric.changed_by(smoothed, {}) == ["label_smoothing_factor"]
        assert metric.changed_by(trainer(learning_rate=1.0, warmup_steps=3), {}) == []
    assert resolved("accuracy", None, plain).changed_by(smoothed, {}) == []


def test_a_metric_changes_its_meaning_with_the_length_of_a_language_models_texts(trainer: Any) -> None:
    of_text, of_class = trainer(model=language_model()), trainer()
    assert resolved(None, None, of_text, max_length=8).changed_by(of_text, {"max_length": 16}) == ["max_length"]
    assert resolved(None, None, of_text, max_length=8).changed_by(of_text, {"max_length": 8}) == []
    assert resolved(None, None, of_text).changed_by(of_text, {"max_length": 16}) == []  # inactive in the first trial
    assert resolved(None, None, of_class, max_length=8).changed_by(of_class, {"max_length": 16}) == []


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
