"""The grammar of the command line, and what becomes of errors.

What a command does stands in a module that is loaded when it is called: ``--help`` has no time for torch.

Exit codes: 0, 1 failed, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, get_args

from llamatune_torch import __version__
from llamatune_torch.cli.output import discard_output, say, say_beside, standard_output
from llamatune_torch.errors import (
    LlamaTuneError,
    LlamaTuneWarning,
    ParamsError,
    SettingsError,
    SpaceError,
    SpecError,
)
from llamatune_torch.hints import OTHER_NAMES
from llamatune_torch.settings import StoppingName, StrategyName, as_seconds
from llamatune_torch.versions import installed

# As of TrialState, whose module loads NumPy: --help is to show at once.
STATES = ("running", "paused", "complete", "stopped", "failed", "lost")
DEFAULT_STORAGE = "sqlite:///llamatune.db"

_PLAIN = (
    "name",
    "storage",
    "direction",
    "metric",
    "seed",
    "past",
    "timeout",
    "max_cost",
    "max_failures",
    "strategy",
    "stopping",
    "min_evals",
    "confirm",
    "confirm_evals",
    "confidence",
    "extend",
    "grace",
    "retries",
    "report",
)
#: The options that stand for arguments of ``LlamaTune``, ``optimize`` and ``tune``.
FLAGS = {
    "max_evals": "--trials",
    "n_workers": "--workers",
    **{name: f"--{name.replace('_', '-')}" for name in (*_PLAIN, "gpus", "isolate", "trial_timeout")},
}

_ABOUT = """\
Finds the best hyperparameters of a language model. A search is a Python file with a space and a function:

    from llamatune_torch import Real

    space = {"learning_rate": Real(1e-5, 1e-3, prior="log-uniform")}
    search = {"max_evals": 40}                  # optional: arguments of LlamaTune, or of tune

    def evaluate(params):                       # returns a score; or trainer_factory(params), a Trainer
        ...

`llamatune run spec.py` runs it, and goes on with it after a crash. Any number of `llamatune worker spec.py`, on any
machines that reach the storage, share its trials. `llamatune status` shows how far it is, `llamatune best` the result.
"""
_TARGET = "spec.py, spec.py:function, or module:function"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version", "--json"]:
        say(json.dumps(installed(), indent=2))
        return 0
    root = parser()
    options, unknown = root.parse_known_args(arguments)
    if unknown:
        root.error(f"unrecognized arguments: {' '.join(unknown)}" + "".join(map(_meant, unknown)))
    shown, warnings.showwarning = warnings.showwarning, _show_warning(warnings.showwarning)
    try:
        module = import_module(f"llamatune_torch.cli.{options.module}")
        code: int = getattr(module, options.function)(options)
        if sys.stdout is not None:
            with standard_output():  # what the user's function has printed: a reader who has left shows here
                return code
        return code
    except (SettingsError, SpaceError, ParamsError, SpecError) as error:
        return _failed(error, 2)
    except LlamaTuneError as error:
        return _failed(error, 1)
    except ModuleNotFoundError as error:
        if "pip install" not in str(error):
            raise
        return _failed(error, 1)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except BrokenPipeError:  # `llamatune trials | head`; nothing more is to be written, at exit neither
        discard_output()
        return 1
    finally:
        warnings.showwarning = shown


def _meant(argument: str) -> str:
    """Says which option is meant by one that people know from elsewhere, or by an argument's name in Python."""
    option = argument.partition("=")[0]
    name = option.removeprefix("--").replace("-", "_")
    ours = OTHER_NAMES.get(name, name)
    if not option.startswith("--") or FLAGS.get(ours) == option:
        return ""
    if ours in FLAGS:
        return f"; here it is {FLAGS[ours]}"
    return f"; here it is {ours}, which stands in `search` in the file" if ours in OTHER_NAMES.values() else ""


def _failed(what: object, code: int) -> int:
    say_beside(f"llamatune: {what}")
    return code


def _show_warning(usual: Any) -> Any:
    """Warnings of this package without the line of code that they come from."""

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, LlamaTuneWarning):
            say_beside(f"llamatune: {message}")
        else:
            usual(message, category, *rest, **named)

    return show


