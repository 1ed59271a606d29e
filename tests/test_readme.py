"""Whatever the README shows is true: its Python runs, its commands exist, its files are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]


@pytest.mark.parametrize("code", PYTHON, ids=[code.split("\n", 1)[0][:50] for code in PYTHON])
def test_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    if "trainer_factory" in code:
        namespace["my_trainer"] = _my_trainer(tmp_path)
    exec(compile(code, "README.md", "exec"), namespace)
    assert len(namespace) > 2


def test_make_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = {
        target for language, code in BLOCKS if language == "sh" for target in re.findall(r"^make (\w+)", code, re.M)
    }
    assert {"demo", "test"} <= shown <= targets


def test_every_file_named_in_the_readme_exists() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    in_commands = [path for _, code in BLOCKS for path in re.findall(r"python (\S+\.py)", code)]
    assert linked
    missing = [path for path in linked + in_commands if not (ROOT / path).exists()]
    assert not missing


def test_map_of_the_code_names_every_module() -> None:
    modules = {
        str(path.relative_to(ROOT / "llamatune_torch"))
        for path in (ROOT / "llamatune_torch").rglob("*.py")
        if path.name != "__init__.py"
    }
    missing = [module for module in sorted(modules) if Path(module).name not in README]
    assert not missing


def _my_trainer(folder: Path) -> object:
    from tiny import tiny_trainer

    return lambda params: tiny_trainer({"learning_rate": params["learning_rate"]}, folder)
