"""The command line of a training: Hydra composes the config from conf/ and the registry, and errors become one line.

The only file of the library that knows Hydra.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptlab import conf_dir, explain, plugins, registry
from gptlab.config import LAYER_SLOTS, RunConfig, from_dict
from gptlab.errors import Interrupted

failures: list[tuple[str, Exception]] = []  # (overrides, error) of the points of this process
STARTED = datetime.now().strftime("%Y-%m-%d_%H%M%S_%f")  # one sweep is one directory, however often it is asked


def run_hydra(argv: Sequence[str]) -> None:
    """Compose and train what `argv` says. Raises GptlabError for what is wrong in it."""
    arguments = [_alias(argument) for argument in argv]
    words = [argument for argument in arguments if not argument.startswith("-")]
    register_schemas(_plugins_of(words))
    sys.argv = ["gptlab train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, who have a line for each
    failures.clear()
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir.find()), config_name="train")(point)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain.in_a_line(error, words) from error
    _raise_first(failures)


def point(composed: DictConfig) -> None:
    """Train one composed config: a single run, or one point of a sweep, whose failure does not stop the others."""
    try:
        _train(composed)
    except Exception as error:  # raised again when Hydra, which would print a traceback of its own, is through
        failures.append((" ".join(HydraConfig.get().overrides.task), error))


def _raise_first(failed: Sequence[tuple[str, Exception]]) -> None:
    """Say which points failed, and end as the first of them did."""
    for overrides, error in failed[1:]:
        print(f"gptlab: {overrides}: {error}", file=sys.stderr)
    if failed:
        raise failed[0][1]


def _train(composed: DictConfig) -> None:
    from gptlab import run

    settings = HydraConfig.get()
    tree = _plain(composed)
    overrides = list(settings.overrides.task)
    if tree.get("resume"):
        status, _ = run.go_on(tree["resume"], _changes(overrides))
    else:
        if settings.mode is RunMode.MULTIRUN:
            tree["run_dir"] = settings.runtime.output_dir
        tree["plugins"] = plugins.load(tree["plugins"])
        status, _ = run.start(from_dict(tree), {"overrides": overrides})
    if status == "interrupted":
        raise Interrupted


def register_schemas(plugin_names: Sequence[str]) -> None:
    """Every registered variant and the dataclasses of a run become entries that Hydra composes and types."""
    import gptlab.components  # noqa: F401  (these imports register the variants)
    from gptlab import optimizer, schedule, text, tokenizer  # noqa: F401

    plugins.load(plugin_names)
    store = ConfigStore.instance()
    store.store(name="run", node=RunConfig)
    for slot, place in registry.SLOTS.items():
        for name in registry.names(slot):
            store.store(group=place.group, name=name, package=place.node, node=registry.schema(slot, name))
    for resolver, function in (("sweep_dir", _sweep_dir), ("sweep_point", _sweep_point)):
        OmegaConf.register_new_resolver(resolver, function, replace=True)


def _plain(composed: DictConfig) -> dict[str, Any]:
    """The composed config as plain data, without Hydra's own groups."""
    tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    assert isinstance(tree, dict)
    for slot in registry.SLOTS:
        node = tree["model"] if slot in LAYER_SLOTS else tree
        node[slot] = {key: value for key, value in node[slot].items() if value != "???"}
    return {str(key): value for key, value in tree.items()}


def _alias(argument: str) -> str:
    """position.theta=... means model.position.theta=...: the group has a short name, so its options have one too."""
    return re.sub(r"^(\+{0,2}|~)position\.", r"\1model.position.", argument)


def _changes(overrides: Sequence[str]) -> dict[str, Any]:
    """What the overrides of a resumed run set, by the key in the config."""
    nodes = {slot.group: slot.node for slot in registry.SLOTS.values()}
    parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return {nodes.get(o.key_or_group, o.key_or_group): o.value() for o in parsed if o.key_or_group != "resume"}


def _plugins_of(words: Sequence[str]) -> list[str]:
    """The plugins that the command line names: itself, through its experiment, or through the run it resumes."""
    named = {key: value for key, _, value in (word.partition("=") for word in words)}
    if "plugins" in named:
        parsed = OverridesParser.create().parse_override(f"plugins={named['plugins']}").value()
        return [str(p) for p in parsed] if isinstance(parsed, list) else [str(parsed)]
    experiment = conf_dir.find() / "experiment" / f"{named.get('experiment')}.yaml"
    if experiment.is_file():
        tree = yaml.safe_load(experiment.read_text(encoding="utf-8")) or {}
        return list(tree.get("plugins", []))
    return []


@functools.cache
def _sweep_dir(run_dir: str | None, name: str) -> str:
    return run_dir or str(Path("runs") / name / f"{STARTED}_sweep")


def _sweep_point(overrides: str) -> str:
    """The overrides of a point as a directory name."""
    return re.sub(r"[^\w.,=+-]+", "-", overrides)[:120]
