"""What a training run is worth: the curve, the value that counts, and how a broken run is noticed."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
from tiny import SPACE, At, Calls, Parity, scripted, tiny_trainer, tuned
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from llamatune_torch import MetricError, Trial, TrialState


def only_trial(tmp_path: Path, factory: Any = None, **trainer: Any) -> Trial:
    """A search of one trial with the metric "score"."""
    return tuned(tmp_path, factory, metric="score", direction="maximize", trainer=trainer).trials[0]


class Listener(TrainerCallback):
    """Keeps what the Trainer tells."""

    def __init__(self) -> None:
        self.evaluated_at: list[int] = []
        self.evaluated_in_training: list[int] = []
        self.logs: list[dict[str, Any]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated_at.append(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated_in_training = list(self.evaluated_at)
        self.last_step = state.global_step
        self.logs = list(state.log_history)


class WithExtraMetric(Trainer):
    """Adds a metric to what evaluate() returns, as people do for generation or perplexity."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return super().evaluate(*args, **kwargs) | {"eval_extra": 0.25}


# --- The curve ----------------------------------------------------------------------------------


def test_each_evaluation_is_a_point_of_the_curve(tmp_path: Path) -> None:
    trial = only_trial(tmp_path, compute_metrics=scripted([0.2, 0.4]))
    assert trial.curve.steps == (2, 4)
    assert trial.curve.values == (0.2, 0.4)
    assert trial.curve.progress == (0.5, 1.0)


def test_evaluations_by_steps_are_recorded_too(tmp_path: Path) -> None:
    trial = only_trial(tmp_path, eval_strategy="steps", eval_steps=3, compute_metrics=scripted([0.2, 0.4]))
    assert trial.curve.steps == (3, 4)
    assert trial.curve.progress == (0.75, 1.0)


def test_an_evaluation_before_training_is_at_step_zero(tmp_path: Path) -> None:
    trial = only_trial(tmp_path, eval_on_start=True, compute_metrics=scripted([0.1, 0.2, 0.4]))
    assert trial.curve.steps == (0, 2, 4)
    assert trial.curve.progress == (0.0, 0.5, 1.0)


def test_all_numbers_of_the_evaluation_that_counts_are_outcomes(tmp_path: Path) -> None:
    trial = tuned(tmp_path, metric="accuracy").trials[0]
    assert {"eval_loss", "eval_accuracy", "eval_runtime", "epoch"} <= set(trial.outcomes)
    assert trial.outcomes["eval_accuracy"] == trial.value
    assert trial.cost is not None
    assert 0 < trial.cost < 60


# --- The value that counts ----------------------------------------------------------------------


def test_the_last_evaluation_counts_where_the_last_weights_stay(tmp_path: Path) -> None:
    trial = only_trial(tmp_path, compute_metrics=scripted([0.9, 0.4]))
    assert trial.value == 0.4
    assert trial.notes["value"] == "last evaluation, at step 4 of 4"


