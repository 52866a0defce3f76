"""A run, opened to look inside: each view is a method that returns a figure, with its numbers as `figure.numbers`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from gptlab import data, registry, tokenizer
from gptlab.config import require
from gptlab.errors import DataError
from gptlab.evaluation import require_order
from gptlab.inside import (
    attribution,
    drawing,
    embeddings,
    experts,
    heads,
    lens,
    losses,
    maps,
    patching,
    rope,
    stability,
)
from gptlab.pairs import Pairs
from gptlab.rundir import chosen, model_of, read_config, trained_on
from gptlab.rundirs import TOKENIZER, find
from gptlab.scoring import dataset_of
from gptlab.tasks import SymbolTokenizer, Task
from gptlab.tasks.draws import Array
from gptlab.text import PairSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH = 32  # tokens of validation that are looked at where no text is given
ROWS = 64  # sequences of validation that a mean is of
LETTERS = 8  # of a token in a figure


def open(run: str | Path = "latest", *, step: int | None = None, note: Callable[[str], None] = print) -> Lab:
    """The newest model of a run, or its best, or that of a step, to look inside; `run` is a directory or `latest`."""
    return Lab(run, step=step, note=note)


class Lab:
    """A model and its tokenizer, on the CPU. Where no text is given, views read the beginning of validation."""

    def __init__(self, run: str | Path, *, step: int | None = None, note: Callable[[str], None] = print) -> None:
        self.path, self.note = find(str(run)), note
        config = read_config(self.path)
        saved = chosen(self.path, config, step, note)
        self.step, self.checkpoint = saved.step, saved.path
        self.model, self.tokenizer = model_of(config, saved), tokenizer.load(self.path / TOKENIZER)

    def attention(self, text: str | None = None, layer: int | None = None, head: int | None = None) -> Figure:
        """Who looks (rows) at whom (columns). Rows sum to 1, less what goes to a sink.

        Nobody sees the future, but for that of a source under a prefix mask. A layer without a softmax is shown by the
        influence of tokens on tokens.
        """
        tokens = self.read(text)
        found = [each for each in maps.maps(self.model, tokens) if layer in (None, each.layer)]
        who = "this model" if layer is None else f"layer {layer}"
        require(bool(found), f"A map is of an attention, but {who} has none: look at another.")
        heads = [range(each.weights.shape[1]) if head is None else [head] for each in found]
        least = min(each.weights.shape[1] for each in found)
        require(head is None or 0 <= head < least, f"A head is from 0 to {least - 1} here, but {head} is none of them.")
        return _shown(drawing.attention(found, heads, self.words(tokens[0])), found)

    def heads(self) -> Figure:
        """Mean attention on random tokens that come twice: to the token before; to the same token before; behind that.

        The last is induction. A frame is around what a head is found to do.
        """
        found = heads.detect(self.model)
        require(bool(found), "Heads are of an attention, but this model has none.")
        return _shown(drawing.heads(found), found)

    def lens(self, text: str | None = None) -> Figure:
        """What the head would say were the residual stream read at each depth. The last row is what the model says."""
        tokens = self.read(text)
        found = lens.lens(self.model, tokens)
        said = [self.words(row) for row in found.logits[:, 0].argmax(-1)]
        return _shown(drawing.lens(found, self.words(tokens[0]), said), found)

    def attribution(self, text: str | None = None, against: str | None = None) -> Figure:
        """What each piece of the residual stream gives to the logit of the next token, with the final norm held.

        Less the mean logit, or that of another token. With the biases of norm and head, a column sums to the logit.
        """
        tokens = self.read(text)
        targets = tokens.roll(-1, dims=1)
        targets[:, -1] = self._likeliest(tokens)
        other = None if against is None else torch.full_like(tokens, self._token(against))
        found = attribution.attribute(self.model, tokens, targets, other)
        return _shown(drawing.attribution(found, self.words(tokens[0]), self.words(targets[0])), found)

    def patch(
        self, clean: str, corrupted: str, right: str | None = None, wrong: str | None = None, point: str = "out"
    ) -> Figure:
        """The corrupted text with the residual stream of the clean one at one place: how much of the answer comes back.

        The answers are the tokens that the model goes on with, unless they are given; 1 is all of their difference.
        """
        texts = [self.read(text) for text in (clean, corrupted)]
        given = zip(texts, (right, wrong), strict=True)
        one, other = (self._likeliest(tokens) if said is None else self._token(said) for tokens, said in given)
        said = self.tokenizer.decode([one])
        require(
            one != other,
            f"Both answers are {said!r}, which tells nothing: give --right and --wrong, or other texts.",
        )
        found = patching.patch(self.model, texts[0][0], texts[1][0], one, other, point)
        return _shown(drawing.patching(found, *(self.words(tokens[0]) for tokens in texts)), found)

    def compare(self, other: str | Path | Lab, text: str | None = None) -> Figure:
        """Blue: this run knew the token better. Red: the other one did."""
        lab = other if isinstance(other, Lab) else Lab(other, note=self.note)
        same = lab.tokenizer.state() == self.tokenizer.state()
        require(same, f"Losses are compared token by token, but {lab.path} has another tokenizer: name another run.")
        tokens = self.read(text)
        require_order(self.model)
        require_order(lab.model)
        found = losses.difference(self.model, lab.model, tokens[:, :-1], tokens[:, 1:])[0]
        names = (f"{self.path.name}, step {self.step}", f"{lab.path.name}, step {lab.step}")
        return _shown(drawing.compare(found, self.words(tokens[0, 1:]), names), found)

    def positions(self) -> Figure:
        """Mean loss on validation by how many tokens the prediction is made from; the band is two standard errors."""
        found = losses.by_position(self.model, *self.validation(ROWS))
        return _shown(drawing.positions(found), found)

    def embeddings(self, text: str | None = None) -> Figure:
        """Tokens along the two directions of the largest variance; beside them, the nearest of some by the cosine."""
        asked = list(dict.fromkeys(self.read(text)[0].tolist()))[:LENGTH]
        found = embeddings.components(self.model)
        near = embeddings.neighbours(self.model, torch.tensor(asked))
        return _shown(drawing.embeddings(found, self.words(range(len(found.places))), near, asked), (found, near))

    def rope(self) -> Figure:
        """How many tokens each pair of a head takes to turn once."""
        found = rope.wavelengths(self.model)
        return _shown(drawing.rope(found, self.model.config.block_size), found)

    def stability(self, text: str | None = None) -> Figure:
        """The root mean square of the residual stream by depth, and the largest attention logit of each head."""
        found = stability.stability(self.model, self.read(text))
        return _shown(drawing.stability(found), found)

    def experts(self, text: str | None = None) -> Figure:
        """The share of a layer's choices that each of its experts gets, and of the router's weights, on validation.

        Dashed: the share that all would have alike.
        """
        found = experts.loads(self.model, self.validation(ROWS)[0] if text is None else self.read(text))
        require(bool(found), "Experts are chosen by a router, but no MLP here has one: look at a run of mlp=moe.")
        return _shown(drawing.experts(found), found)

    def read(self, text: str | None) -> Int[Tensor, "1 T"]:
        """The tokens of a text, or the first of validation. ConfigError where there are fewer than two."""
        if text is None:
            tokens, targets = self.validation(1)
            asked = (targets[0] != data.IGNORE).nonzero()
            return tokens[:, : min(LENGTH, int(asked[-1]) + 1)]  # behind the last that is asked a row is filled up
        ids = self.tokenizer.encode(text)
        require(len(ids) >= 2, f"A text must have 2 tokens or more, but {text!r} has {len(ids)}: write more.")
        return torch.tensor(ids)[None]

    def validation(self, n_rows: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """The first sequences of what the run is judged on, and what comes after each token: -100 if nobody asks."""
        source = registry.build("data", read_config(self.path).data)
        if isinstance(source, Task | PairSource):
            inputs, targets = self._questions(source)
            return torch.from_numpy(inputs[:n_rows]), torch.from_numpy(targets[:n_rows])
        tokens, block_size = dataset_of(self.path, self.tokenizer).val, self.model.config.block_size
        whole = max(1, (len(tokens) - 1) // block_size)
        return next(data.windows(tokens, block_size=block_size, batch_size=min(n_rows, whole)))

    def words(self, ids: Iterable[Any]) -> list[str]:
        """How tokens are written in a figure: a vocabulary that was rounded up has some without text."""
        known = self.tokenizer.vocab_size
        texts = [self.tokenizer.decode([i]) if i < known else "·" for i in map(int, ids)]
        return [visible(text.strip() if self.tokenizer.name == SymbolTokenizer.name else text) for text in texts]

    def _questions(self, source: Task | PairSource) -> tuple[Array, Array]:
        if isinstance(source, Task):
            return source.validation(source.length)
        pairs = Pairs(source, self.tokenizer)
        if pairs.fingerprint() != trained_on(self.path):
            raise DataError(f"{self.path} was trained on other pairs than {source.path} has now: bring those back.")
        return pairs.validation()

    @torch.no_grad()
    def _likeliest(self, tokens: Int[Tensor, "1 T"]) -> int:
        return int(self.model(tokens, last=True).argmax())

    def _token(self, word: str) -> int:
        ids = self.tokenizer.encode(word)
        require(len(ids) == 1, f"An answer is one token of the run, but {word!r} has {len(ids)}: give another.")
        return ids[0]


def visible(token: str) -> str:
    """A token with what would not be seen in signs, cut where it is long."""
    signs = {"\n": "⏎", "\t": "⇥", " ": "␣"}
    shown = "".join(signs.get(char, char if char.isprintable() else "�") for char in token)
    return shown if len(shown) <= LETTERS else f"{shown[: LETTERS - 1]}…"


def png(figure: Figure) -> bytes:
    """A figure as a picture on white paper."""
    paper = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks is drawn as a box
        figure.savefig(paper, format="png", metadata={"Software": None}, facecolor="white")
    return paper.getvalue()


def _shown(figure: Figure, numbers: Any) -> Figure:
    """The figure with its numbers, and a picture of it for a notebook that has not loaded pyplot."""
    vars(figure).update(numbers=numbers, _repr_png_=lambda: png(figure))
    return figure
