"""Names for samplers that draw their own noise: known bugs by their law, other schemes, bugs of the generator.

A step is a sampler with injected noise, of the signature of sghmc_step. It explains what was seen if the responses to
the start and to each gradient are its own to rounding, and if the increments are white under its own K K^T.
"""

import functools
import math

import numpy as np

from oracle import chance, generators
from oracle.calls import noise_map, with_noise
from oracle.formula import RATE, words
from oracle.implementations import Broken
from oracle.own_draws import KEPT, OwnDraws, noiseless

FITS = 1e-6   # a law is turned down wrongly with this probability
SAMPLE = 16   # coordinates at which responses are compared


# ---------------------------------------------------------------------------------------------- bugs of the draws

def with_rows(step, source, sign=lambda j: 1):
    """The step with sign(j) times row source(j) of the draws in place of row j."""
    def changed(w, z, grad, *, L, **settings):
        return step(w, np.array([sign(j) * z[source(j)] for j in range(2 * L + 1)]), grad, L=L, **settings)
    return changed


@functools.cache
def draw_bugs(step):
    """Rows that are used twice: (name, step)."""
    maps = {"one key for both kicks of a leapfrog": lambda j: j - 1 if j and j % 2 == 0 else j,
            "one key for the noise of all kicks": lambda j: min(j, 1),
            "momentum and the first kick's noise from one key": lambda j: 0 if j == 1 else j,
            "momentum and all noise from one key": lambda j: 0,
            "momentum and the noise of each first kick from one key": lambda j: 0 if j % 2 else j,
            "the key is not advanced between leapfrogs": lambda j: j and 2 - j % 2,
            "one key for the second kick of a leapfrog and the first of the next":
                lambda j: j - 1 if j > 2 and j % 2 else j}
    mirror = with_rows(step, maps["one key for both kicks of a leapfrog"], lambda j: -1 if j and j % 2 == 0 else 1)
    return [(name, with_rows(step, source)) for name, source in maps.items()] + [
        ("the noise of the second kick mirrors that of the first", mirror)] + [
        (f"the kicks that meet are fused with {text} times the noise of one, right is sqrt(1 + a^2), a = 1 - alpha",
         fused(factor)) for text, factor in FUSED.items()]


FUSED = {"(1 + a) / sqrt(2)": lambda a: (1 + a) / math.sqrt(2), "1 + a": lambda a: 1 + a, "a": lambda a: a,
         "1": lambda a: 1.0, "sqrt(2)": lambda a: math.sqrt(2), "1 + a^2": lambda a: 1 + a * a,
         "sqrt((1 + a^2) / 2)": lambda a: math.sqrt((1 + a * a) / 2)}


def fused(factor):
    """Algorithm 1 with one draw for the two kicks that meet at a position: factor(1 - alpha) times sqrt(2 C eps)."""
    def step(w, z, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0):
        a, std, X = 1 - alpha, np.sqrt(np.maximum(2 * (alpha * mass - b_hat * eps), 0)), np.array(w, dtype=float)
        Phi = np.sqrt(mass) * z[0]
        for l in range(L):
            g = np.asarray(grad(X.copy()))
            if l:
                Phi = a * a * Phi - (1 + a) * eps / 2 * g + factor(a) * std * z[l + 1]
            else:
                Phi = a * Phi - eps / 2 * g + std * z[1]
            X = X + eps / mass * Phi
        return X

    step.rows = lambda L: L + 1
    return step


# -------------------------------------------------------------------------------------------------- other schemes

SCHEMES = {  # letters: see `scheme`
    "GAK": "position first with the old momentum, then one full kick per step, with the gradient at the position "
           "before the move (explicit Euler)",
    "AGK": "position first, then one full kick per step, with the gradient at the new position (symplectic Euler)",
    "GKA": "one full kick per step, then the position (symplectic Euler, kick first)",
    "oGbAGbo": "OBABO: friction and noise outside of a leapfrog without friction",
    "GbaOaGb": "BAOAB: friction and noise in the middle of the drift",
    "RGkAGk": "Algorithm 1, but the momentum is drawn anew for each leapfrog",
}
NOISES = {"variance 2 (1 - r) M": lambda r: 2 * (1 - r), "variance (1 - r^2) M": lambda r: 1 - r * r,
          "none": lambda r: 0.0}


