"""The oracle of the energy (Equation 2) and of its gradient; how to point it at an implementation: test_sghmc.py.

The right answers are computed in 60-digit decimals. The allowed errors are theorems, not choices. With u the unit
roundoff, B pairs of rows of length d and k = 2 d + B + 16, a computed cosine is off by at most (2 d + 16) u (d in the
dot product, d/2 + 2 in each norm, the rest for divisions and conversions) and the batch mean adds B u, so
|m' - m| <= k u <= t m with t = k u / m, and

    |U' - U| <= t / (1 - t) + k u |U|                      the logarithm of m (1 + t), and its own rounding
    |g' - g| <= 4 k u (1 + 1/m) / ((1 - t) 2 B m |row|)    where |cosine| > k u; at the kink |s| has no derivative
"""

import functools
import random
from dataclasses import dataclass, replace
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction
from math import isqrt
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_numpy
from test_sghmc import (
    DIAGNOSES,
    NUMPY,
    OURS,
    RIGHT,
    SETTINGS,
    SINGLE,
    Draw,
    changes_value,
    diagnosis_at_the_end,  # noqa: F401  (a fixture, of use here as well)
    holds_for,
    kill_matrix,
    name_of,
    numbers,
    on_one_line,
    ours_only,
    phase_map,
    pytestmark,  # noqa: F401
    rational,
    table,
)

getcontext().prec = 60
decimals = np.vectorize(lambda x: Decimal(float(x)), otypes=[object])  # exactly the given floats


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


# --------------------------------------------------------------------------------------- right answers, and bounds

def inner(a, b):
    """Row-wise dot product of object arrays (B,)."""
    return (a * b).sum(axis=1)


def unit(rows):
    """Unit rows and norms (B, 1) in decimals; a row of zeros stays zero, with norm infinity."""
    rows = decimals(rows)
    norm = np.array([x.sqrt() or Decimal("inf") for x in inner(rows, rows)], dtype=object)[:, None]
    return rows / norm, norm


def truth(batch, stop_grad=False):
    """Equation 2 and its gradient in 60 digits: cosines s, m, U, grads and norms in the order p1, z1, p2, z2.
    At m = 0 there is no U and no gradient."""
    (p1, P1), (z1, Z1), (p2, P2), (z2, Z2) = (unit(x) for x in batch.arrays())
    s12 = inner(decimals(batch.p1), decimals(batch.z2)) / (P1 * Z2)[:, 0]  # of raw rows: exactly 0 if orthogonal
    s21 = inner(decimals(batch.p2), decimals(batch.z1)) / (P2 * Z1)[:, 0]
    B = len(s12)
    m = (sum(abs(s12)) + sum(abs(s21))) / (2 * B)
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
    return t / (1 - t) + k_u(impl, batch) * abs(right.U) if t < 1 else Decimal("inf")


def gradient_bounds(impl, batch, right):
    """Allowed errors, columns (B, 1) for p1, z1, p2, z2; infinite at the kink."""
    ku, B = k_u(impl, batch), len(batch.p1)
    t = ku / right.m
    factor = 4 * ku * (1 + 1 / right.m) / ((1 - t) * 2 * B * right.m) if t < 1 else Decimal("inf")
    return [np.where(abs(s)[:, None] > ku, factor / norm, Decimal("inf"))
            for s, norm in zip(right.s, right.norms, strict=True)]


def value(impl, batch, **similarity):
    U = Decimal(impl.energy(*batch.arrays(), **similarity))
    assert not U.is_nan(), f"U is NaN: {batch}"
    return U


def gradient(impl, batch, stop_grad=False, **similarity):
    grads = impl.energy_grad(*batch.arrays(), stop_grad, **similarity)
    assert not any(np.isnan(g).any() for g in grads), f"a gradient is NaN: {grads}, stop_grad={stop_grad}, {batch}"
    return [decimals(g) for g in grads]


def within(got, want, bound, what, *inputs):
    """|got - want| <= bound for decimals or arrays of them."""
    error = abs(got - want)
    if not np.all((error <= bound) | (np.equal(bound, Decimal("inf")) & (error < Decimal("inf")))):
        show = [np.array(x, dtype=float).tolist() for x in (got, want, bound)]
        raise AssertionError(f"{what}: got {show[0]}, right {show[1]}, allowed error {show[2]}\n"
                             + "\n".join(map(str, inputs)))


def assert_energy(impl, batch):
    right, U = truth(batch), value(impl, batch)
    if right.m:
        within(U, right.U, energy_bound(impl, batch, right), "U", batch)
    else:  # as large as rounding makes it, or infinite; ours is finite
        assert 0 < U and (U < Decimal("inf") or not impl.ours), f"U = {U} where every cosine is 0: {batch}"


def assert_gradient(impl, batch, stop_grad=False):
    right = truth(batch, stop_grad)
    got = gradient(impl, batch, stop_grad)
    for name, g, want, bound in zip(NAMES, got, right.grads, gradient_bounds(impl, batch, right), strict=True):
        if stop_grad and name in ("z1", "z2"):
            assert (g == 0).all(), f"dU/d{name} is {g} with stop-gradient, not exactly zero: {batch}"
        within(g, want, bound, f"dU/d{name}, stop_grad={stop_grad}", batch)
    return got


NAMES = ("p1", "z1", "p2", "z2")


# --------------------------------------------------------------------------------------------------------- batches

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


@functools.cache
def generic_batch():
    """Three pairs of positive and negative, small and different cosines (m = 0.08): hides no known bug."""
    v = reference_numpy.read_vectors("energy")["generic"]
    return Batch(*(np.array(v[name]) for name in NAMES))


