"""Which parameters decay, and options out of their range."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn

from gptlab import ModelConfig, registry
from gptlab.errors import ConfigError
from gptlab.model import GPT
from gptlab.optimizer import parameter_groups


def test_matrices_decay_and_vectors_do_not() -> None:
    model = GPT(ModelConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=8, bias=True, norm="layernorm"))
    matrices, vectors = parameter_groups(model)
    assert "weight_decay" not in matrices
    assert vectors["weight_decay"] == 0.0
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    found = {id(p) for group in (matrices, vectors) for p in group["params"]}
    assert found == {id(p) for p in model.parameters()}


def test_frozen_and_tied_parameters_are_left_out_or_counted_once() -> None:
    model = GPT(ModelConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=8, tie_weights=True))
    model.blocks[0].requires_grad_(False)
    listed = [p for group in parameter_groups(model) for p in group["params"]]
    assert len(listed) == len({id(p) for p in listed})
    assert all(p.requires_grad for p in listed)


def test_a_model_without_vectors_has_one_group() -> None:
    assert len(parameter_groups(nn.Linear(2, 2, bias=False))) == 1


@pytest.mark.parametrize("option", ["lr", "beta1", "beta2", "weight_decay", "eps"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_an_option_out_of_its_range_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.{option}"):
        registry.build("optimizer", {"name": "adamw", option: value}, [{"params": [nn.Parameter(torch.zeros(1))]}])
