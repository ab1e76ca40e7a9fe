"""Which known bug do an energy and its gradient have? A name is given only if the whole answer fits it.

The table of known bugs is asked at two batches; then come outputs in another order, one unknown constant, batches of
many rows, and short formats. What is left is described: which output, which row, by which factor.
"""

import functools
from dataclasses import replace
from decimal import Decimal
from itertools import permutations

import numpy as np

from oracle import families
from oracle.arithmetic import decimals, differences
from oracle.batches import WORKED_EXAMPLE, generic_batch
from oracle.diagnosis import (
    ENERGY_CANDIDATES,
    ENERGY_OF_SIZE,
    Observation,
    apart,
    equals,
    explain,
    gradient_name,
    in_parts,
    in_words,
    is_single,
    observe_energy,
    same,
)
from oracle.energy import NAMES, gradient_bounds, truth
from oracle.implementations import NUMPY
from oracle.known_bugs import implementation
from oracle.precision import rounded_energy, rounded_outputs
from oracle.sizes import energy_part, gradient_parts

LARGE = (2049, 3), (7, 2049)  # pairs of rows and features
RIGHT = "the generic batch comes out right. What is wrong is said at the tests, and may need the input shown there."


def diagnose_energy(impl):
    """What is wrong with an energy and its gradient: the known bug, or what else can be said of it."""
    seen = []
    with np.errstate(all="ignore"):
        for batch in (generic_batch(), WORKED_EXAMPLE):
            try:
                seen.append(observe_energy(impl, batch))
            except Exception as error:
                return f"the batch {batch} raises {type(error).__name__}: {error}"
        found = explain(seen, ENERGY_CANDIDATES)
        if not found.wrong:
            inputs = (families.clamp(impl) or families.short_rows(impl)) if impl.has("energy") else ""
            return large(impl) or inputs or zero_rows(impl) or RIGHT
        if found.whole:
            return equals(found.whole)
        if impl.dtype == "float64" and all(map(is_single, seen)):
            return "right to single precision: look for a hidden float32, or set DTYPE = 'float32'."
        return (rounded_energy(impl) or rounded_outputs(found.wrong, seen) or exchanged(impl, seen[0])
                or named_or_described(impl, found, seen))


def named_or_described(impl, found, seen):
    """A constant in U, known bugs of U and of the gradients side by side, or factors."""
    text = ""
    if "U" in found.wrong and not any("U" in names for _, names in found.parts):
        text = constant(impl, found) or ("" if "U" in seen[0].wrong else families.wrong_axis(impl))
    elif "dU/dp1" in found.wrong and not {"U", "dU/dz1 with stop-gradient"} & found.wrong:
        text = families.smooth_sign(impl)
    if text:
        return text
    if found.parts and len([names for _, names in found.parts if names != {"U"}]) <= 1:
        return in_parts(found, seen)
    return "no known bug. Wrong: " + "; ".join(described(found.wrong, seen) or [in_words(found.wrong, seen)])


def constant(impl, found):
    """An unknown constant that explains U, and what that says of the gradients; "" if there is none."""
    solved = families.constant(impl)
    if not solved:
        return ""
    text, U = solved
    wrong = found.wrong - {"U"}
    if not wrong:
        return f"a constant in U: {text}" + ("; the gradients are right." if impl.has("energy_grad") else ".")
    batch = generic_batch()
    _, grads = differences(U, [decimals(x) for x in batch.arrays()])
    bounds = gradient_bounds(impl, batch, truth(batch))
    got = [decimals(g) for g in impl.energy_grad(*batch.arrays(), False)]
    size = max(float(abs(a - b).max()) for a, b in zip(got, truth(batch).grads, strict=True))
    near = all((abs(a - b) <= 4 * e + Decimal(size * 2.0**-6)).all()
               for a, b, e in zip(got, grads, bounds, strict=True))
    return f"a constant in U: {text}" + ("; its gradients are those of this U." if near else
                                        "; the gradients are wrong too, but not those of this U.")


def zero_rows(impl):
    """What is wrong with a batch that has a row of zeros, in words."""
    text = families.counted(impl) if impl.has("energy") else ""
    if text:
        return text
    try:
        seen = observe_energy(impl, families.with_zeros())
    except Exception as error:
        return f"a row of zeros in p1 raises {type(error).__name__}: {error}"
    return "with a row of zeros in p1 wrong: " + "; ".join(described(seen.wrong, [seen])) if seen.wrong else ""


def exchanged(impl, seen):
    """The right gradients in another order, in words."""
    if not impl.has("energy_grad"):
        return ""
    parts = [seen.parts[gradient_name(x, False)] for x in NAMES]
    for order in permutations(range(4)):
        if order != (0, 1, 2, 3) and all(same(got, *parts[k][1:]) for (got, _, _), k in zip(parts, order, strict=True)):
            return (f"outputs exchanged: energy_grad returns the gradients of {', '.join(NAMES[k] for k in order)}; "
                    "the order is p1, z1, p2, z2.")
    return ""


