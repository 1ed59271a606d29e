"""Models that answer prompts: a ``transformers`` model here, an endpoint elsewhere, or any function.

A backend says which parameters it has, so that a space with others is refused before a token is paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import torch

from llamatune_torch.errors import SettingsError

#: A text, or the messages of a chat.
Prompt = str | Sequence[Mapping[str, str]]

MAX_TOKENS = 128  # of an answer, where the space does not say


class Answers(NamedTuple):
    """The answers to some prompts, in their order, and the tokens of them all, prompts left out."""

    texts: Sequence[str]
    tokens: int


class Backend(Protocol):
    """Answers prompts.

    ``names`` are the parameters that it has; ``None`` if nobody knows.
    """

    @property
    def names(self) -> frozenset[str] | None: ...

    def answer(self, prompts: Sequence[Prompt], params: Mapping[str, Any], seeds: Sequence[int]) -> Answers:
        """Answers each prompt under the same parameters; the same seed gives the same answer, where it can be."""


class FunctionBackend:
    """Any function ``(prompts, params, seed) -> texts``.

    It may return ``Answers``, which have the number of tokens. Of plain texts, words count.
    """

    names: frozenset[str] | None = None

    def __init__(self, function: Callable[[Sequence[Prompt], Mapping[str, Any], int], Any]) -> None:
        self._function = function

    def answer(self, prompts: Sequence[Prompt], params: Mapping[str, Any], seeds: Sequence[int]) -> Answers:
        found = self._function(prompts, dict(params), seeds[0])
        if isinstance(found, Answers):
            return found
        texts = list(found)
        return Answers(texts, sum(len(text.split()) for text in texts if isinstance(text, str)))


class TransformersBackend:
    """A causal language model of ``transformers`` and its tokenizer.

    Greedy answers and those of beams are generated in batches. Sampled ones are generated one by one, each from its own
    seed: an answer does not depend on which others are asked for with it.

    Args:
        model: with ``generate``.
        tokenizer: of the model; with a chat template, if prompts are chats.
        batch_size: prompts at a time.
    """

    names = frozenset(
        {"method", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "num_beams", "max_tokens"}
    )

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 8) -> None:
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size

    def answer(self, prompts: Sequence[Prompt], params: Mapping[str, Any], seeds: Sequence[int]) -> Answers:
        options, samples = self._options(params)
        size = 1 if samples else self._batch_size
        texts: list[str] = []
        tokens = 0
        for i in range(0, len(prompts), size):
            with torch.random.fork_rng(devices=self._devices()):
                torch.manual_seed(seeds[i])
                found = self._generate(prompts[i : i + size], options)
            texts += found.texts
            tokens += found.tokens
        return Answers(texts, tokens)

    def _devices(self) -> list[torch.device]:
        return [self._model.device] if self._model.device.type == "cuda" else []

    def _options(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The arguments of ``generate``, and whether it samples."""
        options = {name: value for name, value in params.items() if name in self.names}
        method = options.pop("method", "sample" if "temperature" in options else "greedy")
        samples = method == "sample" and options.get("temperature", 1.0) > 0
        options["max_new_tokens"] = options.pop("max_tokens", MAX_TOKENS)
        if not samples:  # of the others generate would say that they do nothing
            for name in ("temperature", "top_p", "top_k", "min_p"):
                options.pop(name, None)
        if method != "beam":
            options.pop("num_beams", None)
        return {**options, "do_sample": samples}, samples

    def _generate(self, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> Answers:
        tokenizer = self._tokenizer
        shown = [
            prompt if isinstance(prompt, str) else tokenizer.apply_chat_template(
                list(prompt), tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]  # fmt: skip
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        encoded = [tokenizer(text)["input_ids"] for text in shown]
        longest = max(map(len, encoded))
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and longest + options["max_new_tokens"] > limit:
            raise SettingsError(
                f"prompt and answer must fit into the model's context of {limit} tokens, but the longest prompt has "
                f"{longest} and max_tokens is {options['max_new_tokens']}"
            )
        # To the left, so that each answer begins where its prompt ends.
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in encoded], device=self._model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=ids.device)
        with torch.no_grad():
            found = self._model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **options)
        new = found[:, longest:]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return Answers(texts, int((new != pad).sum()))


class EndpointBackend:
    """An endpoint that speaks OpenAI's protocol: vLLM, llama.cpp's server, or a host.

    Requests go out side by side. The client tries again by itself, with growing pauses, after a timeout, a rate limit
    or a fault of the server (``OpenAI(max_retries=..., timeout=...)``).

    Args:
        client: an ``openai.OpenAI``.
        model: the name that the endpoint knows.
        extra: parameters beyond OpenAI's own that its server has, such as ``{"top_k", "min_p"}`` of vLLM.
        at_once: requests at the same time.
    """

    OWN = frozenset({"temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty"})

    def __init__(self, client: Any, model: str, extra: Sequence[str] = (), at_once: int = 8) -> None:
        self._client, self._model, self._extra, self._at_once = client, model, frozenset(extra), at_once

    @property
    def names(self) -> frozenset[str] | None:
        return self.OWN | self._extra

    def answer(self, prompts: Sequence[Prompt], params: Mapping[str, Any], seeds: Sequence[int]) -> Answers:
        own = {name: value for name, value in params.items() if name in self.OWN}
        extra = {name: value for name, value in params.items() if name in self._extra}

        def ask(prompt: Prompt, seed: int) -> tuple[str, int]:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            done = self._client.chat.completions.create(
                model=self._model, messages=messages, seed=seed, extra_body=extra or None, **own
            )
            text = done.choices[0].message.content or ""
            return text, done.usage.completion_tokens if done.usage is not None else len(text.split())

        with ThreadPoolExecutor(self._at_once) as pool:
            found = list(pool.map(ask, prompts, [seed % 2**31 for seed in seeds]))
        return Answers([text for text, _ in found], sum(tokens for _, tokens in found))


def find_backend(generate: Any) -> Backend:
    """The backend for what a user has given: one of these, a pair of model and tokenizer, or a function.

    Raises:
        SettingsError: it is none of them.
    """
    if hasattr(generate, "answer"):
        backend: Backend = generate
        return backend
    if isinstance(generate, tuple) and len(generate) == 2 and hasattr(generate[0], "generate"):
        return TransformersBackend(*generate)
    if callable(generate):
        return FunctionBackend(generate)
    raise SettingsError(
        f"generate must be a backend, a pair (model, tokenizer) or a function (prompts, params, seed), but got "
        f"{type(generate).__name__}"
    )
