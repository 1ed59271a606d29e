"""Every run is trained to its end, where the engine proposes it."""

from __future__ import annotations

from dataclasses import dataclass

from llamatune_torch.decisions import ROUNDING, Decision, Finish, Start
from llamatune_torch.engine.strategies.strategy import resume
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study


@dataclass(frozen=True)
class Full:
    """The strategy "full"."""

    least: float = 1.0

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """See ``Strategy``."""
        for trial in study.paused:
            return resume(trial, 1.0, left, "every run is trained to its end")
        return propose(study, settings, left)


def propose(study: Study, settings: Settings, left: float) -> Decision:
    """The engine's next proposal, to be trained to its end, if there is budget for a full run.

    Raises:
        SpaceExhaustedError: a finite space has no point left.
    """
    if left < 1 - ROUNDING:
        return Finish("the budget is used up" if left < 0.01 else f"{left:.2g} full runs are left, less than one")
    return Start.of(suggest(study, settings)[0])