def large(impl):
    """Whether a batch of many or long rows is wrong where small ones are right, in words."""
    try:
        seen = [observe_large(impl, B, d) for B, d in LARGE]
    except Exception as error:
        return f"a large batch raises {type(error).__name__}: {error}"
    found = explain(seen, ENERGY_OF_SIZE)
    if found.whole:
        return equals(found.whole)
    for B, d in LARGE if "U" in found.wrong else ():
        if text := families.of_a_part(impl, B, d):
            return f"in a batch of {B} rows of {d}: {text}. Small batches are right."
    return f"small batches are right. Wrong: {'; '.join(described(found.wrong, seen))}" if found.wrong else ""


def parts_at_size(impl, B, d):
    """U and the gradients of a large batch, as far as there are any."""
    parts = [energy_part(impl, B, d)] if impl.has("energy") else []
    return parts + (gradient_parts(impl, B, d, False) if impl.has("energy_grad") else [])


@functools.cache
def right_at_size(dtype, B, d):
    """{name: (right answer, twice its bound)} in floats."""
    seen = {part.name: part.in_floats() for part in parts_at_size(replace(NUMPY, dtype=dtype), B, d)}
    return {name: (np.squeeze(right), 2 * np.squeeze(bound)) for name, (_, right, bound) in seen.items()}


def observe_large(impl, B, d):
    """The Observation of a large batch."""
    def answers(impl):
        return {part.name: np.squeeze(part.got) for part in parts_at_size(impl, B, d)}

    right = right_at_size(impl.dtype, B, d)
    return Observation({name: (got, *right[name]) for name, got in answers(impl).items()},
                       lambda candidate: answers(implementation(candidate[0])), ("large", B, d), f"{B} rows of {d}")


def described(wrong, seen):
    """Wrong outputs in words, those that are wrong alike together."""
    texts = {}
    for name in seen[0].parts:
        if name in wrong:
            texts.setdefault(factor(name, seen) or first_entry(name, seen), []).append(name)
    return [f"{', '.join(names)}: {text}" for text, names in texts.items()]


def first_entry(name, seen):
    """What is wrong with an output in the first batch that shows it, and where it is right, in words."""
    bad = [observation for observation in seen if name in observation.wrong]
    text = entry(*bad[0].parts[name])
    right = [observation for observation in seen if name not in observation.wrong]
    return text + (f" in {bad[0].where}, but right in {right[0].where}" if right else "")


def factor(name, seen):
    """The one factor by which a gradient is wrong in all batches, in words; "" if there is none."""
    factors = []
    for observation in seen:
        got, right, bound = observation.parts[name]
        counts = abs(right) > 8 * bound
        if got.ndim == 0 or not counts.any() or not np.isfinite(got).all() or not got.any():
            return ""
        ratio = got[counts] / right[counts]
        if np.ptp(ratio) > 1e-6 * abs(ratio[0]):
            return ""
        (B, d), U = got.shape, float(observation.parts["U"][1]) if "U" in observation.parts else 0.0
        plain = {"": 1.0, "B": B, "B^2": B * B, "1 / B": 1 / B, "d": d, "m": np.exp(-U), "1 / m": np.exp(U)}
        factors.append((ratio[abs(ratio - 1).argmax()], plain))
    if all(abs(x - 1) < 1e-6 for x, _ in factors):
        return f"off by up to {max(abs(x - 1) for x, _ in factors):.2g} of itself"
    for words in factors[0][1]:
        sizes = [x / plain[words] for x, plain in factors]
        if np.ptp(sizes) <= 1e-6 * abs(sizes[0]):
            number = "" if words and abs(sizes[0] - 1) < 1e-6 else f"{sizes[0]:.6g} "
            return f"{number}{words}".strip() + " times what it should be"
    return f"{factors[0][0]:.6g} times what it should be in one batch, {factors[1][0]:.6g} times in another"


def entry(got, right, bound):
    """What is wrong with one output (arrays of one shape), in words."""
    bad = ~(abs(got - right) <= bound)
    if not np.isfinite(got).all():
        return "not finite"
    if got.ndim == 0:
        U, m = apart(got, right), [format(np.exp(-float(x)), ".6g") for x in (got, right)]
        return "{}, right is {}".format(*U) + (" (m {} instead of {})".format(*m) if m[0] != m[1] else "")
    if not got.any():
        return "0 where it should not be"
    if not right.any():
        return "not zero, as it should be"
    rows = np.flatnonzero(bad.any(axis=1))
    if len(rows) < len(got):
        return f"wrong in row{'s' * (len(rows) > 1)} {', '.join(map(str, rows))} of {len(got)} alone"
    i = tuple(map(int, np.argwhere(bad)[0]))
    return f"{apart(got[i], right[i])[0]} in {list(i)}, right is {apart(got[i], right[i])[1]}"
