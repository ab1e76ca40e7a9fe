"""NumPy reference of "Posterior Sampling on SimSiam": Algorithm 1 (the sampler) and Equation 2 (the energy).

Written from the two sources alone, in their letters and order, for reading beside them and for testing other code
against it. It makes all 2L gradient calls and keeps every term; speed is no concern here.

    python reference_numpy.py vectors               write vectors/step.json and vectors/energy.json
    python reference_numpy.py check results.json    judge results computed from those vectors in any language
"""

import json
import math
import random
import sys
from decimal import Decimal, localcontext
from itertools import islice
from pathlib import Path

import numpy as np

# Every number below is one of these. `vectors` runs this same text once more with 60-digit decimals in their place:
# decimals round alike on every machine, which BLAS, SIMD and libm do not.
REAL, LOG = np.float64, np.log


# ------------------------------------------------------------------------------------------------- Algorithm 1

def sghmc_step(w, z, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0):
    """One sample of SGHMC, W_t -> W_{t+1} (Algorithm 1; alpha = M^-1 C eps).

        1   Phi ~ N(0, M);  X = W_t
        2   for l = 0 .. L-1:
        3       Phi = (1 - alpha) Phi - eps/2 grad U(X) + N(0, 2 C eps)
        4       X   = X + eps M^-1 Phi
        5       Phi = (1 - alpha) Phi - eps/2 grad U(X) + N(0, 2 C eps)
        6   W_{t+1} = X              (printed "W_{t+1} = W_t", a misprint: the chain would never move)

    w (n,) position, never written; z iterable of 2L+1 rows (n,) of standard normals, z[0] for Phi and z[1..2L] for the
    half-kicks (row 2L never reaches W_{t+1} and may be missing); grad (n,) -> (n,), called 2L times in order;
    eps step size; L leapfrogs; alpha friction per half-kick, 0 is plain leapfrog; mass the diagonal of M, scalar or
    (n,); b_hat the estimate B^ of Equation 1, scalar or (n,), which makes the noise N(0, 2 (C - B^) eps).
    Returns a new float64 array (n,).
    ValueError: eps <= 0 or not finite, L < 1, alpha outside [0, 1), mass <= 0, B^ > C, shapes that do not fit.
    """
    w, Z, M, B_hat = _checked(w, z, eps, L, alpha, mass, b_hat)
    C = alpha * M / eps                                 # friction, from alpha = M^-1 C eps
    noise_variance = 2 * (C - B_hat) * eps              # of N(0, 2 C eps) once B^ is taken off, Equation 1
    if not np.all(noise_variance >= -16 * REAL(2) ** -53 * alpha * M):  # rounding of C and of B^
        raise ValueError("b_hat is larger than the friction C = alpha * mass / eps: the noise variance is negative")
    noise_std = np.sqrt(np.maximum(noise_variance, 0))  # B^ = C may round to just below zero

    def normal(j):
        return Z[j] if j < len(Z) else np.zeros_like(w)  # the missing last row

    def dU(X):
        return _vector(grad(X.copy()), w.shape, "grad(X)")

    Phi = np.sqrt(M) * normal(0)                        # line 1
    X = w.copy()                                        # line 1
    for l in range(L):                                  # line 2
        Phi = ((1 - alpha) * Phi                        # line 3
               - eps / 2 * dU(X)                        # line 3
               + noise_std * normal(2 * l + 1))         # line 3
        X = X + eps / M * Phi                           # line 4
        Phi = ((1 - alpha) * Phi                        # line 5
               - eps / 2 * dU(X)                        # line 5
               + noise_std * normal(2 * l + 2))         # line 5
    return X                                            # line 6


