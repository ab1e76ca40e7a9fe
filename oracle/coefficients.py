"""A sampler without a name for its bug, in words: which coordinates, which inputs, by how much."""

from dataclasses import replace

import numpy as np

from oracle.diagnosis import some
from oracle.formula import RATE, words
from oracle.implementations import NUMPY, Broken
from oracle.probes import (
    described,
    label,
    mixing,
    probe_case,
    responses,
    weights,
    wrong_coordinates,
)

MOST = 4  # facts in one diagnosis


def settings_of(impl, deep):
    """(what is special, case, coordinates that are changed alone), the plainest first: one that is wrong is enough."""
    mass = 2.89 if impl.accepts("mass") else 1.0
    yield "", probe_case(mass=mass), None
    for L in (1, 2, 4):
        yield f"at L = {L}: ", probe_case(L=L, mass=mass), None
    if impl.accepts("b_hat"):
        yield "with b_hat: ", probe_case(mass=mass, b_hat=0.05), None
        if impl.accepts("b_hat per coordinate"):
            yield "with a b_hat for each coordinate: ", probe_case(mass=mass, b_hat=np.arange(1, 5) / 64), None
    vector = impl.accepts("mass per coordinate")
    if vector:
        yield "with a mass for each coordinate: ", probe_case(mass=np.array([2.89, 0.3, 1.7, 5.5])), None
    yield "", probe_case(n=7, mass=mass), None
    for L in (23, 24, *[130] * deep):  # a prime, no multiple of any block of leapfrogs; a multiple of most; many
        yield f"at L = {L}: ", probe_case(n=3, L=L, mass=mass), ()
    large = 0.5 + 0.618034 * np.arange(1111) % 5 if vector else mass  # no two are equal
    yield "with a mass for each coordinate: " if vector else "", probe_case(n=1111, mass=large), (0, 16, 555, 1110)


def wrong_coefficients(impl, deep=False):
    """What is wrong with the coefficients of the recursion, in words; "" if nothing is. deep: up to L = 130."""
    for special, case, alone in settings_of(impl, deep):
        try:
            found = facts(impl, case, alone)
        except Broken as error:
            return f"{special}{error}"
        except Exception as error:
            return f"{special}raises {type(error).__name__}: {error}"
        if found:
            more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
            return special + "; ".join(found[:MOST]) + more
    return ""


def facts(impl, case, alone):
    """What is wrong at one case, a list of texts."""
    seen = responses(impl, case, alone)
    mixed, wrong = mixing(seen), np.flatnonzero(wrong_coordinates(seen))
    if mixed:
        return mixed
    if not len(wrong):
        off = np.flatnonzero(abs(seen.offset) > 64 * seen.error["w"])
        return [f"every coefficient is right, but X_{case.L} is off by {seen.offset[off[0]]:.6g} in "
                f"{some_coordinates(off)} of {case.n}"] if len(off) else []
    i = int(wrong[0])
    found = rows_of_z(seen, i) or decay(seen, i) or move(seen, wrong) or variance(impl, seen, i) or grouped(seen, i)
    if len(wrong) < case.n:
        found[0] = f"wrong in {some_coordinates(wrong)} of {case.n} alone: {found[0]}"
    elif np.ndim(case.mass):
        found[0] = f"in coordinate {i} {found[0]}"
    return found


def some_coordinates(which):
    """The coordinates in words: up to eight of them, or a range."""
    if len(which) > 2 and len(which) == which[-1] - which[0] + 1:
        return f"coordinates {which[0]} to {which[-1]}"
    more = f" and {len(which) - 8} more" if len(which) > 8 else ""
    return f"coordinate{'s' * (len(which) > 1)} {', '.join(map(str, which[:8]))}{more}"


def settings(case, i):
    return dict(eps=case.eps, alpha=case.alpha, mass=float(np.broadcast_to(case.mass, case.n)[i]), L=case.L)


# ----------------------------------------------------------------------------------------------- what has a plain form

def rows_of_z(seen, i):
    """Rows of z that stand in for others or are not used, if every wrong row of z is one of them; else []."""
    rows, e = [("z", j) for j in range(2 * seen.case.L + 1)], 2 * seen.error["z"]
    own, right = ({key: x[key][:, i] for key in rows} for x in (seen.own, seen.right))
    unused, stands = [], []
    for key in rows:
        if (abs(own[key] - right[key]) <= e).all():
            continue
        if (abs(own[key]) <= e).all():
            unused.append(label(*key))
            continue
        one = [label(*a) for a in rows[:-1] if (abs(own[key] - right[a]) <= e).all()]
        several = one or sum_of_rows(own[key], right, e)
        if not several:
            return []
        stands.append(f"{label(*key)} as {' and '.join(several[:4])}{' and others' * (len(several) > 4)}")
    if not stands:
        return []
    lost = f"; not used {some(unused, ', ')}" if unused else ""
    return [f"rows of z in the wrong places: used are {some(stands, ', ')}{lost}"]


