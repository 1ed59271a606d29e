"""The page: what is on it, that it is safe, small and whole, and what a browser makes of it."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from insights import EVIL, insight_of, plain_study, studies
from strategies import make_study

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
pytest.importorskip("jinja2", reason="the extra `report` is not installed")

from browser import NEEDS_BROWSER, ask_page, open_page

from llamatune_torch import Categorical, Constraint, Integer, Real, SearchSpace, Study, Trial, TrialState
from llamatune_torch.curve import Curve
from llamatune_torch.insight.explain import explain
from llamatune_torch.insight.page import show_interval
from llamatune_torch.insight.records import Insight, Interval
from llamatune_torch.insight.report import render
from llamatune_torch.objectives import Objective
from llamatune_torch.study import Goal

AXE = os.environ.get("AXE_CORE", "")  # the path of axe.min.js, of `npm install axe-core`


class Reader(HTMLParser):
    """A page as a list of tags with their attributes, its text, and its scripts; ``open`` are tags not closed."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.text).split())


def evil_study() -> Study:
    """A study in which every text that somebody else may have written is an attack."""
    names = [EVIL[0], EVIL[1], EVIL[3], "plain"]
    space = SearchSpace(
        {names[0]: (0.0, 1.0), names[1]: Categorical(list(EVIL)), names[2]: Integer(1, 8), names[3]: [EVIL[6]]}
    )
    trials = []
    for i in range(14):
        params = {names[0]: i / 14, names[1]: EVIL[i % len(EVIL)], names[2]: 1 + i % 8, names[3]: EVIL[6]}
        fields: dict[str, Any] = {"notes": {EVIL[0]: EVIL[1]}, "outcomes": {EVIL[1]: float(i), EVIL[0]: 1.0}}
        if i % 5 == 4:
            fields |= {"state": TrialState.FAILED, "reason": EVIL[i % 7], "error": EVIL[0] * 3}
        else:
            curve = Curve().reported(1, 0.1, 0.5).reported(2, 0.2, 1.0)
            fields |= {"state": TrialState.COMPLETE, "value": math.sin(i), "curve": curve}
        trials.append(Trial(i, space.validate(params), seed=i, origin="sobol", **fields))
    goal = Goal("maximize", EVIL[0], (Constraint(EVIL[1], upper=20),), (Objective(EVIL[0] + "2", "minimize", None),))
    return Study(space, goal, trials=tuple(trials))


def large_study(count: int = 200, dim: int = 15) -> Study:
    kinds = [Real(1e-6, 1e-2, prior="log-uniform"), Integer(1, 64), Categorical(["adamw", "lion"]), Real(0, 0.3)]
    space = SearchSpace({f"some_parameter_{j}": kinds[j % 4] for j in range(dim)})
    trials = []
    for i in range(count):
        where = [[(0.13 + 0.618 * i * (j + 1)) % 1.0] for j in range(dim)]
        params = {name: space[name].decode(u)[0] for name, u in zip(space.names, where, strict=True)}
        curve = Curve()
        for step in range(20):
            curve = curve.reported(step, 0.5 + step / 100, (step + 1) / 20)
        value = 0.8 + 0.1 * ((0.37 * i) % 1.0)
        trials.append(
            Trial(i, space.validate(params), i, "sobol", TrialState.COMPLETE, value, curve, cost=100.0, started=1.0)
        )
    return Study(space, trials=tuple(trials))


# --- What is on it ---------------------------------------------------------------------------------------------------


