"""Ranks: the processes that torchrun starts to train one model, what they add up and what they decide together.

In a process that was started alone nothing here does anything, and there is no process group.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from gptlab.errors import ConfigError, GptlabError, LostRank, TrainingError

Made = TypeVar("Made")
TIMEOUT = timedelta(minutes=10)  # of what devices exchange: a rank that hangs ends the job after it
PATIENCE = timedelta(days=1)  # of what hosts exchange: a text may take long to prepare, and a dead host is noticed
BUCKET = 1 << 25  # bytes of gradients that are added up in one go
_ranks = {"size": 1, "rank": 0}  # told once: a compiled step asks for it
_hosts: list[dist.ProcessGroup] = []  # the group in which hosts decide, without waiting for their devices


def size() -> int:
    """How many ranks train together; 1: this process alone."""
    return _ranks["size"]


def rank() -> int:
    """Which of them this process is, from 0."""
    return _ranks["rank"]


def is_first() -> bool:
    """Whether this is the rank that writes and speaks."""
    return rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within, the ranks that torchrun started are one group. ConfigError for a device that they cannot share."""
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1 or size() > 1:
        yield
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {n}, but {missing[0]} is not set: start ranks with torchrun, or unset it.")
    shares_store = os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1"
    if shares_store and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 and _may_restart():
        raise ConfigError(
            "On several machines torchrun's restarts meet the store of those before: export "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, or leave --max-restarts out."
        )
    backend = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}.get(device.type)
    if backend is None:
        raise ConfigError(f"{n} ranks cannot train on {device.type}: choose trainer.device=cpu, or one process.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, here, n = next(rendezvous("env://", timeout=TIMEOUT))
    if shares_store:  # it still has what ranks before us left
        store = PrefixStore(f"restart{_restarts()}", store)
    chip = device if device.type == "cuda" else None
    dist.init_process_group(backend, store=store, rank=here, world_size=n, timeout=TIMEOUT, device_id=chip)
    _hosts.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    _ranks.update(size=n, rank=here)
    try:
        yield
    except RuntimeError as error:
        if is_broken(error):
            raise LostRank(error) from error
        raise
    _hosts.clear()  # after an error the others may not be there to say goodbye to
    _ranks.update(size=1, rank=0)
    dist.destroy_process_group()


def own(device: torch.device) -> torch.device:
    """The device of this rank. ConfigError where there are more ranks here than devices, or one was named for all."""
    if device.type != "cuda" or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.index is not None:
        raise ConfigError(f"Each rank has a device of its own, but trainer.device is {device}: choose cuda or auto.")
    mine, n = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if mine >= n:
        raise ConfigError(f"Each rank needs a GPU of its own, but there are {n} here: torchrun --nproc-per-node={n}.")
    return torch.device("cuda", mine)


def job() -> str | None:
    """What torchrun calls the job of this rank, equal when it has started it again; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name


def restarted() -> bool:
    """Whether torchrun has started this job before, and it failed, on whichever machine."""
    return host_total(_restarts()) > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _may_restart() -> bool:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def total(x: Tensor) -> Tensor:
    """The sum over ranks, on the device and without waiting for it."""
    if size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def host_total(n: int) -> int:
    """The sum over ranks of a number that hosts have."""
    if size() > 1:
        count = torch.tensor(n)
        dist.all_reduce(count, group=_hosts[0])
        return int(count)
    return n


def host_group() -> dist.ProcessGroup:
    """Another group of all hosts: what it exchanges may happen at the same time as all else."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def gathered(x: Made, group: dist.ProcessGroup | None = None) -> list[Made]:
    """What each rank has, in their order."""
    if size() == 1:
        return [x]
    found: list[Made | None] = [None] * size()
    dist.all_gather_object(found, x, group=group or _hosts[0])
    return cast(list[Made], found)


def of_first(make: Callable[[], Made]) -> Made:
    """What rank 0 makes, on all ranks. What a user did wrong there is raised on all of them."""
    if size() == 1:
        return make()
    made, error = _tried(make) if is_first() else (None, None)
    held = [(made, error)]
    dist.broadcast_object_list(held, group=_hosts[0])
    made, error = held[0]
    if error:
        raise error
    return cast(Made, made)


def one_per_machine_first(make: Callable[[], Made]) -> Made:
    """`make()` on one rank of each machine, then on the others, which find what it has left on disk."""
    if size() == 1:
        return make()
    early = os.environ["LOCAL_RANK"] == "0"
    made, error = _tried(make) if early else (None, None)
    for failure in gathered(error):
        if failure:
            raise failure
    return cast(Made, made) if early else make()


def _tried(make: Callable[[], Made]) -> tuple[Made | None, Exception | None]:
    try:
        return make(), None
    except (GptlabError, OSError) as error:
        return None, error


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Each gradient becomes its sum over ranks; those of sharded parameters are it already.

    In buckets, each on its way while the next is filled. A parameter has a gradient on every rank or on none.
    """
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not is_part(p.grad)]
    on_their_way: deque[tuple[list[Tensor], Tensor, dist.Work]] = deque()
    for bucket in _buckets(gradients):
        on_their_way.append(_begin_to_add(bucket))
        if len(on_their_way) > 1:
            _end_adding(*on_their_way.popleft())
    for begun in on_their_way:
        _end_adding(*begun)


def _begin_to_add(bucket: list[Tensor]) -> tuple[list[Tensor], Tensor, dist.Work]:
    flat = torch.cat([x.flatten() for x in bucket])
    return bucket, flat, cast(dist.Work, dist.all_reduce(flat, async_op=True))


def _end_adding(bucket: list[Tensor], flat: Tensor, work: dist.Work) -> None:
    work.wait()
    parts = flat.split([x.numel() for x in bucket])
    torch._foreach_copy_(bucket, [part.view_as(x) for part, x in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, at most BUCKET bytes of them unless one alone is larger."""
    bucket: list[Tensor] = []
    for x in gradients:
        if bucket and (x.dtype != bucket[0].dtype or sum(y.nbytes for y in bucket) + x.nbytes > BUCKET):
            yield bucket
            bucket = []
        bucket.append(x)
    if bucket:
        yield bucket


def rows(n: int) -> slice:
    """Which of n sequences this rank takes; the number of ranks divides n."""
    mine = n // size()
    return slice(rank() * mine, (rank() + 1) * mine)


def micro_batches(batch_size: int, accumulate: int) -> int:
    """How many micro-batches of one size a rank has in a step: as few as have at most batch_size sequences."""
    mine = batch_size * accumulate // size()
    return next(n for n in range(1, mine + 1) if mine % n == 0 and mine // n <= batch_size)


def dealt(items: Iterable[Made]) -> Iterator[tuple[Made, bool]]:
    """This rank's share of what all have, as many on each: where there is none left one again, said not to count."""
    round_: list[Made] = []
    for item in items:
        round_.append(item)
        if len(round_) == size():
            yield round_[rank()], True
            round_ = []
    if round_:
        yield round_[min(rank(), len(round_) - 1)], rank() < len(round_)


def is_part(x: object) -> bool:
    """Whether ranks hold parts of a tensor, each its own."""
    if size() == 1:
        return False
    known = sys.modules.get("torch.distributed.tensor")  # 0.8 seconds, which only those wait that shard
    return known is not None and isinstance(x, known.DTensor)


def whole(x: Tensor) -> Tensor:
    """All of a tensor that ranks hold parts of; all of them must ask. Any other as it is."""
    return cast(Any, x).full_tensor() if is_part(x) else x


def like(x: Tensor, pattern: Tensor) -> Tensor:
    """This rank's part of a whole tensor that all have, where `pattern` is held in parts; else the tensor."""
    if not is_part(pattern):
        return x
    from torch.distributed.tensor import distribute_tensor

    held = cast(Any, pattern)
    return distribute_tensor(x, held.device_mesh, held.placements, src_data_rank=None)


def settle(model: nn.Module) -> None:
    """After passes without gradients: what they gathered is let go, or the next step would change only the parts."""
    if _is_sharded(model):
        cast(Any, model).reshard()


def last_of_step(model: nn.Module, last: bool) -> None:
    """Say whether the next micro-batch is the last of its step: replicas add their gradients up only then."""
    if _is_sharded(model):
        cast(Any, model).set_requires_all_reduce(last)
        cast(Any, model).set_is_last_backward(last)


def _is_sharded(model: nn.Module) -> bool:
    return hasattr(model, "reshard")  # of FSDP2's, which makes a class of its own out of the model's


def is_broken(error: BaseException) -> bool:
    """Whether an error says no more than that another rank is gone."""
    if isinstance(error, GptlabError | TrainingError):  # which say so themselves
        return False
    text = str(error)
    lost = "gloo" in text or "Connection closed by peer" in text or "Connection reset by peer" in text
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and lost)
