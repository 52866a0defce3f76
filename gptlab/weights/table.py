"""Tables of names: where each tensor of a gptlab model lies among the tensors of another, to read and to write it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """Tensors of ours, and the one of theirs that holds them, side by side where they are several.

    {i} stands for a layer, {h} for a head. The name of a module stands for the tensors of its own, as weight and bias.
    """

    ours: str | tuple[str, ...]
    theirs: str
    transposed: bool = False  # their matrices are (in, out)
    dim: int = 0  # ours lie side by side along this dimension
    groups: int = 1  # and take turns along it: first a part of each, then the next part of each
    stacked: bool = False  # ours have a new first dimension instead
    skip: int = 0  # rows before the first that is used

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of ours."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Link:
    """One tensor of theirs and what it holds of ours: a row for one layer and one tensor of its modules."""

    row: Row
    theirs: str
    ours: tuple[str, ...]

    def read(self, held: Tensor, sizes: list[torch.Size]) -> list[Tensor]:
        """Ours, which have these sizes, from theirs."""
        held = held[self.row.skip :]
        held = held.mT if self.row.transposed and held.dim() > 1 else held
        if self.row.stacked:
            return list(held.unbind())
        if len(sizes) == 1:
            return [held]
        dim, groups = self.row.dim, self.row.groups
        turns = held.unflatten(dim, (groups, -1)).split([size[dim] // groups for size in sizes], dim + 1)
        return [turn.flatten(dim, dim + 1) for turn in turns]

    def write(self, ours: list[Tensor]) -> Tensor:
        """Theirs from ours: the inverse, with zeros in the rows that are not used."""
        dim, groups = self.row.dim, self.row.groups
        if self.row.stacked:
            held = torch.stack(ours)
        elif len(ours) == 1:
            held = ours[0]
        else:
            held = torch.cat([part.unflatten(dim, (groups, -1)) for part in ours], dim + 1).flatten(dim, dim + 1)
        held = held.mT if self.row.transposed and held.dim() > 1 else held
        return torch.cat((held.new_zeros(self.row.skip, *held.shape[1:]), held))


def links(table: Iterable[Row], names: Iterable[str]) -> list[Link]:
    """The rows of a table, for tensors of ours of these names. Each name must be in exactly one."""
    found: dict[tuple[Row, str], dict[int, str]] = defaultdict(dict)
    places = [(row, at, _pattern(part)) for row in table for at, part in enumerate(row.parts)]
    for name in names:
        matches = [(row, at, match) for row, at, pattern in places if (match := pattern.fullmatch(name))]
        assert len(matches) == 1, f"{name} is in {len(matches)} rows of the table"
        ((row, at, match),) = matches
        found[row, row.theirs.format(**match.groupdict()) + (match["leaf"] or "")][at] = name
    for (row, theirs), ours in found.items():
        assert len(ours) == len(row.parts), f"{theirs} holds {len(row.parts)} tensors, but there is only {ours}"
    return [Link(row, theirs, tuple(ours[at] for at in sorted(ours))) for (row, theirs), ours in found.items()]


def read(found: list[Link], theirs: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of ours, which are `like` these, from theirs."""
    tensors: dict[str, Tensor] = {}
    for link in found:
        parts = link.read(theirs[link.theirs], [like[name].shape for name in link.ours])
        tensors.update(zip(link.ours, parts, strict=True))
    return tensors


def _pattern(part: str) -> re.Pattern[str]:
    numbered = re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(part))
    return re.compile(numbered + r"(?P<leaf>\.\w+)?")
