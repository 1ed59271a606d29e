"""A short run of the benchmark of importance, and the truth that it compares with."""

from __future__ import annotations

import pytest
from importance import KNOWN, known_g, known_ishigami, known_tune, main, make_study, tau

from llamatune_torch.problems import Problem


def test_a_short_run_compares_with_the_truth_and_with_optuna(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    pytest.importorskip("sklearn", reason="Optuna's fANOVA needs it")
    main(["--studies", "1", "--problems", "g", "--design", "random"])
    header, _, row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [name.strip() for name in header.split("|")[1:-1]]
    assert names == ["problem", "cover first", "cover total", "width", "tau", "tau fANOVA", "tau PED-ANOVA", "seconds"]
    found = dict(zip(names[1:], map(float, row.split("|")[2:-1]), strict=True))
    assert 0 <= found["cover total"] <= 1
    assert found["tau"] > 0


@pytest.mark.parametrize("known", [known_ishigami, known_g])
def test_closed_forms_agree_with_an_average_over_many_points(known: type) -> None:
    exact = known()
    assert isinstance(exact.problem, Problem)
    average = known_tune(exact.problem, points=2**12)
    assert average.first == pytest.approx(exact.first, abs=0.03)
    assert average.total == pytest.approx(exact.total, abs=0.03)


def test_studies_are_what_their_design_says() -> None:
    study = make_study(KNOWN["g"]().problem, seed=0, design="random")
    assert {trial.origin for trial in study.trials} == {"sobol"}
    assert len(study.completed) == 30


def test_a_constant_ranks_nothing() -> None:
    assert tau([0.5, 0.5], [0.9, 0.1]) == 0.0
    assert tau([0.9, 0.1], [0.7, 0.3]) == 1.0
