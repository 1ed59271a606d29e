"""tune(): real Trainers on real models, from the arguments to the study, the kept model and the disk."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from durable import everybody_falls_silent
from tiny import SPACE, At, Parity, raises, scripted, tiny_model, tiny_trainer, tuned
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2TokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from llamatune_torch import (
    CheckpointWarning,
    IgnoredParameterWarning,
    LlamaTune,
    MetricError,
    NoCompletedTrialError,
    ParamsError,
    Real,
    SettingsError,
    SpaceError,
    Study,
    StudyMismatchError,
    TrainerError,
    Trial,
    TrialState,
    tune,
)

CHECKPOINTS = {"save_strategy": "epoch", "load_best_model_at_end": True}


class Calls:
    """A factory that remembers its trainers."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.changes = changes
        self.trainers: list[Trainer] = []

    def __call__(self, params: Any) -> Trainer:
        self.trainers.append(tiny_trainer(params, self.folder, **self.changes))
        return self.trainers[-1]


# --- The whole of it ----------------------------------------------------------------------------


def test_tuning_ends_in_a_study_with_the_best_parameters(tmp_path: Path) -> None:
    study = tuned(tmp_path, max_evals=3)
    assert isinstance(study, Study)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    values = [trial.value for trial in study.trials]
    assert len(set(values)) == 3
    assert study.best_value == min(values)  # type: ignore[type-var]
    assert study.best_params == study.trials[values.index(study.best_value)].params
    assert (study.metric, study.direction) == ("eval_loss", "minimize")
    summary = study.summary()
    assert "3 trials (3 complete)" in summary
    assert f"best eval_loss (minimize): {study.best_value:.6g} in trial {study.best_trial.number}" in summary
    assert "(value: last evaluation, at step 4 of 4)" in summary


def test_the_surrogate_takes_over_after_the_first_trials(tmp_path: Path) -> None:
    study = tuned(tmp_path, max_evals=4, n_initial=2)
    assert [trial.origin for trial in study.trials] == ["sobol", "sobol", "surrogate", "surrogate"]


def test_perplexity_is_offered_from_the_loss(tmp_path: Path) -> None:
    study = tuned(tmp_path, metric="perplexity", trainer={"compute_metrics": None})
    assert (study.metric, study.direction) == ("eval_perplexity", "minimize")
    assert study.best_value == pytest.approx(math.exp(study.best_trial.outcomes["eval_loss"]), rel=1e-12)


def test_the_trainers_own_metric_is_maximised_where_it_is_a_score(tmp_path: Path) -> None:
    study = tuned(
        tmp_path,
        max_evals=2,
        trainer={"metric_for_best_model": "score", "compute_metrics": scripted([0.1, 0.3, 0.2, 0.1])},
    )
    assert (study.metric, study.direction, study.best_value) == ("eval_score", "maximize", 0.3)


def test_a_function_of_the_metrics_counts(tmp_path: Path) -> None:
    study = tuned(tmp_path, metric=lambda metrics: 10 * metrics["eval_accuracy"])
    assert study.direction == "maximize"
    assert study.best_value == pytest.approx(10 * study.best_trial.outcomes["eval_accuracy"], rel=1e-12)


def test_a_seq2seq_trainer_is_a_trainer(tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=2)
    study = tuned(tmp_path, trainer={"kind": Seq2SeqTrainer, "args": args})
    assert study.best_trial.curve.steps == (2,)


# --- What is handed on to the search ------------------------------------------------------------


def test_the_arguments_of_the_search_are_handed_on(tmp_path: Path) -> None:
    seen: list[int] = []

    def stop_after_two(optimizer: LlamaTune, trial: Trial) -> None:
        seen.append(trial.number)
        if trial.number == 1:
            optimizer.stop()

    point = {"learning_rate": 0.012}
    study = tuned(tmp_path, max_evals=5, initial_points=[point], callbacks=[stop_after_two])
    assert seen == [0, 1]
    assert study.trials[0].params == point
    assert study.trials[0].origin == "initial"


