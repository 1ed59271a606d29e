"""One tracker run for each trial, with real trackers: W&B offline, MLflow, TensorBoard, Trackio."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from test_pausing import Leave, Stages
from tiny import SPACE, At, Calls, raises, tiny_trainer, tuned
from transformers import Trainer

from llamatune_torch import CallbackWarning, Real, Study, TrialState

# What the trackers themselves warn about.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "FutureWarning", "PendingDeprecationWarning", "sqlalchemy.exc.SADeprecationWarning",
    "ResourceWarning", "pytest.PytestUnraisableExceptionWarning",
)]  # fmt: skip


@dataclass
class Run:
    """A run as its tracker has it on disk."""

    name: str
    group: str
    state: str
    config: dict[str, Any]
    metrics: set[str]
    tags: dict[str, str] = field(default_factory=dict)
    id: str = ""


Read = Callable[[], list[Run]]


# --- Reading what trackers have written ----------------------------------------------------------


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path), "PROJECT": "tests"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    module = pytest.importorskip("wandb", reason="needs W&B: pip install 'llamatune-torch[trackers]'")

    def runs() -> list[Run]:
        module.teardown()  # its service writes with a delay
        found: dict[str, Run] = {}
        # A run that was reopened has several files.
        for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
            run = read_wandb(file)
            earlier = found.get(run.id, run)
            found[run.id] = replace(run, metrics=run.metrics | earlier.metrics, config=earlier.config | run.config)
        return sorted(found.values(), key=lambda run: run.name)

    yield runs
    module.teardown()


def read_wandb(file: Path) -> Run:
    """Reads the log of an offline run: LevelDB's format, with protocol buffers in it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    run = Run("", "", "running", {}, set())
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # neither whole nor the last part
            continue
        record, parts = Record.FromString(parts), b""
        for update in (*record.run.config.update, *record.config.update):
            run.config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        if record.HasField("run"):
            run.name, run.group, run.id = record.run.display_name, record.run.run_group, record.run.run_id
        if record.HasField("preempting"):
            run.state = "preempting"
        if record.HasField("history"):
            run.metrics |= {item.key or ".".join(item.nested_key) for item in record.history.item}
        if record.HasField("exit"):
            ended = "failed" if record.exit.exit_code else "finished"
            run.state = "paused" if run.state == "preempting" and record.exit.exit_code else ended
    return run


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    module = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'llamatune-torch[trackers]'")
    module.set_tracking_uri(f"file://{tmp_path}/mlruns")

    def runs() -> list[Run]:
        found = module.search_runs(output_format="list", order_by=["attributes.start_time"])
        return [
            Run(
                run.info.run_name,
                run.data.tags.get("study", ""),
                run.info.status.lower(),
                dict(run.data.params),
                {name.replace("eval_", "eval/") for name in run.data.metrics},
                {**run.data.tags, "id": run.info.run_id},
            )
            for run in found
        ]

    yield runs
    while module.active_run() is not None:
        module.end_run()


@pytest.fixture
def tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "boards"))
    missing = "needs TensorBoard: pip install 'llamatune-torch[trackers]'"
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=missing, exc_type=ImportError
    )

    def runs() -> list[Run]:
        from tensorboard.plugins.hparams import plugin_data_pb2

        found = []
        for folder in sorted({file.parent for file in tmp_path.glob("boards/**/events.out.*")}):
            events = accumulator.EventAccumulator(str(folder)).Reload()
            name = str(folder.relative_to(tmp_path / "boards"))
            run = Run(name, name.rpartition("/")[0], "running", {}, set(events.Tags()["scalars"]))
            for content in events.summary_metadata.values():
                if content.plugin_data.plugin_name == "hparams":
                    data = plugin_data_pb2.HParamsPluginData.FromString(content.plugin_data.content)
                    for key, value in data.session_start_info.hparams.items():
                        run.config[key] = value.number_value or value.string_value
                    if data.HasField("session_end_info"):
                        run.state = {1: "finished", 2: "failed"}[data.session_end_info.status]
            found.append(run)
        return found

    return runs