PYTHAGOREAN = [(3, 4), (5, 12), (8, 15), (1, 2, 2), (2, 3, 6)]


# ------------------------------------------------------------------------------- properties of the value (Equation 2)

@holds_for("energy", examples=60)
def test_energy_is_equation_2(impl, draw):
    assert_energy(impl, any_batch(draw))


@holds_for("energy", examples=1)
def test_energy_is_right_on_a_batch_that_hides_no_bug(impl, draw):
    assert_energy(impl, generic_batch())


@holds_for("energy")
def test_energy_of_pythagorean_rows_is_the_logarithm_of_a_rational_number(impl, draw):
    B, d = draw.integer(1, 4), draw.choice(2, 3)
    rows = [row for row in PYTHAGOREAN if len(row) == d]

    def array():
        return np.array([draw.choice(*rows) for _ in range(B)]) * draw.nonzero((B, d), 1)

    def cosine(a, b):
        return Fraction(int(a @ b), isqrt(int(a @ a)) * isqrt(int(b @ b)))

    batch = Batch(array(), array(), array(), array())
    m = sum(abs(cosine(p, z)) for p, z in zip([*batch.p1, *batch.p2], [*batch.z2, *batch.z1], strict=True)) / (2 * B)
    if m:
        right = SimpleNamespace(m=Decimal(m.numerator) / m.denominator)
        right.U = -right.m.ln()
        within(value(impl, batch), right.U, energy_bound(impl, batch, right), f"U = -log {m}", batch)


@holds_for("energy", examples=1)
def test_energy_of_the_worked_example_is_minus_log_2167_over_2210(impl, draw):
    p1, z1, p2, z2 = [[3, 4], [5, 12]], [[3, 4], [-5, 12]], [[8, 15], [3, -4]], [[5, 12], [8, 15]]
    example = Batch(*(np.array(x, dtype=float) for x in (p1, z1, p2, z2)))
    assert truth(example).m.quantize(Decimal("1e-50")) == (Decimal(2167) / 2210).quantize(Decimal("1e-50"))
    assert_energy(impl, example)


@holds_for("energy")
def test_energy_is_never_negative_and_ours_is_finite(impl, draw):
    batch = any_batch(draw)
    U = value(impl, batch)
    assert U >= (0 if impl.ours else -k_u(impl, batch)), f"U = {U}: {batch}"
    assert U < Decimal("inf") or not impl.ours, f"U = {U}: {batch}"


@holds_for("energy")
def test_energy_of_orthogonal_pairs_is_positive_and_no_nan(impl, draw):
    B = draw.integer(1, 3)
    p1, p2 = draw.nonzero((2, B, 2), 5)
    quarter_turn = np.array([[0, 1], [-1, 0]])
    assert_energy(impl, Batch(p1, p2 @ quarter_turn, p2, 3 * p1 @ quarter_turn))


@holds_for("energy", examples=40)
def test_energy_is_zero_exactly_if_every_pair_is_collinear(impl, draw):
    batch = any_batch(draw, low_d=2)
    factor = draw.nonzero((2, len(batch.p1), 1), 4)
    collinear = replace(batch, z2=factor[0] * batch.p1, z1=factor[1] * batch.p2)
    ku = k_u(impl, batch)
    U = value(impl, collinear)
    assert -ku <= U <= ku / (1 - ku), f"every pair is collinear, but U = {U}: {collinear}"
    assert 0 <= U or not impl.ours
    if 1 - truth(batch).m > ku:
        assert value(impl, batch) > 0, f"some pair is not collinear, but U = 0: {batch}"


@holds_for("energy")
def test_scaling_rows_by_any_number_of_either_sign_changes_nothing(impl, draw):
    batch = replace(generic_batch())
    far = draw.choice(-20, 20) if impl.ours else draw.choice(-5, 5)
    factor = draw.nonzero((3, 1), 3) * 10.0**far / 8
    scaled = replace(batch, p1=batch.p1 * factor, z1=batch.z1 * factor)
    assert_energy(impl, scaled)
    powers = np.sign(factor) * 2.0 ** draw.array((3, 1), -19, 15)
    scaled = replace(batch, p2=batch.p2 * powers)
    assert_energy(impl, scaled)
    if impl.ours:
        assert value(impl, scaled) == value(impl, batch), "rows scaled by powers of two give other bits"


@holds_for("energy")
def test_energy_ignores_order_repetition_and_exchange_of_views_and_roles(impl, draw):
    batch = any_batch(draw)
    order = np.argsort(draw.array(len(batch.p1), 0, 9), kind="stable")
    b = batch
    same = {"views swapped": Batch(b.p2, b.z2, b.p1, b.z1), "roles of P and Z swapped": Batch(b.z1, b.p1, b.z2, b.p2),
            "batch permuted": batch.map(lambda x: x[order]), "batch repeated": batch.map(lambda x: np.vstack([x, x]))}
    right = truth(batch)
    for what, other in same.items() if right.m else ():
        within(value(impl, other), value(impl, batch), 2 * energy_bound(impl, other, right), what, batch)


@holds_for("energy")
def test_energy_ignores_a_rotation_of_all_rows(impl, draw):
    batch = any_batch(draw, low_d=2)
    Q = np.eye(batch.p1.shape[1])
    Q[:2, :2] = [[3, 4], [-4, 3]]  # five times a rotation, in exact numbers
    Q[2:, 2:] *= 5
    rotated, right = batch.map(lambda x: x @ Q), truth(batch)
    if right.m:
        within(value(impl, rotated), value(impl, batch), 2 * energy_bound(impl, batch, right), "rotation", batch)