STARTS = {"": np.sqrt, ", momentum drawn from N(0, I) instead of N(0, M)": lambda M: 1.0,
          ", momentum starts at 0": lambda M: 0.0}


def scheme(letters, r, noise, start=np.sqrt):
    """A step that repeats the letters: G gradient; A, a drift by eps, eps/2; b half kick without friction; O, o
    friction r, sqrt(r) with noise; K full kick with friction r; k half kick of Algorithm 1, friction sqrt(r);
    R fresh momentum. noise(r): the variance over M that belongs to a friction of r; start(M): the standard deviation
    of the first momentum."""
    def step(w, z, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0):
        rows = iter(z)
        X, Phi, g = np.array(w, dtype=float), start(mass) * next(rows), None

        def rub(Phi, r):
            return r * Phi + np.sqrt(noise(r) * mass) * next(rows)

        for letter in letters * L:
            if letter == "G":
                g = np.asarray(grad(X.copy()))
            elif letter == "R":
                Phi = np.sqrt(mass) * next(rows)
            elif letter in "Aa":
                X = X + (eps if letter == "A" else eps / 2) / mass * Phi
            elif letter == "b":
                Phi = Phi - eps / 2 * g
            elif letter in "Oo":
                Phi = rub(Phi, r if letter == "O" else math.sqrt(r))
            else:
                Phi = rub(Phi, r if letter == "K" else math.sqrt(r)) - (eps if letter == "K" else eps / 2) * g
        return X

    step.rows = lambda L: 1 + L * sum(letter in "OoKkR" for letter in letters)
    return step


def friction_words(r, alpha):
    """r in terms of alpha, where it is one of the usual terms."""
    usual = {"1 - alpha": 1 - alpha, "(1 - alpha)^2": (1 - alpha) ** 2, "1 - 2 alpha": 1 - 2 * alpha,
             "exp(-alpha)": math.exp(-alpha), "exp(-2 alpha)": math.exp(-2 * alpha), "1": 1.0}
    words = [text for text, x in usual.items() if abs(r - x) < 1e-5]
    return f"r = {words[0]}" if words else f"r = {r:.4g}"


def measured_friction(seen):
    """r: what a step leaves of the momentum that a gradient gave, from two successive increments; None: not seen."""
    for i in range(seen.generic["L"]):
        path, _, answers = seen.responses[f"the gradient at X_{i}"]
        if path.X.shape == seen.base.X.shape and len(path.X) > 1:
            moved = np.diff(path.X - seen.base.X, axis=0)
            size = abs(moved).max(axis=1)
            l = int(np.argmax(size > 1e-9 * max(size.max(), 1e-300)))
            if size[l] > 0 and l + 1 < len(moved):
                return float(moved[l + 1] @ moved[l] / (moved[l] @ moved[l]))
    return None


def other_scheme(seen):
    """The name of another scheme whose responses these are, with its friction and noise; None."""
    alpha, generic = seen.generic["alpha"], {"generic": seen.runs["generic"]}
    for letters, name in SCHEMES.items():
        fresh = "R" in letters  # nothing is left of any push: no response shows the friction
        r = (1 - alpha) ** 2 if fresh else measured_friction(seen)
        if r is None or not 0 < r <= 1 or not same_responses(seen, scheme(letters, r, NOISES["none"])):
            continue
        found = [f"noise {noise}{words}" for noise, law in NOISES.items() for words, start in STARTS.items()
                 if explains_law(generic, scheme(letters, r, fresh_law if fresh else law, start))]
        if found or not fresh:
            how = "" if fresh else f"; friction {friction_words(r, alpha)} a step, " + (
                found[0] if found else "its noise has none of the usual laws")
            return f"another scheme, not Algorithm 1: {name}{how}"
    return None


