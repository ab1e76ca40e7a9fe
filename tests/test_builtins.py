"""The built-in implementations beyond the oracle: arguments, other similarities, the chain's draws, the field of the
stop-gradient."""

import functools
import statistics
from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_adapter import torch_adapter

import reference_numpy
from oracle.arithmetic import INFINITY, assert_close, decimals, inner, square_root
from oracle.batches import any_batch, generic_batch
from oracle.cases import deepest, exact_case, generic_case
from oracle.closed_forms import explicit_sum, matrix_power, phase_map, symplectic
from oracle.energy import NAMES, Batch, gradient_bounds, k_u, truth, value
from oracle.energy import gradient as energy_gradient
from oracle.implementations import NUMPY
from oracle.inputs import Draw
from oracle.properties import SETTINGS, Shrinking
from oracle.sampler import gradient, positions, rounding_bound, run
from oracle.variants import variant

TORCH = torch_adapter("float64")
IMPLEMENTATIONS = [NUMPY, TORCH, torch_adapter("float32")]

# ------------------------------------------------------------------------------------------------ ways to take a step


@settings(max_examples=30, **SETTINGS)
@given(data=st.data())
def test_five_independent_ways_to_take_a_step_agree_to_the_bit(data):
    case = exact_case(Shrinking(data), NUMPY)
    case.z[1:] = np.tile(case.z[1:3], (case.L, 1))
    case = deepest(case, NUMPY)
    ways = [positions(case)[-1], explicit_sum(case), matrix_power(case), run(NUMPY, case), run(TORCH, case)]
    assert all((way == ways[0]).all() for way in ways), f"{ways} {case}"


# ------------------------------------------------------------------------------------ arguments of the built-ins

NAN, INF = float("nan"), float("inf")
WRONG_ARGUMENTS = [  # the wrong one first; B^ = 0, and alpha = 0 for some masses: no other check can raise in its place
    dict(eps=0.0), dict(eps=-0.1), dict(eps=NAN), dict(eps=INF), dict(L=0), dict(L=-1),
    dict(alpha=-0.01), dict(alpha=1.0), dict(alpha=NAN),
    dict(mass=0.0), dict(mass=-1.0, alpha=0.0), dict(mass=-1.0), dict(mass=NAN), dict(mass=INF),
    dict(mass=np.array([1.0, 1.0, 0.0, 1.0])), dict(mass=np.array([1.0, 1.0, NAN, 1.0])),
    dict(b_hat=7.6), dict(b_hat=NAN), dict(b_hat=INF), dict(b_hat=np.array([0.0, 0.0, 7.6, 0.0])),
    dict(b_hat=np.array([0.0, 0.0, NAN, 0.0])),
]
REFUSALS = dict(eps="^eps must|got eps", L="^L must|got eps", alpha="^alpha must|got eps",  # reference|torch
                mass="^mass must|^need .*mass", b_hat="^b_hat is larger|^need .*mass")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS, ids=lambda impl: impl.name)
@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS, ids=str)
def test_an_argument_outside_its_range_is_a_value_error_that_names_it(impl, wrong):
    case = generic_case()
    with pytest.raises(ValueError, match=REFUSALS[next(iter(wrong))]):
        impl.step(case.w, case.z, gradient(case), **{**case.settings(), "b_hat": 0.0, **wrong})


@pytest.mark.parametrize("wrong, reason", [
    (dict(w=np.zeros((4, 1))), "^w must have one axis"), (dict(z=np.zeros((5, 4))), "^z must have"),
    (dict(z=np.zeros((7, 1))), "^a row of z must have"), (dict(grad=lambda x: 0.0), "^grad.X. must have"),
    (dict(mass=np.ones(1)), "^mass and b_hat must be"), (dict(b_hat=np.zeros(1)), "^mass and b_hat must be")], ids=str)
def test_the_reference_refuses_shapes_that_would_broadcast(wrong, reason):
    case = generic_case()
    arguments = {**case.settings(), "w": case.w, "z": case.z, "grad": gradient(case), **wrong}
    with pytest.raises(ValueError, match=reason):
        reference_numpy.sghmc_step(**arguments)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS, ids=lambda impl: impl.name)