@holds_for("energy")
def test_energy_is_minus_log_of_the_mean_and_not_the_mean_of_minus_log(impl, draw):
    """exp(-U(B1 + B2)) = (B1 exp(-U1) + B2 exp(-U2)) / (B1 + B2): the probabilities of two batches mix."""
    batches = [any_batch(draw, d=2, low_d=2), any_batch(draw, d=2, low_d=2)]
    both = Batch(*(np.vstack(pair) for pair in zip(*(b.arrays() for b in batches), strict=True)))
    if any(truth(b).m <= k_u(impl, both) for b in batches):
        return
    sizes = [len(b.p1) for b in batches]
    mixed = sum(B * (-value(impl, b)).exp() for B, b in zip(sizes, batches, strict=True)) / sum(sizes)
    bound = 2 * sum(energy_bound(impl, b, truth(b)).exp() - 1 for b in [both, *batches])  # m <= 1
    within((-value(impl, both)).exp(), mixed, bound, "mixture", *batches)


@holds_for("energy")
def test_energy_is_right_down_to_nearly_orthogonal_rows(impl, draw):
    """One pair at angle t beside a collinear one: U = -log((1 + cos t) / 2). Then both at angle t."""
    a, b = 2.0 ** -draw.integer(0, 30), draw.integer(1, 5)  # |cos t| down to 1e-9: nearly orthogonal rows
    p1, z1, p2, z2 = [a, b], [1.0, 2.0], [-1.0, -2.0], [draw.choice(-2.0, 3.0), 0]
    batch = Batch(*(np.array([x]) for x in (p1, z1, p2, z2)))
    cos_t = Decimal(a) / (Decimal(a) ** 2 + Decimal(b) ** 2).sqrt()
    right = SimpleNamespace(m=(cos_t + 1) / 2, U=-((cos_t + 1) / 2).ln())
    within(value(impl, batch), right.U, energy_bound(impl, batch, right), "anchor", batch)
    assert_energy(impl, replace(batch, p2=np.array([[a, -b]]), z1=np.array([[1.0, 0]])))  # both views nearly orthogonal


@holds_for("energy")
def test_rows_of_zeros_have_cosine_zero(impl, draw):
    batch = any_batch(draw)
    row = draw.integer(0, len(batch.p1) - 1)
    holes = replace(batch, **{draw.choice(*NAMES): batch.p1 * 0}) if len(batch.p1) == 1 else batch.map(lambda x: x)
    if len(batch.p1) > 1:
        getattr(holes, draw.choice(*NAMES))[row] = 0
    assert_energy(impl, holes)


@holds_for("energy", examples=1)
def test_energy_writes_no_argument_and_keeps_no_state(impl, draw):
    batch = generic_batch()
    arrays = batch.arrays()
    first = Decimal(float(numbers(impl.module.energy(*arrays), (), "energy returns")))
    assert all((x == y).all() for x, y in zip(arrays, batch.arrays(), strict=True)), "an argument was written"
    value(impl, batch.map(lambda x: x[::-1] + 1))
    assert value(impl, batch) == first, "the same inputs gave other bits: something is kept between calls"


# ------------------------------------------------------------------------------------- properties of the gradient

@holds_for("energy_grad", examples=60)
def test_gradient_is_the_closed_form(impl, draw):
    batch = any_batch(draw)
    if truth(batch).m:
        assert_gradient(impl, batch)


@holds_for("energy_grad", examples=60)
def test_stop_gradient_zeroes_the_targets_gradient_and_leaves_the_predictions(impl, draw):
    batch = any_batch(draw)
    if truth(batch).m:
        assert_gradient(impl, batch, stop_grad=True)


@holds_for("energy_grad", examples=1)
def test_gradient_is_right_on_a_batch_that_hides_no_bug(impl, draw):
    for stop_grad in (False, True):
        assert_gradient(impl, generic_batch(), stop_grad)


@holds_for("energy_grad", examples=1)
def test_gradient_writes_no_argument_and_keeps_no_state(impl, draw):
    batch = generic_batch()
    arrays = batch.arrays()
    first = [numbers(g, batch.p1.shape, "energy_grad returns") for g in impl.module.energy_grad(*arrays, False)]
    assert all((x == y).all() for x, y in zip(arrays, batch.arrays(), strict=True)), "an argument was written"
    impl.energy_grad(*arrays, True)
    again = impl.energy_grad(*arrays, False)
    assert all((x == y).all() for x, y in zip(first, again, strict=True)), "the same inputs gave other bits"


@holds_for("energy_grad")
def test_gradient_is_orthogonal_to_its_row(impl, draw):
    batch = any_batch(draw)
    right = truth(batch)
    if right.m:
        bounds = gradient_bounds(impl, batch, right)
        for name, x, g, e in zip(NAMES, batch.arrays(), gradient(impl, batch), bounds, strict=True):
            within(inner(g, decimals(x)), 0, e[:, 0] * abs(decimals(x)).sum(axis=1), f"dU/d{name} . {name}", batch)


@holds_for("energy_grad")
def test_gradient_of_a_longer_row_is_shorter_in_proportion(impl, draw):
    batch = generic_batch()
    for far in (draw.choice(0, 12, -12), *((66, -66) if impl.ours else ())):  # 2^66 is 7e19
        factor = draw.nonzero((3, 1), 4, 1 / 2) * 2.0**far
        scaled = replace(batch, p1=batch.p1 * factor)
        e, e_scaled = (gradient_bounds(impl, x, truth(x)) for x in (batch, scaled))
        g, g_scaled = gradient(impl, batch), gradient(impl, scaled)
        bound = e[0] + e_scaled[0] * abs(decimals(factor))
        within(g_scaled[0] * decimals(factor), g[0], bound, "grad(lambda P) lambda", scaled)
        for i in (1, 2, 3):
            within(g_scaled[i], g[i], e[i] + e_scaled[i], f"dU/d{NAMES[i]} when P1 is scaled", scaled)


