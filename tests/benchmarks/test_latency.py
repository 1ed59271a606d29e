"""A short run of the latency benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "latency.py"


def test_script_times_an_ask_and_writes_its_record(tmp_path: Path) -> None:
    output = tmp_path / "latency.json"
    command = [sys.executable, str(SCRIPT), "--sizes", "20x4", "30x3", "--repeats", "2", "--methods", "llamatune"]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [(row["n"], row["d"], len(row["seconds"])) for row in rows] == [(20, 4, 2), (30, 3, 2)]
    assert all(0 < seconds < 60 for row in rows for seconds in row["seconds"])
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["20x4", "30x3"]
