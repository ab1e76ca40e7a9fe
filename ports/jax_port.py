"""The sampler and the energy in JAX, for `SGHMC_IMPL=ports/jax_port.py pytest`.

Independent of the rest: the two kicks that meet at a position are fused, and the gradient of the energy is JAX's own.
"""

from functools import partial

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp  # noqa: E402


def sghmc_step(w, z, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0):
    """W_t -> W_{t+1}; L gradient calls, each shared by the kicks on both sides of a position."""
    X, z, c = jnp.asarray(w), jnp.asarray(z), 1 - alpha
    M, B = jnp.asarray(mass, X.dtype), jnp.asarray(b_hat, X.dtype)
    variance = 2 * (alpha * M - B * eps)
    if jnp.any(variance < -8 * jnp.finfo(X.dtype).eps * alpha * M):
        raise ValueError("b_hat exceeds the friction alpha * mass / eps")
    s = jnp.sqrt(jnp.maximum(variance, 0))

    V = z[0] / jnp.sqrt(M)                                       # velocity M^-1 Phi
    V = c * V + (s * z[1] - eps / 2 * jnp.asarray(grad(X))) / M
    X = X + eps * V
    for l in range(1, L):
        force = -eps / 2 * (1 + c) * jnp.asarray(grad(X))
        V = c * c * V + (force + s * (c * z[2 * l] + z[2 * l + 1])) / M
        X = X + eps * V
    return X


def unit(x):
    """Unit rows; zero rows stay zero, with a gradient that is finite."""
    square = jnp.sum(x * x, axis=1, keepdims=True)
    zero = square == 0
    return x / jnp.sqrt(jnp.where(zero, 1, square))


def energy(p1, z1, p2, z2, stop_grad=False):
    """Equation 2."""
    P1, Z1, P2, Z2 = (unit(jnp.asarray(x)) for x in (p1, z1, p2, z2))
    if stop_grad:
        Z1, Z2 = jax.lax.stop_gradient((Z1, Z2))
    cosines = jnp.concatenate([jnp.sum(P1 * Z2, axis=1), jnp.sum(P2 * Z1, axis=1)])
    return -jnp.log(jnp.minimum(jnp.mean(jnp.abs(cosines)), 1.0))


@partial(jax.jit, static_argnums=4)
def energy_grad(p1, z1, p2, z2, stop_grad):
    """Gradient of the energy by its four inputs."""
    return jax.grad(energy, argnums=(0, 1, 2, 3))(p1, z1, p2, z2, stop_grad)
