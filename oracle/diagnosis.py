"""Which known bug gives these outputs? One search, for a module under test and for results read from a file.

An observation is one input with the parts of the answer to it (W_{t+1}; or U and gradients), in floats. A bug is named
only if it gives all parts of all observations. Where different bugs sit in different parts, each must give its parts in
all observations. An answer of zeros alone names nobody.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from oracle.arithmetic import contents
from oracle.energy import NAMES, energy_bound, gradient_bounds, truth
from oracle.known_bugs import TABLE, bugs, bugs_of_size, differentiated, implementation

STEP = "W_(t+1)"
ANSWERS = {}  # key of an observation -> what the known bugs answer: other implementations meet the same inputs


@dataclass(eq=False)
class Observation:
    """An input and the answer to it; parts: name -> (got, right, bound), arrays.

    ask(a known bug) gives {name: array}, kept by the key of the input; where: the input in words.
    """

    parts: dict
    ask: object = None
    key: object = None
    where: str = ""

    def __post_init__(self):
        self.answers = ANSWERS.setdefault(self.key, {}) if self.key else {}

    def fits(self, candidate):
        """The names of the parts that a candidate explains."""
        if candidate not in self.answers:
            try:
                with np.errstate(all="ignore"):
                    self.answers[candidate] = self.ask(candidate)
            except Exception:  # a bug that cannot answer here does not explain an answer
                self.answers[candidate] = {}
        return self.near(self.answers[candidate])

    def near(self, others):
        return {name for name, (got, _, bound) in self.parts.items() if name in others
                and same(got, others[name], bound)}

    @cached_property
    def wrong(self):
        return set(self.parts) - self.near({name: right for name, (_, right, _) in self.parts.items()})


def within(got, want, bound):
    """Which entries are within the bounds, as booleans; no NaN and no infinity is."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(got) & (abs(got - want) <= bound)


def same(got, want, bound):
    """Within the bounds; NaN and infinity are values like any other here."""
    return bool((within(got, want, bound) | (got == want) | (np.isnan(got) & np.isnan(want))).all())


@dataclass
class Explanation:
    """What is wrong, the bugs that give the whole answer, those that give parts of it, and what no bug gives."""

    wrong: set
    whole: list
    parts: list  # (known bug, names of parts)
    rest: set


def explain(observations, candidates):
    """The Explanation of the observations by the candidates, pairs (row of the table, how it is asked)."""
    names = set().union(*(o.parts for o in observations))
    wrong = set().union(*(o.wrong for o in observations))
    nonzero = {name for name in names if any(np.any(o.parts[name][0] != 0) for o in observations if name in o.parts)}
    fits = [(candidate[0], fitting_parts(observations, candidate, names)) for candidate in candidates if wrong & names]
    whole = list(dict.fromkeys(row for row, explained in fits if explained == names and nonzero))
    parts, rest = [], set(wrong)
    while rest & nonzero:  # the bug that explains U, then the one that explains the most of the rest, and so on
        row, explained = max(fits, key=lambda bug: ("U" in bug[1] & rest & nonzero, len(bug[1] & rest & nonzero)))
        if not explained & rest & nonzero:
            break
        parts.append((row, explained & rest & nonzero))
        rest -= explained & nonzero
    return Explanation(wrong, whole, parts, rest)


def fitting(observations, candidates):
    """The known bugs that give the whole answer in all observations."""
    return list(dict.fromkeys(x[0] for x in candidates if all(set(o.parts) == o.fits(x) for o in observations)))


def fitting_parts(observations, candidate, names):
    """The parts that a candidate gives in every observation that has them."""
    left = set(names)
    for observation in observations:
        left -= left and left & set(observation.parts) - observation.fits(candidate)
        if not left:
            break
    return left


def is_single(seen):
    """Whether answers in double precision are all float32 numbers, and right to single precision (u is 2^29 larger,
    bounds that are not linear in u less than 2^30)."""
    parts = {name: (got, want, bound * 2**30) for name, (got, want, bound) in seen.parts.items()}
    singles = all(np.array_equal(got, np.float32(got), equal_nan=True) for got, _, _ in parts.values())
    return singles and not Observation(parts).wrong


def some(texts, between):
    """The first four of the texts, and how many more there are."""
    texts = list(map(str, texts))
    return between.join(texts[:4]) + (f"; and {len(texts) - 4} more" if len(texts) > 4 else "")


