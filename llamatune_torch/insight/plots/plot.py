"""``study.plot(kind)``: each figure of the page as matplotlib's axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llamatune_torch.errors import SettingsError
from llamatune_torch.insight.explain import explain
from llamatune_torch.insight.plots.canvas import PAPER, Axes, Canvas, Figure, new_axes, new_grid
from llamatune_torch.insight.plots.model import draw_effect, draw_importance, draw_surface, range_of
from llamatune_torch.insight.plots.scales import label
from llamatune_torch.insight.plots.trials import (
    draw_calibration,
    draw_curves,
    draw_front,
    draw_history,
    draw_parallel,
)
from llamatune_torch.insight.records import Insight
from llamatune_torch.study import Study

#: The kinds that draw the record alone, for which nothing is computed.
OF_THE_RECORD: Mapping[str, Callable[[Canvas, Study], None]] = {
    "parallel": draw_parallel,
    "curves": draw_curves,
    "pareto": draw_front,
}
KINDS = ("history", "importance", "effects", "pairs", *OF_THE_RECORD, "calibration")


def plot(
    study: Study, kind: str, ax: Axes | None = None, *, insight: Insight | None = None, near: bool = False
) -> Axes | Figure:
    """Draws a figure.

    Args:
        study: what it shows.
        kind: "history" (progress), "importance", "effects", "pairs", "parallel" (coordinates), "curves", "calibration"
            (predictions) or "pareto" (the front).
        ax: matplotlib's axes to draw on; by default new ones.
        insight: what ``explain(study)`` has returned, so that it is not computed again for each figure.
        near: True for importance and effects among the best third, rather than over the whole space.

    Returns:
        The axes; of "effects" and "pairs", which have several, the figure.

    Raises:
        SettingsError: there is no such kind, or it has several axes, so that ``ax`` does not go with it.
    """
    if kind not in KINDS:
        raise SettingsError(f"the kind of a plot must be one of {list(KINDS)}, but got {kind!r}")
    if kind in OF_THE_RECORD:
        canvas = Canvas(new_axes() if ax is None else ax)
        OF_THE_RECORD[kind](canvas, study)
        return canvas.ax
    known = explain(study) if insight is None else insight
    if kind in ("effects", "pairs"):
        if ax is not None:
            raise SettingsError(f"{kind!r} is a figure with axes of its own: it takes no ax, but got {ax!r}")
        return _several(known, kind, near)
    canvas = Canvas(new_axes() if ax is None else ax)
    if kind == "history":
        draw_history(canvas, study, known.progress.steps)
    elif kind == "importance":
        draw_importance(canvas, known.near if near else known.importance)
    else:
        draw_calibration(canvas, study, () if known.trust is None else known.trust.predictions)
    return canvas.ax


def _several(insight: Insight, kind: str, near: bool) -> Figure:
    effects = insight.effects_near if near else insight.effects
    parts: tuple[Any, ...] = effects if kind == "effects" else insight.surfaces
    figure, axes = new_grid(len(parts) or 1)
    if not parts:
        Canvas(axes[0]).say(insight.missing.get(kind if kind == "effects" else "surfaces", "too little is known"))
    shared = range_of(effects, insight.study)
    for part, ax in zip(parts, axes, strict=False):
        if kind == "effects":
            draw_effect(Canvas(ax), insight.study, part, shared, near)
            ax.set_title(label(part.name, 30), fontsize=10)
            ax.set_ylabel(label(insight.study.metric, 24), color=PAPER.muted, fontsize=9)
        else:
            draw_surface(Canvas(ax), insight.study, part)
    return figure
