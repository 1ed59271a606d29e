"""Text that leaves the program: without passwords."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

_SQLITE = re.compile(r"sqlite(\+\w+)?:///")  # then comes a file
#: A scheme, if there is one, a user, and the password up to the last "@": it may have others in it.
_PASSWORD = re.compile(r"^((?>(?:[\w+.-]+:/+)?)[^:@?]*):.*@", re.DOTALL)
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
        url = _PASSWORD.sub(r"\1:***@", url)
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
