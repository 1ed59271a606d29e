"""Transfer: what past studies say of the new one, and when they are not listened to.

The surrogate's prior mean is ``b m(x)``. ``m`` is the mixture ``sum_s w_s mu_s(x)`` of the past studies' means
(``sources.py``), each with unit spread. Own outcomes ``Z`` say how far to trust them:

    evidence(b, s) = N(Z; c + b mu_s(X), k(X, X) + noise I),

with ``c`` by generalised least squares, and ``b`` on a small grid. Its prior has a tenth at ``b = 0``, and the rest
around how well the past studies predict each other. A study's weight ``w_s`` is its evidence over all ``b > 0``, and
``b`` the posterior mean for their mixture.

The first trial is the place where all past studies expect little regret. But as long as all trials sit where they say
it is good, nothing can contradict them. So the ``CONTRASTS``-th trials are points of the Sobol sequence. From
``ENOUGH`` trials on, past studies that order fewer than half of the pairs of own trials as they came out are not
listened to at this ask, and after ``STRIKES`` such asks never again. A failed trial counts as the worst one there.
Three of them or more that do not predict each other are not listened to at all. Then the search is as it would have
been without them, and trials that they have chosen do not count as its initial design.

Near the optimum past studies may know no better than anybody. So from ``LOCAL`` trials on, the better half of own
trials has to be ordered as well; whoever fails there may be right again later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from llamatune_torch.engine.crash import SHORTEST
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import TrainingData
from llamatune_torch.engine.fields import Field
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import robust
from llamatune_torch.engine.sources import AGREE_ALONE, LABEL_NOISE, Sources, fit_sources
from llamatune_torch.past import teaches
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial, TrialState

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # the grid of b
NOT_AT_ALL = 0.1  # the prior probability of b = 0
SPREAD = 0.35  # of the others around the agreement
NOISE = 0.05  # of own outcomes' variance

CONTRASTS = (2, 6)  # the trials, counted from 1, that are Sobol points
ENOUGH = 2  # trials, from which on the past studies are judged
STRIKES = 2
LOCAL = 8  # trials, from which on the better half of them is judged too
LEAST_AGREEMENT = 0.3  # of three past studies or more
PORTFOLIO = 3  # trials
NUM_RESAMPLES = 64
SURE = 0.5  # between the labels -1 and 1: a first guess is expected to work
JUDGES = 60  # own trials at most: the first strike the past out, and as many, evenly over the record, weigh it


#: Notes on trials that past studies, or beliefs, have brought about, or not.
FIRST_GUESS = "where least regret is expected"
CONTRAST = "anywhere, so that what is expected can be contradicted"
OFF = "past studies are not listened to"


class Past(NamedTuple):
    """The past studies as they are listened to at one ask.

    sources
    weights   S   of the past studies, which sum to 1
    scale         ``b``
    off           why they are not listened to; ``None`` while they are
    for_good      whether that lasts
    """

    sources: Sources
    weights: Tensor
    scale: float
    off: str | None = None
    for_good: bool = False

    @property
    def mean(self) -> Field:
        """The prior mean of robust outcomes."""
        return self.sources.mixture(self.scale * self.weights)

    def believed_failures(self, data: TrainingData) -> tuple[Field, float] | None:
        """The labels that past studies expect (``CrashModel``), and how far they are believed; ``None`` for not at all.

        They are judged by own trials like their outcomes: by the evidence for ``b``, and not believed once they order
        fewer than half of the pairs of one that worked and one that failed.
        """
        if self.off is not None or self.sources.failures is None:
            return None
        expected = self.sources.failures.to(data.X)
        failed = data.X_failed[~data.is_error]
        X = torch.cat([data.X, failed])
        labels = torch.cat([torch.ones_like(data.X[:, 0]), -torch.ones_like(failed[:, 0])])
        with torch.no_grad():
            m = expected(X)
            signs = torch.sign(m[: len(data.X), None] - m[len(data.X) :])
        told = signs[signs != 0]
        if len(told) and float((told > 0).double().mean()) < 0.5:
            return None
        kernel = ProductKernel(data.features, SHORTEST)
        covariance = kernel.at(m.new_tensor(kernel.modes))
        judge = Judge(m[:, None], covariance.matrix_and_slope(data.features(X))[0], LABEL_NOISE, AGREE_ALONE)
        return expected, min(judge.scale_of(labels, m), 1.0)

    @property
    def note(self) -> str:
        """Says what the past studies contribute."""
        if self.off is not None:
            return f"{OFF}{' any more' if self.for_good else ''}: {self.off}"
        S, n = len(self.weights), self.sources.num_studies
        agree = self.weights * S > 0.5
        said = [f"{int(agree[:n].sum())} of {n} past studies agree"] if n else []
        if n < S:
            said.append(f"belief {'confirmed' if agree[-1] else 'not confirmed'}" if n else "a belief")
        return f"{', '.join(said)}, weight {self.scale:.2g}"


def is_heard(past: Past | None) -> bool:
    """True if there are past studies that are listened to."""
    return past is not None and past.off is None


def was_expected(trial: Trial) -> bool:
    """True if past studies, or beliefs, have chosen a trial's parameters because they expected them to be good."""
    note = trial.notes.get("past", CONTRAST)
    return note != CONTRAST and not note.startswith(OFF)


