"""Where rounding would decide: products in the precision of their factors, whatever autocast says elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off on a device; meta, where FLOPs are counted, has none to switch off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