def test_b_hat_equal_to_the_friction_leaves_no_noise_and_no_nan(impl):
    """C and B^ each carry at most 4 roundings, so what is left of the variance is at most 2 * 8 u alpha M: a share of
    8 u of 2 alpha M, hence sqrt(8 u) of the noise that there is at B^ = 0."""
    for k in range(1, 60):
        case = replace(generic_case(), eps=k / 64, b_hat=0.0)
        full = replace(case, b_hat=case.alpha * case.mass / case.eps)
        quiet, noise = replace(case, z=case.z.copy()), replace(case, z=case.z.copy(), w=0 * case.w, b=0 * case.b)
        quiet.z[1:], noise.z[0] = 0, 0
        bound = rounding_bound(impl, quiet) + square_root(8 * impl.u) * positions(noise, positive=True)[-1]
        assert_close(run(impl, full), positions(quiet)[-1], bound, "B^ = C", full)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS, ids=lambda impl: impl.name)
def test_the_row_of_the_last_half_kick_may_be_missing(impl):
    case = generic_case()
    assert (run(impl, case) == run(impl, replace(case, z=case.z[:-1]))).all()


def test_torch_asks_2l_minus_1_gradients_or_l_with_reuse_grad_for_the_same_sample():
    import torch

    from simsiam_sghmc import sghmc_step

    asked = []

    def grad(x):
        asked.append(x)
        return 2 * x

    for dtype in (torch.float32, torch.float64):
        for L in (1, 2, 3, 5):
            w, z, results = torch.ones(3, dtype=dtype), torch.ones((2 * L + 1, 3), dtype=dtype), []
            for reuse_grad, calls in ((False, 2 * L - 1), (True, L)):
                asked.clear()
                setting = dict(eps=0.1, L=L, alpha=0.13, mass=2.89, reuse_grad=reuse_grad)
                results.append(sghmc_step(w, iter(z), grad, **setting))
                assert len(asked) == calls
            assert torch.equal(*results), "the same potential at both half-kicks gives the same sample"
            assert results[0].dtype == dtype and results[0].shape == (3,) and torch.equal(w, torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("name, shape", [("grad", (3, 1)), ("mass", (3, 1)), ("b_hat", (2, 3))])
def test_a_gradient_mass_or_b_hat_that_would_broadcast_the_position_is_refused(name, shape):
    import torch

    from simsiam_sghmc import sghmc_step

    wrong = {"grad": lambda x: torch.ones(shape)} if name == "grad" else {name: torch.ones(shape) * (name == "mass")}
    with pytest.raises(ValueError, match=r"give w's shape \(3,\) or numbers"):
        sghmc_step(torch.ones(3), torch.ones(5, 3), **dict(grad=lambda x: x, eps=0.1, L=2, alpha=0.13) | wrong)


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


# ------------------------------------------------------------------------------ the other similarities (cos, l2)

def complex_energy(batch, similarity):
    """U by the formulas of DESIGN for complex rows, |s| -> s sign(Re s): its derivative by the complex step."""
    p1, z1, p2, z2 = batch
    if similarity == "l2":
        return ((((p1 - z2) ** 2).sum(axis=1) / 2 + ((p2 - z1) ** 2).sum(axis=1) / 2) / 2).mean()

    def cosine(a, b):
        return (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))

    s = np.array([cosine(p1, z2), cosine(p2, z1)])
    return 1 - s.mean() if similarity == "cos" else -np.log((s * np.sign(s.real)).mean())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS, ids=lambda impl: impl.name)
@pytest.mark.parametrize("similarity", ["abscos", "cos", "l2"])
@settings(max_examples=20, **SETTINGS)
@given(data=st.data())
def test_gradient_is_the_complex_step_derivative_for_every_similarity(impl, similarity, data):
    """The complex step has no truncation error (h = 1e-30), only the rounding of double precision. For `cos` the bound
    of the docstring holds with m = 1, where U is the sum of cosines itself; for `l2` an entry (a - b)/(2B) takes fewer
    than k roundings, each of at most u (|a| + |b|)/(2B)."""
    batch = any_batch(Shrinking(data), low_d=2)
    right = truth(batch)
    if similarity == "cos":
        right.m, right.s = Decimal(1), [1 + 0 * s for s in right.s]  # and no kink
    elif similarity == "abscos" and not all((abs(s) > k_u(NUMPY, batch)).all() for s in right.s):
        return
    p1, z1, p2, z2 = (abs(decimals(x)) for x in batch.arrays())
    for stop_grad in (False, True):
        got = energy_gradient(impl, batch, stop_grad, similarity=similarity)
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
            assert_close(got[a], decimals(want), sum(bounds), f"dU/d{name}, {similarity}, stop_grad={stop_grad}", batch)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS, ids=lambda impl: impl.name)
