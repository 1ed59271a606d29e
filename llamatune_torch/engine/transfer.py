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
listened to at this ask, and after ``STRIKES`` such asks never again. Three of them or more that do not predict each
other are not listened to at all. Then the search is as it would have been without them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import signed_values
from llamatune_torch.engine.outcome import robust
from llamatune_torch.engine.sources import Sources, fit_sources
from llamatune_torch.study import Study
from llamatune_torch.trial import TrialState

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # the grid of b
NOT_AT_ALL = 0.1  # the prior probability of b = 0
SPREAD = 0.35  # of the others around the agreement
NOISE = 0.05

CONTRASTS = (2, 6)  # the trials, counted from 1, that are Sobol points
ENOUGH = 4  # trials, from which on the past studies are judged
STRIKES = 2
LEAST_AGREEMENT = 0.3  # of three past studies or more
LISTENED = 200  # own trials at most, evenly over the record, that judge the past


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

    def mean(self, X: Tensor) -> Tensor:
        """The prior mean of robust outcomes at the rows of ``X`` (``n x d``); shape ``n``; differentiable."""
        return self.sources.means(X) @ (self.scale * self.weights)

    @property
    def note(self) -> str:
        """What the past studies contribute, for people."""
        S = len(self.weights)
        agree = int((self.weights * S > 0.5).sum())
        return f"{agree} of {S} past studies agree, weight {self.scale:.2g}"


def listened_to(study: Study) -> Past | None:
    """The past studies, if they are listened to at this ask."""
    past = consult(study)
    return past if past is not None and past.off is None else None


def consult(study: Study) -> Past | None:
    """What the past studies say now; ``None`` without any that can be used."""
    if not study.past or study.goal.others:
        return None
    sources = fit_sources(study.space, study.past, study.context)
    if sources is None:
        return None
    S = len(sources.names)
    even = torch.full((S,), 1 / S, dtype=torch.float64)
    if S >= 3 and sources.agreement < LEAST_AGREEMENT:
        off = f"they do not predict each other (correlation {sources.agreement:.2f})"
        return Past(sources, even, 0.0, off, for_good=True)
    completed = study.completed
    values = signed_values(study)
    if len(completed) > LISTENED:
        rows = torch.linspace(0, len(completed) - 1, LISTENED, dtype=torch.float64).round().long()
        completed, values = [completed[i] for i in rows], values[rows]
    if not completed:
        return Past(sources, even, float(prior_of_scale(sources.agreement) @ torch.tensor(SCALES, dtype=torch.float64)))
    X = Cube(study.space).encode_all([trial.params for trial in completed])
    judge = Judge(sources, X)
    strikes = 0
    for n in range(ENOUGH, len(completed) + 1):
        strikes += judge.misleads(values[:n])
        if strikes >= STRIKES:
            off = f"at {n} trials they had ordered fewer than half of the pairs as they came out, a second time"
            return Past(sources, even, 0.0, off, for_good=True)
    weights, scale = judge.weigh(robust(values))
    misled = len(completed) >= ENOUGH and judge.misleads(values)
    wrong = "they order fewer than half of the pairs of own trials as they came out"
    return Past(sources, weights, scale, wrong if misled else None)


def prior_of_scale(agreement: float) -> Tensor:
    """The prior probabilities of ``SCALES``."""
    grid = torch.tensor(SCALES[1:], dtype=torch.float64)
    around = (-((grid - agreement) / SPREAD).square() / 2).exp()
    return torch.cat([grid.new_tensor([NOT_AT_ALL]), (1 - NOT_AT_ALL) * around / around.sum()])


class Judge:
    """Weighs past studies by own outcomes at ``X`` (``n x d``), or by the first of them."""

    def __init__(self, sources: Sources, X: Tensor) -> None:
        self.means = sources.means(X)
        Z = sources.features(X)
        K = sources.covariance.matrix_and_slope(Z)[0]
        K.diagonal().add_(NOISE)
        self.root = psd_safe_cholesky(K)  # its leading blocks are the roots of the first trials
        self.prior = prior_of_scale(sources.agreement).log()

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

    def misleads(self, values: Tensor) -> bool:
        """True if the mixture orders fewer than half of the pairs of the first outcomes as they came out."""
        Z = robust(values)
        weights, _ = self.weigh(Z)
        m = self.means[: len(Z)] @ weights
        pairs = torch.triu(torch.ones(len(Z), len(Z), dtype=torch.bool), diagonal=1)
        signs = (torch.sign(Z[:, None] - Z) * torch.sign(m[:, None] - m))[pairs]
        told = signs[signs != 0]
        return len(told) > 0 and float((told > 0).double().mean()) < 0.5


def first_guess(past: Past, taken: Tensor) -> Tensor | None:
    """The candidate at which the past studies, together, expect least regret, beside ``taken`` points (``m x d``).

    The regret of a study is the distance of the best of the candidate and the ``taken`` from its own best. ``None`` if
    no candidate lessens it. Shape ``d``.
    """
    candidates = past.sources.candidates
    with torch.no_grad():
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
        if trial.state is not TrialState.LOST and trial.origin not in ("initial", "added", "confirm")
    }
    return len(own)
