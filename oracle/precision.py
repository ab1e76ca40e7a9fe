"""Short formats inside an implementation: bfloat16, float16 and float32 make its answer go in steps.

One input is moved by equal amounts far below the precision of a format. In that format all of them are nearly the same
number, and so are the answers; in a longer one all answers differ.
"""

from dataclasses import replace

import numpy as np

from oracle.cases import generic_case
from oracle.implementations import BITS, NUMPY
from oracle.sampler import run, sample

FORMATS = {8: "bfloat16", 11: "float16", 24: "float32"}
STEPS = np.arange(33)


def format_inside(answer, dtype):
    """The shortest format whose steps answer(x) -> bytes shows, x the factor of an input near 1; None if none."""
    if answer(1.0) == answer(1.5):
        return None  # it does not depend on this input
    for bits, name in FORMATS.items():
        if bits >= BITS[dtype]:
            return None
        x = 1 + STEPS * 2.0 ** -(bits + 5)  # two numbers of the format at most, five or more of the next
        if len({answer(t) for t in x}) <= 3:
            return name
    return None


def rounded_step(impl):
    """What a sampler rounds to a shorter format than it claims, in words; "" if nothing. A rounded position hides what
    the momentum is rounded to, and that hides the gradient: the first is said."""
    case = generic_case(impl, L=1)
    still = replace(case, w=0 * case.w, z=0 * case.z, A=0 * case.A, b=0 * case.b)  # what is seen alone has all digits

    def answer(t, kind):
        x = getattr(case, kind).copy()
        x[(0, 0) if kind == "z" else 0] *= t
        other = replace(case if kind == "w" else still, **{kind: x})
        return sample(impl, other).tobytes()

    for kind, what in (("w", "W_t, or the position,"), ("z", "z[0], or the momentum,"), ("b", "the gradient")):
        name = format_inside(lambda t, kind=kind: answer(t, kind), impl.dtype)
        if name:
            return f"precision: {what} is rounded to {name}."
    return ""


def rounded_scalars(impl):
    """A setting that passed through float32: with settings that float32 holds the answer is right."""
    case = generic_case(impl)
    case = replace(case, eps=0.125, alpha=0.125, mass=4.0 if impl.accepts("mass") else 1.0, b_hat=0.0)
    want = run(NUMPY, case)
    return ("precision: right to single precision only, though the answers have more digits: a setting, or a constant "
            "made from one, passes through float32." if (abs(run(impl, case) - want) <= 1e-14).all() else "")


def rounded_energy(impl):
    """The format that U shows, in words; "" if it is none."""
    if not impl.has("energy"):
        return ""

    def answer(t):  # both views alike: U = -log s, and s grows as fast as t
        p, z = np.array([[5 * t, 5.0]]) / 4, np.array([[1.5, -0.5]])
        return impl.energy(p, z, p, z)

    name = format_inside(answer, impl.dtype)
    return f"precision: U goes in steps: the cosines, or their rows, are rounded to {name}." if name else ""


def rounded_outputs(wrong, seen):
    """The format that all wrong outputs are numbers of, and right to, in words; "" if there is none."""
    for bits, name in FORMATS.items():
        parts = [o.parts[part][:2] for o in seen for part in wrong]
        if all(np.array_equal(got, shortened(got, bits))
               and (abs(got - right) <= 4 * 2.0**-bits * abs(right).max()).all() for got, right in parts):
            return f"precision: {', '.join(sorted(wrong))} {'is' if len(wrong) == 1 else 'are'} rounded to {name}."
    return ""


def shortened(x, bits):
    """x (array) rounded to so many bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2.0**bits), exponent - bits)
