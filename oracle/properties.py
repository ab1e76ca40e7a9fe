"""A sentence about an implementation: a Hypothesis test for pytest, and one row of the register for the kill matrix.

SGHMC_RANDOM=1 draws fresh inputs at each run (with `--hypothesis-seed=N`: those of seed N); otherwise they are always
the same.
"""

import contextlib
import os

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from oracle import report
from oracle.implementations import Broken, where
from oracle.inputs import Draw
from oracle.own_draws import look

RANDOM = bool(os.environ.get("SGHMC_RANDOM"))
THOROUGH = RANDOM or os.environ.get("SGHMC_IMPL")  # the built-ins pass at every run: a third of the examples will do
SETTINGS = dict(derandomize=not RANDOM, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
                verbosity=Verbosity.quiet)  # our own message says it all
PROPERTIES = []  # (check, capability), run by pytest on the implementations, by the kill matrix on the known bugs
KILLS = {}  # check -> how many bugs it was the first to fail: the next bug meets these first
FIXED, SIZED = set(), set()  # checks that draw nothing; those of them at real sizes


class Shrinking(Draw):
    """Integers from Hypothesis, which shrinks them to a unit probe."""

    def __init__(self, data):
        self.data = data

    def integers(self, size, low, high):
        return self.data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size))


def holds_for(capability, keyword=None, examples=20, sized=False):
    """Make a property `check(impl, draw)` a Hypothesis test of every implementation that has `capability`, and whose
    sghmc_step takes `keyword`; conftest.py at the top of the repository says which these are. One example: it draws
    nothing. sized: nor does a property at real sizes."""
    def register(check):
        PROPERTIES.append((check, capability))
        FIXED.update([check] if sized or examples == 1 else [])
        SIZED.update([check] if sized else [])

        @settings(max_examples=1 if check in FIXED else examples if THOROUGH else examples // 3, **SETTINGS)
        @given(data=st.data())
        def test(impl, data):
            with recorded(impl, capability, check.__name__):
                check(impl, Shrinking(data))

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        test.needs = capability, keyword
        return test
    return register


def own_draws(check):
    """Make check(what is seen of a sampler) -> facts that are wrong, in words, a test of every implementation that
    draws its own noise."""
    def test(impl):
        try:
            facts = check(look(impl))
        except Broken as error:
            facts = [str(error)]
        if facts:
            more = f" (and {len(facts) - 1} more of the kind)" if len(facts) > 1 else ""
            report.record(impl, "sghmc_sample", check.__name__, facts[0] + more)

    test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
    test.needs = "sghmc_sample", None
    return test


@contextlib.contextmanager
def recorded(impl, capability, test):
    """Keeps a failure for the end of the run, where its cause is named once; a traceback of ours would say nothing."""
    try:
        with np.errstate(all="ignore"):
            yield
    except HypothesisException:
        raise
    except AssertionError as error:
        report.record(impl, capability, test, str(error), getattr(error, "inputs", ()))
    except Exception as error:
        report.record(impl, capability, test, f"{type(error).__name__}: {error}{where(error, impl.module)}")


def first_failure(impl, sized):
    """Name of the first property that the implementation fails on fixed inputs, or None; sized: only those at real
    sizes are tried."""
    for seed in (0, 1):
        for check, capability in sorted(PROPERTIES, key=lambda row: -KILLS.get(row[0], 0)):
            if impl.has(capability) and not (seed and check in FIXED) and (check in SIZED or not sized):
                try:
                    with np.errstate(all="ignore"):
                        check(impl, Draw(seed))
                except Exception:
                    KILLS[check] = KILLS.get(check, 0) + 1
                    return check.__name__
    return None
