"""Studies of all kinds for property tests, and insight into them by hand, which costs no fit."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from strategies import params_of, spaces

from llamatune_torch import Constraint, SearchSpace, Study, Trial, TrialState
from llamatune_torch.curve import Curve
from llamatune_torch.insight.records import (
    Effect,
    Importance,
    Insight,
    Interaction,
    Interval,
    Prediction,
    Progress,
    Step,
    Surface,
    Trust,
)
from llamatune_torch.number import SPECIAL_SHARE, Number
from llamatune_torch.objectives import Objective
from llamatune_torch.study import End, Goal

#: Text that would run, or break a page, a figure or a shell, if it were not escaped.
EVIL = (
    "<script>document.title='run'</script>",
    "</title></svg><img src=x onerror=\"document.title='run'\">",
    "$x^2$ \\frac{1}{2} $",
    "'; touch /tmp/owned #",
    "\u202eright to left",
    "ключ 键 🦙 \x1b[31m",
    '"&amp;]]>--><!--',
)
TEXTS = st.one_of(st.sampled_from(EVIL), st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8))
VALUES = st.one_of(
    st.floats(-1, 1),
    st.sampled_from([math.inf, -math.inf, 0.0, 1e300, -1e300, 1.7e308, 5e-324]),
    st.floats(allow_nan=False),
)


@st.composite
def curves(draw: DrawFn) -> Curve:
    curve = Curve()
    shares = draw(st.booleans())
    for step, value in enumerate(draw(st.lists(st.floats(), max_size=6))):
        curve = curve.reported(step, value, step / 6 if shares else None)
    return curve


@st.composite
def trials(draw: DrawFn, space: SearchSpace, number: int, outcomes: list[str]) -> Trial:
    state = draw(st.sampled_from([TrialState.COMPLETE] * 4 + list(TrialState)))
    measured = {name: draw(st.floats()) for name in outcomes if draw(st.booleans())}
    return Trial(
        number,
        space.validate(draw(params_of(space))),
        seed=number,
        origin="sobol",
        state=state,
        value=draw(VALUES) if state is TrialState.COMPLETE else None,
        curve=draw(curves()) if draw(st.booleans()) else Curve(),
        outcomes=measured,
        cost=draw(st.sampled_from([None, 0.0, 12.5, 1e6])),
        reason=draw(TEXTS) if state is TrialState.FAILED else None,
        error=draw(st.one_of(st.none(), TEXTS)) if state is TrialState.FAILED else None,
        notes={draw(TEXTS): draw(TEXTS)} if draw(st.integers(0, 3)) == 0 else {},
    )


@st.composite
def studies(draw: DrawFn, most: int = 60) -> Study:
    """All kinds of spaces, states and values; some with limits, several objectives, and an end."""
    space = draw(spaces())
    names = ["memory_gb", draw(st.sampled_from(EVIL[:3]))]
    limits = (Constraint("memory_gb", upper=draw(st.floats(-1, 1))),) if draw(st.booleans()) else ()
    others = (Objective(names[1], "minimize", None),) if draw(st.booleans()) else ()
    goal = Goal(draw(st.sampled_from(["maximize", "minimize"])), draw(TEXTS.filter(str.isprintable)), limits, others)
    count = draw(st.sampled_from([0, 1, 3, 17, most]))
    # A few are drawn, and repeat: an example has no room for sixty.
    few = [draw(trials(space, k, names)) for k in range(min(count, 6))]
    made = [few[i % len(few)] for i in range(count)]
    numbered = tuple(_numbered(trial, i) for i, trial in enumerate(made))
    end = End(draw(TEXTS), count) if draw(st.booleans()) else None
    return Study(space, goal, trials=numbered, end=end)


def _numbered(trial: Trial, number: int) -> Trial:
    value = trial.value
    if value is not None and number >= 6 and math.isfinite(value):
        value *= 1 - 0.01 * number
    return replace(trial, number=number, seed=number, value=value)


def insight_of(study: Study, seed: int = 0) -> Insight:
    """Everything that a page can show, of any study, in numbers of no meaning."""
    generator = random.Random(seed)
    completed = study.completed
    worth = [trial.value or 0.0 for trial in completed if math.isfinite(trial.value or 0.0)]
    middle, width = (worth[0], abs(worth[-1] - worth[0]) + 1.0) if worth else (0.0, 1.0)
    width = min(width, 1e300)

    def interval() -> Interval:
        value = generator.random()
        return Interval(value, value * generator.random(), min(1.0, value + 0.3 * generator.random()))

    steps, best = [], math.nan
    for trial in completed:
        value = trial.value or 0.0
        best = value if math.isnan(best) or study.better(value, best) else best
        steps.append(Step(trial.number, value, best, Interval(middle, middle - width, middle + width)))
    names = study.space.names
    effects = [_effect(study, name, middle, width, generator) for name in names]
    surfaces = [_surface(a, b, middle, width, generator) for a, b in pairwise(effects)]
    predictions = tuple(Prediction(t.number, t.value or 0.0, middle, middle - width, middle + width) for t in completed)
    progress = Progress(
        tuple(steps),
        study.best_trial.number if study.feasible else None,
        0.5,
        Interval(middle, middle - width, middle + width),
        Interval(0.1, 0.0, 0.2),
        3600.0,
        {},
        0.0,
        {reason: (count, 1.0) for reason, count in study.failures_by_reason().items()},
    )
    given = EVIL[0]
    shares = tuple(Importance(name, interval(), interval(), given) for name in names)
    return Insight(
        study,
        progress,
        importance=shares,
        near=shares,
        interactions=tuple(Interaction(s.names, interval(), given) for s in surfaces),
        effects=tuple(effects),
        effects_near=tuple(effects),
        surfaces=tuple(surfaces),
        trust=Trust(0.5, 0.9, 0.7, 1.0, 0.1, predictions, EVIL[0]),
        used=len(completed),
    )


def _effect(study: Study, name: str, middle: float, width: float, generator: random.Random) -> Effect:
    parameter: Any = study.space[name]
    is_number = isinstance(parameter, Number)
    special = list(parameter.special) if is_number else []
    if is_number:
        inside = parameter.decode(np.linspace(SPECIAL_SHARE if special else 0.0, 1.0, 9))
        values = [*special, *dict.fromkeys(value for value in inside if value not in special)]
    else:
        values = list(parameter.choices)
    mean = [middle + width * (generator.random() - 0.5) for _ in values]
    low, high = (tuple(m + s * width * 0.1 for m in mean) for s in (-1, 1))
    failing = tuple(generator.random() for _ in values) if study.failed else ()
    return Effect(name, tuple(values), tuple(mean), low, high, is_number, num_special=len(special), failing=failing)


def _surface(first: Effect, second: Effect, middle: float, width: float, generator: random.Random) -> Surface:
    grid = tuple(tuple(middle + width * generator.random() for _ in second.values) for _ in first.values)
    half = tuple(tuple(0.1 * width for _ in row) for row in grid)
    numbers = (first.is_number, second.is_number)
    return Surface((first.name, second.name), (first.values, second.values), grid, half, (False, False), numbers)


def plain_study(count: int = 12, name: str = "x") -> Study:
    """A study of one choice and one number, of which every fourth trial fails; nothing in it is strange."""
    space = SearchSpace({name: (0.0, 1.0), "optimizer": ["adamw", "lion"]})
    made = []
    for i in range(count):
        failed = i % 4 == 3
        fields: dict[str, Any] = {"reason": "out of memory", "error": "Traceback\nMemoryError"} if failed else {}
        params = space.validate({name: (i * 0.37) % 1.0, "optimizer": ["adamw", "lion"][i % 2]})
        state = TrialState.FAILED if failed else TrialState.COMPLETE
        value = None if failed else 0.5 + ((i * 0.61) % 1.0) / 3
        made.append(Trial(i, params, seed=i, origin="sobol", state=state, value=value, cost=60.0, **fields))
    return Study(space, Goal(metric="accuracy"), trials=tuple(made))