def sum_of_rows(x, right, e):
    """The rows of z whose right coefficients (L + 1,) add up to x, or []. Rows 2 l and 2 l + 1 act from X_(l + 1) on,
    so what is left of x is one or both of the two that begin where it does."""
    rest, found = x.copy(), []
    while (abs(rest) > e).any():
        l = int((abs(rest) > e).argmax())
        a, b = ("z", 2 * l - 2), ("z", 2 * l - 1)
        fits = [rows for rows in ([a], [b], [a, b]) if abs(rest[l] - sum(right[row][l] for row in rows)) <= e]
        if l == 0 or not fits:
            return []
        rest, found = rest - sum(right[row] for row in fits[0]), found + fits[0]
    return [label(*row) for row in found]


def decay(seen, i):
    """W_t in the gradient, or kept in part: [] unless that explains every coefficient there is."""
    own, right = ({key: x[key][:, i] for key in seen.own} for x in (seen.own, seen.right))
    w, L, tolerance = own["w", 0], seen.case.L, 64 * max(seen.error.values())
    if abs(w[1] - 1) <= seen.error["w"]:
        return []
    rate = (w[1] - 1) / right["g", 0][1]
    back = [rate * right["g", l] for l in range(L)]  # what X_l does to all later positions
    if all(abs(x[l] - right[key][l] - sum(back[k][l] * x[k] for k in range(l))) <= tolerance
           for key, x in own.items() for l in range(L + 1)):
        return [f"weight decay: {rate:.6g} times the position is added to each gradient"]
    if all(abs(x[l + 1] - w[1] * x[l] - right[key][l + 1] + right[key][l]) <= tolerance
           for key, x in own.items() for l in range(L)):
        return [f"weight decay: each move keeps {w[1]:.9g} of the position"]
    return []


def move(seen, wrong):
    """All that moves X_l by one factor, which is that of another mass in every wrong coordinate: the drift; or []."""
    ratios = np.array([common_factor(seen, i) for i in wrong])
    if not np.isfinite(ratios).all() or not (abs(ratios - 1) > 1e-9).all():
        return []
    if np.ndim(seen.case.mass):
        m, near = seen.case.mass, 1e-9 if seen.error["z"] < 1e-9 else 1e-3
        used = {"the mean mass": m.mean() + 0 * m, "the first mass": m[0] + 0 * m, "the last mass": m[-1] + 0 * m}
        for k in range(1, len(m)):
            used |= {f"the mass of coordinate i {sign} {k} in coordinate i": np.roll(m, shift)
                     for sign, shift in (("-", k), ("+", -k))
                     if 0 <= wrong.min() - shift and wrong.max() - shift < len(m)}
        for how, other in used.items():
            if (abs(ratios * other[wrong] / m[wrong] - 1) < near).all():
                return [f"the drift eps M^-1 Phi divides by {how}"]
    i = int(wrong[0])
    text = words(ratios[0], 1e-10 if seen.error["z"] < 1e-9 else 1e-4, settings(seen.case, i))
    return [f"every move X_(l+1) - X_l is {text or format(ratios[0], '.9g')} times what it should be"]


def common_factor(seen, i):
    """The factor by which all weights of coordinate i are wrong, NaN if there is no such factor."""
    found = [w for w in weights(seen, i) if w.group != "kept"]
    ratios = [w.got / w.right for w in found if w.counts]
    e = max(8 * w.error / abs(w.right) for w in found if w.counts)
    return ratios[0] if np.ptp(ratios) <= e and all(w.counts or not w.wrong for w in found) else np.nan


def variance(impl, seen, i):
    """Where b_hat alone is wrong: by what it lowers the variance of the noise, at this b_hat and at half of it."""
    case, key, acts = seen.case, ("z", 1), []
    if not np.any(case.b_hat):
        return []
    plain = responses(impl, replace(case, b_hat=0.0), alone=())
    free, B = float(plain.right[key][1, i]) ** 2, np.broadcast_to(case.b_hat, case.n)[i]
    if wrong_coordinates(plain)[i]:
        return []
    for x in (seen, responses(impl, replace(case, b_hat=case.b_hat / 2), alone=())):
        got, want = (float(part[key][1, i]) ** 2 for part in (x.own, x.right))
        acts.append((free - got) / (free - want))
    text = words(acts[0], 1e-11 if impl.dtype == "float64" else 1e-4, settings(case, i))
    if text and abs(acts[1] / acts[0] - 1) < (1e-9 if impl.dtype == "float64" else 1e-3):
        return [f"B^ is taken off the noise variance {text} times (right: 2 B^ eps of 2 alpha M, once)"]
    return [f"b_hat = {B:.6g} lowers the noise variance as {acts[0] * B:.6g} should, and {B / 2:.6g} as "
            f"{acts[1] * B / 2:.6g}"]


