"""Memory that is computed before anything is trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import language_model, text_trainer, tiny_model, tiny_trainer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from llamatune_torch.integrations.trainer.memory import (
    Footprint,
    Tally,
    activation_bytes,
    first_principles,
    footprint,
    length_of,
    memory_of_device,
    sample_batch,
)

LARGE = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 512}
PARAMS = {"learning_rate": 1e-2}


def test_a_tally_agrees_with_pytorchs_own_tracker() -> None:
    def step(model: Any, optimizer: Any) -> None:
        ids = torch.ones(4, 32, dtype=torch.long)
        model(input_ids=ids, labels=torch.zeros(4, dtype=torch.long)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    peaks = []
    for ours in (True, False):
        with FakeTensorMode():
            model = tiny_model(**LARGE).train()
            optimizer = torch.optim.AdamW(model.parameters())
            if ours:
                with Tally("cpu") as tally:
                    for tensor in (*model.parameters(), *model.buffers()):
                        tally.add(tensor)
                    step(model, optimizer)
                    step(model, optimizer)
                peaks.append(tally.peak)
            else:
                tracker = MemTracker()
                tracker.track_external(model, optimizer)
                with tracker, warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # modules that return no tensors
                    step(model, optimizer)
                    tracker.reset_mod_stats()
                    step(model, optimizer)
                (snapshot,) = tracker.get_tracker_snapshot("peak").values()
                peaks.append(snapshot["Total"])
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05)  # ours rounds each tensor up as CUDA does


def test_a_footprint_tells_batches_and_lengths_that_were_not_run(tmp_path: Path) -> None:
    def measured(batch: int, length: int) -> float:
        trainer = tiny_trainer(PARAMS, tmp_path, model=tiny_model(**LARGE))
        return footprint(trainer, (batch, batch + 1), (length,)).bytes(batch, length)

    trainer = tiny_trainer(PARAMS, tmp_path, model=tiny_model(**LARGE))
    computed = footprint(trainer, (2, 32), (8, 24, 48))
    for batch, length in ((2, 48), (8, 16), (16, 8), (32, 48)):
        assert computed.bytes(batch, length) == pytest.approx(measured(batch, length), rel=0.03)


def test_checkpointing_and_frozen_weights_take_less(tmp_path: Path) -> None:
    def taken(**changes: Any) -> float:
        model = tiny_model(**{**LARGE, "n_layer": 6})
        for name, weight in model.named_parameters():
            weight.requires_grad = "score" in name or (not changes.pop(name, False) and "frozen" not in changes)
        changes.pop("frozen", None)
        trainer = tiny_trainer(PARAMS, tmp_path, model=model, **changes)
        return footprint(trainer, (16, 32), (48,)).bytes(16, 48)

    whole = taken()
    assert taken(activation_checkpointing=True) < 0.6 * whole
    assert taken(frozen=True) < 0.5 * whole


def test_accumulated_gradients_are_there_in_the_second_pass(tmp_path: Path) -> None:
    def taken(accumulation: int) -> float:
        model = tiny_model(**LARGE)
        trainer = tiny_trainer(PARAMS, tmp_path, model=model, gradient_accumulation_steps=accumulation)
        return footprint(trainer, (32, 64), (48,)).bytes(64, 48)

    weights = sum(p.numel() * 4 for p in tiny_model(**LARGE).parameters())
    assert taken(2) - taken(1) == pytest.approx(weights, rel=0.4)


def test_a_language_models_logits_count(tmp_path: Path) -> None:
    small, large = (
        footprint(text_trainer(PARAMS, tmp_path, model=language_model(**{**LARGE, "vocab_size": n})), (8, 16), (32,))
        for n in (512, 4096)
    )
    more = large.each[0] - small.each[0]
    assert more > 32 * 4 * (4096 - 512)  # at least once in 32 bit


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    of = Footprint(fixed=2e9, each=(1e6, 4e6, 100.0), least=3e9)
    most = of.largest_batch(8e9, 512)
    assert of.bytes(most, 512) <= 8e9 < of.bytes(most + 1, 512)
    assert of.largest_batch(2.5e9, 512) == 0
    assert of.bytes(0.1, 1) == 3e9


def test_the_sample_is_the_longest_of_the_first_batches_and_the_arguments_stay(tmp_path: Path) -> None:
    trainer = tiny_trainer(PARAMS, tmp_path, dataloader_num_workers=2, dataloader_prefetch_factor=2)
    assert length_of(sample_batch(trainer)) == 4
    assert trainer.args.dataloader_num_workers == 2
    assert trainer.args.dataloader_prefetch_factor == 2
    assert length_of({"labels": torch.zeros(3)}) == 1


@pytest.mark.parametrize(("hidden", "heads", "share"), [(12288, 96, 80), (20480, 128, 64)])
def test_activations_are_those_of_the_paper(hidden: int, heads: int, share: int) -> None:
    """GPT-3 and MT-NLG at 2,048 tokens: Korthikanti et al. (2022, section 4) give 5 a s / h = 80 and 64."""
    found = activation_bytes(1, 2048, hidden, heads) / (2048 * hidden)
    assert found == pytest.approx(34 + share)


def test_the_states_of_a_large_model_are_those_of_the_paper() -> None:
    """Rajbhandari et al. (2020, section 3.1): 16 bytes a parameter with Adam; a GPT-2 of 1.5 billion takes 24 GB."""

    class Config:
        hidden_size, num_hidden_layers, num_attention_heads = 1600, 48, 25

    class Model(torch.nn.Module):
        config = Config()

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(1_500_000_000, device="meta"))

    class Stand:
        model = Model()
        args = type("Arguments", (), {"bf16": True, "fp16": False, "activation_checkpointing": False})

    trainer: Any = Stand()
    assert first_principles(trainer, 0, 1024) == pytest.approx(24e9)
    # Their 60 GB of activations at batch 32 are 24 bytes an element of a layer; Korthikanti et al. count 34.
    assert first_principles(trainer, 32, 1024) - 24e9 == pytest.approx(60e9 * 34 / 24, rel=0.05)


def test_the_formula_is_near_what_is_computed(tmp_path: Path) -> None:
    trainer = tiny_trainer(PARAMS, tmp_path, model=tiny_model(**LARGE))
    formula = first_principles(trainer, 32, 48)
    assert 0.4 < formula / footprint(trainer, (16, 32), (48,)).bytes(32, 48) < 2.5  # GPT-2's GELU keeps much


def test_a_device_has_memory() -> None:
    assert memory_of_device(torch.device("cpu")) > 1e8
