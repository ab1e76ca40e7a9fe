"""Exact tail probabilities, and the smallest error that a statistic finds. Nothing here is approximate but the floats.

x, y: vectors of n independent standard normals under the hypothesis; p: the probability of a value at least as extreme.

    mean          sum(x) / sqrt(n) is N(0, 1)
    variance      sum(x^2) is chi-squared with n degrees of freedom
    correlation   x.y / |y| is N(0, 1) given any y that is independent of x
    shape         P(sup |F_n - F| > d) <= 2 exp(-2 n d^2)          (Dvoretzky, Kiefer, Wolfowitz; constant of Massart)
    largest       P(max |x| < t) = (1 - erfc(t / sqrt(2)))^n
    coincidence   P(m disjoint pairs of equal values) <= E^m / m!, E the expected number of pairs (union bound)
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

MISS = 1e-6  # an error of the stated size escapes a statistic with at most this probability


def normal_tail(x):
    """P(|N(0, 1)| > |x|)."""
    return math.erfc(abs(x) / math.sqrt(2))


def normal_quantile(p):
    """The x with P(|N(0, 1)| > x) = p."""
    return -NormalDist().inv_cdf(p / 2)


def chi_squared_tails(x, n):
    """P(chi^2_n < x) and P(chi^2_n > x), each to nine digits however small: the regularised incomplete gamma function,
    by its series below the mean and by its continued fraction (Lentz) above."""
    if x <= 0:
        return 0.0, 1.0
    a, x = n / 2, x / 2
    front = a * math.log(x) - x - math.lgamma(a)
    if x < a + 1:
        term = total = 1 / a
        k = a
        while term > total * 1e-17:
            k += 1
            term *= x / k
            total += term
        lower = min(math.exp(front + math.log(total)), 1.0)
        return lower, 1 - lower
    b = x + 1 - a
    c, d = 1e300, 1 / b
    h, i, delta = d, 0, 2.0
    while abs(delta - 1) > 1e-15:
        i += 1
        b += 2
        step = -i * (i - a)
        d = 1 / (step * d + b)
        c = b + step / c
        delta = d * c
        h *= delta
    upper = min(math.exp(front + math.log(h)), 1.0)
    return 1 - upper, upper


@lru_cache(maxsize=4096)
def chi_squared_quantiles(p, n):
    """(low, high): P(chi^2_n < low) = P(chi^2_n > high) = p <= 1/2, by bisection."""
    def bisect(below, low, high):
        for _ in range(120):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) else (low, middle)
        return (low + high) / 2

    top = n + 10 * math.sqrt(n * -math.log(p)) - 10 * math.log(p)
    return (bisect(lambda x: chi_squared_tails(x, n)[0] < p, 0.0, float(n)),
            bisect(lambda x: chi_squared_tails(x, n)[1] > p, n / 2, top))


@lru_cache(maxsize=4096)
def chi_squared_p(total, n):
    return min(1.0, 2 * min(chi_squared_tails(total, n)))


@dataclass(frozen=True)
class Statistic:
    """One number with an exact law. value: in units of the error that it measures (a correlation, a variance ratio)."""

    kind: str
    group: str        # what was compared: "variance", "coordinates", "tensors", "leapfrogs", "seeds" ...
    what: str
    n: int
    value: float
    p: float
    tensor: str = ""

    def __str__(self):
        return f"{self.what}: {self.kind} {self.value:.4g} (p = {self.p:.1g})"


def smallest_errors(kind, n, share):
    """(below, above): values of a statistic's error outside of which it is found with probability 1 - MISS."""
    if kind in ("mean", "correlation"):
        size = (normal_quantile(share) + normal_quantile(2 * MISS)) / math.sqrt(n)
        return -size, size
    if kind == "variance":
        (low, high), (least, most) = chi_squared_quantiles(share / 2, n), chi_squared_quantiles(MISS, n)
        return low / most, high / least
    if kind == "shape":
        return 0.0, (math.sqrt(-math.log(share / 2) / 2) + math.sqrt(-math.log(MISS / 2) / 2)) / math.sqrt(n)
    if kind == "largest":
        return normal_quantile(-math.expm1(math.log(share) / n)), math.inf
    raise ValueError(f"no statistic is called {kind}")


