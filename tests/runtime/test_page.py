"""The page of a search while it runs: when it is written, how often, and that it harms nothing."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from llamatune_torch import CallbackWarning, LivePage, LlamaTune, SettingsError, Study

NEEDS_REPORT = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("matplotlib", "jinja2"))), reason="the extra `report` is not installed"
)


def tuner(max_evals: int = 5, **changes: Any) -> LlamaTune:
    return LlamaTune(
        {"x": (0.0, 1.0)}, lambda p: float(p["x"]), max_evals, **{"n_initial": 100, "progress": False, **changes}
    )


class Written:
    """Stands for ``Study.report``: what would have been written, after so many seconds by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 1.0) -> None:
        self.now, self.seconds = 1000.0, seconds
        self.pages: list[tuple[int, bool, str]] = []
        self.error: Exception | None = None
        monkeypatch.setattr("llamatune_torch.runtime.page.time.monotonic", lambda: self.now)
        monkeypatch.setattr(Study, "report", self._bound())

    def _bound(self) -> Any:
        def report(study: Study, path: Path, *, name: str, live: bool, settings: Any) -> None:
            self.now += self.seconds
            self.pages.append((len(study.completed), live, name))
            if self.error is not None:
                raise self.error

        return report


@NEEDS_REPORT
def test_a_page_is_written_while_the_search_runs_and_once_more_at_the_end(tmp_path: Path) -> None:
    path, seen = tmp_path / "report.html", list[str]()
    look = lambda *_: seen.append(path.read_text() if path.exists() else "")  # noqa: E731
    search = tuner(report=path, callbacks=[look], storage=f"sqlite:///{tmp_path}/s.db", name="mine")
    search.optimize()
    assert search.callbacks == [look]
    assert seen[0] == ""
    assert 'http-equiv="refresh"' in seen[1]
    assert "<title>mine · value</title>" in path.read_text()
    assert 'http-equiv="refresh"' not in path.read_text()
    assert f"value, trial {search.study.best_trial.number}" in path.read_text()
    assert {name for name in os.listdir(tmp_path) if "part" in name} == set()


@NEEDS_REPORT
def test_it_takes_a_twentieth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = Written(monkeypatch, seconds=2.0)

    def train(params: dict[str, Any]) -> float:
        written.now += 15.0
        return float(params["x"])

    search = LlamaTune({"x": (0.0, 1.0)}, train, 10, n_initial=100, progress=False, report=tmp_path / "r.html")
    search.optimize()
    assert [page[:2] for page in written.pages] == [(1, True), (4, True), (7, True), (10, True), (10, False)]


@NEEDS_REPORT
def test_not_more_often_than_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = Written(monkeypatch, seconds=0.0)

    def train(params: dict[str, Any]) -> float:
        written.now += 15.0
        return float(params["x"])

    page = LivePage(tmp_path / "r.html", every=60)
    LlamaTune({"x": (0.0, 1.0)}, train, 9, n_initial=100, progress=False, report=page).optimize()
    assert [count for count, live, _ in written.pages if live] == [1, 5, 9]


@NEEDS_REPORT
def test_a_page_that_cannot_be_made_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = Written(monkeypatch)
    written.error = OSError(28, "No space left on device")
    search = tuner(3, report=tmp_path / "r.html")
    with pytest.warns(CallbackWarning, match="No space left on device") as seen:
        search.optimize()
    assert len(search.study.completed) == 3
    assert len(seen) == 2  # of the first trial, and of the end
    assert search.callbacks == []


@NEEDS_REPORT
def test_a_search_that_breaks_leaves_a_page_that_has_ended(tmp_path: Path) -> None:
    def train(params: dict[str, Any]) -> float:
        raise ValueError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        LlamaTune({"x": (0.0, 1.0)}, train, 9, progress=False, report=tmp_path / "r.html").optimize()
    text = (tmp_path / "r.html").read_text()
    assert "no such layer" in text
    assert 'http-equiv="refresh"' not in text


@NEEDS_REPORT
def test_the_search_is_the_same_with_a_page_and_without(tmp_path: Path) -> None:
    bare, shown = tuner(14, n_initial=4), tuner(14, n_initial=4, report=LivePage(tmp_path / "r.html", every=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare.optimize()
        shown.optimize()
    assert [t.params for t in bare.study.trials] == [t.params for t in shown.study.trials]


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_what_is_missing_is_said_before_the_first_trial(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        "llamatune_torch.runtime.page.find_spec", lambda name: None if name == missing else known("sys")
    )
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}: pip install 'llamatune-torch\[report\]'"):
        tuner(report="r.html", storage=f"sqlite:///{tmp_path}/s.db")
    assert os.listdir(tmp_path) == []


@NEEDS_REPORT
def test_a_path_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (7, "", True):
        with pytest.raises(SettingsError, match="report must be the path of a file"):
            tuner(report=path)
    for path in (tmp_path / "no" / "report.html", tmp_path):
        with pytest.raises(SettingsError, match="report must be a file in a folder that exists"):
            tuner(report=path)
    with pytest.raises(SettingsError, match="every so many seconds >= 0, but got -1"):
        LivePage(tmp_path / "r.html", every=-1)


@NEEDS_REPORT
def test_a_page_loads_itself_as_long_as_others_run_trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    other = tuner(4, storage=url)
    trial = other.ask()
    written = Written(monkeypatch)
    mine = tuner(4, storage=url, report=tmp_path / "r.html", callbacks=[lambda search, trial: search.stop()])
    mine.optimize()
    assert written.pages[-1][1]
    other.tell(trial, 0.5)
