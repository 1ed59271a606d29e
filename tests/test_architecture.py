"""The walls of the house: imports go down only, each framework has one door, the engine is pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import llamatune_torch

PACKAGE = Path(llamatune_torch.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ENGINE = sorted((PACKAGE / "engine").glob("*.py"))

# The records, each of which may import those before it.
RECORDS = [
    "errors",
    "files",
    "text",
    "versions",
    "hints",
    "parameter_base",
    "categorical",
    "number",
    "parameters",
    "conditions",
    "rules",
    "space",
    "partial",
    "spaces",
    "constraints",
    "seeds",
    "curve",
    "trial",
    "past",
    "objectives",
    "goal",
    "confirmed",
    "default",
    "tables",
    "study",
    "decisions",
    "settings",
    "problems",
    "families",
    "large",
]

# From the ground up: a room may import from its own and from those below. Rooms on one floor do not know each other.
FLOORS = [
    {"engine", "storage"},
    {"runtime"},
    {"integrations", "insight"},
    {"cli"},
    {"__init__", "__main__"},
]

# Houses within a room that do not know each other either.
APART = [
    "integrations.decoding",
    "integrations.trainer",
    "integrations.optuna",
    "integrations.ray",
    "integrations.trackers",
]

# The only imports that go up: a method of `Study` that is a door to what draws it, and imports it when it is called.
UP = {("study", "insight.report"): "report", ("study", "insight.plots.plot"): "plot"}

# The only places (relative to the package, a file or a folder) where these may be imported.
DOORS = {
    "botorch": "engine",
    "gpytorch": "engine",
    "linear_operator": "engine",
    "transformers": "integrations/trainer",
    "accelerate": "integrations/trainer",
    "peft": "integrations/trainer",
    "datasets": "integrations/trainer",
    "wandb": "integrations/trainer/trackers.py",
    "mlflow": "integrations/trainer/trackers.py",
    "tensorboard": "integrations/trainer/trackers.py",
    "trackio": "integrations/trainer/trackers.py",
    "optuna": "integrations/optuna",
    "sqlalchemy": "storage/database.py",
    "pandas": "tables.py",
    "plotly": "insight/plots",
    "matplotlib": "insight/plots",
    "jinja2": "insight/report.py",
    "markupsafe": "insight/report.py",
    "cloudpickle": "runtime/process.py",
    "threadpoolctl": "runtime/threads.py",
    "torch.distributed": "runtime/torchrun.py",
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


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(parsed(path)):
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


def module_of(path: Path) -> str:
    """The name of a module within the package: ``engine.suggest``, ``__init__`` for the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def own_imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, by their names within it; names of things are left out."""
    names = {module_of(path) for path in MODULES}
    return {module.removeprefix("llamatune_torch.") for module in imports(path)} & names


def height(module: str) -> int:
    """How far up a module stands."""
    room = module.split(".")[0]
    if room in RECORDS:
        return RECORDS.index(room)
    (floor,) = [i for i, rooms in enumerate(FLOORS) if room in rooms]
    return len(RECORDS) + floor


def misplaced(module: str, imported: str) -> str | None:
    """Why one module may not import another, ``None`` if it may."""
    if (module, imported) in UP:
        return None
    if height(imported) > height(module):
        return f"{module} imports {imported} from a floor above its own"
    if height(imported) == height(module) and imported.split(".")[0] != module.split(".")[0]:
        return f"{module} imports {imported}: rooms on one floor stand apart"
    houses = [[house for house in APART if f"{m}.".startswith(f"{house}.")] for m in (module, imported)]
    if all(houses) and houses[0] != houses[1]:
        return f"{module} imports {imported}: these integrations stand apart"
    return None


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle of modules that import each other, empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_is_something_to_check() -> None:
    assert {"space.py", "engine/suggest.py", "runtime/optimizer.py"} <= {name_of(path) for path in MODULES}
    assert "engine.data" in own_imports(PACKAGE / "engine" / "suggest.py")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    found = [misplaced(module_of(path), module) for module in own_imports(path)]
    assert not any(found), found


def downward_imports(path: Path) -> set[str]:
    """Those of a file that are made when it is loaded, or below the floor of its own."""
    return {module for module in own_imports(path) if (module_of(path), module) not in UP} - {module_of(path)}


def test_the_only_imports_that_go_up_are_made_inside_the_methods_that_need_them() -> None:
    for (module, imported), method in UP.items():
        (path,) = [path for path in MODULES if module_of(path) == module]
        methods = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]
        inside = [
            node.name
            for node in methods
            for inner in ast.walk(node)
            if isinstance(inner, ast.ImportFrom) and inner.module == f"llamatune_torch.{imported}"
        ]
        assert inside == [method]
        everywhere = [name for name in imports(path) if name == f"llamatune_torch.{imported}"]
        assert len(everywhere) == 1


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module_of(path): downward_imports(path) for path in MODULES if path.name != "__init__.py"}
    assert not circle(graph)


def test_a_planted_circle_is_found() -> None:
    assert not circle({"a": {"b"}, "b": {"c"}, "c": set()})
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    real = {module_of(path): downward_imports(path) for path in MODULES if path.name != "__init__.py"}
    assert {"trial", "study"} <= set(circle({**real, "trial": real["trial"] | {"study"}}))


def test_a_planted_import_upward_or_sideways_is_found() -> None:
    assert misplaced("engine.suggest", "engine.data") is None
    assert misplaced("runtime.search", "engine.suggest") is None
    assert misplaced("study", "trial") is None
    for module, imported in (
        ("trial", "study"),
        ("engine.data", "runtime.search"),
        ("storage.durable", "runtime.display"),
        ("storage.durable", "engine.suggest"),
        ("engine.suggest", "storage.store"),
        ("integrations.trainer.tune", "integrations.optuna.studies"),
        ("integrations.trainer.tune", "cli.main"),
        ("errors", "__init__"),
    ):
        assert misplaced(module, imported), (module, imported)


@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=name_of)
def test_no_module_imports_from_the_front_door(path: Path) -> None:
    """``from llamatune_torch import LlamaTune`` inside the package would go round in a circle."""
    exported = {f"llamatune_torch.{name}" for name in llamatune_torch.__all__}
    for module in imports(path):
        assert module not in exported, f"{name_of(path)} imports {module}: import from the module that defines it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_framework_is_imported_behind_its_own_door_only(path: Path) -> None:
    for module in imports(path):
        door = next((DOORS[name] for name in DOORS if f"{module}.".startswith(f"{name}.")), None)
        inside = door is None or name_of(path) == door or name_of(path).startswith(f"{door}/")
        assert inside, f"{name_of(path)} imports {module}, which belongs to {door}"


@pytest.mark.parametrize(
    "path", [p for p in MODULES if module_of(p).split(".")[0] in (*RECORDS, "storage")], ids=name_of
)
def test_records_and_storage_do_without_torch(path: Path) -> None:
    """So that a study is looked at without it; the engine makes the tensors."""
    if name_of(path) == "settings.py":  # checks a device that is neither "auto" nor "cpu", inside a function
        tree = parsed(path)
        assert not any(isinstance(node, ast.Import) and node.names[0].name == "torch" for node in tree.body)
    else:
        assert not any(f"{module}.".startswith("torch.") for module in imports(path))


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_engine_imports_no_clock_file_network_or_log(path: Path) -> None:
    worldly = {module for module in imports(path) if module.split(".")[0] in WORLDLY}
    assert not worldly


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_engine_touches_no_global_generator_and_no_global_device(path: Path) -> None:
    tree = parsed(path)
    names = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for name in names:
        assert name not in ("torch.manual_seed", "torch.seed"), f"{name_of(path)} seeds torch's global generator"
        assert not name.startswith("torch.set_"), f"{name_of(path)} calls {name}, a global setting"
        # `torch.cuda.is_available` is a question, which `tests/engine/test_devices.py` allows one module to ask.
        moves = name.endswith(".cuda") and name != "torch.cuda"
        assert not moves, f"{name_of(path)} calls {name}: the device comes from the input"
        for prefix in ("np.random.", "numpy.random."):
            own = not name.startswith(prefix) or name.split(".")[2] in OWN_STATE
            assert own, f"{name_of(path)} uses {name}, which shares a global generator"
    opened = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not opened & {"open", "print", "input", "exec", "eval"}


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_every_random_tensor_of_the_engine_has_a_generator_of_its_own(path: Path) -> None:
    for node in ast.walk(parsed(path)):
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


def test_who_opens_no_search_needs_no_engine() -> None:
    """A process that runs trials imports the program that opens the search, and starts without torch."""
    loaded = loaded_by(
        "from llamatune_torch import LlamaTune, SearchSpace, Study\n"
        "print(Study(SearchSpace({'x': (0.0, 1.0)})).summary(), LlamaTune)"
    )
    assert {"llamatune_torch", "numpy"} <= loaded
    assert not loaded & {"torch", "gpytorch", "botorch", "linear_operator", "scipy"}


def test_opening_a_search_loads_no_trainer_no_tables_and_no_plots() -> None:
    loaded = loaded_by("from llamatune_torch import LlamaTune\nLlamaTune({'x': (0.0, 1.0)}, lambda params: 0.5)")
    assert {"llamatune_torch", "torch", "botorch"} <= loaded
    assert not loaded & {"transformers", "accelerate", "datasets", "pandas", "matplotlib", "plotly", "sqlalchemy"}
    assert not loaded & {"ray", "dask", "distributed", "submitit", "cloudpickle", "optuna", "rich"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_docstrings_begin_with_a_verb_or_a_noun(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and (docstring := ast.get_docstring(node)):
            assert docstring.split()[0] not in {"What", "Whether", "Where", "Which", "How"}, docstring
