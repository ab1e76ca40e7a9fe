"""Test vectors for other languages, made by the reference itself in 60-digit decimals: the same bytes everywhere."""

import functools
import json
import random
from decimal import Decimal, localcontext

import numpy as np

from oracle.arithmetic import INFINITY, decimals
from oracle.energy import NAMES, Batch, energy_bound, gradient_bounds, truth
from oracle.implementations import NUMPY, ROOT, SINGLE
from oracle.known_bugs import bugs
from oracle.sampler import Case, operations, positions
from oracle.variants import variant

FOLDER = ROOT / "vectors"
FLAGS = {
    "generic": "hides no known bug: every one changes the answer, and `wrong` lists what it gives",
    "exact": "every intermediate number fits in 24 bits: the answer has the same bits, in float32 too; bound 0",
    "wide": "exact as well, but with inputs of more than 24 bits: bound 0 in float64, not judged in float32",
    "leapfrog": "alpha = 0: neither friction nor noise, so it hides every bug of those",
    "unit_mass": "M = I: hides every bug of the mass",
    "one_leapfrog": "L = 1: hides reused draws and stale gradients",
    "diagonal_mass": "mass is a list, one entry per coordinate",
    "b_hat": "the estimate B^ of Equation 1 is not zero",
    "asymmetric": "A is not symmetric: no energy has this force, the step is defined all the same",
    "stop_grad": "grads with the targets Z held fixed: those of z1 and z2 are exactly zero",
    "zero_row": "has a row of zeros: cosine 0; grads with bound null need only be finite",
    "collinear": "every pair is collinear: U = 0, not negative, not NaN",
    "scaled": "rows of norm 1e-6 or 1e6",
    "many_leapfrogs": "L > 20: shows rows of z that are used twice",
    "large": "n, B or d beyond 128 and no multiple of 8: shows bugs of code that works in blocks",
    "diagonal": "A is a list of n numbers, a diagonal matrix: the gradient is A[i] x[i] - b[i]",
    "orthogonal": "nearly orthogonal rows, m = 1e-9: shows clamps and small numbers added; not judged in float32",
}
DOUBLE = {"wide", "orthogonal"}  # flags of vectors that say nothing about single precision
STEP_KEYS = {"id", "flags", "eps", "L", "alpha", "mass", "b_hat", "w", "z", "A", "b", "g", "trajectory", "w_new",
             "bound", "wrong"}
ENERGY_KEYS = {"id", "flags", "stop_grad", "p1", "z1", "p2", "z2", "u", "grads", "bound", "wrong"}
STEPS = [  # id, flags, coordinates, grid of the inputs, parameters
    ("generic", "generic b_hat", 3, 8, dict(eps=0.1, L=3, alpha=0.13, mass=2.89, b_hat=0.05)),
    ("paper", "unit_mass", 4, 8, dict(eps=0.001, L=3, alpha=0.01)),
    ("deep", "", 2, 8, dict(eps=0.25, L=8, alpha=0.05, mass=0.7)),
    ("diagonal-mass", "diagonal_mass", 3, 8, dict(eps=0.1, L=2, alpha=0.13, mass=[2.89, 0.3, 1.7])),
    ("diagonal-b-hat", "diagonal_mass b_hat", 2, 8, dict(eps=0.1, L=2, alpha=0.2, mass=[2.89, 0.3], b_hat=[0.9, 0.1])),
    ("large", "", 16, 8, dict(eps=0.05, L=2, alpha=0.1, mass=1.3)),
    ("one-leapfrog", "one_leapfrog", 3, 8, dict(eps=0.3, L=1, alpha=0.4, mass=5.5)),
    ("asymmetric", "asymmetric", 3, 8, dict(eps=0.2, L=3, alpha=0.13, mass=2.89)),
    ("leapfrog", "leapfrog unit_mass", 3, 8, dict(eps=0.3, L=5, alpha=0.0)),
    ("exact-heavy", "exact one_leapfrog", 2, 1, dict(eps=0.25, L=1, alpha=0.125, mass=16.0)),
    ("exact-light", "exact", 2, 1, dict(eps=0.25, L=2, alpha=0.125, mass=0.25)),
    ("exact-b-hat", "exact b_hat one_leapfrog", 2, 1, dict(eps=0.25, L=1, alpha=0.125, mass=16.0, b_hat=6.0)),
    ("exact-no-noise", "exact b_hat", 2, 1, dict(eps=0.5, L=2, alpha=0.5, mass=0.25, b_hat=0.25)),
    ("wide", "wide one_leapfrog", 2, 2**30, dict(eps=0.25, L=1, alpha=0.125, mass=0.25)),
    ("wide-deep", "wide", 2, 1, dict(eps=0.25, L=4, alpha=0.125, mass=0.25)),
    ("many-leapfrogs", "many_leapfrogs", 3, 8, dict(eps=0.1, L=21, alpha=0.05, mass=0.7)),
    ("thousand", "exact large diagonal diagonal_mass", 1027, 1,
     dict(eps=0.25, L=2, alpha=0.125, mass=[1.0, 0.25, 0.25] * 342 + [1.0])),
]
ENERGIES = [  # id, flags, B, d, seed, factor of the rows of p1; the generic rows are nearly orthogonal, m = 0.08
    ("generic", "generic", 3, 4, 387, 0.5), ("generic-stop", "generic stop_grad", 3, 4, 387, 0.5),
    ("one-pair", "", 1, 5, 1, 2.0), ("batch", "", 5, 2, 2, 1.0), ("batch-stop", "stop_grad", 5, 2, 2, 1.0),
    ("worked-example", "", 2, 2, 3, 1.0), ("tiny-rows", "scaled", 2, 3, 4, 2.0**-20),
    ("huge-rows", "scaled", 2, 3, 4, 2.0**20), ("zero-row", "zero_row", 3, 2, 5, 1.0),
    ("collinear", "collinear", 3, 3, 6, 1.5), ("large-batch", "large", 131, 2, 7, 1.0),
    ("long-rows", "large", 2, 131, 8, 1.0), ("orthogonal", "orthogonal", 2, 2, 9, 1.0),
]


