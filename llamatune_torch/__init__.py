"""Bayesian optimization of the hyperparameters of language models.

``LlamaTune`` tunes any function, ``tune`` a Hugging Face ``Trainer``. Importing this package loads nothing yet: each
name is imported when it is first used, so that ``llamatune --help`` answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamatune_torch.categorical import Categorical
    from llamatune_torch.constraints import Constraint
    from llamatune_torch.curve import Curve
    from llamatune_torch.engine.relaxing import relaxations
    from llamatune_torch.errors import (
        BudgetSpentError,
        CallbackWarning,
        CheckpointWarning,
        ConstraintError,
        EstimateWarning,
        EvaluationError,
        ExecutorError,
        FolderError,
        IgnoredParameterWarning,
        LlamaTuneError,
        LlamaTuneWarning,
        MetricError,
        MetricWarning,
        NoCompletedTrialError,
        NoFeasibleTrialError,
        ObjectiveError,
        OutcomeError,
        OutputError,
        ParamsError,
        RuleError,
        SchemaError,
        SettingsError,
        SpaceError,
        SpaceExhaustedError,
        SpaceWarning,
        SpecError,
        StillRunningError,
        StorageError,
        StorageWarning,
        StudyMismatchError,
        SurrogateWarning,
        TrainerError,
        TrialStateError,
    )
    from llamatune_torch.integrations.decoding.tune import tune_decoding
    from llamatune_torch.integrations.trainer.configs import lora_config, training_arguments
    from llamatune_torch.integrations.trainer.tune import tune
    from llamatune_torch.objectives import Objective
    from llamatune_torch.parameters import Integer, Real
    from llamatune_torch.rules import Linear
    from llamatune_torch.runtime.evaluation import current_trial, report, should_pause
    from llamatune_torch.runtime.events import Listener
    from llamatune_torch.runtime.optimizer import LlamaTune
    from llamatune_torch.runtime.page import LivePage
    from llamatune_torch.settings import Settings
    from llamatune_torch.space import SearchSpace
    from llamatune_torch.storage.reader import load_study
    from llamatune_torch.study import Study
    from llamatune_torch.trial import Cause, Outcome, Trial, TrialState

__version__ = "0.1.0"

__all__ = [
    "BudgetSpentError",
    "CallbackWarning",
    "Categorical",
    "Cause",
    "CheckpointWarning",
    "Constraint",
    "ConstraintError",
    "Curve",
    "EstimateWarning",
    "EvaluationError",
    "ExecutorError",
    "FolderError",
    "IgnoredParameterWarning",
    "Integer",
    "Linear",
    "Listener",
    "LivePage",
    "LlamaTune",
    "LlamaTuneError",
    "LlamaTuneWarning",
    "MetricError",
    "MetricWarning",
    "NoCompletedTrialError",
    "NoFeasibleTrialError",
    "Objective",
    "ObjectiveError",
    "Outcome",
    "OutcomeError",
    "OutputError",
    "ParamsError",
    "Real",
    "RuleError",
    "SchemaError",
    "SearchSpace",
    "Settings",
    "SettingsError",
    "SpaceError",
    "SpaceExhaustedError",
    "SpaceWarning",
    "SpecError",
    "StillRunningError",
    "StorageError",
    "StorageWarning",
    "Study",
    "StudyMismatchError",
    "SurrogateWarning",
    "TrainerError",
    "Trial",
    "TrialState",
    "TrialStateError",
    "current_trial",
    "load_study",
    "lora_config",
    "relaxations",
    "report",
    "should_pause",
    "training_arguments",
    "tune",
    "tune_decoding",
]

# Where each name lives; errors and warnings are all on one page.
_HOMES = {
    "Categorical": "categorical",
    "Cause": "trial",
    "Constraint": "constraints",
    "Curve": "curve",
    "Integer": "parameters",
    "Linear": "rules",
    "Listener": "runtime.events",
    "LivePage": "runtime.page",
    "LlamaTune": "runtime.optimizer",
    "Objective": "objectives",
    "Outcome": "trial",
    "Real": "parameters",
    "SearchSpace": "space",
    "Settings": "settings",
    "Study": "study",
    "Trial": "trial",
    "TrialState": "trial",
    "current_trial": "runtime.evaluation",
    "load_study": "storage.reader",
    "lora_config": "integrations.trainer.configs",
    "relaxations": "engine.relaxing",
    "report": "runtime.evaluation",
    "should_pause": "runtime.evaluation",
    "training_arguments": "integrations.trainer.configs",
    "tune": "integrations.trainer.tune",
    "tune_decoding": "integrations.decoding.tune",
} | {name: "errors" for name in __all__ if name.endswith(("Error", "Warning"))}


if not TYPE_CHECKING:  # a type checker would take it for leave to use any name

    def __getattr__(name: str) -> Any:
        if name == "spaces":  # a module, which `from llamatune_torch import spaces` finds without this
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
