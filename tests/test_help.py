"""Help and completion: all that can be chosen, found without torch, in a real shell too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from gptlab import __main__ as console
from gptlab import catalogue, completion, conf_dir, help, registry, study, train
from gptlab.errors import ConfigError
from gptlab.studies.settings import StudyConfig

MIXER = '''
from gptlab import register

@register("attention", "mixer")
class Mixer:
    """Tokens mixed by a plugin."""

    def __init__(self, shape, position, *, width: int = 3): ...
'''


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def test_help_lists_every_variant_preset_and_setting_without_torch(home: Path) -> None:
    code = (
        "import sys, time\nbegan = time.perf_counter()\nfrom gptlab import train\ntrain.main(['--help'])\n"
        "print(time.perf_counter() - began, file=sys.stderr)\n"
        "assert not {'torch', 'hydra', 'wandb', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    ended = tiny.finish(tiny.spawn("-c", code, cwd=home))
    assert ended.code == 0, ended.err
    for slot, place in registry.SLOTS.items():
        assert f"{place.group}=" in ended.out
        for name in registry.names(slot):
            if registry.get(slot, name).__module__.startswith("gptlab."):
                assert f"  {name} " in ended.out, f"{slot} {name} is not in --help"
                assert registry.meaning(registry.get(slot, name))[:40] in ended.out
    for path in conf_dir.find().rglob("*.yaml"):
        shown = path.parent.name in ("conf", "study", "sweep") or f"  {path.stem} " in ended.out
        assert shown, f"{path} is not in --help"
    for setting in (
        "seed",
        "run_dir",
        "resume",
        "plugins",
        "logger",
        "model.n_layer",
        "trainer.steps",
        "trainer.clip",
        "-m",
    ):
        assert f"  {setting} " in ended.out


def test_help_shows_the_variants_of_a_plugin_file(home: Path) -> None:
    (home / "mixer.py").write_text(MIXER)
    out = tiny.call(train, "plugins=[./mixer.py]", "--help").out
    assert "Tokens mixed by a plugin. [model.attention.: width]" in out


def test_help_of_a_preset_is_that_of_its_variant_with_its_settings() -> None:
    out = tiny.call(train, "model/mlp=deepseek_moe,glu", "--help").out
    lines = {words[0]: line for line in out.splitlines() if (words := line.split())}
    assert "A preset of moe." in lines["model/mlp=deepseek_moe"]
    assert "= 256 " in lines["model.mlp.n_expert"]
    assert "= sigmoid " in lines["model.mlp.router"]
    assert "model/mlp=glu" in lines
    assert "settings" not in lines
    assert "a mapping" in tiny.call(train, "model/attention=mqa", "--help").out


@pytest.mark.parametrize("word, told", [("model=llama", "mlp: swiglu"), ("experiment=bigram", "n_layer: 0")])
def test_help_of_a_whole_preset_is_its_file(word: str, told: str) -> None:
    out = tiny.call(train, word, "--help").out
    assert word in out
    assert told in out
    assert "settings" not in out


def test_help_of_a_study_lists_its_words_presets_and_settings_without_torch(home: Path) -> None:
    code = (
        "import sys\nfrom gptlab import study\nstudy.main(['--help'])\n"
        "assert not {'torch', 'hydra', 'wandb', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    ended = tiny.finish(tiny.spawn("-c", code, cwd=home))
    assert ended.code == 0, ended.err
    for path in (conf_dir.find() / "study").glob("*.yaml"):
        assert f"  {path.stem} " in ended.out
    for name in StudyConfig.__dataclass_fields__:
        assert name in ("arms",) or f"  {name} " in ended.out, f"{name} is not in --help"
    assert "gptlab study model/mlp=gelu,relu2,swiglu" in ended.out


def test_help_of_a_preset_of_studies_is_its_file() -> None:
    assert "arms:" in tiny.call(study, "study=mlps", "--help").out
    refused = tiny.call(study, "study=mlsp", "--help")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "Did you mean 'mlps'" in refused.err


@pytest.mark.parametrize(
    "word, told",
    {
        "model/attention=flsh": "There is no attention named 'flsh'. Did you mean 'flash'?",
        "model/mlp=swiglu,deepsek_moe": "Did you mean 'deepseek_moe'?",
        "position=xyz": "There is no position named 'xyz'. Choose one of: alibi,",
        "model=lama": "Did you mean 'llama'?",
    }.items(),
)
def test_help_of_what_there_is_not_is_refused(word: str, told: str) -> None:
    ended = tiny.call(train, word, "--help")
    assert (ended.code, ended.err.count("\n"), ended.out) == (2, 1, "")
    assert told in ended.err


@pytest.mark.parametrize("brings", ["plugins=[some.module]", "--config-dir=conf"])
def test_help_does_not_deny_what_it_cannot_read(brings: str) -> None:
    assert "settings" in tiny.call(train, brings, "model/attention=mixer", "--help").out


def test_the_verbs_are_listed_and_a_wrong_one_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        console.dispatch(words)
        shown = capsys.readouterr().out
        assert all(verb in shown for verb in ("train", "sample", "evaluate", "check", "completion"))
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        console.dispatch(["trian"])


def test_a_file_that_cannot_be_parsed_is_passed_over(home: Path) -> None:
    (home / "broken.py").write_text("class :")
    assert catalogue.entries([home / "broken.py", home / "missing.py"]) == catalogue.entries()


CANDIDATES = {
    "gptlab ": set(help.VERBS),
    "gptlab tr": {"train"},
    "gptlab train model/att": {"model/attention="},
    "gptlab train model/attention=fl": {"model/attention=flash", "model/attention=flex"},
    "gptlab train -m model/norm=layernorm,sc": {"model/norm=layernorm,scalenorm"},
    "gptlab train model=l": {"model=llama"},
    "gptlab train model/norm=layernorm_nob": {"model/norm=layernorm_nobias"},
    "gptlab train position.th": {"position.theta=", "position.threshold="},
    "gptlab train trainer.st": {"trainer.steps="},
    "gptlab train experiment=big": {"experiment=bigram"},
    "gptlab train position=alibi position.th": set(),
    "gptlab completion ": {"bash", "zsh", "fish"},
    "gptlab sample la": {"latest"},
    "gptlab study study=ml": {"study=mlps"},
    "gptlab study match=": {"match=none", "match=params", "match=flops", "match=time"},
    "gptlab study tune_p": {"tune_points="},
    "gptlab study model/mlp=gelu,swig": {"model/mlp=gelu,swiglu"},
    "gptlab study hydra/launcher=pro": {"hydra/launcher=processes"},
}


@pytest.mark.parametrize("line", CANDIDATES)
def test_what_may_follow_is_offered(line: str) -> None:
    assert set(completion.candidates(line, StudyConfig)) == CANDIDATES[line]


def test_the_variants_of_a_plugin_are_offered(home: Path) -> None:
    (home / "mixer.py").write_text(MIXER)
    typed = "gptlab train plugins=[./mixer.py] model/attention=mix"
    assert completion.candidates(typed) == ["model/attention=mixer"]
    assert completion.candidates("gptlab train plugins=[./mixer.py] model.attention.wid") == ["model.attention.width="]


def test_runs_are_offered_newest_first(home: Path) -> None:
    run = home / "runs" / "gptlab" / "one"
    run.mkdir(parents=True)
    for name in ("config.yaml", "tokenizer.json"):
        (run / name).touch()
    assert completion.candidates("gptlab sample ru") == ["runs/gptlab/one"]
    assert completion.candidates("gptlab train resume=ru") == ["resume=runs/gptlab/one"]


def test_studies_are_offered_newest_first(home: Path) -> None:
    made = home / "runs" / "mlps" / "one_study"
    made.mkdir(parents=True)
    (made / "plan.json").touch()
    assert completion.candidates("gptlab compare ru") == ["runs/mlps/one_study"]
    assert completion.candidates("gptlab study dir=ru") == ["dir=runs/mlps/one_study"]


def test_a_shell_without_a_script_is_refused() -> None:
    with pytest.raises(ConfigError, match="bash, zsh and fish"):
        completion.script("tcsh")


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    "line, reply",
    [("gptlab train position=al", "alibi"), ("gptlab train model/norm=sc", "scalenorm"), ("gptlab tra", "train")],
)
def test_bash_completes_the_word(line: str, reply: str, home: Path) -> None:
    script = f"""
gptlab() {{ {sys.executable} -m gptlab "$@"; }}
{completion.script("bash")}
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
_gptlab 2>/dev/null; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    ended = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, cwd=home)
    assert ended.stdout.split() == [reply]
