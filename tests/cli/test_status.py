"""How far a study is: each state, the time left worked out by hand, and the live table on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Cli
from strategies import make_trial

from llamatune_torch import Curve, LlamaTune, Outcome, Real, SearchSpace, Study, TrialState
from llamatune_torch.cli.status import Remaining, duration, record, remaining, state_of
from llamatune_torch.storage.heartbeat import Worker
from llamatune_torch.storage.reader import Reader, Snapshot

SPACE = SearchSpace({"x": Real(0, 1)})
NOW = 1_000_000.0


def tuner(folder: Path, **arguments: Any) -> LlamaTune:
    arguments = {"n_initial": 1000, "max_evals": 4, "metric": "accuracy", **arguments}
    return LlamaTune(SPACE, storage=f"sqlite:///{folder}/llamatune.db", name="mine", **arguments)


def snapshot(done: list[float], running: list[float], max_evals: int = 10, silent_for: float = 1.0) -> Snapshot:
    """Trials that took so many seconds, and some that have been running for so long."""
    trials = [make_trial(i, {"x": 0.5}, 0.5, started=100.0, finished=100.0 + took) for i, took in enumerate(done)]
    for seconds in running:
        number = len(trials)
        trials.append(
            make_trial(number, {"x": 0.5}, state=TrialState.RUNNING, started=NOW - seconds, worker=f"w{number}")
        )
    workers = {t.worker: Worker(t.worker, "host", 7, silent_for) for t in trials if t.worker}
    return Snapshot("mine", Study(SPACE, trials=tuple(trials)), {"max_evals": max_evals}, workers, NOW)


@pytest.mark.parametrize(
    ("done", "running", "max_evals", "expected"),
    [
        ([], [], 10, Remaining(10, None)),  # nothing to go by
        ([60.0], [], 10, Remaining(9, None)),  # nobody at work
        ([60.0], [10.0], 2, Remaining(0, 50.0)),  # the last one
        ([60.0], [10.0], 4, Remaining(2, 170.0)),  # 50, then two more
        ([60.0, 100.0, 80.0], [20.0, 70.0], 8, Remaining(3, 170.0)),  # free at 60 and 10: 10 -> 90 -> 170, 60 -> 140
        ([60.0], [90.0], 2, Remaining(0, 0.0)),  # longer than usual
    ],
)
def test_the_time_left(done: list[float], running: list[float], max_evals: int, expected: Remaining) -> None:
    assert remaining(snapshot(done, running, max_evals)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (3540, "59 min"), (7500, "2 h 05 min"), (273600, "3 d 4 h")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_the_state_in_a_word() -> None:
    assert state_of(snapshot([], [])) == "stopped"
    assert state_of(snapshot([1.0], [5.0])) == "running"
    assert state_of(snapshot([1.0], [5.0], silent_for=31.0)) == "silent"
    assert state_of(snapshot([1.0] * 9, [5.0])) == "running"
    assert state_of(snapshot([1.0] * 10, [])) == "finished"


def test_the_record_for_programs(cli: Cli, tmp_path: Path) -> None:
    mine = tuner(tmp_path)
    mine.tell(mine.ask(), 0.5)
    mine.tell(mine.ask(), Outcome.failure("out of memory"))
    running = mine.ask()
    mine.report(running, 10, 0.25, 0.5)
    found = json.loads(cli("status", "--json").out)
    (current,) = found.pop("running")
    assert found.pop("seconds_left") >= 0
    assert found.pop("cost") >= 0
    assert found == {
        "study": "mine",
        "state": "running",
        "metric": "accuracy",
        "direction": "maximize",
        "max_evals": 4,
        "counted": 3,
        "trained": 2,
        "saved": 0,
        "trials": {"running": 1, "paused": 0, "complete": 1, "stopped": 0, "failed": 1, "lost": 0},
        "failures": {"out of memory": 1},
        "best": {"trial": 0, "value": 0.5, "params": mine.study.trials[0].params},
        "ended": None,
    }
    assert (current["trial"], current["params"], current["pid"]) == (2, running.params, os.getpid())
    assert (current["last_report"], current["progress"]) == (0.25, 0.5)


def test_one_look_for_people(cli: Cli, tmp_path: Path) -> None:
    mine = tuner(tmp_path)
    assert cli("status").out.splitlines() == [
        "mine in sqlite:///llamatune.db: stopped",
        "0 of 4 full runs (no trials yet)",
    ]
    mine.tell(mine.ask(), 0.5)
    mine.tell(mine.ask(), Outcome.failure("[red]odd[/red] [Errno 12]"))
    mine.report(mine.ask(), 10, 0.25, 0.5)
    shown = cli("status").out
    assert "3 of 4 full runs (1 running, 1 complete, 1 failed), about " in shown
    assert "best accuracy (maximize): 0.5 in trial 0" in shown
    assert f":{os.getpid()} " in shown
    assert "0.25 at 50%" in shown
    assert "[red]odd[/red] [Errno 12]" in shown  # as it is


def test_what_was_saved_shows(cli: Cli, tmp_path: Path) -> None:
    mine = tuner(tmp_path, strategy="top_k")
    for step in range(2):
        trial = mine.ask()
        mine.report(trial, 1, 0.25 * step, 0.25)
        mine.pause(trial)
    out = cli("status").out
    assert "0.5 of 4 full runs (2 paused)\n0.5 full runs trained, 1.5 saved, 0 s of all runs\n" in out
    again = mine.ask()
    assert json.loads(cli("status", "--json").out)["trained"] == 0.5
    assert again.until == 0.1


def test_a_silent_worker_shows() -> None:
    stored = snapshot([60.0], [10.0], silent_for=75.0)
    (running,) = record(stored)["running"]
    assert running["silent_for"] == 75.0
    lost = replace(stored.study.trials[1], worker=None)
    unknown = stored._replace(study=stored.study.with_trial(replace(lost, curve=Curve())))
    assert record(unknown)["running"][0]["host"] is None


@contextmanager
def on_a_terminal(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command on a terminal of its own, and our end of that."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llamatune_torch", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=theirs, stderr=theirs, stdin=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(ours: int, words: str | None = None) -> str:
    """What is shown until some words have come, or to the end."""
    shown = b""
    while words is None or words.encode() not in shown:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the other end has closed
            more = b""
        if not more:
            assert words is None, f"{words!r} did not come: {shown.decode()}"
            break
        shown += more
    return shown.decode()


def test_on_a_terminal_it_follows_the_study_to_its_end(tmp_path: Path) -> None:
    mine = tuner(tmp_path, max_evals=1)
    trial = mine.ask()
    with on_a_terminal(tmp_path, "status", "--every", "0.1") as (process, ours):
        read_until(ours, "1 running")
        mine.tell(trial, 0.75)
        last = read_until(ours)
        assert "finished" in last
        assert "best accuracy (maximize): 0.75 in trial 0" in last
        assert process.wait(10) == 0


def test_ctrl_c_leaves_it(tmp_path: Path) -> None:
    tuner(tmp_path).ask()
    with on_a_terminal(tmp_path, "status", "--every", "0.1") as (process, ours):
        read_until(ours, "1 running")
        process.send_signal(signal.SIGINT)
        assert "interrupted" in read_until(ours)
        assert process.wait(10) == 130


def test_a_look_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    tuner(tmp_path).ask()
    before = Reader(f"sqlite:///{tmp_path}/llamatune.db").look()
    file = (tmp_path / "llamatune.db").read_bytes()
    for command in ("status", "trials"):
        assert cli(command).code == 0
    assert (tmp_path / "llamatune.db").read_bytes() == file
    assert Reader(f"sqlite:///{tmp_path}/llamatune.db").look().study == before.study


def test_a_search_that_has_ended_by_itself_is_finished_and_says_why(cli: Cli, tmp_path: Path) -> None:
    mine = tuner(tmp_path, stopping="auto")
    mine.tell(mine.ask(), 0.5)
    mine._store.conclude("a further trial is expected to gain 0.001, below 0.002")
    assert "mine in sqlite:///llamatune.db: finished\n" in (out := cli("status").out)
    assert "ended: a further trial is expected to gain 0.001, below 0.002\n" in out
    assert json.loads(cli("status", "--json").out)["ended"].endswith("below 0.002")
    mine.ask()  # a larger wish
    assert "ended" not in cli("status").out
