"""Known bugs and correct rewritings of Algorithm 1. How to add one: vectors/README.md."""

from oracle.known_bugs.row import bug, rewriting

FIRST = "(1 - alpha) * Phi - eps / 2 * dU(X) + noise_std * normal(2 * l + 1)"   # line 3
SECOND = "(1 - alpha) * Phi - eps / 2 * dU(X) + noise_std * normal(2 * l + 2)"  # line 5
DRIFT = "X = X + eps / M * Phi"                                                # line 4
BODY = f"Phi = {FIRST}\n{DRIFT}\nPhi = {SECOND}"
LOOP = "for l in range(L):\n    " + BODY.replace("\n", "\n    ")
NORMAL = "return Z[j] if j < len(Z) else np.zeros_like(w)"
GRAD = "_vector(grad(X.copy()), w.shape, 'grad(X)')"
CHECKED = "w, Z, M, B_hat = _checked(w, z, eps, L, alpha, mass, b_hat)"


def kick(number, old, new):
    """The first or the second half-kick with new code for old."""
    code = {1: FIRST, 2: SECOND}[number]
    return {code: code.replace(old, new)}


def checked(*lines):
    """More lines once the arguments are read: what they change is used everywhere."""
    return {CHECKED: "\n".join([CHECKED, *lines])}


def before_loop(*lines):
    """More lines once momentum and noise have their scales: what they change is used in the leapfrogs alone."""
    return {"X = w.copy()": "\n".join(["X = w.copy()", *lines])}


