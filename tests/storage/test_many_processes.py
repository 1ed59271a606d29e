"""Many processes with one study, real ones, killed and suspended at bad moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from durable import eventually, hill, states, tuner

from llamatune_torch import BudgetSpentError, Cause, TrialState, load_study

HERE = Path(__file__).parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="forks and sends signals")
SLOW_ON_POSTGRES = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True
)


class Nursery:
    """Workers that start in milliseconds; see ``nursery.py``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.count = 0
        assert self._line() == "ready"

    def start(self, *jobs: dict[str, Any]) -> tuple[int, list[Path]]:
        """Starts a tree of processes, one for each job; its process group, and the files for the results."""
        outs = []
        for _ in jobs:
            self.count += 1
            outs.append(self.folder / f"out{self.count}")
        assert self.process.stdin is not None
        ordered = [{**job, "out": str(out)} for job, out in zip(jobs, outs, strict=True)]
        self.process.stdin.write(json.dumps(ordered) + "\n")
        return int(self._line()), outs

    def results(self, group: int, outs: list[Path], seconds: float = 60.0) -> list[Any]:
        """What the jobs of a tree came to, once they have ended."""
        try:
            eventually(lambda: all(out.exists() for out in outs), seconds)
        finally:
            kill(group)
        results = [json.loads(out.read_text()) for out in outs]
        for result in results:
            assert "error" not in result, result["error"]
        return [result["done"] for result in results]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


KILLS = int(os.environ.get("LLAMATUNE_KILLS", "25"))


@SLOW_ON_POSTGRES
@POSIX
def test_killed_with_all_its_processes_at_random_moments_nothing_is_lost(
    url: str, nursery: Nursery, tmp_path: Path
) -> None:
    """3 workers, 30 trials, 25 times ``kill -9``, starting again each time."""
    budget, chance, grace = 30, random.Random(0), 3.0
    log = tmp_path / "log"
    log.touch()
    job = {"job": "optimize", "url": url, "name": "s", "max_evals": budget, "log": str(log)}
    job |= {"grace": grace, "retries": 1000}
    killed = 0
    for kills in range(KILLS):
        # About as fast as the killing: quick trials while the study is behind, slow ones while it is ahead.
        behind = len(log.read_text().splitlines()) / budget < kills / KILLS
        group, outs = nursery.start(*[{**job, "seconds": 0.05 if behind else 0.4}] * 3)
        time.sleep(chance.uniform(0.05, 0.6))
        killed += not any(out.exists() for out in outs)
        kill(group)
    at_last, outs = nursery.start(*[{**job, "seconds": 0.05}] * 3)
    nursery.results(at_last, outs)

    study = load_study(url, "s")
    assert killed > 0.8 * KILLS  # it was not over long before
    assert len(study.completed) == study.spent == budget
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert Counter(states(study)) == Counter(complete=budget, lost=len(study.trials) - budget)
    assert len(study.trials) > budget  # some were lost
    reported = [line.split() for line in log.read_text().splitlines()]
    assert len(reported) > budget / 2  # the others were killed after the commit, before this line
    for number, value in reported:
        assert study.trials[int(number)].value == float(value)
    for trial in study.completed:
        assert trial.value == hill(trial.params)
    for trial in study.in_state(TrialState.LOST):  # only those that ran when they were killed, and they ran again
        assert trial.cause is Cause.SILENT
        first = trial.number if trial.retry_of is None else trial.retry_of
        again = [t for t in study.trials if t.retry_of == first and t.number > trial.number]
        assert again
        assert again[-1].state is TrialState.COMPLETE
        assert {repr(t.params) for t in again} == {repr(trial.params)}


