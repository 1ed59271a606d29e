"""The price of looking at a study: CPU seconds of each command from start to end, on a study of 1,000 trials.

    python benchmarks/cli.py                                                  # this checkout
    python benchmarks/cli.py --checkouts before=/tmp/before after=. --save    # two checkouts, in turns

Each command runs in a process of its own, as from a shell; most of its time goes into imports. The study has finished
trials only, but for those that ``tell`` finishes, one a run. Each checkout makes its own study, by writing records: no
surrogate is fitted. ``--json`` prints all seconds instead of the table of medians.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cli.json"
URL = "sqlite:///llamatune.db"

STUDY = f"""
import sys
from llamatune_torch import Categorical, Integer, LlamaTune, Outcome, Real
space = {{"lr": Real(1e-5, 1e-3, prior="log-uniform"), "batch": Integer(8, 32), "method": ["full", "lora"],
         "rank": Integer(1, 64, when={{"method": "lora"}})}}
tuner = LlamaTune(space, max_evals=10**6, n_initial=10**6, storage="{URL}", name="study", progress=False)
finished, running = map(int, sys.argv[1:])
for i in range(finished):
    params = {{"lr": 1e-5 + 9e-4 * i / finished, "batch": 8 + i % 25, "method": "full" if i % 2 else "lora"}}
    rank = {{}} if i % 2 else {{"rank": 1 + i % 64}}
    tuner.add_trial(params | rank, Outcome.failure("out of memory") if i % 10 == 9 else i / finished)
tuner.ask(running)
"""
LOAD = ["-c", f"from llamatune_torch import load_study; load_study({URL!r}).summary()"]
COMMANDS = {
    "status": ["-m", "llamatune_torch", "status", "--once"],
    "best": ["-m", "llamatune_torch", "best"],
    "trials": ["-m", "llamatune_torch", "trials"],
    "tell": ["-m", "llamatune_torch", "tell", "NUMBER", "0.5"],
    "load_study": LOAD,
}


def cpu_seconds(arguments: list[str], folder: Path, checkout: Path) -> float:
    """User and system time of a Python process that has to succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(checkouts: dict[str, Path], trials: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """The CPU seconds of each run, by checkout and command; checkouts take turns, one untimed round comes first."""
    seconds: dict[str, dict[str, list[float]]] = {label: {name: [] for name in COMMANDS} for label in checkouts}
    with tempfile.TemporaryDirectory() as root:
        for label, checkout in checkouts.items():
            (Path(root) / label).mkdir()
            cpu_seconds(["-c", STUDY, str(trials), str(repeats + 1)], Path(root) / label, checkout)
        for i in range(repeats + 1):
            for name, arguments in COMMANDS.items():
                run = [str(trials + i) if argument == "NUMBER" else argument for argument in arguments]
                for label, checkout in checkouts.items():
                    taken = cpu_seconds(run, Path(root) / label, checkout)
                    if i > 0:
                        seconds[label][name].append(round(taken, 3))
    return seconds


def environment() -> dict[str, Any]:
    """Date, machine and versions."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "sqlalchemy", "rich", "torch", "botorch")},
    }


def table(seconds: dict[str, dict[str, list[float]]]) -> str:
    """The medians, a row for each checkout."""
    rows = [["CPU s", *COMMANDS]]
    rows += [[name, *(f"{statistics.median(each):.2f}" for each in runs.values())] for name, runs in seconds.items()]
    return "\n".join("  ".join(cell.rjust(10) for cell in [*row[1:], row[0]]) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    this = f"this={Path(__file__).resolve().parents[1]}"
    parser.add_argument("--checkouts", nargs="+", default=[this], metavar="LABEL=FOLDER", help="(this one)")
    parser.add_argument("--trials", type=int, default=1000, help="finished trials in the study (1000)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each command (7)")
    parser.add_argument("--save", action="store_true", help=f"also write {RESULTS.name} into results/")
    parser.add_argument("--json", action="store_true", help="print all seconds")
    options = parser.parse_args()
    checkouts = {label: Path(folder).resolve() for label, _, folder in (c.partition("=") for c in options.checkouts)}
    seconds = measure(checkouts, options.trials, options.repeats)
    results = {"environment": environment(), "trials": options.trials, "cpu_seconds": seconds}
    if options.save:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results) if options.json else table(seconds))


if __name__ == "__main__":
    main()
