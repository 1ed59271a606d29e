"""``run``, ``resume`` and ``worker``, in processes of their own, with signals and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from commands import Cli, finish, start, write_spec
from strategies import OTHERS

from llamatune_torch import Categorical, LlamaTune, Real, StorageError, Study, TrialState, load_study
from llamatune_torch.storage.definition import remember
from llamatune_torch.storage.reader import Reader


def storage(folder: Path) -> str:
    return f"sqlite:///{folder}/llamatune.db"


def wait_until(folder: Path, name: str, enough: Callable[[Study], bool], process: subprocess.Popen[str]) -> Study:
    """The study as soon as it has come so far."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "llamatune.db").exists():
            try:
                study = load_study(storage(folder), name)
            except StorageError:  # not made yet
                study = None
            if study is not None and enough(study):
                return study
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail("it did not come so far")


def test_run_does_what_the_file_says_and_run_again_nothing(cli: Cli, spec: str, tmp_path: Path) -> None:
    first = cli("run", spec)
    assert first.code == 0
    assert "6 trials (5 complete, 1 failed)" in first.out
    assert "failed: out of memory (1)" in first.out
    assert "best accuracy (maximize): " in first.out
    study = load_study(storage(tmp_path))
    assert [trial.curve.steps for trial in study.completed] == [(1.0,)] * 5
    again = cli("run", spec)
    assert (again.code, again.out) == (0, first.out)
    assert load_study(storage(tmp_path)) == study


def test_a_file_may_name_a_ready_made_space_and_a_default_that_goes_along(cli: Cli, tmp_path: Path) -> None:
    default = {"learning_rate": 2e-5, "num_train_epochs": 2, "warmup_steps": 0.1, "effective_batch_size": 32}
    text = f"""
space = "encoder_classification"
search = {{"max_evals": 2, "n_initial": 100, "default": {default!r}}}

def evaluate(params):
    return -params["learning_rate"]
"""
    file = write_spec(tmp_path, text=text)
    done = cli("run", file)
    assert done.code == 0, done.err
    assert "the default (trial 0)" in done.out
    assert cli("export", "--json", "study.json").code == 0
    assert cli("import", "--json", "study.json", "--name", "copy").code == 0
    copy = load_study(storage(tmp_path), "copy")
    assert copy.space.default == default
    assert copy.default_trial == copy.trials[0]
    assert copy.trials[0].origin == "default"


def test_options_count_before_the_file_and_trials_are_the_total(cli: Cli, spec: str, tmp_path: Path) -> None:
    assert cli("run", spec, "--trials", 2, "--seed", 7, "--metric", "score", "--direction", "minimize").code == 0
    study = load_study(storage(tmp_path))
    assert (len(study.trials), study.metric, study.direction) == (2, "score", "minimize")
    other = cli("run", spec, "--trials", 3)
    assert other.code == 1
    assert "metric: stored 'score', given 'accuracy'" in other.err
    assert cli("resume", "--trials", 3).code == 0
    assert len(load_study(storage(tmp_path)).trials) == 3


