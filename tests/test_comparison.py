"""Runs side by side: read from their files, paired or said not to be, tabled, drawn and written as one page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import studies_on_disk as disk
from rich.console import Console
from scipy import stats

from gptlab import pages
from gptlab.comparison import drawing, figures, page, runs, table, words
from gptlab.comparison.pairing import agreement
from gptlab.comparison.records import Comparison, differences
from gptlab.comparison.verdict import Effect, Verdict
from gptlab.errors import ConfigError, DataError

GELU, SWIGLU = [2.010, 2.043, 1.996], [1.981, 2.018, 1.962]
TERMS = "equal parameters, fixed recipe"
NASTY = '<script>alert("$x^2$ & \'`|*_")</script>'


def study(folder: Path, **changes: Any) -> Path:
    """Two arms, three seeds, all done."""
    disk.write_plan(folder, {"gelu": ["model/mlp=gelu"], "swiglu": ["model/mlp=swiglu"]}, **changes)
    for seed in range(3):
        disk.write_point(folder, "gelu", seed, GELU[seed])
        disk.write_point(folder, "swiglu", seed, SWIGLU[seed], tree=disk.config(seed, model__mlp={"name": "glu"}))
    return folder


def effect(**changes: Any) -> Effect:
    """An effect that is better."""
    known: dict[str, Any] = {"arm": "swiglu", "n": 5, "mean": -0.031, "low": -0.042, "high": -0.020, "p": 0.001}
    known |= {"p_holm": 0.002, "equivalence_p": 0.9, "sign_flip_p": None, "verdict": "better", "seeds_needed": None}
    return Effect(**{**known, "unstable": 0, "n_runs": 5, **changes})


class Read(HTMLParser):
    """The tags, ids, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "style")]

    def handle_data(self, data: str) -> None:
        self.text += data


# --- the table ---


def test_the_table_holds_what_one_computes_by_hand(tmp_path: Path) -> None:
    comparison = runs.read_study(study(tmp_path))
    gelu, swiglu = table.rows(comparison, page.verdict_of(comparison))
    assert gelu["verdict"] == "baseline"
    assert gelu["effect"] is None
    assert gelu["mean"] == (2.010 + 2.043 + 1.996) / 3
    assert swiglu["sd"] == pytest.approx(math.sqrt(sum((x - sum(SWIGLU) / 3) ** 2 for x in SWIGLU) / 2))
    assert swiglu["bits_per_byte"] == pytest.approx(sum(SWIGLU) / 3 / math.log(2))
    apart = [b - a for a, b in zip(GELU, SWIGLU, strict=True)]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(apart) / math.sqrt(3)  # two arms: the paired t
    assert swiglu["effect"] == pytest.approx(statistics.fmean(apart))
    assert (swiglu["low"], swiglu["high"]) == pytest.approx(
        (statistics.fmean(apart) - half, statistics.fmean(apart) + half)
    )
    assert swiglu["p"] == pytest.approx(stats.ttest_rel(SWIGLU, GELU).pvalue)
    assert swiglu["verdict"] == "better"


def test_each_arms_costs_are_those_that_its_runs_measured(tmp_path: Path) -> None:
    solved = {
        "width": "model.mlp.expand",
        "before": 4.0,
        "after": 2.6640625,
        "cost": "params",
        "target": 1,
        "reached": 1,
    }
    disk.write_plan(
        tmp_path, {"gelu": [], "swiglu": {"overrides": [], "match": solved, "costs": {"tokens": 7}}}, tune="lr"
    )
    disk.write_point(tmp_path, "gelu", 0)
    for seed, (pace, memory) in enumerate([(0.010, 5_000_000), (0.030, 9_000_000), (0.014, 7_000_000)]):
        about = {"seconds_per_step": pace, "peak_memory": memory, "parameters": 421_337, "flops_per_token": 2.5e6}
        tree = disk.config(seed, optimizer__lr=0.004)
        best = {"best_step": 700, "best_val_loss": 1.9} if seed < 2 else {"best_step": 900, "best_val_loss": 1.9}
        disk.write_point(tmp_path, "swiglu", seed, 2.0, tree=tree, tokens=1_024_000, **about, **best)
    comparison = runs.read_study(tmp_path)
    _, row = table.rows(comparison, page.verdict_of(comparison))
    assert (row["parameters"], row["flops_per_token"], row["tokens"]) == (421_337, 2.5e6, 1_024_000)
    assert (row["seconds_per_step"], row["peak_memory"]) == (0.014, 9_000_000)
    assert (row["matched"], row["lr"], row["recipe"]) == ("mlp.expand 4 → 2.664", 0.004, "tuned learning rates")
    assert row["overfits"] == 2


