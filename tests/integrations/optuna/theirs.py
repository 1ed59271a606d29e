"""Optuna studies as other programs write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from llamatune_torch import Study
from llamatune_torch.integrations.optuna.studies import from_optuna


class Opened:
    """An Optuna study, and its connections closed in the end: an open one is a warning, and an error here."""

    def __init__(self, url: str, name: str, **new: Any) -> None:
        self.storage = optuna.storages.RDBStorage(url)
        if new:
            self.study = optuna.create_study(storage=self.storage, study_name=name, **new)
        else:
            self.study = optuna.load_study(storage=self.storage, study_name=name)

    def __enter__(self) -> optuna.Study:
        return self.study

    def __exit__(self, *error: object) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()


def written(
    url: str,
    trials: Sequence[tuple[dict[str, tuple[Any, BaseDistribution]], float | None]],
    name: str = "theirs",
    direction: str = "maximize",
) -> None:
    """An Optuna study from ``{name: (value, distribution)}`` and values; ``None`` for a failed trial."""
    with Opened(url, name, direction=direction) as study:
        for params, value in trials:
            study.add_trial(
                create_trial(
                    state=OptunaState.FAIL if value is None else OptunaState.COMPLETE,
                    value=value,
                    params={name: value for name, (value, _) in params.items()},
                    distributions={name: distribution for name, (_, distribution) in params.items()},
                )
            )


def inferred(url: str, *trials: dict[str, tuple[Any, BaseDistribution]]) -> Study:
    written(url, [(params, float(i)) for i, params in enumerate(trials)])
    return from_optuna(url)
