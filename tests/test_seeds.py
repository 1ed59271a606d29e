"""Seeds that follow from other seeds: the same everywhere, different for each purpose."""

from __future__ import annotations

from llamatune_torch.seeds import derived_seed


def test_a_derived_seed_is_the_same_on_every_machine() -> None:
    assert [derived_seed(0), derived_seed(0, 1), derived_seed(7, 3, 2)] == [2968811710, 3964924996, 2682643779]


def test_each_key_and_their_order_count() -> None:
    seeds = [derived_seed(*keys) for keys in [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_zeros_at_the_end_do_not_count_so_keys_of_one_purpose_have_one_length() -> None:
    assert derived_seed(1) == derived_seed(1, 0) == derived_seed(1, 0, 0)
