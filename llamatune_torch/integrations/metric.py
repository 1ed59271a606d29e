"""Which of a Trainer's metrics counts, and whether more of it is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamatune_torch.errors import MetricError
from llamatune_torch.study import Direction

if TYPE_CHECKING:
    from transformers import TrainingArguments

MetricFunction = Callable[[Mapping[str, float]], float]

# What every evaluation reports, with or without `compute_metrics`; the perplexity is ours.
ALWAYS_REPORTED = (
    "eval_loss",
    "eval_perplexity",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
)
# Parts of a metric's name, between underscores, that say "less is better".
LOWER_IS_BETTER = {"loss", "perplexity", "ppl", "error", "wer", "cer", "ter", "mse", "rmse", "mae", "runtime"}


@dataclass(frozen=True)
class Metric:
    """A metric by name, or a function of all metrics, and its direction."""

    name: str
    direction: Direction
    function: MetricFunction | None = None

    def read(self, metrics: Mapping[str, float]) -> float:
        """The metric's value among those of one evaluation.

        Raises:
            MetricError: it is not there; the message lists those that are.
        """
        try:
            if self.function is not None:
                return float(self.function(metrics))
            if self.name in metrics:
                return float(metrics[self.name])
            if self.name == "eval_perplexity":
                return perplexity(metrics["eval_loss"])
        except KeyError as error:
            raise MetricError(f"metric {self.name!r} needs {error}, {_available(metrics)}") from None
        raise MetricError(f"there is no metric {self.name!r}, {_available(metrics)}")


def resolve_metric(metric: str | MetricFunction | None, direction: Direction | None, args: TrainingArguments) -> Metric:
    """The metric that the user names, else the Trainer's ``metric_for_best_model``, else ``eval_loss``.

    The direction is the user's; else "minimize" for a name that says so (loss, perplexity, error, wer ...) or
    where the Trainer was told ``greater_is_better=False``; else "maximize".
    """
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric(name, direction or "maximize", metric)
    name = metric or args.metric_for_best_model or "eval_loss"
    name = name if name.startswith("eval_") else f"eval_{name}"
    own = (args.metric_for_best_model or "").removeprefix("eval_") == name.removeprefix("eval_")
    lower = not LOWER_IS_BETTER.isdisjoint(name.lower().replace("-", "_").split("_"))
    if own and args.greater_is_better is False:
        lower = True
    return Metric(name, direction or ("minimize" if lower else "maximize"))


def perplexity(loss: float) -> float:
    """``exp(loss)`` of a mean cross-entropy in nats a token; infinite where it overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def numbers_among(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are plain numbers."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _available(metrics: Mapping[str, Any]) -> str:
    names = sorted({*metrics, *(["eval_perplexity"] if "eval_loss" in metrics else [])} - {"epoch"})
    return f"the Trainer reports: {', '.join(names)}"
