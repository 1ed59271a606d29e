"""The user's own file or module, imported so that a trial's process finds it too."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from llamatune_torch.errors import SpecError
from llamatune_torch.files import working_directory

#: What the function of a file is called, if the command line does not name it.
FUNCTIONS = ("evaluate", "trainer_factory")


@dataclass(frozen=True)
class SpecFile:
    """A file or module with a ``space``, and with the ``search`` if it likes; ``path`` is as imported or opened."""

    path: str
    module: ModuleType

    @property
    def name(self) -> str:
        """The default name of its study."""
        return self.module.__name__

    @property
    def space(self) -> Any:
        """Its search space, ``None`` if it has none."""
        return getattr(self.module, "space", None)

    @property
    def search(self) -> dict[str, Any]:
        """Arguments of ``LlamaTune`` or ``tune``.

        Raises:
            SpecError: it is no dict.
        """
        search = getattr(self.module, "search", {})
        if not isinstance(search, Mapping):
            raise SpecError(f"`search` in {self.path} must be a dict such as {{'max_evals': 40}}, but got {search!r}")
        return dict(search)


@dataclass(frozen=True)
class Spec(SpecFile):
    """That, and its function to tune; ``launch`` are the arguments of :func:`load_spec` that find it again."""

    function: Callable[[dict[str, Any]], Any]
    is_trainer_factory: bool
    launch: Mapping[str, Any]


def load_spec(target: str, folder: str | None = None, trainer: bool | None = None) -> Spec:
    """Imports ``spec.py``, ``spec.py:function`` or ``module:function``.

    Args:
        target: as on the command line.
        folder: where to look for it; by default the working directory.
        trainer: whether the function is a ``trainer_factory``; by default, if it is called so.

    Raises:
        SpecError: there is no such file, module or function, or importing it raises.
    """
    folder = folder or working_directory("what is to be run is looked for in it")
    path, _, name = target.partition(":")
    file = load_file(path, folder)
    name = name or _usual_name(file)
    try:
        function = attrgetter(name)(file.module)
    except AttributeError:
        raise SpecError(f"{file.path} has no {name!r}") from None
    if not callable(function):
        raise SpecError(f"{name!r} in {file.path} must be a function, but got {function!r}")
    trainer = name.split(".")[-1] == "trainer_factory" if trainer is None else trainer
    launch = {"target": f"{file.path}:{name}", "folder": folder, "trainer": trainer}
    return Spec(file.path, file.module, function, trainer, launch)


def load_file(path: str, folder: str | None = None) -> SpecFile:
    """Imports ``spec.py`` or a module.

    Raises:
        SpecError: there is no such file or module, or importing it raises.
    """
    folder = folder or working_directory("what is to be run is looked for in it")
    if not path.endswith(".py"):
        return SpecFile(path, _imported(path, folder))
    file = Path(folder, path).resolve()
    if not file.is_file():
        raise SpecError(f"there is no file {file}")
    if "." in file.stem:
        raise SpecError(f"{file.name} cannot be imported as a module, because of the dot in {file.stem!r}: rename it")
    module = _imported(file.stem, str(file.parent))
    if Path(str(module.__file__)).resolve() != file:
        raise SpecError(f"{file} cannot be imported, because {module.__file__} has the same name: rename it")
    return SpecFile(str(file), module)


def _usual_name(file: SpecFile) -> str:
    found = [name for name in FUNCTIONS if hasattr(file.module, name)]
    if len(found) == 1:
        return found[0]
    what = "both evaluate and trainer_factory" if found else "neither evaluate(params) nor trainer_factory(params)"
    raise SpecError(f"{file.path} has {what}: name the function to run, as in {file.path}:function")


def _imported(name: str, folder: str) -> ModuleType:
    if folder not in sys.path:
        sys.path.insert(0, folder)  # trials' processes look there too
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):  # it or a package that it is in
            raise SpecError(f"there is no module {name!r} in {folder} or on Python's path") from None
        raise SpecError(f"{_place(error)}: {error}") from error
    except Exception as error:  # whatever a user's file may raise
        raise SpecError(f"{_place(error)}: {type(error).__name__}: {error}") from error


def _place(error: BaseException) -> str:
    """The line of the user's code that went wrong: the innermost one that is not Python's own machinery."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f"{frames[-1].filename}, line {frames[-1].lineno}"
