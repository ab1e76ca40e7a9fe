"""Samplers that draw their own noise: what can be seen of them, exactly and in law.

    sghmc_sample(params, grad, seed, *, eps, L, alpha, mass=1.0, b_hat=0.0) -> params

params is a dictionary name -> float64 array of any shape, grad a function from such a dictionary to one of gradients.
Whoever answers the gradients sees the positions X_0 .. X_L, and one call on n coordinates is n samples of each law.

Three layers. (1) Two calls with one seed that differ in the start or in one gradient: the noise cancels, and what is
left is affine and known, to rounding. (2) Without gradients the increments X_(l+1) - X_l are Gaussian with the
covariance K K^T of Algorithm 1. (3) Draws are independent between coordinates, tensors, leapfrogs, seeds and samples.

Every check returns a list of facts in words, empty for a right sampler. All of them together reject a right sampler
with probability 1e-6 at most: `SHARES` says which layer may spend how much of it, evenly over its statistics.
"""

import inspect
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from oracle import chance

FALSE_ALARM = 1e-6
SHARES = {"law": 0.3, "deep": 0.1, "independence": 0.3, "draws": 0.1, "small": 0.2}
U = {"float64": 2.0**-53, "float32": 2.0**-24}  # unit roundoff
LARGE = {"first.weight": (251, 307), "second.weight": (251, 307), "first.bias": (307,), "second.bias": (307,),
         "scale": (1,), "offset": ()}
MIDDLE = {"a": (61, 67), "b": (67,), "c": (1, 1)}
SMALL = {"offset": (), "scale": (1,), "bias": (7,)}
LAGS = sorted({*range(1, 129), *(2**k for k in range(8, 17)), 251, 307, 614})
Z_MAX = 9.0  # of 1e7 normals none is larger, but for a probability of 3e-12
NEAR_ONE = {"float64": 1 - 2.0**-50, "float32": 1 - 2.0**-20}  # this alpha leaves nothing of the momentum but noise


class Broken(Exception):
    """The sampler's answer cannot be judged at all; the message says why, in one line."""


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
            value = params[name].detach().cpu() if hasattr(params[name], "detach") else params[name]
            value = np.asarray(value, dtype=np.float64)
            if value.shape != self.shapes[name]:
                raise Broken(f"{what}: {name} has shape {value.shape} instead of {self.shapes[name]}")
            x[part] = value.ravel()
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


@dataclass
class Path:
    """One call. X (positions, n): the start, what grad was asked at and the sample, each once; asked: which of them
    grad was asked at, in order."""

    X: np.ndarray
    asked: list
    complaints: list

    @property
    def D(self):
        """The increments X_(l+1) - X_l (leapfrogs, n)."""
        return np.diff(self.X, axis=0)


@dataclass(eq=False)
class Draws:
    """One row of draws z (n,) that is seen alone, standard normal."""

    seed: int
    row: str
    z: np.ndarray


def takes(function, keyword):
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled code without a signature
        return True
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def reach(settings, w, g, u):
    """The rounding bound gamma_k F of every position, one number: F is the recursion with every sign made positive and
    draws of Z_MAX, k = 18 L + 4 counts the operations of L leapfrogs (as for injected noise, with gradients given)."""
    eps, L, c, mass = settings["eps"], settings["L"], 1 - settings["alpha"], settings.get("mass", 1.0)
    m = np.concatenate([np.ravel(x) for x in (mass.values() if isinstance(mass, dict) else [mass])])
    s = np.sqrt(2 * settings["alpha"] * m)
    Phi, X = np.sqrt(m) * Z_MAX, w
    for _ in range(L):
        Phi = c * Phi + eps / 2 * g + s * Z_MAX
        X = X + eps / m * Phi
        Phi = c * Phi + eps / 2 * g + s * Z_MAX
    k = 18 * L + 4
    return k * u / (1 - k * u) * float(np.max(X))


