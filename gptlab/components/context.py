"""What travels through the stack beside the residual stream, and the memories that decoding keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gptlab.errors import ConfigError


@dataclass(frozen=True)
class Places:
    """Where tokens stand: absolute positions, and the document that each is of; None where they all may meet."""

    positions: Int[Tensor, "#B T"]
    documents: Int[Tensor, "B T"] | None = None

    def then(self, later: Places) -> Places:
        """These tokens followed by others of the same sequences."""
        documents = None
        if self.documents is not None and later.documents is not None:
            documents = torch.cat((self.documents, later.documents), dim=1)
        return Places(torch.cat((self.positions, later.positions), dim=1), documents)

    def after(self, n: int) -> Places:
        """All but the first n."""
        return Places(self.positions[:, n:], None if self.documents is None else self.documents[:, n:])


@dataclass
class Context:
    """What a part may look at, and where it may leave something: losses, numbers to log, tensors for later layers.

    `positions` is (1 or B, T); they restart at each document where documents are kept apart, and `documents` then says
    which one each token is of. The model adds `losses` to the training loss; the log shows `metrics` as they are.
    """

    positions: Int[Tensor, "#B T"]
    documents: Int[Tensor, "B T"] | None = None
    shared: dict[Any, Any] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def places(self) -> Places:
        """Where the tokens fed stand."""
        return Places(self.positions, self.documents)


@dataclass
class Cache:
    """A model's memory while it decodes: one memory a layer, of the kind its attention makes, and the tokens seen."""

    layers: list[Any]
    length: int = 0
    document: Tensor | int = 0  # (B, 1): of the next token, counted from 0
    began: Tensor | int = 0  # (B, 1): where that document began


class KVCache:
    """Keys, values and where they stand: as many as a next token may see besides itself, `max_len` - 1."""

    def __init__(self, max_len: int) -> None:
        self.n_held = max_len - 1
        self.held: tuple[Tensor, Tensor, Places] | None = None

    def append(
        self, k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"], places: Places
    ) -> tuple[Tensor, Tensor, Places]:
        """All that the fed tokens may see, what is held and what is new: k (B, G, S, D), v (B, G, S, E), places."""
        if self.held is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.held[:2], (k, v), strict=True))
            places = self.held[2].then(places)
        drop = max(0, k.shape[2] - self.n_held)
        self.held = (k[:, :, drop:], v[:, :, drop:], places.after(drop))
        return k, v, places


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
