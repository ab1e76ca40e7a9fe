"""Which known bug does a sampler with injected noise have? A name is given only if the whole answer fits it.

The known bugs are asked the same questions: the generic case and others that differ from it in one respect (L, b_hat,
the mass, the number of coordinates). A bug is named if it gives all answers; or if it gives those with one property
and all others are right; or if it gives all answers but those that a second bug of b_hat or the mass spoils.
"""

import contextlib
from dataclasses import replace

import numpy as np

from oracle.arithmetic import FLOATS, Disagreement
from oracle.cases import generic_case
from oracle.coefficients import by_size, some_coordinates, wrong_coefficients
from oracle.corner_cases import assert_views, unrefused, written_arguments
from oracle.diagnosis import (
    SPECIAL_BUGS,
    STEP,
    STEP_CANDIDATES,
    STEP_OF_SIZE,
    Observation,
    apart,
    candidates,
    equals,
    fitting,
    same,
    some,
)
from oracle.implementations import NUMPY
from oracle.inputs import Draw
from oracle.known_bugs import implementation
from oracle.precision import rounded_scalars, rounded_step
from oracle.sampler import gamma, positions, sample
from oracle.sizes import long_case

RIGHT = "the generic case comes out right. What is wrong is said at the tests, and may need the input shown there."
SIZES = (1, 2, 3, 5, 7, 8, 1111)  # coordinates that do not act on each other
MANY, LONG = "L = 130", "n = 65543"
SPECIAL = {  # property of a case -> in words
    "with a mass of integers": lambda case: np.asarray(case.mass).dtype.kind == "i",
    "with a b_hat of integers": lambda case: np.asarray(case.b_hat).dtype.kind == "i",
    "where an entry of the gradient is 0": lambda case: (reach(replace(case, z=0 * case.z)) == abs(case.w)).any(),
    "where a move is small against the position": lambda case: abs(case.w).max() > 2**20,
    "with a b_hat for each coordinate": lambda case: np.ndim(case.b_hat) > 0,
    "with a mass for each coordinate": lambda case: np.ndim(case.mass) > 0,
    "with b_hat": lambda case: np.any(case.b_hat),
    "with a mass other than 1": lambda case: np.any(np.not_equal(case.mass, 1)),
    "where L is even": lambda case: case.L % 2 == 0, "where L is odd": lambda case: case.L % 2,
    "from L = 2 on": lambda case: case.L > 1, "from L = 3 on": lambda case: case.L > 2,
    "from L = 4 on": lambda case: case.L > 3, "at L = 23": lambda case: case.L == 23,
    "at L = 23, 24 and 130": lambda case: case.L > 20, "at L = 130": lambda case: case.L > 100,
    "with a tiny eps": lambda case: case.eps < 2**-40, "with a huge eps": lambda case: case.eps > 2**40,
    "with a tiny mass": lambda case: np.max(case.mass) < 2**-40,
    "with a huge mass": lambda case: np.max(case.mass) > 2**40,
    "where alpha is 0": lambda case: case.alpha == 0, "where alpha is 2^-20": lambda case: case.alpha == 2**-20,
    "where alpha is next to 1": lambda case: case.alpha > 0.9,
    "with a mass and a b_hat for each coordinate": lambda case: np.ndim(case.mass) and np.ndim(case.b_hat),
}