def _checked(w, z, eps, L, alpha, mass, b_hat):
    """The arguments of a step as arrays, or ValueError."""
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be positive and finite, not {eps}")
    if L != int(L) or L < 1:
        raise ValueError(f"L must be a whole number of leapfrogs, at least 1, not {L}")
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), not {alpha}")
    w = np.array(w, dtype=REAL)
    if w.ndim != 1:
        raise ValueError(f"w must have one axis, not shape {w.shape}")
    Z = [_vector(row, w.shape, "a row of z") for row in islice(z, 2 * L + 1)]
    if len(Z) < 2 * L:
        raise ValueError(f"z must have 2L+1 = {2 * L + 1} rows (or 2L), not {len(Z)}")
    mass, b_hat = (np.array(x, dtype=REAL) for x in (mass, b_hat))
    if mass.shape not in ((), w.shape) or b_hat.shape not in ((), w.shape):
        raise ValueError(f"mass and b_hat must be scalars or have the shape of w, {w.shape}")
    if not np.all((mass > 0) & (mass < float("inf"))):
        raise ValueError("mass must be positive and finite")
    return w, Z, np.broadcast_to(mass, w.shape), np.broadcast_to(b_hat, w.shape)


def _vector(x, shape, name):
    x = np.array(x, dtype=REAL)
    if x.shape != shape:
        raise ValueError(f"{name} must have the shape of w, {shape}, not {x.shape}")
    return x


# -------------------------------------------------------------------------------------------------- Equation 2

def energy(p1, z1, p2, z2, similarity="abscos"):
    """Potential energy U of a batch, a float >= 0.  p, z: raw rows (B, d) of the two views, normalised inside.

        abscos  m = mean over the batch of 1/2 ( |P1.Z2| + |P2.Z1| ),   U = -log m              Equation 2, section 2.2
        cos     U = 1 - mean of 1/2 ( P1.Z2 + P2.Z1 )                                           1 + L_SimSiam
        l2      U = mean of 1/2 ( 1/2 |p1 - z2|^2 + 1/2 |p2 - z1|^2 ), rows not normalised      the Note

    A row of zeros has cosine 0 with everything; m is clamped to [tiny, 1] (a computed cosine can exceed 1), so that U
    is finite and never negative.  ValueError: shapes differ or are not (B, d); unknown similarity.
    """
    P1, Z1, P2, Z2 = _batch(p1, z1, p2, z2, similarity)
    if similarity == "l2":
        return float(np.mean((((P1 - Z2) ** 2).sum(axis=1) / 2 + ((P2 - Z1) ** 2).sum(axis=1) / 2) / 2))
    s12 = cosine(P1, Z2)[0]                             # P1.Z2  (B,)
    s21 = cosine(P2, Z1)[0]                             # P2.Z1  (B,)
    if similarity == "cos":
        return float(np.maximum(1 - np.mean((s12 + s21) / 2), 0))
    m = _mean_similarity(s12, s21)                      # -L_SimSiamAbs
    return float(0 - LOG(m))                            # U = -log(-L_SimSiamAbs), and 0 rather than -0 at m = 1


def energy_grad(p1, z1, p2, z2, stop_grad, similarity="abscos"):
    """Gradient of U by its raw inputs: (g_p1, g_z1, g_p2, g_z2), each (B, d).  Errors as in `energy`.

        dU/dP1_i = -1/(2 B m) sign(s) (z2 - s p1) / |P1_i|     s = P1_i.Z2_i, small letters: unit rows
        dU/dZ2_i = -1/(2 B m) sign(s) (p1 - s z2) / |Z2_i|     0 with stop_grad (the sg of Equation 2)

    and the same with the views exchanged; for `cos` the factor is -1/(2 B). Rows of zeros, and all rows where m is
    clamped from below, get gradient 0.
    """
    P1, Z1, P2, Z2 = _batch(p1, z1, p2, z2, similarity)
    B = len(P1)
    if similarity == "l2":
        g_p1, g_z1, g_p2, g_z2 = ((a - b) / (2 * B) for a, b in ((P1, Z2), (Z1, P2), (P2, Z1), (Z2, P1)))
    else:
        s12, ds12_dP1, ds12_dZ2 = cosine(P1, Z2)
        s21, ds21_dP2, ds21_dZ1 = cosine(P2, Z1)
        dU_ds12, dU_ds21 = _slopes(s12, s21, B, similarity)
        g_p1 = dU_ds12 * ds12_dP1
        g_z1 = dU_ds21 * ds21_dZ1
        g_p2 = dU_ds21 * ds21_dP2
        g_z2 = dU_ds12 * ds12_dZ2
    if stop_grad:
        g_z1 = np.zeros_like(Z1)
        g_z2 = np.zeros_like(Z2)
    return g_p1, g_z1, g_p2, g_z2


