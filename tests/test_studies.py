"""Studies: what a command line means, what is planned, tuned, screened and run, and what is left when it stopped.

Points are mostly not trained here: a launch that writes what a run would leave stands in for one.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console

from gptlab import cli, launching, report, study
from gptlab.comparison import page
from gptlab.comparison.runs import read_study
from gptlab.errors import ConfigError, Interrupted
from gptlab.points import Order, alone
from gptlab.studies import conduct, ladder, screening, settings, trial, tuning
from gptlab.studies.settings import SCREENING_SEEDS, TUNING_SEEDS, read
from gptlab.studies.watch import Point, tail, watching

BASE = [
    word
    for word in tiny.overrides("trainer.sample_every=0", "trainer.log_every=6")
    if not word.startswith(("model.dropout", "trainer.save_every"))
]


def based(*words: str) -> list[str]:
    """The settings above but for what the words set, and the words."""
    given = {word.partition("=")[0] for word in words}
    return [*(word for word in BASE if word.partition("=")[0] not in given), *words]


SIZED = based("model.n_embd=32", "model.n_head=4", "match=params", "tolerance=0.05")
Value = Callable[[Order], float | None]
LOSS = {"gelu": 3.0, "relu2": 2.9, "swiglu": 2.5, "glu": 2.5}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory but for a text; pages are not drawn, and an arm is timed by one step."""
    tiny.write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
    monkeypatch.setattr(page.figures, "draw", lambda *arguments: {})
    monkeypatch.setattr(page, "render", lambda *arguments: "a page")
    monkeypatch.setattr(trial, "ROUNDS", 1)
    monkeypatch.setattr(trial, "STEPS", 1)
    return tmp_path


def loss(order: Order) -> float:
    """What a stand-in comes to: an arm's own, the seed's share, and a little that is neither."""
    noise = int(hashlib.sha256(f"{order.arm} {order.seed}".encode()).hexdigest()[:4], 16) / 65536 - 0.5
    return LOSS.get(order.arm, 3.0) + 0.3 * math.sin(order.seed) + 0.01 * noise


class Launch:
    """A launcher that writes what runs would leave: it remembers its points, and stops or fails where it is told."""

    def __init__(self, value: Value = loss, stop_after: int | None = None) -> None:
        self.value, self.stop_after = value, stop_after
        self.ran: list[Order] = []

    def __call__(self, files: Sequence[Path], launcher: Sequence[str], jobs: int | None, note: Any) -> None:
        for file in files:
            if self.stop_after is not None and len(self.ran) >= self.stop_after:
                raise Interrupted
            self.ran.append(Order.read(file))
            leave(self.ran[-1], self.value(self.ran[-1]))

    @property
    def names(self) -> list[str]:
        return [f"{order.phase}/{order.arm}/{order.name}" for order in self.ran]


