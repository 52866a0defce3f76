"""Tokens out: one at a time from a model with its cache, drawn by temperature, top-k, top-p and min-p."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab import registry
from gptlab.components.attention import trait
from gptlab.components.context import Cache, Context, KVCache
from gptlab.config import require
from gptlab.errors import ConfigError, DataError, TrainingError
from gptlab.hardware import has_compiler
from gptlab.model import GPT
from gptlab.seeds import seed_of
from gptlab.tokenizer import Tokenizer

T = TypeVar("T")
LARGE = 2**19  # entries of a matrix; from here on `lay_out` was measured to pay, up to 1.7 times for GPT-2's head


@dataclass(frozen=True)
class Draw:
    """How a token is drawn from logits. Filters apply after the temperature, in the order top-k, top-p, min-p."""

    temperature: float = 1.0  # 0: always the likeliest
    top_k: int | None = None  # only the k likeliest
    top_p: float | None = None  # only the fewest that hold this probability; Holtzman et al. 2019, arXiv:1904.09751
    min_p: float | None = None  # only those at least this share as likely as the likeliest; arXiv:2407.01082

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature must be 0 or more, but is {self.temperature}.")
        require(self.top_k is None or self.top_k >= 1, f"top-k must be at least 1, but is {self.top_k}.")
        require(self.top_p is None or 0 < self.top_p <= 1, f"top-p must be in (0, 1], but is {self.top_p}.")
        require(self.min_p is None or 0 <= self.min_p <= 1, f"min-p must be in [0, 1], but is {self.min_p}.")

    def probabilities(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """What the next token is drawn from."""
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        logits = logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None:
            logits = _keep_top_p(logits, self.top_p)
        p = logits.softmax(-1)
        if self.min_p is None:
            return p
        p = p * (p >= self.min_p * p.max(-1, keepdim=True).values)
        return p / p.sum(-1, keepdim=True)


class Step:
    """One token more for each row: what is fed, and the logits of the token after it."""

    def __init__(self, model: GPT, cache: Cache) -> None:
        self.model, self.cache = model, cache

    def __call__(self, tokens: Int[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
        """The logits, all Python's doing."""
        return self.model(tokens, self.cache)[:, -1]


class CompiledStep(Step):
    """The same in one compiled graph, replayed as a CUDA graph where there is one: no shape and no address changes."""

    def __init__(self, model: GPT, cache: Cache, note: Callable[[str], None]) -> None:
        super().__init__(model, cache)
        self.note = note
        self.run: Callable[..., Tensor] = compiled_logits(next(model.parameters()).device.type)
        for owner, name, tensor in tensors_of(cache.layers):
            setattr(owner, name, tensor.clone(memory_format=torch.contiguous_format))
        self.states = list(tensors_of(cache.layers))
        self.windows = [memory for memory in cache.layers if isinstance(memory, KVCache)]
        for tensor in (*(state[2] for state in self.states), *(part for w in self.windows for part in w.buffers)):
            torch._dynamo.mark_static_address(tensor)  # type: ignore[no-untyped-call]

    def __call__(self, tokens: Int[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
        """The logits. A memory that was made anew goes back to where the old one is."""
        from torch._dynamo.exc import TorchDynamoException  # a second of imports, which others need not wait for

        context = self.model.place(tokens, self.cache)
        for window in self.windows:
            window.make_room()
        torch.compiler.cudagraph_mark_step_begin()
        inputs = (self.model, tokens, context.positions, context.documents, self.cache.layers)
        try:
            logits = self.run(*inputs)
        except TorchDynamoException as error:
            self.note(f"torch.compile failed ({str(error).strip().splitlines()[0]}): steps go on without it.")
            self.run = next_logits
            logits = self.run(*inputs)
        for owner, name, tensor in self.states:
            if (new := getattr(owner, name)) is not tensor:
                setattr(owner, name, tensor.copy_(new))
        return logits


def choose_step(model: GPT, cache: Cache, note: Callable[[str], None]) -> Step:
    """The compiled step, or the plain one where that cannot be, which `note` is told in one line."""
    for attention, memory in zip(model.attentions, cache.layers, strict=True):
        if not (memory is None or isinstance(memory, KVCache) or trait(attention, "cached") == 0):
            name = registry.label("attention", attention)
            note(f"The memory of attention {name!r} grows with the text: its steps are not compiled.")
            return Step(model, cache)
    if not has_compiler(next(model.parameters()).device):
        note("No compiler was found (C++; Triton on CUDA): steps are not compiled.")
        return Step(model, cache)
    return CompiledStep(model, cache, note)


def next_logits(
    model: GPT, tokens: Int[Tensor, "B 1"], positions: Tensor, documents: Tensor | None, memories: list[Any]
) -> Float[Tensor, "B V"]:
    """What a step computes."""
    return model.logits(model.read(tokens, Context(positions, documents, memory=model.memory), memories))[:, -1]


@functools.cache
def compiled_logits(device_type: str) -> Callable[..., Tensor]:
    """`next_logits` compiled whole, once for each size of its inputs."""
    mode = "reduce-overhead" if device_type == "cuda" else "default"
    return torch.compile(next_logits, fullgraph=True, dynamic=False, mode=mode)


def tensors_of(memory: Any) -> Iterator[tuple[Any, str, Tensor]]:
    """The tensors that are attributes of memories, and of what these are made of: (owner, name, tensor)."""
    if isinstance(memory, list):
        for part in memory:
            yield from tensors_of(part)
    elif not isinstance(memory, KVCache):
        for name, value in getattr(memory, "__dict__", {}).items():
            if isinstance(value, Tensor):
                yield memory, name, value
            else:
                yield from tensors_of(value)


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[int] | Sequence[Sequence[int]],
    n_tokens: int,
    *,
    draw: Draw | None = None,
    seeds: Sequence[int] = (0,),
    compiled: Callable[[str], None] | None = None,
) -> Iterator[list[int]]:
    """Continue one prompt once per seed, or several by one seed or one each; yields a token of each, `n_tokens` times.

    A continuation depends on its own prompt and seed alone, not on what runs beside it. Past block_size, where the
    position encoding has no end, a cache drops its oldest tokens (a running sum keeps all), and the end of a longer
    prompt is what is fed; where the encoding has an end, ConfigError before the first token.

    With `compiled`, steps are one compiled graph; it is told why where that cannot be.
    """
    rows = _rows(prompts, seeds)
    end = model.config.source_end
    require(
        end is None or all(end in row for row in rows),
        f"This model sees a source both ways, so a prompt must hold all of one and the id that ends it, {end}.",
    )
    check_length(model, max(len(row) for row in rows), n_tokens)
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(seed_of(seed, "sample")) for seed in _spread(seeds, len(rows))]
    draw = draw or Draw()
    training = model.training
    model.eval()
    try:
        tokens, cache = _begin(model, rows, n_tokens, device)
        logits = model(tokens, cache, last=True)[:, 0]
        step = Step(model, cache) if compiled is None else choose_step(model, cache, compiled)
        for i in range(n_tokens):
            p = draw.probabilities(logits).cpu()
            if not p.isfinite().all():
                raise TrainingError(
                    "The scores of this model are not finite, so no text can be drawn from them: it has diverged. Take "
                    "an older checkpoint, or train with a lower optimizer.lr."
                )
            drawn = [int(torch.multinomial(row, 1, generator=g)) for row, g in zip(p, generators, strict=True)]
            yield drawn
            if i + 1 < n_tokens:
                logits = step(torch.tensor(drawn, device=device)[:, None])
    finally:
        model.train(training)