def fresh_law(c):
    return 2 * (1 - c)


# --------------------------------------------------------------------------------------------------------- fitting

def same_responses(seen, step):
    """Whether the start and the gradients move what they move in `step`, at a sample of coordinates."""
    which = np.linspace(0, seen.large.n - 1, SAMPLE).astype(int)
    base = at_sample(seen, step, "", which)
    if base is None or base.shape != seen.base.X[:, which].shape:
        return False
    for name, (path, changed, answers) in seen.responses.items():
        X = at_sample(seen, step, name, which)
        if X is None or X.shape != base.shape or path.X.shape != seen.base.X.shape:
            return False
        want, got = X - base, (path.X - seen.base.X)[:, which]
        if not (abs(got - want) <= 2 * seen.response_bound(changed, answers) + 64 * seen.u * abs(want)).all():
            return False
    return True


PREDICTED = {}  # (step, what is asked) -> what at_sample gives


def at_sample(seen, step, name, which):
    """X (positions, coordinates `which`) of a step as one response is asked for, or as the base is (""); None if it
    raises. Samplers are asked the same, so known bugs answer once."""
    key = step, name, seen.dtype, repr((seen.large.shapes, seen.generic))
    if key not in PREDICTED:
        start, answers = seen.responses[name][1:] if name else (seen.answers[0], np.zeros_like(seen.answers[1]))
        try:
            PREDICTED[key] = seen.predicted(step, start, answers, which)
        except (Broken, ArithmeticError):
            PREDICTED[key] = None
    return PREDICTED[key]


def explains_law(runs, step, part=slice(None)):
    """Whether the increments of all runs (name -> increments, settings) are white under the step's K K^T."""
    return all(white_increments(step, *run, part) for run in runs.values())


def white_increments(step, D, settings, part):
    """Whether one run's increments D (L, n), or the words of its failure, are what the step's K K^T makes of noise."""
    try:
        K = noise_map(step, settings)
    except (Broken, ArithmeticError) as error:
        return isinstance(D, str) and str(error).startswith("raises")
    if isinstance(D, str) or len(K) != len(D) or not np.isfinite(K).all():
        return False
    return len(D) == 0 or white_under(K @ K.T, D[:, part])


def white_under(V, D):
    """Principal components of V have the variances of V in D and no correlation; null ones are zero in D."""
    variances, axes = np.linalg.eigh(V)
    Y, live = axes.T @ D, variances > 1e-12 * max(variances.max(), 1e-300)
    if abs(Y[~live]).max(initial=0) > 1e-6 * abs(D).max():
        return False
    return not chance.failed(chance.white(Y[live] / np.sqrt(variances[live])[:, None]), FITS)


def known_bugs(seen, known):
    """Names of known (name, step) that explain all that was seen, and the tensors if it is not all of them.

    They have to have the responses; and the law where the covariance is what failed, which it is not if that of
    Algorithm 1 fits.
    """
    near = [(name, step) for name, step in known if same_responses(seen, step)]
    right = same_responses(seen, seen.reference)
    if not (right and explains_law(seen.runs, seen.reference)):
        names = [name for name, step in near if explains_law(seen.runs, step)]
        if names:
            return names, []
    wrong = {s.tensor for s in chance.failed(seen.law_statistics, seen.level) if s.kind == "variance"}
    if not right or not wrong or len(wrong) == len(seen.large.shapes):
        return [], []
    part = max((seen.large.parts[t] for t in wrong), key=lambda part: part.stop - part.start)
    if explains_law(seen.runs, seen.reference, part):
        return [], []
    return [name for name, step in near if explains_law(seen.runs, step, part)], sorted(wrong)


# ------------------------------------------------------------------------------------------------------ diagnosis

def diagnose(seen, known):
    """What is wrong with the sampler, in a few lines, each cause once; [] if nothing is. known: (name, step) pairs."""
    try:
        with np.errstate(all="ignore"):
            return diagnosis(seen, known)
    except Broken as error:
        return [str(error)]


