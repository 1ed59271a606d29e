"""A Hugging Face ``Trainer`` as the objective: ``tune(trainer_factory, space)``.

Each trial builds a fresh ``Trainer``, trains and evaluates it, records every evaluation in the trial's curve,
and releases its memory, whatever happened: ``finetune.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Unpack

from llamatune_torch.errors import SettingsError
from llamatune_torch.integrations.trainer.finetune import KEPT_RECORD, FineTune, TrainerFactory
from llamatune_torch.integrations.trainer.metric import MetricFunction
from llamatune_torch.runtime.optimizer import ARGUMENTS, Arguments, LlamaTune
from llamatune_torch.runtime.runners import Executor, Gpus, make_runner
from llamatune_torch.space import SearchSpace
from llamatune_torch.study import Study
from llamatune_torch.trial import Direction


def tune(
    trainer_factory: TrainerFactory,
    space: Mapping[str, Any] | SearchSpace,
    *,
    metric: str | MetricFunction | None = None,
    direction: Direction | None = None,
    max_evals: int = 20,
    keep: Literal["best"] | None = None,
    output_dir: str | Path = "llamatune_output",
    executor: Executor | None = None,
    n_workers: int | None = None,
    gpus: Gpus | None = None,
    isolate: bool = False,
    trial_timeout: float | None = None,
    **search: Unpack[Arguments],
) -> Study:
    """Finds the hyperparameters for which a fine-tune comes out best.

    A trial that raises, runs out of memory or meets a nan is FAILED, with its reason, and the search goes on
    and steers away. Before each trial the global seeds are set to the trial's own, so that the new layers of
    a model start the same when the trial is repeated.

    Args:
        trainer_factory: builds a fresh ``transformers.Trainer`` with a fresh model from a dict of parameters.
        space: ``{name: Real | Integer | Categorical}``.
        metric: the name of an evaluation metric, with or without "eval_"; "perplexity"; or a function of the
            metrics' dict. By default the Trainer's ``metric_for_best_model``, else ``eval_loss``.
        direction: "maximize" or "minimize". By default what the metric's name says: losses, errors and
            perplexities are minimised, everything else is maximised, also the values of a function.
        max_evals: how many fine-tunes in total.
        keep: "best" leaves the best model and its tokenizer in ``output_dir/best``, ready for
            ``from_pretrained``, with the trial's record in ``trial.json``; it replaces what an earlier search
            kept there.
        output_dir: where checkpoints go instead of the Trainer's own ``output_dir``: to a folder for each
            trial, so that they do not mix, and deleted with the trial's end, so that the disk does not fill up (those
            of a machine that died, once its trial has been run again). All machines of an executor must share it
            where models are kept.
        executor: where fine-tunes run, with ``n_workers``, ``gpus``, ``isolate`` and ``trial_timeout``: as in
            :meth:`LlamaTune.optimize`, but for threads. The factory must then be defined at the top level of a module.
        n_workers: how many fine-tunes run at the same time.
        gpus: "auto" for a GPU for each of them.
        isolate: whether each fine-tune has a fresh process.
        trial_timeout: seconds after which a fine-tune's process is killed.
        **search: all other arguments of :class:`LlamaTune`, such as ``initial_points``, ``seed``, ``timeout``, and
            ``storage`` with ``name``, so that a later call goes on where this one ended.

    Returns:
        The study: ``best_params``, ``best_value``, ``best_trial``, ``trials``, ``dataframe()``, ``summary()``.
        The value that counts is the best evaluation where the Trainer keeps its best checkpoint
        (``load_best_model_at_end``), else the last; ``trial.notes["value"]`` says which.

    Raises:
        SpaceError, ParamsError, SettingsError, StorageError: before the factory is called.
        ExecutorError: the factory cannot be sent to another process, or an executor keeps losing trials.
        TrainerError: the factory returned no ``Trainer``, a used one, one that has nothing to evaluate on, or
            one with ``auto_find_batch_size``.
        MetricError: the metric does not exist, or is no number; the message lists those that do exist. Found
            before the first training where no ``compute_metrics`` adds any, else at the first evaluation. After
            a completed trial it is a failure of that trial only.

    Warns:
        IgnoredParameterWarning: the factory never reads one of the parameters.
        CheckpointWarning: the Trainer keeps the worst checkpoint instead of the best, or saving failed.
    """
    where = make_runner(executor, n_workers, gpus, isolate, trial_timeout)
    if isinstance(executor, ThreadPoolExecutor) and where.capacity > 1:
        raise SettingsError(
            "fine-tunes cannot share a process, since torch's seeds and the Trainer's own state are global: use "
            "n_workers, or a pool of processes, instead of a pool of threads"
        )
    kept: dict[str, Any] = {"keep": keep, "output_dir": output_dir}
    return fine_tuning(
        trainer_factory, space, metric=metric, direction=direction, max_evals=max_evals, **kept, **search
    ).run(where)


def fine_tuning(
    trainer_factory: TrainerFactory,
    space: Mapping[str, Any] | SearchSpace,
    *,
    metric: str | MetricFunction | None = None,
    direction: Direction | None = None,
    max_evals: int = 20,
    keep: Literal["best"] | None = None,
    output_dir: str | Path = "llamatune_output",
    **search: Unpack[Arguments],
) -> FineTune:
    """A search that is ready to run; arguments and errors as those of :func:`tune`."""
    if not callable(trainer_factory):
        raise SettingsError(f"trainer_factory must be callable, but got {trainer_factory!r}")
    if not (metric is None or isinstance(metric, str) or callable(metric)):
        raise SettingsError(f"metric must be a name or a function of the metrics, but got {metric!r}")
    _check_names(search)
    _check_keep(keep, Path(output_dir))
    # Metric and direction are settled with the first Trainer, which knows its own.
    optimizer = LlamaTune(space, max_evals=max_evals, direction=direction or "maximize", metric=None, **search)
    return FineTune(optimizer, trainer_factory, metric, direction, keep, Path(output_dir))


def _check_names(search: Mapping[str, Any]) -> None:
    unknown = [name for name in search if name not in ARGUMENTS]
    if unknown:
        own = [name for name in inspect.signature(tune).parameters if name != "search"]
        names = ", ".join(dict.fromkeys([*own, *ARGUMENTS]))
        raise SettingsError(f"tune() has no argument {unknown[0]!r}; its arguments are: {names}")


def _check_keep(keep: Any, output_dir: Path) -> None:
    if keep not in (None, "best"):
        raise SettingsError(f"keep must be 'best' or None, but got {keep!r}")
    best = output_dir / "best"
    if keep == "best" and best.exists() and not (best / KEPT_RECORD).exists():
        raise SettingsError(f"{best} exists and is no model that tune() has kept: choose another output_dir")
