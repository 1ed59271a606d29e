"""Decoding parameters tuned: a function, a tiny model of transformers, an endpoint on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest

from llamatune_torch import (
    EvaluationError,
    IgnoredParameterWarning,
    Real,
    SearchSpace,
    SettingsError,
    TrialState,
    spaces,
    tune_decoding,
)
from llamatune_torch.integrations.decoding.backends import Answers, EndpointBackend, TransformersBackend
from llamatune_torch.integrations.decoding.verdict import compare

PER_ANSWER = 10
PROMPTS = [f"prompt {i}" for i in range(60)]
HARDNESS = dict(zip(PROMPTS, np.random.default_rng(0).normal(0, 1, 60).tolist(), strict=True))
SPACE = SearchSpace({"temperature": Real(0.0, 2.0)}, default={"temperature": 1.6})
BUDGET = 60 * PER_ANSWER * 6


def answer(prompts: Sequence[Any], params: Mapping[str, Any], seed: int, gain: float = 1.0) -> Answers:
    """Numbers as texts: hardness, quality with its best at 0.7, and luck."""
    luck = np.random.default_rng([seed, int(1e6 * params["temperature"])])
    quality = -gain * (params["temperature"] - 0.7) ** 2
    return Answers([str(HARDNESS[p] + quality + luck.normal(0, 0.2)) for p in prompts], PER_ANSWER * len(prompts))


def score(prompt: Any, text: str, reference: Any) -> float:
    return float(text)


def tuned(generate: Any = answer, **changes: Any) -> Any:
    arguments = {"prompts": PROMPTS, "score": score, "space": SPACE, "budget_tokens": BUDGET, **changes}
    return tune_decoding(generate, progress=False, **arguments)


def test_the_best_is_found_within_the_budget_and_is_better_than_the_default() -> None:
    study = tuned()
    assert study.trials[0].origin == "default"
    assert study.trials[0].state is TrialState.COMPLETE
    assert abs(study.best_params["temperature"] - 0.7) < 0.25
    assert study.ended.startswith("better than the default by 0.")
    assert study.ended.endswith("on 15 held-out prompts")
    spent = sum(trial.outcomes["tokens"] for trial in study.trials)
    assert spent + 2 * 15 * PER_ANSWER <= BUDGET
    stopped = study.in_state(TrialState.STOPPED)
    assert stopped
    assert all(8 <= len(trial.curve) < 45 for trial in stopped)
    assert all(len(trial.curve) == 45 for trial in study.completed)
    assert all(trial.outcomes["tokens_per_answer"] == PER_ANSWER for trial in study.trials)


def test_all_settings_see_the_same_prompts_in_the_same_order() -> None:
    asked: dict[float, list[str]] = {}

    def remember(prompts: Sequence[str], params: Mapping[str, Any], seed: int) -> Answers:
        asked.setdefault(params["temperature"], []).extend(prompts)
        return answer(prompts, params, seed)

    study = tuned(remember, held_out=0.0)
    longest = max(asked.values(), key=len)
    assert len(asked) == len(study.trials)
    assert all(order == longest[: len(order)] for order in asked.values())


def test_the_same_seed_does_the_same() -> None:
    assert [t.params for t in tuned(seed=3).trials] == [t.params for t in tuned(seed=3).trials]


def test_of_equal_settings_none_is_told_from_the_default() -> None:
    study = tuned(lambda prompts, params, seed: answer(prompts, params, seed, gain=0.0))
    assert study.ended.startswith("no setting is distinguishable from the default")


def test_without_held_out_prompts_there_is_no_verdict() -> None:
    assert "no prompts were held out" in tuned(held_out=0.0).ended


def test_a_search_goes_on_where_it_was(tmp_path: Any) -> None:
    storage = f"sqlite:///{tmp_path}/decoding.db"
    short = tuned(storage=storage, budget_tokens=BUDGET / 2)
    again = tuned(storage=storage)
    assert len(again.trials) > len(short.trials)
    assert [t.params for t in again.trials[: len(short.trials)]] == [t.params for t in short.trials]


def test_a_verdict_is_students_interval_of_the_differences() -> None:
    from scipy.stats import ttest_rel

    a, b = [1.0, 2.0, 3.5, 2.0], [0.5, 1.0, 2.0, 2.5]
    verdict = compare(a, b)
    interval = ttest_rel(a, b).confidence_interval(0.9)
    assert (verdict.low, verdict.high) == pytest.approx((interval.low, interval.high))
    assert verdict.is_better == (interval.low > 0)


# --- Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_tokens": 100}, "budget_tokens=100 is below one evaluation"),
        ({"budget_tokens": 0}, "budget_tokens must be a number of tokens > 0, but got 0"),
        ({"prompts": PROMPTS[:2]}, "prompts must be enough"),
        ({"held_out": 1.0}, r"held_out must be a share in \[0, 1\), but got 1.0"),
        ({"first": 1}, "first must be an integer >= 2, but got 1"),
        ({"generate": "gpt2"}, "generate must be a backend, a pair"),
        ({"generate": lambda prompts, params, seed: Answers(["one"], 1)}, "one text for each of 16 prompts, but got 1"),
    ],
)
def test_a_users_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        tuned(**changes)


def test_a_parameter_that_the_backend_does_not_have() -> None:
    backend = EndpointBackend(None, "tiny", extra=["top_k"])
    with pytest.raises(SettingsError, match=r"no parameters \['min_p'\]; it has .*'temperature'.*'top_k'"):
        tuned(backend, space={"min_p": (0.0, 1.0), "temperature": (0.0, 1.0)})


def test_answers_that_are_the_same_under_all_settings_are_reported() -> None:
    def deaf(prompts: Sequence[str], params: Mapping[str, Any], seed: int) -> Answers:
        return Answers([str(HARDNESS[prompt]) for prompt in prompts], PER_ANSWER * len(prompts))

    with pytest.warns(IgnoredParameterWarning, match="the backend seems to ignore its parameters"):
        tuned(deaf)


def test_a_score_that_raises_for_some_answers_fails_those_settings_alone() -> None:
    def touchy(prompt: str, text: str, reference: Any) -> float:
        if float(text) - HARDNESS[prompt] < -0.9:
            raise ValueError("nothing that a judge likes")
        return float(text)

    study = tuned(score=touchy, space=SearchSpace(SPACE, default={"temperature": 1.0}))
    assert study.failed
    assert "score raised ValueError for prompt" in study.failed[0].reason
    assert abs(study.best_params["temperature"] - 0.7) < 0.35


def test_a_score_that_always_raises_ends_the_search() -> None:
    def broken(prompt: str, text: str, reference: Any) -> float:
        raise KeyError("reference")

    with pytest.raises(EvaluationError, match="the first 3 settings failed: score raised KeyError"):
        tuned(score=broken)


def test_an_empty_answer_is_scored_and_no_answer_is_a_failure() -> None:
    def length(prompt: str, text: str, reference: Any) -> float:
        return float(len(text))

    def shy(prompts: Sequence[str], params: Mapping[str, Any], seed: int) -> list[Any]:
        return ["" if params["temperature"] < 1 else "x"] * len(prompts)

    assert tuned(shy, score=length, budget_tokens=300).best_value == 1.0
    with pytest.raises(EvaluationError, match="no text for prompt 0, but None"):
        tuned(lambda prompts, params, seed: Answers([None] * len(prompts), 1))  # type: ignore[list-item]


# --- The ready-made space -----------------------------------------------------------------------------------------


def test_the_ready_made_space_has_what_the_backend_has() -> None:
    local = spaces.decoding(TransformersBackend.names)
    assert local.default == {"method": "greedy", "repetition_penalty": 1.0}
    assert set(local.names) == TransformersBackend.names - {"max_tokens"}
    served = spaces.decoding(EndpointBackend.OWN)
    assert served.names == ["temperature", "top_p", "frequency_penalty", "presence_penalty"]
    assert served.default == {"temperature": 0.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    assert "top_p" in served.decode([0.9] * 4)


# --- A real model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    import torch

    words = {word: i for i, word in enumerate(["<end>", *"abcdefghijklmnopqrstuvwxyz "])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    config = transformers.GPT2Config(
        vocab_size=28, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).eval(), tokenizer


def test_a_model_of_transformers_answers_the_same_for_the_same_seed_in_any_company(model: Any) -> None:
    backend = TransformersBackend(*model)
    params = {"method": "sample", "temperature": 1.0, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.1}
    params |= {"max_tokens": 6}
    both = backend.answer(["a b", "hello"], params, [5, 6])
    alone = backend.answer(["hello"], params, [6])
    assert both.texts[1] == alone.texts[0]
    assert both.tokens > 0
    other = [backend.answer(["hello"], params, [seed]).texts[0] for seed in range(7, 12)]
    assert len({*other, alone.texts[0]}) > 1
    greedy = {"method": "greedy", "max_tokens": 6}
    assert backend.answer(["a b", "hello"], greedy, [0, 0]).texts[1] == backend.answer(["hello"], greedy, [9]).texts[0]
    beams = backend.answer(["hello"], {"method": "beam", "num_beams": 3, "max_tokens": 6}, [0])
    assert isinstance(beams.texts[0], str)
    cold = backend.answer(["hello"], {"temperature": 0.0, "max_tokens": 6}, [1])
    assert cold.texts == backend.answer(["hello"], greedy, [0]).texts


def test_a_prompt_that_does_not_fit_is_named(model: Any) -> None:
    with pytest.raises(SettingsError, match="context of 64 tokens, but the longest prompt has 60 and max_tokens is 6"):
        TransformersBackend(*model).answer(["a" * 60], {"max_tokens": 6}, [0])


def test_a_model_is_tuned(model: Any) -> None:
    def vowels(prompt: str, text: str, reference: str) -> float:
        return sum(letter in reference for letter in text) / max(1, len(text))

    space = spaces.decoding(TransformersBackend.names) | {"max_tokens": 8}
    pairs = [
        (word, "aeiou") for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    ]
    study = tune_decoding(model, pairs, vowels, space, budget_tokens=600, first=4, held_out=0.3, progress=False)
    assert study.trials[0].params["method"] == "greedy"
    assert len(study.trials) >= 3
    assert study.ended


# --- A real endpoint ----------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Speaks OpenAI's protocol, and fails now and then as hosts do."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(asked)
        status = {3: 429, 5: 500}.get(len(self.seen), 200)
        text = str(-((asked["temperature"] - 0.7) ** 2) + 0.01 * (asked["seed"] % 10))
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
        }
        sent = json.dumps(body if status == 200 else {"error": {"message": "busy"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: Any) -> None:
        """Keeps quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    Server.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_is_tuned_through_its_faults(endpoint: str) -> None:
    openai = pytest.importorskip("openai", reason="the extra `decoding` is not installed")
    with openai.OpenAI(base_url=endpoint, api_key="none", max_retries=4) as client:
        backend = EndpointBackend(client, "tiny", extra=["top_k"], at_once=4)
        space = SearchSpace({"temperature": Real(0.0, 2.0), "top_k": 5}, default={"temperature": 1.9, "top_k": 5})
        study = tuned(backend, space=space, budget_tokens=60 * 5 * 5)
    assert not study.failed
    assert abs(study.best_params["temperature"] - 0.7) < 0.3
    assert study.trials[0].outcomes["tokens"] == 45 * 5
    assert {asked["top_k"] for asked in Server.seen} == {5}
    assert study.ended.startswith("better than the default")