def test_the_best_evaluation_counts_where_its_checkpoint_is_loaded(tmp_path: Path) -> None:
    trial = only_trial(
        tmp_path,
        compute_metrics=scripted([0.2, 0.9, 0.4, 0.3]),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    assert trial.value == 0.9
    assert trial.notes["value"] == "best evaluation, at step 2 of 4"
    assert trial.curve.values == (0.2, 0.9, 0.4, 0.3)


def test_a_best_evaluation_without_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    """Evaluated twice as often as saved: the best step has no checkpoint, so the Trainer loads an earlier one."""
    trainers: list[Trainer] = []
    losses: list[float] = []

    def factory(params: Any) -> Trainer:
        trainer = tiny_trainer(
            params,
            tmp_path,
            compute_metrics=scripted([0.2, 0.3, 0.9, 0.1, 0.0]),
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="score",
        )
        trainers.append(trainer)
        return trainer

    trial = only_trial(tmp_path, factory)
    (trainer,) = trainers
    assert trainer.state.best_global_step == 3
    assert trial.value == 0.3
    assert trial.notes["value"] == "best evaluation, at step 2 of 4"
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == losses[1] == trial.outcomes["eval_loss"]


def test_no_checkpoint_to_load_leaves_the_last_evaluation(tmp_path: Path) -> None:
    trial = only_trial(
        tmp_path,
        compute_metrics=scripted([-math.inf, -math.inf]),  # never better than the Trainer's start, so none is best
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    assert trial.value == -math.inf
    assert trial.notes["value"] == "last evaluation, at step 4 of 4"


def test_the_note_names_the_metric_that_chose_the_checkpoint(tmp_path: Path) -> None:
    trial = only_trial(
        tmp_path,
        compute_metrics=scripted([0.2, 0.9]),
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="runtime",  # the time an evaluation takes: any step may have been the best
    )
    step = int(trial.notes["value"].split()[-3])
    assert trial.notes["value"] == f"best (by runtime) evaluation, at step {step} of 4"
    assert trial.value == {2: 0.2, 4: 0.9}[step]


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({"eval_strategy": "no"}, [4]),
        ({"eval_strategy": "epoch"}, [2, 4]),
        ({"eval_strategy": "steps", "eval_steps": 3}, [3, 4]),
        ({"eval_strategy": "steps", "eval_steps": 4}, [4]),
        ({"eval_strategy": "epoch", "eval_delay": 9}, [4]),
        ({"eval_strategy": "no", "max_steps": 3}, [3]),  # in the middle of an epoch
        ({"eval_strategy": "no", "num_train_epochs": 1.5}, [3]),
        ({"eval_strategy": "no", "kind": WithExtraMetric}, [4]),
    ],
)
def test_the_final_model_is_evaluated_once_before_the_training_ends(
    changes: dict[str, Any], calls: list[int], tmp_path: Path
) -> None:
    listener = Listener()
    trial = only_trial(tmp_path, compute_metrics=scripted([0.2, 0.4]), callbacks=[listener], **changes)
    assert listener.evaluated_at == listener.evaluated_in_training == calls
    assert trial.curve.steps == tuple(calls)
    assert trial.curve.progress[-1] == 1.0
    assert trial.notes["value"] == f"last evaluation, at step {calls[-1]} of {calls[-1]}"


def stop(control: Any) -> None:
    control.should_training_stop = True


def end_epoch(control: Any) -> None:
    control.should_epoch_stop = True


@pytest.mark.parametrize(
    ("at", "eval_strategy", "last"),
    [
        (At("on_step_end", 3, stop), "steps", 3),
        (At("on_step_end", 3, stop), "no", 3),
        (At("on_log", 3, stop), "no", 3),
        (At("on_step_end", 3, end_epoch), "no", 3),  # of the last epoch: the training ends before its last step
        (At("on_epoch_end", 2, stop), "no", 2),
    ],
)
def test_a_run_stopped_between_evaluations_is_evaluated_at_its_end(
    at: TrainerCallback, eval_strategy: str, last: int, tmp_path: Path
) -> None:
    listener = Listener()
    trial = only_trial(
        tmp_path,
        eval_strategy=eval_strategy,
        eval_steps=2,
        logging_steps=1,
        compute_metrics=scripted([0.2, 0.4] if eval_strategy == "steps" else [0.4]),
        callbacks=[at, listener],
    )
    assert trial.value == 0.4
    assert trial.curve.steps == tuple(listener.evaluated_in_training)
    assert trial.curve.steps == ((2, last) if eval_strategy == "steps" else (last,))
    assert trial.curve.progress[-1] == last / 4
    assert trial.notes["value"] == f"last evaluation, at step {last} of 4"


def test_a_run_stopped_too_late_for_an_evaluation_is_evaluated_after_its_end(tmp_path: Path) -> None:
    listener = Listener()
    trial = only_trial(
        tmp_path,
        eval_strategy="no",
        logging_strategy="epoch",
        compute_metrics=scripted([0.4]),
        callbacks=[At("on_log", 2, stop), listener],
    )
    assert (listener.evaluated_in_training, listener.evaluated_at) == ([], [2])
    assert (trial.value, trial.curve.steps) == (0.4, (2,))


