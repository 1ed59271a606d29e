"""One fine-tune: its metric, its factory, its failures, its seeds; and that it can be sent elsewhere."""

from __future__ import annotations

import inspect
import logging
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import transformers
from tiny import (
    CHECKPOINTS,
    SPACE,
    At,
    Calls,
    Parity,
    evaluated,
    failing_first,
    raises,
    scripted,
    tiny_model,
    tiny_trainer,
    tuned,
)
from transformers import Trainer, TrainingArguments

from llamatune_torch import (
    Categorical,
    CheckpointWarning,
    IgnoredParameterWarning,
    MetricError,
    MetricWarning,
    NoCompletedTrialError,
    Real,
    TrainerError,
    TrialState,
    tune,
)
from llamatune_torch.integrations.trainer.finetune import FineTune
from llamatune_torch.integrations.trainer.metric import Metric
from llamatune_torch.integrations.trainer.tune import prepare
from llamatune_torch.runtime.evaluation import run_trial
from llamatune_torch.trial import Outcome, Trial

# --- Metrics that do not exist ------------------------------------------------------------------


def test_a_wrong_metric_is_found_before_training_where_nothing_computes_metrics(tmp_path: Path) -> None:
    calls = Calls(tmp_path, compute_metrics=None)
    with pytest.raises(MetricError) as caught:
        tuned(tmp_path, calls, metric="f1")
    assert str(caught.value) == (
        "there is no metric 'eval_f1', the Trainer reports: eval_loss, eval_runtime, "
        "eval_samples_per_second, eval_steps_per_second"
    )
    assert calls.trainers[0].state.global_step == 0


def test_a_wrong_metric_is_found_at_the_first_evaluation_otherwise(tmp_path: Path) -> None:
    calls = Calls(tmp_path)
    with pytest.raises(MetricError, match=r"no metric 'eval_f1', the Trainer reports: eval_accuracy, eval_loss"):
        tuned(tmp_path, calls, metric="f1")
    assert calls.trainers[0].state.global_step == 2


def test_a_function_that_asks_for_a_wrong_metric_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"metric 'metric' needs 'eval_f1', the Trainer reports: eval_accuracy"):
        tuned(tmp_path, metric=lambda metrics: metrics["eval_f1"], direction="maximize")


def test_a_metric_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    def matrix(prediction: Any) -> dict[str, Any]:
        return {"confusion": [[1, 2], [3, 4]]}

    with pytest.raises(MetricError, match=r"metric 'eval_confusion' must be a number, but is \[\[1, 2\], \[3, 4\]\]"):
        tuned(tmp_path, metric="confusion", trainer={"compute_metrics": matrix})


def test_a_wrong_metric_for_best_model_is_an_error_too(tmp_path: Path) -> None:
    trainer = {"metric_for_best_model": "f1", **CHECKPOINTS}
    with pytest.raises(MetricError, match=r"metric_for_best_model='f1' is not among .*: eval_accuracy, eval_loss, "):
        tuned(tmp_path, metric="accuracy", trainer=trainer)


def test_the_perplexity_of_a_classifier_is_refused_before_training(tmp_path: Path) -> None:
    calls = Calls(tmp_path, compute_metrics=None)
    with pytest.raises(MetricError, match=r"no metric 'eval_perplexity'.*; a perplexity is offered where the loss is"):
        tuned(tmp_path, calls, metric="perplexity")
    assert calls.trainers[0].state.global_step == 0


SMOOTHED = {"smoothing": [0.0, 0.1, 0.2]}


def smoothed(folder: Path) -> Any:
    return lambda params: tiny_trainer({"learning_rate": 1e-2}, folder, label_smoothing_factor=params["smoothing"])


def test_losses_that_do_not_compare_across_trials_are_warned_about_once(tmp_path: Path) -> None:
    message = r"values of eval_loss do not compare across trials, since label_smoothing_factor differs between"
    with pytest.warns(MetricWarning, match=message) as caught:
        tuned(tmp_path, smoothed(tmp_path), space=SMOOTHED, max_evals=3)
    assert len(caught) == 1


def test_no_warning_is_given_where_values_compare(tmp_path: Path) -> None:
    tuned(tmp_path, smoothed(tmp_path), space=SMOOTHED, max_evals=3, metric="accuracy")
    tuned(tmp_path, smoothed(tmp_path), space={"smoothing": [0.1]}, max_evals=1)


def test_several_evaluation_sets_have_no_metric_without_a_sets_name(tmp_path: Path) -> None:
    sets = {"easy": Parity(8, seed=2), "hard": Parity(8, seed=3)}
    with pytest.raises(
        MetricError, match=r"no metric 'eval_loss', the Trainer reports: eval_easy_loss.*eval_hard_<nam"
    ):
        tuned(tmp_path, trainer={"eval_dataset": sets})
    with pytest.raises(MetricError, match=r"no metric 'eval_easy_f1', the Trainer reports: .*eval_hard_runtime"):
        tuned(tmp_path, metric="easy_f1", trainer={"eval_dataset": sets, "compute_metrics": None})


