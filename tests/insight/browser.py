"""A headless Chromium, if the system has one: pages as they are after their scripts have run."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
)


def open_page(page: Path, *flags: str) -> tuple[str, str]:
    """The document after its scripts have run, and what the browser's console says."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, "\n".join(console)


def ask_page(page: Path, expression: str, folder: Path, *flags: str) -> str:
    """The value of an expression of JavaScript on a copy of a page, without the policy that forbids other scripts."""
    text = page.read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    script = f"<script>document.documentElement.dataset.answer = String((() => {expression})())</script>"
    copy = folder / "asked.html"
    copy.write_text(text.replace("</body>", f"{script}</body>"))
    document, _ = open_page(copy, *flags)
    found = re.search(r'<html[^>]* data-answer="([^"]*)"', document)
    assert found, document[:500]
    return html.unescape(found[1])