def questions(impl):
    """The cases by name. Sizes have a diagonal A: no coordinate acts on another."""
    generic = generic_case(impl)
    cases = {"generic": generic, **{f"L = {L}": generic_case(impl, L) for L in (1, 2, 4)}}
    if impl.accepts("b_hat"):
        cases["no b_hat"] = replace(generic, b_hat=0.0)
    if impl.accepts("mass"):
        cases["mass 1"] = replace(generic, mass=1.0, b_hat=0.0)
        cases["mass 1, L = 2"] = replace(generic_case(impl, 2), mass=1.0, b_hat=0.0)
        cases["light"] = replace(generic, mass=0.7, b_hat=0.0)
    if impl.accepts("mass per coordinate"):
        cases["masses"] = replace(generic, mass=np.array([2.89, 0.3, 1.7, 5.5]), b_hat=0.0)
    if impl.accepts("b_hat per coordinate"):
        cases["b_hats"] = replace(generic, b_hat=np.array([0.05, 0.0, 0.02, 0.1]))
    vectors = {"mass": (2 + np.arange(5003) % 7) / 2, "b_hat": (1 + np.arange(5003) % 5) / 64}
    vectors = {name: x for name, x in vectors.items() if impl.accepts(f"{name} per coordinate")}
    if vectors:
        cases["n = 5003"] = replace(sized(generic, 5003), **vectors)
    return {**cases, **without_gradient(generic), **whole_numbers(impl, generic), "far": far(generic),
            **huge_and_tiny(impl, generic), **{f"n = {n}": sized(generic, n) for n in SIZES},
            **{f"L = {L}": sized(generic, 3, L=L) for L in (23, 24)}, MANY: sized(generic, 3, L=130),
            LONG: sized(generic, 65543)}


def without_gradient(generic):
    """One coordinate without a gradient, then all."""
    others = np.arange(generic.n) != 1
    return {"no gradient in 1": replace(generic, A=generic.A * others * others[:, None], b=generic.b * others),
            "no gradient": replace(generic, A=0 * generic.A, b=0 * generic.b)}


def whole_numbers(impl, generic):
    """The generic case with integers for the settings that an implementation takes, by name."""
    cases = {}
    if impl.accepts("mass"):
        cases["integer mass"] = replace(generic, mass=3, b_hat=0.0)
    if impl.accepts("mass per coordinate"):
        cases["integer masses"] = replace(generic, mass=np.array([3, 1, 2, 5]), b_hat=0.0)
    if impl.accepts("b_hat"):
        cases["integer b_hat"] = replace(generic, b_hat=1)
    return cases


def huge_and_tiny(impl, generic):
    """Settings far from 1, with inputs in proportion where there are any; and both vectors at once."""
    plain, cases = replace(generic, b_hat=0.0), {}
    for name, s in (("2^-60", 2.0**30), ("2^60", 2.0**-30)):
        eps = replace(plain, eps=plain.eps / s**2, z=plain.z * s**2, A=plain.A * s**4, b=plain.b * s**4)
        mass = replace(plain, mass=plain.mass / s**2, z=plain.z / s, A=plain.A / s**2, b=plain.b / s**2)
        cases |= {f"eps times {name}": eps} | ({f"mass times {name}": mass} if impl.accepts("mass") else {})
    cases |= {f"alpha = {name}": replace(plain, alpha=alpha) for name, alpha in (
        ("0", 0.0), ("2^-20", 2.0**-20), ("1 - 2^-10", 1 - 2.0**-10))}
    if impl.accepts("mass per coordinate") and impl.accepts("b_hat per coordinate"):
        cases["masses and b_hats"] = replace(generic, mass=np.array([2.89, 0.3, 1.7, 5.5]),
                                             b_hat=np.array([0.05, 0.0, 0.02, 0.1]))
    return cases


def far(generic):
    """The generic case around a point so far from the origin that np.allclose sees no move."""
    shift = 2.0**26
    return replace(generic, w=generic.w + shift, b=generic.b + generic.A.sum(axis=1) * shift, b_hat=0.0)


def sized(generic, n, L=3):
    """A case of n coordinates that do not act on each other, with one mass and no B^."""
    return replace(long_case(n, L), mass=generic.mass)


def reach(case):
    """F of the rounding bound (n,) in floats."""
    return positions(case, positive=True, numbers=FLOATS)[-1]


RIGHT_ANSWERS = {}  # question -> (right answer, F)


def observed(impl, case):
    """The Observation of a case, in floats: twice the bound, since the right answer is rounded too. F is no smaller
    than the answer, so that one that is far too large may have the roundings of its own size."""
    key = case.key()
    if key not in RIGHT_ANSWERS:
        RIGHT_ANSWERS[key] = sample(NUMPY, case), reach(case)
    (right, F), k, got = RIGHT_ANSWERS[key], float(gamma(impl, case)), sample(impl, case)
    return Observation({STEP: (got, right, 2 * k * np.maximum(F, abs(got)))},
                       lambda candidate: {STEP: sample(implementation(candidate[0]), case)}, key)


