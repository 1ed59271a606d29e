"""The front door: the public names, what they say about themselves, and that types ship with them."""

from __future__ import annotations

import importlib.metadata
import inspect
from pathlib import Path

import pytest

import llamatune_torch

LAZY = {"tune"}  # imported when first asked for, because it needs transformers


def test_all_equals_what_is_visible() -> None:
    visible = {
        name
        for name, member in vars(llamatune_torch).items()
        if not name.startswith("_") and getattr(member, "__module__", "").startswith("llamatune_torch.")
    }
    assert set(llamatune_torch.__all__) == visible | LAZY


def test_all_is_in_order_and_without_duplicates() -> None:
    assert llamatune_torch.__all__ == sorted(set(llamatune_torch.__all__))


def test_dir_lists_the_lazy_names_too() -> None:
    assert set(llamatune_torch.__all__) <= set(dir(llamatune_torch))


@pytest.mark.parametrize("name", sorted(set(llamatune_torch.__all__) - LAZY))
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    member = getattr(llamatune_torch, name)
    doc = vars(member).get("__doc__")
    assert doc, name
    assert not doc.startswith(f"{name}("), f"{name}: the signature that dataclass writes is no docstring"


@pytest.mark.parametrize("name", sorted(set(llamatune_torch.__all__) - LAZY))
def test_every_public_method_is_documented_by_itself_or_its_contract(name: str) -> None:
    member = getattr(llamatune_torch, name)
    for method, function in inspect.getmembers(member, inspect.isfunction):
        if function.__module__.startswith("llamatune_torch") and not method.startswith("_"):
            assert inspect.getdoc(getattr(member, method)), f"{name}.{method}"


def test_tune_is_found_at_the_front_door() -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    assert inspect.getdoc(llamatune_torch.tune)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'llamatune_torch' has no attribute 'Tuner'"):
        _ = llamatune_torch.Tuner


def test_types_ship_with_the_package() -> None:
    assert (Path(llamatune_torch.__file__).parent / "py.typed").is_file()


def test_the_version_is_that_of_the_distribution() -> None:
    assert llamatune_torch.__version__ == importlib.metadata.version("llamatune-torch")
