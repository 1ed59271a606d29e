"""What a person sees: lines through logging, a bar on a terminal, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from strategies import make_study, make_trial

from llamatune_torch import Real
from llamatune_torch.runtime.display import live_display, log_trial

LOGGER = logging.getLogger("llamatune_torch")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def no_logging_set_up() -> Iterator[None]:
    """As in a plain script: no handlers anywhere (pytest adds its own to the root before each test)."""
    handlers, logging.root.handlers = logging.root.handlers, []
    try:
        yield
    finally:
        logging.root.handlers = handlers
        LOGGER.setLevel(logging.NOTSET)


def shown(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_trial_is_a_line_with_its_parameters_its_value_and_the_best_so_far(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    space = {"learning_rate": Real(1e-5, 1e-3, prior="uniform"), "batch_size": (8, 32)}
    tried: list[Any] = [
        ({"learning_rate": 2.84e-5, "batch_size": 16}, 0.84230001),
        ({"learning_rate": 1e-4, "batch_size": 8}, 0.5),
    ]
    study = make_study(space, tried)
    for trial in study.trials:
        log_trial(study, trial)
    assert shown(caplog) == [
        ("INFO", "trial 0: {'learning_rate': 2.84e-05, 'batch_size': 16} -> 0.8423 | best 0.8423 (trial 0)"),
        ("INFO", "trial 1: {'learning_rate': 0.0001, 'batch_size': 8} -> 0.5 | best 0.8423 (trial 0)"),
    ]


def test_a_failed_trial_is_a_warning_with_its_reason_and_the_last_line_of_its_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = make_study({"x": (0.0, 1.0)})
    log_trial(study, make_trial(4, {"x": 0.5}, reason="ValueError", error="Traceback ...\n  ...\nValueError: too hot"))
    log_trial(study, make_trial(5, {"x": 0.5}))
    assert shown(caplog) == [
        ("WARNING", "trial 4: {'x': 0.5} failed: ValueError (ValueError: too hot)"),
        ("WARNING", "trial 5: {'x': 0.5} failed: None ()"),
    ]


def test_where_no_logging_is_set_up_lines_go_to_standard_error_while_it_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with no_logging_set_up():
        with live_display(3, 0, progress=True):
            LOGGER.info("trial 0: ...")
            assert LOGGER.level == logging.INFO
        assert LOGGER.handlers == []
        assert LOGGER.level == logging.NOTSET
    captured = capsys.readouterr()
    assert captured.err == "trial 0: ...\n"
    assert captured.out == ""


def test_no_handler_is_left_behind_after_an_error() -> None:
    def interrupted() -> None:
        with live_display(3, 0, progress=True):
            assert len(LOGGER.handlers) == 1
            raise KeyboardInterrupt

    with no_logging_set_up():
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert LOGGER.handlers == []
        assert LOGGER.level == logging.NOTSET


def test_a_level_that_the_user_has_set_is_respected(capsys: pytest.CaptureFixture[str]) -> None:
    with no_logging_set_up():
        LOGGER.setLevel(logging.WARNING)
        with live_display(3, 0, progress=True):
            LOGGER.info("quiet")
            LOGGER.warning("loud")
    assert capsys.readouterr().err == "loud\n"


def test_where_logging_is_set_up_nothing_is_added(caplog: pytest.LogCaptureFixture) -> None:
    with live_display(3, 0, progress=True):
        assert LOGGER.handlers == []
        assert LOGGER.level == logging.NOTSET


def test_no_bar_is_drawn_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with live_display(3, 0, progress=True) as bar:
        bar.update()
        assert bar.disable
    assert capsys.readouterr().err == ""


def test_a_bar_with_the_time_left_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with live_display(10, 4, progress=True) as bar:
        assert not bar.disable
        bar.update()
        bar.refresh()
    text = terminal.getvalue()
    assert "5/10" in text
    assert "<" in text  # elapsed<remaining


def test_the_bar_is_off_with_one_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with live_display(10, 4, progress=False) as bar:
        bar.update()
    assert terminal.getvalue() == ""


def test_lines_and_bar_share_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with no_logging_set_up(), live_display(10, 0, progress=True) as bar:
        LOGGER.info("trial 0: ...")
        bar.update()
    assert "trial 0: ...\n" in terminal.getvalue()
    assert LOGGER.handlers == []


def test_where_the_program_sets_up_logging_meanwhile_a_line_shows_there_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with no_logging_set_up(), live_display(3, 0, progress=True):
        logging.basicConfig(format="set up: %(message)s")
        LOGGER.info("trial 0: ...")
    assert capsys.readouterr().err == "set up: trial 0: ...\n"


def test_handlers_on_a_terminal_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with no_logging_set_up():
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        logging.basicConfig(handlers=[handler], level=logging.INFO)
        with live_display(10, 0, progress=True):
            LOGGER.info("quiet")
            LOGGER.warning("loud")
            assert logging.root.handlers == [handler]
        assert handler.stream is terminal
    assert "quiet" not in terminal.getvalue()
    assert terminal.getvalue().count("loud\n") == 1


# --- On a real terminal -------------------------------------------------------------------------

SEARCH = """
import logging, sys
from llamatune_torch.runtime.display import live_display
{setup}
with live_display(3, 0, progress=True) as bar:
    bar.update()
    bar.refresh()
    logging.getLogger("llamatune_torch.runtime.loop").info("trial 0: ...")
"""


def on_terminal(code: str) -> str:
    """What a script shows on a pseudo-terminal."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize(
    ("setup", "lines"),
    [
        ("", ["trial 0: ..."]),
        ("logging.basicConfig(level=logging.INFO)", ["INFO:llamatune_torch.runtime.loop:trial 0: ..."]),
        (
            "logging.basicConfig(level=logging.INFO, stream=sys.stdout)",
            ["INFO:llamatune_torch.runtime.loop:trial 0: ..."],
        ),
        ("logging.basicConfig(level=logging.INFO, filename=os.devnull)", []),
        ("logger = logging.getLogger('llamatune_torch'); logger.addHandler(logging.StreamHandler());"
         "logger.setLevel(logging.INFO)", ["trial 0: ..."]),
    ],
)  # fmt: skip
def test_a_line_shows_once_on_a_terminal(setup: str, lines: list[str]) -> None:
    text = on_terminal(SEARCH.format(setup=setup.replace("os.devnull", "'/dev/null'")))
    assert "1/3" in text
    shown = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    assert [line for line in shown if "trial 0" in line] == lines


def test_a_line_shows_once_in_a_notebook() -> None:
    missing = "needs a Jupyter kernel: pip install 'llamatune-torch[notebook]'"
    nbformat = pytest.importorskip("nbformat", reason=missing)
    nbclient = pytest.importorskip("nbclient", reason=missing)
    pytest.importorskip("ipykernel", reason=missing)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SEARCH.format(setup=""))])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    text = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    assert text.count("trial 0: ...") == 1
