"""``tune_decoding()``: the best decoding parameters of a model, for the least tokens.

Settings race over prompts (``engine/strategies/race.py``). The default answers all of them first. Each further setting
answers a few, the same ones in the same order, and goes on while it may still win. What is held out in the end tells if
the winner is better than the default (``verdict.py``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from llamatune_torch.curve import Curve
from llamatune_torch.engine.strategies.race import Race
from llamatune_torch.errors import (
    BudgetSpentError,
    EvaluationError,
    IgnoredParameterWarning,
    SettingsError,
    SpaceExhaustedError,
)
from llamatune_torch.goal import End
from llamatune_torch.integrations.decoding.backends import Answers, Backend, Prompt, find_backend
from llamatune_torch.integrations.decoding.verdict import compare
from llamatune_torch.parameter_base import describe
from llamatune_torch.runtime.optimizer import LlamaTune
from llamatune_torch.seeds import derived_seed
from llamatune_torch.space import SearchSpace
from llamatune_torch.spaces import decoding
from llamatune_torch.study import Study
from llamatune_torch.trial import Outcome, Trial

Score = Callable[[Any, str, Any], float]

ENOUGH = 10**9  # full runs: tokens end the search
AT_ONCE = 16  # prompts that a backend is given
SUSPICIOUS = 3  # settings with the answers of the default, from which on the backend is said to ignore parameters


def tune_decoding(
    generate: Any,
    prompts: Sequence[Prompt | tuple[Prompt, Any]],
    score: Score,
    space: Mapping[str, Any] | SearchSpace | None = None,
    *,
    budget_tokens: float,
    held_out: float = 0.25,
    first: int = 8,
    seed: int = 0,
    **options: Any,
) -> Study:
    """Finds the decoding parameters with the best mean score over prompts.

    Args:
        generate: a pair ``(model, tokenizer)`` of ``transformers``, an ``EndpointBackend``, or a function
            ``(prompts, params, seed) -> texts``.
        prompts: texts or chats, or pairs of one and a reference. They are shuffled by ``seed``.
        score: ``(prompt, text, reference) -> number``, larger is better; the reference is ``None`` without one.
        space: what to try; by default ``spaces.decoding()`` with the parameters that the backend has. A space without
            a ``default`` compares with its first trial.
        budget_tokens: tokens of all answers together, those of held-out prompts included. It is kept to within what one
            setting answers at a time.
        held_out: the share of the prompts that choose nothing, and compare winner and default in the end; 0 for none.
        first: prompts that each setting answers at least.
        seed: of the order of prompts, of the search and of sampling.
        **options: of ``LlamaTune``: ``constraints`` (on "tokens_per_answer"), ``storage``, ``name``, ``progress``, ...

    Returns:
        The study. Settings that stopped early are STOPPED; their curves have a score for each prompt. ``study.ended``
        is the verdict. Each trial has the outcomes "tokens" and "tokens_per_answer".

    Raises:
        SettingsError: too few prompts, a budget below one evaluation, a parameter that the backend does not have.
        EvaluationError: the first settings failed, one and all.

    Warns:
        IgnoredParameterWarning: the answers are the same under different settings.

    Example:
        >>> study = tune_decoding((model, tokenizer), pairs, exact_match, budget_tokens=200_000)
        >>> study.best_params, study.ended
        ({'method': 'sample', 'temperature': 0.31, ...}, 'better than the default by 0.031 (0.012 to 0.05, 90%) ...')
    """
    backend = find_backend(generate)
    space = _check_space(space, backend)
    chosen, kept = _split(prompts, held_out, first, seed)
    if not budget_tokens > 0:
        raise SettingsError(f"budget_tokens must be a number of tokens > 0, but got {describe(budget_tokens)}")
    race = Race(len(chosen), min(first, len(chosen)))
    tuner = LlamaTune(space, max_evals=ENOUGH, strategy=race, seed=seed, metric="score", **options)
    run = _Run(tuner, backend, score, chosen, kept, seed, budget_tokens)
    run.search()
    reason = run.conclude()
    return replace(tuner.study, end=End(len(tuner.study.trials), reason))


def _check_space(space: Mapping[str, Any] | SearchSpace | None, backend: Backend) -> SearchSpace:
    if space is None:
        return decoding(backend.names)
    found = SearchSpace(space)
    unknown = [name for name in found.names if backend.names is not None and name not in backend.names]
    if unknown:
        known = sorted(backend.names or ())
        raise SettingsError(f"the backend has no parameters {unknown}; it has {known}")
    return found


def _split(
    prompts: Sequence[Any], held_out: float, first: int, seed: int
) -> tuple[list[tuple[Prompt, Any]], list[tuple[Prompt, Any]]]:
    """The prompts that choose, and those that are held out, as pairs with references, in the order of ``seed``."""
    pairs = [prompt if isinstance(prompt, tuple) else (prompt, None) for prompt in prompts]
    if not 0 <= held_out < 1:
        raise SettingsError(f"held_out must be a share in [0, 1), but got {describe(held_out)}")
    num_kept = math.ceil(held_out * len(pairs))
    if len(pairs) - num_kept < 2 or (num_kept and num_kept < 2):
        raise SettingsError(f"prompts must be enough to choose by and to hold out, but there are {len(pairs)}")
    if first < 2:
        raise SettingsError(f"first must be an integer >= 2, but got {first!r}")
    order = np.random.default_rng(derived_seed(seed, 16)).permutation(len(pairs))
    shuffled = [pairs[i] for i in order]
    return shuffled[num_kept:], shuffled[:num_kept]


class _Run:
    """One search: the tuner, what answers and what judges, and the tokens that are left."""

    def __init__(
        self,
        tuner: LlamaTune,
        backend: Backend,
        score: Score,
        chosen: Sequence[tuple[Prompt, Any]],
        kept: Sequence[tuple[Prompt, Any]],
        seed: int,
        budget: float,
    ) -> None:
        self.tuner, self.backend, self.score = tuner, backend, score
        self.chosen, self.kept, self.seed, self.budget = chosen, kept, seed, budget
        self._first_answers: Sequence[str] | None = None
        self._num_alike = 0  # settings that answered as the first one did
        self._differs = False  # one has answered otherwise

    @property
    def spent(self) -> float:
        """The tokens of all answers on record."""
        return math.fsum(trial.outcomes.get("tokens", 0.0) for trial in self.tuner.study.trials)

    @property
    def tokens_per_answer(self) -> float:
        """The mean over all answers on record; 0 before the first."""
        answers = sum(len(trial.curve) for trial in self.tuner.study.trials)
        return self.spent / answers if answers else 0.0

    def affords(self, answers: int) -> bool:
        """True if so many more answers leave enough for those of held-out prompts."""
        return self.spent + self.tokens_per_answer * (answers + 2 * len(self.kept)) <= self.budget

    def search(self) -> None:
        """Races settings until the tokens are spent, or the space is."""
        n = len(self.chosen)
        while True:
            try:
                trial = self.tuner.ask()
            except (BudgetSpentError, SpaceExhaustedError):
                break
            seen, until = len(trial.curve), max(len(trial.curve) + 1, round(trial.until * n))
            if self.spent and not self.affords(until - seen):
                self.tuner.abandon(trial.number, "the tokens are spent")
                break
            self._advance(trial, seen, min(until, n))
            self._check_any_works()

    def _advance(self, trial: Trial, seen: int, until: int) -> None:
        """Lets a setting answer the prompts from ``seen`` to ``until``."""
        n, scores, tokens = len(self.chosen), list(trial.curve.values), trial.outcomes.get("tokens", 0.0)
        for begin in range(seen, until, AT_ONCE):
            part = self.chosen[begin : min(until, begin + AT_ONCE)]
            answers, found = self._ask(part, trial.params, begin)
            if isinstance(found, str):
                self.tuner.tell(trial, Outcome.failure(found, outcomes={"tokens": tokens + answers.tokens}))
                return
            scores += found
            tokens += answers.tokens
            if not seen and not begin:
                self._suspect(trial, answers.texts)
            if trial.number == 0 and not seen:
                self._check_budget(tokens / len(scores))
        steps = list(range(1, len(scores) + 1))
        self.tuner.tell(
            trial,
            Outcome(
                fmean(scores) if len(scores) == n else None,
                curve=Curve(steps, scores, [step / n for step in steps]),
                outcomes={"tokens": tokens, "tokens_per_answer": tokens / len(scores)},
                paused=len(scores) < n,
            ),
        )

    def _ask(
        self, pairs: Sequence[tuple[Prompt, Any]], params: Mapping[str, Any], begin: int
    ) -> tuple[Answers, list[float] | str]:
        """The answers to some prompts and their scores, or what went wrong."""
        seeds = [derived_seed(self.seed, 17, begin + i) for i in range(len(pairs))]
        answers = self.backend.answer([prompt for prompt, _ in pairs], params, seeds)
        if len(answers.texts) != len(pairs):
            raise SettingsError(
                f"generate must return one text for each of {len(pairs)} prompts, but got {len(answers.texts)}"
            )
        scores = []
        for i, ((prompt, reference), text) in enumerate(zip(pairs, answers.texts, strict=True)):
            if not isinstance(text, str):
                return answers, f"no text for prompt {begin + i}, but {describe(text)}"
            try:
                value = float(self.score(prompt, text, reference))
            except Exception as error:
                return answers, f"score raised {type(error).__name__} for prompt {begin + i}: {error}"
            if not math.isfinite(value):
                return answers, f"the score of prompt {begin + i} is {value}"
            scores.append(value)
        return answers, scores

    def _check_any_works(self) -> None:
        study = self.tuner.study
        if len(study.failed) == len(study.trials) >= SUSPICIOUS:
            raise EvaluationError(f"the first {len(study.trials)} settings failed: {study.failed[-1].reason}")

    def _check_budget(self, per_answer: float) -> None:
        needed = per_answer * (len(self.chosen) + 2 * len(self.kept))
        if needed > self.budget:
            raise SettingsError(
                f"budget_tokens={self.budget:g} is below one evaluation: {len(self.chosen)} prompts, and "
                f"{len(self.kept)} held-out ones twice, at {per_answer:.3g} tokens each take about {needed:.3g}"
            )

    def _suspect(self, trial: Trial, texts: Sequence[str]) -> None:
        """Warns once of answers that are the same, whatever the parameters."""
        if self._first_answers is None:
            self._first_answers = texts
            return
        self._differs = self._differs or list(texts) != list(self._first_answers)[: len(texts)]
        self._num_alike += 1
        if self._num_alike == SUSPICIOUS and not self._differs:
            warnings.warn(
                f"the answers of {SUSPICIOUS + 1} different settings are the same, to the last of {trial.params}: "
                "the backend seems to ignore its parameters",
                IgnoredParameterWarning,
                stacklevel=2,
            )

    def conclude(self) -> str:
        """The verdict, on prompts that chose nothing."""
        study = self.tuner.study
        if not study.feasible:
            return "no setting has answered all prompts"
        winner, default = study.best_trial, study.default_trial or study.trials[0]
        if winner.number == default.number:
            return (
                "no setting is distinguishable from the default, which is the best of those that answered all prompts"
            )
        if len(self.kept) < 2:
            return f"the best of {len(study.completed)} settings that answered all prompts; no prompts were held out"
        scores = []
        for trial in (winner, default):
            params = study.space.values_of(trial.params)
            _, found = self._ask(self.kept, params, len(self.chosen))
            if isinstance(found, str):
                return f"not compared on held-out prompts: {found}"
            scores.append(found)
        return str(compare(*scores))