def diagnose_step(impl):
    """What is wrong with a sampler: the known bug it has, or what else can be said of it; and B^ > C, if it is let
    through."""
    def said(look):
        """What a look says. An exception is said by wrong_numbers, and by no other."""
        with contextlib.suppress(Exception):
            return look(impl)

    with np.errstate(all="ignore"):
        writes = said(written)  # what follows from that is not said
        first = said(kept_between_calls) or said(kept_setting) or wrong_numbers(impl)
        first = first or (not writes and said(by_memory))
        texts = filter(None, (first, said(refusal), writes))
        return " Also: ".join(text.rstrip(".") + "." for text in texts) or RIGHT


def wrong_numbers(impl):
    """The known bug, or what else can be said of wrong answers; "" if all are right."""
    cases, seen, raised = questions(impl), {}, ""
    for name, case in cases.items():
        if name == LONG and any(o.wrong for o in seen.values()):
            continue  # what is wrong elsewhere needs no long answers
        try:
            seen[name] = observed(impl, case)
        except Exception as error:
            raised = raised or f"the case {name} raises {type(error).__name__}: {error}"
    cases, wrong = {name: cases[name] for name in seen}, {name: o for name, o in seen.items() if o.wrong}
    if not wrong:
        return raised or by_size(impl) or wrong_coefficients(impl) or rounded_step(impl)
    if all(" times 2^" in name for name in wrong):  # where much is 0 or infinite, many bugs give one answer
        return by_size(impl) or f"wrong{only(cases, wrong).removeprefix('; wrong')}"
    return (name_of(impl, cases, seen, wrong) or raised or single(impl, seen) or rounded_step(impl) or by_size(impl)
            or "no known bug. One input at a time: " + (wrong_coefficients(impl, deep=MANY in wrong)
                                                        or "all right" + only(cases, wrong)))


def only(cases, wrong):
    """Where the wrong answers are, and the first of them, in words."""
    name = next(iter(wrong))
    i = int(bad_entries(wrong[name]).argmax())
    got, right, _ = (np.broadcast_to(x, cases[name].n) for x in wrong[name].parts[STEP])
    where = [words for words, has in SPECIAL.items() if {x for x in cases if has(cases[x])} == set(wrong)]
    return "; wrong {}: W_(t+1)[{}] is {}, right is {}".format(
        where[0] + " alone" if where else f"in {some(wrong, ', ')} of the cases asked", i, *apart(got[i], right[i]))


def written(impl):
    """Whether an argument of the caller is written, in words."""
    names = written_arguments(impl, generic_case(impl))
    return f"the caller's {' and '.join(names)} is written: copy it before adding to it" if names else ""


def kept_between_calls(impl):
    """Whether the same input gives other numbers after another call, in words."""
    case = generic_case(impl)
    first = sample(impl, case)
    sample(impl, replace(case, w=case.w + 1, z=case.z[::-1] - 1))
    again = sample(impl, case)
    return "" if np.array_equal(first, again, equal_nan=True) else (
        "momentum: kept between calls, or something else is: the same input gives other bits after another call.")


def kept_setting(impl):
    """Whether a setting of an earlier call is used again, in words; in calls unlike all others."""
    others = {"eps": 0.07, "alpha": 0.31, "mass": 1.7, "b_hat": 0.02}
    for i, (name, value) in enumerate(others.items()):
        if name in ("mass", "b_hat") and not impl.accepts(name):
            continue
        case = sized(generic_case(impl), 211 + i, L=9 + i)
        case = replace(case, eps=0.11 + i / 512, alpha=0.17 + i / 512, b_hat=0.05 if impl.accepts("b_hat") else 0.0)
        other = replace(case, **{name: value})
        first, then = observed(impl, case), observed(impl, other)
        if then.wrong and not first.wrong and STEP in then.near({STEP: first.parts[STEP][1]}):
            return (f"{name}: kept between calls, a call with {name} = {value:g} gets the sample of the call before, "
                    f"which had {name} = {getattr(case, name):g}")
    return ""