def leave(order: Order, value: float | None) -> None:
    """The files of a run that ended with a value, or failed."""
    order.run_dir.mkdir(parents=True, exist_ok=True)
    order.failed.unlink(missing_ok=True)
    if value is None:
        order.log.touch()
        order.fail("It broke.")
        return
    if not math.isfinite(value):
        order.log.touch()
        order.fail("The loss or its gradient was not finite at step 3.")
        return
    steps = order.config["trainer"]["steps"]
    row = {"step": steps, "tokens": 64 * steps, "seconds": 12.0, "train/loss": value, "val/loss": value}
    (order.run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (order.run_dir / "command.json").write_text(json.dumps({"study": order.place}))
    summary = {"status": "done", "val_loss": value, "data": "text", "steps": steps, "tokens": 64 * steps}
    (order.run_dir / "summary.json").write_text(json.dumps(summary))


def run(*words: str, launch: Any = None) -> tuple[int, str]:
    """A study in this process; its exit code and what it printed."""
    launch = launch or Launch()
    given = cli.compose, launch, lambda threads: 2, launching.verify
    door = type("Door", (), {"main": lambda argv: _end(conduct.conduct(argv, *given))})
    ended = tiny.call(door, *words)
    return ended.code, ended.out + ended.err


def _end(code: int) -> None:
    if code:
        raise SystemExit(code)


def refused(told: str, *words: str, launch: Any = None) -> None:
    """Exit code 2, one line that says so, and nothing run."""
    launch = launch or Launch()
    code, out = run(*words, launch=launch)
    assert (code, launch.ran) == (2, []), out
    assert told in out.splitlines()[-1]


def declared(directory: Path | str) -> dict[str, Any]:
    return json.loads((Path(directory) / "plan.json").read_text())


# What words mean


def test_values_after_a_comma_make_arms_and_everything_else_is_for_all() -> None:
    asked = read(["-m", "model/mlp=gelu,swiglu", "trainer.steps=7", "seeds=3", "match=params", "margin=1e-2"])
    assert asked.study.arms == {"gelu": ["model/mlp=gelu"], "swiglu": ["model/mlp=swiglu"]}
    assert asked.study.base == ["trainer.steps=7"]
    assert (asked.study.seeds_run, asked.study.match, asked.study.margin) == ([0, 1, 2], "params", 0.01)
    assert asked.launcher == []


def test_several_lists_make_all_combinations_named_by_what_they_set() -> None:
    arms = read(["position=rope,alibi", "model.n_layer=1,2"]).study.arms
    assert list(arms) == ["rope_n_layer1", "rope_n_layer2", "alibi_n_layer1", "alibi_n_layer2"]
    assert arms["alibi_n_layer2"] == ["position=alibi", "model.n_layer=2"]


@pytest.mark.parametrize(
    "word, parts",
    {
        "a,b": ["a", "b"],
        "[1,2],[3]": ["[1,2]", "[3]"],
        "'a,b',c": ["'a,b'", "c"],
        "{x: [1,2], y: 3}": ["{x: [1,2], y: 3}"],
        "": [""],
    }.items(),
)
def test_only_commas_in_the_open_separate(word: str, parts: list[str]) -> None:
    assert settings.split(word) == parts


def test_arms_of_odd_values_are_folders_of_their_own() -> None:
    arms = read(["model.layers=[{at: 0, mlp: glu}],[{at: 0; mlp: glu}],[]"]).study.arms
    assert len(arms) == 3
    assert all(name and Path(name).name == name and not name.startswith(".") for name in arms)


def test_the_launcher_gets_its_words_and_seeds_may_be_listed() -> None:
    words = ["hydra/launcher=processes", "hydra.launcher.jobs=2"]
    asked = read([*words, "position=rope,alibi", "seeds=3,1,4", "ladder=0.5,1,2", "screen=0.5", "question=Is it: so?"])
    assert asked.launcher == words
    assert asked.study.seeds_run == [3, 1, 4]
    assert (asked.study.ladder, asked.study.screen) == ([0.5, 1.0, 2.0], [0.5])
    assert asked.study.question == "Is it: so?"


ODD = {
    "seed=0,1": "say seeds=",
    "seed=1": "say seeds=",
    "run_dir=here": "say dir=",
    "resume=latest": "say dir=",
    "seds=5": "There is no setting 'seds'. Did you mean 'seeds'?",
    "mach=params": "Did you mean 'match'?",
    "match=parms": "match must be one of none, params, flops, time, but 'parms' is not. Did you mean 'params'?",
    "seeds=0": "seeds says how many, 1 or more",
    "seeds=1,1": "seeds says how many, 1 or more",
    "seeds=a": "seeds must be a whole number or a list",
    "seeds=[10000]": "later ones are for tuning",
    "tune_points=4": "tune_points must be 5 or more",
    "screen=0.5,0.25": "rising shares",
    "screen=1.5": "rising shares",
    "ladder=1,2": "three sizes or more",
    "margin=-1": "margin must be a number of 0 or more",
    "margin=.inf": "margin must be a number of 0 or more",
    "screen=0.25,0.25": "rising shares",
    "base=[seed=3]": "say seeds=",
    "base=[match=params]": "is a setting of the study, not of its runs",
    "better=up": "lower, higher",
    "mlps": "Did you mean study=mlps?",
    "--foo": "takes KEY=VALUE and -m",
    "hydra.run.dir=x": "hydra/launcher= and hydra.launcher.*",
    "study=mlsp": "There is no study named 'mlsp'. Did you mean 'mlps'?",
    "name=a/b": "name is a folder",
    "position=alibi": "position is said twice",
    "study=/nowhere/mine.yaml": "there is no file /nowhere/mine.yaml: mend the path, or choose one of ladder",
    "study=nowhere/mine": "/nowhere/mine: mend the path",
    "model/mlp=gelu,gelu": "model/mlp=gelu,gelu lists one twice",
    "model/mlp=gelu,": "model/mlp=gelu, lists one twice, or none",
    "base=[model.n_layer=1,model.n_layer=2]": "model.n_layer is said twice",
    "width=model.n_embd": "width has an effect only with match=params or flops, but match is none",
    "tolerance=0.01": "leave tolerance=0.01 out, or say match=params",
    "tune_points=5": "tune_points has an effect only with tune=lr, but tune is none",
    "tune_extra=0": "leave tune_extra=0 out, or say tune=lr",
    "tune_seeds=3": "leave tune_seeds=3 out, or say tune=lr",
    "hydra/launcher=nope": "There is no launcher 'nope'.",
    "hydra.launcher.jobs=0": "hydra.launcher.jobs must be at least 1, but is 0.",
    "hydra.launcher.jbs=2": "Did you mean 'hydra.launcher.jobs'?",
}


@pytest.mark.parametrize("word", ODD)
def test_a_word_that_means_nothing_is_refused_in_one_line(word: str) -> None:
    refused(ODD[word], "position=rope,alibi", word)


def test_what_the_runs_do_not_know_is_refused_by_the_arm() -> None:
    refused("The arm gleu cannot be: There is no mlp named 'gleu'.", *BASE, "model/mlp=gelu,gleu")
    refused("no option 'expnd'", *BASE, "model/mlp=gelu,swiglu", "model.mlp.expnd=3")
    refused("two arms or more, but no word has several values: list values of a setting", *BASE, "model/mlp=gelu")
    refused("two arms or more, but model/mlp=gelu is one value, for all runs: list values", "model/mlp=gelu")
    refused("There is no arm 'gleu'. Did you mean 'gelu'?", *BASE, "model/mlp=gelu,swiglu", "baseline=gleu")
    refused("holds no study to go on with", "dir=nowhere", "seeds=8")
    refused("what the runs measure, but is 'val/los'", *BASE, "model/mlp=gelu,swiglu", "metric=val/los")
    refused("what the runs measure, but is 'val/accuracy@40'", *BASE, "model/mlp=gelu,swiglu", "metric=val/accuracy@40")


def test_what_an_arm_has_against_its_text_is_said_of_the_arm(home: Path) -> None:
    words = [word for word in BASE if not word.startswith("data.path")]
    refused("The arm pathnone.txt cannot be: ", *words, "data.path=text.txt,none.txt")


def test_a_preset_without_arms_is_refused_as_one(home: Path) -> None:
    (home / "mine.yaml").write_text("question: Which?\n")
    refused("but mine.yaml names none: write arms: {NAME: [KEY=VALUE], ...}, or list values", "study=mine.yaml")
    (home / "one.yaml").write_text("arms: {thin: [model.mlp.expand=2]}\n")
    refused("two arms or more, but thin is the only one: name another beside it", *BASE, "study=one.yaml")


def test_arms_that_matching_or_tuning_makes_alike_are_refused(home: Path) -> None:
    told = "The arms lr1e-3 and lr1e-2 differ only in optimizer.lr, which tune=lr sets for every arm: leave tune=lr out"
    refused(told, *BASE, "optimizer.lr=1e-3,1e-2", "tune=lr")
    told = "differ only in model.mlp.expand, which match=params sets for every arm: leave match=params out"
    refused(told, *SIZED, "model.mlp.expand=2,4")
    (home / "rates.yaml").write_text(
        "arms: {adamw: [optimizer.lr=1e-3], muon: [optimizer=muon, optimizer.lr=1e-2]}\ntune: lr\n"
    )
    code, out = run(*BASE, "study=rates.yaml", "dry=true")
    assert code == 0, "rates to begin with, of optimizers that differ otherwise too"
    assert "settings" not in out


def test_two_names_of_one_arm_are_said(home: Path) -> None:
    (home / "aa.yaml").write_text("arms: {one: [model/mlp=gelu], other: [model/mlp=gelu], wide: [model.mlp.expand=5]}")
    code, out = run(*BASE, "study=aa.yaml", "dry=true")
    assert code == 0
    said = [line for line in out.splitlines() if "the same settings" in line]
    assert said == ["one and other have the same settings: an A/A, whose runs differ in nothing."]
    (home / "twice.yaml").write_text("arms: {one: [model.n_layer=1, model.n_layer=2], other: [model.n_layer=3]}")
    refused("model.n_layer is said twice", "study=twice.yaml")


def test_a_launcher_that_cannot_be_is_refused_before_anything_is_timed_or_written(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "paces", lambda arms, threads: pytest.fail("timed"))
    before = sorted(home.rglob("*"))
    for word in ("hydra/launcher=nope", "hydra.launcher.jobs=0", "hydra.launcher.jobs=x", "hydra.launcher.jbs=1"):
        for dry in ("dry=true", "dry=false"):
            refused("launcher", *BASE, "model/mlp=gelu,swiglu", word, dry)
    assert sorted(home.rglob("*")) == before


PRESET = """
question: Which?
base: [model.n_layer=1, trainer.steps=9]
arms: {thin: [model.mlp.expand=2], wide: [model.mlp.expand=4]}
seeds: 3
margin: 0.02
"""


def test_the_command_line_wins_over_a_preset_and_says_so(home: Path) -> None:
    (home / "mine.yaml").write_text(PRESET)
    asked = read(["study=mine.yaml", "seeds=2", "trainer.steps=5", "model.dropout=0.1", "margin=0.02"])
    assert asked.study.base == ["model.n_layer=1", "trainer.steps=5", "model.dropout=0.1"]
    assert (list(asked.study.arms), asked.study.seeds, asked.study.name) == (["thin", "wide"], 2, "mine")
    assert asked.changed == [
        "seeds: 2 (the preset has 3)",
        "base: trainer.steps=5 (the preset has trainer.steps=9)",
        "base: model.dropout=0.1 (the preset has nothing)",
    ]


def test_arms_of_the_command_line_take_the_place_of_a_presets(home: Path) -> None:
    (home / "mine.yaml").write_text(PRESET)
    asked = read(["study=mine.yaml", "position=rope,alibi"])
    assert list(asked.study.arms) == ["rope", "alibi"]
    assert asked.changed == ["arms: rope, alibi (the preset has thin, wide)"]
    assert asked.study.question == ""  # that of the preset is about its own arms
    with pytest.raises(ConfigError, match=r"The arms differ in model.mlp.expand"):
        read(["study=mine.yaml", "model.mlp.expand=3"])


def test_shares_of_right_answers_are_better_when_higher() -> None:
    assert read(["position=rope,alibi", "metric=val/accuracy@40"]).study.better == "higher"
    assert read(["position=rope,alibi", "metric=val/loss@40"]).study.better == "lower"
    assert read(["position=rope,alibi", "metric=val/solved", "better=lower"]).study.better == "lower"


@pytest.mark.parametrize(
    "text, told",
    {
        "sedes: 3": "Did you mean 'seeds'?",
        "arms: {a: model/mlp=gelu}": "An arm is a list of overrides",
        "arms: {a/b: [model/mlp=gelu]}": "An arm is named by letters",
        "arms: {a: [seed=3]}": "say seeds=",
        "- 3": "must hold settings of a study",
        "a: [": "cannot be read",
        "seeds: x": "seeds in",
        "base: [model.n_layer=1, model.n_layer=2]": "model.n_layer is said twice",
        "tolerance: 0.02": "tolerance has an effect only with match=params",
        "{tune_points: 7, tune: none}": "tune_points has an effect only with tune=lr",
    }.items(),
)
def test_a_preset_that_cannot_be_is_refused(text: str, told: str, home: Path) -> None:
    (home / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read(["study=mine.yaml"])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_every_preset_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in sorted((settings.conf_dir.find() / "study").glob("*.yaml")):
        asked = read([f"study={path.stem}"]).study
        assert asked.question
        assert len(asked.arms) >= 2
        head = path.read_text().splitlines()[:3]
        assert [line.split(":")[0] for line in head] == ["# Question", "# Command", "# Expect"]
        for made in asked.arms.values():
            cli.compose(settings.merged(settings.LEAN, asked.base, made))


# The plan


def test_a_study_is_planned_run_and_judged() -> None:
    launch = Launch()
    code, out = run(*SIZED, "model/mlp=gelu,swiglu", "seeds=3", "dir=s", launch=launch)
    assert code == 0, out
    assert launch.names == [f"test/{arm}/seed{seed}" for seed in range(3) for arm in ("gelu", "swiglu")]
    made = declared("s")
    rest = {key: value for key, value in made.items() if key != "hash"}
    assert made["hash"] == hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    assert (made["format"], made["baseline"], made["seeds"], made["match"]) == (1, "gelu", [0, 1, 2], "params")
    assert [arm["name"] for arm in made["arms"]] == ["gelu", "swiglu"]
    for arm in made["arms"]:
        assert not {"seed", "run_dir"} & arm["config"].keys()
        assert {"parameters", "flops_per_token", "tokens", "seconds_per_step"} <= arm["costs"].keys()
    found = made["arms"][1]["match"]
    assert found["target"] == made["arms"][0]["costs"]["parameters"]
    assert found["reached"] == made["arms"][1]["costs"]["parameters"]
    for order in launch.ran:
        config = dict(order.config)
        assert (config.pop("seed"), config.pop("run_dir")) == (order.seed, None)
        assert config == next(arm["config"] for arm in made["arms"] if arm["name"] == order.arm)
    assert "swiglu is better than gelu" in out
    assert "test  6 points" in out
    assert json.loads(Path("s/summary.json").read_text())["status"] == "done"
    assert json.loads(Path("s/verdict.json").read_text())["effects"][0]["verdict"] == "better"


def test_the_plan_is_there_before_the_first_run() -> None:
    seen = []

    def look(order: Order) -> float:
        seen.append(declared("s")["hash"])
        return loss(order)

    run(*BASE, "model/mlp=gelu,swiglu", "seeds=2", "dir=s", launch=Launch(look))
    assert seen == [declared("s")["hash"]] * 4


def test_a_dry_study_leaves_nothing(home: Path) -> None:
    before = sorted(home.rglob("*"))
    code, out = run(*BASE, "model/mlp=gelu,swiglu", "dry=true")
    assert code == 0
    assert "10 points" in out
    assert sorted(home.rglob("*")) == before


def test_a_new_study_is_under_runs() -> None:
    run(*BASE, "model/mlp=gelu,swiglu", "seeds=2", "name=mine")
    assert next(path.name for path in Path("runs/mine").iterdir()).endswith("_study")


def test_time_is_matched_by_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "paces", lambda arms, threads: [0.02 if name == "gelu" else 0.04 for name, _ in arms])
    run(*based("trainer.steps=200"), "model/mlp=gelu,swiglu", "seeds=2", "match=time", "dir=s")
    gelu, swiglu = declared("s")["arms"]
    assert (gelu["config"]["trainer"]["steps"], swiglu["config"]["trainer"]["steps"]) == (200, 100)
    assert (swiglu["match"]["width"], swiglu["costs"]["seconds_per_step"]) == ("trainer.steps", 0.04)
    assert swiglu["costs"]["tokens"] * 2 == gelu["costs"]["tokens"]


def test_an_arm_that_cannot_take_a_step_is_refused_before_the_first_run(home: Path) -> None:
    (home / "broken.py").write_text(
        "from gptlab import register\nfrom gptlab.components.mlp.plain import Plain\n"
        '@register("mlp", "broken")\nclass Broken(Plain):\n    """Breaks. Nobody 2025."""\n\n'
        "    def forward(self, x):\n        raise ValueError('no way')\n"
    )
    refused("The arm broken cannot take a step: no way", *BASE, "plugins=[./broken.py]", "model/mlp=gelu,broken")


def test_an_arm_whose_flops_cannot_be_counted_is_run_without_them(home: Path) -> None:
    (home / "own.py").write_text(
        "from gptlab import register\nfrom gptlab.components.mlp.plain import Plain\n"
        '@register("mlp", "own")\nclass Own(Plain):\n    """Looks at its numbers. Nobody 2025."""\n\n'
        "    def forward(self, x):\n        return super().forward(x) * float(x.sum().item() < 1e9)\n"
    )
    words = [*BASE, "plugins=[./own.py]", "model/mlp=gelu,own", "seeds=2"]
    code, out = run(*words, "dir=s")
    assert code == 0, out
    plain, own = (arm["costs"] for arm in declared("s")["arms"])
    assert own["parameters"] == plain["parameters"]
    assert "flops_per_token" in plain.keys() - own.keys()
    refused("The arm own cannot be matched: match=flops counts a model without storage", *words, "match=flops")


def test_an_arm_that_cannot_be_matched_is_refused() -> None:
    refused("The arm none cannot be matched: match= needs a free width", *BASE, "match=params", "model/mlp=gelu,none")


# Going on


def test_a_stopped_study_says_how_to_go_on_and_runs_only_what_is_left() -> None:
    words = [*BASE, "model/mlp=gelu,swiglu", "seeds=3", "dir=s"]
    code, out = run(*words, launch=Launch(stop_after=2))
    assert code == 130
    assert f"gptlab study dir={Path('s').absolute()}" in out
    again = Launch()
    code, out = run("dir=s", launch=again)
    assert (code, len(again.ran)) == (0, 4), out
    assert "4 points to run, 2 done before" in out
    whole = Launch()
    run(*words[:-1], "dir=whole", launch=whole)
    losses = [read_study(Path(name).absolute()).values() for name in ("s", "whole")]
    assert losses[0] == losses[1]


def test_the_same_command_again_runs_nothing() -> None:
    words = [*BASE, "model/mlp=gelu,swiglu", "seeds=2", "dir=s"]
    run(*words)
    before = declared("s")
    again = Launch()
    assert run(*words, launch=again)[0] == 0
    assert (again.ran, declared("s")) == ([], before)


def test_a_failed_point_costs_itself_and_is_tried_again() -> None:
    words = [*BASE, "model/mlp=gelu,swiglu", "seeds=3", "dir=s"]
    code, out = run(*words, launch=Launch(lambda order: None if order.name == "seed1" else loss(order)))
    assert code == 1
    assert "test gelu seed1 failed: It broke." in out
    assert "seed1.log" in out
    assert json.loads(Path("s/summary.json").read_text())["status"] == "failed"
    again = Launch()
    assert run(*words, launch=again)[0] == 0
    assert again.names == ["test/gelu/seed1", "test/swiglu/seed1"]


def test_more_seeds_and_arms_join_and_the_old_plan_is_kept() -> None:
    run(*BASE, "model/mlp=gelu,swiglu", "seeds=2", "dir=s")
    first, more = declared("s"), Launch()
    assert run("dir=s", "seeds=3", launch=more)[0] == 0
    assert more.names == ["test/gelu/seed2", "test/swiglu/seed2"]
    assert json.loads(Path("s/plan_1.json").read_text()) == first
    wider = Launch()
    assert run("dir=s", "model/mlp=gelu,relu2", launch=wider)[0] == 0
    assert wider.names == [f"test/relu2/seed{seed}" for seed in range(3)]
    made = declared("s")
    assert [arm["name"] for arm in made["arms"]] == ["gelu", "swiglu", "relu2"]
    assert (made["arms"][:2], made["seeds"]) == (first["arms"], [0, 1, 2])
    assert Path("s/plan_2.json").is_file()
    fewer = Launch()
    run("dir=s", "seeds=2", launch=fewer)
    assert (fewer.ran, declared("s")) == ([], made)  # nothing that was declared is taken back


CHANGED = {
    "match=params": "match cannot change in a study that has begun: its plan has 'none'",
    "margin=0.1": "margin cannot change",
    "metric=val/bpb": "metric cannot change",
    "trainer.steps=99": "trainer.steps cannot change in a study that has begun: its plan has trainer.steps=12, asked "
    "was trainer.steps=99. Leave it out",
    "model.n_layer=": "its plan has model.n_layer=1, asked was model.n_layer=. ",
    "model.bias=true": "model.bias cannot change in a study that has begun: its plan has none, asked was",
    "model/mlp=relu2": "The arms of this study differ in model/mlp, so model/mlp=relu2 is not of all runs: to add",
    "width=model.n_embd": "width cannot change",
    "tolerance=0.01": "tolerance has an effect only with match=params or flops or time, but match is none",
    "baseline=swiglu": "baseline cannot change",
    "threads=7": "threads cannot change",
    "tune=lr": "tune cannot change",
}


@pytest.fixture
def begun() -> None:
    run(*BASE, "model/mlp=gelu,swiglu", "seeds=2", "dir=s", "threads=1")


@pytest.mark.parametrize("word", CHANGED)
def test_what_was_declared_stays(word: str, begun: None) -> None:
    refused(CHANGED[word], "dir=s", word)


def test_words_that_the_plan_has_already_may_be_said_again(begun: None) -> None:
    known, launch = [word for word in BASE if word.startswith(("trainer.", "data"))], Launch()
    code, out = run("dir=s", *known, "+model.n_layer=1", "seeds=3", "threads=1", "margin=0.005", launch=launch)
    assert (code, len(launch.ran)) == (0, 2), out
    code, out = run("dir=s", *known, "model.n_embd=24", "model/mlp=gelu,relu2")
    assert code == 2
    assert "model.n_embd" in out.splitlines()[-1]
    assert "trainer" not in out.splitlines()[-1], "only what differs is named"


def test_fewer_seeds_than_a_study_has_take_none_back_and_that_is_said(begun: None) -> None:
    code, out = run("dir=s", "seeds=1")
    assert code == 0
    assert "seeds: the study keeps 0, 1, for what was declared is not taken back" in out.splitlines()
    for asked in (["seeds=2"], ["seeds=0,1,5"], []):
        assert "keeps" not in run("dir=s", *asked)[1]


def test_the_time_that_a_study_takes_is_that_of_the_points_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "paces", lambda arms, threads: [1.0 if name == "gelu" else 0.001 for name, _ in arms])
    words = [*BASE, "model/mlp=gelu,swiglu", "seeds=3", "ladder=0.5,1,2", "dir=s"]
    diverging = Launch(lambda order: math.nan if order.seed == 1 else loss(order), stop_after=5)
    fresh = run(*words, launch=diverging)[1].splitlines()
    on = run("dir=s", "dry=true")[1].splitlines()
    assert next(line.split()[1:3] for line in fresh if line.split()[0] == "test") == ["6", "points,"]
    left = {line.split()[0]: line.split()[1:5] for line in on if " points, " in line}
    assert left["test"] == ["1", "of", "6", "points,"]
    assert left["x0.5"][:2] == left["x2"][:2] == ["6", "points,"]
    assert "    test  1 of 6 points, 8s one after the other" in on, "swiglu's, that is, of 8 seconds to start"
    run("dir=s")
    assert "test  0 of 6 points, 0s one after the other" in run("dir=s", "dry=true")[1]


