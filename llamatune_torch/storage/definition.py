"""The definition of a stored study, with which it is opened: create a new one, compare and extend an old one."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llamatune_torch.errors import ParamsError, SchemaError, SettingsError, SpaceError, StudyMismatchError
from llamatune_torch.partial import validate_part
from llamatune_torch.past import PastStudy
from llamatune_torch.rules import name_of_rule
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.storage.database import OPENING_PATIENCE, Database, Transaction
from llamatune_torch.storage.serialization import (
    compare_spaces,
    read_constraints,
    read_end,
    read_estimates,
    read_extension,
    read_objectives,
    read_rules,
    read_space,
    to_json,
    write_constraints,
    write_estimates,
    write_extension,
    write_objectives,
    write_rules,
    write_space,
)
from llamatune_torch.storage.snapshots import read_context, read_snapshots, write_snapshots
from llamatune_torch.storage.validation import clip, mapping, optional, parsed, sequence, shorten, text, whole
from llamatune_torch.study import UNCHANGED, Extension, Goal, Study

logger = logging.getLogger(__name__)


class Definition(NamedTuple):
    """The part of a stored study that is there before any trial.

    ``study`` is its record without trials; its extension is stored among the settings. ``settings`` are what a later
    start or another worker may want to know.
    """

    study: Study
    settings: Mapping[str, Any]


def open_study(
    transaction: Transaction, display_url: str, name: str, given: Definition, extend: bool | Mapping[str, Any]
) -> tuple[int, Definition]:
    """Opens a stored study, or creates it; returns its id and its definition as it is from now on.

    Args:
        transaction: an exclusive one, so that two processes do not create the same study.
        display_url: the database's name in messages.
        name: the study's name.
        given: the definition of the present start.
        extend: as of ``Place``, with canonical values.

    Raises:
        StudyMismatchError: the stored study is another search, or has not all parameters and ``extend`` does not say
            which values its trials have had.
    """
    values = extend if isinstance(extend, Mapping) else {}
    rows = transaction.rows("SELECT * FROM llamatune_studies WHERE name = :name", name=name)
    if not rows:
        return create(transaction, name, given)
    id, stored = rows[0]["id"], read_definition(rows[0], transaction)
    lines, extensible = compare(stored, given)
    added = [other for other in given.study.space.names if other not in stored.study.space.names]
    if contradictions := compare_values(stored.study, values, added):
        raise StudyMismatchError(describe_mismatch(name, display_url, contradictions, extensible=False))
    if lines and (extend is False or not extensible or not values.keys() >= set(added)):
        raise StudyMismatchError(describe_mismatch(name, display_url, lines, extensible, added))
    if lines:
        logger.info("study %r: its space is now another: %s", name, "; ".join(lines))
    opened = merge(stored, given, values)
    update(transaction, id, opened)
    fitting = tuple(_keep_fitting(opened.study.space, opened.study.initial_points))
    return id, opened._replace(study=replace(opened.study, initial_points=fitting))


def create(transaction: Transaction, name: str, given: Definition) -> tuple[int, Definition]:
    """Writes a new study with a token of its own; without a seed among its settings, that is 0."""
    id = transaction.rows("SELECT coalesce(max(id), 0) + 1 AS id FROM llamatune_studies")[0]["id"]
    settings = {**given.settings, "seed": given.settings.get("seed") or 0, "token": uuid.uuid4().hex}
    created = given._replace(settings=settings)
    transaction.run(
        "INSERT INTO llamatune_studies (id, name, space, direction, metric, initial_points, settings, revision, "
        "lease_until, suggest_seconds) VALUES (:id, :name, :space, :direction, :metric, :points, :settings, 0, 0, 0)",
        id=id,
        name=name,
        **_to_columns(created),
    )
    write_snapshots(transaction, created.study)
    return id, created


def compare(stored: Definition, given: Definition) -> tuple[list[str], bool]:
    """Lists the differences between two definitions, a line each; True if ``extend`` would accept them."""
    lines, extensible = compare_spaces(stored.study.space, given.study.space)
    old, new = (str(definition.settings.get("strategy", "")) for definition in (stored, given))
    if old and new and old != new and "@" in old + new:  # a user's own: others decide otherwise
        lines.append(f"strategy: stored {old!r}, given {new!r}")
    rules = [", ".join(map(name_of_rule, each.study.space.rules)) or "none" for each in (stored, given)]
    if rules[0] != rules[1]:
        lines.append(f"rules: stored {rules[0]}, given {rules[1]}")
    limits = [", ".join(map(str, definition.study.constraints)) or "none" for definition in (stored, given)]
    if limits[0] != limits[1]:  # old trials are judged by the new ones, since what they have measured is on record
        lines.append(f"constraints: stored {limits[0]}, given {limits[1]}")
    aims = [", ".join(map(str, definition.study.objectives[1:])) or "none" for definition in (stored, given)]
    if aims[0] != aims[1]:
        lines.append(f"objectives beside the metric: stored {aims[0]}, given {aims[1]}")
    # Without any, a later start has those that are stored.
    pasts = [each.study.past for each in (stored, given)]
    if pasts[1] and pasts[0] != pasts[1]:
        lines.append("past studies: stored {}, given {}".format(*map(_show_past, pasts)))
    sizes = [to_json(dict(sorted(each.study.context.items()))) for each in (stored, given)]
    if given.study.context and sizes[0] != sizes[1]:
        lines.append(f"context: stored {sizes[0]}, given {sizes[1]}")
    if stored.study.is_settled and given.study.is_settled:
        score = compare_scores(stored.study, given.study, named=True)
        lines, extensible = lines + score, extensible and not score
    return lines, extensible


def _show_past(past: Sequence[PastStudy]) -> str:
    return ", ".join(f"{each.name!r} ({each.key})" for each in past) or "none"


def compare_values(stored: Study, values: Mapping[str, Any], added: Sequence[str]) -> list[str]:
    """Lists the parameters that old trials lack, and for which ``values`` now says otherwise than it once did."""
    return [
        f"{name}: old trials have had {stored.extension.values[name]!r}, given {value!r}"
        for name, value in values.items()
        if name not in added and to_json(stored.extension.values.get(name, value)) != to_json(value)
    ]


def check_values(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that new parameters have had (``extend``) in canonical form.

    Raises:
        SettingsError: there is no such parameter.
        SpaceError: a value that its parameter does not have.
    """
    canonical = {}
    for name, value in values.items():
        if name not in space.names:
            raise SettingsError(f"extend has a value for {name!r}, but the space has {space.names}")
        try:
            canonical[name] = space[name].validate(value)
        except ParamsError as error:
            raise SpaceError(f"extend: parameter {name!r} {error}") from None
    return canonical


