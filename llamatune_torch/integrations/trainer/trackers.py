"""One tracker run for each trial: Weights & Biases, MLflow, TensorBoard and Trackio.

transformers' own callbacks log the training. By themselves they log several trials to one run, or leave the run of a
trial that failed open. Here each trial has a run of its own. The study is its group, the parameters are its
configuration, and it ends when the trial ends, as failed where that has failed. Where a trial pauses, its run is left
as one that goes on: "preempted" in W&B, "SCHEDULED" in MLflow. The trial's notes say by which name it is found again.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from llamatune_torch.errors import CallbackWarning
from llamatune_torch.trial import Trial


class TrackerRuns(TrainerCallback):
    """The runs of one trial, in all trackers that its Trainer reports to.

    It is made before the Trainer is: a run that the factory starts is the trial's, and one that was active before stays
    as it is. The runs start with the training, before transformers' callbacks look for them.

    Args:
        trial: what runs.
    """

    def __init__(self, trial: Trial) -> None:
        self.study, self.name = "", f"trial-{trial.number:04d}"
        self.params = dict(trial.params)
        #: By the name of a tracker, what finds the run again in another process.
        self.notes = {name: note for name, note in trial.notes.items() if trial.pauses and name in _TRACKERS}
        self.paused = False
        self._again = trial.pauses > 0
        self.wandb_before, self.mlflow_before = _active("wandb"), _active("mlflow")
        self.failed = True
        self.interrupted = False
        self._callbacks: list[TrainerCallback] = []
        self._ends = ExitStack()

    @contextmanager
    def of(self, trainer: Trainer, study: str) -> Iterator[None]:
        """Ends the runs when the block does: as failed, unless ``failed`` is false or ``paused`` true by then.

        Args:
            trainer: will train; its arguments are given the name of the run.
            study: the group of the runs.
        """
        self.study, self.name = study, f"{study}/{self.name}"
        trainer.args.run_name = self.name
        self._callbacks = list(trainer.callback_handler.callbacks)
        trainer.callback_handler.callbacks.insert(0, self)
        try:
            yield
        except BaseException as error:
            self.interrupted = not isinstance(error, Exception)
            self.paused = self.interrupted and self._again  # it is given back, as a paused one
            raise
        finally:
            trainer.remove_callback(self)
            with self.warning("end"):
                self._ends.close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            for callback in self._callbacks:
                for kind, run in _RUNS.items():
                    if isinstance(callback, kind):
                        self._ends.enter_context(run(callback, self, args, kwargs["model"]))

    @contextmanager
    def warning(self, what: str) -> Iterator[None]:
        """Turns an error of a tracker into a warning: it must not cost a result."""
        try:
            yield
        except Exception as error:
            message = f"the tracker's run {self.name} could not {what}: {error!r}"
            warnings.warn(message, CallbackWarning, stacklevel=4)


class _Instead:
    """A tracker's module as transformers' callback sees it, with other things in place of some of its own."""

    def __init__(self, module: Any, **others: Any) -> None:
        self._module = module
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _nothing(*_: Any, **__: Any) -> None:
    """Does nothing, where a callback would start or end a run."""


def _active(tracker: str) -> Any:
    """The active run of a tracker that has been loaded."""
    module = sys.modules.get(tracker)  # W&B's own folder of runs can be taken for a module that holds nothing
    return getattr(module, "run", None) if tracker == "wandb" else getattr(module, "active_run", _nothing)()


@contextmanager
def _wandb_run(callback: Any, trial: TrackerRuns, args: TrainingArguments, model: Any) -> Iterator[None]:
    import wandb

    run = wandb.run
    if run is None or run is trial.wandb_before:
        beside: dict[str, Any] = {} if run is None else {"reinit": "create_new"}
        if "wandb" in trial.notes:
            beside |= {"id": trial.notes["wandb"], "resume": "allow"}
        project = os.getenv("WANDB_PROJECT", "huggingface")  # as the callback
        run = wandb.init(project=project, name=trial.name, group=trial.study, config=trial.params, **beside)
    trial.notes["wandb"] = run.id
    # With another active run, the module's own functions log to that one.
    names = ("config", "summary", "log", "watch", "define_metric", "log_artifact")
    callback._wandb = _Instead(wandb, run=run, **{name: getattr(run, name) for name in names})
    try:
        yield
    finally:
        callback._wandb, callback._initialized = wandb, False
        if trial.paused:
            run.mark_preempting()
        run.finish(exit_code=int(trial.failed or trial.paused))


@contextmanager
def _mlflow_run(callback: Any, trial: TrackerRuns, args: TrainingArguments, model: Any) -> Iterator[None]:
    import mlflow

    parent = trial.mlflow_before
    if parent is None and "MLFLOW_RUN_ID" in os.environ:
        parent = mlflow.start_run()  # the whole program's run; otherwise the first trial would be taken for it
    run, instead = mlflow.active_run(), {}
    if run is parent:
        nested, run = parent is not None, None
        if "mlflow" in trial.notes:
            with trial.warning("go on"):  # somebody has deleted it
                run = mlflow.start_run(run_id=trial.notes["mlflow"], nested=nested)
        run = run or mlflow.start_run(run_name=trial.name, nested=nested, tags={"study": trial.study})
    if run.info.run_id == trial.notes.get("mlflow"):  # it has its parameters
        instead = {"log_params": _nothing}
    else:
        with trial.warning("log its parameters"):
            _log_mlflow_params(trial, args, model)
    trial.notes["mlflow"] = run.info.run_id
    callback._ml_flow = _Instead(mlflow, start_run=_nothing, end_run=_nothing, **instead)
    try:
        yield
    finally:
        callback._ml_flow, callback._initialized, callback._auto_end_run = mlflow, False, False
        ended = "KILLED" if trial.interrupted else "FAILED" if trial.failed else "FINISHED"
        status = "SCHEDULED" if trial.paused else ended
        active = mlflow.active_run()
        if active is not None and active.info.run_id == run.info.run_id:
            mlflow.end_run(status)
        else:  # a callback of the user's has ended it, or left a run of its own open within it
            mlflow.MlflowClient().set_terminated(run.info.run_id, status)


def _log_mlflow_params(trial: TrackerRuns, args: TrainingArguments, model: Any) -> None:
    import mlflow

    # MLflow takes one value for a name, and the callback logs those of the arguments and of the model's configuration.
    config: Any = getattr(model, "config", None)
    taken = {*args.to_dict(), *(config.to_dict() if hasattr(config, "to_dict") else ())}
    named = {f"trial.{name}" if name in taken else name: value for name, value in trial.params.items()}
    mlflow.log_params({re.sub(r"[^\w\-. :/]", "_", name): value for name, value in named.items()})


@contextmanager
def _tensorboard_run(callback: Any, trial: TrackerRuns, args: TrainingArguments, model: Any) -> Iterator[None]:
    own = callback.logging_dir
    if callback.tb_writer is not None:  # the user's
        yield
        return
    # Without a folder of the user's, the callback takes the Trainer's output_dir, which is the trial's own.
    study = re.sub(r"[^\w.-]+", "_", trial.study).strip(".")
    root = Path(str(args.output_dir)) if own is None else Path(own, study or "study")
    if "tensorboard" in trial.notes:
        callback.logging_dir = str(root / trial.notes["tensorboard"])
    elif own is not None:
        callback.logging_dir = str(_unused(root / trial.name.rpartition("/")[2]))
    try:
        yield
    finally:
        if callback.tb_writer is not None:
            callback.tb_writer.close()
        folder, callback.logging_dir, callback.tb_writer = callback.logging_dir, own, None
        if folder is not None:  # else the training has not begun
            trial.notes["tensorboard"] = os.path.relpath(folder, root)
            if not trial.paused:
                _log_tensorboard_params(trial, folder)


def _unused(folder: Path) -> Path:
    """A folder that no other search has written to."""
    while folder.exists():
        folder = folder.with_name(f"{folder.name}-again")
    return folder


def _log_tensorboard_params(trial: TrackerRuns, folder: str) -> None:
    """Adds the trial to TensorBoard's table of hyperparameters."""
    with suppress(ModuleNotFoundError):  # the callback can also do with tensorboardX
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
        from torch.utils.tensorboard import FileWriter
        from torch.utils.tensorboard.summary import hparams

        plain = {name: v if isinstance(v, (bool, int, float)) else str(v) for name, v in trial.params.items()}
        summaries = hparams(plain, {})
        if trial.failed:  # torch knows success only
            end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_FAILURE)
            data = plugin_data_pb2.HParamsPluginData(session_end_info=end, version=metadata.PLUGIN_DATA_VERSION)
            summaries[-1].value[0].metadata.plugin_data.content = data.SerializeToString()
        writer = FileWriter(folder)
        for summary in summaries:
            writer.add_summary(summary)
        writer.close()