def diagnosis(seen, known):
    """The lines of `diagnose`; Broken where the sampler cannot be judged at all."""
    lines, repeats = seen.arguments() + seen.refuses(), seen.repeats()
    kept = seen.kept_setting() if seen.repeatable else []
    if KEPT in "".join(kept):
        return lines + kept
    if not seen.repeatable:  # nothing cancels between two calls then
        return lines + (["momentum kept between samples: a sample goes on with the momentum of the one before"]
                        if kept_momentum(seen) else repeats + seen.law())
    if depends := noise_by_gradient(seen):
        return lines + depends
    exact, law = seen.path() + seen.responded(), seen.law()
    if exact and seen.dtype == "float64" and not decay(seen) and not diagnosis(seen.in_single_precision(), known):
        return [*lines, "right to single precision: look for a hidden float32, or set DTYPE = 'float32'"]
    exact += seen.huge_and_tiny() + seen.far() + seen.integers()
    draws, (names, bug) = of_single_draws(seen), named(seen, known) if exact or law else ([], None)
    if exact:
        return lines + (names + beside(seen, bug, draws) if names else
                        described(seen, exact) + (draws or noise_alone(seen, known, law)))
    if "between leapfrogs" in "".join(draws) and names:
        return lines + names
    lines += repeats + draws
    if not draws and law:
        lines += names or law + covariance_words(seen)
    if not (law or draws):
        lines += (seen.deep_law() + seen.small_tensors() + generators.distribution(seen)
                  + generators.sums(seen) + generators.independence(seen))
    return lines


def of_single_draws(seen):
    """What is wrong with single draws: rounded, equal, or not normal."""
    return (generators.only_signs(seen) or generators.digits(seen) or generators.sharing(seen)
            or generators.shape_name(seen))


def beside(seen, bug, draws):
    """What is wrong with single draws beside a named bug, a step, that does not make them so by itself."""
    if not draws or bug is None:
        return []
    alone = OwnDraws(with_noise(bug), seen.reference, dtype=seen.dtype, **seen.options)
    return [] if of_single_draws(alone) else draws


def noise_alone(seen, known, law):
    """What the law of the noise says where the responses are wrong and have no name."""
    if not law:
        return ["the noise has the right law"]
    names = [name for name, step in [*known, *draw_bugs(seen.reference)] if explains_law(seen.runs, step)]
    return [f"the noise has the law of: {'; or '.join(names[:4])}"] if names else covariance_words(seen)


def noise_by_gradient(seen):
    """What is left out where all gradients are 0: all moves, or friction and noise; [] if nothing is."""
    path, _, answers = seen.responses["the gradient at X_0"]
    moves, must = np.diff(seen.base.X, axis=0), "where all gradients are 0: noise must not depend on the gradient"
    if len(path.X) == 1 or not len(moves):
        return [f"nothing moves {must}"] * (len(path.X) > 1)
    pushed = (path.X[1] - seen.base.X[1]) / answers[0]  # one number, if the gradient alone makes the difference
    steady = len(moves) > 1 and abs(np.diff(moves, axis=0)).max() <= 1e-9 * abs(moves).max()
    return [f"neither friction nor noise acts {must}"] * bool(steady and np.ptp(pushed) > 1e-3 * abs(pushed).max())


def named(seen, known):
    """The known bugs, the bugs of the draws or else the other scheme behind wrong responses or a wrong law: lines,
    and the first of the bugs, a step."""
    for candidates in (known, draw_bugs(seen.reference)):
        bugs, only = known_bugs(seen, candidates)
        if bugs:
            kind = "known bug" if len(bugs) == 1 else "tie, these have one law"
            line = f"{kind}{' in ' if only else ''}{', '.join(only)}: {'; or '.join(bugs[:4])}"
            return [line], dict(candidates)[bugs[0]]
    scheme = other_scheme(seen)
    return [scheme] if scheme else [], None


