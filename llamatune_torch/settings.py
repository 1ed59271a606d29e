"""The knobs, grouped by what they are about: the engine, the end of a search, the place where a study lives.

``Goal``, in ``study.py``, is the fourth group. A new knob is a field of one of these records and a line of
:class:`Knobs`; ``LlamaTune``, ``tune`` and spec files then take it by its name.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from llamatune_torch.errors import SettingsError
from llamatune_torch.hints import describe_unknown

AcquisitionName = Literal["logeqi", "logei", "ei", "logpi", "pi", "ucb", "qlogei", "qlognei"]
StrategyName = Literal["auto", "screen", "full", "successive_halving", "asha", "hyperband", "median", "top_k"]
StoppingName = Literal["auto"]
TransferName = Literal["evidence", "rgpe", "portfolio"]


@dataclass(frozen=True)
class Settings:
    """The knobs of the engine: what ``suggest`` may be told besides the study.

    Args:
        acquisition: "logeqi" by default: the expected quantile improvement in log space, which noise does not mislead.
            Or "logei", "logpi", "ucb", or the Monte Carlo ones "qlogei" and "qlognei". "ei" and "pi" are other names
            of "logei" and "logpi": a logarithm has the same maximiser. With several points asked for, or other trials
            running, the analytic ones are averaged over samples of the outcomes of those.
        xi: how much a point must improve on the best, in standard deviations of the outcomes (EI, PI). Without it, the
            search polishes the first good choice it finds, instead of looking at the others.
        kappa: how many posterior standard deviations UCB adds to the mean.
        n_initial: trials before the surrogate takes over; ``None`` for the number of parameters plus one,
            between 4 and 10.
        seed: everything random follows from it.
        device: "auto" (the CPU; a GPU, if there is one, from some hundred observations on), "cpu", or a
            CUDA device such as "cuda:1".
        num_restarts: starting points of the gradient ascent on the acquisition.
        num_screened: quasi-random points among which those starting points are chosen.
        mc_samples: posterior samples of the Monte Carlo acquisitions, and of what may come out of running trials.
        strategy: which runs train to their end. "full": all. "screen": a wide, cheap opening, then the engine on
            finished runs alone. "auto": the latter where runs are known to be able to pause and the budget is 4 full
            runs or more, beside that of a default; but with past studies "full", since nobody has measured both
            together. By the book, for comparison: "successive_halving", "asha", "hyperband", "median", "top_k". Or an
            object of your own, with the methods of ``engine.strategies.strategy.Strategy``.
        rungs: where runs may pause, other than the strategy's own: increasing shares of a full run that end with 1, or
            steps, such as ``[100, 500, 1000]``, the last of which is a full run.
        stopping: "auto" ends the search before the budget does, once a further trial can be expected to gain less than
            the final choice is uncertain by (``engine/stopping.py``). ``None`` spends the whole budget.
        min_evals: trials that have to end before "auto" may end the search; ``None`` for 5 times the number of
            parameters, but 20 at least.
        confirm: the number of candidates, the best ones, that train again on fresh seeds after the search, until one is
            better (``engine/confirm.py``). 0 for none. Their runs count in ``max_evals`` and ``max_cost``.
        confirm_evals: runs that are kept for that; ``None`` for 3 times ``confirm``.
        confidence: the probability to be the best of them at which one is the winner.
        transfer: how past studies are used (``engine/transfer.py``): weighed by the "evidence" of own trials; for
            comparison, by "rgpe", or as a "portfolio" of three first trials.

    Raises:
        SettingsError: a value out of its range.
    """

    acquisition: AcquisitionName = "logeqi"
    xi: float = 0.1
    kappa: float = 2.576
    n_initial: int | None = None
    seed: int = 0
    device: str = "auto"
    num_restarts: int = 8
    num_screened: int = 1024
    mc_samples: int = 64
    strategy: StrategyName | Any = "auto"
    rungs: Sequence[float] | None = None
    stopping: StoppingName | None = None
    min_evals: int | None = None
    confirm: int = 0
    confirm_evals: int | None = None
    confidence: float = 0.9
    transfer: TransferName = "evidence"

    def __post_init__(self) -> None:
        names = get_args(AcquisitionName)
        if self.acquisition not in names:
            raise SettingsError(f"acquisition must be one of {list(names)}, but got {self.acquisition!r}")
        for name, low in (("xi", 0.0), ("kappa", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= low):
                raise SettingsError(f"{name} must be a finite number >= {low}, but got {value!r}")
        for name, low in (
            ("n_initial", 0), ("seed", 0), ("num_restarts", 1), ("num_screened", 1), ("mc_samples", 1),
            ("min_evals", 1),
            ("confirm", 0),
            ("confirm_evals", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if name in ("n_initial", "min_evals", "confirm_evals") and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise SettingsError(f"{name} must be an integer >= {low}, but got {value!r}")
            if value >= 2**63:  # torch's generators take no more
                raise SettingsError(f"{name} must be < 2**63, but got {value!r}")
        if self.stopping not in (None, *get_args(StoppingName)):
            raise SettingsError(f"stopping must be 'auto' or None, but got {self.stopping!r}")
        if self.transfer not in get_args(TransferName):
            raise SettingsError(f"transfer must be one of {list(get_args(TransferName))}, but got {self.transfer!r}")
        if not isinstance(self.confidence, (int, float)) or not 0.5 <= self.confidence < 1:
            raise SettingsError(f"confidence must be a probability in [0.5, 1), but got {self.confidence!r}")
        _check_strategy(self.strategy)
        if self.rungs is not None:
            object.__setattr__(self, "rungs", _check_rungs(self.rungs))
        _check_device(self.device)

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The rungs as shares of a full run."""
        return None if self.rungs is None else tuple(rung / self.rungs[-1] for rung in self.rungs)

    def num_initial(self, dim: int) -> int:
        """The number of trials that come before the surrogate in a space with ``dim`` parameters."""
        return min(max(dim + 1, 4), 10) if self.n_initial is None else self.n_initial

    @property
    def num_reserved(self) -> int:
        """The number of runs that are kept to confirm the winner."""
        return (3 * self.confirm if self.confirm_evals is None else self.confirm_evals) if self.confirm else 0

    def least_evals(self, dim: int) -> int:
        """The number of trials before which "auto" does not end a search in a space with ``dim`` parameters."""
        return max(20, 5 * dim) if self.min_evals is None else self.min_evals


