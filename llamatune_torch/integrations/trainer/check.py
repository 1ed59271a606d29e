"""A look before the first trial: what fits into memory, what a step takes, what the metric is.

One configuration is built in a process of its own. Its model is run on tensors without numbers (``memory.py``), trained
for three steps, and evaluated on two batches. Nothing is saved, and no tracker hears of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch.utils.data import Subset
from transformers import DefaultFlowCallback, Trainer

from llamatune_torch.constraints import Constraint
from llamatune_torch.errors import TrainerError
from llamatune_torch.integrations.trainer.estimating import first_params, run_apart
from llamatune_torch.integrations.trainer.finetune import FineTune
from llamatune_torch.integrations.trainer.measuring import Meter
from llamatune_torch.integrations.trainer.memory import (
    as_computed,
    as_measured,
    footprint,
    length_of,
    memory_of_device,
    sample_batch,
)
from llamatune_torch.integrations.trainer.metric import Metric
from llamatune_torch.study import Study
from llamatune_torch.trial import Outcome, Trial

NUM_STEPS = 3


@dataclass(frozen=True)
class Checked(Outcome):
    """The findings of a look, in lines for people."""

    lines: tuple[str, ...] = ()


@dataclass
class Check:
    """An evaluation that looks instead of training; ``trial.params`` is the configuration.

    Args:
        fine_tune: builds the Trainer, and knows the metric that is wanted.
        constraints: of the study; a limit on memory counts instead of the device's own.
    """

    fine_tune: FineTune
    constraints: tuple[Constraint, ...] = ()

    def __call__(self, trial: Trial) -> Checked:
        transformers.logging.set_verbosity_error()
        lines = [f"checked with {', '.join(f'{name}={value!r}' for name, value in trial.params.items())}"]
        lines.append(self._look_at_memory(trial))
        trainer = self.fine_tune.build(trial)
        metric = self.fine_tune.resolve_metric_of(trainer, self.fine_tune.values_of(trial))
        lines.append(_look_at_evaluation(trainer, metric))
        lines += _probe(trainer, metric)
        return Checked(1.0, lines=tuple(lines))

    def _look_at_memory(self, trial: Trial) -> str:
        trainer = self.fine_tune.build(trial)
        batch, length = int(trainer.args.per_device_train_batch_size), length_of(sample_batch(trainer))
        limit = memory_of_device(trainer.args.device)
        for constraint in self.constraints:
            if constraint.name == "memory_gb" and constraint.upper is not None:
                limit = 1e9 * constraint.upper
        try:
            computed = footprint(trainer, (batch, 2 * batch), (length,))
        except Exception as error:  # whatever a model does on tensors without numbers
            return f"memory: not computed, because the model fails on tensors without numbers: {error}"
        takes = as_measured(computed.bytes(batch, length), trainer.args.device) / 1e9
        most = computed.largest_batch(as_computed(limit, trainer.args.device), length)
        fits = f"batch {most} at length {length} fits into {limit / 1e9:.3g} GB, {most + 1} does not"
        if most < 1:
            fits = f"not even one sequence of length {length} fits into {limit / 1e9:.3g} GB"
        return f"memory: {fits}; batch {batch} takes about {takes:.3g} GB to train"


def look_ahead(fine_tune: FineTune, study: Study, seed: int) -> list[str]:
    """Looks at one configuration, the default, an initial point or the middle of the space; in lines for people.

    Raises:
        LlamaTuneError: what :func:`tune` would raise at the first trial; as TrainerError, any other failure.
    """
    found = run_apart(Check(fine_tune, study.constraints), first_params(study), seed)
    if not isinstance(found, Checked):
        raise TrainerError(f"the check failed: {found.error or found.reason}")
    return list(found.lines)


def _look_at_evaluation(trainer: Trainer, metric: Metric) -> str:
    data: Any = trainer.eval_dataset
    on = f"on {len(data)} examples" if hasattr(data, "__len__") else "on a stream of examples"
    strategy: Any = trainer.args.eval_strategy
    at_steps = f"every {trainer.args.eval_steps} steps"
    when = {"no": "at the end only", "epoch": "after each epoch"}.get(strategy.value, at_steps)
    return f"metric: {metric.name}, to {metric.direction}; evaluated {on}, {when}"


def _probe(trainer: Trainer, metric: Metric) -> list[str]:
    """Trains for a few steps and evaluates on a few examples.

    Raises:
        MetricError: the metric is not in the evaluation.
    """
    args, total = trainer.args, _num_steps(trainer)
    for callback in list(trainer.callback_handler.callbacks):
        if not isinstance(callback, DefaultFlowCallback):  # a tracker, or somebody's patience
            trainer.remove_callback(callback)
    args.max_steps, args.eval_strategy, args.save_strategy = NUM_STEPS, "no", "no"
    args.load_best_model_at_end = args.eval_on_start = False
    args.disable_tqdm = True
    meter = Meter({})
    with meter.watching(), meter.of(trainer):
        trainer.train()
    seconds = meter.outcomes()["seconds_per_step"]
    whole = "" if total is None else f", so {total} steps take about {_describe_time(seconds * total)}"
    lines = [f"time: a step takes {seconds:.2g} s{whole}, without evaluations"]
    few: Any = trainer.eval_dataset
    if hasattr(few, "__len__") and hasattr(few, "__getitem__") and not isinstance(few, Mapping):
        few = Subset(few, range(min(len(few), 2 * args.eval_batch_size)))
        found = trainer.evaluate(few)
        value = metric.read(found)
        lines.append(f"evaluation: works, {metric.name} = {value:.4g} after {NUM_STEPS} steps on {len(few)} examples")
    return lines


def _num_steps(trainer: Trainer) -> int | None:
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    data = trainer.get_train_dataloader()
    if not hasattr(data.dataset, "__len__"):
        return None
    a_step = math.ceil(len(data) / trainer.args.gradient_accumulation_steps)
    return math.ceil(a_step * trainer.args.num_train_epochs)


def _describe_time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"