@pytest.fixture
def trackio(tmp_path: Path) -> Read:
    pytest.importorskip("trackio", reason="needs Trackio: pip install 'llamatune-torch[trackers]'")

    def runs() -> list[Run]:
        from trackio.sqlite_storage import SQLiteStorage as Storage

        found, project = [], tmp_path.name
        for record in sorted(Storage.get_run_records(project), key=lambda record: str(record["name"])):
            run = {"run_id": record["id"]}
            config = Storage.get_run_config(project, **run) or {}
            metrics = {name for log in Storage.get_logs(project, **run) for name in log}
            failed = [alert["title"] for alert in Storage.get_alerts(project, **run)] == ["trial failed"]
            found.append(
                Run(str(record["name"]), config["_Group"], "failed" if failed else "finished", config, metrics)
            )
        return found

    return runs


@pytest.fixture(params=["wandb", "mlflow", "tensorboard", "trackio"])
def tracker(request: pytest.FixtureRequest) -> tuple[str, Read]:
    return request.param, request.getfixturevalue(request.param)


# --- What they have to have written --------------------------------------------------------------


def search(folder: Path, tracker: str, **arguments: Any) -> Study:
    """Three trials: one that completes, one that raises in its training, one whose loss is nan."""

    def factory(params: Any) -> Trainer:
        callbacks = [At("on_step_end", 3, raises(ValueError, "no"))] if params["fate"] == "raises" else []
        rate = params["learning_rate"] * (1e40 if params["fate"] == "nan" else 1)
        return tiny_trainer(
            {"learning_rate": rate}, folder, report_to=tracker, callbacks=callbacks, project=folder.name
        )

    points = [{"learning_rate": 0.01, "fate": fate} for fate in ("well", "raises", "nan")]
    search: dict[str, Any] = {
        "space": {**SPACE, "fate": ["well", "raises", "nan"]},
        "initial_points": points,
        "max_evals": 3,
        "storage": f"sqlite:///{folder}/study.db",
        "name": "gpt2",
    }
    return tuned(folder, factory, **{**search, **arguments})


def test_each_trial_has_a_run_of_its_own_that_ends_with_it(tracker: tuple[str, Read], tmp_path: Path) -> None:
    name, read = tracker
    study = search(tmp_path, name)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAILED, TrialState.FAILED]
    runs = read()
    assert [run.name for run in runs] == ["gpt2/trial-0000", "gpt2/trial-0001", "gpt2/trial-0002"]
    assert {run.group for run in runs} == {"gpt2"}
    assert [run.state for run in runs] == ["finished", "failed", "failed"]
    assert [run.config["fate"] for run in runs] == ["well", "raises", "nan"]
    assert float(runs[0].config["learning_rate"]) == 0.01
    assert "eval/loss" in runs[0].metrics & runs[1].metrics
    assert not open_run(name)


def open_run(tracker: str) -> Any:
    module = sys.modules.get(tracker)
    if tracker == "wandb":
        return module.run  # type: ignore[union-attr]
    if tracker == "mlflow":
        return module.active_run()  # type: ignore[union-attr]
    return module.context_vars.current_run.get() if tracker == "trackio" else None  # type: ignore[union-attr]


def test_a_second_search_does_not_write_to_the_runs_of_the_first(tracker: tuple[str, Read], tmp_path: Path) -> None:
    """Neither of them has a storage, so both have the same name."""
    name, read = tracker
    for _ in range(2):
        search(tmp_path, name, storage=None, name=None, max_evals=1)
    runs = read()
    assert len(runs) == len({run.name for run in runs}) == len({run.group for run in runs}) == 2
    assert all(run.group.startswith("study-") and run.name == f"{run.group}/trial-0000" for run in runs)


def test_the_last_evaluation_is_in_the_trials_run_even_if_it_comes_after_the_training(
    tracker: tuple[str, Read], tmp_path: Path
) -> None:
    name, read = tracker

    def stop(control: Any) -> None:
        control.should_training_stop = True

    late = {"eval_strategy": "no", "logging_strategy": "epoch", "callbacks": [At("on_log", 2, stop)]}
    tuned(tmp_path, trainer={"report_to": name, "project": tmp_path.name, **late})
    (run,) = read()
    assert "eval/loss" in run.metrics
    assert run.state == "finished"
    assert not open_run(name)


