"""``output_dir/best``: the best model of one study, whoever of its workers finds it."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamatune_torch import SettingsError, Trial
from llamatune_torch.integrations.trainer import locks
from llamatune_torch.integrations.trainer.best import Best
from llamatune_torch.integrations.trainer.folders import Folders


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.2)


def best_of(folder: Path, token: str = "mine-all-mine") -> Best:
    return Best(Folders(folder, "study", token))


def trial(number: int) -> Trial:
    return Trial(number, {}, 1, "sobol")


def saved(best: Best, number: int, value: float) -> Path:
    """A model as a fine-tune leaves it in its trial's folder."""
    best.folders.create(trial(number))
    folder = best.folders.model(trial(number))
    folder.mkdir()
    (folder / "weights").write_text(f"of trial {number}")
    record = {"token": best.folders.token, "trial": number, "value": value}
    (folder / "trial.json").write_text(json.dumps(record))
    return folder


def kept(folder: Path) -> Any:
    record = json.loads((folder / "best" / "trial.json").read_text())
    assert (folder / "best" / "weights").read_text() == f"of trial {record['trial']}"
    return record["trial"]


def test_a_better_model_takes_the_place_of_the_former(tmp_path: Path) -> None:
    best = best_of(tmp_path)
    best.put(saved(best, 0, 0.5), "maximize")
    best.put(saved(best, 1, 0.7), "maximize")
    assert kept(tmp_path) == 1
    worse, as_good = saved(best, 2, 0.6), saved(best, 3, 0.7)
    best.put(worse, "maximize")
    best.put(as_good, "maximize")
    assert kept(tmp_path) == 1
    assert best.holds(trial(1))
    best.put(worse, "minimize")
    assert kept(tmp_path) == 2
    for number in range(4):
        best.folders.clear(trial(number))
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_of_models_that_come_at_once_the_best_one_stays(tmp_path: Path) -> None:
    values = [number / 10 for number in range(8)]
    random.Random(3).shuffle(values)
    models = [saved(best_of(tmp_path), number, value) for number, value in enumerate(values)]
    threads = [threading.Thread(target=best_of(tmp_path).put, args=(model, "maximize")) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept(tmp_path) == values.index(max(values))


@pytest.mark.parametrize("token", ["mine-all-mine", "others"])
def test_a_model_whose_successor_was_killed_halfway_comes_back(token: str, tmp_path: Path) -> None:
    """Also if the killed search was in memory, and nobody knows its token any more."""
    best = best_of(tmp_path)
    best.put(saved(best, 0, 0.5), "maximize")
    best._former.parent.mkdir(parents=True)
    best.path.rename(best._former)  # and then the process was killed
    with Best(Folders(tmp_path, "study", token), overwrite=True).held():
        assert kept(tmp_path) == 0


def test_a_model_that_cannot_be_moved_leaves_the_former_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = best_of(tmp_path)
    best.put(saved(best, 0, 0.5), "maximize")
    model, rename = saved(best, 1, 0.7), Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path == model:
            raise OSError("Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output error"):
        best.put(model, "maximize")
    assert kept(tmp_path) == 0
    assert model.exists()


def test_a_folder_that_somebody_has_put_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    best = best_of(tmp_path)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "thesis.txt").write_text("years of work")
    model = saved(best, 0, 0.5)
    with pytest.raises(FileExistsError, match="is no model that tune"):
        best.put(model, "maximize")
    assert model.exists()
    assert (tmp_path / "best" / "thesis.txt").exists()


def test_the_model_of_another_study_is_replaced_only_if_that_is_meant(tmp_path: Path) -> None:
    """Also if it comes while this search runs, on a disk that knows no locks."""
    theirs, mine = best_of(tmp_path, "others"), best_of(tmp_path)
    theirs.put(saved(theirs, 0, 0.9), "maximize")
    with pytest.raises(SettingsError, match=r"has the model of trial 0 of .*: overwrite=True replaces it"), mine.held():
        pass
    model = saved(mine, 1, 0.5)
    with pytest.raises(FileExistsError, match="has the model of another study"):
        mine.put(model, "maximize")
    assert kept(tmp_path) == 0
    meant = Best(mine.folders, overwrite=True)
    with meant.held():
        meant.put(model, "maximize")
    assert kept(tmp_path) == 1


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Best]:
    best = best_of(tmp_path)
    with best.held():
        yield best


def test_a_search_keeps_others_from_keeping_theirs_there(held: Best) -> None:
    folder = held.folders.output_dir
    with (
        pytest.raises(
            SettingsError,
            match=r"another search keeps its best model in .*best \(study study, process \d+, host .*\): choose anoth",
        ),
        best_of(folder, "others").held(),
    ):
        pass
    with best_of(folder).held():  # another worker of the same study
        pass


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SettingsError, match=r"no model can be kept in .*out/best: "), best_of(tmp_path / "out").held():
        pass