def test_an_arm_is_what_it_was(begun: None, home: Path) -> None:
    (home / "mine.yaml").write_text("name: study\narms: {gelu: [model/mlp=silu], swiglu: [model/mlp=swiglu]}")
    refused("The arm gelu is ['model/mlp=gelu'] in this study", "study=mine.yaml", "dir=s")


def test_a_plan_changed_by_hand_is_refused(begun: None) -> None:
    path = Path("s/plan.json")
    path.write_text(path.read_text().replace('"margin": 0.005', '"margin": 0.5'))
    refused("its hash differs", "dir=s")


def test_a_directory_of_something_else_is_left_alone(home: Path) -> None:
    (home / "other").mkdir()
    (home / "other" / "file").touch()
    refused("holds something else", *BASE, "model/mlp=gelu,swiglu", "dir=other")
    assert [path.name for path in (home / "other").iterdir()] == ["file"]


def test_a_study_is_run_once_at_a_time(begun: None) -> None:
    with alone(Path("s") / conduct.LOCK):
        refused("is being run by another gptlab study", "dir=s", "seeds=3")
    assert run("dir=s", "seeds=3")[0] == 0


# Tuning, screening, sizes


def tuned(order: Order) -> float:
    """A valley of the learning rate: gelu's is at its own, swiglu's at four times that; relu2 breaks above its own."""
    rate, best = order.config["optimizer"]["lr"], {"swiglu": 0.008}.get(order.arm, 0.002)
    if order.arm == "relu2" and rate > 0.002:
        return math.inf
    return loss(order) + 0.1 * math.log2(rate / best) ** 2


