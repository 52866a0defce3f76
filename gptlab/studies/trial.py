"""What an arm costs before it is run: its config whole and checked, its cost counted, its step timed for a moment."""

from __future__ import annotations

import copy
import gc
import io
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from gptlab import assembly, matching, material, points, pretrained
from gptlab.config import RunConfig, from_dict, require, to_dict
from gptlab.cost import flops_per_token
from gptlab.display import Display, PlainDisplay
from gptlab.errors import ConfigError, did_you_mean
from gptlab.matching import Tree
from gptlab.material import Material, Paired, Questioned, Text
from gptlab.model import GPT
from gptlab.step import TrainState, train_step

ROUNDS = 2  # all arms, one after the other, so often: what disturbs the machine for a while disturbs none alone
SECONDS, STEPS = 1.0, 20  # at most, of the timing of one arm in one round
START_SECONDS = 8.0  # of a point besides its steps and evaluations: imports, the sample and the curve at its end
FORWARD = 1 / 3  # of a training step's work


def checked(tree: Tree, overrides: Sequence[str], display: Display) -> Tree:
    """The config with what its text decides (vocabulary, separator), built once without storage. No seed, no place."""
    config = from_dict(copy.deepcopy(tree))
    assembly.check(config)
    material.prepare(config, pretrained.tokenizer_of(config), display.note, overrides)
    return {key: value for key, value in to_dict(config).items() if key not in ("seed", "run_dir")}


def require_metric(metric: str, tree: Tree) -> None:
    """ConfigError for a metric that a run of this config, which was checked, does not log."""
    known = (*_opened(tree)[1].measured, "train/loss")
    require(metric in known, f"metric must be what the runs measure, but is {metric!r}. {did_you_mean(metric, known)}")


def counted(tree: Tree, seconds_per_step: float) -> dict[str, float]:
    """Parameters, FLOPs per token if they can be counted, tokens, seconds of a step, and seconds of a point, about."""
    config, source = _opened(tree)
    plan = config.trainer
    a_token = seconds_per_step / (source.n_sequences * source.length)
    n_passes = max(1, plan.steps // plan.eval_every if plan.eval_every else 1)
    evaluating = n_passes * _n_validation(source) * a_token * FORWARD
    return {
        **_sizes(config, source.length),
        "tokens": plan.steps * source.n_sequences * source.length,
        "seconds_per_step": seconds_per_step,
        "seconds": START_SECONDS + plan.steps * seconds_per_step + evaluating,
    }


def _sizes(config: RunConfig, length: int) -> dict[str, float]:
    """What is counted without storage. A part from outside may need some: it is built, and its FLOPs are left out."""
    try:
        fed = replace(config.model, block_size=length)
        return {"parameters": matching.parameters(config), "flops_per_token": flops_per_token(fed)}
    except RuntimeError:
        return {"parameters": GPT(config.model).n_parameters()}


def paces(arms: Sequence[tuple[str, Tree]], threads: int) -> list[float]:
    """Seconds of a warm step of each arm, alone on this machine. ConfigError naming an arm that cannot take one."""
    found: list[list[float]] = [[] for _ in arms]
    with points.on_threads(threads):
        for _ in range(ROUNDS):
            for (name, tree), times in zip(arms, found, strict=True):
                times.append(_pace(name, tree))
    return [min(times) for times in found]


def _pace(name: str, tree: Tree) -> float:
    """The median of a few steps."""
    try:
        config, source = _opened(tree)
        return statistics.median(_timed(assembly.make_state(config, source, _silent()), source))
    except Exception as error:
        raise ConfigError(f"The arm {name} cannot take a step: {' '.join(str(error).split())}") from error
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _timed(state: TrainState, source: Material) -> Iterator[float]:
    batch = source.batch(0)
    train_step(state, batch)  # compiles, allocates
    until = time.perf_counter() + SECONDS
    for _ in range(STEPS):
        _wait(state.device)
        began = time.perf_counter()
        train_step(state, batch)
        _wait(state.device)
        yield time.perf_counter() - began
        if time.perf_counter() > until:
            return


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _opened(tree: Tree) -> tuple[RunConfig, Material]:
    """The config of an arm that was checked, and what it learns from."""
    config = from_dict(copy.deepcopy({**tree, "seed": 0}))
    return config, material.prepare(config, pretrained.tokenizer_of(config), _silent().note)


def _n_validation(source: Material) -> int:
    """Tokens that an evaluation feeds."""
    if isinstance(source, Questioned):
        return sum(source.validation(size)[0].numel() for size in source.task.sizes)
    if isinstance(source, Paired):
        return source.validation[0].numel()
    return len(source.dataset.val) if isinstance(source, Text) else 0


def _silent() -> Display:
    return PlainDisplay(io.StringIO())
