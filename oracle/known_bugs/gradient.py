"""Known bugs of the gradient of Equation 2. How to add one: vectors/README.md."""

from oracle.known_bugs.row import bug

SIGNS = "return (scale * np.sign(s12)[:, None], scale * np.sign(s21)[:, None])"
ROWS = [
    bug("gradient: no projection for P", {"z - s[:, None] * p": "z"}, "the derivative of the normalisation"),
    bug("gradient: no projection for Z", {"p - s[:, None] * z": "p"}, "the derivative of the normalisation"),
    bug("gradient: no projection for P and Z", {"z - s[:, None] * p": "z", "p - s[:, None] * z": "p"},
        "the derivative of the normalisation"),
    bug("gradient: no 1/norm for P", {"(z - s[:, None] * p) / P_norm": "z - s[:, None] * p"},
        "the derivative of the normalisation"),
    bug("gradient: no 1/norm for Z", {"(p - s[:, None] * z) / Z_norm": "p - s[:, None] * z"},
        "the derivative of the normalisation"),
    bug("gradient: no 1/norm for P and Z", {
        "(z - s[:, None] * p) / P_norm": "z - s[:, None] * p",
        "(p - s[:, None] * z) / Z_norm": "p - s[:, None] * z"
    }, "the derivative of the normalisation"),
    bug("gradient: norm squared for P", {"z - s[:, None] * p": "(z - s[:, None] * p) / P_norm"}, "one norm, not two"),
    bug("gradient: norm squared for Z", {"p - s[:, None] * z": "(p - s[:, None] * z) / Z_norm"}, "one norm, not two"),
    bug("gradient: norm squared for P and Z", {
        "z - s[:, None] * p": "(z - s[:, None] * p) / P_norm",
        "p - s[:, None] * z": "(p - s[:, None] * z) / Z_norm"
    }, "one norm, not two"),
    bug("gradient: norms of P and Z exchanged", {"(z - s[:, None] * p) / P_norm": "(z - s[:, None] * p) / Z_norm"},
        "each gradient has its own row's norm"),
    bug("gradient: projected with the wrong sign", {"z - s[:, None] * p": "z + s[:, None] * p"},
        "the gradient is orthogonal to its row"),
    bug("gradient: projected with the wrong sign for P and Z", {
        "z - s[:, None] * p": "z + s[:, None] * p",
        "p - s[:, None] * z": "p + s[:, None] * z"
    }, "the gradient is orthogonal to its row"),
    bug("gradient: no sign of the cosine", {
        "(scale * np.sign(s12)[:, None], scale * np.sign(s21)[:, None])":
            "(scale + 0 * s12[:, None], scale + 0 * s21[:, None])"
    }, "the derivative of |s|"),
    bug("gradient: signs of the two views exchanged", {
        "(scale * np.sign(s12)[:, None], scale * np.sign(s21)[:, None])":
            "(scale * np.sign(s21)[:, None], scale * np.sign(s12)[:, None])"
    }, "each pair has its own sign"),
    bug("gradient: the first view's sign in both", {"np.sign(s21)": "np.sign(s12)"}, "each pair has its own sign"),
    bug("gradient: the second view's sign in both", {"np.sign(s12)": "np.sign(s21)"}, "each pair has its own sign"),
    bug("gradient: no 1/m", {"-1 / (2 * B * m)": "-np.float64(1) / (2 * B)"}, "the derivative of the logarithm"),
    bug("gradient: 1/m of one row instead of the batch", {SIGNS: """
        row = (np.abs(s12) + np.abs(s21)) / 2
        row = scale * m / np.where(row > 0, row, 1)
        return ((row * np.sign(s12))[:, None], (row * np.sign(s21))[:, None])
        """}, "the gradient of the mean of -log"),
    bug("gradient: no 1/B", {"2 * B * m": "2 * m"}, "the batch mean"),
    bug("gradient: half lost", {"2 * B * m": "B * m"}, "1/2 of both views together"),
    bug("gradient: halved", {"2 * B * m": "4 * B * m"}, "1/2 of both views together"),
    bug("gradient: wrong sign", {"-1 / (2 * B * m)": "1 / (2 * B * m)"}, "U falls as the cosines grow"),
    bug("gradient: of m squared", {"2 * B * m": "2 * B * m * m"}, "the derivative of the logarithm is 1/m"),
    bug("gradient: views exchanged", {"(g_p1, g_z1, g_p2, g_z2)": "(g_p2, g_z2, g_p1, g_z1)"},
        "the order is p1, z1, p2, z2"),
    bug("gradient: P and Z exchanged", {"(g_p1, g_z1, g_p2, g_z2)": "(g_z1, g_p1, g_z2, g_p2)"},
        "the order is p1, z1, p2, z2"),
    bug("gradient: entries below a millionth of the largest left out", {
        "(g_p1, g_z1, g_p2, g_z2)": "[np.where(abs(g) < 1e-06 * abs(g).max(), 0, g) for g in (g_p1, g_z1, g_p2, g_z2)]"
    }, "short and long rows have gradients of any size", special="rows of different lengths"),
    bug("gradient: m not let below 1e-6", {"2 * B * m": "2 * B * np.maximum(m, 1e-06)"},
        "the energy is -log m down to the smallest m", special="nearly orthogonal rows"),
    bug("gradient: in arrays that are kept and written again", {"return (g_p1, g_z1, g_p2, g_z2)": """
        kept = cosine.__dict__.setdefault(P1.shape, [np.empty_like(P1) for _ in range(4)])
        for x, g in zip(kept, (g_p1, g_z1, g_p2, g_z2)):
            x[...] = g
        return kept
        """}, "a result belongs to the caller", special="the next call"),
    bug("stop-gradient: missing", {"stop_grad": "False"}, "sg(Z): the targets get no gradient"),
    bug("stop-gradient: always", {"stop_grad": "True"}, "without stop_grad the targets get their gradient"),
    bug("stop-gradient: on P instead of Z", {
        "g_z1 = np.zeros_like(Z1)": "g_p1 = np.zeros_like(P1)",
        "g_z2 = np.zeros_like(Z2)": "g_p2 = np.zeros_like(P2)"
    }, "the targets Z are held fixed", "SimSiam (PatrickHua)#39"),
    bug("stop-gradient: on P and Z", {"g_z2 = np.zeros_like(Z2)": """
        g_z2 = np.zeros_like(Z2)
        g_p1 = np.zeros_like(P1)
        g_p2 = np.zeros_like(P2)
        """}, "only the targets Z are held fixed"),
    bug("stop-gradient: on one view only", {"g_z2 = np.zeros_like(Z2)": ""}, "both targets are held fixed"),
    bug("stop-gradient: always on the second view's target", {"dU_ds21 * ds21_dZ1": "0 * ds21_dZ1"},
        "without stop_grad both targets get their gradient"),
    bug("stop-gradient: always on the first view's target", {"dU_ds12 * ds12_dZ2": "0 * ds12_dZ2"},
        "without stop_grad both targets get their gradient"),
    bug("stop-gradient: inverted", {"stop_grad": "not stop_grad"}, "stop_grad=True holds the targets fixed"),
    bug("stop-gradient: doubles the prediction's gradient", {"g_z1 = np.zeros_like(Z1)": """
        g_p1 = 2 * g_p1
        g_p2 = 2 * g_p2
        g_z1 = np.zeros_like(Z1)
        """}, "the gradient of P does not depend on stop_grad"),
]
