"""Figures of trials as they are on record: progress, curves, parallel coordinates, the front, the predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from llamatune_torch.curve import Curve
from llamatune_torch.insight.plots.canvas import Canvas, Style
from llamatune_torch.insight.plots.scales import Ruler, Scale, label
from llamatune_torch.insight.records import Prediction, Step
from llamatune_torch.study import Study
from llamatune_torch.tables import show_params
from llamatune_torch.trial import Direction, Trial, TrialState

T = TypeVar("T")

#: Trials that a figure shows at most.
NUM_DRAWN = 300
#: Curves that a figure shows at most, and points of each.
NUM_CURVES = 60
NUM_POINTS = 60


def tell(trial: Trial) -> str:
    """The text beside the pointer: a trial in a line."""
    value = str(trial.state) if trial.value is None else f"{trial.value:.5g}"
    text = f"trial {trial.number}: {value} {show_params(trial.params)}"
    return text if len(text) <= 160 else f"{text[:159]}…"


def thinned(trials: Sequence[Trial], study: Study, most: int = NUM_DRAWN) -> list[Trial]:
    """At most so many trials, in their order: the best half, and of the others one in so many."""
    if len(trials) <= most:
        return list(trials)
    best = {trial.number for trial in study.by_value()[: most // 2]}
    others = [trial for trial in trials if trial.number not in best]
    kept = best | {others[i * len(others) // (most // 2)].number for i in range(most // 2)}
    return [trial for trial in trials if trial.number in kept]


def draw_history(canvas: Canvas, study: Study, steps: Sequence[Step]) -> None:
    """Draws the value of each completed trial, the best so far, and what random search would have by then."""
    if not steps:
        return canvas.say("no trial has completed")
    ink, direction = canvas.palette, study.direction
    known = [bound for step in steps if step.random is not None for bound in step.random]
    best = [step.best for step in steps]
    y = Scale.around([*(step.value for step in steps), *best, *_inner(known)], direction)
    canvas.ax.set_xlim(0.5, max(len(steps), 2) + 0.5)
    canvas.x(Scale(0.5, max(len(steps), 2) + 0.5, _whole_ticks(len(steps))), "completed trials")
    canvas.y(y, label(study.metric, 40))
    random = _spread([(i, step.random) for i, step in enumerate(steps, 1) if step.random is not None])
    if random:
        at = [i for i, _ in random]
        low, high = [y.place(band.low) for _, band in random], [y.place(band.high) for _, band in random]
        canvas.ax.fill_between(at, low, high, color=ink.muted, alpha=0.14, linewidth=0, label="random search, 90 %")
        middle = [y.place(band.value) for _, band in random]
        canvas.ax.plot(at, middle, color=ink.muted, linewidth=1.2, linestyle="--", label="its median")
    shown = range(len(steps)) if len(steps) <= NUM_DRAWN else range(0, len(steps), -(-len(steps) // NUM_DRAWN))
    for is_off, mark in ((False, "o"), (True, "d")):
        some = [i for i in shown if y.holds(steps[i].value) != is_off and not math.isnan(steps[i].value)]
        if some:
            told = [(steps[i].trial, f"trial {steps[i].trial}: {steps[i].value:.5g}") for i in some]
            colour = ink.warn if is_off else ink.accent
            places = [y.place(steps[i].value) for i in some]
            canvas.points([i + 1 for i in some], places, told, colour, alpha=0.55, marker=mark)
    changes = [i for i, value in enumerate(best) if i in (0, len(best) - 1) or value != best[i - 1]]
    known_best = [(i + 1, best[i]) for i in changes if not math.isnan(best[i])]
    if known_best:
        at, values = [i for i, _ in known_best], [y.place(value) for _, value in known_best]
        canvas.ax.plot(at, values, color=ink.accent, linewidth=2, drawstyle="steps-post", label="best so far")
    canvas.frame()
    if known_best:
        canvas.legend(loc="lower left", bbox_to_anchor=(0.0, 1.02), ncols=3, borderaxespad=0.2)
    return None


def _inner(bounds: Sequence[float]) -> list[float]:
    """The bounds without the outermost tenths: a band is wide at its begin."""
    ordered = sorted(bound for bound in bounds if math.isfinite(bound))
    cut = len(ordered) // 10
    return ordered[cut : len(ordered) - cut]


def _spread(points: Sequence[T]) -> list[T]:
    """About ``NUM_POINTS`` of a smooth line, denser at its begin."""
    if len(points) <= NUM_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[i] for i in sorted({round(last * (k / NUM_POINTS) ** 2) for k in range(NUM_POINTS + 1)})]


def _whole_ticks(count: int) -> tuple[float, ...]:
    step = next(s for k in range(9) for s in (10**k, 2 * 10**k, 5 * 10**k) if count <= 6 * s)
    return tuple(float(i) for i in range(step, count + 1, step))


def with_curves(study: Study) -> list[Trial]:
    """The trials whose curve is a line: two points that are numbers or more."""
    return [trial for trial in study.trials if sum(math.isfinite(point.value) for point in trial.curve) > 1]


def draw_curves(canvas: Canvas, study: Study) -> None:
    """Draws the values that trials have reported while they trained; the best trial's stands out."""
    trials = thinned(with_curves(study), study, NUM_CURVES)
    if not trials:
        return canvas.say("no trial has reported values while it trained")
    by_share = all(None not in trial.curve.progress for trial in trials)
    points = {trial.number: _points(trial.curve, by_share) for trial in trials}
    ends = [x for line in points.values() for x, _ in line]
    last = [line[-1][1] for line in points.values()]
    x = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)) if by_share else Scale.around(ends, margin=0.0)
    y = Scale.around([*last, *(v for line in points.values() for _, v in line)], study.direction)
    canvas.x(x, "share of the run" if by_share else "step")
    canvas.y(y, label(study.metric, 40))
    best = study.best_trial.number if study.feasible else None
    ordered, styles = sorted(trials, key=lambda trial: trial.number == best), []
    for trial in ordered:
        colour = canvas.palette.accent if trial.state is TrialState.COMPLETE else canvas.palette.muted
        styles.append(Style(colour, 2.2, 1.0) if trial.number == best else Style(colour, 1.0, 0.4))
    lines = [[(x.place(at), y.place(value)) for at, value in points[trial.number]] for trial in ordered]
    canvas.lines(lines, [(trial.number, tell(trial)) for trial in ordered], styles)
    canvas.frame()
    return None


