"""What torch.compile did: graphs, breaks, compilations that came again, and seconds, as it counts them itself."""

from __future__ import annotations

import sys
from typing import Any


def forget() -> None:
    """Begin to count, with nothing compiled: graphs of one model count against the limit of another."""
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled, and the import takes seconds
        return
    import torch
    from torch._dynamo import utils

    torch.compiler.reset()
    utils.counters.clear()
    utils.clear_compilation_metrics()


def counted() -> dict[str, Any]:
    """Since `forget`: zero graphs where nothing was compiled."""
    if "torch._dynamo" not in sys.modules:
        return {"graphs": 0, "breaks": 0, "recompiles": 0, "compile_seconds": 0.0}
    from torch._dynamo import utils

    compilations = utils.get_compilation_metrics()
    return {
        "graphs": utils.counters["stats"]["unique_graphs"],
        "breaks": sum(utils.counters["graph_break"].values()),
        "recompiles": sum(1 for each in compilations if each.recompile_reason),
        "compile_seconds": sum(each.duration_us or 0 for each in compilations) / 1e6,
    }