# ------------------------------------------------------------------------------------------------------------- writing

def vectors():
    """The texts of vectors/step.json and vectors/energy.json, one key a line."""
    texts = {}
    for kind, made in (("step", step_vectors()), ("energy", energy_vectors())):
        made = list(made)
        used = {flag: note for flag, note in FLAGS.items() if any(flag in v["flags"] for v in made)}
        bodies = [",\n".join(f'  "{key}": {json.dumps(v[key], separators=(",", ": "))}' for key in v) for v in made]
        texts[f"{kind}.json"] = (f'{{"format": 1,\n "flags": {json.dumps(used, indent=2)},\n "vectors": [\n {{\n'
                                 + "\n },\n {\n".join(bodies) + "\n }\n]}\n")
    return texts


def write_vectors():
    for name, text in vectors().items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")


def floats(x):
    """Nearest doubles, as lists; -0 becomes 0."""
    return (np.array(x, dtype=np.float64) + 0.0).tolist()


def grid(seed, shape, size):
    """Odd integers from -9 to 9 over `size`, the same for ever (Python promises that for random.random alone)."""
    source = random.Random(seed)
    return [[(2 * int(10 * source.random()) - 9) / size for _ in range(shape[1])] for _ in range(shape[0])]


def about(row):
    return {"name": row.name, "because": row.because, "seen_in": list(row.seen_in)}


def step_vectors():
    """The entries of step.json, dictionaries in the format of vectors/README.md."""
    for seed, (name, flags, n, size, parameters) in enumerate(STEPS):
        v = {"id": name, "flags": flags.split(), "mass": 1.0, "b_hat": 0.0, **parameters}
        rows = np.array(grid(seed, (2 * v["L"] + 3, n), size)) + (1 if size > 8 else 0)
        A = np.array(grid(seed + 100, (n, 1 if "diagonal" in v["flags"] else n), min(size, 8)))
        A = A[:, 0] if "diagonal" in v["flags"] else A if "asymmetric" in v["flags"] else A + A.T
        v.update(w=floats(rows[0]), z=floats(rows[2:]), A=floats(A), b=floats(rows[1]))
        X, g, w_new = decimal_step(v)
        v.update(g=floats(g), trajectory=floats([*X[::2], X[-1]]), w_new=floats(w_new))
        v["bound"] = [0.0] * n if {"exact", "wide"} & set(v["flags"]) else floats(step_bound(case_of(v)))
        answers = [(row, floats(decimal_step(v, row.edits)[2])) for row in bugs("step") if "generic" in v["flags"]]
        v["wrong"] = [{**about(row), "w_new": wrong} for row, wrong in answers if wrong != v["w_new"]]
        yield v


def decimal_step(v, edits=None):
    """Positions asked, gradients answered and W_{t+1} of the reference's step in decimals."""
    A, b, w, z, mass, b_hat = (decimals(v[key]) for key in ("A", "b", "w", "z", "mass", "b_hat"))
    X, g = [], []

    def grad(x):
        X.append(x)
        g.append((A * x if A.ndim == 1 else (A * x).sum(axis=1)) - b)
        return g[-1]

    with localcontext() as context:
        context.prec = 60
        w_new = variant(edits, decimals=True).sghmc_step(
            w, z, grad, eps=Decimal(v["eps"]), L=v["L"], alpha=Decimal(v["alpha"]), mass=mass, b_hat=b_hat)
    return X, g, w_new


