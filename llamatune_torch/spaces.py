"""Ready-made search spaces for language models: ``from llamatune_torch import spaces``.

Each is a plain ``SearchSpace``: ranges, what is believed to be good, and a default. They are changed as dicts are, by
``|`` and ``without``. Each number has its source beside it. "Measured" ones were found on other people's recorded
runs, whose number is said; all others are published recipes. Ranges hold what is published, with room around it.

Names are those of ``TrainingArguments`` and of PEFT where these have one. Besides, there are:

- ``effective_batch_size``: sequences in each step of the optimizer, over all devices and accumulated ones.
- ``warmup_steps`` below 1: a share of all steps, as transformers reads it.
- ``rank``, of LoRA; 0 is no adapter. ``alpha_ratio``: LoRA's alpha in units of the rank.

``training_arguments`` and ``lora_config`` make the objects that a Trainer takes of all these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from llamatune_torch.categorical import Categorical
from llamatune_torch.errors import SpaceError
from llamatune_torch.parameter_base import describe
from llamatune_torch.parameters import Integer, Real
from llamatune_torch.space import SearchSpace

# By which LoRA's best learning rate exceeds that of all weights (Schulman et al., 2025, "LoRA without regret").
LORA_FACTOR = 10

#: What is "off" at 0, and matters little below 1e-4.
_DECAY = Real(1e-4, 0.1, prior="log-uniform", special=[0.0])


def lora() -> SearchSpace:
    """Supervised fine-tuning of an adapter (LoRA).

    - ``learning_rate`` 3e-4, 0.26 decades, in 5e-5 .. 2e-3. Measured on 35 models of 1 to 1,000 billion
      parameters: 3e-4 is best for 22 of them and 1e-3 for 10; 3e-3 diverges. Published: 2e-4 (QLoRA 7B, Unsloth).
    - ``rank`` 64, in 4 .. 128. Measured on the same: the largest rank that was tried is best for 89 %. On 12
      translation tasks, ranks 2, 16 and 64 were alike. Published: 8 (LLaMA-Factory), 16 (handbook), 64 (QLoRA).
    - ``effective_batch_size`` 16, in 8 .. 64. Published: 16 (QLoRA), below 32 (TRL). Measured on 12 translation tasks:
      16 is better than 64.
    - ``num_train_epochs`` 2, in 1 .. 3 (Unsloth; 1 alignment-handbook, 3 LLaMA-Factory).
    - ``warmup_steps`` 0.05, in 0 .. 0.1 (0.03 QLoRA, 0.1 alignment-handbook).
    - ``lora_dropout`` 0.05, in 0 .. 0.1 (0.05 QLoRA 65B and alignment-handbook, 0.1 QLoRA 7B).
    - ``weight_decay`` 0 (QLoRA), or 1e-4 .. 0.1.

    Alpha is tied to the rank (``lora_config``), since the best learning rate is then about the same for all ranks.

    Example:
        >>> space = lora() | {"rank": Integer(8, 64, powers_of=2)}
        >>> space.without("lora_dropout").default["rank"]
        64
    """
    return SearchSpace(
        {
            "learning_rate": Real(5e-5, 2e-3, prior="log-uniform", belief=(3e-4, 0.26)),
            "rank": Integer(4, 128, powers_of=2, belief=64),
            "effective_batch_size": Integer(8, 64, powers_of=2, belief=16),
            "num_train_epochs": Integer(1, 3, belief=2),
            "warmup_steps": Real(0.0, 0.1, belief=0.05),
            "lora_dropout": Real(0.0, 0.1, belief=0.05),
            "weight_decay": _DECAY,
        },
        default={
            "learning_rate": 3e-4,
            "rank": 64,
            "effective_batch_size": 16,
            "num_train_epochs": 2,
            "warmup_steps": 0.05,
            "lora_dropout": 0.05,
            "weight_decay": 0.0,
        },
    )


def full() -> SearchSpace:
    """Supervised fine-tuning of all weights.

    - ``learning_rate`` 1e-5, 0.35 decades, in 1e-6 .. 1e-4 (2e-5 alignment-handbook 7B, 1e-5 LLaMA-Factory 8B, 5e-6 and
      2e-6 Tulu 3 8B and 70B): larger models want less.
    - ``effective_batch_size`` 128, in 32 .. 256; ``num_train_epochs`` 2, in 1 .. 3; ``warmup_steps`` 0.03, in 0 .. 0.1;
      ``weight_decay`` 0, or 1e-4 .. 0.1 (all Tulu 3).

    Example:
        >>> full().default["learning_rate"]
        1e-05
    """
    return SearchSpace(
        {
            "learning_rate": Real(1e-6, 1e-4, prior="log-uniform", belief=(1e-5, 0.35)),
            "effective_batch_size": Integer(32, 256, powers_of=2, belief=128),
            "num_train_epochs": Integer(1, 3, belief=2),
            "warmup_steps": Real(0.0, 0.1, belief=0.03),
            "weight_decay": _DECAY,
        },
        default={
            "learning_rate": 1e-5,
            "effective_batch_size": 128,
            "num_train_epochs": 2,
            "warmup_steps": 0.03,
            "weight_decay": 0.0,
        },
    )


def peft_choice() -> SearchSpace:
    """Supervised fine-tuning of all weights, of an adapter, or of one on a model in 4 bits: ``method`` says which.

    ``method`` is "full", "lora" or "qlora", by default "lora". All weights want about a tenth of the learning rate of
    an adapter (Schulman et al., 2025), so they have a ``full_learning_rate``, that of :func:`full`. All else is as in
    :func:`lora`, with batches up to the 128 of :func:`full`. What belongs to adapters matters only where there is one.

    Example:
        >>> peft_choice().decode([0.0] * 9)["method"]
        'full'
    """
    adapter, everything = lora(), full()
    when = {"method": ["lora", "qlora"]}
    assert adapter.default is not None
    return SearchSpace(
        {
            "method": ["full", "lora", "qlora"],
            "learning_rate": Real(5e-5, 2e-3, prior="log-uniform", belief=(3e-4, 0.26), when=when),
            "full_learning_rate": Real(1e-6, 1e-4, prior="log-uniform", belief=(1e-5, 0.35), when={"method": "full"}),
            "rank": Integer(4, 128, powers_of=2, belief=64, when=when),
            "lora_dropout": Real(0.0, 0.1, belief=0.05, when=when),
            "effective_batch_size": Integer(8, 128, powers_of=2, belief=16),
            **{name: everything[name] for name in ("num_train_epochs", "weight_decay")},
            "warmup_steps": adapter["warmup_steps"],
        },
        default={"method": "lora", **adapter.default},
    )


def encoder_classification() -> SearchSpace:
    """Fine-tuning of all weights of an encoder, such as BERT or DeBERTa, to classify texts.

    Measured on 1,024 runs of DeBERTa each, base and v3, on MultiNLI, from the best 5 % of them:

    - ``learning_rate`` 1.6e-5, 0.27 decades, in 2e-6 .. 1e-4 (2e-5, 3e-5 and 5e-5 in appendix A.3 of BERT).
    - ``effective_batch_size`` 45, of which 48 is the nearest in 16 .. 64 (16 or 32 in BERT).
    - ``num_train_epochs`` 3, in 2 .. 4 (as in BERT).
    - ``warmup_steps`` 0.1, in 0 .. 0.2: 0.3 of the first of three epochs.

    Dropout of the classifier was nearly flat from 0.06 to 0.22, so it is left to the model.

    Example:
        >>> encoder_classification().default["num_train_epochs"]
        3
    """
    return SearchSpace(
        {
            "learning_rate": Real(2e-6, 1e-4, prior="log-uniform", belief=(1.6e-5, 0.27)),
            "effective_batch_size": Integer(16, 64, step=8, belief=(45, 0.37)),
            "num_train_epochs": Integer(2, 4, belief=3),
            "warmup_steps": Real(0.0, 0.2, belief=(0.1, 0.36)),
        },
        default={"learning_rate": 1.6e-5, "effective_batch_size": 48, "num_train_epochs": 3, "warmup_steps": 0.1},
    )


def pretraining(parameters: float, tokens: float, sequence_length: int = 2048) -> SearchSpace:
    """Pre-training of a language model, with the learning rate and the batch of its size by Step Law.

    - ``learning_rate`` 1.79 N^-0.713 D^0.307 for N parameters and D tokens, in a quarter .. 4 times that.
    - ``effective_batch_size`` 0.58 D^0.571 tokens, in a quarter .. 4 times that: powers of two.
      (Both: arXiv:2503.04715.) Measured on 17 sizes: this guess alone has a third of the regret of the best of 20
      random runs, in the median. The spread of 0.25 decades is wider than what was measured, since data differ.
    - ``weight_decay`` 0.1 (nanoGPT's GPT-2), in 1e-3 .. 0.2: flat from 1e-3 to 0.1 in recorded sweeps.
    - ``adam_beta1`` 0.88, in 0.8 .. 0.95, and ``adam_beta2`` 0.96, in 0.9 .. 0.99: the middle of the best tenth
      in recorded sweeps.

    Args:
        parameters: those of the model without embeddings; of a mixture of experts, of all experts, not the active ones.
        tokens: of the whole run.
        sequence_length: tokens in a sequence, since ``effective_batch_size`` counts sequences.

    Raises:
        SpaceError: a number is not above zero.

    Example:
        >>> pretraining(parameters=1e9, tokens=20e9).default["effective_batch_size"]
        256
    """
    for name, value in (("parameters", parameters), ("tokens", tokens), ("sequence_length", sequence_length)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise SpaceError(f"{name} must be a number above zero, but got {describe(value)}")
    # Rounded, so that the space is the same on every machine.
    rate = float(f"{1.79 * parameters**-0.713 * tokens**0.307:.3g}")
    sequences = float(f"{max(1.0, 0.58 * tokens**0.571 / sequence_length):.3g}")
    power = round(math.log2(sequences))
    low, middle, high = (2 ** max(0, power + step) for step in (-2, 0, 2))
    return SearchSpace(
        {
            "learning_rate": Real(rate / 4, rate * 4, prior="log-uniform", belief=(rate, 0.25)),
            "effective_batch_size": Integer(low, high, powers_of=2, belief=(sequences, 0.25)),
            "weight_decay": Real(1e-3, 0.2, prior="log-uniform"),
            "adam_beta1": Real(0.8, 0.95, belief=0.88),
            "adam_beta2": Real(0.9, 0.99, belief=0.96),
        },
        default={
            "learning_rate": rate,
            "effective_batch_size": middle,
            "weight_decay": 0.1,
            "adam_beta1": 0.88,
            "adam_beta2": 0.96,
        },
    )


def dpo(adapter: bool = False) -> SearchSpace:
    """Direct preference optimization, of all weights or of an ``adapter``.

    - ``learning_rate`` 5e-7 (TRL's example; Tulu 3: 5e-7 for 8B, 2e-7 for 70B), with an adapter 5e-6 (TRL's example),
      in a tenth .. 10 times that.
    - ``num_train_epochs`` 1, in 1 .. 3, and ``warmup_steps`` 0.1, in 0 .. 0.2 (Tulu 3).
    - With an adapter, ``rank`` and ``lora_dropout`` as in :func:`lora`.

    ``beta`` is left out: it changes the loss itself, so tune it by the accuracy of preferences or by a judge.

    Example:
        >>> dpo(adapter=True).default["learning_rate"]
        5e-06
    """
    rate = 5e-7 * (LORA_FACTOR if adapter else 1)
    space = SearchSpace(
        {
            "learning_rate": Real(rate / 10, rate * 10, prior="log-uniform", belief=rate),
            "num_train_epochs": Integer(1, 3, belief=1),
            "warmup_steps": Real(0.0, 0.2, belief=0.1),
        },
        default={"learning_rate": rate, "num_train_epochs": 1, "warmup_steps": 0.1},
    )
    others = [name for name in lora().names if name not in ("rank", "lora_dropout")]
    return space | lora().without(*others) if adapter else space


def decoding(names: Collection[str] | None = None) -> SearchSpace:
    """Decoding parameters: greedy, sampled or by beams, as far as what answers has them (``tune_decoding``).

    - ``method``, where it can be chosen; elsewhere a ``temperature`` of 0 is greedy.
    - ``temperature`` 0.1 .. 1.5, ``top_p`` 0.5 .. 1: common defaults are 0.7 and 0.9, greedy is this space's own.
    - ``top_k`` 5 .. 100 or off, ``min_p`` 0.01 .. 0.3 or off (Nguyen et al., 2024, arXiv:2407.01082: 0.05 to 0.1).
    - ``repetition_penalty`` 1 .. 1.5 (Keskar et al., 2019, arXiv:1909.05858: 1.2), ``frequency_penalty`` and
      ``presence_penalty`` 0 .. 1.
    - ``num_beams`` 2 .. 8.

    The length of answers is no matter of taste: add ``max_tokens`` yourself.

    Args:
        names: of the parameters that there are; ``None`` for all but ``method`` and ``num_beams``.
    """
    known = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"}
    names = known if names is None else names
    chosen = "method" in names
    sampled = {"method": "sample"} if chosen else {"temperature": "> 0"}
    parameters: dict[str, Any] = {
        "method": Categorical(["greedy", "sample", "beam"]),
        "temperature": Real(0.1, 1.5, when={"method": "sample"}) if chosen else Real(0.1, 1.5, special=[0.0]),
        "top_p": Real(0.5, 1.0, when=sampled),
        "top_k": Integer(5, 100, prior="log-uniform", special=[0], when=sampled),
        "min_p": Real(0.01, 0.3, prior="log-uniform", special=[0.0], when=sampled),
        "num_beams": Integer(2, 8, when={"method": "beam"}),
        "repetition_penalty": Real(1.0, 1.5),
        "frequency_penalty": Real(0.0, 1.0),
        "presence_penalty": Real(0.0, 1.0),
    }
    own = {name: parameter for name, parameter in parameters.items() if name in names}
    usual = {
        "method": "greedy", "temperature": 0.0, "repetition_penalty": 1.0,
        "frequency_penalty": 0.0, "presence_penalty": 0.0,
    }  # fmt: skip
    default = {name: value for name, value in usual.items() if name in own and not (name == "temperature" and chosen)}
    return SearchSpace(own, default=default)


#: The spaces that need no arguments, by the names that ``tune`` takes.
NAMED: Mapping[str, Callable[[], SearchSpace]] = {
    made.__name__: made for made in (lora, full, peft_choice, encoder_classification, dpo)
}


def find_space(space: Mapping[str, Any] | SearchSpace | str) -> Mapping[str, Any] | SearchSpace:
    """The ready-made space of a name; anything else as it is.

    Raises:
        SpaceError: there is none of that name; the message lists them.
    """
    if not isinstance(space, str):
        return space
    if space not in NAMED:
        own = "; pretraining needs arguments, so write spaces.pretraining(...)" if space == "pretraining" else ""
        raise SpaceError(f"there is no ready-made space {space!r}; there are {list(NAMED)}{own}")
    return NAMED[space]()
