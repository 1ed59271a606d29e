"""Bayesian optimization of the hyperparameters of language models.

``LlamaTune`` tunes any function, ``tune`` a Hugging Face ``Trainer``. Importing this package loads neither
transformers nor a plotting library; ``tune`` does when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamatune_torch.errors import (
    BudgetSpentError,
    CallbackWarning,
    CheckpointWarning,
    ExecutorError,
    IgnoredParameterWarning,
    LlamaTuneError,
    LlamaTuneWarning,
    MetricError,
    NoCompletedTrialError,
    OutcomeError,
    ParamsError,
    SchemaError,
    SettingsError,
    SpaceError,
    SpaceExhaustedError,
    StorageError,
    StorageWarning,
    StudyMismatchError,
    SurrogateWarning,
    TrainerError,
    TrialStateError,
)
from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.runtime.optimizer import LlamaTune
from llamatune_torch.settings import Settings
from llamatune_torch.space import SearchSpace
from llamatune_torch.study import Curve, Outcome, Study, Trial, TrialState

if TYPE_CHECKING:
    from llamatune_torch.integrations.transformers import tune

__version__ = "0.1.0"

__all__ = [
    "BudgetSpentError",
    "CallbackWarning",
    "Categorical",
    "CheckpointWarning",
    "Curve",
    "ExecutorError",
    "IgnoredParameterWarning",
    "Integer",
    "LlamaTune",
    "LlamaTuneError",
    "LlamaTuneWarning",
    "MetricError",
    "NoCompletedTrialError",
    "Outcome",
    "OutcomeError",
    "ParamsError",
    "Real",
    "SchemaError",
    "SearchSpace",
    "Settings",
    "SettingsError",
    "SpaceError",
    "SpaceExhaustedError",
    "StorageError",
    "StorageWarning",
    "Study",
    "StudyMismatchError",
    "SurrogateWarning",
    "TrainerError",
    "Trial",
    "TrialState",
    "TrialStateError",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "tune":
        from llamatune_torch.integrations.transformers import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
