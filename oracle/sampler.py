"""Algorithm 1 in fractions, the bound of its rounding errors, and calls of implementations judged by both.

No tolerance here is chosen. There are two classes of inputs, and for both the right answer is computed in fractions:

* the exact class: powers of two and small integers, such that every intermediate number is representable however the
  sum is ordered or fused (`fits`). Tolerance zero.
* the bound class: |got - want| <= gamma_k F, gamma_k = k u / (1 - k u), where u is the unit roundoff and F the
  recursion with every sign made positive. W_{t+1} is a sum of products of the inputs, F the sum of their absolute
  values, and an implementation computes each product with at most k rounding errors; per leapfrog: n + 1 in a gradient,
  4 in each half-kick, 3 in the drift, at most 3 of rounded coefficients (8 once, where B^ <= 3C/4 cancels in C - B^).
  k = L (2n + 18) + 4 leaves room for every rewriting. Higham, Accuracy and Stability, chapter 3.
"""

from dataclasses import dataclass, fields, replace
from fractions import Fraction

import numpy as np

from oracle.arithmetic import FRACTIONS, assert_close, contents, rational, roots
from oracle.implementations import SINGLE, numbers
from oracle.inputs import on_one_line


@dataclass(eq=False, repr=False)
class Case:
    """One call of the sampler; U = x'Ax/2 - b'x + kappa x'|x|/2, or gradients g[l] recorded for the positions X_l.

    A is (n, n), or (n,) for a diagonal matrix.
    """

    __repr__ = on_one_line

    w: np.ndarray
    z: np.ndarray
    A: np.ndarray
    b: np.ndarray
    eps: float
    L: int
    alpha: float
    mass: object = 1.0   # scalar or (n,)
    b_hat: object = 0.0
    kappa: float = 0.0
    g: np.ndarray = None
    exact: bool = False  # of the exact class

    @property
    def n(self):
        return len(self.w)

    def key(self):
        """The same for cases that are the same to the bit."""
        return contents(*(getattr(self, field.name) for field in fields(self)))

    def settings(self):
        """The keywords for sghmc_step; mass and b_hat only where a test varies them."""
        varied = {"mass": (self.mass, 1.0), "b_hat": (self.b_hat, 0.0)}
        varied = {name: x for name, (x, default) in varied.items() if np.any(np.not_equal(x, default))}
        return dict(eps=self.eps, L=self.L, alpha=self.alpha, **varied)

    def scales(self, numbers=FRACTIONS):
        """eps, c = 1 - alpha, M, and the standard deviation s of the noise."""
        eps, alpha = numbers.one(self.eps), numbers.one(self.alpha)
        M, B = (numbers.array(np.broadcast_to(x, self.n)) for x in (self.mass, self.b_hat))
        return eps, 1 - alpha, M, numbers.roots(2 * (alpha * M - B * eps))

    def force(self, X, l, positive=False, numbers=FRACTIONS):
        """Gradient of U at X = X_l; positive: a bound of its absolute value."""
        A, b, g = (x if x is None else numbers.array(abs(x) if positive else x) for x in (self.A, self.b, self.g))
        if g is not None:
            return g[l]
        kappa = numbers.one(abs(self.kappa) if positive else self.kappa)
        return product(A, X) + (b if positive else -b) + kappa * abs(X)


def product(A, x):
    """A x for A (n, n) or a diagonal (n,)."""
    return A * x if A.ndim == 1 else A @ x


# ---------------------------------------------------------------------------------------------- right answers, bounds

def positions(case, positive=False, numbers=FRACTIONS):
    """X_0 .. X_L of Algorithm 1; positive: every sign made positive, the F of the rounding bound."""
    key = case.key(), positive, numbers
    if key not in POSITIONS:
        if len(POSITIONS) >= 20_000:
            POSITIONS.clear()
        POSITIONS[key] = walked(case, positive, numbers)
        for x in POSITIONS[key]:
            x.flags.writeable = False
    return list(POSITIONS[key])


POSITIONS = {}  # (case, positive, numbers) -> X_0 .. X_L: other implementations meet the same cases


def walked(case, positive, numbers):
    """`positions`, computed."""
    eps, c, M, s = case.scales(numbers)
    w, z = (numbers.array(abs(x) if positive else x) for x in (case.w, case.z))
    kick = eps / 2 if positive else -eps / 2
    Phi = numbers.roots(M) * z[0]
    X = [w]
    for l in range(case.L):
        Phi = c * Phi + kick * case.force(X[l], l, positive, numbers) + s * z[2 * l + 1]
        X.append(X[l] + eps / M * Phi)
        Phi = c * Phi + kick * case.force(X[l + 1], l + 1, positive, numbers) + s * z[2 * l + 2]
    return X


def gamma(impl, case):
    """gamma_k = k u / (1 - k u), k = L (2n + 18) + 4; a diagonal force has the roundings of n = 1."""
    k = operations(case)
    return k * impl.u / (1 - k * impl.u)


def operations(case):
    """k = L (2n + 18) + 4, n the terms in each sum of A x."""
    return case.L * (2 * (1 if case.A.ndim == 1 else case.n) + 18) + 4


def rounding_bound(impl, case):
    """gamma_k F for W_{t+1}."""
    return gamma(impl, case) * positions(case, positive=True)[-1]


