"""The hidden size F of an MLP, from its expansion."""

from __future__ import annotations

from gptlab.components.shape import Shape
from gptlab.errors import ConfigError

MULTIPLE = 8  # what matrix units like; 8/3 of a width is seldom whole


def hidden_size(shape: Shape, expand: float) -> int:
    """expand * n_embd to the nearest multiple of 8. ConfigError when that is nothing."""
    size = MULTIPLE * round(expand * shape.n_embd / MULTIPLE)
    if size < 1:
        raise ConfigError(
            f"model.mlp.expand must leave a hidden size of {MULTIPLE} or more, but {expand} is too small."
        )
    return size
