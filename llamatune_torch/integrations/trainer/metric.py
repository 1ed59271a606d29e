"""The metric of a Trainer that counts, and its direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamatune_torch.errors import MetricError, OutcomeError
from llamatune_torch.trial import Direction, as_number

if TYPE_CHECKING:
    from transformers import TrainingArguments

MetricFunction = Callable[[Mapping[str, float]], float]

# What every evaluation reports, with or without `compute_metrics`; the perplexity is ours.
ALWAYS_REPORTED = ("loss", "perplexity", "runtime", "samples_per_second", "steps_per_second")
# Parts of a metric's name, between underscores, that say "less is better": for language models, and for any.
LOWER_FOR_TEXT = {"loss", "nll", "perplexity", "ppl", "bpb", "bpc", "wer", "cer", "ter", "distance"}
LOWER_FOR_ANY = {"error", "errors", "mse", "rmse", "mae", "mape", "brier", "ece", "latency", "runtime"}


@dataclass(frozen=True)
class Metric:
    """A metric by name, or a function of all metrics, and its direction."""

    name: str
    direction: Direction
    function: MetricFunction | None = None

    def read(self, metrics: Mapping[str, Any]) -> float:
        """Reads the metric's value from those of one evaluation.

        Raises:
            MetricError: it is not among them, and the message lists those that are; or it is no number.
        """
        value = self._look_up(metrics)
        try:
            return as_number(value)
        except OutcomeError:
            raise MetricError(
                f"metric {self.name!r} must be a number, but is {value!r} ({type(value).__name__})"
            ) from None

    def is_in(self, metrics: Mapping[str, Any]) -> bool:
        """True if it can be read from these metrics."""
        try:
            self.read(metrics)
        except MetricError:
            return False
        return True

    def _look_up(self, metrics: Mapping[str, Any]) -> Any:
        if self.function is not None:
            try:
                return self.function(dict(metrics))
            except KeyError as error:
                raise MetricError(f"metric {self.name!r} needs {error}, {_available(metrics)}") from None
        if self.name in metrics:
            return metrics[self.name]
        if self.name.endswith("_perplexity"):
            loss = self.name.removesuffix("perplexity") + "loss"
            if loss in metrics:
                return perplexity(metrics[loss])
        raise MetricError(f"there is no metric {self.name!r}, {_available(metrics)}")


def resolve_metric(metric: str | MetricFunction | None, direction: Direction | None, args: TrainingArguments) -> Metric:
    """Chooses the metric that the user names, else the Trainer's ``metric_for_best_model``, else ``eval_loss``.

    The direction is the user's. Otherwise it is the Trainer's ``greater_is_better``, if its user must have set it; else
    "minimize" for a name that says so (loss, perplexity, error, wer ...), and "maximize" for any other.
    """
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric("metric" if name == "<lambda>" else name, direction or "maximize", metric)
    name = metric or args.metric_for_best_model or "eval_loss"
    name = name if name.startswith("eval_") else f"eval_{name}"
    return Metric(name, direction or ("minimize" if _less_is_better(name, args) else "maximize"))


def always_reported(prefixes: Iterable[str]) -> list[str]:
    """Lists the names that evaluations with these prefixes report, whatever the model and its metrics are."""
    return [f"{prefix}_{name}" for prefix in prefixes for name in ALWAYS_REPORTED]


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


def is_trainers_own(name: str, args: TrainingArguments) -> bool:
    """True if the Trainer compares its checkpoints by this metric."""
    own = args.metric_for_best_model
    return own is not None and own.removeprefix("eval_") == name.removeprefix("eval_")


def _less_is_better(name: str, args: TrainingArguments) -> bool:
    parts = set(name.lower().replace("-", "_").split("_"))
    says_so = bool(parts & (LOWER_FOR_TEXT | LOWER_FOR_ANY))
    if is_trainers_own(name, args) and args.greater_is_better is not None:
        # By itself, the Trainer takes "greater is better" for all names that do not end in "loss", also for "error".
        guess = not (args.metric_for_best_model or "").endswith("loss")
        if args.greater_is_better != guess:
            return not args.greater_is_better
    return says_so


def _available(metrics: Mapping[str, Any]) -> str:
    perplexities = [name.removesuffix("loss") + "perplexity" for name in metrics if name.endswith("_loss")]
    names = sorted({*metrics, *perplexities} - {"epoch"})
    return f"the Trainer reports: {', '.join(names)}"