def test_each_arm_gets_a_learning_rate_of_its_own_at_one_budget() -> None:
    launch = Launch(tuned)
    words = ["model/mlp=gelu,swiglu,relu2", "seeds=2", "tune=lr", "tune_seeds=2", "tune_extra=2", "dir=s"]
    code, out = run(*BASE, "optimizer.lr=0.002", *words, launch=launch)
    assert code == 0, out
    tried = {arm: [o for o in launch.ran if (o.phase, o.arm) == ("tune", arm)] for arm in ("gelu", "swiglu", "relu2")}
    assert {len(points) for points in tried.values()} == {(5 + 2) * 2}
    assert {o.seed for points in tried.values() for o in points} == {TUNING_SEEDS, TUNING_SEEDS + 1}
    assert all(o.extra == {"lr": o.config["optimizer"]["lr"]} for points in tried.values() for o in points)
    rates = {o.arm: o.config["optimizer"]["lr"] for o in launch.ran if o.phase == "test"}
    assert rates["gelu"] == 0.002
    assert rates["swiglu"] == 0.008
    assert rates["relu2"] <= 0.002
    found = json.loads(Path("s/summary.json").read_text())["tuning"]
    assert found["gelu"]["sensitivity"] == pytest.approx(0.1 * (4 + 1 + 0 + 1 + 4) / 5, abs=0.01)
    assert found["swiglu"]["sensitivity"] == pytest.approx(0.1 * (16 + 9 + 4 + 1 + 0) / 5, abs=0.01)
    again = Launch(tuned)
    assert run("dir=s", launch=again)[0] == 0
    assert again.ran == [], "what diverged in tuning is known"


