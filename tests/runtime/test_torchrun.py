"""Two ranks under torchrun, on the CPU over gloo: the same parameters, the same end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available() or os.name != "posix", reason="torch without distributed")
TESTS = Path(__file__).parents[1]

HEAD = """
import json, os, sys, time
from pathlib import Path
from llamatune_torch import Listener, LlamaTune, OutcomeError, Real, SettingsError, report, tune
RANK = int(os.environ["RANK"])
seen = []

def leave(tuner_or_study, **more):
    study = getattr(tuner_or_study, "study", tuner_or_study)
    trials = [[t.params, t.state.value, t.value, t.reason, t.error, len(t.curve)] for t in study.trials]
    Path(f"rank-{RANK}").write_text(json.dumps({"trials": trials, "seen": seen, **more}))
"""


# Programs that run one after the other on the same two ranks: to start those takes longer than all that they do.
PROGRAMS: dict[str, str] = {}
OF_TRAINER = "from tiny import SPACE, At, tiny_trainer\n"

ONE_AFTER_THE_OTHER = """
import os, sys
from pathlib import Path
for name in sys.argv[1:]:
    Path(name).mkdir(exist_ok=True)
    os.chdir(name)
    exec(compile(Path("../" + name + ".py").read_text(), name, "exec"), {"__name__": "__main__"})
    os.chdir("..")
"""


def start(folder: Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(program)
    path = os.pathsep.join(map(str, [TESTS.parent, TESTS, TESTS / "integrations" / "trainer"]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "program.py",
        *arguments,
    ]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ends(process: subprocess.Popen[str]) -> None:
    try:
        out, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, out


def left_by_ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all ``PROGRAMS`` have run, each in one of its name."""
    folder = tmp_path_factory.mktemp("ranks")
    with_trainers = importlib.util.find_spec("transformers") is not None
    names = [name for name, program in PROGRAMS.items() if with_trainers or not program.startswith(OF_TRAINER)]
    for name in names:
        (folder / f"{name}.py").write_text(HEAD + PROGRAMS[name])
    ends(start(folder, ONE_AFTER_THE_OTHER, *names))
    return folder


