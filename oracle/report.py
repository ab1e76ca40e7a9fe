"""What went wrong in a run, and its end: the diagnosis of each implementation once, and a case to paste."""

import textwrap
from collections import Counter

import numpy as np
import pytest

from oracle.energy import Batch
from oracle.energy_names import diagnose_energy
from oracle.known_bugs import bugs, implementation
from oracle.laws import diagnose
from oracle.own_draws import look
from oracle.sampler import Case
from oracle.snippets import of_sample, snippet
from oracle.step_names import diagnose_step

FAILURES = {}  # (name of an implementation, "sampler", "own draws" or "energy") -> (implementation, {test: Failure})
HALVES = {"sghmc_step": "sampler", "sghmc_sample": "own draws"}
WIDTH, MOST_TESTS, MOST_LINES = 120, 3, 48  # pytest adds its progress and its counts


def half_of(capability):
    return HALVES.get(capability, "energy")


def diagnose_draws(impl):
    """Names the bug of a sampler that draws its own noise: of its generator, or by its law."""
    found = diagnose(look(impl), [(row.name, implementation(row).module.sghmc_step) for row in bugs("step")])
    return "; ".join(sorted(found, key=lambda text: text.startswith("b_hat = 2 C")))  # what has a name comes first


def record(impl, capability, test, message, inputs=()):
    """Keep a failure for `lines_at_the_end`, and fail the test in one line. Hypothesis ends with the smallest case."""
    _, failed = FAILURES.setdefault((impl.name, half_of(capability)), (impl, {}))
    failed[test] = message, inputs
    raise pytest.fail.Exception(f"{impl.name}: {message}", pytrace=False) from None


def lines_at_the_end(skipped, foreign, lacks):
    """The diagnoses of what failed; of foreign modules also why tests were skipped, examples and a case to paste.
    skipped: the reason of each skipped test."""
    lines, rest = list(lacks), []
    for reason, count in Counter(skipped).items():
        if " defines no " in reason:
            continue  # said below, whether or not its tests were selected
        lines.append(f"{reason}: {count} test{'s' * (count > 1)} skipped")
    lines += [f"{name}: {text}" for (name, _), text in NOTES.items() if foreign]
    for (name, half), (impl, failed) in FAILURES.items():
        diagnosis = {"sampler": diagnose_step, "own draws": diagnose_draws, "energy": diagnose_energy}[half](impl)
        if not foreign:
            lines.append(f"{name}, {half}: {diagnosis}")
            continue
        lines += textwrap.wrap(f"{name}, {half}: {diagnosis}", WIDTH, subsequent_indent="    ",
                               break_long_words=False, break_on_hyphens=False)
        rest += examples(name, half, failed) + pasted(impl, half, failed)
    return lines + (rest if len(lines + rest) <= MOST_LINES else [
        *rest[:MOST_LINES - len(lines)], "... and more, with one module in SGHMC_IMPL, or with --tb=short"])


def examples(name, half, failed):
    """The failed tests: the simplest messages, and how many more there are."""
    texts = {failed[test][0]: test for test in failed}  # one test for each message
    simplest = [texts[message] for message in sorted(texts, key=len)[:MOST_TESTS]]
    more = f", the {MOST_TESTS} shortest (all: -rf; their inputs: --tb=short)" if len(failed) > MOST_TESTS else ""
    count = f"{len(failed)} test{'s fail' if len(failed) > 1 else ' fails'}"
    return [f"{name}, {half}: {count}{more}:",
            *(cut(f"    {test.removeprefix('test_')}: {failed[test][0]}") for test in simplest)]


def cut(text):
    """The first line, as far as there is room."""
    text = text.split("\n")[0]
    return text if len(text) <= 2 * WIDTH else text[:2 * WIDTH - 4] + " ..."


def pasted(impl, half, failed):
    """The smallest failing case as Python, [] if there is none."""
    if half == "own draws":
        return ["In Python:", *of_sample(impl)]
    cases = [x for _, inputs in failed.values() for x in inputs if isinstance(x, Case | Batch)]
    for case in sorted(cases, key=lambda x: len(repr(x))):
        with np.errstate(all="ignore"):
            text = snippet(impl, case)
        if text:
            return ["In Python:", *text]
    return []


NOTES = {}  # (name of an implementation, kind) -> what is worth knowing about it


def note(impl, text, certain=True):
    """Keep a fact for the end of the run; the last certain one of a kind stays."""
    if certain:
        NOTES[impl.name, text.partition(":")[0]] = text
