"""A search and the commands where programs run: terminals, notebooks, other locales and users, no home, no output."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from llamatune_torch import Categorical, FolderError, LlamaTune, Real, load_study

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PYTHON = [sys.executable, "-W", "error"]
LLAMATUNE = [*PYTHON, "-m", "llamatune_torch"]
NOBODY = 65534
SPEC = """
from llamatune_torch import Categorical, Real, report

space = {"lr": Real(1e-5, 1e-2, prior="log-uniform"), "how": Categorical(["grün", "✓", "plain"])}
search = {"max_evals": 5, "metric": "accuracy", "n_initial": 3}

def evaluate(params):
    report(1, 0.5, 0.25)
    if params["how"] == "grün":
        raise ValueError("größer ✓")
    return 1 - abs(params["lr"] - 3e-4)
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Place(NamedTuple):
    """A folder that programs run in, the variables that they have, and a command before theirs."""

    folder: Path
    variables: Mapping[str, str]
    before: Sequence[str] = ()

    def run(self, *command: object, shell: str = "") -> Result:
        """Runs a command; ``shell`` has redirections."""
        words = [*self.before, *map(str, command)]
        if shell:
            words = ["bash", "-c", f'"$@" {shell}', "bash", *words]
        done = subprocess.run(
            words, cwd=self.folder, env=dict(self.variables), capture_output=True, check=False, timeout=300
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def usual_variables() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "integrations" / "trainer")])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    return {name: value for name, value in variables.items() if name not in ("PYTHONIOENCODING", "XDG_STATE_HOME")}


def another_user(folder: Path) -> Sequence[str]:
    """Words before a command that run it as somebody who may write nowhere but in ``folder``."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user, by setpriv")
    for up in (folder, *folder.parents):
        if not up.stat().st_mode & 0o001:
            up.chmod(up.stat().st_mode | 0o001)  # pytest's folders are root's own
    os.chown(folder, NOBODY, NOBODY)
    # It may read everything, as Python itself may be installed in root's home.
    words = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=+dac_read_search"
    command = [*words.split(), "--ambient-caps=+dac_read_search"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("setpriv cannot become another user here")
    return command


PLACES = ("warnings are errors", "C", "no HOME", "HOME cannot be written", "another user")


def make_place(kind: str, folder: Path) -> Place:
    """One of ``PLACES``. In all of them, warnings are errors."""
    variables = usual_variables()
    if kind == "C":
        variables |= {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}
    elif kind == "no HOME":
        del variables["HOME"]
    elif kind == "HOME cannot be written":
        variables |= {"HOME": "/proc/nothing"}  # not even by root
    elif kind == "another user":
        return Place(folder, variables | {"HOME": "/root"}, another_user(folder))
    return Place(folder, variables)


# In each place warnings are errors, and another user cannot write to HOME.
COVERED = ("warnings are errors", "HOME cannot be written")


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind in COVERED)) for kind in PLACES])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    (tmp_path / "spec.py").write_text(SPEC, encoding="utf-8")
    return make_place(request.param, tmp_path)


def test_a_search_and_the_looks_at_it(place: Place) -> None:
    run = place.run(*LLAMATUNE, "run", "spec.py")
    assert run.code == 0, run
    study = load_study(f"sqlite:///{place.folder}/llamatune.db")
    assert study.spent == 5
    how = study.best_params["how"]
    shown = how if place.variables["LC_ALL"] != "C" else how.encode("ascii", "backslashreplace").decode()
    assert f"how = '{shown}'" in run.out
    for command in ("status --once", "best", "trials"):
        result = place.run(*LLAMATUNE, *command.split())
        assert (result.code, result.err) == (0, ""), result
        assert repr(shown) in result.out or "\\\\u2713" in repr(result.out)
    assert place.run(*LLAMATUNE, "best", "--args").out.endswith(f"--how {how if how == 'plain' else repr(how)}\n")
    if place.variables["LC_ALL"] == "C":
        assert f",{how}," in place.run(*LLAMATUNE, "export", "--csv").out  # programs read UTF-8 in any locale


# --- Standard output ----------------------------------------------------------------------------


@pytest.fixture
def usual(tmp_path: Path) -> Place:
    """Nothing out of the ordinary, and a study with two trials."""
    (tmp_path / "spec.py").write_text(SPEC, encoding="utf-8")
    space = {"lr": Real(1e-5, 1e-2, prior="log-uniform"), "how": Categorical(["grün", "✓", "plain"])}
    tuner = LlamaTune(space, metric="accuracy", storage=f"sqlite:///{tmp_path}/llamatune.db", name="spec", n_initial=9)
    for value in (0.5, 0.75):
        tuner.tell(tuner.ask(), value)
    return Place(tmp_path, usual_variables())


@pytest.mark.parametrize(
    ("shell", "message"),
    [
        (">&-", "standard output is closed, so there is nowhere to write the result to"),
        (">/dev/full", "standard output cannot be written: No space left on device"),
    ],
)
def test_a_result_that_nobody_can_see_is_an_error_in_one_line(usual: Place, shell: str, message: str) -> None:
    for command in ("status --once", "best", "best --args", "trials", "export --csv"):
        result = usual.run(*LLAMATUNE, *command.split(), shell=shell)
        assert result == (1, "", f"llamatune: {message}\n"), command
    written = usual.run(*LLAMATUNE, "export", "--csv", "trials.csv", shell=shell)  # its result is elsewhere
    assert (written.code, (usual.folder / "trials.csv").exists()) == (0, True), written


@pytest.mark.parametrize(("shell", "code"), [(">/dev/full", 1), (">&- 2>&- <&-", 0)])
def test_a_search_that_nobody_can_see_is_done(usual: Place, shell: str, code: int) -> None:
    result = usual.run(*LLAMATUNE, "run", "spec.py", "--trials", 4, "--workers", 2, shell=shell)
    assert result.code == code, result
    assert "Traceback" not in result.err
    assert load_study(f"sqlite:///{usual.folder}/llamatune.db").spent == 4


PROGRAM = """
from pathlib import Path
from llamatune_torch import LlamaTune, Real

