"""Parameters as the objects that a Trainer takes: every name of every ready-made space lands, and no other does."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from test_trl import texts, tokenizer
from tiny import Parity, language_model, tiny_model, tiny_trainer, tuned
from transformers import Trainer, TrainingArguments

from llamatune_torch import ParamsError, Real, SearchSpace, SettingsError, lora_config, spaces, training_arguments
from llamatune_torch.integrations.trainer.readlog import ReadLog

SPACES = {
    **{name: make() for name, make in spaces.NAMED.items()},
    "pretraining": spaces.pretraining(1e8, 2e9),
    "dpo_adapter": spaces.dpo(adapter=True),
}


def base(folder: Path, **changes: Any) -> TrainingArguments:
    arguments: dict[str, Any] = {"output_dir": str(folder), "report_to": "none", "use_cpu": True}
    return TrainingArguments(**{**arguments, **changes})


@pytest.mark.parametrize("name", SPACES)
def test_every_parameter_of_every_space_lands(name: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    space, plain = SPACES[name], base(tmp_path)
    for u in (0.05, 0.5, 0.95):
        params = space.decode([u] * space.dim)
        args, adapter = training_arguments(params, plain), lora_config(params) if "rank" in params else None
        landed = {field.name: getattr(args, field.name) for field in fields(args)}
        landed |= {} if adapter is None else {"rank": adapter.r, "lora_dropout": adapter.lora_dropout}
        landed["effective_batch_size"] = args.per_device_train_batch_size * args.gradient_accumulation_steps
        landed["full_learning_rate"] = args.learning_rate
        assert {key: landed[key] for key in params if key != "method"} == {
            key: value for key, value in params.items() if key != "method"
        }
    assert plain.learning_rate == 5e-5  # as it was


def test_the_trainer_itself_has_what_the_parameters_say(tmp_path: Path) -> None:
    params = {"learning_rate": 3e-4, "effective_batch_size": 16, "num_train_epochs": 2, "warmup_steps": 0.25}
    plain = base(tmp_path, per_device_train_batch_size=4, disable_tqdm=True, lr_scheduler_type="constant_with_warmup")
    args = training_arguments({**params, "weight_decay": 0.01}, plain)
    trainer = Trainer(tiny_model(), args, train_dataset=Parity(32, seed=0))
    trainer.train()
    assert trainer.state.max_steps == trainer.state.global_step == 4  # 32 rows in batches of 16, twice
    assert trainer.lr_scheduler is not None
    warm = [group["lr"] for group in trainer.optimizer.param_groups]  # type: ignore[union-attr]
    assert warm == [pytest.approx(3e-4)] * len(warm)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.01, 0.0}  # type: ignore[union-attr]
    assert trainer.args.get_warmup_steps(4) == 1


@pytest.mark.parametrize(
    ("effective", "device", "steps"), [(32, 8, 4), (8, 8, 1), (4, 4, 1), (48, 8, 6), (12, 6, 2), (7, 7, 1), (1, 1, 1)]
)
def test_a_batch_is_divided_into_the_largest_that_fits(effective: int, device: int, steps: int, tmp_path: Path) -> None:
    args = training_arguments({"effective_batch_size": effective}, base(tmp_path, per_device_train_batch_size=8))
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (device, steps)


def test_a_batch_is_divided_among_devices_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = base(tmp_path, per_device_train_batch_size=8)
    monkeypatch.setattr(TrainingArguments, "world_size", 4)
    args = training_arguments({"effective_batch_size": 64}, plain)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 2)
    for batch in (2, 30):
        with pytest.raises(
            ParamsError, match=f"effective_batch_size must be a multiple of the 4 devices, but got {batch}"
        ):
            training_arguments({"effective_batch_size": batch}, plain)


def test_names_that_nobody_knows_are_refused_unless_they_are_the_callers_own(tmp_path: Path) -> None:
    plain = base(tmp_path)
    with pytest.raises(
        ParamsError, match=r"unknown parameters \['learningrate'\]: neither TrainingArguments nor LoraConfig"
    ):
        training_arguments({"learningrate": 1e-3}, plain)
    with pytest.raises(ParamsError, match=r"unknown parameters \['ranks'\]"):
        lora_config({"rank": 8, "ranks": 8})
    assert training_arguments({"head": "big", "learning_rate": 1e-3}, plain, own=["head"]).learning_rate == 1e-3
    with pytest.raises(SettingsError, match="base must be TrainingArguments, or of a subclass, but got dict"):
        training_arguments({}, {"output_dir": "x"})  # type: ignore[arg-type]


def test_an_adapter_has_alpha_and_layers_of_its_parameters() -> None:
    peft = pytest.importorskip("peft")
    config = lora_config(
        {"rank": 16, "alpha_ratio": 2, "targets": "attention", "use_rslora": True, "lora_dropout": 0.1}
    )
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.use_rslora, config.lora_dropout) == (16, 32, True, 0.1)
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj"}
    plain = lora_config({"rank": 8}, modules_to_save=["head"], task_type="SEQ_CLS")
    assert plain is not None
    assert (plain.lora_alpha, plain.target_modules, plain.task_type) == (8, "all-linear", "SEQ_CLS")
    assert plain.modules_to_save == ["head"]
    own_layers = lora_config({"r": 4, "lora_alpha": 16, "targets": ["c_attn"]})
    assert own_layers is not None
    assert (own_layers.r, own_layers.lora_alpha, own_layers.target_modules) == (4, 16, {"c_attn"})


def test_without_an_adapter_there_is_no_config() -> None:
    assert lora_config({"method": "full", "full_learning_rate": 1e-5}) is None
    assert lora_config({"rank": 0}) is None
    with pytest.raises(ParamsError, match="an adapter needs a 'rank', but got"):
        lora_config({"method": "lora"})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # TRL calls what is deprecated
@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_trl_takes_both(kind: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs TRL: pip install 'llamatune-torch[trl]'")
    space = SPACES["lora"] if kind == "SFT" else SPACES["dpo_adapter"]
    data = texts(text=8) if kind == "SFT" else texts(prompt=2, chosen=3, rejected=4)
    few = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "report_to": "none"}
    plain = getattr(trl, f"{kind}Config")(output_dir=str(tmp_path), disable_tqdm=True, **few)
    args = training_arguments({**(space.default or {}), "max_length": 24}, plain)
    assert type(args) is getattr(trl, f"{kind}Config")
    assert (args.max_length, args.learning_rate) == (24, (space.default or {})["learning_rate"])
    assert (args.max_steps, args.per_device_train_batch_size) == (2, 4)
    adapter = lora_config({**(space.default or {}), "max_length": 24}, own=["max_length"], fan_in_fan_out=True)
    model = language_model(n_positions=32)
    trainer = getattr(trl, f"{kind}Trainer")(
        model, args=args, train_dataset=data, processing_class=tokenizer(), peft_config=adapter
    )
    assert trainer.args.warmup_steps == (space.default or {})["warmup_steps"]
    trainable = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("lora" in name for name in trainable)


def test_a_fine_tune_by_a_name_begins_with_its_default(tmp_path: Path) -> None:
    def factory(params: Any) -> Trainer:
        args = training_arguments(
            params, base(tmp_path / "own", eval_strategy="epoch", disable_tqdm=True, save_strategy="no")
        )
        return tiny_trainer({"learning_rate": 0.0}, tmp_path, args=args)

    study = tuned(tmp_path, factory, space="encoder_classification")
    assert study.trials[0].params == spaces.encoder_classification().default
    assert study.trials[0].origin == "default"
    assert "the default (trial 0) is the best" in study.summary()


def test_a_factory_that_makes_no_adapter_has_not_read_its_rank(tmp_path: Path) -> None:
    params = ReadLog({"learning_rate": 1e-3, "rank": 8, "lora_dropout": 0.1, "effective_batch_size": 8})
    training_arguments(params, base(tmp_path))
    assert params.unread() == ["rank", "lora_dropout"]
    pytest.importorskip("peft")
    lora_config(params)
    assert params.unread() == []


def test_parameters_of_ones_own_go_along(tmp_path: Path) -> None:
    space = spaces.full() | SearchSpace(
        {"max_grad_norm": Real(0.1, 10, prior="log-uniform")}, default={"max_grad_norm": 1}
    )
    assert training_arguments(space.default or {}, base(tmp_path)).max_grad_norm == 1.0
