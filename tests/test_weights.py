"""Models of transformers come in and go out unchanged; what does not fit is one clear line; nothing is unpickled."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from reference.families import FAMILIES
from reference.harness import CLOSE, Family, config_of, distance, reference
from safetensors.torch import load_file, save_file
from tiny import call

from gptlab import GPT, ModelConfig, weights
from gptlab.errors import CheckpointError, ConfigError
from gptlab.tokenizer import ByteTokenizer
from gptlab.weights import tokenizers
from gptlab.weights.composition import composition, differences

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {family.architecture: family for family in weights.FAMILIES}
BOTH = [family for family in FAMILIES if family.theirs in KNOWN]  # of which there are options and weights
SIZES = {"vocab_size": 61, "block_size": 32, "n_layer": 3, "n_head": 4, "n_embd": 32}
GPT2 = {
    **SIZES, "bias": True, "tie_weights": True, "position": "learned", "norm": "layernorm",
    "mlp": {"name": "plain", "activation": "gelu_tanh"},
}  # fmt: skip
LLAMA = {**SIZES, "mlp": {"name": "glu", "expand": 2.0}}
TEXT = torch.arange(24)[None] % 61


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Where a family's reference is, as transformers saves it."""

    def place(family: Family) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"saved_{family.name}"
        if not folder.exists():
            reference(family).model.save_pretrained(folder)
        return folder

    return place


