"""A text, a model and runs of them that take a blink: what the tests of the upper floors train."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptlab import checkpoint, exits, registry, train
from gptlab.components.context import Encoded
from gptlab.config import ModelConfig, TrainerConfig
from gptlab.model import GPT
from gptlab.optimizer import parameter_groups
from gptlab.step import Batch, TrainState

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "far", "away", "from", "all", "of", "us"]
SETTINGS = {
    "data": "text",
    "data.path": "text.txt",
    "tokenizer": "char",
    "model/attention": "flash",
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 16,
    "model.block_size": 16,
    "model.dropout": 0.2,
    "schedule.warmup": 2,
    "trainer.steps": 12,
    "trainer.batch_size": 4,
    "trainer.log_every": 2,
    "trainer.eval_every": 6,
    "trainer.save_every": 3,
    "trainer.sample_every": 6,
    "trainer.sample_tokens": 8,
    "trainer.device": "cpu",
    "trainer.precision": "fp32",
    "logger": "none",
}
TEXTS = ("data=text", "data=python", "data=shakespeare", "data=names", "data=hf")
CLOCKED = ("seconds", "tokens_per_second", "mfu")  # what no two runs share


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def write_text(folder: Path, lines: int = 200) -> Path:
    """A small text of few words in `folder`/text.txt."""
    draw = random.Random(0)
    path = folder / "text.txt"
    path.write_text("".join(" ".join(draw.choices(WORDS, k=8)) + "\n" for _ in range(lines)))
    return path


def overrides(*words: str) -> list[str]:
    """The settings above, then `words`; what `words` set is left out of them."""
    given = {word.partition("=")[0] for word in words}
    if given & {"data", "experiment"}:
        given |= {"data", "data.path"}
    if any(word.startswith(("data=", "experiment=")) and word not in TEXTS for word in words):
        given.add("trainer.sample_tokens")  # questions have lengths of their own
    return [*(f"{key}={value}" for key, value in SETTINGS.items() if key not in given), *words]


def call(door: Any, *argv: str) -> Ended:
    """A door called in this process, as its command would be."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exits.run(door.main, list(argv))
        except SystemExit as end:
            code = int(end.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def run(*words: str) -> Ended:
    """A training in this process, in the current directory."""
    return call(train, *overrides(*words))


def spawn(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """`python ...` in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> Ended:
    """Wait for a process, at most a minute and a half."""
    out, err = process.communicate(timeout=90)
    return Ended(process.returncode, out, err)


def rows(run_dir: Path | str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows a run wrote, without what a clock decides."""
    lines = [json.loads(line) for line in (Path(run_dir) / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCKED} for row in lines]


def summary(run_dir: Path | str) -> dict[str, Any]:
    """summary.json."""
    return json.loads((Path(run_dir) / "summary.json").read_text())


def newest(run_dir: Path | str) -> checkpoint.Checkpoint:
    """The newest checkpoint, which must be a good one."""
    notes: list[str] = []
    loaded = checkpoint.load(Path(run_dir), note=notes.append)
    assert notes == []
    return loaded


def must_be_same(one: Path | str, other: Path | str) -> None:
    """Two runs ended with the same bits and wrote the same rows."""
    a, b = newest(one), newest(other)
    assert a.step == b.step
    for group in ("model", "optimizer"):
        assert a.tensors[group].keys() == b.tensors[group].keys()
        for name, tensor in a.tensors[group].items():
            assert torch.equal(tensor, b.tensors[group][name]), f"{group} {name} differs"
    assert rows(one) == rows(other)
    assert rows(one, "samples.jsonl") == rows(other, "samples.jsonl")


def state(model: dict[str, Any] | None = None, optimizer: dict[str, Any] | None = None, **settings: Any) -> TrainState:
    """What trains a tiny model, without a run around it."""
    config = {"vocab_size": 11, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, **(model or {})}
    gpt = GPT(ModelConfig(**config))
    plan = TrainerConfig(**{"batch_size": 4, "steps": 8, "save_every": 0, "eval_every": 0, **settings})
    spec = {"name": "adamw", **(optimizer or {})}
    return TrainState(
        model=gpt,
        optimizer=registry.build("optimizer", spec, parameter_groups(gpt)),
        schedule=registry.build("schedule", {"name": "constant", "warmup": 0}, plan.steps),
        config=plan,
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
    )


def with_memory(model: GPT) -> GPT:
    """The model; where a part looks at what an encoder put out, with something of the kind."""
    if model.reads_memory:
        some = next(model.parameters())
        draw = torch.Generator().manual_seed(0)
        model.memory = Encoded(torch.randn(1, 5, model.config.n_embd, generator=draw).to(some))
    return model


def batch_of(step: int, n: int = 4, masked: float = 0.0) -> Batch:
    """Tokens for such a model, and those after each; a share of them masked."""
    draw = torch.Generator().manual_seed(step)
    tokens = torch.randint(11, (n, 9), generator=draw)
    targets = tokens[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=draw) < masked] = -100
    return tokens[:, :-1].contiguous(), targets
