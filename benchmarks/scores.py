"""From runs to tables, for ``regret.py``.

*Regret* of a run at ``n`` evaluations: how far the parameters that it would hand over truly are from the optimum. On a
problem without noise these are the best so far; on a noisy one those that the method recommends.

*Normalised regret*: the median over the seeds divided by random search's at the same ``n`` (0 is the optimum, 1 is
random search), at most ``CAP``, so that one problem does not decide an average. Where random search's median is 0, it
is 1 for a method whose median is 0 too, and ``CAP`` for any other. A run that has nothing to hand over yet, since all
failed or the method broke, has infinite regret.

*Mean rank*: within each problem the methods are ranked by median regret, ties sharing the mean of their ranks; then the
mean over the problems. Ranks within each seed would favour whoever has run more seeds than the others, since on those
it is compared with the few that have run them too. Where not every method has run on a problem, ranks are stretched to
the full number of methods, so that the best is 1 and the worst is that number everywhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Run = dict[str, Any]

CHECKPOINTS = (10, 20, 30, 50, 100)
CAP = 3.0


def curve(run: Run, evals: int) -> list[float]:
    """The regret of the evaluation that looks best, after each of ``evals``; inf before the first success."""
    changes = dict(run.get("regrets", []))
    values, current = [], math.inf
    for n in range(1, evals + 1):
        current = changes.get(n, current)
        values.append(current)
    return values


def regret_at(run: Run, n: int, noisy: bool) -> float:
    """The regret of what the method would hand over after ``n`` evaluations."""
    if noisy and not run.get("error"):
        return float(dict(run["recommended"]).get(n, math.inf))
    return math.inf if run.get("error") else curve(run, n)[-1]


def normalised(regret: float, of_random: float) -> float:
    """A median regret in units of random search's; see the module's rules."""
    if math.isinf(regret):
        return CAP
    if of_random == 0:
        return 1.0 if regret == 0 else CAP
    return min(CAP, regret / of_random)


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks.

    Example:
        >>> ranks([0.3, 0.1, 0.3])
        [2.5, 1.0, 2.5]
    """
    return [sum(other < value for other in values) + (1 + values.count(value)) / 2 for value in values]


class Scores:
    """All runs with the same ``q``, next to random search.

    Args:
        runs: as ``regret.py`` records them, those of random search among them.
        q: how many evaluations are asked for at once; random search counts for every ``q``.
        noisy: the names of the problems that are judged by what is recommended.
    """

    def __init__(self, runs: Iterable[Run], q: int, noisy: Iterable[str]) -> None:
        self.noisy = set(noisy)
        self.groups: dict[tuple[str, str], list[Run]] = {}
        for run in runs:
            if run["method"] == "random" or run["q"] == q:
                self.groups.setdefault((run["problem"], run["method"]), []).append(run)
        self.problems = list(dict.fromkeys(problem for problem, method in self.groups if method == "random"))
        self.methods = list(dict.fromkeys(method for _, method in self.groups))
        evals = [run["evals"] for group in self.groups.values() for run in group]
        self.points = [n for n in CHECKPOINTS if n <= max(evals, default=0)]

    def regrets(self, problem: str, method: str, n: int) -> dict[int, float]:
        """Seed -> regret, of the runs that are long enough."""
        group = self.groups.get((problem, method), [])
        return {run["seed"]: regret_at(run, n, problem in self.noisy) for run in group if run["evals"] >= n}

    def median(self, problem: str, method: str, n: int) -> float | None:
        """The median over the seeds; ``None`` without a run."""
        found = self.regrets(problem, method, n)
        return statistics.median(found.values()) if found else None

    def normalised(self, problem: str, method: str, n: int) -> float | None:
        median, of_random = self.median(problem, method, n), self.median(problem, "random", n)
        return None if median is None or of_random is None else normalised(median, of_random)

    def aggregate(self, method: str, n: int) -> tuple[float, float] | None:
        """Mean and median over the problems of the normalised regret; ``None`` unless it has run on all of them."""
        found = [self.normalised(problem, method, n) for problem in self.problems]
        known = [value for value in found if value is not None]
        return (statistics.mean(known), statistics.median(known)) if known and len(known) == len(found) else None

    def mean_ranks(self, n: int) -> dict[str, float]:
        """The mean over the problems of each method's rank by median regret."""
        found: dict[str, list[float]] = {method: [] for method in self.methods}
        for problem in self.problems:
            medians = {method: self.median(problem, method, n) for method in self.methods}
            known = {method: median for method, median in medians.items() if median is not None}
            if len(known) < 2:
                continue
            stretch = (len(self.methods) - 1) / (len(known) - 1)
            for method, rank in zip(known, ranks(list(known.values())), strict=True):
                found[method].append(1 + (rank - 1) * stretch)
        return {method: statistics.mean(all_ranks) for method, all_ranks in found.items() if all_ranks}

    def error(self, problem: str | None, method: str) -> str | None:
        """Why a method broke on a problem (on the first of all, for ``None``), in one line."""
        for (where, who), group in self.groups.items():
            if who == method and problem in (None, where):
                for run in group:
                    if run.get("error"):
                        return str(run["error"])
        return None

    def mean(self, problem: str, method: str, key: str) -> float:
        group = self.groups[problem, method]
        return statistics.mean(run.get(key, 0) for run in group)


