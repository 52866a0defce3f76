"""Directions of the residual stream: kept in files, combined, added, projected out.

Turner et al. 2023, arXiv:2308.10248; Arditi et al. 2024, arXiv:2406.11717.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptlab import activations
from gptlab.config import require
from gptlab.errors import DataError
from gptlab.files import write_atomically
from gptlab.model import GPT
from gptlab.seeds import seed_of

Vectors = Mapping[int, Tensor]  # what dose 1 adds to the residual stream, (C,), by the layer after which it does
Edits = dict[str, activations.Function]


@dataclass(frozen=True)
class Direction:
    """A unit vector after a layer, and the mean norm that the residual stream has there: the unit of doses."""

    unit: Float[Tensor, " C"]
    norm: float
    layer: int
    run: str = ""  # where it was found, if that is known

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write it as safetensors, with what is known of it beside the layer."""
        tensors = {"unit": self.unit.contiguous(), "norm": torch.tensor(self.norm, dtype=torch.float64)}
        words = {name: str(value) for name, value in {**about, "layer": self.layer}.items()}
        write_atomically(path, safetensors.torch.save(tensors, words))

    @classmethod
    def load(cls, path: Path) -> Direction:
        """Read what `save` wrote. DataError for any other file."""
        try:
            with safe_open(path, framework="pt") as file:
                unit, norm = file.get_tensor("unit"), file.get_tensor("norm")
                about = file.metadata() or {}
                return cls(unit, float(norm), int(about["layer"]), about.get("run", ""))
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise DataError(f"A direction is a file that gptlab steer wrote, but {path} is none ({error}).") from None

    def check(self, model: GPT, where: str) -> None:
        """ConfigError where the model has no such layer or another width."""
        width, n_layer = model.config.n_embd, len(model.blocks)
        require(
            self.unit.shape == (width,) and 0 <= self.layer < n_layer,
            f"A direction must fit the model, which has width {width} and layers 0 to {n_layer - 1}, but {where} has "
            f"width {self.unit.numel()} and is of layer {self.layer}: find one in this run.",
        )


def point(layer: int) -> str:
    """The residual stream after a layer, as `activations` calls it."""
    return f"blocks.{layer}.out"


def combine(directions: Sequence[tuple[Direction, float]]) -> Vectors:
    """At each layer the sum of its directions, each times its norm and its weight."""
    total: dict[int, Tensor] = {}
    for direction, weight in directions:
        vector = weight * direction.norm * direction.unit
        total[direction.layer] = total.get(direction.layer, torch.zeros_like(vector)) + vector
    return total


def random_like(vectors: Vectors, seed: int) -> Vectors:
    """Vectors of the same norms that point anywhere."""
    found = {}
    for layer, vector in vectors.items():
        generator = torch.Generator().manual_seed(seed_of(seed, "random direction", layer))
        anywhere = torch.randn(vector.shape, generator=generator, dtype=torch.float64)
        found[layer] = vector.norm() * anywhere / anywhere.norm()
    return found


def added(vectors: Vectors, dose: float) -> Edits:
    """Every token's residual stream plus `dose` times the vector of each layer; at dose 0 itself, bit by bit."""

    def add(shift: Tensor) -> activations.Function:
        return lambda x: x + shift.to(x) if dose else x

    return {point(layer): add(dose * vector) for layer, vector in vectors.items()}


def projected_out(directions: Sequence[Direction]) -> Edits:
    """Every token's residual stream without its part in what the directions of a layer span."""

    def remove(basis: Float[Tensor, "K C"]) -> activations.Function:
        return lambda x: x - x @ basis.to(x).mT @ basis.to(x)

    layers = sorted({direction.layer for direction in directions})
    units = {layer: torch.stack([one.unit for one in directions if one.layer == layer]) for layer in layers}
    return {point(layer): remove(_basis(rows)) for layer, rows in units.items()}


def _basis(rows: Float[Tensor, "N C"]) -> Float[Tensor, "K C"]:
    """Orthonormal vectors that span the rows, as many as needed."""
    strengths, axes = torch.linalg.svd(rows.double(), full_matrices=False)[1:]
    return axes[strengths > 1e-6 * strengths[0]]
