"""Known bugs and correct rewritings of Equation 2's value. How to add one: vectors/README.md."""

from oracle.known_bugs.row import bug, rewriting

MEAN = "m = np.mean((np.abs(s12) + np.abs(s21)) / 2)"
UNIT = """
    rows = rows / np.where(size > 0, size, 1)
    norm = np.sqrt((rows * rows).sum(axis=1))[:, None]
    return (rows / np.where(size > 0, norm, 1), np.where(size > 0, size * norm, np.float64('inf')))
    """
WHOLE_UNIT = "    size = np.abs(rows).max(axis=1)[:, None]" + UNIT
ROWS = [
    bug("energy: no absolute value", {"np.abs(s12) + np.abs(s21)": "s12 + s21"}, "Equation 2 takes |P.Z| of each pair"),
    bug("energy: no absolute value, the mean not clamped", {
        "np.abs(s12) + np.abs(s21)": "s12 + s21",
        "np.clip(m, TINY, np.float64(1))": "m",
        "-1 / (2 * B * m) if m > TINY else np.float64(0)": "-1 / (2 * B * m)",
        "(scale * np.sign(s12)[:, None], scale * np.sign(s21)[:, None])": "(scale, scale)"
    }, "Equation 2 takes |P.Z| of each pair; the logarithm of a negative mean is NaN", no_decimals=True),
    bug("energy: mean of -log instead of -log of the mean", {
        "np.log(m)": "np.mean(np.log(np.maximum((np.abs(s12) + np.abs(s21)) / 2, TINY)))"
    }, "U = -log(-L) of the batch's L"),
    bug("energy: sum over the batch", {
        "np.mean((np.abs(s12) + np.abs(s21)) / 2)": "np.sum((np.abs(s12) + np.abs(s21)) / 2)"
    }, "L is a mean over the batch"),
    bug("energy: half lost", {"(np.abs(s12) + np.abs(s21)) / 2": "np.abs(s12) + np.abs(s21)"},
        "1/2 of both views together"),
    bug("energy: one view only", {"(np.abs(s12) + np.abs(s21)) / 2": "np.abs(s12)"}, "Equation 2 is symmetrised"),
    bug("energy: the other view only", {"(np.abs(s12) + np.abs(s21)) / 2": "np.abs(s21)"}, "Equation 2 is symmetrised"),
    bug("energy: P1.Z1 and P2.Z2", {"cosine(P1, Z2)[0]": "cosine(P1, Z1)[0]", "cosine(P2, Z1)[0]": "cosine(P2, Z2)[0]"},
        "a prediction is compared with the other view"),
    bug("energy: Z1.Z2", {"cosine(P1, Z2)[0]": "cosine(Z1, Z2)[0]"}, "the predictor left out on one side"),
    bug("energy: P1.P2", {"cosine(P2, Z1)[0]": "cosine(P2, P1)[0]"},
        "the target is the encoding, not the other prediction"),
    bug("energy: Z not normalised", {"_unit(Z)": "(Z, _unit(Z)[1])"}, "both are l2-normalised"),
    bug("energy: P not normalised", {"_unit(P)": "(P, _unit(P)[1])"}, "both are l2-normalised"),
    bug("energy: normalised over the batch", {UNIT: """
        norm = np.sqrt((rows * rows).sum(axis=0))[None, :]
        return (rows / np.where(norm > 0, norm, 1), np.where(norm > 0, norm, np.float64('inf')))
        """}, "each row is normalised by itself"),
    bug("energy: normalised by the whole batch", {UNIT: """
        norm = np.sqrt((rows * rows).sum()) + 0 * size
        return (rows / np.where(norm > 0, norm, 1), np.where(norm > 0, norm, np.float64('inf')))
        """}, "each row is normalised by itself"),
    bug("energy: l1 norm", {"np.sqrt((rows * rows).sum(axis=1))": "np.abs(rows).sum(axis=1)"}, "the norm is l2"),
    bug("energy: largest entry as norm", {"np.sqrt((rows * rows).sum(axis=1))": "np.abs(rows).max(axis=1)"},
        "the norm is l2"),
    bug("energy: squared norm", {UNIT: """
        norm = (rows * rows).sum(axis=1)[:, None]
        return (rows / np.where(norm > 0, norm, 1), np.where(norm > 0, norm, np.float64('inf')))
        """}, "the square root is missing"),
    bug("energy: squared cosine", {"np.abs(s12) + np.abs(s21)": "s12 * s12 + s21 * s21"}, "absolute value, not square"),
    bug("energy: root of the mean square", {
        "np.mean((np.abs(s12) + np.abs(s21)) / 2)": "np.sqrt(np.mean((s12 * s12 + s21 * s21) / 2))"
    }, "absolute value, not square"),
    bug("energy: product of the views", {"(np.abs(s12) + np.abs(s21)) / 2": "np.sqrt(np.abs(s12 * s21))"},
        "arithmetic mean of the two views"),
    bug("energy: log halved", {"np.log(m)": "np.log(m) / 2"}, "U = -log m"),
    bug("energy: log doubled", {"np.log(m)": "2 * np.log(m)"}, "U = -log m"),
    bug("energy: wrong sign", {"0 - np.log(m)": "np.log(m)"}, "U = -log m >= 0"),
    bug("energy: log2", {"np.log(m)": "np.log(m) / np.log(np.float64(2))"}, "the natural logarithm"),
    bug("energy: 1 - mean", {"0 - np.log(m)": "1 - m"}, "that is 1 + L_SimSiamAbs, without the logarithm"),
    bug("energy: the loss instead of the energy", {"0 - np.log(m)": "-m"}, "U = -log(-L), L = -m"),
    bug("energy: -log of (1 + m) / 2", {"np.log(m)": "np.log((1 + m) / 2)"}, "L_SimSiamAbs lies in [-1, 0] already"),
    bug("energy: log1p", {"np.log(m)": "np.log(1 + m)"}, "U = -log m; log1p is for small numbers added to 1"),
    bug("energy: absolute value after the batch mean", {
        "np.mean((np.abs(s12) + np.abs(s21)) / 2)": "(np.abs(np.mean(s12)) + np.abs(np.mean(s21))) / 2"
    }, "each pair's cosine is taken absolute"),
    bug("energy: absolute value of the sum of the views", {"np.abs(s12) + np.abs(s21)": "np.abs(s12 + s21)"},
        "each pair's cosine is taken absolute"),
    bug("energy: cosines of 0 left out of the count", {MEAN: """
        s = np.abs(np.concatenate([s12, s21]))
        m = s.sum() / max(1, np.count_nonzero(s))
        """}, "the mean is over all 2 B pairs, those with a row of zeros too", special="a row of zeros"),
    bug("energy: both views left out where one has a row of zeros", {MEAN: """
        kept = (s12 != 0) & (s21 != 0)
        m = np.mean(((np.abs(s12) + np.abs(s21)) / 2)[kept]) if kept.any() else TINY
        """}, "a row of zeros has cosine 0, the other view counts", special="a row of zeros"),
    bug("energy: negative cosines set to zero", {
        "np.abs(s12) + np.abs(s21)": "np.maximum(s12, np.float64(0)) + np.maximum(s21, np.float64(0))"
    }, "absolute value, not ReLU"),
    bug("energy: all B x B pairs", {
        "cosine(P1, Z2)[0]": "(_unit(P1)[0] @ _unit(Z2)[0].T).ravel()",
        "cosine(P2, Z1)[0]": "(_unit(P2)[0] @ _unit(Z1)[0].T).ravel()"
    }, "row i is compared with row i"),
    bug("energy: rows of Z shifted", {"cosine(P1, Z2)[0]": "cosine(P1, np.roll(Z2, 1, axis=0))[0]"},
        "row i is compared with row i"),
    bug("energy: clamped at 0.1", {"np.clip(m, TINY, np.float64(1))": "np.clip(m, np.float64(1) / 10, np.float64(1))"},
        "the energy is -log m down to the smallest m"),
    bug("energy: epsilon inside the logarithm", {"np.log(m)": "np.log(m + np.float64(10) ** (-4))"}, "U = 0 at m = 1"),
    bug("energy: epsilon added to the norms", {UNIT: """
        norm = np.sqrt((rows * rows).sum(axis=1))[:, None] + np.float64(10) ** (-3)
        return (rows / np.where(norm > 0, norm, 1), np.where(norm > 0, norm, np.float64('inf')))
        """}, "a guard for rows of zeros must not move other rows"),
    bug("energy: angle instead of cosine", {
        "(np.abs(s12) + np.abs(s21)) / 2":
            "1 - (np.arccos(np.minimum(np.abs(s12), 1)) + np.arccos(np.minimum(np.abs(s21), 1))) / np.pi"
    }, "the similarity is the cosine", no_decimals=True),
    bug("energy: times the batch size", {"0 - np.log(m)": "(0 - np.log(m)) * len(P1)"}, "the paper uses U as it is"),
    bug("energy: centred rows", {
        "rows / np.where(size > 0, size, 1)":
            "rows / np.where(size > 0, size, 1) - (rows / np.where(size > 0, size, 1)).mean(axis=1)[:, None]"
    }, "that is a correlation, not a cosine"),
    bug("energy: median of the batch", {
        "np.mean((np.abs(s12) + np.abs(s21)) / 2)": "np.median((np.abs(s12) + np.abs(s21)) / 2)"
    }, "L is a mean over the batch"),
    bug("energy: without the last row", {
        "np.abs(s12) + np.abs(s21)": "(np.abs(s12) + np.abs(s21))[:max(len(s12) - 1, 1)]"
    }, "L is a mean over the whole batch"),
    bug("energy: logarithm of each view", {
        "np.log(m)": "(np.log(np.abs(s12).mean()) + np.log(np.abs(s21).mean())) / 2"
    }, "U = -log of the mean of both views, not the mean of two logarithms"),
    bug("energy: summed over the batch instead of the features, divided by B", {
        "cosine(P1, Z2)[0]": "(_unit(P1)[0] * _unit(Z2)[0]).sum(axis=0) * P1.shape[1] / len(P1)",
        "cosine(P2, Z1)[0]": "(_unit(P2)[0] * _unit(Z1)[0]).sum(axis=0) * P1.shape[1] / len(P1)"
    }, "a cosine is a sum over the features of one row"),
    bug("energy: summed over the batch instead of the features, mean over the features", {
        "cosine(P1, Z2)[0]": "(_unit(P1)[0] * _unit(Z2)[0]).sum(axis=0)",
        "cosine(P2, Z1)[0]": "(_unit(P2)[0] * _unit(Z1)[0]).sum(axis=0)"
    }, "a cosine is a sum over the features of one row"),
    rewriting("dot over guarded norms", {
        "p, P_norm = _unit(P)": "P_norm = np.maximum(np.sqrt((P * P).sum(axis=1)), 1e-12)[:, None]",
        "z, Z_norm = _unit(Z)": "Z_norm = np.maximum(np.sqrt((Z * Z).sum(axis=1)), 1e-12)[:, None]",
        "(p * z).sum(axis=1)": "(P * Z).sum(axis=1) / (P_norm * Z_norm)[:, 0]",
        "(z - s[:, None] * p) / P_norm": "Z / (P_norm * Z_norm) - s[:, None] * P / P_norm ** 2",
        "(p - s[:, None] * z) / Z_norm": "P / (P_norm * Z_norm) - s[:, None] * Z / Z_norm ** 2"
    }, "the cosine before or after the dot product"),
    rewriting("dot over the guarded product of the norms", {
        "p, P_norm = _unit(P)": "P_norm, Z_norm = (np.sqrt((x * x).sum(axis=1))[:, None] for x in (P, Z))",
        "z, Z_norm = _unit(Z)": "both = np.maximum(P_norm * Z_norm, 1e-08)",
        "(p * z).sum(axis=1)": "(P * Z).sum(axis=1) / both[:, 0]",
        "(z - s[:, None] * p) / P_norm": "Z / both - s[:, None] * P / np.maximum(P_norm ** 2, 1e-16)",
        "(p - s[:, None] * z) / Z_norm": "P / both - s[:, None] * Z / np.maximum(Z_norm ** 2, 1e-16)"
    }, "the guard of older cosine_similarity functions"),
    rewriting("max(norm, 1e-12)", {WHOLE_UNIT: """
        norm = np.maximum(np.sqrt((rows * rows).sum(axis=1)), 1e-12)[:, None]
        return (rows / norm, norm)
        """}, "the common guard for rows of zeros"),
    rewriting("max(norm, 1e-8)", {WHOLE_UNIT: """
        norm = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-08)
        return (rows / norm, norm)
        """}, "another common guard"),
    rewriting("fsum loop", {MEAN: """
        from math import fsum
        m = fsum((abs(a) + abs(b) for a, b in zip(s12.tolist(), s21.tolist()))) / (2 * len(s12))
        """}, "scalar loop"),
    rewriting("log B - log sum", {"return float(0 - np.log(m))": """
        total = np.maximum((np.abs(s12) + np.abs(s21)).sum(), 1e-300)
        return float(np.log(np.float64(2) * len(s12)) - np.log(total))
        """}, "the mean taken out of the logarithm"),
    rewriting("2B concatenation", {
        "np.mean((np.abs(s12) + np.abs(s21)) / 2)": "np.abs(np.concatenate([s12, s21])).mean()"
    }, "both views as one batch of 2B pairs"),
    rewriting("diagonal of a matrix product", {"(p * z).sum(axis=1)": "np.diagonal(p @ z.T).copy()"},
        "the diagonal of all B x B pairs"),
    rewriting("float32", {"z, Z_norm = _unit(Z)": """
        z, Z_norm = _unit(Z)
        p, z, P_norm, Z_norm = (x.astype(np.float32) for x in (p, z, P_norm, Z_norm))
        """}, "single precision, judged by its own unit roundoff", dtype="float32"),
]
