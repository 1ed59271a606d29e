"""Points of which only some parameters are given: they are checked, and completed from points of the unit cube."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from llamatune_torch.errors import ParamsError
from llamatune_torch.parameter_base import Floats, describe, to_python
from llamatune_torch.space import Params, SearchSpace

# Random points among which all given parameters must be active at one; the engine looks at many more.
NUM_CHECKED = 512


def validate_part(space: SearchSpace, params: Mapping[str, Any]) -> Params:
    """Some parameters in canonical form, in the order of the space; the others may take any values.

    Raises:
        ParamsError: no names, unknown ones, a value that its parameter does not have, or parameters that are never
            active together.

    Example:
        >>> validate_part(SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform"), "batch": (8, 32)}), {"batch": 8})
        {'batch': 8}
    """
    if not isinstance(params, Mapping) or not params:
        raise ParamsError(f"parameters must be a dict that is not empty, but got {describe(params)}")
    params = dict(zip(map(to_python, params), params.values(), strict=True))
    unknown = [name for name in params if name not in space.names]
    if unknown:
        raise ParamsError(f"unknown parameters {unknown}; the space has {space.names}")
    given: Params = {}
    for name in space.names:
        if name in params:
            try:
                given[name] = space[name].validate(params[name])
            except ParamsError as error:
                raise ParamsError(f"parameter {name!r} {error}") from None
    if space.parent_columns:
        U = np.random.default_rng(0).random((NUM_CHECKED, space.dim))
        if not len(completions(space, given, U)):
            space.validate({**space.decode(_with(space, given, U)[0]), **given})  # which says what is inactive
    if is_complete(SearchSpace(space.parameters), given):
        space.validate(given)  # which says what breaks a rule
    return given


def is_complete(space: SearchSpace, params: Params) -> bool:
    """True if parameters of :func:`validate_part` leave none out."""
    try:
        space.validate(params)
    except ParamsError:
        return False
    return True


def completions(space: SearchSpace, given: Params, U: ArrayLike) -> Floats:
    """The points ``U`` (``n x d``) with the ``given`` parameters put in: those at which all of them are active.

    The points are snapped to the space. ``U`` is best not, since inactive parameters would stand in the middle.
    """
    X = _with(space, given, U)
    columns = [space.names.index(name) for name in given]
    return space.snap(X[space.active(X)[:, columns].all(axis=1)])


def _with(space: SearchSpace, given: Params, U: ArrayLike) -> Floats:
    X = np.array(U, dtype=np.float64)
    for name, value in given.items():
        X[:, space.names.index(name)] = space[name].encode([value])
    return X
