"""What trains a run, assembled from its config: the model where it trains and as it does, optimizer and schedule."""

from __future__ import annotations

import contextlib
import dataclasses

import torch

from gptlab import distributed, lora, parallel, pretrained, registry
from gptlab.compiling import check_device, wants_compiling
from gptlab.components.attention import trait
from gptlab.config import RunConfig, require
from gptlab.display import Display
from gptlab.errors import GptlabError, LostRank, TrainingError
from gptlab.hardware import choose_device, choose_precision, keep_freed_memory
from gptlab.material import Material
from gptlab.model import GPT
from gptlab.optimizer import parameter_groups
from gptlab.step import TrainState, compile_step

OUT_OF_MEMORY = (
    "Out of memory: lower trainer.batch_size (and raise trainer.accumulate by as much to keep the batch), "
    "model.block_size, model.n_embd or model.n_layer."
)


def device_of(config: RunConfig) -> torch.device:
    """The device of this rank."""
    return distributed.own(choose_device(config.trainer.device))


def check(config: RunConfig) -> None:
    """Build everything without storage and text: what cannot be is refused before a file is read or written."""
    parallel.check(config.trainer, distributed.size())
    check_device(config.trainer)
    known = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or 1)
    if known.document_mask and known.separator is None:
        known.separator = 0  # the tokenizer's, which is not known yet
    if known.has_source and known.source_end is None:
        known.source_end = 0  # that of the data
    with torch.device("meta"), contextlib.suppress(RuntimeError):  # a part that needs storage is built with it, later
        model = GPT(known)
        _check_teachable(model)
        if config.lora.rank:
            lora.adapt(model, config.lora)
    registry.build("optimizer", config.optimizer, [{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    registry.build("schedule", config.schedule, config.trainer.steps)


def _check_teachable(model: GPT) -> None:
    """ConfigError for a model that a run, which teaches it to say the next token, is not for."""
    require(
        all(trait(attention, "causal") for attention in model.attentions),
        "A run teaches a model to say the next token, which model.attention.causal=false lets it see: leave causal "
        "out, or write a program of yours around such an encoder (docs/conditioning.md).",
    )
    require(
        not model.reads_memory,
        "A run has no encoder, but attention 'cross' looks at what one put out: choose model/attention=softmax and "
        "another block, or write a program of yours (docs/conditioning.md).",
    )


def make_state(config: RunConfig, source: Material, display: Display, *, fresh: bool = True) -> TrainState:
    """A model with its initial values (drawn ones, or where it is `fresh` those of `init`), and what trains it."""
    plan = config.trainer
    device = device_of(config)
    reduced = device.type == "cuda" and plan.precision != "fp32"  # what parts keep out of autocast: as TensorFloat-32
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    if device.type == "cpu":
        keep_freed_memory()
    try:
        model = GPT(config.model, config.seed)
        if config.init and fresh:
            pretrained.fill(model, config.init, display.note)
        if config.lora.rank:
            lora.adapt(model, config.lora, config.seed)
        model.recompute, model.residual_in_fp32 = plan.activation_checkpointing, plan.residual_in_fp32
        parallel.spread(model, plan, device)  # what is sharded comes to the device a block at a time
        model = model.to(device)
    except GptlabError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise explained(error) from error
    state = TrainState(
        model=model,
        optimizer=registry.build("optimizer", config.optimizer, parameter_groups(model)),
        schedule=registry.build("schedule", config.schedule, plan.steps),
        config=plan,
        seed=config.seed,
        device=device,
        precision=choose_precision(plan.precision, device),
        length=source.length,
    )
    compiles = wants_compiling(plan.compile, device, work(state), display.note)
    plan.compile = str(compiles).lower()  # a run goes on as it began
    if compiles:
        require(
            plan.parallel != "fsdp" or plan.activation_checkpointing != "selective",
            "trainer.activation_checkpointing=selective sees no products in blocks that are compiled one by one, as "
            "trainer.parallel=fsdp has them: choose block, or trainer.compile=false.",
        )
        compile_step(state, display.note)
    return state


def work(state: TrainState) -> float:
    """FLOPs of the training, about: attention is left out, the embedding in."""
    return 6.0 * state.model.n_parameters() * state.tokens_per_step * state.config.steps


def explained(error: BaseException) -> BaseException:
    """Out of memory, and what a disk refuses on the way, as a line about the training; anything else as it is."""
    if distributed.is_broken(error):
        return LostRank(error)
    words = ("out of memory", "can't allocate memory", "alloc_failed")
    exhausted = isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
    if isinstance(error, GptlabError):
        return TrainingError(str(error))
    return TrainingError(OUT_OF_MEMORY) if exhausted and isinstance(error, Exception) else error
