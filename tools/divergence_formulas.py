"""The formulas of divergence.py: what a prior says of its posterior, and how far a chain is from its random walk.

Notation: g the gradient of U on one minibatch, g' on another; alpha = M^-1 C eps, c = 1 - alpha; delta the rms distance
from W_0. The walk is the chain at energy scale 0. Everything is in nats, under the walk.
"""

import math
from itertools import product
from typing import NamedTuple

import numpy as np


# -------------------------------------------------------------------------------------- the posterior, from its prior
def clopper_pearson(hits, n, error=0.025):
    """(lower, upper) limit of a probability after `hits` in n draws; each is wrong with probability `error` at most."""

    def root(k, value):
        """The p at which P(Binomial(n, p) <= k), which falls with p, is `value`."""
        low, high = 0.0, 1.0
        logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
        for _ in range(60):
            p = (low + high) / 2
            terms = (math.exp(log + i * math.log(p) + (n - i) * math.log1p(-p)) for i, log in enumerate(logs))
            low, high = (p, high) if sum(terms) > value else (low, p)
        return high

    return root(hits - 1, 1 - error) if hits else 0.0, root(hits, error) if hits < n else 1.0


def weighted_prior(m, collapsed, scale):
    """What n draws of a prior, m (n,) = exp(-U) and collapsed (n,) bool, say of the posterior exp(-scale U) prior.

        P(A | posterior) = E[m^scale 1_A] / E[m^scale] <= P(A) factor,      factor = 1 / E[m]^scale >= 1 / E[m^scale]

    `bound` takes the upper limit of P(A) and the lower one of E[m], which hold together in 95 % of the cases; `ess` is
    the effective sample size of the weights. exp(E log m): U averaged over minibatches weighs at least this much.
    """
    w, mean, se = np.exp(scale * (np.log(m) - np.log(m).max())), m.mean(), m.std(ddof=1) / len(m) ** 0.5
    low, high = clopper_pearson(int(collapsed.sum()), len(m))
    log_factor = -scale * math.log(max(mean - 1.96 * se, 1e-300))
    return {
        "E_m": mean, "E_m_se": se, "exp_E_log_m": math.exp(np.log(m).mean()), "factor": math.exp(min(log_factor, 700)),
        "prior_share": collapsed.mean(), "prior_low": low, "prior_high": high,
        "bound": math.exp(min(0.0, math.log(high) + log_factor)), "posterior_share": w[collapsed].sum() / w.sum(),
        "ess": w.sum() ** 2 / (w**2).sum(),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ the chain, from its walk
class Setting(NamedTuple):
    """A chain of the paper; phi_std, the standard deviation of Phi_0, is sqrt(mass) where it is None."""

    figure: str
    start: str
    L: int
    eps: float
    samples: int
    alpha: float = 0.01
    mass: float = 1.0
    phi_std: float = None


def coefficients(L, alpha, length):
    """a_0 ... a_{2L-1}, then zeros: D = W_{t+1} - W_t = eps/M [a_0 Phi_0 + sum a_j (noise_j - eps/2 g_j)]."""
    return np.array([sum((1 - alpha) ** (2 * i + 1 - j) for i in range(L) if 2 * i + 1 >= j) for j in range(length)])


def walk_of(s):
    """(a, variances of Phi_0 and the noises, each (2L,); v = Var(D M/eps)) of a setting."""
    a, variances = coefficients(s.L, s.alpha, 2 * s.L), np.full(2 * s.L, 2 * s.alpha * s.mass)
    variances[0] = s.phi_std**2 if s.phi_std else s.mass
    return a, variances, (a**2 * variances).sum()


def distances_of(s, t):
    """delta_t, the rms distance of the walk from W_0 at the begin of samples t (k,)."""
    return s.eps / s.mass * np.sqrt(walk_of(s)[2] * t)


def blocks(samples):
    """(middle t, count), each (k,), of blocks that cover the samples: single at first, later of one in a hundred."""
    edges = np.unique(np.append(0, np.geomspace(1, samples, 1000).round()))
    return (edges[1:] + edges[:-1] - 1) / 2, np.diff(edges)


def half_kicks(s):
    """Of the half-kicks 1 ... 2L-1, each (2L-1,): leapfrog l, rms distance of X_l from W_t, correlation with D."""
    (a, variances, v), at = walk_of(s), np.arange(1, 2 * s.L) // 2
    b = np.array([coefficients(l, s.alpha, 2 * s.L) for l in at])
    sigma = np.sqrt((b**2 * variances).sum(axis=1))
    return at, s.eps / s.mass * sigma, (a * b * variances).sum(axis=1) / np.maximum(sigma, 1e-300) / v**0.5


def whole(x):
    """The decay of gradients that are constant within a sample."""
    return np.ones_like(x)


def kl_samples(s, X, size, phi=whole, step=1e-3):
    """KL(walk || chain) of each sample for whoever sees the W_t, to leading order in the gradient: (T,).

    X (T,): E<g, g'> at W_t, X phi(d^2 / size^2) at two places a distance d apart near it, size (T,) the rms weight.
    To this order the log-ratio is l = -eps/2 sum <g_j, n_j> / s and KL = Var(E[l | D]) / 2. A part of g that is a
    polynomial of degree k-1 in the displacement adds k r^(2k-2) of its variance: all add up to d(rho K(rho))/drho.
    """
    (a, _, v), (_, sigma, r) = walk_of(s), half_kicks(s)
    squares, cross = np.add.outer(sigma**2, sigma**2), np.outer(sigma * r, sigma * r)
    K = [f * phi(np.maximum(squares - 2 * f * cross, 0)[..., None] / size**2) for f in (1 + step, 1 - step)]
    return (s.eps / 2) ** 2 / (2 * v) * X * np.einsum("i,j,ijt->t", a[1:], a[1:], (K[0] - K[1]) / (2 * step))


def kl_positions(s, G, X):
    """KL of each sample for whoever sees X_1 ... X_L and the minibatches, the two of an X_l differing: exact."""
    (_, variances, _), c, noise = walk_of(s), 1 - s.alpha, 2 * s.alpha * s.mass
    later = (s.L - 1) * ((1 + c * c) * G + 2 * c * X) / (noise * (1 + c * c))
    return (s.eps / 2) ** 2 / 2 * (G / (c * c * variances[0] + noise) + later)


def kl_shift(s, G, X, size, phi_G, phi_X):
    """Upper bound of KL of each sample for whoever sees the W_t and the minibatches: E|u|^2 / 2, u a shift of normals.

    What is known of the forces at W_t is spread over all normals; what X_l tells besides over those drawn after it.
    How the surprises of one sample hang together is not used: their norms are added.
    """
    (a, variances, v), (at, sigma, _), kick = walk_of(s), half_kicks(s), (s.eps / 2) ** 2
    known = X * phi_X(np.add.outer(sigma**2, sigma**2)[..., None] / size**2)
    own_G, own_X = (phi(2 * sigma[:, None] ** 2 / size**2) for phi in (phi_G, phi_X))
    known[np.arange(len(at)), np.arange(len(at))] = G * own_G
    total, shift = kick * np.einsum("i,j,ijt->t", a[1:], a[1:], known) / v, 0.0
    for l in range(1, s.L):
        j = 2 * l  # the first half-kick at X_l; its rows begin with half-kick 1
        surprise = (a[j] ** 2 + a[j + 1] ** 2) * G * (1 - own_G[j]) + 2 * a[j] * a[j + 1] * X * (1 - own_X[j])
        shift = shift + np.sqrt(kick * np.maximum(surprise, 0)) / (a[j:] ** 2 * variances[j:]).sum()
        total = total + (a[j] ** 2 + a[j + 1] ** 2) * variances[1] * shift**2
    return total / 2


def best_test(kl):
    """Upper bound of the share of right answers of any test of chain against walk, (1 + TV) / 2."""
    kl = np.maximum(kl, 0)  # a measured one may be below
    return (1 + np.minimum(np.sqrt(kl / 2), np.sqrt(-np.expm1(-kl)))) / 2


def curve_at(delta, distances, values, size):
    """A measured curve at `delta`: values (size^2 + distances^2), linearly in log(1 + (distance / smallest > 0)^2)."""
    smallest = min(d for d in distances if d > 0)
    place, there = (np.log1p((x / smallest) ** 2) for x in (delta, distances))
    return np.interp(place, there, values * (size**2 + distances**2)) / (size**2 + delta**2)


def fitted_decay(rows, name):
    """decay(delta (T,)) -> phi(x (..., T)) = 1 / (1 + (x / h^2)^(p/2)), x = d^2: what is left of a product at W_t.

    h and p are fitted to decay.csv at each of its distances from W_0, by least squares on the products over those at
    d = 0 (sums over the seeds), and p and log h are interpolated between these, as in curve_at.
    """
    if not rows:
        raise ValueError("a start of curve.csv has no row in decay.csv; measure it first: --part curve")
    sums, fits = {}, []
    for row in rows:
        key = float(row["delta"]), float(row["d"])
        sums[key] = sums.get(key, 0.0) + float(row[name])
    at = np.array(sorted({delta for delta, _ in sums}))
    for place in at:
        d, y = np.array([(d, value / sums[place, 0]) for (delta, d), value in sums.items() if d and delta == place]).T
        grid = product(np.geomspace(1e-2, 1e2, 161), np.linspace(0.5, 2, 16))
        fits.append(min(grid, key=lambda hp: ((1 / (1 + (d / hp[0]) ** hp[1]) - y) ** 2).sum()))  # noqa: B023

    def decay(delta):
        place, there = (np.log1p((x / min(at[at > 0])) ** 2) for x in (delta, at))
        h, p = (np.interp(place, there, values) for values in np.array([(math.log(h), p) for h, p in fits]).T)
        return lambda x: 1 / (1 + (x / np.exp(2 * h)) ** (p / 2))

    return decay


def settings(starts):
    """The chains of Figures 1, 2b (from each of `starts`) and 4 (both readings of the velocities' deviation)."""
    for L, eps in product((1, 2, 3, 5), (1e-1, 1e-2, 1e-3, 1e-4)):
        yield Setting("1", "random", L, eps, 50_000)
    for start, eps in product(starts, (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)):
        yield Setting("2b", start, 3, eps, 15_000)
    for std, alpha, eps in product((0.1, 0.01), (0.1, 0.01), (1e-3, 1e-2)):
        yield Setting("4", "random", 3, eps, 2_000, alpha, phi_std=std)
        yield Setting("4", "random", 3, eps, 2_000, alpha, mass=std**2)


def divergences(s, curve, decay_G, decay_X):
    """{column: KL of the first sample and of all} of a setting on the curve {column: (k,)} of one seed."""
    t, count = blocks(s.samples)
    delta, size, at = distances_of(s, t), curve["size"][0], curve["delta"]
    if delta[-1] > at[-1]:
        raise ValueError(f"the curve ends at distance {at[-1]:g}, the walk of {s} at {delta[-1]:.3g}: measure more")
    G, X = (curve_at(delta, at, curve[name], size) for name in "GX")
    near, phi_G, phi_X = np.hypot(size, delta), decay_G(delta), decay_X(delta)
    positions = kl_positions(s, G, X)
    kl = {
        "kl": kl_samples(s, X, near, phi_X), "kl_constant": kl_samples(s, X, near),
        "kl_bound": np.minimum(kl_shift(s, G, X, near, phi_G, phi_X), positions), "kl_positions": positions,
    }  # fmt: skip
    return {name: np.array([x[0], x @ count]) for name, x in kl.items()}


def summary(s, kl):
    """The row of divergence.csv from the `divergences` of each seed: means, and the standard error of `kl`."""
    (first, total), *others = (np.mean([x[name] for x in kl], axis=0) for name in kl[0])
    se = np.std([x["kl"] for x in kl], axis=0, ddof=1) / len(kl) ** 0.5 if len(kl) > 1 else (math.nan, math.nan)
    row = {"figure": s.figure, "start": s.start, "L": s.L, "eps": s.eps, "samples": s.samples, "kl_first": first,
           "kl_first_se": se[0], "kl": total, "kl_se": se[1], "accuracy": best_test(total),
           "accuracy_rest": best_test(total - first), "scale_shown": total**-0.5 if total > 0 else math.inf,
           "alpha": s.alpha, "mass": s.mass, "phi_std": walk_of(s)[1][0] ** 0.5, "seeds": len(kl)}  # fmt: skip
    for name, (_, value) in zip(list(kl[0])[1:], others, strict=True):
        row |= {name: value, name.replace("kl", "accuracy"): best_test(value)}
    return row
