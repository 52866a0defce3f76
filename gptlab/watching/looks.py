"""Views of a run's newest checkpoint, drawn when they are asked for and kept until there is a newer one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from gptlab import checkpoint
from gptlab.errors import ConfigError
from gptlab.inside import VIEWS, losses
from gptlab.lab import Lab, png
from gptlab.watching import statistics

OFFERED = {"statistics": "Activations, gradients, updates", **{k: v for k, v in VIEWS.items() if k != "patch"}}
WITH_TEXT = ("attention", "lens", "attribution", "embeddings", "stability", "compare")
KEPT = 64  # pictures
LONGEST = 2000  # characters of a text


class Looks:
    """Pictures by run, checkpoint, view and text; one is drawn at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.labs: dict[Path, tuple[Any, Lab]] = {}
        self.pictures: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()

    def picture(self, run: Path, view: str, text: str | None, other: Path | None) -> bytes:
        """A PNG. GptlabError, in one line, for a view that this run does not have."""
        if view not in OFFERED:
            raise ConfigError(f"There is no view {view!r}.")
        with self.lock:
            lab, state = self._lab(run)
            key = (run, state, view, _cut(text), other and (other, self._lab(other)[1]))
            if key not in self.pictures:
                self.pictures[key] = png(self._drawn(lab, view, _cut(text), other))
            self.pictures.move_to_end(key)
            while len(self.pictures) > KEPT:
                self.pictures.popitem(last=False)
            return self.pictures[key]

    def tokens(self, run: Path, text: str | None) -> list[dict[str, Any]]:
        """Each token of a text with its loss in nats, given those before it; the first has none."""
        with self.lock:
            lab, _ = self._lab(run)
            ids = lab.read(_cut(text))
            known = losses.token_losses(lab.model, ids[:, :-1], ids[:, 1:])[0].tolist()
            pieces = [lab.tokenizer.decode([int(i)]) for i in ids[0]]
        return [{"text": piece, "loss": loss} for piece, loss in zip(pieces, [None, *known], strict=True)]

    def _drawn(self, lab: Lab, view: str, text: str | None, other: Path | None) -> Any:
        if view == "statistics":
            return statistics.draw(statistics.statistics(lab))
        if view == "compare":
            if other is None:
                raise ConfigError("A comparison is of two runs: choose another one beside this.")
            return lab.compare(self._lab(other)[0], text)
        return getattr(lab, view)(text) if view in WITH_TEXT else getattr(lab, view)()

    def _lab(self, run: Path) -> tuple[Lab, Any]:
        """A run, opened again whenever there is a newer checkpoint."""
        newest = checkpoint.newest(run)
        state = newest and (newest.name, newest.stat().st_mtime_ns)
        if run not in self.labs or self.labs[run][0] != state:
            torch.set_grad_enabled(True)
            self.labs[run] = state, Lab(run, note=lambda line: None)
        return self.labs[run][1], state


def _cut(text: str | None) -> str | None:
    return text[:LONGEST] if text else None