def compare_scores(stored: Study, given: Study, named: bool) -> list[str]:
    """Lists the differences in the score, a line each; ``named`` is False while the stored metric has no name."""
    lines = []
    if stored.direction != given.direction:
        lines.append(f"direction: stored {stored.direction!r}, given {given.direction!r}")
    if named and stored.metric != given.metric:
        lines.append(f"metric: stored {stored.metric!r}, given {given.metric!r}")
    return lines


def describe_mismatch(
    name: str, display_url: str, lines: Sequence[str], extensible: bool, added: Sequence[str] = ()
) -> str:
    """Says for people what differs, and what they can do; ``added`` are the parameters that are not stored."""
    remedy = "extend=True accepts that, and uses the old trials that still fit; " if extensible else ""
    if extensible and added:
        values = ", ".join(f"{new!r}: ..." for new in added)
        remedy = f"extend={{{values}}} accepts that, with the value that old trials have had in the place of the dots; "
    differences = "".join(f"\n  {line}" for line in lines)
    return f"study {name!r} in {display_url} is another search:{differences}\n{remedy}another name starts a new study"


def merge(stored: Definition, given: Definition, values: Mapping[str, Any]) -> Definition:
    """Combines two definitions that do not contradict each other.

    The given space and settings count; a seed of ``None`` is none. The parameters stay in the stored order, so that all
    processes search the same space; new ones come behind. Old trials lack these and have had their ``values``; so do
    the stored initial points. The stored default stays if none is given and it still fits, the stored score if none is
    given. New initial points come behind the stored ones, which stay on record even where they do not fit the space.
    The stored estimates stay as long as the parameters do; past studies and sizes, until others are given. A study that
    an earlier version has written gets a token.
    """
    before, space = stored.study, given.study.space
    kept = [name for name in before.space.names if name in space.names]
    added = [name for name in space.names if name not in before.space.names]
    lost = [name for name in before.space.names if name not in space.names]
    space = SearchSpace({name: space[name] for name in (*kept, *added)}, rule=space.rules, default=space.default)
    change = Extension({name: values[name] for name in added}, tuple(lost))
    if space.default is None and before.space.default is not None:
        space = _with_default(space, change.applied_to(before.space.default, space))
    extension = Extension(
        {name: value for name, value in before.extension.values.items() if name in kept} | dict(change.values),
        tuple(name for name in (*before.extension.dropped, *lost) if name not in added),
    )
    estimates = () if added or lost else before.estimates
    study = replace(
        given.study,
        space=space,
        extension=extension,
        estimates=estimates or given.study.estimates,
        context=given.study.context or before.context,
        past=given.study.past or before.past,
    )
    if not study.is_settled:
        score = before.goal
        study = replace(study, goal=replace(study.goal, direction=score.direction, metric=score.metric))
    study = replace(study, end=study.end or before.end)
    points = [change.applied_to(point, space) for point in before.initial_points]
    known = {_to_key(point) for point in points}
    new = [
        point
        for point in study.initial_points
        if not known & {_to_key(point), _to_key(extension.applied_to(point, space))}
    ]
    settings = {key: value for key, value in given.settings.items() if key != "seed" or value is not None}
    return Definition(
        replace(study, initial_points=(*points, *new)), {"token": uuid.uuid4().hex, **stored.settings, **settings}
    )


