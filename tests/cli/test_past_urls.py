"""``--past``: older studies by their URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamatune_torch import load_study
from llamatune_torch.cli.main import main
from llamatune_torch.cli.past import load, load_all, split_name
from llamatune_torch.errors import LlamaTuneError
from llamatune_torch.past import PastStudy

SPEC = """
import math
from llamatune_torch import Real

space = {"lr": Real(1e-5, 1e-1, prior="log-uniform")}
search = {"direction": "minimize", "seed": 1PAST}

def evaluate(params):
    return math.log10(params["lr"] / 2e-3) ** 2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder: Path, name: str, past: str = "") -> str:
    (folder / f"{name}.py").write_text(SPEC.replace("PAST", past))
    return f"{name}.py"


@pytest.mark.parametrize(
    ("url", "split"),
    [
        ("sqlite:///old.db", ("sqlite:///old.db", None)),
        ("sqlite:////tmp/old.db:124M", ("sqlite:////tmp/old.db", "124M")),
        ("sqlite:///C:/old.db", ("sqlite:///C:/old.db", None)),
        ("postgresql://me:secret@host:5432/tunes", ("postgresql://me:secret@host:5432/tunes", None)),
        ("postgresql://me@host:5432/tunes:small", ("postgresql://me@host:5432/tunes", "small")),
    ],
)
def test_a_name_stands_behind_the_url(url: str, split: tuple[str, str | None]) -> None:
    assert split_name(url) == split


def test_a_search_learns_from_studies_of_ours_and_of_optunas(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(folder, "spec_old")
    assert main(["run", spec, "--storage", "sqlite:///old.db", "--name", "small", "--trials", "8"]) == 0
    assert main(["export", "--storage", "sqlite:///old.db", "--optuna", "sqlite:///optuna.db"]) == 0
    for url in ("sqlite:///old.db", "sqlite:///optuna.db", "sqlite:///optuna.db:small"):
        assert load(url).num_completed == 8
        assert load(url).name == "small"
    new = write(folder, "spec_new")
    arguments = ["run", new, "--storage", "sqlite:///new.db", "--trials"]
    capsys.readouterr()
    assert main([*arguments, "3", "--past", "sqlite:///old.db:small", "--past", "sqlite:///optuna.db"]) == 0
    assert "past study small: 8 completed and 0 failed trials" in capsys.readouterr().out
    study = load_study("sqlite:///new.db")
    assert study.past == (load("sqlite:///old.db"),)  # both have the same content
    assert study.trials[0].value is not None
    assert study.trials[0].value < 0.1
    # The snapshot serves later starts, also where the old study is gone.
    (folder / "old.db").unlink()
    assert main([*arguments, "4"]) == 0
    assert main(["resume", "--storage", "sqlite:///new.db", "--trials", "5"]) == 0
    assert load_study("sqlite:///new.db").past == study.past


def test_a_spec_file_may_name_them_too(folder: Path) -> None:
    old = write(folder, "spec_first")
    assert main(["run", old, "--storage", "sqlite:///old.db", "--trials", "5"]) == 0
    new = write(folder, "spec_second", ', "past": ["sqlite:///old.db"], "context": {"parameters": 1e9}')
    for trials in ("2", "3"):
        assert main(["run", new, "--storage", "sqlite:///new.db", "--trials", trials]) == 0
        (folder / "old.db").unlink(missing_ok=True)
    study = load_study("sqlite:///new.db")
    assert len(study.past) == 1
    assert study.context == {"parameters": 1e9}


def test_what_is_no_study_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(folder, "spec_third")
    assert main(["run", spec, "--past", "sqlite:///nothing.db", "--trials", "1"]) == 1
    assert "nothing.db" in capsys.readouterr().err
    assert not (folder / "nothing.db").exists()
    assert main(["run", spec, "--storage", "sqlite:///old.db", "--name", "a", "--trials", "1"]) == 0
    with pytest.raises(LlamaTuneError, match=r"has no study 'b', only \['a'\]"):
        load("sqlite:///old.db:b")
    taken = PastStudy("x", "minimize", ())
    assert load_all([taken]) == [taken]
