"""Are imported weights the model that they were? `python scripts/verify_gpt2.py [gpt2 | DIRECTORY] [--text FILE]`.

Compares gptlab with transformers: logits per kernel and precision, greedy text, loss. Exit code 0: equivalent, 1: not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gptlab import exits, weights
from gptlab.errors import ConfigError, GptlabError
from gptlab.model import GPT
from gptlab.sampling import Draw, generate
from gptlab.tokenizer import GPT2Tokenizer
from gptlab.weights import vocabulary

TEXTS = (
    "In a shocking finding, scientists discovered a herd of unicorns living in a remote, previously unexplored valley.",
    "def fibonacci(n):\n    a, b = 0, 1\n    while a < n:\n        yield a\n        a, b = b, a + b\n",
    "1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536,",
    "Der Mond ist aufgegangen, die goldnen Sternlein prangen am Himmel hell und klar; der Wald steht schwarz.",
)
KERNELS = ("vanilla", "flash", "flex")
N_GREEDY = 50  # tokens
CLOSE = 2e-5  # of float32 logits and losses, relative to the largest
ROUNDING = 2.0  # bfloat16 may take ours no further from float32 than this many times what it takes theirs
AGREE = 0.999  # of float32's likeliest tokens
PARTED = 1e-4  # of what leaves a layer, channel by channel
STEP = 1e-2  # of --perturb
PERTURB = (
    f"move one of our tensors by {STEP}, to see the check fail; biases of keys do not show: they add the same "
    "to all scores of a query, which softmax ignores"
)


@dataclass(frozen=True)
class Finding:
    """One thing compared."""

    what: str
    measured: str
    good: bool


def main(argv: list[str]) -> None:
    """Compare, print a table and a verdict; exit code 1 when it is not equivalent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="gpt2", help="gpt2[-medium|-large|-xl], org/name, or a directory")
    parser.add_argument("--text", type=Path, help="a file to take the loss on, beside the texts built in")
    parser.add_argument("--perturb", metavar="TENSOR", help=PERTURB)
    wanted = parser.parse_args(argv)
    console = Console(highlight=False)
    source = weights.find(wanted.name)
    weights.check(source.path)  # before transformers, which would say less
    folder = source.path if source.path.is_dir() else source.path.parent
    theirs = _their_model(folder)
    texts, about = _tokens(folder, theirs.config.vocab_size, wanted.text)
    console.print(
        f"{source.path}: {sum(p.numel() for p in theirs.parameters()):,} parameters; {about}.", soft_wrap=True
    )
    findings = []
    for kernel in KERNELS:
        ours = _our_model(wanted.name, kernel, wanted.perturb)
        findings += [*_logits(ours, theirs, kernel, texts), _greedy(ours, theirs, kernel, texts[0])]
    findings.append(_loss(ours, theirs, texts))
    _print(console, findings)
    if all(finding.good for finding in findings):
        console.print("equivalent")
        return
    console.print(f"NOT equivalent: {_where(ours, theirs, texts[0])}", soft_wrap=True)
    sys.exit(1)


def _their_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with _in_a_line(folder):
        return AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, use_safetensors=True
        ).eval()


@contextmanager
def _in_a_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever transformers likes
        raise ConfigError(f"transformers cannot open {folder}: {' '.join(str(error).split())[:200]}") from None


def _our_model(name: str, kernel: str, perturbed: str | None) -> GPT:
    model = weights.load(name, attention=kernel)
    if perturbed is not None:
        tensors = model.tensors()
        if perturbed not in tensors:
            raise ConfigError(f"--perturb names one of our tensors, like {next(iter(tensors))}, but not {perturbed!r}.")
        # Not all entries alike: norms and softmax would take that away.
        drawn = torch.randn(tensors[perturbed].shape, generator=torch.Generator().manual_seed(0))
        tensors[perturbed].add_(STEP * drawn)
    return model


def _tokens(folder: Path, n_vocab: int, file: Path | None) -> tuple[list[Tensor], str]:
    """The texts as ids, and how they became such: the tokenizer beside the weights, GPT-2's, or ids at random."""
    try:
        texts = [*TEXTS, *([file.read_text("utf-8")] if file else [])]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text names a text in UTF-8, but {file} cannot be read: {error}.") from None
    if not all(texts):
        raise ConfigError(f"--text names a text to take the loss on, but {file} is empty.")
    encoded, about = [], "no tokenizer beside them, so the texts are ids drawn at random"
    if any((folder / name).exists() for name in vocabulary.FILES):
        from transformers import AutoTokenizer

        with _in_a_line(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            encoded, about = [tokenizer(text)["input_ids"] for text in texts], "texts by the tokenizer beside them"
        if not all(encoded):
            raise ConfigError(f"The tokenizer in {folder} must make ids of any text, but makes none: bring it again.")
    elif n_vocab == GPT2Tokenizer().vocab_size:
        try:
            encoded, about = [GPT2Tokenizer().encode(text) for text in texts], "texts by GPT-2's tokenizer"
        except GptlabError:
            about = "no tokenizer beside them and GPT-2's not cached, so the texts are ids drawn at random"
    if encoded and max(map(max, encoded)) < n_vocab:
        return [torch.tensor([ids]) for ids in encoded], about
    if file:
        raise ConfigError(f"--text needs a tokenizer, but {folder} holds none that fits: put tokenizer.json there.")
    drawn = torch.Generator().manual_seed(0)
    return [torch.randint(0, n_vocab, (1, 24 + 7 * i), generator=drawn) for i in range(len(TEXTS))], about


@torch.no_grad()
def _logits(ours: GPT, theirs: Any, kernel: str, texts: list[Tensor]) -> Iterator[Finding]:
    """In float32, against theirs; in bfloat16, against how far theirs go from float32 themselves."""
    texts = [text[:, : ours.config.block_size] for text in texts]
    exact = [theirs(text).logits for text in texts]
    far, relative, agreed = _apart([ours(text) for text in texts], exact)
    good = relative <= CLOSE and agreed >= AGREE
    yield Finding(f"logits, {kernel}, float32", f"{far:.1e}, {relative:.1e} relative, top-1 {agreed:.2%}", good)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, mine = [theirs(text).logits for text in texts], [ours(text) for text in texts]
    own, (far, relative, agreed) = _apart(rounded, exact)[1], _apart(mine, exact)
    measured = f"{far:.1e}, {relative:.1e} relative (theirs {own:.1e}), top-1 {agreed:.2%}"
    yield Finding(f"logits, {kernel}, bfloat16", measured, relative <= ROUNDING * own)


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float, float]:
    """The largest difference, the same over the largest logit, and the share of positions with one likeliest token."""
    far = float(torch.stack([(mine.float() - its).abs().max() for mine, its in zip(ours, theirs, strict=True)]).max())
    same = torch.cat([mine.argmax(-1) == its.argmax(-1) for mine, its in zip(ours, theirs, strict=True)], dim=1)
    return far, far / max(float(its.abs().max()) for its in theirs), float(same.float().mean())


