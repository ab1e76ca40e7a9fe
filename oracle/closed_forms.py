"""The step without the recursion: contributions of single inputs, the explicit sum, matrix powers, phase space."""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from oracle.arithmetic import rational, roots
from oracle.cases import deepest
from oracle.sampler import Case, constants_are_exact, positions, prefixes, run, tolerance


def travel(case, j):
    """By how much X_L moves for each unit of momentum that half-kick j adds (j = 0: line 1): eps M^-1 of what later
    half-kicks leave of it, in each drift from there on. A drift follows each odd half-kick."""
    eps, c, M, _ = case.scales()
    return eps / M * sum(c ** (J - j) for J in range(j | 1, 2 * case.L, 2))


def explicit_sum(case):
    """W_{t+1} without the recursion: X_k = W + eps/M sum_{i<k} [ c^(2i+1) Phi_0
    + sum_{j=1}^{2i+1} c^(2i+1-j) (s z_j - eps/2 g_j) ], g_j the gradient used in half-kick j."""
    eps, c, M, s = case.scales()
    w, z = rational(case.w), rational(case.z)
    Phi0 = roots(M) * z[0]
    X, g = [w], [None]
    for k in range(1, case.L + 1):
        g += [case.force(X[-1], k - 1)] * (1 if k == 1 else 2)  # half-kicks 2k-2 and 2k-1 meet at X_{k-1}
        momenta = [c**J * Phi0 + sum(c ** (J - j) * (s * z[j] - eps / 2 * g[j]) for j in range(1, J + 1))
                   for J in range(1, 2 * k, 2)]
        X.append(w + eps / M * sum(momenta))
    return X[-1]


def matrix_power(case):
    """X of T^L (W, Phi_0, 1), T the affine map of one leapfrog; for draws that are the same in every leapfrog."""
    eps, c, M, s = case.scales()
    n, z, I = case.n, rational(case.z), rational(np.eye(case.n))
    one, zero = rational(np.ones((1, 1))), rational(np.zeros((n, n)))

    def matrix(xx, xp, px, pp, shift):
        column, row = rational(np.zeros((n, 1))), rational(np.zeros((1, n)))
        return np.block([[xx, xp, column], [px, pp, shift[:, None]], [row, row, one]])

    def kick(row):
        return matrix(I, zero, -eps / 2 * rational(case.A), c * I, eps / 2 * rational(case.b) + s * z[row])

    drift = matrix(I, I * (eps / M), zero, I, rational(np.zeros(n)))
    state = np.concatenate([rational(case.w), roots(M) * z[0], [Fraction(1)]])
    return (np.linalg.matrix_power(kick(2) @ drift @ kick(1), case.L) @ state)[:n]


def symplectic(n):
    """The matrix J of (X, Phi) -> (Phi, -X)."""
    return rational(np.kron([[0, 1], [-1, 0]], np.eye(n)))


def phase_map(impl, A, draw, mass):
    """Matrix of (W, Phi_0) -> (X_L, Phi_{L+1/2} = M (X_{L+1} - X_L) / eps) without noise, U = x'Ax/2; c; L.

    The momentum is not returned by a step, but two runs on the same draws show it. None: coefficients not exact.
    """
    n, mass = len(A), mass if impl.accepts("mass") else 1.0
    case = Case(w=np.ones(n), z=np.zeros((7, n)), A=A, b=np.zeros(n), eps=0.25, L=3, alpha=0.125, mass=mass, exact=True)
    case.z[0] = mass**-0.5  # Phi_0 = 1
    case = deepest(case, impl)
    L = draw.integer(0, case.L - 1)
    if not constants_are_exact(impl, case):
        return None, None, None
    columns = []
    for unit in np.eye(2 * n):
        long = replace(case, L=L + 1, w=unit[:n], z=np.zeros((2 * L + 3, n)))
        long.z[0] = unit[n:] * mass**-0.5
        short = replace(long, L=L, z=long.z[:-2])
        X = run(impl, short) if L else rational(short.w)
        columns.append(np.concatenate([X, (run(impl, long) - X) * Fraction(mass) / Fraction(case.eps)]))
    return np.array(columns).T, 1 - Fraction(case.alpha), L


