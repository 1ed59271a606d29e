"""The disk is bounded: the best paused fine-tunes keep their checkpoints, as many as there is room for."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_trainer, tuned

from llamatune_torch import CheckpointWarning, SettingsError, Study, TrialState
from llamatune_torch.integrations.trainer.finetune import FineTune
from llamatune_torch.integrations.trainer.folders import checkpoints_in, size_of


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"max_paused": -1}, "max_paused must be an integer >= 0, but got -1"),
        ({"max_paused": 1.5}, "max_paused must be an integer >= 0, but got 1.5"),
        ({"max_disk_gb": 0}, "max_disk_gb must be a number of gigabytes > 0, but got 0"),
        ({"max_disk_gb": "1GB"}, "max_disk_gb must be a number of gigabytes > 0, but got '1GB'"),
    ],
)
def test_bounds_that_are_none_are_refused(knob: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FineTune(lambda params: None, **knob)  # type: ignore[arg-type, return-value]


def search(folder: Path, **knobs: Any) -> tuple[Study, list[list[int]]]:
    """Six runs to a quarter, of which the best two go on; and whose checkpoints are there when each run begins."""
    seen: list[list[int]] = []

    def factory(params: Any) -> Any:
        seen.append([int(path.name[-4:]) for path in sorted(folder.glob("out/*/trial-*")) if any(checkpoints_in(path))])
        return tiny_trainer(params, folder)

    study = tuned(folder, factory, strategy="top_k", rungs=[0.25, 1.0], max_evals=3, **knobs)
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 2
    assert not list((folder / "out").rglob("checkpoint-*"))  # a study in memory ends here
    return study, seen


def test_the_best_paused_runs_keep_their_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        study, seen = search(tmp_path, max_paused=2)
    first = {trial.number: trial.curve.values[0] for trial in study.trials}
    for i, held in enumerate(seen[1:6], 1):
        assert held == sorted(sorted(range(i), key=lambda number: (first[number], number))[:2])  # a loss
    assert sum("better paused runs have theirs (max_paused=2, max_disk_gb=" in line for line in caplog.messages) == 4


def test_a_run_without_room_for_its_checkpoint_begins_anew(tmp_path: Path) -> None:
    with pytest.warns(CheckpointWarning, match=r"trial \d starts anew, because .* has no checkpoint of it"):
        study, seen = search(tmp_path, max_disk_gb=1e-9)
    assert seen == [[]] * 8
    for trial in study.completed:
        assert trial.curve.progress[-1] == 1.0
        assert len(set(trial.curve.steps)) == len(trial.curve)


def test_by_default_they_take_half_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))  # all is taken by checkpoints
    with pytest.warns(CheckpointWarning, match=r"trial \d starts anew, because .* has no checkpoint of it"):
        _, seen = search(tmp_path)
    assert seen[1:3] == [[]] * 2  # one is more than half of itself
    assert all(len(held) <= 2 for held in seen)


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 100)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 23)
    assert size_of(tmp_path / "a") == 123
    assert size_of(tmp_path / "none") == 0
