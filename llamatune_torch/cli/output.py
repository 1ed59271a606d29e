"""The one way in which commands write text: a study's names and notes are anybody's, and a terminal obeys escapes."""

from __future__ import annotations

import sys

from llamatune_torch.text import printable


def say(text: object) -> None:
    """Prints to standard output."""
    print(printable(text))


def say_beside(text: object) -> None:
    """Prints to standard error, for what is not the result."""
    print(printable(text), file=sys.stderr)
