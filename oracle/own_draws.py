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

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

import reference_numpy
from oracle import chance
from oracle.calls import Layout, U, call, noise_map, reach, with_noise
from oracle.corner_cases import of_views, unrefused_call
from oracle.implementations import Broken
from oracle.names import takes

FALSE_ALARM = 1e-6
SHARES = {"law": 0.25, "deep": 0.1, "small": 0.2, "draws": 0.05, "sums": 0.05, "sharing": 0.05, "independence": 0.3}
LARGE = {"first.weight": (251, 307), "second.weight": (251, 307), "first.bias": (307,), "second.bias": (307,),
         "kernel": (24, 16, 5, 3), "scale": (1,), "offset": ()}
MIDDLE = {"a": (61, 67), "b": (67,), "c": (1, 1)}
SMALL = {"offset": (), "scale": (1,), "bias": (7,)}
LAGS = sorted({*range(1, 129), *(2**k for k in range(8, 17)), 251, 307, 614})
KEPT = ": it is kept between calls"
NEAR_ONE = {"float64": 1 - 2.0**-50, "float32": 1 - 2.0**-20}  # this alpha leaves nothing of the momentum but noise


@dataclass(eq=False)
class Draws:
    """One row of draws z (n,) that is seen alone, standard normal."""

    seed: int
    row: str
    z: np.ndarray


def dyadic(rng, n, unit, wide=0.0):
    """Odd numbers up to 63 of both signs times `unit`: none is zero, float32 holds them, but not with `wide` added."""
    return ((2 * rng.integers(0, 32, n) + 1) * rng.choice((-1, 1), n) + wide) * unit