@holds_for("energy_grad")
def test_both_rows_of_a_pair_are_turned_equally_and_oppositely(impl, draw):
    """|dU/dP| |P| = |dU/dZ| |Z|, and no torque on the batch without stop-gradient."""
    batch = any_batch(draw, low_d=2)
    right = truth(batch)
    if not right.m or not all((abs(s) > k_u(impl, batch)).all() for s in right.s):
        return
    e, g = gradient_bounds(impl, batch, right), gradient(impl, batch)
    d = batch.p1.shape[1]
    turn = [x * n for x, n in zip(g, right.norms, strict=True)]
    for a, b in ((0, 3), (2, 1)):  # P1 with Z2, P2 with Z1
        lengths = [np.array([x.sqrt() for x in inner(turn[i], turn[i])]) for i in (a, b)]
        allowed = Decimal(d).sqrt() * (e[a] * right.norms[a] + e[b] * right.norms[b])[:, 0]
        within(lengths[0], lengths[1], allowed, f"|grad||row| of {NAMES[a]} and {NAMES[b]}", batch)
    torque, allowed = np.zeros((d, d), object), np.zeros((d, d), object)
    for x, gx, ex in zip(map(decimals, batch.arrays()), g, e, strict=True):
        torque = torque + x.T @ gx - gx.T @ x
        allowed = allowed + abs(x).T @ (ex + 0 * gx) + (ex + 0 * gx).T @ abs(x)
    within(torque, 0 * torque, allowed, "torque", batch)


@holds_for("energy_grad", examples=1)
def test_stop_gradient_leaves_a_torque(impl, draw):
    batch = generic_batch()
    g = gradient(impl, batch, stop_grad=True)
    torque = sum(x.T @ gx - gx.T @ x for x, gx in zip(map(decimals, batch.arrays()), g, strict=True))
    assert (abs(torque) > 2 * max(np.max(e) for e in gradient_bounds(impl, batch, truth(batch)))).any()


@holds_for("energy_grad")
def test_full_gradient_is_the_sum_of_those_with_either_side_held_fixed(impl, draw):
    batch = any_batch(draw)
    right = truth(batch)
    if right.m:
        fixed_Z = gradient(impl, batch, stop_grad=True)
        z1, p1, z2, p2 = gradient(impl, Batch(batch.z1, batch.p1, batch.z2, batch.p2), stop_grad=True)
        sums = [a + b for a, b in zip(fixed_Z, (p1, z1, p2, z2), strict=True)]
        bounds = gradient_bounds(impl, batch, right)
        for name, full, parts, e in zip(NAMES, gradient(impl, batch), sums, bounds, strict=True):
            within(full, parts, 2 * e, f"dU/d{name}", batch)


@holds_for("energy_grad")
def test_without_predictor_the_stop_gradient_is_half_of_the_full_gradient(impl, draw):
    batch = any_batch(draw)
    batch = replace(batch, p1=batch.z1, p2=batch.z2 / 8)
    batch = replace(batch, z2=batch.p2)
    right = truth(batch)
    if right.m:
        full, half = gradient(impl, batch), gradient(impl, batch, stop_grad=True)
        e = gradient_bounds(impl, batch, right)
        for i in (0, 2):  # p and z are one array: the full gradient is the sum of both
            within(full[i] + full[i + 1], 2 * half[i], 3 * e[i] + e[i + 1], "twice the stop-gradient", batch)


@holds_for("energy_grad")
def test_gradient_never_stretches_the_predictors_last_layer(impl, draw):
    """<theta, grad> = 0 for weights and bias together: U does not change when P is scaled."""
    B, h, d = draw.integer(1, 3), 2, 3
    z1, z2, hidden1, hidden2 = (draw.nonzero((B, n), 3) for n in (d, d, h, h))
    theta = np.vstack([draw.nonzero((h, d), 4), draw.nonzero((1, d), 4, 1 / 4)])  # weights, bias
    inputs = [np.hstack([x, np.ones((B, 1))]) for x in (hidden1, hidden2)]
    batch = Batch(inputs[0] @ theta, z1, inputs[1] @ theta, z2)
    right = truth(batch)
    if right.m and all((np.abs(x).sum(axis=1) > 0).all() for x in batch.arrays()):
        g, e = gradient(impl, batch, stop_grad=True), gradient_bounds(impl, batch, right)
        grad_theta = sum(decimals(x).T @ g[i] for x, i in zip(inputs, (0, 2), strict=True))
        bound = sum((abs(decimals(x)).T @ (e[i] + 0 * g[i]) * abs(decimals(theta))).sum()
                    for x, i in zip(inputs, (0, 2), strict=True))
        within((grad_theta * decimals(theta)).sum(), Decimal(0), bound, "<theta, grad>", batch)


@holds_for("energy_grad")
def test_gradient_of_a_batch_with_rows_of_zeros_is_finite_and_right_elsewhere(impl, draw):
    batch = any_batch(draw, B=3)
    batch = batch.map(lambda x: np.vstack([x, np.ones((1, x.shape[1]))]))  # one row in order
    getattr(batch, draw.choice(*NAMES))[0] = 0
    for stop_grad in (False, True):
        right, got = truth(batch, stop_grad), gradient(impl, batch, stop_grad)
        for name, g, want, e in zip(NAMES, got, right.grads, gradient_bounds(impl, batch, right), strict=True):
            assert all(x.is_finite() for x in g.ravel()), f"dU/d{name} is {g}: {batch}"
            within(g, want, e, f"dU/d{name}", batch)


