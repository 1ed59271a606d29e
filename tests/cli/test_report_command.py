"""``report``: the page of a stored study, once or as long as it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Cli, finish, start, write_spec

from llamatune_torch import LlamaTune, load_study

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
pytest.importorskip("jinja2", reason="the extra `report` is not installed")


def test_a_page_of_a_stored_study(cli: Cli, mine: LlamaTune, tmp_path: Path) -> None:
    shown = cli("report", "-o", "page.html")
    assert (shown.code, shown.out) == (0, "the page of study 'mine' is page.html\n")
    page = (tmp_path / "page.html").read_text()
    assert "<title>mine · loss</title>" in page
    assert "--lr 3e-05" in page
    assert "&#39;two words&#39;" in page
    assert "MemoryError" in page
    assert 'http-equiv="refresh"' not in page
    assert cli("report", "--name", "mine").code == 0
    assert (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written(cli: Cli, mine: LlamaTune) -> None:
    shown = cli("report", "-o", "no/page.html")
    assert (shown.code, shown.err) == (2, "llamatune: no/page.html cannot be written: No such file or directory\n")


def test_no_such_study(cli: Cli, mine: LlamaTune) -> None:
    assert "no study 'other'" in cli("report", "--name", "other").err


def test_watching_writes_the_page_again_until_the_study_is_finished(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = LlamaTune(
        {"x": (0.0, 1.0)}, max_evals=2, storage="sqlite:///llamatune.db", name="mine", n_initial=100, progress=False
    )
    search.tell(search.ask(), 0.5)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        assert '<meta http-equiv="refresh"' in (tmp_path / "report.html").read_text()
        if len(waits) == 3:
            search.tell(search.ask(), 0.75)

    monkeypatch.setattr("llamatune_torch.cli.report.time.sleep", sleep)
    shown = cli("report", "--watch", "0.5")
    assert shown.code == 0
    assert shown.out.splitlines()[-1] == "the page of study 'mine' is report.html"
    assert len(waits) == 3
    assert waits[0] >= 0.5
    page = (tmp_path / "report.html").read_text()
    assert "<dt>complete</dt><dd>2</dd>" in page
    assert 'http-equiv="refresh"' not in page


def test_a_bad_interval_is_a_mistake_of_usage(cli: Cli) -> None:
    shown = cli("report", "--watch", "0")
    assert (shown.code, "must be greater than 0" in shown.err) == (2, True)


def test_the_page_of_a_study_that_was_killed_tells_of_the_trial_that_runs(cli: Cli, tmp_path: Path) -> None:
    search = LlamaTune({"x": (0.0, 1.0)}, max_evals=9, storage="sqlite:///llamatune.db", n_initial=100, progress=False)
    search.tell(search.ask(), 0.5)
    search.ask()
    assert cli("report").code == 0
    page = (tmp_path / "report.html").read_text()
    assert "Running now: trial 1." in page
    assert "<dt>running</dt><dd>1</dd>" in page


def test_a_run_writes_its_page(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    done = finish(start(tmp_path, "run", spec, "--report", "page.html"))
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"the page of study {spec[:-3]!r} is {tmp_path}/page.html"
    assert f"<dt>trials</dt><dd>{len(load_study(f'sqlite:///{tmp_path}/llamatune.db').trials)}</dd>" in (
        (tmp_path / "page.html").read_text()
    )
