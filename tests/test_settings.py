"""The knobs: their defaults, their ranges, and what they say when one is turned too far."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from strategies import OTHERS

from llamatune_torch import LlamaTune, Settings, SettingsError
from llamatune_torch.settings import Knobs, Limits, Place, group, names_of
from llamatune_torch.storage.reader import Reader


def test_defaults_are_those_of_the_documentation() -> None:
    settings = Settings()
    assert (settings.acquisition, settings.kappa, settings.xi) == ("logeqi", 2.576, 0.1)
    assert (settings.seed, settings.device, settings.n_initial) == (0, "auto", None)


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"acquisition": "EI"}, r"acquisition must be one of \['logeqi', 'logei', .*'qlognei'\], but got 'EI'"),
        ({"xi": -0.1}, r"xi must be a finite number >= 0.0, but got -0.1"),
        ({"xi": math.nan}, r"xi must be a finite number >= 0.0, but got nan"),
        ({"xi": "0.1"}, r"xi must be a finite number >= 0.0, but got '0.1'"),
        ({"kappa": -1}, r"kappa must be a finite number >= 0.0, but got -1"),
        ({"kappa": math.inf}, r"kappa must be a finite number >= 0.0, but got inf"),
        ({"n_initial": -1}, r"n_initial must be an integer >= 0, but got -1"),
        ({"n_initial": 2.5}, r"n_initial must be an integer >= 0, but got 2.5"),
        ({"seed": -1}, r"seed must be an integer >= 0, but got -1"),
        ({"seed": None}, r"seed must be an integer >= 0, but got None"),
        ({"seed": True}, r"seed must be an integer >= 0, but got True"),
        ({"stopping": "never"}, r"stopping must be 'auto' or None, but got 'never'"),
        ({"min_evals": 0}, r"min_evals must be an integer >= 1, but got 0"),
        ({"num_restarts": 0}, r"num_restarts must be an integer >= 1, but got 0"),
        ({"num_screened": 0}, r"num_screened must be an integer >= 1, but got 0"),
        ({"mc_samples": 0}, r"mc_samples must be an integer >= 1, but got 0"),
        (
            {"strategy": "hyperbrand"},
            r"strategy must be one of \['auto', .*\], or an object with decide",
        ),
        ({"strategy": 3}, r"strategy must be one of .* but got 3"),
        ({"rungs": (0.5, 0.2, 1.0)}, r"rungs must be increasing shares .*, but got \(0.5, 0.2, 1.0\)"),
        (
            {"rungs": (0.1, 0.5)},
            r"rungs must be increasing shares .* that end with 1, or increasing steps",
        ),
        ({"rungs": (0, 1)}, r"rungs must be"),
        ({"rungs": "fast"}, r"rungs must be .*, but got 'fast'"),
        ({"device": "gpu please"}, r"device must be 'auto' or a torch device, but got 'gpu please'"),
        ({"device": None}, r"device must be 'auto' or a torch device, but got None"),
        ({"device": "cuda:99"}, r"device 'cuda:99' is not there: torch sees \d+ CUDA devices"),
    ],
)
def test_a_knob_out_of_its_range_is_refused_with_rule_name_and_value(knob: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**knob)


def test_a_seed_that_torch_cannot_take_is_refused_before_anything_is_evaluated() -> None:
    with pytest.raises(SettingsError, match="seed"):
        Settings(seed=2**70)


def test_settings_are_frozen_and_equal_by_value() -> None:
    assert Settings(seed=3) == Settings(seed=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 3


@pytest.mark.parametrize(("dim", "expected"), [(1, 4), (3, 4), (4, 5), (9, 10), (40, 10)])
def test_the_start_grows_with_the_number_of_parameters_between_4_and_10(dim: int, expected: int) -> None:
    assert Settings().num_initial(dim) == expected
    assert Settings(n_initial=0).num_initial(dim) == 0
    assert Settings(n_initial=17).num_initial(dim) == 17


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    Settings(device="cuda:0")
    with pytest.raises(SettingsError, match=r"device 'cuda:1' is not there: torch sees 1 CUDA devices"):
        Settings(device="cuda:1")


# --- The other groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "knob", "message"),
    [
        (Limits, {"max_evals": 0}, "max_evals must be an integer >= 1, but got 0"),
        (Limits, {"max_evals": True}, "max_evals must be an integer >= 1, but got True"),
        (Limits, {"max_evals": 2.0}, "max_evals must be an integer >= 1, but got 2.0"),
        (Limits, {"timeout": 0}, "timeout must be a number of seconds > 0, or such as '4h', but got 0"),
        (Limits, {"timeout": "1 week"}, "timeout must be a number of seconds > 0, .* but got '1 week'"),
        (Limits, {"max_cost": 0}, "max_cost must be a number of seconds > 0, or such as '4h', but got 0"),
        (Limits, {"max_failures": -1}, "max_failures must be an integer >= 0, but got -1"),
        (Place, {"name": "gpt2"}, r"name='gpt2' needs a storage, such as storage='sqlite:///study.db'"),
        (
            Place,
            {"storage": "sqlite:///a.db", "name": ""},
            "must be a line of text, but got ''",
        ),
        (Place, {"storage": "sqlite:///a.db", "name": "a\nb"}, "must be a line of text"),
        (Place, {"grace": 0}, "grace must be a number of seconds > 0, but got 0"),
        (Place, {"grace": math.inf}, "grace must be a number of seconds > 0, but got inf"),
        (Place, {"retries": -1}, "retries must be an integer >= 0, but got -1"),
        (Place, {"retries": 1.5}, "retries must be an integer >= 0, but got 1.5"),
    ],
)
def test_limits_and_places_are_checked_by_themselves(record: Any, knob: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        record(**knob)


def test_each_field_of_each_group_is_a_knob_of_its_type() -> None:
    types: dict[str, Any] = {}
    for record in (Settings, Limits, Place):
        assert not types.keys() & set(names_of(record)), "a name must mean one thing"
        types |= get_type_hints(record)
    del types["max_evals"]  # by position
    said = {"seed": int | None, "max_cost": float | str | None, "timeout": float | str | None}
    assert get_type_hints(Knobs) == types | said  # None: 0, or that of the stored study; a text: "4h"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2 d", 172800), ("4h", 14400)]
)
def test_seconds_may_be_spelled(text: str, seconds: float) -> None:
    limits = group({"max_cost": text, "timeout": text}).limits
    assert (limits.max_cost, limits.timeout) == (seconds, seconds)


def test_knobs_go_to_the_record_that_has_a_field_of_their_name() -> None:
    groups = group({"xi": 0.2, "max_evals": 7, "timeout": 3.0, "storage": "sqlite:///a.db", "retries": 0, "seed": 5})
    assert groups.settings == Settings(xi=0.2, seed=5)
    assert groups.limits == Limits(7, timeout=3.0)
    assert groups.place == Place("sqlite:///a.db", retries=0)
    assert groups.seeded
    assert not group({"seed": None}).seeded
    assert group({}, Settings(seed=3)).settings.seed == 3


def test_a_knob_beside_settings_and_an_unknown_one_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"settings=Settings\(...\) holds all .*, but got xi beside it"):
        group({"xi": 0.2}, Settings())
    with pytest.raises(SettingsError, match="there is no argument 'xii'; the knobs are: acquisition, xi, "):
        group({"xii": 0.2})
    with pytest.raises(SettingsError, match=r"settings must be a Settings, but got \{'xi': 0.1\}"):
        group({}, {"xi": 0.1})  # type: ignore[arg-type]


def test_every_knob_of_the_engine_can_be_set_from_the_optimizer_one_by_one_or_as_a_record() -> None:
    assert [*OTHERS] == names_of(Settings)
    assert all(getattr(Settings(), name) != value for name, value in OTHERS.items())
    for name, value in OTHERS.items():
        assert LlamaTune({"x": (0.0, 1.0)}, **{name: value}).settings == Settings(**{name: value})
    whole = Settings(**OTHERS)
    assert LlamaTune({"x": (0.0, 1.0)}, settings=whole).settings == whole
    with pytest.raises(SettingsError, match="but got kappa beside it"):
        LlamaTune({"x": (0.0, 1.0)}, settings=whole, kappa=1.0)


def test_a_stored_study_remembers_what_lasts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    LlamaTune({"x": (0.0, 1.0)}, settings=Settings(**OTHERS), max_evals=9, storage=url)
    stored = dict(Reader(url).look().settings)
    assert stored.pop("token")
    lasting = {name: value for name, value in OTHERS.items() if name != "device"}
    assert stored == {"max_evals": 9, "max_cost": None, **lasting}
    assert LlamaTune({"x": (0.0, 1.0)}, storage=url).settings.seed == 7
    assert LlamaTune({"x": (0.0, 1.0)}, storage=url, settings=Settings(seed=2)).settings.seed == 2


def test_rungs_are_shares_of_a_full_run_or_steps() -> None:
    assert Settings().shares is None
    assert Settings(rungs=[0.25, 1]).shares == (0.25, 1.0)
    assert Settings(rungs=[100, 500, 1000]).shares == (0.1, 0.5, 1.0)
