"""The energy is Equation 2. Each test is one sentence about one batch; how to point them at an implementation:
test_sghmc.py. Right answers are computed in 60-digit decimals; the tolerance is the theorem of oracle/energy.py.
"""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import isqrt
from types import SimpleNamespace

import numpy as np

from oracle.arithmetic import INFINITY, assert_close, decimals, inner
from oracle.batches import PYTHAGOREAN, QUARTER_TURN, WORKED_EXAMPLE, any_batch, generic_batch
from oracle.corner_cases import of_views
from oracle.energy import (
    NAMES,
    Batch,
    assert_energy,
    assert_gradient,
    cosines_of,
    energy_bound,
    gradient,
    gradient_bounds,
    k_u,
    truth,
    value,
)
from oracle.implementations import numbers
from oracle.properties import holds_for
from oracle.sizes import assert_large_energy, assert_large_gradient


# ------------------------------------------------- the energy is Equation 2, it is never negative, no |cos| exceeds 1
@holds_for("energy", examples=60)
def test_energy_is_equation_2(impl, draw):
    assert_energy(impl, any_batch(draw))


@holds_for("energy")
def test_energy_is_never_negative(impl, draw):
    """And finite. Others may round below zero by the bound, and reach infinity where every cosine is 0."""
    batch = any_batch(draw)
    U = value(impl, batch)
    assert U >= (0 if impl.ours else -k_u(impl, batch)), f"U = {U}: {batch}"
    assert U < INFINITY or not impl.ours, f"U = {U}: {batch}"


@holds_for("energy", examples=60)
def test_no_cosine_exceeds_1(impl, draw):
    """Nor of rows that are equal or opposite, where rounding would have it exceed 1 most often."""
    pair = any_batch(draw, B=1)
    equal = replace(pair, z2=draw.nonzero((), 4) * pair.p1)
    for one in (pair, equal):
        for cosine, slack in cosines_of(impl, one):
            assert cosine <= 1 + slack, f"|cos| = {cosine}: {one}"


# ------------------------------------------------------------------------------------------------------------ the value

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
        assert_close(value(impl, batch), right.U, energy_bound(impl, batch, right), f"U = -log {m}", batch)


@holds_for("energy", examples=1)
def test_energy_of_the_worked_example_is_minus_log_2167_over_2210(impl, draw):
    assert truth(WORKED_EXAMPLE).m.quantize(Decimal("1e-50")) == (Decimal(2167) / 2210).quantize(Decimal("1e-50"))
    assert_energy(impl, WORKED_EXAMPLE)


@holds_for("energy")
def test_energy_of_orthogonal_pairs_is_positive_and_no_nan(impl, draw):
    B = draw.integer(1, 3)
    p1, p2 = draw.nonzero((2, B, 2), 5)
    assert_energy(impl, Batch(p1, p2 @ QUARTER_TURN, p2, 3 * p1 @ QUARTER_TURN))


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
        assert_close(value(impl, other), value(impl, batch), 2 * energy_bound(impl, other, right), what, batch)


@holds_for("energy")
def test_energy_ignores_a_rotation_of_all_rows(impl, draw):
    batch = any_batch(draw, low_d=2)
    Q = np.eye(batch.p1.shape[1])
    Q[:2, :2] = [[3, 4], [-4, 3]]  # five times a rotation, in exact numbers
    Q[2:, 2:] *= 5
    rotated, right = batch.map(lambda x: x @ Q), truth(batch)
    if right.m:
        assert_close(value(impl, rotated), value(impl, batch), 2 * energy_bound(impl, batch, right), "rotation", batch)


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
    assert_close((-value(impl, both)).exp(), mixed, bound, "mixture", *batches)


