"""The meter: what it counts is there, what it cannot know it does not say, and nothing that was typed is ignored."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gptlab import GPT, ModelConfig, bench
from gptlab.benchmarking import ceiling, clock, graphs, request, stepping, variants
from gptlab.benchmarking.memory import Growth
from gptlab.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ceiling, "SECONDS", 0.01)
    monkeypatch.setattr(ceiling, "SIDE", 64)
    tiny.write_text(tmp_path)


def benched(*words: str) -> tuple[tiny.Ended, dict[str, Any]]:
    """A bench in this process, and the figures that it wrote."""
    ended = tiny.call(bench, *tiny.overrides(), *words, "--out", "out")
    return ended, json.loads(Path("out/bench.json").read_text()) if ended.code == 0 else {}


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def batch() -> Any:
    tokens = torch.zeros(4, 8, dtype=torch.long)
    return lambda step: (tokens, tokens)


def test_a_bench_tells_the_step_its_limit_its_memory_and_its_parts() -> None:
    ended, found = benched("--steps", "6", "--warmup", "2", "--profile")
    assert ended.code == 0, ended.err
    assert found["step"]["p10"] <= found["step"]["median"] <= found["step"]["p90"]
    assert found["tokens_per_second"] == pytest.approx(found["tokens_per_step"] / found["step"]["median"])
    assert set(found["split"]["seconds"]) == {"forward", "backward", "optimizer", "rest"}
    assert 0 <= found["waiting"]["share"] < 1
    assert found["compiling"]["graphs"] == found["compiling"]["recompiles"] == 0
    gemm, work = found["utilisation"]["gemm"], found["model"]["flops_per_token"] * found["tokens_per_step"]
    assert gemm["fastest_step"] == pytest.approx(work / gemm["peak"])
    assert gemm["share"] == pytest.approx(gemm["fastest_step"] / found["step"]["median"])
    assert gemm["peak"] == max(gemm["square"]["fp32"], gemm["own"]["fp32"])
    assert found["utilisation"]["mfu"] is None
    assert {"date", "command", "machine", "versions"} <= found.keys()
    assert json.loads(Path(found["profile"]["trace"]).read_text())["traceEvents"]
    assert sum(event["share"] for event in found["profile"]["top"]) <= 1.0001
    last = ended.out.strip().splitlines()[-1]
    assert last.endswith("out/bench.json"), "the path is said at the end"
    assert "GEMM limit" in ended.out


def test_steps_are_timed_with_their_batches_and_waiting_is_the_share_of_those(batch: Any) -> None:
    def slow(step: int) -> Any:
        time.sleep(0.02)
        return batch(step)

    state = tiny.state()
    clock.walk(state, batch, 2)
    timed = clock.walk(state, slow, 4)
    assert len(timed.seconds) == 4
    assert all(fetched >= 0.02 for fetched in timed.fetching)
    assert all(whole > fetched for whole, fetched in zip(timed.seconds, timed.fetching, strict=True))
    assert stepping.waiting(state, slow, timed)["share"] > 0.3
    assert stepping.waiting(state, batch, clock.walk(state, batch, 4))["share"] < 0.3


def test_a_bench_may_be_longer_than_the_schedule(batch: Any) -> None:
    state = tiny.state(steps=3)
    clock.walk(state, batch, 5)
    assert state.step == 2


def test_the_parts_of_a_step_are_the_step(batch: Any) -> None:
    state = tiny.state(accumulate=2, batch_size=2)
    before = state.model.head.weight.clone()
    apart = stepping._apart(state, batch)
    assert not torch.equal(before, state.model.head.weight), "the optimizer was part of it"
    assert all(p.grad is None for p in state.model.parameters())
    assert min(apart.values()) > 0


def test_a_step_taken_apart_is_the_step_of_the_training(batch: Any) -> None:
    """What is timed in parts must be what is trained: the same parameters come out."""
    plain = {"name": "sgd", "lr": 0.1}  # whose step is as long as the gradient
    whole, apart = (tiny.state(optimizer=plain, accumulate=2, batch_size=2, clip=0.0) for _ in range(2))
    clock.walk(whole, batch, 1)
    for group in apart.optimizer.param_groups:
        group["lr"] = apart.optimizer.defaults["lr"] * apart.schedule(0) * group.get("lr_scale", 1.0)
    stepping._apart(apart, batch)
    for one, other in zip(whole.model.parameters(), apart.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_largest_product_is_found_and_counted_as_2mkn() -> None:
    model = GPT(ModelConfig(vocab_size=300, n_layer=1, n_head=2, n_embd=16, block_size=8))
    assert ceiling.largest(model, 32) == (32, 16, 300)
    seconds = clock.spread([3.0, 1.0, 2.0])
    assert seconds["median"] == 2.0
    assert 1.0 <= seconds["p10"] < 2.0 < seconds["p90"] <= 3.0
    assert ceiling.peak((64, 64, 64), torch.float32, CPU) > 1e6


@pytest.mark.parametrize("chip, precision, known", [
    ("NVIDIA H200", "bf16", True), ("NVIDIA H200", "fp32", False), ("NVIDIA B300", "bf16", False),
])  # fmt: skip
def test_mfu_is_of_the_chip_itself_or_unknown(
    chip: str, precision: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptlab.benchmarking import table

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: chip)
    monkeypatch.setattr(ceiling, "limit", lambda *args: {"fastest_step": 0.5})
    state = tiny.state()
    state.device, state.precision = torch.device("cuda"), precision
    found = stepping.utilisation(state, 1e12, 2.0)
    assert (found["mfu"] is not None) == known
    if known:
        assert found["mfu"] == pytest.approx(1e12 * state.tokens_per_step / 2.0 / 989e12)
    else:
        shown = dict(table._utilisation({**found, "gemm": None}, precision, "cuda"))
        assert "unknown" in shown["MFU"]
        assert chip in shown["MFU"]


def test_memory_that_is_held_for_a_moment_is_seen() -> None:
    grown = Growth(CPU)
    before = grown.peak()
    if before is None:
        pytest.skip("this system does not tell")
    block = torch.ones(20_000_000)
    del block
    assert (grown.peak() or 0) - before > 60e6
    again = Growth(CPU).peak()
    assert again is not None
    assert again < 40e6, "the peak of one thing is not that of the next"


def test_graphs_breaks_and_recompiles_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    import torch._dynamo

    graphs.forget()
    assert graphs.counted()["graphs"] == 0
    whole = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    whole(torch.ones(3))
    assert {**graphs.counted(), "compile_seconds": 0} == {
        "graphs": 1, "breaks": 0, "recompiles": 0, "compile_seconds": 0
    }  # fmt: skip
    whole(torch.ones(4))
    assert graphs.counted()["recompiles"] == 1
    graphs.forget()
    torch.compile(broken, backend="eager")(torch.ones(3))
    assert graphs.counted()["breaks"] == 1
    assert graphs.counted()["graphs"] == 2
    assert graphs.counted()["compile_seconds"] > 0
    graphs.forget()


def test_variants_of_a_slot_are_beside_each_other_and_those_that_cannot_be_are_named() -> None:
    flags = ("--steps", "2", "--warmup", "1", "--rounds", "2", "--only", "softmax,mean,none")
    words = ("model/attention=softmax", "position=rope", "model.attention.window=8")
    ended, found = benched(*words, "--components", "attention", *flags)
    assert ended.code == 0, ended.err
    rows = {row["name"]: row for row in found["variants"]}
    assert found["default"] == "softmax"
    assert rows["softmax"]["relative"] == 1
    assert rows["softmax"]["flops_per_token"] > 0
    assert "window" in rows["mean"]["reason"]
    assert "mean was not timed" in ended.out


def test_each_slot_of_a_step_can_be_asked_for() -> None:
    flags = ("--steps", "2", "--warmup", "1", "--rounds", "1", "--only", "adamw,sgd")
    ended, found = benched("--components", "optimizer", *flags)
    assert ended.code == 0, ended.err
    assert [row["name"] for row in found["variants"]] == ["adamw", "sgd"]


def test_turns_alternate_and_ratios_are_of_the_same_turn() -> None:
    default, other = variants.Variant("a", paces=[1.0, 10.0]), variants.Variant("b", paces=[2.0, 30.0])
    assert variants._row(other, default)["relative"] == 2.5
    assert variants._row(other, default)["range"] == [2.0, 3.0]


def test_decoding_is_timed_alone_and_side_by_side() -> None:
    ended, found = benched("position=rope", "--decode", "--tokens", "6", "--batch", "3", "--rounds", "2")
    assert ended.code == 0, ended.err
    assert [row["batch"] for row in found["batches"]] == [1, 3]
    for row in found["batches"]:
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["per_token"]["median"])
    assert found["reading"]["bytes"] == 4 * found["parameters"]


@pytest.mark.parametrize("argv, said", [
    (["--steps", "1"], "--steps must be at least 2"),
    (["--steps", "many"], "--steps"),
    (["--nonsense"], "--nonsense"),
    (["--decode", "--components", "mlp"], "one at a time"),
    (["--decode", "--profile"], "--profile has an effect"),
    (["--decode", "--steps", "5"], "--steps has an effect"),
    (["--rounds", "2"], "--rounds has an effect"),
    (["--compile"], "--compile has an effect"),
    (["--only", "mean"], "--only has an effect"),
    (["--components", "attentoin"], "Did you mean 'attention'?"),
    (["--components", "data"], "no slot named 'data'"),
    (["fast"], "'fast'"),
    (["run_dir=here"], "--out"),
    (["model/attention=vanilla,flash"], "several"),
    (["model.n_head=3"], "3"),
    (["trainer.precision=fp16"], "needs a GPU"),
    (["--components", "mlp", "--only", "gleu"], "gleu"),
    (["--decode", "position=learned"], "ends at"),
])  # fmt: skip
def test_what_means_nothing_is_refused_in_one_line(argv: list[str], said: str) -> None:
    ended = tiny.call(bench, *tiny.overrides(), *argv, "--out", "out")
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("out").exists()


def test_figures_do_not_overwrite_figures() -> None:
    Path("out").mkdir()
    (Path("out") / "bench.json").write_text("{}")
    ended = tiny.call(bench, *tiny.overrides(), "--out", "out")
    assert ended.code == 2
    assert "--out must be new or empty" in ended.err


def test_what_has_no_effect_on_a_step_is_said() -> None:
    ended, _ = benched("--steps", "2", "--warmup", "1", "trainer.eval_every=3")
    assert "trainer.eval_every=3" in ended.out.splitlines()[0]


def test_flags_may_stand_between_overrides() -> None:
    asked = request.read(["a=1", "--steps", "4", "b=2"])
    assert asked.words == ("a=1", "b=2")
    assert asked.steps == 4
    assert asked.command == "gptlab bench a=1 --steps 4 b=2"


def test_ctrl_c_ends_a_bench_without_a_word_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stepping, "walk", stopped)
    ended = tiny.call(bench, *tiny.overrides(), "--out", "out")
    assert (ended.code, ended.err) == (130, "")
    assert not Path("out").exists()


def test_the_page_says_what_the_results_say() -> None:
    write = script("write_performance")
    assert write.PAGE.read_text("utf-8") == write.page(write.read()), "run python scripts/write_performance.py"


def test_a_table_names_the_machine_that_its_figures_are_of() -> None:
    write = script("write_performance")
    told = {"versions": {"torch": "2", "python": "3"}, "machine": {"gpu": "NVIDIA H200", "cores": 1, "threads": 1}}
    assert "NVIDIA H200, 1 cores" in write.where(told)
    assert "NVIDIA" not in write.where({**told, "machine": {"gpu": None, "cpu": "EPYC", "cores": 1, "threads": 1}})
    assert "Never run there at all" in write.page([])


def test_every_kind_of_figures_has_a_place_on_the_page() -> None:
    """Figures of each kind, as the bench and the scripts write them."""
    write = script("write_performance")
    at = {"machine": {"cpu": "A CPU", "cores": 2, "threads": 2}, "versions": {"torch": "2", "python": "3"}}
    flags = ["--steps", "2", "--warmup", "1"]
    made = []
    for number, words in enumerate((flags, [*flags, "--rounds", "1", "--components", "norm", "--only", "none,rmsnorm"],
                                    ["--decode", "--tokens", "3", "--rounds", "1"])):  # fmt: skip
        tiny.call(bench, *tiny.overrides("position=rope"), *words, "--out", str(number))
        made.append(json.loads(Path(f"{number}/bench.json").read_text()))
    both, one = {"median": 2.0, "low": 1.9, "high": 2.1}, {"tokens_per_second": 5.0, "milliseconds_per_token": 200.0}
    figures = {"tokens_per_second": 9.0, "loss": 1.9, "seconds_to_loss": 60.0, "seconds": 61.0, "peak": 10**9}
    recipe = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "steps": 2000}
    sides = ("nanogpt", "gptlab")
    made += [
        {**at, "kind": "against", "recipe": recipe, "caches": "new", "rounds": {side: [figures] for side in sides},
         "ratio": dict.fromkeys(figures, both)},
        {**at, "kind": "startup", "rounds": {"gptlab eager": [{"seconds": 5.0}]}},
        {**at, "kind": "memory", "recipe": recipe, "logits": 10**8, "rounds": {"nanogpt fp32": [{"peak": 10**9}]},
         "ratio": {"nanogpt fp32 / nanogpt fp32": both}},
        {**at, "kind": "against_decode", "sizes": {**recipe, "vocab_size": 65}, "precision": "fp32", "tokens": 200,
         "rounds": {side: [one] for side in sides}, "ratio": {"gptlab / nanogpt": both}},
        {**at, "kind": "gpu_variants", "what": "one step", "how": "By events.", "commit": "the first",
         "variants": [{"name": "plain", "seconds": 0.1, "tokens_per_second": 5e5, "mfu": 0.4, "memory": 10**9}]},
    ]  # fmt: skip
    page = write.page(made)
    assert {write.kind_of(result) for result in made} == set(write.SECTIONS) - {"plugging"}
    assert page.count("Not measured yet") == 1
    assert "2.00 (1.90 to 2.10)" in page


def test_nanogpt_gets_the_text_as_its_own_script_would_split_it(tmp_path: Path) -> None:
    against = script("bench_against")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "train.py").write_text("")
    options = against.argparse.Namespace(nanogpt=checkout, overrides=[], device="cpu")
    made = against.Bench(options, tmp_path / "work")
    made.write_text("abcabcabca" * 10, own_vocabulary=True)
    place = made.theirs / "data" / "shakespeare_char"
    held = [against.np.fromfile(place / f"{split}.bin", dtype=against.np.uint16) for split in ("train", "val")]
    assert [len(tokens) for tokens in held] == [90, 10]
    assert held[0][:4].tolist() == [0, 1, 2, 0]
    assert [path.name for path in checkout.iterdir()] == ["train.py"], "the checkout is as it was"


def test_ratios_are_of_the_same_round() -> None:
    ratio = script("bench_against").ratios([{"x": 2.0}, {"x": 30.0}], [{"x": 1.0}, {"x": 10.0}], "x")
    assert ratio == {"median": 2.5, "low": 2.0, "high": 3.0}


def test_a_bench_raises_what_a_training_would() -> None:
    with pytest.raises(ConfigError):
        request.read(["--warmup", "0"])
