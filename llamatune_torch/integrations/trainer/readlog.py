"""A dict that remembers which of its values were read, to find parameters that a function ignores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class ReadLog(dict[str, Any]):
    """A dict that remembers the names of the values that were read (``read``).

    ``**params``, ``dict(params)``, ``items()`` and the like read every value; ``in``, ``len`` and printing read none.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.read: set[str] = set()

    def unread(self) -> list[str]:
        """Lists the names of values that were not read, in order."""
        return [name for name in self if name not in self.read]

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.read.add(name)
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        # Overridden so that ** and dict() ask for each value instead of copying the table unseen.
        return super().__iter__()

    def items(self) -> Any:
        self.read.update(self)
        return super().items()

    def values(self) -> Any:
        self.read.update(self)
        return super().values()

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)
