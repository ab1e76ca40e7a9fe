"""Real sizes: thousands of coordinates, many leapfrogs, batches of hundreds of rows of odd length.

Code that works in blocks can be right at 4 coordinates and wrong at 5003. A long vector is made here of KINDS problems
of one coordinate each, in random order, a large batch of KINDS quadruples of rows. So all right answers cost no more
than those to KINDS problems, exact and with the bounds of sampler.py and energy.py; every entry is judged, by the
smallest and the largest answer to its kind; and a number that comes from a wrong place is of another kind, but for one
time in KINDS.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np

from oracle.arithmetic import DECIMALS, Disagreement, close, decimals, difference
from oracle.energy import NAMES, Batch, energy_bound, gradient_bounds, truth
from oracle.inputs import Draw
from oracle.sampler import Case, gamma, positions, sample

KINDS = 61
PAIRS = 12  # kinds of rows


@functools.cache
def kinds_of(n, kinds):
    """The kind of each of n entries: the same for ever."""
    return Draw(n).array(n, 0, kinds - 1).astype(int)


@dataclass
class Part:
    """Answers got (n,) or (n, d), the kind of each (n,), and the right answer and the bound for each kind."""

    name: str
    got: np.ndarray
    kinds: np.ndarray
    want: np.ndarray
    bound: np.ndarray

    def extremes(self):
        """The kinds there are, and the smallest and the largest answer to each (NaN counts as both)."""
        order = np.argsort(self.kinds, kind="stable")
        used, starts = np.unique(self.kinds[order], return_index=True)
        return used, [f.reduceat(self.got[order], starts, axis=0) for f in (np.minimum, np.maximum)]

    def is_right(self):
        used, both = self.extremes()
        if not all(np.isfinite(x).all() for x in both):
            return False
        both = both[:1] if (both[0] == both[1]).all() else both
        return all(close(decimals(x), self.want[used], self.bound[used]).all() for x in both)

    def in_floats(self):
        """got, right and bound of all entries."""
        return self.got, *(x.astype(float)[self.kinds] for x in (self.want, self.bound))


def assert_parts(parts, about):
    """All parts are right; else says where the first wrong one is not."""
    for part in parts:
        if not part.is_right():
            got, want, bound = part.in_floats()
            good = abs(got - want) <= bound
            where = "outside its bound by less than a rounding error" if good.all() else difference(
                got, want, bound, good)
            raise Disagreement(f"{part.name}: {where}\nat {about}")


# ------------------------------------------------------------------------------------------------------- the sampler

@functools.cache
def one_of_each(L, vectors):
    """A case with one coordinate of each kind; vectors: those of mass, b_hat to vary."""
    draw = Draw(11)
    case = Case(w=draw.nonzero(KINDS, 20, 1 / 8), z=draw.nonzero((2 * L + 1, KINDS), 12, 1 / 8),
                A=draw.nonzero(KINDS, 8, 1 / 8), b=draw.nonzero(KINDS, 20, 1 / 8), eps=min(0.1, 2 / L), L=L,
                alpha=0.13)
    if "mass" in vectors:
        case.mass = draw.array(KINDS, 5, 80, 1 / 16)
    if "b_hat" in vectors:
        case.b_hat = draw.array(KINDS, 0, 12, 1 / 16) * case.alpha * case.mass / case.eps  # at most 3C/4
    return case


def long_case(n, L, vectors=()):
    """A case of n coordinates, each of them one of a kind."""
    few, kinds = one_of_each(L, vectors), kinds_of(n, KINDS)
    return replace(few, w=few.w[kinds], z=few.z[:, kinds], A=few.A[kinds], b=few.b[kinds],
                   **{name: getattr(few, name)[kinds] for name in vectors})


def assert_long(impl, n, L, vectors=()):
    """All of n coordinates after L leapfrogs are those of Algorithm 1. vectors: "mass", "b_hat", one a coordinate."""
    few = one_of_each(L, vectors)
    want, F = (positions(few, positive, DECIMALS)[-1] for positive in (False, True))
    bound = DECIMALS.one(float(gamma(impl, few))) * F
    part = Part("W_(t+1)", sample(impl, long_case(n, L, vectors)), kinds_of(n, KINDS), want, bound)
    assert_parts([part], f"n = {n}, L = {L}, " + (f"a vector for {' and '.join(vectors)}" if vectors else "mass = 1"))


# -------------------------------------------------------------------------------------------------------- the energy

@functools.cache
def pairs(d):
    """A batch with one row of each kind."""
    return Batch(*Draw(13).nonzero((4, PAIRS, max(256, d)), 4, 1 / 4)[..., :d])


@functools.cache
def large_truth(B, d, stop_grad):
    return truth(pairs(d), stop_grad, np.bincount(kinds_of(B, PAIRS), minlength=PAIRS))


def large_batch(B, d):
    """B pairs of rows of length d, each of them one of a kind."""
    return pairs(d).map(lambda x: x[kinds_of(B, PAIRS)])


def energy_part(impl, B, d):
    """U of a large batch as a Part."""
    batch, right = large_batch(B, d), large_truth(B, d, False)
    U = np.array([impl.energy(*batch.arrays())])
    return Part("U", U, np.zeros(1, int), np.array([right.U]), np.array([energy_bound(impl, batch, right)]))


def gradient_parts(impl, B, d, stop_grad):
    """The four gradients of a large batch as Parts."""
    batch, right = large_batch(B, d), large_truth(B, d, stop_grad)
    bounds = [np.broadcast_to(0 if stop_grad and "z" in name else e, (PAIRS, d))
              for name, e in zip(NAMES, gradient_bounds(impl, batch, right), strict=True)]
    return [Part(f"dU/d{name}", got, kinds_of(B, PAIRS), want, bound) for name, got, want, bound in zip(
        NAMES, impl.energy_grad(*batch.arrays(), stop_grad), right.grads, bounds, strict=True)]


def assert_large_energy(impl, B, d):
    """U of B pairs of rows of length d is that of Equation 2."""
    assert_parts([energy_part(impl, B, d)], f"B = {B}, d = {d}")


def assert_large_gradient(impl, B, d, stop_grad):
    """All entries of the gradient are those of Equation 2."""
    assert_parts(gradient_parts(impl, B, d, stop_grad), f"B = {B}, d = {d}, stop_grad = {stop_grad}")
