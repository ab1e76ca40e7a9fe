"""Bugs of Equation 2's value with one unknown number: it is solved for at one batch and has to fit the others.

A constant added somewhere (log(m + 1e-8), norms + 1e-8) has no value that a table could list. And in batches that are
larger than a chunk, how many rows or features count is the unknown.
"""

from decimal import Decimal
from math import log

import numpy as np

from oracle.arithmetic import decimals, inner
from oracle.batches import WORKED_EXAMPLE, generic_batch
from oracle.energy import Batch, energy_bound, gradient_bounds, truth
from oracle.sizes import large_batch

# ------------------------------------------------------------------------------------------------ a constant added

def root(x):
    return np.array([y.sqrt() for y in x], dtype=object)


def mean(s12, s21):
    return (sum(abs(s12)) + sum(abs(s21))) / (2 * len(s12))


def by_norms(change):
    """U with each cosine p.z / change(|p|, |z|, delta)."""
    def U(rows, delta):
        p1, z1, p2, z2 = rows
        s = [inner(p, z) / change(root(inner(p, p)), root(inner(z, z)), delta) for p, z in ((p1, z2), (p2, z1))]
        return -mean(*s).ln()
    return U


def by_cosines(change):
    """U with change(s, delta) in place of each cosine s."""
    plain = by_norms(lambda p, z, delta: p * z)

    def U(rows, delta):
        p1, z1, p2, z2 = rows
        s = [change(inner(p, z) / root(inner(p, p)) / root(inner(z, z)), delta) for p, z in ((p1, z2), (p2, z1))]
        return -mean(*s).ln() if delta else plain(rows, delta)
    return U


def scaled(U):
    """U of rows whose largest entry is 1."""
    return lambda rows, delta: U([x / abs(x).max(axis=1)[:, None] for x in rows], delta)


def added(p, z, delta):
    return (p + delta) * (z + delta)


RIGHT = by_norms(lambda p, z, delta: p * z)
CONSTANTS = {
    "{} is added inside the logarithm, log(m + delta)": lambda rows, delta: -((-RIGHT(rows, 0)).exp() + delta).ln(),
    "{} is added to the norm of each row": by_norms(added),
    "{} is added to the norm of each row, after its largest entry is scaled to 1": scaled(by_norms(added)),
    "{} is added to the squared norm of each row, under the root": by_norms(
        lambda p, z, delta: root((p * p + delta) * (z * z + delta))),
    "{} is added to the product of the norms": by_norms(lambda p, z, delta: p * z + delta),
    "{} is added under the root of a smooth absolute value, sqrt(s^2 + delta)": by_cosines(
        lambda s, delta: root(s * s + delta)),
    "U is multiplied by {}": lambda rows, delta: RIGHT(rows, 0) * (1 + delta),
    "m is multiplied by {}": lambda rows, delta: RIGHT(rows, 0) - (1 + delta).ln(),
}


def batches():
    """Batches that differ in everything: the first is solved for delta, the others judge it."""
    generic = generic_batch()
    return [generic, WORKED_EXAMPLE, Batch(*(x[:1, :3] * f for x, f in zip(generic.arrays(), (2, 1, 0.5, 4),
                                                                       strict=True)))]


def solve(U, rows, got):
    """delta with U(rows, delta) = got, by secants from 0; None if there is none."""
    a, b = Decimal(0), Decimal("1e-6")
    Ua, Ub = U(rows, a), U(rows, b)
    for _ in range(60):
        if Ub == Ua:
            return None
        a, b, Ua = b, b - (Ub - got) * (b - a) / (Ub - Ua), Ub
        Ub = U(rows, b)
        if abs(b - a) <= abs(b) * Decimal("1e-30"):
            return b
    return None


def constant(impl):
    """(text, U by rows) of the constant that explains U in all batches, or None."""
    seen = [(batch, [decimals(x) for x in batch.arrays()], Decimal(impl.energy(*batch.arrays())), truth(batch))
            for batch in batches()]
    bounds = [energy_bound(impl, batch, right) for batch, _, _, right in seen]
    if any(not got.is_finite() for _, _, got, _ in seen) or any(
            abs(got - right.U) < 64 * e for (_, _, got, right), e in zip(seen, bounds, strict=True)):
        return None
    for text, U in CONSTANTS.items():
        try:
            delta = solve(U, seen[0][1], seen[0][2])
            if delta is not None and fits(U, delta, seen, bounds):
                number = 1 + delta if "multiplied" in text else delta
                return text.format(f"{float(number):.6g}"), lambda rows, U=U, delta=delta: U(rows, delta)
        except (ArithmeticError, ValueError):
            continue
    return None


def fits(U, delta, seen, bounds):
    """Whether the other batches agree, within what rounding allows there and in delta."""
    def slope(rows):
        h = abs(delta) * Decimal("1e-20")
        return (U(rows, delta + h) - U(rows, delta)) / h

    first = slope(seen[0][1])
    return all(abs(U(rows, delta) - got) <= 4 * (e + bounds[0] * abs(slope(rows) / first))
               for (_, rows, got, _), e in zip(seen[1:], bounds[1:], strict=True))