def test_an_arm_without_runs_has_the_costs_of_the_plan(tmp_path: Path) -> None:
    disk.write_plan(tmp_path, {"gelu": [], "swiglu": {"overrides": [], "costs": {"parameters": 17, "tokens": 3}}})
    comparison = runs.read_study(tmp_path)
    _, row = table.rows(comparison, page.verdict_of(comparison))
    assert (row["parameters"], row["tokens"], row["mean"], row["verdict"]) == (17, 3, None, "none")


def test_the_best_being_a_little_lower_or_late_is_no_overfitting(tmp_path: Path) -> None:
    study(tmp_path)
    for seed, best in enumerate([{"best_step": 500, "best_val_loss": 1.996}, {"best_step": 800, "best_val_loss": 1.0}]):
        disk.write_point(tmp_path, "gelu", seed, 2.0, **best)
    comparison = runs.read_study(tmp_path)
    assert [row["overfits"] for row in table.rows(comparison, page.verdict_of(comparison))] == [0, 0]


def test_the_csv_loses_no_digit(tmp_path: Path) -> None:
    comparison = runs.read_study(study(tmp_path))
    verdict = page.verdict_of(comparison)
    read = list(csv.DictReader(io.StringIO(table.csv(comparison, verdict))))
    for row, found in zip(table.rows(comparison, verdict), read, strict=True):
        assert found.keys() == row.keys()
        for key, value in row.items():
            assert found[key] == ("" if value is None else str(value))
            assert not isinstance(value, float) or float(found[key]) == value


def test_the_markdown_table_has_a_cell_for_every_column_whatever_an_arm_is_called(tmp_path: Path) -> None:
    disk.write_plan(tmp_path, {"a|b": [], NASTY.replace("/", ""): []})
    comparison = runs.read_study(tmp_path)
    lines = [line for line in table.markdown(comparison, page.verdict_of(comparison)).splitlines() if line[:1] == "|"]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert len(lines) == 4


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_terminal_of_any_width_shows_every_number(tmp_path: Path, width: int) -> None:
    study(tmp_path)
    comparison = runs.read_study(tmp_path)
    console = Console(width=width, record=True, file=io.StringIO())
    table.show(console, comparison, page.verdict_of(comparison))
    shown = " ".join(console.export_text().split())
    for cell in ("2.0163", "0.42M", "2.60M", "12 ms", "312 MB", "0.001 (fixed)"):
        assert cell in shown


# --- the words ---


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {},
            f"swiglu is better than gelu by 0.031 nats per token [0.020, 0.042], 5 seeds, {TERMS}.",
        ),
        (
            {"verdict": "worse", "mean": 0.031, "low": 0.02, "high": 0.042, "unstable": 2},
            f"swiglu is worse than gelu by 0.031 nats per token [0.020, 0.042], 5 seeds, unstable 2/5, {TERMS}.",
        ),
        (
            {"verdict": "equivalent", "mean": 0.0, "low": -0.0021, "high": 0.0021},
            "swiglu is equivalent to gelu within 0.005: the difference is 0.0000 nats per token [-0.0021, +0.0021], "
            f"5 seeds, {TERMS}.",
        ),
        (
            {"verdict": "inconclusive", "seeds_needed": 23, "high": 0.004},
            "swiglu against gelu is inconclusive: the difference is -0.031 nats per token [-0.042, +0.004], 5 seeds, "
            f"{TERMS}. About 23 seeds would settle it.",
        ),
        ({"verdict": "none", "n": 1, "mean": math.nan}, "swiglu is not judged against gelu: 1 paired seed."),
    ],
    ids=lambda value: value.get("verdict", "better") if isinstance(value, dict) else "",
)
def test_a_verdict_is_a_sentence(changes: dict[str, Any], said: str) -> None:
    comparison = Comparison("", {"gelu": [], "swiglu": []}, "gelu", plan={"match": "params", "tune": "none"})
    assert words.sentence(effect(**changes), comparison) == said