# ------------------------------------------------------------------------------------------ diagnosis, kill matrix

@functools.cache
def generic_truth():
    """Right outputs on the generic batch, without and with stop-gradient."""
    return [truth(generic_batch(), stop_grad) for stop_grad in (False, True)]


def outputs(impl):
    """U, gradients, gradients with stop-gradient on the generic batch, as far as there are any; right ones; bounds."""
    batch, right = generic_batch(), generic_truth()[0]
    e, found = gradient_bounds(impl, batch, right), []
    if impl.has("energy"):
        found.append((Decimal(impl.energy(*batch.arrays())), right.U, energy_bound(impl, batch, right)))
    for stop_grad in (False, True) if impl.has("energy_grad") else ():
        g = map(decimals, impl.energy_grad(*batch.arrays(), stop_grad))
        found += zip(g, generic_truth()[stop_grad].grads, e, strict=True)
    return found


def near(got, want, bounds):
    """Within the bounds; NaN and infinity are values like any other here."""
    for x, y, e in zip(got, want, bounds, strict=True):
        x, y = np.array(x, dtype=object), np.array(y, dtype=object)
        finite = np.isfinite(x.astype(float)) & np.isfinite(y.astype(float))
        if not np.array_equal(x[~finite].astype(float), y[~finite].astype(float), equal_nan=True):
            return False
        if not (abs(x[finite] - y[finite]) <= np.broadcast_to(e, x.shape)[finite]).all():
            return False
    return True


@functools.cache
def differentiated():
    """(row, U, gradients) of the mutants of U if a machine differentiates it: by differences, with errors of 1e-20."""
    found, h = [], Decimal("1e-20")
    for row in (row for row, _ in table("energy") if changes_value(row)):
        mutant, batch, grads = reference_numpy.variant((row["old"], row["new"]), decimals=True), generic_batch(), []
        mutant["float"] = lambda U: U  # all digits of the result
        rows = [decimals(x) for x in batch.arrays()]
        try:
            U = mutant["energy"](*rows)
            for x in rows:
                grads.append(0 * x)
                for i in np.ndindex(x.shape):
                    x[i] += h
                    grads[-1][i] = (mutant["energy"](*rows) - U) / h
                    x[i] -= h
        except (TypeError, ArithmeticError):  # decimals have no arccos and no logarithm of a negative number
            continue
        found.append((row, U, grads))
    return found


@functools.cache
def wrong_outputs(has_energy, has_gradient):
    """(row, what it answers on the generic batch): the mutants; then those of U with the gradient of that U."""
    wanted = [name for name, has in (("energy", has_energy), ("energy_grad", has_gradient)) if has]
    answers = []
    with np.errstate(all="ignore"):
        for target in ("energy", "gradient"):
            for row, impl in table(target):
                if changes_value(row):
                    partial = SimpleNamespace(**{name: getattr(impl.module, name) for name in wanted})
                    answers.append((row, [x for x, _, _ in outputs(replace(impl, module=partial))]))
        for row, U, (p1, z1, p2, z2) in differentiated() if has_gradient else ():
            answers.append((row, [U] * has_energy + [p1, z1, p2, z2, p1, 0 * z1, p2, 0 * z2]))
    return answers


def diagnose_energy(impl):
    """Names the known bugs whose outputs on the generic batch are the implementation's, in whole or part by part."""
    try:
        got, right, bounds = zip(*outputs(impl), strict=True)
    except Exception as error:
        return f"Diagnosis: the generic batch raises {type(error).__name__}: {error}"

    def equal(other):
        return {i for i in range(len(got)) if near(got[i:i + 1], other[i:i + 1], bounds[i:i + 1])}

    wrong = set(range(len(got))) - equal(right)
    if not wrong:
        return RIGHT
    answers = wrong_outputs(impl.has("energy"), impl.has("energy_grad"))
    whole = dict.fromkeys(name_of(row) for row, answer in answers if near(got, answer, bounds))
    if whole:
        return "Diagnosis: your output equals that of a known bug: " + " Or: ".join(whole)
    if near(got, right, [e for _, _, e in outputs(replace(impl, dtype="float32"))]):
        return "Diagnosis: right to single precision; set DTYPE = 'float32', or look for a hidden float32."
    known, found = [(row, equal(answer)) for row, answer in answers], []
    while wrong:  # the bug that explains U, then the one that explains the most of the rest, and so on
        row, parts = max(known, key=lambda bug: (impl.has("energy") and 0 in bug[1] & wrong, len(bug[1] & wrong)))
        if not parts & wrong:
            break
        found.append(f"your {in_words(impl, parts & wrong, got)} equals that of a known bug: {name_of(row)}")
        wrong -= parts
    if not found:
        return "Diagnosis: no known bug. Wrong on the generic batch: " + in_words(impl, wrong, got)
    if wrong:
        found.append(f"your {in_words(impl, wrong, got)} is wrong too, but by no known bug.")
    return "Diagnosis: " + " And ".join(found)


def in_words(impl, parts, got):
    """The parts of the outputs by name."""
    names = ["U"] * impl.has("energy") + [f"dU/d{x}{s}" for s in ("", " with stop-gradient") for x in NAMES]
    spoken = [names[i] for i in sorted(parts)]
    if set(names[-8:-3] + names[-2:-1]) <= set(spoken):  # whatever those of Z are with stop-gradient, mostly zero
        spoken = ["U", "all its gradients"] if spoken[0] == "U" else ["whole gradient"]
    nan = any(np.isnan(np.array(got[i], dtype=float)).any() for i in parts)
    return (" and " if len(spoken) == 2 else ", ").join(spoken) + " (with NaN)" * nan