def update(transaction: Transaction, id: int, definition: Definition) -> None:
    """Writes a study's definition in the place of its present one."""
    transaction.run(
        "UPDATE llamatune_studies SET space = :space, direction = :direction, metric = :metric, "
        "initial_points = :points, settings = :settings, revision = revision + 1 WHERE id = :id",
        id=id,
        **_to_columns(definition),
    )
    write_snapshots(transaction, definition.study)


def read_definition(row: Mapping[str, Any], transaction: Transaction) -> Definition:
    """Reads the definition in a row of ``llamatune_studies``; its initial points need not fit its space.

    Raises:
        SchemaError: the space cannot be read, or a past study.
    """
    place = f"the stored study {shorten(row['name'])}"
    points = sequence(parsed(row["initial_points"], f"{place}: initial_points"), f"{place}: initial_points")
    try:
        goal = Goal(row["direction"], row["metric"])
    except SettingsError as error:
        raise SchemaError(f"{place} cannot be read: {clip(error)}") from error
    settings = read_settings(mapping(parsed(row["settings"], place), f"{place}: settings"), place)
    changes, limits = settings.pop("extension", None), settings.pop("constraints", {})
    goal = read_objectives(settings.pop("objectives", []), goal, f"{place}: objectives")
    estimates = read_estimates(settings.pop("estimates", []), f"{place}: estimates")
    rules = read_rules(settings.pop("rules", []), f"{place}: rules")
    keys = [text(key, f"{place}: past") for key in sequence(settings.pop("past", []), f"{place}: past")]
    default = optional(mapping)(settings.pop("default", None), f"{place}: default")
    try:
        space = SearchSpace(read_space(row["space"]), rule=rules, default=default)
    except ParamsError as error:
        raise SchemaError(f"{place} cannot be read: {clip(error)}") from error
    study = Study(
        space,
        replace(goal, constraints=read_constraints(limits, f"{place}: constraints")),
        tuple(mapping(point, f"{place}: initial_points") for point in points),
        extension=UNCHANGED if changes is None else read_extension(changes, f"{place}: extension"),
        end=optional(read_end)(settings.pop("end", None), f"{place}: end"),
        estimates=estimates,
        context=read_context(settings.pop("context", {}), f"{place}: context"),
        past=read_snapshots(transaction, keys, f"{place}: past"),
    )
    return Definition(study, settings)


def read_settings(settings: dict[str, Any], place: str) -> dict[str, Any]:
    """Checks the settings that are used before ``LlamaTune`` checks them all.

    Raises:
        SchemaError: the budget or the seed is no integer.
    """
    for name in ("max_evals", "seed"):
        optional(whole)(settings.get(name), f"{place}: {name}")
    return settings


def remember(url: str, name: str, settings: Mapping[str, Any]) -> None:
    """Adds to the settings of a stored study, for later starts."""
    database = Database(url)

    def work(transaction: Transaction) -> None:
        # The study for itself first: another start may be writing its own.
        transaction.run("UPDATE llamatune_studies SET revision = revision + 1 WHERE name = :name", name=name)
        (row,) = transaction.rows("SELECT settings FROM llamatune_studies WHERE name = :name", name=name)
        transaction.run(
            "UPDATE llamatune_studies SET settings = :settings WHERE name = :name",
            settings=to_json({**json.loads(row["settings"]), **settings}),
            name=name,
        )

    database.keep_trying(lambda: database.write(work), "settings to be written", OPENING_PATIENCE)


def _to_columns(definition: Definition) -> dict[str, Any]:
    study = definition.study
    changes: dict[str, Any] = {} if study.extension == UNCHANGED else {"extension": write_extension(study.extension)}
    if study.space.default is not None:
        changes["default"] = study.space.default
    if study.space.rules:
        changes["rules"] = write_rules(study.space.rules)
    if study.constraints:
        changes["constraints"] = write_constraints(study.constraints)
    if study.goal.others:
        changes["objectives"] = write_objectives(study.goal)
    if study.end is not None:
        changes["end"] = list(study.end)
    if study.estimates:
        changes["estimates"] = write_estimates(study.estimates)
    if study.context:
        changes["context"] = dict(study.context)
    if study.past:
        changes["past"] = [past.key for past in study.past]
    return {
        "space": write_space(study.space),
        "direction": study.direction,
        "metric": study.goal.metric,
        "points": to_json(study.initial_points),
        "settings": to_json({**definition.settings, **changes}),
    }


def _to_key(point: Params) -> str:
    return to_json(sorted(point.items()))


def _with_default(space: SearchSpace, default: Params) -> SearchSpace:
    try:
        return SearchSpace(space, default=default)
    except ParamsError as error:
        logger.warning("the study goes on without its default, which does not fit its space any more: %s", error)
        return space


def _keep_fitting(space: SearchSpace, points: Sequence[Params]) -> Iterator[Params]:
    for point in points:
        try:
            yield validate_part(space, point)
        except ParamsError:
            continue
