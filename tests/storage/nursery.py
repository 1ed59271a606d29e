"""Real worker processes that start in milliseconds.

``python nursery.py`` imports the package once, which takes seconds, and then forks: a JSON order on each line of its
input becomes a tree of processes, a group leader and a worker for each job, whose process group it prints. Each job
leaves ``{"done": ...}`` or ``{"error": ...}`` in its file ``out``.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries, at their import
    import psycopg  # noqa: F401  (so that no worker has to)

    import llamatune_torch.storage.durable  # noqa: F401  (the same)
    from llamatune_torch import BudgetSpentError, Integer, LlamaTune, Real, Trial, report
    from llamatune_torch.runtime.evaluation import current_trial, should_pause

SPACE = {"x": Real(-1, 1), "n": Integer(1, 8)}


def hill(params: dict[str, Any]) -> float:
    return float(-((params["x"] - 0.3) ** 2) - 0.01 * params["n"])


def tuner(url: str, name: str, function: Any = None, **changes: Any) -> LlamaTune:
    """All trials are from the Sobol sequence, which costs milliseconds."""
    defaults = {"n_initial": 10**6, "progress": False, "max_evals": 10**6}
    return LlamaTune(SPACE, function, storage=url, name=name, **{**defaults, **changes})


def optimize(url: str, name: str, max_evals: int, seconds: float, log: str, **changes: Any) -> Any:
    """Runs the loop; a line ``number value`` in ``log`` for each result once ``tell`` has returned."""

    def slow_hill(params: dict[str, Any]) -> float:
        time.sleep(seconds * (0.5 + (params["x"] + 1) / 2))
        return hill(params)

    def note(_: LlamaTune, trial: Trial) -> None:
        append(log, f"{trial.number} {trial.value!r}")

    return tuner(url, name, slow_hill, max_evals=max_evals, callbacks=[note], **changes).optimize()[1]


def optimize_in_stages(url: str, name: str, max_evals: int, seconds: float, folder: str, **changes: Any) -> Any:
    """Runs that pause, with a checkpoint at each step and a lock while they run; ``log`` says what is wrong."""
    place = Path(folder)

    def train(params: dict[str, Any]) -> float:
        trial = current_trial()
        file = place / f"{trial.first}.json"
        with (place / f"{trial.first}.lock").open("w") as lock:  # a process that is killed releases it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                append(str(place / "log"), f"trial {trial.number} runs in two places")
            done = json.loads(file.read_text()) if file.exists() else 0
            if done < round(10 * trial.reached):
                append(str(place / "log"), f"trial {trial.number} has lost its checkpoint")
            if trial.pauses:
                append(str(place / "resumed"), f"{trial.number} {done}")
            for step in range(max(done, 1), 11):  # it may have been killed between its checkpoint and its pause
                if step > done:
                    time.sleep(seconds)
                    arriving = file.with_suffix(f".{os.getpid()}")
                    arriving.write_text(json.dumps(step))
                    arriving.rename(file)
                report(step, step * hill(params), step / 10)
                if should_pause():
                    break
        return 10 * hill(params)

    def note(_: LlamaTune, trial: Trial) -> None:
        append(str(place / "finished"), f"{trial.first} {trial.value!r}")

    own = tuner(url, name, train, max_evals=max_evals, callbacks=[note], strategy="screen", **changes)
    return own.optimize()[1]


def ask_and_tell(url: str, name: str, count: int) -> Any:
    """Trials by hand; the seconds that each ask and tell took."""
    mine, asks, tells, numbers = tuner(url, name), [], [], []
    for _ in range(count):
        start = time.perf_counter()
        trial = mine.ask()
        middle = time.perf_counter()
        mine.tell(trial, hill(trial.params))
        asks.append(middle - start)
        tells.append(time.perf_counter() - middle)
        numbers.append(trial.number)
    return {"asks": asks, "tells": tells, "numbers": numbers}


def ask_at(url: str, name: str, when: float) -> Any:
    """One ask at a given moment."""
    mine = tuner(url, name)
    while time.time() < when:
        pass
    trial = mine.ask()
    return {"number": trial.number, "params": trial.params}


def one_slow_trial(url: str, name: str, started: str, seconds: float, grace: float) -> Any:
    """A trial that takes its time, with a report in its middle."""
    mine = tuner(url, name, grace=grace)
    trial = mine.ask()
    append(started, str(trial.number))
    time.sleep(seconds / 2)
    mine.report(trial, 1, 0.125)
    time.sleep(seconds / 2)
    told = mine.tell(trial, 0.75)
    return {"number": trial.number, "state": told.state}


def until_spent(url: str, name: str, max_evals: int) -> Any:
    """As many trials as there are, by hand."""
    mine, numbers = tuner(url, name, max_evals=max_evals), []
    try:
        while True:
            trial = mine.ask()
            numbers.append(trial.number)
            mine.tell(trial, hill(trial.params))
    except BudgetSpentError:
        return {"numbers": numbers}


def forked(url: str, name: str) -> Any:
    """A child asks and reports through what its parent has opened."""
    mine = tuner(url, name)
    trial = mine.ask()
    child = os.fork()
    if child == 0:
        try:
            mine.report(trial, 1, 0.25)
            mine.ask()
            del mine  # which closes nothing of the parent's
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "curve": mine.tell(trial, 0.5).curve.values, "next": mine.ask().number}


JOBS = {
    job.__name__: job
    for job in (forked, optimize, optimize_in_stages, ask_and_tell, ask_at, one_slow_trial, until_spent)
}


def append(path: str, line: str) -> None:
    """One write, so that lines of several processes do not mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def run(job: dict[str, Any]) -> int:
    out = Path(job.pop("out"))
    try:
        result = {"done": JOBS[job.pop("job")](**job)}
    except BaseException:
        result = {"error": traceback.format_exc()}
    arriving = out.with_suffix(f".{os.getpid()}")
    arriving.write_text(json.dumps(result))
    arriving.rename(out)
    return "error" in result


def run_tree(jobs: list[dict[str, Any]]) -> int:
    children = []
    for job in jobs:
        child = os.fork()
        if child == 0:
            os._exit(run(job))
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the trees
    LlamaTune(SPACE, n_initial=1).ask(3)  # what is loaded at the first use
    print("ready", flush=True)
    for line in sys.stdin:
        leader = os.fork()
        if leader == 0:
            os.setsid()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(run_tree(json.loads(line)))
        print(leader, flush=True)


if __name__ == "__main__":
    main()
