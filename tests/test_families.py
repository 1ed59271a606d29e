"""The families' optima are what they say, and move with what they say."""

from __future__ import annotations

import numpy as np
import pytest

from llamatune_torch.families import FAMILIES, Relative

MEMBERS = [member for family in FAMILIES.values() for member in family]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_the_optimum_is_where_it_is_said_to_be_and_nothing_is_better(member: Relative) -> None:
    assert member.regret(member.space.validate(member.at)) == pytest.approx(0.0, abs=2e-4)
    generator = np.random.default_rng(0)
    regrets, failed = [], 0
    for params in member.space.decode_all(member.space.snap(generator.random((300, member.space.dim)))):
        try:
            regrets.append(member.regret(params))
        except FloatingPointError:
            failed += 1
    assert min(regrets) > -1e-9
    assert failed < 150


def test_rates_fall_with_the_size_and_the_better_method_changes() -> None:
    rates = [member.at["learning_rate"] for member in FAMILIES["pretraining"]]
    assert rates[0] > 3 * rates[4]
    assert {member.at["method"] for member in FAMILIES["adapting"]} == {"full", "lora"}
    assert all(not member.context for member in FAMILIES["classifying"])
