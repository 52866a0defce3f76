"""Optimizers, built as `Variant(groups, *, options)` for the groups that `parameter_groups(model)` gives."""

from gptlab.optimizer import adafactor, adamw, lion, muon, sgd  # noqa: F401  (registers them)
from gptlab.optimizer.groups import parameter_groups

__all__ = ["parameter_groups"]
