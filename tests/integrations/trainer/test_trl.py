"""TRL's Trainers and PEFT's models: which metric counts, and where it does not compare."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tiny import CHECKPOINTS, language_model, text_trainer, tuned
from transformers import PrinterCallback, Trainer

from llamatune_torch import MetricWarning, Real, Study

pytestmark = [
    # TRL calls what transformers deprecates.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WORDS = ["<pad>", "<unk>", "<eos>", *(f"w{i}" for i in range(13))]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def texts(**lengths: int) -> Any:
    """Eight rows of different words; each column has its own length."""
    from datasets import Dataset

    def words(row: int, length: int) -> str:
        return " ".join(WORDS[3 + (row + i + length) % 13] for i in range(length))

    return Dataset.from_dict({name: [words(row, length) for row in range(8)] for name, length in lengths.items()})


def trl_trainer(kind: str, folder: Path, data: Any, of_trainer: Any = None, **changes: Any) -> Trainer:
    trl = pytest.importorskip("trl", reason="needs TRL: pip install 'llamatune-torch[trl]'")
    arguments = {
        "output_dir": str(folder / "own"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        **changes,
    }
    trainer: Trainer = getattr(trl, f"{kind}Trainer")(
        language_model(n_positions=32),
        args=getattr(trl, f"{kind}Config")(**arguments),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer(),
        **(of_trainer or {}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def sft(folder: Path, **space: Any) -> Study:
    def factory(params: Any) -> Trainer:
        return trl_trainer("SFT", folder, texts(text=8), **{"max_length": 16, **params})

    return tuned(folder, factory, space=space, max_evals=2, metric="perplexity")


def test_the_perplexity_of_a_supervised_fine_tune_is_offered(tmp_path: Path) -> None:
    study = sft(tmp_path, learning_rate=Real(1e-4, 1e-2, prior="log-uniform"))
    assert study.best_value == pytest.approx(math.exp(study.best_trial.outcomes["eval_loss"]))
    assert study.best_trial.curve.steps == (2,)


def test_a_length_that_truncates_the_evaluation_data_is_warned_about(tmp_path: Path) -> None:
    with pytest.warns(MetricWarning, match=r"eval_perplexity do not compare across trials, since max_length differs"):
        sft(tmp_path, max_length=[4, 16])


def dpo(folder: Path, metric: str | None, **space: Any) -> Study:
    def factory(params: Any) -> Trainer:
        data = texts(prompt=2, chosen=3, rejected=4)
        return trl_trainer("DPO", folder, data, {"ref_model": language_model(n_positions=32)}, **params)

    return tuned(folder, factory, space=space, max_evals=2, metric=metric)


@pytest.mark.parametrize(("metric", "space"), [(None, {"beta": [0.1, 0.5]}), (None, {"loss_type": ["sigmoid", "ipo"]})])
def test_a_preference_loss_that_changes_with_its_parameters_is_warned_about(
    metric: str | None, space: dict[str, Any], tmp_path: Path
) -> None:
    (name,) = space
    with pytest.warns(MetricWarning, match=f"eval_loss do not compare across trials, since {name} differs"):
        dpo(tmp_path, metric, **space)


def test_the_accuracy_of_preferences_compares(tmp_path: Path) -> None:
    study = dpo(tmp_path, "rewards/accuracies", beta=[0.1, 0.5])
    assert (study.metric, study.direction) == ("eval_rewards/accuracies", "maximize")
    assert len(study.completed) == 2


@pytest.mark.parametrize("changes", [{}, {"eval_strategy": "epoch", **CHECKPOINTS}])
def test_the_reward_counts_where_a_trainer_learns_from_rewards(changes: dict[str, Any], tmp_path: Path) -> None:
    def length(completions: Any, **_: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    def factory(params: Any) -> Trainer:
        generation = {"num_generations": 2, "max_completion_length": 4}
        return trl_trainer(
            "GRPO", tmp_path, texts(prompt=2), {"reward_funcs": length}, **generation, **params, **changes
        )

    study = tuned(tmp_path, factory, space={"learning_rate": Real(1e-4, 1e-2, prior="log-uniform")})
    assert (study.metric, study.direction) == ("eval_reward", "maximize")
    assert study.best_value == study.best_trial.outcomes["eval_reward"] > 0


def test_the_perplexity_of_a_language_model_with_an_adapter_is_offered(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install 'llamatune-torch[trl]'")

    def factory(params: Any) -> Trainer:
        lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
        adapted = peft.get_peft_model(language_model(), lora)
        return text_trainer(params, tmp_path, model=adapted, label_names=["labels"])

    study = tuned(tmp_path, factory, metric="perplexity")
    assert study.best_value == pytest.approx(math.exp(study.best_trial.outcomes["eval_loss"]))
