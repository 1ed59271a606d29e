"""Past studies as snapshots, and their place in another space."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatune_torch import Integer, LlamaTune, Outcome, Real, SearchSpace
from llamatune_torch.errors import PastError
from llamatune_torch.past import PastStudy, PastTrial, check_context, fit_into, place_of, read_past
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause

SPACE = SearchSpace(
    {
        "lr": Real(1e-5, 1e-3, prior="log-uniform"),
        "layers": Integer(2, 9),
        "decay": Real(0.01, 0.1, prior="log-uniform", special=[0.0]),
        "optimizer": ["adamw", "lion"],
    }
)


def past(*trials: tuple[dict[str, object], float | None], name: str = "old", direction: str = "minimize") -> PastStudy:
    return PastStudy(name, direction, tuple(PastTrial(dict(params), value) for params, value in trials))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("lr", 1e-5, 0.0), ("lr", 1e-4, 0.5), ("lr", 1e-2, 1.5), ("lr", 1e-9, -1.0), ("lr", 10.0, 2.0),
        ("layers", 2, 1 / 16), ("layers", 9, 15 / 16), ("layers", 16, 29 / 16),
        ("decay", 0.0, 0.125), ("decay", 0.01, 0.25), ("decay", 0.1, 1.0), ("decay", 1.0, 1.75),
        ("optimizer", "adamw", 0.25), ("optimizer", "lion", 0.75),
        ("lr", -1e-4, None), ("lr", "high", None), ("lr", True, None), ("lr", math.nan, None),
        ("optimizer", "sgd", None),
    ],
)  # fmt: skip
def test_a_value_has_its_place_also_outside_of_the_range(name: str, value: object, place: float | None) -> None:
    assert place_of(SPACE[name], value) == (None if place is None else pytest.approx(place))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_what_is_inside_has_the_coordinates_that_it_always_has(u: list[float]) -> None:
    params = SPACE.decode(SPACE.snap(u))
    assert np.allclose(fit_into(SPACE, past((params, 1.0))).X[0], SPACE.encode(params))


def test_what_cannot_be_used_is_said() -> None:
    old = past(
        ({"lr": 1e-4, "optimizer": "adamw", "warmup": 0.1}, 0.5),
        ({"lr": 1e-3, "optimizer": "sgd", "warmup": 0.1}, 0.4),
        ({"lr": 1e-2, "optimizer": "lion", "warmup": 0.1}, None),
    )
    fitted = fit_into(SPACE, old)
    assert fitted.columns == [0, 3]
    assert np.allclose(fitted.X, [[0.5, 0.5, 0.5, 0.25], [1.5, 0.5, 0.5, 0.75]])
    assert fitted.values[0] == -0.5
    assert math.isnan(fitted.values[1])
    assert fitted.remarks == [
        "1 of 3 trials are left out: this space has no optimizer='sgd'",
        "its warmup is not in this space",
        "it says nothing about layers, decay",
    ]
    assert old.describe(SPACE).startswith("old: 1 completed and 1 failed trials; fewer than 3 completed trials")


def test_a_larger_value_is_better_in_either_direction() -> None:
    for direction, sign in (("minimize", -1), ("maximize", 1)):
        assert fit_into(SPACE, past(({"lr": 1e-4}, 3.0), direction=direction)).values.tolist() == [3.0 * sign]


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (past(), "no trial has completed or failed"),
        (past(({"rate": 0.1}, 1.0)), r"its parameters \['rate'\] have other names than those of this space"),
        (
            past(({"optimizer": "AdamW"}, 1.0)),
            "none of its trials fits this space: 1 of 1 trials are left out: this space has no optimizer='AdamW'",
        ),
    ],
)  # fmt: skip
def test_a_past_study_of_which_nothing_can_be_used_is_refused(old: PastStudy, message: str) -> None:
    with pytest.raises(PastError, match=message):
        LlamaTune(SPACE, past=[old], progress=False)


@pytest.mark.parametrize("given", ["sqlite:///old.db", [3], past(({"lr": 0.1}, 1.0)), 7])
def test_past_must_be_a_list_of_studies(given: object) -> None:
    with pytest.raises(PastError, match="must be"):
        read_past(given, SPACE)


def test_the_same_content_is_one_past_study_whatever_its_name_and_place() -> None:
    one = past(({"lr": 1e-4}, 0.5))
    same = past(({"lr": 1e-4}, 0.5), name="another")
    other = past(({"lr": 1e-4}, 0.6))
    assert one == same
    assert hash(one) == hash(same)
    assert read_past([one, other, same], SPACE) == read_past([other, same], SPACE)
    assert len({one.key, other.key, past(({"lr": 1e-4}, 0.5), direction="maximize").key}) == 3


@pytest.mark.parametrize("context", [{"parameters": 0}, {"parameters": -1.0}, {"parameters": True}, {3: 1.0}, ["x"]])
def test_sizes_are_numbers_above_zero(context: object) -> None:
    with pytest.raises(PastError, match="context must be a dict of sizes above zero"):
        check_context(context)


def test_a_study_knows_its_snapshot() -> None:
    tuner = LlamaTune({"x": (0.0, 1.0)}, context={"parameters": 1e9}, progress=False)
    for outcome in (
        0.5, math.inf, Outcome.failure("out of memory"), Outcome(cause=Cause.ERROR), Outcome(cause=Cause.KILLED)
    ):  # fmt: skip
        tuner.tell(tuner.ask(), outcome if outcome != math.inf else -math.inf)
    tuner.ask()
    taken = tuner.study.as_past("mine")
    assert [trial.value for trial in taken.trials] == [0.5, -math.inf, None]
    assert taken.context == {"parameters": 1e9}
    assert taken.to_json()["trials"][1][1] == "-inf"
    assert tuner.study.as_past("mine", {}).context == {}


def test_the_summary_says_what_the_past_is_and_does() -> None:
    old = past(*[({"x": i / 9}, abs(i / 9 - 0.4)) for i in range(10)])
    tuner = LlamaTune(
        {"x": Real(0, 1)}, lambda p: abs(p["x"] - 0.4), 4, direction="minimize", past=[old], progress=False
    )
    tuner.optimize()
    assert tuner.study.describe_past() == [
        "past study old: 10 completed and 0 failed trials",
        f"past studies in trial 3: {tuner.study.trials[3].notes['past']}",
    ]
    assert "1 of 1 past studies agree, weight" in tuner.study.summary()
    assert Study(SearchSpace({"x": (0.0, 1.0)})).describe_past() == []
