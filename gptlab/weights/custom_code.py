"""A model of any composition for transformers, with its own code: config, tensors, and the sources that it is made of.

The files stand side by side, as transformers copies them: gptlab/components/scale.py is gptlab_components_scale.py.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.torch import save_file

import gptlab
from gptlab.errors import ConfigError
from gptlab.files import write_atomically
from gptlab.model import GPT
from gptlab.weights.source import CONFIG, SINGLE

DOOR, MODELING = "gptlab.weights.modeling", "modeling_gptlab"  # the module that transformers imports, and its file
VARIANTS = "gptlab.components"  # registers all variants; in an export, those of the model alone
PLUGIN = "gptlab_plugin_"  # what the modules of plugin files are called
OURS = ("gptlab.", PLUGIN)


def save(model: GPT, directory: Path, *, end_of_text: int | None = None) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)` opens as this model."""
    for name, text in sources(model).items():
        write_atomically(directory / f"{name}.py", text.encode())
    write_atomically(directory / CONFIG, (json.dumps(_settings(model, end_of_text), indent=2) + "\n").encode())
    held = model.tensors()
    constants = {name: buffer for name, buffer in model.named_buffers() if name not in held}
    tensors = {f"gpt.{name}": tensor.cpu().contiguous() for name, tensor in {**held, **constants}.items()}
    save_file(tensors, directory / SINGLE, metadata={"format": "pt"})


def sources(model: GPT) -> dict[str, str]:
    """File name -> text of every module that the model's code imports, each importing its neighbours."""
    parts = sorted({type(part).__module__ for part in model.modules()} - {GPT.__module__})
    parts = [name for name in parts if not name.startswith("torch.")]
    for name in parts:
        if not name.startswith(OURS):
            raise ConfigError(
                f"Custom code carries gptlab and plugin files, but not the package {name.partition('.')[0]!r}: "
                "put the variant into one file, plugins=[./FILE.py]."
            )
    waiting, texts = {DOOR, *parts}, dict[str, str]()
    while waiting:
        name = waiting.pop()
        texts[name] = _list(parts) if name == VARIANTS else _read(name)
        waiting |= {module for node in _imports(texts[name]) for module in _modules(node)} - texts.keys()
    origin = f"# From gptlab {gptlab.__version__}, MIT license.\n"
    return {_flat(name): origin * name.startswith("gptlab.") + _beside(text) for name, text in texts.items()}


def _settings(model: GPT, end_of_text: int | None) -> dict[str, object]:
    """What config.json says: every option, and sizes under the names by which others look for them."""
    config = model.config
    return {
        "architectures": ["GptlabForCausalLM"],
        "model_type": "gptlab",
        "auto_map": {
            "AutoConfig": f"{MODELING}.GptlabConfig",
            "AutoModelForCausalLM": f"{MODELING}.GptlabForCausalLM",
        },
        "model": dataclasses.asdict(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "max_position_embeddings": config.block_size,
        "tie_word_embeddings": config.tie_weights,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), end_of_text),
        "torch_dtype": "float32",
    }


def _flat(module: str) -> str:
    return MODELING if module == DOOR else module.replace(".", "_")


def _read(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def _list(modules: Iterable[str]) -> str:
    """The one file that is not as it is in gptlab."""
    imports = "\n".join(f"import {name}" for name in modules)
    return f'"""The parts that this model is composed of."""\n\n{imports}\n\n__all__: list[str] = []\n'


def _imports(text: str) -> list[ast.Import | ast.ImportFrom]:
    """The imports of gptlab and of plugin files in a source, wherever they stand."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    if any(alias.name == "gptlab" for node in found if isinstance(node, ast.Import) for alias in node.names):
        raise ConfigError("A plugin whose model is exported must name what it uses: `from gptlab import register`.")
    return [node for node in found if next(_modules(node), None)]


def _modules(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules of ours that an import is about. `from gptlab import` names modules, or what gptlab offers."""
    if isinstance(node, ast.ImportFrom) and node.module == "gptlab":
        yield from (gptlab._HOME.get(alias.name, f"gptlab.{alias.name}") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (name for name in [node.module or ""] if name.startswith(OURS))
    else:
        yield from (alias.name for alias in node.names if alias.name.startswith(OURS))


def _beside(text: str) -> str:
    """The source with its imports of gptlab turned to the files beside it."""
    lines = text.encode().split(b"\n")  # places in a line are counted in bytes
    for node in sorted(_imports(text), key=lambda node: (-node.lineno, -node.col_offset)):
        assert node.end_lineno is not None
        before, after = lines[node.lineno - 1][: node.col_offset], lines[node.end_lineno - 1][node.end_col_offset :]
        lines[node.lineno - 1 : node.end_lineno] = [before + "; ".join(_turned(node)).encode() + after]
    return b"\n".join(lines).decode()


def _turned(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for module, alias in zip(_modules(node), node.names, strict=False):
        name = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        if isinstance(node, ast.Import):  # for what happens when it is imported: it registers
            yield f"from .{_flat(module)} import *"
        elif node.module != "gptlab":
            node.module, node.level = _flat(module), 1
            yield ast.unparse(node)
        elif alias.name in gptlab._HOME:
            yield f"from .{_flat(module)} import {name}"
        else:
            yield f"from . import {_flat(module)} as {alias.asname or alias.name}"
