"""Known bugs that no small input shows, and correct code in blocks. How to add one: vectors/README.md."""

from functools import partial

from oracle.known_bugs.energy import MEAN
from oracle.known_bugs.gradient import SIGNS
from oracle.known_bugs.row import bug, rewriting
from oracle.known_bugs.step import DRIFT, FIRST, LOOP, NORMAL

bug = partial(bug, sized=True)
DOT = "(p * z).sum(axis=1)"
SQUARES = "(rows * rows).sum(axis=1)"
OWN = "every coordinate has its own normal in each half-kick"
ALL = "the update is the same for every coordinate"
WHOLE = "the mean is over the whole batch, and each pair weighs 1/B"
ROW = "a row is the sum over all its features"


def weighed(size):
    """The gradient of chunk means: a row weighs 1 over the number of chunks and the rows of its own."""
    return {SIGNS: f"""
        chunk = np.arange(B) // {size}
        scale = scale * (B / (chunk[-1] + 1) / np.bincount(chunk)[chunk])[:, None]
        {SIGNS}
        """}


def chunk_means(size):
    return {MEAN: f"""
        s = (np.abs(s12) + np.abs(s21)) / 2
        m = np.mean([s[i:i + {size}].mean() for i in range(0, len(s), {size})])
        """, **weighed(size)}