def test_a_metric_that_goes_missing_later_costs_that_trial_only(tmp_path: Path) -> None:
    calls = Calls(tmp_path)

    def factory(params: Any) -> Trainer:
        calls.changes = {"compute_metrics": scripted([0.5, 0.5], "other" if calls.trainers else "score")}
        return calls(params)

    study = tuned(tmp_path, factory, metric="score", max_evals=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAILED]
    assert study.trials[1].reason == "no metric"
    assert "there is no metric 'eval_score'" in str(study.trials[1].error)


def test_a_trainer_that_keeps_the_worst_checkpoint_is_warned_about(tmp_path: Path) -> None:
    changes = {"metric_for_best_model": "error", "compute_metrics": scripted([0.3, 0.2] * 2, "error"), **CHECKPOINTS}
    with pytest.warns(
        CheckpointWarning, match=r"minimize eval_error.*with the highest: set greater_is_better=False"
    ) as caught:
        study = tuned(tmp_path, trainer=changes, max_evals=2)
    assert len(caught) == 1
    assert study.trials[0].value == 0.3  # of the weights that the Trainer kept, however bad
    changes |= {"greater_is_better": False, "compute_metrics": scripted([0.3, 0.2], "error")}
    assert tuned(tmp_path, trainer=changes).best_value == 0.2


# --- What a factory may return ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda folder: None, "must return a transformers.Trainer, but got None"),
        (lambda folder: tiny_model(), "but got an object of type GPT2ForSequenceClassification"),
        (lambda folder: TrainingArguments(str(folder), use_cpu=True), "but got an object of type TrainingArguments"),
    ],
)
def test_a_factory_that_returns_no_trainer_is_an_error(
    made: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match=message):
        tuned(tmp_path, lambda params: (params["learning_rate"], made(tmp_path))[1])


@pytest.mark.parametrize(("data", "state"), [(None, "None"), ([], "empty"), ({}, "empty")])
def test_a_trainer_without_evaluation_data_is_an_error(data: Any, state: str, tmp_path: Path) -> None:
    calls = Calls(tmp_path, eval_dataset=data, eval_strategy="no")
    with pytest.raises(TrainerError, match=f"needs an eval_dataset to be judged by, but its eval_dataset is {state}"):
        tuned(tmp_path, calls)
    assert calls.trainers[0].state.global_step == 0


def test_a_trainer_that_refuses_itself_says_so_in_the_end(tmp_path: Path) -> None:
    """With an eval_strategy the Trainer's constructor notices before us that there is nothing to evaluate on."""
    study = tuned(tmp_path, trainer={"eval_dataset": None}, max_evals=2)
    assert study.failures_by_reason() == {"ValueError": 2}
    with pytest.raises(NoCompletedTrialError, match=r"2 of 2 failed \(ValueError: 2\).*didn't pass an `eval_dataset`"):
        _ = study.best_params


class WithOwnData(Trainer):
    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return super().get_eval_dataloader(Parity(8, seed=4))


def test_a_trainer_may_bring_its_evaluation_data_itself(tmp_path: Path) -> None:
    study = tuned(tmp_path, trainer={"kind": WithOwnData, "eval_dataset": None, "eval_strategy": "no"})
    assert study.trials[0].state is TrialState.COMPLETE


@pytest.mark.parametrize("model", [{}, {"model_init": lambda: tiny_model()}], ids=["model", "model_init"])
def test_a_reused_trainer_is_an_error(model: dict[str, Any], tmp_path: Path) -> None:
    trainer = tiny_trainer({"learning_rate": 0.01}, tmp_path, **model)
    with pytest.raises(TrainerError, match="one that an earlier trial has trained"):
        tuned(tmp_path, lambda params: (params["learning_rate"], trainer)[1], max_evals=2)


def test_a_reused_model_is_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(TrainerError, match="a fresh model at every call"):
        tuned(tmp_path, trainer={"model": model}, max_evals=2)


def test_a_model_of_an_earlier_search_is_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    tuned(tmp_path, trainer={"model": model})
    with pytest.raises(TrainerError, match="one that an earlier trial has trained"):
        tuned(tmp_path, trainer={"model": model})


def test_reused_weights_below_a_new_head_are_an_error(tmp_path: Path) -> None:
    body = tiny_model().transformer

    def factory(params: Any) -> Trainer:
        model = tiny_model()
        model.transformer = body
        return tiny_trainer(params, tmp_path, model=model)

    with pytest.raises(TrainerError, match="a fresh model at every call"):
        tuned(tmp_path, factory, max_evals=2)


