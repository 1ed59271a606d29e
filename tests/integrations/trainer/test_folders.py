"""The folders of a study: whose they are, and what is deleted in them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llamatune_torch import CheckpointWarning, Trial
from llamatune_torch.integrations.trainer.folders import OURS, Folders, checkpoints_in, delete


def trial(number: int = 0, rate: float = 0.1) -> Trial:
    return Trial(number, {"learning_rate": rate}, 1, "sobol")


def folders(folder: Path, name: str = "study", token: str = "0123456789abcdef") -> Folders:
    return Folders(folder, name, token)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def checkpoint(folder: Path, name: str = "checkpoint-2") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "weights").write_text("heavy")
    return folder / name


def test_a_trials_folder_is_the_studys_own_and_goes_away_with_all_that_is_ours(tmp_path: Path) -> None:
    own = folders(tmp_path / "out")
    assert own.create(trial(7))
    assert own.trial(trial(7)) == tmp_path / "out" / "study-01234567" / "trial-0007"
    checkpoint(own.trial(trial(7)))
    own.model(trial(7)).mkdir()
    own.clear(trial(7))
    assert list((tmp_path / "out").iterdir()) == []


def test_studies_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    one, other = folders(tmp_path, token="1" * 32), folders(tmp_path, token="2" * 32)
    assert one.create(trial())
    kept = checkpoint(one.trial(trial()))
    assert other.create(trial())
    other.clear(trial())
    assert kept.exists()


def test_a_folder_with_anothers_marker_is_left_alone(tmp_path: Path) -> None:
    """The token in a name is short; the marker has the whole."""
    one, other = folders(tmp_path, token="0" * 8 + "1"), folders(tmp_path, token="0" * 8 + "2")
    assert one.create(trial())
    kept = checkpoint(one.trial(trial()))
    assert not other.create(trial())
    other.clear(trial())
    assert kept.exists()
    assert one.holds(trial())


def test_a_users_folder_is_not_marked_and_nothing_in_it_deleted(tmp_path: Path) -> None:
    own = folders(tmp_path)
    checkpoint(own.trial(trial()))
    assert not own.create(trial())
    own.clear(trial())
    assert files(tmp_path) == ["study-01234567/trial-0000/checkpoint-2/weights"]


def test_only_the_trainers_checkpoints_and_our_own_folder_are_deleted(tmp_path: Path) -> None:
    own = folders(tmp_path)
    own.create(trial())
    folder = own.trial(trial())
    for name in ("checkpoint-best", "checkpoint-12b", "model", "runs", "checkpoint-3"):
        checkpoint(folder, name)
    (folder / "checkpoint-4").symlink_to(folder / "model")
    (folder / "checkpoint-5").write_text("a file")
    assert [step for step, _ in checkpoints_in(folder)] == [3]
    own.clear(trial())
    assert {path.name for path in folder.iterdir()} == {
        *("checkpoint-best", "checkpoint-12b", "model", "runs", "checkpoint-4", "checkpoint-5")
    }


def test_what_a_trial_that_the_study_has_lost_left_behind_is_not_this_trials(tmp_path: Path) -> None:
    """Of a study that was restored from a backup, the same number may have other parameters."""
    own = folders(tmp_path)
    own.create(trial(3, rate=0.1))
    old = checkpoint(own.trial(trial(3)))
    assert not own.holds(trial(3, rate=0.2))
    assert own.create(trial(3, rate=0.2))
    assert not old.exists()


@pytest.mark.parametrize("name", ["../../etc", "a/b", "größe 12", "..", "x" * 300, "π" * 300])
def test_any_name_of_a_study_is_one_folder_in_the_output_dir(name: str, tmp_path: Path) -> None:
    own = folders(tmp_path / "out", name)
    assert own.create(trial())
    assert own.study.resolve().parent == (tmp_path / "out").resolve()
    own.clear(trial())
    assert list((tmp_path / "out").iterdir()) == []


def test_workers_that_make_and_remove_folders_at_once_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    own, failures = folders(tmp_path), []

    def work(number: int) -> None:
        for _ in range(100):
            if not own.create(trial(number)):
                failures.append(number)
            own.clear(trial(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_makes_no_folder_ours(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert not folders(tmp_path / "out").create(trial())


def test_what_cannot_be_deleted_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise OSError("Stale file handle")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.warns(CheckpointWarning, match=r"here could not be deleted: Stale file handle"):
        delete(tmp_path / "here")


def test_a_link_is_deleted_and_not_what_it_points_to(tmp_path: Path) -> None:
    target = checkpoint(tmp_path, "precious")
    (tmp_path / OURS).symlink_to(target)
    delete(tmp_path / OURS)
    assert files(tmp_path) == ["precious/weights"]