class OwnDraws:
    """Everything the oracle sees of one sampler. `sample`: its sghmc_sample; `reference`: sghmc_step of Algorithm 1."""

    def __init__(self, sample, reference, *, dtype="float64", scalar_mass=False, seed=1, level=FALSE_ALARM,
                 large=LARGE, deep=130, seeds=256):
        self.sample, self.reference, self.dtype, self.u = sample, reference, dtype, U[dtype]
        self.seed, self.level, self.scalar_mass, self.deep, self.seeds = seed, level, scalar_mass, deep, seeds
        self.options = dict(scalar_mass=scalar_mass, seed=seed, level=level, large=large, deep=deep, seeds=seeds)
        self.large, self.middle, self.small = Layout(large), Layout(MIDDLE), Layout(SMALL)
        self.generic = dict(eps=0.1, L=3, alpha=0.375)
        if takes(sample, "mass"):
            self.generic["mass"] = 2.89
        self.plain = {k: x for k, x in self.generic.items() if k != "mass"}

    def in_single_precision(self):
        """The same sampler, judged as one of single precision."""
        return OwnDraws(self.sample, self.reference, dtype="float32", **self.options)

    def call(self, layout, seed, settings, start=None, answers=()):
        return call(self.sample, layout, seed, settings, start, answers, self.u)

    def with_and_without(self, layout, settings, answers, start=None):
        """The positions of a call without gradients and of one with these answers."""
        return [self.call(layout, self.seed, settings, start, x).X for x in (0 * answers, answers)]

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
        seeds = self.seed, self.seed + 1, self.seed
        first, _, then = (self.call(self.middle, seed, self.generic).X for seed in seeds)
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
        zero, again = (self.call(layout, 0, settings).X for _ in range(2))
        if zero.shape != again.shape or (zero != again).any():
            return ["a second call with seed 0 gives another sample: is 0 taken for no seed at all?"]
        near, same = reach(settings, 0.0, 0.0, self.u), []
        for other in (self.seed + k for k in (1, 2, 3, 10, 100, 256, 1000, 2**16, 2**20)):
            X = self.call(layout, other, settings).X[-1]
            if (abs(X - first[-1]) <= near).sum() > layout.n // 16:
                same.append(str(other))
        return [f"seeds {self.seed} and {', '.join(same)} give the same sample"] if same else []

    def arguments(self):
        paths = [self.base, *(path for path, *_ in self.responses.values())]  # these have gradients other than 0
        return list(dict.fromkeys(text for path in paths for text in path.complaints)) or self.by_memory()

    def by_memory(self):
        """A start stored in another way moves the sample by itself; the noise, which cancels, may be dealt out in
        the order of memory. A refusal with an exception is no wrong number."""
        layout, start = self.middle, self.answers[0][: self.middle.n]

        def sample(*tensors):
            got = self.sample(dict(zip(layout.shapes, tensors, strict=True)), lambda params: layout.tensors(0 * start),
                              self.seed, **self.plain)
            return layout.flat(got, "the sample")

        moved, still = (dict(of_views(sample, *layout.tensors(x).values())) for x in (start, 0 * start))
        for how in moved.keys() & still.keys():
            if abs(moved[how] - still[how] - start).max() >= 1 / 16:  # two entries of the start differ by 1/4 or more
                return [f"params that are stored {how} start elsewhere: they are read in the order of memory"]
        return []

    def refuses(self):
        """B^ > C would be a negative variance: ValueError, no silent clamp."""
        if not takes(self.sample, "b_hat"):
            return []
        zero, C = np.zeros(self.middle.n), self.generic["alpha"] * self.generic.get("mass", 1.0) / self.generic["eps"]
        text = unrefused_call(lambda: self.sample(self.middle.tensors(zero), lambda params: self.middle.tensors(zero),
                                                  self.seed, **self.generic, b_hat=2 * C))
        return [text] if text else []

    def integers(self):
        """Whole numbers for mass and b_hat give what the same numbers with a decimal point give."""
        layout, g = self.middle, np.ones((self.generic["L"] + 1, self.middle.n))
        given = {"mass": 3} if takes(self.sample, "mass") else {}  # no square: its root may be cut off
        given |= {"b_hat": 1} if takes(self.sample, "b_hat") else {}
        for name, x in given.items():
            settings = {**self.plain, **{other: float(y) for other, y in given.items()}}
            near, both = 2 * reach(settings, 0.0, 1.0, self.u), []
            for y in (float(x), x):
                try:
                    both.append(self.call(layout, self.seed, {**settings, name: y}, answers=g).X)
                except Broken as error:  # with a decimal point too: said elsewhere
                    return [f"{name} = {x}, an integer: {error}"] if both else []
            if both[0].shape != both[1].shape or abs(both[0] - both[1]).max() > near:
                return [f"{name} = {x}, an integer, gives another sample than {name} = {float(x)}"]
        return []

    def kept_setting(self):
        """Two calls with one seed that differ in eps or in the mass: without friction the sample is in proportion. One
        that is right at first and then the same is kept."""
        layout = Layout({"a": (59, 71), "b": (3, 5)})  # unlike all others
        one = {**self.generic, "L": 1, "alpha": 0.0}
        for name, power in (("eps", 1.0), *([("mass", -0.5)] if "mass" in one else [])):
            other = {**one, name: 1.7 * one[name]}
            D, then = (self.call(layout, self.seed, settings).X[-1] for settings in (one, other))
            if abs(then - 1.7**power * D).max() > 4 * reach(other, 0.0, 0.0, self.u):
                right = abs(float(D @ D) / layout.n * one.get("mass", 1.0) / one["eps"] ** 2 - 1) < 0.2
                how = "the same sample" + KEPT * right if (then == D).all() else "a sample out of proportion"
                return [f"{name} = {other[name]:g} after {name} = {one[name]:g} gives {how}"]
        return []

    def path(self):
        """grad is asked at X_0, X_1 ... (X_L may be left out), and the sample is X_L."""
        L, path = self.generic["L"], self.base
        places, moves = sorted(set(path.asked)), np.diff(path.X, axis=0) != 0
        if len(moves) > L and (moves.sum(axis=0) == L).all():
            return [f"in {L} leapfrogs there are {len(moves)} moves, each of some tensors: a tensor's gradient is to "
                    "be asked where all tensors have moved"]
        if len(path.X) != L + 1 or places not in (list(range(L)), list(range(L + 1))):
            stops = "W_t itself" if len(path.X) == 1 else f"{len(path.X) - 1} more positions"
            return [f"in {L} leapfrogs grad is asked at {path.asked_at} of a path of {stops}; right is X_0 ... "
                    f"X_{L - 1}, X_{L} optional, of a path that ends with the sample X_{L}"]
        return []

    @cached_property
    def responses(self):
        """What moves when one thing is changed and the seed is not: name -> (changed path, start, answers)."""
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

    def moved(self):
        """Layer 1 but for the path: W_(t+1) is affine in W_t and in the gradients with the coefficients of
        Algorithm 1, in every coordinate, at any size."""
        return self.kept_setting() + self.responded() + self.huge_and_tiny() + self.far()

    def huge_and_tiny(self):
        """Gradients of any size: large ones move W_t far, small ones as much as the momentum where eps is large."""
        layout, g = self.middle, self.answers[1][0, : self.middle.n]
        for size, eps in ((2.0**60, 0.1), (2.0**-20, 2.0**20), (2.0**-40, 2.0**40), (2.0**-60, 2.0**60)):
            settings, answers = {**self.plain, "L": 1, "eps": eps}, np.array([size * g, 0 * g])
            still, moved = (X[-1] for X in self.with_and_without(layout, settings, answers))
            share = (moved - still) / noiseless(settings, 0 * g, answers)[-1]
            error = 2 * reach(settings, 0.0, 64 * size, self.u) / (eps**2 / 2 * size)
            if not (abs(share - 1) <= error).all():
                worst = share[abs(share - 1).argmax()] + 0
                lost = ": large gradients are clipped" if size > 1 else ": small ones are dropped"
                return [f"a gradient of {63 * size:.3g}, with eps = {eps:.3g}, moves X_1 by {worst:.6g} of what it "
                        f"should{lost if abs(worst) < 1 else ''}"]
        return []

    def responded(self):
        return [fact for name in self.responses for fact in self.response_fact(name)]

    def far(self):
        """Far from the origin, where a move is small against the position, gradients are those of each position."""
        layout, L = self.middle, self.plain["L"]
        start = np.full(layout.n, 2.0**30 if self.dtype == "float64" else 2.0**14)
        g = 64 * (-1.0) ** np.arange(L + 1)[:, None] * np.ones(layout.n)
        still, moved = self.with_and_without(layout, self.plain, g, start)
        if len(still) != L + 1 or len(moved) != L + 1:
            return [] if self.path() else [f"from W_t = {start[0]:.6g} on, grad is not asked at each of the positions "
                                           f"X_0 ... X_{L - 1}: is a gradient kept after a small move?"]
        want = noiseless(self.plain, start, g) - start
        bound = 2 * reach(self.plain, start[0], 64.0, self.u)
        wrong = abs(moved - still - want) > bound
        if not wrong.any():
            return []
        l, j = np.argwhere(wrong)[0]
        return [f"from W_t = {start[0]:.6g} on, gradients of 64 and -64 in turn move X_{l} by "
                f"{(moved - still)[l, j]:.6g}, right is {want[l, j]:.6g}: is a gradient kept after a small move?"]

    def response_fact(self, name):
        """[the first position at which this response is wrong, in words], or [] if it is right."""
        path, start, answers = self.responses[name]
        before = self.base.X
        if path.X.shape != before.shape:
            return [f"{name} changes the number of positions"]
        got = path.X - before
        want = self.right_response(start, answers)[: len(got)]
        bound = self.response_bound(start, answers)
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
        return noiseless(self.generic, start - self.answers[0], answers)

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
                "L = 2": {**self.plain, "L": 2}, "generic": self.generic,
                "eps = 2^-20": {**self.plain, "L": 1, "eps": 2.0**-20}}
        if takes(self.sample, "b_hat"):
            C = self.generic["alpha"] * self.generic.get("mass", 1.0) / self.generic["eps"]
            runs["b_hat = C / 4"] = {**self.generic, "L": 2, "b_hat": C / 4}
        return {name: (self.increments(self.seed + 10 + i, settings), settings)
                for i, (name, settings) in enumerate(runs.items())}

    def increments(self, seed, settings):
        try:
            return self.call(self.large, seed, settings).D
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
            if len(D) == settings["L"]:
                rows = [f"noise of leapfrog {l}" for l in range(len(D))] if alpha else ["momentum"]
                found += [Draws(self.seed + k, row, x / scale_alone(settings)) for row, x in zip(rows, D, strict=True)]
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
    def masses(self):
        """A mass for each coordinate of the middle layout (n,), from 5/16 to 4.2."""
        return abs(dyadic(np.random.default_rng(1), self.middle.n, 1 / 16)) + 0.25

    @cached_property
    def mass_per_coordinate(self):
        """White increments for a dictionary of masses, or why there are none."""
        if "mass" not in self.generic:
            return "this sampler takes no mass"
        if self.scalar_mass:
            return "the mass of this sampler is one number"
        settings = {**self.plain, "L": 2, "mass": self.middle.tensors(self.masses)}
        try:
            path = self.call(self.middle, self.seed + 20, settings)
        except Broken as error:
            return f"a dictionary of masses is refused: {error}"
        return self.white(path.D, settings, self.masses)

    @cached_property
    def deep_statistics(self):
        """Many leapfrogs and masses that differ, at a size that is no multiple of 8."""
        settings = {**self.plain, "L": self.deep}
        e = self.white(self.deep_path.D, settings)
        statistics = [] if e is None else law_of(e, self.middle, f"L = {self.deep}", means=False)
        if not isinstance(self.mass_per_coordinate, str) and self.mass_per_coordinate is not None:
            statistics += law_of(self.mass_per_coordinate, self.middle, "a mass for each coordinate")
            heavy = self.masses > np.median(self.masses)  # one mass for all may have the right variance over all
            statistics += [chance.variance(x[half], "variance", f"a mass for each coordinate, X_{l + 1} - X_{l} of the "
                                           f"{name} half")
                           for l, x in enumerate(self.mass_per_coordinate)
                           for name, half in (("heavier", heavy), ("lighter", ~heavy))]
        return statistics

    @cached_property
    def deep_path(self):
        return self.call(self.middle, self.seed + 21, {**self.plain, "L": self.deep})

    def deep_law(self):
        leapfrogs = len(self.deep_path.D)
        if leapfrogs != self.deep:
            return [f"with L = {self.deep} the sample is {leapfrogs} positions from W_t, not {self.deep}"]
        return self.said("deep", self.deep_statistics)

    @cached_property
    def small_statistics(self):
        """Tensors of one number need many seeds, not many coordinates."""
        settings = {**self.plain, "L": 1}
        D = self.over_seeds(settings)
        if D is None:
            return []
        e = self.white(D.reshape(1, -1), settings)[0].reshape(self.seeds, -1)
        statistics = []
        for name, part in self.small.parts.items():
            x, what = e[:, part].ravel(), f"{name} of shape {self.small.shapes[name]} over {self.seeds} seeds"
            statistics += [chance.variance(x, "variance of small tensors", what),
                           chance.mean(x, "mean of small tensors", what)]
        for k in (2**i for i in range(8) if 2 ** (i + 1) <= self.seeds):
            statistics.append(chance.lag(e.ravel(), k * self.small.n, "seeds", f"seeds s and s + {k}"))
        statistics += [s for what, alpha in (("momentum", 0.0), ("noise", NEAR_ONE[self.dtype]))
                       for s in self.small_sums(what, alpha)]
        for i in range(1, self.small.n):
            for j in range(i):
                statistics.append(chance.correlation(e[:, i], e[:, j], "small tensors",
                                                     f"numbers {j} and {i} of {', '.join(self.small.shapes)}"))
        return statistics

    def small_sums(self, what, alpha):
        """Statistics of the sums over small tensors of draws that alpha shows alone, a seed for each."""
        settings = {**self.plain, "L": 1, "alpha": alpha}
        D = self.over_seeds(settings)
        z = None if D is None else D[:, self.small.parts["bias"]] / scale_alone(settings)
        return [] if D is None else sums_of(f"{what} of {self.seeds} seeds", {"bias": z})

    def over_seeds(self, settings):
        """The increments of one leapfrog (seeds, n) of small tensors, None if there is not one in each sample."""
        D = [self.call(self.small, self.seed + 100 + k, settings).D for k in range(self.seeds)]
        return np.concatenate(D) if all(len(x) == 1 for x in D) else None

    def small_tensors(self):
        return self.said("small", self.small_statistics)