def paused(folder: Path, tracker: str, stage: int, *callbacks: Any, **arguments: Any) -> Study:
    """One stage of a trial of four steps, which pauses after the first and the third of them."""

    def factory(params: Any) -> Trainer:
        changes = {"report_to": tracker, "project": folder.name, "callbacks": [*callbacks]}
        # A metric by which the stage is known again.
        return tiny_trainer(params, folder, compute_metrics=lambda _: {f"stage_{stage}": 1.0}, **changes)

    search = {"strategy": Stages((0.25, 0.75, 1.0)), "storage": f"sqlite:///{folder}/study.db", "name": "gpt2"}
    return tuned(folder, factory, **{**search, "callbacks": [Leave()], **arguments})


def test_a_trial_that_pauses_goes_on_in_its_run(tracker: tuple[str, Read], tmp_path: Path) -> None:
    """Each stage may be in another process; none but the last ends the run."""
    name, read = tracker
    states = []
    for stage in range(3):
        study = paused(tmp_path, name, stage)
        (run,) = read()
        states.append(run.state)
        assert not open_run(name)
        assert run.name == "gpt2/trial-0000"
        assert run.metrics >= {f"eval/stage_{before}" for before in range(stage + 1)}
        assert name in study.trials[0].notes
    assert study.trials[0].state is TrialState.COMPLETE
    assert float(run.config["learning_rate"]) == pytest.approx(study.trials[0].params["learning_rate"])
    between = {"wandb": "paused", "mlflow": "scheduled", "tensorboard": "running", "trackio": "finished"}[name]
    assert states == [between, between, "finished"]  # a run of Trackio's has no state


def test_a_trial_that_fails_while_it_goes_on_ends_its_run(tracker: tuple[str, Read], tmp_path: Path) -> None:
    name, read = tracker
    paused(tmp_path, name, 0)
    study = paused(tmp_path, name, 1, At("on_step_end", 2, raises(ValueError, "no")))
    assert study.trials[0].state is TrialState.FAILED
    (run,) = read()
    assert run.state == "failed"


def test_a_trial_that_is_interrupted_while_it_goes_on_leaves_its_run_paused(mlflow: Read, tmp_path: Path) -> None:
    paused(tmp_path, "mlflow", 0)
    study = paused(tmp_path, "mlflow", 1, At("on_step_end", 2, raises(KeyboardInterrupt)))
    assert study.trials[0].state is TrialState.PAUSED
    assert [run.state for run in mlflow()] == ["scheduled"]


def test_a_run_that_somebody_has_deleted_is_followed_by_another(mlflow: Read, tmp_path: Path) -> None:
    import mlflow as module

    study = paused(tmp_path, "mlflow", 0)
    module.delete_run(study.trials[0].notes["mlflow"])
    with pytest.warns(CallbackWarning, match=r"the tracker's run gpt2/trial-0000 could not go on: .*deleted"):
        paused(tmp_path, "mlflow", 1)
    assert [run.state for run in mlflow()] == ["scheduled"]


# --- Runs of the user's ---------------------------------------------------------------------------


def test_a_run_that_was_active_before_stays_open_beside_those_of_the_trials(wandb: Read, tmp_path: Path) -> None:
    import wandb as module

    own = module.init(name="own")
    search(tmp_path, "wandb", max_evals=2)
    assert module.run is own
    own.log({"mine": 1})
    own.finish()
    runs = {run.name: run for run in wandb()}
    assert runs["own"].metrics - {"_step", "_runtime", "_timestamp"} == {"mine"}
    assert "fate" not in runs["own"].config
    assert "eval/loss" in runs["gpt2/trial-0000"].metrics
    assert [runs[f"gpt2/trial-000{i}"].state for i in range(2)] == ["finished", "failed"]