@pytest.mark.parametrize("save_steps", [2, 4])
def test_a_stopped_run_is_evaluated_at_its_end_only_if_its_last_weights_stay(save_steps: int, tmp_path: Path) -> None:
    """With a checkpoint of the best evaluation, that is what stays; without one, the last weights do."""
    listener = Listener()
    trial = only_trial(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=save_steps,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        compute_metrics=scripted([0.2, 0.4]),
        callbacks=[At("on_step_end", 3, stop), listener],
    )
    kept = save_steps == 2
    assert listener.evaluated_at == listener.evaluated_in_training == ([2] if kept else [2, 3])
    assert trial.value == (0.2 if kept else 0.4)
    assert trial.notes["value"] == f"{'best' if kept else 'last'} evaluation, at step {2 if kept else 3} of 4"


def test_early_stopping_works_as_ever(tmp_path: Path) -> None:
    trial = only_trial(
        tmp_path,
        compute_metrics=scripted([0.7, 0.6, 0.5]),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    assert trial.state is TrialState.COMPLETE
    assert trial.value == 0.7
    assert trial.curve.steps == (1, 2, 3)
    assert trial.notes["value"] == "best evaluation, at step 1 of 4"


# --- Several evaluation sets, and other people's evaluations --------------------------------------


def test_several_evaluation_sets_make_one_point_an_evaluation(tmp_path: Path) -> None:
    sets = {"easy": Parity(8, seed=2), "hard": Parity(8, seed=3)}
    study = tuned(tmp_path, metric="hard_score", trainer={
        "eval_dataset": sets, "compute_metrics": scripted([0.9, 0.1, 0.8, 0.2])
    })  # fmt: skip
    trial = study.trials[0]
    assert study.metric == "eval_hard_score"
    assert trial.curve.values == (0.1, 0.2)
    assert trial.outcomes["eval_easy_score"] == 0.8


def test_a_function_sees_all_evaluation_sets(tmp_path: Path) -> None:
    def worst(metrics: Any) -> float:
        return float(min(metrics["eval_easy_score"], metrics["eval_hard_score"]))

    sets = {"easy": Parity(8, seed=2), "hard": Parity(8, seed=3)}
    trainer = {"eval_dataset": sets, "compute_metrics": scripted([0.9, 0.1, 0.3, 0.7])}
    trial = tuned(tmp_path, metric=worst, direction="maximize", trainer=trainer).trials[0]
    assert trial.curve.values == (0.1, 0.3)


class AlsoOnTrainingData(TrainerCallback):
    """The well-known trick to see training accuracy: evaluate on the training set inside a callback."""

    def __init__(self, event: str) -> None:
        self.trainer: Trainer | None = None
        self.busy = False
        setattr(self, event, self.look)

    def look(self, *_: Any, **__: Any) -> None:
        if not self.busy and self.trainer is not None:
            self.busy = True
            self.trainer.evaluate(self.trainer.train_dataset, metric_key_prefix="train")
            self.busy = False


@pytest.mark.parametrize("event", ["on_evaluate", "on_step_end"])
def test_evaluations_of_other_data_do_not_count(event: str, tmp_path: Path) -> None:
    def factory(params: Any) -> Trainer:
        callback = AlsoOnTrainingData(event)
        trainer = tiny_trainer(params, tmp_path, compute_metrics=by_size, callbacks=[callback])
        callback.trainer = trainer
        return trainer

    def by_size(prediction: Any) -> dict[str, float]:
        return {"score": float(len(prediction.label_ids))}

    trial = only_trial(tmp_path, lambda params: factory(params))
    assert len(Parity(32, 1)) == 32
    assert trial.curve.steps == (2, 4)
    assert trial.curve.values == (32.0, 32.0)


def test_a_metric_that_a_subclass_adds_is_found_in_each_evaluation(tmp_path: Path) -> None:
    listener = Listener()
    study = tuned(tmp_path, metric="extra", trainer={"kind": WithExtraMetric, "callbacks": [listener]})
    assert study.best_value == 0.25
    assert study.trials[0].curve.steps == (2, 4)
    assert listener.evaluated_at == [2, 4]
    assert "eval_accuracy" in study.trials[0].outcomes


class InHalves(Trainer):
    """Changes what the Trainer reports."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        metrics["eval_score"] /= 2
        return metrics


def test_a_metric_that_a_subclass_changes_is_as_it_says(tmp_path: Path) -> None:
    trial = tuned(tmp_path, metric="score", trainer={"kind": InHalves, "compute_metrics": scripted([0.2, 0.4])}).trials[
        0
    ]
    assert trial.curve.values == (0.1, 0.2)


class WithDearMetric(Trainer):
    """Generates only at the end, as that takes long."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        return metrics if self.state.global_step < self.state.max_steps else metrics | {"eval_bleu": 0.5}


def test_a_metric_that_a_subclass_adds_at_the_end_only_is_found(tmp_path: Path) -> None:
    trial = tuned(tmp_path, metric="bleu", trainer={"kind": WithDearMetric}).trials[0]
    assert (trial.value, trial.curve.steps) == (0.5, (4,))


def test_a_trainer_that_was_kept_evaluates_as_ever(tmp_path: Path) -> None:
    """Also where a user has replaced its ``evaluate``."""
    calls = Calls(tmp_path)

    def factory(params: Any) -> Trainer:
        trainer = calls(params)
        trainer.evaluate = functools.partial(Trainer.evaluate, trainer)  # type: ignore[method-assign]
        return trainer

    tuned(tmp_path, calls)
    tuned(tmp_path, factory)
    assert "evaluate" not in vars(calls.trainers[0])
    assert isinstance(vars(calls.trainers[1])["evaluate"], functools.partial)
    assert "eval_loss" in calls.trainers[1].evaluate()


def test_a_metric_that_a_subclass_does_not_add_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"no metric 'eval_other', the Trainer reports: .*eval_extra"):
        tuned(tmp_path, metric="other", trainer={"kind": WithExtraMetric})


