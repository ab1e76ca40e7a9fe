"""Cases for the sampler: of the exact class, of the bound class, and the one that hides no bug."""

from dataclasses import replace

from oracle.implementations import BITS, NUMPY
from oracle.inputs import Draw
from oracle.sampler import Case, distinct, fits


def exact_case(draw, impl, *, L=4, n=3, masses=(16.0, 0.25), alphas=(0.125, 0.5), gradients="quadratic"):
    """A case of the exact class: alpha 1/8 or 1/2, eps 1/4 or 1/2, mass 4^k, small integers; L as deep as bits allow.

    mass = 4 at alpha = 1/8 would give noise of scale 1, which cannot tell a standard deviation from a variance.
    """
    n, L = draw.integer(1, n), draw.integer(1, L)
    A = draw.array((n, n), -2, 2)
    case = Case(w=draw.array(n, -4, 4), z=draw.array((2 * L + 1, n), -2, 2), A=A + A.T, b=draw.array(n, -4, 4),
                eps=draw.choice(0.25, 0.5), L=L, alpha=draw.choice(*alphas), exact=True)
    if impl.accepts("mass"):
        case.mass = draw.choice(*masses)
    if gradients == "recorded":
        case.g = draw.array((L + 1, n), -4, 4)
    elif gradients == "any":
        case.kappa = draw.choice(0.0, 1.0, -2.0)
    return deepest(case, impl)


def deepest(case, impl):
    """The case with as many leapfrogs as its exact class has bits for."""
    for L in range(case.L, 0, -1):
        case = replace(case, L=L, z=case.z[: 2 * L + 1], g=None if case.g is None else distinct(case, L))
        if fits(case, BITS[impl.dtype]):
            return case
    raise ValueError(f"a case outside the exact class: {case}")


def wide(case):
    """The case with recorded gradients and numbers of more than 24 bits, still of the exact class."""
    case = replace(case, w=case.w + 2.0**-40, z=case.z + 2.0**-30, g=case.g + 2.0**-30)
    assert fits(case, 53)
    return case


def rounded_case(draw, impl, *, n=4, L=5, b_hat=False):
    """A case of the bound class, on grids that float32 holds too; alpha <= 1/2, B^ <= 3C/4."""
    n, L = draw.integer(1, n), draw.integer(1, L)
    case = Case(w=draw.array(n, -40, 40, 1 / 8), z=draw.array((2 * L + 1, n), -24, 24, 1 / 8),
                A=draw.array((n, n), -16, 16, 1 / 8), b=draw.array(n, -40, 40, 1 / 8), kappa=draw.choice(0.0, 0.75),
                eps=draw.integer(1, 32) / 64, L=L, alpha=draw.integer(0, 32) / 64)
    if impl.accepts("mass"):
        case.mass = draw.choice(*(k / 16 for k in (3, 7, 11, 21, 46, 163)))
    if b_hat:
        case.b_hat = draw.integer(1, 12) / 16 * case.alpha * case.mass / case.eps
    return case


def any_case(draw, impl):
    """Of either class, with a force that need not be linear."""
    return exact_case(draw, impl, gradients="any") if draw.integer(0, 1) else rounded_case(draw, impl)


def generic_case(impl=NUMPY, L=3):
    """The setting that hides nothing: L = 3, mass 2.89, alpha 0.13, eps 0.1, B^ = 0.05."""
    draw = Draw(7)
    n = 4
    case = Case(w=draw.nonzero(n, 9, 1 / 8), z=draw.nonzero((2 * L + 1, n), 9, 1 / 8), A=draw.nonzero((n, n), 9, 1 / 8),
                b=draw.nonzero(n, 9, 1 / 8), eps=0.1, L=L, alpha=0.13)
    return replace(case, A=(case.A + case.A.T) / 2, mass=2.89 if impl.accepts("mass") else 1.0,
                   b_hat=0.05 if impl.accepts("b_hat") else 0.0)


def still_case(draw, impl, L):
    """A case of the exact class in which nothing moves: W_t = 0, no draws, no gradients. A test then sets one thing;
    there are bits enough for |W_t| and gradients up to 4 and draws up to 2. (At alpha = 1/2, alpha is 1 - alpha.)"""
    case = exact_case(draw, impl, L=L, alphas=(0.125,), gradients="recorded")
    full = deepest(replace(case, w=0 * case.w + 4, z=0 * case.z + 2, g=0 * case.g + 4), impl)
    return replace(full, w=0 * full.w, z=0 * full.z, g=0 * full.g)


def frictionless_case(draw, impl):
    """Exact class with alpha = 0: plain leapfrog, no noise."""
    case = exact_case(draw, impl, L=4, n=2, masses=(16.0, 0.25, 0.25), alphas=(0.0,))
    case.z[1:] = 0
    return case
