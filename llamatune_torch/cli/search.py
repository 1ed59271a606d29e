"""``run``, ``resume`` and ``worker``: a search, from what the file, the study and the command line say of it."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llamatune_torch.cli.launches import find_launch, remember_launch
from llamatune_torch.cli.output import say
from llamatune_torch.cli.past import load_all
from llamatune_torch.cli.spec import Spec, load_spec
from llamatune_torch.confirmed import searched_trials
from llamatune_torch.errors import SettingsError, SpecError
from llamatune_torch.hints import describe_unknown
from llamatune_torch.runtime.evaluation import OnParams
from llamatune_torch.runtime.optimizer import ARGUMENTS, LASTING, LlamaTune
from llamatune_torch.runtime.runners import Runner, make_runner
from llamatune_torch.runtime.torchrun import rank
from llamatune_torch.settings import Settings
from llamatune_torch.storage.definition import remember
from llamatune_torch.storage.reader import Reader, Snapshot, find_study


def run(options: Namespace) -> int:
    """Starts a study, or goes on with it: what the file says counts before what the study remembers."""
    spec = load_spec(options.target, trainer=options.trainer)
    name = options.name or spec.name
    stored = find_study(options.storage, name)
    return _search(options, spec, name, stored, {**_remembered(stored, spec), **spec.search})


def resume(options: Namespace) -> int:
    """Goes on with a study that is there: what it remembers counts before what the file says.

    Without a target it runs the one that this user has run last on this host, never one that the database names.
    """
    stored = Reader(options.storage).look(options.name)
    if options.target is not None:
        spec = load_spec(options.target, trainer=options.trainer)
    else:
        launch = find_launch(options.storage, stored.name)
        if launch is None:
            raise SpecError(_describe_unknown(stored))
        try:
            spec = load_spec(**launch)
        except SpecError as error:
            raise SpecError(f"{error}: say where it is now, as in `llamatune resume spec.py`") from error
    return _search(options, spec, stored.name, stored, {**spec.search, **_remembered(stored, spec)})


def confirm(options: Namespace) -> int:
    """Ends the search of a study that is there, and confirms its winner: the budget becomes what that needs."""
    stored = Reader(options.storage).look(options.name)
    given = Settings(confirm=options.confirm, confirm_evals=options.confirm_evals)
    before = replace(stored.study, trials=searched_trials(stored.study.trials))
    options.max_evals = math.ceil(before.spent) + given.num_reserved
    return resume(options)


def _describe_unknown(stored: Snapshot) -> str:
    """Says why a study cannot go on without a target. The stored one is shown, but it may be anybody's."""
    launch = stored.settings.get("launch")
    if launch is None:
        return f"study {stored.name!r} was not started by `llamatune run`: say what to run"
    target, folder = (launch.get("target"), launch.get("folder")) if isinstance(launch, Mapping) else (launch, None)
    return (
        f"you have not run study {stored.name!r} on this host, so say what to run, as in `llamatune resume spec.py`; "
        f"its last run, as the database has it, was of {str(target)[:200]!r} in {str(folder)[:200]!r}"
    )


def worker(options: Namespace) -> int:
    """Runs trials of a study until there are none left; the first worker of all makes the study."""
    spec = load_spec(options.target, trainer=options.trainer)
    name = options.name or spec.name
    stored = find_study(options.storage, name)
    arguments = {**spec.search, **_remembered(stored, spec), "progress": False}
    return _search(options, spec, name, stored, arguments)


def _search(options: Namespace, spec: Spec, name: str, stored: Snapshot | None, arguments: Mapping[str, Any]) -> int:
    space = spec.space
    if space is None:
        if stored is None:
            raise SpecError(f"{spec.path} has no `space`, and {name!r} is a new study, which needs one")
        space = stored.study.space
    given = {key: value for key, value in vars(options).items() if key in ARGUMENTS and value is not None}
    if options.extend_with:
        given["extend"] = _read_values(options.extend_with)
    elif options.extend and isinstance(arguments.get("extend"), Mapping):
        del given["extend"]  # the file says more
    arguments = {**arguments, **given, "storage": options.storage, "name": name}
    if stored is not None and stored.study.past and not options.past:
        arguments.pop("past", None)  # the study has snapshots of those that it began with
    if "past" in arguments:
        arguments["past"] = load_all(arguments["past"])
    runner = _make_runner(options)
    if spec.is_trainer_factory:
        from llamatune_torch.integrations.trainer.tune import prepare  # takes its time to load

        keeper = prepare(spec.function, space, **arguments)
        tuner, search = keeper.optimizer, keeper.run
    else:
        for argument in arguments:
            if argument not in ARGUMENTS:
                unknown = describe_unknown(argument, ARGUMENTS)
                raise SpecError(f"`search` in {spec.path}: {unknown}; the arguments are: {', '.join(ARGUMENTS)}")
        tuner = LlamaTune(space, spec.function, **arguments)
        tuner.study.space.require_values()
        search = partial(tuner.run, OnParams(spec.function, tuner.study.space))
    first = rank() == 0  # under torchrun, one speaks for all
    if first:
        remember(options.storage, name, {"launch": dict(spec.launch)})  # to be shown; what runs is remembered here:
        remember_launch(options.storage, name, spec.launch)
    study = search(runner)
    if first:
        say(study.summary())
        if tuner.page is not None:
            say(f"the page of study {name!r} is {tuner.page.path}")
    if tuner.interrupted:
        raise KeyboardInterrupt
    return 0 if study.feasible else 1


def _read_values(pairs: Sequence[str]) -> dict[str, Any]:
    """The values in ``NAME=VALUE``: numbers, booleans and null as in JSON, everything else is text."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise SettingsError(f"--extend-with needs NAME=VALUE, as in warmup=0.1, but got {pair!r}")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _lasting(stored: Snapshot) -> dict[str, Any]:
    lasting = {key: stored.settings[key] for key in LASTING if key in stored.settings}
    if "@" in str(lasting.get("strategy")):  # a class of the user's, which the file brings
        del lasting["strategy"]
    return lasting


def _remembered(stored: Snapshot | None, spec: Spec) -> dict[str, Any]:
    """The arguments that a stored study remembers."""
    if stored is None:
        return {}
    arguments = _lasting(stored)
    if stored.study.is_settled and not spec.is_trainer_factory:  # a Trainer's metric may be a function
        arguments |= {"metric": stored.study.metric, "direction": stored.study.direction}
    return arguments


def _make_runner(options: Namespace) -> Runner:
    gpus = options.gpus if options.gpus in (None, "auto") else options.gpus.split(",")
    return make_runner(None, options.workers, gpus, options.isolate, options.trial_timeout)