def evaluate(params):
    return params["x"]

if __name__ == "__main__":
    tuner = LlamaTune({"x": Real(0, 1)}, evaluate, max_evals=3, n_initial=9)
    tuner.optimize(n_workers=2)
    Path("done").write_text(str(len(tuner.study.completed)))
"""


def test_processes_start_where_no_standard_file_is_open(tmp_path: Path) -> None:
    """Their pipes would get those numbers."""
    (tmp_path / "program.py").write_text(PROGRAM)
    assert Place(tmp_path, usual_variables()).run(*PYTHON, "program.py", shell=">&- 2>&- <&-").code == 0
    assert (tmp_path / "done").read_text() == "3"


def test_an_error_does_not_become_the_result_where_standard_error_is_closed(usual: Place) -> None:
    assert usual.run(*LLAMATUNE, "tell", 77, 0.5, shell="2>&-") == (1, "", "")


# --- A working directory that is gone -----------------------------------------------------------


def test_without_a_working_directory_commands_work_or_say_so(usual: Place, tmp_path: Path) -> None:
    url = f"sqlite:///{usual.folder}/llamatune.db"
    vanishing = ["bash", "-c", 'mkdir gone; cd gone; rmdir ../gone; "$@"', "bash"]
    gone = usual._replace(before=vanishing)
    for command in ("status --once", "best --args", "trials"):
        assert gone.run(*LLAMATUNE, *command.split(), "--storage", url).code == 0
    for command in ("best", f"best --recommended --storage {url}", "run spec.py"):
        result = gone.run(*LLAMATUNE, *command.split())
        assert result.code == 1, result
        assert result.err.startswith("llamatune: the working directory is gone, and "), result
        assert len(result.err.splitlines()) == 1


LATE = """
import os
from llamatune_torch import FolderError, LlamaTune, Real

space = {"x": Real(0, 1)}
tuner = LlamaTune(space, lambda params: params["x"], max_evals=4, n_initial=9, storage=URL)
os.rmdir(os.getcwd())
tuner.optimize()
try:
    LlamaTune(space, storage="sqlite:///here.db")
except FolderError as error:
    print(error)
"""


def test_a_search_whose_working_directory_vanishes(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    url = f"sqlite:///{tmp_path}/study.db"
    place = Place(tmp_path / "gone", usual_variables())
    result = place.run(*PYTHON, "-c", LATE.replace("URL", repr(url)))
    assert result.out == (
        "the working directory is gone, and 'sqlite:///here.db' is relative to it: change to another one\n"
    ), result
    assert load_study(url).spent == 4
    assert issubclass(FolderError, OSError)


# --- A terminal ---------------------------------------------------------------------------------


def on_terminal(place: Place, *command: object) -> tuple[int, str]:
    """The exit code and the text of a command on a pseudo-terminal, without its styles."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    words = [*place.before, *map(str, command)]
    variables = {**place.variables, "TERM": "xterm"}
    process = subprocess.Popen(words, cwd=place.folder, env=variables, stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    return process.wait(), re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


def test_a_search_and_the_looks_at_it_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "spec.py").write_text(SPEC, encoding="utf-8")
    place = Place(tmp_path, usual_variables())
    code, shown = on_terminal(place, *LLAMATUNE, "run", "spec.py")
    assert code == 0, shown
    assert "5/5" in shown
    assert [shown.count(f"trial {i}: ") for i in range(5)] == [1] * 5
    for command, wanted in (("status", "finished"), ("best", "accuracy = "), ("trials", "complete")):
        code, shown = on_terminal(place, *LLAMATUNE, command)
        assert code == 0, shown
        assert wanted in shown
        assert "Traceback" not in shown


