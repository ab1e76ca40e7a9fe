"""Measure the program on this machine: what a sample costs above the bare network, and what it saves.

    python tools/benchmark.py [--out benchmark.json]        about twelve minutes on two cores
    python tools/benchmark.py --quick                       a minute, only to see that it works: its numbers say nothing

Everything runs on the built-in gratings, from the random network. The result is a table, and a JSON file with the same
rows and every single timing; an earlier result at --out (default: benchmark.json, here) is replaced, another file not.

    part        measured
    rate        the machine's own matrix product, 4096^3 (GPU 8192^3, without TF32), in fp32 and bf16
    floor       a gradient of the bare network on ready images: batch 512 and 128
    sample      a sample over its floor, (number of gradients) x floor, and what it is spent on:
                batch 512, L = 1 and 3; batch 128, L = 1, 2, 3 and 5 (one round less)
    textbook    the same chain as one writes it first, in a process of its own, over ours: batch 512, L = 3
                (one round less)
    evaluation  evaluate() over its forward passes: 2,048 images as bank and 1,000 to classify (GPU: all)
    startup     the program from its start to its end after one sample, batch 128
    memory      with 50,000 images: resident after 50 and 500 samples of batch 4, at most in a sample of batch 512;
                and the gradient of batch 512 in a process that does not call keep_freed_memory()
    cost        seconds against L (batch 64), batch size (L = 1) and number of samples (batch 32), bf16: a line?

Contestants take turns, round by round; a ratio is the median of the rounds' own ratios.
"""

import argparse
import copy
import functools
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
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import simsiam_sghmc  # noqa: E402
from simsiam_sghmc import BadInput, Chain, Config, Images, advance  # noqa: E402

PARTS = ("rate", "floor", "sample", "textbook", "evaluation", "startup", "memory", "cost")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
POLICIES = {"kick": lambda L: 2 * L - 1, "sample": lambda L: L}  # gradients of a sample (D3)
CHAIN = {"data": "gratings", "sg": False, "eps": 1e-4}
TEXTBOOK_L = 3


class Bench(NamedTuple):
    """What every part is given."""

    device: torch.device
    data: Images
    rounds: int
    parts: frozenset
    quick: bool

    def pick(self, full, quick):
        return quick if self.quick else full


class Row(NamedTuple):
    """A line of the table: `met` None where there is no target, or where --quick makes it meaningless."""

    part: str
    what: str
    value: float
    unit: str
    note: str = ""
    target: str = ""
    met: bool | None = None


def judged(bench, row, sign, bound):
    """The row with its target: sign "<=" or ">=" and a number in the unit of the row."""
    met = row.value <= bound if sign == "<=" else row.value >= bound
    return row._replace(target=f"{sign} {bound:g}", met=None if bench.quick else met)


# -------------------------------------------------------------------------------------------------------------- timing


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device, f, repeats=1):
    """Seconds of one call of f(), the mean of `repeats`; on a GPU of ten, after one that is not counted."""
    if device.type == "cuda":
        repeats = 10
        f()
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        f()
    wait(device)
    return (time.perf_counter() - began) / repeats


def race(contestants, rounds, sparing=()):
    """[{name: seconds}], a dictionary a round: the contestants (name -> function that returns seconds) take turns.

    Those whose names begin with one of `sparing` stay out of the last of several rounds: they take too long.
    """
    results = []
    for i in range(rounds):
        last = 0 < i == rounds - 1
        results.append({})
        for name, contestant in contestants.items():
            if not (last and name.startswith(tuple(sparing))):
                say(f"{name}, round {i + 1} of {rounds}")
                results[-1][name] = contestant()
    say("")
    return results


