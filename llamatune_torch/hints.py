"""Hints for people: arguments by names that they know from elsewhere, and a range whose scale nobody has chosen."""

from __future__ import annotations

import math
import multiprocessing
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping

from llamatune_torch.errors import SpaceError, SpaceWarning

#: Names of arguments that people know from elsewhere, and ours.
OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(
        ("n_trials", "num_trials", "max_trials", "trials", "num_samples", "n_calls", "n_iter"), "max_evals"
    ),
    **dict.fromkeys(("n_startup_trials", "n_initial_points", "n_random_starts", "num_initial"), "n_initial"),
    **dict.fromkeys(("n_jobs", "workers", "num_workers", "max_workers", "max_concurrent_trials"), "n_workers"),
    **dict.fromkeys(("n_gpus", "num_gpus", "devices"), "gpus"),
    **dict.fromkeys(("study_name", "experiment_name", "project_name"), "name"),
    **dict.fromkeys(("storage_url", "database", "db"), "storage"),
    **dict.fromkeys(("random_state", "random_seed", "rng"), "seed"),
    **dict.fromkeys(("mode", "goal", "directions"), "direction"),
    **dict.fromkeys(("metric_name", "objective_name", "compute_objective"), "metric"),
    **dict.fromkeys(("points_to_evaluate", "initial_params", "initial_guesses", "x0"), "initial_points"),
    **dict.fromkeys(("default_params", "defaults", "baseline", "baseline_params"), "default"),
    **dict.fromkeys(("acq_func", "acquisition_function", "acquisition_func"), "acquisition"),
    **dict.fromkeys(("max_time", "time_budget", "time_budget_s", "time_limit"), "timeout"),
    **dict.fromkeys(("trial_time_limit", "timeout_per_trial"), "trial_timeout"),
    **dict.fromkeys(("max_retries", "n_retries", "max_retry"), "retries"),
    **dict.fromkeys(("callback", "listeners"), "callbacks"),
    **dict.fromkeys(("show_progress_bar", "progress_bar", "verbose", "verbosity"), "progress"),
    **dict.fromkeys(("objective", "func", "fn", "trainable", "objective_fn"), "model_eval_fn"),
}

#: The arguments of ``optimize`` and ``tune`` that say where trials run.
RUNNING = ("executor", "n_workers", "gpus", "isolate", "trial_timeout")

#: Arguments of numbers that people know from elsewhere, and how they are written here.
OTHER_ARGUMENTS: Mapping[str, str] = {
    **dict.fromkeys(("log", "log_scale", "logarithmic"), "prior='log-uniform', or prior='uniform'"),
    **dict.fromkeys(("scale", "distribution", "dist"), "prior"),
    **dict.fromkeys(("min", "lower", "lo", "min_value"), "low"),
    **dict.fromkeys(("max", "upper", "hi", "max_value"), "high"),
}

# A range of reals this many times as high as low is rarely meant to be uniform; no less by rounding alone.
WIDE = 100 * (1 - 1e-9)


def describe_unknown(name: str, known: Collection[str]) -> str:
    """Says that there is no argument of this name, and which one is meant.

    Args:
        name: as the user wrote it.
        known: the names that what was called takes.

    Example:
        >>> describe_unknown("n_jobs", ["max_evals"])
        "there is no argument 'n_jobs': here it is n_workers, of optimize() and tune()"
    """
    ours = OTHER_NAMES.get(name, name)
    place = ""
    if ours not in known and ours in RUNNING:
        place = ", of optimize() and tune()"
    elif ours not in known and set(RUNNING) <= set(known):
        place = ", of LlamaTune()"
    if ours != name:
        return f"there is no argument {name!r}: here it is {ours}{place}"
    is_ours = name in RUNNING or name in OTHER_NAMES.values()
    return f"there is no argument {name!r}" + (f": it is one{place}" if place and is_ours else "")


def refuse_misnamed(kind: str, names: Iterable[str]) -> None:
    """Refuses the arguments of a number that have another name here.

    Raises:
        SpaceError: there is one; the message says how it is written.
    """
    for name in names:
        if name in OTHER_ARGUMENTS:
            raise SpaceError(f"{kind} has no argument {name!r}: here it is {OTHER_ARGUMENTS[name]}")


def warn_if_wide(low: float, high: float, shown: str) -> None:
    """Warns of a range whose scale nobody has chosen, if it spans two decades; ``shown`` is how it was written.

    The warning points at the line of the user's that wrote it, so Python shows it once. A child process imports the
    same line again, and leaves the warning to its parent.
    """
    if not low > 0 or high < WIDE * low or multiprocessing.parent_process() is not None:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("llamatune_torch"):
        level, frame = level + 1, frame.f_back
    decades = math.log10(high) - math.log10(low)
    warnings.warn(
        f"{shown} spans {decades:.3g} decades, and a uniform search spends 90 % on the last: write "
        f"Real({low!r}, {high!r}, prior='log-uniform'), or prior='uniform' if that is meant",
        SpaceWarning,
        stacklevel=level,
    )