def test_reused_weights_that_are_not_trained_are_welcome(tmp_path: Path) -> None:
    body = tiny_model().transformer.requires_grad_(False)

    def factory(params: Any) -> Trainer:
        model = tiny_model()
        model.transformer = body
        return tiny_trainer(params, tmp_path, model=model)

    assert len(tuned(tmp_path, factory, max_evals=2).completed) == 2


def test_model_init_works(tmp_path: Path) -> None:
    study = tuned(tmp_path, trainer={"model_init": lambda: tiny_model()}, max_evals=2, keep="best")
    assert len(study.completed) == 2
    assert evaluated(tmp_path / "out" / "best", tmp_path)["eval_loss"] == pytest.approx(study.best_value, rel=1e-6)


def test_a_batch_size_that_changes_by_itself_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="auto_find_batch_size trains with another batch size than the trial's"):
        tuned(tmp_path, trainer={"auto_find_batch_size": True})


# --- Parameters that the factory ignores --------------------------------------------------------

TWO = {**SPACE, "dropout": Real(0.0, 0.5)}


def test_an_ignored_parameter_is_warned_about_by_name_and_once(tmp_path: Path) -> None:
    with pytest.warns(IgnoredParameterWarning) as caught:
        study = tuned(tmp_path, space=TWO, max_evals=2)
    assert [str(warning.message) for warning in caught] == [
        "trainer_factory never reads params['dropout'], so it has no effect: use it, or take 'dropout' out of the space"
    ]
    assert len(study.completed) == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda params: SimpleNamespace(**params),
        lambda params: dict(params),
        lambda params: {name: value for name, value in params.items()},  # noqa: C416
        lambda params: (params.get("learning_rate"), params.get("dropout")),
    ],
    ids=["**params", "dict", "items", "get"],
)
def test_a_factory_that_takes_all_parameters_is_not_warned(read: Callable[[Any], Any], tmp_path: Path) -> None:
    def factory(params: Any) -> Trainer:
        read(params)
        return tiny_trainer({"learning_rate": 0.01}, tmp_path)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IgnoredParameterWarning)
        tuned(tmp_path, factory, space=TWO)
    assert not [w for w in caught if w.category is IgnoredParameterWarning]


def test_a_factory_that_changes_its_parameters_changes_no_record(tmp_path: Path) -> None:
    study = tuned(tmp_path, lambda params: tiny_trainer({"learning_rate": params.pop("learning_rate") * 2}, tmp_path))
    assert set(study.trials[0].params) == {"learning_rate"}


