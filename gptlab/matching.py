"""Equal cost: the width at which an arm costs what the baseline does, or the number of steps; nothing is trained.

Unmatched comparisons lie: Narang et al. 2021, arXiv:2102.11972.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from gptlab import registry
from gptlab.components.mlp.hidden import MULTIPLE
from gptlab.config import RunConfig, as_spec, from_dict, require_choice
from gptlab.cost import flops_per_token
from gptlab.errors import ConfigError
from gptlab.model import GPT
from gptlab.tasks import Task

Tree = dict[str, Any]  # a RunConfig as plain data, with the vocabulary known
WAYS = ("none", "params", "flops", "time")
TIMES = 4096  # how much wider or narrower than it was a width may become


@dataclass(frozen=True)
class Match:
    """What was set to make an arm cost what the baseline does, and how near that came."""

    width: str  # the setting
    before: float
    after: float
    cost: str  # params, flops (of the whole run) or seconds (of the whole run)
    target: float  # the baseline's
    reached: float


def match(
    baseline: Tree,
    arm: Tree,
    by: str,
    width: str | None = None,
    tolerance: float = 0.01,
    seconds: Callable[[Tree], float] | None = None,
) -> tuple[Tree, Match | None]:
    """The arm at the baseline's cost, and what that took; the baseline stays as it is.

    `seconds` gives those of a step, for `by="time"`. ConfigError naming the nearest costs where none is near enough.
    """
    require_choice("match", by, WAYS)
    if by == "none":
        return arm, None
    if by == "time":
        assert seconds is not None, "match=time needs the seconds of a step"
        return _match_time(baseline, arm, tolerance, seconds)
    return _Free(arm, by, width).solve(_cost(baseline, by), tolerance)


def parameters(config: RunConfig) -> int:
    """The parameters of a model, counted without storage."""
    with torch.device("meta"):
        return GPT(config.model).n_parameters()


def flops(config: RunConfig) -> float:
    """FLOPs of a whole run, at the length that it feeds: its context, or what a question of its task has."""
    source, plan = registry.build("data", config.data), config.trainer
    length = source.n_tokens(source.length) if isinstance(source, Task) else config.model.block_size
    tokens = plan.steps * plan.batch_size * plan.accumulate * length
    return tokens * flops_per_token(replace(config.model, block_size=length))


def changed(tree: Tree, path: str, value: Any) -> Tree:
    """A copy of a config with one setting changed."""
    tree = copy.deepcopy(tree)
    node, keys = tree, path.split(".")
    for key in keys[:-1]:
        node[key] = as_spec(node[key])
        node = node[key]
    node[keys[-1]] = value
    return tree


def _match_time(
    baseline: Tree, arm: Tree, tolerance: float, seconds: Callable[[Tree], float]
) -> tuple[Tree, Match | None]:
    """The number of steps that takes as long as the baseline's; the schedule is over those steps by itself."""
    steps = baseline["trainer"]["steps"]
    target, pace = steps * seconds(baseline), seconds(arm)
    after = max(1, round(target / pace))
    if abs(after * pace / target - 1) > tolerance:
        raise ConfigError(
            f"match=time needs a number of steps that takes {target:.3g} s within {tolerance:.1%}, but {after} take "
            f"{after * pace:.3g} s: raise trainer.steps or tolerance."
        )
    found = Match("trainer.steps", arm["trainer"]["steps"], after, "seconds", target, after * pace)
    return changed(arm, "trainer.steps", after), found


def _cost(tree: Tree, by: str) -> float:
    config = from_dict(tree)
    try:
        return parameters(config) if by == "params" else flops(config)
    except RuntimeError as error:
        raise ConfigError(f"match={by} counts a model without storage, but a part cannot be so: {error}") from error


