"""The Note on a toy where everything is known: Gaussian encodings z1, z2 of given correlation.

z1 ~ N(0, s^2 I) in R^d and z2 = rho z1 + noise, with s^2 = 1 / (1 - rho^2), so that P(z2 | z1) = N(rho z1, I): the
density Q that the L2 distance stands for is the right one if the predictor is E[z2 | z1] = rho z1. Then, in nats,

    H(z2) = d/2 log(2 pi e s^2)      I(z1, z2) = -d/2 log(1 - rho^2)      H(z2 | z1) = H - I = d/2 log(2 pi e)

and D = -log Q is the energy "l2" plus d/2 log(2 pi). Errors allowed are four standard errors of the mean over batches.
"""

import functools
import math

import pytest
import torch

from simsiam_sghmc import energy, information

D, RHO = 2, 0.8
MUTUAL_INFORMATION = -D / 2 * math.log(1 - RHO**2)  # 1.02 nats
CONDITIONAL_ENTROPY = D / 2 * math.log(2 * math.pi * math.e)
CONSTANT = D / 2 * math.log(2 * math.pi)


def pairs(batches, size, seed):
    """z1, z2 (batches, size, D), float64: exchangeable, each the other's noisy prediction."""
    g = torch.Generator().manual_seed(seed)
    z1, noise = torch.randn(2, batches, size, D, generator=g, dtype=torch.float64)
    z1 = z1 / math.sqrt(1 - RHO**2)
    return z1, RHO * z1 + noise


def mean_and_error(values):
    """Mean of (n,) values and four of its standard errors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return values.mean().item(), 4 * values.std().item() / math.sqrt(len(values))


@pytest.mark.parametrize("slope", [RHO, 0.0, 0.5, 0.7, 0.9, 1.2])
def test_the_expected_l2_energy_is_conditional_entropy_plus_the_predictors_divergence(slope):
    z1, z2 = pairs(50, 500, seed=0)
    values = [energy(slope * a, a, slope * b, b, False, "l2") for a, b in zip(z1, z2, strict=True)]
    mean, error = mean_and_error(values)
    divergence = D / 2 * (slope - RHO) ** 2 / (1 - RHO**2)  # KL(N(rho z1, I) || N(slope z1, I)), mean over z1
    assert abs(mean + CONSTANT - (CONDITIONAL_ENTROPY + divergence)) < error < 0.1


def test_the_best_linear_predictor_is_the_conditional_mean():
    """Found by minimising the energy itself, with the targets held by the stop-gradient."""
    z1, z2 = (z.flatten(0, 1) for z in pairs(20, 1000, seed=2))
    A = torch.zeros(D, D, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([A], line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        U = energy(z1 @ A.T, z1, z2 @ A.T, z2, True, "l2")
        U.backward()
        return U

    optimiser.step(closure)
    error = 4 * math.sqrt((1 - RHO**2) / len(z1))  # of a regression slope: noise 1, spread s
    assert (A.detach() - RHO * torch.eye(D)).abs().max() < error < 0.02


B = 1000


@functools.cache
def measured(slope, batches):
    """(mi, entropy, entropy_z), each (batches,), of batches of B pairs under the predictor slope z."""
    z1, z2 = (z[:batches] for z in pairs(20, B, seed=3))
    values = [information(slope * a, a, slope * b, b, "l2") for a, b in zip(z1, z2, strict=True)]
    return torch.tensor(values, dtype=torch.float64).T


def test_the_information_of_a_batch_is_the_mutual_information_of_the_views():
    """Its bias: the mean over a batch of B stands for the marginal density, which costs less than 1.5 E[q / P] / B."""
    mean, error = mean_and_error(measured(RHO, 20)[0])
    bias = 1.5 * (1 - RHO**2) ** -D / B
    assert abs(mean - MUTUAL_INFORMATION) < error + bias < 0.1


def test_the_entropy_of_a_batch_is_that_of_an_encoding():
    entropy = D / 2 * math.log(2 * math.pi * math.e / (1 - RHO**2))
    mean, error = mean_and_error(measured(RHO, 20)[1])
    bias = 1.5 * (1 - RHO**2) ** -D / B
    assert abs(mean + CONSTANT - entropy) < error + bias < 0.1


def test_the_entropy_by_the_kernel_is_that_of_the_smoothed_encodings_whatever_the_predictor():
    """-E log (P(z) blurred by N(0, I)): of N(0, s^2 I) the blurred density is N(0, (s^2 + 1) I)."""
    variance = 1 / (1 - RHO**2)
    smoothed = D / 2 * (math.log(2 * math.pi * (variance + 1)) + variance / (variance + 1))
    mean, error = mean_and_error(measured(RHO, 20)[2])
    bias = 1.5 * (1 - RHO**2) ** -D / B
    assert abs(mean + CONSTANT - smoothed) < error + bias < 0.1
    assert torch.equal(measured(0.0, 5)[2], measured(RHO, 20)[2][:5])


def test_a_worse_predictor_sees_less_of_the_information():
    worst, worse, best = (measured(slope, 5)[0].mean() for slope in (0.0, 0.4, RHO))
    assert abs(worst) < 1e-12 and worst < worse - 0.1 and worse < best - 0.1
