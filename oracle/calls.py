"""One call of a sampler that draws its own noise, on tensors and with gradients that the oracle chooses.

Whoever answers the gradients sees the positions X_0 .. X_L. Steps with injected noise (sghmc_step) can be called in
the same way, so that all that is seen of a sampler can be seen of a known bug.
"""

import functools
import math

import numpy as np

from oracle.arithmetic import FLOATS
from oracle.implementations import Broken, numbers
from oracle.sampler import Case, operations, positions

Z_MAX = 9.0  # of 1e7 normals none is larger, but for a probability of 3e-12
U = {"float64": 2.0**-53, "float32": 2.0**-24}  # unit roundoff


class Layout:
    """Names and shapes, and the flat vector that they stand for."""

    def __init__(self, shapes):
        self.shapes = shapes
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()]).tolist()
        self.parts = {name: slice(a, b) for name, a, b in zip(shapes, [0, *ends], ends, strict=False)}
        self.n = ends[-1]

    def tensors(self, x):
        return {name: x[part].reshape(self.shapes[name]).copy() for name, part in self.parts.items()}

    def flat(self, params, what):
        """The float64 vector (n,) of any dictionary of array-likes with these names and shapes."""
        try:
            names = set(params.keys())
        except AttributeError:
            raise Broken(f"{what} is {type(params).__name__}, not a dictionary") from None
        if names != set(self.shapes):
            raise Broken(f"{what} has the names {sorted(map(str, names))} instead of {sorted(self.shapes)}")
        x = np.empty(self.n)
        for name, part in self.parts.items():
            x[part] = numbers(params[name], self.shapes[name], f"{what}: {name} has").ravel()
        if not np.isfinite(x).all():
            raise Broken(f"{what} is not finite")
        return x

    def equal_shapes(self):
        """Pairs of tensors that a generator could confuse: of one shape, else any two, as far as the shorter goes."""
        names = list(self.shapes)
        for i, a in enumerate(names):
            for b in names[:i]:
                size = min(math.prod(self.shapes[a]), math.prod(self.shapes[b]))
                if size > 1:
                    yield b, a, slice(self.parts[b].start, self.parts[b].start + size), slice(
                        self.parts[a].start, self.parts[a].start + size)


class Path:
    """One call. X (positions, n): the start, what grad was asked at and the sample, one that is nearly the last one
    only once; asked: which of them grad was asked at, in order."""

    def __init__(self, start, near):
        self.X, self.asked, self.near, self.complaints = [start], [], near, []

    def go(self, x):
        """The number of position x."""
        if not abs(x - self.X[-1]).max() <= self.near:
            if not np.isfinite(x).all():
                raise Broken(f"a position is not finite: {x}")
            self.X.append(x)
        return len(self.X) - 1

    def ask(self, x):
        self.asked.append(self.go(x))
        return self.asked[-1]

    @property
    def asked_at(self):
        """Where grad was asked, in words."""
        places = list(dict.fromkeys(f"X_{i}" for i in self.asked)) or ["no position"]
        return ", ".join(places if len(places) < 9 else [*places[:4], "...", places[-1]])

    @property
    def D(self):
        """The increments X_(l+1) - X_l (leapfrogs, n)."""
        return np.diff(self.X, axis=0)


def reach(settings, w, g, u):
    """The rounding bound gamma_k F of every position, one number: that of oracle/sampler.py for draws of Z_MAX."""
    mass = settings.get("mass", 1.0)
    m = {y for x in (mass.values() if isinstance(mass, dict) else [mass]) for y in np.ravel(x).tolist()}
    return farthest(settings["eps"], settings["L"], settings["alpha"], frozenset(m), w, g, u)


@functools.lru_cache(maxsize=1000)
def farthest(eps, L, alpha, masses, w, g, u):
    """`reach` for the numbers of `masses`."""
    m = np.array(sorted(masses))
    none = np.zeros(m.size)
    case = Case(w=none + w, z=np.full((2 * L + 1, m.size), Z_MAX), A=none, b=none, g=np.full((L + 1, m.size), g),
                eps=eps, L=L, alpha=alpha, mass=m)
    k = operations(case)
    return k * u / (1 - k * u) * float(np.max(positions(case, positive=True, numbers=FLOATS)[-1]))