class Clears(TrainerCallback):
    """Takes everything out of what it is given."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        metrics.clear()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs.clear()


def notebook_progress() -> TrainerCallback:
    """The Trainer's own callback in a notebook, which pops the runtime out of the metrics."""
    pytest.importorskip("IPython", reason="needs IPython: pip install 'llamatune-torch[notebook]'")
    from transformers.utils.notebook import NotebookProgressCallback

    return NotebookProgressCallback()


@pytest.mark.parametrize("eval_strategy", ["epoch", "steps", "no"])
@pytest.mark.parametrize("callback", [notebook_progress, Clears])
def test_what_other_callbacks_take_out_of_the_metrics_is_recorded_all_the_same(
    callback: Any, eval_strategy: str, tmp_path: Path
) -> None:
    listener = Listener()
    trial = tuned(
        tmp_path,
        metric="score",
        trainer={
            "callbacks": [listener, callback()],
            "compute_metrics": scripted([0.2, 0.4]) if eval_strategy != "no" else scripted([0.4]),
            "eval_strategy": eval_strategy,
            "eval_steps": 2,
        },
    ).trials[0]
    steps = [2, 4] if eval_strategy != "no" else [4]
    assert listener.evaluated_at == steps
    assert trial.curve.steps == tuple(steps)
    assert trial.value == 0.4
    assert {"eval_loss", "eval_score", "eval_runtime", "epoch"} <= set(trial.outcomes)


def test_several_evaluation_sets_are_recorded_though_a_callback_clears_the_metrics(tmp_path: Path) -> None:
    trainer = {
        "eval_dataset": {"easy": Parity(8, seed=2), "hard": Parity(8, seed=3)},
        "compute_metrics": scripted([0.9, 0.1, 0.8, 0.2]),
        "callbacks": [Clears()],
    }
    trial = tuned(tmp_path, metric="hard_score", trainer=trainer).trials[0]
    assert trial.curve.values == (0.1, 0.2)
    assert trial.outcomes["eval_easy_score"] == 0.8


# --- Broken runs --------------------------------------------------------------------------------

HUGE = 1e38  # a learning rate that makes all weights infinite at the first step


