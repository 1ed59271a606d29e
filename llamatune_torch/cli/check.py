"""``check``: a look at a search before it begins."""

from __future__ import annotations

from argparse import Namespace

from llamatune_torch.cli.output import say
from llamatune_torch.cli.spec import load_spec
from llamatune_torch.errors import SpecError


def check(options: Namespace) -> int:
    """Builds one fine-tune of a file, looks at it, and says what is found."""
    spec = load_spec(options.target, trainer=options.trainer)
    if not spec.is_trainer_factory:
        raise SpecError(f"{spec.path}: check looks at a trainer_factory, but {options.target} has another function")
    if spec.space is None:
        raise SpecError(f"{spec.path} has no `space`")
    from llamatune_torch.integrations.trainer.check import look_ahead  # takes its time to load
    from llamatune_torch.integrations.trainer.tune import prepare

    search = {name: value for name, value in spec.search.items() if name not in ("storage", "name")}
    keeper = prepare(spec.function, spec.space, **search)
    for line in look_ahead(keeper.fine_tune, keeper.optimizer.study, keeper.optimizer.settings.seed):
        say(line)
    return 0