def test_the_page_has_the_answer_first_and_all_sections() -> None:
    study = plain_study(40)
    insight = insight_of(study)
    page = Reader(render(insight, name="my study", now=datetime(2026, 1, 2, 3, 4, tzinfo=UTC)))
    assert "Maximize accuracy over 2 parameters · 2026-01-02 03:04 UTC" in page.shown
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", render(insight))
    assert headings == [
        "Best configuration",
        "State and cost",
        "Progress",
        "Importance",
        "Effects",
        "Pairs",
        "All parameters at once",
        "Limits and failures",
        "How far to trust this",
        "Trials",
        "Made with",
    ]
    best = study.best_trial
    assert f"--x {best.params['x']!r} \\ --optimizer {best.params['optimizer']}" in page.shown
    assert f'x: {best.params["x"]!r} optimizer: "{best.params["optimizer"]}"' in page.shown
    assert "with a probability of 50%" in page.shown
    assert "10 failed" in page.shown.replace("failed 10", "10 failed")
    assert "llamatune-torch 0.1.0" in page.shown


def test_it_is_a_whole_document_in_which_ids_are_unique_and_links_lead_somewhere() -> None:
    text = render(insight_of(plain_study(40)))
    page = Reader(text)
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {(attrs.get("href") or "")[1:] for _, attrs in page.tags if (attrs.get("href") or "").startswith("#")}
    assert targets <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    labelled = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert labelled <= set(ids)


def test_every_figure_has_a_description_and_numbers_behind_it() -> None:
    text = render(insight_of(plain_study(40)))
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) == 2 + 2 * 2 + 1 + 1 + 1 + 1
    for figure in figures:
        assert re.search(r'<svg [^>]*role="img" aria-label="[^"]{10,}', figure)
        assert "<details>" in figure or 'aria-label="Each completed trial as a line' in figure  # the table of trials


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_not_known_is_left_out_with_a_word(count: int) -> None:
    study = plain_study(count)
    page = Reader(render(Insight(study, insight_of(study).progress, missing={"importance": "3 trials tell nothing"})))
    assert "Left out: 3 trials tell nothing" in page.shown
    assert "Left out: too little is known" in page.shown
    assert ("There is none yet: no trial has completed" in page.shown) == (count == 0)
    assert page.open == []


def test_of_failures_alone_the_page_says_why() -> None:
    failed = [trial for trial in plain_study(12).trials if trial.state is TrialState.FAILED]
    study = replace(plain_study(0), trials=tuple(replace(t, number=i) for i, t in enumerate(failed)))
    page = Reader(render(insight_of(study)))
    assert "There is none yet: " in page.shown
    assert "out of memory 3" in page.shown
    assert "MemoryError" in page.shown


def test_of_very_many_trials_some_are_listed_and_the_page_says_so() -> None:
    page = render(insight_of(large_study(2_000, 4)))
    assert "The best 200 and the newest 50 of the others are listed; 1750 more are left out" in page
    assert len(re.findall(r"<tr data-t=", page)) == 250
    assert len(page.encode()) <= 500_000


def test_the_page_is_small_and_the_same_each_time() -> None:
    insight = insight_of(large_study())
    now = datetime(2026, 1, 1, tzinfo=UTC)
    page = render(insight, now=now)
    assert 100_000 < len(page.encode()) <= 500_000
    assert page == render(insight, now=now)


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        (Interval(0.87123, 0.86951, 0.87304), ("0.8712", "0.8695 to 0.8730")),
        (Interval(123.4, 100.0, 150.0), ("123", "100 to 150")),
        (Interval(1e9, 9e8, 2e9), ("1e+09", "9e+08 to 2e+09")),
        (Interval(0.5, -math.inf, math.inf), ("0.5", "-inf to inf")),
        (Interval(0.5, 0.5, 0.5), ("0.5", "0.5 to 0.5")),
    ],
)
def test_an_interval_has_two_digits(interval: Interval, shown: tuple[str, str]) -> None:
    assert show_interval(interval) == shown


