"""simsiam_sghmc.py behind the signatures of the oracle."""

from types import SimpleNamespace

import numpy as np
import torch

import simsiam_sghmc
from oracle.implementations import Implementation


def torch_adapter(dtype):
    """The built-in implementation; in double precision on the caller's own memory."""
    torch.set_num_threads(1)
    real = getattr(torch, dtype)

    def sghmc_step(w, z, grad, **settings):
        settings = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in settings.items()}
        return simsiam_sghmc.sghmc_step(torch.as_tensor(w, dtype=real), torch.as_tensor(z, dtype=real),
                                        lambda x: torch.tensor(grad(x.numpy()), dtype=real), **settings)

    def energy(p1, z1, p2, z2, similarity="abscos"):
        return simsiam_sghmc.energy(*(torch.as_tensor(x, dtype=real) for x in (p1, z1, p2, z2)), False, similarity)

    def energy_grad(p1, z1, p2, z2, stop_grad, similarity="abscos"):
        batch = [torch.as_tensor(x, dtype=real).requires_grad_() for x in (p1, z1, p2, z2)]
        value = simsiam_sghmc.energy(*batch, stop_grad, similarity)
        grads = torch.autograd.grad(value, batch, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, batch, strict=True)]

    def cosines(p1, z1, p2, z2):
        return simsiam_sghmc.cosines(*(torch.as_tensor(x, dtype=real) for x in (p1, z1, p2, z2)))

    module = SimpleNamespace(sghmc_step=sghmc_step, energy=energy, energy_grad=energy_grad, cosines=cosines)
    return Implementation(f"torch-{dtype}", module, dtype, ours=True)