def grouped(seen, i):
    """Wrong weights; where all of a kind are wrong by one factor they are one line."""
    groups = {}
    for weight in weights(seen, i):
        groups.setdefault(weight.group, []).append(weight)
    found = []
    for name, members in groups.items():
        wrong = [w for w in members if w.wrong]
        texts = [described(w, settings(seen.case, i)) for w in wrong]
        factors = {text.partition(": ")[2] for text in texts}
        if len(wrong) > 1 and len(factors) == 1 and (len(wrong) == len(members) or name == "kept"):
            text = factors.pop()
            found.append(f"{ALL.get(name, name)}: {text}{RATE * (name == 'gradient' and 'eps' in text)}")
        else:
            found += [name == "gradient" and split_kicks(w, seen, i) or t for w, t in zip(wrong, texts, strict=True)]
    return found


ALL = {"noise": "all noise z[1..]", "gradient": "all gradients",
       "kept": "what is kept of the momentum from one move to the next"}


def split_kicks(weight, seen, i):
    """A gradient of two half-kicks in words, if one of the two is right and the other has a formula."""
    s = settings(seen.case, i)
    c = 1 - s["alpha"]
    one = weight.right / (1 + c)
    if weight.what.startswith("the gradient at X_0") or not weight.counts:
        return None
    for which, x in (("opening", (weight.got - c * one) / one), ("closing", (weight.got - one) / (c * one))):
        text = "0" if abs(x) < 1e-9 else words(x, 8 * weight.error / abs(one * x), s)
        if text:
            return f"{weight.what}: {text} times what it should be in the {which} half-kick (if the other is right)"
    return None


# ----------------------------------------------------------------------------------------------- what depends on size

def by_size(impl):
    """Whether the size of a gradient or a draw changes its share: clipped, normalised, dropped; "" if it does not."""
    position = size_of(impl, "w", slice(None), "W_t")  # it moves with the others
    others = {"gradient": ("g", 0), "z[0]": ("z", 0), "z[1]": ("z", 1)}
    return position or "; ".join(filter(None, (size_of(impl, *place, what) for what, place in others.items())))


def size_of(impl, kind, row, what):
    """The same for one input alone, by the difference of calls with both signs, at 2^-96 ... 2^96 times a pattern."""
    case = probe_case(n=4, L=1, mass=2.89 if impl.accepts("mass") else 1.0)
    case = replace(case, w=0 * case.w, z=0 * case.z, g=0 * case.g)
    pattern, used, e = np.array([1.0, -2.0, 0.5, 3.0]), {}, {}

    def at(impl, k, sign):
        x = getattr(case, kind).copy()
        x[row] = sign * 2.0**k * pattern
        w, z, g = (x if kind == name else getattr(case, name) for name in "wzg")
        return impl.step(w, z, lambda _: g[0].copy(), **case.settings())

    share = (at(NUMPY, 0, 1) - at(NUMPY, 0, -1))[0] / 2
    for k in (*range(-96, -12, 12), *range(-12, 24, 4), *range(24, 97, 12)):
        try:
            plus, minus = at(impl, k, 1), at(impl, k, -1)
        except Exception:
            return ""
        used[k] = (plus - minus) / 2 / share
        e[k] = 256 * float(impl.u) * abs(plus + minus).max() / abs(share) / 2.0**k + 2.0**10 * float(impl.u)
    shares = {k: x / 2.0**k for k, x in used.items()}  # equal, unless size matters
    wrong = [k for k in used if (abs(shares[k] - shares[0]) > (e[k] + e[0]) * abs(pattern).max()).any()]
    if not wrong or not np.isfinite(list(used.values())).all():
        return ""
    return clipped(what, used) or (f"{what} of {2.0**wrong[-1]:g} counts as {used[wrong[-1]][0] + 0:.6g}, of 1 as "
                                   f"{used[0][0] + 0:.6g}: its share depends on its size")


def clipped(what, used):
    """Where the share of the largest sizes is one and the same, by entry or by norm; "" elsewhere."""
    norms = [np.linalg.norm(x) for x in used.values()]
    a, b = list(used.values())[:-3:-1]
    if not np.allclose(a, b, rtol=1e-6) or not a.any():
        return ""
    if np.allclose(abs(a), abs(a[0]), rtol=1e-6):
        return f"{what} clipped: each entry is cut off at {abs(a[0]):.6g}"
    every = np.allclose(norms, norms[-1], rtol=1e-6)
    return f"{what} clipped: it is {'brought to' if every else 'cut off at'} the norm {norms[-1]:.6g}"