def call(sample, layout, seed, settings, start=None, answers=(), u=U["float64"]):
    """One call of `sample` as a Path. answers[i] is the flat gradient at position i; without one it is zero.

    A position belongs to the path once, however often it is asked for, so that caching and fusing are legal.
    """
    start = np.zeros(layout.n) if start is None else start
    size = [float(abs(x).max()) for x in (start, *answers)]
    near = reach(settings, size[0], max(size[1:], default=0.0), u)
    X, asked, given, complaints = [start], [], [], []

    def place(x):
        if abs(x - X[-1]).max() > near:
            X.append(x)
        return len(X) - 1

    def grad(params):
        i = place(layout.flat(params, "what grad is called with"))
        asked.append(i)
        g = answers[i] if i < len(answers) else np.zeros(layout.n)
        given.append((layout.tensors(g), g))
        return given[-1][0]

    params = layout.tensors(start)
    try:
        result = sample(params, grad, seed, **settings)
    except Broken:
        raise
    except Exception as error:
        raise Broken(f"raises {type(error).__name__}: {error}") from error
    place(layout.flat(result, "the sample"))
    if (layout.flat(params, "the argument params, afterwards,") != start).any():
        complaints.append("the caller's params are written to")
    if any((layout.flat(x, "a gradient, afterwards,") != g).any() for x, g in given):
        complaints.append("the gradients that grad returned are written to")
    if any(isinstance(result[name], np.ndarray) and np.shares_memory(result[name], params[name]) for name in params):
        complaints.append("the sample shares memory with the caller's params")
    return Path(np.array(X), asked, complaints)


def dyadic(rng, n, unit, wide=0.0):
    """Odd numbers up to 63 of both signs times `unit`: none is zero, float32 holds them, but not with `wide` added."""
    return ((2 * rng.integers(0, 32, n) + 1) * rng.choice((-1, 1), n) + wide) * unit


