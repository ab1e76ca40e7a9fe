"""Which implementations the oracle tests, and the end of a run.

    pytest                                          the built-in ones
    SGHMC_IMPL="pkg.module /path/mine.py" pytest    any others, by module name or file; see README
"""

import gc
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOREIGN = os.environ.get("SGHMC_IMPL", "").strip()
if not FOREIGN:
    # One thread, of torch and of NumPy, which reads this when it is imported: small batches and matrices leave others
    # nothing to do but wait, on a busy machine for longer than the work takes. The same for the processes that tests
    # start: the bits of a run depend on the number.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "tests")]

from oracle.calls import with_noise  # noqa: E402  (importable from now on)
from oracle.implementations import NUMPY, Implementation, Unusable, load, places  # noqa: E402
from oracle.names import CAPABILITIES  # noqa: E402

gc.set_threshold(200_000, 50, 100)  # looking for cycles among all that is imported takes time
IMPLEMENTATIONS, PROBLEMS = [], []
try:
    IMPLEMENTATIONS = [load(place) for place in places(FOREIGN)]
except Unusable as error:
    PROBLEMS = [str(error)]
if not FOREIGN:
    from torch_adapter import torch_adapter

    own = SimpleNamespace(sghmc_sample=with_noise(NUMPY.module.sghmc_step))
    IMPLEMENTATIONS = [NUMPY, torch_adapter("float64"), torch_adapter("float32"), Implementation("own draws", own)]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """A module that cannot be tested is one line and exit code 2, never a pass, and nothing else runs."""
    if FOREIGN and not PROBLEMS and not config.option.help:
        from oracle.first_look import problems

        PROBLEMS.extend(line for impl in IMPLEMENTATIONS for line in problems(impl))
    if PROBLEMS and not config.option.help:
        print(*PROBLEMS, sep="\n", file=sys.stderr)
        return 2


def pytest_configure(config):
    if FOREIGN:  # warnings in foreign code are no failures, and the versions of everything are no news
        config.addinivalue_line("filterwarnings", "ignore")
        config.option.no_header = True
        if config.option.tbstyle == "auto":  # each cause once, at the end; --tb=short shows every failure
            config.option.tbstyle = "no"
        config.option.reportchars = config.option.reportchars.replace("s", "").replace("fE", "E")


def pytest_generate_tests(metafunc):
    """A test that `needs` a capability runs for the implementations that have it, and is skipped for the others."""
    if hasattr(metafunc.function, "needs"):
        metafunc.parametrize("impl", [candidate(impl, *metafunc.function.needs) for impl in IMPLEMENTATIONS])


def candidate(impl, capability, keyword):
    lacks = not impl.has(capability) and f"{impl.name} defines no {capability}"
    lacks = lacks or (keyword and not impl.accepts(keyword) and f"{capability} of {impl.name} takes no {keyword}")
    return pytest.param(impl, id=impl.name, marks=[pytest.mark.skip(reason=lacks)] if lacks else [])


def pytest_terminal_summary(terminalreporter):
    """Below all failures: what was not tested, and the diagnoses."""
    from oracle.report import lines_at_the_end

    skipped = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())]
    absent = {impl.name: [name for name in CAPABILITIES if not impl.has(name)] for impl in IMPLEMENTATIONS if FOREIGN}
    lacks = [f"{impl} defines no {', '.join(names)}: skipped" for impl, names in absent.items() if names]
    for line in lines_at_the_end(skipped if FOREIGN else (), bool(FOREIGN), lacks):
        terminalreporter.write_line(line)