def test_the_next_rate_is_beyond_an_edge_or_beside_the_best() -> None:
    grid = tuning.grid(0.004, 5)
    assert grid == [0.001, 0.002, 0.004, 0.008, 0.016]
    valley = {0.001: 5.0, 0.002: 3.0, 0.004: 1.0, 0.008: 2.0, 0.016: math.inf}
    assert tuning.following(valley) == pytest.approx(math.sqrt(0.004 * 0.008), rel=1e-3)
    assert tuning.following({**valley, 0.016: 0.5}) == 0.032
    assert tuning.following({**valley, 0.001: 0.5}) == 0.0005
    assert tuning.following(dict.fromkeys(grid, math.inf)) == 0.0005


def test_sensitivity_is_the_mean_excess_over_the_declared_rates() -> None:
    tried = {0.1: 2.0, 0.2: 1.5, 0.4: math.inf, 0.3: 1.0}
    assert tuning.sensitivity(tried, [0.1, 0.2, 0.4], worst=4.0) == pytest.approx((1.0 + 0.5 + 3.0) / 3)
    assert tuning.sensitivity({0.1: math.inf}, [0.1], worst=4.0) is None


def test_an_arm_that_learned_at_no_rate_keeps_its_own() -> None:
    launch = Launch(lambda order: math.inf if (order.phase, order.arm) == ("tune", "swiglu") else loss(order))
    code, out = run(*BASE, "optimizer.lr=0.002", "model/mlp=gelu,swiglu", "seeds=2", "tune=lr", "dir=s", launch=launch)
    assert code == 0
    assert "since no run ended with a number" in out
    assert {o.config["optimizer"]["lr"] for o in launch.ran if o.phase == "test" and o.arm == "swiglu"} == {0.002}