def call(sample, layout, seed, settings, start=None, answers=(), u=U["float64"]):
    """One call of `sample` as a Path. answers[i] is the flat gradient at position i; without one it is zero.

    A position belongs to the path once, however often it is asked for, so that caching and fusing are legal.
    """
    start = np.zeros(layout.n) if start is None else start
    size = [float(abs(x).max()) for x in (start, *answers)]
    path, given = Path(start, reach(settings, size[0], max(size[1:], default=0.0), u)), []

    def grad(params):
        i = path.ask(layout.flat(params, "what grad is called with"))
        g = answers[i] if i < len(answers) else np.zeros(layout.n)
        given.append((dict(reversed(layout.tensors(g).items())), g))  # in another order than params: names count
        return given[-1][0]

    params = layout.tensors(start)
    try:
        result = sample(params, grad, seed, **settings)
    except Broken:
        raise
    except Exception as error:
        raise Broken(f"raises {type(error).__name__}: {error}") from error
    path.go(layout.flat(result, "the sample"))
    if (layout.flat(params, "the argument params, afterwards,") != start).any():
        path.complaints.append("the caller's params are written to")
    if any((layout.flat(x, "a gradient, afterwards,") != g).any() for x, g in given):
        path.complaints.append("the gradients that grad returned are written to")
    if any(isinstance(result[name], np.ndarray) and np.shares_memory(result[name], params[name]) for name in params):
        path.complaints.append("the sample shares memory with the caller's params")
    path.X = np.array(path.X)
    return path


# ------------------------------------------------------------------------------- samplers whose noise is injected

def flat_settings(settings, parts):
    """The settings with dictionaries of masses as vectors."""
    return {k: np.concatenate([np.ravel(x[name]) for name in parts]) if isinstance(x, dict) else x
            for k, x in settings.items()}


def with_noise(step, rows=None):
    """The sghmc_sample of a step with injected noise; rows(rng, count, n): the draws, otherwise independent normals."""
    rows = rows or (lambda rng, count, n: rng.standard_normal((count, n)))

    def sghmc_sample(params, grad, seed, *, eps, L, alpha, mass=1.0, b_hat=0.0):
        layout = Layout({name: np.shape(x) for name, x in params.items()})
        z = rows(np.random.default_rng(seed), rows_of(step, L), layout.n)
        settings = flat_settings(dict(mass=mass, b_hat=b_hat), layout.parts)
        return layout.tensors(step(layout.flat(params, "params"), z,
                                   lambda x: layout.flat(grad(layout.tensors(np.asarray(x))), "the gradient"),
                                   eps=eps, L=L, alpha=alpha, **settings))
    return sghmc_sample


def rows_of(step, L):
    """How many draws per coordinate a step asks for: 2 L + 1, unless it says otherwise."""
    return getattr(step, "rows", lambda L: 2 * L + 1)(L)


def noise_map(step, settings):
    """K (leapfrogs, rows): by how much X_(l+1) - X_l moves for each unit of a draw. Coordinate j has one more unit
    in row j than the last coordinate; all move, so that no position is taken for the one before.

    Broken: the increments of a coordinate are not K times its own draws.
    """
    return solved_for(step, tuple(settings.items()))


@functools.lru_cache(maxsize=2000)
def solved_for(step, settings):
    """`noise_map` of settings as a tuple of pairs."""
    settings = dict(settings)
    count = rows_of(step, settings["L"])
    rng = np.random.default_rng(2)
    base = 1 + np.arange(count)[:, None] % 3
    z = np.concatenate([base + np.eye(count), base, rng.standard_normal((count, 2))], axis=1)
    D = call(with_noise(step, lambda *_: z), Layout({"x": (count + 3,)}), 0, settings).D
    K = D[:, :count] - D[:, [count]]
    if not np.allclose(K @ z[:, count:], D[:, count:], rtol=1e-9, atol=1e-9 * abs(D).max(initial=0)):
        raise Broken("the step is not linear in the draws of each coordinate")
    return K
