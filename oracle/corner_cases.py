"""Cases that ordinary numbers do not stand for: integers, and moves that are small against the position."""

from dataclasses import replace

import numpy as np

from oracle.cases import deepest, exact_case
from oracle.implementations import BITS
from oracle.sampler import Case, fits


def integer_cases(draw, impl):
    """Cases of the exact class whose mass and B^ are Python integers, then arrays of them."""
    case = exact_case(draw, impl, L=2, masses=(16,), gradients="any")
    C = case.alpha * case.mass / case.eps  # 4, 8, 16 or 32
    yield case
    if impl.accepts("b_hat"):
        yield deepest(replace(case, b_hat=int(3 * C / 4)), impl)
    if impl.accepts("mass per coordinate"):
        masses = np.array([draw.choice(16, 4) for _ in range(case.n)])
        yield deepest(replace(case, A=np.diag(np.diag(case.A)), mass=masses), impl)
    if impl.accepts("b_hat per coordinate"):
        shares = np.array([draw.choice(0, 3, 4) for _ in range(case.n)])
        yield deepest(replace(case, b_hat=shares * int(C / 4)), impl)


def small_moves(draw, impl):
    """Cases of the exact class with moves that are small against the position, by 34 bits if there are as many; then
    with moves that are small in themselves. No two positions are equal, and each gradient turns the last one round."""
    L, size = (3, 2.0**34) if impl.dtype == "float64" else (2, 2.0**16)
    g = draw.nonzero(2, 1) * (-1.0) ** np.arange(L + 1)[:, None]
    z = np.zeros((2 * L + 1, 2))
    z[0] = draw.nonzero(2, 1)
    case = Case(w=draw.nonzero(2, 1), z=z, A=np.zeros((2, 2)), b=np.zeros(2), g=g, eps=0.25, L=L, alpha=0.5,
                mass=0.25 if impl.accepts("mass") else 1.0, exact=True)
    far = replace(case, w=case.w * size)
    while not fits(far, BITS[impl.dtype]):
        far.w = far.w / 2
    yield far
    yield replace(case, w=case.w * 2.0**-40, z=case.z * 2.0**-40, g=case.g * 2.0**-40)
