"""Whatever the README and the documents show is true: Python runs, commands exist, files are there."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamatune_torch import load_study
from llamatune_torch.cli.main import main as llamatune
from llamatune_torch.cli.main import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    (page, language, code)
    for page in PAGES
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
]
# Some stand on two pages.
PYTHON = list(dict.fromkeys(code for _, language, code in BLOCKS if language == "python"))
# Those that start processes, which import them: they must be files.
PROGRAMS = [code for code in PYTHON if "__main__" in code]
SNIPPETS = [code for code in PYTHON if code not in PROGRAMS]


@pytest.mark.parametrize("code", SNIPPETS, ids=[code.split("\n", 1)[0][:50] for code in SNIPPETS])
def test_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    if "trainer_factory" in code:
        namespace["my_trainer"] = _my_trainer(tmp_path)
    exec(compile(code, "README.md", "exec"), namespace)
    assert len(namespace) > 2


MY_PROJECT = """
from pathlib import Path
from tiny import tiny_trainer

def my_trainer(params):
    return tiny_trainer({"learning_rate": params["learning_rate"]}, Path("."))
"""


def with_its_marks(code: str) -> Any:
    """The one for Slurm is slow; `examples/parallel.py` runs there each time, by the same few lines."""
    marks = [pytest.mark.slow] if "submitit" in code else []
    return pytest.param(code, marks=marks, id=code.split("\n", 1)[0][:50])


@pytest.mark.parametrize("code", [with_its_marks(code) for code in PROGRAMS])
def test_program_runs(code: str, tmp_path: Path) -> None:
    if "submitit" in code and importlib.util.find_spec("submitit") is None:
        pytest.skip("the extra `slurm` is not installed")
    (tmp_path / "my_project.py").write_text(MY_PROJECT)
    code, shortened = re.subn(r"max_evals=\d+", "max_evals=1", code)  # each trial loads its libraries anew
    assert shortened == 1
    (tmp_path / "program.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "tests" / "integrations" / "trainer")])
    # Two GPUs that are not there: each process is given one of them all the same.
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0,1"}
    command = [sys.executable, "program.py"]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert run.returncode == 0, run.stderr
    assert "1 trials (1 complete)" in run.stdout, run.stdout + run.stderr


def commands(*pages: Path) -> list[list[str]]:
    """The arguments of each ``llamatune ...`` that these pages show, in order."""
    shown = [
        line for page, language, code in BLOCKS if language == "sh" and page in pages for line in code.splitlines()
    ]
    return [shlex.split(line, comments=True)[1:] for line in shown if line.startswith("llamatune ")]


def test_commands_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "spec.py", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    run = commands(ROOT / "docs" / "guides" / "durable.md")
    assert {command[0] for command in run} == {"run", "status", "best", "trials", "report", "export", "import"}
    assert [llamatune(command) for command in run] == [0] * len(run)
    assert len(load_study(f"sqlite:///{tmp_path}/llamatune.db", "copy").trials) == 16


def test_commands_that_need_a_cluster_are_well_formed() -> None:
    needing = [command for command in commands(*PAGES) if any("postgresql://" in word for word in command)]
    assert [command[0] for command in needing] == ["worker"]
    for command in commands(*PAGES):
        parser().parse_args(command)


def test_make_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = {
        target for _, language, code in BLOCKS if language == "sh" for target in re.findall(r"^make (\w+)", code, re.M)
    }
    assert {"demo", "test"} <= shown <= targets


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_every_file_named_exists(page: Path) -> None:
    text = page.read_text()
    linked = [page.parent / path for path in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
    named = re.findall(r"`((?:llamatune_torch|benchmarks|tests|examples)/[\w/.]+\.\w+)`", text)
    in_commands = [path for of, _, code in BLOCKS if of == page for path in re.findall(r"python (\S+\.py)", code)]
    missing = [path for path in (*linked, *(ROOT / path for path in [*named, *in_commands])) if not path.exists()]
    assert not missing


def test_map_of_the_code_names_every_module_by_its_whole_path_and_no_other() -> None:
    named = re.findall(r"`((?:llamatune_torch|examples)/[\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    modules = [path for path in (ROOT / "llamatune_torch").rglob("*.py") if path.name != "__init__.py"]
    assert set(named) >= {path.relative_to(ROOT).as_posix() for path in modules}
    assert len(set(named)) == len(named)
    assert [path for path in named if not (ROOT / path).is_file()] == []


def _my_trainer(folder: Path) -> object:
    from tiny import tiny_trainer

    return lambda params: tiny_trainer({"learning_rate": params["learning_rate"]}, folder)