class OwnDraws:
    """Everything the oracle sees of one sampler. `sample`: its sghmc_sample; `reference`: sghmc_step of Algorithm 1."""

    def __init__(self, sample, reference, *, dtype="float64", scalar_mass=False, seed=1, level=FALSE_ALARM,
                 large=LARGE, deep=24):
        self.sample, self.reference, self.dtype, self.u = sample, reference, dtype, U[dtype]
        self.seed, self.level, self.scalar_mass, self.deep = seed, level, scalar_mass, deep
        self.large, self.middle, self.small = Layout(large), Layout(MIDDLE), Layout(SMALL)
        self.generic = dict(eps=0.1, L=3, alpha=0.375)
        if takes(sample, "mass"):
            self.generic["mass"] = 2.89
        self.plain = {k: x for k, x in self.generic.items() if k != "mass"}

    def call(self, layout, seed, settings, start=None, answers=()):
        return call(self.sample, layout, seed, settings, start, answers, self.u)

    # ------------------------------------------------------------------------- layer 1: exact, no statistics

    @cached_property
    def answers(self):
        """A start (n,) and one gradient for each position X_0 .. X_L (L + 1, n)."""
        rng, wide = np.random.default_rng(0), 2.0**-30 if self.dtype == "float64" else 0.0
        g = [dyadic(rng, self.large.n, 1, wide) for _ in range(self.generic["L"] + 1)]
        return dyadic(rng, self.large.n, 1 / 8, wide), np.array(g)

    @cached_property
    def base(self):
        """The generic call without gradients, from the start of `answers`."""
        return self.call(self.large, self.seed, self.generic, self.answers[0])

    @cached_property
    def again(self):
        """The paths of two calls with the same seed, another call between them."""
        first, _, then = (self.call(self.middle, seed, self.generic).X for seed in (self.seed, self.seed + 1, self.seed))
        return first, then

    @property
    def repeatable(self):
        first, then = self.again
        return first.shape == then.shape and (first == then).all()

    def repeats(self):
        """The same seed gives the same bits, whatever was called before; another seed another sample."""
        layout, settings, first = self.middle, self.generic, self.again[0]
        if not self.repeatable:
            return [f"a second call with the same seed, {self.seed}, gives another sample"]
        near, same = reach(settings, 0.0, 0.0, self.u), []
        for other in (self.seed + k for k in (1, 2, 3, 10, 100, 256, 1000, 2**16, 2**20)):
            X = self.call(layout, other, settings).X[-1]
            if (abs(X - first[-1]) <= near).sum() > layout.n // 16:
                same.append(str(other))
        return [f"seeds {self.seed} and {', '.join(same)} give the same sample"] if same else []

    def arguments(self):
        return self.base.complaints

    def refuses(self):
        """B^ > C would be a negative variance: ValueError, no silent clamp."""
        if not takes(self.sample, "b_hat"):
            return []
        C = self.generic["alpha"] * self.generic.get("mass", 1.0) / self.generic["eps"]
        x = self.middle.tensors(np.zeros(self.middle.n))
        try:
            self.sample(x, lambda params: {k: 0 * np.asarray(v) for k, v in params.items()}, self.seed,
                        **self.generic, b_hat=2 * C)
        except ValueError:
            return []
        except Exception as error:
            return [f"b_hat = 2 C raises {type(error).__name__} instead of ValueError: {error}"]
        return ["b_hat = 2 C is not refused: the noise would have a negative variance"]

    def path(self):
        """grad is asked at X_0, X_1 ... (X_L may be left out), and the sample is X_L."""
        L, path = self.generic["L"], self.base
        places = sorted(set(path.asked))
        if len(path.X) != L + 1 or places not in (list(range(L)), list(range(L + 1))):
            stops = "W_t itself" if len(path.X) == 1 else f"{len(path.X) - 1} more positions"
            where = ", ".join(f"X_{i}" for i in path.asked) or "none"
            return [f"in {L} leapfrogs grad is asked at {where} of a path of {stops}; right is X_0 ... X_{L - 1}, "
                    f"X_{L} optional, of a path that ends with the sample X_{L}"]
        return []

    @cached_property
    def responses(self):
        """What moves when one thing is changed and the seed is not: name -> (changed path, settings, start, answers)."""
        start, g = self.answers
        still = np.zeros_like(g)
        changes = {"W_t": (2 * start, still)}
        for i in range(self.generic["L"]):
            one = still.copy()
            one[i] = g[i]
            changes[f"the gradient at X_{i}"] = start, one
        changes["a gradient of 1e6 at X_0"] = start, np.array([2.0**14 * g[0], *still[1:]])
        return {name: (self.call(self.large, self.seed, self.generic, *change), *change)
                for name, change in changes.items()}

    def predicted(self, step, start, answers, which):
        """X (positions, coordinates `which`) of a step with injected noise; the noise of all calls is the same."""
        layout = Layout({"x": (len(which),)})
        return call(with_noise(step), layout, 0, self.generic, start[which], [g[which] for g in answers], self.u).X

    def moved(self, u=None):
        """Layer 1 but for the path: W_(t+1) is affine in W_t and in the gradients with the coefficients of
        Algorithm 1, in every coordinate, at any size; for another unit roundoff u, if it is given."""
        return [fact for name in self.responses for fact in self.response_fact(name, u or self.u)]

    def response_fact(self, name, u):
        path, start, answers = self.responses[name]
        before = self.base.X
        if path.X.shape != before.shape:
            return [f"{name} changes the number of positions"]
        got = path.X - before
        want = self.right_response(start, answers)[: len(got)]
        bound = self.response_bound(start, answers) * u / self.u
        wrong = abs(got[: len(want)] - want) > bound
        if not wrong.any():
            return []
        l, j = np.argwhere(wrong)[0]
        tensor = next(t for t, part in self.large.parts.items() if part.start <= j < part.stop)
        every = "every coordinate" if wrong[l].mean() > 0.99 else f"{wrong[l].sum()} of {self.large.n} coordinates"
        return [f"{name} moves X_{l} by {got[l, j]:.9g} in {tensor}[{j - self.large.parts[tensor].start}], right is "
                f"{want[l, j]:.9g}, allowed error {bound:.2g}; wrong in {every}"]

    def response_bound(self, start, answers):
        changed, base = (abs(start).max(), abs(answers).max()), (abs(self.answers[0]).max(), 0.0)
        return sum(reach(self.generic, *size, self.u) for size in (changed, base))

    def near_one(self, kept):
        """Whether all of W_t is kept, to rounding; the smallest entry is 1/8."""
        return abs(kept - 1).max() <= 8 * self.response_bound(2 * self.answers[0], 0 * self.answers[1])

    def right_response(self, start, answers):
        """X_l (L + 1, n) of Algorithm 1 without noise, less that of the base call."""
        eps, c, m = self.generic["eps"], 1 - self.generic["alpha"], self.generic.get("mass", 1.0)
        Phi, X = 0.0, [start - self.answers[0]]
        for l in range(self.generic["L"]):
            Phi = c * Phi - eps / 2 * answers[l]
            X.append(X[-1] + eps / m * Phi)
            Phi = c * Phi - eps / 2 * answers[l + 1]
        return np.array(X)

    # ------------------------------------------------------------------------- layer 2: the law of the increments

    def white(self, D, settings, mass=None):
        """Increments (L, n) as independent standard normals: K K^T is the covariance of Algorithm 1 for mass 1, of
        which an increment with mass m is a share of 1 / sqrt(m)."""
        if isinstance(D, str) or len(D) != settings["L"]:
            return None
        scaled = {**settings, "mass": settings.get("mass", 1.0) if mass is None else 1.0}
        K = noise_map(self.reference, scaled)
        return np.linalg.solve(np.linalg.cholesky(K @ K.T), D if mass is None else D * np.sqrt(mass))

    @cached_property
    def runs(self):
        """name -> (increments, settings) of calls without gradients; with alpha = 0 the momentum is alone. Where the
        sampler raises, the increments are its message."""
        runs = {"alpha = 0": {**self.plain, "L": 1, "alpha": 0.0}, "L = 1": {**self.plain, "L": 1},
                "L = 2": {**self.plain, "L": 2}, "generic": self.generic}
        if takes(self.sample, "b_hat"):
            C = self.generic["alpha"] * self.generic.get("mass", 1.0) / self.generic["eps"]
            runs["b_hat = C / 4"] = {**self.generic, "L": 2, "b_hat": C / 4}
        return {name: (self.increments(settings), settings) for name, settings in runs.items()}

    def increments(self, settings):
        try:
            return self.call(self.large, self.seed, settings).D
        except Broken as error:
            return str(error)

    @cached_property
    def chain(self):
        """(increments, settings) of three successive samples, seeds s, s + 1, s + 2, each from the last one's end."""
        W, samples = None, []
        for k in range(3):
            path = self.call(self.large, self.seed + k, self.plain, W)
            W = path.X[-1]
            samples.append((path.D, self.plain))
        return samples

    @cached_property
    def white_chain(self):
        """name -> white increments of one sample (L, n), of those that have L."""
        white = {f"sample {k} (seed {self.seed + k})": self.white(*run) for k, run in enumerate(self.chain)}
        return {name: e for name, e in white.items() if e is not None}

    @cached_property
    def draws(self):
        """Rows of draws that are seen alone, from consecutive seeds."""
        found = []
        for k in (3, 4, 5, 6):
            alpha = NEAR_ONE[self.dtype] if k % 2 else 0.0
            settings = {**self.plain, "L": 3 if k % 2 else 1, "alpha": alpha}
            D = self.call(self.large, self.seed + k, settings).D
            scale = settings["eps"] * (math.sqrt(2 * alpha) if alpha else 1.0)
            if len(D) == settings["L"]:
                rows = [f"noise of leapfrog {l}" for l in range(len(D))] if alpha else ["momentum"]
                found += [Draws(self.seed + k, row, x / scale) for row, x in zip(rows, D, strict=True)]
        return found

    @cached_property
    def law_statistics(self):
        white = {**{name: self.white(*run) for name, run in self.runs.items()}, **self.white_chain}
        return [s for name, e in white.items() if e is not None for s in law_of(e, self.large, name)]

    def law(self):
        """Mean 0, variances, and the covariance between the increments of one sample."""
        lost = [f"{name}: {D}" if isinstance(D, str) else
                f"{name}: the path has {len(D)} increments, not {settings['L']}"
                for name, (D, settings) in self.runs.items() if isinstance(D, str) or len(D) != settings["L"]]
        still = {t: int((D[:, part] == 0).any(axis=0).sum()) for D, _ in self.runs.values() if not isinstance(D, str)
                 for t, part in self.large.parts.items()}
        stuck = [f"{n} coordinates of {t} do not move" for t, n in still.items() if n]
        return lost[:1] + stuck[:1] + self.said("law", self.law_statistics)

    def said(self, layer, statistics):
        return summary(chance.failed(statistics, SHARES[layer] * self.level))

    @cached_property
    def mass_per_coordinate(self):
        """White increments for a dictionary of masses, or why there are none."""
        if "mass" not in self.generic or self.scalar_mass:
            return "the mass of this sampler is one number"
        mass = abs(dyadic(np.random.default_rng(1), self.middle.n, 1 / 16)) + 0.25
        settings = {**self.plain, "L": 2, "mass": self.middle.tensors(mass)}
        try:
            path = self.call(self.middle, self.seed, settings)
        except Broken as error:
            return f"a dictionary of masses is refused: {error}"
        return self.white(path.D, settings, mass)

    @cached_property
    def deep_statistics(self):
        """Many leapfrogs and masses that differ, at a size that is no multiple of 8."""
        settings = {**self.plain, "L": self.deep}
        e = self.white(self.call(self.middle, self.seed, settings).D, settings)
        statistics = [] if e is None else law_of(e, self.middle, f"L = {self.deep}", means=False)
        if not isinstance(self.mass_per_coordinate, str) and self.mass_per_coordinate is not None:
            statistics += law_of(self.mass_per_coordinate, self.middle, "a mass for each coordinate")
        return statistics

    def deep_law(self):
        return self.said("deep", self.deep_statistics)

    @cached_property
    def small_statistics(self):
        """Tensors of one number need many seeds, not many coordinates."""
        settings = {**self.plain, "L": 1}
        paths = [self.call(self.small, self.seed + k, settings).D for k in range(256)]
        if any(len(D) != 1 for D in paths):
            return []
        e = self.white(np.array([D[0] for D in paths]).reshape(1, -1), settings)[0].reshape(256, -1)
        statistics = []
        for name, part in self.small.parts.items():
            x = e[:, part].ravel()
            statistics += [chance.variance(x, "variance", f"{name} over 256 seeds", (name,)),
                           chance.mean(x, "mean", f"{name} over 256 seeds", (name,))]
        for k in (1, 2, 4, 8, 16, 32, 64, 128):
            statistics.append(chance.lag(e.ravel(), k * self.small.n, "seeds", f"seeds s and s + {k}"))
        for i in range(1, self.small.n):
            for j in range(i):
                statistics.append(chance.correlation(e[:, i], e[:, j], "coordinates of small tensors",
                                                     f"numbers {j} and {i} of {', '.join(self.small.shapes)}"))
        return statistics

    def small_tensors(self):
        return self.said("small", self.small_statistics)


