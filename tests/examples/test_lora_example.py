"""The example of adapters, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import lora  # noqa: E402
import wordnet_glosses  # noqa: E402

from llamatune_torch import spaces  # noqa: E402


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "lora.py"), *arguments, "--output-dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)


@pytest.fixture
def glosses() -> None:
    try:
        wordnet_glosses.read_glosses()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("glosses")
def test_the_default_comes_first_and_is_compared_with(tmp_path: Path) -> None:
    done = run("--max-evals", "2", "--subset", "60", "--pretraining-steps", "5", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 trials (2 complete)" in done.stdout
    assert "the default (trial 0)" in done.stdout
    assert not list(tmp_path.glob("study*"))  # no checkpoints are left


@pytest.mark.usefixtures("glosses")
def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    done = run("--model", str(tmp_path / "nothing"), folder=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lora.py: error: ")
    assert f"model '{tmp_path}/nothing'" in last  # whether the hub can be reached or not


@pytest.mark.parametrize(("is_tiny", "rank"), [(True, 16), (False, 64)])
def test_no_adapter_is_one_more_choice(is_tiny: bool, rank: int) -> None:
    space = lora.search_space(is_tiny)
    assert space.names == [name for name in spaces.lora().names if name != "lora_dropout"]
    assert space["rank"].special == (0,)
    assert space.default["rank"] == rank


@pytest.mark.usefixtures("glosses")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks models what transformers deprecates
def test_an_adapter_trains_itself_alone_and_no_adapter_all_weights(tmp_path: Path) -> None:
    task = lora.load_task(lora.parse_arguments(["--pretraining-steps", "1", "--output-dir", str(tmp_path)]))
    params = lora.search_space(True).default
    adapted, everything = (lora.trainer_factory(task, {**params, "rank": rank}) for rank in (8, 0))
    assert all("lora" in name for name, weight in adapted.model.named_parameters() if weight.requires_grad)
    assert all(weight.requires_grad for weight in everything.model.parameters())
    assert everything.args.learning_rate == pytest.approx(adapted.args.learning_rate / 10)