class _Free:
    """An arm as a function of its free width, which is `n` units: hidden units of an MLP, or what an option counts."""

    def __init__(self, arm: Tree, by: str, width: str | None) -> None:
        self.arm, self.by = arm, by
        self.path = width or _usual(arm)
        value = _read(arm, self.path)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"A width is a number, but {self.path} is {value!r}: name another with width=.")
        self.before = value
        self.whole = isinstance(value, int)
        self.unit = 1.0 if self.whole else 1 / arm["model"]["n_embd"]
        if self.path == "model.n_embd":
            self.unit = 2.0 * arm["model"]["n_head"]  # a head has an even size, which rotations need
        self.known: dict[int, float] = {}

    def value(self, n: int) -> float:
        """The setting at n units."""
        return round(n * self.unit) if self.whole else n * self.unit

    def cost(self, n: int) -> float:
        """The cost at n units; below any where that is too narrow to be."""
        if n not in self.known:
            try:
                self.known[n] = _cost(changed(self.arm, self.path, self.value(n)), self.by)
            except ConfigError:
                self.known[n] = -math.inf
        return self.known[n]

    def solve(self, target: float, tolerance: float) -> tuple[Tree, Match]:
        """The arm at the width whose cost is nearest to the target; at its own, where none is nearer."""
        own = _cost(self.arm, self.by)
        candidates = [(own, self.before), *((self.cost(n), self.value(n)) for n in self._around(target))]
        reached, after = min(candidates, key=lambda pair: abs(pair[0] - target))
        if abs(reached / target - 1) > tolerance:
            raise self._unreachable(candidates, target, tolerance)
        return changed(self.arm, self.path, after), Match(self.path, self.before, after, self.by, target, reached)

    def _around(self, target: float) -> list[int]:
        """The last number of units below the target and the first at it or above, those that can be."""
        start = max(1, round(self.before / self.unit))
        low = high = start
        while self.cost(high) < target and high < start * TIMES:
            low, high = high, 2 * high
        while self.cost(low) >= target and low > 0:
            low, high = low // 2, low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.cost(middle) < target else (low, middle)
        return [self._round(n) for n in (low, high) if n > 0 and self.cost(n) > 0]

    def _round(self, n: int) -> int:
        """A multiple of 8 of the same cost, which is what an MLP makes of its hidden size."""
        near = MULTIPLE * round(n / MULTIPLE)
        return next((m for m in (near, near + MULTIPLE, near - MULTIPLE) if m > 0 and self.cost(m) == self.cost(n)), n)

    def _unreachable(self, candidates: list[tuple[float, float]], target: float, tolerance: float) -> ConfigError:
        if len({cost for cost, _ in candidates}) == 1:
            return ConfigError(f"match={self.by} needs a width that changes the cost, but {self.path} does not.")
        near = " and ".join(
            f"{cost:,.6g} ({self.path}={value:.6g}, {cost / target - 1:+.1%})" for cost, value in candidates[1:]
        )
        return ConfigError(
            f"match={self.by} must come within {tolerance:.1%} of the baseline's {target:,.6g}, but what {self.path} "
            f"comes nearest with is {near or 'nothing'}: raise tolerance, or choose another setting with width=."
        )


def _usual(arm: Tree) -> str:
    """The setting that the arm's MLP says is its width. ConfigError where it says none."""
    name = registry.name_of("mlp", arm["model"]["mlp"])
    option = getattr(registry.get("mlp", name), "width", None)
    if option is None:
        raise ConfigError(f"match= needs a free width, but mlp {name!r} has none: name one, as in width=model.n_embd.")
    return f"model.mlp.{option}"


def _read(tree: Tree, path: str) -> Any:
    """The value of a setting; a variant's option that is not written out has its default."""
    node: Any = tree
    keys = path.split(".")
    for above, key in zip(["", *keys], keys, strict=False):
        if above in registry.SLOTS:
            node = registry.complete(above, node)
        if not isinstance(node, Mapping) or key not in node:
            raise ConfigError(f"width must name a setting of the model, but {path} is not in every arm.")
        node = node[key]
    return node
