"""A sample as one would assemble it from packages, for `benchmark.py --peers PYTHON`, which starts

    PYTHON tools/peers.py DEVICE BATCH L

in an environment with torch, torchvision, lightly and posteriors. It says "ready"; then, for each line it reads, fp32
or bf16, it draws a sample and says how many gradients that took. Images and network are the program's.

Views are made by lightly's SimSiamTransform on PIL images, in loader workers (settings: D12). |cos| is the function of
which lightly's NegativeCosineSimilarity takes the mean: that has no absolute value, and costs the same. The sampler
is sghmc of the package posteriors: first the position, then one full kick, L gradients in a sample of L steps.
"""

import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch.func import functional_call, replace_all_batch_norm_modules_
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms.functional import to_pil_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import simsiam_sghmc as S  # noqa: E402

EPS, ALPHA = 1e-4, 0.01  # alpha of Algorithm 1; the package's is a rate per time, alpha / eps


class Peers(subprocess.Popen):
    """This file as a process of the interpreter `python`, ready; OSError that says why if it is not.

    gradients: {"fp32": n, "bf16": n} in a sample; counted in a first one, which also sets up the kernels.
    """

    def __init__(self, python, device, batch, L):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        super().__init__([python, __file__, str(device), str(batch), str(L)], text=True, **pipes)
        self.answer("ready".__eq__)
        self.gradients = {precision: self.sample(precision) for precision in ("fp32", "bf16")}

    def answer(self, is_one):
        """Its next line that is an answer, for packages write warnings too; ChildProcessError with its last words."""
        line = "ended without a word"
        for line in map(str.strip, self.stdout):
            if is_one(line):
                return line
        self.kill(), self.communicate()  # its output has ended; closes the pipes
        raise ChildProcessError(f"{self.args[0]}: {line}")

    def sample(self, precision):
        """Have a sample drawn; returns the number of its gradients."""
        with suppress(BrokenPipeError):  # it has ended: its last words say more
            print(precision, file=self.stdin, flush=True)
        return int(self.answer(str.isdigit))


def loader(images, batch, batches, device, workers):
    """DataLoader that gives as many batches each time it is gone through.

    Its workers live on, but prepare none in between, while others are timed. So each sample waits for its first batch,
    as one within a long chain would not.
    """
    options = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": device.type == "cuda"}
    found = DataLoader(images, batch, sampler=RandomSampler(images, num_samples=batches * batch), **options)
    list(found)  # starts the workers
    return found


class Views(list):
    """PIL images; taken by index, the two views that `transform` makes of one."""

    def __getitem__(self, i):
        return self.transform(super().__getitem__(i))


class Assembled:
    """The chain: views from a loader, the network as a function of its parameters, the package's sampler."""

    def __init__(self, device, batch, L, workers):
        from lightly.transforms import SimSiamTransform  # here: the environment of benchmark.py has neither package
        from posteriors.sgmcmc import sghmc

        self.build, self.device = sghmc.build, torch.device(device)
        images = Views(map(to_pil_image, S.load_data("gratings").train))
        images.transform = SimSiamTransform(32, gaussian_blur=0, normalize={"mean": S.MEAN, "std": S.STD})
        self.loader = loader(images, batch, L, self.device, workers)
        self.model = S.initial_network(0).to(self.device)
        replace_all_batch_norm_modules_(self.model)  # no running statistics: torch.func forbids to write them
        self.params = {name: p.detach() for name, p in self.model.named_parameters()}

    def log_posterior(self, autocast, params, views):
        """log of the mean |cos|, minus the energy; the empty tensor is what else the package could carry along."""
        self.gradients += 1  # the sampler calls this once for each
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            (p1, z1), (p2, z2) = (functional_call(self.model, params, view) for view in views)
        one, two = (torch.cosine_similarity(p.float(), z.float()).abs().mean() for p, z in ((p1, z2), (p2, z1)))
        return ((one + two) / 2).log(), torch.tensor([])

    def sample(self, precision):
        """L steps from fresh momenta; returns their log posteriors as numbers, for which all work must be done."""
        sampler = self.build(partial(self.log_posterior, precision == "bf16"), lr=EPS, alpha=ALPHA / EPS)
        state, found, self.gradients = sampler.init(self.params), [], 0
        for views in self.loader:
            state, _ = sampler.update(state, [view.to(self.device, non_blocking=True) for view in views])
            found.append(state.log_posterior)
        self.params = state.params
        return torch.stack(found).tolist()


if __name__ == "__main__":
    chain = Assembled(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), os.cpu_count() or 1)
    print("ready", flush=True)
    for line in sys.stdin:
        chain.sample(line.strip())
        print(chain.gradients, flush=True)