def test_l2_energy_is_a_quarter_of_the_mean_squared_distances_of_both_views(impl):
    """All terms are positive: with fewer than k roundings of each, U is right to a share k u / (1 - k u) of itself."""
    for seed in range(20):
        batch = any_batch(Draw(seed))
        p1, z1, p2, z2 = map(decimals, batch.arrays())
        right = (inner(p1 - z2, p1 - z2) + inner(p2 - z1, p2 - z1)).sum() / (4 * len(p1))
        bound = right * k_u(impl, batch) / (1 - k_u(impl, batch))
        assert_close(value(impl, batch, similarity="l2"), right, bound, "U of l2", batch)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS, ids=lambda impl: impl.name)
def test_simsiams_own_loss_is_never_below_the_loss_of_equation_2(impl):
    """L_SimSiamAbs = -exp(-U) <= L_SimSiam = U_cos - 1, with equality if no cosine is negative."""
    for seed in range(50):
        batch = any_batch(Draw(seed))
        right = truth(batch)
        if not right.m:
            continue
        loss_abs, loss = -(-value(impl, batch)).exp(), value(impl, batch, similarity="cos") - 1
        bound = 3 * k_u(impl, batch)
        assert_close(loss, -(sum(right.s[0]) + sum(right.s[1])) / (2 * len(batch.p1)), bound, "L_SimSiam", batch)
        assert loss_abs <= loss + 2 * bound
        if all((s >= 0).all() for s in right.s):
            assert_close(loss_abs, loss, 2 * bound, "L_SimSiamAbs", batch)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS, ids=lambda impl: impl.name)
@pytest.mark.parametrize("similarity", ["abscos", "cos", "l2"])
def test_zero_rows_and_extreme_rows_give_finite_energies_and_gradients(impl, similarity):
    for far in (1e-20, 1.0, 1e18 if similarity == "l2" else 1e20):
        for holes in range(16):
            b = Batch(*(x * far for x in generic_batch().arrays()))
            for name in (n for i, n in enumerate(NAMES) if holes >> i & 1):
                getattr(b, name)[: 3 if holes % 3 == 0 else 1] = 0
            assert 0 <= value(impl, b, similarity=similarity) < INFINITY
            for stop_grad in (False, True):
                g = impl.energy_grad(*b.arrays(), stop_grad, similarity=similarity)
                assert all(np.isfinite(x).all() for x in g)
                if similarity != "l2":
                    assert all((gx[~x.any(axis=1)] == 0).all() for x, gx in zip(b.arrays(), g, strict=True))


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


def test_torch_computes_similarities_of_bfloat16_rows_in_float32():
    import torch

    from simsiam_sghmc import energy

    rows = [torch.tensor(x).bfloat16() for x in generic_batch().arrays()]
    for similarity in ("abscos", "cos", "l2"):
        U = energy(*rows, True, similarity)
        assert U.dtype == torch.float32 and torch.equal(U, energy(*(x.float() for x in rows), True, similarity))


# -------------------------------------------------------------------------------- the normals that the chain draws

FALSE_ALARM = 1e-6  # of one whole battery on right code
N = 200_000


