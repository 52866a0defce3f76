"""GPT: embed the tokens, run the blocks, score every next token. (B, T) ids -> (B, T, V) logits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn as nn
from jaxtyping import Bool, Float, Int
from torch import Tensor

import gptlab.components  # noqa: F401  (registers the variants)
from gptlab import registry
from gptlab.components.attention import Attention, trait
from gptlab.components.block import Block, Parts
from gptlab.components.context import Cache, Context, Encoded, Places, Replay
from gptlab.components.position import Position
from gptlab.components.recompute import recomputed
from gptlab.components.scale import Softcap, scaled
from gptlab.components.shape import Shape
from gptlab.config import ModelConfig, as_spec
from gptlab.errors import ConfigError
from gptlab.loss import LARGEST, cross_entropy, in_chunks, of_tokens, padded
from gptlab.seeds import seed_of, seeded


class GPT(nn.Module):
    """A decoder-only model composed from registered parts; initial values depend on (seed, parameter name) alone."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        if config.vocab_size is None or config.vocab_size < 1:
            raise ConfigError(f"model.vocab_size must be at least 1, but is {config.vocab_size}: a tokenizer sets it.")
        self.config = config
        self.recompute = "none"  # or what of a block is computed again in the backward pass: selective, block
        self.residual_in_fp32 = True  # or, under autocast, the residual stream in its type
        self.memory: Encoded | None = None  # what an encoder put out, for the attentions that look at it
        build = functools.partial(_build, seed)
        with seeded(seed, "construction"):
            self._add_embedding(build, config)
            self.position: Position = build("", "position", config.position, _shape(config))
            self.dropout = nn.Dropout(config.dropout)
            blocks = [
                _build_block(build, config, self.position, layer, slots)
                for layer, slots in enumerate(config.slots_of_layers())
            ]
            for block in blocks:
                block.check_stack(blocks)
            self.blocks = nn.ModuleList(blocks)
            closes = self.blocks[-1].final_norm if self.blocks else False
            self.norm = build("", "norm", config.norm, config.n_embd) if closes else nn.Identity()
        _check_documents(self, config)
        _check_source(self, config)
        initialise(self, seed, config.init_std)

    def _add_embedding(self, build: Callable[..., Any], config: ModelConfig) -> None:
        """The two ends: ids to the residual stream, and the stream to logits."""
        assert config.vocab_size is not None
        width, size = config.n_embd, config.embedding_size or config.n_embd
        self.token_embedding = nn.Embedding(config.vocab_size, size)
        self.embedding_proj = nn.Linear(size, width, bias=False) if size != width else nn.Identity()
        self.head_proj = nn.Linear(width, size, bias=False) if size != width else nn.Identity()
        self.head = nn.Linear(size, config.vocab_size, bias=config.head_bias)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        self.embedding_norm: nn.Module = nn.Identity()
        if (norm := config.embedding_norm) is not None:
            self.embedding_norm = build("embedding_", "norm", norm, width, setting="model.embedding_norm")
        self.embedding_scale = scaled(math.sqrt(width) if config.embedding_scale == "sqrt" else config.embedding_scale)
        self.logit_scale = scaled(config.logit_scale)
        self.logit_softcap = nn.Identity() if config.logit_softcap is None else Softcap(config.logit_softcap)

    def forward(
        self, tokens: Int[Tensor, "B T"], cache: Cache | None = None, *, last: bool = False
    ) -> Float[Tensor, "B _ V"]:
        """Logits of the token that follows each of `tokens`, given those before it and those that `cache` holds.

        With `last`, of the token that follows the last one alone.
        """
        hidden, _ = self.hidden(tokens, cache)
        return self.logits(hidden[:, -1:] if last else hidden)

    def loss(
        self, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Sum of the cross entropies (nats) over the targets that are not -100; losses to add; numbers to log."""
        hidden, context = self.hidden(tokens)
        rows, wanted = hidden.flatten(0, 1), targets.flatten()
        n_rows = max(1, LARGEST // self.token_embedding.num_embeddings)
        plain = self.config.z_loss or rows.is_meta or torch.compiler.is_compiling()  # compilers hold no float32 either
        if len(rows) > n_rows and not plain:
            ends = (*self.head_proj.parameters(), *self.head.parameters())
            return in_chunks(rows, wanted, self.logits, ends, n_rows), context.losses, context.metrics
        logits = of_tokens(self._scores(rows), self.head.out_features)
        total = cross_entropy(logits, wanted)
        if self.config.z_loss:
            kept = (wanted >= 0).float()
            squares = logits.to(total.dtype).logsumexp(-1).square() * kept
            context.losses["z_loss"] = self.config.z_loss * squares.sum() / kept.sum().clamp(min=1)
        return total, context.losses, context.metrics

    def hidden(self, tokens: Int[Tensor, "B T"], cache: Cache | None = None) -> tuple[Float[Tensor, "B T C"], Context]:
        """What the head reads."""
        context = self.place(tokens, cache)
        return self.read(tokens, context, cache.layers if cache else [None] * len(self.blocks)), context

    def read(self, tokens: Int[Tensor, "B T"], context: Context, memories: Sequence[Any]) -> Float[Tensor, "B T C"]:
        """`hidden` of tokens whose place is known, by layers that have a memory each, or None."""
        x = self.embedding_scale(self.embedding_proj(self.token_embedding(tokens)))
        x = self.dropout(self.embedding_norm(self.position.embed(x, context.positions)))
        if not self.residual_in_fp32 and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        recompute = self.recompute if torch.is_grad_enabled() else "none"
        for block, memory in zip(self.blocks, memories, strict=True):
            if recompute == "none":
                x = block(x, context, memory)
            else:
                x = recomputed(block, x, context, selective=recompute == "selective")
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows V"]:
        """The head: scaled, then bounded."""
        return self._scores(hidden)[..., : self.head.out_features]

    def _scores(self, hidden: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows W"]:
        """The logits; on CUDA, where odd products are slow, columns of no token may follow."""
        x = self.head_proj(hidden)
        scores = padded(self.head, x) if x.is_cuda and self.head.out_features % 64 else self.head(x)
        return self.logit_softcap(self.logit_scale(scores))

    def place(self, tokens: Int[Tensor, "B T"], cache: Cache | None = None) -> Context:
        """Where the tokens stand after those that `cache` has seen, which from now on include them.

        A source that is seen both ways is fed whole: the first call finds where it ends.
        """
        cache = cache or Cache([])
        index = torch.arange(cache.length, cache.length + tokens.shape[1], device=tokens.device)[None]
        _check_length(self.position.limit, cache.length + tokens.shape[1])
        cache.length += tokens.shape[1]
        places = Places(index)
        if self.config.document_mask or cache.padding is not None:
            places = self._in_documents(tokens, index, cache)
        if self.config.source_end is not None and cache.prefix is None:
            cache.prefix = _prefix(torch.eq(tokens, self.config.source_end), places)
        return Context(places.positions, places.documents, prefix=cache.prefix, memory=self.memory)

    def _in_documents(self, tokens: Int[Tensor, "B T"], index: Int[Tensor, "1 T"], cache: Cache) -> Places:
        """Positions that begin again with each document, and the documents; padding is one of its own, -1."""
        separator = (self.config.separator or 0) if self.config.document_mask else -1
        ends = torch.eq(tokens, separator).long()  # a separator is the last token of its document
        documents = cache.document + ends.cumsum(1) - ends
        begins = (ends * (index + 1)).cummax(1).values.clamp(min=cache.began)  # of the document of the next token
        began = torch.cat((torch.zeros_like(begins[:, :1]) + cache.began, begins[:, :-1]), dim=1)
        cache.document, cache.began = documents[:, -1:] + ends[:, -1:], begins[:, -1:]
        if cache.padding is None:
            return Places(index - began, documents)
        return Places((index - began).clamp(min=0), documents.masked_fill(index < cache.padding, -1))

    def new_cache(self, batch_size: int, max_len: int) -> Cache:
        """An empty memory for decoding: each layer's attention makes what it needs to remember `max_len` tokens."""
        makers = (getattr(attention, "new_cache", None) for attention in self.attentions)
        return Cache([make(batch_size, max_len) if make else Replay(max_len) for make in makers])

    @property
    def attentions(self) -> list[nn.Module]:
        """The attention of each layer."""
        return [cast(Block, block).attention for block in self.blocks]

    @property
    def reads_memory(self) -> bool:
        """Whether a part looks at what an encoder put out."""
        return any(getattr(part, "reads_memory", False) for part in self.modules() if part is not self)

    def n_parameters(self) -> int:
        """All parameters, each counted once."""
        return sum(p.numel() for p in self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: every parameter and persistent buffer once, by its first name."""
        first: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            first.setdefault(id(tensor), (name, tensor.detach()))
        return dict(first.values())

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the values of `tensors()` of an equal model. ConfigError naming the first that does not fit."""
        own = self.tensors()
        odd = sorted(own.keys() ^ tensors.keys()) or [n for n, t in own.items() if t.shape != tensors[n].shape]
        if odd:
            raise ConfigError(f"These weights are of another model: {odd[0]} does not fit ({len(odd)} such tensors).")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])


