"""What README and CONTRIBUTING say is so: commands compose, code runs, files are where the map has them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from gptlab import catalogue, cli, conf_dir, conformance, plugins, registry
from gptlab.config import from_dict
from gptlab.help import presets

ROOT = Path(__file__).resolve().parent.parent
MAP = r"^((?:gptlab|conf|docs|scripts|tests)/\S*)\s{2,}\S"
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return [textwrap.dedent(block) for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def trainings() -> Iterator[list[str]]:
    """The arguments of every training in a shell block, a sweep as its first point."""
    for line in "\n".join(blocks(README, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["gptlab", "train"] or words[:3] == ["python", "-m", "gptlab.train"]:
            arguments = words[2:] if words[0] == "gptlab" else words[3:]
            if not {"--help", "resume=latest"} & set(arguments) and not any("plugins=" in word for word in arguments):
                swept = "-m" in arguments
                yield [a.partition(",")[0] if swept else a for a in arguments if a != "-m"]


@pytest.mark.parametrize("arguments", list(trainings()), ids=" ".join)
def test_every_training_in_the_readme_composes(arguments: list[str]) -> None:
    cli.register_schemas([])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir.find()), version_base="1.3"):
        composed = compose("train", overrides=[cli._alias(argument) for argument in arguments])
    from_dict(cli._plain(composed))


def test_the_map_names_files_that_are_there() -> None:
    mapped = re.findall(MAP, README, re.MULTILINE)
    assert mapped
    for name in mapped:
        assert (ROOT / name).exists(), name


def test_the_map_has_every_top_folder() -> None:
    mapped = {name.partition("/")[0] for name in re.findall(MAP, README, re.MULTILINE)}
    kept = {"conf", "docs", "gptlab", "scripts", "tests"}
    assert mapped == kept


def test_the_table_of_slots_names_what_there_is() -> None:
    """A new variant is in `gptlab list` by itself; the README may leave it out, but not name what is not there."""
    table = README[README.index("| slot |") : README.index("The attentions by a softmax")]
    written = set(re.findall(r"`(\w+)`", table))
    ours = {entry.name for entry in catalogue.entries()}
    groups = ("model", *(place.group for place in registry.SLOTS.values()))
    preset = {name for group in groups for name, _ in presets(group)}
    assert written - ours - preset <= {*registry.SLOTS, "model", "presets"}
    assert len(written & ours) > 40


def test_the_plugin_in_the_readme_keeps_the_laws(tmp_path: Path) -> None:
    plugin = next(block for block in blocks(README, "python") if "@register" in block)
    assert plugin.count("\n") < 40
    (tmp_path / "mixer.py").write_text(plugin)
    plugins.load([str(tmp_path / "mixer.py")])
    verdicts = list(conformance.check([("attention", "mixer")]))
    assert verdicts
    assert [v for v in verdicts if not v.holds] == []


def test_the_variant_in_contributing_keeps_the_laws(tmp_path: Path) -> None:
    (tmp_path / "solu.py").write_text(blocks(CONTRIBUTING, "python")[0])
    plugins.load([str(tmp_path / "solu.py")])
    verdicts = list(conformance.check([("mlp", "solu")]))
    assert verdicts
    assert [v for v in verdicts if not v.holds] == []
