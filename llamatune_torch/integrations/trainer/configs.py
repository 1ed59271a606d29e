"""The objects that a Trainer takes, made of parameters: ``training_arguments(params)`` and ``lora_config(params)``.

Both take all parameters of a trial, use their own, and refuse what neither of them knows: a typo would change nothing,
and the search would tune it all the same. Neither reads the other's, so that ``tune`` warns of parameters that a
factory ignores because it calls only one of them. Names are those of ``TrainingArguments`` (or of ``base``'s class,
such as ``SFTConfig``) and of ``LoraConfig``, and the few of ``spaces.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from llamatune_torch.errors import ParamsError, SettingsError, TrainerError

if TYPE_CHECKING:
    from peft import LoraConfig

#: Names of this package for what ``TrainingArguments`` calls otherwise.
OF_TRAINING = ("effective_batch_size", "full_learning_rate")
#: The same for ``LoraConfig``.
OF_LORA = ("rank", "alpha_ratio", "targets")
#: Neither of them: it says whether there is an adapter, and whether its model is in 4 bits.
METHOD = "method"

#: The layers of an adapter by label; any other value is one of PEFT's ``target_modules``.
TARGETS: Mapping[str, Any] = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "all": "all-linear",
}


def training_arguments(
    params: Mapping[str, Any], base: TrainingArguments | None = None, *, own: Collection[str] = ()
) -> TrainingArguments:
    """The arguments of a Trainer for a trial: those of ``base``, changed to its parameters.

    ``effective_batch_size`` is divided among the devices. What one of them has is divided into the largest
    ``per_device_train_batch_size`` that is no larger than that of ``base``, and ``gradient_accumulation_steps``.

    Args:
        params: those of a trial; the parameters of an adapter are left to :func:`lora_config`.
        base: all other arguments; also of a subclass, such as TRL's ``SFTConfig``. It stays as it is.
        own: names of parameters that the caller uses otherwise.

    Raises:
        ParamsError: an unknown name; or a batch that cannot be divided among the devices.

    Example:
        >>> base = SFTConfig(output_dir="out", per_device_train_batch_size=8)
        >>> args = training_arguments({"learning_rate": 3e-4, "effective_batch_size": 32, "rank": 64}, base)
        >>> args.per_device_train_batch_size, args.gradient_accumulation_steps
        (8, 4)
    """
    base = TrainingArguments() if base is None else base
    if not isinstance(base, TrainingArguments):
        raise SettingsError(f"base must be TrainingArguments, or of a subclass, but got {type(base).__name__}")
    _check_names(params, type(base), own)
    names = {field.name for field in fields(base) if field.init}
    changes = {name: params[name] for name in params if name in names and name not in own}
    if "full_learning_rate" in params:
        changes["learning_rate"] = params["full_learning_rate"]
    if "effective_batch_size" in params:
        device, steps = _split(params["effective_batch_size"], base)
        changes |= {"per_device_train_batch_size": device, "gradient_accumulation_steps": steps}
    return replace(base, **changes)


def lora_config(params: Mapping[str, Any], *, own: Collection[str] = (), **changes: Any) -> LoraConfig | None:
    """The adapter of a trial; ``None`` if all weights are to be trained (``method`` "full", or ``rank`` 0).

    Alpha is ``alpha_ratio`` (1 by default) times the rank, unless ``lora_alpha`` is given. ``targets`` are a label of
    ``TARGETS``, or what PEFT takes; by default all linear layers. For "qlora", the caller loads the model in 4 bits.

    Args:
        params: those of a trial; those of ``TrainingArguments`` are left to :func:`training_arguments`.
        own: names of parameters that the caller uses otherwise, such as those of TRL's ``SFTConfig``.
        **changes: further fields of ``LoraConfig``; without ``task_type``, it is that of causal language models.

    Raises:
        ParamsError: an unknown name, or no ``rank``.
        TrainerError: PEFT is not installed.

    Example:
        >>> config = lora_config({"rank": 64, "lora_dropout": 0.05, "learning_rate": 3e-4})
        >>> config.r, config.lora_alpha
        (64, 64)
    """
    _check_names(params, TrainingArguments, own)
    if params.get(METHOD) == "full" or params.get("rank") == 0:
        return None
    if "rank" not in params and "r" not in params:
        raise ParamsError(f"an adapter needs a 'rank', but got {sorted(params)}")
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise TrainerError(f"lora_config needs PEFT ({error}): pip install 'llamatune-torch[trl]'") from None
    names = {field.name for field in fields(LoraConfig)}
    given = {name: params[name] for name in params if name in names and name not in own}
    rank = params.get("rank", params.get("r"))
    alpha = params.get("alpha_ratio", 1) * rank
    targets = params.get("targets", "all")
    targets = TARGETS.get(targets, targets) if isinstance(targets, str) else targets
    defaults = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**defaults, **given, **changes})


def _split(sequences: int, base: TrainingArguments) -> tuple[int, int]:
    """Divides an effective batch into that of a device and the steps that are accumulated."""
    devices = base.world_size * max(1, base.n_gpu)
    each, left = divmod(sequences, devices)
    if left or each < 1:
        raise ParamsError(f"effective_batch_size must be a multiple of the {devices} devices, but got {sequences!r}")
    largest = max(n for n in range(1, min(each, base.per_device_train_batch_size) + 1) if each % n == 0)
    return largest, each // largest


def _check_names(params: Mapping[str, Any], arguments: type[TrainingArguments], own: Collection[str]) -> None:
    known = {*_names(arguments), *OF_TRAINING, *OF_LORA, METHOD, *own, *_names_of_lora()}
    if unknown := [name for name in params if name not in known]:
        raise ParamsError(
            f"unknown parameters {unknown}: neither {arguments.__name__} nor LoraConfig has them, nor are they among "
            f"{[METHOD, *OF_TRAINING, *OF_LORA]}; own={unknown!r} leaves them to you"
        )


def _names(kind: type[TrainingArguments]) -> list[str]:
    return [field.name for field in fields(kind) if field.init]


def _names_of_lora() -> list[str]:
    try:
        from peft import LoraConfig
    except ImportError:  # then the names that are searched most
        return ["lora_alpha", "lora_dropout", "use_rslora"]
    return [field.name for field in fields(LoraConfig)]
