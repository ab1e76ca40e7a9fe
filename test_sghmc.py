"""The oracle of the sampler (Algorithm 1): is an implementation right and, if not, which bug has it?

    pytest                                          the two built-in implementations
    SGHMC_IMPL="pkg.module /path/mine.py" pytest    any others, by module name or file; see README

A module defines any of `sghmc_step`, `energy`, `energy_grad` (signatures as in reference_numpy.py) and, if it computes
in single precision, `DTYPE = "float32"`. A test runs for the modules that have what it needs. SGHMC_RANDOM=1 draws
fresh inputs at each run (with `--hypothesis-seed=N`: those of seed N); otherwise the inputs are always the same.

No tolerance here is chosen. There are two classes of inputs, and for both the right answer is computed in fractions:

* the exact class: powers of two and small integers, such that every intermediate number is representable however the
  sum is ordered or fused (`fits`). Tolerance zero.
* the bound class: |got - want| <= gamma_k F, gamma_k = k u / (1 - k u), where u is the unit roundoff and F the
  recursion with every sign made positive. W_{t+1} is a sum of products of the inputs, F the sum of their absolute
  values, and an implementation computes each product with at most k rounding errors; per leapfrog: n + 1 in a gradient,
  4 in each half-kick, 3 in the drift, at most 3 of rounded coefficients (8 once, where B^ <= 3C/4 cancels in C - B^).
  k = L (2n + 18) + 4 leaves room for every rewriting. Higham, Accuracy and Stability, chapter 3.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from decimal import Decimal, localcontext
from fractions import Fraction
from math import isqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
import reference_numpy  # noqa: E402  (the line above makes it importable from any folder)

FOREIGN = os.environ.get("SGHMC_IMPL", "").split()
pytestmark = pytest.mark.filterwarnings("ignore" if FOREIGN else "default")  # warnings in foreign code are no failures
ours_only = pytest.mark.skipif(bool(FOREIGN), reason="about this repository, not about SGHMC_IMPL")
CAPABILITIES = ("sghmc_step", "energy", "energy_grad")
BITS = {"float64": 53, "float32": 24}


# --------------------------------------------------------------------------------------------- implementations

@dataclass(eq=False)
class Implementation:
    """A module under test; its functions are called through here and answer in float64 arrays."""

    name: str
    module: object
    dtype: str = "float64"
    ours: bool = False

    @property
    def u(self):
        """Unit roundoff."""
        return Fraction(1, 2 ** BITS[self.dtype])

    def has(self, capability):
        return callable(getattr(self.module, capability, None))

    def accepts(self, keyword):
        """Whether sghmc_step takes `mass` or `b_hat`; no test passes them otherwise."""
        try:
            parameters = inspect.signature(self.module.sghmc_step).parameters
        except (TypeError, ValueError):  # compiled code without a signature
            return True
        return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def step(self, w, z, grad, **settings):
        """W_{t+1} as a float64 array (n,)."""
        return numbers(self.module.sghmc_step(w, z, grad, **settings), np.shape(w), "sghmc_step returns")

    def energy(self, *batch, **similarity):
        return float(numbers(self.module.energy(*batch, **similarity), (), "energy returns"))

    def energy_grad(self, *batch_and_stop_grad, **similarity):
        """(g_p1, g_z1, g_p2, g_z2) as float64 arrays (B, d)."""
        gradients = self.module.energy_grad(*batch_and_stop_grad, **similarity)
        assert len(gradients) == 4, f"energy_grad returns 4 arrays, not {len(gradients)}"
        return [numbers(g, np.shape(batch_and_stop_grad[0]), "energy_grad returns") for g in gradients]


def numbers(x, shape, what):
    """A float64 copy of any array-like: NumPy, jax, torch, lists, Python floats."""
    x = x.detach() if hasattr(x, "detach") else x
    x = np.asarray(x, dtype=np.float64).copy()
    assert x.shape == shape, f"{what} shape {x.shape} instead of {shape}"
    return x


def load(place):
    """The module behind one entry of SGHMC_IMPL, a dotted name or a file."""
    def refuse(reason):
        raise pytest.Collector.CollectError(f"SGHMC_IMPL: {place}: {reason}")

    try:
        if place.endswith(".py") or os.sep in place:
            file = Path(place) if Path(place).exists() else ROOT / place
            if not file.is_file():
                refuse("no such file")
            sys.path.insert(0, str(file.resolve().parent))  # as `python file` would: it may import its neighbours
            spec = importlib.util.spec_from_file_location(f"sghmc_impl_{file.stem}", file)
            if spec is None:
                refuse("not a Python file")
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(place)
    except pytest.Collector.CollectError:
        raise
    except Exception as error:
        refuse(f"cannot be imported: {type(error).__name__}: {error}")
    if not any(callable(getattr(module, c, None)) for c in CAPABILITIES):
        refuse(f"defines none of {', '.join(CAPABILITIES)}")
    dtype = str(getattr(module, "DTYPE", "float64"))
    known = [name for name in BITS if name in dtype]
    if not known:
        refuse(f"DTYPE must be float64 or float32, not {dtype}")
    return Implementation(place, module, known[0])


def torch_adapter(dtype):
    """simsiam_sghmc.py behind the signatures of this oracle; in double precision on the caller's own memory."""
    import torch

    import simsiam_sghmc

    torch.set_num_threads(1)
    real = getattr(torch, dtype)

    def sghmc_step(w, z, grad, **settings):
        settings = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in settings.items()}
        return simsiam_sghmc.sghmc_step(torch.as_tensor(w, dtype=real), torch.as_tensor(z, dtype=real),
                                        lambda x: torch.tensor(grad(x.numpy()), dtype=real), **settings)

    def energy(p1, z1, p2, z2, similarity="abscos"):
        return simsiam_sghmc.energy(*(torch.as_tensor(x, dtype=real) for x in (p1, z1, p2, z2)), False, similarity)

    def energy_grad(p1, z1, p2, z2, stop_grad, similarity="abscos"):
        batch = [torch.as_tensor(x, dtype=real).requires_grad_() for x in (p1, z1, p2, z2)]
        value = simsiam_sghmc.energy(*batch, stop_grad, similarity)
        grads = torch.autograd.grad(value, batch, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, batch, strict=True)]

    module = SimpleNamespace(sghmc_step=sghmc_step, energy=energy, energy_grad=energy_grad)
    return Implementation(f"torch-{dtype}", module, dtype, ours=True)


NUMPY = Implementation("numpy", reference_numpy, ours=True)
SINGLE = Implementation("single precision", None, "float32")  # for its unit roundoff alone
OURS = [] if FOREIGN else [NUMPY, torch_adapter("float64"), torch_adapter("float32")]
IMPLEMENTATIONS = [load(place) for place in FOREIGN] or OURS


def candidates(capability, keyword=None):
    """pytest parameters: the implementations, those that lack the capability (or its keyword) marked as skipped."""
    parameters = []
    for impl in IMPLEMENTATIONS:
        lacks = not impl.has(capability) and f"{impl.name} defines no {capability}"
        lacks = lacks or (keyword and not impl.accepts(keyword) and f"{capability} of {impl.name} takes no {keyword}")
        marks = [pytest.mark.skip(reason=lacks)] if lacks else []
        parameters.append(pytest.param(impl, id=impl.name, marks=marks))
    return parameters


# ------------------------------------------------------------------------------------------ inputs and properties

class Draw:
    """Integers on a dyadic grid, from Hypothesis (which shrinks them to a unit probe) or from a fixed seed."""

    def __init__(self, source):
        self.data = None if isinstance(source, random.Random) else source
        self.random = source if self.data is None else None

    def integer(self, low, high):
        return int(self.array((), low, high))

    def array(self, shape, low, high, unit=1.0):
        """Array of integers in [low, high] times `unit`."""
        size = int(np.prod(shape))
        if self.random:
            values = [self.random.randint(low, high) for _ in range(size)]
        else:
            values = self.data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
        return np.reshape(np.array(values, dtype=np.float64) * unit, shape)

    def choice(self, *options):
        return options[self.integer(0, len(options) - 1)]

    def nonzero(self, shape, high, unit=1.0):
        """Array of odd numbers up to 2 high - 1 of both signs, times `unit`."""
        odd = 2 * self.array(shape, 0, high - 1) + 1
        return odd * (2 * self.array(shape, 0, 1) - 1) * unit


PROPERTIES = []  # (check, capability, keyword), run by pytest on the implementations, by the kill matrix on the mutants
SETTINGS = dict(derandomize=not os.environ.get("SGHMC_RANDOM"), database=None, deadline=None,
                phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False, print_blob=False, verbosity=Verbosity.quiet)  # our own message says it all


