"""Measure the program on this machine: what a sample costs above the bare network, and what it saves.

    python tools/benchmark.py [--out benchmark.json]        about ten minutes on two cores
    python tools/benchmark.py --quick                       a minute; its numbers say nothing
    python tools/benchmark.py --peers PYTHON                and the packages of its environment, see tools/peers.py

All on the built-in gratings, from the random network, at batch 512. The result is a table, and a JSON file with its
rows and every single timing. Contestants take turns, round by round; a ratio is the median of the rounds' own ratios.

    gradient    a gradient of the bare network on ready images: its rate over that of a matrix product, 4096^3
    sample      a sample over its floor, (number of gradients) x (a gradient of the bare network): L 1 and 3
    textbook    the same chain as one writes it first, in a process of its own, over ours: L 3; so for peers
    evaluation  evaluate() over its forward passes: 2,048 images as bank and 1,000 to classify (GPU: all)
    start       seconds from the command to the program's first line and to the end of its first step
"""

import argparse
import copy
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = str(ROOT), str(ROOT / "tools")
from peers import Peers, loader  # noqa: E402

import simsiam_sghmc as S  # noqa: E402

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
POLICIES = {"kick": lambda L: 2 * L - 1, "sample": lambda L: L}  # gradients of a sample (D3)
CHAIN, TEXTBOOK_L = {"data": "gratings", "sg": False, "eps": 1e-4}, 3
PROGRAM = """import sys; sys.path.insert(0, sys.argv.pop(1)); import simsiam_sghmc as S
advance = S.Chain.advance
S.Chain.advance = lambda chain: (advance(chain), print("first step done", flush=True))
sys.exit(S.main())
"""  # python simsiam_sghmc.py, that says when a step is done
# What every part is given; `other` runs functions in a process of its own; None: all images, no peers
Bench = namedtuple("Bench", "device data other batch product bank test peers", defaults=(None,))
FULL, QUICK = {"cpu": (512, 4096, 2048, 1000), "cuda": (512, 8192, None, None)}, (8, 256, 256, 256)
# A line of the table: factor x the median ratio of two contestants, or the median of one alone, and its target
Row = namedtuple("Row", "what above below factor target", defaults=(None, 1.0, ""))


def seconds(device, f):
    """Seconds of one call of f(); on a GPU the mean of ten, after one that is not counted."""
    wait, repeats = (torch.cuda.synchronize, 10) if device.type == "cuda" else (lambda _: None, 1)
    if repeats > 1:
        f(), wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        f()
    wait(device)
    return (time.perf_counter() - began) / repeats


def product_seconds(device, precision, n):
    """A matrix product (n, n) @ (n, n) into a ready result."""
    a, b, c = (torch.randn(n, n, device=device).to(PRECISIONS[precision]) for _ in range(3))
    torch.mm(a[:64], b)  # sets up the kernel
    return seconds(device, lambda: torch.mm(a, b, out=c))


def bare_gradient(device, precision, batch):
    """f: f() is two forward passes on ready images of no meaning, channels last, the energy, and backward into G."""
    images, labels = torch.zeros(batch, 3, 32, 32, dtype=torch.uint8), torch.zeros(batch, dtype=torch.int64)
    cfg = S.Config(precision=precision, batch_size=batch, **CHAIN)
    chain = S.Chain(cfg, S.Images(images, labels, images, labels, "none"), None, device)
    views = [torch.randn(batch, 3, 32, 32).to(device, memory_format=torch.channels_last) for _ in range(2)]
    return lambda: chain.gradient(*chain.encode(*views))


def floor_seconds(device, precision, batch):
    return seconds(device, bare_gradient(device, precision, batch))


def flops_per_pair():
    """Floating-point operations of the gradient for one pair of views: matrix products and convolutions."""
    gradient = bare_gradient(torch.device("cpu"), "fp32", 2)
    with FlopCounterMode(display=False) as counter:
        gradient()
    return counter.get_total_flops() / 2


def sample_seconds(bench, precision, policy, L):
    """One sample with all that the program does for its tables."""
    cfg = S.Config(**CHAIN, batch_size=bench.batch, precision=precision, batch_per=policy, L=L)
    return seconds(bench.device, S.Chain(cfg, bench.data, None, bench.device).advance)


class TwoViews(list):
    """Two views of an image by torchvision's transforms on PIL images, one image at a time."""

    crop, jitter = transforms.RandomResizedCrop(32, scale=(0.2, 1)), transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    colour = [transforms.RandomApply([jitter], p=0.8), transforms.RandomGrayscale(0.2), transforms.ToTensor()]
    steps = [transforms.ToPILImage(), crop, transforms.RandomHorizontalFlip(), *colour]
    view = transforms.Compose([*steps, transforms.Normalize(S.MEAN, S.STD)])

    def __getitem__(self, i):
        image = super().__getitem__(i)
        return self.view(image), self.view(image)


