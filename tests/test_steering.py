"""Steering: directions by their formulas, doses by hand, a model that steers and controls that do not, and the page."""

from __future__ import annotations

import importlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from torch import Tensor

from gptlab import GPT, ModelConfig, activations, plugins, report, rundir
from gptlab import steer as door
from gptlab.errors import ConfigError, DataError
from gptlab.sampling import Draw, generate
from gptlab.steering import effect
from gptlab.steering.direction import Direction, added, combine, point, projected_out, random_like
from gptlab.steering.effect import Held, doses, log_likelihoods, measure
from gptlab.steering.finding import RULES, Stream, first_component, look, mean_difference
from gptlab.steering.passages import Passages, batches, cut, halves, read
from gptlab.tokenizer import ByteTokenizer

DOSE = 0.5


def model_of(**settings: Any) -> GPT:
    """A model whose parameters are all random: zeros and ones would hide faults."""
    shape = {"vocab_size": 11, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 16, "position": "rope"}
    model = GPT(ModelConfig(**{**shape, **settings})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
    return model


def passages_of(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(11, (length,), generator=generator) for length in lengths]


def streams_by_hand(model: GPT, tokens: Tensor, shifts: dict[int, Tensor] | None = None) -> tuple[list[Tensor], Tensor]:
    """The residual stream after each layer of a prenorm model, and the logits, with something added after layers."""
    context = model.place(tokens)
    x, after = model.token_embedding(tokens), []
    for layer, block in enumerate(model.blocks):
        x = block(x, context) + (shifts or {}).get(layer, torch.zeros(()))
        after.append(x)
    return after, model.logits(model.norm(x))


# Passages


def test_a_passage_is_a_whole_window_or_a_shorter_document() -> None:
    ids = torch.arange(11).numpy()
    assert [p.tolist() for p in cut(ids, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [p.tolist() for p in cut(ids[:3], 4)] == [[0, 1, 2]]
    assert [len(p) for p in cut(ids[:8], 4)] == [4, 4]
    assert cut(ids[:1], 4) == cut(ids[:0], 4) == []


def test_a_passage_never_goes_over_a_border_of_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdef\nx\nuvw\n\nabcd")
    by_line = read(ByteTokenizer(), str(tmp_path / "a.txt"), 4, lines=True)
    assert [bytes(p.tolist()).decode() for p in by_line] == ["abcd", "uvw", "abcd"]
    (tmp_path / "b.jsonl").write_text('{"text": "abcde"}\n{"text": "xyz"}\n')
    assert [bytes(p.tolist()).decode() for p in read(ByteTokenizer(), str(tmp_path / "b.jsonl"), 3)] == ["abc", "xyz"]


def test_what_finds_and_what_is_held_out_are_halves_of_each_text(tmp_path: Path) -> None:
    for name, n in (("a", 90), ("b", 41)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i:03d}" for i in range(n)))
    paths = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    texts = halves(ByteTokenizer(), *paths, window=4, at_most=1000, lines=False)
    words = [[bytes(p.tolist()).decode() for p in part] for half in texts for part in (half.positive, half.negative)]
    assert [len(part) for part in words] == [20] * 4
    found_a, found_b, held_a, held_b = words
    assert max(found_a) < min(held_a)
    assert max(found_b) < min(held_b)
    assert (found_a[0], held_a[-1], held_b[-1]) == ("a000", "a089", "b040"), "evenly, from end to end"
    few = halves(ByteTokenizer(), *paths, window=4, at_most=11, lines=False)
    assert [len(part) for half in few for part in (half.positive, half.negative)] == [4] * 4
    with pytest.raises(ConfigError, match=r"needs 8 passages of each text, but .*a\.txt has 3 of 100 tokens"):
        halves(ByteTokenizer(), *paths, window=100, at_most=128, lines=False)


def test_batches_are_filled_up_on_the_right() -> None:
    (tokens, targets), (last, _) = batches(passages_of([4, 2, 3]), 2)
    assert tokens.shape == (2, 3)
    assert targets[1].tolist()[1:] == [-100, -100]
    assert last.shape == (1, 2)


# Directions


def test_rules_are_their_formulas(float64: None) -> None:
    positive, negative = torch.randn(12, 5) + torch.arange(5), torch.randn(12, 5)
    by_hand = sum((p - n for p, n in zip(positive, negative, strict=True)), torch.zeros(5)) / 12
    assert torch.allclose(mean_difference(positive, negative), by_hand)
    moments = sum((torch.outer(p - n, p - n) for p, n in zip(positive, negative, strict=True)), torch.zeros(5, 5))
    leading = torch.linalg.eigh(moments).eigenvectors[:, -1]
    for way in (1, -1):
        found = first_component(way * positive, way * negative)
        assert torch.allclose(found / found.norm(), way * leading * torch.sign(leading @ by_hand))


def test_the_stream_is_looked_at_passage_by_passage() -> None:
    model = model_of().double()
    texts = Passages(passages_of([5, 9, 2, 16]), passages_of([7, 3, 3, 8], seed=1))
    found = look(model, texts, [0, 2], batch=3)
    for layer in (0, 2):
        means: list[list[Tensor]] = []
        norms: list[Tensor] = []
        for part in (texts.positive, texts.negative):
            after = [streams_by_hand(model, p[None, :-1])[0][layer][0].detach() for p in part]
            means.append([x.mean(0) for x in after])
            norms += [token.norm() for x in after for token in x]
        assert torch.allclose(found[layer].positive, torch.stack(means[0]))
        assert torch.allclose(found[layer].negative, torch.stack(means[1]))
        assert found[layer].norm == pytest.approx(torch.stack(norms).mean().item())
    direction = found[2].direction(mean_difference)
    apart = found[2].positive.mean(0) - found[2].negative.mean(0)
    assert torch.allclose(direction.unit * apart.norm(), apart)
    assert (direction.layer, direction.norm) == (2, found[2].norm)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_shuffled_labels_keep_nothing_of_the_real_ones(rule: Any, float64: None) -> None:
    apart = torch.eye(6)[0]
    noise = 0.1 * torch.randn(2, 8, 6)
    noise[..., 0] = 0
    stream = Stream(1, noise[0] + 5 * apart, noise[1] - 5 * apart, 3.0)
    assert stream.direction(rule).unit @ apart > 0.99
    shuffles = [stream.shuffled(rule, seed) for seed in range(5)]
    for unit in shuffles:
        assert unit.norm().item() == pytest.approx(1)
        assert abs((unit @ apart).item()) < 1e-9
    assert not torch.allclose(shuffles[0], shuffles[1])
    assert torch.equal(shuffles[0], stream.shuffled(rule, 0))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_equal_texts_have_no_direction(rule: Any) -> None:
    rows = torch.randn(8, 4)
    with pytest.raises(DataError, match="Two texts must differ"):
        Stream(0, rows, rows.clone(), 1.0).direction(rule)


def test_directions_add_up_by_layer_norm_and_weight() -> None:
    a, b = torch.eye(4)[0], torch.eye(4)[1]
    vectors = combine([(Direction(a, 2.0, 0), 1.0), (Direction(b, 3.0, 0), -0.5), (Direction(b, 5.0, 2), 2.0)])
    assert vectors.keys() == {0, 2}
    assert torch.equal(vectors[0], torch.tensor([2.0, -1.5, 0, 0]))
    assert torch.equal(vectors[2], torch.tensor([0, 10.0, 0, 0]))
    anywhere = random_like(vectors, 3)
    assert [anywhere[layer].norm().item() for layer in (0, 2)] == pytest.approx([2.5, 10.0])
    assert torch.equal(anywhere[0], random_like(vectors, 3)[0])
    assert not torch.allclose(anywhere[0], random_like(vectors, 4)[0])
    assert abs(torch.cosine_similarity(anywhere[0], anywhere[2], dim=0).item()) < 0.999, "layers draw apart"


def test_a_dose_is_added_to_every_token_after_its_layer() -> None:
    model, tokens = model_of().double(), torch.stack(passages_of([9, 9]))
    shifts = {0: torch.randn(16).double(), 1: torch.randn(16).double()}
    with activations.edit(model, added(shifts, -0.7)):
        steered = model(tokens)
    _, by_hand = streams_by_hand(model, tokens, {layer: -0.7 * shift for layer, shift in shifts.items()})
    assert torch.allclose(steered, by_hand)
    assert not torch.allclose(steered, model(tokens)), "hooks are gone, and had an effect"
    x = torch.tensor([-0.0, 1.0])
    assert added({0: torch.ones(2)}, 0.0)[point(0)](x) is x, "-0.0 + 0.0 would be another bit"


def test_what_is_projected_out_is_gone_and_nothing_else() -> None:
    model, tokens = model_of().double(), torch.stack(passages_of([9]))
    units = torch.nn.functional.normalize(torch.randn(2, 16).double(), dim=1)
    one, other, again = Direction(units[0], 1.0, 1), Direction(units[1], 9.0, 1), Direction(-units[0], 2.0, 1)
    with torch.no_grad():
        before = streams_by_hand(model, tokens)[0][1]
        with activations.edit(model, projected_out([one, other])), activations.record(model, ["blocks.2.in"]) as seen:
            model(tokens)
        after = projected_out([one, other])[point(1)](before)
        assert torch.allclose(seen["blocks.2.in"], after)
        assert (after @ units.T).abs().max() < 1e-9
        taken = before - after
        assert torch.allclose(taken @ torch.linalg.pinv(units) @ units, taken), "what is taken lies in their span"
        alone = projected_out([one])[point(1)](before)
        assert torch.allclose(alone, before - (before @ units[0])[..., None] * units[0])
        assert torch.allclose(projected_out([one, again])[point(1)](before), alone), "twice is once"


VARIANTS = [
    {},
    {"attention": "conv", "position": "none"},
    {"attention": "latent"},
    {"block": "parallel"},
    {"block": "hyper", "n_layer": 2},
    {"block": "unet", "n_layer": 2},
    {"document_mask": True, "separator": 0},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_dose_0_changes_no_bit_and_steered_text_is_the_same_with_a_cache(settings: dict[str, Any]) -> None:
    model = model_of(**settings)
    vectors = {0: 3 * torch.randn(16, generator=torch.Generator().manual_seed(2))}
    held = Held(model, Passages(passages_of([9] * 4), passages_of([9] * 4, seed=1)), batch=2)
    assert held.untouched(vectors)
    prompt = passages_of([5])[0].tolist()
    with activations.edit(model, added(vectors, 1.0)):
        drawn = [row[0] for row in generate(model, prompt, 6, draw=Draw(0))]
        whole = model(torch.tensor([prompt + drawn]))[0].argmax(-1).tolist()
    assert drawn == whole[len(prompt) - 1 : -1]


def test_a_hook_that_changes_a_bit_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(model_of(), Passages(passages_of([9] * 4), passages_of([9] * 4, seed=1)), batch=2)
    monkeypatch.setattr(effect, "added", lambda vectors, dose: added(vectors, 1e-6))
    assert not held.untouched({0: torch.ones(16)})


def test_the_attention_of_a_plugin_is_steered_with_no_code_of_its_own(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
    (tmp_path / "mixer.py").write_text(re.search(r"```python\n(.*?@register.*?)```", readme, re.DOTALL)[1])
    plugins.load([str(tmp_path / "mixer.py")])
    model, tokens = model_of(attention="mixer", position="none").double(), torch.stack(passages_of([9]))
    shift = torch.randn(16).double()
    with activations.edit(model, added({1: shift}, 2.0)):
        steered = model(tokens)
    assert torch.allclose(steered, streams_by_hand(model, tokens, {1: 2 * shift})[1])


# Files


def test_a_direction_comes_back_from_its_file(tmp_path: Path) -> None:
    unit = torch.nn.functional.normalize(torch.randn(16).double(), dim=0)
    Direction(unit, 4.25, 1).save(tmp_path / "d.safetensors", {"method": "mean"})
    loaded = Direction.load(tmp_path / "d.safetensors")
    assert torch.equal(loaded.unit, unit)
    assert (loaded.norm, loaded.layer) == (4.25, 1)
    loaded.check(model_of(), "d")
    for odd in (model_of(n_embd=32), model_of(n_layer=1)):
        with pytest.raises(ConfigError, match="must fit the model"):
            loaded.check(odd, "d")


def test_another_file_is_no_direction(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    unit = {"unit": torch.ones(2), "norm": torch.ones(())}
    safetensors.torch.save_file(unit, tmp_path / "nowhere.safetensors")
    for name in ("text", "other", "nowhere", "missing"):
        with pytest.raises(DataError, match="that gptlab steer wrote"):
            Direction.load(tmp_path / f"{name}.safetensors")


# What is measured


def test_log_likelihoods_are_those_of_one_token_after_another() -> None:
    model, texts = model_of(), passages_of([5, 9, 2, 16])
    shift = torch.randn(16)
    found = log_likelihoods(model, texts, 3, added({1: shift}, 0.5))
    for passage, score in zip(texts, found, strict=True):
        with torch.no_grad():
            log_p = streams_by_hand(model, passage[None, :-1], {1: 0.5 * shift})[1][0].log_softmax(-1)
        each = [log_p[i, passage[i + 1]].item() for i in range(len(passage) - 1)]
        assert score.item() == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_an_outcome_says_which_texts_moved_which_way(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(torch.zeros(4).double(), torch.ones(4).double())])
    moved = tuple(torch.tensor(x, dtype=torch.float64) for x in ([0.3, 0.1, 0.2, -0.2], [0.9, 0.7, 1.4, 0.6]))
    monkeypatch.setattr(Held, "_score", lambda self, edits: next(scores, moved))
    held = Held(model_of(), Passages([], []), batch=1)
    right, wrong, none = (held.under({}, dose) for dose in (0.5, -0.5, 0.0))
    assert (right.positive, right.negative) == pytest.approx((0.1, -0.1))
    assert (right.effect, right.cost) == pytest.approx((0.2, 0.0), abs=1e-12)
    assert (right.wrong, wrong.wrong, none.wrong) == (1 / 4, 3 / 4, 0)
    assert right.error == pytest.approx(sum(x.var().item() / 4 for x in moved) ** 0.5)


def test_doses_double_outwards() -> None:
    assert doses(-2.0) == [-2, -1, -0.5, -0.25, -0.125, 0, 0.125, 0.25, 0.5, 1, 2]


# A model that knows two sorts of text, told apart by case


def write_sort(path: Path, seed: int, upper: bool, lines: int = 120) -> Path:
    draw = random.Random(seed)
    text = "".join(" ".join(draw.choices(tiny.WORDS, k=8)) + "\n" for _ in range(lines))
    path.write_text(text.upper() if upper else text)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a mixture of lower and upper case; upper.txt and lower.txt beside it are other texts of both sorts."""
    folder = tmp_path_factory.mktemp("steered")
    sorts = [write_sort(folder / f"{upper}.txt", upper, bool(upper), 400).read_text().splitlines() for upper in (0, 1)]
    pieces = ["\n".join(lines[i : i + 8]) for i in range(0, 400, 8) for lines in sorts]
    (folder / "both.txt").write_text("\n".join(pieces))
    for name in ("lower", "upper"):
        write_sort(folder / f"{name}.txt", 7, name == "upper")
    words = ["model.n_layer=2", "model.n_embd=32", "model.block_size=32", "model.dropout=0", "position=rope",
             "trainer.steps=300", "trainer.batch_size=16", "optimizer.lr=5e-3", "schedule.warmup=20"]  # fmt: skip
    quiet = ["trainer.eval_every=0", "trainer.save_every=300", "trainer.sample_every=0", "trainer.log_every=100"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
        ended = tiny.run(f"data.path={folder / 'both.txt'}", f"run_dir={folder / 'r'}", *words, *quiet)
        assert ended.code == 0, ended.err
    return folder / "r"


@pytest.mark.parametrize("method", RULES)
def test_a_direction_steers_and_controls_do_not(method: str, run: Path, record_property: Any) -> None:
    model, tokenizer = rundir.load(run)
    paths = str(run.with_name("upper.txt")), str(run.with_name("lower.txt"))
    texts = halves(tokenizer, *paths, window=32, at_most=64, lines=False)
    streams = look(model, texts[0], [0], batch=64)
    direction = streams[0].direction(RULES[method])
    passes: list[None] = []
    tick = {"tick": lambda: passes.append(None)}
    found = measure(model, texts[1], [(direction, 1.0)], streams, RULES[method], dose=DOSE, batch=64, **tick)
    assert len(passes) == effect.N_PASSES
    met = {criterion.name: criterion.met for criterion in found.criteria()}
    full, opposite, still = found.curve[-1], found.curve[0], found.curve[5]
    record_property("measured", f"steering, {method}: effect {full.effect:+.3f}, cost {full.cost:+.3f}; {met}")
    assert [name for name in met if name != "affordable" and not met[name]] == []
    assert full.effect > 2 * max(abs(one.effect) for one in (*found.random, *found.shuffled))
    assert full.wrong < 0.1
    assert opposite.effect < min(one.effect for one in (*found.random, *found.shuffled))
    assert (still.effect, still.cost, still.wrong) == (0, 0, 0)
    assert (opposite.dose, full.dose) == (-DOSE, DOSE)


def test_the_other_order_of_the_texts_is_the_other_sign(run: Path) -> None:
    model, tokenizer = rundir.load(run)
    paths = str(run.with_name("upper.txt")), str(run.with_name("lower.txt"))
    ways = []
    for order in (paths, paths[::-1]):
        texts = halves(tokenizer, *order, window=32, at_most=32, lines=False)
        ways.append(look(model, texts[0], [1], batch=16)[1].direction(mean_difference))
    assert torch.allclose(ways[0].unit, -ways[1].unit)
    assert ways[0].norm == pytest.approx(ways[1].norm)


# The door


def steer(run: Path, *flags: str, texts: bool = True) -> tiny.Ended:
    given = ["--positive", str(run.with_name("upper.txt")), "--negative", str(run.with_name("lower.txt"))]
    few = ["--tokens", "12", "--device", "cpu"]
    return tiny.call(door, str(run), *([*given, "--passages", "16"] if texts else []), *few, *flags)


def test_the_door_writes_a_table_a_text_and_a_page_that_needs_no_network(run: Path, tmp_path: Path) -> None:
    ended = steer(run, "--dose", "0.5", "--prompt", "the cat ", "--out", str(tmp_path / "page"))
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert "the cat " in ended.out
    assert ended.out.splitlines()[-1] == str(tmp_path / "page" / "index.html")
    found = json.loads((tmp_path / "page" / "steering.json").read_text())
    assert [one["dose"] for one in found["curve"]] == doses(0.5)
    assert [len(of) for of in found["controls"].values()] == [20, 20]
    assert found["criteria"].keys() == {"untouched", "rises", "random", "shuffled", "reverses", "affordable"}
    assert found["steers"] == all(found["criteria"].values())
    assert list(found["samples"]) == [*(f"{dose:g}" for dose in doses(0.5)), "projected out"]
    assert all(text.startswith("the cat ") for text in found["samples"].values())
    html = (tmp_path / "page" / "index.html").read_text()
    assert "http" not in html
    assert "<script" not in html
    for text in ("met</b>", "random", "shuffled", "projected out", "<svg", "the cat ", "gptlab steer"):
        assert text in html
    assert {path.name for path in (tmp_path / "page" / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("effect", "cost") for kind in ("svg", "png")
    }


def test_unsteered_text_is_that_of_gptlab_sample(run: Path, tmp_path: Path) -> None:
    from gptlab import sample

    steer(run, "--dose", "2", "--prompt", "the ", "--seed", "3", "--out", str(tmp_path))
    found = json.loads((tmp_path / "steering.json").read_text())
    plain = tiny.call(sample, str(run), "--prompt", "the ", "--seed", "3", "--tokens", "12", "--device", "cpu").out
    assert found["samples"]["0"] == plain.removesuffix("\n")
    assert len(set(found["samples"].values())) > 4


def test_what_is_found_is_kept_in_the_run_and_can_be_combined(run: Path, tmp_path: Path) -> None:
    ended = steer(run, "--layer", "-1", "--method", "pca")
    assert ended.code == 0, ended.err
    (kept,) = run.glob("steer/upper_lower_layer1_pca_*/direction.safetensors")
    assert Direction.load(kept).layer == 1
    assert steer(run).code == 0
    (other,) = run.glob("steer/upper_lower_layer0_mean_*/direction.safetensors")
    assert Direction.load(kept).run == str(run.resolve())
    both = steer(run, "--direction", f"{kept}:0.5", "--direction", f"{other}:-1", "--out", str(tmp_path / "both"))
    assert both.code == 0, both.err
    found = json.loads((tmp_path / "both" / "steering.json").read_text())
    assert [(one["weight"], one["layer"]) for one in found["directions"]] == [(0.5, 1), (-1.0, 0)]
    assert not (tmp_path / "both" / "direction.safetensors").exists()
    assert steer(run, "--window", "20").code == 0
    assert len(list(run.glob("steer/upper_lower_layer0_mean_*"))) == 2  # another question, another folder
    again = steer(run, "--direction", str(other), "--out", str(tmp_path / "again"))
    assert again.code == 0
    first = json.loads((other.parent / "steering.json").read_text())
    assert json.loads((tmp_path / "again" / "steering.json").read_text())["curve"] == first["curve"]


def test_a_direction_of_another_run_is_told_of(run: Path, tmp_path: Path) -> None:
    unit = torch.nn.functional.normalize(torch.ones(32), dim=0)
    Direction(unit, 3.0, 0).save(tmp_path / "d.safetensors", {"run": "/another/run"})
    words = ("--direction", str(tmp_path / "d.safetensors"))
    ended = steer(run, *words, "--out", str(tmp_path / "p"), texts=False)
    assert ended.code == 0
    assert "was found in /another/run: in another model it points anywhere" in ended.err
    many = [part for weight in range(1, 9) for part in (words[0], f"{words[1]}:{weight}")]
    assert steer(run, *many, texts=False).code == 0  # the folder's name stays short
    assert all(len(path.name) < 40 for path in (run / "steer").iterdir())


def test_a_saved_direction_writes_without_texts(run: Path, tmp_path: Path) -> None:
    Direction(torch.nn.functional.normalize(torch.ones(32), dim=0), 3.0, 0).save(tmp_path / "d.safetensors", {})
    ended = steer(run, "--direction", str(tmp_path / "d.safetensors"), "--out", str(tmp_path / "p"), texts=False)
    assert (ended.code, ended.err) == (0, "")
    assert "Nothing was measured" in (tmp_path / "p" / "index.html").read_text()
    assert "curve" not in json.loads((tmp_path / "p" / "steering.json").read_text())


REFUSED = {
    "--dose 0": "--dose must be a number other than 0",
    "--dose nan": "--dose must be a number other than 0",
    "--layer 2": "--layer must be -2 to 1 in this model, but is 2",
    "--method median": "see gptlab steer --help",
    "--window 1": "--window must be at least 2",
    "--passages 7": "--passages must be at least 8",
    "--batch 0": "--batch must be at least 1",
    "--tokens 0": "--tokens must be at least 1",
    "--temperature -1": "temperature must be 0 or more",
    "--window 4000": "needs 8 passages of each text",
    "--positive nowhere.txt": "nowhere.txt is not there",
    "--direction nowhere.safetensors": "that gptlab steer wrote, but nowhere.safetensors is none",
    "--direction x:0": "A direction of weight 0 changes nothing",
    "--direction x --layer 1": "--layer and --method are about finding a direction",
    "--prompt Ñ": "Character 'Ñ'",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_cannot_be_is_one_line(flags: str, run: Path) -> None:
    ended = steer(run, *flags.split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert REFUSED[flags] in ended.err


def test_texts_that_are_missing_or_the_same_are_one_line(run: Path) -> None:
    for flags, told in (
        ([], "give --positive and --negative, or --direction"),
        (["--positive", str(run.with_name("upper.txt"))], "go together"),
        (["--direction", "x", "--lines"], "--lines, --window and --passages are about --positive and --negative"),
        (["--direction", "x", "--window", "3"], "leave them out, or give texts"),
        ([f"--{sign}={run.with_name('upper.txt')}" for sign in ("positive", "negative")], "Two texts must differ"),
    ):
        ended = steer(run, *flags, texts=False)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
        assert told in ended.err


# The study

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "steer_study.py"


def study() -> Any:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        return importlib.import_module("steer_study")


def test_no_letter_that_is_held_out_is_in_the_mixture_and_all_others_are(tmp_path: Path) -> None:
    n, n_held = 5 * 2000 + 700, 1070  # the last piece that is learnt is no whole one
    texts = {name: "".join(chr(first + i) for i in range(n)) for name, first in (("one", 0x4E00), ("two", 0x8000))}
    learned = study().prepare(texts, tmp_path)
    mixture = (tmp_path / "mixture.txt").read_text("utf-8")
    for name, text in texts.items():
        held = (tmp_path / f"{name}.txt").read_text("utf-8")
        assert held == text[-n_held:]
        assert learned[name] + held == text
        assert not set(held) & set(mixture)
        assert set(learned[name]) <= set(mixture)


def test_a_folder_of_another_study_is_not_taken_for_this_one(tmp_path: Path) -> None:
    study().claim(tmp_path, {"settings": ["trainer.steps=3"]})
    study().claim(tmp_path, {"settings": ["trainer.steps=3"]})
    with pytest.raises(SystemExit, match="holds the runs of another study"):
        study().claim(tmp_path, {"settings": ["trainer.steps=4"]})
