"""A Hugging Face ``Trainer`` as the objective: ``tune(trainer_factory, space)``.

Each trial builds a fresh ``Trainer``, trains and evaluates it, records every evaluation in the trial's curve, and
releases its memory, whatever happens (``finetune.py``). The metric, the best model and the folders on disk are looked
after where the study is (``keeping.py``).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Unpack

from llamatune_torch.errors import ObjectiveError, SettingsError
from llamatune_torch.hints import describe_unknown
from llamatune_torch.integrations.trainer.check import look_ahead
from llamatune_torch.integrations.trainer.finetune import FineTune, TrainerFactory
from llamatune_torch.integrations.trainer.keeping import Keeper
from llamatune_torch.integrations.trainer.metric import MetricFunction
from llamatune_torch.objectives import read_objectives
from llamatune_torch.runtime.optimizer import ARGUMENTS, Arguments, LlamaTune
from llamatune_torch.runtime.runners import Executor, Gpus, make_runner
from llamatune_torch.runtime.torchrun import rank
from llamatune_torch.space import SearchSpace
from llamatune_torch.study import Study
from llamatune_torch.trial import Direction

logger = logging.getLogger(__name__)


def tune(
    trainer_factory: TrainerFactory,
    space: Mapping[str, Any] | SearchSpace | str,
    *,
    metric: str | MetricFunction | None = None,
    direction: Direction | None = None,
    max_evals: int = 20,
    keep: Literal["best"] | None = None,
    output_dir: str | Path = "llamatune_output",
    overwrite: bool = False,
    max_paused: int = 10,
    max_disk_gb: float | None = None,
    estimate_memory: bool = True,
    auto_batch: bool = False,
    check: bool = False,
    executor: Executor | None = None,
    n_workers: int | None = None,
    gpus: Gpus | None = None,
    isolate: bool = False,
    trial_timeout: float | None = None,
    **search: Unpack[Arguments],
) -> Study:
    """Finds the hyperparameters for which a fine-tune comes out best.

    A trial that raises, runs out of memory or meets a nan is FAILED, with its reason. The search goes on and steers
    away from such parameters. Before each trial, the global seeds are set to the trial's own. So the new layers of a
    model start the same when the trial is repeated.

    Not every fine-tune is trained to its end. From ``max_evals=4`` on, ``strategy="auto"`` trains twenty to a tenth of
    their steps, and finishes the best two. Then the engine chooses, which sees finished ones only. A fine-tune that
    pauses is evaluated, leaves a checkpoint, and goes on from there as if it had never paused, in any process.
    ``strategy="full"`` trains all of them to their end.

    Where the Trainer reports to Weights & Biases, MLflow, TensorBoard or Trackio, each trial has a run of its own:
    "study/trial-0007", in the group of the study (a tag in MLflow), with the parameters as configuration. It ends with
    the trial, as failed where that has failed. An active MLflow run is the parent of all.

    Args:
        trainer_factory: builds a fresh ``transformers.Trainer`` with a fresh model from a dict of parameters.
        space: ``{name: Real | Integer | Categorical}``, or the name of a ready-made one: "lora", "full", "peft_choice",
            "encoder_classification" or "dpo". ``training_arguments`` and ``lora_config`` make of its parameters what a
            Trainer takes.
        metric: the name of an evaluation metric, with or without "eval_"; "perplexity", for causal and masked language
            models; or a function of the metrics' dict. By default the Trainer's ``metric_for_best_model``, else
            ``eval_loss``; ``eval_reward`` for TRL's Trainers that learn from rewards.
        direction: "maximize" or "minimize". By default, the metric's name decides: losses, errors and perplexities are
            minimised, everything else is maximised. A function needs it.
        max_evals: the number of full fine-tunes in total; one that was stopped counts for the share that it trained.
        keep: "best" leaves the model of the best run and its tokenizer in ``output_dir/best``, ready for
            ``from_pretrained``, with the trial's record in ``trial.json``. Later starts of a stored study replace it by
            a better one only. A mean over fresh seeds (``confirm``) is no run: the model may be of another candidate.
        output_dir: a folder for checkpoints, instead of the Trainer's own ``output_dir``. Each trial of each study has
            a folder of its own in it, so searches may share it. Checkpoints are written, whatever ``save_strategy``,
            only for ``load_best_model_at_end``, or with a ``storage`` and ``retries`` for a retry to go on from; then
            the newest one is kept. They are deleted when the trial ends; those of a machine that died, once its trial
            has run again. All machines of an executor must share this folder if models are kept.
        overwrite: True to replace the best model of another search in this ``output_dir``. Without it, such a model is
            an error before the first trial.
        max_paused: the number of paused fine-tunes that keep their checkpoints, the best ones; another one that goes on
            all the same begins anew.
        max_disk_gb: the gigabytes (10^9 bytes) that these checkpoints may take together; by default half of what the
            disk has.
        estimate_memory: True to compute, with a constraint on ``memory_gb``, how much memory configurations take before
            any of them is trained: the factory's models are run on tensors without numbers, in a process of its own,
            for about half a minute, once. What is measured later corrects the estimates.
        auto_batch: True to divide a batch that does not fit into memory. A step still learns from
            ``per_device_train_batch_size`` times ``gradient_accumulation_steps`` sequences; they pass through the model
            in parts. A trial that runs out of memory begins anew with half of them at a time, and later trials begin
            with what has worked. Losses do not depend on the parts.
        check: True to look at one configuration before the first trial (``check.py``): the batch that fits into
            memory, the seconds of a step, the metric. The log says what is found; what is wrong is raised.
        executor: runs the fine-tunes; this and the next four are as in :meth:`LlamaTune.optimize`, but threads cannot
            run several at a time. The factory may be any function; see there.
        n_workers: the number of fine-tunes that run at the same time.
        gpus: "auto" gives each of them a GPU of its own.
        isolate: gives each fine-tune a fresh process.
        trial_timeout: seconds after which a fine-tune's process is killed.
        **search: all other arguments of :class:`LlamaTune`, such as ``objectives`` (of which the first is the metric),
            ``default``, ``initial_points``, ``seed``, ``timeout`` and
            ``callbacks``; with ``storage`` and ``name``, a later call goes on where this one ended.

    Returns:
        The study: ``best_params``, ``best_value``, ``best_trial``, ``trials``, ``dataframe()``, ``summary()``. The
        value of a trial is its best evaluation if the Trainer keeps its best checkpoint (``load_best_model_at_end``),
        else its last one; ``trial.notes["value"]`` says which. ``trial.outcomes`` has the metrics of that evaluation,
        and what the trial took (``measuring.py``): memory, seconds, throughput, sizes.

    Raises:
        SpaceError, ParamsError, SettingsError, StorageError: before the factory is called.
        ExecutorError: the factory cannot be sent to another process, or an executor keeps losing trials.
        TrainerError: the factory returned no ``Trainer``, a used one, one that has nothing to evaluate on, or
            one with ``auto_find_batch_size``.
        MetricError: the metric does not exist, or is no number; the message lists those that do exist. It is found
            before the first training if there is no ``compute_metrics``, else at the first evaluation. After a
            completed trial, it is a failure of that trial only.

    Warns:
        IgnoredParameterWarning: the factory never reads one of the parameters.
        CheckpointWarning: the Trainer keeps the worst checkpoint instead of the best, or saving failed.
        MetricWarning: the metric's values do not compare, since trials differ in an argument that changes what it
            means: ``label_smoothing_factor``, ``max_length``, ``packing``, the ``beta`` of DPO, and the like.
        EstimateWarning: memory could not be computed beforehand, so that it is learnt from trials alone.
        CallbackWarning: one of ``callbacks`` raised an exception; the search went on.

    Example:
        >>> study = tune(trainer_factory, {"learning_rate": Real(1e-6, 1e-3, prior="log-uniform")}, max_evals=30)
        >>> study.best_params
        {'learning_rate': 3.2e-05}
    """
    runner = make_runner(executor, n_workers, gpus, isolate, trial_timeout)
    if isinstance(executor, ThreadPoolExecutor) and runner.capacity > 1:
        raise SettingsError(
            "fine-tunes cannot share a process, since torch's seeds and the Trainer's own state are global: use "
            "n_workers, or a pool of processes, instead of a pool of threads"
        )
    fine_tune: dict[str, Any] = {"metric": metric, "direction": direction, "keep": keep}
    fine_tune |= {"output_dir": output_dir, "overwrite": overwrite}
    fine_tune |= {"max_paused": max_paused, "max_disk_gb": max_disk_gb, "estimate_memory": estimate_memory}
    fine_tune |= {"auto_batch": auto_batch}
    keeper = prepare(trainer_factory, space, max_evals=max_evals, **fine_tune, **search)
    if check and rank() == 0:
        for line in look_ahead(keeper.fine_tune, keeper.optimizer.study, keeper.optimizer.settings.seed):
            logger.info("%s", line)
    return keeper.run(runner)


def prepare(
    trainer_factory: TrainerFactory,
    space: Mapping[str, Any] | SearchSpace | str,
    *,
    max_evals: int = 20,
    **arguments: Any,
) -> Keeper:
    """Opens the study of a search that is ready to run, for callers who need more than :func:`tune` returns.

    Arguments and errors are those of :func:`tune`, without the arguments that say where fine-tunes run.
    """
    if objectives := read_objectives(arguments.get("objectives")):
        first = objectives[0]
        for name, told in (("metric", first.name), ("direction", first.direction)):
            if arguments.get(name) not in (None, told):
                raise ObjectiveError(f"the first objective is the metric: {first}, but {name}={arguments[name]!r}")
            arguments[name] = told
    own = {field.name for field in fields(FineTune) if field.init}
    search = {name: value for name, value in arguments.items() if name not in own}
    _check_names(search)
    fine_tune = FineTune(trainer_factory, **{name: value for name, value in arguments.items() if name in own})
    # Metric and direction are settled with the first Trainer, which knows its own.
    direction = fine_tune.direction or "maximize"
    return Keeper(LlamaTune(space, max_evals=max_evals, direction=direction, metric=None, **search), fine_tune)


def _check_names(search: Mapping[str, Any]) -> None:
    unknown = [name for name in search if name not in ARGUMENTS]
    if unknown:
        own = [name for name in inspect.signature(tune).parameters if name != "search"]
        names = list(dict.fromkeys([*own, *ARGUMENTS]))
        raise SettingsError(f"tune(): {describe_unknown(unknown[0], names)}; the arguments are: {', '.join(names)}")
