"""Derivatives of a program: numbers that remember what they were made of, and a small MLP that learns by them.

Reverse mode: Linnainmaa 1970; for networks Rumelhart, Hinton & Williams 1986. The idea of a scalar engine: micrograd.
Run it: `python docs/learn/autograd.py` learns XOR.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence


class Number:
    """A value, the numbers it was made of with the slope of it in each, and after `backward` the gradient."""

    def __init__(self, value: float, made_of: Sequence[tuple[Number, float]] = ()) -> None:
        self.value, self.made_of, self.grad = value, made_of, 0.0

    def __add__(self, other: Number | float) -> Number:
        other = as_number(other)
        return Number(self.value + other.value, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: Number | float) -> Number:
        other = as_number(other)
        return Number(self.value * other.value, ((self, other.value), (other, self.value)))

    def __pow__(self, power: float) -> Number:
        return Number(self.value**power, ((self, power * self.value ** (power - 1)),))

    def __neg__(self) -> Number:
        return self * -1.0

    def __sub__(self, other: Number | float) -> Number:
        return self + -as_number(other)

    def __truediv__(self, other: Number | float) -> Number:
        return self * as_number(other) ** -1.0

    def __rsub__(self, other: float) -> Number:
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    def exp(self) -> Number:
        """e to this."""
        value = math.exp(self.value)
        return Number(value, ((self, value),))

    def log(self) -> Number:
        """Its natural logarithm."""
        return Number(math.log(self.value), ((self, 1 / self.value),))

    def tanh(self) -> Number:
        """Squashed between -1 and 1."""
        value = math.tanh(self.value)
        return Number(value, ((self, 1 - value * value),))

    def relu(self) -> Number:
        """Itself above 0, else 0."""
        return Number(max(0.0, self.value), ((self, float(self.value > 0)),))

    def backward(self) -> None:
        """The chain rule, from here back: each number hands its gradient on to what it was made of, times the slope."""
        self.grad = 1.0
        for number in self.latest_first():
            for part, slope in number.made_of:
                part.grad += slope * number.grad

    def latest_first(self) -> list[Number]:
        """This and all that it was made of, each before its own parts: when its turn comes, its gradient is whole."""
        order: list[Number] = []
        met: set[Number] = set()
        waiting = [(self, False)]
        while waiting:
            number, parts_are_in = waiting.pop()
            if parts_are_in:
                order.append(number)
            elif number not in met:
                met.add(number)
                waiting += [(number, True), *((part, False) for part, _ in number.made_of)]
        return order[::-1]


def as_number(value: Number | float) -> Number:
    """A constant is a number made of nothing."""
    return value if isinstance(value, Number) else Number(value)


class MLP:
    """Layers of weighted sums; between them tanh."""

    def __init__(self, sizes: Sequence[int], seed: int = 0) -> None:
        draw = random.Random(seed)
        self.layers = [
            [[Number(draw.gauss(0, n_in**-0.5)) for _ in range(n_in + 1)] for _ in range(n_out)]  # the last: a bias
            for n_in, n_out in itertools.pairwise(sizes)
        ]

    def __call__(self, inputs: Iterable[float]) -> list[Number]:
        signals = [as_number(x) for x in inputs]
        for layer in self.layers:
            sums = [sum((w * x for w, x in zip(unit, signals, strict=False)), unit[-1]) for unit in layer]
            signals = sums if layer is self.layers[-1] else [each.tanh() for each in sums]
        return signals

    def parameters(self) -> list[Number]:
        """Every weight and bias."""
        return [weight for layer in self.layers for unit in layer for weight in unit]


def mean_squared_error(model: MLP, examples: Sequence[tuple[Sequence[float], float]]) -> Number:
    """How far the first output is from what is wanted, squared, on average."""
    return sum(((model(inputs)[0] - wanted) ** 2.0 for inputs, wanted in examples), Number(0.0)) / len(examples)


def descend(model: MLP, examples: Sequence[tuple[Sequence[float], float]], rate: float) -> float:
    """One step down the gradient of the loss, which is returned."""
    for parameter in model.parameters():
        parameter.grad = 0.0
    loss = mean_squared_error(model, examples)
    loss.backward()
    for parameter in model.parameters():
        parameter.value -= rate * parameter.grad
    return loss.value


XOR: list[tuple[Sequence[float], float]] = [((-1, -1), -1), ((-1, 1), 1), ((1, -1), 1), ((1, 1), -1)]

if __name__ == "__main__":
    learner = MLP([2, 8, 1])
    for step in range(301):
        error = descend(learner, XOR, rate=0.1)
        if step % 50 == 0:
            print(f"step {step:3}: loss {error:.6f}")