@settings(max_examples=15)
@given(study=studies(), name=st.sampled_from(EVIL))
def test_the_page_of_every_study_is_made_without_a_warning(study: Study, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = Reader(render(insight_of(study), name=name))
    assert page.open == []
    assert page.scripts == 1


ALONE = {
    "a number": Real(0, 1),
    "powers": Integer(1, 64, powers_of=2),
    "choices": Categorical(["adamw", "lion", "sgd"]),
    "special values": Real(1e-4, 1e-1, prior="log-uniform", special=[0.0]),
}


@pytest.mark.parametrize("kind", ALONE)
def test_of_one_parameter_all_is_told_but_pairs(kind: str) -> None:
    space = SearchSpace({"x": ALONE[kind]})
    tried = [space.decode([(0.05 + 0.618 * i) % 1.0]) for i in range(20)]
    study = make_study(space, [(params, math.sin(i)) for i, params in enumerate(tried)])
    page = Reader(render(explain(study)))
    assert "Left out: there is one parameter" in page.shown
    assert page.shown.count("Left out") == 1


# --- Safety ----------------------------------------------------------------------------------------------------------


def test_texts_of_others_are_shown_and_do_nothing() -> None:
    text = render(insight_of(evil_study()), name=EVIL[1])
    page = Reader(text)
    assert page.scripts == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.shown.count("document.title='run'") > 20
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "$x^2$" in page.shown
    assert page.open == []


def test_the_command_is_quoted_for_a_shell_and_the_yaml_reads_back() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    study = evil_study()
    best = study.best_trial.params
    page = render(replace(insight_of(study), progress=insight_of(study).progress._replace(winner=None)))
    (command, written) = map(_unescaped, re.findall(r'<pre tabindex="0">(.*?)</pre>', page, re.DOTALL))
    assert yaml.safe_load(written) == best
    bash = shutil.which("bash")
    if bash is not None:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        script = f"printf '%s\\0' {command}"
        said = subprocess.run([bash, "-c", script], capture_output=True, check=True, env=environment).stdout.decode()
        assert said.split("\0")[:-1] == [word for name, value in best.items() for word in (f"--{name}", str(value))]


def _unescaped(text: str) -> str:
    return html.unescape(text)


def test_nothing_is_loaded_and_the_policy_allows_the_one_script() -> None:
    text = render(insight_of(evil_study()), name=EVIL[0])
    page = Reader(text)
    loaded = [attrs[name] or "" for _, attrs in page.tags for name in ("src", "href", "xlink:href") if name in attrs]
    assert {link.split(":")[0] for link in loaded if not link.startswith("#")} == {"data"}
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text
    assert "@font-face" not in text
    (policy,) = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'; script-src 'sha256-")


def test_the_script_is_short() -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", render(insight_of(plain_study())), re.DOTALL)
    assert len(script.splitlines()) < 100


# --- Writing ---------------------------------------------------------------------------------------------------------


def test_a_study_writes_its_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    plain_study(5).report(path, name="mine")
    assert "<title>mine · accuracy</title>" in path.read_text()
    assert 'http-equiv="refresh"' not in path.read_text()
    plain_study(5).report(str(path), live=True)
    assert '<meta http-equiv="refresh" content="15">' in path.read_text()
    assert os.listdir(tmp_path) == ["report.html"]
    with pytest.raises(OSError, match="No such file"):
        plain_study(0).report(tmp_path / "no" / "report.html")


def test_without_jinja2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "llamatune_torch.insight.report")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs jinja2: pip install 'llamatune-torch\[report\]'"):
        plain_study().report(tmp_path / "report.html")


# --- A browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on which every text is an attack, in a file."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(insight_of(evil_study()), name=EVIL[0]))
    return path


@NEEDS_BROWSER
def test_a_browser_runs_our_script_and_no_other_and_has_nothing_to_complain(page: Path) -> None:
    document, console = open_page(page)
    assert console == ""
    assert '<th scope="col"><button type="button">trial</button></th>' in document
    assert "<title>run</title>" not in document
    assert 'type="search"' in document


@NEEDS_BROWSER
def test_without_its_policy_no_script_of_others_runs_either(page: Path, tmp_path: Path) -> None:
    assert ask_page(page, "document.title", tmp_path).startswith("<script>document.title='run'</script>")