def cosine(P, Z):
    """Cosine s of each row pair (B,) and its gradients ds/dP = (z - s p)/|P|, ds/dZ = (p - s z)/|Z|, each (B, d)."""
    p, P_norm = _unit(P)
    z, Z_norm = _unit(Z)
    s = (p * z).sum(axis=1)
    ds_dP = (z - s[:, None] * p) / P_norm
    ds_dZ = (p - s[:, None] * z) / Z_norm
    return s, ds_dP, ds_dZ


def _unit(rows):
    """Unit rows (B, d) and norms (B, 1). Scaled by the largest entry first, so that squares of 1e-200 and 1e200 are
    safe. A row of zeros stays zero and counts as infinitely long, which makes its cosine and its gradients 0."""
    size = np.abs(rows).max(axis=1)[:, None]
    rows = rows / np.where(size > 0, size, 1)
    norm = np.sqrt((rows * rows).sum(axis=1))[:, None]
    return rows / np.where(size > 0, norm, 1), np.where(size > 0, size * norm, REAL("inf"))


def _mean_similarity(s12, s21):
    m = np.mean((np.abs(s12) + np.abs(s21)) / 2)        # Equation 2, mean over the batch
    return np.clip(m, REAL(2) ** -1022, REAL(1))        # 2^-1022: the smallest normal float64


def _slopes(s12, s21, B, similarity):
    """dU/ds of each cosine, as columns (B, 1)."""
    if similarity == "cos":
        return -REAL(1) / (2 * B), -REAL(1) / (2 * B)
    m = _mean_similarity(s12, s21)
    scale = -1 / (2 * B * m) if m > REAL(2) ** -1022 else REAL(0)
    return scale * np.sign(s12)[:, None], scale * np.sign(s21)[:, None]


def _batch(p1, z1, p2, z2, similarity):
    arrays = [np.array(x, dtype=REAL) for x in (p1, z1, p2, z2)]
    shape = arrays[0].shape
    if any(x.shape != shape for x in arrays) or len(shape) != 2 or 0 in shape:
        raise ValueError(f"p1, z1, p2, z2 must have one shape (B, d), not {[x.shape for x in arrays]}")
    if similarity not in ("abscos", "cos", "l2"):
        raise ValueError(f"similarity must be abscos, cos or l2, not {similarity!r}")
    return arrays


# ------------------------------------------------------------------------------------ vectors for other languages

FOLDER = Path(__file__).resolve().parent / "vectors"
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
}
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
]
ENERGIES = [  # id, flags, B, d, seed, factor of the rows of p1; the generic rows are nearly orthogonal, m = 0.08
    ("generic", "generic", 3, 4, 387, 0.5), ("generic-stop", "generic stop_grad", 3, 4, 387, 0.5),
    ("one-pair", "", 1, 5, 1, 2.0), ("batch", "", 5, 2, 2, 1.0), ("batch-stop", "stop_grad", 5, 2, 2, 1.0),
    ("worked-example", "", 2, 2, 3, 1.0), ("tiny-rows", "scaled", 2, 3, 4, 2.0**-20),
    ("huge-rows", "scaled", 2, 3, 4, 2.0**20), ("zero-row", "zero_row", 3, 2, 5, 1.0),
    ("collinear", "collinear", 3, 3, 6, 1.5),
]


def variant(*replacements, decimals=False):
    """Algorithm 1 and Equation 2 above, after source replacements (old, new) that must match exactly once each.

    decimals: with 60-digit decimals for numbers (under a context of that precision); arguments must be Decimals then.
    """
    source = Path(__file__).read_text(encoding="utf-8").split("\nFOLDER = ")[0]
    for old, new in replacements:
        if source.count(old) != 1:
            raise ValueError(f"a replacement matches {source.count(old)} times instead of once: {old!r}")
        source = source.replace(old, new)
    namespace = {"__name__": "reference_variant", "__file__": __file__}
    exec(compile(source, "reference_variant", "exec"), namespace)
    if decimals:
        namespace.update(REAL=Decimal, LOG=np.vectorize(Decimal.ln, otypes=[object]))
    return namespace


def mutants():
    """The rows of vectors/mutants.json: known bugs and correct rewritings, as replacements in this file."""
    return json.loads((FOLDER / "mutants.json").read_text(encoding="utf-8"))["mutants"]


