"""One look at a module before the tests: what would make them meaningless, each problem in one line.

Names, signatures, and one small call of each capability twice: exceptions, types and shapes, the same bits again, the
precision that DTYPE claims. Wrong numbers are none of its business: the tests say more about those.
"""

from decimal import Decimal

import numpy as np

from oracle import report
from oracle.arithmetic import decimals
from oracle.batches import WORKED_EXAMPLE
from oracle.energy import NAMES, gradient_bounds, truth
from oracle.implementations import NUMPY, Broken, numbers, where
from oracle.laws import kept_momentum
from oracle.names import CALLS, CAPABILITIES, SETTINGS, close_names, mismatch
from oracle.own_draws import look

W, Z = np.array([1.0, -2.0, 0.5]), np.array([[1.5, -0.5, 1], [0.5, 2, -1], [1, -1, 0.5], [-2, 1, 1.5], [0, 1, -1]])
SHAPES = {"a": (2, 3), "b": (3,)}


def problems(impl):
    """The lines about a module, [] if the tests can run: wrong names first, then one for each capability."""
    found = close_names(impl.module)
    for capability in [] if found else filter(impl.has, CAPABILITIES):
        try:
            LOOKS[capability](impl)
        except Broken as error:
            found.append(str(error))
    return [f"SGHMC_IMPL: {impl.name}: {' '.join(line.split())}" for line in found]


# ------------------------------------------------------------------------------------------------------ small calls

def answer(impl, capability, *arguments, **keywords):
    """What the module returns. Broken: it cannot be called, raises, or returns None."""
    function = getattr(impl.module, capability)
    why = mismatch(function, capability)
    if why:
        raise Broken(f"cannot be called as {CALLS[capability]}: {why}")
    try:
        with np.errstate(all="ignore"):
            got = function(*arguments, **keywords)
    except Broken:
        raise
    except Exception as error:
        raise Broken(f"{capability} raises {type(error).__name__}: {error}{where(error, impl.module)}") from None
    if got is None:
        raise Broken(f"{capability} returns None: is a return missing?")
    return got


def look_at_step(impl):
    """One sample of three coordinates, twice; Broken as in `problems`, like the looks below."""
    def step(z, slope):
        def grad(x):
            return slope * numbers(x, W.shape, "sghmc_step calls grad with")
        got = answer(impl, "sghmc_step", W.copy(), z.copy(), grad, **SETTINGS)
        return numbers(got, W.shape, "sghmc_step returns")

    first, again = step(Z, 1), step(Z, 1)
    if not np.array_equal(first, again, equal_nan=True):
        moves = "; it is the momentum, without draws and gradients it moves on" if (step(0 * Z, 0) != W).any() else ""
        raise Broken("sghmc_step: the same input gives other bits at the second call: something is kept between calls, "
                     f"or drawn apart from z{moves}")
    right = NUMPY.module.sghmc_step(W, Z, lambda x: x, **SETTINGS)
    claims(impl, "sghmc_step", first, abs(first - right) <= 2.0**-40)


def look_at_energy(impl):
    first, again = (numbers(answer(impl, "energy", *WORKED_EXAMPLE.arrays()), (), "energy returns") for _ in range(2))
    if not np.array_equal(first, again, equal_nan=True):
        raise Broken("energy: the same input gives other bits at the second call: something is kept between calls")
    claims(impl, "energy", first, abs(first - float(truth(WORKED_EXAMPLE).U)) <= 2.0**-40)


def look_at_gradient(impl):
    """The four gradients of the worked example, with another call between the two."""
    batch = WORKED_EXAMPLE

    def grads(stop_grad):
        got = answer(impl, "energy_grad", *batch.arrays(), stop_grad)
        try:
            got = list(got.values() if isinstance(got, dict) else got)
        except TypeError:
            raise Broken(f"energy_grad returns {type(got).__name__} instead of four arrays") from None
        if len(got) != 4:
            raise Broken(f"energy_grad returns {len(got)} arrays instead of (g_p1, g_z1, g_p2, g_z2)")
        where = f", stop_grad={stop_grad},"
        return np.array([numbers(g, batch.p1.shape, f"energy_grad{where} returns as g_{name}")
                         for g, name in zip(got, NAMES, strict=True)])

    first, _, again = grads(False), grads(True), grads(False)
    if not np.array_equal(first, again, equal_nan=True):
        adds = (again > 1.5 * first)[first > 0].all() and first.any()
        raise Broken("energy_grad: the same input gives other bits at the second call: "
                     + ("gradients add up, they are never set to zero" if adds else "something is kept between calls"))
    bounds = gradient_bounds(NUMPY, batch, truth(batch))
    close = [abs(decimals(g) - want) <= Decimal(2**12) * e
             for g, want, e in zip(first, truth(batch).grads, bounds, strict=True)]
    claims(impl, "energy_grad", first, np.array(close, dtype=bool))


def look_at_sample(impl):
    """One sample of two tensors, twice with one seed; a momentum that goes on is told from other state."""
    def grad(params):
        for name, shape in SHAPES.items():
            try:
                x = params[name]
            except Exception:
                raise Broken(f"sghmc_sample calls grad with {type(params).__name__}, which has no {name!r}; right is a "
                             "dictionary with the names of params") from None
            numbers(x, shape, f"sghmc_sample calls grad with, as {name!r},")
        return {name: np.ones(shape) for name, shape in SHAPES.items()}

    def sample():
        got = answer(impl, "sghmc_sample", {name: np.ones(shape) for name, shape in SHAPES.items()}, grad, 7,
                     **SETTINGS)
        if not hasattr(got, "keys") or set(got.keys()) != set(SHAPES):
            raise Broken(f"sghmc_sample returns {type(got).__name__} instead of a dictionary with the names of params")
        return [numbers(got[name], shape, f"sghmc_sample returns as {name!r}") for name, shape in SHAPES.items()]

    first, again = sample(), sample()
    if not all(np.array_equal(x, y, equal_nan=True) for x, y in zip(first, again, strict=True)):
        kept = kept_momentum(look(impl))
        raise Broken("sghmc_sample: the same seed gives another sample at the second call: " + (
            "a sample goes on with the momentum of the one before" if kept else "something is kept between calls, or "
            "the seed is not what the draws come from"))
    claims(impl, "sghmc_sample", np.concatenate([x.ravel() for x in first]), np.False_)


def claims(impl, capability, got, exact):
    """Answers of DTYPE = "float32" are float32 numbers. Such that are right to double precision are an error, since
    the tests would allow 2^29 times too much; others are noted."""
    if impl.dtype == "float32" and not np.array_equal(got, np.float32(got), equal_nan=True):
        text = f'DTYPE is "float32", but the answers of {capability} carry more than 24 bits'
        if np.all(exact):
            raise Broken(f"{text} and are right to double precision: leave DTYPE out, or compute in float32")
        report.note(impl, f"{text}: judged by the bound of float32")


LOOKS = {"sghmc_step": look_at_step, "energy": look_at_energy, "energy_grad": look_at_gradient,
         "sghmc_sample": look_at_sample}
