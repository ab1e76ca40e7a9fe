"""What generators get wrong: draws that are rounded, not normal, shared or dependent (layer 3 of own_draws.py).

Without gradients, alpha = 0 shows the momentum draw alone, and alpha next to 1 the draw of the first kick of each
leapfrog alone, to some 40 bits. These single draws must all differ: equal ones tell any sharing, in whatever order.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from oracle import chance
from oracle.own_draws import LAGS, SHARES, sums_of
from oracle.precision import FORMATS, shortened

DELTA = 2.0**-45  # two draws nearer than this count as equal


def draw_statistics(draws):
    return [law(d.z, group, f"{d.row}, seed {d.seed}") for d in draws for law, group in (
        (chance.shape, "shape"), (chance.largest, "largest"), (chance.variance, "variance of single draws"))]


def distribution(seen):
    """Every single draw is standard normal."""
    return seen.said("draws", draw_statistics(seen.draws))


def digits(seen):
    """No draw is rounded to a shorter format than the sampler claims."""
    rows = {}
    for d in seen.draws:
        rows.setdefault(short_format(d.z, seen.dtype), {})[d.row] = True
    return [f"every draw is a {name} number, not {seen.dtype}: {', '.join(found)}"
            for name, found in rows.items() if name]


def short_format(z, dtype):
    """The shortest format that holds all the draws, or all of them times sqrt(2), if it is shorter than dtype."""
    room = 2.0**-38 if dtype == "float64" else 2.0**-18
    for bits, name in FORMATS.items():
        for x in (z, math.sqrt(2) * z):
            x = x[abs(x) > 2.0**-10]
            if name != dtype and x.any() and (abs(x - shortened(x, bits)) <= room * abs(x)).all():
                return name
    return None


# ---------------------------------------------------------------------------------------------- sums of draws

def sum_statistics(seen):
    """Sums and sums of squares of the momentum and of the noise, over whole tensors and along their axes: they vary
    from one to the next, unless somebody has centred or normalised the draws."""
    kinds = {"momentum": [d for d in seen.draws if d.row == "momentum"],
             "noise": [d for d in seen.draws if d.row != "momentum"]}
    return [s for kind, draws in kinds.items() if draws
            for s in sums_of(kind, {name: np.array([d.z[part].reshape(seen.large.shapes[name]) for d in draws])
                                    for name, part in seen.large.parts.items()})]


def sums(seen):
    return seen.said("sums", sum_statistics(seen))


# ---------------------------------------------------------------------------------------------- equal draws

@dataclass
class Sharing:
    """Draws that are equal. Columns of pairs (2, number): indices into all rows one after the other."""

    pairs: np.ndarray
    disjoint: int
    allowed: int


def equal_draws(draws, share):
    """Pairs of neighbours in order of size that are equal but for the sign. Of the disjoint pairs among N right draws,
    m appear with probability E^m / m! at most, E = 0.5642 N^2 DELTA (the density of |x| - |y| at 0 is 1.1284)."""
    values = np.concatenate([abs(d.z) for d in draws]) if draws else np.zeros(0)
    order = np.argsort(values, kind="stable")
    order = order[values[order] > 2.0**-30]  # a draw that is missing is no draw
    equal = np.diff(values[order]) <= DELTA
    starts = np.flatnonzero(np.diff(np.concatenate([[0], equal, [0]])))
    lengths = starts[1::2] - starts[::2]
    expected, allowed = 0.5642 * len(order) ** 2 * DELTA, 0
    while allowed * math.log(max(expected, 1e-300)) - math.lgamma(allowed + 1) > math.log(share):
        allowed += 1
    i = np.flatnonzero(equal)
    return Sharing(np.array([order[i], order[i + 1]]), int(((lengths + 1) // 2).sum()), allowed - 1)


def sharing(seen):
    """No two single draws are equal. Single precision has too few numbers for this; correlations judge it alone."""
    if seen.dtype != "float64":
        return []
    found = equal_draws(seen.draws, SHARES["sharing"] * seen.level)
    if found.disjoint <= found.allowed:
        return []
    return [f"{found.disjoint} pairs of draws are equal but for the sign, more than {found.allowed}: "
            + "; ".join(explain(found, seen.draws, seen.large))]


def explain(found, draws, layout):
    """Who shares with whom, the two commonest ways."""
    rows, places = found.pairs // layout.n, found.pairs % layout.n
    names = list(layout.parts)
    tensors = np.searchsorted([layout.parts[t].start for t in names], places, side="right") - 1
    relation = np.array([rows[0] == rows[1], tensors[0] == tensors[1]])
    ways = []
    for key, count in Counter(map(tuple, relation.T.tolist())).most_common(2):
        at = (relation.T == key).all(axis=1)
        if count >= 0.05 * len(at):
            ways.append(way(key, rows[:, at], tensors[:, at], places[:, at], draws, names, layout))
    return list(dict.fromkeys(ways))


def way(key, rows, tensors, places, draws, names, layout):
    """What pairs that share their row, their tensor, both or neither (key) have in common, by the commonest of them."""
    same_row, same_tensor = key
    common = Counter(zip(*rows.tolist(), *tensors.tolist(), strict=True)).most_common(1)[0][0]
    (a, b), (s, t) = (draws[k] for k in common[:2]), (names[k] for k in common[2:])
    if same_row and same_tensor:
        return within(rows, tensors, places, draws, names, layout)
    inside = places - np.array([layout.parts[name].start for name in names])[tensors]
    seeds = np.array([d.seed for d in draws])[rows]
    if not same_tensor and np.ptp(seeds, axis=0).any() and (np.diff(seeds + tensors, axis=0) == 0).mean() > 0.99:
        return f"one seed per tensor: {s} with seed {a.seed} draws what {t} draws with seed {b.seed}"
    if not whole(inside, tensors, common, layout):
        return seen_equal(rows, tensors, inside, draws, names)
    if same_row:
        sizes = np.array([part.stop - part.start for part in layout.parts.values()])[tensors]
        kind = " of one size" if (sizes[0] == sizes[1]).all() else ""
        return f"one key for all tensors{kind}: {s} and {t} share their draws"
    if a.seed == b.seed:
        return f"the key is not advanced between leapfrogs: the {b.row} is the {a.row}" + (
            "" if same_tensor else f" of another tensor, {s}, {t}")
    if same_tensor and a.row == b.row:
        return "the same noise at each sample: the seed is ignored"
    if same_tensor:
        return f"samples overlap: the {a.row} of seed {a.seed} is the {b.row} of seed {b.seed}"
    return f"tensors and seeds overlap: {s} with seed {a.seed} draws what {t} draws with seed {b.seed}"


def whole(inside, tensors, common, layout):
    """Whether tensors share all their draws, each at its own place: inside (2, pairs), the places inside tensors;
    common: the rows and tensors that share most often."""
    sizes = [part.stop - part.start for part in layout.parts.values()]
    at = (tensors.T == common[2:]).all(axis=1)
    return (inside[0] == inside[1]).mean() > 0.99 and (
        np.unique(inside[0, at]).size > 0.9 * min(sizes[k] for k in common[2:]))


def seen_equal(rows, tensors, inside, draws, names):
    """Equal draws in no pattern with a name, described by the commonest tensors, rows and distance."""
    keys = Counter(zip(*rows.tolist(), *tensors.tolist(), (inside[1] - inside[0]).tolist(), strict=True))
    (i, j, s, t, distance), count = keys.most_common(1)[0]
    at = (rows.T == (i, j)).all(axis=1) & (tensors.T == (s, t)).all(axis=1) & (inside[1] - inside[0] == distance)
    k = int(inside[0, at].min())
    one, other = (f"{names[tensor]}[{place}] in the {draws[row].row} of seed {draws[row].seed}"
                  for tensor, place, row in ((s, k, i), (t, k + distance, j)))
    return f"{one} is {other}, and so on: {count} pairs at that distance" + (
        f", {rows.shape[1] - count} at others" if count < rows.shape[1] else "")


def within(rows, tensors, places, draws, names, layout):
    """Repeats inside one tensor, described for one row of draws and the tensor with most of them."""
    tensor = names[Counter(tensors[0].tolist()).most_common(1)[0][0]]
    here = (tensors[0] == names.index(tensor)) & (rows[0] == rows[0, 0])
    i, j = places[:, here]
    start, stop, width = layout.parts[tensor].start, layout.parts[tensor].stop, (layout.shapes[tensor] or (1,))[-1]
    distance, different = abs(j - i), stop - start - len(i)
    if np.ptp(abs(draws[rows[0, 0]].z[start:stop])) <= DELTA:
        return f"one number for all coordinates of {tensor}"
    if different == width < stop - start and (distance % width == 0).all():
        return f"the first row expanded: all rows of {tensor} are equal"
    if different == (stop - start) / width and ((i - start) // width == (j - start) // width).all():
        return f"one number for each row of {tensor}"
    if np.ptp(i + j) == 0:
        other = " with the other sign" if draws[rows[0, 0]].z[i[0]] * draws[rows[0, 0]].z[j[0]] < 0 else ""
        return f"the draws of {tensor} come again in reverse order{other}"
    common, count = Counter(distance.tolist()).most_common(1)[0]
    period = int(np.gcd.reduce(distance))
    if period > 1 or count > 0.5 * len(distance):
        return f"the draws of {tensor} repeat at distance {period if period > 1 else common}"
    return f"draws of {tensor} come more than once, at no fixed distance"


# ------------------------------------------------------------------------------------------------ correlations

def independence_statistics(seen):
    """Pairs of coordinates at a distance, of tensors, of leapfrogs in different samples (seeds)."""
    rows = [(name, l, x) for name, e in seen.white_chain.items() for l, x in enumerate(e)]
    statistics = []
    for i, (name, l, x) in enumerate(rows):
        here = f"{name}, leapfrog {l}"
        statistics += [chance.lag(x, k, "coordinates", f"{here}: distance {k}") for k in LAGS if 2 * k <= x.size]
        statistics += [chance.mirrored(x[part], "mirrored coordinates", f"{here}: i and n - 1 - i of {t}")
                       for t, part in seen.large.parts.items() if part.stop - part.start > 1]
        for a, b, first, second in seen.large.equal_shapes():
            statistics.append(chance.correlation(x[second], x[first], "tensors", f"{here}: {a} and {b}"))
        for other, m, y in rows[:i]:
            if other != name:
                statistics.append(chance.correlation(x, y, "samples", f"{here} and {other}, leapfrog {m}"))
                statistics += [chance.correlation(x[second], y[first], "tensors of two samples",
                                                  f"{b} in {here} and {a} in {other}, leapfrog {m}")
                               for a, b, first, second in seen.large.equal_shapes()]
    return statistics


def independence(seen):
    return seen.said("independence", independence_statistics(seen))


# --------------------------------------------------------------------------------------------- what is found

def statistics(seen):
    """All statistics of a sampler by layer."""
    return {"law": seen.law_statistics, "deep": seen.deep_statistics, "small": seen.small_statistics,
            "draws": draw_statistics(seen.draws), "sums": sum_statistics(seen),
            "independence": independence_statistics(seen)}


def sensitivities(seen):
    """One line for each kind of statistic: how many there are, the share of the false alarms that each may spend, and
    the smallest error that is found with probability 1 - MISS (of the largest and of the smallest n)."""
    for layer, found in statistics(seen).items():
        share, groups = SHARES[layer] * seen.level / max(1, len(found)), {}
        for s in found:
            groups.setdefault((s.kind, s.group), []).append(s.n)
        for (kind, group), sizes in groups.items():
            for n in sorted({max(sizes), min(sizes)}, reverse=True):
                yield (f"{layer}, {group}: {len(sizes)} statistics at {share:.1e} each; n = {n}: found from "
                       f"{chance.size_found(kind, n, share)}")


# --------------------------------------------------------------------------------------------- names of shapes

def only_signs(seen):
    for d in seen.draws:
        if d.z.any() and np.ptp(abs(d.z)) < 1e-9 and d.z.min() < 0 < d.z.max():
            return [f"{d.row}: signs, +1 or -1, instead of normals"]
    return []


def shape_name(seen):
    """What the draws follow if that is no normal law of any mean and variance; [] if it is one."""
    if not distribution(seen):
        return []
    for d in seen.draws:
        spread = float(d.z.std())
        if not spread:
            continue
        z = (d.z - d.z.mean()) / spread
        room = chance.smallest_errors("shape", z.size, 1e-9)[1]
        if chance.distance(z) > room:
            if abs(z).max() < 1.75 and chance.distance(z, lambda x: np.clip(0.5 + x / 12**0.5, 0, 1)) < room:
                return [f"{d.row}: uniform instead of normal"]
            return [f"{d.row}: not normal; the distribution function is off by {chance.distance(z):.3g}"]
        if chance.largest(z, "", "").p < 1e-9:
            return [f"{d.row}: normals cut off at {abs(z).max():.3g} standard deviations"]
    return []