def recurrence(impl, case):
    """What, got, want, bound: three successive positions without the momentum, X_l known up to e_l."""
    (X, e), (eps, c, M, s) = prefixes(impl, case), case.scales()
    z = rational(case.z)
    first = eps / M * (c * roots(M) * z[0] - eps / 2 * case.force(X[0], 0) + s * z[1])
    yield "X_1 - X_0", X[1] - X[0], first, e[1]
    slope = rational(abs(case.A)) + rational(np.eye(case.n) * abs(case.kappa))  # how far e moves the gradient
    kick = eps**2 / (2 * M) * (1 + c)
    for l in range(case.L - 1):
        want = (c**2 * (X[l + 1] - X[l]) - kick * case.force(X[l + 1], l + 1)
                + eps / M * s * (c * z[2 * l + 2] + z[2 * l + 3]))
        bound = e[l + 2] + (1 + c**2) * e[l + 1] + c**2 * e[l] + kick * (slope @ e[l + 1])
        yield f"X_{l + 2} - X_{l + 1}", X[l + 2] - X[l + 1], want, bound


def response(impl, case, base):
    """By how much one input moves the sample, and the error of that."""
    return run(impl, case) - run(impl, base), tolerance(impl, case) + tolerance(impl, base)


def variance(impl, case):
    """Variance of W_{t+1} given W_t for one coordinate and one leapfrog, from unit draws, and the error of that."""
    still = replace(case, z=0 * case.z)
    units = [replace(case, z=np.eye(3)[:, [j]]) for j in (0, 1)]
    pairs = [response(impl, unit, still) for unit in units]
    return sum(R * R for R, _ in pairs), sum((2 * abs(R) + e) * e for R, e in pairs)


def momentum_reversed(impl, case):
    """(a run, the run back from its end with the momentum reversed), for the plain leapfrog."""
    eps, _, M, _ = case.scales()
    if case.L < 2 or not constants_are_exact(impl, case):
        return
    there = replace(case, L=case.L - 1, z=case.z[:-2])
    X, _ = prefixes(impl, there)
    reversed_Phi = M * (X[-2] - X[-1]) / eps + eps / 2 * case.force(X[-1], there.L)  # -Phi_L
    back = replace(there, w=X[-1].astype(float), z=there.z.copy())
    back.z[0] = (reversed_Phi / roots(M)).astype(float)
    yield there, back


def modified_energies(impl, case):
    """l, the modified energy of a quadratic at X_l, that at the start, for the plain leapfrog."""
    eps, _, M, _ = case.scales()
    if not constants_are_exact(impl, case):
        return
    X, _ = prefixes(impl, case)
    A, b, first = rational(case.A), rational(case.b), None
    for l in range(case.L):
        g = A @ X[l] - b
        Phi = M * (X[l + 1] - X[l]) / eps + eps / 2 * g
        H = sum(Phi * Phi / M) / 2 + X[l] @ A @ X[l] / 2 - b @ X[l] - eps**2 / 8 * sum(g * g / M)
        first = H if l == 0 else first
        yield l, H, first


def blocks(case, impl):
    """One case of two independent blocks of coordinates, and the two blocks as cases of their own."""
    other = replace(case, w=case.w[::-1] + 1, z=1 - case.z, b=-case.b)
    zero = np.zeros((case.n, case.n))
    both = replace(case, w=np.concatenate([case.w, other.w]), z=np.hstack([case.z, other.z]),
                   A=np.block([[case.A, zero], [zero, case.A]]), b=np.concatenate([case.b, other.b]))
    both = deepest(both, impl)
    return both, [replace(x, L=both.L, z=x.z[: 2 * both.L + 1]) for x in (case, other)]


def kinds_of_calls(impl, case, asked):
    """The legal ways to ask for gradients that these questions fit: at the positions, in order."""
    L = case.L
    literal = [(j + 1) // 2 for j in range(2 * L)]  # X_0, X_1, X_1, X_2, X_2, ..., X_L
    legal = {"2L": literal, "2L-1 (the last left out)": literal[:-1], "L+1 (kept for the next half-kick)": range(L + 1),
             "L (kept, and the last left out)": range(L)}
    X = positions(case)
    e = [tolerance(impl, replace(case, L=max(l, 1), z=case.z[: 2 * max(l, 1) + 1])) for l in range(L + 1)]
    return [kind for kind, order in legal.items() if len(order) == len(asked)
            and all((abs(rational(x) - X[l]) <= e[l]).all() for x, l in zip(asked, order, strict=True))]