def evaluations_ratio(sequential: Scores, batched: Scores, method: str, at: int) -> float | None:
    """How many times the evaluations a batched search needs for the median regret of the sequential one.

    The geometric mean over the problems of ``n_batched / n_sequential``, either being the first number of evaluations
    with a median regret (of what looks best) no larger than that of the sequential search at ``at`` evaluations; one
    more than all where the batched search does not get there.
    """
    ratios = []
    for problem in sequential.problems:
        one, many = (scores.groups.get((problem, method)) for scores in (sequential, batched))
        if not one or not many:
            continue
        target = median_curve(one, at)[-1]
        if math.isinf(target):
            continue
        needed = [first_at_most(median_curve(one, at), target)]
        needed.append(first_at_most(median_curve(many, min(run["evals"] for run in many)), target))
        ratios.append(math.log(needed[1] / needed[0]))
    return math.exp(statistics.mean(ratios)) if ratios else None


def median_curve(group: list[Run], evals: int) -> list[float]:
    return [statistics.median(values) for values in zip(*(curve(run, evals) for run in group), strict=True)]


def first_at_most(values: list[float], target: float) -> int:
    return next((n for n, value in enumerate(values, start=1) if value <= target), len(values) + 1)


def tables(scores: Scores, title: str) -> str:
    """Three tables in Markdown: over all problems, each problem next to each method, and each run's cost as well."""
    points = scores.points
    head = [f"n={n}" for n in points]
    overall = [["method", *(f"rank, {h}" for h in head), *(f"regret, {h}" for h in head), "seeds"]]
    all_ranks = {n: scores.mean_ranks(n) for n in points}
    for method in scores.methods:
        errors = [scores.error(problem, method) for problem in scores.problems]
        if errors and all(errors):
            overall.append([method, f"failed: {errors[0]}"])
            continue
        cells = [f"{all_ranks[n][method]:.2f}" if method in all_ranks[n] else "-" for n in points]
        for n in points:
            mean_and_median = scores.aggregate(method, n)
            cells.append("-" if mean_and_median is None else "{:.2f} ({:.2f})".format(*mean_and_median))
        seeds = sorted({len(group) for (_, who), group in scores.groups.items() if who == method})
        overall.append([method, *cells, f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"])
    each = [["problem", "method", *head, "failed", "cpu s"]]
    each += [_row(scores, p, m) for p in scores.problems for m in scores.methods if (p, m) in scores.groups]
    about = f"**{title}**, {len(scores.problems)} problems; regret: mean (median) of the normalised regret"
    compact = by_problem(scores, [n for n in points if n >= 30] or points)
    return "\n".join([about, "", markdown(overall), "", compact, "", markdown(each)])


def by_problem(scores: Scores, points: Sequence[int]) -> str:
    """One row a problem, one column a method: the normalised regret at each of ``points``; "-" without a run."""
    methods = [method for method in scores.methods if method != "random"]
    rows = [["problem, n=" + " / ".join(map(str, points)), *methods]]
    for problem in scores.problems:
        cells = []
        for method in methods:
            values = [scores.normalised(problem, method, n) for n in points]
            known = " / ".join("-" if value is None else f"{value:.2f}" for value in values)
            cells.append("failed" if scores.error(problem, method) else known)
        rows.append([problem, *cells])
    return markdown(rows)


def _row(scores: Scores, problem: str, method: str) -> list[str]:
    if error := scores.error(problem, method):
        return [problem, method, f"failed: {error}"]
    values = [scores.normalised(problem, method, n) for n in scores.points]
    failed, seconds = (scores.mean(problem, method, key) for key in ("failures", "cpu_seconds"))
    cells = ["-" if value is None else f"{value:.3f}" for value in values]
    return [problem, method, *cells, f"{failed:.1f}", f"{seconds:.1f}"]


def markdown(rows: list[list[str]]) -> str:
    """A table that reads well as plain text, too; the first row is its head, short rows are filled up."""
    rows = [row + [""] * (len(rows[0]) - len(row)) for row in rows]
    # A cell with a sentence (why something failed) must not widen its column.
    widths = [max(len(cell) for cell in column if len(cell) < 30) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
