"""Figures of what the surrogate has learnt: importance, effects along one parameter, surfaces along two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from llamatune_torch.insight.plots.canvas import Canvas
from llamatune_torch.insight.plots.scales import Ruler, Scale, label
from llamatune_torch.insight.records import Effect, Importance, Surface
from llamatune_torch.study import Study

#: Parameters whose importance a figure shows at most.
NUM_BARS = 20
#: Levels of a surface.
NUM_LEVELS = 10


def draw_importance(canvas: Canvas, shares: Sequence[Importance]) -> None:
    """Draws for each parameter the share of the variance that it explains alone and in total, with its interval."""
    if not shares:
        return canvas.say("too little is known to tell what matters")
    shown, ink = list(shares[:NUM_BARS])[::-1], canvas.palette
    rows = list(range(len(shown)))
    most = max([1e-3, *(_share(each.total.high) for each in shown), *(_share(each.total.value) for each in shown)])
    end = min(1.0, 1.08 * most)
    canvas.ax.set_ylim(-0.6, len(shown) - 0.4)
    scale = Scale(0.0, end, tuple(t for t in (0.0, 0.25, 0.5, 0.75, 1.0) if t <= end) if end > 0.3 else (0.0, end))
    canvas.ax.set_xlim(0.0, end)
    canvas.ax.set_xticks(scale.ticks, [f"{tick:.0%}" for tick in scale.ticks])
    total, first = [_share(each.total.value) for each in shown], [_share(each.first.value) for each in shown]
    canvas.ax.barh(rows, total, height=0.62, color=ink.accent, alpha=0.28, linewidth=0, label="with others")
    canvas.ax.barh(rows, first, height=0.62, color=ink.accent, alpha=0.85, linewidth=0, label="alone")
    low, high = [_share(each.total.low) for each in shown], [_share(each.total.high) for each in shown]
    canvas.ax.hlines(rows, low, high, color=ink.ink, linewidth=1.1)
    names = [label(each.name, 16) + ("*" if each.given else "") for each in shown]
    canvas.ax.set_yticks(rows, names)
    canvas.frame()
    canvas.ax.tick_params(axis="y", colors=ink.ink)
    canvas.ax.spines["bottom"].set_visible(False)
    canvas.ax.vlines(scale.ticks, -0.6, len(shown) - 0.4, color=ink.line, linewidth=0.6, zorder=0)
    return None


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def range_of(effects: Sequence[Effect], study: Study) -> Scale:
    """The axis of the metric that a number of effects share."""
    ends = [bound for effect in effects for bound in (*effect.mean, *effect.low, *effect.high)]
    return Scale.around(ends, study.direction, most=4)


def draw_effect(canvas: Canvas, study: Study, effect: Effect, scale: Scale | None = None, zoom: bool = False) -> None:
    """Draws the mean along a parameter with its interval; special values as points, failures from below.

    Args:
        canvas: where.
        study: whose space has the parameter.
        effect: along the parameter.
        scale: the axis of the metric, if several figures share it.
        zoom: True to show the values alone, instead of the whole range.
    """
    if not effect.values:
        return canvas.say("nothing is known of it")
    ink, ruler = canvas.palette, Ruler(study.space[effect.name], 4)
    scale = scale or range_of([effect], study)
    x = [ruler.place(value) for value in effect.values]
    if zoom and effect.is_number:
        pad = 0.04 * (max(x) - min(x)) or 0.02
        shown = dict.fromkeys([effect.values[0], effect.values[len(x) // 2], effect.values[-1]])
        canvas.ax.set_xticks([ruler.place(value) for value in shown], [label(_rounded(value), 9) for value in shown])
        canvas.ax.set_xlim(min(x) - pad, max(x) + pad)
    else:
        canvas.x(ruler, length=8)
        canvas.divide(ruler)
    canvas.y(scale)
    mean, low, high = ([scale.place(v) for v in column] for column in (effect.mean, effect.low, effect.high))
    if any(effect.failing):
        heights = [scale.low + 0.4 * (scale.high - scale.low) * _share(p) for p in effect.failing]
        if effect.is_number:
            canvas.ax.fill_between(x, scale.low, heights, color=ink.warn, alpha=0.3, linewidth=0)
        else:
            canvas.ax.vlines(x, scale.low, heights, color=ink.warn, alpha=0.3, linewidth=9)
    start = effect.num_special if effect.is_number else len(x)
    order = sorted(range(start, len(x)), key=lambda i: x[i])
    if len(order) == 1:  # a line of one point would not show
        start, order = len(x), []
    if order:
        along = [x[i] for i in order]
        band = [low[i] for i in order], [high[i] for i in order]
        canvas.ax.fill_between(along, *band, color=ink.accent, alpha=0.18, linewidth=0)
        canvas.ax.plot(along, [mean[i] for i in order], color=ink.accent, linewidth=1.8)
    if start:
        canvas.ax.vlines(x[:start], low[:start], high[:start], color=ink.accent, alpha=0.5, linewidth=2)
        canvas.ax.plot(x[:start], mean[:start], "o", color=ink.accent, markersize=5, markeredgewidth=0)
    canvas.frame()
    return None


def _rounded(value: float) -> float:
    return float(f"{value:.2g}") if isinstance(value, float) else value


def draw_surface(canvas: Canvas, study: Study, surface: Surface) -> None:
    """Draws the mean along two parameters: the darker, the better. Its best place is marked."""
    first, second = (Ruler(study.space[name], 4) for name in surface.names)
    heights = np.array(surface.mean, dtype=np.float64).reshape(len(surface.values[0]), len(surface.values[1]))
    heights = np.clip(heights, -1e100, 1e100)
    if not np.isfinite(heights).any():
        return canvas.say("nothing is known of them")
    canvas.x(first, label(surface.names[0], 30), ends=(0.0, 1.0))
    canvas.y(second, label(surface.names[1], 30), 8, ends=(0.0, 1.0))
    scale = Scale.around(heights.ravel().tolist(), study.direction, margin=0.0)
    good = (heights.clip(scale.low, scale.high) - scale.low) / (scale.high - scale.low)
    good = np.nan_to_num(1 - good if study.direction == "minimize" else good, nan=0.0)
    x, y = [first.place(v) for v in surface.values[0]], [second.place(v) for v in surface.values[1]]
    columns = [(left, right, _runs(good[i], y)) for i, left, right in _cells(x)]
    boxes = [(left, right, low, high) for left, right, runs in columns for _, low, high in runs]
    levels = [level for _, _, runs in columns for level, _, _ in runs]
    canvas.shades(boxes, [0.06 + 0.84 * level / NUM_LEVELS for level in levels])
    i, j = (int(k) for k in np.unravel_index(int(good.argmax()), good.shape))
    canvas.ax.plot([x[i]], [y[j]], "o", color=canvas.palette.paper, markersize=6, markeredgecolor=canvas.palette.ink)
    canvas.divide(first)
    canvas.divide(second, vertical=False)
    canvas.frame()
    return None


def _cells(places: Sequence[float]) -> list[tuple[int, float, float]]:
    """The cell around each of several positions on the unit interval: its number, and where it begins and ends."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    middles = [(places[a] + places[b]) / 2 for a, b in pairwise(order)]
    return [(i, low, high) for i, low, high in zip(order, [0.0, *middles], [*middles, 1.0], strict=True)]


def _runs(good: np.ndarray, places: Sequence[float]) -> list[tuple[int, float, float]]:
    """The cells of a column, neighbours of one level as one: a level, and where it begins and ends."""
    runs: list[tuple[int, float, float]] = []
    for j, low, high in _cells(places):
        level = round(float(good[j]) * NUM_LEVELS)
        if runs and runs[-1][0] == level:
            runs[-1] = (level, runs[-1][1], high)
        else:
            runs.append((level, low, high))
    return runs
