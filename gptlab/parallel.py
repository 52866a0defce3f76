"""How ranks share a model: each has all of it, or a part of every tensor. ZeRO: Rajbhandari et al. 2019, 1910.02054.

Sharded by PyTorch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277), a block at a time; the order is compile, then shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from gptlab import distributed
from gptlab.config import TrainerConfig, require
from gptlab.errors import ConfigError
from gptlab.model import GPT

Note = Callable[[str], None]


def check(plan: TrainerConfig, ranks: int) -> None:
    """ConfigError for what so many ranks cannot share, or what has no effect on one."""
    n = plan.batch_size * plan.accumulate
    require(
        n % ranks == 0,
        f"The {n} sequences of a step (trainer.batch_size x trainer.accumulate) are shared by all ranks alike, but "
        f"{ranks} does not divide {n}: change one of them.",
    )
    require(
        ranks == 1 or plan.cuda_graphs != "true",
        f"trainer.cuda_graphs replays the step of one process, but there are {ranks} ranks: leave it out.",
    )
    require(
        ranks > 1 or plan.parallel == "auto",
        f"trainer.parallel={plan.parallel} is about several ranks, but this is one process: start it with torchrun, "
        "or leave it out.",
    )
    require(
        ranks % max(1, plan.shard) == 0,
        f"trainer.shard must divide the number of ranks, but {plan.shard} does not divide {ranks}.",
    )


def fitted(plan: TrainerConfig, ranks: int, note: Note) -> None:
    """Let a run that other ranks began go on: what these cannot share as those did becomes the usual way."""
    if ranks == 1 and plan.parallel != "auto":
        note(f"One process: trainer.parallel={plan.parallel}, with which this run began, does not apply.")
        plan.parallel, plan.shard = "auto", 0
    elif plan.shard and ranks % plan.shard:
        note(f"trainer.shard={plan.shard}, with which this run began, does not divide {ranks} ranks: it is 0 now.")
        plan.shard = 0


def spread(model: GPT, plan: TrainerConfig, device: torch.device) -> None:
    """Let the model's tensors become parts, block by block, where it is sharded."""
    if plan.parallel != "fsdp":
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    numbers = [name for name, p in model.named_parameters() if not p.dim()]
    if numbers:
        raise ConfigError(
            f"trainer.parallel=fsdp cannot shard {numbers[0]}, a number: make its shape (1,), or use ddp."
        )
    ranks, k = distributed.size(), plan.shard or distributed.size()
    mesh = init_device_mesh(device.type, (ranks // k, k), mesh_dim_names=("replicate", "shard"))
    if k == ranks:
        mesh = mesh["shard"]
    apart = _shared(model)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, ignored_params=apart)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # the two ends: backward begins where forward ends
    for module in model.modules():
        if isinstance(module, FSDPModule):  # gradients are added up; what they are shares of is in the loss
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss")
    left = [name for name, p in model.named_parameters() if not distributed.is_part(p)]
    if left:
        raise ConfigError(f"trainer.parallel=fsdp cannot shard {left[0]}, which several blocks share: choose ddp.")


def _shared(model: GPT) -> set[nn.Parameter]:
    """Parameters of blocks that other blocks or the model's ends have too: those gather them for all."""
    ends = {id(p) for name, m in model.named_children() if name != "blocks" for p in m.parameters()}
    holders: Counter[Tensor] = Counter(p for block in model.blocks for p in block.parameters())
    return {cast(nn.Parameter, p) for p, n in holders.items() if n > 1 or id(p) in ends}