def test_a_stored_study_goes_on_where_it_ended(tmp_path: Path) -> None:
    stored = {"storage": f"sqlite:///{tmp_path}/study.db", "name": "tiny"}
    calls = Calls(tmp_path)
    first = tuned(tmp_path, calls, max_evals=2, **stored)
    again = tuned(tmp_path, calls, max_evals=3, **stored)
    assert len(calls.trainers) == 3
    assert again.trials[:2] == first.trials
    assert (again.metric, again.direction) == ("eval_loss", "minimize")  # learnt from a Trainer, and kept
    whole = tuned(tmp_path, max_evals=3)
    assert [(t.params, t.seed, t.value) for t in again.trials] == [(t.params, t.seed, t.value) for t in whole.trials]
    assert tuned(tmp_path, raises(AssertionError), max_evals=3, **stored).best_value == again.best_value
    with pytest.raises(StudyMismatchError, match="metric: stored 'eval_loss', given 'eval_perplexity'"):
        tuned(tmp_path, calls, max_evals=4, metric="perplexity", **stored)


def test_failures_beyond_max_failures_end_the_search(tmp_path: Path) -> None:
    study = tuned(tmp_path, raises(ValueError, "no"), max_evals=9, max_failures=1)
    assert len(study.trials) == 2


def test_the_timeout_is_handed_on(tmp_path: Path) -> None:
    assert tuned(tmp_path, max_evals=9, timeout=1e-9).trials == ()


def test_an_unknown_argument_is_named_with_those_that_exist(tmp_path: Path) -> None:
    calls = Calls(tmp_path)
    with pytest.raises(SettingsError, match=r"tune\(\) has no argument 'n_trials'; its arguments are: ") as caught:
        tuned(tmp_path, calls, n_trials=3)
    assert calls.trainers == []
    names = str(caught.value).split("arguments are: ")[1].split(", ")
    assert {"space", "metric", "max_evals", "keep", "output_dir", "initial_points", "seed", "timeout"} <= set(names)
    assert len(names) == len(set(names))
    assert "search" not in names
    assert "model_eval_fn" not in names


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"space": {}}, SpaceError, "empty|at least one"),
        ({"space": {"learning_rate": Real}}, SpaceError, "learning_rate"),
        ({"initial_points": [{"learning_rate": 5.0}]}, ParamsError, r"initial_points\[0\].*learning_rate.*5"),
        ({"max_evals": 0}, SettingsError, "max_evals"),
        ({"direction": "up"}, SettingsError, "direction must be 'maximize' or 'minimize', but got 'up'"),
        ({"metric": 3}, SettingsError, "metric must be a name or a function of the metrics, but got 3"),
        ({"keep": "all"}, SettingsError, "keep must be 'best' or None, but got 'all'"),
        ({"model_eval_fn": print}, SettingsError, r"tune\(\) has no argument 'model_eval_fn'"),
    ],
)
def test_bad_arguments_are_refused_before_the_factory_is_called(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    calls = Calls(tmp_path)
    with pytest.raises(error, match=message):
        tuned(tmp_path, calls, **arguments)
    assert calls.trainers == []


def test_a_factory_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="trainer_factory must be callable, but got 'factory'"):
        tune("factory", SPACE, output_dir=tmp_path)  # type: ignore[arg-type]


# --- Metrics that do not exist ------------------------------------------------------------------