def test_screening_lets_go_only_of_what_cannot_be_better() -> None:
    worse = {"relu2": 0.4, "swiglu": 0.0}
    launch = Launch(lambda order: loss(order) + worse.get(order.arm, 0.0))
    words = ["model/mlp=gelu,swiglu,relu2", "seeds=3", "screen=0.25,0.5", "dir=s"]
    code, out = run(*based("trainer.steps=100"), *words, launch=launch)
    assert code == 0, out
    arms = {phase: {o.arm for o in launch.ran if o.phase == phase} for phase in ("screen1", "screen2", "test")}
    assert arms["screen1"] == {"gelu", "swiglu", "relu2"}
    assert arms["screen2"] == arms["test"] == {"gelu", "swiglu"}
    for order in launch.ran:
        plan_of = order.config["trainer"]
        screened = order.phase != "test"
        assert plan_of["eval_part"] == ("first" if screened else "second")
        assert plan_of["steps"] == {"screen1": 25, "screen2": 50, "test": 100}[order.phase]
        assert (order.seed >= SCREENING_SEEDS) == screened
    assert "screen1: relu2 leaves" in out
    assert "screen2: all stay" in out


def test_screening_that_could_let_go_of_nothing_is_refused() -> None:
    told = "Screening takes three arms, of which two stay, and two seeds or more, but has "
    refused(f"{told}2 arms and 5 seeds", *BASE, "model/mlp=gelu,swiglu", "screen=0.5")
    refused(f"{told}3 arms and 1 seeds", *BASE, "model/mlp=gelu,swiglu,relu2", "seeds=1", "screen=0.5")