DIAGNOSES["energy"] = diagnose_energy


@ours_only
def test_every_known_bug_of_the_energy_is_killed_and_every_rewriting_accepted(capsys):
    kill_matrix("energy", "energy", capsys)


@ours_only
def test_every_known_bug_of_the_gradient_is_killed(capsys):
    kill_matrix("gradient", "energy_grad", capsys)


@ours_only
@pytest.mark.parametrize("target", ["energy", "gradient"])
def test_known_bugs_give_different_outputs_and_are_named(target):
    right = truth(generic_batch())
    U, g = energy_bound(SINGLE, generic_batch(), right), gradient_bounds(SINGLE, generic_batch(), right)
    count = sum(changes_value(row) for target in ("energy", "gradient") for row, _ in table(target))
    answers = [(row["name"], x) for row, x in wrong_outputs(True, True)[:count]]
    answers.append(("none", [want for _, want, _ in outputs(NUMPY)]))
    for i, (name, x) in enumerate(answers):  # apart even in single precision
        same = [other for other, y in answers[:i] if near(x, y, [2 * U, *(2 * e for e in g), *(2 * e for e in g)])]
        assert not same, f"{name} gives the output of {same}"
    with np.errstate(all="ignore"):
        for row, impl in table(target):
            if changes_value(row):
                text = diagnose_energy(impl)
                assert f"known bug: {row['name']} (" in text and all(place in text for place in row["seen_in"])


def named(**functions):
    return diagnose_energy(replace(NUMPY, module=SimpleNamespace(**functions)))


@ours_only
def test_a_wrong_energy_with_its_own_gradient_is_named():
    """As whoever lets a machine differentiate has it: U and gradients are wrong together."""
    assert len(differentiated()) + 2 == sum(changes_value(row) for row, _ in table("energy"))
    for row, U, g in differentiated():
        text = named(energy=lambda *_, U=U: U,
                     energy_grad=lambda *a, g=g: [x if i % 2 == 0 or not a[4] else 0 * x for i, x in enumerate(g)])
        assert f"your output equals that of a known bug: {row['name']} (" in text
    for row, U, _ in differentiated()[::8]:
        text = named(energy=lambda *_, U=U: U, energy_grad=lambda *a: [0 * x + 1 for x in a[:4]])
        assert f"your U equals that of a known bug: {row['name']} (" in text
        assert text.endswith("And your whole gradient is wrong too, but by no known bug.")


@ours_only
def test_bugs_of_u_and_of_single_gradients_are_named_side_by_side_and_a_nan_is_a_value():
    bug = {row["name"]: impl.module for target in ("energy", "gradient") for row, impl in table(target)}
    half, sign, long = bug["energy: half lost"], bug["gradient: wrong sign"], bug["gradient: no 1/norm for P"]
    text = named(energy=half.energy, energy_grad=sign.energy_grad)
    assert "your U equals that of a known bug: energy: half lost (" in text
    assert "your whole gradient equals that of a known bug: gradient: wrong sign (" in text
    text = named(energy_grad=lambda *a: [long.energy_grad(*a)[0], *NUMPY.energy_grad(*a)[1:]])
    assert "your dU/dp1 and dU/dp1 with stop-gradient equals that of a known bug: gradient: no 1/norm for P (" in text
    assert "your output equals that of a known bug: energy: no absolute value" in named(energy=lambda *_: np.nan)
    text = named(energy=lambda *_: -1, energy_grad=lambda *a: [np.nan * x for x in a[:4]])
    assert text.endswith("Wrong on the generic batch: U and all its gradients (with NaN)")


@ours_only
def test_wrong_normalisations_are_what_people_write():
    """The four that scaling each row beforehand would change, in three lines each."""
    by_hand = {
        "energy: normalised over the batch": lambda x: x / np.linalg.norm(x, axis=0),
        "energy: normalised by the whole batch": lambda x: x / np.linalg.norm(x),
        "energy: squared norm": lambda x: x / (x * x).sum(axis=1, keepdims=True),
        "energy: epsilon added to the norms": lambda x: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-3)}
    found = {row["name"]: impl for row, impl in table("energy") if row["name"] in by_hand}
    for name, normalise in by_hand.items():
        p1, z1, p2, z2 = map(normalise, generic_batch().arrays())
        U = -np.log(np.mean((abs((p1 * z2).sum(axis=1)) + abs((p2 * z1).sum(axis=1))) / 2))
        within(value(found[name], generic_batch()), Decimal(float(U)), Decimal("1e-12"), name)


# ------------------------------------------------------------------------------------- the other similarities (cos, l2)

def complex_energy(batch, similarity):
    """U by the formulas of DESIGN for complex rows, |s| -> s sign(Re s): its derivative by the complex step."""
    p1, z1, p2, z2 = batch
    if similarity == "l2":
        return ((((p1 - z2) ** 2).sum(axis=1) / 2 + ((p2 - z1) ** 2).sum(axis=1) / 2) / 2).mean()

    def cosine(a, b):
        return (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))

    s = np.array([cosine(p1, z2), cosine(p2, z1)])
    return 1 - s.mean() if similarity == "cos" else -np.log((s * np.sign(s.real)).mean())


