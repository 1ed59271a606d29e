"""Everything that can go wrong, on one page.

::

    LlamaTuneError
    ├── SpaceError             (ValueError)   a search space that cannot be: reversed bounds, no choices
    │   └── RuleError                         a rule between parameters that is none, raises, or is kept nowhere
    ├── ParamsError            (ValueError)   parameters that are not in the space: unknown, missing, outside
    ├── SettingsError          (ValueError)   a knob out of its range
    │   ├── ConstraintError                   a limit that is none, or on an outcome that nobody reports
    │   ├── PastError                         a past study of which nothing can be used
    │   └── ObjectiveError                    one of several objectives is none, or is reported by nobody
    ├── SpecError              (ValueError)   what the command line is to run cannot be loaded
    ├── OutputError                           a command has nowhere to write its result
    ├── FolderError            (OSError)      the working directory is gone
    ├── OutcomeError           (TypeError)    a score that is not a number
    ├── EvaluationError        (RuntimeError) nothing has completed, and each trial raises the same exception
    ├── TrialStateError        (ValueError)   a trial told twice, or one this study never asked for
    ├── SpaceExhaustedError                   every point of a finite space is done or running
    ├── BudgetSpentError                      all trials of a stored study's budget are done or running
    ├── StillRunningError                     the strategy waits for what is running
    ├── StorageError                          a study cannot be read or written: disk full, locked, connection lost
    │   ├── SchemaError                       the database is damaged, foreign, or of a newer version
    │   └── StudyMismatchError (ValueError)   the stored study has another space, direction or metric
    ├── NoCompletedTrialError                 asked for the best of nothing
    │   └── NoFeasibleTrialError              no completed trial keeps the limits
    ├── ExecutorError          (RuntimeError) trials cannot run there: no pickle of them, a pool that keeps breaking
    └── TrainerError                          what a Trainer factory returned cannot be tuned
        └── MetricError        (KeyError)     the metric is not among those the Trainer reports

    LlamaTuneWarning (UserWarning)
    ├── SpaceWarning                          a range that is probably not what is meant
    ├── SurrogateWarning                      a fit fell back to something simpler
    ├── IgnoredParameterWarning               the factory never reads a parameter it is given
    ├── CheckpointWarning                     the best model could not be kept, or is not the one that counts
    ├── MetricWarning                         values of the metric do not compare across trials
    ├── StorageWarning                        something could not be written yet, or not at all
    ├── EstimateWarning                       memory could not be computed before the first trial
    └── CallbackWarning                       a user's callback raised; the study went on

A mistake of the caller is raised before any training starts and leaves the study as it was. A failure of
a *trial* is no exception at all: it is recorded in the study as ``TrialState.FAILED``.
"""


class LlamaTuneError(Exception):
    """Root of every error that this package raises on purpose."""


class SpaceError(LlamaTuneError, ValueError):
    """The definition of a parameter or of a search space breaks a rule."""


class RuleError(SpaceError):
    """A rule between parameters is no function, raises an exception, or leaves no point that anybody finds."""


class ParamsError(LlamaTuneError, ValueError):
    """A set of parameters does not belong to the search space."""


class SettingsError(LlamaTuneError, ValueError):
    """A setting is unknown or out of its range."""


class ConstraintError(SettingsError):
    """A limit is none that can be kept, or is on an outcome that no evaluation reports."""


class PastError(SettingsError):
    """A past study is none, or nothing of it can be used here; or a size of a study is no number above zero."""


class ObjectiveError(SettingsError):
    """One of several objectives is none, is reported by no evaluation, or does not go with another setting."""


class SpecError(LlamaTuneError, ValueError):
    """The target of the command line is not there, or cannot be imported."""


class OutputError(LlamaTuneError):
    """A command cannot write its result: standard output is closed or full."""


class FolderError(LlamaTuneError, OSError):
    """The working directory is gone, and something is needed that does not work without one."""


class OutcomeError(LlamaTuneError, TypeError):
    """An evaluation returned something that is not an outcome."""


class EvaluationError(LlamaTuneError, RuntimeError):
    """The function that is tuned raises the same exception whatever its parameters."""


class TrialStateError(LlamaTuneError, ValueError):
    """The trial is unknown to this study, or already finished."""


class SpaceExhaustedError(LlamaTuneError):
    """A finite space has no point left that is neither done nor running."""


class BudgetSpentError(LlamaTuneError):
    """The study has started as many trials as ``max_evals`` allows; its other workers may still run some."""


class StillRunningError(LlamaTuneError):
    """The strategy starts nothing until a running trial has ended or paused."""


class StorageError(LlamaTuneError):
    """A stored study cannot be read or written; the message has what would have been written."""


class SchemaError(StorageError):
    """The database cannot be understood: it is damaged, holds something else, or was made by a newer version."""


class StudyMismatchError(StorageError, ValueError):
    """A stored study has another space, direction or metric than it is opened with."""


class NoCompletedTrialError(LlamaTuneError):
    """There is no best trial, because no trial has completed."""


class NoFeasibleTrialError(NoCompletedTrialError):
    """There is no best trial, because no completed one keeps the constraints."""


class ExecutorError(LlamaTuneError, RuntimeError):
    """Trials cannot run where they were sent, whatever their parameters."""


class TrainerError(LlamaTuneError):
    """The object that ``trainer_factory`` returned cannot be tuned."""


class MetricError(TrainerError, KeyError):
    """The metric to optimize is not among those that the Trainer reports."""

    def __str__(self) -> str:  # KeyError would show the message quoted and escaped
        return str(self.args[0])


class LlamaTuneWarning(UserWarning):
    """Root of every warning of this package, so that one filter catches them all."""


class SpaceWarning(LlamaTuneWarning):
    """A range of the search space is probably not what is meant."""


class SurrogateWarning(LlamaTuneWarning):
    """The surrogate's fit failed and something simpler took its place."""


class IgnoredParameterWarning(LlamaTuneWarning):
    """A parameter of the space has no effect, because the factory never reads it."""


class CheckpointWarning(LlamaTuneWarning):
    """The model on disk is not what the user asked to keep."""


class MetricWarning(LlamaTuneWarning):
    """The metric means something else in different trials, so that the best value may not be the best model."""


class StorageWarning(LlamaTuneWarning):
    """Something could not be stored yet, or does not fit what is stored."""


class EstimateWarning(LlamaTuneWarning):
    """Memory could not be estimated before the first trial, so that the search learns it from trials alone."""


class CallbackWarning(LlamaTuneWarning):
    """A callback of the user's raised an exception."""
