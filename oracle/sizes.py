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

from oracle.arithmetic import DECIMALS, Disagreement, close, decimals
from oracle.energy import NAMES, Batch, energy_bound, gradient_bounds, truth
from oracle.inputs import Draw
from oracle.known_bugs import bugs_of_size, implementation
from oracle.sampler import Case, gamma, gradient, positions

KINDS = 61
PAIRS = 12  # kinds of rows


@functools.cache
def kinds_of(n, kinds):
    """The kind of each of n entries: the same for ever."""
    return Draw(n).array(n, 0, kinds - 1).astype(int)


# ------------------------------------------------------------------------------------------------------- the sampler

@functools.cache
def one_of_each(L, vectors):
    """A case with one coordinate of each kind, and its W_(t+1) and F; vectors: those of mass, b_hat to vary."""
    draw = Draw(11)
    case = Case(w=draw.nonzero(KINDS, 20, 1 / 8), z=draw.nonzero((2 * L + 1, KINDS), 12, 1 / 8),
                A=draw.nonzero(KINDS, 8, 1 / 8), b=draw.nonzero(KINDS, 20, 1 / 8), eps=min(0.1, 2 / L), L=L,
                alpha=0.13)
    if "mass" in vectors:
        case.mass = draw.array(KINDS, 5, 80, 1 / 16)
    if "b_hat" in vectors:
        case.b_hat = draw.array(KINDS, 0, 12, 1 / 16) * case.alpha * case.mass / case.eps  # at most 3C/4
    return case, *(positions(case, positive, DECIMALS)[-1] for positive in (False, True))


def assert_long(impl, n, L, vectors=()):
    """All of n coordinates after L leapfrogs are those of Algorithm 1. vectors: "mass", "b_hat", one a coordinate."""
    few, want, F = one_of_each(L, vectors)
    kinds = kinds_of(n, KINDS)
    case = replace(few, w=few.w[kinds], z=few.z[:, kinds], A=few.A[kinds], b=few.b[kinds],
                   **{name: getattr(few, name)[kinds] for name in vectors})

    def answer(impl):
        return impl.step(case.w.copy(), case.z.copy(), gradient(case), **case.settings())

    bound = DECIMALS.one(float(gamma(impl, few))) * F
    parts = [Part("W_(t+1)", answer(impl), kinds, want, bound)]
    about = f"n = {n}, L = {L}, " + (f"a vector for {' and '.join(vectors)}" if vectors else "mass = 1")
    assert_parts(parts, about, lambda row: [answer(implementation(row))], bugs_of_size("step"))


# -------------------------------------------------------------------------------------------------------- the energy

@functools.cache
def pairs(d):
    """A batch with one row of each kind."""
    return Batch(*Draw(13).nonzero((4, PAIRS, max(256, d)), 4, 1 / 4)[..., :d])


@functools.cache
def large_truth(B, d, stop_grad):
    return truth(pairs(d), stop_grad, np.bincount(kinds_of(B, PAIRS), minlength=PAIRS))


def assert_large_energy(impl, B, d):
    """U of B pairs of rows of length d is that of Equation 2."""
    batch, right = pairs(d).map(lambda x: x[kinds_of(B, PAIRS)]), large_truth(B, d, False)

    def answer(impl):
        return np.array([impl.energy(*batch.arrays())])

    part = Part("U", answer(impl), np.zeros(1, int), np.array([right.U]), np.array([energy_bound(impl, batch, right)]))
    assert_parts([part], f"B = {B}, d = {d}", lambda row: [answer(implementation(row))], bugs_of_size("energy"))


def assert_large_gradient(impl, B, d, stop_grad):
    """All entries of the gradient are those of Equation 2."""
    kinds, right = kinds_of(B, PAIRS), large_truth(B, d, stop_grad)
    batch = pairs(d).map(lambda x: x[kinds])

    def answers(impl):
        return impl.energy_grad(*batch.arrays(), stop_grad)

    bounds = [np.broadcast_to(0 if stop_grad and "z" in name else e, (PAIRS, d))
              for name, e in zip(NAMES, gradient_bounds(impl, batch, right), strict=True)]
    parts = [Part(f"dU/d{name}", got, kinds, want, bound)
             for name, got, want, bound in zip(NAMES, answers(impl), right.grads, bounds, strict=True)]
    assert_parts(parts, f"B = {B}, d = {d}, stop_grad = {stop_grad}", lambda row: answers(implementation(row)),
                 [*bugs_of_size("energy"), *bugs_of_size("gradient")])


# ------------------------------------------------------------------------------------------------------------ judging

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

    def difference(self):
        """Where it is wrong, and the first wrong number (to the 16 digits of a float)."""
        want, bound = (x.astype(float)[self.kinds] for x in (self.want, self.bound))
        wrong = ~(abs(self.got - want) <= bound)
        if not wrong.any():
            return f"{self.name} is outside its bound by less than a rounding error"
        first = np.unravel_index(wrong.argmax(), wrong.shape)
        axes = [places(wrong.any(axis=tuple(set(range(wrong.ndim)) - {i})), name)
                for i, name in enumerate(("coordinates",) if wrong.ndim == 1 else ("rows", "features"))]
        return (f"{self.name}{list(map(int, first))}: got {float(self.got[first])!r}, right {float(want[first])!r}, "
                f"allowed error {float(bound[first]):.3g}" + f" ({'; '.join(axes)})" * (wrong.size > 1))


def places(wrong, name):
    """Which entries of a vector of booleans are true, in words."""
    if wrong.all():
        return f"all {len(wrong)} {name} are wrong"
    i = np.flatnonzero(wrong)
    which = ", ".join(map(str, i)) if len(i) < 9 else f"the first is {i[0]}, the last {i[-1]}"
    return f"{len(i)} of {len(wrong)} {name} are wrong: {which}"


def assert_parts(parts, about, answers, known):
    """All parts are right; else says where they are not, and which of the known bugs gives the same answers."""
    bad = [part for part in parts if not part.is_right()]
    if bad:
        named = [row for row in known if all(
            np.allclose(x, part.got, rtol=0, atol=2 * float(part.bound.max()), equal_nan=True)
            for x, part in zip(answers(row), parts, strict=True))]
        also = [f"Your output equals that of a known bug: {row}" for row in named]
        raise Disagreement("\n".join([bad[0].difference(), f"at {about}", *also]))
