"""Where text comes from: Python's own library, two small classics, files of the user's, Hugging Face datasets."""

from gptlab.text import classics, hf, python, yours  # noqa: F401  (registers them)
from gptlab.text.pairs import Pair, PairSource
from gptlab.text.source import Scattered, TextSource

__all__ = ["Pair", "PairSource", "Scattered", "TextSource"]
