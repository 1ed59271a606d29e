"""Names that people know from elsewhere, and a range whose scale nobody has chosen."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamatune_torch import Integer, LlamaTune, Real, SearchSpace, SettingsError, SpaceError, SpaceWarning, tune
from llamatune_torch.hints import OTHER_ARGUMENTS, OTHER_NAMES, RUNNING, describe_unknown
from llamatune_torch.runtime.optimizer import ARGUMENTS

SPACE = {"x": Real(0, 1)}


def test_each_name_of_ours_in_the_table_is_an_argument_and_no_other_name_is() -> None:
    ours = {*ARGUMENTS, *inspect.signature(LlamaTune).parameters, *inspect.signature(tune).parameters}
    assert set(OTHER_NAMES.values()) <= ours
    assert not OTHER_NAMES.keys() & ours
    assert [name for name in inspect.signature(LlamaTune.optimize).parameters if name not in ("self", "unknown")] == [
        *RUNNING
    ]
    assert not OTHER_ARGUMENTS.keys() & inspect.signature(Integer).parameters.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LlamaTune(SPACE, n_trials=3), r"there is no argument 'n_trials': here it is max_evals; the knobs"),
        (lambda: LlamaTune(SPACE, n_startup_trials=3), r"'n_startup_trials': here it is n_initial; "),
        (lambda: LlamaTune(SPACE, study_name="s"), r"'study_name': here it is name; "),
        (lambda: LlamaTune(SPACE, mode="max"), r"'mode': here it is direction; "),
        (lambda: LlamaTune(SPACE, n_jobs=3), r"'n_jobs': here it is n_workers, of optimize\(\) and tune\(\); "),
        (lambda: LlamaTune(SPACE, n_workers=3), r"'n_workers': it is one, of optimize\(\) and tune\(\); "),
        (lambda: LlamaTune(SPACE, zeal=3), r"there is no argument 'zeal'; the knobs are: "),
        (lambda: LlamaTune(SPACE, print).optimize(n_trials=3), r"'n_trials': here it is max_evals, of LlamaTune\(\); "),
        (lambda: LlamaTune(SPACE, print).optimize(timeout=3), r"'timeout': it is one, of LlamaTune\(\); the arguments"),
        (lambda: LlamaTune(SPACE, print).optimize(n_jobs=3), r"'n_jobs': here it is n_workers; the arguments are: exe"),
        (lambda: LlamaTune(SPACE, print).optimize(zeal=3), r"there is no argument 'zeal'; the arguments are: executor"),
        (lambda: tune(print, SPACE, n_jobs=3), r"tune\(\): there is no argument 'n_jobs': here it is n_workers; "),
        (lambda: tune(print, SPACE, n_trials=3), r"tune\(\): there is no argument 'n_trials': here it is max_evals; "),
        (lambda: LlamaTune(SPACE, direction="max"), r"direction must be 'maximize' or 'minimize', but got 'max'"),
    ],
)
def test_an_argument_that_is_called_otherwise_is_answered_with_ours(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Real(1e-5, 1e-3, log=True), r"Real has no argument 'log': here it is prior='log-uniform', or prior="),
        (lambda: Integer(1, 64, log=True), r"Integer has no argument 'log': here it is prior='log-uniform'"),
        (lambda: Real(min=0, max=1), r"Real has no argument 'min': here it is low"),
        *(
            (lambda prior=prior: Real(1e-5, 1e-3, prior=prior), r"prior must be 'uniform' or 'log-uniform', but got")
            for prior in ("log", "loguniform", "log_uniform")
        ),
    ],
)
def test_a_number_whose_scale_is_spelled_otherwise_is_answered_with_ours(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        make()


def test_an_unknown_argument_of_a_number_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'zeal'"):
        Real(0, 1, zeal=3)
    assert describe_unknown("zeal", ()) == "there is no argument 'zeal'"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Real(1e-5, 1e-3),
        lambda: Real(0.01, 1),
        lambda: Real(1, 1000, special=[0.0]),
        lambda: SearchSpace({"lr": (1e-5, 1e-3)}),
        lambda: LlamaTune({"lr": (1e-5, 1e-3)}),
    ],
)
def test_a_range_over_two_decades_warns_that_it_is_uniform_where_it_is_written(make: Callable[[], Any]) -> None:
    with pytest.warns(SpaceWarning, match=r"prior='log-uniform'\), or prior='uniform' if that is meant") as caught:
        make()
    assert [Path(warning.filename).name for warning in caught] == ["test_hints.py"]


def test_the_warning_names_the_parameter_of_a_shorthand() -> None:
    with pytest.warns(SpaceWarning, match=r"parameter 'lr': \(1e-05, 0.001\) spans 2 decades, .* write Real\(1e-05, "):
        SearchSpace({"lr": (1e-5, 1e-3)})


def test_a_scale_that_was_chosen_or_a_narrow_range_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = Real(1e-5, 1e-3, prior="uniform")
        assert Real(0.011, 1).prior == Real(0, 0.1).prior == Real(-1, 1000).prior == chosen.prior == "uniform"
        assert replace(chosen, high=1.0) == Real(1e-5, 1.0, prior="uniform")
        assert pickle.loads(pickle.dumps(chosen)) == chosen
        Real(1e-5, 1e-3, prior="log-uniform")
        Integer(1, 1000)
        SearchSpace({"n": (1, 1000), "x": (0.0, 1.0), "lr": chosen})


SCRIPT = """
from llamatune_torch import LlamaTune, Real

space = {"lr": Real(1e-5, 1e-3), "wd": (1e-4, 1.0)}

def train(params):
    return params["lr"]

if __name__ == "__main__":
    for _ in range(2):
        LlamaTune(space, train, 2, progress=False).optimize(n_workers=2)
"""


def test_a_script_with_worker_processes_warns_once_for_each_range(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if "SpaceWarning" in line]
    assert [line.split(":")[1] for line in lines] == ["4", "11"], done.stderr