def _decimals(x):
    return np.vectorize(lambda v: Decimal(float(v)), otypes=[object])(np.array(x))


def _floats(x):
    """Nearest doubles, as lists; -0 becomes 0."""
    return (np.array(x, dtype=np.float64) + 0.0).tolist()


def _grid(seed, shape, size):
    """Odd integers from -9 to 9 over `size`, the same for ever (Python promises that for random.random alone)."""
    source = random.Random(seed)
    return [[(2 * int(10 * source.random()) - 9) / size for _ in range(shape[1])] for _ in range(shape[0])]


def _step_vectors():
    bugs = [m for m in mutants() if m["target"] == "step" and m["kind"] == "mutant"]
    for seed, (name, flags, n, size, parameters) in enumerate(STEPS):
        v = {"id": name, "flags": flags.split(), "mass": 1.0, "b_hat": 0.0, **parameters}
        rows = np.array(_grid(seed, (2 * v["L"] + 3, n), size)) + (1 if size > 8 else 0)
        A = np.array(_grid(seed + 100, (n, n), min(size, 8)))
        A = A if "asymmetric" in v["flags"] else A + A.T
        v.update(w=_floats(rows[0]), z=_floats(rows[2:]), A=_floats(A), b=_floats(rows[1]))
        X, g, w_new = _decimal_step(v, ())
        v.update(g=_floats(g), trajectory=_floats([*X[::2], X[-1]]), w_new=_floats(w_new))
        v["bound"] = [0.0] * n if {"exact", "wide"} & set(v["flags"]) else _floats(_step_bound(v))
        v["wrong"] = []
        for m in bugs if "generic" in v["flags"] else ():
            wrong = _floats(_decimal_step(v, [(m["old"], m["new"])])[2])
            if wrong != v["w_new"]:
                about = {key: m[key] for key in ("name", "because", "seen_in")}
                v["wrong"].append({**about, "w_new": wrong})
        yield v


def _decimal_step(v, replacements, positive=False):
    """Positions asked, gradients answered and W_{t+1} of this file's step in decimals; positive: with |inputs|."""
    A, b, w, z, mass, b_hat = (_decimals(v[key]) for key in ("A", "b", "w", "z", "mass", "b_hat"))
    if positive:
        A, b, w, z = abs(A), -abs(b), abs(w), abs(z)
    X, g = [], []

    def grad(x):
        X.append(x)
        g.append((A * x).sum(axis=1) - b)
        return g[-1]

    with localcontext() as context:
        context.prec = 60
        w_new = variant(*replacements, decimals=True)["sghmc_step"](
            w, z, grad, eps=Decimal(v["eps"]), L=v["L"], alpha=Decimal(v["alpha"]), mass=mass, b_hat=b_hat)
    return X, g, w_new


def _step_bound(v):
    """k F / (1 - k 2^-24): gamma_k F is at most u times this for u <= 2^-24. F: every sign made positive."""
    signs = [(f"- eps / 2 * dU(X)                        # line {i}", f"+ eps / 2 * dU(X)  # line {i}") for i in (3, 5)]
    k = v["L"] * (2 * len(v["w"]) + 18) + 4
    return _decimal_step(v, signs, positive=True)[2] * k / (1 - k * Decimal(2) ** -24)


def _energy_vectors():
    bugs = [m for m in mutants() if m["target"] in ("energy", "gradient") and m["kind"] == "mutant"]
    for name, flags, B, d, seed, factor in ENERGIES:
        rows = np.array(_grid(seed, (4 * B, d), 4)).reshape(4, B, d)
        if name == "worked-example":
            rows = np.array([[[3, 4], [5, 12]], [[3, 4], [-5, 12]], [[8, 15], [3, -4]], [[5, 12], [8, 15]]]) * 1.0
        rows[0] *= factor
        if "zero_row" in flags:
            rows[1, 0] = 0
        if "collinear" in flags:
            rows[3], rows[1] = -rows[0], 3 * rows[2]
        v = {"id": name, "flags": flags.split(), "stop_grad": "stop_grad" in flags}
        v.update(zip(("p1", "z1", "p2", "z2"), rows.tolist(), strict=True))
        v.update(zip(("u", "grads"), _decimal_energy(v, ()), strict=True))
        v["bound"] = _energy_bound(v)
        v["wrong"] = []
        for m in bugs if "generic" in flags else ():
            try:
                u, grads = _decimal_energy(v, [(m["old"], m["new"])])
            except (TypeError, ArithmeticError):  # decimals have no arccos and no logarithm of a negative number
                continue
            if (u, grads) != (v["u"], v["grads"]):
                about = {key: m[key] for key in ("name", "because", "seen_in")}
                v["wrong"].append({**about, "u": u, "grads": grads})
        yield v


