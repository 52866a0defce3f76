"""Questions made on the fly, each with one right answer: what a part can do and cannot, where losses blur."""

from gptlab.tasks import addition, copy, induction, modular, mqar, parity, reverse, sort  # noqa: F401  (registers them)
from gptlab.tasks.draws import Draws
from gptlab.tasks.symbols import SymbolTokenizer
from gptlab.tasks.task import Questions, Task

__all__ = ["Draws", "Questions", "SymbolTokenizer", "Task"]