def notes_of(past: Past | None) -> dict[str, str]:
    """The notes of a trial, as far as they are about the past studies."""
    return {} if past is None else {"past": past.note}


def consult(study: Study, settings: Settings | None = None) -> Past | None:
    """Asks the past studies; ``None`` without any that can be used.

    ``Settings.transfer`` names the way: by evidence, as above; or, for comparison, by RGPE's weights
    (:func:`rank_weights`), or as a portfolio: the first few trials, and no more (Wistuba et al., 2015).
    """
    way = (settings or Settings()).transfer
    if study.goal.others:
        return None
    sources = fit_sources(study.space, study.past, study.context)
    if sources is None:
        return None
    S = len(sources.names)
    even = torch.full((S,), 1 / S, dtype=torch.float64)
    if sources.num_studies >= 3 and sources.agreement < LEAST_AGREEMENT:
        off = f"they do not predict each other (correlation {sources.agreement:.2f})"
        return Past(sources, even, 0.0, off, for_good=True)
    if way == "portfolio":
        over = num_chosen(study) >= PORTFOLIO
        return Past(sources, even, 0.0, "all of the portfolio has been tried" if over else None, for_good=True)
    if not study.completed:
        return Past(sources, even, float(prior_of_scale(sources.agreement) @ torch.tensor(SCALES, dtype=torch.float64)))
    ended = [trial for trial in study.trials if teaches(trial)]
    judge, values = _hear(sources, study, ended[:JUDGES])
    struck = _struck_out(judge, values)
    if struck is not None:
        off = f"at {struck} trials they had ordered fewer than half of the pairs as they came out, a second time"
        return Past(sources, even, 0.0, off, for_good=True)
    if len(ended) > JUDGES:
        rows = torch.linspace(0, len(ended) - 1, JUDGES, dtype=torch.float64).round().long()
        judge, values = _hear(sources, study, [ended[i] for i in rows])
    if way == "rgpe":
        weights, scale = rank_weights(judge, robust(values), (settings or Settings()).seed)
    else:
        weights, scale = judge.weigh(robust(values))
    misled = len(values) >= ENOUGH and judge.misleads(values)
    wrong = "they order fewer than half of the pairs of own trials as they came out"
    if not misled and len(values) >= LOCAL:
        misled = judge.misleads(values, values.topk(len(values) // 2).indices)
        wrong = "they order fewer than half of the pairs among the better half of own trials as they came out"
    return Past(sources, weights, scale, wrong if misled else None)


def _hear(sources: Sources, study: Study, trials: Sequence[Trial]) -> tuple[Judge, Tensor]:
    """The judge of own trials that have ended, and their outcomes (larger is better): what failed is the worst."""
    sign = 1.0 if study.direction == "maximize" else -1.0
    values = torch.tensor([-math.inf if t.value is None else sign * t.value for t in trials], dtype=torch.float64)
    X = Cube(study.space).encode_all([trial.params for trial in trials])
    K = sources.covariance.matrix_and_slope(sources.features(X))[0]
    return Judge(sources.means(X), K, NOISE, sources.agreement), values


def _struck_out(judge: Judge, values: Tensor) -> int | None:
    """The number of trials at which the last strike fell; ``None`` before that."""
    strikes = 0
    for n in range(ENOUGH, len(values) + 1):
        strikes += judge.misleads(values[:n])
        if strikes >= STRIKES:
            return n
    return None


def prior_of_scale(agreement: float) -> Tensor:
    """The prior probabilities of ``SCALES``."""
    grid = torch.tensor(SCALES[1:], dtype=torch.float64)
    around = (-((grid - agreement) / SPREAD).square() / 2).exp()
    return torch.cat([grid.new_tensor([NOT_AT_ALL]), (1 - NOT_AT_ALL) * around / around.sum()])


class Judge:
    """Weighs past studies by own outcomes, or by the first of them.

    Args:
        means: what each past study says of own trials, ``n x S``.
        K: the covariance of their outcomes without noise, ``n x n``.
        noise: its variance.
        agreement: how well past studies are expected to predict the new one.
    """

    def __init__(self, means: Tensor, K: Tensor, noise: float, agreement: float) -> None:
        self.means = means
        K.diagonal().add_(noise)
        self.root = psd_safe_cholesky(K)  # its leading blocks are the roots of the first trials
        self.prior = prior_of_scale(agreement).log().to(means)

    def weigh(self, Z: Tensor) -> tuple[Tensor, float]:
        """The weights of the past studies (``S``) and ``b``, by the first ``len(Z)`` robust outcomes."""
        M = self.means[: len(Z)]
        weights = (self.log_evidence(Z, M)[1:] + self.prior[1:, None]).logsumexp(dim=0).softmax(dim=0)
        return weights, self.scale_of(Z, M @ weights)

    def scale_of(self, Z: Tensor, m: Tensor) -> float:
        """The posterior mean of ``b`` for the mean ``m`` (``n``)."""
        posterior = (self.log_evidence(Z, m[:, None])[:, 0] + self.prior).softmax(dim=0)
        return float(posterior @ Z.new_tensor(SCALES))

    def log_evidence(self, Z: Tensor, M: Tensor) -> Tensor:
        """The log likelihoods of ``Z`` (``n``) for each of ``SCALES`` and each column of ``M`` (``n x S``).

        Up to a constant; ``len(SCALES) x S``.
        """
        n = len(Z)
        root = self.root[:n, :n]
        residuals = Z[None, :, None] - Z.new_tensor(SCALES)[:, None, None] * M
        flat = residuals.permute(1, 0, 2).reshape(n, -1)
        white = torch.linalg.solve_triangular(root, torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1), upper=False)
        white, one = white[:, :-1], white[:, -1]
        c = (one @ white) / (one @ one)
        log_likelihood: Tensor = -(white - one[:, None] * c).square().sum(dim=0) / 2
        return log_likelihood.view(len(SCALES), -1)

    def misleads(self, values: Tensor, rows: Tensor | None = None) -> bool:
        """True if the mixture orders fewer than half of the pairs of the first outcomes as they came out.

        With ``rows``, only pairs of these count.
        """
        Z = robust(values)
        weights, _ = self.weigh(Z)
        m = self.means[: len(Z)] @ weights
        if rows is not None:
            Z, m = Z[rows], m[rows]
        pairs = torch.triu(torch.ones(len(Z), len(Z), dtype=torch.bool), diagonal=1)
        signs = (torch.sign(Z[:, None] - Z) * torch.sign(m[:, None] - m))[pairs]
        told = signs[signs != 0]
        return len(told) > 0 and float((told > 0).double().mean()) < 0.5


def rank_weights(judge: Judge, Z: Tensor, seed: int) -> tuple[Tensor, float]:
    """The weights of the past studies by how well they rank own trials, and their sum against that of the own GP.

    In each of ``NUM_RESAMPLES`` bootstrap samples of own trials, whoever orders most pairs as they came out gets a
    vote. The own GP predicts each trial from the others (Feurer et al., 2018, arXiv:1802.02219, without the sampling
    from posteriors). What they leave out is learnt by the surrogate, as with other weights.
    """
    n, S = len(Z), judge.means.shape[1]
    if n < 3:
        return torch.full((S,), 1 / S, dtype=Z.dtype), 1.0
    inverse = torch.cholesky_inverse(judge.root[:n, :n])
    left_out = Z - (inverse @ Z) / inverse.diagonal()  # Rasmussen & Williams, 2006, eq. 5.12
    told = torch.cat([judge.means[:n], left_out[:, None]], dim=1)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(n, (NUM_RESAMPLES, n), generator=generator)
    order = torch.sign(Z[rows][:, :, None] - Z[rows][:, None, :])[..., None]
    said = torch.sign(told[rows][:, :, None] - told[rows][:, None, :])
    wrong = ((order * said) < 0).sum(dim=(1, 2))
    votes = (wrong == wrong.amin(dim=1, keepdim=True)).double()
    shares = (votes / votes.sum(dim=1, keepdim=True)).mean(dim=0)
    past = shares[:S].sum()
    return (shares[:S] / past if past > 0 else torch.full((S,), 1 / S, dtype=Z.dtype)), float(past)


def first_guess(past: Past, taken: Tensor, kept: Callable[[Tensor], Tensor] | None = None) -> Tensor | None:
    """The candidate at which the past studies, together, expect least regret, beside ``taken`` points (``m x d``).

    The regret of a study is the distance of the best of the candidate and the ``taken`` from its own best. ``None`` if
    no candidate lessens it. Shape ``d``.

    Candidates that may fail, by the past studies, or that are not ``kept`` (a mark for each of ``n x d`` points), are
    left out, if others remain.
    """
    candidates = past.sources.candidates
    with torch.no_grad():
        marks = [] if past.sources.failures is None else [past.sources.failures(candidates) > SURE]
        marks += [] if kept is None else [kept(candidates)]
        for mark in marks:
            if bool(mark.any()) and len(mark) == len(candidates):
                candidates = candidates[mark]
        means = past.sources.means(candidates)
        tops = means.amax(dim=0)
        have = past.sources.means(taken).amax(dim=0) if len(taken) else torch.full_like(tops, -torch.inf)
        regrets = (tops - torch.maximum(means, have)).clamp_min(0.0).mean(dim=-1)
        before = (tops - have).clamp_min(0.0).mean()
    i = int(regrets.argmin())
    return candidates[i] if bool(regrets[i] < before - 1e-9) else None


def num_chosen(study: Study) -> int:
    """The number of trials that the search has chosen: not those that people gave it."""
    own = {
        trial.first
        for trial in study.trials
        if trial.state is not TrialState.LOST and trial.origin not in ("default", "initial", "added", "confirm")
    }
    return len(own)