def initialise(model: GPT, seed: int, std: float) -> None:
    """GPT-2's rule, one generator for each tensor: linear and embedding weights N(0, std), biases 0.

    A linear layer named `proj` writes to the residual stream: its std is divided by sqrt(2 n_layer). Any other
    module with a `reset_parameters` is asked to draw for itself, parents after their children.
    """
    depth = max(1, len(model.blocks))
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear | nn.Embedding):
            scale = (2 * depth) ** -0.5 if name.rpartition(".")[2] == "proj" else 1.0
            _draw_weight(module.weight, seed, f"{name}.weight", std * scale)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters"):
            with seeded(seed, name):
                module.reset_parameters()


def _draw_weight(weight: Tensor, seed: int, name: str, std: float) -> None:
    if not weight.is_meta:
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed_of(seed, name)), device="cpu")
        weight.data.copy_(drawn * std)


def _shape(config: ModelConfig, layer: int = 0) -> Shape:
    return Shape(
        n_embd=config.n_embd, n_head=config.n_head, block_size=config.block_size, n_layer=config.n_layer, layer=layer,
        dropout=config.dropout, bias=config.bias, init_std=config.init_std,
    )  # fmt: skip


def _check_length(limit: int | None, length: int) -> None:
    """ConfigError where the position encoding ends before the last token."""
    if limit is not None and length > limit:
        raise ConfigError(
            f"This position encoding knows {limit} positions, but token {length} was asked for: "
            "feed fewer tokens, or train with position=rope, alibi or none."
        )


