"""OpenAI's GPT-2 as transformers has it, saved to disk and imported, is ours: logits, cache, kernels, gradients.

`pytest tests/test_gpt2_parity.py -v` ends with the largest differences. scripts/verify_gpt2.py asks the real weights.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptlab import weights
from gptlab.weights.table import links, read

ABSOLUTE, RELATIVE = 1e-4, 2e-5  # of logits, in float32; relative to the largest
SLOPE = 5e-5  # of gradients, each tensor's by itself: rounding goes through them twice
KERNELS = ("vanilla", "flash", "flex")
PIECES = (5, 1, 1, 17, 1, 7)  # tokens fed at once while decoding

Record = Callable[[str, object], None]


@dataclass(frozen=True)
class Size:
    """One of the four shapes of GPT-2, at a depth and with a vocabulary that a test can afford."""

    name: str
    width: int
    heads: int
    layers: int = 2
    vocabulary: int = 503

    def __str__(self) -> str:
        return self.name


SIZES = (
    Size("small", 768, 12),
    Size("medium", 1024, 16),
    Size("large", 1280, 20),
    Size("xl", 1600, 25),
    Size("gpt2_124M", 768, 12, layers=12, vocabulary=50257),  # whole
)
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


@dataclass(frozen=True)
class Reference:
    """The model of transformers, where it was saved, a text, and its logits in float32 and bfloat16."""

    model: Any
    folder: Path
    tokens: Tensor
    logits: Tensor
    rounded: Tensor


Make = Callable[[Size], Reference]


@torch.no_grad()
def make(folder: Path, size: Size) -> Reference:
    """Random weights, every one of them moved, so that no one or zero hides a fault."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=size.width, n_head=size.heads, n_layer=size.layers, vocab_size=size.vocabulary)
    config.bos_token_id = config.eos_token_id = None
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter += torch.randn(parameter.shape) * (parameter.shape[0] ** -0.5 / 2 if parameter.dim() > 1 else 0.3)
    model.save_pretrained(folder / size.name)
    tokens = torch.randint(0, size.vocabulary, (1, sum(PIECES)))
    return Reference(model, folder / size.name, tokens, model(tokens).logits, in_bf16(model, tokens).logits)


@pytest.fixture(scope="module")
def reference() -> Iterator[Make]:
    """Each made once, and its half a gigabyte on disk removed."""
    with tempfile.TemporaryDirectory() as folder:
        yield functools.cache(functools.partial(make, Path(folder)))


def in_bf16(model: Any, tokens: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return model(tokens)


def apart(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest difference, and the same relative to the largest value of theirs."""
    far = float((ours.float() - theirs.float()).abs().max())
    return far, far / float(theirs.abs().max())


@pytest.mark.parametrize("kernel", KERNELS)
@every_size
@torch.no_grad()
def test_imported_logits_are_those_of_transformers(
    reference: Make, size: Size, kernel: str, record_property: Record
) -> None:
    theirs = reference(size)
    ours = weights.load(theirs.folder, attention=kernel)
    cache = ours.new_cache(1, sum(PIECES))
    decoded = torch.cat([ours(piece, cache) for piece in theirs.tokens.split(PIECES, dim=1)], dim=1)
    for what, logits in (("float32", ours(theirs.tokens)), ("float32, decoded with a cache", decoded)):
        far, relative = apart(logits, theirs.logits)
        record_property("measured", f"{size} {kernel}: {what}: {far:.1e} absolute, {relative:.1e} relative")
        assert far <= ABSOLUTE
        assert relative <= RELATIVE
    rounding, ours_rounded = apart(theirs.rounded, theirs.logits), apart(in_bf16(ours, theirs.tokens), theirs.logits)
    record_property(
        "measured",
        f"{size} {kernel}: bfloat16: {ours_rounded[0]:.1e} absolute, {ours_rounded[1]:.1e} relative "
        f"(transformers' own: {rounding[1]:.1e})",
    )
    assert ours_rounded[1] <= 2 * rounding[1]


@every_size
def test_loss_and_gradients_are_those_of_transformers(reference: Make, size: Size, record_property: Record) -> None:
    theirs = reference(size)
    ours = weights.load(theirs.folder, attention="flash")
    targets = theirs.tokens.flip(1)
    wanted = F.cross_entropy(theirs.model(theirs.tokens).logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss = ours.loss(theirs.tokens, targets)[0]
    far = apart(loss.detach(), wanted.detach())[1]
    theirs.model.zero_grad()
    wanted.backward()
    loss.backward()
    slopes = {name: parameter.grad for name, parameter in theirs.model.named_parameters()}
    table = weights.family_of(ours.config).table(ours.config)
    tensors = ours.tensors()
    expected = read(links(table, tensors), slopes, tensors)
    steepest = max(float(slope.abs().max()) for slope in expected.values())
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert found.keys() == expected.keys()
    # The bias of keys has none by mathematics: what rounding makes of it is held against the steepest.
    steep = {
        name: float((found[name] - slope).abs().max()) / max(float(slope.abs().max()), steepest / 100)
        for name, slope in expected.items()
    }
    worst = max(steep, key=lambda name: steep[name])
    record_property("measured", f"{size} flash: loss {far:.1e} relative; gradients {steep[worst]:.1e} ({worst})")
    assert far <= RELATIVE
    assert steep[worst] <= SLOPE, worst
