"""Text that leaves the program."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from llamatune_torch.text import from_cell, printable, quote, redact, to_cell


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/optuna", "postgresql://me:***@host/optuna"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://me:se@cr/et?x@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:secret@host", "postgresql://:***@host"),
        ("postgresql:/me:secret@host", "postgresql:/me:***@host"),
        ("me:secret@host", "me:***@host"),
        ("postgresql://h/d?password=secret&user=me", "postgresql://h/d?password=***&user=me"),
        ("postgresql://h/d?user=me&sslpassword=sec&ret", "postgresql://h/d?user=me&sslpassword=***&"),
        ("postgresql://h/d?pass%77ord=secret", "postgresql://h/d?pass%77ord=***"),
        ("sqlite:////tmp/a:b@c.db", "sqlite:////tmp/a:b@c.db"),
        ("", ""),
    ],
)
def test_passwords_are_replaced(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(st.text(max_size=20), st.text("abc:/@?&=%# ", max_size=20), st.sampled_from(["password", "sslpassword"]))
def test_no_password_is_shown_whatever_it_is(user: str, password: str, name: str) -> None:
    secret = f"s3cr3t{password}s3cr3t"
    assert "s3cr3t" not in redact(f"postgresql://{user.translate({ord(c): None for c in ':@?'})}:{secret}@host/db")
    parsed = URL.create("postgresql", "me", secret, "host", 5432, "db", {name: secret})
    assert redact(parsed.render_as_string(hide_password=False)) == f"postgresql://me:***@host:5432/db?{name}=***"


@given(st.text())
def test_a_terminal_gets_nothing_to_obey(text: str) -> None:
    shown = printable(text)
    assert all(c in "\n\t" or c.isprintable() or c not in "\x1b\x07\x9b\r\u202e" for c in shown)
    assert printable(shown) == shown


def test_escapes_are_shown_and_other_text_stays() -> None:
    assert printable("a\x1b[2Jb\rc\x9bd\u202ee\n\tf") == "a\\x1b[2Jb\\x0dc\\u009bd\\u202ee\n\tf"
    assert printable("Größe, 大きさ 👍🏽") == "Größe, 大きさ 👍🏽"


@pytest.mark.parametrize("text", ["", "it's", "$(touch owned)", "--a b", "\x1b[2J'\\'", "a\nb", "-\r$x", "\u202e!"])
def test_a_shell_reads_back_what_was_quoted(text: str) -> None:
    shown = subprocess.run(["bash", "-c", f"printf %s {quote(text)}"], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert shown.stdout.decode() == text
    assert printable(quote(text)) == quote(text)


@given(st.text("'=+-@ \t\n1a"))
def test_a_spreadsheet_gets_no_formula_and_the_text_comes_back(text: str) -> None:
    cell = to_cell(text)
    assert cell.lstrip(" ")[:1] not in {"=", "+", "-", "@", "\t", "\n"}
    assert from_cell(cell) == text


def test_text_that_is_no_formula_stays() -> None:
    for text in ("adamw", "it's", "'quoted'", "a=b", "", "1e-5"):
        assert to_cell(text) == from_cell(text) == text
    assert [to_cell(text) for text in ("=1+1", "-x", "'=y")] == ["'=1+1", "'-x", "''=y"]
