"""Records of variants for their cards: costs at the size of GPT-2 124M, what works with what, the laws kept."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

from gptlab import conformance, files, registry
from gptlab.cards import RECORDS, Card, Record, recorded
from gptlab.components.attention.choice import AUTO
from gptlab.components.attention.kernels import KERNELS, Kernel
from gptlab.components.attention.planned import Planned
from gptlab.config import ModelConfig
from gptlab.conformance.cases import refusal, with_slot
from gptlab.conformance.probes import softmax_mixers
from gptlab.cost import count
from gptlab.errors import ConfigError
from gptlab.model import GPT

GPT2 = ModelConfig(
    vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, bias=True, tie_weights=True,
    attention="softmax", position="learned", norm="layernorm", mlp={"name": "plain", "activation": "gelu_tanh"},
    block="prenorm",
)  # fmt: skip
PARTNER = {"attention": "position", "position": "attention"}  # slots that may refuse one another


def measure(card: Card) -> Record:
    """What a card holds of a variant with its defaults, but for the laws."""
    small, other = _small(card.slot, card.name), PARTNER.get(card.slot, "")
    usual, costs = (_costs(config) for config in (GPT2, with_slot(GPT2, card.slot, getattr(small, card.slot))))
    mixers, runs = list(softmax_mixers(GPT(small))) if other else [], _takes if card.slot == "attention" else _can
    return Record(
        source=card.source,
        torch=torch.__version__.partition("+")[0],
        costs={key: [number, usual[key]] for key, number in costs.items()},
        partners=[name for name in (registry.names(other) if other else []) if _fits(small, other, name)],
        kernels=[kernel.name for kernel in KERNELS if mixers and all(runs(mixer, kernel) for mixer in mixers)],
    )


def judge(card: Card, record: Record, watch: Callable[[str], None] = lambda case: None) -> Record:
    """The record with the verdict of every law on every case. It takes a few seconds to minutes."""
    verdicts = list(conformance.check([(card.slot, card.name)], watch))
    return dataclasses.replace(
        record,
        laws=dict(sorted(Counter(verdict.law for verdict in verdicts).items())),
        n_cases=len({verdict.case for verdict in verdicts}),
        broken=[f"{verdict.law} of {verdict.case}" for verdict in verdicts if not verdict.holds],
    )


def write(records: dict[str, Record]) -> None:
    """Keep these records, and none of variants that are no more."""
    kept = {variant: dataclasses.asdict(record) for variant, record in sorted(records.items())}
    files.write_atomically(RECORDS, (json.dumps(kept, indent=1) + "\n").encode())


def renew(cards: Iterable[Card], laws: bool, watch: Callable[[str], None]) -> None:
    """Bring the records of cards up to their source, one by one; with `laws`, also those that lack verdicts."""
    cards = [card for card in cards if card.source]
    records = {variant: r for variant, r in recorded().items() if variant in {f"{c.slot}/{c.name}" for c in cards}}
    for card in cards:
        variant = f"{card.slot}/{card.name}"
        watch(variant)
        record = card.record or measure(card)
        records[variant] = judge(card, record, watch) if laws and not record.laws else record
        write(records)


@functools.cache
def _small(slot: str, name: str) -> ModelConfig:
    """The variant's own first case, in which its required options have values."""
    return conformance.cases_for(slot, name)[0].config


def _fits(config: ModelConfig, slot: str, name: str) -> bool:
    return refusal(with_slot(config, slot, getattr(_small(slot, name), slot))) is None


def _can(mixer: Planned, kernel: Kernel) -> bool:
    """Whether a kernel can do what the mixer needs."""
    return mixer.plan.needs() <= kernel.can


def _takes(mixer: Planned, kernel: Kernel) -> bool:
    """Whether the mixer may come to run on that kernel: its own, or any that can where it is left to choose."""
    return mixer.kernel in (kernel, AUTO) and _can(mixer, kernel)


def _costs(config: ModelConfig) -> dict[str, Any]:
    """None of them where a model of this size is refused."""
    try:
        return dataclasses.asdict(count(config))
    except ConfigError:
        return {}
