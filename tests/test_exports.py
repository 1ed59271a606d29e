"""The front door: the public names, what they say about themselves, and that types ship with them."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import llamatune_torch

NEEDS_EXTRA = {"tune", "lora_config", "training_arguments"}  # transformers


def test_what_type_checkers_see_is_what_there_is() -> None:
    """Names are imported when they are first used; the imports under TYPE_CHECKING must say the same."""
    tree = ast.parse(Path(llamatune_torch.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        seen |= {alias.name: str(node.module) for alias in node.names}
    assert set(llamatune_torch.__all__) == set(seen)
    assert {name: f"llamatune_torch.{home}" for name, home in llamatune_torch._HOMES.items()} == seen


@pytest.mark.parametrize("name", sorted(set(llamatune_torch.__all__) - NEEDS_EXTRA))
def test_each_name_is_that_of_the_module_that_defines_it(name: str) -> None:
    member = getattr(llamatune_torch, name)
    assert member.__module__ == f"llamatune_torch.{llamatune_torch._HOMES[name]}"
    assert vars(llamatune_torch)[name] is member  # found at once the next time


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, llamatune_torch; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "botorch", "sqlalchemy", "tqdm", "transformers"} & set(loaded)


def test_all_is_in_order_and_without_duplicates() -> None:
    assert llamatune_torch.__all__ == sorted(set(llamatune_torch.__all__))


def test_dir_lists_the_lazy_names_too() -> None:
    assert set(llamatune_torch.__all__) <= set(dir(llamatune_torch))


@pytest.mark.parametrize("name", sorted(set(llamatune_torch.__all__) - NEEDS_EXTRA))
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    member = getattr(llamatune_torch, name)
    doc = member.__doc__ if inspect.isfunction(member) else vars(member).get("__doc__")
    assert doc, name
    assert not doc.startswith(f"{name}("), f"{name}: the signature that dataclass writes is no docstring"


@pytest.mark.parametrize("name", sorted(set(llamatune_torch.__all__) - NEEDS_EXTRA))
def test_every_public_method_is_documented_by_itself_or_its_contract(name: str) -> None:
    member = getattr(llamatune_torch, name)
    for method, function in inspect.getmembers(member, inspect.isfunction):
        if function.__module__.startswith("llamatune_torch") and not method.startswith("_"):
            assert inspect.getdoc(getattr(member, method)), f"{name}.{method}"


def test_what_needs_transformers_is_found_at_the_front_door() -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    assert all(inspect.getdoc(getattr(llamatune_torch, name)) for name in NEEDS_EXTRA)


def test_a_module_is_found_at_the_front_door_at_once() -> None:
    code = "import llamatune_torch as lt; print(lt.spaces.lora().dim)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "7\n"


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'llamatune_torch' has no attribute 'Tuner'"):
        _ = llamatune_torch.Tuner


def test_types_ship_with_the_package() -> None:
    assert (Path(llamatune_torch.__file__).parent / "py.typed").is_file()


def test_the_version_is_that_of_the_distribution() -> None:
    assert llamatune_torch.__version__ == importlib.metadata.version("llamatune-torch")