def test_nan_gradients_end_a_run_early_though_the_logged_loss_hides_them(tmp_path: Path) -> None:
    listener = Listener()
    trainer = {"learning_rate": HUGE, "logging_steps": 1, "num_train_epochs": 50, "callbacks": [listener]}
    trial = tuned(tmp_path, trainer=trainer).trials[0]
    assert (trial.state, trial.reason, trial.value) == (TrialState.FAILED, "nan", None)
    assert trial.error is not None
    assert trial.error.startswith("grad_norm is nan at step ")
    assert listener.last_step <= 3
    assert listener.evaluated_at == []  # no time is spent on the broken model
    assert all(math.isfinite(entry["loss"]) for entry in listener.logs if "loss" in entry)


def test_nan_is_seen_though_a_callback_clears_what_was_logged(tmp_path: Path) -> None:
    clears = Clears()
    trainer = {"learning_rate": HUGE, "logging_steps": 1, "num_train_epochs": 50, "callbacks": [clears]}
    trial = tuned(tmp_path, trainer=trainer).trials[0]
    assert str(trial.error).startswith("grad_norm is nan at step ")


def test_nan_in_the_evaluation_loss_fails_a_run_whose_accuracy_looks_plausible(tmp_path: Path) -> None:
    listener = Listener()
    trial = tuned(
        tmp_path,
        metric="accuracy",
        trainer={"learning_rate": HUGE, "logging_strategy": "no", "num_train_epochs": 50, "callbacks": [listener]},
    ).trials[0]
    assert (trial.state, trial.reason) == (TrialState.FAILED, "nan")
    assert trial.error == "eval_loss is nan at step 2"
    assert listener.evaluated_at == [2]
    accuracies = [entry["eval_accuracy"] for entry in listener.logs if "eval_accuracy" in entry]
    assert 0.2 < accuracies[0] < 0.8
    assert trial.curve.steps == ()


def test_nan_is_found_without_any_evaluation_during_training(tmp_path: Path) -> None:
    trial = tuned(tmp_path, trainer={"learning_rate": HUGE, "logging_strategy": "no", "eval_strategy": "no"}).trials[0]
    assert (trial.reason, trial.error) == ("nan", "eval_loss is nan at step 4")


class InfiniteLater(Trainer):
    """The loss of an evaluation is infinite, that of training is not."""

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, *args, **kwargs)
        return result if model.training else (result[0] + math.inf, result[1])


def test_an_infinite_loss_is_a_failure(tmp_path: Path) -> None:
    trial = tuned(tmp_path, metric="accuracy", trainer={"kind": InfiniteLater}).trials[0]
    assert (trial.state, trial.reason) == (TrialState.FAILED, "infinite")
    assert trial.error == "eval_loss is inf at step 2"


def test_a_nan_metric_is_a_failure(tmp_path: Path) -> None:
    trial = only_trial(tmp_path, compute_metrics=scripted([0.5, math.nan]))
    assert (trial.state, trial.reason) == (TrialState.FAILED, "nan")
    assert trial.error == "eval_score is nan at step 4"
    assert trial.curve.values == (0.5,)


def test_an_infinite_metric_on_the_bad_side_is_a_value(tmp_path: Path) -> None:
    trial = only_trial(tmp_path, compute_metrics=scripted([0.5, -math.inf]))
    assert (trial.state, trial.value) == (TrialState.COMPLETE, -math.inf)


def test_infinity_in_somebody_elses_loss_is_no_failure(tmp_path: Path) -> None:
    """A log loss is infinite after one certain mistake; that says nothing about the training."""

    def metrics(prediction: Any) -> dict[str, float]:
        return {"score": 0.5, "log_loss": math.inf}

    assert only_trial(tmp_path, compute_metrics=metrics).value == 0.5


def test_a_nan_trial_does_not_stop_the_search(tmp_path: Path) -> None:
    def factory(params: Any) -> Trainer:
        return tiny_trainer({"learning_rate": HUGE if params["learning_rate"] > 0.05 else 1e-3}, tmp_path)

    points = [{"learning_rate": rate} for rate in (0.09, 0.01)]
    study = tuned(tmp_path, factory, space=SPACE, max_evals=2, initial_points=points)
    assert [trial.state for trial in study.trials] == [TrialState.FAILED, TrialState.COMPLETE]
    assert study.failures_by_reason() == {"nan": 1}