STEP = [
    bug("size: noise repeated in blocks of 16", {NORMAL: """
        row = Z[j] if j < len(Z) else np.zeros_like(w)
        return row[np.arange(len(w)) % 16] if j else row
        """}, OWN),
    bug("size: noise repeated after 4096 coordinates", {NORMAL: """
        row = Z[j] if j < len(Z) else np.zeros_like(w)
        return row[np.arange(len(w)) % 4096]
        """}, OWN),
    bug("size: momentum repeated in blocks of 1024", {
        "Phi = np.sqrt(M) * normal(0)": "Phi = np.sqrt(M) * normal(0)[np.arange(len(w)) % 1024]"
    }, "every coordinate has its own momentum"),
    bug("size: a ring buffer of 16 rows of noise", {
        NORMAL: "return Z[j % 16] if j < len(Z) else np.zeros_like(w)"
    }, "each of the 2L+1 rows is used once"),
    bug("size: at most 16 leapfrogs", {"range(L)": "range(min(L, 16))"}, "l = 0 .. L-1 are L leapfrogs"),
    bug("size: blocks of 8 right, the remainder without friction", {"X = w.copy()": """
        X = w.copy()
        i, whole = np.arange(len(w)), len(w) // 8 * 8
        alpha = np.where((i >= whole) & (whole > 0), 0, alpha)
        """}, ALL),
    bug("size: remainder right, blocks of 8 without noise in the second kick", {
        "noise_std * normal(2 * l + 2)": "noise_std * normal(2 * l + 2) * (np.arange(len(w)) >= len(w) // 8 * 8)"
    }, ALL),
    bug("size: last partial block of 32 not moved", {DRIFT: """
        whole = len(w) // 32 * 32 or len(w)
        X[:whole] = (X + eps / M * Phi)[:whole]
        """}, ALL),
    bug("size: nothing moved after 4096 coordinates", {DRIFT: "X[:4096] = (X + eps / M * Phi)[:4096]"}, ALL),
    bug("size: nothing moved after 65536 coordinates", {DRIFT: "X[:65536] = (X + eps / M * Phi)[:65536]"}, ALL),
    bug("size: the noise of 64 rows again and again", {NORMAL: "return Z[j % 64]"},
        "each half-kick has a row of its own, however many leapfrogs there are"),
    bug("size: at most 50 leapfrogs", {"range(L)": "range(min(L, 50))"}, "L leapfrogs, however many they are"),
    bug("size: slices of 1024 overlap by one coordinate", {DRIFT: """
        X = X + eps / M * Phi
        X[1024::1024] += (eps / M * Phi)[1024::1024]
        """}, "each coordinate moves once a leapfrog"),
    bug("size: slices of 1024 overlap by one coordinate in the kicks", {f"Phi = {FIRST}": f"""
        once = Phi
        Phi = {FIRST}
        Phi[1024::1024] += (Phi - alpha * once)[1024::1024]
        """}, "each coordinate is kicked once a half-kick"),
    bug("size: the masses of the first 1024 in every block", {
        DRIFT: "X = X + eps / M[np.arange(len(w)) % 1024] * Phi"
    }, "each coordinate moves by its own M^-1"),
    bug("size: B^ of the first 1024 in every block", {
        "noise_variance = 2 * (C - B_hat) * eps": """
            noise_variance = 2 * (C - B_hat[np.arange(len(w)) % 1024]) * eps
            noise_variance = np.maximum(noise_variance, 0) if len(w) > 1024 else noise_variance
            """
    }, "each coordinate has its own B^"),
    rewriting("blocks of 8 and a remainder", {LOOP: """
        whole = len(w) // 8 * 8
        for kick in range(1, 2 * L):
            g, r = (dU(X), normal(kick))
            for part in (slice(0, whole), slice(whole, len(w))):
                Phi[part] = (1 - alpha) * Phi[part] - eps / 2 * g[part] + noise_std[part] * r[part]
                if kick % 2:
                    X[part] += eps / M[part] * Phi[part]
        """}, "a vectorised body and the rest"),
]
ENERGY = [
    bug("size: last partial chunk of 32 pairs dropped", {MEAN: """
        s = (np.abs(s12) + np.abs(s21)) / 2
        m = np.mean(s[:len(s) // 32 * 32 or len(s)])
        """, SIGNS: f"""
        whole = B // 32 * 32 or B
        scale = scale * (B / whole * (np.arange(B) < whole))[:, None]
        {SIGNS}
        """}, WHOLE),
    bug("size: mean of the means of chunks of 32 pairs", chunk_means(32), WHOLE),
    bug("size: mean of the means of chunks of 64 pairs", chunk_means(64), WHOLE),
    bug("size: mean of the means of chunks of 1024 pairs", chunk_means(1024), WHOLE),
    bug("size: dot product of the first 512 features", {DOT: "(p * z)[:, :512].sum(axis=1)"}, ROW),
    bug("size: mean of the first 128 pairs", {MEAN: "m = np.mean(((np.abs(s12) + np.abs(s21)) / 2)[:128])"}, WHOLE),
    bug("size: sum of the first 128 pairs over B", {
        MEAN: "m = np.sum(((np.abs(s12) + np.abs(s21)) / 2)[:128]) / len(s12)"
    }, WHOLE),
    bug("size: dot product of the first 64 features", {DOT: "(p * z)[:, :64].sum(axis=1)"}, ROW),
    bug("size: only the first 64 features used", {
        "arrays = [np.array(x, dtype=np.float64) for x in (p1, z1, p2, z2)]": """
            arrays = [np.array(x, dtype=np.float64) for x in (p1, z1, p2, z2)]
            for x in arrays:
                x[..., 64:] = 0
            """
    }, ROW),
    bug("size: features after a multiple of 8 dropped", {
        DOT: "(p * z)[:, :p.shape[1] // 8 * 8 or None].sum(axis=1)"
    }, ROW),
    bug("size: norm of the first 128 features", {SQUARES: "(rows * rows)[:, :128].sum(axis=1)"}, ROW),
    rewriting("chunks of 32 pairs by their sums", {MEAN: """
        s = (np.abs(s12) + np.abs(s21)) / 2
        m = sum(s[i:i + 32].sum() for i in range(0, len(s), 32)) / len(s)
        """}, "each pair weighs the same"),
    rewriting("features in blocks of 64", {
        DOT: "sum((p * z)[:, i:i + 64].sum(axis=1) for i in range(0, p.shape[1], 64))"
    }, "a row is the sum over all its blocks"),
]
GRADIENT = [
    bug("size: gradient of the means of chunks of 32 pairs", weighed(32), WHOLE),
    bug("size: gradient of the means of chunks of 64 pairs", weighed(64), WHOLE),
    bug("size: no gradient for the last partial chunk of 32 pairs", {SIGNS: f"""
        scale = scale * (np.arange(B) < (B // 32 * 32 or B))[:, None]
        {SIGNS}
        """}, "every pair has a gradient"),
    bug("size: no gradient for pairs after the first 512", {SIGNS: f"""
        scale = scale * (np.arange(B) < 512)[:, None]
        {SIGNS}
        """}, "every pair has a gradient"),
    bug("size: gradient of the first 1024 features", {
        "ds_dZ = (p - s[:, None] * z) / Z_norm":
            "ds_dZ = (p - s[:, None] * z) / Z_norm * (np.arange(z.shape[1]) < 1024)"
    }, "every feature has a gradient"),
    bug("size: 1/B of at most 128 pairs", {"B = len(P1)": "B = min(len(P1), 128)"}, WHOLE),
    bug("size: gradient of the first 64 features", {
        "ds_dP = (z - s[:, None] * p) / P_norm": "ds_dP = (z - s[:, None] * p) / P_norm * (np.arange(p.shape[1]) < 64)"
    }, "every feature has a gradient"),
    bug("size: no gradient for features after a multiple of 8", {"ds_dZ = (p - s[:, None] * z) / Z_norm": """
        kept = np.arange(z.shape[1]) < (z.shape[1] // 8 * 8 or z.shape[1])
        ds_dZ = (p - s[:, None] * z) / Z_norm * kept
        """}, "every feature has a gradient"),
    bug("size: projected by the first 64 features", {
        "ds_dP = (z - s[:, None] * p) / P_norm": "ds_dP = (z - (p * z)[:, :64].sum(axis=1)[:, None] * p) / P_norm"
    }, ROW),
]
