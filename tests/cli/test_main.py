"""The grammar, exit codes, and that nobody sees a traceback for a mistake of his own."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Cli, finish, start

from llamatune_torch import LlamaTune, Outcome, Real
from llamatune_torch.cli.main import FLAGS, STATES
from llamatune_torch.trial import TrialState

COMMANDS = ("run", "resume", "worker", "status", "best", "trials", "report", "tell", "export", "import")


def test_help_names_every_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "llamatune_torch", "--help"], capture_output=True, check=True)
    assert all(command in shown.stdout.decode() for command in COMMANDS)


def test_help_loads_nothing_that_takes_long() -> None:
    code = (
        "import sys; from llamatune_torch.cli.main import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--trials" in shown
    assert not {"torch", "numpy", "sqlalchemy", "rich", "tqdm"} & set(shown.splitlines()[-1].split())


def test_trials_are_shown_in_every_state() -> None:
    assert set(STATES) == set(TrialState)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(cli: Cli, command: str) -> None:
    shown = cli(command, "--help")
    assert shown.code == 0
    assert {"--storage", "--name"} <= set(shown.out.split())


def test_the_script_is_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="llamatune")
    assert script.value == "llamatune_torch.cli.main:main"


def test_the_version(cli: Cli) -> None:
    own = importlib.metadata.version("llamatune-torch")
    assert cli("--version").out.strip() == own
    told = json.loads(cli("--version", "--json").out)
    assert told["llamatune-torch"] == own
    assert told["torch"] == importlib.metadata.version("torch")
    assert {"python", "system", "numpy"} <= set(told)


def one_study(folder: Path) -> LlamaTune:
    """Two trials, one of them failed and one running."""
    tuner = LlamaTune({"x": Real(0, 1)}, storage=f"sqlite:///{folder}/llamatune.db", name="mine")
    tuner.tell(tuner.ask(), Outcome.failure("out of memory"))
    tuner.ask()
    return tuner


LOOKS = {
    "status": ("status", "--once"),
    "status for programs": ("status", "--json"),
    "best": ("best",),
    "best for a training command": ("best", "--args"),
    "trials": ("trials",),
    "a trial": ("trials", "0"),
    "tell": ("tell", "1", "0.5"),
    "tell of a failure": ("tell", "1", "--failed", "CUDA out of memory"),
}


@pytest.mark.parametrize("arguments", LOOKS.values(), ids=LOOKS)
def test_looking_and_telling_load_no_torch(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    one_study(tmp_path).add_trial({"x": 0.5}, 1.0)
    code = (
        "import sys; from llamatune_torch.cli.main import main\n"
        f"assert main({list(arguments)!r}) == 0\n"
        "print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.splitlines()[-1].split())
    assert {"sqlalchemy", "llamatune_torch.storage.reader"} <= loaded
    assert (
        not {"torch", "botorch", "gpytorch", "scipy", "pandas", "llamatune_torch.runtime", "llamatune_torch.engine"}
        & loaded
    )


USAGE = {
    "no command": ((), "COMMAND"),
    "an unknown command": (("tune",), "invalid choice: 'tune'"),
    "an unknown option": (("status", "--nmae", "x"), "--nmae"),
    "an abbreviation": (("best", "--stor", "x"), "--stor"),
    "no number": (("run", "spec.py", "--trials", "ten"), "invalid int value: 'ten'"),
    "no looks at all": (("status", "--every", "0"), "must be greater than 0, but got 0"),
    "a bad URL": (("status", "--storage", "study.db"), "storage must be a URL"),
    "a database that is not supported": (("status", "--storage", "mysql://x/y"), "'mysql'"),
    "no file to run": (("run", "spec.py"), "there is no file"),
    "no module to run": (("worker", "not_there:evaluate"), "there is no module 'not_there'"),
    "neither value nor reason": (("tell", "1"), "either VALUE or --failed"),
    "both value and reason": (("tell", "1", "0.5", "--failed", "x"), "either VALUE or --failed"),
    "no file to import": (("import", "--csv", "none.csv", "--name", "mine"), "none.csv cannot be read"),
    "a table without a space": (("import", "--csv", "none.csv", "--name", "new"), "--spec spec.py"),
    "two shapes": (("best", "--json", "--args"), "not allowed with"),
    "no shape": (("export",), "--csv --json --optuna"),
}
FAILURES = {
    "no database": (("status", "--storage", "sqlite:///none.db"), "there is no "),
    "no such study": (("best", "--name", "yours"), "has no study 'yours', only ['mine']"),
    "nothing completed": (("best",), "no trial has completed: 1 of 2 failed (out of memory: 1)"),
    "no such trial": (("trials", "7"), "trial 7 is unknown; study 'mine' has 2 trials"),
    "a finished trial": (("tell", "0", "0.5"), "trial 0 has finished (failed) and cannot change"),
    "a trial that never was": (("tell", "2", "0.5"), "trial 2 is unknown"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE)
def test_a_mistake_on_the_command_line_is_usage(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    one_study(tmp_path)
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err


@pytest.mark.parametrize(("arguments", "message"), FAILURES.values(), ids=FAILURES)
def test_what_cannot_be_done_fails(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    one_study(tmp_path)
    code, out, err = cli(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("llamatune: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_storage_and_the_name_may_come_from_the_environment(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        LlamaTune({"x": Real(0, 1)}, storage=f"sqlite:///{tmp_path}/other.db", name=name).add_trial({"x": 0.5}, 1.0)
    monkeypatch.setenv("LLAMATUNE_STORAGE", "sqlite:///other.db")
    several = cli("best", "--args")
    assert several.code == 1
    assert "several studies, say the name of one: ['a', 'b']" in several.err
    monkeypatch.setenv("LLAMATUNE_NAME", "b")
    assert cli("best", "--args").out == "--x 0.5\n"


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    tuner = LlamaTune({"x": Real(0, 1)}, storage=f"sqlite:///{tmp_path}/llamatune.db", name="mine")
    for i in range(30):
        tuner.add_trial({"x": i / 30}, Outcome.failure("x" * 5000))
    process = start(tmp_path, "trials")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    result = finish(process)
    assert (result.code, result.err) == (1, "")


def test_one_database_and_no_password_in_any_message(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamatune_torch.storage.database.OPENING_PATIENCE", 0.2)
    result = cli("status", "--storage", "postgresql://me:secret@127.0.0.1:1/x?connect_timeout=1")
    assert result.code == 1
    assert "secret" not in result.err


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--n-trials=9", "unrecognized arguments: --n-trials=9; here it is --trials"),
        ("--max-evals=9", "; here it is --trials"),
        ("--n_jobs=2", "; here it is --workers"),
        ("--study-name=s", "; here it is --name"),
        ("--n-startup-trials=9", "; here it is n_initial, which stands in `search` in the file"),
        ("--zeal=9", "unrecognized arguments: --zeal=9\n"),
    ],
)
def test_an_option_that_is_called_otherwise_is_answered_with_ours(cli: Cli, option: str, answer: str) -> None:
    shown = cli("run", "spec.py", option)
    assert (shown.code, shown.err.endswith(answer.rstrip() + "\n")) == (2, True), shown.err


def test_each_option_that_is_answered_with_is_one(cli: Cli) -> None:
    listed = cli("run", "--help").out.split()
    assert all(flag in listed for flag in FLAGS.values())
