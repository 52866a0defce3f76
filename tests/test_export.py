"""Exports: what transformers opens has our logits and continues as `gptlab sample` does; nothing is half written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_plugins import GOOD

from gptlab import GPT, ModelConfig, checkpoint, cli, export, lora, plugins, registry, rundir, sample, train, weights
from gptlab.config import LoraConfig, RunConfig, from_dict
from gptlab.sampling import Draw, generate
from gptlab.tokenizer import Tokenizer
from gptlab.weights import custom_code

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64}
RMSNORM, LAYERNORM = {"name": "rmsnorm", "eps": 1e-5}, {"name": "layernorm", "eps": 1e-5}
SWIGLU = {"name": "glu", "activation": "silu"}
GPT2 = {
    "bias": True, "tie_weights": True, "position": "learned", "norm": LAYERNORM,
    "mlp": {"name": "plain", "activation": "gelu_tanh"},
}  # fmt: skip
LLAMA = {"attention": {"name": "flash", "n_kv_head": 2}, "position": "rope", "norm": RMSNORM, "mlp": SWIGLU}
CLASSES = {"GPT2LMHeadModel": GPT2, "LlamaForCausalLM": LLAMA}
CUSTOM: dict[str, dict[str, Any]] = {
    "slopes, which are constants": {"position": "alibi", "norm": "dyt", "tie_weights": True},
    "a table that layers share": {"position": "t5", "attention": {"name": "softmax", "qk_norm": "l2"}},
    "layers of several kinds": {"layers": [{"at": "0", "position": "none", "attention": {"name": "retention"}}]},
    "states and experts": {"attention": "gated_delta", "position": "none", "mlp": "moe"},
    "streams, and learned positions": {"block": "hyper", "position": "learned", "embedding_norm": "layernorm"},
    "documents apart": {"document_mask": True, "separator": 1},
}
TEXT = " ".join(tiny.WORDS) + "\n"


@pytest.fixture(scope="session", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No hub, and custom code is copied to a folder of this session. transformers reads both when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


def perturbed(config: dict[str, Any], adapters: LoraConfig | None = None) -> GPT:
    """A model whose every parameter is far from its initial value."""
    model = GPT(ModelConfig(**{**SIZES, **config}))
    if adapters and adapters.rank:
        lora.adapt(model, adapters)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw))
    return model.eval()


def fitted(name: str = "char") -> Tokenizer:
    tokenizer: Tokenizer = registry.build("tokenizer", {"name": name, **({"vocab_size": 300} if name == "bpe" else {})})
    tokenizer.fit(lambda: iter([TEXT * 9]))
    return tokenizer


def keep_run(path: Path, config: dict[str, Any], tokenizer: Tokenizer, **settings: Any) -> GPT:
    """A run directory as a training leaves it, of a model that nobody trained."""
    kept = RunConfig(tokenizer=tokenizer.name, **settings)
    model = perturbed({**config, "vocab_size": tokenizer.vocab_size}, kept.lora)
    kept.model = model.config
    rundir.write(path, kept, tokenizer, {})
    checkpoint.save(path, 1, {"model": model.tensors()}, {}, keep=1)
    return model


def opened(path: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    return model.eval(), {key: value for key, value in told.items() if value}


def exported(run: Path, *flags: str) -> Path:
    ended = tiny.call(export, str(run), "--to", "hf", str(run / "out"), *flags)
    assert ended.code == 0, ended.err
    return run / "out"


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_a_known_class_needs_no_code_of_ours(name: str, tmp_path: Path) -> None:
    model = keep_run(tmp_path, CLASSES[name], fitted())
    path = exported(tmp_path)
    theirs, odd = opened(path)
    tokens = torch.randint(model.config.vocab_size or 0, (2, 40))
    assert (type(theirs).__name__, odd, list(path.glob("*.py"))) == (name, {}, [])
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-4, rtol=1e-5)


def test_what_train_trains_by_default_has_a_class() -> None:
    config = from_dict(cli.compose([])).model
    config.vocab_size = 256
    assert weights.hf_config(config)["architectures"] == ["ArceeForCausalLM"]


@pytest.mark.parametrize("name", CLASSES)
def test_what_was_exported_opens_again_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = keep_run(tmp_path, CLASSES[name], fitted())
    again = weights.load(exported(tmp_path)).tensors()
    assert again.keys() == model.tensors().keys()
    for key, tensor in model.tensors().items():
        assert torch.equal(again[key], tensor), key


@torch.no_grad()
def test_adapters_are_merged(tmp_path: Path) -> None:
    adapters = LoraConfig(rank=4)
    keep_run(tmp_path, LLAMA, fitted(), init="its weights", lora=adapters)
    model, _ = rundir.load(tmp_path)
    plain = perturbed({**LLAMA, "vocab_size": fitted().vocab_size})
    theirs, odd = opened(exported(tmp_path))
    tokens = torch.randint(model.config.vocab_size or 0, (2, 20))
    assert odd == {}
    assert not torch.allclose(theirs(tokens).logits, plain(tokens), atol=1e-2)
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", CUSTOM)
@torch.no_grad()
def test_custom_code_has_equal_logits_and_generates_with_its_own_cache(name: str, tmp_path: Path) -> None:
    model = keep_run(tmp_path, CUSTOM[name], fitted())
    theirs, odd = opened(exported(tmp_path, "--custom-code"), trust_remote_code=True)
    tokens = torch.randint(model.config.vocab_size or 0, (2, 9))
    logits = theirs(tokens).logits
    assert odd == {}
    assert sum(p.numel() for p in theirs.parameters()) == model.n_parameters()
    torch.testing.assert_close(logits, model(tokens), atol=1e-5, rtol=1e-5)
    n = 70 if model.position.limit is None else 50  # past block_size, where there is no end
    greedy = Draw(temperature=0)
    wanted = [[token for (token,) in generate(model, row, n, draw=greedy)] for row in tokens.tolist()]
    options = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "eos_token_id": None}
    assert theirs.generate(tokens, max_new_tokens=n, **options)[:, 9:].tolist() == wanted


@torch.no_grad()
def test_custom_code_refuses_padding_and_counts_a_loss(tmp_path: Path) -> None:
    model = keep_run(tmp_path, {"position": "alibi"}, fitted())
    theirs, _ = opened(exported(tmp_path, "--custom-code"), trust_remote_code=True)
    tokens = torch.randint(model.config.vocab_size or 0, (2, 9))
    total, _, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(theirs(tokens, labels=tokens).loss, total / 16)
    assert theirs(tokens, logits_to_keep=1).logits.shape[1] == 1
    with pytest.raises(ValueError, match="no padding"):
        theirs(tokens, attention_mask=torch.ones_like(tokens).tril())


def test_custom_code_stands_alone_plugin_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that cannot import gptlab, nor find the plugin's file."""
    (tmp_path / "mixer.py").write_text(GOOD)
    (plugin,) = plugins.load([str(tmp_path / "mixer.py")])
    model = keep_run(tmp_path / "run", {"attention": "tried_mixer"}, fitted(), plugins=[plugin])
    path = exported(tmp_path / "run", "--custom-code")
    (tmp_path / "mixer.py").unlink()
    tokens = list(range(9))
    code = (
        "import sys; sys.modules['gptlab'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(path)!r}, trust_remote_code=True)\n"
        "import torch; torch.set_printoptions(precision=8)\n"
        f"print(model(torch.tensor([{tokens}])).logits[0, -1].tolist())"
    )
    ended = tiny.finish(tiny.spawn("-c", code, cwd=tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules")))
    assert ended.code == 0, ended.err
    torch.testing.assert_close(torch.tensor(json.loads(ended.out)), model(torch.tensor([tokens]))[0, -1].detach())


def test_the_imports_of_a_plugin_are_turned_wherever_they_stand() -> None:
    text = (
        "'é'; import math; from gptlab import register, ModelConfig as Config; n = 1  # both\n"
        "def late():\n    from gptlab.errors import (\n        DataError,\n    )\n    return DataError\n"
        "if n: import gptlab.components.scale\n"
    )
    turned = custom_code._beside(text)
    assert turned == (
        "'é'; import math; from .gptlab_registry import register; from .gptlab_config import ModelConfig as Config; n"
        " = 1  # both\n"
        "def late():\n    from .gptlab_errors import DataError\n    return DataError\n"
        "if n: from .gptlab_components_scale import *\n"
    )


@pytest.mark.parametrize(
    ("config", "tokenizer", "flags"),
    [(GPT2, "bpe", []), (LLAMA, "char", []), (LLAMA, "byte", []), ({"position": "alibi"}, "bpe", ["--custom-code"])],
    ids=["gpt2-bpe", "llama-char", "llama-byte", "custom-bpe"],
)
def test_a_pipeline_continues_as_sample_does(
    config: dict[str, Any], tokenizer: str, flags: list[str], tmp_path: Path
) -> None:
    from transformers import pipeline

    keep_run(tmp_path, config, fitted(tokenizer))
    pipe = pipeline("text-generation", str(exported(tmp_path, *flags)), trust_remote_code=bool(flags))
    for prompt in ("the cat", "far away\n"):
        ours = tiny.call(sample, str(tmp_path), "--prompt", prompt, "--greedy", "--tokens", "40")
        theirs = pipe(prompt, max_new_tokens=40, do_sample=False)[0]["generated_text"]
        assert ours.out == theirs + "\n"


@pytest.mark.parametrize(("tokenizer", "flags"), [("bpe", []), ("byte", []), ("bpe", ["--custom-code"])], ids=str)
def test_a_text_begins_and_ends_where_it_does_with_us(tokenizer: str, flags: list[str], tmp_path: Path) -> None:
    text = fitted(tokenizer)
    keep_run(tmp_path, LLAMA, text)
    theirs, _ = opened(exported(tmp_path, *flags), trust_remote_code=bool(flags))
    told = theirs.generation_config
    assert (told.bos_token_id, told.eos_token_id) == (text.separator_ids()[-1], text.end_of_text)
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (text.end_of_text, text.end_of_text)


@pytest.mark.slow
def test_a_trained_run_continues_in_a_pipeline_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    words = tiny.overrides("run_dir=run", "model=llama", "model.block_size=64", "optimizer.lr=0.01")
    settings = [word for word in words if not word.startswith("model/")]  # the preset has its own
    assert tiny.call(train, *settings).code == 0
    path = exported(tmp_path / "run")
    code = (
        f"from transformers import pipeline; pipe = pipeline('text-generation', {str(path)!r})\n"
        "print(pipe('the cat', max_new_tokens=30, do_sample=False)[0]['generated_text'])"
    )
    ended = tiny.finish(tiny.spawn("-c", code, cwd=tmp_path, HF_HUB_OFFLINE="1"))
    assert ended.out == tiny.call(sample, "run", "--prompt", "the cat", "--greedy", "--tokens", "30").out, ended.err


def test_what_has_no_class_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    keep_run(tmp_path / "run", {"position": "alibi", "norm": "dyt"}, fitted())
    ended = tiny.call(export, str(tmp_path / "run"), "--to", "hf", str(tmp_path / "new" / "out"))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "--custom-code" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_is_not_empty_is_refused_and_kept(tmp_path: Path) -> None:
    keep_run(tmp_path / "run", LLAMA, fitted())
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    for place in (full, full / "mine"):
        ended = tiny.call(export, str(tmp_path / "run"), "--to", "hf", str(place))
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "new or empty" in ended.err
    assert (full / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert tiny.call(export, str(tmp_path / "run"), "--to", "hf", str(tmp_path / "empty")).code == 0


def test_a_disk_that_refuses_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_run(tmp_path / "run", LLAMA, fitted())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    ended = tiny.call(export, str(tmp_path / "run"), "--to", "hf", str(tmp_path / "out"))
    assert (ended.code, "No space left" in ended.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nowhere", "--to", "hf", "out"], "config.yaml"), (["latest", "--to", "gguf", "out"], "must be one of hf")],
)
def test_a_run_that_is_none_and_an_unknown_format_are_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = tiny.call(export, *words)
    assert (ended.code, ended.err.count("\n"), said in ended.err) == (2, 1, True)
    assert not list(tmp_path.iterdir())
