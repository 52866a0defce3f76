"""What Optuna does for a search: it draws what is tried, says what is pruned, and keeps both in a file of lines.

TPE: Bergstra et al. 2011; Hyperband: Li et al. 2018, arXiv:1603.06560; Optuna: Akiba et al. 2019, arXiv:1907.10902.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gptlab.errors import ConfigError
from gptlab.seeds import seed_of
from gptlab.studies.space import Dimension, Request

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

FILE = "journal.jsonl"
STARTUP = 5  # trials that end before the median prunes any
WARM = 4  # and a trial has done 1/WARM of its steps


def optuna() -> ModuleType:
    """Optuna, silent. ConfigError with what to install where it is missing."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("gptlab tune needs optuna: pip install 'gptlab[tune]'") from None
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "The reported value is ignored")  # of a trial that was cut off, and runs again
    return optuna


def opened(directory: Path, request: Request, plan: Mapping[str, Any]) -> Study:
    """The study in the directory's journal, begun or gone on with. `plan` is the trainer's, for the pruner."""
    storages, path = optuna().storages, directory / FILE
    _mend(path)
    return optuna().create_study(
        storage=storages.JournalStorage(storages.journal.JournalFileBackend(str(path))),
        study_name="search",
        direction="maximize" if request.settings.better == "higher" else "minimize",
        pruner=_pruner(request.settings.prune, plan),
        load_if_exists=True,
    )


def new(study: Study, request: Request) -> Trial:
    """The next trial, with a value for each dimension."""
    study.sampler = _sampler(request, len(trials(study)))
    return _drawn(study.ask(), request)


def again(study: Study, request: Request, cut_off: FrozenTrial) -> Trial:
    """A trial that was under way when the search stopped, as it was drawn, or would have been."""
    study.sampler = _sampler(request, cut_off.number)
    return _drawn(optuna().Trial(study, cut_off._trial_id), request)


def trials(study: Study) -> list[FrozenTrial]:
    """All trials so far."""
    return study.get_trials(deepcopy=False)


def _drawn(trial: Trial, request: Request) -> Trial:
    for dimension in request.space:
        _draw(trial, dimension)
    return trial


def _draw(trial: Trial, dimension: Dimension) -> None:
    if not dimension.ranges:
        trial.suggest_categorical(dimension.key, dimension.values)
        return
    low, high = dimension.ends
    if dimension.whole:
        trial.suggest_int(dimension.key, int(low), int(high), log=dimension.log)
    else:
        trial.suggest_float(dimension.key, low, high, log=dimension.log)


def _sampler(request: Request, number: int) -> BaseSampler:
    """What draws the trial of this number: a sampler of its own, so that a search that stopped draws the same."""
    samplers, seed = optuna().samplers, seed_of(request.settings.seed, "trial", number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is experimental in some version
        if request.settings.sampler == "grid":
            return samplers.PartialFixedSampler(request.grid()[number], samplers.RandomSampler(seed=seed))
        if request.settings.sampler == "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=True)  # what is under way is not tried again beside it
        return samplers.RandomSampler(seed=seed)


def _pruner(name: str, plan: Mapping[str, Any]) -> BasePruner:
    """median: worse than half of the trials were at that step; hyperband: as its paper."""
    pruners, steps = optuna().pruners, plan["steps"]
    if name == "median":
        return pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=steps // WARM)
    if name == "hyperband":
        return pruners.HyperbandPruner(min_resource=max(1, plan["eval_every"]), max_resource=steps)
    return pruners.NopPruner()


def _mend(path: Path) -> None:
    """Take back what a process left that was killed while it wrote: its lock, and half a line."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink()
    if path.exists():
        with path.open("rb+") as journal:
            journal.truncate(journal.read().rfind(b"\n") + 1)