def step_bound(case):
    """k F / (1 - k 2^-24): gamma_k F is at most u times this for u <= 2^-24."""
    k = operations(case)
    return positions(case, positive=True)[-1] * k / (1 - k * SINGLE.u)


def energy_vectors():
    """The entries of energy.json, dictionaries in the format of vectors/README.md."""
    for name, flags, B, d, seed, factor in ENERGIES:
        rows = np.array(grid(seed, (4 * B, d), 4)).reshape(4, B, d)
        if name == "worked-example":
            rows = np.array([[[3, 4], [5, 12]], [[3, 4], [-5, 12]], [[8, 15], [3, -4]], [[5, 12], [8, 15]]]) * 1.0
        rows[0] *= factor
        if "large" in flags:
            rows[1::2, :, 0] += 1 / 8  # no cosine is 0
        if "zero_row" in flags:
            rows[1, 0] = 0
        if "collinear" in flags:
            rows[3], rows[1] = -rows[0], 3 * rows[2]
        if "orthogonal" in flags:  # a quarter turn, and 2^-30 of the row itself
            rows[3], rows[1] = (x @ [[2.0**-30, 1], [-1, 2.0**-30]] for x in (rows[0], -rows[2]))
        v = {"id": name, "flags": flags.split(), "stop_grad": "stop_grad" in flags}
        v.update(zip(NAMES, rows.tolist(), strict=True))
        v.update(zip(("u", "grads"), decimal_energy(v), strict=True))
        v["bound"] = bounds_over_u(batch_of(v), NUMPY if DOUBLE & set(v["flags"]) else SINGLE)
        rows = [row for row in bugs("energy", "gradient") if "generic" in flags and not row.no_decimals]
        answers = [(row, decimal_energy(v, row.edits)) for row in rows]
        v["wrong"] = [{**about(row), "u": u, "grads": grads} for row, (u, grads) in answers
                      if (u, grads) != (v["u"], v["grads"])]
        yield v


def decimal_energy(v, edits=None):
    """U and gradients of the reference in decimals, rounded to doubles."""
    batch = [decimals(v[key]) for key in NAMES]
    with localcontext() as context:
        context.prec = 60
        made = variant(edits, decimals=True)
        u, grads = made.energy(*batch), made.energy_grad(*batch, v["stop_grad"])
        places = np.vectorize(lambda x: round(Decimal(x), 45), otypes=[object])  # what is left of 60 digits near zero
        return float(u), [floats(places(g)) for g in grads]


def bounds_over_u(batch, largest):
    """Allowed errors over u, for u up to the `largest`: {"u": number, "grads": one number or null per row of p1, z1,
    p2, z2}."""
    def printed(bound):
        return None if bound == INFINITY else float(f"{bound * largest.u.denominator:.6g}")

    right = truth(batch)
    columns = gradient_bounds(largest, batch, right)
    return {"u": printed(energy_bound(largest, batch, right)),
            "grads": [[printed(e) for e in column[:, 0]] for column in columns]}


# ------------------------------------------------------------------------------------------------------------- reading

@functools.cache
def read_vectors(kind):
    """The vectors of one file by id; ValueError for unknown or missing keys, repeated ids, flags without a note."""
    content = json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
    return checked_vectors(content, STEP_KEYS if kind == "step" else ENERGY_KEYS)


def checked_vectors(content, keys):
    """The vectors of a parsed file by id; ValueError as in `read_vectors`."""
    if set(content) != {"format", "flags", "vectors"} or content["format"] != 1:
        raise ValueError(f"expected format 1 with the keys format, flags, vectors, not {sorted(content)}")
    by_id = {}
    for v in content["vectors"]:
        if set(v) != keys:
            raise ValueError(f"vector {v.get('id')}: unknown or missing keys {sorted(set(v) ^ keys)}")
        if v["id"] in by_id or not set(v["flags"]) <= set(content["flags"]):
            raise ValueError(f"vector {v['id']}: id used twice, or a flag without a note")
        by_id[v["id"]] = v
    return by_id


def case_of(v):
    """A step vector as a case."""
    arrays = {key: np.array(v[key]) for key in ("w", "z", "A", "b")}
    mass, b_hat = (np.array(v[key]) if isinstance(v[key], list) else v[key] for key in ("mass", "b_hat"))
    return Case(**arrays, eps=v["eps"], L=v["L"], alpha=v["alpha"], mass=mass, b_hat=b_hat)


def batch_of(v):
    """An energy vector as a batch."""
    return Batch(*(np.array(v[key]) for key in NAMES))