@contextmanager
def _trackio_run(callback: Any, trial: TrackerRuns, args: TrainingArguments, model: Any) -> Iterator[None]:
    import trackio

    started: list[Any] = []

    def init(**arguments: Any) -> Any:
        # The callback resumes a run by its name, be it of another search. After the training, it is the trial's own.
        resume = "allow" if started or "trackio" in trial.notes else "never"
        run = trackio.init(**{**arguments, "group": trial.study, "config": trial.params, "resume": resume})
        started.append(run)
        trial.notes["trackio"] = trial.name
        return run

    callback._trackio = _Instead(trackio, init=init)
    try:
        yield
    finally:
        callback._trackio, callback._initialized = trackio, False
        current = trackio.context_vars.current_run
        if trial.failed and not trial.paused and started:
            if current.get() is not started[-1]:
                init(project=args.project, name=trial.name, space_id=args.trackio_space_id)
            trackio.alert("trial failed", level=trackio.AlertLevel.ERROR)  # runs have no state
        if started and current.get() is started[-1]:
            trackio.finish()


_TRACKERS = ("wandb", "mlflow", "tensorboard", "trackio")

#: How the runs of a tracker start and end, by the callback that logs to it.
_RUNS = {
    WandbCallback: _wandb_run,
    MLflowCallback: _mlflow_run,
    TensorBoardCallback: _tensorboard_run,
    TrackioCallback: _trackio_run,
}
