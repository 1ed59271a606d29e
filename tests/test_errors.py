"""The tree of errors: as drawn, and every branch of it in use."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from strategies import make_study

import llamatune_torch
from llamatune_torch import (
    Curve,
    LlamaTune,
    LlamaTuneError,
    LlamaTuneWarning,
    MetricError,
    Real,
    SearchSpace,
    Settings,
    errors,
)
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.integrations.trainer.metric import Metric

CLASSES = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}
ROOTS = {"LlamaTuneError", "LlamaTuneWarning"}
PACKAGE = Path(llamatune_torch.__file__).parent


def drawn_tree() -> dict[str, tuple[str, str | None]]:
    """``{class: (its parent, its builtin base)}`` as the docstring's drawing has it."""
    tree: dict[str, tuple[str, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( *)((?:│   |├── |└── |    )*)(\w+(?:Error|Warning))\b(?:\s+\((\w+)\))?", line)
        if not match:
            continue
        depth = (len(match[1]) + len(match[2])) // 4 - 1
        path[depth:] = [match[3]]
        tree[match[3]] = (path[depth - 1] if depth else "", match[4])
    return tree


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    drawn = drawn_tree()
    assert set(drawn) == set(CLASSES)
    for name, (parent, builtin) in drawn.items():
        bases = [base.__name__ for base in CLASSES[name].__bases__]
        expected = [parent, builtin] if name not in ROOTS else [builtin or "Exception"]
        assert bases == [base for base in expected if base], name


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_one_except_clause_or_one_filter_catches_all_of_them(name: str) -> None:
    root = LlamaTuneWarning if name.endswith("Warning") else LlamaTuneError
    assert issubclass(CLASSES[name], root)
    assert CLASSES[name].__doc__


@cache
def raised_somewhere() -> set[str]:
    """Names in the source, as ``raise Name(...)``, or as the category of ``warnings.warn``."""
    found = set()
    for node in (node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))):
        raised = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.func
        if isinstance(raised, ast.Name):
            found.add(raised.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warn":
            found |= {argument.id for argument in node.args if isinstance(argument, ast.Name)}
    return found


@pytest.mark.parametrize("name", sorted(set(CLASSES) - ROOTS))
def test_every_error_and_warning_is_raised_somewhere(name: str) -> None:
    assert name in raised_somewhere()


def exhausted() -> Any:
    return suggest(make_study({"c": ["a", "b"]}, [({"c": "a"}, 1.0), ({"c": "b"}, None)]))


def told_twice() -> Any:
    optimizer = LlamaTune({"x": (0.0, 1.0)})
    trial = optimizer.ask()
    optimizer.tell(trial, 1.0)
    optimizer.tell(trial, 1.0)


# TrainerError and the warnings about factories and checkpoints need a Trainer: tests/integrations has them.
@pytest.mark.parametrize(
    ("name", "provoke", "message"),
    [
        (
            "SpaceError",
            lambda: SearchSpace({"lr": (2.0, 1.0)}),
            r"parameter 'lr': low < high must hold.*low=2.0, high=1.0",
        ),
        (
            "ParamsError",
            lambda: SearchSpace({"lr": Real(0, 1)}).validate({"lr": 7}),
            r"'lr' must lie in \[0, 1\].*got 7",
        ),
        ("SettingsError", lambda: Settings(xi=-1), r"xi must be a finite number >= 0.0, but got -1"),
        ("OutcomeError", lambda: Curve().reported(1, 0.5, progress=3), r"progress must lie in \[0, 1\], but got 3"),
        ("TrialStateError", told_twice, r"trial 0 has finished \(complete\) and cannot change"),
        ("SpaceExhaustedError", exhausted, r"all 2 points of the space are done or running"),
        (
            "NoCompletedTrialError",
            lambda: make_study({"c": ["a"]}).best_trial,
            r"no trial has completed yet \(0 started\)",
        ),
        (
            "MetricError",
            lambda: Metric("eval_f1", "maximize").read({"eval_loss": 1.0, "eval_accuracy": 0.5}),
            r"no metric 'eval_f1', the Trainer reports: eval_accuracy, eval_loss, eval_perplexity",
        ),
    ],
)
def test_errors_name_the_rule_the_name_and_the_value(name: str, provoke: Callable[[], Any], message: str) -> None:
    with pytest.raises(CLASSES[name], match=message) as caught:
        provoke()
    assert type(caught.value) is CLASSES[name]


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_messages_are_shown_as_written(name: str) -> None:
    """KeyError among the bases would show them quoted."""
    message = "metric 'f1' does not exist"
    assert str(CLASSES[name](message)) == message


def test_metric_errors_are_key_errors_too() -> None:
    assert issubclass(MetricError, KeyError)


def test_no_name_hides_a_builtin() -> None:
    assert not set(CLASSES) & set(vars(builtins))
