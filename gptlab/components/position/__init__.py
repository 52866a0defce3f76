"""Position encodings: on the embeddings, on q and k, or on the scores. One file per variant."""

from gptlab.components.position.hooks import Position, Term

__all__ = ["Position", "Term"]
