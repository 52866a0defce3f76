"""Weights in and out: models of transformers become gptlab's, and gptlab's become theirs, without their code."""

from gptlab.weights.families import FAMILIES, Family, family_of, hf_config
from gptlab.weights.loading import Fit, check, config_of, fill, load
from gptlab.weights.saving import hf_tensors, save
from gptlab.weights.source import Source, find

__all__ = [
    "FAMILIES", "Family", "Fit", "Source", "check", "config_of", "family_of", "fill", "find", "hf_config", "hf_tensors",
    "load", "save",
]  # fmt: skip
