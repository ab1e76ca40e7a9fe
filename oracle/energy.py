"""Equation 2 and its gradient in 60-digit decimals, the bounds of rounding errors, and calls judged by both.

The allowed errors are theorems, not choices. With u the unit roundoff, B pairs of rows of length d and
k = 2 d + B + 16, a computed cosine is off by at most (2 d + 16) u (d in the dot product, d/2 + 2 in each norm, the rest
for divisions and conversions) and the batch mean adds B u, so |m' - m| <= k u <= t m with t = k u / m, and

    |U' - U| <= t / (1 - t) + k u |U|                      the logarithm of m (1 + t), and its own rounding
    |g' - g| <= 4 k u (1 + 1/m) / ((1 - t) 2 B m |row|)    where |cosine| > k u; at the kink |s| has no derivative
"""

from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace

import numpy as np

from oracle.arithmetic import INFINITY, assert_close, contents, decimals, inner
from oracle.implementations import numbers
from oracle.inputs import on_one_line

NAMES = ("p1", "z1", "p2", "z2")


@dataclass(eq=False, repr=False)
class Batch:
    """Raw rows (B, d) of two views."""

    __repr__ = on_one_line

    p1: np.ndarray
    z1: np.ndarray
    p2: np.ndarray
    z2: np.ndarray

    def arrays(self):
        return [x.copy() for x in (self.p1, self.z1, self.p2, self.z2)]

    def map(self, change):
        return Batch(*map(change, self.arrays()))


# ---------------------------------------------------------------------------------------------- right answers, bounds

def unit(rows):
    """Unit rows and norms (B, 1) in decimals; a row of zeros stays zero, with norm infinity."""
    rows = decimals(rows)
    norm = np.array([x.sqrt() or INFINITY for x in inner(rows, rows)], dtype=object)[:, None]
    return rows / norm, norm


def truth(batch, stop_grad=False, counts=None):
    """Equation 2 and its gradient in 60 digits: cosines s, m, U, grads and norms in the order p1, z1, p2, z2.
    At m = 0 there is no U and no gradient. counts: of a batch that has row i counts[i] times."""
    key = contents(*batch.arrays(), stop_grad, counts)
    if key not in TRUTHS:
        if len(TRUTHS) >= 2000:
            TRUTHS.clear()
        TRUTHS[key] = computed_truth(batch, stop_grad, counts)
    return SimpleNamespace(**vars(TRUTHS[key]))


TRUTHS = {}  # (batch, stop_grad, counts) -> the truth: other implementations meet the same batches


def computed_truth(batch, stop_grad, counts):
    """`truth`, computed."""
    (p1, P1), (z1, Z1), (p2, P2), (z2, Z2) = (unit(x) for x in batch.arrays())
    s12 = inner(decimals(batch.p1), decimals(batch.z2)) / (P1 * Z2)[:, 0]  # of raw rows: exactly 0 if orthogonal
    s21 = inner(decimals(batch.p2), decimals(batch.z1)) / (P2 * Z1)[:, 0]
    counts = np.ones(len(s12), int) if counts is None else counts
    B = int(sum(counts))
    m = (counts * (abs(s12) + abs(s21))).sum() / (2 * B)
    right = SimpleNamespace(s=[s12, s21, s21, s12], m=m, U=None, grads=None, norms=[P1, Z1, P2, Z2])
    if m:
        a, b = (-np.sign(s)[:, None] / (2 * B * m) for s in (s12, s21))
        c12, c21, on = s12[:, None], s21[:, None], 0 if stop_grad else 1
        right.U = -m.ln()
        right.grads = [a * (z2 - c12 * p1) / P1, on * b * (p2 - c21 * z1) / Z1,
                       b * (z1 - c21 * p2) / P2, on * a * (p1 - c12 * z2) / Z2]
    return right


def k_u(impl, batch):
    B, d = batch.p1.shape
    return (2 * d + B + 16) * Decimal(impl.u.numerator) / impl.u.denominator


def energy_bound(impl, batch, right):
    t = k_u(impl, batch) / right.m if right.m else 1
    return t / (1 - t) + k_u(impl, batch) * abs(right.U) if t < 1 else INFINITY


def gradient_bounds(impl, batch, right):
    """Allowed errors, columns (B, 1) for p1, z1, p2, z2; infinite at the kink."""
    ku, B = k_u(impl, batch), len(batch.p1)
    t = ku / right.m
    factor = 4 * ku * (1 + 1 / right.m) / ((1 - t) * 2 * B * right.m) if t < 1 else INFINITY
    return [np.where(abs(s)[:, None] > ku, factor / norm, INFINITY)
            for s, norm in zip(right.s, right.norms, strict=True)]


# ------------------------------------------------------------------------------------------------- calling and judging

def value(impl, batch, **similarity):
    """U of the implementation as a decimal; infinity is a number, NaN is not."""
    U = Decimal(impl.energy(*batch.arrays(), **similarity))
    assert not U.is_nan(), f"U is NaN: {batch}"
    return U


def gradient(impl, batch, stop_grad=False, **similarity):
    """The four gradients of the implementation as decimals."""
    grads = impl.energy_grad(*batch.arrays(), stop_grad, **similarity)
    assert not any(np.isnan(g).any() for g in grads), f"a gradient is NaN: {grads}, stop_grad={stop_grad}, {batch}"
    return [decimals(g) for g in grads]


def cosines_of(impl, pair):
    """(|cos|, allowed error) of a batch of one pair: exp(-U) of the same pair in both views, where ours never rounds
    above 1; and what our own `cosines` say of it. In other modules that name may belong to anything."""
    both = Batch(pair.p1, pair.z2, pair.p1, pair.z2)
    yield (-value(impl, both)).exp(), 0 if impl.ours else k_u(impl, both)
    for s in impl.module.cosines(*both.arrays()) if impl.ours and impl.has("cosines") else ():
        yield Decimal(float(abs(numbers(s, (1,), "cosines returns"))[0])), k_u(impl, both)


def assert_energy(impl, batch):
    """U is that of Equation 2."""
    right, U = truth(batch), value(impl, batch)
    if right.m:
        assert_close(U, right.U, energy_bound(impl, batch, right), "U", batch)
    else:  # as large as rounding makes it, or infinite; ours is finite
        assert 0 < U and (U < INFINITY or not impl.ours), f"U = {U} where every cosine is 0: {batch}"


def assert_gradient(impl, batch, stop_grad=False):
    """The four gradients are those of Equation 2, those of the targets exactly zero with stop-gradient."""
    right = truth(batch, stop_grad)
    got = gradient(impl, batch, stop_grad)
    for name, g, want, bound in zip(NAMES, got, right.grads, gradient_bounds(impl, batch, right), strict=True):
        if stop_grad and name in ("z1", "z2"):
            assert (g == 0).all(), f"dU/d{name} is {g} with stop-gradient, not exactly zero: {batch}"
        assert_close(g, want, bound, f"dU/d{name}, stop_grad={stop_grad}", batch)
    return got
