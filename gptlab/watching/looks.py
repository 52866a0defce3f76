"""Views of a run at a checkpoint that it keeps, drawn when they are asked for and held while there is no newer one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

from gptlab.errors import ConfigError
from gptlab.inside import VIEWS, losses
from gptlab.lab import Lab, png
from gptlab.rundir import kept
from gptlab.watching import statistics

OFFERED = {"statistics": "Activations, gradients, updates", **{k: v for k, v in VIEWS.items() if k != "patch"}}
WITH_TEXT = ("attention", "lens", "attribution", "embeddings", "stability", "experts", "compare")
PICTURES, MODELS = 64, 4  # that are held
LONGEST = 256  # characters of a text
Place = tuple[int | None, int | None]  # a layer and a head; None: all


class Looks:
    """Pictures by run, checkpoint, view and text; one is drawn at a time. The step None is the newest, or the best."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.labs: OrderedDict[Hashable, Lab] = OrderedDict()
        self.pictures: OrderedDict[Hashable, bytes] = OrderedDict()

    def picture(
        self,
        run: Path,
        view: str,
        text: str | None,
        other: Path | None = None,
        step: int | None = None,
        place: Place = (None, None),
    ) -> tuple[bytes, int]:
        """A PNG, and the step it is of. GptlabError, in one line, for a view that this run does not have."""
        if view not in OFFERED:
            raise ConfigError(f"There is no view {view!r}.")
        with self.lock:
            known, lab = self._lab(run, step)
            beside, against = self._lab(other, step) if other else (None, None)
            draw = partial(_drawn, lab, view, _cut(text), against, place)
            return _held(self.pictures, (known, view, _cut(text), beside, place), PICTURES, draw), lab.step

    def tokens(self, run: Path, text: str | None, step: int | None = None) -> dict[str, Any]:
        """Each token of a text with its loss in nats, given those before it; the first has none. And of which step."""
        with self.lock:
            lab = self._lab(run, step)[1]
            ids = lab.read(_cut(text))
            known = losses.token_losses(lab.model, ids[:, :-1], ids[:, 1:])[0].tolist()
            pieces = [lab.tokenizer.decode([int(i)]) for i in ids[0]]
        pairs = zip(pieces, [None, *known], strict=True)
        return {"step": lab.step, "tokens": [{"text": piece, "loss": loss} for piece, loss in pairs]}

    def _lab(self, run: Path, step: int | None) -> tuple[Hashable, Lab]:
        """A run at a step, opened again whenever that checkpoint is another; and what it is known by."""
        known = (run, step, _state(run, step))
        return known, _held(self.labs, known, MODELS, partial(Lab, run, step=step, note=lambda line: None))


def _state(run: Path, step: int | None) -> Hashable:
    """What would be opened: the checkpoint of a step, or of all steps."""
    try:
        return tuple((path, path.stat().st_mtime_ns) for at, path in kept(run).items() if step in (None, at))
    except OSError:  # one was removed just now
        return None


def _drawn(lab: Lab, view: str, text: str | None, other: Lab | None, place: Place) -> bytes:
    if view == "attention":
        return png(lab.attention(text, *place))
    if view == "statistics":
        return png(statistics.draw(statistics.statistics(lab)))
    if view == "compare":
        if other is None:
            raise ConfigError("A comparison is of two runs: choose another one beside this.")
        return png(lab.compare(other, text))
    return png(getattr(lab, view)(text) if view in WITH_TEXT else getattr(lab, view)())


def _held(held: OrderedDict[Hashable, Any], key: Hashable, most: int, make: Callable[[], Any]) -> Any:
    """What is held under a key, made where it is not there; of more than `most` the one asked for longest ago goes."""
    if key not in held:
        held[key] = make()
    held.move_to_end(key)
    while len(held) > most:
        held.popitem(last=False)
    return held[key]


def _cut(text: str | None) -> str | None:
    return text[:LONGEST] if text else None
