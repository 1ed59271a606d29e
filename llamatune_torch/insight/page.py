"""The content of the page: from what is known of a study to sections of text, tables and figures. No HTML.

What is not known is left out, with the reason. Of very many trials some are drawn and listed, and the page says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from llamatune_torch.errors import NoCompletedTrialError
from llamatune_torch.insight.plots.canvas import Draw, house_style, svg
from llamatune_torch.insight.plots.model import NUM_BARS, draw_effect, draw_importance, draw_surface, range_of
from llamatune_torch.insight.plots.trials import (
    draw_calibration,
    draw_curves,
    draw_front,
    draw_history,
    draw_parallel,
    with_curves,
)
from llamatune_torch.insight.records import COVERAGE, Effect, Importance, Insight, Interval, Surface
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.tables import MAX_CELL, arguments, cells, show_value, to_yaml
from llamatune_torch.text import duration
from llamatune_torch.trial import Trial, TrialState
from llamatune_torch.versions import installed

#: Trials that are listed: the best ones, and the newest of the others.
NUM_BEST = 200
NUM_NEWEST = 50
#: Rows of the table behind a figure.
NUM_ROWS = 60
#: Parameters whose effects near the best are drawn.
NUM_NEAR = 6
#: Interactions that are listed, and the share of the variance that they may have at least.
NUM_INTERACTIONS = 8
LEAST_SHARE = 0.015
#: Pairs of parameters that are drawn.
NUM_PAIRS = 6
#: Characters of an error that are shown, the last ones.
MAX_ERROR = 1_500


class Table(NamedTuple):
    """A header and rows of text; ``numbers`` are the trials of the rows, if each row is one."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    caption: str = ""


