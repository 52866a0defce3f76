"""The command line of a training: Hydra composes the config from conf/ and the registry, and errors become one line.

It and launching.py are the only files that know Hydra.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptlab import conf_dir, explain, plugins, registry, rundirs
from gptlab.config import LAYER_SLOTS, RunConfig, from_dict, to_dict
from gptlab.errors import ConfigError, Interrupted

failures: list[tuple[str, Exception]] = []  # (directory, error) of the points of this process
sweeps: set[Path] = set()  # their directories


def run_hydra(argv: Sequence[str]) -> None:
    """Compose and train what `argv` says. Raises GptlabError for what is wrong in it."""
    arguments = [_alias(argument) for argument in argv]
    words = [argument for argument in arguments if _is_override(argument)]
    flags = [argument for argument in arguments if not _is_override(argument)]  # last: one may take a value, or none
    explain.refuse_odd(words)
    if {"-m", "--multirun"} & {*flags} and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun starts ranks of one training, not of a sweep: leave -m out, or torchrun.")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, who have a line for each
    failures.clear()
    sweeps.clear()
    _sweep_dir.cache_clear()
    try:
        overrides = OverridesParser.create().parse_overrides(words)
        register_schemas(_plugins_of(arguments, overrides))
        fixed = ",".join(o.key_or_group for o in overrides if not o.is_sweep_override())
        more = [*_held_variants(arguments, overrides), f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]"]
        sys.argv = ["gptlab train", *words, *more, *flags]
        hydra.main(version_base="1.3", config_path=str(conf_dir.find()), config_name="train")(point)()
    except (HydraException, OmegaConfBaseException) as error:
        raise explain.in_a_line(error, words) from error
    finally:
        _remove_unbegun()
    _raise_first(failures)


def point(composed: DictConfig) -> None:
    """Train one composed config: a single run, or one point of a sweep, whose failure does not stop the others."""
    try:
        _train(composed)
    except Exception as error:  # raised again when Hydra, which would print a traceback of its own, is through
        failures.append((HydraConfig.get().runtime.output_dir, error))


def _raise_first(failed: Sequence[tuple[str, Exception]]) -> None:
    """Say which points of a sweep failed, and end as the first of them did."""
    for directory, error in failed if sweeps else ():
        error.args = (f"{Path(directory).name} failed: {error}",)
    for _, error in failed[1:]:
        print(f"gptlab: {error}", file=sys.stderr)
    if failed:
        raise failed[0][1]


def _remove_unbegun() -> None:
    """Take back what Hydra made for points of a sweep that never began, and for a sweep of which none did."""
    for sweep in sweeps:
        for directory, _ in failures:
            _remove_empty(Path(directory))
        if [path.name for path in sweep.glob("*")] == ["multirun.yaml"]:
            (sweep / "multirun.yaml").unlink()
            for folder in (sweep, *(above for above in sweep.parents if rundirs.ROOT in (above, *above.parents))):
                _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # there is something in it, which stays
        folder.rmdir()


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
        experiment = _experiment(settings.runtime.choices.get("experiment"), sys.argv)
        status, _ = run.start(from_dict(_adopted(tree, overrides, experiment)), {"overrides": overrides})
    if status == "interrupted":
        raise Interrupted


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The whole config of the training that these overrides describe, as plain data. ConfigError in one line."""
    from gptlab import rundir

    words = [_alias(word) for word in overrides]
    explain.refuse_odd(words)
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        _refuse_many(parsed)
        register_schemas(_plugins_of(words, parsed))
        with hydra.initialize_config_dir(str(conf_dir.find()), version_base="1.3"):
            tree = _plain(hydra.compose("train", [*words, *_held_variants(words, parsed)]))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain.in_a_line(error, words) from error
    tree["plugins"] = plugins.load(tree["plugins"])
    chosen = {o.key_or_group: o.value() for o in parsed}.get("experiment")
    return to_dict(rundir.whole(from_dict(_adopted(tree, words, _experiment(chosen, [])))))


def _refuse_many(overrides: Sequence[Override]) -> None:
    """ConfigError for what is not one new training: values to sweep over, and a run to go on with."""
    for override in overrides:
        if override.is_sweep_override():
            raise ConfigError(f"One training has one value per setting, but {override.input_line!r} gives several.")
        if override.key_or_group == "resume":
            raise ConfigError(f"{override.input_line!r} goes on with a run, where a new one is to begin: leave it out.")


def _adopted(tree: dict[str, Any], overrides: Sequence[str], experiment: Mapping[str, Any]) -> dict[str, Any]:
    """The config in which `init`, where there is one, brings model and tokenizer, but for what was named."""
    from gptlab import pretrained

    if not tree.get("init"):
        return tree
    return pretrained.adopt(tree, {*_changes(overrides), *_keys(experiment)})


def register_schemas(plugin_names: Sequence[str]) -> None:
    """Every registered variant and the dataclasses of a run become entries that Hydra composes and types."""
    import gptlab.components  # noqa: F401  (these imports register the variants)
    from gptlab import optimizer, schedule, tasks, text, tokenizer  # noqa: F401

    for plugin in plugin_names:
        _load_plugin(plugin)
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
        if not isinstance(node[slot], dict):
            raise explain.chosen_by_group(slot)
        node[slot] = {key: value for key, value in node[slot].items() if value != "???"}
    return {str(key): value for key, value in tree.items()}


def _alias(argument: str) -> str:
    """position.theta=... means model.position.theta=...: the group has a short name, so its options have one too."""
    return re.sub(r"^(\+{0,2}|~)position\.", r"\1model.position.", argument)


