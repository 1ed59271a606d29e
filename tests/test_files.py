"""Files that are whole at any moment."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llamatune_torch.files import replacing


def test_the_new_content_replaces_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as file:
        file.write("new\n")
        assert path.read_text() == "old"
    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["study.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write("half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["study.json"])


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text("old")
    program = """
import os, signal, sys
from pathlib import Path
from llamatune_torch.files import replacing

with replacing(Path(sys.argv[1])) as file:
    file.write("half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(path)])
    assert killed.returncode == -9
    assert path.read_text() == "old"


def test_links_stay_and_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    path, link, pipe = tmp_path / "study.json", tmp_path / "link", tmp_path / "pipe"
    path.write_text("old")
    link.symlink_to(path)
    with replacing(link) as file:
        file.write("new")
    assert (link.is_symlink(), path.read_text()) == (True, "new")
    with replacing(Path(os.devnull)) as file:
        file.write("new")
    assert Path(os.devnull).is_char_device()
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    with replacing(pipe) as file:
        file.write("new")
    assert reader.communicate(timeout=60)[0] == "new"


def test_a_private_file_is_nobody_elses(tmp_path: Path) -> None:
    with replacing(tmp_path / "launch.json", private=True) as file:
        file.write("{}")
    assert stat.S_IMODE((tmp_path / "launch.json").stat().st_mode) == 0o600


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), replacing(tmp_path / "nowhere" / "study.json"):
        pass
