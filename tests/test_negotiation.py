"""Every pair of parts works together, or is refused by a line that names both and a way out that works."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from typing import Any

import pytest
import tiny
import torch

from gptlab import registry
from gptlab.components.attention import trait
from gptlab.config import ModelConfig, as_spec
from gptlab.conformance.cases import SLOTS, beside, cases_for, refusal, second_values, with_slot
from gptlab.errors import ConfigError
from gptlab.model import GPT

BASE = ModelConfig(
    vocab_size=29, block_size=8, n_layer=2, n_head=4, n_embd=32, attention="vanilla", position="none", mlp="plain"
)
KERNELS = ("vanilla", "flash", "flex", "softmax")
PAIRS = [
    (one, other, a, b)
    for one, other in itertools.combinations(SLOTS, 2)
    for a in registry.names(one)
    for b in registry.names(other)
]


@functools.cache
def spec_of(slot: str, name: str) -> dict[str, Any]:
    """The variant with values for the options that it must be given."""
    return as_spec(getattr(cases_for(slot, name)[0].config, slot))


def pair(one: str, other: str, a: str, b: str) -> ModelConfig:
    return with_slot(with_slot(BASE, one, spec_of(one, a)), other, spec_of(other, b))


def works_or_is_refused(config: ModelConfig, *sides: str) -> None:
    """The model learns and decodes in finite numbers, or is refused in words of use."""
    try:
        model = tiny.with_memory(GPT(config))
    except ConfigError as refused:
        must_help(config, str(refused), sides)
        return
    tokens = torch.arange(8)[None] + 3
    model.loss(tokens, tokens)[0].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if not all(trait(attention, "causal") for attention in model.attentions):
        return  # an encoder: nothing is decoded
    cache = model.eval().new_cache(1, 8)
    with torch.no_grad():
        assert all(model(piece, cache).isfinite().all() for piece in tokens.split([7, 1], dim=1))


def must_help(config: ModelConfig, message: str, sides: tuple[str, ...]) -> None:
    """The message names every side, and what it proposes can be built."""
    assert "\n" not in message
    assert not [side for side in sides if not re.search(rf"\b{side}\b", message)], f"{message!r} must name {sides}"
    _, colon, way_out = message.rpartition(": ")
    assert colon, f"{message!r} ends with no way out"
    tried = list(proposals(config, way_out))
    assert tried, f"{way_out!r} proposes nothing that could be tried"
    assert [changed for changed in tried if builds(changed)], f"nothing of {way_out!r} works: {message}"


def proposals(config: ModelConfig, way_out: str) -> list[ModelConfig]:
    """`choose position=learned or none`, `set model.attention.kernel=math`, `leave window out`: each as a config."""
    found = []
    for where, values in re.findall(r"((?:model[/.])?\w+(?:\.\w+)?)=(\w+(?:(?:, | or )(?!or )\w+)*)", way_out):
        for value in re.split(r", | or ", values):
            path = where.replace("/", ".").removeprefix("model.").split(".")
            if path[0] in SLOTS:
                found.append(changed(config, path, {"true": True, "false": False, "0": 0.0}.get(value, value)))
    for option in re.findall(r"leave (\w+) out", way_out):
        if option in {field.name for field in dataclasses.fields(config)}:
            found.append(dataclasses.replace(config, **{option: False}, separator=None))
        elif option in (spec := as_spec(config.attention)):
            found.append(with_slot(config, "attention", {k: v for k, v in spec.items() if k != option}))
    return found


def changed(config: ModelConfig, path: list[str], value: Any) -> ModelConfig:
    """Another variant in a slot, which keeps the options that it has too; or another option."""
    slot, *option = path
    spec = as_spec(getattr(config, slot))
    if option:
        return with_slot(config, slot, {**spec, option[0]: value})
    known = registry.options(registry.get(slot, value))
    return with_slot(config, slot, {"name": value, **{key: v for key, v in spec.items() if key in known}})


def builds(config: ModelConfig) -> bool:
    try:
        GPT(config)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("slots", sorted({pair[:2] for pair in PAIRS}), ids=" x ".join)
def test_two_parts_work_together_or_say_why_not(slots: tuple[str, str]) -> None:
    for one, other, a, b in PAIRS:
        if (one, other) == slots:
            works_or_is_refused(pair(one, other, a, b), a, b)


@pytest.mark.parametrize("name", registry.names("attention"))
def test_rope_is_proposed_to_an_attention_that_turns(name: str) -> None:
    told = str(refusal(pair("attention", "position", name, "alibi")) or "takes it")
    turns = "rotate" in registry.get("attention", name).honours  # type: ignore[attr-defined]
    assert told == "takes it" or ("position=rope, learned" in told) == turns


@pytest.mark.parametrize("norm", registry.names("norm"))
def test_any_norm_may_norm_queries_and_keys(norm: str) -> None:
    for name in registry.names("attention"):
        if "qk_norm" in registry.options(registry.get("attention", name)):
            works_or_is_refused(with_slot(BASE, "attention", {"name": name, "qk_norm": norm}), name, norm)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_does_an_option_or_says_which_can(name: str) -> None:
    cls = registry.get("attention", name)
    for option in registry.options(cls).values():
        for value in second_values(cls, option)[:3]:
            options = {**beside(cls, option), option.name: value}
            asked, by_definition = (
                with_slot(with_slot(BASE, "position", "rope"), "attention", {"name": each, **options})
                for each in (name, "vanilla")
            )
            if option.name == "kernel" or builds(by_definition):  # else it is against a rule of the option's own
                works_or_is_refused(asked, option.name)


@pytest.mark.parametrize("kernel", ["math", "sdpa", "flex"])
def test_a_kernel_takes_a_position_or_says_which_can(kernel: str) -> None:
    for name in registry.names("attention"):
        options = registry.options(registry.get("attention", name))
        if "kernel" in options and kernel in options["kernel"].choices:
            for position in registry.names("position"):
                config = pair("attention", "position", name, position)
                asked = with_slot(config, "attention", {**spec_of("attention", name), "kernel": kernel})
                works_or_is_refused(asked, *((kernel, position) if builds(config) else (name, position)))


@pytest.mark.parametrize("name", registry.names("attention"))
def test_an_attention_keeps_documents_apart_or_says_what_does(name: str) -> None:
    for position in registry.names("position"):
        config = pair("attention", "position", name, position)
        if builds(config):
            works_or_is_refused(dataclasses.replace(config, document_mask=True, separator=5), name, "document_mask")


@pytest.mark.parametrize("position", registry.names("position"))
def test_a_layer_may_have_a_position_of_its_own_or_be_told_why_not(position: str) -> None:
    layers = [{"at": 0, "position": spec_of("position", position)}]
    works_or_is_refused(dataclasses.replace(BASE, layers=layers), position, "layer")