def test_the_last_variant_stays_for_the_test() -> None:
    launch = Launch(lambda order: loss(order) + (0 if order.arm == "gelu" else 2.0))
    code, out = run(*BASE, "model/mlp=gelu,swiglu,relu2", "seeds=3", "screen=0.5", "dir=s", launch=launch)
    assert code == 0
    assert {o.arm for o in launch.ran if o.phase == "test"} == {"gelu", "swiglu"}
    assert "swiglu stays as the last variant" in out


@pytest.mark.parametrize(
    "low, high, sign, out", [(0.1, 0.2, 1, True), (-0.1, 0.2, 1, False), (-0.2, -0.1, 1, False), (-0.2, -0.1, -1, True)]
)
def test_an_interval_that_holds_an_improvement_rules_none_out(low: float, high: float, sign: int, out: bool) -> None:
    effect = type("Effect", (), {"n": 3, "low": low, "high": high})()
    assert screening.ruled_out(effect, sign) is out
    effect.n = 1
    assert not screening.ruled_out(effect, sign)


def test_a_size_that_is_none_is_refused_with_the_one_near_it() -> None:
    told = "The arm gelu cannot be 0.6 times as wide: A size of the ladder has a whole number of heads"
    refused(told, *SIZED, "model/mlp=gelu,swiglu", "ladder=0.6,1,2")
    refused(
        "0.6 times 4 makes 2.4: choose other factors (near it is 0.5)", *SIZED, "position=rope,none", "ladder=0.6,1,2"
    )


def test_a_run_that_diverged_is_an_outcome_and_is_not_tried_again() -> None:
    words = [*BASE, "model/mlp=gelu,swiglu", "seeds=2", "dir=s"]
    code, out = run(*words, launch=Launch(lambda o: math.nan if (o.arm, o.seed) == ("swiglu", 1) else loss(o)))
    assert code == 0, out
    assert "1/2" in out, "unstable runs are counted"
    again = Launch()
    assert run("dir=s", launch=again)[0] == 0
    assert again.ran == []