# --- A notebook ---------------------------------------------------------------------------------

CELLS = """
from llamatune_torch import Categorical, LlamaTune, Real
space = {"lr": Real(1e-5, 1e-2, prior="log-uniform"), "<b>how": Categorical(["<script>alert(1)</script>", "b"])}
tuner = LlamaTune(space, lambda params: -params["lr"], max_evals=25, n_initial=99)
best = tuner.optimize()
# ---
tuner.study
# ---
tuner
# ---
tuner.study.dataframe()
"""


def run_notebook(cells: Sequence[str], folder: Path) -> list[list[dict[str, object]]]:
    """The outputs of cells in a real kernel."""
    missing = "needs a Jupyter kernel: pip install 'llamatune-torch[notebook]'"
    nbformat = pytest.importorskip("nbformat", reason=missing)
    nbclient = pytest.importorskip("nbclient", reason=missing)
    pytest.importorskip("ipykernel", reason=missing)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=usual_variables() | {"PYTHONWARNINGS": "error:::__main__"})
    return [cell.outputs for cell in notebook.cells]


def test_a_notebook_shows_a_study_as_a_table_and_a_search_as_a_line(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="the extra `report` is not installed")
    _, (study,), (search,), (frame,) = run_notebook(CELLS.split("# ---\n"), tmp_path)
    shown = study["data"]["text/html"]
    assert shown.startswith("<pre>25 trials (25 complete)")
    assert "<p>5 more trials: study.dataframe() has all</p>" in shown
    assert "<script" not in shown
    assert "<b>" not in shown
    assert re.fullmatch(
        r"<LlamaTune 'study': maximize 'value', 25 trials, best -[\d.e-]+>", search["data"]["text/plain"]
    )
    assert "curve_length" in frame["data"]["text/html"]


# --- The README and the examples everywhere -----------------------------------------------------

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    code
    for page in PAGES
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
]
SNIPPETS = [code for code in dict.fromkeys(BLOCKS) if "__main__" not in code]
MY_TRAINER = """
from pathlib import Path
from tiny import tiny_trainer

def my_trainer(params):
    return tiny_trainer({"learning_rate": params["learning_rate"]}, Path("."))
"""
PROGRAMS = {
    "readme": ["readme.py"],
    "minimal_bo": [EXAMPLES / "minimal_bo.py"],
    "parallel": [EXAMPLES / "parallel.py", "--trials", 3, "--workers", 2],
    "spec": ["-m", "llamatune_torch", "run", EXAMPLES / "spec.py", "--trials", 3],
    "gpt2_cls": [EXAMPLES / "gpt2_cls.py", "--smoke"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*PLACES, "terminal"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_examples_and_the_readme_run_everywhere(program: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    (tmp_path / "readme.py").write_text("\n".join([MY_TRAINER, *SNIPPETS]), encoding="utf-8")
    place = make_place(kind, tmp_path)
    if kind == "terminal":
        code, shown = on_terminal(place, *PYTHON, *PROGRAMS[program])
    else:
        code, *texts = place.run(*PYTHON, *PROGRAMS[program])
        shown = "\n".join(texts)
    assert code == 0, shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_the_readme_runs_in_a_notebook(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    run_notebook([MY_TRAINER, *SNIPPETS], tmp_path)


@pytest.mark.slow
def test_the_examples_run_in_a_notebook(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    cells = [
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import minimal_bo; minimal_bo.main()",
        "import gpt2_cls; assert gpt2_cls.main(['--smoke']) == 0",
        "import spec; from llamatune_torch import LlamaTune\n"
        "LlamaTune(spec.space, spec.evaluate, max_evals=3, metric='accuracy').optimize()",
        "import parallel; LlamaTune(parallel.SPACE, parallel.evaluate, max_evals=3).optimize(n_workers=2)",
    ]
    run_notebook(cells, tmp_path)
