"""``study.report("report.html")``: one page that shows all that a study tells, without network or server.

The template, ``report.html``, has the style and the script. All text is escaped. A policy on the page lets its own
script run, known by its hash, and nothing else; nothing is loaded.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from llamatune_torch.files import replacing
from llamatune_torch.insight.explain import explain
from llamatune_torch.insight.page import answer, outlook, sections, tiles
from llamatune_torch.insight.records import COVERAGE, Insight
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.text import printable

try:
    from jinja2 import Environment, StrictUndefined, Template
    from markupsafe import Markup
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("the page needs jinja2: pip install 'llamatune-torch[report]'") from missing

#: Seconds after which the page of a running search loads itself again.
RELOAD = 15


def write_page(
    study: Study, path: str | Path, *, name: str = "study", live: bool = False, settings: Settings | None = None
) -> None:
    """Writes the page of a study; the file is whole at any moment.

    Args:
        study: what it shows.
        path: the file, which is replaced.
        name: the study's name, for the title.
        live: whether the page loads itself again from time to time.
        settings: the knobs of the engine, for the seed and the device.

    Raises:
        OSError: the file cannot be written.
    """
    page = render(explain(study, settings), name=name, live=live)
    with replacing(Path(path)) as file:
        file.write(page)


def render(insight: Insight, *, name: str = "study", live: bool = False, now: datetime | None = None) -> str:
    """Makes the page as a text; arguments as :func:`write_page`, and the time that it shows."""
    study = insight.study
    content: Mapping[str, Any] = {
        "name": name,
        "study": study,
        "reload": RELOAD if live else None,
        "now": (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        "answer": answer(insight),
        "coverage": COVERAGE,
        "tiles": tiles(insight),
        "outlook": outlook(insight),
        "sections": sections(insight),
    }
    return _template().render(content, policy=_policy(_source()), svg=Markup)


def _source() -> str:
    return files("llamatune_torch.insight").joinpath("report.html").read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    return environment.from_string(_source())


def _visible(value: Any) -> Any:
    """Text in which nothing is invisible, or turns the direction of what follows; SVG as it is."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@cache
def _policy(source: str) -> str:
    """The content security policy: no loading at all, and no script but that of the template."""
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
