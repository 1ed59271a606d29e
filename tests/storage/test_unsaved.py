"""Writes that fail, on a disk that is full, busy or read-only: no result is lost."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from durable import eventually, locked, states, store_of, tuner, unsaved
from sqlalchemy.exc import OperationalError

from llamatune_torch import LlamaTune, Outcome, Real, StorageError, StorageWarning, Trial, TrialState, load_study
from llamatune_torch.seeds import derived_seed
from llamatune_torch.storage.database import Database, Transaction


def test_a_write_that_fails_is_tried_again_and_kept_until_it_succeeds(
    sqlite_url: str, tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tuner(sqlite_url)
    store_of(mine).session.patience = 30.0
    trial = mine.ask()
    kept: list[list[Path]] = []
    with locked(tmp_path / "study.db") as connection:

        def release() -> None:
            eventually(lambda: bool(unsaved(tmp_path)))
            kept.append(unsaved(tmp_path))
            connection.execute("ROLLBACK")

        releasing = threading.Thread(target=release)
        releasing.start()
        finished = mine.tell(trial, 0.5)
        releasing.join()
    assert len(kept[0]) == 1  # while it was not sure to succeed
    assert unsaved(tmp_path) == []
    assert tuner(sqlite_url).study.trials == (finished,)
    assert "database is locked; trying again for up to 30 s" in caplog.text


def test_what_cannot_be_written_is_raised_with_the_value_and_picked_up_by_the_next_start(
    sqlite_url: str, tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    mine = tuner(sqlite_url)
    trial, failing = mine.ask(2)
    mine.report(trial, 1, 0.25)
    with locked(tmp_path / "study.db"):
        with pytest.raises(StorageError) as caught:
            mine.tell(trial, 0.1 + 0.2)
        with pytest.raises(StorageError, match="of trial 1 is failed: out of memory with "):
            mine.tell(failing, Outcome.failure("out of memory"))
        with pytest.raises(StorageError, match=r"The result of a trial to be added is value=0.75 with \{'x': 0.5"):
            mine.add_trial({"x": 0.5, "n": 2}, 0.75)
    message = str(caught.value)
    assert "study.db did not allow for 0.5 s the end of a trial to be written: database is locked" in message
    assert f"The result of trial 0 is value=0.30000000000000004 with {trial.params}" in message
    assert f"it is kept in {tmp_path}/study.db.unsaved-" in message
    assert len(unsaved(tmp_path)) == 3
    assert states(mine.study) == ["complete", "failed"]  # known here, so that nothing gives them back

    again = tuner(sqlite_url)
    assert unsaved(tmp_path) == []
    assert [t.value for t in again.study.trials] == [0.1 + 0.2, None, 0.75]
    assert [t.origin for t in again.study.trials] == ["sobol", "sobol", "added"]
    assert again.study.trials[0].curve.values == (0.25,)
    assert again.study.trials[1].reason == "out of memory"
    assert "picked up the result of trial 0, value=0.30000000000000004, from " in caplog.text
    assert len(tuner(sqlite_url).study.trials) == 3  # once


def test_the_same_process_picks_it_up_too(sqlite_url: str, tmp_path: Path, impatient: None) -> None:
    mine = tuner(sqlite_url, max_evals=2)
    trial = mine.ask()
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        mine.tell(trial, 0.5)
    assert mine.ask().number == 1
    assert unsaved(tmp_path) == []
    assert [t.value for t in load_study(sqlite_url, "s").completed] == [0.5]


def test_a_loop_that_ends_with_an_unwritten_result_does_not_give_it_back(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    def evaluate(params: dict[str, Any]) -> float:
        if len(mine.study.trials) == 2:
            holding.append(sqlite3.connect(tmp_path / "study.db", isolation_level=None))
            holding[0].execute("BEGIN IMMEDIATE")
        return 0.25 * len(mine.study.trials)

    holding: list[sqlite3.Connection] = []
    mine = tuner(sqlite_url, evaluate, max_evals=3)
    with pytest.raises(StorageError, match=r"value=0\.5 "):
        mine.optimize()
    holding[0].close()
    again = tuner(sqlite_url, evaluate, max_evals=3)
    assert [trial.value for trial in again.study.trials] == [0.25, 0.5]


def test_a_kept_result_that_fits_nothing_any_more_is_refused_and_not_thrown_away(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    mine, other = tuner(sqlite_url), tuner(sqlite_url)
    trial = mine.ask()
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        mine.tell(trial, 0.5)
    other.tell(trial, 0.75)
    with pytest.warns(StorageWarning, match=r"refused has a result of no use \(value=0.5\): trial 0 has finished"):
        again = tuner(sqlite_url)
    assert again.study.best_value == 0.75
    assert [path.suffix for path in unsaved(tmp_path)] == [".refused"]
    tuner(sqlite_url)  # once is enough


def test_the_same_process_picks_up_an_added_trial_too(sqlite_url: str, tmp_path: Path, impatient: None) -> None:
    mine = tuner(sqlite_url)
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        mine.add_trial({"x": 0.5, "n": 2}, 0.75)
    assert mine.ask().number == 1
    assert [(t.origin, t.value) for t in mine.study.trials] == [("added", 0.75), ("sobol", None)]


def test_a_pick_up_that_fails_is_tried_again_by_the_next_ask(sqlite_url: str, tmp_path: Path, impatient: None) -> None:
    mine = tuner(sqlite_url)
    trial = mine.ask()
    with locked(tmp_path / "study.db"):
        with pytest.raises(StorageError):
            mine.tell(trial, 0.5)
        with pytest.raises(StorageError, match="a kept result to be written: database is locked"):
            mine.ask()
    assert mine.ask().number == 1
    assert unsaved(tmp_path) == []
    assert load_study(sqlite_url, "s").best_value == 0.5


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 5000, b"1" * 5000, b'{"study": "study", "trial": {"number": "x"}}'],
)
def test_a_kept_file_that_is_damaged_blocks_no_start_and_is_set_aside(
    sqlite_url: str, tmp_path: Path, impatient: None, content: bytes
) -> None:
    mine = tuner(sqlite_url)
    trial = mine.ask()
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        mine.tell(trial, 0.5)
    (kept,) = unsaved(tmp_path)
    kept.write_bytes(content)
    with pytest.warns(StorageWarning, match="damaged has a result that cannot be read: ") as caught:
        tuner(sqlite_url)
    assert len(caught) == 1
    assert [path.suffix for path in unsaved(tmp_path)] == [".damaged"]
    assert unsaved(tmp_path)[0].read_bytes() == content
    tuner(sqlite_url)  # once is enough


def test_what_is_no_plain_file_is_left_alone(sqlite_url: str, tmp_path: Path, impatient: None) -> None:
    mine = tuner(sqlite_url)
    trial = mine.ask()
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        mine.tell(trial, 0.5)
    (kept,) = unsaved(tmp_path)
    kept.unlink()
    os.mkfifo(kept)  # which would be read for ever
    tuner(sqlite_url)


def tell(mine: LlamaTune) -> Any:
    trial = mine.ask()
    return lambda: mine.tell(trial, 0.5)


def add(mine: LlamaTune) -> Any:
    return lambda: mine.add_trial({"x": 0.5, "n": 2}, 0.5)


@pytest.mark.parametrize("prepare", [tell, add])
def test_a_process_that_is_killed_before_it_removes_the_file_writes_nothing_twice(
    sqlite_url: str, tmp_path: Path, impatient: None, prepare: Callable[[LlamaTune], Any]
) -> None:
    mine = tuner(sqlite_url)
    store_of(mine).session.patience = 30.0
    act = prepare(mine)
    left: list[tuple[Path, str]] = []
    with locked(tmp_path / "study.db") as connection:

        def release() -> None:
            eventually(lambda: any(path.read_text().endswith("\n") for path in unsaved(tmp_path)))
            left.extend((path, path.read_text()) for path in unsaved(tmp_path))
            time.sleep(0.1)  # of another time than the first attempt
            connection.execute("ROLLBACK")

        releasing = threading.Thread(target=release)
        releasing.start()
        written = act()
        releasing.join()
    ((path, text),) = left
    path.write_text(text)
    again = tuner(sqlite_url)
    assert again.study.trials == (written,)
    assert unsaved(tmp_path) == []


def breaking(monkeypatch: pytest.MonkeyPatch, times: int, after: bool) -> None:
    """So many transactions fail before their commit, or seem to fail after it."""
    original, left = Database.write, [times]

    def write(self: Database, work: Any, **how: bool) -> Any:
        error = OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))
        if left[0] and not after:
            left[0] -= 1

            def fail(transaction: Transaction) -> Any:
                work(transaction)
                raise error

            return original(self, fail, **how)
        result = original(self, work, **how)
        if left[0]:
            left[0] -= 1
            raise error
        return result

    monkeypatch.setattr(Database, "write", write)


@pytest.mark.parametrize("after", [False, True])
def test_a_result_is_computed_once_however_many_attempts_its_writing_takes(
    url: str, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    mine = tuner(url)
    trial, calls = mine.ask(), []

    def finish(current: Trial, now: float) -> Trial:
        calls.append(now)
        return current.finished_with(Outcome(float(len(calls))), now)

    breaking(monkeypatch, 3, after)
    assert store_of(mine).change(trial, finish).value == 1.0
    breaking(monkeypatch, 3, after)
    added = store_of(mine).add({"x": 0.5, "n": 2}, 0, finish)
    assert (added.number, added.value, added.cost) == (1, 2.0, 0.0)
    monkeypatch.undo()
    assert len(calls) == 2
    assert tuner(url).study.trials == mine.study.trials == (mine.study.trials[0], added)


def test_a_result_is_computed_again_if_its_trial_has_changed_between_two_attempts(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tuner(url), tuner(url)
    trial = mine.ask()
    breaking(monkeypatch, 1, after=False)
    seen: list[int] = []

    def finish(current: Trial, now: float) -> Trial:
        seen.append(len(current.curve))
        return current.finished_with(Outcome(0.5), now)

    keep = store_of(mine)._unsaved.keep

    def keeping(result: Trial) -> Path | None:
        other.report(0, 1, 0.25)  # between the two attempts
        return keep(result)

    monkeypatch.setattr(store_of(mine)._unsaved, "keep", keeping)
    assert store_of(mine).change(trial, finish).curve.values == (0.25,)
    assert seen == [0, 1]
    assert tuner(url).study.trials[0].curve.values == (0.25,)


def test_an_added_trial_that_others_were_quicker_than_has_the_next_number(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tuner(url), tuner(url)
    breaking(monkeypatch, 1, after=False)
    keep = store_of(mine)._unsaved.keep

    def keeping(result: Trial) -> Path | None:
        other.ask()
        return keep(result)

    monkeypatch.setattr(store_of(mine)._unsaved, "keep", keeping)
    added = mine.add_trial({"x": 0.5, "n": 2}, 0.5)
    assert (added.number, added.seed, added.cost) == (1, derived_seed(0, 1), 0.0)
    assert tuner(url).study.trials[1] == added


def test_a_result_that_is_kept_nowhere_says_how_to_enter_it_by_hand(
    sqlite_url: str, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tuner(sqlite_url)
    first, second = mine.ask(2)
    monkeypatch.setattr(store_of(mine)._unsaved, "_places", [(tmp_path / "nowhere", "x")])
    by_hand = r"is kept nowhere: write it down, and enter it later, with "
    with locked(tmp_path / "study.db"):
        with pytest.raises(StorageError, match=by_hand + "`llamatune tell 0 0.5`"):
            mine.tell(first, 0.5)
        with pytest.raises(StorageError, match=by_hand + "`llamatune tell 1 --failed 'out of memory'`"):
            mine.tell(second, Outcome.failure("out of memory"))
        with pytest.raises(StorageError, match=by_hand + r"add_trial\(\)"):
            mine.add_trial({"x": 0.5, "n": 2}, 0.5)
    assert not store_of(mine)._unsaved.waiting


def test_a_report_that_cannot_be_written_does_not_end_the_training(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    mine = tuner(sqlite_url)
    trial = mine.ask()
    mine.report(trial, 1, 0.1)
    with locked(tmp_path / "study.db"):
        for step in (2, 3):
            with pytest.warns(StorageWarning, match="a report to be written: database is locked; it is kept until"):
                mine.report(trial, step, 0.1 * step)
    mine.report(trial, 4, 0.5)
    assert load_study(sqlite_url, "s").trials[0].curve.steps == (1, 2, 3, 4)
    with locked(tmp_path / "study.db"), pytest.warns(StorageWarning):
        mine.report(trial, 5, 0.6)
    assert mine.tell(trial, 0.6).curve.steps == (1, 2, 3, 4, 5)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def test_a_full_disk(small_disk: Path, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{small_disk}/study.db"
    mine = tuner(url)
    trials = mine.ask(2)
    filler = fill(small_disk)
    with pytest.warns(StorageWarning, match="a report to be written: database or disk is full"):
        mine.report(trials[0], 1, 0.5)
    with pytest.raises(StorageError, match=r"disk is full.*value=0\.75 .*kept in .*llamatune-\w+\.unsaved-"):
        mine.tell(trials[0], 0.75)
    with pytest.raises(StorageError, match="a kept result to be written: database or disk is full"):
        mine.ask()
    filler.unlink()
    again = tuner(url)
    assert again.study.best_value == 0.75
    assert again.study.best_trial.curve.values == (0.5,)
    assert again.tell(again.ask(), 1.0).state is TrialState.COMPLETE


def test_a_file_that_becomes_read_only(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tuner(f"sqlite:///{small_disk}/study.db")
    trial = mine.ask()
    store_of(mine)._heartbeat.numbers.clear()
    store_of(mine).session.database._engine.dispose()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match=r"(readonly|read-only|unable to open).*value=0\.75 .*kept in "):
        mine.tell(trial, 0.75)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert tuner(f"sqlite:///{small_disk}/study.db").study.best_value == 0.75


def test_a_result_told_at_the_interpreters_end_is_written(sqlite_url: str) -> None:
    """No thread can be started there any more, so nobody watches over the write."""
    program = (
        "import atexit; from llamatune_torch import LlamaTune\n"
        f"mine = LlamaTune({{'x': (0.0, 1.0)}}, storage={sqlite_url!r}, name='s', progress=False)\n"
        "trial = mine.ask(); atexit.register(lambda: mine.tell(trial, 0.5))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert load_study(sqlite_url).best_value == 0.5


def test_kept_results_of_before_a_parameter_was_added_are_picked_up_once(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    old = tuner(sqlite_url, space={"x": Real(-1, 1)})
    trial, other = old.ask(), old.ask()
    with locked(tmp_path / "study.db"):
        for finish in (lambda: old.tell(trial, 0.5), lambda: old.add_trial({"x": 0.5}, 0.75)):
            with pytest.raises(StorageError):
                finish()
    new = tuner(sqlite_url, extend={"n": 4})
    assert unsaved(tmp_path) == []
    assert [t.value for t in new.study.trials] == [0.5, None, 0.75]
    assert {t.params["n"] for t in new.study.trials} == {4}
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        new.tell(new.study.trials[other.number], 0.25)  # known here as it counts in the new space
    assert tuner(sqlite_url).study.trials[1].value == 0.25
    assert unsaved(tmp_path) == []
