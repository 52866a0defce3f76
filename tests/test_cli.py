"""The command line of a training: what it composes, what it refuses in one line, sweeps, and plugins through it all."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from gptlab import ModelConfig, assembly, catalogue, cli, conf_dir, evaluate, registry, report, rundir, sample
from gptlab.config import from_dict
from gptlab.errors import ConfigError
from gptlab.model import GPT

MIXER = '''
import torch.nn as nn
from gptlab import register
from gptlab.components.attention import Attention


@register("attention", "mixer")
class Mixer(Attention):
    """Tokens look at nothing but themselves. Nobody 2025."""

    honours = frozenset()

    def __init__(self, shape, position, *, gain: float = 1.0):
        super().__init__(shape, position)
        self.gain, self.proj = gain, nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x, context, cache=None):
        return self.gain * self.proj(x)
'''
USED = ["model/attention=mixer", "position=none", "trainer.steps=4", "schedule.warmup=1"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory but for a small text; plugins that a test imports are gone after it."""
    tiny.write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
    modules = set(sys.modules)
    yield tmp_path
    ConfigStore.instance().repo.get("model", {}).get("attention", {}).pop("mixer.yaml", None)
    for name in set(sys.modules) - modules:
        if "plugin" in name:
            del sys.modules[name]


def refused(words: list[str], told: str, code: int = 2) -> None:
    """One line that says `told`, the exit code, and nothing left behind."""
    before = sorted(Path.cwd().rglob("*"))
    ended = tiny.run(*words)
    assert (ended.code, ended.err.count("\n")) == (code, 1), ended.err
    assert told in ended.err
    assert ended.err.startswith("gptlab: ")
    assert sorted(Path.cwd().rglob("*")) == before


