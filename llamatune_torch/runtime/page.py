"""The page of a search while it runs: a listener that writes it again after a trial, but not too often.

A page takes about a second, a search hours. So the next page waits until 20 times as long has passed as the last one
took: it never costs more than a twentieth of the time.
"""

from __future__ import annotations

import logging
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llamatune_torch.errors import CallbackWarning, SettingsError
from llamatune_torch.runtime.events import Listener
from llamatune_torch.trial import Trial

logger = logging.getLogger(__name__)

#: The time until the next page, in times that the last one took.
PATIENCE = 20.0
#: Packages that the page needs, all of the extra ``report``.
NEEDED = ("matplotlib", "jinja2")


class LivePage(Listener):
    """Writes the page of a search (``Study.report``) after finished trials, and once more at the end.

    While the search runs, the page loads itself again. What goes wrong is a ``CallbackWarning``.

    Args:
        path: the file, which is replaced by a whole one each time.
        every: seconds from one page to the next, at least.

    Raises:
        ModuleNotFoundError: the extra ``report`` is not installed.
        SettingsError: the path is no text and no ``Path``, its folder does not exist, or ``every`` is negative.
    """

    def __init__(self, path: str | Path, every: float = 10.0) -> None:
        if not isinstance(path, (str, Path)) or not str(path):
            raise SettingsError(f"report must be the path of a file, such as 'report.html', but got {path!r}")
        if not every >= 0:
            raise SettingsError(f"a page is written every so many seconds >= 0, but got {every!r}")
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(
                f"report={str(path)!r} needs {' and '.join(missing)}: pip install 'llamatune-torch[report]'"
            )
        self.path = Path(path).absolute()  # a trial may change the working directory
        if not self.path.parent.is_dir() or self.path.is_dir():
            raise SettingsError(f"report must be a file in a folder that exists, but got {str(path)!r}")
        self.every = every
        self._next = 0.0

    def __repr__(self) -> str:
        return f"LivePage({str(self.path)!r})"

    def on_finish(self, search: Any, trial: Trial) -> None:
        if time.monotonic() >= self._next:
            self._write(search, live=True)

    def end(self, search: Any) -> None:
        """Writes the page for the last time; it goes on loading itself while other processes run trials."""
        try:
            self._write(search, live=bool(search.study.pending) and not search.interrupted)
        except Exception as error:  # the search is done, and its result matters more
            warnings.warn(f"{self!r} raised {error!r}", CallbackWarning, stacklevel=2)
        else:
            logger.info("the page of the study is %s", self.path)

    def _write(self, search: Any, live: bool) -> None:
        start = time.monotonic()
        try:
            study = search.study
            with search.computing(study):
                study.report(self.path, name=search.name, live=live, settings=search.settings)
        finally:  # what fails may take its time too
            now = time.monotonic()
            self._next = now + max(self.every, PATIENCE * (now - start))
