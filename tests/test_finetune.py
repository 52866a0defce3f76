"""Runs that begin with weights: what they bring, what may be named beside them, and when tuning ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gptlab import pretrained, rundir
from gptlab.errors import CheckpointError, DataError
from gptlab.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from gptlab.weights import tokenizers, vocabulary

SETTINGS = [
    "experiment=finetune", "data=text", "data.path=text.txt", "logger=none",
    "trainer.device=cpu", "trainer.precision=fp32", "trainer.steps=3", "trainer.batch_size=2", "trainer.accumulate=1",
    "trainer.eval_every=2", "trainer.sample_tokens=4",
]  # fmt: skip
STILL = "optimizer.lr=1e-30"  # the weights of such a run are those that it began with
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 300}


def bpe() -> Tokenizer:
    tokenizer = BPETokenizer(vocab_size=300)
    tokenizer.fit(lambda: iter([Path("text.txt").read_text()]))
    return tokenizer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with a text of all ASCII letters, to learn at least 300 byte pairs from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gptlab.report.draw_curve", lambda run_dir, ruler: run_dir)
    text = tiny.write_text(tmp_path)
    text.write_text(text.read_text() + text.read_text().upper())
    return tmp_path


@pytest.fixture
def gpt2(home: Path) -> GPT2LMHeadModel:
    """A GPT-2 in `hf` that transformers wrote, every parameter perturbed, and a tokenizer beside it."""
    torch.manual_seed(0)
    tokenizer = bpe()
    model = GPT2LMHeadModel(GPT2Config(**{**SIZES, "vocab_size": tokenizer.vocab_size}, resid_pdrop=0.0)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(home / "hf")
    tokenizers.save(tokenizer, home / "hf")
    return model


def tune(*words: str, init: str | None = "hf") -> tiny.Ended:
    given = {word.partition("=")[0] for word in words}
    settings = [word for word in SETTINGS if word.partition("=")[0] not in given]
    return tiny.call(tiny.train, *settings, *([f"init={init}"] if init else []), "run_dir=r", *words)


def tuned(*words: str, **how: Any) -> tiny.Ended:
    ended = tune(*words, **how)
    assert ended.code == 0, ended.err
    return ended


def test_a_run_begins_with_the_model_and_the_tokenizer_of_the_weights(gpt2: GPT2LMHeadModel) -> None:
    ended = tuned(STILL)
    assert "tensors from" in ended.out
    assert "init    new" not in ended.out
    model, tokenizer = rundir.load("r")
    assert (model.config.n_layer, model.config.block_size, model.config.norm["eps"]) == (2, 24, 1e-5)
    text = "the cat sat on a mat"
    assert tokenizer.encode(text) == bpe().encode(text)
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        assert (model(ids) - gpt2(ids).logits).abs().max() < 1e-5


def test_tuning_lowers_the_loss(gpt2: GPT2LMHeadModel) -> None:
    tuned("optimizer.lr=1e-2", "trainer.steps=20", "trainer.eval_every=5")
    losses = [row["val/loss"] for row in tiny.rows("r") if "val/loss" in row]
    assert losses[-1] < losses[0] - 0.1


def test_what_is_named_is_a_change_and_nothing_else_is(gpt2: GPT2LMHeadModel) -> None:
    tuned("model.dropout=0.25", "model.attention.window=7", "model/norm=layernorm", "model.norm.eps=1e-3")
    config = rundir.read_config(Path("r")).model
    assert (config.dropout, config.attention["window"], config.norm["eps"]) == (0.25, 7, 1e-3)
    assert (config.n_layer, config.n_embd, config.mlp["activation"]) == (2, 16, "gelu_tanh")


def test_a_shorter_context_takes_the_first_positions(gpt2: GPT2LMHeadModel) -> None:
    tuned(STILL, "model.block_size=9")
    model, _ = rundir.load("r")
    assert torch.equal(model.position.table.weight, gpt2.transformer.wpe.weight[:9])


def test_a_part_is_swapped_and_what_is_new_or_left_is_said(gpt2: GPT2LMHeadModel) -> None:
    ended = tuned(STILL, "position=rope", "model.block_size=40", "model/mlp=swiglu")
    assert "new, drawn from the seed: blocks.*.mlp.gate.weight" in ended.out
    assert "not used: position.table.weight, blocks.*.mlp.up.weight" in ended.out
    model, _ = rundir.load("r")
    assert model.config.mlp["expand"] == pytest.approx(8 / 3)
    assert torch.equal(model.token_embedding.weight, gpt2.transformer.wte.weight)
    attention = gpt2.transformer.h[1].attn.c_attn.weight
    assert torch.equal(model.blocks[1].attention.k.weight, attention[:, 16:32].T)


def test_another_kernel_keeps_the_options_of_the_weights(home: Path) -> None:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 48}
    tokenizer = bpe()
    vocab = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 16}
    LlamaForCausalLM(LlamaConfig(**sizes, **vocab, num_key_value_heads=2)).save_pretrained("hf")
    tokenizers.save(tokenizer, Path("hf"))
    ended = tuned("model/attention=vanilla")
    assert "init    new" not in ended.out
    assert rundir.read_config(Path("r")).model.attention["n_kv_head"] == 2
    shutil.rmtree("r")
    tuned("model/attention=sliding")  # a preset: what it sets is named
    attention = rundir.read_config(Path("r")).model.attention
    assert (attention["n_kv_head"], attention["window"]) == (2, 64)


def test_another_kernel_of_a_run_keeps_its_options_too(home: Path) -> None:
    assert tiny.run("run_dir=first", "model/attention=softmax", "model.attention.n_kv_head=1").code == 0
    ended = tuned(STILL, "model/attention=vanilla", init="first")
    assert "init    new" not in ended.out
    attention = rundir.read_config(Path("r")).model.attention
    assert (attention["name"], attention["n_kv_head"]) == ("vanilla", 1)


def test_options_are_those_of_the_variants_that_the_weights_have(gpt2: GPT2LMHeadModel) -> None:
    assert "position 'learned' has no option 'theta'" in tune("position.theta=5").err


def test_an_experiment_names_too(gpt2: GPT2LMHeadModel) -> None:
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /position: none\n"
        "init: hf\nmodel:\n  block_size: 8\n  attention:\n    window: 5\n"
    )
    tuned("experiment=mine", f"--config-dir={Path('conf').absolute()}", init=None)
    config = rundir.read_config(Path("r")).model
    assert (config.block_size, config.attention["window"], config.position["name"]) == (8, 5, "none")
    assert config.n_embd == 16


def test_each_point_of_a_sweep_begins_with_the_weights(gpt2: GPT2LMHeadModel) -> None:
    words = [word for word in SETTINGS if not word.startswith("run_dir")]
    ended = tiny.call(tiny.train, "-m", *words, "init=hf", "run_dir=s", "model.block_size=8,16")
    assert ended.code == 0, ended.err
    sizes = [rundir.read_config(path.parent).model.block_size for path in sorted(Path("s").glob("*/config.yaml"))]
    assert sorted(sizes) == [8, 16]


def test_a_head_that_is_no_longer_tied_begins_as_the_embedding(gpt2: GPT2LMHeadModel) -> None:
    ended = tuned(STILL, "model.tie_weights=false")
    assert "init    new" not in ended.out
    model, _ = rundir.load("r")
    assert model.head.weight is not model.token_embedding.weight
    assert torch.equal(model.head.weight, gpt2.transformer.wte.weight)


def test_the_plugins_of_a_run_come_with_it(home: Path) -> None:
    (home / "blend.py").write_text(
        "import torch.nn as nn\nfrom gptlab import register\n\n\n@register('mlp', 'blend')\nclass Blend(nn.Module):\n"
        "    def __init__(self, shape, *, share: float = 0.5):\n        super().__init__()\n"
        "        self.share, self.up = share, nn.Linear(shape.n_embd, shape.n_embd)\n\n"
        "    def forward(self, x):\n        return self.share * self.up(x)\n"
    )
    assert tiny.run("run_dir=first", "plugins=[./blend.py]", "model/mlp=blend").code == 0
    words = [*SETTINGS, STILL, "init=first", "run_dir=r", "model.mlp.share=0.25"]  # where nothing has loaded them yet
    ended = tiny.finish(tiny.spawn("-m", "gptlab.train", *words, cwd=home))
    assert ended.code == 0, ended.err
    config = rundir.read_config(Path("r"))
    assert config.model.mlp == {"name": "blend", "share": 0.25}
    assert [Path(plugin).name for plugin in config.plugins] == ["blend.py"]


@pytest.mark.parametrize(
    "words, line",
    [
        ("model=tiny", "brings a model, so model=... cannot choose another"),
        ("model.n_embd=32", "model.n_embd is 16 in hf and cannot become 32"),
        ("model.n_head=4", "model.n_head is 2 in hf and cannot become 4"),
        ("model.block_size=25", "has learned 24 positions, so model.block_size=25 is too long"),
        ("tokenizer=byte", "was trained with tokenizer=bpe, and its ids mean nothing in another"),
        ("lora.rank=2 lora.on=[w]", "lora.on: there is nothing named 'w' to tune"),
        ("lora.rnak=2", "Did you mean 'lora.rank'"),
        ("trainer.patience=1 trainer.eval_every=0", "trainer.eval_every is 0: set it too"),
        ("init=nowhere", "'nowhere' is none of these"),
        ("model.attention.widnow=3", "Did you mean 'window'"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_directory(words: str, line: str, gpt2: GPT2LMHeadModel) -> None:
    ended = tune(*words.split())
    assert ended.code == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("r").exists()


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda tensors: tensors.update({"transformer.ln_f.bias": torch.zeros(3)}), "must have the shape [16]"),
        (lambda tensors: tensors.pop("transformer.h.1.ln_1.bias"), "lacks transformer.h.1.ln_1.bias"),
        (lambda tensors: tensors.update({name: x.to(torch.int8) for name, x in tensors.items()}), "no plain numbers"),
        (lambda tensors: tensors.update(score=torch.zeros(2)), "holds also score"),
    ],
)
def test_weights_that_are_not_whole_are_one_line_before_the_text_is_read(
    change: Callable[[dict[str, torch.Tensor]], None], line: str, gpt2: GPT2LMHeadModel
) -> None:
    tensors = load_file("hf/model.safetensors")
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, "hf/model.safetensors")
    Path("text.txt").unlink()
    ended = tune()
    assert ended.code == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("r").exists()


def test_weights_that_break_while_they_are_read_are_one_line_too(
    gpt2: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(model: object, init: str, note: object) -> None:
        raise CheckpointError(f"{init} cannot be read")

    monkeypatch.setattr(pretrained, "fill", damaged)
    assert tune().code == 2


def test_weights_without_a_tokenizer_ask_for_one_of_as_many_ids(gpt2: GPT2LMHeadModel) -> None:
    Path("hf/tokenizer.json").unlink()
    assert "brings no tokenizer that gptlab has: name one" in tune().err
    assert "tokenizer=byte has 256" in tune("tokenizer=byte").err
    assert "tokenizer=char has those of the new text" in tune("tokenizer=char").err


def test_a_vocabulary_that_was_rounded_up_fits(home: Path) -> None:
    for size in (256, 512):
        GPT2LMHeadModel(GPT2Config(**{**SIZES, "vocab_size": size})).save_pretrained("hf")
        shutil.rmtree("r", ignore_errors=True)
        tuned("tokenizer=byte")
        assert rundir.read_config(Path("r")).model.vocab_size == size


def test_a_run_of_ours_is_gone_on_with_on_another_text(home: Path) -> None:
    assert tiny.run("run_dir=first").code == 0
    Path("other.txt").write_text("on a mat the cat sat and ran\n" * 60)
    tuned(STILL, "data.path=other.txt", init="first")
    (before, old), (after, new) = rundir.load("first"), rundir.load("r")
    assert new.state() == old.state()
    assert all(torch.equal(tensor, after.tensors()[name]) for name, tensor in before.tensors().items())
    shutil.rmtree("r")
    assert "was trained with tokenizer=char" in tune("tokenizer=byte", init="first").err
    Path("other.txt").write_text("ß" * 900)
    assert "'ß'" in tune("data.path=other.txt", init="first").err


def test_a_shorter_context_takes_the_first_positions_of_a_run_too(home: Path) -> None:
    assert tiny.run("run_dir=first", "position=learned").code == 0
    tuned(STILL, "model.block_size=5", init="first")
    tables = [rundir.load(name)[0].position.table.weight for name in ("first", "r")]
    assert torch.equal(tables[0][:5], tables[1])


def test_adapters_are_saved_with_their_weights_and_merged_when_opened(gpt2: GPT2LMHeadModel) -> None:
    tuned("lora.rank=2", "lora.on=[q,mlp.proj]", "lora.alpha=4", "optimizer.lr=0.1")
    shutil.rmtree("hf")
    saved = tiny.newest("r").tensors
    assert all("lora_" in name for name in saved["optimizer"])
    model, _ = rundir.load("r")
    key = "blocks.1.mlp.proj"
    a, b = (saved["model"][f"{key}.lora_{x}"] for x in "ab")
    assert torch.allclose(model.blocks[1].mlp.proj.weight, saved["model"][f"{key}.weight"] + 4 / 2 * b @ a)
    assert torch.equal(saved["model"][f"{key}.weight"], gpt2.transformer.h[1].mlp.c_proj.weight.T)
    assert b.abs().max() > 1e-3
    told = tiny.summary("r")
    assert told["trained_parameters"] == 2 * 2 * (16 + 16 + 64 + 16)
    assert told["flops_per_token"] is None
    again = tune(STILL, "run_dir=again", init="r")
    assert again.code == 0, again.err
    assert torch.equal(rundir.load("again")[0].blocks[1].mlp.proj.weight, model.blocks[1].mlp.proj.weight)


def test_a_tuning_that_was_stopped_goes_on_without_its_weights(gpt2: GPT2LMHeadModel) -> None:
    words = ["lora.rank=2", "lora.train=[norm]", "trainer.save_every=2", "optimizer.lr=0.01", "schedule=constant"]
    tuned(*words, "trainer.steps=6", "run_dir=whole")
    tuned(*words, "trainer.steps=4", "run_dir=part")
    shutil.rmtree("hf")
    Path("hf").mkdir()
    ended = tiny.call(tiny.train, "resume=part", "trainer.steps=6")
    assert ended.code == 0, ended.err
    one, other = tiny.newest("whole").tensors["model"], tiny.newest("part").tensors["model"]
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def diverge(patience: int = 2) -> tiny.Ended:
    """A tuning whose validation loss only rises after its first steps."""
    rising = ("optimizer.lr=1.0", "schedule=constant", "schedule.warmup=3", "trainer.eval_every=1", "trainer.clip=0")
    return tuned("trainer.steps=40", f"trainer.patience={patience}", *rising)


def test_training_stops_when_validation_becomes_no_better_and_the_best_is_kept(gpt2: GPT2LMHeadModel) -> None:
    ended = diverge()
    told = tiny.summary("r")
    losses = {row["step"]: row["val/loss"] for row in tiny.rows("r") if "val/loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert told["stopped_early"] is True
    assert told["status"] == "done"
    assert told["step"] == max(losses) < 40
    assert (told["best_step"], told["best_val_loss"]) == (best, losses[best])
    assert told["step"] - best == 2
    assert f"better than that of step {best}" in ended.out
    kept = tiny.newest("r/best")
    assert kept.step == best
    model, _ = rundir.load("r")
    assert torch.equal(model.token_embedding.weight, kept.tensors["model"]["token_embedding.weight"])
    assert tiny.newest("r").step == told["step"]


def test_what_stopped_early_goes_on_with_more_patience(gpt2: GPT2LMHeadModel) -> None:
    diverge()
    stopped = tiny.summary("r")["step"]
    ended = tiny.call(tiny.train, "resume=r")
    assert ended.code == 2
    assert "To go on, raise trainer.patience" in ended.err
    assert tiny.call(tiny.train, "resume=r", "trainer.patience=3").code == 0
    assert tiny.summary("r")["step"] > stopped


def test_what_was_waited_for_is_remembered_when_tuning_goes_on(gpt2: GPT2LMHeadModel) -> None:
    diverge()
    whole = tiny.summary("r")
    shutil.rmtree("r")
    diverge(patience=1)
    assert tiny.summary("r")["step"] < whole["step"]
    assert tiny.call(tiny.train, "resume=r", "trainer.patience=2").code == 0
    found = tiny.summary("r")
    assert [found[key] for key in ("step", "best_step", "best_val_loss", "stopped_early")] == [
        whole[key] for key in ("step", "best_step", "best_val_loss", "stopped_early")
    ]
    assert tiny.newest("r/best").step == whole["best_step"]


def test_a_best_checkpoint_that_is_damaged_gives_way_to_the_newest(gpt2: GPT2LMHeadModel) -> None:
    diverge()
    (file,) = Path("r/best").rglob("model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    notes: list[str] = []
    model, _ = rundir.load("r", note=notes.append)
    assert "Taking the newest checkpoint" in notes[0]
    newest = tiny.newest("r").tensors["model"]
    assert torch.equal(model.token_embedding.weight, newest["token_embedding.weight"])


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_the_tokenizer_beside_weights_is_found_again(kind: str, home: Path) -> None:
    characters = CharTokenizer()
    characters.fit(lambda: iter(["héllo wörld \n\t~"]))
    tokenizer = {"byte": ByteTokenizer(), "char": characters, "bpe": bpe()}[kind]
    tokenizers.save(tokenizer, home)
    found = vocabulary.read(home)
    assert found is not None
    assert found.state() == tokenizer.state()


def test_the_tokenizer_of_gpt2_is_known_by_its_tokens(home: Path) -> None:
    try:
        tokens = GPT2Tokenizer().state()["learned"]
    except DataError as error:
        pytest.skip(str(error))
    tokenizers.save(GPT2Tokenizer(), home)
    found = vocabulary.read(home)
    assert isinstance(found, GPT2Tokenizer)
    assert found.learned == tokens


def test_a_vocabulary_of_as_many_ids_is_gpt2s_only_with_its_tokens(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [*tokenizers.WRITTEN.values(), *(f"word{i}" for i in range(50_000)), "<|endoftext|>"]
    GPT2LMHeadModel(GPT2Config(**{**SIZES, "vocab_size": 50257})).save_pretrained("hf")
    assert isinstance(pretrained.find("hf").tokenizer(), GPT2Tokenizer)
    Path("hf/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    assert pretrained.find("hf").tokenizer() is None
    learned = ["".join(vocabulary.BYTES.get(letter, letter) for letter in token) for token in tokens[:-1]]
    monkeypatch.setattr(vocabulary, "GPT2", vocabulary.digest(learned))
    found = pretrained.find("hf").tokenizer()
    assert isinstance(found, GPT2Tokenizer)
    assert found.learned == learned


def test_a_tokenizer_that_ours_cannot_be_is_none_of_ours(home: Path) -> None:
    tokenizers.save(bpe(), home)
    path = home / "tokenizer.json"
    whole = json.loads(path.read_text())
    assert vocabulary.read(home) is not None
    turned = list(reversed(whole["model"]["merges"]))
    for change in (
        {"pre_tokenizer": {**whole["pre_tokenizer"], "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "NFC"}},
        {"model": {**whole["model"], "merges": turned}},
        {"added_tokens": [*whole["added_tokens"], {"id": 999, "content": "<pad>"}]},
    ):
        path.write_text(json.dumps({**whole, **change}))
        assert vocabulary.read(home) is None, change
    path.write_text("{")
    assert vocabulary.read(home) is None
