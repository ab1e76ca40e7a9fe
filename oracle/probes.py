"""A step described by its own coefficients: one coordinate, one input and one gradient at a time, each by difference.

Whoever answers the gradients sees X_0 .. X_L. The answer at each position is given, so X is affine in W_t, in each
row of z and in each gradient, and two calls that differ in one number show its coefficient in every X_l, whatever the
others do. Each number is changed at one coordinate only, so that what it does to another is seen too.
"""

from dataclasses import dataclass, replace

import numpy as np

from oracle.calls import Path
from oracle.formula import words
from oracle.implementations import NUMPY, Broken, numbers
from oracle.sampler import Case

CHANGE = {"w": 1.0, "z": 1.0, "g": 8.0}
EPS = 13 / 128  # no round number, so that a constant is not taken for a formula


def path(impl, case):
    """X_0 .. X_L (L + 1, n): the start, what grad was asked at and the sample; case.g[l] is the answer at X_l. Broken:
    the positions seen are others."""
    seen = Path(case.w, min(2.0**20 * float(impl.u) * max(1.0, abs(case.w).max()), 2.0**-10))

    def grad(x):
        return case.g[min(seen.ask(numbers(x, case.w.shape, "grad is called with")), case.L)].copy()

    sample = impl.step(case.w.copy(), case.z.copy(), grad, **case.settings())
    seen.go(sample)
    X = seen.X
    if max(seen.asked, default=0) == case.L and len(X) <= case.L + 2:
        X = X[:case.L] + [sample]  # whatever was asked at X_L
    if len(X) != case.L + 1 or not set(range(case.L)) <= set(seen.asked):
        raise Broken(f"in {case.L} leapfrogs grad is asked at {seen.asked_at} of a path of {len(X) - 1} moves; right "
                     f"is X_0 ... X_{case.L - 1} of a path of {case.L}")
    return np.array(X)


def probe_case(mass, n=4, L=3, b_hat=0.0):
    """Dyadic inputs of which none is zero, all positions apart."""
    rng = np.random.default_rng(3)

    def odd(*shape):
        return (2 * rng.integers(0, 8, shape) + 1) * rng.choice((-1, 1), shape) / 8

    return Case(w=odd(n), z=odd(2 * L + 1, n), A=np.zeros((n, n)), b=np.zeros(n), g=odd(L + 1, n), eps=EPS, L=L,
                alpha=0.13, mass=mass, b_hat=b_hat)


def inputs(case):
    """(kind, row) of everything that can be changed."""
    return [("w", 0), *(("z", j) for j in range(2 * case.L + 1)), *(("g", l) for l in range(case.L + 1))]


def changed(case, kind, row, i):
    """The case with one number changed."""
    x = getattr(case, kind).copy()
    x[(i,) if kind == "w" else (row, i)] += CHANGE[kind]
    return replace(case, **{kind: x})


@dataclass
class Seen:
    """By how much X_0 .. X_L move: own[kind, row] (L + 1, n), a coordinate's share for a unit of its own; right: the
    same of Algorithm 1; cross[kind, row]: coordinate of the input -> what it moves (L + 1, n), if that is another
    coordinate; error[kind]: what rounding does to an entry; offset (n,): what X_L is off before any change."""

    case: Case
    own: dict
    right: dict
    cross: dict
    error: dict
    offset: np.ndarray


def moved(impl, case, base, key, which=slice(None)):
    """By how much X_0 .. X_L move for a unit of one input, at one coordinate or at all."""
    return (path(impl, changed(case, *key, which)) - base) / CHANGE[key[0]]


RIGHT = {}  # case -> X_0 .. X_L of Algorithm 1, and how they move for each input


def right_responses(case):
    key = case.key()
    if key not in RIGHT:
        base = path(NUMPY, case)
        RIGHT[key] = base, {name: moved(NUMPY, case, base, name) for name in inputs(case)}
    return RIGHT[key]


