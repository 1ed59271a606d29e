"""The metric of a Trainer that counts, and its direction."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamatune_torch.errors import MetricError, OutcomeError
from llamatune_torch.space import Params
from llamatune_torch.trial import Direction, as_number

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

MetricFunction = Callable[[Mapping[str, float]], float]

# What every evaluation reports, with or without `compute_metrics`; the perplexity is ours.
ALWAYS_REPORTED = ("loss", "perplexity", "runtime", "samples_per_second", "steps_per_second")
# Parts of a metric's name, between underscores, that say "less is better": for language models, and for any.
LOWER_FOR_TEXT = {"loss", "nll", "perplexity", "ppl", "bpb", "bpc", "wer", "cer", "ter", "distance"}
LOWER_FOR_ANY = {"error", "errors", "mse", "rmse", "mae", "mape", "brier", "ece", "latency", "runtime"}
# Arguments of a Trainer, most of them TRL's, and parameters that say which tokens of the evaluation data count.
TOKENS = ["max_length", "max_seq_length", "block_size", "packing", "eval_packing"]
TOKENS += ["completion_only_loss", "assistant_only_loss"]
# Arguments of a Trainer that say what its loss is made of: any Trainer's, those of DPO, of KTO and of reward models.
LOSS = ["label_smoothing_factor", "loss_type", "loss_weights", "router_aux_loss_coef"]
LOSS += ["beta", "label_smoothing", "f_divergence_type", "ld_alpha"]
LOSS += ["desirable_weight", "undesirable_weight", "center_rewards_coefficient"]
# The last word of a metric's name, and what changes its meaning.
MEANING = {
    "loss": LOSS + TOKENS,
    "perplexity": LOSS + TOKENS,
    "accuracy": TOKENS,
    "margins": ["beta"],
    "reward": ["reward_weights"],
}
# Trainers whose loss is around 0 whatever they have learnt.
LEARN_FROM_REWARDS = {"GRPOTrainer", "RLOOTrainer"}


@dataclass(frozen=True)
class Metric:
    """A metric by name, or a function of all metrics, and its direction.

    Args:
        name, direction: of the metric.
        function: takes all metrics of an evaluation, where the metric is one.
        cross_entropy: True if the loss is one of tokens, so that there is a perplexity.
        meaning: what changes the meaning of the metric, as it was for the first Trainer.
    """

    name: str
    direction: Direction
    function: MetricFunction | None = None
    cross_entropy: bool = field(default=True, compare=False)
    meaning: Mapping[str, Any] = field(default_factory=dict, compare=False)

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

    def changed_by(self, trainer: Trainer, params: Params) -> list[str]:
        """Lists the arguments and parameters by which the metric means something else than for the first Trainer."""
        now = _meaning(self.name, trainer, params, self.cross_entropy)
        return [name for name, first in self.meaning.items() if now.get(name, first) != first]

    @property
    def hint(self) -> str:
        """The end of the message that a metric does not exist."""
        if self.cross_entropy or not self.name.endswith("_perplexity"):
            return ""
        return (
            "; a perplexity is offered where the loss is the cross entropy of a causal or masked language model, "
            "without label smoothing"
        )

    def _look_up(self, metrics: Mapping[str, Any]) -> Any:
        if self.function is not None:
            try:
                return self.function(dict(metrics))
            except KeyError as error:
                raise MetricError(f"metric {self.name!r} needs {error}, {self._available(metrics)}") from None
        if self.name in metrics:
            return metrics[self.name]
        if self.name.endswith("_perplexity") and self.cross_entropy:
            loss = self.name.removesuffix("perplexity") + "loss"
            if loss in metrics:
                return perplexity(metrics[loss])
        raise MetricError(f"there is no metric {self.name!r}, {self._available(metrics)}{self.hint}")

    def _available(self, metrics: Mapping[str, Any]) -> str:
        losses = [name.removesuffix("loss") for name in metrics if self.cross_entropy and name.endswith("_loss")]
        names = sorted({*metrics, *(f"{prefix}perplexity" for prefix in losses)} - {"epoch"})
        return f"the Trainer reports: {', '.join(names)}"


def resolve_metric(
    metric: str | MetricFunction | None, direction: Direction | None, trainer: Trainer, params: Params
) -> Metric:
    """Chooses the metric that the user names, else the Trainer's ``metric_for_best_model``, else ``eval_loss``.

    For Trainers that learn from rewards, ``eval_reward`` takes the place of ``eval_loss``, unless the user names that.

    The direction is the user's. Otherwise it is the Trainer's ``greater_is_better``, if its user must have set it; else
    "minimize" for a name that says so (loss, perplexity, error, wer ...), and "maximize" for any other.
    """
    cross_entropy = _is_cross_entropy(trainer)
    if callable(metric):
        assert direction is not None  # FineTune sees to it, before the factory is called
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric("metric" if name == "<lambda>" else name, direction, metric, cross_entropy)
    name = metric or _default(trainer)
    name = name if name.startswith("eval_") else f"eval_{name}"
    direction = direction or ("minimize" if _less_is_better(name, trainer.args) else "maximize")
    return Metric(name, direction, None, cross_entropy, _meaning(name, trainer, params, cross_entropy))


def always_reported(prefixes: Iterable[str], cross_entropy: bool) -> list[str]:
    """Lists the names that evaluations with these prefixes report, whatever the metrics are."""
    names = [name for name in ALWAYS_REPORTED if name != "perplexity" or cross_entropy]
    return [f"{prefix}_{name}" for prefix in prefixes for name in names]


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


def _default(trainer: Trainer) -> str:
    own = trainer.args.metric_for_best_model or "eval_loss"
    rewarded = any(kind.__name__ in LEARN_FROM_REWARDS for kind in type(trainer).__mro__)
    # The arguments set "loss" by themselves where the best model is loaded at the end.
    return "eval_reward" if rewarded and own.removeprefix("eval_") == "loss" else own


def _meaning(name: str, trainer: Trainer, params: Params, cross_entropy: bool) -> dict[str, Any]:
    """The arguments of a Trainer, and the parameters it was built from, that change the meaning of a metric."""
    args = trainer.args
    names = MEANING.get(re.split("[_/]", name)[-1], [])
    # A user's own code may have prepared the data. To a classifier, a text's length makes no such difference.
    prepared = [name for name in TOKENS if name in names and name in params and cross_entropy]
    return {name: params[name] for name in prepared} | {
        name: getattr(args, name) for name in names if hasattr(args, name)
    }


def _is_cross_entropy(trainer: Trainer) -> bool:
    """True if the loss is a mean cross entropy, in nats a token, of a causal or masked language model."""
    from transformers.models.auto import modeling_auto as auto

    model: Any = trainer.model
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's
    # A decoder that is given another text is a causal language model, too.
    tables = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    classes = {kind.__name__ for kind in type(model).__mro__}
    plain = {"label_smoothing_factor": 0.0, "loss_type": "nll"}
    return (
        any(not classes.isdisjoint(table.values()) for table in tables)
        and trainer.compute_loss_func is None
        and type(trainer).compute_loss.__module__ in ("transformers.trainer", "trl.trainer.sft_trainer")
        and all(getattr(trainer.args, name, value) == value for name, value in plain.items())
    )