def _rows(prompts: Sequence[int] | Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
    """A prompt for each continuation. ConfigError where there is none, or as many seeds as nobody can deal out."""
    several = [list(row) for row in prompts if isinstance(row, Sequence)]
    several = several or [[token for token in prompts if not isinstance(token, Sequence)]]
    require(all(several), "A prompt must hold at least one token, but is empty.")
    n = max(len(several), len(seeds))
    require(
        len(several) in (1, n) and len(seeds) in (1, n),
        f"Prompts and seeds must be as many, or one for all, but are {len(several)} and {len(seeds)}.",
    )
    return _spread(several, n)


def _spread(items: Sequence[T], n: int) -> list[T]:
    """One for all, or one each."""
    return list(items) * (n if len(items) == 1 else 1)


def _begin(model: GPT, rows: list[list[int]], n_tokens: int, device: torch.device) -> tuple[Tensor, Cache]:
    """The prompts, filled up on the left to one length, and a memory for them and the new tokens.

    Its size is a power of two, so that a step compiled for one text serves others, but block_size at most.
    """
    block_size = model.config.block_size
    rows = [row[-block_size:] for row in rows]
    width = max(len(row) for row in rows)
    padding = [width - len(row) for row in rows]
    cache = model.new_cache(len(rows), min(block_size, 1 << (width + n_tokens - 2).bit_length()))
    if any(padding):
        if (odd := unpaddable(model)) is not None:
            raise ConfigError(
                f"attention {odd!r} cannot keep padding out, which prompts of several lengths need: "
                "give prompts of one length at a time."
            )
        cache.pad(torch.tensor(padding, device=device)[:, None])
    return torch.tensor([[0] * n + row for n, row in zip(padding, rows, strict=True)], device=device), cache


def unpaddable(model: GPT) -> str | None:
    """The first attention that would look at what fills a shorter prompt up, a document of its own; None: none."""
    for attention in model.attentions:
        if not (trait(attention, "separates_documents") or trait(attention, "absent")):
            return registry.label("attention", attention)
    return None


@torch.no_grad()
def lay_out(model: GPT) -> None:
    """Store large float32 matrices on a CPU input by input, as one row is multiplied fastest; no value changes.

    For a model that will only decode: what compiles or trains it finds other strides than it knew.
    """
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        weight = module.weight
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LARGE:
            weight.data = weight.data.t().contiguous().t()


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt; of an empty one, the border between two documents."""
    if prompt:
        return tokenizer.encode(prompt)
    try:
        return tokenizer.separator_ids()
    except DataError:  # a vocabulary without line breaks
        return [0]


def check_length(model: GPT, n_prompt: int, n_tokens: int) -> None:
    """ConfigError when the position encoding ends before the last token that must be fed."""
    limit = model.position.limit
    if limit is not None and n_prompt + n_tokens - 1 > limit:
        raise ConfigError(
            f"This model's position encoding ends at {limit} tokens, but {n_prompt} of prompt and {n_tokens} new are "
            f"more: ask for at most {max(0, limit + 1 - n_prompt)} new, or train with position=rope, alibi or none."
        )


def _keep_top_p(logits: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    ordered, order = logits.sort(descending=True, dim=-1)
    p = ordered.softmax(-1)
    spare = p.cumsum(-1) - p >= top_p  # the likelier ones already hold top_p
    return logits.masked_fill(torch.zeros_like(spare).scatter(-1, order, spare), float("-inf"))
