"""The sizes at which a study is done again: does an effect keep its sign? Narang et al. 2021, arXiv:2102.11972."""

from __future__ import annotations

import copy
import math

from gptlab.errors import ConfigError
from gptlab.matching import Tree
from gptlab.studies.settings import StudyConfig


def factors(study: StudyConfig) -> list[float]:
    """The sizes beside the study's own."""
    return [factor for factor in dict.fromkeys(study.ladder or ()) if factor != 1]


def phase_of(factor: float) -> str:
    """x0.5, x2, ...: the folder of a size."""
    return f"x{factor:g}"


def scaled(tree: Tree, factor: float) -> Tree:
    """The model `factor` times as wide, with more heads or fewer of the same size, and as deep as before.

    ConfigError for a factor that makes no other width of it.
    """
    model = tree["model"]
    n_head = round(factor * model["n_head"])
    if n_head < 1 or n_head == model["n_head"] or not math.isclose(n_head, factor * model["n_head"], rel_tol=0.01):
        near = max(1, n_head) / model["n_head"]
        raise ConfigError(
            f"A size of the ladder has a whole number of heads, other than the study's, but {factor:g} times "
            f"{model['n_head']} makes {factor * model['n_head']:g}: choose other factors (near it is {near:.3g}), or "
            "model.n_head."
        )
    tree = copy.deepcopy(tree)
    tree["model"] |= {"n_head": n_head, "n_embd": model["n_embd"] // model["n_head"] * n_head}
    attention = tree["model"]["attention"]
    if attention.get("n_kv_head"):  # as many queries for a key as before
        attention["n_kv_head"] = max(1, round(attention["n_kv_head"] * n_head / model["n_head"]))
    return tree