def smooth_sign(impl):
    """Gradients of a smooth absolute value, in words, delta solved for at one entry of a batch; "" if they are not."""
    if not impl.has("energy_grad"):
        return ""
    seen = [(batch, [decimals(g) for g in impl.energy_grad(*batch.arrays(), False)]) for batch in batches()]
    if not all(x.is_finite() for _, grads in seen for g in grads for x in g.ravel()):
        return ""
    batch, row = seen[0][0], int(abs(truth(seen[0][0]).s[0]).argmin())
    for text, slope in SLOPES.items():
        try:
            delta = solve(lambda batch, delta, slope=slope: slopes(batch, delta, slope)[0][row, 0], batch,
                          seen[0][1][0][row, 0])
            triples = [zip(grads, slopes(other, delta, slope), gradient_bounds(impl, other, truth(other)), strict=True)
                       for other, grads in seen] if delta and delta > 0 else []
            if triples and all((abs(g - want) <= 8 * e).all() for three in triples for g, want, e in three):
                return f"the gradient of |s| is not its sign but {text}, delta = {float(delta):.4g}"
        except (ArithmeticError, ValueError):
            continue
    return ""


def slopes(batch, delta, slope):
    """The gradients of Equation 2 with slope(s, delta) in place of the sign of each cosine."""
    right = truth(batch)
    return [g * (slope(s, delta) / np.sign(s))[:, None] for g, s in zip(right.grads, right.s, strict=True)]


SLOPES = {"s / sqrt(s^2 + delta)": lambda s, delta: s / root(s * s + delta),
          "s / (|s| + delta)": lambda s, delta: s / (abs(s) + delta)}


def explained(impl, batch, options):
    """The texts of options, {text: m}, whose -log m is the U of a batch."""
    U = impl.energy(*batch.arrays())
    return [text for text, m in options.items() if abs(U + log(m)) <= 256 * float(impl.u) / m]


def wrong_axis(impl):
    """Whether rows are divided by each other's norms where there are as many rows as features, in words."""
    p1, z1, p2, z2 = (x / np.linalg.norm(x, axis=1) for x in WORKED_EXAMPLE.arrays())  # two rows of two
    m = (abs((p1 * z2).sum(axis=1)) + abs((p2 * z1).sum(axis=1))).mean() / 2
    text = "the norms stand along the wrong axis where there are as many rows as features: entry [i, j] is divided by "
    return "".join(explained(impl, WORKED_EXAMPLE, {f"{text}the norm of row j": m}))


def with_zeros():
    """The generic batch with a row of zeros in p1."""
    batch = generic_batch()
    batch.p1[0] = 0
    return batch


def counted(impl):
    """How the mean leaves out a row of zeros, in words; "" if it does not."""
    batch = with_zeros()
    (s12, s21), B = (abs(np.array(s, dtype=float)) for s in truth(batch).s[:2]), len(batch.p1)
    left_out = {f"the mean is over {2 * B - 1} pairs of rows instead of {2 * B}": (s12.sum() + s21.sum()) / (2 * B - 1),
                f"the mean of the view is over {B - 1} pairs instead of {B}": (s12.sum() / (B - 1) + s21.mean()) / 2,
                f"both views of such a pair, and the mean is over {B - 1} instead of {B}":
                    (s12[1:] + s21[1:]).mean() / 2}
    return next((f"rows of zeros are left out of the count: {text}" for text in explained(impl, batch, left_out)), "")


def short_rows(impl):
    """Whether U changes with the length of the rows of p1, in words."""
    batch = generic_batch()
    want = float(truth(batch).U)
    for k in (1, 4, 10, 19):
        U = impl.energy(batch.p1 * 2.0**-k, batch.z1, batch.p2, batch.z2)
        if not abs(U - want) <= float(energy_bound(impl, batch, truth(batch))):
            return (f"rows of p1 shorter by a factor of {2**k} give U = {U:.9g} instead of {want:.9g}: a norm is not "
                    "let below a bound that is too large, or something is added to it")
    return ""


def clamp(impl):
    """The smallest m that U goes down to, in words, if it is above 1e-9; and the largest, if it is below 1."""
    values = {}
    for k in (2, 8, 16, 28, 30):
        pair = np.array([[2.0**-k, 1.0]]), np.array([[1.0, 0.0]])
        values[k] = impl.energy(pair[0], pair[1], pair[0], pair[1])
    if values[28] == values[30] < 28 * log(2) - 0.5:
        return f"m is not let below {np.exp(-values[30]):.6g}: nearly orthogonal rows give U = {values[30]:.6g}"
    p = np.array([[3.0, 4.0]])
    U = impl.energy(p, p, p, p)
    if not abs(U) <= 64 * float(impl.u):
        return f"equal rows give U = {U:.6g}, right is 0: m does not reach 1, it is {np.exp(-U):.9g}"
    return ""


# --------------------------------------------------------------------------------------------------- large batches

def cosines(batch, features=None):
    """s of both views (2, B), from the first features alone."""
    p1, z1, p2, z2 = (x[:, :features] / np.linalg.norm(x[:, :features], axis=1, keepdims=True) for x in batch.arrays())
    return abs(np.array([(p1 * z2).sum(axis=1), (p2 * z1).sum(axis=1)])).mean(axis=0)


def of_a_part(impl, B, d):
    """Which rows or features of a large batch count, in words; "" if all do or nothing fits."""
    batch = large_batch(B, d)
    s = cosines(batch)
    if explained(impl, batch, {"all": s.mean()}):
        return ""
    found = {f"only the first {r} of {B} rows count": s[:r].mean() for r in range(1, B)}
    found |= {f"only the first {r} of {B} rows are added, but divided by {B}": s[:r].sum() / B for r in range(1, B)}
    found |= {f"only the last {r} of {B} rows count": s[-r:].mean() for r in range(1, B)}
    found |= {f"the mean of the means of chunks of {k} rows: the short last chunk weighs as much as the others":
              np.mean([s[i:i + k].mean() for i in range(0, B, k)]) for k in range(2, B) if B % k}
    found |= {f"only the first {f} of {d} features count": cosines(batch, f).mean() for f in range(1, d)}
    return " or ".join(explained(impl, batch, found)[:2])
