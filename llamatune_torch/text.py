"""Text that leaves the program: safe for a terminal and a spreadsheet, quoted for a shell, without passwords."""

from __future__ import annotations

import re
import shlex
from urllib.parse import unquote_plus

_SQLITE = re.compile(r"sqlite(\+\w+)?:///")  # then comes a file
#: A scheme, if there is one, a user, and the password up to the last "@": it may have others in it.
_PASSWORD = re.compile(r"^((?>(?:[\w+.-]+:/+)?)[^:@?]*):.*@", re.DOTALL)
#: A port that is no number: it may be the rest of a password with an "@" in it.
_NO_PORT = re.compile(r"(:\*\*\*@[^/:?]*):(?!\d+(?:[/?]|$))[^/?]*")
#: Control characters, marks that turn the direction of writing, other ends of lines, and halves of characters.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
#: Text that a spreadsheet takes for a formula; behind apostrophes, so that :func:`from_cell` is exact.
_FORMULA = re.compile(r"'*(?:[\t\n]|\s*[=+\-@])")
#: Names of secrets in the query of a URL.
_SECRET = re.compile(r"passw|pwd|secret|token|credential", re.IGNORECASE)


def redact(url: str) -> str:
    """Replaces the passwords in a URL by ``***``: before the host, and in the query, also if the URL cannot be parsed.

    Where it is not clear how far a password goes, more is replaced.

    Example:
        >>> redact("postgresql://me:p@ss/word@host/db?sslpassword=secret&sslmode=require")
        'postgresql://me:***@host/db?sslpassword=***&sslmode=require'
    """
    if not _SQLITE.match(url):
        url = _NO_PORT.sub(r"\1:***", _PASSWORD.sub(r"\1:***@", url))
    head, mark, query = url.partition("?")
    shown: list[str] = []
    hiding = False
    for part in re.split("([&;])", query):
        name, equals, value = part.partition("=")
        if equals:
            hiding = bool(_SECRET.search(unquote_plus(name)) or _SECRET.search(unquote_plus(value)))
        if not hiding:
            shown.append(part)
        elif equals:
            shown.append(f"{name}=***")
        elif part in "&;":
            shown.append(part)  # what follows without a name may be the rest of the secret
    return head + mark + "".join(shown)


def printable(text: object) -> str:
    r"""Makes text safe for a terminal: what would move its cursor, or turn the writing round, becomes visible.

    Line ends and tabs stay.

    Example:
        >>> printable("\x1b[2Jgone")
        '\\x1b[2Jgone'
    """
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), str(text))


def quote(text: str) -> str:
    r"""Quotes text for a shell; bash, zsh and ksh read back the same, and a terminal that shows it comes to no harm.

    Example:
        >>> quote("it's"), quote("\x1b[2J")
        ('\'it\'"\'"\'s\'', "$'\\x1b[2J'")
    """
    if not _UNPRINTABLE.search(text):
        return shlex.quote(text)
    safe = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNPRINTABLE.sub(lambda found: _escape(found[0]), safe) + "'"


def to_cell(text: str) -> str:
    """Writes text for a cell of a table: an apostrophe comes before what a spreadsheet would run as a formula.

    Numbers are no text: they stay as they are, also negative ones.

    Example:
        >>> to_cell("=1+1"), to_cell("adamw")
        ("'=1+1", 'adamw')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """Reads the text of a cell: the inverse of :func:`to_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``12 min``, ``2 h 05 min``, ``3 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