@pytest.mark.parametrize(
    "number, text",
    [(421, "421"), (9_999, "9999"), (12_345, "12.3k"), (421_337, "0.42M"), (12.5e6, "12.5M"), (124e6, "124M")],
)
def test_counts_are_short(number: float, text: str) -> None:
    assert words.count(number) == text
    assert words.count(None) == words.NONE == words.count(math.nan)


# --- studies ---


def test_a_study_lists_every_arm_that_was_planned_and_every_one_that_ran(tmp_path: Path) -> None:
    study(tmp_path)
    disk.write_plan(tmp_path, {"gelu": [], "swiglu": [], "relu2": [], "geglu": []}, seeds=[0, 1, 2, 3], screen=[0.25])
    disk.write_point(tmp_path, "extra", 0)
    disk.write_point(tmp_path, "geglu", 20_000, phase="screen1")
    comparison = runs.read_study(tmp_path)
    assert list(comparison.arms) == ["gelu", "swiglu", "relu2", "geglu", "extra"]
    assert [record.status for record in comparison.arms["gelu"]] == ["done", "done", "done", "waiting"]
    assert [record.status for record in comparison.arms["relu2"]] == ["waiting"] * 4
    assert comparison.arms["geglu"] == []
    assert "extra ran, but is not in the plan." in comparison.unpaired
    assert "geglu has no run in the test: it ran only in screen1." in comparison.unpaired
    assert "relu2: seeds 0, 1, 2, 3 not finished (waiting)." in comparison.unpaired


def test_a_failed_point_keeps_its_error_and_a_diverged_one_is_counted(tmp_path: Path) -> None:
    study(tmp_path)
    disk.write_failed(tmp_path, "swiglu", 1, "Out of memory: lower trainer.batch_size.")
    disk.write_failed(tmp_path, "swiglu", 2, "The loss or its gradient was not finite at step 9.")
    comparison = runs.read_study(tmp_path)
    assert comparison.values()["swiglu"] == {0: SWIGLU[0], 2: None}
    assert [record.error for record in comparison.failures()] == [
        "Out of memory: lower trainer.batch_size.",
        "The loss or its gradient was not finite at step 9.",
    ]
    _, row = table.rows(comparison, page.verdict_of(comparison))
    assert (row["unstable"], row["runs"], row["seeds"]) == (1, 3, 1)


def test_a_run_that_ended_with_a_loss_that_is_no_number_diverged(tmp_path: Path) -> None:
    study(tmp_path)
    disk.write_point(tmp_path, "swiglu", 1, None)
    assert runs.read_study(tmp_path).values()["swiglu"] == {0: SWIGLU[0], 1: None, 2: SWIGLU[2]}


def test_a_point_killed_before_it_wrote_anything_is_known_by_its_log(tmp_path: Path) -> None:
    study(tmp_path)
    order = tmp_path / "test" / "swiglu" / "seed3.json"
    order.write_text(json.dumps({"phase": "test", "arm": "swiglu", "seed": 3, "config": disk.config(3), "hash": "x"}))
    order.with_suffix(".failed").write_text("")
    order.with_suffix(".log").write_text("compiling\nIllegal instruction\n\n")
    *_, last = runs.read_study(tmp_path).arms["swiglu"]
    assert (last.status, last.error) == ("failed", "Illegal instruction")


def test_a_run_of_an_earlier_order_does_not_count(tmp_path: Path) -> None:
    study(tmp_path)
    order = tmp_path / "test" / "swiglu" / "seed1.json"
    order.write_text(json.dumps({**json.loads(order.read_text()), "hash": "changed"}))
    comparison = runs.read_study(tmp_path)
    assert comparison.values()["swiglu"].keys() == {0, 2}
    assert "swiglu: seed 1 not finished (waiting)." in comparison.unpaired


def test_other_phases_do_not_enter_the_verdict(tmp_path: Path) -> None:
    study(tmp_path)
    disk.write_point(tmp_path, "swiglu", 10_000, 1.0, phase="tune", name="lr0.003_seed10000")
    disk.write_point(tmp_path, "swiglu", 0, 1.0, phase="x2")
    comparison = runs.read_study(tmp_path)
    assert comparison.values()["swiglu"] == dict(enumerate(SWIGLU))
    assert {phase: list(arms) for phase, arms in comparison.others.items()} == {"tune": ["swiglu"], "x2": ["swiglu"]}