def _decimal_energy(v, replacements):
    batch = [_decimals(v[key]) for key in ("p1", "z1", "p2", "z2")]
    with localcontext() as context:
        context.prec = 60
        namespace = variant(*replacements, decimals=True)
        u, grads = namespace["energy"](*batch), namespace["energy_grad"](*batch, v["stop_grad"])
        places = np.vectorize(lambda x: round(Decimal(x), 45), otypes=[object])  # what is left of 60 digits near zero
        return float(u), [_floats(places(g)) for g in grads]


def _energy_bound(v):
    """Allowed errors over u, for u <= 2^-24: {"u": number, "grads": one number or null per row of p1, z1, p2, z2}."""
    p1, z1, p2, z2 = (np.array(v[key]) for key in ("p1", "z1", "p2", "z2"))
    m = Decimal(-v["u"]).exp()
    k = 2 * p1.shape[1] + len(p1) + 16
    room = 1 / (1 - k * Decimal(2) ** -24 / m)
    factor = float(4 * k * (1 + 1 / m) / (2 * len(p1) * m) * room)
    norms = [[math.sqrt(sum(x * x for x in row)) for row in rows.tolist()] for rows in (p1, z1, p2, z2)]
    partner = [norms[3], norms[2], norms[1], norms[0]]
    grads = [[float(f"{factor / a:.6g}") if a and b else None for a, b in zip(*pair, strict=True)]
             for pair in zip(norms, partner, strict=True)]
    return {"u": float(f"{k * (room / m + Decimal(v['u'])):.6g}"), "grads": grads}


def vectors():
    """The texts of vectors/step.json and vectors/energy.json, one key a line."""
    texts = {}
    for kind, made in (("step", _step_vectors()), ("energy", _energy_vectors())):
        made = list(made)
        used = {flag: note for flag, note in FLAGS.items() if any(flag in v["flags"] for v in made)}
        bodies = [",\n".join(f'  "{key}": {json.dumps(v[key])}' for key in v) for v in made]
        texts[f"{kind}.json"] = (f'{{"format": 1,\n "flags": {json.dumps(used, indent=2)},\n "vectors": [\n {{\n'
                                 + "\n },\n {\n".join(bodies) + "\n }\n]}\n")
    return texts


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


# ----------------------------------------------------------------------------------------------- the command line

def check(results):
    """Judge [{"id", "w_new"} or {"id", "u", "grads"}]; prints a line per vector; True if all pass.

    An id is "step/..." or "energy/..."; "dtype": "float32" sets the unit roundoff u. ValueError: not of this form.
    """
    known = {f"{kind}/{name}": v for kind in ("step", "energy") for name, v in read_vectors(kind).items()}
    by_id = {}
    for result in results if isinstance(results, list) else [results]:
        if not isinstance(result, dict) or result.get("id") not in known:
            raise ValueError(f"not a result with the id of a vector: {str(result)[:80]}")
        name = result["id"]
        wanted = {"w_new"} if name.startswith("step/") else {"u", "grads"}
        if name in by_id or set(result) - {"dtype"} != wanted | {"id"}:
            raise ValueError(f"{name}: given twice, or its keys are not id, {', '.join(sorted(wanted))}, maybe dtype")
        if result.get("dtype", "float64") not in ("float64", "float32"):
            raise ValueError(f"{name}: dtype must be float64 or float32, not {result['dtype']!r}")
        by_id[name] = result
    verdicts = {name: _verdict(v, by_id.get(name)) for name, v in known.items()}
    for name, verdict in verdicts.items():
        print(f"{'pass' if verdict is None else 'FAIL'}  {name}{'' if verdict is None else ': ' + verdict}")
    failures = sum(verdict is not None for verdict in verdicts.values())
    print(f"{len(verdicts) - failures} passed, {failures} failed")
    return failures == 0


