"""Calibration of the tests for samplers that draw their own noise: right ones pass, wrong ones are caught and named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import reference_numpy
from oracle import chance, generators, laws
from oracle.own_draws import OwnDraws, with_noise

MEDIUM = {"first.weight": (101, 131), "second.weight": (101, 131), "first.bias": (131,), "second.bias": (131,),
          "scale": (1,), "offset": ()}


def known_bugs(kind="mutant"):
    rows = json.loads((Path(reference_numpy.FOLDER) / "mutants.json").read_text())["mutants"]
    return [(row["name"], reference_numpy.variant((row["old"], row["new"]))["sghmc_step"]) for row in rows
            if row["target"] == "step" and row["kind"] == kind]


KNOWN = known_bugs()
ALIKE = {  # with own draws these are no bugs, or show only beside others
    "draws: swapped between the kicks", "draws: in reverse order"}


def look(sample, large=MEDIUM, **options):
    return OwnDraws(sample, reference_numpy.sghmc_step, large=large, **options)


def diagnosis(sample, **options):
    with np.errstate(all="ignore"):
        return laws.diagnose(look(sample, **options), KNOWN)


# ------------------------------------------------------------------------------------------ samplers to be judged

def keyed(seed, row, index, shape):
    """The draw of a right sampler: its own key for each seed, row (0: momentum, 2 l + 1 and 2 l + 2: the kicks of
    leapfrog l) and tensor."""
    return np.random.default_rng([seed, row, index]).standard_normal(shape)


def sampler(draw=keyed, real=np.float64):
    """Algorithm 1 tensor by tensor, as a library would: draw(seed, row, index of the tensor, shape)."""
    def sghmc_sample(params, grad, seed, *, eps, L, alpha, mass=1.0, b_hat=0.0):
        M = {k: real(mass[k] if isinstance(mass, dict) else mass) for k in params}
        if any((alpha * M[k] < b_hat * eps).any() for k in params):
            raise ValueError("b_hat is too large")

        def normal(row):
            return {k: np.asarray(draw(seed, row, i, params[k].shape), dtype=real) for i, k in enumerate(params)}

        X = {k: np.array(x, dtype=real) for k, x in params.items()}
        Phi = {k: np.sqrt(M[k]) * z for k, z in normal(0).items()}
        for j in range(1, 2 * L + 1):
            g, z = grad(X), normal(j)
            for k in params:
                noise = np.sqrt(2 * (real(alpha) * M[k] - real(b_hat * eps))) * z[k]
                Phi[k] = (real(1) - real(alpha)) * Phi[k] - real(eps / 2) * np.asarray(g[k], dtype=real) + noise
            if j % 2:
                X = {k: X[k] + real(eps) / M[k] * Phi[k] for k in params}
        return X
    return sghmc_sample


def other(change):
    """change(z, ...) of right draws."""
    return lambda seed, row, i, shape: change(keyed(seed, row, i, shape))


def tiled(shape, period, key):
    z = np.random.default_rng(key).standard_normal(min(period, math.prod(shape)))
    return np.resize(z, math.prod(shape)).reshape(shape)


def mixed(seed, row, i, shape):
    return 0.95**0.5 * keyed(seed, row, i, shape) + 0.05**0.5 * keyed(seed, row, 9, shape)


def smoothed(z):
    flat = z.ravel()
    return ((flat + 0.1 * np.roll(flat, 1)) / 1.01**0.5).reshape(z.shape)


GENERATORS = {  # the bug: its draws, and words of the diagnosis
    "one key for all tensors": (lambda s, r, i, n: keyed(s, r, 0, n), "one key for all tensors"),
    "one seed per tensor": (lambda s, r, i, n: keyed(s + i, r, 0, n), "one seed per tensor"),
    "key not advanced between samples": (lambda s, r, i, n: keyed(0, r, i, n), "give the same sample"),
    "seed of eight bits": (lambda s, r, i, n: keyed(s % 256, r, i, n), "seeds 1 and 257, 65537"),
    "key used in both kicks": (lambda s, r, i, n: keyed(s, r - (r > 0 and r % 2 == 0), i, n), "one draw for both"),
    "key not advanced between leapfrogs": (lambda s, r, i, n: keyed(s, r and 2 - r % 2, i, n),
                                           "noise: the same draws in every leapfrog"),
    "one key for all kicks": (lambda s, r, i, n: keyed(s, min(r, 1), i, n), "one key for the noise of all kicks"),
    "momentum and noise from one key": (lambda s, r, i, n: keyed(s, 0, i, n), "momentum and all noise from one key"),
    "momentum and first noise from one key": (lambda s, r, i, n: keyed(s, 0 if r == 1 else r, i, n),
                                              "the momentum draw reused in the first kick"),
    "momentum and first kicks from one key": (lambda s, r, i, n: keyed(s, 0 if r % 2 else r, i, n),
                                               "momentum and the noise of each first kick from one key"),
    "second kick mirrors the first": (lambda s, r, i, n: (-1) ** (r + 1) * keyed(s, (r + 1) // 2, i, n), "mirror"),
    "samples overlap": (lambda s, r, i, n: keyed(s + r, 0, i, n), "samples overlap"),
    "first row expanded": (lambda s, r, i, n: keyed(s, r, i, n[-1:]) + np.zeros(n), "the first row expanded"),
    "one number for each row": (lambda s, r, i, n: keyed(s, r, i, (*n[:-1], 1) if n else n) + np.zeros(n),
                                "one number for each row"),
    "one number for each tensor": (lambda s, r, i, n: keyed(s, r, i, ()) + np.zeros(n), "one number for all"),
    "blocks of 16": (lambda s, r, i, n: tiled(n, 16, [s, r, i]), "repeat at distance 16"),
    "blocks of 1000": (lambda s, r, i, n: tiled(n, 1000, [s, r, i]), "repeat at distance 1000"),
    "ring buffer of 16 rows": (lambda s, r, i, n: keyed(s, r % 16, i, n), "L = 24, leapfrogs 0 and 8"),
    "uniform": (lambda s, r, i, n: (np.random.default_rng([s, r, i]).random(n) - 0.5) * 12**0.5, "uniform"),
    "signs": (other(np.sign), "signs"),
    "cut off at 3": (other(lambda z: np.clip(z, -3, 3)), "more than once"),
    "drawn anew beyond 3": (lambda s, r, i, n: np.where(abs(z := keyed(s, r, i, n)) > 3, keyed(s, r, i + 9, n) / 3, z),
                            "cut off at 3"),
    "Laplace": (lambda s, r, i, n: np.random.default_rng([s, r, i]).laplace(size=n) / 2**0.5, "not normal"),
    "float16": (other(lambda z: z.astype(np.float16)), "float16"),
    "float32": (other(lambda z: z.astype(np.float32)), "float32"),
    "bfloat16": (other(lambda z: np.float32(np.round(np.frexp(z)[0] * 256) / 256 * 2.0 ** np.frexp(z)[1])), "bfloat16"),
    "standard deviation 1.1": (other(lambda z: 1.1 * z), "no known bug has this law"),
    "mean 0.1": (other(lambda z: z + 0.1), "mean"),
    "biases without noise": (lambda s, r, i, n: keyed(s, r, i, n) * (len(n) > 1), "first.bias"),
    "remainder of 8 without noise": (lambda s, r, i, n: (keyed(s, r, i, n).ravel() * (
        np.arange(math.prod(n)) < math.prod(n) // 8 * 8)).reshape(n), "do not move"),
    "neighbours correlated by 10 %": (other(smoothed), "distance 1:"),
    "tensors correlated by 5 %": (mixed, "first.weight and second.weight"),
    "another sample at each call": (lambda s, r, i, n: np.random.standard_normal(n), "a second call with the same seed"),
}


def kept_between_calls(carry):
    """Samplers whose object lives on: a share `carry` of the last momentum is kept."""
    last = {}

    def sghmc_sample(params, grad, seed, *, eps, L, alpha):
        rng, X = np.random.default_rng(seed), {k: x.copy() for k, x in params.items()}
        Phi = {k: rng.standard_normal(x.shape) for k, x in params.items()}
        for k, x in params.items():
            if k in last and last[k].shape == x.shape:
                Phi[k] = carry * last[k] + (1 - carry**2) ** 0.5 * Phi[k]
        for j in range(1, 2 * L + 1):
            g = grad(X)
            for k, x in X.items():
                noise = (2 * alpha) ** 0.5 * rng.standard_normal(x.shape)
                Phi[k] = (1 - alpha) * Phi[k] - eps / 2 * g[k] + noise
                X[k] = x + eps * Phi[k] if j % 2 else x
        last.update(Phi)
        return X
    return sghmc_sample


def by_a_gradient(change):
    """A right sampler that sees changed gradients."""
    right = sampler()
    return lambda params, grad, seed, **settings: right(
        params, lambda X: {k: change(g, X[k]) for k, g in grad(X).items()}, seed, **settings)


def spoiled(after):
    right = sampler()
    return lambda params, grad, seed, **settings: after(params, right(params, grad, seed, **settings))


def written(params, sample):
    for k in params:
        params[k][...] = sample[k]
    return sample


OTHERS = {
    "momentum kept between samples": (kept_between_calls(1.0), "momentum kept between samples"),
    "momentum carried over by 10 %": (kept_between_calls(0.1), "a second call with the same seed"),
    "weight decay": (by_a_gradient(lambda g, x: g + 0.01 * x), "weight decay: X_1 keeps 0.99"),
    "gradient clipped by value": (by_a_gradient(lambda g, x: np.clip(g, -100, 100)), "large gradients are clipped"),
    "gradient clipped by norm": (by_a_gradient(lambda g, x: g * min(1, 1e6 / (1e-300 + np.linalg.norm(g)))),
                                 "large gradients are clipped"),
    "gradient normalised": (by_a_gradient(lambda g, x: g / (1 + np.linalg.norm(g))), "the gradient at X_0 moves X_1"),
    "gradient in single precision": (by_a_gradient(lambda g, x: np.float32(g)), "right to single precision"),
    "bias without gradient": (by_a_gradient(lambda g, x: g * (g.ndim > 1)), "the gradient at X_0 moves X_1"),
    "caller's params written": (spoiled(written), "the caller's params are written to"),
    "W_t returned": (spoiled(lambda params, sample: params), "result: W_t returned"),
    "names lost": (spoiled(lambda params, sample: list(sample.values())), "the sample is list, not a dictionary"),
    "flat tensors": (spoiled(lambda params, sample: {k: np.ravel(x) for k, x in sample.items()}), "has shape"),
    "nan": (spoiled(lambda params, sample: {k: x * np.nan for k, x in sample.items()}), "is not finite"),
    "raises": (lambda params, grad, seed, **settings: 1 / 0, "raises ZeroDivisionError"),
}


def of_step(step):
    return with_noise(step)


SCHEMES = {
    "posteriors": (with_noise(laws.scheme("GAK", 0.625, lambda r: 2 * (1 - r))), "explicit Euler"),
    "new position": (with_noise(laws.scheme("AGK", 0.625, lambda r: 2 * (1 - r))), "gradient at the new position"),
    "kick first": (with_noise(laws.scheme("GKA", 0.5, lambda r: 1 - r * r)), "kick first"),
    "OBABO": (with_noise(laws.scheme("oGbAGbo", math.exp(-0.75), lambda r: 1 - r * r)), "OBABO"),
    "BAOAB": (with_noise(laws.scheme("GbaOaGb", 0.7, lambda r: 1 - r * r)), "BAOAB"),
    "refreshed per leapfrog": (with_noise(laws.scheme("RGkAGk", 0.625**2, lambda r: 2 * (1 - r))), "anew for each"),
}


# -------------------------------------------------------------------------------------------------- what is asserted

@pytest.mark.parametrize("name", [*GENERATORS, *OTHERS, *SCHEMES])
def test_every_bug_of_the_draws_is_caught_and_named(name):
    if name in GENERATORS:
        draw, words = GENERATORS[name]
        found = diagnosis(sampler(draw))
    else:
        sample, words = {**OTHERS, **SCHEMES}[name]
        found = diagnosis(sample)
    print(*found, sep="\n")
    assert words in " ".join(found), found
    assert len(found) <= 6 and all(len(line) < 500 for line in found), found
