"""Rules between parameters, known before anything runs: ``rank * batch <= 512``, ``hidden % heads == 0``."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamatune_torch.errors import RuleError
from llamatune_torch.parameter_base import describe, to_python

#: True for parameters that may be tried; those that are inactive are absent from the dict.
Rule = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Linear:
    """A linear rule, as data: ``lower <= sum of coefficient * parameter <= upper``; absent parameters count as 0.

    Args:
        coefficients: a number for each parameter that matters.
        lower, upper: the bounds, both included; at least one of them.

    Raises:
        RuleError: there are no coefficients, or no bound, or something is no finite number.

    Example:
        >>> Linear({"layers": 1, "heads": 2}, upper=30)({"layers": 12, "heads": 9})
        True
    """

    coefficients: Mapping[str, float]
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.coefficients, Mapping) or not self.coefficients:
            raise RuleError(f"a linear rule needs a dict of coefficients, but got {describe(self.coefficients)}")
        object.__setattr__(self, "coefficients", {name: to_python(c) for name, c in self.coefficients.items()})
        bounds = [to_python(bound) for bound in (self.lower, self.upper) if bound is not None]
        if not bounds:
            raise RuleError("a linear rule must have a bound: lower=0, or upper=30")
        for number in (*self.coefficients.values(), *bounds):
            if not isinstance(number, (int, float)) or isinstance(number, bool) or not math.isfinite(number):
                raise RuleError(f"a linear rule consists of finite numbers, but got {number!r}")

    def __call__(self, params: Mapping[str, Any]) -> bool:
        total = math.fsum(c * params.get(name, 0) for name, c in self.coefficients.items())
        return (self.lower is None or total >= self.lower) and (self.upper is None or total <= self.upper)

    def __str__(self) -> str:
        terms = " + ".join(f"{c:g} * {name}" for name, c in self.coefficients.items())
        low = "" if self.lower is None else f"{self.lower:g} <= "
        return f"{low}{terms}" + ("" if self.upper is None else f" <= {self.upper:g}")


@dataclass(frozen=True)
class Unknown:
    """A rule that is known by its name alone: whoever reads a stored study does not have the function."""

    name: str

    def __call__(self, params: Mapping[str, Any]) -> bool:
        raise RuleError(f"rule {self.name} is not known in this process: whoever searches must bring the same function")


def read_rules(given: Any) -> tuple[Rule, ...]:
    """Reads one rule, several in a list, or none (``None``).

    Raises:
        RuleError: something else is among them.
    """
    rules = () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for rule in rules:
        if not callable(rule):
            raise RuleError(f"a rule must be a function of the parameters, or Linear(...), but got {describe(rule)}")
    return rules


def is_kept(rules: Sequence[Rule], params: dict[str, Any]) -> bool:
    """True if parameters keep all rules.

    Raises:
        RuleError: a rule raises an exception; the message has the parameters.
    """
    for rule in rules:
        try:
            kept = bool(rule(dict(params)))
        except RuleError:
            raise
        except Exception as error:
            raise RuleError(f"rule {name_of_rule(rule)} raised {error!r} for {params}") from error
        if not kept:
            return False
    return True


def name_of_rule(rule: Rule) -> str:
    """The name by which a stored study remembers a rule: a linear one in full, else with a hash of its source."""
    if isinstance(rule, Linear):
        return str(rule)
    if isinstance(rule, Unknown):
        return rule.name
    try:
        source = inspect.getsource(rule)
    except (OSError, TypeError):  # typed at a prompt, or an object with __call__
        code = getattr(rule, "__code__", None)
        source = repr(rule) if code is None else f"{code.co_code!r}{code.co_consts!r}{code.co_names!r}"
    name = getattr(rule, "__qualname__", type(rule).__qualname__)
    return f"{name}@{hashlib.sha256(source.encode()).hexdigest()[:12]}"
