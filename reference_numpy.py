"""NumPy reference of "Posterior Sampling on SimSiam": Algorithm 1 (the sampler) and Equation 2 (the energy).

Written from the two sources alone, in their letters and order, for reading beside them and for testing other code
against it. It makes all 2L gradient calls and keeps every term; speed is no concern here.
"""

from itertools import islice

import numpy as np

UNIT_ROUNDOFF = np.float64(2) ** -53
TINY = np.float64(2) ** -1022  # the smallest normal number


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
    if not np.all(noise_variance >= -16 * UNIT_ROUNDOFF * alpha * M):  # rounding of C and of B^
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
    if not isinstance(L, (int, np.integer)) or L < 1:
        raise ValueError(f"L must be a whole number of leapfrogs, at least 1, not {L}")
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), not {alpha}")
    w = np.array(w, dtype=np.float64)
    if w.ndim != 1:
        raise ValueError(f"w must have one axis, not shape {w.shape}")
    Z = [_vector(row, w.shape, "a row of z") for row in islice(z, 2 * L + 2)]
    if len(Z) not in (2 * L, 2 * L + 1):
        raise ValueError(f"z must have 2L+1 = {2 * L + 1} rows (or 2L), not {'more' if len(Z) > 2 * L else len(Z)}")
    mass, b_hat = (np.array(x, dtype=np.float64) for x in (mass, b_hat))
    if mass.shape not in ((), w.shape) or b_hat.shape not in ((), w.shape):
        raise ValueError(f"mass and b_hat must be scalars or have the shape of w, {w.shape}")
    if not np.all((mass > 0) & (mass < float("inf"))):
        raise ValueError("mass must be positive and finite")
    return w, Z, np.broadcast_to(mass, w.shape), np.broadcast_to(b_hat, w.shape)


def _vector(x, shape, name):
    x = np.array(x, dtype=np.float64)
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
    return float(0 - np.log(m))                         # U = -log(-L_SimSiamAbs), and 0 rather than -0 at m = 1


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
    return rows / np.where(size > 0, norm, 1), np.where(size > 0, size * norm, np.float64("inf"))


def _mean_similarity(s12, s21):
    m = np.mean((np.abs(s12) + np.abs(s21)) / 2)        # Equation 2, mean over the batch
    return np.clip(m, TINY, np.float64(1))


def _slopes(s12, s21, B, similarity):
    """dU/ds of each cosine, as columns (B, 1)."""
    if similarity == "cos":
        return -np.float64(1) / (2 * B), -np.float64(1) / (2 * B)
    m = _mean_similarity(s12, s21)
    scale = -1 / (2 * B * m) if m > TINY else np.float64(0)
    return scale * np.sign(s12)[:, None], scale * np.sign(s21)[:, None]


def _batch(p1, z1, p2, z2, similarity):
    arrays = [np.array(x, dtype=np.float64) for x in (p1, z1, p2, z2)]
    shape = arrays[0].shape
    if any(x.shape != shape for x in arrays) or len(shape) != 2 or 0 in shape:
        raise ValueError(f"p1, z1, p2, z2 must have one shape (B, d), not {[x.shape for x in arrays]}")
    if similarity not in ("abscos", "cos", "l2"):
        raise ValueError(f"similarity must be abscos, cos or l2, not {similarity!r}")
    return arrays