def say(text):
    """A line on the terminal that the next one rewrites; elsewhere nothing."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def median(rounds, name):
    return statistics.median(r[name] for r in rounds if name in r)


def median_ratio(rounds, above, below):
    """Median over the rounds of the ratio of two contestants in the same round."""
    return statistics.median(r[above] / r[below] for r in rounds if above in r and below in r)


def line_fit(x, y):
    """(slope, intercept, largest |residual| / y) of the least-squares line through the points."""
    slope, intercept = np.polyfit(x, y, 1)
    residuals = np.abs(np.polyval((slope, intercept), x) - y) / np.abs(y)
    return float(slope), float(intercept), float(residuals.max())


# ----------------------------------------------------------------------------------------------- rate, floor and sample


def product_seconds(device, precision, n):
    """A matrix product (n, n) @ (n, n) into a ready result."""
    a, b, c = (torch.randn(n, n, device=device).to(PRECISIONS[precision]) for _ in range(3))
    torch.mm(a[:64], b)  # sets up the kernel
    return seconds(device, lambda: torch.mm(a, b, out=c))


def bare(device, precision, batch):
    """(chain, view 1, view 2): a network and ready images for it, channels last and of no meaning."""
    images, labels = torch.zeros(batch, 3, 32, 32, dtype=torch.uint8), torch.zeros(batch, dtype=torch.int64)
    cfg = Config(precision=precision, batch_size=batch, **CHAIN)
    chain = Chain(cfg, Images(images, labels, images, labels, "none"), None, device)
    views = (torch.randn(batch, 3, 32, 32).to(device, memory_format=torch.channels_last) for _ in range(2))
    return chain, *views


def floor_seconds(device, precision, batch):
    """Two forward passes, the energy, and backward into the flat G."""
    chain, *views = bare(device, precision, batch)
    return seconds(device, lambda: chain.gradient(*chain.encode(*views)), repeats=1 if batch > 128 else 2)


def flops_per_pair():
    """Floating-point operations of the gradient for one pair of views: matrix products and convolutions."""
    chain, *views = bare(torch.device("cpu"), "fp32", 2)
    with FlopCounterMode(display=False) as counter:
        chain.gradient(*chain.encode(*views))
    return counter.get_total_flops() / 2


def new_chain(bench, batch, **settings):
    """A Chain at its first step, for the program's own advance()."""
    return Chain(Config(**(CHAIN | {"batch_size": batch} | settings)), bench.data, None, bench.device)


def split(chain):
    """Seconds of one sample by what they go to; on a GPU each piece is waited for, which itself takes time."""
    spent, step = Counter(), simsiam_sghmc.sghmc_step

    def timed(part, f):
        def call(*args, **options):
            wait(chain.device)
            began = time.perf_counter()
            result = f(*args, **options)
            wait(chain.device)
            spent[part] += time.perf_counter() - began
            return result

        return call

    def timed_step(w, z, grad, **options):
        return timed("step", step)(w, z, timed("callback", grad), **options)

    chain.views = timed("augmentation", chain.views)
    chain.encode, chain.gradient = timed("gradient", chain.encode), timed("gradient", chain.gradient)
    with mock.patch.object(simsiam_sghmc, "sghmc_step", timed_step):
        timed("all", advance)(chain)
    parts = {"augmentation": spent["augmentation"], "gradient": spent["gradient"]}
    parts["noise and update"] = spent["step"] - spent["callback"]
    return parts | {"logging": spent["all"] - sum(parts.values())}


def sample_seconds(bench, batch, precision, policy, L, splits):
    """One sample, logging and all; appends its split to the list `splits`."""
    settings = {"precision": precision, "batch_per": policy, "L": L}
    parts = split(new_chain(bench, batch, **settings))
    splits.append(parts)
    if bench.device.type == "cuda":
        return seconds(bench.device, partial(advance, new_chain(bench, batch, **settings)))
    return sum(parts.values())


# ------------------------------------------------------------------------------------------------------------ textbook