def _points(curve: Curve, by_share: bool) -> list[tuple[float, float]]:
    """The points of a curve that are numbers, the last among them, at most ``NUM_POINTS`` and one."""
    found = [
        (min(max(point.progress or 0.0 if by_share else point.step, -1e100), 1e100), point.value)
        for point in curve
        if math.isfinite(point.value)
    ]
    step = -(-len(found) // NUM_POINTS)
    return [*found[:-1:step], found[-1]]


def draw_parallel(canvas: Canvas, study: Study, most: int = 150) -> None:
    """Draws each trial as a line over all parameters and the value; the best tenth stands out."""
    names = [name for name in study.space.names if study.space[name].size != 1] or study.space.names
    trials = thinned([t for t in study.completed if not math.isnan(t.value or 0.0)], study, most)
    if not trials:
        return canvas.say("no trial has completed")
    ink, rulers = canvas.palette, [Ruler(study.space[name], 4) for name in names]
    value = Scale.around([trial.value or 0.0 for trial in trials], study.direction, margin=0.0)
    width = max(value.high - value.low, 1e-300)
    canvas.ax.set_xlim(-0.3, len(names) + 0.4)
    canvas.ax.set_ylim(-0.04, 1.04)
    order = {trial.number: rank for rank, trial in enumerate(study.by_value())}
    leading = max(1, len(trials) // 10)
    front = sorted(order[trial.number] for trial in trials)[leading - 1]
    ordered, lines, styles = sorted(trials, key=lambda trial: -order[trial.number]), [], []
    for trial in ordered:
        heights = [
            ruler.place(trial.params[name]) if name in trial.params else math.nan
            for name, ruler in zip(names, rulers, strict=True)
        ]
        lines.append([*enumerate(heights), (len(names), (value.place(trial.value or 0.0) - value.low) / width)])
        rank, colour = order[trial.number], ink.accent if study.is_feasible(trial) else ink.warn
        styles.append(Style(colour, *((2.4, 1.0) if rank == 0 else (1.3, 0.7) if rank <= front else (1.0, 0.2))))
    canvas.lines(lines, [(t.number, f"trial {t.number}: {t.value:.5g}") for t in ordered], styles)
    canvas.ax.vlines(range(len(names) + 1), -0.04, 1.04, color=ink.line, linewidth=0.9, zorder=0)
    beside: dict[str, Any] = {"fontsize": 8, "color": ink.muted, "va": "center", "clip_on": False}
    for i, ruler in enumerate(rulers):
        for place, text in zip(*ruler.ticks(9), strict=True):
            canvas.ax.text(i - 0.05, place, text, ha="right", **beside)
    for place, text in zip(value.ticks, value.labels, strict=True):
        canvas.ax.text(len(names) + 0.05, (place - value.low) / width, text, ha="left", **beside)
    shown = [*(label(name, 14) for name in names), label(study.metric, 14)]
    canvas.ax.set_xticks(range(len(shown)), shown, rotation=20, ha="right", rotation_mode="anchor")
    canvas.ax.set_yticks([])
    canvas.frame()
    canvas.ax.spines[["left", "bottom"]].set_visible(False)
    canvas.ax.tick_params(axis="x", colors=ink.ink)
    return None


def draw_calibration(canvas: Canvas, study: Study, predictions: Sequence[Prediction]) -> None:
    """Draws what came out against what the surrogate had expected, with the intervals of 90 %."""
    known = [p for p in predictions if math.isfinite(p.value) and math.isfinite(p.mean)]
    if not known:
        return canvas.say("too few trials to tell how well they are predicted")
    step = -(-len(known) // NUM_DRAWN)
    known = known[::step]
    scale = Scale.around([*(p.value for p in known), *(p.mean for p in known)], study.direction)
    ends, ink = (scale.low, scale.high), canvas.palette
    canvas.x(scale, f"expected {label(study.metric, 30)}")
    canvas.y(scale, f"actual {label(study.metric, 30)}")
    canvas.ax.plot(ends, ends, color=ink.muted, linewidth=1, linestyle="--")
    inside = [p.low <= p.value <= p.high for p in known]
    for kept, colour in ((True, ink.accent), (False, ink.warn)):
        some = [p for p, is_in in zip(known, inside, strict=True) if is_in == kept]
        if some:
            heights = [scale.place(p.value) for p in some]
            # One line with gaps: a path for each would be most of the page.
            ends_of = [x for p in some for x in (scale.place(p.low), scale.place(p.high), math.nan)]
            three_times = [height for height in heights for _ in range(3)]
            canvas.ax.plot(ends_of, three_times, color=colour, alpha=0.3, linewidth=1.2)
            told = [(p.trial, f"trial {p.trial}: {p.value:.5g}, expected {p.mean:.5g}") for p in some]
            canvas.points([scale.place(p.mean) for p in some], heights, told, colour)
    canvas.frame()
    return None


def draw_front(canvas: Canvas, study: Study, other: int = 1) -> None:
    """Draws the first objective and another one of all trials, and the trials that no other one dominates."""
    first, second = study.objectives[0], study.objectives[min(other, len(study.objectives) - 1)]
    measured = {
        trial.number: (trial.value or 0.0, trial.outcomes.get(second.name, math.nan))
        for trial in study.completed
        if trial.value is not None
    }
    places = {number: pair for number, pair in measured.items() if all(map(math.isfinite, pair))}
    if len(study.objectives) < 2 or not places:
        return canvas.say("there are not several objectives" if places else "no trial has measured all objectives")
    ink, front = canvas.palette, {trial.number for trial in study.pareto()}
    directions: tuple[Direction, Direction] = (first.direction, second.direction)
    x = Scale.around([pair[0] for pair in places.values()], directions[0])
    y = Scale.around([pair[1] for pair in places.values()], directions[1])
    canvas.x(x, f"{label(first.name, 30)} ({first.direction})")
    canvas.y(y, f"{label(second.name, 30)} ({second.direction})")
    shown = thinned([study.trials[number] for number in places], study)
    for on_front, colour in ((False, ink.muted), (True, ink.accent)):
        some = [t for t in shown if (t.number in front) == on_front]
        if some:
            at = [places[t.number] for t in some]
            told = [(t.number, f"trial {t.number}: {a:.5g}, {b:.5g}") for t, (a, b) in zip(some, at, strict=True)]
            size = {"markersize": 6.0, "alpha": 0.9} if on_front else {"alpha": 0.5}
            canvas.points([x.place(a) for a, _ in at], [y.place(b) for _, b in at], told, colour, **size)
    if len(study.objectives) == 2:
        ordered = sorted(places[number] for number in front if number in places)
        canvas.ax.plot([x.place(a) for a, _ in ordered], [y.place(b) for _, b in ordered], color=ink.accent, alpha=0.5)
    canvas.frame()
    return None