@pytest.fixture
def gpt2(tmp_path: Path, saved: Callable[[Family], Path]) -> Path:
    """A small GPT-2 that a test may break."""
    return Path(shutil.copytree(saved(BOTH[0]), tmp_path / "gpt2"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def perturbed(**options: Any) -> GPT:
    model = GPT(ModelConfig(**options)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def equal(one: GPT, other: GPT) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_every_family_has_a_reference() -> None:
    assert {family.theirs for family in BOTH} == KNOWN.keys()


@pytest.mark.parametrize("family", BOTH, ids=str)
@torch.no_grad()
def test_a_model_goes_in_and_out_and_in_without_the_change_of_a_bit(
    family: Family, saved: Callable[[Family], Path], tmp_path: Path
) -> None:
    theirs = reference(family)
    model = weights.load(saved(family))
    assert distance(model(theirs.tokens), theirs.logits) < CLOSE
    out = weights.save(model, tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation=family.implementations[0]).eval()
    assert type(back).__name__ == family.theirs
    assert distance(back(theirs.tokens).logits, theirs.logits) < CLOSE
    assert equal(weights.load(out), model)
    before, after = load_file(saved(family) / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert after.keys() == before.keys()


@pytest.mark.parametrize("family", BOTH, ids=str)
def test_settings_mean_the_options_that_the_reference_suite_wrote_by_hand(
    family: Family, saved: Callable[[Family], Path]
) -> None:
    by_hand = dataclasses.replace(config_of(family, family.kernels[0]), block_size=64)
    found = weights.config_of(saved(family))
    assert differences(composition(by_hand), composition(found)) == []
    assert differences(composition(found), composition(by_hand)) == []


NEW = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
PUBLISHED = {  # settings as their authors wrote them, in the words of the day -> parameters
    "gpt2-xl": (
        {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48, "n_positions": 1024,
         "task_specific_params": {"text-generation": {"do_sample": True}}, "vocab_size": 50257},
        1_557_611_200,
    ),
    "pythia-70m": (
        {"model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048,
         "max_position_embeddings": 2048, "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000,
         "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304},
        70_426_624,
    ),
    "gpt-j-6b": (
        {"model_type": "gptj", "activation_function": "gelu_new", "n_embd": 4096, "n_head": 16, "n_layer": 28,
         "n_positions": 2048, "rotary": True, "rotary_dim": 64, "tie_word_embeddings": False, "vocab_size": 50400},
        6_050_882_784,
    ),
    "phi-2": (
        {"model_type": "phi", "hidden_act": "gelu_new", "hidden_size": 2560, "intermediate_size": 10240,
         "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32,
         "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False, "rope_scaling": None,
         "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 51200},
        2_779_683_840,
    ),
    "Llama-3.2-1B": (
        {**NEW, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
         "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rope_theta": 500000.0,
         "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
                          "original_max_position_embeddings": 8192}, "vocab_size": 128256},
        1_235_814_400,
    ),
    "Qwen2-0.5B": (
        {**NEW, "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24,
         "max_position_embeddings": 131072, "num_attention_heads": 14, "num_hidden_layers": 24, "rope_theta": 1e6,
         "num_key_value_heads": 2, "sliding_window": 131072, "use_sliding_window": False, "vocab_size": 151936},
        494_032_768,
    ),
    "gemma-3-1b": (
        {"model_type": "gemma3_text", "cache_implementation": "hybrid", "head_dim": 256, "hidden_size": 1152,
         "hidden_activation": "gelu_pytorch_tanh", "intermediate_size": 6912, "max_position_embeddings": 32768,
         "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
         "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
         "vocab_size": 262144},
        999_885_952,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_parameters_they_are_known_for(name: str) -> None:
    said, n_parameters = PUBLISHED[name]
    family = next(family for family in weights.FAMILIES if family.model_type == said["model_type"])
    config = family.config(said)
    with torch.device("meta"):
        assert GPT(config).n_parameters() == n_parameters
    assert weights.family_of(config) is family
    assert family.config(weights.hf_config(config)) == config


def test_a_trained_composition_opens_in_transformers(tmp_path: Path) -> None:
    model = perturbed(**LLAMA, attention={"name": "vanilla", "n_kv_head": 2, "dropout": 0.1})
    weights.save(model, tmp_path, end_of_text=3)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.config.eos_token_id == 3
    with torch.no_grad():
        assert distance(model(TEXT), theirs(TEXT).logits) < CLOSE


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({**GPT2, "mlp": {"name": "plain", "activation": "xielu"}}, r"model\.mlp\.activation=xielu"),
        ({**GPT2, "position": "alibi"}, r"model\.position=alibi"),
        ({**GPT2, "head_bias": True}, r"model\.head_bias=True"),
        ({**GPT2, "attention": {"name": "softmax", "n_kv_head": 2}}, r"model\.attention\.n_kv_head=2"),
        ({**LLAMA, "block": {"name": "prenorm", "gain": "channel"}}, r"model\.block\.gain=channel"),
        ({**LLAMA, "layers": [{"at": "1", "mlp": {"expand": 3.0}}]}, r"model\.mlp\.expand=3\.0 in layer 1"),
        ({**LLAMA, "layers": [{"at": "1", "position": "none"}]}, r"model\.position=none in layer 1"),
        ({**LLAMA, "position": {"name": "rope", "layout": "interleaved"}}, r"model\.position\.layout=interleaved"),
        ({**LLAMA, "document_mask": True, "separator": 0}, r"model\.document_mask=True"),
        ({**LLAMA, "n_layer": 0}, "0 layers"),
        ({**LLAMA, "attention": {"name": "softmax", "scale": 1e-200}}, "No class of transformers"),
        ({**LLAMA, "attention": "differential"}, r"model\.attention=differential"),
        ({**LLAMA, "position": "sinusoidal", "layers": [{"at": ":", "position": "rope"}]}, "model.position=sinusoidal"),
        ({**LLAMA, "position": "t5", "layers": [{"at": ":", "position": "rope"}]}, "model.position=t5"),
    ],
)
def test_an_option_without_a_class_is_named(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        weights.save(GPT(ModelConfig(**options)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("n_inner", 50),
        ("add_cross_attention", True),
        ("is_causal", False),
    ],
)  # fmt: skip
def test_a_setting_without_a_counterpart_is_named(gpt2: Path, setting: str, value: object) -> None:
    edit_config(gpt2, **{setting: value})
    with pytest.raises(ConfigError, match=f"{setting}={value}"):
        weights.load(gpt2)


def test_a_rotary_setting_without_a_counterpart_is_named(saved: Callable[[Family], Path], tmp_path: Path) -> None:
    llama = next(family for family in BOTH if family.name == "llama")
    folder = Path(shutil.copytree(saved(llama), tmp_path / "llama"))
    for change, named in (
        ({"rope_type": "dynamic", "factor": 2.0}, "dynamic"),
        ({"partial_rotary_factor": 0.5}, "partial"),
    ):
        edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4, **change})
        with pytest.raises(ConfigError, match=named):
            weights.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama", "hidden_size": 0},
        {"model_type": "llama", "num_hidden_layers": 0},
        {"model_type": "llama", "rope_theta": None},
        {"model_type": "gpt2", "n_embd": 0},
        {"model_type": "granite", "logits_scaling": 0},
        {"model_type": "gemma2", "query_pre_attn_scalar": 0},
    ],
    ids=str,
)
def test_settings_that_no_model_can_have_are_one_clear_line(changes: dict[str, Any]) -> None:
    family = next(family for family in weights.FAMILIES if family.model_type == changes["model_type"])
    with pytest.raises(ConfigError, match=family.architecture) as error:
        family.config(changes)
    assert "\n" not in str(error.value)


def test_reading_settings_leaves_them_as_they_are() -> None:
    said = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    llama = next(family for family in weights.FAMILIES if family.model_type == "llama")
    assert llama.config(said).position["factor"] == 2.0
    assert said["rope_scaling"] == {"type": "linear", "factor": 2.0}


def break_wrong_shape(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"transformer.h.1.mlp.c_fc.weight": torch.zeros(32, 96)}))


