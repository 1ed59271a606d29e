"""Pauses of a stored study: several processes, stalled workers, outages, other spaces, documents and bad rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from durable import execute, fall_silent, hill, locked, states, store_of, tuner, unsaved
from hypothesis import given
from hypothesis import strategies as st
from simulated import play, train

from llamatune_torch import (
    BudgetSpentError,
    Cause,
    Curve,
    Integer,
    LlamaTune,
    Outcome,
    SchemaError,
    StorageError,
    StorageWarning,
    Trial,
    TrialState,
)
from llamatune_torch.storage.document import from_document, restore, to_document
from llamatune_torch.storage.reader import Reader
from llamatune_torch.storage.serialization import read_trial, write_trial

PAUSED, LOST, RUNNING = TrialState.PAUSED, TrialState.LOST, TrialState.RUNNING


def staged(url: str, function: Any = None, **changes: Any) -> LlamaTune:
    """Runs pause at a half; the better half goes on."""
    return tuner(url, function, **{"strategy": "asha", "rungs": [0.5, 1.0], "max_evals": 9, **changes})


def pause(mine: LlamaTune, trial: Trial, value: float) -> Trial:
    mine.report(trial, 5, value, 0.5)
    return mine.tell(trial, Outcome(paused=True, cost=4.0))


def with_two_paused(url: str, **changes: Any) -> LlamaTune:
    mine = staged(url, **changes)
    for trial in mine.ask(2):
        pause(mine, trial, trial.number / 10)
    return mine


def test_a_paused_trial_comes_back_after_reopening_and_goes_on_elsewhere(url: str) -> None:
    paused = with_two_paused(url).study.trials[1]
    mine = staged(url)
    assert mine.study.trials[1] == paused
    assert (paused.reached, paused.until, paused.pauses, paused.cost) == (0.5, 0.5, 1, 4.0)
    again = mine.ask()
    assert (again.number, again.until, again.worker) == (1, 1.0, mine.worker)
    assert again.curve == Curve((5.0,), (0.1,), (0.5,))
    mine.report(again, 10, 0.75, 1.0)
    assert mine.tell(again, Outcome(0.75, cost=2.0)).cost == 6.0
    assert staged(url).study.trials[1].curve.values == (0.1, 0.75)


def test_two_processes_never_take_up_the_same_run(url: str) -> None:
    one, other = with_two_paused(url), staged(url)
    assert (one.ask().number, other.ask().number) == (1, 2)


def test_decisions_for_a_record_that_has_changed_are_made_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = with_two_paused(url), staged(url)
    choose, taken = one._choose, []

    def overtaken(*arguments: Any) -> Any:
        decisions = choose(*arguments)
        if not taken:
            store_of(other).session.write(
                lambda held: held.transaction.run("UPDATE llamatune_studies SET lease_owner = NULL"), "x"
            )
            taken.append(other.ask().number)
        return decisions

    monkeypatch.setattr(one, "_choose", overtaken)
    assert one.ask().number == 2
    assert taken == [1]


def test_processes_in_another_order_make_the_same_record(url: str) -> None:
    def facts(study: Any) -> list[Any]:
        return [(t.params, t.state, t.until, t.reached, t.pauses, t.reason) for t in study.trials]

    alone = tuner(url, name="alone", strategy="screen", max_evals=4)
    play(alone, lambda params, share: share * hill(params))
    several = [tuner(url, name="several", strategy="screen", max_evals=4) for _ in range(3)]
    turn = 0
    while True:
        mine = several[(turn * 7 + turn // 3) % 3]
        turn += 1
        try:
            trial = mine.ask()
        except BudgetSpentError:
            break
        train(mine, trial, lambda params, share: share * hill(params), lambda trial: "pauses", 20)
    newest = store_of(several[0]).session.refresh()
    assert facts(newest) == facts(alone.study)


def test_a_loop_whose_budget_leaves_a_rest_comes_to_its_end(url: str) -> None:
    """Less than the next run takes, but more than the smallest share: nobody has a use for it."""

    def curve(params: dict[str, Any]) -> Any:
        for step in range(1, 11):
            yield step, hill(params) + step, step / 10

    mine = tuner(url, curve, strategy="screen", max_evals=4)
    mine.optimize()
    assert mine.study.spent == pytest.approx(3.8)
    assert len(mine.study.completed) == 2
    assert not mine.study.paused


# --- Stalled workers -------------------------------------------------------------------------------------------------


def test_a_stalled_resumed_run_runs_again_from_its_pause(url: str) -> None:
    mine = with_two_paused(url)
    stalled = mine.ask()
    mine.report(stalled, 7, 0.7, 0.7)
    fall_silent(url, mine)
    other = staged(url)
    again = other.ask()
    assert (again.origin, again.first, again.until, again.worker) == ("retry", 1, 1.0, other.worker)
    assert (again.reached, again.pauses, again.seed, again.resumed) == (0.5, 1, stalled.seed, None)
    other.report(again, 6, 0.65, 0.6)
    other.report(again, 10, 0.9, 1.0)
    told = other.tell(again, Outcome(0.9, cost=3.0))
    assert told.curve.values == (0.1, 0.65, 0.9)
    assert (states(other.study), other.study.spent) == (["paused", "lost", "complete"], 1.5)


def test_a_late_pause_changes_nothing_but_what_was_measured(url: str) -> None:
    late = staged(url)
    trial = late.ask()
    fall_silent(url, late)
    other = staged(url)
    again = other.ask()
    assert again.retry_of == 0
    told = pause(late, trial, 0.3)
    assert (told.state, told.cause, told.reason) == (LOST, Cause.SILENT, "worker silent")
    assert (told.pauses, told.curve.values, told.cost) == (0, (0.3,), 4.0)
    assert other.study.spent == 1.0
    assert pause(other, again, 0.2).state is PAUSED
    assert [t.number for t in store_of(other).session.refresh().paused] == [1]


def test_a_late_pause_from_a_file_does_not_bring_a_run_back_that_runs_elsewhere(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    mine = staged(sqlite_url)
    trial = mine.ask()
    with locked(tmp_path / "study.db"), pytest.raises(StorageError, match="which the next start picks up"):
        mine.pause(trial)
    assert mine.study.trials[0].state is PAUSED
    assert len(unsaved(tmp_path)) == 1
    kept = unsaved(tmp_path)[0]
    away = kept.rename(tmp_path / "away")
    fall_silent(sqlite_url, mine)
    other = staged(sqlite_url)
    assert other.ask().retry_of == 0
    away.rename(kept)
    with pytest.warns(StorageWarning, match="trial 0 is lost by now, so that it cannot pause"):
        third = staged(sqlite_url)
    assert states(third.study) == ["lost", "running"]


def test_a_pause_from_a_file_is_picked_up_once(sqlite_url: str, tmp_path: Path, impatient: None) -> None:
    mine = staged(sqlite_url)
    trial = mine.ask()
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        mine.pause(trial)
    kept = unsaved(tmp_path)[0]
    text = kept.read_text()
    other = staged(sqlite_url)
    assert states(other.study) == ["paused"]
    other.pause(other.ask())  # another one, so that the better half is one of two
    gone_on = other.ask()
    assert gone_on.number == 0
    kept.write_text(text)  # a process was killed before it removed the file
    third = staged(sqlite_url)
    assert third.study.trials[0].state is RUNNING
    assert third.study.trials[0].worker == other.worker


def test_a_loop_goes_on_through_an_outage_at_a_pause(
    sqlite_url: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = staged(sqlite_url, max_evals=2, strategy="successive_halving")
    tell, failed = mine.tell, []

    def curve(params: dict[str, Any]) -> Any:
        yield 1, hill(params), 0.5
        yield 2, hill(params), 1.0

    def broken_once(trial: Any, outcome: Any) -> Trial:
        told = tell(trial, outcome)
        if not failed:
            failed.append(told)
            raise StorageError("the disk is full; it is kept in a file")
        return told

    monkeypatch.setattr(mine, "tell", broken_once)
    mine.model_eval_fn, mine.can_pause = curve, True
    monkeypatch.setattr("llamatune_torch.runtime.loop._OUTAGE", 0.0)
    with pytest.raises(StorageError, match="the disk is full"):  # nothing else runs here: there is no sense in waiting
        mine.optimize()
    assert failed[0].state is PAUSED


# --- Spaces and documents --------------------------------------------------------------------------------------------


def test_a_run_goes_on_as_it_was_written_though_the_space_has_grown(url: str) -> None:
    with_two_paused(url)
    wider = {**dict(tuner(url).study.space.parameters), "warmup": Integer(0, 9)}
    mine = staged(url, space=wider, extend={"warmup": 3})
    again = mine.ask()
    assert again.number == 1
    assert again.params["warmup"] == 3
    mine.tell(again, 0.5)
    written = json.loads(_written(url, 1)["params"])
    assert sorted(written) == ["n", "x"]


def _written(url: str, number: int) -> dict[str, Any]:
    from llamatune_torch.storage.database import Database

    def read(transaction: Any) -> Any:
        return transaction.rows("SELECT * FROM llamatune_trials WHERE number = :number", number=number)

    return dict(Database(url).read(read)[0])


def test_documents_hold_pauses_and_give_back_what_ran(url: str, tmp_path: Path) -> None:
    mine = with_two_paused(url)
    mine.ask()  # takes up the second
    mine.ask()  # a new one
    text = json.dumps(to_document(Reader(url).look("s")))
    archived = from_document(json.loads(text))
    assert [str(t.state) for t in archived.study.trials] == ["paused", "paused", "lost"]
    assert archived.study.trials[0] == mine.study.trials[0]
    restored = f"sqlite:///{tmp_path}/restored.db"
    restore(restored, "s", archived)
    assert staged(restored).ask().number == 1


FIELDS = {"until": 0.5, "reached": 0.5, "pauses": 1, "resumed": 12.5}


@pytest.mark.parametrize("state", [PAUSED, TrialState.STOPPED, RUNNING])
@pytest.mark.parametrize("missing", [None, *FIELDS])
def test_the_stages_of_a_trial_survive_a_row(state: TrialState, missing: str | None) -> None:
    fields: Any = {name: value for name, value in FIELDS.items() if name != missing}
    trial = Trial(0, {"x": 0.5}, 0, "sobol", state, **fields)
    assert read_trial(write_trial(trial)) == trial


def test_a_trial_in_one_go_is_written_as_ever() -> None:
    assert not FIELDS.keys() & json.loads(write_trial(Trial(0, {}, 0, "sobol"))["details"]).keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("until", value) for value in (2, 0, -0.5, 1.0000001, "x", None, True, float("nan"), float("inf"), [0.5])],
        *[("reached", value) for value in (2, -1e-9, "x", None, False, float("nan"), {})],
        *[("pauses", value) for value in (-1, 0.5, "1", None, True, 2**70)],
        *[("resumed", value) for value in ("x", [1.0], True)],
    ],
)
def test_stages_that_cannot_be_are_refused_with_their_name(name: str, value: Any) -> None:
    row = write_trial(Trial(0, {"x": 0.5}, 0, "sobol", PAUSED, **FIELDS))  # type: ignore[arg-type]
    row["details"] = json.dumps({**json.loads(row["details"]), name: value})
    with pytest.raises(SchemaError, match=f"trial 0 cannot be read: {name} must be "):
        read_trial(row)


ANYTHING: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)


@given(name=st.sampled_from(sorted(FIELDS)), value=ANYTHING)
def test_whatever_stands_there_is_a_valid_stage_or_a_named_error(name: str, value: Any) -> None:
    row = write_trial(Trial(0, {"x": 0.5}, 0, "sobol", PAUSED, **FIELDS))  # type: ignore[arg-type]
    row["details"] = json.dumps({**json.loads(row["details"]), name: value})
    try:
        trial = read_trial(row)
    except SchemaError:
        return
    assert 0 < trial.until <= 1
    assert 0 <= trial.reached <= 1
    assert type(trial.pauses) is int
    assert trial.pauses >= 0


def test_a_stored_row_with_a_bad_share_is_named(url: str) -> None:
    with_two_paused(url)
    details = json.loads(_written(url, 0)["details"])
    bad = json.dumps({**details, "until": 2})
    execute(url, "UPDATE llamatune_trials SET details = :bad WHERE number = 0", bad=bad)
    with pytest.raises(SchemaError, match=r"until must be a share in \[0, 1\], but got 2"):
        staged(url)


# --- A strategy of one's own -----------------------------------------------------------------------------------------


class Patient:
    """Waits for nobody, and trains everything in two halves."""

    least = 0.5

    def __init__(self, name: str = "a") -> None:
        self.name = name

    def decide(self, study: Any, settings: Any, left: float) -> Any:
        from llamatune_torch.engine.strategies.strategy import resume, start

        for trial in study.paused:
            return resume(trial, 1.0, left, "all go on")
        return start(study, settings, 0.5, left)


def test_every_process_brings_the_same_strategy(url: str) -> None:
    from llamatune_torch import StudyMismatchError, load_study

    mine = staged(url, strategy=Patient(), rungs=None, max_evals=2)
    name = store_of(mine).settings["strategy"]
    assert name.startswith(f"{Patient.__module__}.Patient@")
    staged(url, strategy=Patient(), rungs=None)  # another object of the same
    play(mine, lambda params, share: share)
    assert [t.state for t in load_study(url, "s").trials] == ["complete", "complete"]  # readers need none
    for other in (Patient("b"), "asha"):
        with pytest.raises(StudyMismatchError, match=r"strategy: stored '.*Patient@") as error:
            staged(url, strategy=other, rungs=None)
        assert "extend=True accepts that" in str(error.value)
    staged(url, strategy=Patient("b"), rungs=None, extend=True)
    with pytest.raises(StudyMismatchError, match="strategy"):
        staged(url, strategy=Patient(), rungs=None)
