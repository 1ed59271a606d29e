"""Which trial to use: best on average, not the luckiest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from strategies import make_study

from llamatune_torch import NoCompletedTrialError, Real, SearchSpace, Study
from llamatune_torch.engine.recommend import recommend

LINE = SearchSpace({"x": Real(0, 1)})


def hill(x: float) -> float:
    return 1 - 4 * (x - 0.4) ** 2


def study_of(rows: list[tuple[float, float | None]], direction: Any = "maximize") -> Study:
    return make_study(LINE, [({"x": x}, value) for x, value in rows], direction=direction)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_lucky_run_far_from_the_good_ones_is_not_recommended(direction: Any) -> None:
    sign = 1 if direction == "maximize" else -1
    rows = [(x, sign * hill(x)) for x in np.linspace(0, 1, 21).round(3).tolist()]
    rows[18] = (0.9, sign * 1.01)  # 0.9 truly gives 0, as its neighbours say
    rows += [(0.9, sign * -0.1), (0.9, sign * 0.05)]  # and as it gives when it is run again
    study = study_of(rows, direction)
    assert study.best_params == {"x": 0.9}
    assert abs(recommend(study).params["x"] - 0.4) < 0.11


def test_without_noise_it_is_the_best_trial() -> None:
    study = study_of([(x, hill(x)) for x in (0.05, 0.2, 0.38, 0.5, 0.7, 0.95)])
    assert recommend(study) == study.best_trial


def test_of_two_trials_the_better_one() -> None:
    study = study_of([(0.1, 0.5), (0.9, 0.6)])
    assert recommend(study) == study.trials[1]


def test_failed_trials_are_never_recommended_and_nothing_completed_is_an_error() -> None:
    study = study_of([(0.4, None), (0.1, hill(0.1)), (0.2, hill(0.2)), (0.3, hill(0.3))])
    assert recommend(study).number == 3
    with pytest.raises(NoCompletedTrialError):
        recommend(study_of([(0.4, None)]))


def test_over_many_noisy_studies_its_true_value_is_the_better_one() -> None:
    lost_by_best, lost_by_recommended = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rows = [(x, hill(x) + 0.3 * rng.standard_normal()) for x in rng.random(25).round(4).tolist()]
        study = study_of(rows)
        lost_by_best.append(1 - hill(study.best_params["x"]))
        lost_by_recommended.append(1 - hill(recommend(study).params["x"]))
    assert math.fsum(lost_by_recommended) < 0.5 * math.fsum(lost_by_best)