REFUSED = {
    "model/attention=flsh": "There is no attention named 'flsh'. Did you mean 'flash'?",
    "model.attention.windw=3": "attention 'flash' has no option 'windw'. Did you mean 'window'?",
    "model.attention.window=abc": "model.attention.window must be a whole number or null, but 'abc' is not",
    "attention=flash": "write model/attention=",
    "model.n_head=5": "n_head must divide n_embd, but 5 does not divide 16",
    "model.attention.softcap=30": "attention 'flash' cannot do softcap: choose model/attention=",
    "data.path=/nowhere": "/nowhere is not there",
    "position.theat=3": "position 'rope' has no option 'theat'. Did you mean 'theta'?",
    "position.theta=abc": "must be a number, but 'abc' is not",
    "foo/bar=3": "There is no group 'foo/bar'",
    "experiment=bigrm": "Did you mean 'bigram'?",
    "model=gptx": "Did you mean 'gpt2'?",
    "+foo=1": "There is no setting 'foo'",
    "foo=1": "There is no setting 'foo'",
    "trainer.setps=5": "Did you mean 'trainer.steps'?",
    "model.n_layr=5": "Did you mean 'model.n_layer'?",
    "model.n_layer=abc": "model.n_layer must be a whole number, but 'abc' is not",
    "model.n_layer=": "model.n_layer must be a whole number",
    "model.n_layer": "KEY=VALUE",
    "seed=-1": "seed must be a whole number from 0",
    "trainer.steps=0": "trainer.steps must be at least 1, but is 0",
    "schedule.warmup=12": "schedule.warmup must be from 0 to trainer.steps - 1 = 11, but is 12",
    "optimizer.lr=-1": "optimizer.lr must be above 0 and finite",
    "optimizer.lr=inf": "optimizer.lr must be above 0 and finite",
    "optimizer.lr=nan": "optimizer.lr must be above 0 and finite",
    "data=text": "needs a text file or a folder",
    "data.path=null": "data.path must be a word",
    "tokenizer=bpee": "There is no tokenizer named 'bpee'. Did you mean 'bpe'?",
    "model.layers=[{at:7,attention:none}]": "model.layers[0].at = 7 picks none of the 1 layers",
    "model.layers=[{at:0}]": "model.layers[0] changes nothing",
    "model.layers=[{at:0,atention:none}]": "Did you mean 'attention'?",
    "model.layers=[{at:0,attention:3}]": "3 is neither",
    "model.layers=[{at:0,attention:null}]": "None is neither",
    "model.layers=[{at:x,attention:none}]": "a Python index or slice",
    "model.layers=3": "model.layers must be a list, but '3' is not",
    "model.block_size=100000": "lower model.block_size",
    "model.vocab_size=3": "model.vocab_size must cover the tokenizer's",
    "resume=/nowhere": "A run directory holds a config.yaml, but /nowhere does not",
    "resume=latest": "There is no run under",
    "run_dir=.": "run_dir must be new or empty",
    "run_dir=text.txt/x": "text.txt/x",
    "run_dir=/proc/nowhere/x": "cannot be written",
    "name=../x": "name is one folder under runs/",
    "=3": "has no KEY",
    "~model": "none can be deleted",
    "model.attention=3": "'attention' is chosen by its group: write model/attention=",
    "data=3": "A choice of data is a name, but '3' is not",
    "trainer.device=foo": "The device must be auto, cpu, cuda, cuda:0 or mps, but is 'foo'",
    "trainer.device=cuda:99": "is not on this machine",
    "trainer.precision=fp8": "trainer.precision must be one of auto, fp32, bf16, fp16",
    "trainer.precision=fp16": "needs a GPU",
    "trainer.compile=maybe": "trainer.compile must be one of auto, true, false",
    "trainer.on_nonfinite=ignore": "trainer.on_nonfinite must be one of stop, skip",
    "trainer.sample_temperature=-1": "temperature must be 0 or more",
    'trainer.sample_prompt="Ñ"': "Character 'Ñ'",
    "trainer.sample_prompt=Ñ": "with quotes around what is special",
    "logger=loud": "logger must be one of auto, wandb, none",
    "plugins=[./no.py]": "there is no file",
    "plugins=[nothing_of_that_name]": "nothing_of_that_name",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_is_one_line_and_leaves_nothing(word: str) -> None:
    refused([word], REFUSED[word])


def test_a_prompt_longer_than_a_learned_position_is_refused_before_training() -> None:
    refused(["position=learned", "trainer.sample_prompt='the cat sat on a mat'"], "ends at 16 tokens")


def test_aliases_types_and_slots_reach_the_run() -> None:
    words = ["position.theta=500", "model/norm=layernorm", "model.layers=[{at:-1,mlp:glu}]", "trainer.compile=false"]
    ended = tiny.run("run_dir=r", "trainer.steps=3", *words)
    assert ended.code == 0, ended.err
    config = rundir.read_config(Path("r"))
    assert config.model.position["theta"] == 500.0
    assert config.model.norm["name"] == "layernorm"
    assert config.model.layers == [{"at": -1, "mlp": "glu"}]
    assert config.trainer.compile == "false"


def test_python_m_and_the_console_script_are_the_same_command(home: Path) -> None:
    words = ["--cfg", "job", "model/attention=flash", "position=rope", "model.n_layer=6"]
    script = Path(sys.executable).with_name("gptlab")
    if not script.exists():
        pytest.skip("gptlab is not installed beside this Python")
    module = tiny.spawn("-m", "gptlab.train", *words, cwd=home)
    typed = subprocess.run([script, "train", *words], capture_output=True, text=True, cwd=home)
    told = tiny.finish(module)
    assert (told.code, told.out) == (typed.returncode, typed.stdout) == (0, typed.stdout)
    tree = yaml.safe_load(typed.stdout)
    assert tree["model"]["n_layer"] == 6
    assert tree["model"]["attention"]["name"] == "flash"
    assert sorted(os.listdir(home)) == ["text.txt"]


def test_no_arguments_at_all_is_the_default_run(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    monkeypatch.setattr(cli, "_train", composed.append)
    cli.run_hydra([])
    (config,) = composed
    assert (config.data.name, config.model.attention.name, config.trainer.steps) == ("python", "softmax", 500)


def test_info_and_cfg_print_and_train_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for flags in (["--info", "defaults"], ["--cfg", "job"]):
        assert tiny.run(*flags).code == 0
    assert os.listdir() == ["text.txt"]


@pytest.mark.parametrize("words", [["--info"], ["model=llama", "--info"], ["--info", "model=llama"]])
def test_info_needs_no_value(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_train", lambda composed: pytest.fail("--info trains nothing"))
    cli.run_hydra(words)


def test_flags_may_stand_between_settings() -> None:
    assert tiny.run("seed=3", "--cfg", "job", "name=here").code == 0


def test_a_sweep_gives_each_point_a_directory_of_its_own() -> None:
    ended = tiny.run("-m", "model/norm=layernorm,rmsnorm", "seed=0,1", "trainer.steps=3")
    assert ended.code == 0, ended.err
    (sweep,) = Path("runs/gptlab").iterdir()
    points = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [p.name for p in points] == [
        f"{i}_model-norm={norm},seed={seed}"
        for i, (norm, seed) in enumerate(itertools.product(("layernorm", "rmsnorm"), (0, 1)))
    ]
    for point, (norm, seed) in zip(points, itertools.product(("layernorm", "rmsnorm"), (0, 1)), strict=True):
        config = rundir.read_config(point)
        assert (config.model.norm["name"], config.seed) == (norm, seed)
        assert tiny.summary(point)["status"] == "done"


def test_a_bad_point_does_not_stop_the_others_and_is_named() -> None:
    ended = tiny.run("-m", "model.n_head=3,4", "run_dir=sweep", "trainer.steps=3")
    assert ended.code == 2
    assert "0_model.n_head=3 failed: n_head must divide n_embd, but 3 does not divide 16" in ended.err
    assert [path.name for path in Path("sweep").iterdir() if path.is_dir()] == ["1_model.n_head=4"]


@pytest.mark.parametrize("values", ["model/norm=layernorm,rmsnrm", "model.n_layer=1,x"])
def test_a_sweep_that_cannot_be_composed_leaves_nothing(values: str) -> None:
    ended = tiny.run("-m", values)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert os.listdir() == ["text.txt"]


def test_a_sweep_that_cannot_be_composed_leaves_the_users_own_directories(home: Path) -> None:
    (home / "mine" / "kept").mkdir(parents=True)
    assert tiny.run("-m", "model/norm=layernorm,rmsnrm", "run_dir=mine/sweep").code == 2
    assert sorted(path.name for path in home.rglob("*")) == ["kept", "mine", "text.txt"]


def test_two_sweeps_of_one_process_do_not_share_a_directory() -> None:
    for _ in range(2):
        assert tiny.run("-m", "seed=0,1", "trainer.steps=3").code == 0
    assert len(list(Path("runs/gptlab").iterdir())) == 2


def test_two_runs_of_one_second_do_not_share_a_directory() -> None:
    for _ in range(2):
        assert tiny.run("trainer.steps=3").code == 0
    assert len(list(Path("runs/gptlab").iterdir())) == 2


MODEL, EXPERIMENT = conf_dir.find() / "model", conf_dir.find() / "experiment"
PRESETS = [
    (path.parent.relative_to(conf_dir.find()).as_posix(), path.stem)
    for path in sorted([*MODEL.rglob("*.yaml"), *EXPERIMENT.glob("*.yaml")])
]


@pytest.mark.parametrize("group, name", PRESETS, ids=lambda x: str(x))
def test_a_preset_composes_and_builds(group: str, name: str) -> None:
    cli.register_schemas([])
    with initialize_config_dir(str(conf_dir.find()), version_base="1.3"):
        composed = compose("train", overrides=[f"{group}={name}"])
    config = from_dict(cli._plain(composed))
    with torch.device("meta"):
        model = GPT(ModelConfig(**{**vars(config.model), "vocab_size": 50257}))
    if name == "gpt2":
        assert sum(p.numel() for p in model.parameters()) == 124_439_808
    registry.build("schedule", config.schedule, config.trainer.steps)
    registry.build("optimizer", config.optimizer, [{"params": [torch.nn.Parameter(torch.zeros(1))]}])


def test_no_preset_has_the_name_of_a_variant() -> None:
    groups = {place.group: slot for slot, place in registry.SLOTS.items()}
    for path in conf_dir.find().rglob("*.yaml"):
        group = path.parent.relative_to(conf_dir.find()).as_posix()
        assert group not in groups or path.stem not in registry.names(groups[group]), f"{path} hides a variant"


def test_model_presets_leave_the_options_of_variants_to_presets_of_their_group() -> None:
    for path in (conf_dir.find() / "model").glob("*.yaml"):
        tree = yaml.safe_load(path.read_text())
        assert not set(tree) & {"attention", "position", "norm", "mlp", "block"}, path


def test_what_a_file_declares_is_what_gets_registered() -> None:
    cli.register_schemas([])
    declared = {(e.slot, e.name): (e.meaning, {o.name: o.meaning for o in e.options}) for e in catalogue.entries()}
    registered = {
        (slot, name): (registry.meaning(cls), {o.name: o.meaning for o in registry.options(cls).values()})
        for slot in registry.SLOTS
        for name in registry.names(slot)
        if (cls := registry.get(slot, name)).__module__.startswith("gptlab.")
    }
    assert declared == registered


def test_a_plugin_file_trains_resumes_and_samples_from_another_directory(home: Path) -> None:
    (home / "mixer.py").write_text(MIXER)
    ended = tiny.run("plugins=[./mixer.py]", *USED, "model.attention.gain=2", "run_dir=r")
    assert ended.code == 0, ended.err
    assert rundir.read_config(Path("r")).model.attention == {"name": "mixer", "gain": 2.0}
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    for words in (
        ["gptlab.sample", "../r", "--tokens", "5"],
        ["gptlab.train", "resume=../r", "trainer.steps=6", "model.attention.gain=2"],
    ):
        ended = tiny.finish(tiny.spawn("-m", *words, cwd=elsewhere))
        assert ended.code == 0, ended.err
    assert tiny.summary("r")["step"] == 6
    assert tiny.call(evaluate, "r", "--json").code == 0


def test_a_resumed_run_knows_the_options_of_its_own_plugin(home: Path) -> None:
    (home / "mixer.py").write_text(MIXER)
    assert tiny.run("plugins=[./mixer.py]", *USED, "run_dir=r").code == 0
    refused_line = tiny.call(tiny.train, "resume=r", "trainer.steps=6", "model.attention.gan=3").err
    assert "attention 'mixer' has no option 'gan'. Did you mean 'gain'?" in refused_line
    assert "gain cannot change" in tiny.call(tiny.train, "resume=r", "model.attention.gain=3").err


def test_a_plugin_module_is_found_in_the_current_directory(home: Path) -> None:
    (home / "plugin_pack").mkdir()
    (home / "plugin_pack" / "mixers.py").write_text(MIXER)
    ended = tiny.run("plugins=[plugin_pack.mixers]", *USED, "run_dir=r")
    assert ended.code == 0, ended.err
    assert rundir.read_config(Path("r")).plugins == ["plugin_pack.mixers"]


@pytest.mark.parametrize("flag", ["--config-dir=conf", "--config-dir conf", "-cd conf"])
def test_an_experiment_of_the_users_own_brings_its_plugin(flag: str, home: Path) -> None:
    (home / "mixer.py").write_text(MIXER)
    (home / "conf" / "experiment").mkdir(parents=True)
    (home / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model/attention: mixer\n  - override /position: none\n"
        "  - override /data: text\n"
        "plugins: [./mixer.py]\nmodel: {attention: {gain: 3.0}}\n"
    )
    words = [word for word in tiny.overrides("experiment=mine") if not word.startswith("model/attention")]
    ended = tiny.call(tiny.train, *flag.split(), *words, "data.path=text.txt", "trainer.steps=3", "run_dir=r")
    assert ended.code == 0, ended.err
    assert rundir.read_config(Path("r")).model.attention == {"name": "mixer", "gain": 3.0}


def test_an_installed_package_brings_its_variants_by_entry_point(home: Path) -> None:
    (home / "plugin_dist.py").write_text(MIXER)
    about = home / "plugin_dist-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin_dist\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[gptlab.components]\nmixer = plugin_dist\n")
    words = ["-m", "gptlab.train", "model/attention=mixer", "position=none", "--cfg", "job"]
    ended = tiny.finish(tiny.spawn(*words, cwd=home, PYTHONPATH=str(home)))
    assert ended.code == 0, ended.err
    assert "gain: 1.0" in ended.out


PLUGINS = {
    "class": ("Plugin", "SyntaxError"),
    "import nothing_of_that_name": ("Plugin", "nothing_of_that_name"),
    "x = 3": ("A plugin registers variants", "registers none"),
    MIXER.replace('"mixer"', '"flash"'): ("Plugin", "rename one of them"),
    MIXER.replace('"attention"', '"atention"'): ("Plugin", "Did you mean 'attention'?"),
}


@pytest.mark.parametrize("source", PLUGINS, ids=["syntax", "import", "nothing", "taken", "slot"])
def test_a_plugin_that_cannot_be_used_is_one_line(source: str, home: Path) -> None:
    (home / "mine.py").write_text(source)
    for told in PLUGINS[source]:
        refused(["plugins=[./mine.py]"], told)


def test_a_plugin_without_its_file_is_one_line_when_its_run_is_opened(home: Path) -> None:
    (home / "mixer.py").write_text(MIXER)
    assert tiny.run("plugins=[./mixer.py]", *USED, "run_dir=r").code == 0
    (home / "mixer.py").unlink()
    ended = tiny.finish(tiny.spawn("-m", "gptlab.sample", "r", cwd=home))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert "there is no file" in ended.err


def test_a_machine_without_a_compiler_trains_on_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    ended = tiny.run("trainer.compile=true", "trainer.steps=3")
    assert ended.code == 0, ended.err
    assert ended.out.count("No compiler was found") == 1


def test_a_compilation_that_fails_is_said_once_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def compile(function: object, **options: object) -> object:
        def fail(*arguments: object) -> None:
            raise BackendCompilerFailed(fail, RuntimeError("no such target"), None)

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    ended = tiny.run("trainer.compile=true", "trainer.steps=3")
    assert ended.code == 0, ended.err
    assert ended.out.count("torch.compile failed") == 1


def test_sampling_through_the_door_reads_what_training_wrote() -> None:
    assert tiny.run("run_dir=r", "trainer.steps=3").code == 0
    ended = tiny.call(sample, "r", "--prompt", "the ", "--tokens", "9", "--temperature", "0")
    assert (ended.code, len(ended.out)) == (0, 4 + 9 + 1)


@pytest.mark.parametrize("words", [["position.theta=500", "model/mlp=swiglu"], ["experiment=bigram", "data=text"]])
def test_compose_is_the_config_that_a_training_with_these_words_has(words: list[str]) -> None:
    words = [*tiny.overrides("data.path=text.txt", "run_dir=r", "trainer.steps=3", *words)]
    tree = cli.compose(words)
    assert tree["data"]["path"] == str(Path("text.txt").absolute())
    assert tiny.call(tiny.train, *words).code == 0
    trained = yaml.safe_load(Path("r/config.yaml").read_text())
    for made in (tree, trained):
        made["model"].pop("vocab_size")  # a training asks the tokenizer,
        made["trainer"].pop("precision")  # and the device,
        made["trainer"].pop("compile")  # and what compiling is worth
    assert tree == trained


def test_compose_brings_plugins_and_what_init_brings(home: Path) -> None:
    (home / "mixer.py").write_text(MIXER)
    assert tiny.run("plugins=[./mixer.py]", *USED, "run_dir=r").code == 0
    tree = cli.compose(["init=r", "data=text", "data.path=text.txt"])
    assert tree["plugins"] == [str(home / "mixer.py")]
    assert (tree["model"]["attention"]["name"], tree["model"]["n_embd"]) == ("mixer", 16)
    assert cli.compose(["init=r", "model/attention=flash"])["model"]["attention"]["name"] == "flash"
    with pytest.raises(ConfigError, match=r"model\.n_embd is 16 in r and cannot become 32"):
        cli.compose(["init=r", "model.n_embd=32"])


COMPOSED = ("model/attention=flsh", "model.n_head=5", "trainer.setps=5", "foo=1", "model.n_layer", "~model", "seed=-1")


@pytest.mark.parametrize("word", COMPOSED)
def test_compose_refuses_in_the_words_of_a_training(word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        assembly.check(from_dict(cli.compose(tiny.overrides(word))))
    assert REFUSED[word] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("word", ["seed=0,1", "model/mlp=glu,plain", "trainer.steps=range(1,3)"])
def test_compose_is_of_one_training(word: str) -> None:
    with pytest.raises(ConfigError, match=r"One training has one value per setting, but .* gives several"):
        cli.compose([word])


def test_compose_is_of_a_new_training() -> None:
    with pytest.raises(ConfigError, match="'resume=latest' goes on with a run"):
        cli.compose(["resume=latest"])