def described(seen, exact):
    """Wrong responses that have no name: how W_t is kept, gradients that matter by their size, or the facts."""
    if share := decay(seen):
        return [share]
    if factor := gradient_factor(seen):
        return [factor]
    if in_order_of_answer(seen):
        return ["gradient: its tensors are taken in the order of grad's answer, not by their names: each moves another "
                "tensor of params"]
    if exact[0].startswith("a gradient of 1e6"):
        return [f"large gradients are clipped: {exact[0]}"]
    if exact[0].startswith("a gradient of "):
        return exact[:1]
    return exact[:4]


def decay(seen):
    """That X_1 keeps one share of W_t that is not 1, the same in all coordinates, as no rounding does; "" if not."""
    path, start, _ = seen.responses["W_t"]
    if path.X.shape != seen.base.X.shape:
        return ""
    kept = (path.X[1] - seen.base.X[1]) / (start - seen.answers[0])
    return (f"weight decay: X_1 keeps {kept.mean():.12g} of W_t, right is 1"
            if np.ptp(kept) < min(1e-6, abs(kept - 1).min() / 16) and not seen.near_one(kept) else "")


def gradient_factor(seen):
    """The one factor by which all gradients are wrong, as a formula that holds for another eps too; "" if there is
    none."""
    texts = set()
    for eps in (seen.generic["eps"], 0.07):
        settings, g = {**seen.generic, "eps": eps}, seen.answers[1][:, : seen.middle.n]
        still, moved = seen.with_and_without(seen.middle, settings, g)
        if len(still) != settings["L"] + 1 or still.shape != moved.shape:
            return ""
        ratio = (moved - still)[1:] / noiseless(settings, 0 * g[0], g)[1:]
        if np.ptp(ratio) > 1e-6 * abs(ratio).max() or abs(ratio - 1).max() < 1e-3:
            return ""
        texts.add(words(float(ratio.mean()), 1e-9 if seen.dtype == "float64" else 1e-4, {"mass": 1.0, **settings}))
    text = texts.pop()
    return f"all gradients: {text} times what it should be{RATE * ('eps' in text)}" if text and not texts else ""


def in_order_of_answer(seen):
    """Whether the gradient's tensors are lined up as grad answers them, which is not the order of params."""
    def lined_up(g):
        return np.concatenate([x.ravel() for x in reversed(seen.large.tensors(g).values())])

    path, start, answers = seen.responses["the gradient at X_0"]
    want, got = seen.right_response(start, np.array([lined_up(g) for g in answers])), path.X - seen.base.X
    return want.shape == got.shape and bool((abs(got - want) <= seen.response_bound(start, answers)).all())


def kept_momentum(seen):
    """Whether a second sample goes on with the momentum of the first one: with no gradient, two samples of L leapfrogs
    are then one of 2 L, white but for its first increment."""
    (D, settings), (then, _) = seen.chain[:2]
    if len(D) != len(then) or len(D) != settings["L"]:
        return False
    e = seen.white(np.concatenate([D, then]), {**settings, "L": 2 * settings["L"]})[1:]
    return not chance.failed(chance.white(e), FITS)


def covariance_words(seen):
    """How the covariance differs from the right one: by one factor, or in numbers; [] if it is the right one."""
    D, settings = seen.runs["generic"]
    if isinstance(D, str) or len(D) != settings["L"]:
        return []
    D, K = D - D.mean(axis=1, keepdims=True), noise_map(seen.reference, settings)
    right = K @ K.T
    factor = float(np.mean(seen.white(D, settings) ** 2))
    if white_under(right, D):
        return []
    if white_under(factor * right, D):
        return [f"all draws are {factor**0.5:.3g} times as large as they should be"]
    unit = settings["eps"] ** 2 / settings.get("mass", 1.0)
    texts = (np.array2string(V / unit, precision=3, separator=", ").replace("\n", "")
             for V in (D @ D.T / D.shape[1], right))
    return ["no known bug has this law: covariance of the increments over eps^2 / M {}, right {}".format(*texts)]