def test_a_ladder_runs_every_size_matched_anew() -> None:
    launch = Launch()
    words = ["model/mlp=gelu,swiglu", "seeds=2", "ladder=0.5,1,2", "dir=s"]
    code, out = run(*SIZED, *words, launch=launch)
    assert code == 0, out
    sizes = {o.phase: o.config["model"] for o in launch.ran if o.arm == "swiglu"}
    assert {phase: (m["n_embd"], m["n_head"]) for phase, m in sizes.items()} == {
        "x0.5": (16, 2),
        "test": (32, 4),
        "x2": (64, 8),
    }
    made = declared("s")
    assert [o.phase for o in launch.ran[:4]] == ["test"] * 4
    for phase in ("x0.5", "x2"):
        gelu, swiglu = made["sizes"][phase]
        assert swiglu["match"]["target"] == gelu["costs"]["parameters"]
        assert swiglu["costs"]["parameters"] == pytest.approx(gelu["costs"]["parameters"], rel=0.05)
    assert len(launch.ran) == 3 * 4
    assert "at all 3 sizes" in out
    more = Launch()
    assert run("dir=s", "model/mlp=gelu,relu2", launch=more)[0] == 0
    assert {(o.phase, o.arm) for o in more.ran} == {(phase, "relu2") for phase in ("test", "x0.5", "x2")}


def test_a_size_keeps_the_heads_and_the_groups() -> None:
    tree = {"model": {"n_embd": 64, "n_head": 8, "attention": {"name": "softmax", "n_kv_head": 4}}}
    assert ladder.scaled(tree, 0.5)["model"] == {
        "n_embd": 32,
        "n_head": 4,
        "attention": {"name": "softmax", "n_kv_head": 2},
    }
    for factor in (1.05, 0.01):
        with pytest.raises(ConfigError, match="whole number of heads"):
            ladder.scaled(tree, factor)


# What is seen


def a_point(home: Path, name: str = "gelu", seed: int = 3, **more: Any) -> Order:
    config = {"trainer": {"steps": 10}}
    made = Order(
        **{"study": home / "s", "phase": "test", "arm": name, "seed": seed, "config": config, "threads": 1, **more}
    )
    made.write()
    return made


def test_a_pipe_gets_a_line_for_each_point_that_ended(home: Path) -> None:
    made = [a_point(home, seed=seed) for seed in range(3)]
    out = io.StringIO()
    with watching(made, "val/loss", Console(file=out, width=200)):
        leave(made[1], 1.54321)
        leave(made[2], None)
    assert out.getvalue().splitlines() == [
        "1 of 3 gelu seed 1 val/loss 1.5432 in 12s",
        f"2 of 3 gelu seed 2 failed: It broke. ({made[2].log})",
    ]


def test_a_terminal_shows_the_points_at_work(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    made, out = a_point(home, "swiglu", extra={"lr": 0.003}, phase="tune"), io.StringIO()
    made.run_dir.mkdir()
    rows = [{"step": 1, "seconds": 0.5, "train/loss": 3.0}, {"step": 5, "seconds": 2.0, "train/loss": 2.25}]
    (made.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "tr')
    console = Console(file=out, force_terminal=True, width=120, height=30)
    with alone(made.log), watching([made], "val/loss", console):
        pass
    shown = out.getvalue()
    for words in ("tune swiglu lr 0.003 seed 3", "step 5/10", "loss 2.250", "2s left", "0 of 1"):
        assert words in shown


def test_the_tail_of_a_long_file_is_whole_rows(home: Path) -> None:
    path = home / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "train/loss": 1.0}) + "\n" for i in range(2000)))
    rows = tail(path)
    assert [row["step"] for row in rows] == list(range(2000 - len(rows), 2000))
    assert 100 < len(rows) < 400
    assert tail(home / "none.jsonl") == []


def test_a_point_that_has_not_begun_has_nothing_to_tell(home: Path) -> None:
    point = Point(a_point(home), "val/loss")
    point.look()
    assert (point.status, point.latest("step"), point.seconds_left, point.ended) == ("waiting", None, None, False)


# The whole


def test_a_real_study_in_this_process_pairs_by_seed() -> None:
    """Trained indeed; the same arm under two names differs by exactly nothing."""
    words = ["question=A/A", "seeds=2", "dir=s", "hydra/launcher=basic", "threads=1"]
    Path("aa.yaml").write_text("arms: {one: [model/mlp=gelu], other: [model/mlp=gelu]}")
    ended = tiny.call(study, *BASE, "study=aa.yaml", *words)
    assert ended.code == 0, ended.err
    values = read_study(Path("s").absolute()).values()
    assert values["one"] == values["other"]
    assert len({*values["one"].values()}) == 2
    assert "4 of 4 other seed 1 val/loss" in ended.out
    effect = json.loads(Path("s/verdict.json").read_text())["effects"][0]
    assert (effect["mean"], effect["low"], effect["high"]) == (0, 0, 0)