def scale_alone(settings):
    """What one draw moves where it is seen alone: that of the momentum if alpha is 0, of a kick if it is next to 1."""
    return settings["eps"] * math.sqrt(2 * settings["alpha"] or 1.0)


def noiseless(settings, start, answers):
    """X_l (L + 1, n) of Algorithm 1 without noise."""
    eps, c, m = settings["eps"], 1 - settings["alpha"], settings.get("mass", 1.0)
    Phi, X = 0.0, [start]
    for l in range(settings["L"]):
        Phi = c * Phi - eps / 2 * answers[l]
        X.append(X[-1] + eps / m * Phi)
        Phi = c * Phi - eps / 2 * answers[l + 1]
    return np.array(X)


# --------------------------------------------------------------------------------------------------- statistics

def law_of(e, layout, name, means=True):
    """Statistics of white increments (L, n): each tensor's mean and variance, and the pairs of leapfrogs."""
    statistics = []
    for l, x in enumerate(e):
        for tensor, part in layout.parts.items():
            where = f"{name}, X_{l + 1} - X_{l} of {tensor}"
            statistics.append(chance.variance(x[part], "variance", where, tensor))
            if means:
                statistics.append(chance.mean(x[part], "mean", where))
        statistics += [chance.correlation(x, e[i], "leapfrogs", f"{name}, leapfrogs {i} and {l}") for i in range(l)]
    return statistics