def _changes(overrides: Sequence[str]) -> dict[str, Any]:
    """What the overrides of a resumed run set, by the key in the config."""
    nodes = {slot.group: slot.node for slot in registry.SLOTS.values()}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {nodes.get(o.key_or_group, o.key_or_group): o.value() for o in parsed if o.key_or_group != "resume"}


def _keys(experiment: Mapping[str, Any]) -> Iterator[str]:
    """The keys that an experiment sets, in its groups and in its model, by the key in the config."""
    nodes = {slot.group: slot.node for slot in registry.SLOTS.values()}
    for entry in experiment.get("defaults") or []:
        for word in entry if isinstance(entry, dict) else []:
            group = word.removeprefix("override ").lstrip("/").partition("@")[0]
            yield nodes.get(group, group)
    for key, value in (experiment.get("model") or {}).items():
        yield from (f"model.{key}.{option}" for option in value) if isinstance(value, dict) else [f"model.{key}"]


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _plugins_of(arguments: Sequence[str], overrides: Sequence[Override]) -> list[str]:
    """The plugins that the command line names: itself, or through its experiment, or the run that it goes on with."""
    named = {o.key_or_group: o.value() for o in overrides}
    found = named.get("plugins") or []
    plugin_names = [str(p) for p in (found if isinstance(found, list) else [found])]
    plugin_names += _resumed_config(overrides).get("plugins") or []
    if init := _init(arguments, overrides):
        run_dir = rundirs.find(init) if init == "latest" else Path(init).expanduser()
        plugin_names += _read(run_dir / rundirs.CONFIG).get("plugins") or []
    if "plugins" not in named:
        chosen = named.get("experiment")
        for name in chosen.list if isinstance(chosen, ChoiceSweep) else [chosen]:
            plugin_names += _experiment(name, arguments).get("plugins") or []
    return plugin_names


def _init(arguments: Sequence[str], overrides: Sequence[Override]) -> str | None:
    """The weights that the command line or its experiment names; None when there are none, or several to sweep."""
    named = {o.key_or_group: o.value() for o in overrides}
    init = named.get("init", _experiment(named.get("experiment"), arguments).get("init"))
    return init if isinstance(init, str) else None


def _experiment(name: object, arguments: Sequence[str]) -> dict[str, Any]:
    """The file of an experiment; empty when there is none."""
    files = (folder / "experiment" / f"{name}.yaml" for folder in _conf_dirs(arguments))
    return _read(next(filter(Path.is_file, files), Path(os.devnull)))


def _resumed_config(overrides: Sequence[Override]) -> dict[str, Any]:
    """The config of the run that resume= names; empty when there is none."""
    resumed = {o.key_or_group: o.value() for o in overrides}.get("resume")
    return _read(rundirs.find(resumed) / rundirs.CONFIG) if isinstance(resumed, str) else {}


def _held_variants(arguments: Sequence[str], overrides: Sequence[Override]) -> list[str]:
    """GROUP=NAME of the resumed run, or of the weights of init: options named beside are those of its variants."""
    tree, named = _resumed_config(overrides), {o.key_or_group: o.value() for o in overrides}
    nodes = {slot: (tree.get("model", {}) if slot in LAYER_SLOTS else tree).get(slot) for slot in registry.SLOTS}
    found = {slot: registry.name_of(slot, spec) for slot, spec in nodes.items() if spec}
    if (init := _init(arguments, overrides)) and not tree:
        from gptlab import pretrained

        chosen = set(_keys(_experiment(named.get("experiment"), arguments)))
        found = {slot: name for slot, name in pretrained.variants(init).items() if f"model.{slot}" not in chosen}
    groups = {registry.SLOTS[slot].group: name for slot, name in found.items()}
    return [f"{group}={name}" for group, name in groups.items() if group not in named]


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # whoever needs the file has a line for it
        return {}
    return tree if isinstance(tree, dict) else {}


def _conf_dirs(arguments: Sequence[str]) -> list[Path]:
    """Where presets are looked for: the directories of --config-dir, and ours."""
    flags = ("--config-dir", "-cd")
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)  # without arguments the second is the longer
    named = [after if word in flags else word.partition("=")[2] for word, after in pairs if word.startswith(flags)]
    return [*map(Path, named), conf_dir.find()]


def _load_plugin(plugin: str) -> None:
    """Import a plugin. ConfigError for one that registers nothing."""
    before = _registered()
    (loaded,) = plugins.load([plugin])
    after = _registered()
    if after == before and not any(_is_of(cls, loaded) for cls in after):
        raise ConfigError(f"A plugin registers variants, but {plugin} registers none: put @register(...) on a class.")


def _registered() -> set[type]:
    return {registry.get(slot, name) for slot in registry.SLOTS for name in registry.names(slot)}


def _is_of(cls: type, plugin: str) -> bool:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return file == plugin or f"{cls.__module__}.".startswith(f"{plugin}.")


@functools.cache  # Hydra asks often, and one sweep is one directory
def _sweep_dir(run_dir: str | None, name: str) -> str:
    now = datetime.now().strftime("%Y-%m-%d_%H%M%S_%f")
    sweep = Path(run_dir) if run_dir else rundirs.ROOT / name / f"{now}_sweep"
    sweeps.add(sweep)
    return str(sweep)


def _sweep_point(overrides: str) -> str:
    """The overrides of a point as a directory name."""
    return re.sub(r"[^\w.,=+-]+", "-", overrides)[:120]
