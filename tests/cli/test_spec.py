"""What there is to run is found, or a line says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import COUNTER, SPEC, write_spec

from llamatune_torch import SpecError
from llamatune_torch.cli.spec import load_file, load_spec


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_file_with_one_of_the_usual_functions(tmp_path: Path, spec: str) -> None:
    found = load_spec(spec)
    assert found.name == spec.removesuffix(".py")
    assert list(found.space) == list(found.space)
    assert found.search["max_evals"] == 6
    assert found.function.__name__ == "evaluate"
    assert not found.is_trainer_factory
    assert found.launch == {"target": f"{tmp_path / spec}:evaluate", "folder": str(tmp_path), "trainer": False}


def test_it_is_found_again_from_elsewhere(tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = load_spec(spec).launch
    monkeypatch.chdir("/")
    assert load_spec(**launch).launch == launch


def test_a_function_of_a_file_or_module_by_name(tmp_path: Path) -> None:
    file = write_spec(tmp_path, text="class Runs:\n    def long(params): return 1.0\n")
    name = file.removesuffix(".py")
    for target in (f"{file}:Runs.long", f"{name}:Runs.long"):
        assert load_spec(target).function({}) == 1.0
    package = f"package{next(COUNTER)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "inner.py").write_text("def train(params): return 2.0")
    assert load_spec(f"{package}.inner:train").function({}) == 2.0
    assert load_spec(f"{package}/inner.py:train").function({}) == 2.0


def test_a_trainer_factory_is_known_by_its_name_or_by_the_option(tmp_path: Path) -> None:
    file = write_spec(tmp_path, text="def trainer_factory(params): ...\ndef build(params): ...\n")
    assert load_spec(file).is_trainer_factory
    assert not load_spec(f"{file}:build").is_trainer_factory
    assert load_spec(f"{file}:build", trainer=True).is_trainer_factory


def test_a_space_alone_is_enough_for_an_import(tmp_path: Path) -> None:
    file = write_spec(tmp_path, text="space = {'x': (0.0, 1.0)}")
    assert load_file(file).space == {"x": (0.0, 1.0)}
    assert load_file(file).search == {}


BAD = {
    "neither function": ("space = {}", "", "neither evaluate(params) nor trainer_factory(params)"),
    "both functions": ("def evaluate(p): ...\ndef trainer_factory(p): ...", "", "both evaluate and trainer_factory"),
    "no such function": (SPEC, ":train", "has no 'train'"),
    "no function at all": (SPEC, ":space", "'space' in "),
    "it raises": ("\n\n1 / 0", "", "line 3: ZeroDivisionError: division by zero"),
    "it is no Python": ("def evaluate(params:\n", "", "line 1: SyntaxError: "),
    "it imports what is not there": ("\nimport not_there_at_all", "", "line 2: No module named 'not_there_at_all'"),
}


@pytest.mark.parametrize(("text", "name", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_run_is_named_with_its_line(tmp_path: Path, text: str, name: str, message: str) -> None:
    file = write_spec(tmp_path, text=text)
    with pytest.raises(SpecError) as caught:
        load_spec(f"{file}{name}")
    assert message in str(caught.value)
    assert file.removesuffix(".py") in str(caught.value)


def test_a_search_that_is_no_dict(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"`search` in .* must be a dict .*, but got 40"):
        _ = load_spec(write_spec(tmp_path, text="search = 40\ndef evaluate(params): ...")).search


@pytest.mark.parametrize(("name", "message"), [("json.py", "has the same name"), ("v1.2.py", "the dot in 'v1.2'")])
def test_a_name_that_cannot_be_imported(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text(SPEC)
    with pytest.raises(SpecError, match=message):
        load_spec(name)