@cache  # its process has one
class Textbook:
    """Algorithm 1 as one writes it first: loader workers, contiguous images, loop over the parameters, 2L gradients."""

    def __init__(self, device, batch, L, workers):
        self.device, self.energies, self.model = device, [], S.initial_network(0).to(device)
        self.loader = loader(TwoViews(S.load_data("gratings").train), batch, 2 * L, device, workers)

    def sample(self, precision):
        parameters, eps, alpha = list(self.model.parameters()), CHAIN["eps"], 0.01
        momenta = [torch.randn_like(p) for p in parameters]
        for kick, views in enumerate(self.loader):
            view1, view2 = (view.to(self.device, non_blocking=True) for view in views)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                (p1, z1), (p2, z2) = self.model(view1), self.model(view2)
            P1, Z1, P2, Z2 = (F.normalize(x.float(), dim=1) for x in (p1, z1, p2, z2))
            U = -torch.log(((P1 * Z2).sum(1).abs() / 2 + (P2 * Z1).sum(1).abs() / 2).mean())
            self.model.zero_grad()
            U.backward()
            self.energies.append(U.item())
            with torch.no_grad():
                for p, Phi in zip(parameters, momenta, strict=True):
                    Phi.copy_((1 - alpha) * Phi - eps / 2 * p.grad + math.sqrt(2 * alpha) * torch.randn_like(p))
                    if kick % 2 == 0:  # the first half-kick of a leapfrog, before its drift
                        p.add_(eps * Phi)


def textbook_seconds(device, batch, precision):
    return seconds(device, partial(Textbook(device, batch, TEXTBOOK_L, os.cpu_count() or 1).sample, precision))


