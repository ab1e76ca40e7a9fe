"""What went wrong in a run, and its end: the diagnosis of each implementation, once."""

import pytest

from oracle.diagnosis import diagnose_energy, diagnose_step
from oracle.known_bugs import bugs, implementation
from oracle.laws import diagnose
from oracle.own_draws import look

FAILURES = {}  # (name of an implementation, "sampler", "own draws" or "energy") -> (implementation, {test: message})
HALVES = {"sghmc_step": "sampler", "sghmc_sample": "own draws"}


def half_of(capability):
    return HALVES.get(capability, "energy")


def diagnose_draws(impl):
    """Names the bug of a sampler that draws its own noise: of its generator, or by its law."""
    return "; ".join(diagnose(look(impl), [(row.name, implementation(row).module.sghmc_step) for row in bugs("step")]))


def record(impl, capability, test, message):
    """Keep a failure for `lines_at_the_end`, and fail the test in one line. Hypothesis ends with the smallest case."""
    _, failed = FAILURES.setdefault((impl.name, half_of(capability)), (impl, {}))
    failed[test] = message
    raise pytest.fail.Exception(f"{impl.name}: {message}", pytrace=False) from None


def lines_at_the_end():
    """The diagnoses of what failed."""
    for (name, half), (impl, _) in FAILURES.items():
        diagnosis = {"sampler": diagnose_step, "own draws": diagnose_draws, "energy": diagnose_energy}[half](impl)
        yield f"{name}, {half}: {diagnosis}"


NOTES = {}  # name of an implementation -> what is worth knowing about it


def note(impl, text, certain=True):
    """Keep a fact for the end of the run; the last certain one of a kind stays."""
    if certain:
        NOTES[impl.name, text.partition(":")[0]] = text