def _verdict(v, result):
    """None for a right result, otherwise what is wrong with it."""
    if result is None:
        return "no result with this id"
    single = result.get("dtype") == "float32"
    if single and "wide" in v["flags"]:
        return None
    u = 2.0**-24 if single else 2.0**-53
    right, bound = _numbers(v), _numbers(v["bound"] if "u" in v else {"w_new": v["bound"]}, v)
    try:
        got = _numbers(result)
    except (TypeError, ValueError):
        return "not numbers"
    if [x.shape for x in got] != [x.shape for x in right]:
        return f"shapes {[x.shape for x in got]} instead of {[x.shape for x in right]}"
    if _near(got, right, bound, u):
        return None
    fits = [(wrong, [_near([x], [y], [e], u) for x, y, e in zip(got, _numbers(wrong), bound, strict=True)])
            for wrong in v["wrong"]]
    whole = [wrong for wrong, parts in fits if all(parts)]
    if whole:
        return f"your output equals that of a known bug: {' or '.join(map(_name, whole))}"
    names = ("w_new",) if "w_new" in v else ("U", "dU/dp1", "dU/dz1", "dU/dp2", "dU/dz2")
    differ = [i for i in range(len(got)) if not _near(got[i:i + 1], right[i:i + 1], bound[i:i + 1], u)]
    if "u" in v and np.isnan(got[0]):
        return "U is NaN: is this the logarithm of a negative mean, the absolute value of Equation 2 missing?"
    known = {}  # the bug's name: the parts of the output that it explains
    for i in differ:
        for name in [_name(wrong) for wrong, parts in fits if parts[i]][:1]:
            known.setdefault(name, []).append(names[i])
    first = _first_difference(names[differ[0]], *(x[differ[0]] for x in (got, right, bound)), u)
    return "; ".join([f"your {', '.join(parts)} equals that of a known bug: {name}" for name, parts in known.items()]
                     + [first])


def _name(wrong):
    return f"{wrong['name']} ({'; seen in '.join([wrong['because'], *wrong['seen_in']])})"


def _first_difference(name, got, right, bound, u):
    """The first wrong entry of one array in words."""
    where = next(i for i in np.ndindex(got.shape) if not _near([got[i]], [right[i]], [bound[i]], u))
    count = sum(not _near([got[i]], [right[i]], [bound[i]], u) for i in np.ndindex(got.shape))
    more = f", and {count - 1} more" if count > 1 else ""
    return (f"{name}{''.join(f'[{i}]' for i in where)} is {float(got[where])}, right {float(right[where])}, "
            f"allowed error {float(u * bound[where]):.3g}{more}")


def _numbers(x, like=None):
    """The arrays of a result or vector; with `like`, bounds: one per row spread over the row, null is infinite."""
    if "w_new" in x:
        return [np.array(x["w_new"], dtype=np.float64)]
    parts = [np.array(x["u"], dtype=np.float64)] + [np.array(g, dtype=np.float64) for g in x["grads"]]
    if like is None:
        return parts
    bounds = [np.where(np.isnan(g), np.inf, g)[:, None] for g in parts[1:]]
    return parts[:1] + [b + 0 * np.array(g) for b, g in zip(bounds, like["grads"], strict=True)]


def _near(got, want, bound, u):
    return all(np.all(np.isfinite(x) & (abs(x - y) <= u * e)) for x, y, e in zip(got, want, bound, strict=True))


def main(arguments):
    """Exit code: 0 done or all passed, 1 a failure or a missing id, 2 bad usage or unreadable input."""
    usage = "usage: python reference_numpy.py vectors | check results.json"
    if {"-h", "--help"} & set(arguments):
        print(usage)
        return 0
    try:
        if arguments == ["vectors"]:
            for name, text in vectors().items():
                (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
            return 0
        if len(arguments) == 2 and arguments[0] == "check":
            return 0 if check(json.loads(Path(arguments[1]).read_text(encoding="utf-8"))) else 1
    except (OSError, ValueError) as error:
        print(f"reference_numpy.py: {error}", file=sys.stderr)
        return 2
    print(usage, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