def break_missing(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.__delitem__("transformer.h.2.ln_1.bias"))


def break_left_over(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update(score=torch.zeros(2)))


def break_other_head(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(61, 32)}))


def break_whole_numbers(folder: Path) -> None:
    """What a quantiser leaves when its settings are lost."""
    edit_tensors(
        folder, lambda tensors: tensors.update({k: v.to(torch.int8) for k, v in tensors.items() if v.dim() == 2})
    )


def break_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_scrambled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


def break_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def break_eight_bits(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        tensors.update({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()})

    edit_tensors(folder, change)


def break_n_layer(folder: Path) -> None:
    edit_config(folder, n_layer=10**6)


def break_vocab_size(folder: Path) -> None:
    edit_config(folder, vocab_size=10**12)


def break_index_of_numbers(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3, "b": "x", "c": [3]}}')


def break_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone.safetensors")


def break_empty(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def listed(folder: Path, *files: str) -> None:
    """An index of these files, in the place of a single one."""
    (folder / "model.safetensors").rename(folder / "whole.safetensors")
    index = {"weight_map": {str(number): file for number, file in enumerate(files)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def break_index(folder: Path) -> None:
    listed(folder, "../model.safetensors")


def break_shard(folder: Path) -> None:
    listed(folder, "model-1.safetensors")


def break_twice(folder: Path) -> None:
    listed(folder, "whole.safetensors", "more.safetensors")
    shutil.copy(folder / "whole.safetensors", folder / "more.safetensors")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (break_wrong_shape, r"h\.1\.mlp\.c_fc\.weight .* shape \[32, 128\].* \[32, 96\]"),
        (break_missing, r"lacks transformer\.h\.2\.ln_1\.bias"),
        (break_left_over, "holds also score"),
        (break_other_head, "lm_head.weight is not"),
        (break_whole_numbers, "is I8, no plain numbers"),
        (break_eight_bits, "is F8_E4M3, no plain numbers"),
        (break_n_layer, "has 1000000 layers, as its config.json says, but only"),
        (break_vocab_size, r"shape \[1000000000000, 32\], as its config.json says"),
        (break_truncated, "no whole safetensors"),
        (break_scrambled, "no whole safetensors"),
        (break_pickle, r"pytorch_model\.bin .* pickle .* convert"),
        (break_empty, "holds 0"),
        (break_no_config, r"config\.json is needed"),
        (break_config, r"config\.json is damaged"),
        (break_index, "files of its own directory"),
        (break_index_of_numbers, "files of its own directory"),
        (break_shard, r"model-1\.safetensors is named by an index or a link, but is not there"),
        (break_link, "is named by an index or a link, but is not there"),
        (break_twice, "another file"),
    ],
)
def test_a_damaged_directory_is_one_clear_line(gpt2: Path, fault: Callable[[Path], None], said: str) -> None:
    fault(gpt2)
    with pytest.raises(CheckpointError, match=said) as error:
        weights.load(gpt2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt22"}, "no architecture 'gpt22': it reads gpt2, .*cohere"),
        ({"model_type": "bert"}, "no architecture 'bert'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"n_embd": "many"}, "refuses these settings"),
        ({"activation_function": "gelu_fast"}, "gelu_fast"),
        ({"vocab_size": 10**30}, "sizes that no model can have"),
    ],
)
def test_a_config_that_is_not_ours_is_one_clear_line(gpt2: Path, changes: dict[str, Any], said: str) -> None:
    edit_config(gpt2, **changes)
    with pytest.raises(ConfigError, match=said) as error:
        weights.load(gpt2)
    assert "\n" not in str(error.value)


def test_a_pickle_named_by_itself_is_not_opened(gpt2: Path) -> None:
    (gpt2 / "model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pickle"):
        weights.load(gpt2 / "model.bin")


def test_a_file_or_a_path_that_holds_no_weights_is_told_what_does(gpt2: Path) -> None:
    (gpt2 / "input.txt").write_text("a text")
    with pytest.raises(ConfigError, match="is no safetensors file: name that, or the directory"):
        weights.load(gpt2 / "input.txt")
    for nowhere in ("/nowhere", "~/nowhere", "./nowhere"):
        with pytest.raises(ConfigError, match=f"There is no {nowhere}: name a directory"):
            weights.load(nowhere)


def test_names_without_the_models_prefix_masks_and_a_stored_head_are_known(gpt2: Path) -> None:
    """The files that OpenAI's weights are in."""
    whole = weights.load(gpt2)

    def as_published(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    edit_tensors(gpt2, as_published)
    assert equal(weights.load(gpt2), whole)


def test_shards_a_single_file_and_half_precision_are_read(gpt2: Path, tmp_path: Path) -> None:
    whole = weights.load(gpt2)
    assert equal(weights.load(gpt2 / "model.safetensors"), whole)
    reference(BOTH[0]).model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert equal(weights.load(tmp_path / "shards"), whole)
    edit_tensors(gpt2, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    rounded = weights.load(gpt2)
    for name, tensor in rounded.tensors().items():
        assert torch.equal(tensor, whole.tensors()[name].bfloat16().float()), name


def test_a_whole_file_is_read_before_shards_as_transformers_does(gpt2: Path, tmp_path: Path) -> None:
    whole = weights.load(gpt2)
    reference(BOTH[0]).model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    edit_tensors(gpt2, lambda tensors: tensors["transformer.wte.weight"].add_(1.0))
    shutil.copy(gpt2 / "model.safetensors", tmp_path / "shards")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
    ours = weights.load(tmp_path / "shards")
    assert torch.equal(ours.token_embedding.weight, theirs.transformer.wte.weight)
    assert not torch.equal(ours.token_embedding.weight, whole.token_embedding.weight)


@torch.no_grad()
def test_a_part_may_be_swapped_and_the_context_shortened(gpt2: Path) -> None:
    said: list[str] = []
    whole = weights.load(gpt2, note=said.append)
    short = weights.load(gpt2, note=said.append, block_size=24, attention={"kernel": "math"}, dropout=0.1)
    assert said == []
    assert short.config.block_size == 24
    assert torch.equal(short.position.get_parameter("table.weight"), whole.position.get_parameter("table.weight")[:24])
    assert distance(short(TEXT), whole(TEXT)) < CLOSE
    swapped = weights.load(gpt2, note=said.append, position="rope", norm="rmsnorm")
    assert len(said) == 1
    assert "position.table.weight" in said[0]
    assert torch.equal(swapped.token_embedding.weight, whole.token_embedding.weight)
    deeper = weights.load(gpt2, note=said.append, n_layer=4)
    assert "new, drawn from the seed: blocks.3." in said[1]
    assert torch.equal(deeper.blocks[2].mlp.up.weight, whole.blocks[2].mlp.up.weight)
    with pytest.raises(ConfigError, match=r"no setting model\.n_layers"):
        weights.load(gpt2, n_layers=4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_size": 200}, "has learned 64 positions, so model.block_size=200 is too long"),
        ({"n_embd": 64}, "n_embd is 32 in .* cannot become 64"),
        ({"vocab_size": 10}, "vocab_size is 61 in .* cannot become 10"),
    ],
)
def test_a_change_that_leaves_the_weights_without_meaning_is_refused(
    gpt2: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        weights.load(gpt2, **changes)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize(("name", "repository"), [("gpt2", "openai-community/gpt2"), ("gpt2", "gpt2"), ("a/b", "a/b")])
def test_a_name_is_found_in_the_cache_of_the_hub(offline: Path, gpt2: Path, name: str, repository: str) -> None:
    cached = offline / f"models--{repository.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(gpt2, cached / "snapshots" / ("0" * 40))
    assert equal(weights.load(name), weights.load(gpt2))


def test_a_download_that_was_stopped_is_gone_on_with(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline: the line says to go online, not that what is in the cache is damaged."""
    snapshot = offline / "models--a--b" / "snapshots" / ("0" * 40)
    reference(BOTH[0]).model.save_pretrained(snapshot, max_shard_size="20KB")
    (offline / "models--a--b" / "refs").mkdir()
    (offline / "models--a--b" / "refs" / "main").write_text("0" * 40)
    weights.load("a/b")
    next(snapshot.glob("model-*.safetensors")).unlink()
    with pytest.raises(ConfigError, match="go online once"):
        weights.load("a/b")


@pytest.mark.usefixtures("offline")
def test_a_name_that_is_nowhere_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"openai-community/gpt2-xl is not in .*go online once, or name a dir"):
        weights.load("gpt2-xl")
    with pytest.raises(ConfigError, match="is none of these"):
        weights.load("gpt3")


def test_the_check_for_real_weights_says_equivalent_or_where_not(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("verify_gpt2")
    good = call(script, str(gpt2))
    assert good.code == 0, good.err
    assert good.out.endswith("\nequivalent\n")
    bad = call(script, str(gpt2), "--perturb", "blocks.1.mlp.up.weight")
    assert bad.code == 1, bad.err
    assert "\nNOT equivalent: the two part first in layer 1 " in bad.out
    (gpt2 / "empty.txt").write_text("")
    for save in (lambda folder: None, lambda folder: tokenizers.save(ByteTokenizer(), folder)):
        save(gpt2)
        empty = call(script, str(gpt2), "--text", str(gpt2 / "empty.txt"))
        assert empty.code == 2
        assert empty.err.splitlines()[-1].startswith("gptlab: --text names a text")
    nowhere = call(script, str(gpt2 / "nothing"))
    assert (nowhere.code, nowhere.err.count("\n")) == (2, 1)


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def break_tokenizer_without_words(folder: Path) -> None:
    empty = '{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}'
    (folder / "tokenizer.json").write_text(empty)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (break_wrong_shape, "must have the shape"),
        (lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq"}), "quantised (gptq)"),
        (lambda folder: edit_config(folder, model_type="bert"), "no architecture 'bert'"),
        (break_tokenizer, "transformers cannot open"),
        (break_tokenizer_without_words, "The tokenizer in"),
    ],
)
def test_the_check_says_what_it_cannot_open_in_a_line(
    gpt2: Path, fault: Callable[[Path], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    fault(gpt2)
    ended = call(importlib.import_module("verify_gpt2"), str(gpt2))
    assert ended.code == 2
    assert said in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_the_check_opens_no_pickle_and_knows_numbers_that_are_none(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("verify_gpt2")
    edit_tensors(gpt2, lambda tensors: tensors["transformer.h.1.ln_1.weight"].fill_(torch.nan))
    ended = call(script, str(gpt2))
    assert ended.code == 1, ended.err
    assert "the two part first in layer 1 " in ended.out
    (gpt2 / "model.safetensors").rename(gpt2 / "weights.safetensors")
    torch.save(reference(BOTH[0]).model.state_dict(), gpt2 / "pytorch_model.bin")
    ended = call(script, str(gpt2))
    assert ended.code == 2
    assert "transformers cannot open" in ended.err.splitlines()[-1]