def holds_for(capability, keyword=None, examples=20):
    """Make a property `check(impl, draw)` a Hypothesis test of every implementation that has `capability`."""
    def register(check):
        PROPERTIES.append((check, capability, keyword))
        thorough = FOREIGN or os.environ.get("SGHMC_RANDOM")  # the built-ins pass at every run: a third will do

        @pytest.mark.parametrize("impl", candidates(capability, keyword))
        @settings(max_examples=examples if thorough else max(1, examples // 3), **SETTINGS)
        @given(data=st.data())
        def test(impl, data):
            with named_bug(impl, capability, check.__name__):
                check(impl, Draw(data))

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test
    return register


@contextlib.contextmanager
def named_bug(impl, capability, test):
    """Adds the diagnosis to a failed assertion: once in full, from then on where to find it."""
    try:
        yield
    except AssertionError as error:
        half = "sghmc_step" if capability == "sghmc_step" else "energy"
        if (impl.name, half) not in DIAGNOSED:
            DIAGNOSED[impl.name, half] = test, DIAGNOSES[half](impl)
        first, text = DIAGNOSED[impl.name, half]
        message = f"{impl.name}: {error}\n{text if test == first else f'Diagnosis: as in {first}'}"
        raise pytest.fail.Exception(message, pytrace=False) from None  # no traceback: the bug is not in here


DIAGNOSES = {}  # filled by the two test files: capability -> function(impl) -> text
DIAGNOSED = {}  # (name of an implementation, capability) -> the test that shows the diagnosis, and the diagnosis
RIGHT = "Diagnosis: the generic case comes out right. What is wrong is said above, and may need the input shown there."


class Diagnoses:
    """pytest plugin that says below all failures what was not tested, and repeats the diagnoses."""

    @staticmethod
    def pytest_terminal_summary(terminalreporter):
        lacks = [f"{impl.name} defines no {name}: skipped" for impl in IMPLEMENTATIONS for name in CAPABILITIES
                 if not impl.has(name)]
        found = [f"{name}, {half}: {text}" for (name, half), (_, text) in DIAGNOSED.items()]
        for line in lacks + found:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def diagnosis_at_the_end(pytestconfig):
    if not pytestconfig.pluginmanager.has_plugin("diagnoses"):
        pytestconfig.pluginmanager.register(Diagnoses, "diagnoses")


def on_one_line(self):
    """repr of a dataclass of arrays, without what has its default."""
    shown = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
    texts = [f"{name}={np.array(x).tolist()}" for name, x, default in shown if np.ndim(x) or x != default]
    return f"{type(self).__name__}({', '.join(texts)})"


# ------------------------------------------------------------------------------------------- rational arithmetic

rational = np.vectorize(Fraction, otypes=[object])  # an array of fractions, each exactly the given float


@functools.cache
def square_root(x):
    """Root of a fraction: exact where it is rational, otherwise to 60 digits."""
    p, q = isqrt(x.numerator), isqrt(x.denominator)
    if p * p == x.numerator and q * q == x.denominator:
        return Fraction(p, q)
    with localcontext() as context:
        context.prec = 60
        return Fraction((Decimal(x.numerator) / x.denominator).sqrt())


roots = np.vectorize(square_root, otypes=[object])


@dataclass(eq=False, repr=False)
class Case:
    """One call of the sampler; U = x'Ax/2 - b'x + kappa x'|x|/2, or gradients g[l] recorded for the positions X_l."""

    __repr__ = on_one_line

    w: np.ndarray
    z: np.ndarray
    A: np.ndarray
    b: np.ndarray
    eps: float
    L: int
    alpha: float
    mass: object = 1.0   # scalar or (n,)
    b_hat: object = 0.0
    kappa: float = 0.0
    g: np.ndarray = None
    exact: bool = False  # of the exact class

    @property
    def n(self):
        return len(self.w)

    def settings(self):
        """The keywords for sghmc_step; mass and b_hat only where a test varies them."""
        varied = {"mass": (self.mass, 1.0), "b_hat": (self.b_hat, 0.0)}
        varied = {name: x for name, (x, default) in varied.items() if np.any(np.not_equal(x, default))}
        return dict(eps=self.eps, L=self.L, alpha=self.alpha, **varied)

    def scales(self):
        """eps, c = 1 - alpha, M, and the standard deviation s of the noise, as fractions."""
        eps, alpha = Fraction(self.eps), Fraction(self.alpha)
        M, B = (rational(np.broadcast_to(x, self.n)) for x in (self.mass, self.b_hat))
        return eps, 1 - alpha, M, roots(2 * (alpha * M - B * eps))

    def force(self, X, l, positive=False):
        """Gradient of U at X = X_l in fractions; positive: a bound of its absolute value."""
        A, b, g = (x if x is None else rational(abs(x) if positive else x) for x in (self.A, self.b, self.g))
        if g is not None:
            return g[l]
        kappa = Fraction(abs(self.kappa) if positive else self.kappa)
        return A @ X + (b if positive else -b) + kappa * abs(X)


def positions(case, positive=False):
    """X_0 .. X_L of Algorithm 1 in fractions; positive: every sign made positive, the F of the rounding bound."""
    eps, c, M, s = case.scales()
    w, z = (rational(abs(x) if positive else x) for x in (case.w, case.z))
    kick = eps / 2 if positive else -eps / 2
    Phi = roots(M) * z[0]
    X = [w]
    for l in range(case.L):
        Phi = c * Phi + kick * case.force(X[l], l, positive) + s * z[2 * l + 1]
        X.append(X[l] + eps / M * Phi)
        Phi = c * Phi + kick * case.force(X[l + 1], l + 1, positive) + s * z[2 * l + 2]
    return X


def gamma(impl, case):
    """gamma_k = k u / (1 - k u), k = L (2n + 18) + 4."""
    k = case.L * (2 * case.n + 18) + 4
    return k * impl.u / (1 - k * impl.u)


def rounding_bound(impl, case):
    """gamma_k F for W_{t+1}."""
    return gamma(impl, case) * positions(case, positive=True)[-1]


def fits(case, bits):
    """Whether the case is of the exact class in arithmetic of so many bits.

    q is the grid that the terms of a sum lie on. X lies on the finest grid and holds the largest sum on it, so all
    intermediate numbers are representable in any order if F <= 2^bits q; two bits are left for fused coefficients.
    """
    def grid(*arrays):
        return min(Fraction(1, x.denominator) for a in arrays for x in np.ravel(np.array(a, dtype=object)))

    eps, c, M, s = case.scales()
    z = rational(case.z)
    q_Phi, q_X = grid(roots(M) * z[0]), grid(rational(case.w))
    for half_kick in range(2 * case.L):
        q_g = grid(rational(case.g)) if case.g is not None else min(
            grid(rational(case.A), Fraction(case.kappa)) * q_X, grid(rational(case.b)))
        q_Phi = min(grid(c) * q_Phi, eps / 2 * q_g, grid(s * z[1:]))
        if half_kick % 2 == 0:
            q_X = min(q_X, *(eps / M * q_Phi))
    return max(positions(case, positive=True)[-1]) <= 2 ** (bits - 2) * q_X


# ------------------------------------------------------------------------------------------- calling and judging

def gradient(case, asked=None):
    """The `grad` handed to an implementation. It answers for any array-like and records a copy of each question.

    Recorded gradients belong to positions, not to calls: whoever asks at X_l gets g[l], so that caching is legal.
    """
    places = None if case.g is None else np.array(positions(case), dtype=np.float64)

    def grad(x):
        x = numbers(x, case.w.shape, "grad is called with")
        if asked is not None:
            asked.append(x.copy())
        if case.g is not None:
            return case.g[abs(places - x).max(axis=1).argmin()].copy()
        return case.A @ x - case.b + case.kappa * abs(x)
    return grad


def run(impl, case, asked=None):
    """W_{t+1} of the implementation as fractions."""
    got = impl.step(case.w.copy(), case.z.copy(), gradient(case, asked), **case.settings())
    assert np.isfinite(got).all(), f"W_(t+1) is not finite: {got}\n{case}"
    return rational(got)


def unit_probes(case):
    """The same settings with one unit input at a time: row j of z, then the gradient at position l."""
    zero = replace(case, w=0 * case.w, z=0 * case.z, A=0 * case.A, b=0 * case.b, kappa=0.0, g=None)
    for j in range(2 * case.L + 1):
        probe = replace(zero, z=zero.z.copy())
        probe.z[j] = 1
        yield f"z[{j}]", probe
    for l in range(case.L):
        probe = replace(zero, g=np.zeros((case.L + 1, case.n)), z=zero.z.copy())
        probe.g[l] = probe.z[0] = 1  # moving, so that the positions differ
        probe.g = distinct(probe, case.L)
        yield f"the gradient at X_{l}", probe


PROBES = {}  # settings -> unit probes, their right answers and their F


def constants_are_exact(impl, case):
    """Whether the implementation's own coefficients come out exact, the premise of the exact class.

    sqrt(2) sqrt(alpha M) is as right as sqrt(2 alpha M) but not rational; such code is judged by the rounding bound.
    """
    known, key = impl.__dict__.setdefault("constants", {}), repr((case.n, case.settings()))
    if key not in PROBES:
        PROBES[key] = [(p, positions(p)[-1], positions(p, positive=True)[-1]) for _, p in unit_probes(case)]
    if key not in known:
        errors = [(abs(run(impl, p) - want), gamma(impl, p) * F) for p, want, F in PROBES[key]]
        inexact = any((error != 0).any() for error, _ in errors)
        known[key] = not (inexact and all((error <= bound).all() for error, bound in errors))
    return known[key]


def tolerance(impl, case):
    """0 in the exact class, gamma_k F otherwise."""
    if case.exact and constants_are_exact(impl, case):
        return rational(np.zeros(case.n))
    return rounding_bound(impl, case)


def assert_agree(got, want, bound, what, *cases):
    """|got - want| <= bound, in fractions."""
    if not (abs(got - want) <= bound).all():
        show = [np.array(x, dtype=np.float64).tolist() for x in (got, want, bound + 0 * want)]
        inputs = "\n".join(map(str, cases))
        raise AssertionError(f"{what}: got {show[0]}, right {show[1]}, allowed error {show[2]}\n{inputs}")


def assert_step(impl, case, want=None, what="W_(t+1)"):
    """The implementation's W_{t+1} is `want` (default: Algorithm 1 in fractions); returns it."""
    got = run(impl, case)
    assert_agree(got, positions(case)[-1] if want is None else want, tolerance(impl, case), what, case)
    return got


# --------------------------------------------------------------------------------------------------------- cases

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


def distinct(case, L):
    """Recorded gradients made a function of the position: one that is visited again, as far as single precision
    can tell, keeps its first gradient."""
    case = replace(case, L=L, z=case.z[: 2 * L + 1], g=case.g[: L + 1].copy())
    for l in range(1, L + 1):
        X, same = positions(case), 2 * rounding_bound(SINGLE, case)
        first = next(i for i in range(L + 1) if (abs(X[i] - X[l]) <= same).all())
        case.g[l] = case.g[first]
    return case.g


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


def generic_case(impl=NUMPY, L=3):
    """The setting that hides nothing: L = 3, mass 2.89, alpha 0.13, eps 0.1, B^ = 0.05."""
    draw = Draw(random.Random(7))
    n = 4
    case = Case(w=draw.nonzero(n, 9, 1 / 8), z=draw.nonzero((2 * L + 1, n), 9, 1 / 8), A=draw.nonzero((n, n), 9, 1 / 8),
                b=draw.nonzero(n, 9, 1 / 8), eps=0.1, L=L, alpha=0.13)
    return replace(case, A=(case.A + case.A.T) / 2, mass=2.89 if impl.accepts("mass") else 1.0,
                   b_hat=0.05 if impl.accepts("b_hat") else 0.0)


# -------------------------------------------------------------------- properties of one step: Algorithm 1, line by line

def still(draw, impl, L):
    """A case of the exact class in which nothing moves: W_t = 0, no draws, no gradients. A test then sets one thing;
    there are bits enough for |W_t| and gradients up to 4 and draws up to 2. (At alpha = 1/2, alpha is 1 - alpha.)"""
    case = exact_case(draw, impl, L=L, alphas=(0.125,), gradients="recorded")
    full = deepest(replace(case, w=0 * case.w + 4, z=0 * case.z + 2, g=0 * case.g + 4), impl)
    return replace(full, w=0 * full.w, z=0 * full.z, g=0 * full.g)


def travel(case, j):
    """By how much X_L moves for each unit of momentum that half-kick j adds (j = 0: line 1): eps M^-1 of what later
    half-kicks leave of it, in each drift from there on. A drift follows each odd half-kick."""
    eps, c, M, _ = case.scales()
    return eps / M * sum(c ** (J - j) for J in range(j | 1, 2 * case.L, 2))


@holds_for("sghmc_step")
def test_momentum_is_drawn_with_covariance_m(impl, draw):
    """Line 1: Phi = sqrt(M) z_0."""
    case = still(draw, impl, L=3)
    case.z[0] = draw.nonzero(case.n, 1)
    _, _, M, _ = case.scales()
    assert_step(impl, case, travel(case, 0) * roots(M) * rational(case.z[0]))


@holds_for("sghmc_step")
def test_free_particle_keeps_1_minus_alpha_of_its_momentum_in_each_half_kick(impl, draw):
    """Lines 3 and 5: the full alpha in each of the two (D2)."""
    case = still(draw, impl, L=4)
    case.z[0] = draw.nonzero(case.n, 1)
    eps, c, M, _ = case.scales()
    drifts = c * (1 - c ** (2 * case.L)) / (1 - c**2)  # c + c^3 + ... + c^(2L-1)
    assert_step(impl, case, eps / M * roots(M) * rational(case.z[0]) * drifts)


@holds_for("sghmc_step")
def test_gradient_moves_one_leapfrog_by_eps_squared_over_2m(impl, draw):
    """Line 3, then line 4: a gradient already moves W at L = 1."""
    case = still(draw, impl, L=1)
    case.g[0] = draw.nonzero(case.n, 2)
    eps, _, M, _ = case.scales()
    assert_step(impl, case, -(eps**2) / (2 * M) * rational(case.g[0]))


@holds_for("sghmc_step")
def test_each_half_kick_takes_off_eps_over_2_times_the_gradient_at_its_position(impl, draw):
    """Line 3 of leapfrog l stands at X_l, line 5 at X_(l+1), so half-kick j at X_(j // 2)."""
    case = still(draw, impl, L=3)
    case.z[0], case.g = 1, draw.array(case.g.shape, -4, 4)  # moving, so that the positions differ
    case.g = distinct(case, case.L)
    eps, _, M, _ = case.scales()
    pushes = sum(-eps / 2 * rational(case.g[j // 2]) * travel(case, j) for j in range(1, 2 * case.L))
    assert_step(impl, case, travel(case, 0) * roots(M) + pushes)


@holds_for("sghmc_step")
def test_each_half_kick_adds_noise_of_covariance_2_c_eps(impl, draw):
    """Lines 3 and 5: the full N(0, 2 C eps) in each of the two (D2), C = alpha M / eps."""
    case = still(draw, impl, L=3)
    eps, _, M, _ = case.scales()
    C = Fraction(case.alpha) * M / eps
    for j in range(1, 2 * case.L):
        kick = replace(case, z=0 * case.z)
        kick.z[j] = draw.nonzero(case.n, 1)
        assert_step(impl, kick, travel(case, j) * roots(2 * C * eps) * rational(kick.z[j]), f"half-kick {j} alone")


@holds_for("sghmc_step")
def test_sample_is_the_last_position_and_not_w_t_as_printed(impl, draw):
    """Line 6 (D1): what moves is seen to move, from where it was."""
    case = still(draw, impl, L=3)
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
    assert_agree(run(impl, other), run(impl, case), 0, "changing z[2L] and the gradient at X_L", case)


# ------------------------------------------------------------------------------------------------------- the whole step

@holds_for("sghmc_step", examples=40)
def test_sample_has_the_bits_of_rational_arithmetic(impl, draw):
    assert_step(impl, exact_case(draw, impl, gradients="any"))


@holds_for("sghmc_step", examples=40)
def test_sample_lies_within_the_rounding_bound_of_rational_arithmetic(impl, draw):
    assert_step(impl, rounded_case(draw, impl))


@holds_for("sghmc_step", examples=1)
def test_sample_is_right_at_a_setting_that_hides_no_bug(impl, draw):
    for L in (1, 2, 3, 5):
        assert_step(impl, generic_case(impl, L))


@holds_for("sghmc_step")
def test_no_single_precision_hides_inside_double_precision(impl, draw):
    case = exact_case(draw, impl, L=1, gradients="recorded")
    if impl.dtype == "float64":  # numbers of more than 24 bits
        case = replace(case, w=case.w + 2.0**-40, z=case.z + 2.0**-30, g=case.g + 2.0**-30)
        assert fits(case, 53)
    assert_step(impl, case)


def explicit_sum(case):
    """W_{t+1} without the recursion: X_k = W + eps/M sum_{i<k} [ c^(2i+1) Phi_0
    + sum_{j=1}^{2i+1} c^(2i+1-j) (s z_j - eps/2 g_j) ], g_j the gradient used in half-kick j."""
    eps, c, M, s = case.scales()
    w, z = rational(case.w), rational(case.z)
    Phi0 = roots(M) * z[0]
    X, g = [w], [None]
    for k in range(1, case.L + 1):
        g += [case.force(X[-1], k - 1)] * (1 if k == 1 else 2)  # half-kicks 2k-2 and 2k-1 meet at X_{k-1}
        momenta = [c**J * Phi0 + sum(c ** (J - j) * (s * z[j] - eps / 2 * g[j]) for j in range(1, J + 1))
                   for J in range(1, 2 * k, 2)]
        X.append(w + eps / M * sum(momenta))
    return X[-1]


@holds_for("sghmc_step")
def test_sample_is_the_explicit_sum_over_draws_and_gradients(impl, draw):
    case = exact_case(draw, impl, gradients="recorded")
    assert_step(impl, case, explicit_sum(case))


@holds_for("sghmc_step", examples=10)
def test_every_coefficient_of_the_affine_map_is_right(impl, draw):
    case = rounded_case(draw, impl, n=1, L=3)
    if draw.integer(0, 1):
        case = exact_case(draw, impl, n=1, L=3)
    for what, probe in unit_probes(case):
        assert_step(impl, probe, what=f"coefficient of {what}")


def prefixes(impl, case):
    """X_0 .. X_L from the implementation, and their error bounds: X_l is the sample of l leapfrogs."""
    cases = [replace(case, L=l, z=case.z[: 2 * l + 1]) for l in range(1, case.L + 1)]
    zero = rational(np.zeros(case.n))
    return [rational(case.w)] + [run(impl, x) for x in cases], [zero] + [tolerance(impl, x) for x in cases]


@holds_for("sghmc_step")
def test_three_successive_positions_obey_the_recurrence_without_momentum(impl, draw):
    case = exact_case(draw, impl, gradients="any") if draw.integer(0, 1) else rounded_case(draw, impl)
    eps, c, M, s = case.scales()
    z, (X, e) = rational(case.z), prefixes(impl, case)
    assert_agree(X[1] - X[0], eps / M * (c * roots(M) * z[0] - eps / 2 * case.force(X[0], 0) + s * z[1]), e[1],
                 "X_1 - X_0", case)
    slope = rational(abs(case.A)) + rational(np.eye(case.n) * abs(case.kappa))  # how far e moves the gradient
    for l in range(case.L - 1):
        kick = eps**2 / (2 * M) * (1 + c)
        want = (c**2 * (X[l + 1] - X[l]) - kick * case.force(X[l + 1], l + 1)
                + eps / M * s * (c * z[2 * l + 2] + z[2 * l + 3]))
        bound = e[l + 2] + (1 + c**2) * e[l + 1] + c**2 * e[l] + kick * (slope @ e[l + 1])
        assert_agree(X[l + 2] - X[l + 1], want, bound, f"X_{l + 2} - X_{l + 1}", case)


# ---------------------------------------------------------------------------------------------- the law of one leapfrog

@holds_for("sghmc_step")
def test_one_leapfrog_has_the_right_mean_and_variance(impl, draw):
    case = exact_case(draw, impl, L=1, n=1, gradients="any")
    eps, c, M, _ = case.scales()
    still = replace(case, z=0 * case.z)
    mean = assert_step(impl, still, rational(case.w) - eps**2 / (2 * M) * case.force(rational(case.w), 0), "mean")
    variance, error = 0, 0
    for j in (0, 1):
        unit = replace(still, z=still.z.copy())
        unit.z[j] = 1
        R, e = run(impl, unit) - mean, tolerance(impl, unit) + tolerance(impl, still)
        variance, error = variance + R * R, error + (2 * abs(R) + e) * e
    assert_agree(variance, eps**2 / M * (1 + (1 - c) ** 2), error, "variance of W_(t+1) given W_t", case)


@holds_for("sghmc_step")
def test_one_leapfrog_chain_on_a_quadratic_has_the_right_stationary_variance_and_lag_one_correlation(impl, draw):
    case = exact_case(draw, impl, L=1, n=1)
    case = replace(case, w=0 * case.w, z=0 * case.z, b=0 * case.b, A=np.full((1, 1), 2.0))
    eps, c, M, _ = case.scales()
    k = Fraction(2)

    def response(**unit):
        probe = replace(case, **unit)
        return run(impl, probe)[0], tolerance(impl, probe)[0]

    (G, e), (R0, e0), (R1, e1) = response(w=np.ones(1)), response(z=np.eye(3)[:, :1]), response(z=np.eye(3)[:, 1:2])
    assert_agree(np.array([G]), 1 - eps**2 * k / (2 * M), e, "lag-1 correlation", case)
    S = (1 + (1 - c) ** 2) / (k * (1 - eps**2 * k / (4 * M)))  # solves S = G S G + Q
    error = S * (2 * abs(G) + e) * e + (2 * abs(R0) + e0) * e0 + (2 * abs(R1) + e1) * e1
    assert_agree(G * S * G + R0**2 + R1**2, S, error, "variance of W_(t+1) when W_t has the stationary variance", case)


# ----------------------------------------------------------------------------------------- the estimate B^ (Equation 1)

@holds_for("sghmc_step", "b_hat")
def test_b_hat_lowers_the_noise_variance_and_nothing_else(impl, draw):
    case = exact_case(draw, impl, gradients="any", L=3)
    C = case.alpha * case.mass / case.eps
    case = deepest(replace(case, b_hat=C * draw.choice(0.75, 1.0)), impl)  # a quarter of the variance; no noise
    assert_step(impl, case)
    assert_step(impl, rounded_case(draw, impl, b_hat=True))


@holds_for("sghmc_step", "b_hat")
def test_b_hat_may_differ_between_coordinates(impl, draw):
    case = rounded_case(draw, impl)
    C = case.alpha * case.mass / case.eps
    assert_step(impl, replace(case, b_hat=C * draw.array(case.n, 0, 12, 1 / 16)))


@holds_for("sghmc_step", "b_hat", examples=5)
def test_b_hat_larger_than_the_friction_is_refused(impl, draw):
    case = rounded_case(draw, impl)
    case = replace(case, alpha=max(case.alpha, 1 / 64))
    case.b_hat = 2 * case.alpha * case.mass / case.eps
    try:
        got = impl.step(case.w, case.z, gradient(case), **case.settings())
    except ValueError:
        return
    raise AssertionError(f"B^ = 2C gives {got} instead of a ValueError. There the noise variance 2 (C - B^) eps is "
                         f"negative; it must neither be clamped in silence nor become a NaN.\n{case}")


# ------------------------------------------------------------------------------------------------------------ mechanics

@holds_for("sghmc_step")
def test_without_draws_and_gradient_nothing_moves(impl, draw):
    case = rounded_case(draw, impl)
    case = replace(case, z=0 * case.z, A=0 * case.A, b=0 * case.b, kappa=0.0)
    assert_agree(run(impl, case), rational(case.w), 0, "fixed point", case)


def phase_map(impl, A, draw, mass):
    """Matrix of (W, Phi_0) -> (X_L, Phi_{L+1/2} = M (X_{L+1} - X_L) / eps) without noise, U = x'Ax/2; c; L.

    The momentum is not returned by a step, but two runs on the same draws show it. None: coefficients not exact.
    """
    n, mass = len(A), mass if impl.accepts("mass") else 1.0
    case = Case(w=np.ones(n), z=np.zeros((7, n)), A=A, b=np.zeros(n), eps=0.25, L=3, alpha=0.125, mass=mass, exact=True)
    case.z[0] = mass**-0.5  # Phi_0 = 1
    case = deepest(case, impl)
    L = draw.integer(0, case.L - 1)
    if not constants_are_exact(impl, case):
        return None, None, None
    columns = []
    for unit in np.eye(2 * n):
        long = replace(case, L=L + 1, w=unit[:n], z=np.zeros((2 * L + 3, n)))
        long.z[0] = unit[n:] * mass**-0.5
        short = replace(long, L=L, z=long.z[:-2])
        X = run(impl, short) if L else rational(short.w)
        columns.append(np.concatenate([X, (run(impl, long) - X) * Fraction(mass) / Fraction(case.eps)]))
    return np.array(columns).T, 1 - Fraction(case.alpha), L


def determinant(T):
    """By elimination, in fractions."""
    T, value = T.copy(), Fraction(1)
    for i in range(len(T)):
        pivot = next((r for r in range(i, len(T)) if T[r, i]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != i:
            T[[i, pivot]], value = T[[pivot, i]], -value
        value *= T[i, i]
        for r in range(i + 1, len(T)):
            T[r] = T[r] - T[r, i] / T[i, i] * T[i]
    return value


@holds_for("sghmc_step", examples=10)
def test_phase_space_volume_shrinks_by_c_per_half_kick_and_coordinate_for_any_linear_force(impl, draw):
    A = draw.array((2, 2), -2, 2)  # need not be symmetric
    T, c, L = phase_map(impl, A, draw, draw.choice(16.0, 0.25))
    assert T is None or determinant(T) == c ** (2 * (2 * L + 1))


@holds_for("sghmc_step", examples=10)
def test_map_is_conformally_symplectic_exactly_if_the_force_is_a_gradient(impl, draw):
    a, b, d = draw.array(3, -2, 2)
    curl = draw.choice(0.0, 1.0)
    T, c, L = phase_map(impl, np.array([[a, b + curl], [b - curl, d]]), draw, 16.0)
    if T is not None:
        J = rational(np.kron([[0, 1], [-1, 0]], np.eye(2)))
        assert ((T.T @ J @ T == c ** (2 * L + 1) * J).all()) == (curl == 0), f"curl {curl}, L {L}, T {T}"


def leapfrog_case(draw, impl):
    """Exact class with alpha = 0, no noise; the map without friction."""
    case = exact_case(draw, impl, L=4, n=2, masses=(16.0, 0.25, 0.25), alphas=(0.0,))
    case.z[1:] = 0
    return case


@holds_for("sghmc_step")
def test_leapfrog_runs_backwards_to_where_it_came_from(impl, draw):
    case = leapfrog_case(draw, impl)
    eps, _, M, _ = case.scales()
    if case.L < 2 or not constants_are_exact(impl, case):
        return
    there = replace(case, L=case.L - 1, z=case.z[:-2])
    X, _ = prefixes(impl, there)
    reversed_Phi = M * (X[-2] - X[-1]) / eps + eps / 2 * case.force(X[-1], there.L)  # -Phi_L
    back = replace(there, w=X[-1].astype(float), z=there.z.copy())
    back.z[0] = (reversed_Phi / roots(M)).astype(float)
    assert_agree(run(impl, back), rational(case.w), 0, "there and back", there, back)


@holds_for("sghmc_step")
def test_leapfrog_conserves_the_modified_energy_of_a_quadratic(impl, draw):
    case = leapfrog_case(draw, impl)
    eps, _, M, _ = case.scales()
    if not constants_are_exact(impl, case):
        return
    X, _ = prefixes(impl, case)
    A, b = rational(case.A), rational(case.b)
    first = None
    for l in range(case.L):
        g = A @ X[l] - b
        Phi = M * (X[l + 1] - X[l]) / eps + eps / 2 * g
        H = sum(Phi * Phi / M) / 2 + X[l] @ A @ X[l] / 2 - b @ X[l] - eps**2 / 8 * sum(g * g / M)
        first = H if l == 0 else first
        assert H == first, f"modified energy {float(H)} at X_{l}, {float(first)} at the start: {case}"


@holds_for("sghmc_step")
def test_free_fall_is_a_parabola(impl, draw):
    case = leapfrog_case(draw, impl)
    case = replace(case, A=0 * case.A)
    eps, _, M, _ = case.scales()
    T = eps * case.L
    fall = T * rational(case.z)[0] / roots(M) + T**2 / 2 * rational(case.b) / M
    assert_step(impl, case, rational(case.w) + fall)


# -------------------------------------------------------------------------------------------- rescalings and symmetries

def assert_same(impl, case, other, transform=lambda x: x, what="the two runs"):
    """transform(sample of `case`) = sample of `other`; `transform` is linear with |entries| summing to at most 2."""
    bound = tolerance(impl, other) + 2 * max(tolerance(impl, case))
    assert_agree(run(impl, other), transform(run(impl, case)), bound, what, case, other)


@holds_for("sghmc_step", "mass")
def test_mass_is_a_rescaled_step_size(impl, draw):
    case = exact_case(draw, impl, gradients="any")
    s = float(square_root(Fraction(case.mass)))
    assert_same(impl, case, replace(case, mass=1.0, eps=case.eps / s), what="M = s^2 and M = 1 at eps/s")


@holds_for("sghmc_step", "mass")
def test_one_mass_per_coordinate_is_one_run_per_coordinate(impl, draw):
    case = exact_case(draw, impl, L=2)
    A = np.diag(np.diag(case.A))
    mass = np.array([draw.choice(16.0, 0.25, 1.0) for _ in range(case.n)])
    case = deepest(replace(case, A=A, mass=mass), impl)
    one = [replace(case, w=case.w[[i]], z=case.z[:, [i]], A=A[[i]][:, [i]], b=case.b[[i]], mass=float(mass[i]))
           for i in range(case.n)]
    want = np.concatenate([run(impl, x) for x in one])
    bound = tolerance(impl, case) + np.concatenate([tolerance(impl, x) for x in one])
    assert_agree(run(impl, case), want, bound, "diagonal mass", case)
    assert_step(impl, case)


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
    assert_agree(run(impl, moved), run(impl, case) + rational(shift), bound, "translation", case, moved)


@holds_for("sghmc_step")
def test_permuting_and_reflecting_coordinates_commutes_with_the_step(impl, draw):
    case = exact_case(draw, impl, gradients="any")
    order = np.argsort(draw.array(case.n, 0, 9), kind="stable")
    sign = 2 * draw.array(case.n, 0, 1) - 1
    if case.kappa:
        sign = np.ones(case.n)  # |x| is not symmetric under reflection
    P = np.eye(case.n)[order] * sign[:, None]
    other = replace(case, w=P @ case.w, z=case.z @ P.T, A=P @ case.A @ P.T, b=P @ case.b)
    assert_same(impl, case, other, lambda x: rational(P) @ x, "signed permutation")


@holds_for("sghmc_step")
def test_rotating_the_problem_rotates_the_sample(impl, draw):
    H = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2  # orthogonal and dyadic
    A = draw.array((4, 4), -1, 1)
    case = Case(w=draw.array(4, -2, 2), z=draw.array((3, 4), -2, 2), A=A + A.T, b=draw.array(4, -2, 2), eps=0.25, L=1,
                alpha=0.125, mass=0.25 if impl.accepts("mass") else 1.0, exact=True)
    other = replace(case, w=H @ case.w, z=case.z @ H.T, A=H @ case.A @ H.T, b=H @ case.b)
    assert_same(impl, deepest(case, impl), deepest(other, impl), lambda x: rational(H) @ x, "rotation")


@holds_for("sghmc_step")
def test_independent_blocks_of_coordinates_do_not_mix(impl, draw):
    case = exact_case(draw, impl, n=2)
    other = replace(case, w=case.w[::-1] + 1, z=1 - case.z, b=-case.b)
    zero = np.zeros((case.n, case.n))
    both = replace(case, w=np.concatenate([case.w, other.w]), z=np.hstack([case.z, other.z]),
                   A=np.block([[case.A, zero], [zero, case.A]]), b=np.concatenate([case.b, other.b]))
    both = deepest(both, impl)
    parts = [replace(x, L=both.L, z=x.z[: 2 * both.L + 1]) for x in (case, other)]
    bound = tolerance(impl, both) + np.concatenate([tolerance(impl, x) for x in parts])
    want = np.concatenate([run(impl, x) for x in parts])
    assert_agree(run(impl, both), want, bound, "two blocks in one vector", case)


# --------------------------------------------------------------------------------------------------- what a call may do

@holds_for("sghmc_step")
def test_gradients_are_asked_at_the_positions_in_order(impl, draw):
    case = exact_case(draw, impl, gradients="any") if draw.integer(0, 1) else rounded_case(draw, impl)
    asked = []
    run(impl, case, asked)
    L = case.L
    literal = [(j + 1) // 2 for j in range(2 * L)]  # X_0, X_1, X_1, X_2, X_2, ..., X_L
    legal = {"literal": literal, "last kick dropped": literal[:-1], "cached": range(L + 1), "both": range(L)}
    X = positions(case)
    e = [tolerance(impl, replace(case, L=max(l, 1), z=case.z[: 2 * max(l, 1) + 1])) for l in range(L + 1)]
    kinds = [kind for kind, order in legal.items() if len(order) == len(asked)
             and all((abs(rational(x) - X[l]) <= e[l]).all() for x, l in zip(asked, order, strict=True))]
    assert kinds, f"gradients asked at {np.array(asked).tolist()}, positions {np.array(X, float).tolist()}: {case}"
    said, text = impl.__dict__.setdefault("said", set()), f"{impl.name}: {len(asked)} gradient calls at L = {L}"
    if text not in said:
        print(f"{text} ({' or '.join(kinds)})")
        said.add(text)


@holds_for("sghmc_step")
def test_a_step_writes_no_argument_shares_no_memory_and_keeps_no_state(impl, draw):
    case = rounded_case(draw, impl)
    w, z, grad, settings = case.w.copy(), case.z.copy(), gradient(case), case.settings()
    raw = impl.module.sghmc_step(w, z, grad, **settings)
    first = numbers(raw, w.shape, "sghmc_step returns")
    assert (w == case.w).all(), "the caller's w was written"
    assert (z == case.z).all(), "the caller's z was written"
    other = replace(case, w=case.w + 1, z=case.z[::-1] - 1)
    impl.step(other.w, other.z, gradient(other), **settings)
    w += 1
    z += 1
    assert (numbers(raw, w.shape, "sghmc_step returns") == first).all(), "the result shares memory with an argument"
    again = impl.step(case.w.copy(), case.z.copy(), grad, **settings)
    assert (again == first).all(), "the same inputs gave other bits: something is kept between calls"


# ------------------------------------------------------------------------------------------ diagnosis, kill matrix

@functools.cache
def table(target):
    """(row of vectors/mutants.json, the implementation it makes of the reference) for one target."""
    rows = [row for row in reference_numpy.mutants() if row["target"] == target]
    return [(row, Implementation(row["name"], SimpleNamespace(**reference_numpy.variant((row["old"], row["new"]))),
                                 row.get("dtype", "float64"))) for row in rows]


def name_of(row):
    seen = f" Seen in {', '.join(row['seen_in'])}." if row["seen_in"] else ""
    return f"{row['name']} ({row['because']}).{seen}"


def changes_value(row):
    """False for the equivalents and for the bugs that leave W_{t+1} right: an argument written, an error missing."""
    return row["kind"] == "mutant" and not (row.get("writes_caller") or row.get("refuses"))


@functools.cache
def wrong_samples(mass, b_hat):
    """The outputs of all value-changing mutants on the generic case."""
    case = replace(generic_case(), mass=mass, b_hat=b_hat)
    with np.errstate(all="ignore"):
        return [(row, run(impl, case)) for row, impl in table("step") if changes_value(row)]


def generic_cases(impl):
    """The generic case, then simpler ones; where that is, and what has to be wrong as well if they alone are named."""
    case = generic_case(impl)
    yield case, "", ""
    if case.b_hat:
        yield replace(case, b_hat=0.0), "at b_hat = 0 ", "b_hat"
    if case.mass != 1:
        both = "b_hat = 0 and mass = 1" if case.b_hat else "mass = 1"
        yield replace(case, b_hat=0.0, mass=1.0), f"at {both} ", "mass (and perhaps b_hat)" if case.b_hat else "mass"


def diagnose_step(impl):
    """Names the known bug whose output on the generic case, or else on a simpler one, is the implementation's."""
    raised = None
    for case, where, other in generic_cases(impl):
        try:
            got = run(impl, case)
        except Exception as error:
            raised = raised or f"Diagnosis: the generic case raises {type(error).__name__}: {error}"
            continue
        right, bound = positions(case)[-1], rounding_bound(impl, case)
        if (abs(got - right) <= bound).all():
            return f"Diagnosis: {where}your output is right; look at {other}." if where else RIGHT
        answers = wrong_samples(case.mass, case.b_hat)
        names = [name_of(row) for row, wrong in answers if (abs(got - wrong) <= bound).all()]
        if names:
            also = f" {other} is wrong as well." if where else ""
            return f"Diagnosis: {where}your output equals that of a known bug: {some(names, ' Or: ')}{also}"
        if not where and (abs(got - right) <= rounding_bound(SINGLE, case)).all():
            return "Diagnosis: right to single precision; set DTYPE = 'float32', or look for a hidden float32."
    return raised or "Diagnosis: no known bug. One unit input at a time: " + wrong_coefficients(impl)


def some(texts, between):
    """The first four of the texts, and how many more there are."""
    return between.join(texts[:4]) + (f"; and {len(texts) - 4} more" if len(texts) > 4 else "")


def wrong_coefficients(impl):
    """What unit inputs contribute to the sample where that is wrong: by a common factor, exchanged, or anyhow."""
    case = generic_case(impl)
    probes = [SimpleNamespace(what=what, got=run(impl, p), right=positions(p)[-1], e=rounding_bound(impl, p))
              for what, p in unit_probes(case)]
    wrong = [p for p in probes if (abs(p.got - p.right) > p.e).any()]
    z = probes[: 2 * case.L + 1]
    noise, found = z[1:-1], []  # the last row has no effect
    factor, e = noise[0].got[0] / noise[0].right[0], noise[0].e[0] / noise[0].right[0]
    if all((abs(p.got - factor * p.right) <= p.e + e * p.right).all() for p in noise) and noise[0] in wrong:
        found.append(f"all z[1..] are {float(factor):.4g} times what they should be")
        wrong = [p for p in wrong if p not in noise]
    for p in wrong:
        same = [q.what for q in z if p in z and q is not p and (abs(p.got - q.right) <= p.e + q.e).all()]
        i = int((abs(p.got - p.right) > p.e).argmax())
        contributes = f"contributes {float(p.got[i]):.9g} to W_(t+1)[{i}], right is {float(p.right[i]):.9g}"
        found.append(f"{p.what} " + (f"has the coefficient of {same[0]}" if same else contributes))
    return some(found, "; ") or "all right"


DIAGNOSES["sghmc_step"] = diagnose_step


def first_failure(impl, seeds=2):
    """Name of the first property that the implementation fails on fixed inputs, or None."""
    for seed in range(seeds):
        for check, capability, _ in PROPERTIES:
            if impl.has(capability):
                try:
                    with np.errstate(all="ignore"):
                        check(impl, Draw(random.Random(seed)))
                except Exception:
                    return check.__name__
    return None


def kill_matrix(target, capability, capsys):
    """Every mutant of the table fails a property of `capability`, every equivalent passes all properties of all
    capabilities; prints the table and, past pytest's capture, the counts."""
    lines, wrong, counts = [], [], {"mutant": [0, 0], "equivalent": [0, 0]}
    for row, impl in table(target):
        if row["kind"] == "mutant":
            impl = replace(impl, module=SimpleNamespace(**{capability: getattr(impl.module, capability)}))
        failed = first_failure(impl)
        right = (row["kind"] == "mutant") == (failed is not None)
        counts[row["kind"]][0] += right
        counts[row["kind"]][1] += 1
        lines.append(f"{row['kind']:10}  {row['name']:58}  {failed or 'passes'}")
        wrong += [] if right else lines[-1:]
    print("\n".join(lines))
    with capsys.disabled():
        print("\n{}: {} of {} known bugs killed, {} of {} correct rewritings accepted".format(
            target, *counts["mutant"], *counts["equivalent"]))
    assert not wrong, "\n".join(wrong)


@ours_only
def test_every_known_bug_of_the_sampler_is_killed_and_every_rewriting_accepted(capsys):
    kill_matrix("step", "sghmc_step", capsys)


@ours_only
def test_known_bugs_of_the_sampler_give_different_outputs_and_are_named():
    case = generic_case()
    outputs = [*wrong_samples(case.mass, case.b_hat), ({"name": "none"}, positions(case)[-1])]
    bound = rounding_bound(SINGLE, case)  # apart even in single precision
    for i, (row, x) in enumerate(outputs):
        same = [other["name"] for other, y in outputs[:i] if (abs(x - y) <= 2 * bound).all()]
        assert not same, f"{row['name']} gives the output of {same}"
    for row, impl in table("step"):
        if changes_value(row):
            text = diagnose_step(impl)
            assert f"known bug: {row['name']} (" in text and all(place in text for place in row["seen_in"])


def step_of(*replacements):
    """The reference's step with a few replacements, and nothing else."""
    return Implementation("wrong", SimpleNamespace(sghmc_step=reference_numpy.variant(*replacements)["sghmc_step"]))


@ours_only
def test_known_bugs_of_the_sampler_are_named_beside_a_wrong_b_hat_or_mass():
    ignored = "_checked(w, z, eps, L, alpha, mass, b_hat)\n    C", "_checked(w, z, eps, L, alpha, mass, 0)\n    C"
    texts = {row["name"]: diagnose_step(step_of((row["old"], row["new"]), ignored)) for row, _ in table("step")
             if changes_value(row) and not row["name"].startswith("B^")}
    for name, text in texts.items():
        assert "your output equals that of a known bug: " in text and f"{name} (" in text, text
        assert text.startswith("Diagnosis: at b_hat = 0 ") == text.endswith("b_hat is wrong as well."), text
    assert sum("at b_hat = 0 " in text for text in texts.values()) == len(texts) - 4  # those four have no b_hat in them
    halved = "    for l in range(L): ", "    alpha = alpha / 2\n    for l in range(L): "
    text = diagnose_step(step_of(halved, ("np.sqrt(M) * normal(0) ", "np.sqrt(M * M * M) * normal(0) ")))
    assert "at b_hat = 0 and mass = 1 your output equals that of a known bug: friction: alpha / 2" in text


@ours_only
def test_unknown_bugs_of_the_sampler_are_described_by_their_coefficients():
    def described(*replacements):
        return diagnose_step(step_of(*replacements)).partition("no known bug. One unit input at a time: ")[2]

    assert described(("noise_variance = 2 ", "noise_variance = 0.5**3 ")).startswith("all z[1..] are 0.25 times what")
    other_order = ("normal(2 * l + 1)", "normal(1 + l)"), ("normal(2 * l + 2)", "normal(1 + L + l)")
    assert described(*other_order).startswith("z[2] has the coefficient of z[3]; z[3] has the coefficient of z[5]; ")
    assert described(("line 2\n", "line 2\n        alpha = alpha * 0.9\n")).endswith("; and 4 more")


@ours_only
def test_a_missing_value_error_is_said_to_be_that_and_not_a_bug_of_other_settings():
    clamped = next(impl for row, impl in table("step") if row.get("refuses"))
    check = {check.__name__: check for check, _, _ in PROPERTIES}["test_b_hat_larger_than_the_friction_is_refused"]
    with pytest.raises(AssertionError, match="instead of a ValueError. There the noise variance .* is negative"):
        check(clamped, Draw(random.Random(0)))
    assert diagnose_step(clamped) == RIGHT and "said above" in RIGHT


@ours_only
def test_a_failure_shows_the_diagnosis_once_without_tracebacks_from_any_folder_and_again_at_the_end(tmp_path):
    bug = "(np.abs(s12) + np.abs(s21)) / 2)  ", "np.abs(s12) + np.abs(s21))  "
    (tmp_path / "mine.py").write_text(f"import reference_numpy\nenergy = reference_numpy.variant({bug})['energy']\n")
    here = {k: v for k, v in os.environ.items() if k not in ("CI", "BUILD_NUMBER")}  # else pytest repeats all texts
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", ROOT / "test_energy.py", "-k",
                           "a_batch_that_hides_no_bug or worked_example"], cwd=tmp_path,
                          env={**here, "SGHMC_IMPL": "mine.py"}, capture_output=True, text=True)
    lines, diagnosis = done.stdout.splitlines(), "Diagnosis: your output equals that of a known bug: energy: half lost"
    assert done.returncode == 1 and len(lines) < 35, done.stdout
    assert [line for line in lines if line.startswith("Diagnosis: ")][1:] == [
        "Diagnosis: as in test_energy_is_right_on_a_batch_that_hides_no_bug"], done.stdout
    assert [diagnosis in line for line in lines].count(True) == 2 and "mine.py defines no sghmc_step: skipped" in lines
    assert not any(word in done.stdout for word in ("reference_numpy.py", "During handling", "Falsifying", "Draw 1"))


@ours_only
def test_each_single_setting_is_blind_to_some_bug_and_the_generic_setting_to_none():
    def hidden(**setting):
        case = replace(generic_case(L=setting.get("L", 3)), **setting)
        with np.errstate(all="ignore"):
            right = run(NUMPY, case)
            bound = rounding_bound(NUMPY, case)
            return {row["name"] for row, impl in table("step")
                    if changes_value(row) and (abs(run(impl, case) - right) <= bound).all()}

    assert hidden() == set()
    assert {"drift: no M^-1", "momentum: mass ignored", "noise: mass ignored"} <= hidden(mass=1.0)
    assert {"gradient: stale in the second kick", "noise: one draw for both kicks"} <= hidden(L=1)
    assert {"noise: variance used as standard deviation"} <= hidden(alpha=0.5, mass=1.0, b_hat=0.0)
    assert {"noise: none", "friction: wrong sign", "friction: exp(-alpha)"} <= hidden(alpha=0.0, b_hat=0.0)


# ------------------------------------------------------------------------------------- the built-ins and one another

def matrix_power(case):
    """X of T^L (W, Phi_0, 1), T the affine map of one leapfrog; for draws that are the same in every leapfrog."""
    eps, c, M, s = case.scales()
    n, z, I = case.n, rational(case.z), rational(np.eye(case.n))
    one, zero = rational(np.ones((1, 1))), rational(np.zeros((n, n)))

    def matrix(xx, xp, px, pp, shift):
        column, row = rational(np.zeros((n, 1))), rational(np.zeros((1, n)))
        return np.block([[xx, xp, column], [px, pp, shift[:, None]], [row, row, one]])

    def kick(row):
        return matrix(I, zero, -eps / 2 * rational(case.A), c * I, eps / 2 * rational(case.b) + s * z[row])

    drift = matrix(I, I * (eps / M), zero, I, rational(np.zeros(n)))
    state = np.concatenate([rational(case.w), roots(M) * z[0], [Fraction(1)]])
    return (np.linalg.matrix_power(kick(2) @ drift @ kick(1), case.L) @ state)[:n]


@ours_only
@settings(max_examples=30, **SETTINGS)
@given(data=st.data())
def test_five_independent_ways_to_take_a_step_agree_to_the_bit(data):
    torch64 = next(impl for impl in OURS if impl.name == "torch-float64")
    case = exact_case(Draw(data), NUMPY)
    case.z[1:] = np.tile(case.z[1:3], (case.L, 1))
    case = deepest(case, NUMPY)
    ways = [positions(case)[-1], explicit_sum(case), matrix_power(case), run(NUMPY, case), run(torch64, case)]
    assert all((way == ways[0]).all() for way in ways), f"{ways} {case}"


# ------------------------------------------------------------------------------------------- arguments of the built-ins

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


@ours_only
@pytest.mark.parametrize("impl", OURS, ids=lambda impl: impl.name)
@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS, ids=str)
def test_an_argument_outside_its_range_is_a_value_error_that_names_it(impl, wrong):
    case = generic_case()
    with pytest.raises(ValueError, match=REFUSALS[next(iter(wrong))]):
        impl.step(case.w, case.z, gradient(case), **{**case.settings(), "b_hat": 0.0, **wrong})


@ours_only
@pytest.mark.parametrize("wrong, reason", [
    (dict(w=np.zeros((4, 1))), "^w must have one axis"), (dict(z=np.zeros((5, 4))), "^z must have"),
    (dict(z=np.zeros((7, 1))), "^a row of z must have"), (dict(grad=lambda x: 0.0), "^grad.X. must have"),
    (dict(mass=np.ones(1)), "^mass and b_hat must be"), (dict(b_hat=np.zeros(1)), "^mass and b_hat must be")], ids=str)
def test_the_reference_refuses_shapes_that_would_broadcast(wrong, reason):
    case = generic_case()
    arguments = {**case.settings(), "w": case.w, "z": case.z, "grad": gradient(case), **wrong}
    with pytest.raises(ValueError, match=reason):
        reference_numpy.sghmc_step(**arguments)


@ours_only
@pytest.mark.parametrize("impl", OURS, ids=lambda impl: impl.name)
def test_b_hat_equal_to_the_friction_leaves_no_noise_and_no_nan(impl):
    """C and B^ each carry at most 4 roundings, so what is left of the variance is at most 2 * 8 u alpha M: a share of
    8 u of 2 alpha M, hence sqrt(8 u) of the noise that there is at B^ = 0."""
    for k in range(1, 60):
        case = replace(generic_case(), eps=k / 64, b_hat=0.0)
        full = replace(case, b_hat=case.alpha * case.mass / case.eps)
        quiet, noise = replace(case, z=case.z.copy()), replace(case, z=case.z.copy(), w=0 * case.w, b=0 * case.b)
        quiet.z[1:], noise.z[0] = 0, 0
        bound = rounding_bound(impl, quiet) + square_root(8 * impl.u) * positions(noise, positive=True)[-1]
        assert_agree(run(impl, full), positions(quiet)[-1], bound, "B^ = C", full)


@ours_only
@pytest.mark.parametrize("impl", OURS, ids=lambda impl: impl.name)
def test_the_row_of_the_last_half_kick_may_be_missing(impl):
    case = generic_case()
    assert (run(impl, case) == run(impl, replace(case, z=case.z[:-1]))).all()


@ours_only
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


# ------------------------------------------------------------------------------ the normals that the chain draws

FALSE_ALARM = 1e-6  # of one whole battery on right code
N = 200_000


def battery(normals):
    """None, or what is wrong with a source of normals(seed, step, n) -> rows; for N coordinates.

    False alarm: the tests share 1e-6 evenly. Pairs: x.y/|y| is N(0, 1) exactly if x is white and independent of y.
    Shape: sqrt(N) sup|F_N - F| > t has probability <= 2 exp(-2 t^2) (Dvoretzky, Kiefer, Wolfowitz, Massart).
    Missed bugs: at most 1e-6 as well for a correlation above 2q/sqrt(N) = 2.9 %, or a distribution function that is off
    by more than 2t/sqrt(N) = 1.4 % somewhere (a standard deviation off by 6 %; a uniform law is off by 5.7 %).
    """
    rows = {}
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        source = normals(seed, step, N)
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


@ours_only
def test_chain_draws_independent_standard_normals_everywhere():
    from simsiam_sghmc import normals

    assert battery(normals) is None


def broken_sources(normals):
    """Sources of normals with the bugs of samplers that draw their own."""
    @functools.cache
    def draws(seed, step):
        source = normals(seed, step, N)
        return [np.asarray(next(source), dtype=np.float64) for _ in range(8)]

    def rows_of(change):
        return lambda seed, step, n: (change(draws(seed, step), j, seed, step) for j in range(7))

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
        "the same draws in every sample": lambda seed, step, n: iter(draws(seed, 0)),
        "the same draws for every seed": lambda seed, step, n: iter(draws(0, step)),
        "standard deviation 1.1": rows_of(lambda r, j, *_: 1.1 * r[j]),
        "mean 0.1": rows_of(lambda r, j, *_: r[j] + 0.1),
        "samples overlap": lambda seed, step, n: iter(draws(seed, 0)[step:]),
        "zero": rows_of(lambda r, j, *_: 0 * r[j]),
    }


@ours_only
def test_every_known_bug_of_the_draws_is_killed():
    from simsiam_sghmc import normals

    found = {name: battery(source) for name, source in broken_sources(normals).items()}
    print("\n".join(f"{name:40} {why}" for name, why in found.items()))
    assert all(found.values()), [name for name, why in found.items() if not why]


@ours_only
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
        return sghmc_step(w, normals(3, step, N), lambda x: 2 * x, **case.settings())

    W1 = sample(torch.zeros(N), 0)
    W2 = sample(W1, 1)
    first, then = W1.double().numpy() / sd, (W2.double() - G * W1.double()).numpy() / sd
    t = np.sqrt(np.log(2 / (FALSE_ALARM / 3)) / 2)
    q = -statistics.NormalDist().inv_cdf(FALSE_ALARM / 6)
    assert distance_to_normal(first) * np.sqrt(N) <= t
    assert distance_to_normal(then) * np.sqrt(N) <= t
    assert abs(then @ first) <= q * np.linalg.norm(first), "the second sample depends on the first one's draws"


# ------------------------------------------------------------------------------- vectors, command line, worked examples

def case_of(v):
    """A step vector as a case."""
    arrays = {key: np.array(v[key]) for key in ("w", "z", "A", "b")}
    mass, b_hat = (np.array(v[key]) if isinstance(v[key], list) else v[key] for key in ("mass", "b_hat"))
    return Case(**arrays, eps=v["eps"], L=v["L"], alpha=v["alpha"], mass=mass, b_hat=b_hat)


@ours_only
def test_vectors_are_what_the_command_writes_byte_for_byte():
    for name, text in reference_numpy.vectors().items():
        assert (ROOT / "vectors" / name).read_bytes() == text.encode(), f"{name}: run python reference_numpy.py vectors"
    assert sum(path.stat().st_size for path in (ROOT / "vectors").iterdir()) < 400_000


@ours_only
def test_step_vectors_agree_with_rational_arithmetic_to_the_last_bit():
    for name, v in reference_numpy.read_vectors("step").items():
        case = case_of(v)
        X = positions(case)
        assert v["w_new"] == [float(x) for x in X[-1]], name
        assert v["trajectory"] == [[float(x) for x in row] for row in X], name
        order = [(j + 1) // 2 for j in range(2 * case.L)]
        assert v["g"] == [[float(x) for x in case.force(X[l], l)] for l in order], name
        if not {"exact", "wide"} & set(v["flags"]):
            for single in (SINGLE, NUMPY):
                assert (rounding_bound(single, case) <= single.u * rational(v["bound"]) * (1 + NUMPY.u)).all(), name


@ours_only
def test_flags_of_the_step_vectors_say_what_they_are():
    for name, v in reference_numpy.read_vectors("step").items():
        case, flags = case_of(v), v["flags"]
        facts = {"exact": fits(case, 24) and v["bound"] == [0] * case.n, "leapfrog": case.alpha == 0,
                 "wide": fits(case, 53) and not fits(case, 24) and v["bound"] == [0] * case.n,
                 "unit_mass": np.all(case.mass == 1), "one_leapfrog": case.L == 1, "b_hat": np.any(case.b_hat != 0),
                 "diagonal_mass": isinstance(v["mass"], list), "asymmetric": (case.A != case.A.T).any()}
        for flag, holds in facts.items():
            assert (flag in flags) == bool(holds), f"{name}: {flag}"


@ours_only
def test_generic_vectors_hide_no_known_bug():
    for name, v in reference_numpy.read_vectors("step").items():
        if "generic" in v["flags"]:
            listed = {wrong["name"] for wrong in v["wrong"]}
            assert listed == {row["name"] for row, _ in table("step") if changes_value(row)}, name
            bound = SINGLE.u * 2 * rational(v["bound"])  # apart even in single precision
            answers = [v["w_new"]] + [wrong["w_new"] for wrong in v["wrong"]]
            for i, x in enumerate(answers):
                assert not any((abs(rational(x) - rational(y)) <= bound).all() for y in answers[:i]), (name, i)
    energies = reference_numpy.read_vectors("energy").values()
    listed = {wrong["name"] for v in energies for wrong in v["wrong"]}
    known = {row["name"] for target in ("energy", "gradient") for row, _ in table(target) if changes_value(row)}
    assert known - listed <= NO_DECIMALS


@ours_only
def test_vectors_with_unknown_keys_repeated_ids_or_unexplained_flags_are_refused():
    def spoil(change):
        content = json.loads((ROOT / "vectors" / "step.json").read_text())
        change(content)
        with pytest.raises(ValueError):
            reference_numpy.checked_vectors(content, reference_numpy.STEP_KEYS)

    spoil(lambda c: c.update(extra=1))
    spoil(lambda c: c.update(format=2))
    spoil(lambda c: c["vectors"][0].update(extra=1))
    spoil(lambda c: c["vectors"][0].pop("w"))
    spoil(lambda c: c["vectors"][0].update(id=c["vectors"][1]["id"]))
    spoil(lambda c: c["vectors"][0]["flags"].append("unexplained"))


NO_DECIMALS = {"energy: angle instead of cosine", "energy: no absolute value, the mean not clamped"}  # arccos, ln(-m)


def results_of(impl, flag=None):
    """What a program in another language would write, for the vectors with the flag."""
    files = [reference_numpy.read_vectors(kind).items() for kind in ("step", "energy")]
    steps, energies = ({name: v for name, v in file if flag in (None, *v["flags"])} for file in files)
    results = [{"id": f"step/{name}", "w_new": [float(x) for x in run(impl, case_of(v))]} for name, v in steps.items()]
    for name, v in energies.items():
        batch = [np.array(v[key]) for key in ("p1", "z1", "p2", "z2")]
        grads = [g.tolist() for g in impl.energy_grad(*batch, v["stop_grad"])]
        results.append({"id": f"energy/{name}", "u": impl.energy(*batch), "grads": grads})
    return [{**result, "dtype": impl.dtype} for result in results]


@ours_only
def test_check_passes_right_results_and_names_the_bug_of_wrong_ones(tmp_path, capsys):
    def check(results):
        (tmp_path / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
        code = reference_numpy.main(["check", str(tmp_path / "results.json")])
        out, err = capsys.readouterr()
        assert (code == 2) == (len(err.splitlines()) == 1) and "Traceback" not in err
        return code, out

    for impl in OURS:
        assert check(results_of(impl))[0] == 0, impl.name
    good = results_of(NUMPY)
    assert check(good[1:])[0] == 1
    for result, key in ((good[0], "w_new"), (good[-1], "u")):
        for bad in (None, "x", [], float("nan"), [[1.0]]):
            assert check([{**r, key: bad} if r is result else r for r in good])[0] == 1
    for unreadable in ("", "{", "[1]", "3", {"a": 1}, good + good[:1], [{"id": "step/unknown", "w_new": []}],
                       [{**good[0], "extra": 1}], [{**good[0], "dtype": "float16"}], [{"id": good[0]["id"]}]):
        assert check(unreadable)[0] == 2, unreadable
    for target in ("step", "energy", "gradient"):
        for row, impl in table(target):
            if changes_value(row) and row["name"] not in NO_DECIMALS:
                with np.errstate(all="ignore"):
                    code, out = check(results_of(impl, "generic"))
                assert code == 1 and "known bug: " in out and f"{row['name']} (" in out, row["name"]


@ours_only
def test_check_names_what_a_part_of_the_output_equals_and_shows_the_first_wrong_entry():
    def verdict(**wrong):
        return reference_numpy._verdict(v, {"id": "generic", "u": v["u"], "grads": v["grads"], **wrong})

    v = reference_numpy.read_vectors("energy")["generic"]
    half, sign = (next(wrong for wrong in v["wrong"] if wrong["name"] == name)
                  for name in ("energy: half lost", "gradient: wrong sign"))
    assert verdict() is None
    assert "known bug: energy: half lost (" in verdict(u=half["u"])
    both = verdict(u=half["u"], grads=sign["grads"])
    assert "your U equals that of a known bug: energy: half lost (" in both
    assert "your dU/dp1, dU/dz1, dU/dp2, dU/dz2 equals that of a known bug: gradient: wrong sign (" in both
    assert "absolute value" in verdict(u=float("nan"))
    other = [v["grads"][0], [[*row[:2], 9, 9] for row in v["grads"][1]], *v["grads"][2:]]
    assert f"dU/dz1[0][2] is 9.0, right {v['grads'][1][0][2]}, allowed error " in verdict(grads=other)
    assert verdict(grads=other).endswith(", and 5 more")


@ours_only
def test_command_line_shows_its_usage_and_exits_with_2_on_bad_usage(capsys):
    for arguments in (["-h"], ["check", "-h"], ["vectors", "--help"]):
        assert reference_numpy.main(arguments) == 0 and capsys.readouterr().out.startswith("usage: ")
    for arguments in ([], ["check"], ["vectors", "more"], ["check", "/no/such/file"], ["help"]):
        done = subprocess.run([sys.executable, ROOT / "reference_numpy.py", *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout, arguments


@ours_only
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_port_passes_the_vectors(tmp_path):
    done = subprocess.run(["node", ROOT / "ports" / "port.mjs"], capture_output=True, text=True, check=True)
    (tmp_path / "results.json").write_text(done.stdout)
    assert reference_numpy.main(["check", str(tmp_path / "results.json")]) == 0


@ours_only
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_port_passes_this_oracle():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "test_sghmc.py", "test_energy.py"], cwd=ROOT,
                          env={**os.environ, "SGHMC_IMPL": "ports/jax_port.py"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@ours_only
def test_implementations_that_cannot_be_tested_are_an_error_and_never_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name, text, reason in (("empty.py", "x = 1", "defines none of"),
                               ("broken.py", "import not_there", "No module named"),
                               ("half.py", "DTYPE = 'float16'\ndef energy(): pass", "DTYPE must be"),
                               ("syntax.py", "def", "SyntaxError")):
        (tmp_path / name).write_text(text)
        with pytest.raises(pytest.Collector.CollectError, match=reason):
            load(str(tmp_path / name))
    for place in ("no_such_module", "no/such/file.py"):
        with pytest.raises(pytest.Collector.CollectError, match=place):
            load(place)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "test_energy.py"],
                          env={**os.environ, "SGHMC_IMPL": "empty.py"}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "SGHMC_IMPL: empty.py: defines none of" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@ours_only
def test_a_foreign_module_needs_no_torch_and_its_missing_functions_are_skipped_with_a_reason(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('the oracle imports torch')")
    (tmp_path / "energy_only.py").write_text("from reference_numpy import energy")
    done = subprocess.run([sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", ROOT / "test_sghmc.py",
                           ROOT / "test_energy.py", "-k", "worked_example or leaves_a_torque or last_half_kick_never"],
                          env={**os.environ, "SGHMC_IMPL": "energy_only.py", "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 2 skipped" in done.stdout
    assert "energy_only.py defines no sghmc_step" in done.stdout
    assert "energy_only.py defines no energy_grad" in done.stdout