def test_a_wrong_metric_is_found_before_training_where_nothing_computes_metrics(tmp_path: Path) -> None:
    calls = Calls(tmp_path, compute_metrics=None)
    with pytest.raises(MetricError) as caught:
        tuned(tmp_path, calls, metric="f1")
    assert str(caught.value) == (
        "there is no metric 'eval_f1', the Trainer reports: eval_loss, eval_perplexity, eval_runtime, "
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
        tuned(tmp_path, metric=lambda metrics: metrics["eval_f1"])


def test_a_metric_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    def matrix(prediction: Any) -> dict[str, Any]:
        return {"confusion": [[1, 2], [3, 4]]}

    with pytest.raises(MetricError, match=r"metric 'eval_confusion' must be a number, but is \[\[1, 2\], \[3, 4\]\]"):
        tuned(tmp_path, metric="confusion", trainer={"compute_metrics": matrix})


def test_a_wrong_metric_for_best_model_is_an_error_too(tmp_path: Path) -> None:
    trainer = {"metric_for_best_model": "f1", **CHECKPOINTS}
    with pytest.raises(MetricError, match=r"metric_for_best_model='f1' is not among .*: eval_accuracy, eval_loss, "):
        tuned(tmp_path, metric="accuracy", trainer=trainer)


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


def failing_first(folder: Path, failure: Callable[[Any], Trainer]) -> Callable[[Any], Trainer]:
    """A factory whose first trial is ``failure``'s and whose second is sound."""
    calls: list[int] = []

    def factory(params: Any) -> Trainer:
        calls.append(1)
        return failure(params) if len(calls) == 1 else tiny_trainer(params, folder)

    return factory


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
        study = tuned(tmp_path, factory, max_evals=9)
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


# --- The model that is kept ---------------------------------------------------------------------


def tokenizer() -> GPT2TokenizerFast:
    return GPT2TokenizerFast(vocab={chr(97 + i): i for i in range(16)}, merges=[], pad_token="a", unk_token="a")


def evaluated(model: Path, folder: Path) -> dict[str, float]:
    """The metrics of a model on disk, by a Trainer of its own."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    return tiny_trainer({"learning_rate": 0.0}, folder, model=loaded).evaluate()


@pytest.mark.parametrize("checkpoints", [{}, CHECKPOINTS], ids=["last weights", "best checkpoint"])
def test_the_kept_model_is_the_one_with_the_best_value(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    # From good to bad to better: the first is replaced once, by the last.
    points = [{"learning_rate": rate} for rate in (0.01, 1e-3, 0.03)]
    trainer = {"processing_class": tokenizer(), "num_train_epochs": 4, "train_dataset": Parity(64, 0), **checkpoints}
    study = tuned(tmp_path, max_evals=3, initial_points=points, keep="best", trainer=trainer)
    values = [trial.value for trial in study.trials]
    assert len(set(values)) == 3
    assert study.best_trial.number != 0
    best = tmp_path / "out" / "best"
    assert evaluated(best, tmp_path)["eval_loss"] == pytest.approx(study.best_value, rel=1e-6)
    assert AutoTokenizer.from_pretrained(best)("abc")["input_ids"] == [0, 1, 2]
    record = json.loads((best / "trial.json").read_text())
    assert record == {
        "trial": study.best_trial.number,
        "metric": "eval_loss",
        "value": study.best_value,
        "params": study.best_params,
        "seed": study.best_trial.seed,
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["best"]


def test_a_best_checkpoint_from_the_middle_is_the_one_kept(tmp_path: Path) -> None:
    study = tuned(
        tmp_path,
        keep="best",
        metric="score",
        trainer={
            "compute_metrics": scripted([0.9, 0.1]),
            "metric_for_best_model": "score",
            **CHECKPOINTS,
        },
    )
    trial = study.best_trial
    assert trial.value == 0.9
    kept = evaluated(tmp_path / "out" / "best", tmp_path)["eval_loss"]
    assert kept == pytest.approx(trial.outcomes["eval_loss"], rel=1e-6)


def test_a_kept_model_is_replaced_by_a_better_one_only(tmp_path: Path) -> None:
    scores = scripted(score for score in (0.5, 0.5, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6))
    kept: list[int] = []

    def look(optimizer: LlamaTune, trial: Trial) -> None:
        kept.append(json.loads((tmp_path / "out" / "best" / "trial.json").read_text())["trial"])

    tuned(tmp_path, keep="best", metric="score", max_evals=4, callbacks=[look], trainer={"compute_metrics": scores})
    assert kept == [0, 0, 0, 3]  # the earliest among equals, like best_trial


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    tuned(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_diverged_model_is_not_kept(tmp_path: Path) -> None:
    scores = scripted([-math.inf, -math.inf])
    study = tuned(tmp_path, keep="best", metric="score", trainer={"compute_metrics": scores})
    assert study.best_value == -math.inf
    assert not (tmp_path / "out" / "best").exists()


def test_a_failed_save_warns_and_loses_no_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tuned(tmp_path, keep="best", metric="score", trainer={"compute_metrics": scripted([0.1, 0.1])})
    before = {path.name: path.read_bytes() for path in (out / "best").iterdir()}
    (out / "trial-0000").mkdir()
    (out / "trial-0000" / "model").write_text("in the way")
    with pytest.warns(CheckpointWarning, match=r"the model of trial 0 could not be kept in .*best: .*File exists"):
        study = tuned(tmp_path, keep="best", metric="score", trainer={"compute_metrics": scripted([0.2, 0.2])})
    assert study.best_value == 0.2
    assert {path.name: path.read_bytes() for path in (out / "best").iterdir()} == before


def test_a_later_search_replaces_the_model_of_an_earlier_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        study = tuned(tmp_path, keep="best", seed=seed)
        assert json.loads((tmp_path / "out" / "best" / "trial.json").read_text())["seed"] == study.best_trial.seed


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "best" / "thesis.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    calls = Calls(tmp_path)
    with pytest.raises(SettingsError, match=r"best exists and is no model that tune\(\) has kept"):
        tuned(tmp_path, calls, keep="best")
    assert calls.trainers == []
    assert theirs.read_text() == "years of work"


# --- The disk, and what belongs to the user ------------------------------------------------------


def test_checkpoints_go_to_a_folder_for_each_trial_and_then_away(tmp_path: Path) -> None:
    own = tmp_path / "own" / "checkpoint-2"
    own.mkdir(parents=True)
    (own / "precious.bin").write_text("mine")
    seen: list[list[str]] = []

    def look(control: Any) -> None:
        seen.append(sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("checkpoint-*")))

    def factory(params: Any) -> Trainer:
        return tiny_trainer(
            params,
            tmp_path,
            **CHECKPOINTS,
            save_total_limit=1,
            metric_for_best_model="score",
            compute_metrics=scripted([0.9, 0.1]),
            callbacks=[At("on_train_end", 4, look)],
        )

    study = tuned(tmp_path, factory, metric="score", max_evals=3)
    # The best checkpoint of each trial lived until its end: no rotation by another trial's.
    assert seen == [[f"out/trial-{number:04d}/checkpoint-2", "own/checkpoint-2"] for number in range(3)]
    assert [trial.value for trial in study.trials] == [0.9] * 3
    assert list((tmp_path / "out").iterdir()) == []
    assert (own / "precious.bin").read_text() == "mine"


def test_checkpoints_of_a_failed_trial_go_away_too(tmp_path: Path) -> None:
    trainer = {**CHECKPOINTS, "callbacks": [At("on_save", 4, raises(OSError, "disk full"))]}
    study = tuned(tmp_path, trainer=trainer)
    assert study.trials[0].reason == "OSError"
    assert list((tmp_path / "out").iterdir()) == []


def test_checkpoints_of_a_silent_worker_stay_until_its_trial_has_run_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    stored = {"storage": url, "name": "tiny", "max_evals": 1}
    suspended = LlamaTune(SPACE, n_initial=50, metric=None, **stored)
    trial = suspended.ask()
    theirs = tmp_path / "out" / "trial-0000" / "checkpoint-2"
    theirs.mkdir(parents=True)

    def runs(**more: Any) -> Study:
        everybody_falls_silent(url)
        return tuned(tmp_path, **stored, **more)

    interrupted = runs(trainer={**CHECKPOINTS, "callbacks": [At("on_save", 2, raises(KeyboardInterrupt))]})
    assert [(t.state, t.reason) for t in interrupted.trials] == [
        (TrialState.LOST, "worker silent"),
        (TrialState.LOST, "interrupted"),
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["trial-0000"]
    assert theirs.exists()
    study = runs()
    assert (study.best_trial.number, study.best_trial.first) == (2, trial.number)
    assert not list((tmp_path / "out").iterdir())


def test_checkpoints_of_parameters_that_silenced_each_worker_stay(tmp_path: Path) -> None:
    """As long as their results may still come."""
    url = f"sqlite:///{tmp_path}/study.db"
    stored = {"storage": url, "name": "tiny", "max_evals": 2, "retries": 0}
    LlamaTune(SPACE, n_initial=50, metric=None, **stored).ask()
    theirs = tmp_path / "out" / "trial-0000" / "checkpoint-2"
    theirs.mkdir(parents=True)
    everybody_falls_silent(url)
    study = tuned(tmp_path, **stored)
    assert [trial.state for trial in study.trials] == [TrialState.FAILED, TrialState.COMPLETE]
    assert theirs.exists()


def test_other_files_in_a_trials_folder_stay(tmp_path: Path) -> None:
    log = tmp_path / "out" / "trial-0000" / "runs" / "events.log"
    log.parent.mkdir(parents=True)
    log.write_text("a TensorBoard log")
    tuned(tmp_path, trainer=CHECKPOINTS)
    assert log.read_text() == "a TensorBoard log"
    assert [path.name for path in log.parent.parent.iterdir()] == ["runs"]


def test_the_users_arguments_and_trainer_are_left_as_they_were(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "own"), report_to="none", use_cpu=True, max_steps=2, eval_strategy="epoch"
    )
    before = arguments.to_dict()
    calls = Calls(tmp_path, args=arguments)

    def factory(params: Any) -> Trainer:
        arguments.learning_rate = params["learning_rate"]
        return calls(params)

    study = tuned(tmp_path, factory, max_evals=2)
    assert len(study.completed) == 2
    assert arguments.to_dict() == before | {"learning_rate": study.trials[1].params["learning_rate"]}
    trainer = calls.trainers[0]
    assert trainer.args is arguments
    assert trainer.evaluate()["eval_loss"] == study.trials[0].value  # at leisure, after the search
