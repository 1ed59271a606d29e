"""The walls of the house: imports go down only, each framework has one door, the engine is pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llamatune_torch

PACKAGE = Path(llamatune_torch.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ENGINE = sorted((PACKAGE / "engine").glob("*.py"))

# From the ground up; a module may import from its own floor and from those below.
FLOORS = {
    "errors": 0,
    "parameter": 0,
    "parameters": 0,
    "space": 0,
    "study": 0,
    "settings": 0,
    "problems": 0,
    "constraints": 0,
    "presets": 0,
    "engine": 1,
    "runtime": 2,
    "integrations": 3,
    "insight": 3,
    "cli": 4,
    "__init__": 5,
    "__main__": 5,
}

# The only places (relative to the package, a file or a folder) where these may be imported.
DOORS = {
    "botorch": "engine",
    "gpytorch": "engine",
    "linear_operator": "engine",
    "transformers": "integrations",
    "accelerate": "integrations",
    "datasets": "integrations",
    "optuna": "integrations",
    "sqlalchemy": "runtime/storage.py",
    "plotly": "insight/plots.py",
    "matplotlib": "insight/plots.py",
    "threadpoolctl": "runtime/threads.py",
    "tqdm": "runtime/display.py",
    "rich": "cli",
}

WORLDLY = {
    "builtins",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "datetime",
    "urllib",
}

# numpy.random's classes carry their own state; its functions share a global one.
OWN_STATE = {"Generator", "SeedSequence", "default_rng", "PCG64"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import: write llamatune_torch..."
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` as written, the empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_there_is_something_to_check() -> None:
    assert {"space.py", "engine/suggest.py", "runtime/optimizer.py"} <= {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    floor = FLOORS[room_of(path)]
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "llamatune_torch" or len(parts) == 1 or parts[1] not in FLOORS:
            continue
        assert FLOORS[parts[1]] <= floor, f"{name_of(path)} imports {module} from a floor above its own"
        same_floor_rooms = FLOORS[parts[1]] == floor == 3 and parts[1] != room_of(path)
        assert not same_floor_rooms, f"{name_of(path)} imports {module}: integrations and insight stand apart"


@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=name_of)
def test_no_module_imports_from_the_front_door(path: Path) -> None:
    """``from llamatune_torch import LlamaTune`` inside the package would go round in a circle."""
    exported = {f"llamatune_torch.{name}" for name in llamatune_torch.__all__}
    for module in imports(path):
        assert module not in exported, f"{name_of(path)} imports {module}: import from the module that defines it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_framework_is_imported_behind_its_own_door_only(path: Path) -> None:
    for module in imports(path):
        door = DOORS.get(module.split(".")[0])
        inside = door is None or name_of(path) == door or name_of(path).startswith(f"{door}/")
        assert inside, f"{name_of(path)} imports {module}, which belongs to {door}"


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_engine_imports_no_clock_file_network_or_log(path: Path) -> None:
    worldly = {module for module in imports(path) if module.split(".")[0] in WORLDLY}
    assert not worldly


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_engine_touches_no_global_generator_and_no_global_device(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for name in names:
        assert name not in ("torch.manual_seed", "torch.seed"), f"{name_of(path)} seeds torch's global generator"
        assert not name.startswith("torch.set_"), f"{name_of(path)} calls {name}, a global setting"
        assert not name.endswith(".cuda"), f"{name_of(path)} calls {name}: the device comes from the input"
        for prefix in ("np.random.", "numpy.random."):
            own = not name.startswith(prefix) or name.split(".")[2] in OWN_STATE
            assert own, f"{name_of(path)} uses {name}, which shares a global generator"
    opened = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not opened & {"open", "print", "input", "exec", "eval"}


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_every_random_tensor_of_the_engine_has_a_generator_of_its_own(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        if dotted(node.func) in {f"torch.{f}" for f in ("rand", "randn", "randint", "randperm", "multinomial")}:
            given = {keyword.arg for keyword in node.keywords}
            assert "generator" in given, f"{name_of(path)}:{node.lineno} draws from the global generator"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_read_in_one_sitting(path: Path) -> None:
    """400 lines is a lot (DESIGN.md); the bound leaves some room for docstrings."""
    assert len(path.read_text().splitlines()) <= 500


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_optimizer_and_reading_a_study_load_no_trainer_no_tables_and_no_plots() -> None:
    loaded = loaded_by(
        "from llamatune_torch import LlamaTune, SearchSpace, Study\n"
        "print(Study(SearchSpace({'x': (0.0, 1.0)})).summary())"
    )
    assert {"llamatune_torch", "torch", "botorch"} <= loaded
    assert not loaded & {"transformers", "accelerate", "datasets", "pandas", "matplotlib", "plotly", "sqlalchemy"}
    assert not loaded & {"ray", "dask", "distributed", "submitit", "cloudpickle", "optuna", "rich"}
