"""Choices with labels, lists and dicts as choices: the record has labels, the evaluation gets values of its own."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON_VALUES, categoricals

from llamatune_torch import Categorical, ParamsError, SearchSpace, SpaceError
from llamatune_torch.parameter_base import as_json, compact, type_key

DTYPES = {"half": torch.float16, "single": torch.float32}
TARGETS = {"qv": ["q_proj", "v_proj"], "all": "all-linear"}


def test_the_record_has_labels_and_the_evaluation_gets_values() -> None:
    space = SearchSpace({"targets": Categorical(TARGETS), "dtype": Categorical(DTYPES), "lr": (0.0, 1.0)})
    params = space.decode([0.1, 0.9, 0.5])
    assert params == {"targets": "qv", "dtype": "single", "lr": 0.5}
    assert space.values_of(params) == {"targets": ["q_proj", "v_proj"], "dtype": torch.float32, "lr": 0.5}
    assert space["targets"].choices == ("qv", "all")  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", ["qv", ["q_proj", "v_proj"], ("q_proj", "v_proj"), np.str_("qv")])
def test_a_choice_is_named_by_its_label_or_by_its_value(given: Any) -> None:
    assert Categorical(TARGETS).validate(given) == "qv"


def test_objects_are_found_as_themselves_also_within_tuples() -> None:
    config = object()
    choice = Categorical({"a": (torch.float16, torch.float32), "b": config, "c": {"x": [config]}, "d": 1})
    handed = [choice.value_of(label) for label in "abcd"]
    assert [choice.validate(value) for value in handed] == ["a", "b", "c", "d"]
    for other in (object(), (torch.float16,), {"x": [object()]}, 1.0, True, np.zeros(3)):
        with pytest.raises(ParamsError, match=r"must be one of \['a', 'b', 'c', 'd'\], but got"):
            choice.validate(other)


def test_lists_and_dicts_are_compared_by_value_and_tuples_are_lists() -> None:
    choice = Categorical([["q"], ("q", "v"), {"b": 1, "a": (2,)}, None])
    assert choice.choices == (["q"], ["q", "v"], {"a": [2], "b": 1}, None)
    assert [choice.validate(v) for v in (("q",), ["q", "v"], {"a": [2], "b": 1})] == list(choice.choices[:3])
    for other in ([1], ["v", "q"], {"a": [2]}, {"a": [2.0], "b": 1}, [["q"]], float("nan"), [float("nan")], [object]):
        with pytest.raises(ParamsError, match="must be one of"):
            choice.validate(other)


def test_deep_or_endless_values_are_refused_as_any_others() -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for odd in (endless, deep):
        with pytest.raises(ParamsError, match="must be one of"):
            Categorical([[1], [2]]).validate(odd)
        with pytest.raises(SpaceError, match="must not hold lists and dicts more than 32 deep"):
            Categorical([odd])


def test_whatever_becomes_of_the_lists_the_definition_stays() -> None:
    qv, options = ["q_proj"], {"betas": [0.9, 0.99]}
    plain, labelled = Categorical([qv, options]), Categorical({"qv": qv, "options": options, "pair": (qv, 1)})
    handed: list[Any] = [*plain.decode([0.1, 0.9]), plain.validate(["q_proj"]), plain.value_of(["q_proj"])]
    handed += [labelled.value_of("qv"), labelled.value_of("options")["betas"], labelled.value_of("pair")[0]]
    qv.append("k_proj")
    options["betas"][0] = 0.0
    for value in handed:
        (value["betas"] if isinstance(value, dict) else value).append("changed")
    assert plain.choices == (["q_proj"], {"betas": [0.9, 0.99]})
    assert plain.decode([0.1, 0.9]) == [["q_proj"], {"betas": [0.9, 0.99]}]
    assert [labelled.value_of(label) for label in labelled.choices] == [
        ["q_proj"],
        {"betas": [0.9, 0.99]},
        (["q_proj"], 1),
    ]


def test_the_values_that_are_json_tell_labelled_choices_apart() -> None:
    labelled = Categorical(TARGETS)
    assert labelled == Categorical({"qv": ("q_proj", "v_proj"), "all": "all-linear"})
    assert labelled != Categorical({"qv": ["q_proj"], "all": "all-linear"})
    assert labelled != Categorical(["qv", "all"])
    assert Categorical({"a": object()}) == Categorical({"a": object()}) == Categorical(["a"], values={})
    assert hash(labelled) == hash(Categorical(TARGETS))
    assert labelled.json_values == TARGETS
    assert Categorical({"x": object(), "y": 1}).json_values == {"y": 1}
    assert Categorical(["x"]).json_values is None
    assert repr(labelled) == (
        "Categorical(choices=('qv', 'all'), ordered=False, values={'qv': ['q_proj', 'v_proj'], 'all': 'all-linear'})"
    )
    assert repr(Categorical(["qv"])) == "Categorical(choices=('qv',), ordered=False)"


def test_a_label_whose_value_is_not_known_here_is_a_named_error() -> None:
    space = SearchSpace({"dtype": Categorical(["half", "single"], values={"single": 32})})
    assert space.values_of({"dtype": "single"}) == {"dtype": 32}
    with pytest.raises(ParamsError, match=r"parameter 'dtype' has no value for the label 'half' in this process"):
        space.values_of({"dtype": "half"})
    with pytest.raises(SpaceError, match=r"parameter 'dtype' has no value for the label 'half'"):
        space.require_values()
    SearchSpace({"dtype": Categorical(DTYPES), "c": ["a"], "lr": (0.0, 1.0)}).require_values()


def test_labels_alone_can_be_sent_anywhere() -> None:
    space = SearchSpace({"f": Categorical({"id": lambda x: x}, when={"n": "> 1"}), "n": (1, 3), "c": ["a"]})
    sent = pickle.loads(pickle.dumps(space.without_values()))
    assert sent.names == space.names
    assert sent["f"] == Categorical(["id"], values={}, when={"n": ("> 1",)})
    assert (sent["n"], sent["c"]) == (space["n"], space["c"])


def test_labels_may_be_ordered() -> None:
    assert Categorical({"small": object(), "large": object()}, ordered=True).ordered
    assert not Categorical(DTYPES).ordered
    assert not Categorical([[1], [2], [3]]).ordered


def test_labelled_choices_survive_pickle() -> None:
    again = pickle.loads(pickle.dumps(Categorical(DTYPES)))
    assert again.value_of("half") is torch.float16


@given(categoricals(), st.data())
def test_every_choice_comes_back_from_its_coordinate_and_from_its_value(
    choice: Categorical, data: st.DataObject
) -> None:
    recorded = data.draw(st.sampled_from(choice.choices))
    canonical = choice.validate(recorded)
    assert type_key(canonical) == type_key(recorded)
    (again,) = choice.decode(choice.encode([canonical]))
    assert type_key(again) == type_key(recorded)
    if choice.values is not None:
        assert choice.validate(choice.value_of(recorded)) == recorded


@given(JSON_VALUES)
def test_the_canonical_form_of_json_is_the_form_of_itself(value: Any) -> None:
    canonical = as_json(value)
    assert compact(as_json(canonical)) == compact(canonical) == compact(value)