def size_found(kind, n, share):
    """The smallest error that a statistic of this kind finds, in words; arguments as in smallest_errors."""
    low, high = smallest_errors(kind, n, share)
    words = {"mean": f"a mean off by {high:.3g} standard deviations", "correlation": f"a correlation of {high:.3g}",
             "variance": f"a variance below {low:.3g} or above {high:.3g} times the right one",
             "shape": f"a distribution function off by {high:.3g} somewhere",
             "largest": f"draws cut off at {low:.3g} standard deviations"}
    return words[kind]


def mean(x, group, what):
    value = float(x.sum()) / math.sqrt(x.size)
    return Statistic("mean", group, what, x.size, value / math.sqrt(x.size), normal_tail(value))


def variance(x, group, what, tensor=""):
    total = float((x * x).sum())
    return Statistic("variance", group, what, x.size, total / x.size, chi_squared_p(total, x.size), tensor)


def correlation(x, y, group, what):
    """A y of zeros is no evidence of anything: its own variance fails."""
    product, square = float(np.vdot(x, y)), float(np.vdot(y, y))
    p = normal_tail(product / math.sqrt(square)) if square else 1.0
    return Statistic("correlation", group, what, x.size, product / square if square else 0.0, p)


def white(rows):
    """Statistics of rows (k, n) that should be independent standard normals: each variance, and all pairs."""
    return [variance(x, "", "") for x in rows] + [correlation(x, rows[i], "", "") for j, x in enumerate(rows)
                                                  for i in range(j)]


def squares(rows):
    """The sum of squares of each of the rows (k, n), as an independent standard normal (k,)."""
    def normal(total, n):
        below, above = chi_squared_tails(total, n)
        quantile = NormalDist().inv_cdf(max(min(below, above), 1e-300))
        return quantile if below < above else -quantile

    return np.array([normal(float(x @ x), x.size) for x in rows])


def mirrored(x, group, what):
    """Coordinates i and n - 1 - i."""
    half = x.size // 2
    return correlation(x[:half], x[::-1][:half], group, what)


def lag(x, k, group, what):
    """Coordinates at distance k. Blocks of k take turns, so that the two halves are disjoint and the law is exact."""
    halves = x[: x.size // (2 * k) * 2 * k].reshape(-1, 2, k)
    return correlation(halves[:, 0], halves[:, 1], group, what)


@lru_cache(maxsize=1)
def table():
    """F of N(0, 1) at multiples of 1 / 2048 from -12 to 12."""
    return np.array([math.erfc(-k / 2048 / math.sqrt(2)) for k in range(-12 * 2048, 12 * 2048 + 1)]) / 2


def normal_distribution(x):
    """F(x) of N(0, 1), with an error below 1e-15: four terms of its series around the nearest number of the table."""
    x = np.clip(x, -12, 12)
    k = np.rint(x * 2048)
    a, h = k / 2048, x - k / 2048
    slope = np.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return table()[(k + 12 * 2048).astype(int)] + slope * h * (1 - a * h / 2 + (a * a - 1) * h * h / 6
                                                              + (3 - a * a) * a * h * h * h / 24)


def distance(x, F=normal_distribution):
    """sup |F_n - F|."""
    cdf, steps = F(np.sort(x)), np.arange(x.size + 1) / x.size
    return float(max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()))


def shape(x, group, what):
    d = distance(x)
    return Statistic("shape", group, what, x.size, d, min(1.0, 2 * math.exp(-2 * x.size * d * d)))


def largest(x, group, what):
    """Only draws that stop too early: what reaches too far shows in the variance and in the shape."""
    top = float(abs(x).max())
    tail = normal_tail(top)
    p = math.exp(x.size * math.log1p(-tail)) if tail < 1 else 0.0
    return Statistic("largest", group, what, x.size, top, p)


def failed(statistics, level):
    """Those that fail when all together may fail with probability `level` on right draws (Bonferroni, even shares)."""
    share = level / max(1, len(statistics))
    return sorted((s for s in statistics if not s.p >= share), key=lambda s: s.p)
