"""The one way in which commands write text: a study's names and notes are anybody's, and a terminal obeys escapes.

What people read is escaped where the locale has no letters for it. What programs read is UTF-8 in any locale.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from llamatune_torch.errors import OutputError
from llamatune_torch.text import printable


def say(text: object) -> None:
    """Prints to standard output; nowhere, if it is closed.

    Raises:
        OutputError: it cannot be written, for example because the disk is full.
    """
    if sys.stdout is not None:
        with standard_output() as file:
            print(printable(text), file=file)


def say_beside(text: object) -> None:
    """Prints to standard error, for what is not the result; nowhere, if that is closed or full."""
    if sys.stderr is not None:  # else `print` would take standard output
        with suppress(OSError):  # there is no other place to say so
            print(printable(text), file=sys.stderr)


@contextmanager
def standard_output(utf8: bool = False) -> Iterator[TextIO]:
    """Gives standard output to write a result to, and sees that it has arrived.

    Args:
        utf8: whether it is for programs.

    Raises:
        OutputError: it is closed, or cannot be written.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed, so there is nowhere to write the result to")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8" if utf8 else None, errors="backslashreplace")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # a reader who has seen enough
    except OSError as error:
        discard_output()
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def discard_output() -> None:
    """Sends what is still to be written to standard output nowhere: Python would try it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
