"""tune(): real Trainers on real models, from the arguments to the study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from strategies import OTHERS
from tiny import SPACE, Calls, raises, scripted, text_trainer, tiny_trainer, tuned
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from llamatune_torch import (
    LlamaTune,
    ParamsError,
    Real,
    Settings,
    SettingsError,
    SpaceError,
    Study,
    StudyMismatchError,
    Trial,
    TrialState,
    tune,
)
from llamatune_torch.integrations.trainer.tune import prepare

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
    study = tuned(tmp_path, max_evals=4, n_initial=2, strategy="full")
    assert [trial.origin for trial in study.trials] == ["sobol", "sobol", "surrogate", "surrogate"]


def test_perplexity_is_offered_from_the_loss(tmp_path: Path) -> None:
    study = tuned(tmp_path, lambda params: text_trainer(params, tmp_path), metric="perplexity")
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
    study = tuned(tmp_path, metric=lambda metrics: 10 * metrics["eval_accuracy"], direction="maximize")
    assert study.metric == "metric"
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
    study = tuned(tmp_path, max_evals=5, initial_points=[point], callbacks=[stop_after_two], strategy="full")
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


def test_every_knob_of_the_engine_can_be_set_one_by_one_or_as_a_record(tmp_path: Path) -> None:
    def settings(**arguments: Any) -> Settings:
        return prepare(lambda params: None, SPACE, output_dir=tmp_path, **arguments).optimizer.settings

    for name, value in OTHERS.items():
        assert settings(**{name: value}) == Settings(**{name: value})
    assert settings(settings=Settings(**OTHERS)) == Settings(**OTHERS)
    with pytest.raises(SettingsError, match="but got xi beside it"):
        settings(settings=Settings(), xi=0.2)


def test_failures_beyond_max_failures_end_the_search(tmp_path: Path) -> None:
    study = tuned(tmp_path, raises(ValueError, "no"), max_evals=9, max_failures=1)
    assert len(study.trials) == 2


def test_the_timeout_is_handed_on(tmp_path: Path) -> None:
    assert tuned(tmp_path, max_evals=9, timeout=1e-9).trials == ()


def test_an_unknown_argument_is_named_with_those_that_exist(tmp_path: Path) -> None:
    calls = Calls(tmp_path)
    with pytest.raises(
        SettingsError, match=r"tune\(\): there is no argument 'n_trials': here it is max_evals"
    ) as caught:
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
        ({"metric": max}, SettingsError, "metric is a function, so direction must say which way: 'maximize' or 'mini"),
        ({"metric": 3}, SettingsError, "metric must be a name or a function of the metrics, but got 3"),
        ({"keep": "all"}, SettingsError, "keep must be 'best' or None, but got 'all'"),
        ({"model_eval_fn": print}, SettingsError, r"tune\(\): there is no argument 'model_eval_fn'"),
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


def test_a_stored_search_goes_on_with_a_parameter_more(tmp_path: Path) -> None:
    stored: dict[str, Any] = {"storage": f"sqlite:///{tmp_path}/study.db", "name": "mine"}
    tuned(tmp_path, **stored)
    space = {**SPACE, "dropout": Real(0.0, 0.5)}

    def factory(params: dict[str, Any]) -> Trainer:
        assert 0 <= params["dropout"] <= 0.5
        return tiny_trainer(params, tmp_path)

    study = tuned(tmp_path, factory, space=space, max_evals=2, extend={"dropout": 0.1}, **stored)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert study.trials[0].params["dropout"] == 0.1


def test_the_winner_is_trained_again_on_fresh_seeds(tmp_path: Path) -> None:
    calls = Calls(tmp_path)
    study = tuned(tmp_path, calls, max_evals=6, confirm=1, confirm_evals=2, strategy="full", keep="best")
    again = study.trials[4:]
    assert [trial.origin for trial in again] == ["confirm"] * 2
    found = study.confirmed()
    assert found is not None
    assert {repr(trial.params) for trial in again} == {repr(study.best_params)}
    assert len({trial.seed for trial in (*again, found.trial)}) == 3
    assert study.best_value == found.mean == sum(trial.value or 0.0 for trial in again) / 2
    assert (tmp_path / "best").is_dir() or any(tmp_path.rglob("best"))