@dataclass(frozen=True)
class Limits:
    """The limits at which a search ends.

    Args:
        max_evals: full runs in total. A failed trial counts for one, an added one for none, a run that was paused for
            the share that it has trained.
        max_cost: seconds of all runs together, over all processes, lost and repeated ones included, after which nothing
            starts or goes on; also as "90s", "30m", "4h" or "2d". Where evaluations report ``Outcome(cost=...)``, it is
            in what they count, such as steps.
        timeout: seconds after which ``optimize`` starts no further trial, nor waits for those of other processes;
            also as "4h".
        max_failures: ``optimize`` stops once more trials than this have failed; ``None`` for never.

    Raises:
        SettingsError: a value out of its range.
    """

    max_evals: int = 50
    max_cost: float | None = None
    timeout: float | None = None
    max_failures: int | None = None

    def __post_init__(self) -> None:
        if not _is_integer(self.max_evals, 1):
            raise SettingsError(f"max_evals must be an integer >= 1, but got {self.max_evals!r}")
        for name in ("max_cost", "timeout"):
            seconds = as_seconds(getattr(self, name))
            if seconds is not None and not _is_seconds(seconds):
                raise SettingsError(f"{name} must be a number of seconds > 0, or such as '4h', but got {seconds!r}")
            object.__setattr__(self, name, seconds)  # a frozen dataclass sets its fields this way
        if self.max_failures is not None and not _is_integer(self.max_failures, 0):
            raise SettingsError(f"max_failures must be an integer >= 0, but got {self.max_failures!r}")


@dataclass(frozen=True)
class Place:
    """The place where a study lives, and how its processes share it.

    Args:
        storage: "sqlite:///file.db", or "postgresql://user@host/name" for many machines (extra ``postgres``); ``None``
            for memory.
        name: the study's name in its storage; "study" by default.
        extend: whether a stored study may be opened with another space. True accepts other ranges and choices, and a
            parameter less: old trials that do not fit any more stay on record and are used for nothing. A dict accepts
            new parameters too: ``{"warmup": 0.1}`` says which value all trials without one have had.
        grace: seconds without a sign of life after which the trials of another process are LOST, at a second look.
        retries: how often at most the parameters of such a trial run again. If the last time ends so too, they have
            FAILED, which counts once, and the search steers away from them.

    Raises:
        SettingsError: a value out of its range, or a name without a storage.
    """

    storage: str | None = None
    name: str | None = None
    extend: bool | Mapping[str, Any] = False
    grace: float = 120.0
    retries: int = 2

    def __post_init__(self) -> None:
        if self.storage is None and self.name is not None:
            raise SettingsError(f"name={self.name!r} needs a storage, such as storage='sqlite:///study.db'")
        if isinstance(self.storage, str) and "\0" in self.storage:
            raise SettingsError("storage must be a URL such as 'sqlite:///study.db', without a NUL character")
        if self.name is not None and (not isinstance(self.name, str) or not self.name or not self.name.isprintable()):
            raise SettingsError(f"the name of a stored study must be a line of text, but got {self.name!r}")
        values = self.extend if isinstance(self.extend, Mapping) else {}
        if not isinstance(self.extend, (bool, Mapping)) or not all(isinstance(name, str) for name in values):
            rule = "extend must be True, False, or a dict of the values that new parameters have had"
            raise SettingsError(f"{rule}, such as {{'warmup': 0.1}}, but got {self.extend!r}")
        if not _is_seconds(self.grace) or not math.isfinite(self.grace):
            raise SettingsError(f"grace must be a number of seconds > 0, but got {self.grace!r}")
        if not _is_integer(self.retries, 0):
            raise SettingsError(f"retries must be an integer >= 0, but got {self.retries!r}")