def responses(impl, case, alone=None):
    """What is Seen of an implementation at a case; Broken if it does not go through L positions. alone: coordinates
    that are changed one at a time; all of them by default, and then no change of all at once is needed."""
    base, (right_base, right) = path(impl, case), right_responses(case)
    scale = max(abs(right_base).max(), abs(base).max())
    error = {kind: 64 * float(impl.u) * scale / CHANGE[kind] for kind in CHANGE}
    own, cross = {}, {}
    for key in inputs(case):
        kind = key[0]
        one = {i: moved(impl, case, base, key, i) for i in (range(case.n) if alone is None else alone)}
        own[key] = moved(impl, case, base, key) if alone is not None else np.array([x[:, i] for i, x in one.items()]).T
        cross[key] = {i: x for i, x in one.items() if (abs(np.delete(x, i, axis=1)) > error[kind]).any()}
    return Seen(case, own, right, cross, error, base[-1] - right_base[-1])


# ------------------------------------------------------------------------------------------------ what is wrong

def label(kind, row):
    return {"w": "W_t", "z": f"z[{row}]", "g": f"the gradient at X_{row}"}[kind]


def mixing(seen):
    """A line about the inputs that reach another coordinate than their own, [] if there are none."""
    found = {key: reached for key, reached in seen.cross.items() if reached}
    for key, reached in found.items():
        i, x = next(iter(reached.items()))
        bad = abs(x) > seen.error[key[0]]
        others = [int(j) for j in np.flatnonzero(bad.any(axis=0)) if j != i]
        l = int(bad[:, others[0]].argmax())
        rest = [label(*k) for k in found if k != key]
        how = f"moves coordinate {others[0]} by {x[l, others[0]]:.6g} in X_{l}, right is 0"
        many = f" ({len(others)} coordinates in all: {', '.join(map(str, others[:4]))} ...)" if len(others) > 4 else ""
        more = f"; so do {', '.join(rest[:4])}{' and others' * (len(rest) > 4)}" if rest else ""
        return [f"coordinates are mixed: {label(*key)} of coordinate {i} {how}{many}{more}"]
    return []


def wrong_coordinates(seen):
    """Which coordinates have a wrong coefficient of their own, as booleans (n,)."""
    return np.any([(abs(seen.own[key] - seen.right[key]) > seen.error[key[0]]).any(axis=0) for key in seen.own], axis=0)


@dataclass
class Weight:
    """One number of the recursion, seen in the move to X_(l+1): what it is of, got and right, and its error."""

    what: str
    group: str
    got: float
    right: float
    error: float

    @property
    def wrong(self):
        return abs(self.got - self.right) > self.error

    @property
    def counts(self):
        """Whether the right weight is not zero."""
        return abs(self.right) > self.error


def weights(seen, i):
    """The weights of the recursion at coordinate i, in the order in which they act: each input where it first counts,
    and what the momentum keeps from one move to the next."""
    L = seen.case.L
    V = {key: np.diff(seen.own[key][:, i]) for key in seen.own}
    right = {key: np.diff(seen.right[key][:, i]) for key in seen.own}
    for l in range(L):
        for key in seen.own:
            kind, row = key
            first = {"w": 0, "z": row // 2, "g": row}[kind]
            e = 2 * seen.error[kind]
            if first == l or (first > l and abs(V[key][l]) > e):
                group = {"w": "W_t", "z": "z[0]" if row == 0 else "noise", "g": "gradient"}[kind]
                yield Weight(f"{label(*key)} in X_{l + 1} - X_{l}", group, V[key][l], right[key][l], e)
            elif first < l and kind != "w" and abs(V[key][l - 1]) > 64 * e:
                got, want = V[key][l] / V[key][l - 1], right[key][l] / right[key][l - 1]
                yield Weight(f"what {label(*key)} leaves of its push from X_{l} - X_{l - 1} to X_{l + 1} - X_{l}",
                             "kept", got, want, 4 * e / abs(V[key][l - 1]))
            elif first < l and abs(V[key][l] - right[key][l]) > e:
                yield Weight(f"{label(*key)} in X_{l + 1} - X_{l}", label(*key), V[key][l], right[key][l], e)


def described(weight, settings):
    """A wrong weight in words: by a formula for its ratio to the right one, or in numbers."""
    if abs(weight.got) <= weight.error:
        return f"{weight.what}: not used"
    if not weight.counts:
        return f"{weight.what}: {weight.got:.6g}, right is none"
    ratio = words(weight.got / weight.right, 2 * weight.error / min(abs(weight.got), abs(weight.right)), settings)
    if ratio:
        return f"{weight.what}: {ratio} times what it should be"
    return f"{weight.what}: {weight.got:.9g}, right is {weight.right:.9g}"