LESS = {"sums over tensors": ": they are centred in each tensor",
        "sums along axes": ": they are centred along that axis",
        "sums of squares over tensors": ": they are normalised to their own standard deviation"}


def sums_of(kind, draws):
    """Statistics of draws, tensor -> (repetitions, *shape), that should be independent standard normals: their sums
    and sums of squares over whole tensors, all together; and along the axes of each."""
    flat = {name: z.reshape(len(z), -1) for name, z in draws.items() if z[0].size > 1}
    whole = {"sums": np.concatenate([z.sum(axis=1) / z.shape[1] ** 0.5 for z in flat.values()]),
             "sums of squares": np.concatenate([chance.squares(z) for z in flat.values()])}
    statistics = [chance.variance(x, f"{what} over tensors", f"{kind}: the {what} of draws over whole tensors")
                  for what, x in whole.items()]
    for name, z in draws.items():
        for axis in range(1, z.ndim) if z.ndim > 2 else ():
            x = z.sum(axis=axis).ravel() / z.shape[axis] ** 0.5
            where = f"{kind}: the sums of {name} along axis {axis - 1}"
            statistics.append(chance.variance(x, "sums along axes", where))
        if z.ndim > 2:
            x = chance.squares(z.reshape(-1, z.shape[-1])[:256])
            statistics.append(chance.variance(x, "sums of squares along axes", f"{kind}: the sums of squares of {name} "
                                              "along its last axis"))
    return statistics


def summary(statistics):
    """One line for each group of failed statistics: the worst, and how many more."""
    groups = {}
    for s in statistics:
        groups.setdefault((s.kind, s.group), []).append(s)
    return [f"{group}: {members[0]}" + LESS.get(group, "") * (members[0].value < 0.5) + (
            f", and {len(members) - 1} more" if len(members) > 1 else "")
            for (_, group), members in groups.items()]


def look(impl):
    """What is seen of an implementation (name, module, dtype, scalar_mass), asked once however many tests want it."""
    if "own_draws" not in impl.__dict__:
        impl.own_draws = OwnDraws(impl.module.sghmc_sample, reference_numpy.sghmc_step, dtype=impl.dtype,
                                  scalar_mass=impl.scalar_mass)
    return impl.own_draws