# --- Failing trials -----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in the factory", "in training"])
@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (raises(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory"),
        (raises(RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (raises(ZeroDivisionError, "CUDA has no part in this"), "ZeroDivisionError"),
    ],
)
def test_an_exception_is_a_failed_trial_and_the_next_one_runs(
    breaks: Callable[[Any], Any], reason: str, where: str, tmp_path: Path
) -> None:
    in_training = At("on_step_end", 2, breaks)
    failure = (
        breaks if where == "in the factory" else lambda params: tiny_trainer(params, tmp_path, callbacks=[in_training])
    )
    study = tuned(tmp_path, failing_first(tmp_path, failure), max_evals=2)
    assert [trial.state for trial in study.trials] == [TrialState.FAILED, TrialState.COMPLETE]
    failed = study.trials[0]
    assert failed.reason == reason
    assert str(failed.error).startswith("Traceback")
    assert "raise kind(*args)" in str(failed.error)
    assert failed.value is None
    assert "failed: " + reason + " (1)" in study.summary()


def test_a_real_lack_of_memory_is_recognised(tmp_path: Path) -> None:
    def failure(params: Any) -> Trainer:
        torch.empty(2**60)
        raise AssertionError("there is a machine with 4 EiB")

    study = tuned(tmp_path, failing_first(tmp_path, failure), max_evals=2)
    assert study.trials[0].reason == "out of memory"
    assert study.trials[1].state is TrialState.COMPLETE


def test_all_trials_failing_is_told_when_the_best_is_asked_for(tmp_path: Path) -> None:
    study = tuned(tmp_path, raises(torch.OutOfMemoryError, "CUDA out of memory"), max_evals=3)
    with pytest.raises(NoCompletedTrialError, match=r"3 of 3 failed \(out of memory: 3\)"):
        _ = study.best_value


def test_ctrl_c_returns_the_study_so_far(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes: dict[str, Any] = dict(CHECKPOINTS)

    def factory(params: Any) -> Trainer:
        trainer = tiny_trainer(params, tmp_path, **changes)
        changes["callbacks"] = [At("on_save", 2, raises(KeyboardInterrupt))]
        return trainer

    with caplog.at_level(logging.WARNING, logger="llamatune_torch"):
        study = tuned(tmp_path, factory, max_evals=9, strategy="full")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.LOST]
    assert study.best_trial.number == 0
    assert "interrupted after 1 " in caplog.text
    assert not list((tmp_path / "out").glob("trial-*"))


# --- Randomness ---------------------------------------------------------------------------------


def test_a_repeated_trial_has_the_same_value(tmp_path: Path) -> None:
    point = {"learning_rate": 0.01}
    first, again, other = (tuned(tmp_path, initial_points=[point], seed=seed).trials[0] for seed in (7, 7, 8))
    assert (first.seed, first.value, first.curve) == (again.seed, again.value, again.curve)
    assert first.seed != other.seed
    assert first.value != other.value


def test_what_ran_before_does_not_change_a_trial(tmp_path: Path) -> None:
    first = tuned(tmp_path, max_evals=2)
    torch.rand(17)
    failing = tuned(tmp_path, failing_first(tmp_path, raises(ValueError, "no")), max_evals=2)
    assert failing.trials[1].params == first.trials[1].params
    assert failing.trials[1].value == first.trials[1].value


# --- In another process --------------------------------------------------------------------------


def factory(params: dict[str, Any]) -> Trainer:
    raise AssertionError("it was called")


def test_it_takes_along_what_it_must_know_of_other_trials(tmp_path: Path) -> None:
    fine_tune = FineTune(factory, "accuracy", keep="best", output_dir=tmp_path)
    fine_tune.settled, fine_tune.best = Metric("eval_accuracy", "maximize"), 0.5
    there = pickle.loads(pickle.dumps(fine_tune))
    assert there == fine_tune
    assert (there.settled, there.best) == (fine_tune.settled, 0.5)


@pytest.mark.parametrize(
    ("direction", "best", "value", "expected"),
    [
        ("maximize", None, 0.1, True),
        ("maximize", 0.5, 0.6, True),
        ("maximize", 0.5, 0.5, False),
        ("minimize", 0.5, 0.4, True),
        ("minimize", 0.5, 0.6, False),
        ("maximize", None, math.inf, False),
        ("maximize", None, math.nan, False),
        ("maximize", None, None, False),
    ],
)
def test_a_model_may_be_the_best_if_its_value_beats_all_known_ones(
    direction: Any, best: float | None, value: float | None, expected: bool
) -> None:
    fine_tune = FineTune(factory)
    fine_tune.settled, fine_tune.best = Metric("eval_score", direction), best
    assert fine_tune.may_be_best(value) is expected


def test_its_defaults_are_those_of_tune() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(tune).parameters.items()}
    own = {field.name: field.default for field in fields(FineTune) if field.init and field.name != "trainer_factory"}
    assert own == {name: defaults[name] for name in own}
    assert inspect.signature(prepare).parameters["max_evals"].default == defaults["max_evals"]


def test_the_factory_gets_values_of_its_own_and_records_have_labels(tmp_path: Path) -> None:
    space = {"hidden": Categorical({"narrow": [8], "wide": [16]}), "dtype": Categorical({"single": torch.float32})}
    built: list[Any] = []

    def factory(params: Any) -> Trainer:
        assert params["dtype"] is torch.float32
        built.append(params["hidden"].pop())
        return tiny_trainer({"learning_rate": 1e-2}, tmp_path)

    study = tuned(tmp_path, factory, space=space, max_evals=2)
    assert len(study.completed) == 2
    values = {"narrow": 8, "wide": 16}
    assert built == [values[trial.params["hidden"]] for trial in study.trials]
    assert {trial.params["dtype"] for trial in study.trials} == {"single"}
    assert study.best_params["dtype"] is torch.float32


def test_a_confirmation_has_another_order_of_data_and_another_dropout(tmp_path: Path) -> None:
    """Also where the weights are loaded, so that nothing else depends on the seed."""

    def factory(params: dict[str, Any]) -> Trainer:
        transformers.set_seed(0)
        return tiny_trainer(params, tmp_path, data_seed=7)

    def loss(seed: int, origin: Literal["sobol", "confirm"]) -> float | None:
        fine_tune = FineTune(factory, metric="eval_loss", output_dir=tmp_path / f"{origin}-{seed}")
        outcome = run_trial(fine_tune, Trial(0, {"learning_rate": 1e-2}, seed, origin))
        assert isinstance(outcome, Outcome)
        return outcome.value

    assert loss(1, "sobol") == loss(2, "sobol")
    assert len({loss(1, "sobol"), loss(1, "confirm"), loss(2, "confirm")}) == 3
    assert loss(1, "confirm") == loss(1, "confirm")
