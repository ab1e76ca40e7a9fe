"""What went wrong in a run, and its end: the diagnosis of each implementation, once."""

import pytest

from oracle.diagnosis import diagnose_energy, diagnose_step

FAILURES = {}  # (name of an implementation, "sampler" or "energy") -> (implementation, {test: message})


def half_of(capability):
    return "sampler" if capability.startswith("sghmc") else "energy"


def record(impl, capability, test, error, message):
    """Keep a failure for `lines_at_the_end`, and fail the test in one line. Hypothesis ends with the smallest case."""
    _, failed = FAILURES.setdefault((impl.name, half_of(capability)), (impl, {}))
    failed[test] = message
    raise pytest.fail.Exception(f"{impl.name}: {message}", pytrace=False) from None


def lines_at_the_end():
    """The diagnoses of what failed."""
    for (name, half), (impl, _) in FAILURES.items():
        diagnosis = {"sampler": diagnose_step, "energy": diagnose_energy}[half](impl)
        yield f"{name}, {half}: {diagnosis}"


NOTES = {}  # name of an implementation -> what is worth knowing about it


def note(impl, text, certain=True):
    """Keep a fact for the end of the run; the last certain one of a kind stays."""
    if certain:
        NOTES[impl.name, text.partition(":")[0]] = text