class TwoViews(Dataset):
    """Two views of an image by torchvision's transforms on PIL images, one image at a time."""

    def __init__(self, images):
        self.images = images
        self.transform = transforms.Compose([
            transforms.ToPILImage(),
            transforms.RandomResizedCrop(32, scale=(0.2, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize(simsiam_sghmc.MEAN, simsiam_sghmc.STD),
        ])  # fmt: skip

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.transform(self.images[i])


class Textbook:
    """Algorithm 1 as one writes it first: loader workers, contiguous images, a loop over the parameters, 2L gradients.

    The workers live through all rounds, and each sample asks for its own 2L batches: none is prepared while the other
    contestants are at work, and the wait for the first one, which a long chain would not have, is a hundredth of it.
    """

    def __init__(self, device, images, batch, L, workers):
        cfg = Config(**CHAIN)
        self.device, self.L, self.eps, self.alpha, self.energies = device, L, cfg.eps, cfg.alpha, []
        self.model = simsiam_sghmc.initial_network(0).to(self.device)
        data = TwoViews(images)
        sampler = RandomSampler(data, num_samples=2 * L * batch)
        pinned = self.device.type == "cuda"
        self.loader = DataLoader(
            data, batch, sampler=sampler, num_workers=workers, persistent_workers=True, pin_memory=pinned
        )
        for _ in self.loader:  # starts the workers
            pass

    def half_kick(self, momenta, views, precision):
        view1, view2 = (view.to(self.device, non_blocking=True) for view in views)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            (p1, z1), (p2, z2) = self.model(view1), self.model(view2)
        P1, Z1, P2, Z2 = (F.normalize(x.float(), dim=1) for x in (p1, z1, p2, z2))
        U = -torch.log(((P1 * Z2).sum(1).abs() / 2 + (P2 * Z1).sum(1).abs() / 2).mean())
        self.model.zero_grad()
        U.backward()
        self.energies.append(U.item())
        with torch.no_grad():
            for p, Phi in zip(self.model.parameters(), momenta, strict=True):
                noise = math.sqrt(2 * self.alpha) * torch.randn_like(p)
                Phi.copy_((1 - self.alpha) * Phi - self.eps / 2 * p.grad + noise)

    def sample(self, precision):
        batches = iter(self.loader)
        momenta = [torch.randn_like(p) for p in self.model.parameters()]
        for _ in range(self.L):
            self.half_kick(momenta, next(batches), precision)
            with torch.no_grad():
                for p, Phi in zip(self.model.parameters(), momenta, strict=True):
                    p.add_(self.eps * Phi)
            self.half_kick(momenta, next(batches), precision)


@functools.cache
def textbook(device, batch, workers):
    """The Textbook of this process."""
    return Textbook(device, simsiam_sghmc.load_data("gratings", "").train, batch, TEXTBOOK_L, workers)


def textbook_seconds(device, precision, batch, workers):
    contestant = textbook(device, batch, workers)
    return seconds(device, partial(contestant.sample, precision))


# --------------------------------------------------------------------------------------------- the race of these parts


def contestants(bench, batch, ladder, splits, other):
    """name -> function that returns seconds: what the chosen parts need at this batch size, floors first.

    `other` runs a process that never calls keep_freed_memory(): the textbook's, and that of "returning".
    """
    found, device, parts, large = {}, bench.device, bench.parts, batch == sizes(bench)[0]
    for precision in PRECISIONS:
        if parts & {"rate", "floor"} and large:
            found[f"product {precision}"] = partial(product_seconds, device, precision, product_size(bench))
        if parts & {"floor", "sample"} or (large and "memory" in parts):
            found[f"floor {precision}"] = partial(floor_seconds, device, precision, batch)
    for L, policy, precision in itertools.product(ladder, POLICIES, PRECISIONS):
        if "sample" in parts or (large and "textbook" in parts and L == TEXTBOOK_L):
            name = f"sample {precision} {policy} L={L}"
            mine = splits.setdefault(name, [])
            found[name] = partial(sample_seconds, bench, batch, precision, policy, L, mine)
    if "textbook" in parts and large:
        workers = bench.pick(os.cpu_count() or 1, 1)
        for precision in PRECISIONS:
            arguments = (precision, batch, workers)
            found[f"textbook {precision}"] = partial(elsewhere, other, textbook_seconds, bench, *arguments)
    if "memory" in parts and large:
        for precision in PRECISIONS:
            found[f"returning {precision}"] = partial(elsewhere, other, floor_seconds, bench, precision, batch)
    return found


def sizes(bench):
    return bench.pick((512, 128), (8, 4))


def product_size(bench):
    return bench.pick(8192 if bench.device.type == "cuda" else 4096, 256)


def race_parts(bench):
    """(rows, raw timings) of rate, floor, sample, textbook and of the gradient without keep_freed_memory()."""
    rows, raw = [], {}
    for batch, ladder in zip(sizes(bench), ((1, 3), (1, 2, 3, 5)), strict=True):
        splits, large = {}, batch == sizes(bench)[0]
        rounds = max(bench.rounds if large else bench.rounds - 1, 1)
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            found = contestants(bench, batch, ladder, splits, other)
            for name, contestant in found.items():
                if name.startswith(("floor", "returning")):  # first calls set up kernels and fill the heap
                    contestant()
            times = race(found, rounds, sparing=["textbook"])
        if found:
            raw[f"batch {batch}"] = {"rounds": times, "splits": splits}
            for make in (rate_rows, floor_rows, sample_rows, textbook_rows, returning_rows):
                rows += make(bench, batch, times, splits)
    return rows, raw


def elsewhere(executor, f, bench, *args):
    """f(device, ...) in the process of the executor."""
    return executor.submit(f, bench.device, *args).result()


def rate_rows(bench, batch, times, splits):
    n, names = product_size(bench), [f"product {p}" for p in PRECISIONS]
    if "rate" not in bench.parts or names[0] not in times[0]:
        return []
    return [Row("rate", f"matrix {name}, {n}^3", 2 * n**3 / median(times, name) / 1e12, "TFLOP/s") for name in names]


def floor_rows(bench, batch, times, splits):
    if "floor" not in bench.parts:
        return []
    rows, work = [], flops_per_pair() * batch
    for precision in PRECISIONS:
        floor, product = f"floor {precision}", f"product {precision}"
        note = f"{work / median(times, floor) / 1e12:.3g} TFLOP/s of {work / 1e12:.2g} TFLOP"
        rows.append(Row("floor", f"gradient {precision}, batch {batch}", median(times, floor), "s", note))
        if product in times[0]:
            share = 100 * median_ratio(times, product, floor) * work / (2 * product_size(bench) ** 3)
            row = Row("floor", f"gradient {precision}, batch {batch}: share of the product's rate", share, "%")
            rows.append(judged(bench, row, ">=", 85) if precision == "bf16" else row)
    return rows


def sample_rows(bench, batch, times, splits):
    rows = []
    for name, mine in splits.items() if "sample" in bench.parts else ():
        _, precision, policy, L = name.split()
        gradients = POLICIES[policy](int(L.removeprefix("L=")))
        total = sum(sum(parts.values()) for parts in mine)
        shares = {part: sum(parts[part] for parts in mine) / total for part in mine[0]}
        note = f"{median(times, name):.3g} s: " + ", ".join(f"{part} {share:.1%}" for part, share in shares.items())
        value = median_ratio(times, name, f"floor {precision}") / gradients
        note += f"; {1 / shares['gradient']:.3f} x its own gradients"
        row = Row("sample", f"{name}, batch {batch}", value, "x floor", note)
        rows.append(judged(bench, row, "<=", 1.08) if batch == sizes(bench)[0] else row)
    return rows


def textbook_rows(bench, batch, times, splits):
    """The textbook's precision is fp32; beside the target, both in the same precision."""
    if "textbook" not in bench.parts or "textbook fp32" not in times[0]:
        return []
    rows = []
    for (policy, target), (theirs, ours) in itertools.product(
        (("kick", 3), ("sample", 5)), (("fp32", "bf16"), ("fp32", "fp32"), ("bf16", "bf16"))
    ):
        above, below = f"textbook {theirs}", f"sample {ours} {policy} L={TEXTBOOK_L}"
        note = f"{median(times, above):.3g} s over {median(times, below):.3g} s"
        row = Row("textbook", f"{above} over {below}, batch {batch}", median_ratio(times, above, below), "x", note)
        rows.append(judged(bench, row, ">=", target) if theirs != ours else row)
    return rows


def returning_rows(bench, batch, times, splits):
    rows = []
    for precision in PRECISIONS if "returning fp32" in times[0] else ():
        above, below = f"returning {precision}", f"floor {precision}"
        what, note = f"gradient {precision}, batch {batch}, memory returned over kept", "a process of its own"
        rows.append(Row("memory", what, median_ratio(times, above, below), "x", note))
    return rows


# --------------------------------------------------------------------------------- evaluation, startup, memory and cost


def forward_passes(chain, views, bank, test, count):
    """The forward passes of evaluate() on ready blocks of images: minibatch, statistics, bank, test images."""
    model = copy.deepcopy(chain.model)
    with simsiam_sghmc.full_float32():
        chain.predict(*chain.encode(*views))
        for block in bank[:count]:
            model.encoder.trunk(block)
        model.eval()
        for block in test + bank:
            model.encoder(block)


def evaluation_part(bench):
    whole, batch = bench.device.type == "cuda", bench.pick(128, 8)
    bank, test = (None, None) if whole else bench.pick((2048, 1000), (256, 256))
    chain = new_chain(bench, batch, knn_train=bank, knn_test=test)
    blocks = [
        [simsiam_sghmc.normalise(block) for block in images[:n].split(simsiam_sghmc.BLOCK)]
        for images, n in ((chain.data.train, bank), (chain.data.test, test))
    ]
    count = simsiam_sghmc.RECALIBRATION // simsiam_sghmc.BLOCK
    passes = partial(forward_passes, chain, chain.views(0), *blocks, count)
    found = {
        "evaluation": partial(seconds, bench.device, partial(simsiam_sghmc.evaluate, chain)),
        "forward passes": partial(seconds, bench.device, passes),
    }
    passes()
    times = race(found, bench.rounds)
    note = f"{median(times, 'evaluation'):.3g} s over {median(times, 'forward passes'):.3g} s"
    value = median_ratio(times, "evaluation", "forward passes")
    what = f"evaluate() over its forward passes, bank {bank or 'of all'}"
    return [judged(bench, Row("evaluation", what, value, "x", note), "<=", 1.15)], {"rounds": times}


def program_seconds(bench):
    """`python simsiam_sghmc.py` for one sample, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        text = f"--data gratings --L 1 --samples 1 --no-sg --device {bench.device} --batch-size {bench.pick(128, 8)}"
        text += " --knn-train 256 --knn-test 256"
        command = [sys.executable, str(ROOT / "simsiam_sghmc.py"), *text.split(), "--out", f"{folder}/run"]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def startup_part(bench):
    load = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import simsiam_sghmc"]
    cpu = torch.device("cpu")
    found = {
        "program": partial(program_seconds, bench),
        "imports": partial(seconds, cpu, partial(subprocess.run, load, check=True)),
        "gratings": partial(seconds, cpu, partial(simsiam_sghmc.load_data, "gratings", "")),
    }
    times = race(found, max(bench.rounds - 1, 1))
    note = f"imports {median(times, 'imports'):.3g} s, drawing the gratings {median(times, 'gratings'):.3g} s"
    what = f"the program, one sample of batch {bench.pick(128, 8)}, two small evaluations"
    return [Row("startup", what, median(times, "program"), "s", note)], {"rounds": times}


def resident(field):
    """MB of memory of this process: VmRSS now or VmHWM at most; nan where the system does not tell (no /proc).

    Not getrusage: its maximum is inherited from the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def memory_at(device, counts, batch, precision):
    """Of a process of its own: ({samples: MB resident}, MB at most, MB of the GPU at most), L = 1.

    As many images as CIFAR-10 has, but noise: drawing the gratings would leave more memory behind than a sample takes.
    """
    simsiam_sghmc.keep_freed_memory()
    images = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8)
    labels = torch.zeros(len(images), dtype=torch.int64)
    bench = Bench(device, Images(images, labels, images[:1], labels[:1], "noise"), 1, frozenset(), False)
    chain, seen = new_chain(bench, batch, precision=precision, L=1), {}
    for done in range(1, max(counts) + 1):
        advance(chain)
        if done % chain.cfg.checkpoint_every == 0:
            chain.pending = []  # as save() does
        if done in counts:
            wait(device)
            seen[done] = resident("VmRSS")
    graphics = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0
    return seen, resident("VmHWM"), graphics


def memory_part(bench):
    jobs, batch = {"growth": (bench.pick((50, 500), (5, 10)), 4, "fp32")}, sizes(bench)[0]
    jobs |= {precision: ((1,), batch, precision) for precision in PRECISIONS}
    raw = {}
    for name, job in jobs.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            seen, peak, graphics = elsewhere(other, memory_at, bench, *job)
        raw[name] = {"resident": seen, "peak": peak, "gpu": graphics}
    (few, before), (many, after) = raw["growth"]["resident"].items()
    note = f"{before:.0f} MB after {few}, {after:.0f} MB after {many} samples of batch 4"
    rows = [judged(bench, Row("memory", f"growth from sample {few} to {many}", after - before, "MB", note), "<=", 10)]
    for precision in PRECISIONS:
        note = f"and {raw[precision]['gpu']:.0f} MB of the GPU" if bench.device.type == "cuda" else ""
        rows.append(Row("memory", f"peak of a sample {precision}, batch {batch}", raw[precision]["peak"], "MB", note))
    return rows, raw


def samples_seconds(bench, batch, L, count):
    chain = new_chain(bench, batch, L=L, precision="bf16")
    return seconds(bench.device, lambda: [advance(chain) for _ in range(count)])


def cost_part(bench):
    """A line through the points (batch, L, samples) of each axis; one of the three varies."""
    batches, at_L, at_samples = bench.pick(((32, 64, 128, 256, 512), 64, 32), ((2, 4, 8), 2, 2))
    axes = {
        "leapfrog": [(at_L, L, 1) for L in (1, 2, 3, 5)],
        "image of the batch": [(batch, 1, 1) for batch in batches],
        "sample": [(at_samples, 1, count) for count in (1, 2, 4, 8)],
    }
    found = {f"{p}": partial(samples_seconds, bench, *p) for points in axes.values() for p in points}
    found[str(axes["sample"][0])]()
    times = race(found, max(bench.rounds - 1, 1))
    rows = []
    for name, varied in zip(axes, (1, 0, 2), strict=True):
        x = [p[varied] for p in axes[name]]
        slope, intercept, residual = line_fit(x, [median(times, f"{p}") for p in axes[name]])
        note = f"intercept {intercept:.3g} s, largest residual {residual:.1%} of the value, at {', '.join(map(str, x))}"
        rows.append(Row("cost", f"of one more {name}, bf16", slope, "s", note))
    return rows, {"rounds": times}


# ------------------------------------------------------------------------------------------------------- table and file


def text_of(row):
    verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
    line = f"{row.part:<11}{row.what:<64}{row.value:>9.3f} {row.unit:<8}{row.target:<8}{verdict:<8}{row.note}"
    return line.rstrip()


def checked_out(path):
    """BadInput unless a result can be written to `path`; an earlier result may be replaced, nothing else."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadInput(f"--out {path}: there is no folder {path.parent} to write to")
    if path.exists():
        try:
            earlier = json.loads(path.read_text())["benchmark"] == "simsiam-sghmc"
        except (OSError, ValueError, KeyError, TypeError):
            earlier = False
        if not earlier:
            raise BadInput(f"--out {path} is not a result of this benchmark; choose another name")
        print(f"{path} will be replaced")


def machine(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    software = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"device": str(device), "name": name, "threads": torch.get_num_threads()} | software


def measure(bench, out):
    """Run the chosen parts, print their rows as they come, write the file after each, so that an end loses little."""
    result = {"benchmark": "simsiam-sghmc", "quick": bench.quick, "rounds": bench.rounds}
    result |= {"machine": machine(bench.device), "rows": [], "raw": {}}
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items()))
    jobs = {"race": race_parts} if bench.parts & {"rate", "floor", "sample", "textbook", "memory"} else {}
    alone = {"evaluation": evaluation_part, "startup": startup_part, "memory": memory_part, "cost": cost_part}
    for name, part in (jobs | {name: part for name, part in alone.items() if name in bench.parts}).items():
        rows, raw = part(bench)
        for row in rows:
            print(text_of(row), flush=True)
        result["rows"] += [row._asdict() for row in rows]
        result["raw"][name] = raw
        simsiam_sghmc.write_whole(out, (json.dumps(result, indent=1) + "\n").encode())
    if bench.quick:
        print("--quick: small batches and one round; these numbers say nothing about the program")
    print(f"written to {out}")


def parse(argv):
    how = argparse.RawDescriptionHelpFormatter
    parser = simsiam_sghmc.Parser(description=__doc__, formatter_class=how, allow_abbrev=False)
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of each race [3]")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="P,P", help="only these parts")
    parser.add_argument("--quick", action="store_true", help="small batches, one round: only to see that it works")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), metavar="FILE", help="[benchmark.json]")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.parts.split(",")) - set(PARTS)
    if unknown:
        raise BadInput(f"--parts {arguments.parts}: choose from {', '.join(PARTS)}")
    if arguments.rounds < 1:
        raise BadInput(f"--rounds {arguments.rounds}: give a whole number >= 1")
    return arguments


def main(argv=None):
    """The command line; returns the exit code: 0 done, 2 bad input."""
    try:
        given = parse(argv)
        device = simsiam_sghmc.pick_device(given.device)
        checked_out(given.out)
        data, rounds = simsiam_sghmc.load_data("gratings", ""), 1 if given.quick else given.rounds
        simsiam_sghmc.keep_freed_memory()  # as the program does
        measure(Bench(device, data, rounds, frozenset(given.parts.split(",")), given.quick), given.out)
        return 0
    except (BadInput, OSError) as error:
        print(f"benchmark: {simsiam_sghmc.one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