@pytest.mark.parametrize("kills", [8, pytest.param(30, marks=pytest.mark.slow)])
@POSIX
def test_killed_at_random_moments_paused_runs_go_on_from_their_checkpoints(
    kills: int, sqlite_url: str, nursery: Nursery, tmp_path: Path
) -> None:
    """3 workers on one storage, ``kill -9`` of one of them, and of the others a moment later, again and again."""
    budget, chance = 6, random.Random(1)
    for name in ("log", "resumed", "finished"):
        (tmp_path / name).touch()
    job = {"job": "optimize_in_stages", "url": sqlite_url, "name": "s", "max_evals": budget, "folder": str(tmp_path)}
    job |= {"grace": 1.5, "retries": 1000, "seconds": 0.04}
    for _ in range(kills):
        groups = [nursery.start(job)[0] for _ in range(3)]
        time.sleep(chance.uniform(0.1, 0.5))
        kill(groups.pop(chance.randrange(3)))
        time.sleep(chance.uniform(0.0, 0.3))
        for group in groups:
            kill(group)
    nursery.results(*nursery.start(*[job] * 3), 120)

    study = load_study(sqlite_url, "s")
    assert (tmp_path / "log").read_text() == ""
    assert study.spent <= budget + 1e-6
    assert budget - study.spent < 1
    assert len(study.completed) >= 2
    firsts = [trial.first for trial in study.completed]
    assert len(set(firsts)) == len(firsts)
    for trial in study.completed:
        assert trial.value == 10 * hill(trial.params)
        assert trial.curve.steps == tuple(range(1, 11)) or trial.retry_of is not None
    for line in (tmp_path / "finished").read_text().splitlines():  # what was heard of is on record
        first, value = line.split()
        assert [t.value for t in study.completed if t.first == int(first)] == [float(value)]
    assert (tmp_path / "resumed").read_text()
    assert not study.pending
    assert not study.failed


@SLOW_ON_POSTGRES
@POSIX
def test_eight_processes_of_twenty_trials(url: str, nursery: Nursery) -> None:
    job = {"job": "ask_and_tell", "url": url, "name": "s", "count": 20}
    results = nursery.results(*nursery.start(*[job] * 8), 120)
    numbers = [number for result in results for number in result["numbers"]]
    assert sorted(numbers) == list(range(160))
    study = load_study(url, "s")
    assert len(study.completed) == 160
    assert len({repr(trial.params) for trial in study.trials}) == 160
    assert all(trial.value == hill(trial.params) for trial in study.trials)


@POSIX
def test_eight_processes_respect_the_budget_exactly(url: str, nursery: Nursery) -> None:
    job = {"job": "until_spent", "url": url, "name": "s", "max_evals": 37}
    results = nursery.results(*nursery.start(*[job] * 8), 60)
    numbers = [number for result in results for number in result["numbers"]]
    assert sorted(numbers) == list(range(37))


@POSIX
def test_two_workers_started_in_the_same_millisecond(url: str, nursery: Nursery) -> None:
    for i in range(5):
        when = time.time() + 0.3  # also the study itself is made by both at once
        one, two = nursery.results(*nursery.start(*[{"job": "ask_at", "url": url, "name": str(i), "when": when}] * 2))
        assert {one["number"], two["number"]} == {0, 1}
        assert one["params"] != two["params"]


@POSIX
def test_a_worker_paused_past_its_grace_and_continued(url: str, nursery: Nursery, tmp_path: Path) -> None:
    started = tmp_path / "started"
    job = {"job": "one_slow_trial", "url": url, "name": "s", "started": str(started), "seconds": 3.0, "grace": 1.0}
    group, outs = nursery.start(job)
    eventually(started.exists)
    os.killpg(group, signal.SIGSTOP)
    time.sleep(1.5)
    mine = tuner(url, max_evals=2, grace=1.0)
    retry = mine.ask()
    assert (retry.origin, retry.retry_of) == ("retry", 0)
    assert mine.study.trials[0].cause is Cause.SILENT
    os.killpg(group, signal.SIGCONT)
    assert nursery.results(group, outs) == [{"number": 0, "state": "complete"}]
    mine.tell(retry, 0.5)
    assert [trial.value for trial in mine.study.trials] == [0.75, 0.5]
    assert mine.study.trials[0].curve.values == (0.125,)
    assert mine.study.spent == 1
    assert mine.ask().number == 2
    with pytest.raises(BudgetSpentError):
        mine.ask()


@POSIX
def test_a_fork_does_not_share_connections(url: str, nursery: Nursery) -> None:
    result = nursery.results(*nursery.start({"job": "forked", "url": url, "name": "s"}))
    assert result == [{"code": 0, "curve": [0.25], "next": 2}]
