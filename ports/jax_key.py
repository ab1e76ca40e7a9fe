"""Algorithm 1 as a JAX function of a key and a pytree, for `SGHMC_IMPL=ports/jax_key.py pytest`."""

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp  # noqa: E402


def normals(key, tree):
    """Independent standard normals in the shapes of the tree, one key for each leaf."""
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return form.unflatten([jax.random.normal(k, jnp.shape(x), jnp.float64) for k, x in zip(keys, leaves, strict=True)])


def sghmc(key, params, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0):
    """W_t -> W_(t+1), pytrees; mass and b_hat are numbers or pytrees like params; grad: pytree -> pytree.

    Two kicks meet at each position but the first. They share a gradient, and their noises are one normal draw of their
    common variance; so do the momentum and the first kick. Draws, not results, differ from the unfused recursion.
    """
    c = 1 - alpha
    M, B = (x if isinstance(x, dict) else jax.tree.map(lambda _, x=x: x, params) for x in (mass, b_hat))
    q = jax.tree.map(lambda M, B: 2 * (alpha * M - B * eps), M, B)  # variance of the noise of one kick
    if any(jnp.any(x < 0) for x in jax.tree.leaves(q)):
        raise ValueError("b_hat exceeds the friction alpha * mass / eps")

    def first(z, g, M, q):
        return jnp.sqrt(c**2 * M + q) * z - eps / 2 * g

    def both(Phi, z, g, q):
        return c**2 * Phi + jnp.sqrt((1 + c**2) * q) * z - eps / 2 * (1 + c) * g

    keys = jax.random.split(key, L)
    X = params
    Phi = jax.tree.map(first, normals(keys[0], X), grad(X), M, q)
    for l in range(L):
        if l:
            Phi = jax.tree.map(both, Phi, normals(keys[l], X), grad(X), q)
        X = jax.tree.map(lambda X, Phi, M: X + eps / M * Phi, X, Phi, M)
    return X


def sghmc_sample(params, grad, seed, *, eps, L, alpha, mass=1.0, b_hat=0.0):
    """The signature of the oracle."""
    return sghmc(jax.random.key(seed), params, grad, eps=eps, L=L, alpha=alpha, mass=mass, b_hat=b_hat)
