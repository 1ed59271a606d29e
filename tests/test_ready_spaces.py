"""Ready-made spaces: their numbers, what they become, and how good their first guess is on recorded runs."""

from __future__ import annotations

import csv
import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamatune_torch import Integer, LlamaTune, Real, SearchSpace, SpaceError, spaces
from llamatune_torch.partial import is_complete
from llamatune_torch.storage.serialization import read_space, write_space

DATA = Path(os.environ.get("LLAMATUNE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

MADE: dict[str, Callable[[], SearchSpace]] = {
    **spaces.NAMED,
    "pretraining": lambda: spaces.pretraining(parameters=1e9, tokens=20e9),
    "small": lambda: spaces.pretraining(parameters=1e6, tokens=1e7),
    "dpo_adapter": lambda: spaces.dpo(adapter=True),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_each_is_a_plain_space_with_a_default_near_what_is_believed(made: Callable[[], SearchSpace]) -> None:
    space = made()
    assert type(space) is SearchSpace
    assert space.default is not None
    assert is_complete(space, space.default)
    assert read_space(write_space(space)) == space == made()
    for name, value in space.default.items():
        believed = space[name].belief_at()
        if believed is not None:
            centre, sd = believed
            assert abs(space[name].encode([value]).item() - centre) <= sd, name
    for x in np.random.default_rng(0).random((50, space.dim)):
        space.validate(space.decode(x))


def test_step_law_gives_the_numbers_worked_out_by_hand() -> None:
    space = spaces.pretraining(parameters=10**9, tokens=10**11)
    rate = space["learning_rate"]
    assert isinstance(rate, Real)
    assert rate.belief is not None
    # 1.79 * 10 ** (-0.713 * 9 + 0.307 * 11) = 1.79 * 10 ** -3.04
    assert rate.belief == (pytest.approx(1.79 * 10**-3.04, abs=5e-6), 0.25)  # to three digits
    assert (rate.low, rate.high) == (pytest.approx(rate.belief[0] / 4), pytest.approx(rate.belief[0] * 4))  # type: ignore[index]
    # 0.58 * 10 ** 6.281 tokens are 541 sequences of 2048, or 1082 of 1024.
    batch = space["effective_batch_size"]
    assert batch == Integer(128, 2048, powers_of=2, belief=(541, 0.25))
    assert space.default is not None
    assert space.default["effective_batch_size"] == 512
    shorter = spaces.pretraining(10**9, 10**11, sequence_length=1024)
    assert shorter.default is not None
    assert shorter.default["effective_batch_size"] == 1024


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "1B", True])
def test_a_size_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(SpaceError, match="tokens must be a number above zero, but got"):
        spaces.pretraining(parameters=1e9, tokens=value)


def test_adapters_want_ten_times_the_learning_rate_of_all_weights() -> None:
    assert (spaces.dpo(adapter=True).default or {})["learning_rate"] == pytest.approx(5e-6)
    assert (spaces.dpo().default or {})["learning_rate"] == 5e-7
    assert spaces.dpo(adapter=True).names == [*spaces.dpo().names, "rank", "lora_dropout"]


def test_what_belongs_to_adapters_is_absent_without_one() -> None:
    space = spaces.peft_choice()
    full = space.decode([0.1] * space.dim)
    assert full["method"] == "full"
    assert not {"rank", "lora_dropout", "learning_rate"} & full.keys()
    adapter = space.decode([0.9] * space.dim)
    assert adapter["method"] == "qlora"
    assert "full_learning_rate" not in adapter


def test_they_are_changed_as_dicts_are() -> None:
    space = spaces.lora().without("lora_dropout") | {"rank": Integer(8, 32, powers_of=2)}
    assert space.default == {
        "learning_rate": 3e-4,
        "rank": 32,
        "effective_batch_size": 16,
        "num_train_epochs": 2,
        "warmup_steps": 0.05,
        "weight_decay": 0.0,
    }


def test_a_name_stands_for_a_space_and_an_unknown_one_lists_them() -> None:
    tuner = LlamaTune("lora", lambda params: -abs(params["learning_rate"] - 1e-3), max_evals=1, progress=False)
    assert tuner.optimize()[0] == spaces.lora().default
    with pytest.raises(SpaceError, match=r"there is no ready-made space 'lorra'; there are \['lora', 'full', "):
        LlamaTune("lorra")
    with pytest.raises(SpaceError, match=r"write spaces.pretraining\(...\)"):
        LlamaTune("pretraining")


# --- How good is a first guess? -------------------------------------------------------------------------------------


def recorded() -> dict[tuple[float, float], list[dict[str, float]]]:
    """Recorded pre-training runs by parameters and tokens; nothing of them is part of this repository."""
    path = DATA / "steplaw_dense_part.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there: LLAMATUNE_DATA=... names the folder of recorded runs")
    sizes = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            values = {name: float(value) for name, value in row.items()}
            sizes[values["n_params"], values["n_tokens"]].append(values)
    return dict(sizes)


def best_of(num: int, losses: np.ndarray, draws: int = 2000) -> float:  # type: ignore[type-arg]
    """The median of the best of ``num`` runs at random."""
    rng = np.random.default_rng(0)
    return float(np.median([losses[rng.choice(len(losses), num, replace=False)].min() for _ in range(draws)]))


def test_the_first_guess_of_pretraining_is_nearer_to_the_best_than_twenty_random_runs() -> None:
    ratios, ranks = [], []
    for (parameters, tokens), rows in recorded().items():
        guess = spaces.pretraining(parameters, tokens).default or {}
        losses = np.array([row["loss"] for row in rows])
        away = [
            np.log(row["lr"] / guess["learning_rate"]) ** 2
            + np.log(row["batch_size"] / guess["effective_batch_size"]) ** 2
            for row in rows
        ]
        regret = losses[int(np.argmin(away))] - losses.min()  # the recorded run that is nearest to the guess
        ratios.append(regret / max(best_of(20, losses) - losses.min(), 1e-9))
        ranks.append(float((losses < losses[int(np.argmin(away))]).mean()))
    print(
        f"\n{len(ratios)} sizes; regret of the default / that of the best of 20 at random: median "
        f"{statistics.median(ratios):.2f}, largest {max(ratios):.2f}; share of runs that are better: median "
        f"{statistics.median(ranks):.1%}, largest {max(ranks):.1%}"
    )
    assert statistics.median(ratios) < 1