def forward_passes(chain, views, bank, test):
    """The forward passes of evaluate() on ready blocks of images: minibatch, statistics, bank, test images."""
    model = copy.deepcopy(chain.model)
    with S.full_float32():
        chain.predict(*chain.encode(*views))
        for block in bank[: S.RECALIBRATION // S.BLOCK]:
            model(block)
        model.eval()
        for block in test + bank:
            model.encoder(block)


def start_seconds(bench, awaited):
    """Seconds from the command to the line of the program that contains these words."""
    line = f"--data gratings --no-sg --samples 1 --batch-size {min(bench.batch, 32)} --device {bench.device}"
    line += f" --knn-train {bench.bank or 2048} --knn-test {bench.test or 1000}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, str(ROOT), *line.split(), "--out", f"{folder}/run"]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            seen = any(awaited in line for line in program.stdout)
            spent = time.perf_counter() - began
            program.kill()
    return spent if seen else math.nan


def gradients(bench):
    """Contestants: a gradient of the bare network."""
    return {f"gradient {p}": partial(floor_seconds, bench.device, p, bench.batch) for p in PRECISIONS}


def gradient_part(bench):
    share = flops_per_pair() * bench.batch / (2 * bench.product**3)
    found = {f"product {p}": partial(product_seconds, bench.device, p, bench.product) for p in PRECISIONS}
    names = [(f"rate of a gradient over a product, {p}", f"product {p}", f"gradient {p}") for p in PRECISIONS]
    return found | gradients(bench), [Row(*name, share, ">= 0.85" * name[0].endswith("bf16")) for name in names]


def sample_part(bench):
    found, rows = gradients(bench), []
    for L, policy, p in itertools.product((1, 3), POLICIES, PRECISIONS):
        name = f"sample {p}, batch per {policy}, L {L}"
        found[name] = partial(sample_seconds, bench, p, policy, L)
        rows.append(Row(f"{name}, over its gradients", name, f"gradient {p}", 1 / POLICIES[policy](L), "<= 1.06"))
    return found, rows


def textbook_part(bench):
    """Such code is fp32; beside that, both in the same precision. The peers' samples also per gradient."""
    rivals = {"textbook": lambda p: bench.other.submit(textbook_seconds, bench.device, bench.batch, p).result()}
    if bench.peers:
        rivals["peers"] = lambda p: seconds(bench.device, partial(bench.peers.sample, p))
    found, rows = {f"{rival} {p}": partial(f, p) for rival, f in rivals.items() for p in PRECISIONS}, []
    policies, precisions = (("kick", ">= 3"), ("sample", ">= 5")), ("fp32 fp32", "bf16 bf16", "fp32 bf16")
    for rival, (policy, target), (theirs, p) in itertools.product(rivals, policies, map(str.split, precisions)):
        above, name = f"{rival} {theirs}", f"sample {p}, batch per {policy}"
        found[name] = partial(sample_seconds, bench, p, policy, TEXTBOOK_L)
        aimed = target if rival == "textbook" and theirs != p else ""
        rows.append(Row(f"{above} over {name}", above, name, target=aimed))
        share = POLICIES[policy](TEXTBOOK_L) / bench.peers.gradients[theirs] if rival == "peers" else 1
        if share != 1:  # of the program's gradients over theirs
            rows.append(Row(f"{above} over {name}, per gradient", above, name, share))
    return found, rows


def evaluation_part(bench):
    cfg = S.Config(**CHAIN, batch_size=min(bench.batch, 128), knn_train=bench.bank, knn_test=bench.test)
    chain = S.Chain(cfg, bench.data, None, bench.device)
    images = chain.data.train[: bench.bank], chain.data.test[: bench.test]
    passes = partial(forward_passes, chain, chain.views(0), *([*map(S.normalise, x.split(S.BLOCK))] for x in images))
    found = {"evaluation": partial(S.evaluate, chain), "its forward passes": passes}
    rows = [Row("evaluation over its forward passes", *found, target="<= 1.15")]
    return {name: partial(seconds, bench.device, f) for name, f in found.items()}, rows


def start_part(bench):
    found = {"first line": partial(start_seconds, bench, ""), "first step": partial(start_seconds, bench, "step done")}
    return found, [Row(f"seconds to the {name}", name) for name in found]


PARTS = {f.__name__[:-5]: f for f in (gradient_part, sample_part, textbook_part, evaluation_part, start_part)}


def measure(bench, parts, rounds, out):
    """Run the parts: in each round its contestants (name -> function that returns seconds) take turns, so that a slow
    spell of the machine cancels in the ratios within a round. Print rows and write the file after each part."""
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else platform.machine()
    machine = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {bench.batch}"
    result = {"machine": machine, "rows": [], "timings": {}}
    print(machine)
    for part in parts:
        contestants, rows = PARTS[part](bench)
        timings = [{name: contestant() for name, contestant in contestants.items()} for _ in range(rounds)]
        result["timings"][part] = timings
        for row in rows:
            value = row.factor * statistics.median(r[row.above] / r.get(row.below, 1) for r in timings)
            result["rows"].append({"part": part, "what": row.what, "value": value, "target": row.target})
            print(f"{row.what:<64}{value:>8.3f}  {row.target}".rstrip(), flush=True)
        S.write_whole(out, (json.dumps(result, indent=1) + "\n").encode())
    print(f"written to {out}")


def started(python, device, batch):
    """A context that gives the Peers, or None: without --peers, and with a line that says why they are left out."""
    try:
        return Peers(python, device, batch, TEXTBOOK_L) if python else nullcontext()
    except OSError as error:
        print(f"peers: left out, {S.one_line(error)}")
        return nullcontext()


def main(argv=None):
    """The command line; returns the exit code: 0 done, 2 bad input."""
    parser = S.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of each race [3]")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="P,P", help="only these parts")
    parser.add_argument("--peers", metavar="PYTHON", help="race what tools/peers.py assembles in its environment too")
    parser.add_argument("--quick", action="store_true", help="small batches, one round: only to see that it works")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), metavar="FILE", help="[benchmark.json]")
    try:
        given = parser.parse_args(argv)
        parts = given.parts.split(",")
        if set(parts) - set(PARTS) or given.rounds < 1:
            raise S.BadInput(f"--parts takes {','.join(PARTS)}, --rounds a whole number >= 1")
        with S.bad_input(f"--out {given.out}: no folder to write to, or no result of this benchmark; name another"):
            if not given.out.exists():
                tempfile.TemporaryFile(dir=given.out.parent).close()
            elif "timings" not in json.loads(given.out.read_text()):  # an earlier result is replaced
                raise ValueError
        device = S.pick_device(given.device)
        S.keep_freed_memory()  # as the program does
        sizes = QUICK if given.quick else FULL[device.type]
        with ProcessPoolExecutor(1, get_context("spawn")) as other, started(given.peers, device, sizes[0]) as peers:
            bench = Bench(device, S.load_data("gratings"), other, *sizes, peers)
            for first in gradients(bench).values():  # first calls set up kernels and fill the heap
                first()
            measure(bench, parts, 1 if given.quick else given.rounds, given.out)
        return 0
    except (S.BadInput, OSError) as error:
        print(f"benchmark: {S.one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