class Knobs(TypedDict, total=False):
    """The fields of ``Settings``, ``Limits`` and ``Place`` as keyword arguments, for type checkers.

    ``max_evals`` is missing, which ``LlamaTune`` and ``tune`` take by position or with a default of their own.
    """

    acquisition: AcquisitionName
    xi: float
    kappa: float
    n_initial: int | None
    seed: int | None
    device: str
    num_restarts: int
    num_screened: int
    mc_samples: int
    strategy: StrategyName | Any
    rungs: Sequence[float] | None
    stopping: StoppingName | None
    min_evals: int | None
    confirm: int
    confirm_evals: int | None
    confidence: float
    transfer: TransferName
    max_cost: float | str | None
    timeout: float | str | None
    max_failures: int | None
    storage: str | None
    name: str | None
    extend: bool | Mapping[str, Any]
    grace: float
    retries: int


class Groups(NamedTuple):
    """Knobs by what they are about; ``seeded`` says whether a seed was given."""

    settings: Settings
    limits: Limits
    place: Place
    seeded: bool


def group(knobs: Mapping[str, Any], settings: Settings | None = None) -> Groups:
    """Each knob in the record that has a field of its name.

    Args:
        knobs: values by name. ``seed=None`` is the same as none.
        settings: the knobs of the engine, if they come as a record.

    Raises:
        SettingsError: an unknown name, a value out of its range, or a knob of the engine beside ``settings``.
    """
    knobs = {name: value for name, value in knobs.items() if not (name == "seed" and value is None)}
    own = {name: value for name, value in knobs.items() if name in names_of(Settings)}
    if settings is not None and not isinstance(settings, Settings):
        raise SettingsError(f"settings must be a Settings, but got {settings!r}")
    if settings is not None and own:
        raise SettingsError(f"settings=Settings(...) holds all knobs of the engine, but got {', '.join(own)} beside it")
    known = [*names_of(Settings), *names_of(Limits), *names_of(Place)]
    for name in knobs:
        if name not in known:
            raise SettingsError(f"{describe_unknown(name, known)}; the knobs are: {', '.join(known)}")
    limits = {name: value for name, value in knobs.items() if name in names_of(Limits)}
    place = {name: value for name, value in knobs.items() if name in names_of(Place)}
    return Groups(settings or Settings(**own), Limits(**limits), Place(**place), "seed" in own or settings is not None)


def name_of_strategy(strategy: StrategyName | Any) -> str:
    """The name by which a stored study remembers a strategy: of one's own class, where it is and a hash of its source.

    Another process must bring the same one, since its decisions depend on it.
    """
    if isinstance(strategy, str):
        return strategy
    kind = type(strategy)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt
        source = ""
    has_own = any("__repr__" in vars(base) for base in kind.__mro__[:-1])  # object's shows its address in memory
    shown = strategy if has_own else getattr(strategy, "__dict__", None)
    digest = hashlib.sha256(f"{source}{shown!r}".encode()).hexdigest()[:12]
    return f"{kind.__module__}.{kind.__qualname__}@{digest}"


def names_of(record: type[Any]) -> list[str]:
    """The names of a record's fields."""
    return [field.name for field in fields(record)]


def as_seconds(value: Any) -> Any:
    """The seconds that a text such as "90s", "30m", "4h" or "2d" spells; anything else as it is.

    Example:
        >>> as_seconds("1.5h"), as_seconds(10)
        (5400.0, 10)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhd])", value) if isinstance(value, str) else None
    return value if found is None else float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _is_integer(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _check_strategy(strategy: Any) -> None:
    names = get_args(StrategyName)
    own = not isinstance(strategy, (str, type)) and callable(getattr(strategy, "decide", None))
    if not (strategy in names if isinstance(strategy, str) else own):
        raise SettingsError(f"strategy must be one of {list(names)}, or an object with decide(), but got {strategy!r}")
    if own and not 0 < getattr(strategy, "least", 0) <= 1:
        raise SettingsError(f"a strategy's least must be a share in (0, 1], but {strategy!r} has none")


def _check_rungs(rungs: Any) -> tuple[float, ...]:
    rule = "rungs must be increasing shares in (0, 1] that end with 1, or increasing steps"
    numbers = tuple(rungs) if isinstance(rungs, (list, tuple)) else ()
    valid = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not numbers or not valid or numbers[0] <= 0 or any(a >= b for a, b in pairwise(numbers)) or numbers[-1] < 1:
        raise SettingsError(f"{rule}, but got {rungs!r}")
    return numbers


def _check_device(device: Any) -> None:
    """Refuses a device that torch does not know, or a GPU that is not there, before any time on it is spent."""
    if device in ("auto", "cpu"):
        return
    import torch  # only for this: settings are also read where nothing is computed

    try:
        named = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SettingsError(f"device must be 'auto' or a torch device, but got {device!r}") from error
    if named.type not in ("cpu", "cuda"):  # the GP needs float64, which mps has not
        raise SettingsError(f"device must be 'auto', 'cpu' or a CUDA device, but got {device!r}")
    count = torch.cuda.device_count()
    if named.type == "cuda" and (named.index or 0) >= count:
        raise SettingsError(f"device {device!r} is not there: torch sees {count} CUDA devices")