@NEEDS_BROWSER
def test_it_fits_a_phone(page: Path, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"  # headless windows are not as narrow
    copy = tmp_path / "page.html"
    plain = tmp_path / "plain.html"
    plain.write_text(render(insight_of(large_study(60)), name="a study"))
    for source in (page, plain):
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source.read_text())
        widths = "[page.scrollWidth, page.clientWidth, innerWidth].join()"
        told = f"<script>const page = document.scrollingElement; parent.postMessage({widths}, '*')</script>"
        copy.write_text(text.replace("</body>", f"{told}</body>"))
        frame.write_text(
            "<html><body><script>onmessage = e => { document.documentElement.dataset.answer = e.data }</script>"
            f'<iframe src="{copy.name}" width="360" height="800" style="border:0"></iframe></body></html>'
        )
        document, _ = open_page(frame)
        found = re.search(r'data-answer="([^"]*)"', document)
        assert found
        needed, there, width = map(int, found[1].split(","))
        assert needed == there <= width == 360


@NEEDS_BROWSER
def test_the_table_sorts_and_filters_and_a_trial_shows_everywhere(page: Path, tmp_path: Path) -> None:
    expression = """{
      const table = document.querySelector("#trials table"), head = table.tHead.rows[0].cells;
      const column = (index) => [...table.tBodies[0].rows].map(row => row.cells[index].textContent);
      head[0].firstChild.click();
      const up = column(0).join();
      head[0].firstChild.click();
      const down = column(0).join();
      const input = document.querySelector("#trials input");
      input.value = "failed"; input.dispatchEvent(new Event("input"));
      const left = [...table.tBodies[0].rows].filter(row => !row.hidden).length;
      document.querySelector('#progress [data-t="3"]').dispatchEvent(new Event("pointerover", {bubbles: true}));
      const on = document.querySelectorAll(".on").length;
      return JSON.stringify([up, down, left, on, head[0].getAttribute("aria-sort")]);
    }"""
    up, down, left, on, sort = json.loads(ask_page(page, expression, tmp_path))
    numbers = [str(i) for i in range(14)]
    assert (up, down) == (",".join(numbers), ",".join(reversed(numbers)))
    assert left == len(evil_study().failed)
    assert on >= 4
    assert sort == "descending"


@NEEDS_BROWSER
@pytest.mark.parametrize("scheme", [1, 0], ids=["light", "dark"])
def test_texts_in_figures_are_told_from_their_ground(page: Path, tmp_path: Path, scheme: int) -> None:
    expression = """{
      const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
      const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
        return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
      const ground = light(getComputedStyle(document.querySelector("section")).backgroundColor);
      const contrasts = [...document.querySelectorAll("svg text")].map(text => {
        const ink = light(getComputedStyle(text).fill);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05); });
      return [ground > 0.5, contrasts.length > 100, Math.min(...contrasts) >= 4.5].join();
    }"""
    told = ask_page(page, expression, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert told == f"{'true' if scheme else 'false'},true,true"


@NEEDS_BROWSER
@pytest.mark.skipif(not Path(AXE).is_file(), reason="no axe-core: npm install axe-core, and AXE_CORE=.../axe.min.js")
def test_axe_finds_nothing(tmp_path: Path) -> None:
    study = large_study(30, 6)
    path = tmp_path / "report.html"
    text = render(insight_of(study), name="a study")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    told = "document.documentElement.dataset.answer = JSON.stringify(r.violations.map(v => [v.id, v.nodes[0].html]))"
    script = f"<script>{Path(AXE).read_text()}</script><script>axe.run().then(r => {{ {told} }})</script>"
    path.write_text(text.replace("</body>", f"{script}</body>"))
    document, _ = open_page(path, "--virtual-time-budget=60000")
    found = re.search(r'data-answer="([^"]*)"', document)
    assert found
    assert json.loads(_unescaped(found[1])) == []