@holds_for("energy")
def test_energy_is_right_down_to_nearly_orthogonal_rows(impl, draw):
    """One pair at angle t beside a collinear one: U = -log((1 + cos t) / 2). Then both at angle t."""
    a, b = 2.0 ** -draw.integer(0, 30), draw.integer(1, 5)  # |cos t| down to 1e-9: nearly orthogonal rows
    p1, z1, p2, z2 = [a, b], [1.0, 2.0], [-1.0, -2.0], [draw.choice(-2.0, 3.0), 0]
    batch = Batch(*(np.array([x]) for x in (p1, z1, p2, z2)))
    cos_t = Decimal(a) / (Decimal(a) ** 2 + Decimal(b) ** 2).sqrt()
    right = SimpleNamespace(m=(cos_t + 1) / 2, U=-((cos_t + 1) / 2).ln())
    assert_close(value(impl, batch), right.U, energy_bound(impl, batch, right), "anchor", batch)
    assert_energy(impl, replace(batch, p2=np.array([[a, -b]]), z1=np.array([[1.0, 0]])))  # both views nearly orthogonal


@holds_for("energy_grad")
def test_gradient_is_right_down_to_nearly_orthogonal_rows(impl, draw):
    a, b = 2.0 ** -draw.integer(0, 30 if impl.dtype == "float64" else 12), draw.integer(1, 5)
    p1, z1, p2, z2 = [a, b], [1.0, 0], [a, -b], [draw.choice(-2.0, 3.0), 0]
    assert_gradient(impl, Batch(*(np.array([x], dtype=float) for x in (p1, z1, p2, z2))))


@holds_for("energy", examples=10)
def test_rows_may_lie_in_memory_in_any_order(impl, draw):
    """By columns, backwards, with gaps, not to be written; a refusal with an exception is no wrong number."""
    batch = any_batch(draw)
    right = truth(batch)
    for how, U in of_views(impl.energy, *batch.arrays()) if right.m else ():
        assert_close(Decimal(U), right.U, energy_bound(impl, batch, right), f"U of rows {how}", batch)


@holds_for("energy_grad", examples=1)
def test_gradient_of_rows_in_any_order_of_memory_is_the_same(impl, draw):
    batch = generic_batch()
    right = truth(batch)
    for how, grads in of_views(lambda *arrays: impl.energy_grad(*arrays, False), *batch.arrays()):
        for name, g, want, e in zip(NAMES, grads, right.grads, gradient_bounds(impl, batch, right), strict=True):
            assert_close(decimals(g), want, e, f"dU/d{name} of rows {how}", batch)


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
    assert_energy(impl, replace(batch, p1=batch.p1[::-1].copy()))  # the same numbers in another order
    assert value(impl, batch) == first, "the same inputs gave other bits: something is kept between calls"


@holds_for("energy", sized=True)
def test_energy_of_hundreds_of_pairs_of_long_rows_is_equation_2(impl, draw):
    for B, d in ((161, 203), (320, 128), (2049, 67), (7, 2049)):
        assert_large_energy(impl, B, d)


@holds_for("energy", sized=True)
def test_each_pair_weighs_the_same_in_a_batch_of_any_size(impl, draw):
    """In chunks of 2^k pairs the last one is short, a single pair, or full."""
    for B in (7, 8, 9, 17, 31, 32, 33, 63, 65, 100, 127, 129, 257, 1000):
        assert_large_energy(impl, B, d=5)


@holds_for("energy", sized=True)
def test_each_feature_counts_in_rows_of_any_length(impl, draw):
    for d in (1, 7, 8, 9, 15, 17, 31, 33, 63, 65, 127, 129, 255, 256):
        assert_large_energy(impl, 5, d)


# --------------------------------------------------------------------------------------------------------- the gradient

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


@holds_for("energy_grad", sized=True)
def test_gradient_of_hundreds_of_pairs_of_long_rows_is_the_closed_form(impl, draw):
    for stop_grad in (False, True):
        assert_large_gradient(impl, 161, 203, stop_grad)


@holds_for("energy_grad", sized=True)
def test_gradient_is_right_for_any_number_of_pairs_and_of_features(impl, draw):
    for B, d in ((7, 9), (33, 5), (64, 8), (65, 17), (2049, 3), (3, 65), (2, 129), (2, 2049)):
        assert_large_gradient(impl, B, d, stop_grad=False)


@holds_for("energy_grad")
def test_no_single_precision_hides_inside_the_gradient(impl, draw):
    for i in range(4 if impl.dtype == "float64" else 0):
        rows = list(any_batch(draw).arrays())
        rows[i] = rows[i] * (1 + 2.0**-30 * draw.array(rows[i].shape, 0, 3))
        assert_gradient(impl, Batch(*rows))