def fits(case, bits):
    """Whether the case is of the exact class in arithmetic of so many bits.

    q is the grid that the terms of a sum lie on. X lies on the finest grid and holds the largest sum on it, so all
    intermediate numbers are representable in any order if F <= 2^bits q; two bits are left for fused coefficients.
    """
    def grid(*arrays):
        return min(Fraction(1, x.denominator) for a in arrays for x in np.ravel(np.array(a, dtype=object)))

    eps, c, M, s = case.scales()
    z = rational(case.z)
    q_Phi, q_X = grid(roots(M) * z[0]), grid(rational(case.w))
    for half_kick in range(2 * case.L):
        q_g = grid(rational(case.g)) if case.g is not None else min(
            grid(rational(case.A), Fraction(case.kappa)) * q_X, grid(rational(case.b)))
        q_Phi = min(grid(c) * q_Phi, eps / 2 * q_g, grid(s * z[1:]))
        if half_kick % 2 == 0:
            q_X = min(q_X, *(eps / M * q_Phi))
    return max(positions(case, positive=True)[-1]) <= 2 ** (bits - 2) * q_X


def distinct(case, L):
    """Recorded gradients made a function of the position: one that is visited again, as far as single precision
    can tell, keeps its first gradient."""
    case = replace(case, L=L, z=case.z[: 2 * L + 1], g=case.g[: L + 1].copy())
    for l in range(1, L + 1):
        X, same = positions(case), 2 * rounding_bound(SINGLE, case)
        first = next(i for i in range(L + 1) if (abs(X[i] - X[l]) <= same).all())
        case.g[l] = case.g[first]
    return case.g


# ------------------------------------------------------------------------------------------------- calling and judging

def gradient(case, asked=None):
    """The `grad` handed to an implementation. It answers for any array-like and records a copy of each question.

    Recorded gradients belong to positions, not to calls: whoever asks at X_l gets g[l], so that caching is legal.
    """
    places = None if case.g is None else np.array(positions(case), dtype=np.float64)

    def grad(x):
        x = numbers(x, case.w.shape, "grad is called with")
        if asked is not None:
            asked.append(x.copy())
        if case.g is not None:
            return case.g[abs(places - x).max(axis=1).argmin()].copy()
        return product(case.A, x) - case.b + case.kappa * abs(x)
    return grad


def sample(impl, case, asked=None):
    """W_{t+1} of the implementation as floats; asked: a list that keeps where the gradient was asked for."""
    return impl.step(case.w.copy(), case.z.copy(), gradient(case, asked), **case.settings())


def run(impl, case, asked=None):
    """W_{t+1} of the implementation as fractions."""
    got = sample(impl, case, asked)
    assert np.isfinite(got).all(), f"W_(t+1) is not finite: {got}\n{case}"
    return rational(got)


def prefixes(impl, case):
    """X_0 .. X_L from the implementation, and their error bounds: X_l is the sample of l leapfrogs."""
    cases = [replace(case, L=l, z=case.z[: 2 * l + 1]) for l in range(1, case.L + 1)]
    zero = rational(np.zeros(case.n))
    return [rational(case.w)] + [run(impl, x) for x in cases], [zero] + [tolerance(impl, x) for x in cases]


def unit_probes(case):
    """The same settings with one unit input at a time: row j of z, then the gradient at position l."""
    zero = replace(case, w=0 * case.w, z=0 * case.z, A=0 * case.A, b=0 * case.b, kappa=0.0, g=None)
    for j in range(2 * case.L + 1):
        probe = replace(zero, z=zero.z.copy())
        probe.z[j] = 1
        yield f"z[{j}]", probe
    for l in range(case.L):
        probe = replace(zero, g=np.zeros((case.L + 1, case.n)), z=zero.z.copy())
        probe.g[l] = probe.z[0] = 1  # moving, so that the positions differ
        probe.g = distinct(probe, case.L)
        yield f"the gradient at X_{l}", probe


PROBES = {}  # settings -> unit probes, their right answers and their F


def constants_are_exact(impl, case):
    """Whether the implementation's own coefficients come out exact, the premise of the exact class.

    sqrt(2) sqrt(alpha M) is as right as sqrt(2 alpha M) but not rational; such code is judged by the rounding bound.
    """
    known, key = impl.__dict__.setdefault("constants", {}), repr((case.n, case.settings()))
    if key not in PROBES:
        PROBES[key] = [(p, positions(p)[-1], positions(p, positive=True)[-1]) for _, p in unit_probes(case)]
    if key not in known:
        errors = [(abs(run(impl, p) - want), gamma(impl, p) * F) for p, want, F in PROBES[key]]
        inexact = any((error != 0).any() for error, _ in errors)
        known[key] = not (inexact and all((error <= bound).all() for error, bound in errors))
    return known[key]


def tolerance(impl, case):
    """0 in the exact class, gamma_k F otherwise."""
    if case.exact and constants_are_exact(impl, case):
        return rational(np.zeros(case.n))
    return rounding_bound(impl, case)


def assert_step(impl, case, want=None, what="W_(t+1)"):
    """The implementation's W_{t+1} is `want` (default: Algorithm 1 in fractions); returns it."""
    got = run(impl, case)
    assert_close(got, positions(case)[-1] if want is None else want, tolerance(impl, case), what, case)
    return got


def assert_same(impl, case, other, what, transform=lambda x: x):
    """transform(sample of `case`) = sample of `other`; `transform` is linear with |entries| summing to at most 2."""
    bound = tolerance(impl, other) + 2 * max(tolerance(impl, case))
    assert_close(run(impl, other), transform(run(impl, case)), bound, what, case, other)
