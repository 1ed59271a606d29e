"""The space that an Optuna study's trials imply."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from theirs import inferred, written

from llamatune_torch import (
    Categorical,
    Integer,
    Real,
    SearchSpace,
    SpaceError,
)
from llamatune_torch.integrations.optuna.spaces import MAX_STEPS
from llamatune_torch.integrations.optuna.studies import from_optuna


def test_bounds_that_differ_become_the_range_that_holds_them_all(url: str) -> None:
    study = inferred(
        url,
        {"x": (0.5, FloatDistribution(0.1, 1, log=True)), "n": (3, IntDistribution(1, 4))},
        {"x": (0.02, FloatDistribution(0.01, 0.5, log=True)), "n": (7, IntDistribution(2, 8))},
    )
    assert study.space == SearchSpace({"x": Real(0.01, 1.0, prior="log-uniform"), "n": Integer(1, 8)})
    assert [trial.params for trial in study.trials] == [{"x": 0.5, "n": 3}, {"x": 0.02, "n": 7}]


def test_integers_keep_their_steps_and_floats_become_ordered_choices_if_these_are_few(url: str) -> None:
    many = MAX_STEPS * 10
    study = inferred(
        url,
        {
            "dropout": (0.30000000000000004, FloatDistribution(0.0, 0.5, step=0.1)),
            "width": (128, IntDistribution(64, 256, step=64)),
            "fine": (0.25, FloatDistribution(0.0, many / 100, step=0.01)),
            "long": (20, IntDistribution(0, 2 * many, step=2)),
            "constant": (0.7, FloatDistribution(0.7, 0.7)),
            "one": (1, IntDistribution(1, 1)),
        },
    )
    assert study.space == SearchSpace(
        {
            "dropout": Categorical([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], ordered=True),
            "width": Integer(64, 256, step=64),
            "fine": Real(0.0, many / 100),
            "long": Integer(0, 2 * many, step=2),
            "constant": Categorical([0.7]),
            "one": Categorical([1]),
        }
    )
    (trial,) = study.trials
    assert trial.params == {"dropout": 0.3, "width": 128, "fine": 0.25, "long": 20, "constant": 0.7, "one": 1}


def test_steps_that_do_not_match_become_a_range(url: str) -> None:
    study = inferred(
        url,
        {
            "x": (0.5, FloatDistribution(0.0, 1.0, step=0.5)),
            "y": (0.5, FloatDistribution(0.0, 1.0, step=0.25)),
            "z": (0.5, FloatDistribution(0.0, 1.0, step=0.5)),
        },
        {
            "x": (0.2, FloatDistribution(0.0, 1.0, step=0.2)),
            "y": (1.75, FloatDistribution(0.75, 1.75, step=0.25)),
            "z": (0.75, FloatDistribution(0.25, 0.75, step=0.5)),
        },
    )
    assert study.space["x"] == study.space["z"] == Real(0.0, 1.0)
    assert study.space["y"] == Categorical([k / 4 for k in range(8)], ordered=True)


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution:UserWarning")  # what is tested here
def test_lists_stay_lists_and_what_is_no_json_becomes_text(url: str) -> None:
    layers, odd = CategoricalDistribution([[64, 64], [128], None]), CategoricalDistribution([math.nan, 1.0])  # type: ignore[list-item]
    study = inferred(
        url, {"layers": ([128], layers), "odd": (math.nan, odd)}, {"layers": (None, layers), "odd": (1.0, odd)}
    )
    assert study.space == SearchSpace({"layers": [[64, 64], [128], None], "odd": ["NaN", 1.0]})
    assert [trial.params for trial in study.trials] == [{"layers": [128], "odd": "NaN"}, {"layers": None, "odd": 1.0}]


METHOD, PLACE = CategoricalDistribution(["full", "lora", "ia3"]), CategoricalDistribution(["all", "top"])


RANK, DEPTH = IntDistribution(1, 8), IntDistribution(1, 12)


def test_conditions_in_a_chain_are_found(url: str) -> None:
    study = inferred(
        url,
        {"method": ("full", METHOD)},
        {"method": ("lora", METHOD), "rank": (4, RANK), "place": ("all", PLACE), "alpha": (1, RANK)},
        {
            "method": ("ia3", METHOD),
            "rank": (8, RANK),
            "place": ("top", PLACE),
            "depth": (2, DEPTH),
            "alpha": (2, RANK),
        },
        {
            "method": ("lora", METHOD),
            "rank": (1, RANK),
            "place": ("top", PLACE),
            "depth": (9, DEPTH),
            "alpha": (3, RANK),
        },
    )
    assert study.space == SearchSpace(
        {
            "method": ["full", "lora", "ia3"],
            "rank": Integer(1, 8, when={"method": ["lora", "ia3"]}),
            "place": Categorical(["all", "top"], when={"method": ["lora", "ia3"]}),
            "alpha": Integer(1, 8, when={"method": ["lora", "ia3"]}),  # there with every place, so that says nothing
            "depth": Integer(1, 12, when={"place": "top"}),
        }
    )
    assert len(study.trials) == 4


def test_a_parent_is_there_wherever_its_child_is(url: str) -> None:
    study = inferred(
        url,
        {"method": ("lora", METHOD), "place": ("all", PLACE), "rank": (4, RANK)},
        {"method": ("ia3", METHOD), "rank": (8, RANK)},
        {"method": ("full", METHOD)},
    )
    assert study.space == SearchSpace(
        {
            "method": ["full", "lora", "ia3"],
            "place": Categorical(["all", "top"], when={"method": "lora"}),
            "rank": Integer(1, 8, when={"method": ["lora", "ia3"]}),
        }
    )


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        ([{"x": (1, RANK)}, {"x": (2, RANK), "later": (3, RANK)}], "no single choice before it says when"),
        (
            [
                {"method": ("full", METHOD), "place": ("all", PLACE)},
                {"method": ("lora", METHOD), "place": ("top", PLACE), "later": (3, RANK)},
            ],
            r"each of \['method', 'place'\] may say when",
        ),
        (
            [
                {"method": ("full", METHOD), "later": (1, RANK)},
                {"method": ("full", METHOD)},
            ],
            "no single choice before it says when",
        ),
    ],
)
def test_what_no_single_choice_explains_needs_a_space(url: str, trials: Any, why: str) -> None:
    with pytest.raises(SpaceError, match=rf"'later' of Optuna study 'theirs': it is absent from 1 of 2.*{why}; give a"):
        inferred(url, *trials)


def test_a_failed_trial_that_did_not_come_to_a_parameter_is_no_evidence(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = (0.5, FloatDistribution(0, 1)), (0.1, FloatDistribution(0, 1))
    written(url, [({"x": x}, None), ({"x": x, "y": y}, 1.0)])
    study = from_optuna(url)
    assert [trial.params for trial in study.trials] == [{"x": 0.5, "y": 0.1}]
    assert "1 of 2 trials do not fit the space and are left out; the first is trial 0: missing parameters ['y']" in (
        caplog.text
    )


def test_a_study_without_trials_needs_a_space(url: str) -> None:
    written(url, [])
    with pytest.raises(SpaceError, match="'theirs' has no finished trial with parameters: give a space"):
        from_optuna(url)
    assert from_optuna(url, space=SearchSpace({"x": Real(0, 1)})).trials == ()


def test_a_range_that_ours_cannot_be_names_the_parameter(url: str) -> None:
    with pytest.raises(SpaceError, match=r"'n' of Optuna study 'theirs': bounds must not exceed.*; give a space"):
        inferred(url, {"n": (1, IntDistribution(0, 10**15))})