@holds_for("energy_grad", examples=1)
def test_gradient_writes_no_argument_and_keeps_no_state(impl, draw):
    batch = generic_batch()
    arrays = batch.arrays()
    raw = impl.module.energy_grad(*arrays, False)
    first = [numbers(g, batch.p1.shape, "energy_grad returns") for g in raw]
    assert all((x == y).all() for x, y in zip(arrays, batch.arrays(), strict=True)), "an argument was written"
    impl.energy_grad(*(x + 1 for x in arrays), True)
    assert all((numbers(x, y.shape, "energy_grad returns") == y).all() for x, y in zip(raw, first, strict=True)), (
        "the next call writes to the result of the one before")
    again = impl.energy_grad(*arrays, False)
    assert all((x == y).all() for x, y in zip(first, again, strict=True)), "the same inputs gave other bits"


@holds_for("energy_grad")
def test_gradient_is_orthogonal_to_its_row(impl, draw):
    batch = any_batch(draw)
    right = truth(batch)
    if right.m:
        bounds = gradient_bounds(impl, batch, right)
        for name, x, g, e in zip(NAMES, batch.arrays(), gradient(impl, batch), bounds, strict=True):
            x = decimals(x)
            assert_close(inner(g, x), 0, e[:, 0] * abs(x).sum(axis=1), f"dU/d{name} . {name}", batch)


@holds_for("energy_grad")
def test_gradient_of_a_longer_row_is_shorter_in_proportion(impl, draw):
    batch = generic_batch()
    for far in (draw.array((3, 1), -15, 15), *((66, -66) if impl.ours else ())):  # 2^66 is 7e19
        factor = draw.nonzero((3, 1), 4, 1 / 2) * 2.0**far
        scaled = replace(batch, p1=batch.p1 * factor)
        e, e_scaled = (gradient_bounds(impl, x, truth(x)) for x in (batch, scaled))
        g, g_scaled = gradient(impl, batch), gradient(impl, scaled)
        bound = e[0] + e_scaled[0] * abs(decimals(factor))
        assert_close(g_scaled[0] * decimals(factor), g[0], bound, "grad(lambda P) lambda", scaled)
        for i in (1, 2, 3):
            assert_close(g_scaled[i], g[i], e[i] + e_scaled[i], f"dU/d{NAMES[i]} when P1 is scaled", scaled)


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
        assert_close(lengths[0], lengths[1], allowed, f"|grad||row| of {NAMES[a]} and {NAMES[b]}", batch)
    torque, allowed = np.zeros((d, d), object), np.zeros((d, d), object)
    for x, gx, ex in zip(map(decimals, batch.arrays()), g, e, strict=True):
        torque = torque + x.T @ gx - gx.T @ x
        allowed = allowed + abs(x).T @ (ex + 0 * gx) + (ex + 0 * gx).T @ abs(x)
    assert_close(torque, 0 * torque, allowed, "torque", batch)


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
            assert_close(full, parts, 2 * e, f"dU/d{name}", batch)


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
            assert_close(full[i] + full[i + 1], 2 * half[i], 3 * e[i] + e[i + 1], "twice the stop-gradient", batch)


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
        assert_close((grad_theta * decimals(theta)).sum(), Decimal(0), bound, "<theta, grad>", batch)


@holds_for("energy_grad")
def test_gradient_of_a_batch_with_rows_of_zeros_is_finite_and_right_elsewhere(impl, draw):
    batch = any_batch(draw, B=3)
    batch = batch.map(lambda x: np.vstack([x, np.ones((1, x.shape[1]))]))  # one row in order
    getattr(batch, draw.choice(*NAMES))[0] = 0
    for stop_grad in (False, True):
        right, got = truth(batch, stop_grad), gradient(impl, batch, stop_grad)
        for name, g, want, e in zip(NAMES, got, right.grads, gradient_bounds(impl, batch, right), strict=True):
            assert all(x.is_finite() for x in g.ravel()), f"dU/d{name} is {g}: {batch}"
            assert_close(g, want, e, f"dU/d{name}", batch)
