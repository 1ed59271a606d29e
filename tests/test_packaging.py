"""What a user installs is the package and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_holds_the_package_its_types_and_its_licence_only(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building leaves traces, so not in the checkout
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("llamatune_torch", "tests", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".venv*"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"llamatune_torch", "llamatune_torch-0.1.0.dist-info"}
    assert "llamatune_torch/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "llamatune_torch").rglob("*.py")}
    assert modules <= set(names)


def test_every_dependency_says_what_needs_it() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lines = {d: _line_of(d, text) for d in tomllib.loads(text)["project"]["dependencies"]}
    assert not [dependency for dependency, line in lines.items() if "#" not in line]


def _line_of(dependency: str, text: str) -> str:
    return next(line for line in text.splitlines() if f'"{dependency}"' in line)