def test_a_directory_without_a_plan_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"A study holds a plan\.json .* name its directory\."):
        runs.read_study(tmp_path)


# --- any runs ---


def sweep(folder: Path, arms: dict[str, dict[str, Any]], seeds: int = 2, **about: Any) -> Path:
    """A sweep as gptlab train -m leaves it: words -> what they change."""
    points = [(words, changes, seed) for words, changes in arms.items() for seed in range(seeds)]
    for number, (said, changes, seed) in enumerate(points):
        path = folder / f"{number}_{said},seed={seed}"
        overrides = ("data=text", *([said] if said else []), f"seed={seed}", "logger=none")
        disk.write_run(path, 2 + number / 10, tree=disk.config(seed, **changes), overrides=overrides, **about)
    return folder


def test_the_arms_of_a_sweep_are_called_by_the_words_that_made_them(tmp_path: Path) -> None:
    made = {f"n_head={n}": {"model__n_head": n} for n in (8, 2, 1, 4, 16, 32)}  # the tenth point comes after the ninth
    comparison = runs.read_runs([sweep(tmp_path, made)])
    assert list(comparison.arms) == list(made)
    assert comparison.baseline == "n_head=8"
    assert comparison.values()["n_head=32"] == {0: 3.0, 1: 3.1}


@pytest.mark.parametrize(
    "arms, names",
    [
        (
            [{"model__mlp": {"name": "plain"}}, {"model__mlp": {"name": "glu", "gate": "silu"}}],
            ["mlp=plain", "mlp=glu"],
        ),
        (
            [{"optimizer__lr": 0.1}, {"optimizer__lr": 0.2}, {"optimizer__lr": 0.2, "model__n_head": 1}],
            ["n_head=4, lr=0.1", "n_head=4, lr=0.2", "n_head=1, lr=0.2"],
        ),
        ([{}], ["all"]),
    ],
)
def test_other_arms_are_called_by_the_fewest_settings_that_tell_them_apart(
    tmp_path: Path, arms: list[dict[str, Any]], names: list[str]
) -> None:
    for number, changes in enumerate(arms):
        disk.write_run(tmp_path / f"run{number}", tree=disk.config(0, **changes))
    assert list(runs.read_runs([tmp_path]).arms) == names


def test_where_and_how_a_run_was_watched_makes_no_arm(tmp_path: Path) -> None:
    watched = {"run_dir": "x", "logger": "wandb", "name": "mine", "plugins": ["/a.py"], "trainer__device": "cuda"}
    disk.write_run(tmp_path / "a", tree=disk.config(0))
    disk.write_run(tmp_path / "b", tree=disk.config(1, **watched, trainer__eval_every=7))
    (records,) = runs.read_runs([tmp_path / "a", tmp_path / "b"]).arms.values()
    assert [record.seed for record in records] == [0, 1]


def test_a_seed_that_ran_twice_counts_once_and_a_finished_run_before_a_later_one_that_failed(tmp_path: Path) -> None:
    disk.write_run(tmp_path / "1", 2.5)
    disk.write_run(tmp_path / "2", 2.4)
    disk.write_run(tmp_path / "3", None, status="failed", error="Out of memory")
    comparison = runs.read_runs([tmp_path])
    assert comparison.values() == {"all": {0: 2.4}}
    assert comparison.unpaired[-1] == f"all: seed 0 ran more than once; {tmp_path / '2'} counts."


def test_a_study_beside_runs_gives_the_runs_of_its_test(tmp_path: Path) -> None:
    study(tmp_path / "study")
    disk.write_point(tmp_path / "study", "gelu", 10_000, phase="tune", name="lr0.1_seed10000")
    disk.write_run(tmp_path / "mine", tree=disk.config(0, model__n_head=8))
    comparison = runs.read_runs([tmp_path / "study", tmp_path / "mine"])
    assert [len(records) for records in comparison.arms.values()] == [3, 3, 1]


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"metric": "val/los"}, "None of the runs measured 'val/los'. Did you mean 'val/loss'?"),
        ({"baseline": "n_head=3"}, "There is no arm 'n_head=3'. Did you mean 'n_head=2'?"),
    ],
)
def test_what_there_is_not_is_one_clear_line(tmp_path: Path, asked: dict[str, str], message: str) -> None:
    made = {"n_head=2": {"model__n_head": 2}, "head_size=8": {"model__n_head": 8}}
    with pytest.raises(ConfigError) as error:
        runs.read_runs([sweep(tmp_path, made)], **asked)
    assert str(error.value) == message