ROWS = [
    bug("noise: variance used as standard deviation", {
        "np.sqrt(np.maximum(noise_variance, 0))": "np.maximum(noise_variance, 0)"
    }, "N(0, 2 C eps) names the variance; the draw is multiplied by its square root", "edward#722", "optax#281"),
    bug("noise: factor 2 lost", {"2 * (C - B_hat)": "C - B_hat"}, "the variance is 2 C eps, not C eps"),
    bug("noise: factor 2 outside the square root", {
        "np.maximum(noise_variance, 0)": "2 * np.maximum(noise_variance, 0)"
    }, "2 * sqrt(C eps) is not sqrt(2 C eps)", "csgmcmc#1"),
    bug("noise: extra eps", {"2 * (C - B_hat)": "2 * (C - B_hat) * eps"},
        "alpha already contains eps: 2 C eps = 2 alpha M"),
    bug("noise: scaled by eps outside the square root", {
        "np.sqrt(np.maximum(noise_variance, 0))": "eps * np.sqrt(np.maximum(noise_variance, 0))"
    }, "the standard deviation of the kick is sqrt(2 C eps)"),
    bug("noise: C instead of C eps", {"2 * (C - B_hat) * eps": "2 * (C - B_hat)"},
        "the variance grows with the time step"),
    bug("noise: C = alpha M, without 1 / eps", {"alpha * M / eps": "alpha * M"},
        "alpha = M^-1 C eps, so that C = alpha M / eps"),
    bug("noise: mass ignored", {"C - B_hat": "alpha / eps - B_hat"}, "C = alpha M / eps carries the mass"),
    bug("noise: divided by the mass", {"C - B_hat": "alpha / M / eps - B_hat"},
        "that is the noise of the velocity squared away; C = alpha M / eps"),
    bug("noise: none", {"np.sqrt(np.maximum(noise_variance, 0))": "0 * M"},
        "friction without noise is an optimiser, not a sampler", "sghmc (TurboFreeze)#2"),
    bug("noise: in the first kick only", {"noise_std * normal(2 * l + 2)": "0"},
        "both half-kicks carry the full N(0, 2 C eps)"),
    bug("noise: in the second kick only", {"noise_std * normal(2 * l + 1)": "0"},
        "both half-kicks carry the full N(0, 2 C eps)"),
    bug("noise: a quarter of the variance", {"2 * (C - B_hat) * eps": "(C - B_hat) * eps / 2"},
        "half the step size is no reason to halve C eps twice"),
    bug("noise: one draw for both kicks", {"normal(2 * l + 2)": "normal(2 * l + 1)"},
        "the two half-kicks draw independent normals"),
    bug("noise: the same draws in every leapfrog", {NORMAL: """
        j = j if j < 3 else 1 + (j - 1) % 2
        return Z[j] if j < len(Z) else np.zeros_like(w)
        """}, "each leapfrog draws its own normals"),
    bug("noise: the momentum draw reused in the first kick", {"normal(2 * l + 1)": "normal(2 * l + 1 if l else 0)"},
        "row 0 of z belongs to the momentum alone"),
    bug("noise: one scalar broadcast to all coordinates", {NORMAL: """
        if 0 < j < len(Z):
            return Z[j][0] + np.zeros_like(w)
        return Z[j] if j < len(Z) else np.zeros_like(w)
        """}, "every coordinate has its own normal"),
    bug("noise: added to the position", {BODY: """
        Phi = (1 - alpha) * Phi - eps / 2 * dU(X)
        X = X + eps / M * Phi + noise_std * normal(2 * l + 1)
        Phi = (1 - alpha) * Phi - eps / 2 * dU(X)
        X = X + noise_std * normal(2 * l + 2)
        """}, "the noise belongs to the momentum; on the position it is Langevin dynamics of another step size"),
    bug("noise: Langevin scale sqrt(2 eps)", {"2 * (C - B_hat) * eps": "2 * eps + 0 * C"},
        "the scale of SGLD; here the noise balances the friction, 2 C eps"),
    bug("noise: Ornstein-Uhlenbeck variance M (1 - (1 - alpha)^2)", {
        "2 * (C - B_hat) * eps": "M * (1 - (1 - alpha) * (1 - alpha))"
    }, "exact for another splitting (OBABO); Algorithm 1 adds 2 alpha M"),
    bug("momentum: M used as its standard deviation", {"np.sqrt(M)": "M"}, "N(0, M) names the variance"),
    bug("momentum: mass ignored", {"np.sqrt(M) * normal(0)": "normal(0)"}, "Phi ~ N(0, M)", "AdvancedHMC.jl#82"),
    bug("momentum: drawn from N(0, M^-1)", {"np.sqrt(M) * normal(0)": "normal(0) / np.sqrt(M)"},
        "that is the law of the velocity M^-1 Phi", "tfp#1348"),
    bug("momentum: multiplied by M^-1", {"np.sqrt(M) * normal(0)": "normal(0) / M"}, "Phi ~ N(0, M)"),
    bug("momentum: zero", {"np.sqrt(M)": "0"}, "line 1 draws a fresh momentum for every sample"),
    bug("momentum: one scalar broadcast to all coordinates", {"normal(0)": "normal(0)[0] + np.zeros_like(w)"},
        "every coordinate has its own momentum"),
    bug("momentum: set to zero at every leapfrog", kick(1, "(1 - alpha) * Phi", "(1 - alpha) * Phi * (l == 0)"),
        "the momentum is drawn once a sample, not once a leapfrog"),
    bug("momentum: drawn with the noise's row", {"normal(0)": "normal(1)"}, "row 0 of z is the momentum draw"),
    bug("momentum: scaled by eps", {"np.sqrt(M)": "eps * np.sqrt(M)"}, "a momentum, not a displacement"),
    bug("friction: 1 - alpha eps", before_loop("alpha = alpha * eps"), "alpha = M^-1 C eps already contains eps"),
    bug("friction: alpha / 2 in each kick", before_loop("alpha = alpha / 2"),
        "Algorithm 1 applies the full 1 - eps C M^-1 in both half-kicks"),
    bug("friction: alpha / 2 in each kick, and C with it", checked("alpha = alpha / 2"),
        "Equation 1 has them once a step; Algorithm 1 has the full alpha and N(0, 2 C eps) in each half-kick"),
    bug("friction: alpha / 2 in each kick, and half the variance of the noise", {
        CHECKED: f"{CHECKED}\nalpha, B_hat = alpha / 2, B_hat / 2"
    }, "Equation 1 has them once a step; Algorithm 1 has the full alpha and N(0, 2 C eps) in each half-kick"),
    bug("friction: acts on the gradient too", {
        FIRST: "(1 - alpha) * (Phi - eps / 2 * dU(X)) + noise_std * normal(2 * l + 1)",
        SECOND: "(1 - alpha) * (Phi - eps / 2 * dU(X)) + noise_std * normal(2 * l + 2)",
    }, "1 - alpha multiplies the old momentum alone"),
    bug("friction: 2 alpha in each kick", before_loop("alpha = 2 * alpha"), "1 - alpha, once in each half-kick"),
    bug("friction: wrong sign", before_loop("alpha = -alpha"), "1 + alpha heats the chain"),
    bug("friction: alpha instead of 1 - alpha", before_loop("alpha = 1 - alpha"),
        "the momentum is kept to 1 - alpha, not to alpha"),
    bug("friction: none", before_loop("alpha = 0 * alpha"), "noise without friction heats the chain", "pybnn#4"),
    bug("friction: in the first kick only", kick(2, "(1 - alpha) * Phi", "Phi"), "both half-kicks carry 1 - alpha"),
    bug("friction: in the second kick only", kick(1, "(1 - alpha) * Phi", "Phi"), "both half-kicks carry 1 - alpha"),
    bug("friction: exp(-alpha)", before_loop("alpha = 1 - np.exp(-alpha)"),
        "the exact decay of the continuous equation; Algorithm 1 has 1 - alpha"),
    bug("friction: divided by the mass once more", before_loop("alpha = alpha / M"),
        "alpha = M^-1 C eps already contains M^-1"),
    bug("friction: multiplied by the mass", before_loop("alpha = alpha * M"), "C M^-1 acts on Phi, so M cancels"),
    bug("friction: 1 / (1 + alpha)", before_loop("alpha = 1 - 1 / (1 + alpha)"),
        "the implicit form; Algorithm 1 is explicit"),
    bug("friction: acts on the gradient and the noise too", {
        FIRST: "(1 - alpha) * (Phi - eps / 2 * dU(X) + noise_std * normal(2 * l + 1))"
    }, "1 - alpha multiplies the old momentum alone"),
    bug("gradient: eps instead of eps / 2", {GRAD: f"2 * {GRAD}"}, "half a step in each half-kick"),
    bug("gradient: eps / 4", {GRAD: f"{GRAD} / 2"}, "half a step in each half-kick"),
    bug("gradient: eps squared", {GRAD: f"eps * {GRAD}"}, "one eps in a kick; the second comes with the drift"),
    bug("gradient: no eps", {GRAD: f"{GRAD} / eps"}, "the kick is eps/2 times the gradient", "pybnn#4"),
    bug("gradient: neither eps nor 1/2", {GRAD: f"2 / eps * {GRAD}"},
        "the kick is eps/2 times the gradient; v = Phi / M learns at the rate eps^2 / M, not at eps"),
    bug("eps: taken for the learning rate eps^2 / M", before_loop("eps = np.sqrt(eps)"),
        "eps M^-1 Phi has the learning rate eps^2 / M; with eps in its place the step size is sqrt(eps)"),
    bug("gradient: eps in the first kick only", kick(1, "eps / 2 * dU(X)", "eps * dU(X)"),
        "both half-kicks use eps / 2"),
    bug("gradient: eps in the second kick only", kick(2, "eps / 2 * dU(X)", "eps * dU(X)"),
        "both half-kicks use eps / 2"),
    bug("gradient: none in the first kick", kick(1, "eps / 2 * dU(X)", "0"), "both half-kicks use the gradient"),
    bug("gradient: none in the second kick", kick(2, "eps / 2 * dU(X)", "0"), "both half-kicks use the gradient"),
    bug("gradient: none", {GRAD: f"0 * {GRAD}"}, "the chain would be a random walk"),
    bug("gradient: wrong sign", {GRAD: f"-{GRAD}"}, "the force is minus the gradient"),
    bug("gradient: wrong sign in the second kick", kick(2, "- eps / 2 * dU(X)", "+ eps / 2 * dU(X)"),
        "the force is minus the gradient"),
    bug("gradient: stale in the second kick", kick(2, "eps / 2 * dU(X)", "eps / 2 * dU(X - eps / M * Phi)"),
        "the second half-kick takes the gradient at the new position"),
    bug("gradient: never refreshed", {"X.copy()": "w.copy()"}, "each leapfrog takes its gradients where it is"),
    bug("gradient: accumulated over calls", {
        """
            def dU(X):
                return _vector(grad(X.copy()), w.shape, 'grad(X)')
            """: """
            total = [np.zeros_like(w)]
            def dU(X):
                total[0] = total[0] + _vector(grad(X.copy()), w.shape, 'grad(X)')
                return total[0]
            """
    }, "zero_grad() forgotten"),
    bug("gradient: multiplied by M^-1", {GRAD: f"{GRAD} / M"},
        "the kick changes the momentum; M^-1 comes with the drift"),
    bug("gradient: multiplied by the mass", {GRAD: f"{GRAD} * M"},
        "the kick changes the momentum by eps/2 times the gradient itself"),
    bug("gradient: clipped at 1", {GRAD: f"np.clip({GRAD}, -1, 1)"}, "a clipped force has another energy"),
    bug("drift: before both kicks", {f"Phi = {FIRST}\n{DRIFT}": f"{DRIFT}\nPhi = {FIRST}"}, "kick, drift, kick"),
    bug("drift: after both kicks", {f"{DRIFT}\nPhi = {SECOND}": f"Phi = {SECOND}\n{DRIFT}"}, "kick, drift, kick"),
    bug("drift: with the old momentum (Euler)", {
        f"Phi = {FIRST}\n{DRIFT}": f"V = Phi\nPhi = {FIRST}\nX = X + eps / M * V"
    }, "line 4 uses the momentum of line 3"),
    bug("drift: with the mean of both momenta", {
        f"Phi = {FIRST}\n{DRIFT}": f"V = Phi\nPhi = {FIRST}\nX = X + eps / M * (V + Phi) / 2"
    }, "line 4 uses the momentum of line 3"),
    bug("drift: eps / 2", {"eps / M": "eps / 2 / M"}, "the position moves by a whole step", "keanu#492"),
    bug("drift: 2 eps", {"eps / M": "2 * eps / M"}, "the position moves by one step"),
    bug("drift: eps squared", {"eps / M": "eps * eps / M"}, "the position moves by eps M^-1 Phi"),
    bug("drift: no M^-1", {"eps / M": "eps"},
        "the position moves by the velocity M^-1 Phi", "AdvancedHMC.jl#82", "tfp#1348"),
    bug("drift: M instead of M^-1", {"eps / M": "eps * M"},
        "the position moves by the velocity M^-1 Phi", "AdvancedHMC.jl#82", "tfp#1348"),
    bug("drift: M^-1/2 instead of M^-1", {"eps / M": "eps / np.sqrt(M)"},
        "the position moves by the velocity M^-1 Phi"),
    bug("drift: wrong sign", {"X + eps / M * Phi": "X - eps / M * Phi"}, "the position follows the momentum"),
    bug("loop: L - 1 leapfrogs", {"range(L)": "range(L - 1)"}, "l = 0 .. L-1 are L leapfrogs"),
    bug("loop: L + 1 leapfrogs", {"range(L)": "range(L + 1)"}, "l = 0 .. L-1 are L leapfrogs"),
    bug("loop: one leapfrog whatever L", {"range(L)": "range(1)"}, "l = 0 .. L-1 are L leapfrogs"),
    bug("loop: starts again from W_t each time", {f"Phi = {FIRST}": f"X = w.copy()\nPhi = {FIRST}"},
        "X_0 = W_t is set once, before the loop"),
    bug("result: the momentum returned", {"return X": "return Phi"}, "W_{t+1} is the position"),
    bug("result: W_t returned", {"return X": "return w"},
        "line 6 printed as W_{t+1} = W_t is a misprint: nothing would ever move", "SGMCMCJax#69"),
    bug("result: the displacement returned", {"return X": "return X - w"}, "W_{t+1} is the position"),
    bug("result: the mean of the positions", {"return X": "return (X + w) / 2"}, "W_{t+1} is the last position"),
    bug("result: caller's array written", {CHECKED: """
        caller, (w, Z, M, B_hat) = (w, _checked(w, z, eps, L, alpha, mass, b_hat))
        caller[:] = w + eps
        """}, "w belongs to the caller", writes_caller=True),
    bug("draws: written in place where the mass is 1", {"Phi = np.sqrt(M) * normal(0)": """
        Phi = np.sqrt(M) * normal(0)
        if np.all(M == 1):
            np.asarray(z)[:1] *= 1 - alpha
        """}, "sqrt(1) z[0] is z[0] itself only if it is copied: z belongs to the caller", writes_caller=True),
    bug("gradient: written in place", {f"return {GRAD}": """
        g = grad(X.copy())
        answer = _vector(np.copy(g), w.shape, 'grad(X)')
        if isinstance(g, np.ndarray):
            g *= eps / 2
        return answer
        """}, "the array that grad returned belongs to the caller, who may return it again", writes_caller=True),
    bug("draws: swapped between the kicks", {NORMAL: """
        j = j and (j - 1 ^ 1) + 1
        return Z[j] if j < len(Z) else np.zeros_like(w)
        """}, "z[2l+1] is the first half-kick's, z[2l+2] the second's"),
    bug("draws: in reverse order", {NORMAL: """
        j = 2 * L - j
        return Z[j] if 0 <= j < len(Z) else np.zeros_like(w)
        """}, "z[0] is the momentum, then one row a half-kick"),
    bug("B^: ignored", {"C - B_hat": "C"}, "Equation 1: N(0, 2 (C - B^) dt)"),
    bug("B^: added", {"C - B_hat": "C + B_hat"}, "Equation 1: N(0, 2 (C - B^) dt)"),
    bug("B^: without eps", {"2 * (C - B_hat) * eps": "2 * (C * eps - np.minimum(B_hat, C * eps))"},
        "Equation 1: N(0, 2 (C - B^) dt)"),
    bug("B^: without the factor 2", {"2 * (C - B_hat)": "2 * C - B_hat"}, "Equation 1: N(0, 2 (C - B^) dt)"),
    bug("B^: taken off the friction too", before_loop("alpha = alpha - eps * B_hat / M"),
        "Equation 1 keeps C M^-1 Phi: B^ lowers the noise alone"),
    bug("B^: larger than C clamped in silence", {
        """
            if not np.all(noise_variance >= -16 * UNIT_ROUNDOFF * alpha * M):
                raise ValueError('b_hat is larger than the friction C = alpha * mass / eps: '
                                 'the noise variance is negative')
            """: ""
    }, "a negative variance is an error, not zero noise", refuses=True),
    bug("B^: larger than C refused only if it is so everywhere", {
        "np.all(noise_variance >= -16 * UNIT_ROUNDOFF * alpha * M)":
            "np.any(noise_variance >= -16 * UNIT_ROUNDOFF * alpha * M)"
    }, "one coordinate is enough", refuses=True),
    bug("noise: friction lost where two kicks are fused", {
        "noise_std * normal(2 * l + 2)": "noise_std / (1 - alpha) * normal(2 * l + 2)"
    }, "what the second kick adds is damped by the next kick"),
    bug("momentum: drawn anew for each leapfrog",
        kick(1, "(1 - alpha) * Phi", "(1 - alpha) * np.sqrt(M) * normal(2 * l)"),
        "the momentum is drawn once a sample, not once a leapfrog"),
    bug("momentum: set back to the first draw at each leapfrog",
        kick(1, "(1 - alpha) * Phi", "(1 - alpha) * np.sqrt(M) * normal(0)"),
        "the momentum is drawn once a sample, not once a leapfrog"),
    bug("momentum: kept between calls", {
        "Phi = np.sqrt(M) * normal(0)": """
            kept = _vector.__dict__.setdefault('kept', {})
            Phi = np.sqrt(M) * normal(0) + kept.get(len(w), 0)
            """,
        "return X": """
            kept[len(w)] = Phi
            return X
            """
    }, "line 1 draws a fresh momentum for every sample", special="a second call"),
    bug("mass: the mean of the masses for each coordinate", checked("M = M.mean() + 0 * M"),
        "M is a diagonal matrix, each coordinate has its own mass", special="a mass for each coordinate"),
    bug("mass: the first mass for every coordinate", checked("M = M[0] + 0 * M"),
        "M is a diagonal matrix, each coordinate has its own mass", special="a mass for each coordinate"),
    bug("noise: of the mean of the masses", {"alpha * M / eps": "alpha * M.mean() / eps + 0 * M"},
        "each coordinate has the noise of its own mass", special="a mass for each coordinate"),
    bug("momentum: of the mean of the masses", {"np.sqrt(M)": "np.sqrt(M.mean())"},
        "each coordinate has the momentum of its own mass", special="a mass for each coordinate"),
    bug("gradient: where it is 0 the half-kick is left out", {
        f"Phi = {FIRST}": """
            g = dU(X)
            Phi = np.where(g == 0, Phi, (1 - alpha) * Phi - eps / 2 * g + noise_std * normal(2 * l + 1))
            """,
        f"Phi = {SECOND}": """
            g = dU(X)
            Phi = np.where(g == 0, Phi, (1 - alpha) * Phi - eps / 2 * g + noise_std * normal(2 * l + 2))
            """
    }, "friction and noise act whatever the gradient is", special="a gradient of 0"),
    bug("mass: cut off to an integer where M^-1 is stored", {
        "eps / M": "eps * np.array(1 / M, dtype=np.asarray(mass).dtype)"
    }, "1 / M of an integer M is no integer", special="a mass of integers"),
    bug("B^: halved, if an integer", {"C - B_hat": "C - (B_hat / 2 if np.asarray(b_hat).dtype.kind == 'i' else B_hat)"},
        "an integer is a number like any other", special="a b_hat of integers"),
    bug("gradient: kept where the position is nearly the same", {
        **checked("kept = {}"),
        f"return {GRAD}": """
            if not kept or not np.allclose(X, kept['X']):
                kept.update(X=X.copy(), g=_vector(grad(X.copy()), w.shape, 'grad(X)'))
            return kept['g']
            """
    }, "a small move has another gradient too: allclose is not equal", special="small moves"),
    bug("gradient: cut off at the norm 1000", {f"return {GRAD}": """
        g = _vector(grad(X.copy()), w.shape, 'grad(X)')
        return g * min(1, 1000 / max(np.sqrt((g * g).sum()), 1e-300))
        """}, "the whole gradient counts, whatever its size", special="large gradients"),
    bug("gradient: left out where its norm is below 1e-8", {f"return {GRAD}": """
        g = _vector(grad(X.copy()), w.shape, 'grad(X)')
        return g * (np.sqrt((g * g).sum()) > 1e-8)
        """}, "the whole gradient counts, whatever its size", special="small gradients"),
    bug("eps: not let below 1e-5", checked("eps = max(eps, 1e-5)"),
        "any positive step size is one", special="a tiny eps"),
    bug("friction: alpha not let above 0.9", checked("alpha = min(alpha, 0.9)"),
        "alpha is any number below 1", special="alpha next to 1"),
    bug("noise: that of alpha = 1 where alpha is 0", {"alpha * M": "(alpha or 1) * M"},
        "without friction there is no noise", special="alpha 0"),
    bug("B^: the mean of its entries where each coordinate has a mass", {
        "C - B_hat": "C - (B_hat.mean() if np.ndim(mass) and np.ndim(b_hat) else B_hat)"
    }, "each coordinate has its own B^", special="a mass and a b_hat for each coordinate"),
    bug("mass: kept between calls", checked("M = _vector.__dict__.setdefault((len(w), eps, alpha, L, str(b_hat)), M)"),
        "a setting belongs to one call", special="a second call with another mass"),
    bug("arguments: read in the order of memory", {CHECKED: """
        as_stored = np.frombuffer(z.tobytes(order='A'))
        w, Z, M, B_hat = _checked(w, as_stored.reshape(z.shape), eps, L, alpha, mass, b_hat)
        """}, "an array is its entries, however they are stored", special="arrays stored by columns"),
    bug("mass: ignored altogether", checked("M = M / M"), "M enters the momentum's draw, the noise and the drift"),
    bug("friction: the root of 1 - alpha", before_loop("alpha = 1 - np.sqrt(1 - alpha)"),
        "that is 1 - alpha for both half-kicks together; Algorithm 1 applies it in each"),
    bug("gradient: all of it in the first kick",
        kick(1, "eps / 2 * dU(X)", "eps * dU(X)") | kick(2, "eps / 2 * dU(X)", "0"),
        "each half-kick takes eps/2 of the gradient where it stands"),
    bug("friction: none in the first kick of a sample", kick(1, "(1 - alpha) * Phi", "(1 - alpha * (l > 0)) * Phi"),
        "both half-kicks of each leapfrog carry 1 - alpha"),
    bug("friction: exact Ornstein-Uhlenbeck, exp(-alpha) and noise M (1 - exp(-2 alpha))",
        before_loop("noise_std = np.sqrt(np.maximum(M * (1 - np.exp(-2 * alpha)) - 2 * B_hat * eps, 0))",
                    "alpha = 1 - np.exp(-alpha)"),
        "exact for another integrator; Algorithm 1 has 1 - alpha and 2 alpha M"),
    bug("gradient: friction lost where two kicks are fused",
        kick(2, "eps / 2 * dU(X)", "eps / 2 / (1 - alpha) * dU(X)"),
        "fused, the gradient counts (1 - alpha) eps/2 + eps/2, not eps"),
    bug("gradient: weight decay", {GRAD: f"{GRAD} + X / 64"},
        "W / 64 in the gradient is a prior that the energy does not have"),
    bug("loop: each half-kick and each drift done twice", {BODY: """
        g = dU(X)
        for _ in (0, 1):
            Phi = (1 - alpha) * Phi - eps / 2 * g + noise_std * normal(2 * l + 1)
            X = X + eps / M * Phi
        g = dU(X)
        for _ in (0, 1):
            Phi = (1 - alpha) * Phi - eps / 2 * g + noise_std * normal(2 * l + 2)
        """}, "slices that overlap update what they share twice"),
    rewriting("fused kicks", {LOOP: """
        c = 1 - alpha
        g = dU(X)
        Phi = c * Phi - eps / 2 * g + noise_std * normal(1)
        X = X + eps / M * Phi
        for l in range(1, L):
            g = dU(X)
            Phi = c * c * Phi - eps / 2 * (1 + c) * g + noise_std * (c * normal(2 * l) + normal(2 * l + 1))
            X = X + eps / M * Phi
        """}, "the second kick of a leapfrog and the first of the next meet at one position"),
    rewriting("explicit sum", {LOOP: """
        c, Phi0, G, total = (1 - alpha, Phi, [None], 0 * w)
        for k in range(L):
            g = dU(X)
            G += [g, g] if k else [g]
            J = 2 * k + 1
            V = c ** J * Phi0 + sum(c ** (J - j) * (noise_std * normal(j) - eps / 2 * G[j])
                                    for j in range(1, J + 1))
            total = total + V
            X = w + eps / M * total
        """}, "the recursion solved"),
    rewriting("gradient cached, last kick dropped", {LOOP: """
        g = dU(X)
        for l in range(L):
            Phi = (1 - alpha) * Phi - eps / 2 * g + noise_std * normal(2 * l + 1)
            X = X + eps / M * Phi
            if l < L - 1:
                g = dU(X)
                Phi = (1 - alpha) * Phi - eps / 2 * g + noise_std * normal(2 * l + 2)
        """}, "the last half-kick never reaches W_{t+1}"),
    rewriting("velocity v = Phi / M", {LOOP: """
        v = normal(0) / np.sqrt(M)
        s = np.sqrt(np.maximum(2 * (alpha / M - B_hat * eps / M / M), 0))
        for l in range(L):
            v = (1 - alpha) * v - eps / 2 / M * dU(X) + s * normal(2 * l + 1)
            X = X + eps * v
            v = (1 - alpha) * v - eps / 2 / M * dU(X) + s * normal(2 * l + 2)
        """}, "a change of variables"),
    rewriting("variables of Chen et al., Equation 15", {LOOP: """
        u, eta = (eps / M * Phi, eps * eps / M)
        s = np.sqrt(np.maximum(2 * eta * (alpha - eps * B_hat / M), 0))
        for l in range(L):
            u = (1 - alpha) * u - eta / 2 * dU(X) + s * normal(2 * l + 1)
            X = X + u
            u = (1 - alpha) * u - eta / 2 * dU(X) + s * normal(2 * l + 2)
        """}, "u = eps M^-1 Phi, learning rate eps^2 M^-1"),
    rewriting("alpha M built first", {"2 * (C - B_hat) * eps": "2 * (alpha * M - B_hat * eps)"}, "2 C eps = 2 alpha M"),
    rewriting("friction from C", before_loop("alpha = eps * C / M"), "the paper's 1 - eps C M^-1"),
    rewriting("coordinate by coordinate", {BODY: """
        for kick in (1, 2):
            g = dU(X)
            for i in range(len(w)):
                Phi[i] = (1 - alpha) * Phi[i] - eps / 2 * g[i] + noise_std[i] * normal(2 * l + kick)[i]
            if kick == 1:
                for i in range(len(w)):
                    X[i] = X[i] + eps * Phi[i] / M[i]
        """}, "scalar loops"),
    rewriting("noise first, then gradient, then friction", {
        FIRST: "noise_std * normal(2 * l + 1) + (-dU(X) * (eps / 2) + (Phi - alpha * Phi))"
    }, "another order of the sum"),
    rewriting("separate square roots", {
        "np.sqrt(np.maximum(noise_variance, 0))":
            "np.sqrt(np.maximum(C - B_hat, 0)) * np.sqrt(2 * np.ones(())) * np.sqrt(eps)"
    }, "sqrt(2) sqrt(C) sqrt(eps): one more rounding each"),
    rewriting("float32", {LOOP: """
        f = np.float32
        X, Phi, c, h = (f(X), f(Phi), f(1) - f(alpha), f(eps) / f(2))
        for l in range(L):
            Phi = c * Phi - h * f(dU(X)) + f(noise_std) * f(normal(2 * l + 1))
            X = X + f(eps) / f(M) * Phi
            Phi = c * Phi - h * f(dU(X)) + f(noise_std) * f(normal(2 * l + 2))
        """}, "single precision, judged by its own unit roundoff", dtype="float32"),
]
