"""What travels through the stack beside the residual stream, and the memories that decoding keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptlab.errors import ConfigError

SLACK = 64  # slots of a memory beyond those that can be seen: once in so many tokens, these move to its front
TIME = (2, 2, 1, 1)  # which dimension of keys, values, positions and documents counts tokens


@dataclass(frozen=True)
class Places:
    """Where tokens stand: absolute positions, and the document that each is of; None where they all may meet.

    `live` says which slots of a memory of fixed size hold a token that may be looked at; None: all. `prefix` is the
    number of positions that the source of each row has, for an attention that sees it both ways.
    """

    positions: Int[Tensor, "#B T"]
    documents: Int[Tensor, "B T"] | None = None
    live: Bool[Tensor, " T"] | None = None
    prefix: Int[Tensor, "B 1"] | None = None

    def then(self, later: Places) -> Places:
        """These tokens followed by others of the same sequences."""
        documents = None
        if self.documents is not None and later.documents is not None:
            documents = torch.cat((self.documents, later.documents), dim=1)
        return Places(torch.cat((self.positions, later.positions), dim=1), documents)

    def after(self, n: int) -> Places:
        """All but the first n."""
        return Places(self.positions[:, n:], None if self.documents is None else self.documents[:, n:])


class Encoded(NamedTuple):
    """What an encoder put out, for an attention to look at; where `mask` is false it is hidden.

    Each row must show something: what a token looks at is a mean, and there is none of nothing.
    """

    states: Float[Tensor, "#B S C"]
    mask: Bool[Tensor, "#B S"] | None = None


@dataclass
class Context:
    """What a part may look at, and where it may leave something: losses, numbers to log, tensors for later layers.

    `positions` is (1 or B, T); they restart at each document where documents are kept apart, and `documents` then says
    which one each token is of. The model adds `losses` to the training loss; the log shows `metrics` as they are.
    `prefix` is that of `Places`; `memory` is another sequence, as an encoder put it out.
    """

    positions: Int[Tensor, "#B T"]
    documents: Int[Tensor, "B T"] | None = None
    shared: dict[Any, Any] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    prefix: Int[Tensor, "B 1"] | None = None
    memory: Encoded | None = None

    @property
    def places(self) -> Places:
        """Where the tokens fed stand."""
        return Places(self.positions, self.documents, prefix=self.prefix)


@dataclass
class Cache:
    """A model's memory while it decodes: one memory a layer, of the kind its attention makes, and the tokens seen.

    `padding` (B, 1) fills rows up on the left to equal length: it is a document of its own, that no token looks at.
    """

    layers: list[Any]
    length: int = 0
    document: Tensor | int = 0  # (B, 1): of the next token, counted from 0
    began: Tensor | int = 0  # (B, 1): where that document began
    padding: Tensor | None = None
    prefix: Tensor | None = None  # (B, 1): positions of each row's source, which the first call is fed whole

    def pad(self, padding: Int[Tensor, "B 1"]) -> None:
        """Take the first `padding` tokens of each row for padding; before any is fed."""
        self.padding = self.began = padding


class KVCache:
    """Keys, values and where they stand, in buffers made once: a next token sees `max_len` - 1 besides itself.

    Tokens are written one after another; at the end of the buffers, those that can still be seen move to the front.
    """

    def __init__(self, max_len: int) -> None:
        self.n_held, self.size = max_len - 1, max_len + SLACK
        self.end = 0  # slots written
        self.buffers: list[Tensor] = []  # keys, values, positions, and where they are kept apart documents
        self.slot: Tensor | None = None  # of the one token that comes next, (1,), where shapes must not change

    @property
    def held(self) -> list[Tensor]:
        """What the next token may see of keys, values, positions, documents."""
        begin = max(0, self.end - self.n_held)
        return [b.narrow(dim, begin, self.end - begin) for dim, b in zip(TIME, self.buffers, strict=False)]

    def append(
        self, k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"], places: Places
    ) -> tuple[Tensor, Tensor, Places]:
        """All that the fed tokens may see, what is held and what is new: k (B, G, S, D), v (B, G, S, E), places."""
        new = [k, v, places.positions, *([] if places.documents is None else [places.documents])]
        if self.slot is not None:
            return self._put(new, self.slot)
        if not self.buffers:
            self.buffers = [_buffer(part, dim, self.size) for dim, part in zip(TIME, new, strict=False)]
        n_new = k.shape[2]
        if self.end + n_new > self.size:
            held = self.held
            return _seen(self._move([torch.cat(pair, dim) for dim, *pair in zip(TIME, held, new, strict=False)]))
        begin = max(0, self.end - self.n_held)
        for dim, buffer, part in zip(TIME, self.buffers, new, strict=False):
            buffer.narrow(dim, self.end, n_new).copy_(part)
        self.end += n_new
        return _seen([b.narrow(dim, begin, self.end - begin) for dim, b in zip(TIME, self.buffers, strict=False)])

    def _move(self, whole: list[Tensor]) -> list[Tensor]:
        """`whole`, of which the end is held from now on, at the front of the buffers."""
        self.end = min(self.n_held, whole[0].shape[2])
        for dim, buffer, part in zip(TIME, self.buffers, whole, strict=False):
            buffer.narrow(dim, 0, self.end).copy_(part.narrow(dim, part.shape[dim] - self.end, self.end))
        return whole

    def make_room(self) -> None:
        """Choose the slot of the next token, which is fed alone; from now on `append` gives all slots at every call."""
        if self.slot is None:
            self.slot = torch.zeros(1, dtype=torch.long, device=self.buffers[0].device)
        if self.end == self.size:
            self._move([part.clone() for part in self.held])  # what is copied may overlap
        self.slot.fill_(self.end)
        self.end += 1

    def _put(self, new: list[Tensor], slot: Tensor) -> tuple[Tensor, Tensor, Places]:
        """One token into its slot: the same operations whatever was fed before. `live` is what it may see."""
        for dim, buffer, part in zip(TIME, self.buffers, new, strict=False):
            buffer.index_copy_(dim, slot, part.to(buffer.dtype))
        age = slot - torch.arange(self.size, device=slot.device)
        return _seen(self.buffers, (age >= 0) & (age <= self.n_held))


def _buffer(part: Tensor, dim: int, size: int) -> Tensor:
    """Zeros for `size` tokens like those of `part`: what is hidden must be a number, since it is multiplied by 0."""
    return part.new_zeros(*part.shape[:dim], size, *part.shape[dim + 1 :])


def _seen(parts: list[Tensor], live: Tensor | None = None) -> tuple[Tensor, Tensor, Places]:
    k, v, positions, *documents = parts
    return k, v, Places(positions, documents[0] if documents else None, live)


class Unshared(dict[Any, Any]):
    """What a replayed attention finds in place of `shared`, where other layers leave tensors of new tokens alone."""

    def _refuse(self, *ignored: Any) -> NoReturn:
        raise ConfigError(
            "An attention without a memory of its own is fed again what came before, so it cannot replay what other "
            "layers share: write new_cache, or do without context.shared."
        )

    __getitem__ = __setitem__ = __contains__ = get = setdefault = _refuse


class Replay:
    """The newest `max_len` inputs, fed again at every call: right for an attention alone, without `shared`."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.held: tuple[Tensor, Places] | None = None

    def run(
        self, attention: Callable[[Tensor, Context], Tensor], x: Float[Tensor, "B T C"], context: Context
    ) -> Float[Tensor, "B T C"]:
        """What `attention` gives the last T tokens after those before them."""
        n_new, places = x.shape[1], context.places
        if self.held is not None:
            x, places = torch.cat((self.held[0], x), dim=1), self.held[1].then(places)
        drop = max(0, x.shape[1] - max(self.max_len, n_new))
        x, places = x[:, drop:], places.after(drop)
        self.held = (x, places)
        replayed = replace(context, positions=places.positions, documents=places.documents, shared=Unshared())
        return attention(x, replayed)[:, -n_new:]
