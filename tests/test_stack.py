"""What the model does around its parts: embeddings are dropped in training, and every layer is told which one it is."""

from __future__ import annotations

from typing import Any

import torch

from gptlab import ModelConfig
from gptlab.components.context import Context
from gptlab.model import GPT

SIZES: dict[str, Any] = {"vocab_size": 7, "n_layer": 4, "n_embd": 32, "n_head": 4, "block_size": 16}


def test_embeddings_are_dropped_in_training_and_rescaled() -> None:
    model = GPT(ModelConfig(**{**SIZES, "n_layer": 0, "dropout": 0.5, "norm": "none"})).train()
    tokens = torch.zeros(64, 16, dtype=torch.long)
    hidden, _ = model.hidden(tokens)
    dropped = hidden == 0
    assert 0.45 < dropped.double().mean() < 0.55
    torch.testing.assert_close(hidden[~dropped], 2 * model.token_embedding(tokens)[~dropped])


def test_every_layer_is_told_its_place() -> None:
    conv = GPT(ModelConfig(**SIZES, attention="conv", position="none"))
    assert [attention.dilation for attention in conv.attentions] == [1, 2, 4, 8]
    unet = GPT(ModelConfig(**SIZES, block="unet"))
    assert [block.skip is not None for block in unet.blocks] == [False, False, True, True]


def test_a_unet_in_a_model_adds_what_the_mirror_put_out() -> None:
    model = GPT(ModelConfig(**SIZES, block="unet")).eval()
    outputs: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, given, out: outputs.append(out))
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        model(tokens)
        last, kept = model.blocks[3], outputs[0]
        context = Context(torch.arange(7)[None])
        wanted = super(type(last), last).forward(outputs[2] + last.skip * kept, context)
    torch.testing.assert_close(outputs[3], wanted)
