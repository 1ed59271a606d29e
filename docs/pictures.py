"""The pictures of ``how-it-decides.md``: drawn by the engine that they show.

python docs/pictures.py            # into docs/pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from llamatune_torch import Integer, LlamaTune, Real, SearchSpace, problems
from llamatune_torch.engine.acquisition import make_acquisition
from llamatune_torch.engine.crash import crash_factors
from llamatune_torch.engine.data import in_the_metric, training_data
from llamatune_torch.engine.suggest import fit_surrogate
from llamatune_torch.settings import Settings

INK, ACCENT, SOFT, BAD = "#3b4252", "#3b5bdb", "#c5d0fa", "#d9480f"
CPU = torch.device("cpu")


def draw_surrogate() -> Figure:
    """Draws the surrogate of one learning rate, and the expected improvement."""
    space = SearchSpace({"learning_rate": Real(1e-6, 1e-2, prior="log-uniform")})

    def train(params: dict[str, float]) -> float:
        off = np.log10(params["learning_rate"]) + 3.7
        return float(0.9 - 0.04 * off**2 - (0.25 if off > 0.9 else 0.0))

    tuner = LlamaTune(space, train, max_evals=6, seed=4, progress=False)
    tuner.optimize()
    study, rates = tuner.study, np.logspace(-6, -2, 300)
    data = training_data(study, CPU, [])
    surrogate = fit_surrogate(data)
    x = torch.linspace(0, 1, 300, dtype=torch.float64).unsqueeze(-1)
    acquisition = make_acquisition(Settings(), surrogate, data.X, data.X_pending, [], seed=0)
    with torch.no_grad():
        posterior = surrogate.posterior(x)
        mean, sd = posterior.mean.squeeze(-1), posterior.variance.squeeze(-1).sqrt()
        low, middle, high = (in_the_metric(study, data, mean + z * sd).numpy() for z in (-1.645, 0.0, 1.645))
        gain = acquisition(x.unsqueeze(1)).exp().numpy()
    figure = Figure(figsize=(7, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.fill_between(rates, low, high, color=SOFT, lw=0, label="90 %")
    above.plot(rates, middle, color=ACCENT, label="expected")
    tried = [trial.params["learning_rate"] for trial in study.completed]
    above.plot(tried, [trial.value for trial in study.completed], "o", color=INK, label="trials")
    above.set(ylabel="accuracy", xscale="log", ylim=(0.4, 1.0))
    above.legend(frameon=False, loc="lower left", ncols=3)
    below.fill_between(rates, 0, gain, color=ACCENT, lw=0)
    best = int(gain.argmax())
    below.axvline(rates[best], color=BAD, lw=1)
    below.annotate("next", (rates[best], gain[best]), xytext=(4, -10), textcoords="offset points", color=BAD)
    below.set(xlabel="learning rate", ylabel="improvement", yticks=[])
    return figure


def draw_crash() -> Figure:
    """Draws the probability that a run works, next to a wall of memory."""
    space = SearchSpace({"batch": Integer(1, 64, prior="log-uniform"), "length": Real(128, 4096, prior="log-uniform")})

    def train(params: dict[str, float]) -> float:
        if params["batch"] * params["length"] > 16000:
            raise MemoryError
        return float(np.log(params["batch"] * params["length"]) - 0.2 * (np.log2(params["batch"]) - 3) ** 2)

    tuner = LlamaTune(space, train, max_evals=24, seed=1, progress=False)
    tuner.optimize()
    data = training_data(tuner.study, CPU, [])
    side = torch.linspace(0, 1, 60, dtype=torch.float64)
    X = torch.cartesian_prod(side, side)
    with torch.no_grad():
        works = torch.stack([factor.log_value(X.unsqueeze(1)) for factor in crash_factors(data)]).sum(dim=0).exp()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    batches, lengths = np.geomspace(1, 64, 60), np.geomspace(128, 4096, 60)
    shown = axes.contourf(batches, lengths, works.view(60, 60).T.numpy(), levels=np.linspace(0, 1, 11), cmap="Blues")
    figure.colorbar(shown, label="probability that a run works")
    for trials, marker, color in ((tuner.study.completed, "o", INK), (tuner.study.failed, "x", BAD)):
        axes.plot([t.params["batch"] for t in trials], [t.params["length"] for t in trials], marker, color=color)
    axes.plot(batches, 16000 / batches, "--", color=BAD, lw=1)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="sequence length", ylim=(128, 4096))
    return figure


def draw_curves() -> Figure:
    """Draws the learning curves of a search that stops most runs early."""
    problem = next(each for each in problems.CURVES if each.name == "fine_tune_4")
    reached: dict[str, int] = {}

    def train(params):  # type: ignore[no-untyped-def]  # a generator
        curve = problem.curve(params, 0)
        for step in range(reached.get(repr(params), 0), len(curve)):
            reached[repr(params)] = step + 1
            yield step + 1, curve[step], (step + 1) / len(curve)

    tuner = LlamaTune(problem.space, train, max_evals=8, direction=problem.direction, seed=0, progress=False)
    tuner.optimize()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for trial in tuner.study.trials:
        done = trial in tuner.study.completed
        steps = [10 * step for step in trial.curve.steps]
        axes.plot(steps, trial.curve.values, "-" if len(steps) > 1 else "o", ms=3, color=ACCENT if done else "#adb5bd")
        axes.plot(steps[-1:], trial.curve.values[-1:], "o", ms=4, color=ACCENT if done else "#adb5bd")
    axes.set(xlabel="share of the full run (%)", ylabel="loss")
    axes.set_title(f"{len(tuner.study.completed)} trained to the end, {len(tuner.study.trials)} begun", fontsize=10)
    return figure


PICTURES = {"surrogate": draw_surrogate, "crash": draw_crash, "curves": draw_curves}


def main(arguments: list[str] | None = None) -> None:
    """Draws all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    looks = {
        "svg.fonttype": "none",
        "svg.hashsalt": "0",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(looks):
        for name, draw in PICTURES.items():
            draw().savefig(options.out / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
