"""Tokens out: one at a time from a model with its cache, drawn by temperature, top-k, top-p and min-p."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gptlab.config import require
from gptlab.errors import ConfigError, DataError
from gptlab.model import GPT
from gptlab.seeds import seed_of
from gptlab.tokenizer import Tokenizer


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
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None:
            logits = _keep_top_p(logits, self.top_p)
        p = logits.softmax(-1)
        if self.min_p is not None:
            p = p * (p >= self.min_p * p.max(-1, keepdim=True).values)
        return p / p.sum(-1, keepdim=True)


@torch.no_grad()
def generate(
    model: GPT, prompt: Sequence[int], n_tokens: int, *, draw: Draw | None = None, seeds: Sequence[int] = (0,)
) -> Iterator[list[int]]:
    """Continue `prompt` once per seed; yields the next token of each continuation, `n_tokens` times.

    A continuation depends on its own seed alone, not on how many run beside it. Past block_size, where the position
    encoding has no end, a cache drops its oldest tokens (a running sum keeps all), and the end of a longer prompt is
    what is fed; where the encoding has an end, ConfigError before the first token.
    """
    require(len(prompt) > 0, "A prompt must hold at least one token, but is empty.")
    check_length(model, len(prompt), n_tokens)
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(seed_of(seed, "sample")) for seed in seeds]
    draw = draw or Draw()
    training = model.training
    model.eval()
    try:
        cache = model.new_cache(len(seeds), model.config.block_size)
        seen = list(prompt)[-model.config.block_size :]
        logits = model(torch.tensor([seen] * len(seeds), device=device), cache)[:, -1]
        for i in range(n_tokens):
            p = draw.probabilities(logits).cpu()
            drawn = [int(torch.multinomial(row, 1, generator=g)) for row, g in zip(p, generators, strict=True)]
            yield drawn
            if i + 1 < n_tokens:
                logits = model(torch.tensor(drawn, device=device)[:, None], cache)[:, -1]
    finally:
        model.train(training)


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
