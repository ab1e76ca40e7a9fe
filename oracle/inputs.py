"""Inputs are integers on a dyadic grid: no subnormals or NaN to filter, bitwise assertions, small counterexamples."""

import random
from dataclasses import fields

import numpy as np


class Draw:
    """Integers from a fixed seed; `oracle.properties.Shrinking` takes them from Hypothesis."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def integers(self, size, low, high):
        return [self.random.randint(low, high) for _ in range(size)]

    def integer(self, low, high):
        return int(self.array((), low, high))

    def array(self, shape, low, high, unit=1.0):
        """Array of integers in [low, high] times `unit`."""
        values = self.integers(int(np.prod(shape)), low, high)
        return np.reshape(np.array(values, dtype=np.float64) * unit, shape)

    def choice(self, *options):
        return options[self.integer(0, len(options) - 1)]

    def nonzero(self, shape, high, unit=1.0):
        """Array of odd numbers up to 2 high - 1 of both signs, times `unit`."""
        odd = 2 * self.array(shape, 0, high - 1) + 1
        return odd * (2 * self.array(shape, 0, 1) - 1) * unit


def on_one_line(self):
    """repr of a dataclass of arrays, without what has its default."""
    shown = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
    texts = [f"{name}={np.array(x).tolist()}" for name, x, default in shown if np.ndim(x) or x != default]
    return f"{type(self).__name__}({', '.join(texts)})"
