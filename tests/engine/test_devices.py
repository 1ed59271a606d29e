"""Device and dtype come from the data: neither torch's default device nor its default dtype changes anything.

The default device is ``meta`` here, whose tensors hold no numbers: whatever is made there by mistake cannot be used.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
import torch
from strategies import halton, plain_space
from test_suggest import MIXED, explored, quick
from torch import Tensor

import llamatune_torch
from llamatune_torch import Settings, Study
from llamatune_torch.engine.acquisition import make_acquisition
from llamatune_torch.engine.crash import CrashModel
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import robust, standardize
from llamatune_torch.engine.recommend import recommend
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.surrogate import fit_gp
from llamatune_torch.settings import AcquisitionName

# BoTorch draws base samples, and keeps constants of its acquisitions, in the default dtype.
MONTE_CARLO = 1e-6
# Its constants in PI shift where the ascent may stop, within the tolerance of the ascent.
ROUNDED = {"pi": 1e-3, "logpi": 1e-3}
ENGINE = sorted((Path(llamatune_torch.__file__).parent / "engine").glob("*.py"))
NAMES = get_args(AcquisitionName)
X = halton(14, 3)
X[:, 2] = ((3 * X[:, 2]).floor() + 0.5) / 3
Y = standardize((4 * X[:, 0]).sin() - X[:, 1])
Z = halton(20, 3)[14:]
Z[:, 2] = 0.5
KERNEL = ProductKernel(Features(plain_space(3, [2])))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


# --- Whole suggestions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_advice_is_the_same_under_any_default_dtype(name: str) -> None:
    settings = quick(acquisition=name)
    with default_dtype(torch.float64):
        expected = [dict(s.params) for s in suggest(explored(), settings, 2)]
    with default_dtype(torch.float32):
        found = [dict(s.params) for s in suggest(explored(), settings, 2)]
    for one, other in zip(found, expected, strict=True):
        assert one.pop("lr") == pytest.approx(other.pop("lr"), rel=ROUNDED.get(name, MONTE_CARLO))
        assert one == other


@pytest.mark.parametrize("n_initial", [0, 40], ids=["surrogate", "sobol"])
def test_advice_is_the_same_whatever_the_default_device(n_initial: int) -> None:
    study, settings = explored(), quick(n_initial=n_initial)
    expected = suggest(study, settings, 3)
    with default_device("meta"):
        assert suggest(study, settings, 3) == expected
        assert torch.get_default_device().type == "meta"


def test_the_recommended_trial_is_the_same_whatever_the_default_device() -> None:
    study = explored()
    expected = recommend(study)
    with default_device("meta"):
        assert recommend(study) == expected


def test_a_first_suggestion_is_the_same_whatever_the_default_device() -> None:
    expected = suggest(Study(MIXED), quick(), 2)
    with default_device("meta"):
        assert suggest(Study(MIXED), quick(), 2) == expected


# --- The numerical parts, each by itself -------------------------------------------------------------------------


def predicted() -> Tensor:
    mean, variance = fit_gp(KERNEL, X, Y).predictor().moments(Z)
    return torch.cat([mean.squeeze(-1), variance])


def joint_posterior() -> Tensor:
    posterior = fit_gp(KERNEL, X, Y).posterior(Z.view(2, 3, 3), observation_noise=True)
    return torch.cat([posterior.mean, posterior.variance], dim=-1)


def robust_outcomes() -> Tensor:
    return robust(torch.cat([Y[:10], Y[:3] - 1e4, Y[:1] - torch.inf]))


def probability_of_success() -> Tensor:
    return CrashModel(KERNEL, X, X[:, 0] < 0.6).log_probability(Z.unsqueeze(-2))


def acquired(name: str, num_pending: int) -> Tensor:
    points = Z.clone().requires_grad_(True)
    crash = CrashModel(KERNEL, X, X[:, 0] < 0.6)
    acquisition = make_acquisition(
        Settings(acquisition=name), fit_gp(KERNEL, X, Y), X, Z[:num_pending], [crash.factor()], 3
    )
    values = acquisition(points.unsqueeze(-2))
    (gradient,) = torch.autograd.grad(values.sum(), points)
    return torch.cat([values.unsqueeze(-1), gradient], dim=-1).detach()


PARTS: dict[str, Callable[[], Tensor]] = {
    "moments": predicted,
    "joint posterior": joint_posterior,
    "robust outcomes": robust_outcomes,
    "works": probability_of_success,
    **{
        f"{name}, {num_pending} pending": lambda name=name, num_pending=num_pending: acquired(name, num_pending)
        for name in NAMES
        for num_pending in (0, 2)
    },
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_the_same_under_any_default_dtype_and_device(part: str) -> None:
    with default_dtype(torch.float64):
        expected = PARTS[part]()
    # BoTorch's acquisitions make tensors on the default device; `suggest` shields them.
    elsewhere = default_device("cpu" if "pending" in part else "meta")
    with default_dtype(torch.float32), elsewhere:
        found = PARTS[part]()
    assert found.dtype == torch.float64
    assert found.device == X.device
    if "pending" in part:
        assert torch.allclose(found, expected, rtol=MONTE_CARLO, atol=1e-9)
    else:
        assert torch.equal(found, expected)  # to the last bit


# --- The source --------------------------------------------------------------------------------------------------

# Where numbers leave for the CPU on purpose: what is asked for, and why.
TO_THE_CPU = {
    "incumbents": "the generator that draws around them lives there, so that advice does not depend on the device",
    "weights": "likewise: starting points are drawn by a generator on the CPU",
    "data.tried": "the Sobol sequence is drawn there, and points of it that were tried are left out",
    "likely": "likewise: points of the sequence that are likely to fail are passed over",
    "X": "trials are chosen by their places in the record, in the same order on any device",
    "Y": "likewise",
}


def calls_of(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def test_the_engine_leaves_a_device_at_the_named_places_only() -> None:
    seen: set[str] = set()
    for path in ENGINE:
        for call in calls_of(path):
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("cpu", "cuda"):
                receiver = ast.unparse(call.func.value)
                place = f"{path.name}:{call.lineno}: {receiver}.{call.func.attr}()"
                assert call.func.attr == "cpu", f"{place}: the device comes from the data"
                assert receiver in TO_THE_CPU, f"{place}: say in TO_THE_CPU why"
                seen.add(receiver)
    assert seen == set(TO_THE_CPU), "an exemption that nothing needs any more"


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.name)
def test_the_engine_names_no_device_and_sets_no_default(path: Path) -> None:
    for call in calls_of(path):
        name = ast.unparse(call.func)
        assert not re.match(r"torch\.(set_default|mps\.|accelerator\.)", name), f"{path.name}:{call.lineno}"
        # One module looks at the default device, in order not to depend on it, and turns "auto" into a device.
        named = name in ("torch.device", "torch.get_default_device") and not reads_the_data(call)
        if named or name.startswith("torch.cuda."):
            assert path.name == "data.py", f"{path.name}:{call.lineno}: {ast.unparse(call)}"


def reads_the_data(call: ast.Call) -> bool:
    """``torch.device(X.device)``"""
    (argument, *_) = [*call.args, None]
    return isinstance(argument, ast.Attribute) and argument.attr == "device"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False")
@pytest.mark.parametrize("name", NAMES)
def test_advice_on_a_gpu_is_the_cpus_but_for_rounding(name: str) -> None:
    on_cpu, on_gpu = (suggest(explored(), quick(acquisition=name, device=device), 1)[0] for device in ("cpu", "cuda"))
    a, b = (Cube(MIXED).encode(suggestion.params) for suggestion in (on_cpu, on_gpu))
    assert torch.allclose(a, b, atol=1e-3)