@torch.no_grad()
def _greedy(ours: GPT, theirs: Any, kernel: str, prompt: Tensor) -> Finding:
    """The likeliest token, again and again, each with its cache."""
    prompt = prompt[:, : max(1, ours.config.block_size - N_GREEDY)]
    n_new = min(N_GREEDY, ours.config.block_size - prompt.shape[1])
    mine = [token for (token,) in generate(ours, prompt[0].tolist(), n_new, draw=Draw(temperature=0))]
    said, its = theirs(prompt, use_cache=True), []
    for _ in range(n_new):
        its.append(int(said.logits[0, -1].argmax()))
        said = theirs(torch.tensor([its[-1:]]), past_key_values=said.past_key_values, use_cache=True)
    n_same = next((i for i, pair in enumerate(zip(mine, its, strict=True)) if pair[0] != pair[1]), n_new)
    return Finding(f"greedy text, {kernel}, cached", f"{n_same} of {n_new} tokens equal", n_same == n_new)


@torch.no_grad()
def _loss(ours: GPT, theirs: Any, texts: list[Tensor]) -> Finding:
    """Nats per token over all texts, in windows of the context."""
    pieces = [piece for text in texts for piece in text.split(ours.config.block_size, dim=1) if piece.shape[1] > 1]
    n_targets = sum(piece.shape[1] - 1 for piece in pieces)
    mine, its = (
        sum(float(F.cross_entropy(logits(piece)[0, :-1], piece[0, 1:], reduction="sum")) for piece in pieces)
        for logits in (ours, lambda piece: theirs(piece).logits)
    )
    measured = f"{mine / n_targets:.6f}, theirs {its / n_targets:.6f} nats per token over {n_targets:,}"
    return Finding("loss", measured, abs(mine - its) <= CLOSE * its)


@torch.no_grad()
def _where(ours: GPT, theirs: Any, text: Tensor) -> str:
    """The first place at which the two part, in float32."""
    text = text[:, : ours.config.block_size]
    table = {row.ours: row.theirs for row in weights.family_of(ours.config).table(ours.config)}
    layer = next(theirs for mine, theirs in table.items() if isinstance(mine, str) and mine.startswith("blocks.{i}."))
    layer = layer.partition("{i}")[0] + "{i}"
    n_layer = ours.config.n_layer
    pairs = [(ours.blocks[i], theirs.get_submodule(layer.format(i=i))) for i in range(n_layer)]
    pairs.append((ours.norm, theirs.get_submodule(table["norm"])))
    with _watched([pair[0] for pair in pairs]) as mine, _watched([pair[1] for pair in pairs]) as its:
        ours(text), theirs(text)
    names = ["the embeddings", *(f"layer {i} (of 0 to {n_layer - 1})" for i in range(n_layer)), "the last norm"]
    far = [_channels_apart(a, b) for a, b in zip(mine, its, strict=True)]
    parted = next((i for i, value in enumerate(far) if not value <= PARTED), None)  # so with nan
    if parted is None:
        return f"all layers agree (within {max(far):.1e}), so it is the head, or what is done to its logits."
    return f"the two part first in {names[parted]}, where a channel is off by {far[parted]:.1e} of its size."


@contextmanager
def _watched(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What goes into the first of the modules, then what comes out of each."""
    seen: list[Tensor] = []
    hooks = [modules[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))]
    hooks += [module.register_forward_hook(lambda _, __, out: seen.append(_first(out))) for module in modules]
    yield seen
    for hook in hooks:
        hook.remove()


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def _channels_apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of a channel over its largest value: a few channels of GPT-2 dwarf all others."""
    size = theirs.abs().amax((0, 1))
    return float(((ours - theirs).abs().amax((0, 1)) / size.clamp(min=float(size.median()) / 10)).max())


def _print(console: Console, findings: list[Finding]) -> None:
    table = Table("compared", "largest difference", "")
    for finding in findings:
        table.add_row(finding.what, finding.measured, "ok" if finding.good else "DIFFERS")
    console.print(table)


if __name__ == "__main__":
    exits.run(main)
