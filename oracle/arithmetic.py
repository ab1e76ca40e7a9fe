"""Fractions, decimals, and the one comparison: |got - want| <= bound."""

import functools
from dataclasses import dataclass
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction
from math import isqrt

import numpy as np

getcontext().prec = 60
INFINITY = Decimal("inf")

rational = np.vectorize(Fraction, otypes=[object])  # an array of fractions, each exactly the given float
decimals = np.vectorize(lambda x: Decimal(float(x)), otypes=[object])  # likewise


@functools.cache
def square_root(x):
    """Root of a fraction: exact where it is rational, otherwise to 60 digits."""
    p, q = isqrt(x.numerator), isqrt(x.denominator)
    if p * p == x.numerator and q * q == x.denominator:
        return Fraction(p, q)
    with localcontext() as context:
        context.prec = 60
        return Fraction((Decimal(x.numerator) / x.denominator).sqrt())


roots = np.vectorize(square_root, otypes=[object])


@dataclass(frozen=True)
class Numbers:
    """What a recursion is computed in: one(float), array(floats), and roots(array) of its numbers."""

    one: object
    array: object
    roots: object


FRACTIONS = Numbers(Fraction, rational, roots)
DECIMALS = Numbers(Decimal, decimals, np.vectorize(Decimal.sqrt, otypes=[object]))  # 60 digits, for long recursions
FLOATS = Numbers(float, np.array, np.sqrt)


def contents(*values):
    """A key for arrays and numbers that are the same to the bit."""
    return tuple((x.shape, x.dtype.char, x.tobytes()) if isinstance(x, np.ndarray) else (type(x), x) for x in values)


def inner(a, b):
    """Row-wise dot product of object arrays (B,)."""
    return (a * b).sum(axis=1)


def differences(U, rows):
    """(U, its gradients) at rows, arrays of decimals; the gradients by differences, with errors of 1e-20."""
    h, value, grads = Decimal("1e-20"), U(rows), []
    for x in rows:
        grads.append(0 * x)
        for i in np.ndindex(x.shape):
            x[i] += h
            grads[-1][i] = (U(rows) - value) / h
            x[i] -= h
    return value, grads


def determinant(T):
    """By elimination, in fractions."""
    T, value = T.copy(), Fraction(1)
    for i in range(len(T)):
        pivot = next((r for r in range(i, len(T)) if T[r, i]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != i:
            T[[i, pivot]], value = T[[pivot, i]], -value
        value *= T[i, i]
        for r in range(i + 1, len(T)):
            T[r] = T[r] - T[r, i] / T[i, i] * T[i]
    return value


class Disagreement(AssertionError):
    """A result outside its bound; `inputs` are the calls that gave it."""

    def __init__(self, message, inputs=()):
        super().__init__("\n".join([message, *map(str, inputs)]))
        self.message, self.inputs = message, inputs


def close(got, want, bound):
    """Which entries are within the bound, as booleans. An infinite bound asks for a finite number, no more."""
    error = abs(got - want)
    return (error <= bound) | (np.equal(bound, INFINITY) & (error < INFINITY))


def assert_close(got, want, bound, what, *inputs):
    """|got - want| <= bound for fractions or decimals, single or in arrays; inputs are shown beside a difference."""
    good = close(got, want, bound)
    if not np.all(good):
        raise Disagreement(f"{what}: {difference(got, want, bound, good)}", inputs)


def difference(got, want, bound, good):
    """The first wrong entry in words, and how many there are."""
    got, want, bound, good = np.broadcast_arrays(*(np.array(x, dtype=object) for x in (got, want, bound, good)))
    where = next(i for i in np.ndindex(good.shape) if not good[i])
    at = "".join(f"[{i}]" for i in where)
    more = f" ({sum(not x for x in good.ravel())} of {good.size} are wrong)" if good.size > 1 else ""
    return (f"got {float(got[where])!r}{at and f' in {at}'}, right {float(want[where])!r}, "
            f"allowed error {float(bound[where]):.3g}{more}")
