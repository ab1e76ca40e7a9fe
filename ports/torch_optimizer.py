"""Algorithm 1 as a torch.optim.Optimizer that draws its own noise, for `SGHMC_IMPL=ports/torch_optimizer.py pytest`."""

import torch


class SGHMC(torch.optim.Optimizer):
    """One sample per step(closure); the closure leaves dU/dp in p.grad. `mass` and `b_hat` may differ between groups.

    The two kicks that meet at a position share one closure call, and the last kick, which moves nothing, is left out.
    """

    def __init__(self, params, *, eps, L, alpha, mass=1.0, b_hat=0.0, generator=None):
        super().__init__(params, dict(mass=mass, b_hat=b_hat))
        self.eps, self.L, self.alpha, self.generator = eps, L, alpha, generator
        for group in self.param_groups:
            M, B = (torch.as_tensor(group[name], dtype=torch.float64) for name in ("mass", "b_hat"))
            variance = 2 * (alpha * M - B * eps)
            if (variance < -1e-14 * alpha * M).any():
                raise ValueError("b_hat exceeds the friction alpha * mass / eps")
            group["M"], group["noise_std"] = M, variance.clamp(min=0).sqrt()

    @torch.no_grad()
    def step(self, closure):
        tensors = [(p, group) for group in self.param_groups for p in group["params"]]
        for p, group in tensors:
            self.state[p]["Phi"] = group["M"].sqrt().to(p.dtype) * self.normal(p)
        for l in range(self.L):
            with torch.enable_grad():
                loss = closure()
            for p, group in tensors:
                if l:
                    self.kick(p, group)
                self.kick(p, group)
                p += self.eps / group["M"].to(p.dtype) * self.state[p]["Phi"]
        return loss

    def kick(self, p, group):
        Phi, noise = self.state[p]["Phi"], group["noise_std"].to(p.dtype) * self.normal(p)
        Phi.mul_(1 - self.alpha).add_(p.grad, alpha=-self.eps / 2).add_(noise)

    def normal(self, p):
        return torch.randn(p.shape, dtype=p.dtype, generator=self.generator)


def sghmc_sample(params, grad, seed, *, eps, L, alpha, mass=1.0, b_hat=0.0):
    """The optimizer behind the signature of the oracle: one group per tensor, so that each has its own mass."""
    def of(x, name):
        return x[name] if isinstance(x, dict) else x

    tensors = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in params.items()}
    groups = [dict(params=[p], mass=of(mass, name), b_hat=of(b_hat, name)) for name, p in tensors.items()]
    sampler = SGHMC(groups, eps=eps, L=L, alpha=alpha, generator=torch.Generator().manual_seed(seed))

    def closure():
        gradients = grad({name: p.detach().numpy() for name, p in tensors.items()})
        for name, p in tensors.items():
            p.grad = torch.as_tensor(gradients[name], dtype=torch.float64).clone()

    sampler.step(closure)
    return {name: p.detach().numpy() for name, p in tensors.items()}
