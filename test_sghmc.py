"""The sampler is Algorithm 1. Each test is one sentence about one call of sghmc_step; the machinery is in oracle/.

    pytest                                          the built-in implementations
    SGHMC_IMPL="pkg.module /path/mine.py" pytest    any others, by module name or file; see README

Right answers are computed in fractions. On dyadic numbers the tolerance is zero, on all others it is the theorem that
oracle/sampler.py states; none is chosen.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from oracle import closed_forms as form
from oracle import corner_cases as corner
from oracle import generators
from oracle.arithmetic import assert_close, determinant, rational, roots, square_root
from oracle.cases import any_case, deepest, exact_case, frictionless_case, generic_case, rounded_case, still_case, wide
from oracle.implementations import numbers
from oracle.properties import holds_for, own_draws
from oracle.report import note
from oracle.sampler import assert_same, assert_step, distinct, gradient, positions, run, tolerance, unit_probes
from oracle.sizes import assert_long


# ------------------------------------------------------------------------------------------ the update is Algorithm 1
@holds_for("sghmc_step", examples=40)
def test_update_is_algorithm_1_to_the_bit_on_dyadic_numbers(impl, draw):
    assert_step(impl, exact_case(draw, impl, gradients="any"))


@holds_for("sghmc_step", examples=40)
def test_update_is_algorithm_1_within_the_rounding_bound_on_all_other_numbers(impl, draw):
    assert_step(impl, rounded_case(draw, impl))


@holds_for("sghmc_step", examples=1)
def test_update_is_algorithm_1_at_a_setting_that_hides_no_bug(impl, draw):
    for L in (1, 2, 3, 5):
        assert_step(impl, generic_case(impl, L))


# ---------------------------------------------------------------------------------------------------------- real sizes

@holds_for("sghmc_step", sized=True)
def test_each_of_thousands_of_coordinates_moves_by_algorithm_1(impl, draw):
    """4096 is a multiple of all blocks up to that size; the others leave a remainder in each of them."""
    for n in (4096, 5003, 65543):
        assert_long(impl, n, L=2)


@holds_for("sghmc_step", sized=True)
def test_each_of_many_leapfrogs_uses_its_own_rows_of_noise(impl, draw):
    assert_long(impl, 1031, L=25)
    assert_long(impl, 61, L=130)


@holds_for("sghmc_step", sized=True)
def test_number_of_coordinates_may_be_any(impl, draw):
    for n in (7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129, 513, 1000, 1025, 2047):
        assert_long(impl, n, L=2)


@holds_for("sghmc_step", "mass per coordinate", sized=True)
def test_each_of_thousands_of_masses_belongs_to_its_coordinate(impl, draw):
    assert_long(impl, 5003, L=3, vectors=("mass",))


@holds_for("sghmc_step", "b_hat per coordinate", sized=True)
def test_each_of_thousands_of_b_hats_belongs_to_its_coordinate(impl, draw):
    assert_long(impl, 5003, L=3, vectors=("b_hat",))


# -------------------------------------------------------------------------------------------------------- line by line

@holds_for("sghmc_step")
def test_momentum_is_drawn_with_covariance_m(impl, draw):
    """Line 1: Phi = sqrt(M) z_0."""
    case = still_case(draw, impl, L=3)
    case.z[0] = draw.nonzero(case.n, 1)
    _, _, M, _ = case.scales()
    assert_step(impl, case, form.travel(case, 0) * roots(M) * rational(case.z[0]))


@holds_for("sghmc_step")
def test_free_particle_keeps_1_minus_alpha_of_its_momentum_in_each_half_kick(impl, draw):
    """Lines 3 and 5: the full alpha in each of the two (D2)."""
    case = still_case(draw, impl, L=4)
    case.z[0] = draw.nonzero(case.n, 1)
    eps, c, M, _ = case.scales()
    drifts = c * (1 - c ** (2 * case.L)) / (1 - c**2)  # c + c^3 + ... + c^(2L-1)
    assert_step(impl, case, eps / M * roots(M) * rational(case.z[0]) * drifts)


@holds_for("sghmc_step")
def test_gradient_moves_one_leapfrog_by_eps_squared_over_2m(impl, draw):
    """Line 3, then line 4: a gradient already moves W at L = 1."""
    case = still_case(draw, impl, L=1)
    case.g[0] = draw.nonzero(case.n, 2)
    eps, _, M, _ = case.scales()
    assert_step(impl, case, -(eps**2) / (2 * M) * rational(case.g[0]))


@holds_for("sghmc_step")
def test_each_half_kick_takes_off_eps_over_2_times_the_gradient_at_its_position(impl, draw):
    """Line 3 of leapfrog l stands at X_l, line 5 at X_(l+1), so half-kick j at X_(j // 2)."""
    case = still_case(draw, impl, L=3)
    case.z[0], case.g = 1, draw.array(case.g.shape, -4, 4)  # moving, so that the positions differ
    case.g = distinct(case, case.L)
    eps, _, M, _ = case.scales()
    pushes = sum(-eps / 2 * rational(case.g[j // 2]) * form.travel(case, j) for j in range(1, 2 * case.L))
    assert_step(impl, case, form.travel(case, 0) * roots(M) + pushes)


@holds_for("sghmc_step")
def test_each_half_kick_adds_noise_of_covariance_2_c_eps(impl, draw):
    """Lines 3 and 5: the full N(0, 2 C eps) in each of the two (D2), C = alpha M / eps."""
    case = still_case(draw, impl, L=3)
    eps, _, M, _ = case.scales()
    C = Fraction(case.alpha) * M / eps
    for j in range(1, 2 * case.L):
        kick = replace(case, z=0 * case.z)
        kick.z[j] = draw.nonzero(case.n, 1)
        assert_step(impl, kick, form.travel(case, j) * roots(2 * C * eps) * rational(kick.z[j]), f"half-kick {j} alone")


@holds_for("sghmc_step")
def test_sample_is_the_last_position_and_not_w_t_as_printed(impl, draw):
    """Line 6 (D1): what moves is seen to move, from where it was."""
    case = still_case(draw, impl, L=3)
    case.w, case.z[0] = draw.array(case.n, -4, 4), draw.nonzero(case.n, 1)
    got = assert_step(impl, case)
    assert (got != rational(case.w)).all(), f"W_(t+1) = W_t = {case.w} though the momentum is not zero: {case}"


@holds_for("sghmc_step")
def test_last_half_kick_never_reaches_the_sample(impl, draw):
    """Neither its draw nor its gradient: line 5 of the last leapfrog changes Phi alone."""
    case = exact_case(draw, impl, gradients="recorded")
    other = replace(case, z=case.z.copy(), g=case.g.copy())
    other.z[-1] += 3
    other.g[-1] += 3
    other.g = distinct(other, other.L)  # X_L may be a position seen before
    assert_close(run(impl, other), run(impl, case), 0, "changing z[2L] and the gradient at X_L", case)


@holds_for("sghmc_step", examples=10)
def test_gradient_is_that_of_its_own_position_however_small_the_move(impl, draw):
    """Small against the position, or in itself: a gradient may be kept only for the same bits."""
    for case in corner.small_moves(draw, impl):
        assert_step(impl, case)


# ------------------------------------------------------------------------------------------------------ the whole step

@holds_for("sghmc_step")
def test_no_single_precision_hides_inside_double_precision(impl, draw):
    case = exact_case(draw, impl, L=1, gradients="recorded")
    assert_step(impl, wide(case) if impl.dtype == "float64" else case)


@holds_for("sghmc_step")
def test_sample_is_the_explicit_sum_over_draws_and_gradients(impl, draw):
    case = exact_case(draw, impl, gradients="recorded")
    assert_step(impl, case, form.explicit_sum(case))


@holds_for("sghmc_step", examples=10)
def test_every_coefficient_of_the_affine_map_is_right(impl, draw):
    case = rounded_case(draw, impl, n=1, L=3)
    if draw.integer(0, 1):
        case = exact_case(draw, impl, n=1, L=3)
    for what, probe in unit_probes(case):
        assert_step(impl, probe, what=f"coefficient of {what}")


@holds_for("sghmc_step")
def test_three_successive_positions_obey_the_recurrence_without_momentum(impl, draw):
    case = any_case(draw, impl)
    for what, got, want, bound in form.recurrence(impl, case):
        assert_close(got, want, bound, what, case)


# --------------------------------------------------------------------------------------------- the law of one leapfrog

@holds_for("sghmc_step")
def test_one_leapfrog_has_the_right_mean_and_variance(impl, draw):
    """Given W_t: mean W - (eps^2/2M) grad, variance (eps^2/M) (1 + alpha^2)."""
    case = exact_case(draw, impl, L=1, n=1, gradients="any")
    eps, c, M, _ = case.scales()
    mean = rational(case.w) - eps**2 / (2 * M) * case.force(rational(case.w), 0)
    assert_step(impl, replace(case, z=0 * case.z), mean, "mean")
    assert_close(*form.variance(impl, case), eps**2 / M * (1 + (1 - c) ** 2), "variance of W_(t+1) given W_t", case)


@holds_for("sghmc_step")
def test_one_leapfrog_chain_on_a_quadratic_has_the_right_stationary_variance_and_lag_one_correlation(impl, draw):
    """U = k x^2 / 2: S = G S G + Q has the solution S = (1/k) (1 + alpha^2) / (1 - eps^2 k / 4M)."""
    case = exact_case(draw, impl, L=1, n=1)
    k = Fraction(2)
    case = replace(case, w=0 * case.w, z=0 * case.z, b=0 * case.b, A=np.full((1, 1), float(k)))
    eps, c, M, _ = case.scales()
    G, e = form.response(impl, replace(case, w=np.ones(1)), case)
    assert_close(G, 1 - eps**2 * k / (2 * M), e, "lag-1 correlation", case)
    S = (1 + (1 - c) ** 2) / (k * (1 - eps**2 * k / (4 * M)))
    Q, error = form.variance(impl, case)
    assert_close(G * S * G + Q, S, S * (2 * abs(G) + e) * e + error, "variance of W_(t+1) when W_t has it", case)


# ---------------------------------------------------------------------------------------- the estimate B^ (Equation 1)

@holds_for("sghmc_step", "b_hat")
def test_b_hat_lowers_the_noise_variance_and_nothing_else(impl, draw):
    case = exact_case(draw, impl, gradients="any", L=3)
    C = case.alpha * case.mass / case.eps
    assert_step(impl, deepest(replace(case, b_hat=C * draw.choice(0.75, 1.0)), impl))  # a quarter of it; no noise
    assert_step(impl, rounded_case(draw, impl, b_hat=True))


@holds_for("sghmc_step", "b_hat per coordinate")
def test_b_hat_may_differ_between_coordinates(impl, draw):
    case = rounded_case(draw, impl)
    for mass in (case.mass, draw.array(case.n, 5, 80, 1 / 16))[: 1 + impl.accepts("mass per coordinate")]:
        C = case.alpha * mass / case.eps
        assert_step(impl, replace(case, mass=mass, b_hat=C * draw.array(case.n, 0, 12, 1 / 16)))


@holds_for("sghmc_step", "b_hat", examples=5)
def test_b_hat_larger_than_the_friction_is_refused(impl, draw):
    case = rounded_case(draw, impl)
    case = replace(case, alpha=max(case.alpha, 1 / 64))
    assert not (text := corner.unrefused(impl, case)), f"{text}\n{case}"


# ----------------------------------------------------------------------------------------------------------- mechanics

@holds_for("sghmc_step")
def test_without_draws_and_gradient_nothing_moves(impl, draw):
    case = rounded_case(draw, impl)
    case = replace(case, z=0 * case.z, A=0 * case.A, b=0 * case.b, kappa=0.0)
    assert_close(run(impl, case), rational(case.w), 0, "fixed point", case)


@holds_for("sghmc_step", examples=10)
def test_phase_space_volume_shrinks_by_c_per_half_kick_and_coordinate_for_any_linear_force(impl, draw):
    A = draw.array((2, 2), -2, 2)  # need not be symmetric
    T, c, L = form.phase_map(impl, A, draw, draw.choice(16.0, 0.25))
    assert T is None or determinant(T) == c ** (2 * (2 * L + 1))


@holds_for("sghmc_step", examples=10)
def test_map_is_conformally_symplectic_exactly_if_the_force_is_a_gradient(impl, draw):
    a, b, d = draw.array(3, -2, 2)
    curl = draw.choice(0.0, 1.0)
    T, c, L = form.phase_map(impl, np.array([[a, b + curl], [b - curl, d]]), draw, 16.0)
    if T is not None:
        J = form.symplectic(2)
        assert ((T.T @ J @ T == c ** (2 * L + 1) * J).all()) == (curl == 0), f"curl {curl}, L {L}, T {T}"


@holds_for("sghmc_step")
def test_leapfrog_runs_backwards_to_where_it_came_from(impl, draw):
    case = frictionless_case(draw, impl)
    for there, back in form.momentum_reversed(impl, case):
        assert_close(run(impl, back), rational(there.w), 0, "there and back", there, back)


@holds_for("sghmc_step")
def test_leapfrog_conserves_the_modified_energy_of_a_quadratic(impl, draw):
    case = frictionless_case(draw, impl)
    for l, H, first in form.modified_energies(impl, case):
        assert H == first, f"modified energy {float(H)} at X_{l}, {float(first)} at the start: {case}"


@holds_for("sghmc_step")
def test_free_fall_is_a_parabola(impl, draw):
    case = frictionless_case(draw, impl)
    case = replace(case, A=0 * case.A)
    eps, _, M, _ = case.scales()
    T = eps * case.L
    fall = T * rational(case.z)[0] / roots(M) + T**2 / 2 * rational(case.b) / M
    assert_step(impl, case, rational(case.w) + fall)


@holds_for("sghmc_step", examples=10)
def test_positions_draws_and_gradients_count_whatever_their_size(impl, draw):
    """From 2^-100 to 2^100 times as large, nothing is cut off and nothing dropped (single precision: 2^-40, 2^40)."""
    for case in corner.any_size(draw, impl):
        assert_step(impl, case)


@holds_for("sghmc_step", examples=10)
def test_step_size_mass_and_friction_count_whatever_their_size(impl, draw):
    for case in corner.any_settings(draw, impl):
        assert_step(impl, case)


@holds_for("sghmc_step", examples=10)
def test_arrays_may_lie_in_memory_in_any_order(impl, draw):
    corner.assert_views(impl, draw)


@holds_for("sghmc_step", "mass")
def test_mass_and_b_hat_may_be_integers(impl, draw):
    for case in corner.integer_cases(draw, impl):
        assert_step(impl, case)


# ------------------------------------------------------------------------------------------- rescalings and symmetries

@holds_for("sghmc_step", "mass")
def test_mass_is_a_rescaled_step_size(impl, draw):
    case = exact_case(draw, impl, gradients="any")
    s = float(square_root(Fraction(case.mass)))
    assert_same(impl, case, replace(case, mass=1.0, eps=case.eps / s), what="M = s^2 and M = 1 at eps/s")


@holds_for("sghmc_step", "mass per coordinate")
def test_one_mass_per_coordinate_is_one_run_per_coordinate(impl, draw):
    case = exact_case(draw, impl, L=2)
    mass = np.array([draw.choice(16.0, 0.25, 1.0) for _ in range(case.n)])
    case = deepest(replace(case, A=np.diag(np.diag(case.A)), mass=mass), impl)
    one = [replace(case, w=case.w[[i]], z=case.z[:, [i]], A=case.A[[i]][:, [i]], b=case.b[[i]], mass=float(mass[i]))
           for i in range(case.n)]
    bound = tolerance(impl, case) + np.concatenate([tolerance(impl, x) for x in one])
    assert_close(assert_step(impl, case), np.concatenate([run(impl, x) for x in one]), bound, "diagonal mass", case)


@holds_for("sghmc_step")
def test_energy_times_lambda_is_step_size_times_root_lambda_with_draws_over_root_lambda(impl, draw):
    case = exact_case(draw, impl, L=3, gradients="any")
    scaled = deepest(replace(case, A=4 * case.A, b=4 * case.b, kappa=4 * case.kappa), impl)  # lambda = 4
    other = replace(case, L=scaled.L, z=scaled.z / 2, eps=2 * case.eps)
    assert_same(impl, scaled, other, what="F(W, z; lambda U, eps) and F(W, z / sqrt(lambda); U, sqrt(lambda) eps)")


@holds_for("sghmc_step")
def test_translating_start_and_energy_translates_the_sample(impl, draw):
    case = exact_case(draw, impl)
    shift = draw.array(case.n, -4, 4)
    moved = replace(case, w=case.w + shift, b=case.b + case.A @ shift)
    bound = tolerance(impl, case) + tolerance(impl, moved)
    assert_close(run(impl, moved), run(impl, case) + rational(shift), bound, "translation", case, moved)


@holds_for("sghmc_step")
def test_permuting_and_reflecting_coordinates_commutes_with_the_step(impl, draw):
    case = exact_case(draw, impl, gradients="any")
    order = np.argsort(draw.array(case.n, 0, 9), kind="stable")
    sign = 2 * draw.array(case.n, 0, 1) - 1
    if case.kappa:
        sign = np.ones(case.n)  # |x| is not symmetric under reflection
    P = np.eye(case.n)[order] * sign[:, None]
    other = replace(case, w=P @ case.w, z=case.z @ P.T, A=P @ case.A @ P.T, b=P @ case.b)
    assert_same(impl, case, other, "signed permutation", lambda x: rational(P) @ x)


@holds_for("sghmc_step")
def test_rotating_the_problem_rotates_the_sample(impl, draw):
    H = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2  # orthogonal and dyadic
    case = corner.rotatable_case(draw, impl)
    other = replace(case, w=H @ case.w, z=case.z @ H.T, A=H @ case.A @ H.T, b=H @ case.b)
    assert_same(impl, deepest(case, impl), deepest(other, impl), "rotation", lambda x: rational(H) @ x)


@holds_for("sghmc_step")
def test_independent_blocks_of_coordinates_do_not_mix(impl, draw):
    both, parts = form.blocks(exact_case(draw, impl, n=2), impl)
    bound = tolerance(impl, both) + np.concatenate([tolerance(impl, x) for x in parts])
    want = np.concatenate([run(impl, x) for x in parts])
    assert_close(run(impl, both), want, bound, "two blocks in one vector", both)


# -------------------------------------------------------------------------------------------------- what a call may do

@holds_for("sghmc_step")
def test_gradients_are_asked_at_the_positions_in_order(impl, draw):
    """2L, 2L-1, L+1 or L of them: the gradient may be kept, and that of the last half-kick left out."""
    case, asked = any_case(draw, impl), []
    run(impl, case, asked)
    kinds = form.kinds_of_calls(impl, case, asked)
    assert kinds, (f"gradients asked at {np.array(asked).tolist()}, "
                   f"positions {np.array(positions(case), float).tolist()}: {case}")
    note(impl, f"gradient calls for L leapfrogs: {' or '.join(kinds)}", certain=case.L > 1)


@holds_for("sghmc_step")
def test_a_step_writes_no_argument_shares_no_memory_and_keeps_no_state(impl, draw):
    case = rounded_case(draw, impl)
    w, z, grad, settings = case.w.copy(), case.z.copy(), gradient(case), case.settings()
    raw = impl.module.sghmc_step(w, z, grad, **settings)
    first = numbers(raw, w.shape, "sghmc_step returns")
    assert not (names := corner.written_arguments(impl, case)), f"written: the caller's {' and '.join(names)}"
    run(impl, replace(case, w=case.w + 1, z=case.z[::-1] - 1))
    assert (numbers(raw, w.shape, "sghmc_step returns") == first).all(), "the next call writes into this result"
    w += 1
    z += 1
    assert (numbers(raw, w.shape, "sghmc_step returns") == first).all(), "the result shares memory with an argument"
    assert (run(impl, case) == first).all(), "the same inputs gave other bits: something is kept between calls"


# ------------------------------------------------------------------------ own draws: exact, no statistics

@own_draws
def test_same_seed_gives_the_same_bits_and_another_seed_another_sample(seen):
    return seen.repeats()


@own_draws
def test_callers_params_and_gradients_are_left_as_they_were(seen):
    return seen.arguments()


@own_draws
def test_gradient_is_asked_at_each_position_of_the_path_and_the_path_ends_with_the_sample(seen):
    return seen.path()


@own_draws
def test_sample_moves_with_its_start_and_by_the_right_part_of_each_gradient_whatever_their_size(seen):
    """One seed, two calls: the noise cancels."""
    return seen.moved()


@own_draws
def test_own_noise_takes_a_mass_and_a_b_hat_that_are_integers(seen):
    return seen.integers()


@own_draws
def test_own_noise_with_b_hat_above_the_friction_is_refused(seen):
    return seen.refuses()


# ------------------------------------------------------------------------------------------ own draws: law

@own_draws
def test_increments_have_the_mean_and_the_covariance_of_algorithm_1(seen):
    """For L = 1, 2 and 3, with and without a mass, B^ = C / 4, alpha = 0, and three samples of a chain."""
    return seen.law()


@own_draws
def test_many_leapfrogs_and_a_mass_for_each_coordinate_keep_that_covariance(seen):
    return seen.deep_law()


@own_draws
def test_a_mass_for_each_coordinate_is_taken(seen):
    if isinstance(seen.mass_per_coordinate, str):
        pytest.skip(seen.mass_per_coordinate)
    return []


@own_draws
def test_tensors_of_a_single_number_have_the_law_of_all_others_over_many_seeds(seen):
    return seen.small_tensors()


@own_draws
def test_single_draws_are_normal_out_to_their_tails(seen):
    return generators.distribution(seen)


@own_draws
def test_sums_of_draws_and_of_their_squares_vary_from_tensor_to_tensor(seen):
    return generators.sums(seen)


@own_draws
def test_no_draw_is_rounded_to_a_shorter_format(seen):
    return generators.digits(seen)


# ---------------------------------------------------------------------------------- own draws: independence

@own_draws
def test_no_two_draws_are_equal(seen):
    """Between coordinates, tensors, leapfrogs and consecutive seeds, in whatever order."""
    return generators.sharing(seen)


@own_draws
def test_coordinates_tensors_leapfrogs_and_successive_samples_are_independent(seen):
    """Coordinates at distances from 1 to 2^16; tensors of one shape; each leapfrog of each of three samples."""
    return generators.independence(seen)