def equals(found):
    """The known bugs that were found, in words."""
    return f"your output equals that of a known bug: {some(found, ' Or: ')}"


def apart(*numbers):
    """Two numbers with as many digits as tell them apart, nine at least."""
    texts = [[format(float(x), f".{digits}g") for x in numbers] for digits in (9, 12, 15, 17)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[-1])


# ------------------------------------------------------------------------------------------------------- who is asked

def candidates(rows):
    """Rows of the table as candidates, pairs (row, how it is asked)."""
    return [(row, "as written") for row in rows]


STEP_CANDIDATES = candidates(bugs("step"))
SPECIAL_BUGS = candidates(row for row in TABLE["step"] if row.kind == "bug" and row.special)
STEP_OF_SIZE = candidates(bugs_of_size("step"))
ENERGY_CANDIDATES = [*candidates(bugs("energy", "gradient")),
                     *((row, "differentiated") for row in bugs("energy") if not row.no_decimals)]
ENERGY_OF_SIZE = candidates([*bugs_of_size("energy"), *bugs_of_size("gradient")])


# --------------------------------------------------------------------------------------------------------- the energy

def energy_answers(impl, batch, stop_grads):
    """{name: answer} of U and of the gradients for each stop_grad, as far as there are any."""
    answers = {"U": np.array(impl.energy(*batch.arrays()))} if impl.has("energy") else {}
    for stop_grad in stop_grads if impl.has("energy_grad") else ():
        g = impl.energy_grad(*batch.arrays(), stop_grad)
        answers |= {gradient_name(x, stop_grad): a for x, a in zip(NAMES, g, strict=True)}
    return answers


def gradient_name(x, stop_grad):
    return f"dU/d{x}{' with stop-gradient' * stop_grad}"


def right_energy(impl, batch, stop_grads):
    """{name: (right answer, twice its bound, since it is rounded to floats)}."""
    right = truth(batch)
    known = {"U": (right.U, energy_bound(impl, batch, right))}
    for stop_grad in stop_grads:
        grads = zip(NAMES, truth(batch, stop_grad).grads, gradient_bounds(impl, batch, right), strict=True)
        known |= {gradient_name(x, stop_grad): (g, e + 0 * g) for x, g, e in grads}
    return {name: (np.array(x, dtype=float), 2 * np.array(bound, dtype=float)) for name, (x, bound) in known.items()}


def observe_energy(impl, batch, stop_grads=(False, True)):
    """The observation of one batch."""
    got, known = energy_answers(impl, batch, stop_grads), right_energy(impl, batch, stop_grads)
    return Observation({name: (x, *known[name]) for name, x in got.items()},
                       lambda candidate: energy_of(candidate, batch, stop_grads), contents(*batch.arrays(), stop_grads),
                       "{} rows of {}".format(*batch.p1.shape))


def energy_of(candidate, batch, stop_grads):
    """{name: answer} of a known bug: as written in the table, or of a wrong U that a machine differentiated."""
    row, how = candidate
    if how == "as written":
        return energy_answers(implementation(row), batch, stop_grads)
    U, grads = differentiated(row, batch)
    answers = {"U": U} | {gradient_name(x, stop): 0 * g if stop and x in ("z1", "z2") else g
                          for stop in stop_grads for x, g in zip(NAMES, grads, strict=True)}
    return {name: np.array(x, dtype=float) for name, x in answers.items()}


def in_parts(found, seen):
    """The parts of the observations that are wrong, each with its bug."""
    texts = [f"your {in_words(names, seen)} equals that of a known bug: {row}" for row, names in found.parts]
    if not texts:
        return "no known bug. Wrong: " + in_words(found.wrong, seen)
    if found.rest:
        texts.append(f"your {in_words(found.rest, seen)} is wrong too, but by no known bug.")
    return " And ".join(texts)


def in_words(names, seen):
    """The parts of the outputs by name."""
    parts = {name: x.parts[name][0] for x in seen for name in x.parts}
    spoken, gradients = [name for name in parts if name in names], [name for name in parts if name != "U"]
    if gradients and {x for x in gradients if "dz" not in x or "stop" not in x} <= names:  # those are mostly zero
        spoken = ["U", "all its gradients"] if "U" in names else ["whole gradient"]
    nan = any(np.isnan(parts[name]).any() for name in names)
    return (" and " if len(spoken) == 2 else ", ").join(spoken) + " (with NaN)" * nan