def by_memory(impl):
    """Whether arrays that lie in memory in another order are taken for others, in words."""
    try:
        assert_views(impl, Draw(1))
    except Disagreement as error:
        return f"arguments: read in the order of memory, {error.message}"
    return ""


def refusal(impl):
    """Whether B^ > C is let through, in words."""
    return unrefused(impl, generic_case(impl)) if impl.accepts("b_hat") else ""


def name_of(impl, cases, seen, wrong):
    """The text that names a known bug, or "" if none fits."""
    if not any(np.any(o.parts[STEP][0]) for o in seen.values()):
        return ""  # an answer of zeros alone names nobody
    found = fitting(seen.values(), STEP_CANDIDATES + SPECIAL_BUGS + STEP_OF_SIZE)
    if found:
        return equals(found)
    for words, has in SPECIAL.items():
        here = {name: seen[name] for name in seen if has(cases[name])}
        if set(wrong) <= set(here) and len(here) < len(seen):
            found = fitting(here.values(), STEP_CANDIDATES)
            if found:
                return f"{words} {equals(found)} Otherwise it is right."
    return in_coordinates(seen, wrong) or beside_another(cases, seen, wrong)


def in_coordinates(seen, wrong):
    """A known bug that sits in some coordinates alone, and would show in others; by the questions in which no
    coordinate acts on another."""
    alone = {name: o for name, o in wrong.items() if name.startswith("n = ")}
    places = {name: bad_entries(o) for name, o in alone.items()}
    if not alone or all(bad.all() for bad in places.values()):
        return ""
    parts = [Observation({STEP: tuple(x[places[name]] for x in o.parts[STEP])}, lambda c, o=o, name=name: {
        STEP: o.ask(c)[STEP][places[name]]}) for name, o in alone.items()]
    found = [row for row in fitting(parts, STEP_CANDIDATES) if row not in fitting(alone.values(), candidates([row]))]
    if not found:
        return ""
    where = "; ".join(f"{some_coordinates(np.flatnonzero(bad))} of {len(bad)}" for bad in list(places.values())[-3:])
    return f"in {where} {equals(found)} The other coordinates are right{remainder(seen)}."


def remainder(seen):
    """Whether the wrong coordinates are what is left of blocks, in words."""
    bad = [bad_entries(o) for name, o in seen.items() if name.startswith("n = ")]
    for size in (2**k for k in range(1, 10)):
        if all(np.array_equal(x, np.arange(len(x)) >= len(x) // size * size) for x in bad):
            return f": wrong are the last n % {size}"
    return ""


def bad_entries(observation):
    got, right, bound = observation.parts[STEP]
    return ~(abs(got - right) <= bound)


def beside_another(cases, seen, wrong):
    """A known bug of the simpler cases, where b_hat or the mass is wrong as well; or what is right there."""
    simpler = {"at b_hat = 0 ": ("b_hat", lambda case: not np.any(case.b_hat)),
               "at mass = 1 and b_hat = 0 ": ("the mass", lambda case: np.all(np.equal(case.mass, 1)))}
    for words, (other, has) in simpler.items():
        here = {name: seen[name] for name in seen if has(cases[name])}
        if not here or len(here) == len(seen) or not set(here) & set(wrong):
            continue
        found = fitting(here.values(), STEP_CANDIDATES)
        same_size = {name: o for name, o in seen.items() if cases[name].n == cases["generic"].n and cases[name].L < 20}
        if found and not set(found) <= set(fitting(same_size.values(), STEP_CANDIDATES)):  # else n or L is to blame
            return f"{words}{equals(found)} Elsewhere no known bug fits: {other} may be wrong as well."
    return ""


def single(impl, seen):
    """Double precision that is right to 24 bits only."""
    if impl.dtype != "float64" or not all(
            same(got, want, bound * 2.0**29) for o in seen.values() for got, want, bound in [o.parts[STEP]]):
        return ""
    if all(np.array_equal(o.parts[STEP][0], np.float32(o.parts[STEP][0])) for o in seen.values()):
        return "right to single precision: look for a hidden float32, or set DTYPE = 'float32'."
    always = all(seen[name].wrong for name in ("generic", "L = 1", "L = 2", "L = 4") if name in seen)
    return rounded_scalars(impl) if always else ""