# --- The grammar -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    plain = argparse.RawDescriptionHelpFormatter
    root = argparse.ArgumentParser(prog="llamatune", description=_ABOUT, formatter_class=plain)
    root.add_argument(
        "--version", action="version", version=__version__, help="with --json, of all that matters to a fault"
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, module: str, about: str) -> argparse.ArgumentParser:
        # No abbreviations: an option that is added later must not change what a script means.
        added = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
        added.set_defaults(module=module, function=name if name != "import" else "import_")
        study = added.add_argument_group("the study")
        study.add_argument(
            "--storage",
            metavar="URL",
            default=os.environ.get("LLAMATUNE_STORAGE", DEFAULT_STORAGE),
            help=f"sqlite:///FILE or postgresql://USER@HOST/NAME; by default $LLAMATUNE_STORAGE, or {DEFAULT_STORAGE}",
        )
        study.add_argument(
            "--name",
            default=os.environ.get("LLAMATUNE_NAME"),
            help="by default $LLAMATUNE_NAME, or that of the file to run, or the only study there is",
        )
        return added

    _add_searches(command)
    _add_looks(command)
    _add_changes(command)
    return root


def _add_searches(command: Any) -> None:
    run = command("run", "search", "start a study, or go on with it")
    resume = command("resume", "search", "go on with a study, as it was last run")
    worker = command("worker", "search", "take part in a study; start as many as you like, anywhere")
    run.add_argument("target", metavar="TARGET", help=_TARGET)
    resume.add_argument("target", metavar="TARGET", nargs="?", help=f"{_TARGET}; by default what you ran last here")
    worker.add_argument("target", metavar="TARGET", help=_TARGET)
    confirm = command("confirm", "search", "train the best candidates again on fresh seeds, and nothing else")
    confirm.add_argument("target", metavar="TARGET", nargs="?", help=f"{_TARGET}; by default what you ran last here")
    for each in (run, resume, worker, confirm):
        search = each.add_argument_group("the search (before what the file says)")
        search.add_argument(
            "--trials", dest="max_evals", metavar="N", type=int, help="full runs in total, for all workers together"
        )
        search.add_argument(
            "--max-cost",
            metavar="S",
            type=_seconds,
            help="seconds of all runs, or such as 4h, after which nothing starts or goes on",
        )
        search.add_argument("--strategy", choices=get_args(StrategyName), help="which runs train to their end")
        search.add_argument(
            "--stopping", choices=get_args(StoppingName), help="end the search when further trials gain too little"
        )
        search.add_argument("--min-evals", metavar="N", type=int, help="trials before which --stopping does not end it")
        search.add_argument(
            *("--top", "--confirm") if each is confirm else ("--confirm",),
            dest="confirm",
            metavar="K",
            type=int,
            default=3 if each is confirm else None,
            help="the best K train again on fresh seeds after the search, until one is better",
        )
        search.add_argument("--confirm-evals", metavar="N", type=int, help="runs for that; 3 for each by default")
        search.add_argument(
            "--confidence", metavar="P", type=float, help="the probability at which one is better (0.9)"
        )
        search.add_argument("--direction", choices=("maximize", "minimize"))
        search.add_argument("--metric", help="the name of the score")
        search.add_argument("--seed", type=int)
        search.add_argument(
            "--past",
            metavar="URL[:NAME]",
            action="append",
            help="an older study to learn from, of llamatune or of Optuna; give it once for each",
        )
        search.add_argument(
            "--timeout", metavar="S", type=_seconds, help="seconds, or such as 4h, after which no further trial starts"
        )
        search.add_argument("--max-failures", metavar="N", type=int, help="stop when more than N trials have failed")
        search.add_argument("--extend", action="store_true", default=None, help="accept another space than is stored")
        search.add_argument(
            "--extend-with",
            metavar="NAME=VALUE",
            action="append",
            help="accept a new parameter too; all trials without one have had this value",
        )
        search.add_argument("--grace", metavar="S", type=float, help="seconds of silence after which a worker is lost")
        search.add_argument("--retries", metavar="N", type=int, help="how often at most lost trials run again")
        search.add_argument("--report", metavar="FILE", help="a page of HTML that shows the study as it goes on")
        search.add_argument("--trainer", action="store_true", default=None, help="the function returns a Trainer")
        where = each.add_argument_group("where trials run")
        where.add_argument("--workers", metavar="N", type=int, help="how many processes of this machine run trials")
        where.add_argument("--gpus", help="auto, or device numbers as in 0,1: one for each process")
        where.add_argument("--isolate", action="store_true", help="a fresh process for each trial")
        where.add_argument("--trial-timeout", metavar="S", type=float, help="seconds after which a trial is killed")