def of_both_ranks(places: Path, name: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder of one of ``PROGRAMS``, and what each rank has left there."""
    if not (places / name).exists():
        pytest.skip("the extra `hf` is not installed")
    return (places / name, *left_by_ranks(places / name))


PROGRAMS["trials"] = """
def evaluate(params):
    seen.append(params)
    if len(seen) == 2 and RANK == 1:
        raise RuntimeError("CUDA out of memory")
    report(1, 0.5)
    return params["x"] + RANK  # the ranks differ: rank 0 counts

heard = []
class Hears(Listener):
    def on_start(self, search, trial):
        heard.append(["start", trial.number])
    def on_report(self, search, trial):
        heard.append(["report", trial.number])
    def on_finish(self, search, trial):
        heard.append(["finish", trial.number])

stop = lambda tuner, trial: tuner.stop() if trial.number == 5 else None
# Another seed on each rank, which must not matter.
tuner = LlamaTune({"x": (0.0, 1.0)}, evaluate, 50, n_initial=3, callbacks=[stop, Hears()], seed=RANK)
best_params, best = tuner.optimize()
try:
    tuner.optimize(n_workers=2)
except SettingsError as error:
    refused = str(error)
leave(tuner, best=best, refused=refused, heard=heard)
"""


def test_ranks_get_the_same_trials_a_failure_of_one_counts_and_they_stop_together(places: Path) -> None:
    _, one, other = of_both_ranks(places, "trials")
    heard, nothing = one.pop("heard"), other.pop("heard")
    assert heard[:3] == [["start", 0], ["report", 0], ["finish", 0]]
    assert [event for event in heard if event[0] == "finish"] == [["finish", number] for number in range(6)]
    assert nothing == []
    assert one == other
    assert len(one["seen"]) == 6
    assert [params for params, *_ in one["trials"]] == one["seen"]
    assert [state for _, state, *_ in one["trials"]] == ["complete", "failed"] + ["complete"] * 4
    assert one["trials"][1][3] == "out of memory"
    assert one["trials"][1][4].startswith("rank 1: Traceback")
    assert one["best"] == max(params["x"] for i, params in enumerate(one["seen"]) if i != 1)
    assert "under torchrun all ranks run each trial together" in one["refused"]


PROGRAMS["trainer"] = (
    OF_TRAINER
    + """
def factory(params):
    seen.append(dict(params))
    trainer = tiny_trainer(params, Path("."), save_strategy="epoch", load_best_model_at_end=True)
    assert trainer.args.world_size == 2
    return trainer
study = tune(factory, SPACE, metric="accuracy", max_evals=3, n_initial=9, keep="best", output_dir="out")
leave(study, metric=[study.metric, study.direction])
"""
)


def test_a_trainer_is_tuned_by_two_ranks_and_its_best_model_kept(places: Path) -> None:
    folder, one, other = of_both_ranks(places, "trainer")
    assert one == other
    assert one["metric"] == ["eval_accuracy", "maximize"]
    assert [state for _, state, *_ in one["trials"]] == ["complete"] * 3
    assert [points for *_, points in one["trials"]] == [2] * 3
    best = max(one["trials"], key=lambda trial: trial[2])
    kept = json.loads((folder / "out" / "best" / "trial.json").read_text())
    assert (kept["params"], kept["value"]) == (best[0], best[2])
    assert [path.name for path in (folder / "out").iterdir()] == ["best"]


PROGRAMS["pauses"] = """
from llamatune_torch import current_trial, should_pause
reached = {}
def train(params):
    first = current_trial().first
    for epoch in range(reached.get(first, 0) + 1, 11):
        report(epoch, params["x"] + epoch / 10 + RANK, epoch / 10)
        reached[first] = epoch
        seen.append([first, epoch])
        if should_pause():
            break
    return params["x"] + 1 + RANK
tuner = LlamaTune({"x": (0.0, 1.0)}, train, 6, n_initial=50, strategy="screen", seed=3)
tuner.optimize()
leave(tuner)
"""


def test_ranks_pause_and_go_on_together_as_one_process_does(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one, other = of_both_ranks(places, "pauses")
    assert one == other
    states = [state for _, state, *_ in one["trials"]]
    assert states.count("complete") >= 2
    assert states.count("stopped") == 18
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    exec(HEAD + PROGRAMS["pauses"], {"__name__": "__main__"})
    assert json.loads((tmp_path / "rank-0").read_text()) == one


PROGRAMS["paused trainer"] = (
    OF_TRAINER
    + """
from transformers import TrainerCallback
class Steps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        seen.append(state.global_step)
def factory(params):
    trainer = tiny_trainer(params, Path("."), max_steps=10, eval_strategy="no")
    trainer.add_callback(Steps())
    return trainer
study = tune(factory, SPACE, metric="accuracy", max_evals=3, n_initial=9, output_dir="out", seed=1,
             strategy="successive_halving", rungs=[0.5, 1.0])
leave(study, outcomes=[sorted(t.outcomes) for t in study.trials], pauses=[t.pauses for t in study.trials])
"""
)


def test_a_trainer_of_two_ranks_pauses_and_goes_on_from_its_checkpoint(places: Path) -> None:
    folder, one, other = of_both_ranks(places, "paused trainer")
    assert one == other
    states = [state for _, state, *_ in one["trials"]]
    assert (states.count("complete"), states.count("stopped")) == (2, 2)
    assert one["pauses"] == [1] * 4
    assert sorted(one["seen"]) == sorted([*range(1, 6)] * 4 + [*range(6, 11)] * 2)  # none was trained twice
    assert all("memory_gb" in outcomes for outcomes in one["outcomes"])
    assert not list((folder / "out").rglob("checkpoint-*"))


PROGRAMS["stored"] = (
    OF_TRAINER
    + """
from llamatune_torch import StudyMismatchError
def factory(params):
    seen.append(dict(params))
    return tiny_trainer(params, Path("."))
stored = {"storage": "sqlite:///study.db", "n_initial": 9, "output_dir": "out"}
for max_evals in (2, 3):
    study = tune(factory, SPACE, max_evals=max_evals, **stored)
try:
    tune(factory, SPACE, metric="accuracy", max_evals=4, **stored)
except StudyMismatchError as error:
    refused = str(error)
tuner = LlamaTune(SPACE, lambda params: 1.0, 5, metric=None, name="other", storage="sqlite:///study.db")
try:
    tuner.ask()
except SettingsError as error:
    asked = str(error)
else:
    asked = "asked"
opened = "llamatune_torch.storage.durable" in sys.modules
leave(study, opened=opened, refused=refused, asked=asked, workers=[t.worker for t in study.trials])
"""
)


def test_a_stored_study_is_opened_by_rank_0_alone_and_known_to_all(places: Path) -> None:
    folder, one, other = of_both_ranks(places, "stored")
    assert (one["opened"], other["opened"]) == (True, False)
    assert {key: one[key] for key in ("trials", "seen", "workers")} == {
        key: other[key] for key in ("trials", "seen", "workers")
    }
    assert [state for _, state, *_ in one["trials"]] == ["complete"] * 3
    assert len(one["seen"]) == 4  # with the one that was refused before its training
    assert "metric: stored 'eval_loss', given 'eval_accuracy'" in one["refused"]
    assert other["refused"] == "the study of rank 0 has another metric or direction"
    assert one["asked"] == "asked"
    assert "under torchrun only rank 0 asks" in other["asked"]
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        rows = connection.execute("SELECT id FROM llamatune_workers").fetchall()
    # One for each time that something was asked for.
    assert {worker for (worker,) in rows} > set(one["workers"])
    assert len(rows) == 4


RESUMED = (
    f"{HEAD}{OF_TRAINER}"
    + """
place, kills = sys.argv[1:]

def kill(control):
    time.sleep(RANK * 0.5)
    os._exit(3)

class Steps(At):
    def on_step_end(self, args, state, control, **kwargs):
        seen.append(state.global_step)

def factory(params):
    callbacks = [Steps("on_step_begin", -1, None)] + [At("on_step_end", 3, kill)] * (kills == "kills")
    return tiny_trainer(params, Path("."), save_strategy="steps", save_steps=1, num_train_epochs=4, callbacks=callbacks)

study = tune(factory, SPACE, max_evals=1, n_initial=9, storage=f"sqlite:///{place}.db", output_dir=f"out-{place}")
curves = [list(trial.curve.values) for trial in study.trials]
leave(study, curves=curves, notes=[dict(trial.notes) for trial in study.trials])
"""
)


@pytest.mark.slow
def test_all_ranks_go_on_from_the_checkpoint_of_a_trial_whose_ranks_were_killed(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    ends(start(tmp_path, RESUMED, "whole", "-"))
    whole, _ = left_by_ranks(tmp_path)
    with start(tmp_path, RESUMED, "killed", "kills") as process:
        assert process.wait(timeout=300) != 0
    with closing(sqlite3.connect(tmp_path / "killed.db")) as connection, connection:
        connection.execute("UPDATE llamatune_workers SET heartbeat = heartbeat - 1000")
    ends(start(tmp_path, RESUMED, "killed", "-"))
    one, other = left_by_ranks(tmp_path)
    assert one["seen"] == other["seen"] == whole["seen"][2:]  # its last checkpoint was at step 2
    assert one["notes"][1]["resumed"] == "from a checkpoint, at step 2"
    assert one["curves"][1] == whole["curves"][0]
    assert list((tmp_path / "out-killed").iterdir()) == []


def test_ctrl_c_ends_all_ranks_and_gives_the_trial_back(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        HEAD
        + """
def evaluate(params):
    seen.append(params)
    if len(seen) == 3:
        Path(f"pid-{RANK}").write_text(str(os.getpid()))
        time.sleep(600)
    return params["x"]
tuner = LlamaTune({"x": (0.0, 1.0)}, evaluate, 50, n_initial=50)
tuner.optimize()
leave(tuner, interrupted=tuner.interrupted)
""",
    )
    try:
        deadline = time.monotonic() + 240
        while not all((tmp_path / f"pid-{rank}").exists() for rank in (0, 1)) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.2)
        for rank in (0, 1):  # as a terminal does; torchrun itself would send SIGTERM
            os.kill(int((tmp_path / f"pid-{rank}").read_text()), signal.SIGINT if rank else signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, out
    one, other = left_by_ranks(tmp_path)
    assert one == other
    assert one["interrupted"]
    assert [state for _, state, *_ in one["trials"]] == ["complete", "complete", "lost"]


PROGRAMS["labels"] = """
from llamatune_torch import Categorical
def evaluate(params):
    seen.append(params["f"](3))
    return float(seen[-1])
functions = {"double": lambda x: 2 * x, "square": lambda x: x * x}  # which nobody can pickle
tuner = LlamaTune({"f": Categorical(functions)}, evaluate, 2, n_initial=9)
best_params, best = tuner.optimize()
leave(tuner, best=best_params["f"](10))
"""


def test_each_rank_has_its_own_values_of_the_labels(places: Path) -> None:
    _, one, other = of_both_ranks(places, "labels")
    assert one == other
    assert sorted(one["seen"]) == [6, 9]
    assert one["best"] == 100
    assert sorted(params["f"] for params, *_ in one["trials"]) == ["double", "square"]