def test_a_generator_pauses_and_the_strategy_lasts(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "curves.py"
    path.write_text(
        "space = {'x': (0.0, 1.0)}\nsearch = {'n_initial': 50}\n"
        "def evaluate(params):\n    for i in range(1, 11):\n        yield i, params['x'] * i, i / 10\n"
    )
    out = cli("run", f"{path}:evaluate", "--trials", "3", "--strategy", "top_k", "--max-cost", "1000").out
    assert "12 trials (2 complete, 10 stopped), 3 full runs trained and 9 saved" in out
    study = Reader(storage(tmp_path)).look()
    assert (study.settings["strategy"], study.settings["max_cost"]) == ("top_k", 1000.0)
    assert len(cli("trials", "--state", "stopped").out.splitlines()) == 11
    shown = cli("trials", str(study.study.in_state(TrialState.STOPPED)[0].number)).out
    assert "\nstate: stopped\n" in shown
    assert "\ntrained: 10% of its run at its last pause\n" in shown
    assert "\nreason: not among the best 2 of 12 at 10%\n" in shown
    assert cli("resume", str(path)).out.startswith("12 trials")  # the budget is used up


def test_resume_needs_no_file_named_and_no_folder(
    cli: Cli, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run", spec, "--trials", 2).code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli("resume", "--storage", storage(tmp_path)).code == 0  # nothing is left
    assert len(load_study(storage(tmp_path)).trials) == 2
    assert cli("resume", "--storage", storage(tmp_path), "--trials", 4).code == 0
    assert len(load_study(storage(tmp_path)).trials) == 4
    (tmp_path / spec).unlink()
    gone = cli("resume", "--storage", storage(tmp_path))
    assert gone.code == 2
    assert "there is no file" in gone.err
    assert "llamatune resume spec.py" in gone.err


HOSTILE = {"target": "subprocess:check_call", "folder": "/tmp", "trainer": False}


def test_resume_never_runs_what_the_database_names(cli: Cli, spec: str, tmp_path: Path) -> None:
    LlamaTune({"args": Categorical(["touch owned"])}, storage=storage(tmp_path), name="theirs", max_evals=3)
    remember(storage(tmp_path), "theirs", {"launch": HOSTILE})
    result = cli("resume", "--name", "theirs")
    assert (result.code, len(load_study(storage(tmp_path), "theirs").trials)) == (2, 0), result
    assert "you have not run study 'theirs' on this host" in result.err
    assert "'subprocess:check_call' in '/tmp'" in result.err
    # Also of a study that was run here: what this user typed counts.
    assert cli("run", spec, "--name", "mine", "--trials", 2).code == 0
    remember(storage(tmp_path), "mine", {"launch": HOSTILE})
    assert cli("resume", "--name", "mine", "--trials", 3).code == 0
    assert len(load_study(storage(tmp_path), "mine").trials) == 3


def test_an_imported_study_names_no_code(cli: Cli, spec: str, tmp_path: Path) -> None:
    cli("run", spec, "--name", "mine", "--trials", 1)
    cli("export", "--json", "mine.json")
    document = json.loads((tmp_path / "mine.json").read_text())
    document["settings"]["launch"] = HOSTILE
    (tmp_path / "mine.json").write_text(json.dumps(document))
    other = f"sqlite:///{tmp_path}/other.db"
    assert cli("import", "--json", "mine.json", "--storage", other).code == 0
    assert "launch" not in Reader(other).look().settings
    assert "say what to run" in cli("resume", "--storage", other).err


def test_another_host_and_a_missing_home_ask_for_the_target(
    cli: Cli, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run", spec, "--trials", 2).code == 0
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "another")
        assert "on this host" in cli("resume").err
    assert cli("resume").code == 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file" / "no folder"))
    assert cli("run", spec, "--trials", 3).code == 0  # no reason not to run
    assert "on this host" in cli("resume").err


def test_resume_of_what_is_not_there(cli: Cli, spec: str) -> None:
    assert "there is no " in cli("resume").err
    cli("run", spec, "--name", "a", "--trials", 1)
    result = cli("resume", "--name", "b")
    assert (result.code, "no study 'b', only ['a']" in result.err) == (1, True)


def test_a_study_that_a_program_has_made(cli: Cli, tmp_path: Path) -> None:
    tuner = LlamaTune({"x": Real(0, 1)}, storage=storage(tmp_path), name="mine", max_evals=3, n_initial=1000, seed=5)
    tuner.tell(tuner.ask(), 0.5)
    result = cli("resume")
    assert result.code == 2
    assert "'mine' was not started by `llamatune run`: say what to run" in result.err
    # A worker takes the space, the seed and the budget from the study.
    file = write_spec(tmp_path, text="def evaluate(params): return params['x']")
    assert cli("worker", file, "--name", "mine").code == 0
    study = load_study(storage(tmp_path))
    assert len(study.completed) == 3
    alone = LlamaTune({"x": Real(0, 1)}, n_initial=1000, seed=5)
    assert [trial.params for trial in study.trials] == [alone.ask().params for _ in range(3)]


def test_a_new_study_needs_a_space_and_a_good_search(cli: Cli, tmp_path: Path) -> None:
    file = write_spec(tmp_path, text="def evaluate(params): ...")
    assert "has no `space`" in cli("run", file).err
    file = write_spec(tmp_path, text="space = {'x': (0.0, 1.0)}\nsearch = {'max_eval': 3}\ndef evaluate(p): ...")
    result = cli("run", file)
    assert (result.code, "no argument 'max_eval'; the arguments are: max_evals, " in result.err) == (2, True)
    file = write_spec(tmp_path, text="space = {'x': (1.0, 0.0)}\ndef evaluate(p): ...")
    assert cli("run", file).code == 2
    assert not (tmp_path / "llamatune.db").exists()


def test_every_knob_of_the_engine_can_be_set_in_a_file_and_lasts(cli: Cli, tmp_path: Path) -> None:
    text = f"space = {{'x': (0.0, 1.0)}}\nsearch = {{'max_evals': 6, **{OTHERS!r}}}\ndef evaluate(params): return 1.0"
    result = cli("run", write_spec(tmp_path, text=text))
    assert result.code == 0, result.err
    stored = Reader(storage(tmp_path)).look().settings
    lasting = {name: value for name, value in OTHERS.items() if name != "device"}
    assert {name: stored[name] for name in lasting} == lasting


def test_where_nothing_completes_the_exit_code_says_so(cli: Cli, tmp_path: Path) -> None:
    text = "space = {'x': (0.0, 1.0)}\ndef evaluate(params): raise ValueError('never')"
    result = cli("run", write_spec(tmp_path, text=text), "--trials", 2)
    assert result.code == 1
    assert "failed: ValueError (2)" in result.out
    assert "no trial has completed" in result.out


def test_processes_of_its_own_find_the_file(tmp_path: Path) -> None:
    file = write_spec(tmp_path)
    result = finish(start(tmp_path, "run", file, "--trials", 4, "--workers", 2, "--gpus", "0,1", "--isolate"))
    assert result.code == 0, result.err
    study = load_study(storage(tmp_path))
    assert len(study.completed) + len(study.failed) == 4
    assert study.failures_by_reason().keys() <= {"out of memory"}


# The same of the stores themselves, each of them: tests/storage/test_many_processes.py.
@pytest.mark.parametrize("url", ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True)
def test_workers_share_a_study_and_its_budget_exactly(url: str, tmp_path: Path) -> None:
    file = write_spec(tmp_path, seconds=0.5)  # long enough for the other to have started, on a busy machine too
    workers = [start(tmp_path, "worker", file, "--trials", 14, "--storage", url, "--name", "s") for _ in range(2)]
    results = [finish(worker) for worker in workers]
    assert [result.code for result in results] == [0, 0], results
    study = load_study(url, "s")
    assert len(study.trials) == study.spent == 14
    assert len({trial.worker for trial in study.trials}) > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_resume_goes_on(cli: Cli, tmp_path: Path, number: signal.Signals) -> None:
    file = write_spec(tmp_path, seconds=0.5)
    process = start(tmp_path, "run", file)
    wait_until(tmp_path, file.removesuffix(".py"), lambda study: len(study.trials) >= 3, process)
    process.send_signal(number)
    result = finish(process)
    assert result.code == 130
    assert "Traceback" not in result.err
    assert "llamatune: interrupted" in result.err
    assert " lost)" in result.out
    study = load_study(storage(tmp_path))
    assert not study.pending
    assert [trial.reason for trial in study.in_state(TrialState.LOST)] == ["interrupted"]
    resumed = cli("resume")
    assert resumed.code == 0, resumed.err
    assert load_study(storage(tmp_path)).spent == 6


def test_killed_outright_and_started_again(tmp_path: Path) -> None:
    file = write_spec(tmp_path, seconds=0.3)
    process = start(tmp_path, "run", file, "--grace", 1)
    before = wait_until(tmp_path, file.removesuffix(".py"), lambda study: len(study.trials) >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    resumed = finish(start(tmp_path, "resume", "--grace", 1))
    assert resumed.code == 0, resumed.err
    study = load_study(storage(tmp_path))
    assert study.spent == 6
    assert [study.trials[trial.number] for trial in before.completed] == before.completed
    (lost,) = study.in_state(TrialState.LOST)
    assert [trial.params for trial in study.trials if trial.retry_of == lost.number] == [lost.params]


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_under_torchrun_one_rank_speaks_for_both(tmp_path: Path) -> None:
    text = """
import torch.distributed as dist
space = {"x": (0.0, 1.0)}
search = {"max_evals": 3, "n_initial": 1000}
def evaluate(params):
    everybodys = [None, None]
    dist.all_gather_object(everybodys, params)
    return params["x"] if everybodys[0] == everybodys[1] else -1.0
"""
    file = write_spec(tmp_path, text=text)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "llamatune_torch", "run", file]
    result = finish(start(tmp_path, module=command))
    assert result.code == 0, result.err
    assert result.out.count("3 trials (3 complete)") == 1
    assert all(trial.value == trial.params["x"] for trial in load_study(storage(tmp_path)).trials)


TRAINER = """
from pathlib import Path
from tiny import tiny_trainer
from llamatune_torch import Real

space = {"learning_rate": Real(1e-4, 1e-1, prior="log-uniform")}
search = {"max_evals": 2, "metric": "eval_accuracy", "keep": "best", "output_dir": "tuned"}

def trainer_factory(params):
    return tiny_trainer({"learning_rate": params["learning_rate"]}, Path("."))
"""


def test_a_trainer(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    result = cli("run", write_spec(tmp_path, text=TRAINER))
    assert result.code == 0, result.err
    assert "2 trials (2 complete)" in result.out
    assert "best eval_accuracy (maximize)" in result.out
    assert (tmp_path / "tuned" / "best" / "trial.json").is_file()


GROWN = """
from llamatune_torch import Integer, Real

space = {"lr": Real(1e-5, 1e-2, prior="log-uniform"), "batch": Integer(1, 8), "warmup": Real(0, 0.5)}
search = {"max_evals": 3, "metric": "accuracy", "n_initial": 1000 EXTEND}

def evaluate(params):
    return params["warmup"]
"""


def test_a_file_with_a_new_parameter_goes_on_with_the_value_of_before(cli: Cli, spec: str, tmp_path: Path) -> None:
    assert cli("run", spec, "--name", "s", "--trials", 2).code == 0
    grown = write_spec(tmp_path, text=GROWN.replace("EXTEND", ""))
    for options in ((), ("--extend",)):
        refused = cli("run", grown, "--name", "s", *options)
        assert (refused.code, "extend={'warmup': ...} accepts that" in refused.err) == (1, True)
    for wrong in ("warmup", "=0.1"):
        assert cli("run", grown, "--name", "s", "--extend-with", wrong).code == 2
    assert "must be a number, but got 'abc'" in cli("run", grown, "--name", "s", "--extend-with", "warmup=abc").err
    assert cli("run", grown, "--name", "s", "--extend-with", "warmup=0.25").code == 0
    assert [trial.params["warmup"] for trial in load_study(storage(tmp_path)).trials[:2]] == [0.25, 0.25]
    assert len(load_study(storage(tmp_path)).trials) == 3
    assert "params.warmup" in cli("export", "--csv").out
    assert "0.25" in cli("trials", "0").out


def test_a_file_may_say_the_value_itself_also_with_extend(cli: Cli, spec: str, tmp_path: Path) -> None:
    assert cli("run", spec, "--name", "s", "--trials", 2).code == 0
    grown = write_spec(tmp_path, text=GROWN.replace("EXTEND", ", 'extend': {'warmup': 0.25}"))
    assert cli("run", grown, "--name", "s", "--extend").code == 0
    assert [trial.params["warmup"] for trial in load_study(storage(tmp_path)).trials[:2]] == [0.25, 0.25]


def test_a_search_may_end_by_itself_and_goes_on_for_a_larger_wish(cli: Cli, tmp_path: Path) -> None:
    text = """
from llamatune_torch import Real

space = {"x": Real(0, 1)}
search = {"max_evals": 30, "num_screened": 64, "num_restarts": 1}

def evaluate(params):
    return -(params["x"] - 0.4) ** 2 + 0.1 * hash(params["x"]) % 1000 / 10000
"""
    spec = write_spec(tmp_path, text=text)
    ended = cli("run", spec, "--stopping", "auto", "--min-evals", 8)
    assert ended.code == 0
    assert "ended: a further trial is expected to gain " in ended.out
    count = len(load_study(storage(tmp_path)).trials)
    assert 8 <= count < 30
    assert "finished\n" in cli("status").out
    assert cli("resume", spec).out == ended.out
    cli("resume", spec, "--min-evals", count + 2)
    assert len(load_study(storage(tmp_path)).trials) >= count + 2


def test_the_winner_is_confirmed_in_a_search_and_after_one(cli: Cli, spec: str, tmp_path: Path) -> None:
    assert cli("run", spec).code == 0
    before = load_study(storage(tmp_path))
    done = cli("confirm", "--top", 2, "--confirm-evals", 4)
    assert done.code == 0
    study = load_study(storage(tmp_path))
    assert study.trials[: len(before.trials)] == before.trials
    again = study.trials[len(before.trials) :]
    assert 3 <= len(again) <= 4
    assert {trial.origin for trial in again} == {"confirm"}
    found = study.confirmed()
    assert found is not None
    assert f"best accuracy (maximize): {found} in trial {found.trial.number}\n" in done.out
    assert f"accuracy = {found} in trial {found.trial.number} (of " in cli("best").out
    assert f"{found} in trial {found.trial.number}" in cli("status").out
    assert json.loads(cli("best", "--json").out)["confirmed"]["num_seeds"] == found.num_seeds
    assert cli("confirm", "--top", 2, "--confirm-evals", 4).code == 0
    assert load_study(storage(tmp_path)).trials == study.trials
    assert cli("run", spec, "--name", "both", "--trials", 14, "--confirm", 2, "--workers", 2).code == 0
    both = load_study(storage(tmp_path), "both")
    assert both.confirmed() is not None
    assert both.spent <= 14
