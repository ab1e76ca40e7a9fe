"""Cases that ordinary numbers do not stand for: integers, small moves, huge and tiny numbers, views of arrays."""

import warnings
from dataclasses import replace

import numpy as np

from oracle.arithmetic import assert_close, rational
from oracle.cases import deepest, exact_case, rounded_case, still_case
from oracle.implementations import BITS
from oracle.sampler import Case, distinct, fits, gradient, positions, rounding_bound, sample


def integer_cases(draw, impl):
    """Cases of the exact class whose mass and B^ are Python integers, then arrays of them; and a mass without root."""
    yield replace(rounded_case(draw, impl), mass=3, b_hat=0.0)
    case = exact_case(draw, impl, L=2, masses=(16,), gradients="any")
    C = case.alpha * case.mass / case.eps  # 4, 8, 16 or 32
    yield case
    if impl.accepts("b_hat"):
        yield deepest(replace(case, b_hat=int(3 * C / 4)), impl)
    if impl.accepts("mass per coordinate"):
        masses = np.array([draw.choice(16, 4) for _ in range(case.n)])
        yield deepest(replace(case, A=np.diag(np.diag(case.A)), mass=masses), impl)
    if impl.accepts("b_hat per coordinate"):
        shares = np.array([draw.choice(0, 3, 4) for _ in range(case.n)])
        yield deepest(replace(case, b_hat=shares * int(C / 4)), impl)


def unrefused(impl, case):
    """Where B^ = 2C is let through, in all coordinates or in the last one alone, in words; "" if it is refused."""
    C = case.alpha * case.mass / case.eps
    cases = {" in all coordinates": replace(case, b_hat=2 * C)}
    if impl.accepts("b_hat per coordinate") and case.n > 1:
        cases[" in one coordinate"] = replace(case, b_hat=2 * C * (np.arange(case.n) == case.n - 1))
    return next(filter(None, (unrefused_call(lambda x=x: sample(impl, x), where) for where, x in cases.items())), "")


def unrefused_call(ask, where=""):
    """What a call with B^ = 2C does instead of raising a ValueError, in words; "" if it raises one."""
    try:
        ask()
    except ValueError:
        return ""
    except Exception as error:
        return f"b_hat = 2 C{where} raises {type(error).__name__} instead of a ValueError: {error}"
    return (f"b_hat = 2 C{where} is not refused: it gives a sample instead of a ValueError. There the noise variance "
            "2 (C - B^) eps is negative; it must neither be clamped nor become a NaN.")


def written_arguments(impl, case):
    """Names of the arrays that the caller finds changed: in this case, with mass 1, and with an array of masses. What
    grad returns is the caller's, too: it may keep the array."""
    masses = np.full(case.n, case.mass) if impl.accepts("mass per coordinate") else case.mass
    for one in (case, replace(case, mass=1.0, b_hat=0.0), replace(case, mass=masses)):
        given = {"w": one.w.copy(), "z": one.z.copy(), **one.settings()}
        before = {name: np.copy(x) for name, x in given.items()}
        answer, answers = gradient(one), []

        def grad(X, answer=answer, answers=answers):
            g = answer(X)
            answers.append((g, np.copy(g)))
            return g

        impl.step(grad=grad, **given)
        changed = [name for name, x in given.items() if not np.array_equal(x, before[name])]
        changed += ["array that grad returned"] * any(not np.array_equal(g, copy) for g, copy in answers)
        if changed:
            return changed
    return []


def rotatable_case(draw, impl):
    """A case of the exact class whose numbers leave room for sums of four halves."""
    A = draw.array((4, 4), -1, 1)
    return Case(w=draw.array(4, -2, 2), z=draw.array((3, 4), -2, 2), A=A + A.T, b=draw.array(4, -2, 2), eps=0.25, L=1,
                alpha=0.125, mass=0.25 if impl.accepts("mass") else 1.0, exact=True)


def small_moves(draw, impl):
    """Cases of the exact class with moves that are small against the position, by 34 bits if there are as many; then
    with moves that are small in themselves. No two positions are equal, and each gradient turns the last one round."""
    L, size = (3, 2.0**34) if impl.dtype == "float64" else (2, 2.0**16)
    g = draw.nonzero(2, 1) * (-1.0) ** np.arange(L + 1)[:, None]
    z = np.zeros((2 * L + 1, 2))
    z[0] = draw.nonzero(2, 1)
    case = Case(w=draw.nonzero(2, 1), z=z, A=np.zeros((2, 2)), b=np.zeros(2), g=g, eps=0.25, L=L, alpha=0.5,
                mass=0.25 if impl.accepts("mass") else 1.0, exact=True)
    far = replace(case, w=case.w * size)
    while not fits(far, BITS[impl.dtype]):
        far.w = far.w / 2
    yield far
    yield replace(case, w=case.w * 2.0**-40, z=case.z * 2.0**-40, g=case.g * 2.0**-40)


def any_size(draw, impl):
    """Cases of the exact class in which one kind of input stands alone and is huge or tiny: W_t, draws, gradients."""
    case = still_case(draw, impl, L=3)
    parts = {"w": draw.nonzero(case.n, 2), "z": draw.array(case.z.shape, -2, 2), "g": draw.nonzero(case.g.shape, 2)}
    parts["g"] = distinct(replace(case, g=parts["g"]), case.L)
    for kind, x in parts.items():
        for k in (-100, -60, -30, 30, 60, 100) if impl.dtype == "float64" else (-40, -20, 20, 40):
            yield replace(case, **{kind: x * 2.0**k})


def any_settings(draw, impl):
    """Cases with huge and tiny eps and M, and with alpha at 0, next to 0 and next to 1.

    Those of the exact class have what belongs to eps and M in proportion: F(W, z; lambda U, eps), and M = s^2.
    """
    case = exact_case(draw, impl, L=3, gradients="recorded")
    for k in (-60, -12, 12, 60) if impl.dtype == "float64" else (-24, -12, 12, 24):
        s = 2.0**k
        yield replace(case, eps=case.eps / s, z=case.z * s, g=case.g * s**2)
        if impl.accepts("mass"):
            yield replace(case, mass=case.mass * s**2, z=case.z * s, g=case.g * s**2)
    for alpha in (0.0, 2.0**-20, 1 - 2.0**-10):
        yield replace(rounded_case(draw, impl), alpha=alpha)


def assert_views(impl, draw):
    """W_(t+1) of w and z that lie in memory in another order."""
    case = rounded_case(draw, impl)
    for how, got in of_views(lambda w, z: impl.step(w, z, gradient(case), **case.settings()), case.w, case.z):
        assert_close(rational(got), positions(case)[-1], rounding_bound(impl, case), f"w and z {how}", case)


def of_views(ask, *arrays):
    """(how the arrays lie in memory, ask(*arrays)); a refusal with an exception is no wrong number."""
    read_only, columns = ([store(x) for x in arrays] for store in (np.copy, np.asfortranarray))
    for x in read_only:
        x.flags.writeable = False
    gaps = [np.repeat(x, 2, axis=-1)[..., ::2] for x in arrays]
    backwards = [x[::-1].copy()[::-1] for x in arrays]
    stored = {"by columns": columns, "with gaps": gaps, "backwards": backwards, "read-only": read_only}
    for how, views in stored.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = ask(*views)
        except Exception:
            continue
        yield how, got
