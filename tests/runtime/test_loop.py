"""The one loop: its rules are the same wherever trials run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llamatune_torch import (
    Integer,
    LlamaTune,
    Real,
)
from llamatune_torch.runtime.evaluation import report

SPACE = {"x": Real(-1, 1), "n": Integer(1, 8)}


def hill(params: dict[str, Any]) -> float:
    return -((params["x"] - 0.3) ** 2) - 0.01 * params["n"]


def tuner(function: Any = hill, max_evals: int = 4, **changes: Any) -> LlamaTune:
    return LlamaTune(SPACE, function, max_evals, **{"n_initial": 100, "progress": False, **changes})


def points(*fates: int) -> list[dict[str, Any]]:
    return [{"x": i / 10, "n": n} for i, n in enumerate(fates)]


# --- The same rules as in the plain loop -------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def test_the_budget_is_exact_whatever_fails(pool: ThreadPoolExecutor) -> None:
    def some_fail(params: dict[str, Any]) -> float:
        if params["n"] % 2:
            raise MemoryError
        return 1.0

    optimizer = tuner(some_fail, 11)
    optimizer.optimize(executor=pool)
    assert len(optimizer.study.trials) == 11
    assert len(optimizer.study.failed) == sum(trial.params["n"] % 2 for trial in optimizer.study.trials) > 0


def test_stop_and_max_failures_start_nothing_more_but_let_what_runs_end(pool: ThreadPoolExecutor) -> None:
    optimizer = tuner(max_evals=50, callbacks=[lambda optimizer, trial: optimizer.stop()])
    optimizer.optimize(executor=pool)
    assert 1 <= len(optimizer.study.completed) == len(optimizer.study.trials) <= 4

    def fails(params: dict[str, Any]) -> float:
        raise ValueError

    optimizer = tuner(fails, 50, max_failures=2)
    optimizer.add_trial({"x": 0.0, "n": 1}, 0.5)
    optimizer.optimize(executor=pool)
    assert 3 <= len(optimizer.study.failed) == len(optimizer.study.trials) - 1 <= 6


def test_a_timeout_starts_nothing_more_but_lets_what_runs_end(
    pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "llamatune_torch")
    optimizer = tuner(lambda params: time.sleep(0.3) or 1.0, 50, timeout=0.1)
    optimizer.optimize(executor=pool)
    assert [trial.state for trial in optimizer.study.trials] == ["complete"] * 3
    assert caplog.text.count("the timeout of 0.1 s has passed") == 1


def test_a_finite_space_is_gone_through_once(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "llamatune_torch")
    optimizer = LlamaTune({"c": list("abcde")}, lambda params: ord(params["c"]), max_evals=20, progress=False)
    assert optimizer.optimize(executor=pool) == ({"c": "e"}, 101.0)
    assert len(optimizer.study.trials) == 5
    assert caplog.text.count("all 5 points of the space are done or running") == 1


def test_callbacks_and_records_are_made_in_the_thread_that_called_optimize(pool: ThreadPoolExecutor) -> None:
    threads: set[int] = set()
    optimizer = tuner(max_evals=5, callbacks=[lambda optimizer, trial: threads.add(threading.get_ident())])
    optimizer.optimize(executor=pool)
    assert threads == {threading.get_ident()}


def test_report_outside_of_a_trial_is_an_error() -> None:
    from llamatune_torch import TrialStateError

    with pytest.raises(TrialStateError, match=r"report\(\) was called outside of an evaluation"):
        report(1, 0.5)