def test_a_damaged_config_is_said_and_passed_over(tmp_path: Path) -> None:
    disk.write_run(tmp_path / "a")
    (disk.write_run(tmp_path / "b") / "config.yaml").write_text("{")
    comparison = runs.read_runs([tmp_path])
    assert comparison.unpaired == [f"{tmp_path / 'b'} holds a config.yaml that cannot be read."]


def test_an_accuracy_is_better_when_it_is_higher(tmp_path: Path) -> None:
    for name, level in (("a", 0.5), ("b", 0.75)):
        row = {"step": 10, "val/loss": 1.0, "val/accuracy@40": level}
        disk.write_run(tmp_path / name, tree=disk.config(0, model__n_head=len(name + name * (name == "b"))), rows=[row])
    comparison = runs.read_runs([tmp_path], metric="val/accuracy@40")
    assert comparison.better == "higher"
    assert sorted(value for found in comparison.values().values() for value in found.values()) == [0.5, 0.75]


# --- what could not be paired ---


@pytest.mark.parametrize(
    "about, line",
    [
        ({"data": "text-b"}, "swiglu: seed 1 learned from another text than gelu (its fingerprint differs); left out."),
        ({"steps": 900}, "swiglu trained for 900 steps, gelu for 1,000: compared as they are."),
        ({"tokens": 5}, "swiglu trained for 5 tokens, gelu for 1,024,000: compared as they are."),
        (
            {"signature": {"init": disk.INIT, "data": "other"}},
            "swiglu: seed 1 saw other batches than gelu: the block is not shared.",
        ),
        (
            {"signature": {"init": {"embed.weight": "0"}, "data": "batches-1"}},
            "swiglu: seed 1 shared no initial value with gelu.",
        ),
        ({"signature": None}, "swiglu: that seed 1 shared batches and initial values with gelu was not recorded."),
        ({"status": "interrupted"}, "swiglu: seed 1 not finished (interrupted)."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_paired_is_said(tmp_path: Path, about: dict[str, Any], line: str) -> None:
    study(tmp_path)
    assert runs.read_study(tmp_path).unpaired == []
    disk.write_point(tmp_path, "swiglu", 1, SWIGLU[1], **about)
    assert runs.read_study(tmp_path).unpaired == [line]


def test_a_seed_that_one_arm_lacks_is_said(tmp_path: Path) -> None:
    sweep(tmp_path, {"n_head=2": {"model__n_head": 2}, "n_head=8": {"model__n_head": 8}})
    disk.write_run(tmp_path / "9", tree=disk.config(7, model__n_head=8), overrides=("n_head=8",))
    disk.write_run(tmp_path / "91", tree=disk.config(5, model__n_head=2), overrides=("n_head=2",))
    assert runs.read_runs([tmp_path]).unpaired == [
        "n_head=8 has no run of seed 5, which n_head=2 has.",
        "n_head=2 has no run of seed 7, which n_head=8 has.",
    ]


def test_another_text_is_left_out_of_the_verdict_unless_bits_per_byte_are_compared(tmp_path: Path) -> None:
    study(tmp_path)
    disk.write_point(tmp_path, "swiglu", 1, 9.0, tree=disk.config(1, tokenizer={"name": "bpe"}), data="as-bpe")
    comparison = runs.read_study(tmp_path)
    assert comparison.values()["swiglu"].keys() == {0, 2}
    assert runs.asked(comparison, metric="val/bpb").values()["swiglu"].keys() == {0, 1, 2}
    disk.write_point(tmp_path, "swiglu", 1, 9.0, tree=disk.config(1, data={"name": "names"}), data="names")
    assert runs.asked(runs.read_study(tmp_path), metric="val/bpb").values()["swiglu"].keys() == {0, 2}


def test_what_the_signatures_agree_on_is_said(tmp_path: Path) -> None:
    study(tmp_path)
    own = {"init": {"embed.weight": "0badcafe", "head.weight": "0", "gate.weight": "1"}, "data": "batches-0"}
    disk.write_point(tmp_path, "swiglu", 0, SWIGLU[0], signature=own)
    assert agreement(runs.read_study(tmp_path)) == [
        "swiglu saw the batches of gelu in 3 of 3 seeds and began with its values in 1 of the 2 parameters that both "
        "have by name, beside 1 of its own."
    ]


def test_differences_are_those_of_settings_that_matter() -> None:
    one, other = disk.config(0, name="a"), disk.config(1, name="b", model__mlp={"name": "glu"})
    assert differences([one, other]) == {
        "model.mlp.name": ["plain", "glu"],
        "model.mlp.activation": ["gelu", None],
        "model.mlp.expand": [4.0, None],
    }


# --- figures ---


def test_a_curve_is_the_mean_of_the_finished_runs_where_all_evaluated(tmp_path: Path) -> None:
    disk.write_plan(tmp_path, {"gelu": []})
    rows = [{"step": step, "tokens": 10 * step, "seconds": 1.0, "val/loss": 3.0} for step in (1, 2, 3)]
    disk.write_point(tmp_path, "gelu", 0, rows=rows, flops_per_token=2.0)
    disk.write_point(
        tmp_path, "gelu", 1, rows=[{**row, "val/loss": 4.0, "seconds": 2.0} for row in rows[1:]], flops_per_token=2.0
    )
    disk.write_point(tmp_path, "gelu", 2, rows=[{**row, "val/loss": 9.0} for row in rows], status="failed", error="x")
    records = runs.read_study(tmp_path).arms["gelu"]
    spread = statistics.stdev([3.0, 4.0])
    assert figures.curve(records, "val/loss", "steps") == [(2, 3.5, spread), (3, 3.5, spread)]
    assert figures.curve(records, "val/loss", "flops") == [(40, 3.5, spread), (60, 3.5, spread)]
    assert [x for x, _, _ in figures.curve(records, "val/loss", "seconds")] == [1.5, 1.5]
    assert figures.curve(records, "val/accuracy", "steps") == []


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    points = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (2.0, 2.5), "d": (3.0, 2.0), "e": (4.0, 1.0)}
    assert figures.efficient(points) == ["a", "b", "e"]
    assert figures.efficient({"a": (1.0, 0.5), "b": (2.0, 0.9), "c": (3.0, 0.7)}, "higher") == ["a", "b"]


def test_figures_are_the_same_whenever_they_are_drawn_and_are_valid_files(tmp_path: Path) -> None:
    comparison = runs.read_study(whole(tmp_path / "study"))
    page.write(comparison, tmp_path / "one")
    page.write(comparison, tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one" / "figures").iterdir())
    stems = {"forest", "curves_steps", "curves_tokens", "curves_flops", "curves_seconds", "pareto", "ladder", "rates"}
    assert set(names) == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    for file in [*(f"figures/{name}" for name in names), "table.md", "table.csv", "verdict.json", "index.html"]:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    for name in names:
        content = (tmp_path / "one" / "figures" / name).read_bytes()
        if name.endswith("svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            assert content.startswith(b"\x89PNG")


def test_colours_have_variables_and_arms_differ_in_more_than_colour() -> None:
    assert len({*drawing.NAMES.values()}) == len(drawing.NAMES)
    found = drawing.looks([f"arm{n}" for n in range(8)], "arm3")
    assert found["arm3"].color == drawing.BASELINE
    assert len({(str(look.dash), look.marker) for look in found.values()}) == 8
    style = (Path(pages.__file__).parent / "base.html").read_text()
    for name in drawing.NAMES.values():
        assert len(re.findall(rf"--{name}: #", style)) == 2, f"--{name} has a light and a dark value"


# --- the page ---


def whole(folder: Path, third: str = "relu2") -> Path:
    """A study with everything: failures, tuning, a ladder, an arm of any name."""
    arms = {"gelu": ["model/mlp=gelu"], "swiglu": ["model/mlp=swiglu"], third: ["model/mlp=relu2"]}
    disk.write_plan(folder, arms, tune="lr", ladder=[0.5, 1, 2], base=["data=text"], question=f"Is {third} good?")
    place = "odd" if third != "relu2" else third
    ends = {"gelu": GELU, "swiglu": SWIGLU, third: [2.01, 2.05, 1.99]}
    for arm, values in ends.items():
        for seed, end in enumerate(values):
            for phase in ("test", "x0.5", "x2"):
                point(folder, arm, place if arm == third else arm, seed, end, phase)
            for lr in (0.001, 0.002):
                about = {"name": f"lr{lr}_seed{10_000 + seed}", "tree": disk.config(seed, optimizer__lr=lr)}
                point(folder, arm, place if arm == third else arm, 10_000 + seed, end, "tune", **about)
    point(folder, third, place, 2, None, "test", status="failed", error=f"It broke: {third}")
    return folder


def point(folder: Path, arm: str, place: str, seed: int, end: float | None, phase: str, **about: Any) -> None:
    """A point of an arm whose name no folder could have."""
    path = disk.write_point(folder, place, seed, end, phase=phase, sample=f"{arm} wrote this", **about)
    order = path.with_name(f"{path.name}.json")
    order.write_text(json.dumps({**json.loads(order.read_text()), "arm": arm}))


@pytest.mark.parametrize("third", [NASTY, r"_$\frac{1$", "a very long name of an arm " * 5])
def test_the_page_is_one_file_that_shows_everything_and_runs_nothing(tmp_path: Path, third: str) -> None:
    comparison = runs.read_study(whole(tmp_path, third))
    text = page.write(comparison, tmp_path).read_text()
    read = Read(text)
    shown = " ".join(read.text.split())
    for arm in ("gelu", "swiglu", third.strip()):
        assert " ".join(f"{arm} wrote this".split()) in shown
    for effect_of_arm in page.verdict_of(comparison).effects:
        assert " ".join(words.sentence(effect_of_arm, comparison).split()) in shown
    assert " ".join(f"It broke: {third}".split()) in shown
    assert str(comparison.plan["hash"]) in shown
    assert "2.0100" in shown
    assert "gptlab study dir=" in shown
    assert "3-gram 2.04" in shown
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    assert len(read.ids) == len({*read.ids})
    assert all("http" not in one and "//" not in one for one in read.references)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    inks = set(re.findall(r"#[0-9a-f]{6}\b", text.partition("</style>")[2]))
    assert not inks & set(drawing.NAMES), "every colour of a figure is the page's"


def test_the_verdict_file_holds_the_plan_the_effects_and_what_failed(tmp_path: Path) -> None:
    comparison = runs.read_study(whole(tmp_path))
    page.write(comparison, tmp_path)
    facts = json.loads((tmp_path / "verdict.json").read_text())
    assert facts["plan"] == "ab" * 32
    assert facts["effects"][0]["arm"] == "swiglu"
    assert facts["effects"][0]["mean"] == pytest.approx(-0.0293333, abs=1e-6)
    assert list(facts["ladder"]) == ["0.5", "1", "2"]
    assert facts["signs"][0] == "swiglu: one sign at all 3 sizes."
    assert facts["failures"][0]["error"] == "It broke: relu2"
    assert facts["values"]["gelu"] == {str(seed): value for seed, value in enumerate(GELU)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lost", ["summary.json", "metrics.jsonl", "samples.jsonl", "command.json", "config.yaml"])
def test_a_file_that_is_missing_costs_only_what_it_holds(tmp_path: Path, lost: str) -> None:
    whole(tmp_path)
    for file in tmp_path.glob(f"*/*/*/{lost}"):
        file.unlink()
    comparison = runs.read_study(tmp_path)
    shown = Read(page.write(comparison, tmp_path).read_text()).text
    assert all(arm in shown for arm in comparison.arms)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"status": "done"}', '{"status": "done", "val_loss": null}'])
def test_a_damaged_summary_is_no_end_of_the_page(tmp_path: Path, damage: str) -> None:
    study(tmp_path)
    (tmp_path / "test" / "swiglu" / "seed1" / "summary.json").write_text(damage)
    (tmp_path / "test" / "swiglu" / "seed2" / "metrics.jsonl").write_bytes(b"\xff{]\n{}\n")
    page.write(runs.read_study(tmp_path), tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("arms", [{}, {"gelu": []}, {"gelu": [], "swiglu": []}])
def test_a_study_that_has_not_begun_has_a_page(tmp_path: Path, arms: dict[str, list[str]]) -> None:
    comparison = runs.read_study(disk.write_plan(tmp_path, arms))
    assert page.write(comparison, tmp_path / "out") == tmp_path / "out" / "index.html"
    table.show(Console(file=io.StringIO()), comparison, page.verdict_of(comparison))


@pytest.mark.filterwarnings("error")
def test_runs_without_a_study_have_the_same_page(tmp_path: Path) -> None:
    made = {f"n_head={n}": {"model__n_head": n} for n in (2, 4)}
    comparison = runs.read_runs([sweep(tmp_path / "sweep", made, seeds=3)])
    shown = Read(page.write(comparison, tmp_path / "out").read_text()).text
    assert "gptlab train data=text n_head=2 seed=0 logger=none" in shown
    assert f"gptlab compare {tmp_path / 'sweep'}" in shown
    assert "costs not matched" in shown


@pytest.mark.filterwarnings("error")
def test_one_seed_and_a_loss_without_end_are_shown_without_a_verdict(tmp_path: Path) -> None:
    disk.write_plan(tmp_path, {"gelu": [], "swiglu": []}, seeds=[0])
    disk.write_point(tmp_path, "gelu", 0, 2.0)
    disk.write_point(tmp_path, "swiglu", 0, None)
    comparison = runs.read_study(tmp_path)
    shown = Read(page.write(comparison, tmp_path).read_text()).text
    assert "swiglu is not judged against gelu: 0 paired seeds, unstable 1/1." in shown
    assert not (tmp_path / "figures" / "forest.svg").exists()


def test_the_preset_on_the_page_declares_the_study_again(tmp_path: Path) -> None:
    import yaml

    comparison = runs.read_study(whole(tmp_path))
    preset = yaml.safe_load(page.again(comparison).partition("\n\n")[2])
    assert preset["arms"] == {name: [f"model/mlp={name}"] for name in ("gelu", "swiglu", "relu2")}
    assert (preset["base"], preset["seeds"], preset["tune"]) == (["data=text"], [0, 1, 2], "lr")


def test_what_tuning_and_screening_came_to_is_told(tmp_path: Path) -> None:
    tuned = {"rate": 0.004, "tried": {"0.002": 2.0, "0.004": 1.9}, "sensitivity": 0.01234, "at_edge": True}
    rung = {"phase": "screen1", "left": {"geglu": [0.01, 0.03]}, "kept": "swiglu"}
    (study(tmp_path) / "summary.json").write_text(json.dumps({"tuning": {"swiglu": tuned}, "screening": [rung]}))
    assert page.told(runs.read_study(tmp_path)) == [
        "swiglu: learning rate 0.004 of 2 tried, sensitivity 0.0123, the best at the edge of what was tried.",
        "screen1: geglu left, since [+0.0100, +0.0300] rules out that it is better.",
        "screen1: swiglu stayed as the last variant, though it looked worse.",
    ]


@pytest.mark.parametrize(
    "metric, shown", [("val/loss", {"chance": 2.3}), ("val/accuracy@40", {"chance": 0.1}), ("val/solved", {})]
)
def test_a_task_has_chance_for_a_ruler(tmp_path: Path, metric: str, shown: dict[str, float]) -> None:
    disk.write_plan(tmp_path, {"gelu": []}, metric=metric)
    disk.write_point(tmp_path, "gelu", 0, ruler={}, chance={"loss": 2.3, "accuracy": 0.1})
    assert figures.levels(runs.read_study(tmp_path)) == shown


def test_the_tokens_of_a_step_are_those_that_were_fed_whatever_the_context(tmp_path: Path) -> None:
    disk.write_plan(tmp_path, {"gelu": [], "swiglu": []})
    for arm in ("gelu", "swiglu"):
        disk.write_point(tmp_path, arm, 0, tree=disk.config(model__block_size=4096), tokens=400_000)
    comparison = runs.read_study(tmp_path)
    assert page.regime(comparison, page.verdict_of(comparison))["Training"].startswith("1000 steps of 400 tokens")


def test_a_sign_is_the_same_only_if_it_is_everywhere() -> None:
    def at(mean: float) -> Verdict:
        return Verdict("gelu", (effect(mean=mean),), 0.1, 4, 0.5, True, 0.1, ())

    assert page.signs({"1": at(-1), "2": at(-0.1)}) == ["swiglu: one sign at all 2 sizes."]
    assert page.signs({"1": at(-1), "2": at(0.1)}) == ["swiglu: no one sign: below 0 at 1, above at 1."]