def battery(normals):
    """None, or what is wrong with a source of normals(seed, step, n, rows); for N coordinates.

    False alarm: the tests share 1e-6 evenly. Pairs: x.y/|y| is N(0, 1) exactly if x is white and independent of y.
    Shape: sqrt(N) sup|F_N - F| > t has probability <= 2 exp(-2 t^2) (Dvoretzky, Kiefer, Wolfowitz, Massart).
    Missed bugs: at most 1e-6 as well for a correlation above 2q/sqrt(N) = 2.9 %, or a distribution function that is off
    by more than 2t/sqrt(N) = 1.4 % somewhere (a standard deviation off by 6 %; a uniform law is off by 5.7 %).
    """
    rows = {}
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        source = iter(normals(seed, step, N, 7))
        for j in range(7):
            rows[f"seed {seed} sample {step} row {j}"] = np.asarray(next(source), dtype=np.float64)
    names, X = list(rows), np.array(list(rows.values()))
    products, norms = X @ X.T, np.linalg.norm(X, axis=1) + 1e-300  # rows of zeros fail by their law
    pairs = {f"{names[i]} and {names[j]}": products[i, j] / norms[j] for i in range(len(X)) for j in range(i)}
    for name, x in rows.items():
        pairs[f"{name}: even and odd coordinates"] = x[::2] @ x[1::2] / (np.linalg.norm(x[::2]) + 1e-300)
        pairs[f"{name}: first and second half"] = x[: N // 2] @ x[N // 2:] / (np.linalg.norm(x[: N // 2]) + 1e-300)
    share = FALSE_ALARM / (len(pairs) + len(rows))
    q = -statistics.NormalDist().inv_cdf(share / 2)
    t = np.sqrt(np.log(2 / share) / 2)
    for what, correlation in pairs.items():
        if not abs(correlation) <= q:
            return f"correlated: {what}"
    for name, x in rows.items():
        if not distance_to_normal(x) * np.sqrt(N) <= t:
            return f"not standard normal: {name}"
    return None


def distance_to_normal(x):
    """sup |F_n - F| (Kolmogorov and Smirnov)."""
    import torch

    F = torch.special.ndtr(torch.tensor(np.sort(x))).numpy()
    steps = np.arange(len(x) + 1) / len(x)
    return max((steps[1:] - F).max(), (F - steps[:-1]).max())


def test_chain_draws_independent_standard_normals_everywhere():
    from simsiam_sghmc import normals

    assert battery(normals) is None


def broken_sources(normals):
    """Sources of normals with the bugs of samplers that draw their own."""
    @functools.cache
    def draws(seed, step):
        return [np.asarray(row, dtype=np.float64) for row in normals(seed, step, N, 8)]

    def rows_of(change):
        return lambda seed, step, n, rows: (change(draws(seed, step), j, seed, step) for j in range(7))

    generator = np.random.default_rng(0)
    return {
        "uniform": rows_of(lambda r, j, *_: (generator.random(len(r[j])) - 0.5) * 12**0.5),
        "momentum kept between samples": rows_of(lambda r, j, seed, step: r[j] if j else draws(seed, 0)[0]),
        "momentum carried over by 10 %": rows_of(
            lambda r, j, seed, step: r[j] if j or not step else 0.99**0.5 * r[0] + 0.1 * draws(seed, 0)[0]),
        "one draw for both kicks": rows_of(lambda r, j, *_: r[j - 1] if j and j % 2 == 0 else r[j]),
        "second kick mirrors the first": rows_of(lambda r, j, *_: -r[j - 1] if j and j % 2 == 0 else r[j]),
        "the same draws in every leapfrog": rows_of(lambda r, j, *_: r[j] if j < 3 else r[1 + (j - 1) % 2]),
        "momentum reused as noise": rows_of(lambda r, j, *_: r[0] if j == 1 else r[j]),
        "one scalar for all coordinates": rows_of(lambda r, j, *_: r[j][0] + 0 * r[j]),
        "tensors of equal shape share draws": rows_of(lambda r, j, *_: np.tile(r[j][: len(r[j]) // 2], 2)),
        "neighbours share draws": rows_of(lambda r, j, *_: np.repeat(r[j][::2], 2)),
        "the same draws in every sample": lambda seed, step, n, rows: iter(draws(seed, 0)),
        "the same draws for every seed": lambda seed, step, n, rows: iter(draws(0, step)),
        "standard deviation 1.1": rows_of(lambda r, j, *_: 1.1 * r[j]),
        "mean 0.1": rows_of(lambda r, j, *_: r[j] + 0.1),
        "samples overlap": lambda seed, step, n, rows: iter(draws(seed, 0)[step:]),
        "zero": rows_of(lambda r, j, *_: 0 * r[j]),
    }


def test_every_known_bug_of_the_draws_is_killed():
    from simsiam_sghmc import normals

    found = {name: battery(source) for name, source in broken_sources(normals).items()}
    print("\n".join(f"{name:40} {why}" for name, why in found.items()))
    assert all(found.values()), [name for name, why in found.items() if not why]


def test_two_samples_of_the_chain_have_the_gaussian_law_of_the_quadratic():
    """One call on a separable quadratic of N coordinates is N samples of a known Gaussian; the next one has the
    right regression on it and an independent remainder. Error rates as in `battery`."""
    import torch

    from simsiam_sghmc import normals, sghmc_step

    case = replace(generic_case(), w=np.ones(1), z=np.zeros((7, 1)), A=np.full((1, 1), 2.0), b=np.zeros(1), b_hat=0.0)
    G = float(positions(case)[-1][0])
    draws = [replace(case, w=np.zeros(1), z=np.eye(7)[:, [j]]) for j in range(7)]
    sd = float(sum(positions(x)[-1][0] ** 2 for x in draws)) ** 0.5

    def sample(w, step):
        return sghmc_step(w, normals(3, step, N, 7), lambda x: 2 * x, **case.settings())

    W1 = sample(torch.zeros(N), 0)
    W2 = sample(W1, 1)
    first, then = W1.double().numpy() / sd, (W2.double() - G * W1.double()).numpy() / sd
    t = np.sqrt(np.log(2 / (FALSE_ALARM / 3)) / 2)
    q = -statistics.NormalDist().inv_cdf(FALSE_ALARM / 6)
    assert distance_to_normal(first) * np.sqrt(N) <= t
    assert distance_to_normal(then) * np.sqrt(N) <= t
    assert abs(then @ first) <= q * np.linalg.norm(first), "the second sample depends on the first one's draws"


# -------------------------------------------------------------------------- the stop-gradient field has no energy

def update_field(theta, views, stop_grad):
    """dU/dtheta of a tiny SimSiam, encoder z = x E and predictor p = z H (2 x 2 each), in 60-digit decimals."""
    with localcontext() as context:
        context.prec = 60
        E, H = theta[:4].reshape(2, 2), theta[4:].reshape(2, 2)
        z1, z2 = (x @ E for x in views)
        g_p1, g_z1, g_p2, g_z2 = REFERENCE_60.energy_grad(z1 @ H, z1, z2 @ H, z2, stop_grad)
        g_E = views[0].T @ (g_z1 + g_p1 @ H.T) + views[1].T @ (g_z2 + g_p2 @ H.T)
        g_H = z1.T @ g_p1 + z2.T @ g_p2
        return np.concatenate([g_E.ravel(), g_H.ravel()])


REFERENCE_60 = variant(decimals=True)


@functools.cache
def jacobian(stop_grad):
    """Of the update field, by central differences: h = 1e-20 leaves errors h^2 and 1e-60/h, both about 1e-40."""
    draw = Draw(5)
    theta, views = decimals(draw.nonzero(8, 6, 1 / 8)), [decimals(draw.nonzero((3, 2), 6, 1 / 4)) for _ in range(2)]
    h, columns = Decimal("1e-20"), []
    for i in range(8):
        step = decimals(np.zeros(8))
        step[i] = h
        forward, backward = (update_field(theta + sign * step, views, stop_grad) for sign in (1, -1))
        columns.append((forward - backward) / (2 * h))
    return np.array(columns).T


def test_full_gradient_field_has_a_symmetric_jacobian_and_the_stop_gradient_field_has_not():
    """A field with an energy has a symmetric Jacobian. The full one is symmetric to the 1e-40 of the differences times
    the field's third derivatives; 1e-30 leaves these ten digits. With stop-gradient half of it is antisymmetric."""
    full, stopped = jacobian(False), jacobian(True)
    assert abs(full - full.T).max() < Decimal("1e-30") * abs(full).max()
    assert abs(stopped - stopped.T).max() > abs(stopped).max() / 10


def test_step_is_conformally_symplectic_on_the_full_field_and_not_on_the_stop_gradient_field():
    """The linearised step, with the Jacobians rounded to a grid so that the statement is about equal fractions."""
    for stop_grad in (False, True):
        A = np.round(jacobian(stop_grad).astype(float) * 64) / 64
        assert (A == A.T).all() != stop_grad
        for seed in range(3):
            T, c, L = phase_map(NUMPY, A[:6, :6], Draw(seed), 16.0)
            J = symplectic(6)
            assert (T.T @ J @ T == c ** (2 * L + 1) * J).all() != stop_grad


def test_the_torch_energy_refuses_unknown_similarities_and_shapes_that_differ():
    import torch

    from simsiam_sghmc import energy

    x, row, shapes = torch.ones(3, 2), torch.ones(1, 2), ((0, 2), (3, 0), (3,), (3, 2, 1))
    wrong = [((x,) * 4, "cosine"), ((x, x, x, row), "abscos"), ((x, row, x, x), "l2")]
    for rows, similarity in wrong + [((torch.ones(shape),) * 4, "cos") for shape in shapes]:
        with pytest.raises(ValueError, match="give four .B, d. of one shape, not empty, and abscos, cos or l2"):
            energy(*rows, False, similarity)