# --------------------------------------------------------------------------------------------------- statistics

def law_of(e, layout, name, means=True):
    """Statistics of white increments (L, n): each tensor's mean and variance, and the pairs of leapfrogs."""
    statistics = []
    for l, x in enumerate(e):
        for tensor, part in layout.parts.items():
            where = f"{name}, X_{l + 1} - X_{l} of {tensor}"
            statistics.append(chance.variance(x[part], "variance", where, (tensor,)))
            if means:
                statistics.append(chance.mean(x[part], "mean", where, (tensor,)))
        statistics += [chance.correlation(x, e[i], "leapfrogs", f"{name}, leapfrogs {i} and {l}") for i in range(l)]
    return statistics


def summary(statistics):
    """One line for each group of failed statistics: the worst, and how many more."""
    groups = {}
    for s in statistics:
        groups.setdefault((s.kind, s.group), []).append(s)
    return [f"{group}: {members[0]}" + (f", and {len(members) - 1} more" if len(members) > 1 else "")
            for (_, group), members in groups.items()]


# ------------------------------------------------------------------------------- samplers whose noise is injected

def flat_settings(settings, parts):
    """The settings with dictionaries of masses as vectors."""
    return {k: np.concatenate([np.ravel(x[name]) for name in parts]) if isinstance(x, dict) else x
            for k, x in settings.items()}


def with_noise(step, rows=None):
    """The sghmc_sample of a step with injected noise. rows(rng, count, n): the draws, by default independent normals."""
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
    count = rows_of(step, settings["L"])
    rng = np.random.default_rng(2)
    base = 1 + np.arange(count)[:, None] % 3
    z = np.concatenate([base + np.eye(count), base, rng.standard_normal((count, 2))], axis=1)
    D = call(with_noise(step, lambda *_: z), Layout({"x": (count + 3,)}), 0, settings).D
    K = D[:, :count] - D[:, [count]]
    if not np.allclose(K @ z[:, count:], D[:, count:], rtol=1e-9, atol=1e-9 * abs(D).max(initial=0)):
        raise Broken("the step is not linear in the draws of each coordinate")
    return K