@ours_only
@pytest.mark.parametrize("impl", OURS, ids=lambda impl: impl.name)
@pytest.mark.parametrize("similarity", ["abscos", "cos", "l2"])
@settings(max_examples=20, **SETTINGS)
@given(data=st.data())
def test_gradient_is_the_complex_step_derivative_for_every_similarity(impl, similarity, data):
    """The complex step has no truncation error (h = 1e-30), only the rounding of double precision. For `cos` the bound
    of the docstring holds with m = 1, where U is the sum of cosines itself; for `l2` an entry (a - b)/(2B) takes fewer
    than k roundings, each of at most u (|a| + |b|)/(2B)."""
    batch = any_batch(Draw(data), low_d=2)
    right = truth(batch)
    if similarity == "cos":
        right.m, right.s = Decimal(1), [1 + 0 * s for s in right.s]  # and no kink
    elif similarity == "abscos" and not all((abs(s) > k_u(NUMPY, batch)).all() for s in right.s):
        return
    p1, z1, p2, z2 = (abs(decimals(x)) for x in batch.arrays())
    for stop_grad in (False, True):
        got = gradient(impl, batch, stop_grad, similarity=similarity)
        for a, (name, x) in enumerate(zip(NAMES, batch.arrays(), strict=True)):
            want = np.zeros(x.shape)
            for i in np.ndindex(x.shape) if not (stop_grad and name in ("z1", "z2")) else ():
                probe = [y.astype(complex) for y in batch.arrays()]
                probe[a][i] += 1e-30j
                want[i] = complex_energy(probe, similarity).imag / 1e-30
            if similarity == "l2":
                size = (p2 + z1 if name in ("p2", "z1") else p1 + z2) / (2 * len(x))
                bounds = [k_u(one, batch) * size for one in (impl, NUMPY)]
            else:
                bounds = [gradient_bounds(one, batch, right)[a] for one in (impl, NUMPY)]
            within(got[a], decimals(want), sum(bounds), f"dU/d{name}, {similarity}, stop_grad={stop_grad}", batch)


@ours_only
@pytest.mark.parametrize("impl", OURS, ids=lambda impl: impl.name)
def test_l2_energy_is_a_quarter_of_the_mean_squared_distances_of_both_views(impl):
    """All terms are positive: with fewer than k roundings of each, U is right to a share k u / (1 - k u) of itself."""
    for seed in range(20):
        batch = any_batch(Draw(random.Random(seed)))
        p1, z1, p2, z2 = map(decimals, batch.arrays())
        right = (inner(p1 - z2, p1 - z2) + inner(p2 - z1, p2 - z1)).sum() / (4 * len(p1))
        bound = right * k_u(impl, batch) / (1 - k_u(impl, batch))
        within(value(impl, batch, similarity="l2"), right, bound, "U of l2", batch)


@ours_only
@pytest.mark.parametrize("impl", OURS, ids=lambda impl: impl.name)
def test_simsiams_own_loss_is_never_below_the_loss_of_equation_2(impl):
    """L_SimSiamAbs = -exp(-U) <= L_SimSiam = U_cos - 1, with equality if no cosine is negative."""
    for seed in range(50):
        batch = any_batch(Draw(random.Random(seed)))
        right = truth(batch)
        if not right.m:
            continue
        loss_abs, loss = -(-value(impl, batch)).exp(), value(impl, batch, similarity="cos") - 1
        bound = 3 * k_u(impl, batch)
        within(loss, -(sum(right.s[0]) + sum(right.s[1])) / (2 * len(batch.p1)), bound, "L_SimSiam", batch)
        assert loss_abs <= loss + 2 * bound
        if all((s >= 0).all() for s in right.s):
            within(loss_abs, loss, 2 * bound, "L_SimSiamAbs", batch)


@ours_only
@pytest.mark.parametrize("impl", OURS, ids=lambda impl: impl.name)
@pytest.mark.parametrize("similarity", ["abscos", "cos", "l2"])
def test_zero_rows_and_extreme_rows_give_finite_energies_and_gradients(impl, similarity):
    for far in (1e-20, 1.0, 1e18 if similarity == "l2" else 1e20):
        for holes in range(16):
            b = Batch(*(x * far for x in generic_batch().arrays()))
            for name in (n for i, n in enumerate(NAMES) if holes >> i & 1):
                getattr(b, name)[: 3 if holes % 3 == 0 else 1] = 0
            assert 0 <= value(impl, b, similarity=similarity) < Decimal("inf")
            for stop_grad in (False, True):
                g = impl.energy_grad(*b.arrays(), stop_grad, similarity=similarity)
                assert all(np.isfinite(x).all() for x in g)
                if similarity != "l2":
                    assert all((gx[~x.any(axis=1)] == 0).all() for x, gx in zip(b.arrays(), g, strict=True))


# ---------------------------------------------------------------------------------------- the built-ins and the vectors

@ours_only
def test_torch_stop_gradient_detaches_the_target_only_and_never_changes_the_value():
    """z still feeds the predictor with gradient: for p = z H the gradient of z is dU/dp H'."""
    import torch

    from simsiam_sghmc import SimSiam, energy

    torch.manual_seed(0)
    z1, z2 = (torch.randn(8, 128, dtype=torch.float64, requires_grad=True) for _ in range(2))
    predictor = SimSiam().predictor.double().eval()
    for similarity in ("abscos", "cos", "l2"):
        p1, p2 = predictor(z1), predictor(z2)
        free, stopped = (energy(p1, z1, p2, z2, stop_grad, similarity) for stop_grad in (False, True))
        assert torch.equal(free, stopped)
        g_p1 = torch.autograd.grad(stopped, p1, retain_graph=True)[0]
        through = torch.autograd.grad(p1, z1, g_p1, retain_graph=True)[0]
        assert through.abs().max() > 0
        assert torch.equal(torch.autograd.grad(stopped, z1, retain_graph=True)[0], through)