def test_a_run_that_was_active_before_is_the_parent_of_those_of_the_trials(mlflow: Read, tmp_path: Path) -> None:
    import mlflow as module

    with module.start_run(run_name="own") as own:
        search(tmp_path, "mlflow", max_evals=2)
        assert module.active_run() is own
    runs = {run.name: run for run in mlflow()}
    assert (runs["own"].state, runs["own"].metrics) == ("finished", set())
    trials = [runs[f"gpt2/trial-000{i}"] for i in range(2)]
    assert [run.tags["mlflow.parentRunId"] for run in trials] == [runs["own"].tags["id"]] * 2
    assert [run.state for run in trials] == ["finished", "failed"]


@pytest.mark.parametrize("variable", ["MLFLOW_NESTED_RUN", "MLFLOW_RUN_ID"])
def test_the_callbacks_own_variables_start_no_further_runs(
    variable: str, mlflow: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow as module

    with module.start_run(run_name="own") as own:
        pass
    monkeypatch.setenv(variable, own.info.run_id if variable == "MLFLOW_RUN_ID" else "TRUE")
    search(tmp_path, "mlflow", max_evals=2)
    assert [run.name for run in mlflow()] == ["own", "gpt2/trial-0000", "gpt2/trial-0001"]


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_run_that_the_factory_starts_is_the_trials(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    read: Read = request.getfixturevalue(kind)
    module = pytest.importorskip(kind)

    def factory(params: Any) -> Trainer:
        start = {"wandb": lambda: module.init(name="mine"), "mlflow": lambda: module.start_run(run_name="mine")}
        start[kind]()
        return tiny_trainer(params, tmp_path, report_to=kind)

    tuned(tmp_path, factory, max_evals=2)
    runs = read()
    assert [(run.name, run.state) for run in runs] == [("mine", "finished")] * 2
    assert all("eval/loss" in run.metrics for run in runs)
    assert not open_run(kind)


def test_the_run_of_a_trial_that_was_interrupted_was_killed(mlflow: Read, tmp_path: Path) -> None:
    callbacks = [At("on_step_end", 3, raises(KeyboardInterrupt))]
    study = tuned(tmp_path, trainer={"report_to": "mlflow", "callbacks": callbacks})
    assert study.trials[0].state is TrialState.LOST
    assert [run.state for run in mlflow()] == ["killed"]


def test_the_name_of_a_study_leads_to_no_other_folder(tensorboard: Read, tmp_path: Path) -> None:
    search(tmp_path, "tensorboard", max_evals=1, name="../..")
    assert [run.name for run in tensorboard()] == ["_/trial-0000"]


def test_parameters_that_are_arguments_too_are_logged_beside_them(mlflow: Read, tmp_path: Path) -> None:
    """MLflow takes one value for a name; the factory may make another one of a parameter."""
    tuned(
        tmp_path,
        lambda params: tiny_trainer(
            {"learning_rate": 10 ** params["learning_rate"]}, tmp_path, report_to="mlflow", weight_decay=params["a (b)"]
        ),
        space={"learning_rate": Real(-3, -2), "a (b)": Real(0, 1)},
        initial_points=[{"learning_rate": -2.0, "a (b)": 0.5}],
    )
    (run,) = mlflow()
    assert (run.config["learning_rate"], run.config["trial.learning_rate"]) == ("0.01", "-2.0")
    assert run.config["a _b_"] == "0.5"


def test_a_tracker_that_is_out_of_reach_at_the_end_costs_no_result(
    mlflow: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow as module

    with monkeypatch.context() as patched:
        patched.setattr(module, "end_run", raises(ConnectionError, "gone"))
        with pytest.warns(CallbackWarning, match=r"the tracker's run gpt2/trial-0000 could not end: .*gone"):
            study = search(tmp_path, "mlflow", max_evals=1)
    assert study.trials[0].state is TrialState.COMPLETE


def test_a_trainer_that_was_kept_has_its_callbacks_as_they_were(mlflow: Read, tmp_path: Path) -> None:
    import mlflow as module
    from transformers.integrations import MLflowCallback

    calls = Calls(tmp_path, report_to="mlflow", run_name="own")
    tuned(tmp_path, calls)
    (trainer,) = calls.trainers
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, MLflowCallback)]
    assert callback._ml_flow is module
    assert trainer.args.run_name == "own"