def _add_looks(command: Any) -> None:
    check = command("check", "check", "look at a search before it begins: memory, time, metric")
    check.add_argument("target", metavar="TARGET", help=_TARGET)
    check.add_argument("--trainer", action="store_true", default=None, help="the function returns a Trainer")

    status = command("status", "status", "how far a study is: live on a terminal, once elsewhere")
    status.add_argument("--once", action="store_true", help="one look, also on a terminal")
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument(
        "--every", metavar="S", type=_positive(float), default=2.0, help="seconds between looks (%(default)s)"
    )

    best = command("best", "results", "the best parameters")
    shape = best.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="for programs")
    shape.add_argument("--args", action="store_true", help="for a training command: --learning_rate 3e-05 ...")
    best.add_argument(
        "--flags",
        action="store_true",
        help='with --args, booleans for action="store_true": --fp16 where True, nothing where False',
    )
    best.add_argument("--relax", action="store_true", help="what it would gain if the limits that bind were looser")
    best.add_argument(
        "--recommended", action="store_true", help="the best on average, where the best value may only be lucky"
    )

    best.add_argument(
        "--confidence", action="store_true", help="that, and how sure it is: its interval, its chance to beat others"
    )

    report = command("report", "report", "one page of HTML that shows all that the study tells")
    report.add_argument("-o", "--output", metavar="FILE", default="report.html", help="where to write it (%(default)s)")
    report.add_argument(
        "--watch",
        metavar="S",
        nargs="?",
        type=_positive(float),
        const=10.0,
        help="write it again when something has changed, at most every S seconds (10), until the study is finished",
    )

    trials = command("trials", "results", "all trials, or all about one of them")
    trials.add_argument("number", metavar="NUMBER", type=int, nargs="?", help="all about this one")
    trials.add_argument("--state", choices=STATES, help="only these")
    trials.add_argument("--by-value", action="store_true", help="the best first")
    trials.add_argument("--last", metavar="N", type=_positive(int), help="only the last N")


def _seconds(text: str) -> float:
    seconds: float = float(as_seconds(text))
    return seconds


def _positive(kind: Any) -> Any:
    def positive(text: str) -> Any:
        number = kind(text)
        if not number > 0:
            raise argparse.ArgumentTypeError(f"must be greater than 0, but got {text}")
        return number

    positive.__name__ = kind.__name__  # for messages: "invalid int value"
    return positive


def _add_changes(command: Any) -> None:
    tell = command("tell", "tell", "enter the result of a running or lost trial by hand")
    tell._negative_number_matcher = re.compile(r"-(\d|\.\d|inf)")  # argparse takes -1e-3 for an option
    tell.add_argument("number", metavar="NUMBER", type=int, help="of the trial, as in the log")
    tell.add_argument("value", metavar="VALUE", type=float, nargs="?")
    tell.add_argument("--failed", metavar="REASON", help="instead of a value")
    tell.add_argument("--cost", metavar="S", type=float, help="seconds that it took")

    export = command("export", "exchange", "write a study down")
    shape = export.add_mutually_exclusive_group(required=True)
    file: dict[str, Any] = {"metavar": "FILE", "nargs": "?", "const": "-"}
    shape.add_argument("--csv", help="a row for each trial; to standard output without FILE", **file)
    shape.add_argument("--json", help="everything, for import; to standard output without FILE", **file)
    shape.add_argument("--optuna", metavar="URL", help="as a new study of the same name in an Optuna storage")

    import_ = command("import", "exchange", "take in trials that were run elsewhere; they use up no budget")
    shape = import_.add_mutually_exclusive_group(required=True)
    shape.add_argument("--csv", metavar="FILE", help="a row for each trial: parameters, and value or the metric's name")
    shape.add_argument("--json", metavar="FILE", help="what export has written; a new study becomes the same again")
    shape.add_argument("--optuna", metavar="URL", help="a study of an Optuna storage")
    import_.add_argument("--optuna-name", metavar="NAME", help="of the study there, if there are several")
    import_.add_argument("--spec", metavar="TARGET", help="the file with the space, if the study is new")
    import_.add_argument("--value-column", metavar="COLUMN", help="of the table: where the value stands")
    import_.add_argument("--map", metavar="NAME=COLUMN", action="append", help="of the table: where a parameter stands")