class Picture(NamedTuple):
    """A figure as SVG, and the numbers behind it; ``shape`` is "half" a column, "wide" or "small"."""

    svg: str
    title: str
    shape: str
    table: Table | None = None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page; ``missing`` says why there is nothing in it."""

    name: str
    title: str
    texts: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    errors: Sequence[tuple[str, str]] = ()
    missing: str = ""


@dataclass(frozen=True)
class Answer:
    """The configuration to use: its value with an interval, what is said of it, and how to copy it."""

    value: str
    interval: str
    trial: int | None
    texts: Sequence[str]
    params: Sequence[tuple[str, str]]
    command: str
    yaml: str
    missing: str = ""


def answer(insight: Insight) -> Answer:
    """The best feasible configuration, as the surrogate recommends it; why there is none, without one."""
    study, progress = insight.study, insight.progress
    try:
        trial = study.best_trial if progress.winner is None else study.trials[progress.winner]
    except NoCompletedTrialError as error:
        return Answer("-", "", None, (), (), "", "", str(error))
    texts = []
    confirmed = study.confirmed()
    if confirmed is not None and confirmed.trial.number == trial.number:
        texts.append(f"Confirmed: {confirmed}.")
    elif progress.value is not None and trial.value is not None:
        texts.append(f"Its own run came out at {trial.value:.6g}; the value above is its average over seeds.")
    if progress.is_best is not None:
        texts.append(f"It is the best of all that were tried with a probability of {progress.is_best:.0%}.")
    if study.space.default is not None:
        texts.append(_sentence(study.compare_with_default()))
    for limit in study.constraints:
        texts.append(f"{limit.name} is {limit.value_in(trial.outcomes):.4g} ({limit}).")
    texts += [_sentence(f"{key}: {note}") for key, note in trial.notes.items()]
    known = progress.value
    value = show_value(float(trial.value or 0.0)) if known is None else show_interval(known)[0]
    interval = "" if known is None else f"{COVERAGE:.0%} interval {show_interval(known)[1]}"
    params = [(name, show_value(given)) for name, given in trial.params.items()]
    return Answer(value, interval, trial.number, texts, params, _command(trial.params), to_yaml(trial.params))


def _command(params: Params) -> str:
    """Parameters as arguments of a command, one a line."""
    each = [arguments({name: value}) for name, value in params.items()]
    return " \\\n".join(text for text in each if text)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


def show_interval(interval: Interval) -> tuple[str, str]:
    """An estimate, and its bounds, with two digits of their distance.

    Example:
        >>> show_interval(Interval(0.87123, 0.86951, 0.87304))
        ('0.8712', '0.8695 to 0.8730')
    """
    width = interval.high - interval.low
    largest = max(map(abs, interval))
    if not (math.isfinite(width) and 0 < width and 1e-4 <= largest < 1e6):
        return f"{interval.value:.4g}", f"{interval.low:.4g} to {interval.high:.4g}"
    digits = min(max(1 - math.floor(math.log10(width)), 0), 10)
    value, low, high = (f"{number:.{digits}f}" for number in interval)
    return value, f"{low} to {high}"


def tiles(insight: Insight) -> list[tuple[str, str]]:
    """The state of the search and its cost, as names and values."""
    study, progress = insight.study, insight.progress
    counts = Counter(trial.state for trial in study.trials)
    found = [("trials", str(len(study.trials)))]
    found += [(str(state), str(counts[state])) for state in TrialState if counts[state]]
    found.append(("full runs trained", f"{study.trained:.3g}"))
    if progress.saved:
        found.append(("full runs saved", f"{progress.saved:.3g}"))
    found.append(("time of all runs", duration(study.cost)))
    return found


def outlook(insight: Insight) -> list[str]:
    """Sentences on what going on may bring, why the search has ended, and which past it has learnt from."""
    study, progress = insight.study, insight.progress
    texts = []
    if progress.gain is not None:
        value, bounds = show_interval(progress.gain)
        cost = "" if not progress.gain_cost or progress.gain_cost < 1 else f", in about {duration(progress.gain_cost)}"
        texts.append(f"Ten more evaluations are expected to improve on it by {value} at least ({bounds}){cost}.")
    if study.ended:
        texts.append(_sentence(f"The search has ended: {study.ended}"))
    if study.pending:
        texts.append(f"Running now: {', '.join(f'trial {trial.number}' for trial in study.pending[:12])}.")
    return [*texts, *(_sentence(line) for line in study.describe_past())]


def sections(insight: Insight) -> list[Section]:
    """All sections of the page below the answer, in order."""
    with house_style():
        return [
            _progress(insight),
            *_curves(insight.study),
            _importance(insight),
            _effects(insight),
            _pairs(insight),
            _parallel(insight.study),
            *_limits(insight),
            *_front(insight.study),
            _calibration(insight),
            _trials(insight.study),
            _environment(),
        ]


_HALF = ((390, 235), (54, 12, 40, 10))
_SMALL = ((230, 160), (42, 10, 24, 8))


def _picture(
    draw: Draw,
    name: str,
    title: str,
    alt: str,
    shape: str = "half",
    layout: tuple[tuple[int, int], tuple[int, int, int, int]] = _HALF,
    table: Table | None = None,
    note: str = "",
) -> Picture:
    size, margins = layout
    return Picture(svg(draw, size, margins, name, alt), title, shape, table, note)


def _few(rows: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """At most ``NUM_ROWS`` of them, the last among them."""
    step = -(-len(rows) // NUM_ROWS)
    return rows if step <= 1 else [*rows[:-1:step], rows[-1]]


def _progress(insight: Insight) -> Section:
    study, steps = insight.study, insight.progress.steps
    if not steps:
        return Section("progress", "Progress", missing="no trial has completed")
    rows = [
        [str(i), str(s.trial), f"{s.value:.5g}", f"{s.best:.5g}", "-" if s.random is None else _bounds(s.random)]
        for i, s in enumerate(steps, 1)
    ]
    table = Table(("completed", "trial", study.metric, "best so far", "random search (90%)"), _few(rows))
    alt = f"{study.metric} of {len(steps)} completed trials, and the best so far, which ends at {steps[-1].best:.5g}"
    draw = partial(draw_history, study=study, steps=steps)
    layout = ((720, 314), (58, 16, 42, 30))
    note = "A mark on the edge lies off the scale."
    if "random" in insight.missing:
        note += f" What random search would have reached is left out: {insight.missing['random']}."
    return Section("progress", "Progress", pictures=[_picture(draw, "history", "", alt, "wide", layout, table, note)])


def _bounds(interval: Interval) -> str:
    value, bounds = show_interval(interval)
    return f"{value} ({bounds})"


def _curves(study: Study) -> list[Section]:
    trials = with_curves(study)
    if not trials:
        return []
    alt = f"{study.metric} during training, of {len(trials)} trials"
    ordered = [trial for trial in study.by_value() if len(trial.curve) > 1][:NUM_ROWS] or trials[:NUM_ROWS]
    rows = [[str(t.number), str(len(t.curve)), _first(t), _last(t), str(t.state)] for t in ordered]
    table = Table(("trial", "points", "first", "last", "state"), rows)
    layout = ((720, 300), (58, 16, 42, 12))
    picture = _picture(partial(draw_curves, study=study), "curves", "", alt, "wide", layout, table)
    return [Section("curves", "Learning curves", pictures=[picture])]


def _first(trial: Trial) -> str:
    return f"{trial.curve.values[0]:.5g}"


def _last(trial: Trial) -> str:
    return f"{trial.curve.values[-1]:.5g}"


def _importance(insight: Insight) -> Section:
    pictures = []
    for name, title, shares in (
        ("importance", "Over the whole space", insight.importance),
        ("near", "Among the best third", insight.near),
    ):
        if shares:
            given = [each for each in shares if each.given]
            note = "; ".join(f"* {each.name} only if {each.given}" for each in given[:NUM_BARS])
            alt = f"Importance {title.lower()}, the largest first: " + ", ".join(each.name for each in shares[:5])
            layout = ((390, 40 + 19 * min(len(shares), NUM_BARS)), (104, 14, 22, 4))
            draw = partial(draw_importance, shares=shares)
            pictures.append(_picture(draw, name, title, alt, "half", layout, _shares_table(shares), note))
    if not pictures:
        return Section("importance", "Importance", missing=_why(insight, "importance"))
    texts = [
        "The share of the metric's variance that a parameter explains: dark alone, light together with others. "
        f"The line is the interval of {COVERAGE:.0%} of the light bar."
    ]
    texts += [f"Among the best third: {insight.missing['near']}."] if "near" in insight.missing else []
    rows = [
        [" and ".join(each.names), *_percents(each.share), each.given or "always"]
        for each in insight.interactions[:NUM_INTERACTIONS]
        if each.share.high >= LEAST_SHARE
    ]
    header = ("pair", "explains beyond each alone", "interval", "active")
    tables = [Table(header, rows, caption="Interactions")] if rows else []
    return Section("importance", "Importance", texts, pictures, tables)


def _why(insight: Insight, name: str) -> str:
    return insight.missing.get(name, "too little is known")


def _shares_table(shares: Sequence[Importance]) -> Table:
    rows = [[s.name, *_percents(s.first), *_percents(s.total), s.given or "always"] for s in shares]
    return Table(("parameter", "alone", "interval", "in total", "interval", "active"), rows)


def _percents(share: Interval) -> tuple[str, str]:
    return f"{share.value:.0%}", f"{share.low:.0%} to {share.high:.0%}"


def _effects(insight: Insight) -> Section:
    if not insight.effects:
        return Section("effects", "Effects", missing=_why(insight, "effects"))
    pictures = _small_multiples(insight, insight.effects, "effect", "")
    near = insight.effects_near[:NUM_NEAR]
    pictures += _small_multiples(insight, near, "nearby", " (near the best)")
    texts = ["The metric on average over the other parameters, with its interval. Special values stand apart."]
    if any(any(effect.failing) for effect in insight.effects):
        texts.append("From below: how probable it is that a run fails.")
    if len(near) < len(insight.effects_near):
        texts.append(f"Near the best, the {len(near)} most important parameters are drawn.")
    return Section("effects", "Effects", texts, pictures)


def _small_multiples(insight: Insight, effects: Sequence[Effect], name: str, where: str) -> list[Picture]:
    study, scale = insight.study, range_of(effects, insight.study)
    pictures = []
    for i, effect in enumerate(effects):
        alt = f"Effect of {effect.name} on {study.metric}{where}"
        draw = partial(draw_effect, study=study, effect=effect, scale=scale, zoom=bool(where))
        note = f"if {effect.given}" if effect.given else ""
        table = _effect_table(effect, study.metric)
        pictures.append(_picture(draw, f"{name}{i}", f"{effect.name}{where}", alt, "small", _SMALL, table, note))
    return pictures


def _effect_table(effect: Effect, metric: str) -> Table:
    failing = effect.failing or (math.nan,) * len(effect.values)
    columns = zip(effect.values, effect.mean, effect.low, effect.high, failing, strict=True)
    rows = [
        [show_value(value), *show_interval(Interval(mean, low, high)), *([f"{p:.0%}"] if effect.failing else [])]
        for value, mean, low, high, p in columns
    ]
    return Table((effect.name, metric, "interval", *(["fails"] if effect.failing else [])), _few(rows))


def _pairs(insight: Insight) -> Section:
    if not insight.surfaces:
        return Section("pairs", "Pairs", missing=_why(insight, "surfaces"))
    pictures = []
    for i, surface in enumerate(insight.surfaces[:NUM_PAIRS]):
        first, second = surface.names
        alt = f"{insight.study.metric} along {first} and {second}"
        draw = partial(draw_surface, study=insight.study, surface=surface)
        note = f"if {surface.given}" if surface.given else ""
        table = _surface_table(surface)
        pictures.append(_picture(draw, f"pair{i}", f"{first} and {second}", alt, "half", _HALF, table, note))
    texts = ["The metric on average over the other parameters: the darker, the better. The dot is the best place."]
    return Section("pairs", "Pairs", texts, pictures)


def _surface_table(surface: Surface) -> Table:
    """About eight rows and eight columns of it, each with half the width of the interval."""
    rows, columns = (range(0, len(values), -(-len(values) // 8) or 1) for values in surface.values)
    shown = [
        [show_value(surface.values[0][i]), *(f"{surface.mean[i][j]:.4g} ± {surface.half[i][j]:.2g}" for j in columns)]
        for i in rows
    ]
    return Table((" / ".join(surface.names), *(show_value(surface.values[1][j]) for j in columns)), shown)


def _parallel(study: Study) -> Section:
    name, title = "parallel", "All parameters at once"
    if not study.completed:
        return Section(name, title, missing="no trial has completed")
    names = [each for each in study.space.names if study.space[each].size != 1] or study.space.names
    width = min(max(720, 84 * (len(names) + 1)), 1400)
    alt = f"Each completed trial as a line over {len(names)} parameters and {study.metric}"
    picture = _picture(
        partial(draw_parallel, study=study), "parallel", "", alt, "wide", ((width, 330), (34, 24, 58, 10))
    )
    texts = ["A line is a trial; the best tenth stands out. A gap is a parameter that was inactive."]
    return Section(name, title, texts, [picture])


def _limits(insight: Insight) -> list[Section]:
    study, tables, errors = insight.study, list[Table](), list[tuple[str, str]]()
    if study.constraints:
        best = study.best_trial if study.feasible else None
        binding = study.binding() if best is not None else []
        rows = []
        for limit in study.constraints:
            kept = sum(limit.is_kept(trial.outcomes) for trial in study.completed)
            found = "-" if best is None else f"{limit.value_in(best.outcomes):.4g}"
            rows.append([str(limit), found, "yes" if limit in binding else "no", f"{kept} of {len(study.completed)}"])
        tables.append(Table(("limit", "in the best trial", "binds", "kept by"), rows, caption="Limits"))
    if study.failed:
        last = {trial.reason or "unknown": trial for trial in study.failed}
        rows = []
        for reason, count in study.failures_by_reason().items():
            _, seconds = insight.progress.failures.get(reason, (count, math.nan))
            spent = "-" if math.isnan(seconds) else duration(seconds)
            rows.append([reason[:MAX_CELL], str(count), spent, str(last[reason].number)])
            errors.append(
                (f"{reason[:MAX_CELL]} (trial {last[reason].number})", (last[reason].error or "")[-MAX_ERROR:])
            )
        tables.append(Table(("reason", "trials", "time", "last of them"), rows, caption="Failures"))
    return [Section("limits", "Limits and failures", tables=tables, errors=errors[:20])] if tables else []


def _front(study: Study) -> list[Section]:
    if not study.goal.others:
        return []
    front, pictures = study.pareto(), list[Picture]()
    if not front:
        return [Section("front", "Pareto front", missing="no feasible trial has measured all objectives")]
    for k, other in enumerate(study.goal.others, 1):
        alt = f"{study.metric} and {other.name} of all trials; {len(front)} of them are on the front"
        draw = partial(draw_front, study=study, other=k)
        pictures.append(_picture(draw, f"front{k}", f"{study.metric} and {other.name}", alt))
    names = [each.name for each in study.objectives]
    rows = [
        [str(t.number), f"{t.value:.5g}", *(f"{t.outcomes[n]:.5g}" for n in names[1:]), _params(t)]
        for t in front[:NUM_BEST]
    ]
    table = Table(("trial", *names, "parameters"), rows, [t.number for t in front[:NUM_BEST]], "On the front")
    return [Section("front", "Pareto front", [], pictures, [table])]


def _params(trial: Trial) -> str:
    text = ", ".join(f"{name} {show_value(value)}" for name, value in trial.params.items())
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"


def _calibration(insight: Insight) -> Section:
    name, title, trust = "calibration", "How far to trust this", insight.trust
    if trust is None:
        return Section(name, title, missing=_why(insight, "trust"))
    rows = [
        [str(p.trial), f"{p.value:.5g}", *show_interval(Interval(p.mean, p.low, p.high))] for p in trust.predictions
    ]
    table = Table(("trial", "actual", "expected", f"interval ({COVERAGE:.0%})"), _few(rows))
    alt = f"Actual against expected {insight.study.metric} of {len(rows)} trials that the surrogate was not shown"
    draw = partial(draw_calibration, study=insight.study, predictions=trust.predictions)
    picture = _picture(draw, "calibration", "Actual against expected", alt, "half", _HALF, table)
    facts = [
        ["inside the intervals of 50%", f"{trust.inside_50:.0%}"],
        ["inside the intervals of 90%", f"{trust.inside_90:.0%}"],
        ["rank correlation", f"{trust.rank_correlation:.2f}"],
        ["gain over a constant, nats a trial", f"{trust.log_density_gain:.2f}"],
        ["share of the variance that is a seed's luck", f"{trust.noise:.0%}"],
        ["completed trials that it was given", str(insight.used)],
    ]
    return Section(name, title, [_sentence(trust.verdict)], [picture], [Table(("measure", "value"), facts)])


def _trials(study: Study) -> Section:
    ranked = study.by_value()
    best = ranked[:NUM_BEST]
    chosen = {trial.number for trial in best}
    newest = [trial for trial in reversed(study.trials) if trial.number not in chosen]
    kept = newest if len(study.trials) <= NUM_BEST + NUM_NEWEST else newest[:NUM_NEWEST]
    listed = [*best, *kept]
    if not listed:
        return Section("trials", "Trials", missing="there are none yet")
    texts = []
    if left := len(study.trials) - len(listed):
        texts.append(
            f"The best {len(best)} and the newest {len(kept)} of the others are listed; {left} more are left out. "
            "study.dataframe() has all."
        )
    (header, *rows), outcomes = cells(listed, study.metric), _outcomes(study)
    measured = [[_number(trial.outcomes.get(name)) for name in outcomes] for trial in listed]
    full = [[*row[:2], *more, *row[2:]] for row, more in zip(rows, measured, strict=True)]
    short = [[cell if len(cell) <= MAX_CELL else f"{cell[: MAX_CELL - 1]}…" for cell in row] for row in full]
    table = Table([*header[:2], *outcomes, *header[2:]], short, [trial.number for trial in listed])
    return Section("trials", "Trials", texts, tables=[table])


def _outcomes(study: Study) -> list[str]:
    """The outcomes that are shown beside the value: the limited ones and the other objectives."""
    names = [*(limit.name for limit in study.constraints), *(each.name for each in study.goal.others)]
    return list(dict.fromkeys(names))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _environment() -> Section:
    rows = [[name, found] for name, found in installed().items()]
    return Section("environment", "Made with", tables=[Table(("package", "version"), rows)])
