"""Versions of what is installed, for a report of a fault and for the page of a study."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("llamatune-torch", "torch", "gpytorch", "botorch", "numpy", "scipy", "sqlalchemy", "transformers", "peft",
            "trl", "optuna", "matplotlib")  # fmt: skip


def installed() -> dict[str, str]:
    """The versions of Python, of the system and of each package that is there.

    Example:
        >>> installed()["torch"]
        '2.13.0+cpu'
    """
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
