"""Studies and runs as their files, written without training: what the tests of comparisons read."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIG = {
    "name": "gptlab",
    "seed": 0,
    "run_dir": None,
    "plugins": [],
    "logger": "none",
    "model": {
        "block_size": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 128,
        "mlp": {"name": "plain", "activation": "gelu", "expand": 4.0},
    },
    "data": {"name": "text", "path": "/texts/input.txt"},
    "tokenizer": {"name": "char"},
    "optimizer": {"name": "adamw", "lr": 0.001},
    "schedule": {"name": "cosine"},
    "trainer": {"steps": 1000, "batch_size": 16, "accumulate": 1, "device": "cpu", "eval_every": 100},
}
RULER = {1: 3.3473, 2: 2.4819, 3: 2.0407, 4: 1.7221, 5: 1.5644, 6: 1.5283, 7: 1.5225}
INIT = {"embed.weight": "0badcafe", "head.weight": "12345678"}


def config(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A run's config; `changes` by keys whose dots are written as __."""
    tree: dict[str, Any] = copy.deepcopy(CONFIG)
    tree["seed"] = seed
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    return tree


def curve(end: float, steps: int = 1000, begin: float = 4.2) -> list[tuple[int, float]]:
    """A loss that falls to `end`."""
    evaluated = range(steps // 10, steps + 1, steps // 10)
    return [(step, end + (begin - end) * 0.6 * ((steps - step) / steps) ** 3) for step in evaluated]


def write_run(
    path: Path,
    end: float | None = 2.0,
    *,
    tree: dict[str, Any] | None = None,
    study: Mapping[str, Any] | None = None,
    overrides: tuple[str, ...] = (),
    rows: list[dict[str, Any]] | None = None,
    sample: str = "To be",
    **summary: Any,
) -> Path:
    """A run directory that ended with the loss `end`; None: one that was not finite."""
    tree = config() if tree is None else tree
    seed, steps = tree["seed"], tree["trainer"]["steps"]
    path.mkdir(parents=True, exist_ok=True)
    found = {
        "status": "done",
        "error": None,
        "step": steps,
        "steps": steps,
        "val_loss": end,
        "best_val_loss": end,
        "best_step": steps,
        "val_bpb": None if end is None else end / 0.6931471805599453,
        "ruler": RULER,
        "parameters": 420_000,
        "flops_per_token": 2.6e6,
        "tokens": 1024 * steps,
        "seconds": 0.013 * steps,
        "seconds_per_step": 0.012,
        "peak_memory": 312_000_000,
        "precision": "fp32",
        "hardware": {"device": "cpu"},
        "versions": {"torch": "2.13.0"},
        "data": "text-a",
        "signature": {"init": INIT, "data": f"batches-{seed}"},
    }
    points = [] if end is None else curve(end, steps)
    flops = found["flops_per_token"]
    made = [
        {"step": n, "tokens": 1024 * n, "seconds": 0.012 * n, "flops": 1024 * n * flops, "val/loss": loss}
        for n, loss in points
    ]
    _dump(path / "summary.json", {**found, **summary})
    _dump(path / "command.json", {"overrides": list(overrides), **({"study": dict(study)} if study else {})})
    (path / "config.yaml").write_text(yaml.safe_dump(tree))
    _rows(path / "metrics.jsonl", made if rows is None else rows)
    _rows(path / "samples.jsonl", [{"step": 0, "text": "xq"}, {"step": steps, "text": sample}])
    return path


def write_point(
    study: Path, arm: str, seed: int, end: float | None = 2.0, *, phase: str = "test", **about: Any
) -> Path:
    """A finished point of a study: its order and its run."""
    tree = about.pop("tree", None) or config(seed)
    name = about.pop("name", f"seed{seed}")
    folder = study / phase / arm
    order = {"phase": phase, "arm": arm, "seed": seed, "hash": f"{arm}{seed}", "config": tree, "extra": {}}
    _dump(folder / f"{name}.json", order)
    return write_run(folder / name, end, tree=tree, study=order, **about)


def write_failed(study: Path, arm: str, seed: int, error: str, *, phase: str = "test", **summary: Any) -> Path:
    """A point that failed, with its error as points leave it."""
    path = write_point(study, arm, seed, None, phase=phase, status="failed", error=error, **summary)
    path.with_suffix(".failed").write_text(error)
    path.with_name(f"{path.name}.log").write_text(f"beginning\n{error}\n")
    return path


def write_plan(study: Path, arms: Mapping[str, Any], **changes: Any) -> Path:
    """plan.json of a study: arm -> its overrides, or all that the plan says of it."""
    declared = [
        {"name": name, "config": config(), "costs": {}, "match": None}
        | (about if isinstance(about, dict) else {"overrides": about})
        for name, about in arms.items()
    ]
    plan = {
        "format": 1,
        "question": "Does a gated MLP beat GELU?",
        "metric": "val/loss",
        "better": "lower",
        "margin": 0.005,
        "baseline": next(iter(arms), None),
        "match": "params",
        "seeds": [0, 1, 2],
        "tune": "none",
        "created": "2026-11-20T12:00:00",
        "arms": declared,
        "hash": "ab" * 32,
        **changes,
    }
    _dump(study / "plan.json", plan)
    return study


def _dump(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def _rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
