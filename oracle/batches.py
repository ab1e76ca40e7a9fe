"""Batches for the energy: small integers and powers of two, and the one that hides no bug."""

import numpy as np

from oracle.energy import Batch

PYTHAGOREAN = [(3, 4), (5, 12), (8, 15), (1, 2, 2), (2, 3, 6)]  # rows of whole length
QUARTER_TURN = np.array([[0, 1], [-1, 0]])
WORKED_EXAMPLE = Batch(*(np.array(x, dtype=float) for x in (
    [[3, 4], [5, 12]], [[3, 4], [-5, 12]], [[8, 15], [3, -4]], [[5, 12], [8, 15]])))  # m = 2167/2210


def any_batch(draw, B=4, d=4, low_d=1):
    """Rows of small integers, none zero, times powers of two between 2^-19 and 2^19 (norms 1e-6 to 1e6).

    Only one row of a pair is far from 1, so that a guard on the product of the norms is as legal as one on each.
    """
    B, d = draw.integer(1, B), draw.integer(low_d, d)
    rows = draw.array((4, B, d), -6, 6)
    rows[..., 0] += (abs(rows).sum(axis=-1) == 0)
    p1, z1, p2, z2 = rows
    scale = 2.0 ** draw.choice(0, 0, 3, -19, 16)
    return Batch(scale * p1, z1, scale * p2, z2) if draw.integer(0, 1) else Batch(p1, scale * z1, p2, scale * z2)


def generic_batch():
    """Three pairs of positive and negative, small and different cosines (m = 0.08): hides no known bug."""
    p1 = [[-0.125, -1.125, 0.625, 0.625], [-0.875, -0.625, 0.875, -0.875], [0.625, -1.125, -0.625, -0.125]]
    z1 = [[-1.25, 1.75, 1.25, 1.75], [1.25, -1.75, -0.25, 0.25], [-0.25, -2.25, 0.25, 2.25]]
    p2 = [[-1.75, 0.25, 0.25, -1.75], [-1.75, -2.25, 1.75, -1.25], [1.25, 1.75, 0.25, 1.75]]
    z2 = [[-0.75, -2.25, -2.25, -1.75], [-1.75, 2.25, -2.25, -0.25], [-2.25, -1.25, -0.25, 1.75]]
    return Batch(*map(np.array, (p1, z1, p2, z2)))