@ours_only
def test_torch_computes_similarities_of_bfloat16_rows_in_float32():
    import torch

    from simsiam_sghmc import energy

    rows = [torch.tensor(x).bfloat16() for x in generic_batch().arrays()]
    for similarity in ("abscos", "cos", "l2"):
        U = energy(*rows, True, similarity)
        assert U.dtype == torch.float32 and torch.equal(U, energy(*(x.float() for x in rows), True, similarity))


@ours_only
@pytest.mark.parametrize("capability", ["energy", "energy_grad"])
def test_the_reference_refuses_batches_that_would_broadcast_and_unknown_similarities(capability):
    def refused(batch, reason, **similarity):
        stop_grad = [False] if capability == "energy_grad" else []
        with pytest.raises(ValueError, match=reason):
            getattr(reference_numpy, capability)(*batch, *stop_grad, **similarity)

    rows = np.ones((3, 4))
    for i in range(4):
        for other in (rows[:1], rows[:, :1], rows[0], rows[None]):
            refused([rows] * i + [other] + [rows] * (3 - i), "must have one shape")
    for same in (rows[0], rows[None], rows[:0], rows[:, :0]):
        refused([same] * 4, "must have one shape")
    refused([rows] * 4, "similarity must be", similarity="dot")


@ours_only
def test_energy_vectors_agree_with_60_digit_decimals_and_their_flags_are_true():
    """`bound` is that of this file's docstring over u, for u = 2^-24, to six digits; null where a cosine is 0."""
    def printed(bound):
        return None if bound == Decimal("inf") else float(f"{bound * 2**24:.6g}")

    for name, v in reference_numpy.read_vectors("energy").items():
        batch = Batch(*(np.array(v[key]) for key in NAMES))
        right = truth(batch, v["stop_grad"])
        assert v["u"] == float(round(right.U, 45)), name
        assert v["grads"] == [[[float(round(x, 45)) for x in row] for row in g] for g in right.grads], name
        assert v["bound"]["u"] == printed(energy_bound(SINGLE, batch, right)), name
        bounds = gradient_bounds(SINGLE, batch, right)
        assert v["bound"]["grads"] == [[printed(e) for e in column[:, 0]] for column in bounds], name
        norms = [x for n in right.norms for x in n[:, 0] if x < Decimal("inf")]
        facts = {"generic": bool(v["wrong"]), "stop_grad": v["stop_grad"], "zero_row": len(norms) < 4 * len(batch.p1),
                 "collinear": all(((1 - abs(s)) < Decimal("1e-50")).all() for s in right.s) and v["u"] == 0,
                 "scaled": min(norms) < Decimal("1e-5") or max(norms) > Decimal("1e5")}
        assert set(v["flags"]) == {flag for flag, holds in facts.items() if holds}, name


# ------------------------------------------------------------------------- the stop-gradient field has no energy

def update_field(theta, views, stop_grad):
    """dU/dtheta of a tiny SimSiam, encoder z = x E and predictor p = z H (2 x 2 each), in 60-digit decimals."""
    with localcontext() as context:
        context.prec = 60
        E, H = theta[:4].reshape(2, 2), theta[4:].reshape(2, 2)
        z1, z2 = (x @ E for x in views)
        g_p1, g_z1, g_p2, g_z2 = REFERENCE_60["energy_grad"](z1 @ H, z1, z2 @ H, z2, stop_grad)
        g_E = views[0].T @ (g_z1 + g_p1 @ H.T) + views[1].T @ (g_z2 + g_p2 @ H.T)
        g_H = z1.T @ g_p1 + z2.T @ g_p2
        return np.concatenate([g_E.ravel(), g_H.ravel()])


REFERENCE_60 = reference_numpy.variant(decimals=True)


@functools.cache
def jacobian(stop_grad):
    """Of the update field, by central differences: h = 1e-20 leaves errors h^2 and 1e-60/h, both about 1e-40."""
    draw = Draw(random.Random(5))
    theta, views = decimals(draw.nonzero(8, 6, 1 / 8)), [decimals(draw.nonzero((3, 2), 6, 1 / 4)) for _ in range(2)]
    h, columns = Decimal("1e-20"), []
    for i in range(8):
        step = decimals(np.zeros(8))
        step[i] = h
        forward, backward = (update_field(theta + sign * step, views, stop_grad) for sign in (1, -1))
        columns.append((forward - backward) / (2 * h))
    return np.array(columns).T


@ours_only
def test_full_gradient_field_has_a_symmetric_jacobian_and_the_stop_gradient_field_has_not():
    """A field with an energy has a symmetric Jacobian. The full one is symmetric to the 1e-40 of the differences times
    the field's third derivatives; 1e-30 leaves these ten digits. With stop-gradient half of it is antisymmetric."""
    full, stopped = jacobian(False), jacobian(True)
    assert abs(full - full.T).max() < Decimal("1e-30") * abs(full).max()
    assert abs(stopped - stopped.T).max() > abs(stopped).max() / 10


@ours_only
def test_step_is_conformally_symplectic_on_the_full_field_and_not_on_the_stop_gradient_field():
    """The linearised step, with the Jacobians rounded to a grid so that the statement is about equal fractions."""
    for stop_grad in (False, True):
        A = np.round(jacobian(stop_grad).astype(float) * 64) / 64
        assert (A == A.T).all() != stop_grad
        for seed in range(3):
            T, c, L = phase_map(NUMPY, A[:6, :6], Draw(random.Random(seed)), 16.0)
            J = rational(np.kron([[0, 1], [-1, 0]], np.eye(6)))
            assert (T.T @ J @ T == c ** (2 * L + 1) * J).all() != stop_grad
