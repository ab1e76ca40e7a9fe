"""A failing case as Python that can be pasted."""

from pathlib import Path

import numpy as np

from oracle.calls import noise_map
from oracle.energy import NAMES, Batch, energy_bound, gradient_bounds, truth
from oracle.implementations import Broken
from oracle.own_draws import look, noiseless
from oracle.sampler import positions, run, tolerance

LONGEST = 1500  # characters of numbers that anybody would paste


def snippet(impl, case):
    """Lines that call the implementation on a case, with the right answer; [] if it is right there or too large."""
    if len(repr(case)) > LONGEST:
        return []
    try:
        return of_batch(impl, case) if isinstance(case, Batch) else of_step(impl, case)
    except Exception:  # what raises is said with its place
        return []


def taken(impl, *names):
    """The lines that import functions of the module."""
    file = getattr(impl.module, "__file__", None)
    if impl.name.endswith(".py") and file:
        path = str(Path(file).resolve())
        return ["import numpy as np; from runpy import run_path",
                f"mine = run_path({path!r}); {'; '.join(f'{n} = mine[{n!r}]' for n in names)}"]
    return [f"import numpy as np; from {impl.module.__name__} import {', '.join(names)}"]


def array(x):
    return f"np.array({np.array(x, dtype=float).tolist()})"


def of_step(impl, case):
    """The lines of `snippet` for a sampler; gradients that were recorded are a table of positions there."""
    got, right = run(impl, case), positions(case)[-1]
    if (abs(got - right) <= tolerance(impl, case)).all():
        return []
    if case.g is None:
        force = f"A, b = {array(case.A)}, {array(case.b)}"
        grad = f"lambda x: A {'*' if case.A.ndim == 1 else '@'} np.asarray(x) - b"
        grad += f" + {case.kappa} * abs(np.asarray(x))" if case.kappa else ""
    else:
        X = np.array([[float(x) for x in row] for row in positions(case)])
        force = f"X, g = {array(X)}, {array(case.g)}  # the gradients g at the positions X"
        grad = "lambda x: g[abs(X - np.asarray(x)).max(axis=1).argmin()]"
    keywords = ", ".join(f"{k}={array(v) if np.ndim(v) else v}" for k, v in case.settings().items())
    return [*taken(impl, "sghmc_step"), f"w, z = {array(case.w)}, {array(case.z)}", force,
            f"print(np.asarray(sghmc_step(w, z, {grad}, {keywords})).tolist())",
            f"# now {[float(x) for x in got]}, right {[float(x) for x in right]}"]


def of_batch(impl, batch):
    """The lines of `snippet` for the energy, or else for the first of its gradients that is wrong."""
    right, lines = truth(batch), [f"{name} = {array(x)}" for name, x in zip(NAMES, batch.arrays(), strict=True)]
    if not right.m:
        return []
    if impl.has("energy"):
        U = impl.energy(*batch.arrays())
        if not abs(U - float(right.U)) <= energy_bound(impl, batch, right):
            return [*taken(impl, "energy"), *lines, "print(energy(p1, z1, p2, z2))",
                    f"# now {U!r}, right {float(right.U)!r}"]
    for stop_grad in (False, True) if impl.has("energy_grad") else ():
        want, bounds = truth(batch, stop_grad).grads, gradient_bounds(impl, batch, right)
        got = impl.energy_grad(*batch.arrays(), stop_grad)
        for name, g, w, e in zip(NAMES, got, want, bounds, strict=True):
            w = np.array(w, dtype=float) + 0 * g
            if not (abs(g - w) <= np.array(e, dtype=float)).all():
                return [*taken(impl, "energy_grad"), *lines,
                        f"print(energy_grad(p1, z1, p2, z2, {stop_grad})[{NAMES.index(name)}])",
                        f"# d U / d {name} is now {g.tolist()}, right {w.tolist()}"]
    return []


def of_sample(impl):
    """The lines for a sampler that draws its own noise: its spread, and what W_t and the gradients move, as the oracle
    calls it. Most of what can be wrong shows in one of them."""
    seen = look(impl)
    settings, n, L = seen.generic, seen.large.n, seen.generic["L"]

    def sample(w, g):
        return seen.call(seen.large, seen.seed, settings, np.full(n, w), np.full((L + 1, n), g)).X[-1]

    try:
        x = sample(0.0, 0.0)
        got = [x.std(), (sample(1.0, 0.0) - x).mean(), (sample(0.0, 1.0) - x).mean()]
    except Broken:
        got = []
    spread = np.linalg.norm(noise_map(seen.reference, settings).sum(axis=0))
    texts = [", ".join(f"{x:.6g}" for x in numbers) for numbers in (
        got, (spread, 1.0, noiseless(settings, 0.0, np.ones(L + 1))[-1]))]
    keywords = ", ".join(f"{k}={v}" for k, v in settings.items())
    return [*taken(impl, "sghmc_sample"), f"shapes = {seen.large.shapes}",
            "def full(x): return {name: np.full(shape, x) for name, shape in shapes.items()}",
            f"def sample(w, g): return sghmc_sample(full(w), lambda X: full(g), {seen.seed}, {keywords}).values()",
            "x, w, g = (np.concatenate([np.ravel(t) for t in sample(*a)]) for a in ((0., 0.), (1., 0.), (0., 1.)))",
            "print(x.std(), (w - x).mean(), (g - x).mean())",
            f"# now {texts[0] or 'no numbers'}; right {texts[1]}: the spread of the noise, what W_t = 1 moves, what "
            "gradients of 1 move"]