def _check_documents(model: GPT, config: ModelConfig) -> None:
    """ConfigError where documents are to be kept apart and something cannot."""
    if not config.document_mask:
        return
    if config.separator is None:
        raise ConfigError("model.document_mask needs the id that ends a document: give model.separator=ID.")
    for attention in model.attentions:
        if not (trait(attention, "separates_documents") or trait(attention, "absent")):
            raise ConfigError(
                f"attention {registry.label('attention', attention)!r} cannot keep documents apart, as model.document_"
                "mask=true asks: choose model/attention=softmax, or leave document_mask out."
            )


def _check_source(model: GPT, config: ModelConfig) -> None:
    """ConfigError where a source is to be seen both ways and no id ends it, or an id does and nothing sees it so."""
    sees = any(trait(attention, "causal") == "prefix" for attention in model.attentions)
    if sees and config.source_end is None:
        raise ConfigError("model.attention.causal=prefix needs the id that ends a source: give model.source_end=ID.")
    if config.source_end is not None and not sees:
        raise ConfigError(
            f"model.source_end={config.source_end} ends what model.attention.causal=prefix sees both ways, but no "
            "layer has that: leave source_end out."
        )
    if sees and config.document_mask:
        raise ConfigError(
            "model.attention.causal=prefix knows one source in a row, but model.document_mask=true puts many documents "
            "there: leave document_mask out."
        )


def _prefix(ends: Bool[Tensor, "B T"], places: Places) -> Int[Tensor, "B 1"]:
    """How many positions the source of each row has, the token that ends it included; 0 where none does."""
    if places.documents is not None:
        ends = ends & (places.documents >= 0)  # padding ends nothing
    first = ends.long().argmax(1, keepdim=True)
    return torch.where(ends, places.positions + 1, 0).gather(1, first)


def _build(seed: int, where: str, slot: str, spec: Any, *args: Any, setting: str = "") -> Any:
    """A part whose own draws in `__init__` depend on (seed, where, slot), not on what was built before it."""
    with seeded(seed, f"{where}{slot}"):
        return registry.build(slot, spec, *args, where=setting)


def _build_block(
    build: Callable[..., Any], config: ModelConfig, shared: Position, layer: int, slots: dict[str, Any]
) -> Block:
    """Layer `layer` from its specs. A layer without a position of its own shares the model's."""
    shape, where = _shape(config, layer), f"blocks.{layer}."
    position = shared
    if slots["position"] != as_spec(config.position):
        position = build(where, "position", slots["position"], shape)
        if "embed" in position.acts:
            raise ConfigError(
                f"position {slots['position']['name']!r} acts on the embeddings, so it belongs to the whole model, not "
                f"to layer {layer}: set position={slots['position']['name']}, or name another in model.layers."
            )
    attention: Attention = build(where, "attention", slots["attention"], shape, position)
    mlp: nn.Module = build(where, "mlp", slots["mlp"], shape)
    parts = Parts(attention, mlp, lambda: build(where, "norm", slots["norm"], shape.n_embd))
    block: Block = build(where, "block", slots["block"], shape, parts)
    return block
