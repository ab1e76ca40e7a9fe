"""Does SimSiam need the stop-gradient, or does a sampler that explores the loss landscape avoid collapse too?

A reference implementation of "Posterior Sampling on SimSiam" (de Mello, Zhang, Ribeiro, 2023); each section uses only
those above it: energy (Equation 2) - sampler (Algorithm 1) - configuration and randomness - network (A.2) - data and
augmentation - chains - k-NN and diagnostics - run - command line.

    python simsiam_sghmc.py --eps 1e-3 --L 3 --no-sg                     the paper's chain on CIFAR-10
    python simsiam_sghmc.py --method sgd --sg --similarity cos           the paper's standard SimSiam

D1 ... D20: docs/decisions.md, where the paper is silent or can be read in two ways.
"""

import argparse
import contextlib
import copy
import ctypes
import datetime
import fcntl
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":  # Ctrl-C before `caught_signals`, while torch is read: the end, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
import numpy as np
import torch
from torch import nn


# ------------------------------------------------------------------------------------------------ energy (Equation 2)
def unit_rows(x):
    """Rows of x (B, d) divided by their Euclidean norms, in float32 or wider; a zero row gives 0, its gradient 0."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # first by the largest entry, whose square must not vanish or overflow; this scale cancels: it needs no gradient
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, math.inf)
    return nn.functional.normalize(x, dim=1)  # the norm is 0 or at least 1


def cosines(p1, z1, p2, z2):
    """(P1.Z2, P2.Z1), each (B,): all four (B, d) are l2-normalised (D13)."""
    P1, Z1, P2, Z2 = (unit_rows(x) for x in (p1, z1, p2, z2))
    return (P1 * Z2).sum(dim=1), (P2 * Z1).sum(dim=1)


def energy(p1, z1, p2, z2, stop_grad, similarity="abscos"):
    """Potential energy U >= 0 of a batch of pairs of views (Equation 2 and Section 2.2), a 0-d tensor.

        m = mean over the batch of 1/2 ( |P1.Z2| + |P2.Z1| ),        U = -log m

    p1, z1, p2, z2 (B, d): raw predictions and encodings of view 1 and 2. `stop_grad` detaches the targets Z: the
    value stays, the gradient through Z is gone. U is finite for finite inputs: m is clamped to [tiny, 1] (D20).
    The mean is inside the logarithm (D4). Of the Note: "cos" is SimSiam's loss + 1, "l2" the Gaussian's -log Q.
    """
    shapes = {x.shape for x in (p1, z1, p2, z2)}
    if similarity not in ("abscos", "cos", "l2") or len(shapes) > 1 or p1.ndim != 2 or not p1.numel():
        raise ValueError(f"give four (B, d) of one shape, not empty, and abscos, cos or l2, not {similarity}")
    p1, z1, p2, z2 = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (p1, z1, p2, z2))
    if stop_grad:
        z1, z2 = z1.detach(), z2.detach()  # only as targets: the predictions were made from z before
    if similarity == "l2":
        return ((p1 - z2).square().sum(dim=1) / 2 + (p2 - z1).square().sum(dim=1) / 2).mean() / 2
    s12, s21 = cosines(p1, z1, p2, z2)
    if similarity == "cos":
        return (1 - (s12 + s21).mean() / 2).clamp_min(0)
    m = ((s12.abs() + s21.abs()) / 2).mean()
    return -m.clamp(torch.finfo(m.dtype).tiny, 1).log()


# ---------------------------------------------------------------------------------------------- sampler (Algorithm 1)
def sghmc_step(w, z, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0, reuse_grad=False):
    """One sample of stochastic gradient Hamiltonian Monte Carlo, kick-drift-kick (Algorithm 1): W_t -> W_{t+1}.

        1  Phi ~ N(0, M);  X = W_t                                                  alpha = M^-1 C eps
        2  for l = 0 .. L-1:
        3     Phi = (1 - alpha) Phi - eps/2 grad U(X) + N(0, 2 C eps)
        4     X   = X + eps M^-1 Phi
        5     Phi = (1 - alpha) Phi - eps/2 grad U(X) + N(0, 2 C eps)
        6  W_{t+1} = X                                                              (printed as W_t: a misprint, D1)

    w (n,) position, any floating dtype, never written. z: 2L+1 rows (n,) of standard normals, for line 1 and for each
    half-kick; the last may be missing. grad: (n,) -> (n,) or a number, called at the half-kicks in order. mass M and
    b_hat B^: numbers or (n,); with B^ (Equation 1) the noise is N(0, 2 (C - B^) eps). Line 5 of the last leapfrog
    never reaches W_{t+1}: it is left out, so grad is called 2L-1 times; with `reuse_grad`, for a U that stays the same
    throughout the sample, L times. ValueError: other shapes, eps, mass not in (0, inf), alpha not in [0, 1), B^ > C.
    """
    if not (0 < eps < math.inf and L >= 1 and 0 <= alpha < 1):
        raise ValueError(f"need 0 < eps < inf, L >= 1 and 0 <= alpha < 1, got eps={eps}, L={L}, alpha={alpha}")
    M, B_hat = (torch.as_tensor(x, dtype=w.dtype) for x in (mass, b_hat))
    C_eps, rounding = alpha * M, 1 + 4 * torch.finfo(w.dtype).eps
    if not ((M > 0) & (M < math.inf)).all() or not (B_hat * eps <= C_eps * rounding).all():
        raise ValueError("need 0 < mass < inf and B^ <= C = alpha M / eps: else 2 (C - B^) eps is no noise variance")
    noise_std = (2 * (C_eps - B_hat * eps)).clamp_min(0).sqrt()
    z = list(itertools.islice(z, 2 * L + 2))
    if len(z) not in (2 * L, 2 * L + 1) or any(row.shape != w.shape for row in z):
        raise ValueError(f"z: give 2L+1 = {2 * L + 1} rows of w's shape {tuple(w.shape)}")

    Phi = M.sqrt() * z[0]  # 1
    X = w
    g = grad(X)
    for l in range(L):  # 2
        Phi = (1 - alpha) * Phi - eps / 2 * g + noise_std * z[2 * l + 1]  # 3
        X = X + eps / M * Phi  # 4
        if l < L - 1:
            g = grad(X)
            Phi = (1 - alpha) * Phi - eps / 2 * g + noise_std * z[2 * l + 2]  # 5
            g = g if reuse_grad else grad(X)
    if X.shape != w.shape:
        raise ValueError(f"grad, mass and b_hat: give w's shape {tuple(w.shape)} or numbers, not {tuple(X.shape)}")
    return X  # 6


# --------------------------------------------------------------------------------------- configuration and randomness
class BadInput(Exception):
    """Something the user gave cannot be used: one line on stderr, exit code 2, no file changed."""


class RunStopped(Exception):
    """(message, exit code): the run ended before its last step; what the last checkpoint holds is good."""


def one_line(error):
    text = " ".join((repr if isinstance(error, KeyError) else str)(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)  # names of files may hold anything


@contextlib.contextmanager
def bad_input(message):
    """Whatever fails inside is the user's to mend: BadInput with this message, "{}" in it replaced by the cause."""
    try:
        yield
    except Exception as error:  # of files, drivers and libraries: many types; torch's second sentence is advice
        raise BadInput(message.replace("{}", re.split(r"\. (?=[A-Z])", one_line(error))[0][:200])) from None


def one_of(*names):
    return Annotated[str, "|".join(names), names.__contains__]


# What a setting may be: the type that reads its text, words for the values allowed, and the test of them.
# 1e-18 and 1e18: the square, which the equations take, is still a float32 number.
Positive = Annotated[float, "a number > 0, from 1e-18 to 1e18", lambda v: 1e-18 <= v <= 1e18]
NotNegative = Annotated[float, "a number >= 0, at most 1e18", lambda v: 0 <= v <= 1e18]
Fraction = Annotated[float, "a number in [0, 1)", lambda v: 0 <= v < 1]
Count = Annotated[int, "a whole number >= 1, below 2^63", lambda v: 1 <= v < 2**63]
Natural = Annotated[int, "a whole number >= 0, below 2^63", lambda v: 0 <= v < 2**63]
TwoOrMore = Annotated[int, "a whole number >= 2", lambda v: v >= 2]
Switch = Annotated[bool, "on or off", lambda v: True]
Name = Annotated[str, "a value, or leave it out", len]  # an unset shell variable is empty


def setting(default, group, text):
    """A field of Config: its default (None: not given), its group in --help and its line there."""
    return field(default=default, metadata={"group": group, "text": text})


@dataclass(frozen=True)
class Config:
    """Every setting: the command line is made from these lines, with the symbol or source of each."""

    method: one_of("sghmc", "sgd") = setting("sghmc", "method", "sample the posterior, or train (A.5)")
    sg: Switch = setting(True, "method", "stop-gradient on Z (Equation 2); the paper's chains: --no-sg")
    similarity: one_of("abscos", "cos", "l2") = setting("abscos", "method", "Equation 2, SimSiam's own, or L2 (Note)")

    eps: Positive = setting(1e-3, "SGHMC", "step size eps of a leapfrog (Section 3.1)")
    L: Count = setting(3, "SGHMC", "leapfrogs per sample (Section 3.1)")
    alpha: Fraction = setting(0.01, "SGHMC", "friction alpha = M^-1 C eps (Section 3.1)")
    mass: Positive = setting(1.0, "SGHMC", "M, a multiple of the identity (Section 3.1, D6)")
    velocity_std: Positive = setting(None, "SGHMC", "std of the draw Phi_0; sqrt(M) if not given (D6)")
    samples: Count = setting(50_000, "SGHMC", "length of the chain (Figure 1)")
    batch_per: one_of("kick", "sample") = setting("kick", "SGHMC", "a minibatch per half-kick, or per sample (D3)")
    energy_scale: NotNegative = setting(1.0, "SGHMC", "factor on U; 0 = random walk, no gradients (D5)")
    prior_std: Positive = setting(None, "SGHMC", "adds |W|^2 / (2 std^2) to U; off if not given (D5)")

    lr: Positive = setting(0.03, "SGD", "peak learning rate (Section 3.2, D10)")
    momentum: Fraction = setting(0.9, "SGD", "momentum (A.5)")
    weight_decay: NotNegative = setting(5e-4, "SGD", "weight decay of every parameter (D11)")
    epochs: Count = setting(800, "SGD", "horizon of the schedule (Figure 2)")
    updates: Count = setting(None, "SGD", "length; all of --epochs if not given (D16)")
    warmup_epochs: Natural = setting(10, "SGD", "epochs of linear warm-up (A.5)")
    cosine: Switch = setting(True, "SGD", "cosine decay after the warm-up (A.5)")
    predictor_steps: Count = setting(1, "SGD", "predictor updates per update of the encoder (Note)")
    predictor_lr_mult: Positive = setting(1.0, "SGD", "factor on the predictor's learning rate (Note)")

    data: Name = setting("cifar10", "data", "cifar10 (downloaded to data/), gratings (drawn here), or a folder")
    batch_size: TwoOrMore = setting(512, "data", "images per minibatch (Section 3)")

    eval_every: Count = setting(500, "evaluation", "samples or updates between evaluations")
    knn_k: Count = setting(200, "evaluation", "neighbours k (Section 3.1)")
    knn_train: TwoOrMore = setting(None, "evaluation", "random training images as bank; else all")
    knn_test: Count = setting(None, "evaluation", "random test images; else all")
    knn_features: one_of("z", "trunk") = setting("z", "evaluation", "128-d z, or the 4,096-d input of its layer (D14)")
    bn: one_of("recalibrated", "running") = setting("recalibrated", "evaluation", "BatchNorm at evaluation (D7)")

    seed: Natural = setting(0, "system", "seed of every draw")
    device: Name = setting("auto", "system", "auto, cpu, cuda, cuda:1 ...")
    precision: one_of("fp32", "bf16") = setting("fp32", "system", "of the network in the gradients; k-NN is in fp32")
    init: Name = setting(None, "system", "start from this checkpoint.pt or sample instead of a random network")
    out: Name = setting(None, "system", "run folder; if not given, runs/ and what differs from the defaults")
    keep_every: Natural = setting(0, "system", "keep each n-th sample in samples/; 0: none")

    def __post_init__(self):
        for f in fields(self):
            value, (words, allowed) = getattr(self, f.name), f.type.__metadata__
            if value is not None and not allowed(value):
                raise BadInput(f"{flag(f.name)} {value}: give {words}")
        if self.method == "sgd" and self.warmup_epochs >= self.epochs:
            raise BadInput(f"--warmup-epochs {self.warmup_epochs}: give fewer than --epochs {self.epochs}")

    phi_std = property(lambda self: self.velocity_std or math.sqrt(self.mass))  # of the draw Phi_0 (A.4, D6)


def flag(name):  # the command-line spelling of a field of Config
    return "--" + name.replace("_", "-")


PURPOSES = ("network", "minibatch", "augmentation", "noise", "epoch", "subset")


def generator(seed, purpose, step=0, kick=0, device="cpu"):
    """The torch.Generator of one draw, a function of (seed, step, purpose): no state to save, any step on its own."""
    # torch's CPU generator keeps 32 bits of its seed, and among hashes of 50,000 steps two would soon agree: so steps
    # are not hashed but follow at an odd distance, and meet again after 2^32 of them
    base = np.random.SeedSequence([seed, PURPOSES.index(purpose), kick]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed((int(base) + step * 0x9E3779B97F4A7C15) % 2**64)


def normals(seed, step, n, rows, device="cpu"):
    """Rows (n,) of standard normals for sample `step`: the momentum's first, then the half-kicks'."""
    g = generator(seed, "noise", step, device=device)
    return [torch.randn(n, generator=g, device=device) for _ in range(rows)]


# ------------------------------------------------------------------------------------------------------ network (A.2)
class SimSiam(nn.Module):
    """Encoder + projector (1,651,392 parameters: trunk and head) and predictor (16,704) of A.2.

    forward: images (B, 3, 32, 32), normalised -> (p, z), each (B, 128) and raw; the predictor sees the raw z (D13).
    """

    def __init__(self):
        super().__init__()
        trunk = nn.Sequential()
        for inputs, middle, outputs in ((3, 32, 64), (64, 128, 128), (128, 256, 256)):
            trunk.extend([nn.Conv2d(inputs, middle, 3, padding=1), nn.ReLU()])
            trunk.extend([nn.Conv2d(middle, outputs, 3, padding=1), nn.ReLU()])
            trunk.extend([nn.MaxPool2d(2), nn.BatchNorm2d(outputs)])
        trunk.append(nn.Flatten())  # (B, 4096)
        head = nn.Sequential(nn.Linear(4096, 128), nn.ReLU())  # (B, 128): z >= 0
        self.encoder = nn.Sequential(OrderedDict(trunk=trunk, head=head))
        self.predictor = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 128))

    def forward(self, images):
        z = self.encoder(images)
        return self.predictor(z), z


def initial_network(seed):
    """The network with PyTorch's default initialisation, drawn from `seed`; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(seed, "network").get_state())
        return SimSiam()


def flatten_parameters(model):
    """Make the parameters views of one flat vector W (n,), encoder first, their gradients views of G: (W, G) (D8)."""
    parameters = list(model.parameters())
    W = nn.utils.parameters_to_vector(parameters).detach().clone()
    G = torch.zeros_like(W)
    nn.utils.vector_to_parameters(W, parameters)
    for p, g in zip(parameters, G.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)  # backward() adds to it in place
    return W, G


def read_checkpoint(path):
    """The dictionary of a checkpoint or sample, loaded as plain tensors and numbers; BadInput names what is wrong."""
    path = Path(path) / "checkpoint.pt" if Path(path).is_dir() else path
    with bad_input(f"{path} is no checkpoint of this network ({{}})"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of foreign pickles: the line above says it
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weights, buffers, _ = saved["weights"], saved["buffers"], int(saved["step"])
        with torch.device("meta"):  # shapes without values
            model = SimSiam()
        model.load_state_dict(dict(model.named_parameters()) | buffers)  # all names and shapes must agree
        if weights.shape != (count := sum(p.numel() for p in model.parameters()),):
            raise ValueError(f"{tuple(weights.shape)} weights, here {count}")
        if not all(x.isfinite().all() for x in (weights, *buffers.values())):
            raise ValueError("numbers that are not finite; give an earlier one")
    return saved


# ---------------------------------------------------------------------------------------------- data and augmentation
Images = namedtuple("Images", "train train_labels test test_labels source note", defaults=[""])

OTHER_DATA = "--data gratings needs no file, --data FOLDER takes train/<class>/* and test/<class>/* images"


def load_data(data):
    """Images (uint8 (N, 3, 32, 32), labels (N,) int64, `source` their name in config.json) of cifar10, gratings or a
    folder: torchvision's cifar-10-batches-py in it, or as OTHER_DATA says."""
    if data == "gratings":
        return Images(*gratings(10_000, seed=1), *gratings(2_000, seed=2), "gratings")
    if data == "cifar10" or (Path(data) / "cifar-10-batches-py").is_dir():
        folder = Path("data" if data == "cifar10" else data)
        return Images(*cifar10(folder, True), *cifar10(folder, False), "cifar10")
    train, test = (image_folder(Path(data) / split) for split in ("train", "test"))
    if train[2] != test[2] or len(train[2]) < 2:
        differing = ", ".join(sorted({*train[2]} ^ {*test[2]})[:3])
        problem = f"only one of them has {differing}" if differing else f"here {len(train[2])}"
        raise BadInput(f"--data {data}: train/ and test/ need images of the same two or more classes: {problem}")
    source = "images " + hashlib.sha256(b"".join(x.numpy().tobytes() for x in train[:2] + test[:2])).hexdigest()[:16]
    return Images(*train[:2], *test[:2], source, f"{train[3]}; {test[3]}")


def cifar10(folder, train):
    """CIFAR-10 by torchvision, downloaded and checked on first use: (images, labels)."""
    from torchvision.datasets import CIFAR10  # here, for it takes as long to import as torch itself

    with bad_input(f"cannot get CIFAR-10 into {folder}/ ({{}}); {OTHER_DATA}"):
        part = CIFAR10(folder, train, download=True)
    return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)


def image_folder(root):
    """Images below each root/<class>/, turned as EXIF says, resized to 32x32: (images, labels, class names, a note)."""
    from PIL import Image, ImageOps

    if not root.is_dir():
        beside = ", ".join(sorted(d.name for d in root.parent.glob("[!.]*") if d.is_dir())[:3]) or "no folder"
        raise BadInput(f"--data: there is no folder {root} (beside it: {beside}); {OTHER_DATA}")
    files = [f for f in sorted(root.glob("*/**/*")) if f.is_file() and "/." not in f"/{f.relative_to(root)}"]
    paths, resized = [f for f in files if Image.registered_extensions().get(f.suffix.lower()) in Image.OPEN], 0
    classes, labels = np.unique([path.relative_to(root).parts[0] for path in paths], return_inverse=True)
    images = np.empty((len(paths), 32, 32, 3), np.uint8)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # beyond twice its limit Pillow refuses
    for row, path in zip(images, paths, strict=True):
        with bad_input(f"--data: cannot use the image {path} ({{}}); mend or remove it"), Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr") or "transparency" in image.info:
                raise ValueError(f"mode {image.mode}: only 8 bits a channel, no transparency")
            resized += image.size != (32, 32)
            row[:] = ImageOps.exif_transpose(image).convert("RGB").resize((32, 32))
    note = f"{one_line(root)}: {len(paths):,} images of {len(classes)} classes, {resized:,} of them resized to 32x32"
    note += f", {len(files) - len(paths):,} other files left out" * (len(files) > len(paths))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), classes.tolist(), note


def gratings(count, seed):
    """Ten classes of coloured sinusoidal gratings (not in the paper): (images uint8 (N, 3, 32, 32), labels (N,))."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    y, x = np.mgrid[-1:1:32j, -1:1:32j].astype(np.float32)
    angle = (labels % 5 * math.pi / 8 + rng.normal(0, 0.08, count))[:, None, None]  # 0 to 90 degrees: flips keep it
    frequency = (np.where(labels < 5, 5.0, 15.0) * rng.lognormal(0, 0.12, count))[:, None, None]
    wave = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * math.pi, (count, 1, 1)))
    pairs = np.random.default_rng(0).uniform(0.3, 0.7, (10, 2, 3))
    low, high = (pairs[labels] + rng.normal(0, 0.03, (count, 2, 3))).transpose(1, 0, 2)[..., None, None]
    images = low + (high - low) * (0.5 + 0.5 * wave[:, None])
    images += rng.normal(0, 0.4, images.shape)  # keeps an untrained network well below what training reaches
    return torch.from_numpy((255 * images.clip(0, 1)).astype(np.uint8)), torch.from_numpy(labels)


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10 (D12)
BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = range(5)


def normalise(images):
    """uint8 or [0, 1] float images (N, 3, 32, 32) -> float32 with CIFAR-10's mean and std, channels last for speed."""
    images = images / 255 if images.dtype == torch.uint8 else images
    channels = [(x - mean) / std for x, mean, std in zip(images.unbind(dim=1), MEAN, STD, strict=True)]
    return torch.stack(channels, dim=1).contiguous(memory_format=torch.channels_last)


# One random view for each of n images, all (n,) but two (n, 4): `order` of the four jitters, and `factors`, by jitter.
Augmentation = namedtuple("Augmentation", "top left height width flip order factors jitter grey")


def draw_augmentation(n, g, size=32):
    """Draw n views as SimSiam's CIFAR recipe does, by torchvision's own rules (Section 3, D12)."""

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=g, device=g.device)

    # RandomResizedCrop(scale (0.2, 1), ratio (3/4, 4/3)): ten tries, the first box that fits, else the whole image
    area = size * size * uniform(0.2, 1, 10)
    ratio = torch.exp(uniform(math.log(3 / 4), math.log(4 / 3), 10))
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (0 < width) & (width <= size) & (0 < height) & (height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)
    width, height = (torch.where(fits, x, size).gather(1, first).squeeze(1) for x in (width, height))
    top, left = ((uniform(0, 1) * (size - x + 1)).floor() for x in (height, width))
    flip = uniform(0, 1) < 0.5
    order = uniform(0, 1, 4).argsort(dim=1)
    change = uniform(-1, 1, 4)
    factors = torch.cat([1 + 0.4 * change[:, :HUE], 0.1 * change[:, HUE:]], dim=1)
    return Augmentation(top, left, height, width, flip, order, factors, uniform(0, 1) < 0.8, uniform(0, 1) < 0.2)


def interpolation(start, length, size=32):
    """Matrices (n, size, size) that resize `length` pixels from `start` on to `size` pixels, bilinearly."""
    pixel = torch.arange(size, device=start.device)
    at = (pixel + 0.5) * (length / size)[:, None] - 0.5
    at = at.clamp_min(0).minimum(length[:, None] - 1) + start[:, None]  # never across the edge of the crop
    return (1 - (at[:, :, None] - pixel).abs()).clamp_min(0)


def grey_scale(x):
    r, g, b = x.unbind(dim=1)
    return (0.2989 * r + 0.587 * g + 0.114 * b)[:, None]  # (n, 1, 32, 32)


def blend(x, kind, factors):
    """Brightness, contrast or saturation of each image (`kind` (n,)): one blend with three different bases."""
    factor = factors.gather(1, kind[:, None] % 4)
    factor = torch.where(kind[:, None] < HUE, factor, 1)[:, :, None, None]
    kind = kind[:, None, None, None]
    grey = grey_scale(x)
    base = torch.where(kind == SATURATION, grey, grey.mean(dim=(2, 3), keepdim=True) * (kind == CONTRAST))
    return torch.lerp(base, x, factor).clamp_(0, 1)


def shift_hue(x, shift):
    """Turn the hue of x (n, 3, 32, 32) in [0, 1] by `shift` (n,) of the colour circle, through HSV."""
    r, g, b = x.unbind(dim=1)
    value, lowest = x.amax(dim=1), x.amin(dim=1)
    chroma = value - lowest
    c = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(value == r, (g - b) / c, torch.where(value == g, 2 + (b - r) / c, 4 + (r - g) / c))
    hue = hue + 6 * shift[:, None, None]
    k = torch.stack([hue + 5, hue + 3, hue + 1], dim=1).remainder(6)  # distance from red, green, blue
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def apply_augmentation(images, a):
    """The views (n, 3, 32, 32), float32 and normalised, of uint8 images (n, 3, 32, 32) under parameters `a`."""
    rows, columns = interpolation(a.top, a.height), interpolation(a.left, a.width)
    columns = torch.where(a.flip[:, None, None], columns.flip(1), columns)
    x = rows[:, None] @ (images / 255) @ columns[:, None].transpose(2, 3)
    order = torch.where(a.jitter[:, None], a.order, NOTHING)
    hue_at = (a.order == HUE).int().argmax(dim=1)  # blends before it, hue, blends after it, for all images at once
    for place in range(3):
        x = blend(x, torch.where(hue_at > place, order[:, place], NOTHING), a.factors)
    x = shift_hue(x, a.factors[:, HUE] * a.jitter)
    for place in range(1, 4):
        x = blend(x, torch.where(hue_at < place, order[:, place], NOTHING), a.factors)
    return normalise(torch.where(a.grey[:, None, None, None], grey_scale(x), x))


# ------------------------------------------------------------------------------------------------------------- chains
def rms(x):
    return x.norm() / x.numel() ** 0.5


class Chain:
    """The state of a run: network, flat W (n,), G (n,), images, steps done; `init`: a network, taken over, or None."""

    def __init__(self, cfg, data, init, device):
        self.cfg, self.device, self.step = cfg, device, 0
        self.model = (init or initial_network(cfg.seed)).to(device).train()
        self.data = Images(*(x.to(device) for x in data[:4]), *data[4:])
        self.W, self.G = flatten_parameters(self.model)
        self.momentum = torch.zeros_like(self.W)
        self.start = self.W.clone()
        self.per_epoch = len(data.train) // cfg.batch_size  # the last incomplete batch is dropped (D11)
        self.length, self.gradients_per_step = cfg.updates or cfg.epochs * self.per_epoch, 1
        if cfg.method == "sghmc":
            calls = 2 * cfg.L - 1 if cfg.batch_per == "kick" else cfg.L
            self.length, self.gradients_per_step = cfg.samples, calls * (cfg.energy_scale > 0)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16")
        self.finite = torch.tensor(True, device=device)  # W, statistics and U of all steps so far
        self.energies, self.measures = [], {}  # U of each step since the last save; columns of the last step

    def restore(self, saved):
        """Take over what `saved` holds of a checkpoint."""
        self.W.copy_(saved["weights"])
        self.model.load_state_dict(saved["buffers"], strict=False)
        self.momentum.copy_(saved.get("momentum", self.momentum))
        self.step = saved["step"]

    def state(self):
        """The checkpoint: everything the rest of the chain depends on, since every draw is a function of its step."""
        state = {"step": self.step, "weights": self.W.cpu()}
        state["buffers"] = {name: b.cpu() for name, b in self.model.named_buffers()}
        return state | ({"momentum": self.momentum.cpu()} if self.cfg.method == "sgd" else {})

    def views(self, step, kick=0):
        """Two augmented views of a minibatch, each (B, 3, 32, 32): a function of (seed, step, kick) alone (D17)."""
        cfg, B, draw, place = self.cfg, self.cfg.batch_size, ("minibatch", step, kick), 0
        if cfg.method == "sgd":  # shuffled epochs
            epoch, place = divmod(step, self.per_epoch)
            draw = ("epoch", epoch)
        g = generator(cfg.seed, *draw, device=self.device)
        shuffled = torch.randperm(len(self.data.train), generator=g, device=self.device)
        images = self.data.train[shuffled[place * B : (place + 1) * B]]
        g = generator(cfg.seed, "augmentation", step, kick, self.device)
        return tuple(apply_augmentation(images, draw_augmentation(B, g)) for _ in range(2))

    def last_views(self):
        """The minibatch of the last gradient, or of the first one before there is any."""
        kicks = self.cfg.method == "sghmc" and self.cfg.batch_per == "kick" and self.step > 0
        return self.views(max(self.step - 1, 0), 2 * self.cfg.L - 2 if kicks else 0)

    def encode(self, view1, view2):
        """(z1, z2): each view is a forward pass of its own (D7)."""
        with self.autocast:
            return self.model.encoder(view1), self.model.encoder(view2)

    def predict(self, z1, z2):
        """(p1, z1, p2, z2), the arguments of the energy."""
        with self.autocast:
            p1, p2 = self.model.predictor(z1), self.model.predictor(z2)
        return p1, z1, p2, z2

    def gradient(self, z1, z2):
        """U of a minibatch from its encodings; G becomes its gradient with respect to all that the network computed."""
        self.G.zero_()
        U = energy(*self.predict(z1, z2), self.cfg.sg, self.cfg.similarity)
        U.backward()
        return U.detach()

    def advance(self):
        """One sample or update. What it leaves for the tables stays on the device until it is saved."""
        U, self.measures = sghmc_update(self) if self.cfg.method == "sghmc" else sgd_update(self)
        self.step += 1
        self.energies.append(U)
        for x in (self.W, *self.model.buffers(), *([] if U is None else [U])):
            self.finite &= x.isfinite().all()


def posterior_gradient(chain, X, kick):
    """(U, g) at X on this half-kick's minibatch, g the gradient of s U + |X|^2 / (2 prior_std^2); s = 0: U is None."""
    cfg, U, g = chain.cfg, None, 0.0
    chain.W.copy_(X)
    if cfg.energy_scale > 0:
        U = chain.gradient(*chain.encode(*chain.views(chain.step, kick)))
        g = cfg.energy_scale * chain.G
    if cfg.prior_std:
        g = g + X / cfg.prior_std**2
    return U, g


def sghmc_update(chain):
    """W_t -> W_{t+1} on minibatches, by 2L-1 gradients, or L with one batch per sample (D3): (U at W_t, columns)."""
    cfg, kicks, start, once = chain.cfg, itertools.count(), [], chain.cfg.batch_per == "sample"

    def grad(X):
        kick = next(kicks)
        U, g = posterior_gradient(chain, X, kick=0 if once else kick)
        if kick == 0:  # what the tables say of a sample is taken at its start
            start.extend([U, chain.G.norm(), rms(torch.as_tensor(g))])
        return g

    z = normals(cfg.seed, chain.step, len(chain.W), 2 * cfg.L, chain.device)
    z[0] *= cfg.phi_std / math.sqrt(cfg.mass)  # sghmc_step multiplies it by sqrt(M) (D6)
    W = sghmc_step(chain.W.clone(), z, grad, eps=cfg.eps, L=cfg.L, alpha=cfg.alpha, mass=cfg.mass, reuse_grad=once)
    columns = sample_columns(cfg, W - chain.W, *start)  # chain.W is where the last gradient was asked
    chain.W.copy_(W)
    return start[0], columns


def sample_columns(cfg, last_drift, U, grad_norm, force):
    """Columns of a sample from its last drift (n,), and of its start: U, its gradient's norm, the rms of the force."""
    Phi = cfg.mass * last_drift / cfg.eps  # after the last computed half-kick
    # the first drift is eps/M ((1 - alpha) Phi_0 - eps/2 g + N(0, 2 alpha M)): its second term over the random ones
    noise = math.sqrt((1 - cfg.alpha) ** 2 * cfg.phi_std**2 + 2 * cfg.alpha * cfg.mass)
    columns = {"kinetic_temperature": (Phi.square() / cfg.mass).mean(), "drift_to_noise": cfg.eps / 2 * force / noise}
    return columns if U is None else columns | {"grad_norm": grad_norm}


def learning_rate(cfg, epoch):
    """Learning rate of SGD in an epoch (from 0): linear warm-up per epoch, then cosine per epoch to 0 (D10)."""
    if epoch < cfg.warmup_epochs:
        return cfg.lr * (epoch + 1) / cfg.warmup_epochs
    done = (epoch - cfg.warmup_epochs) / (cfg.epochs - cfg.warmup_epochs)
    return cfg.lr * (1 + math.cos(math.pi * done)) / 2 if cfg.cosine else cfg.lr


def sgd_step(chain, part, lr):
    """A step of SGD on a slice of W: m = momentum m + G + weight_decay W, W -= lr m, as torch.optim.SGD has it."""
    W, G, m = (x[part] for x in (chain.W, chain.G, chain.momentum))
    m.mul_(chain.cfg.momentum).add_(G.add(W, alpha=chain.cfg.weight_decay))
    W.add_(m, alpha=-lr)


def sgd_update(chain):
    """One update of encoder and predictor by SGD (A.5): (U, its columns). Before it come predictor_steps - 1 updates
    of the predictor alone, on the same encodings (Note); their gradients stop at z: grad_evals does not count them."""
    cfg, lr = chain.cfg, learning_rate(chain.cfg, chain.step // chain.per_epoch)
    n = sum(p.numel() for p in chain.model.encoder.parameters())
    encoder, predictor = slice(0, n), slice(n, None)
    z1, z2 = chain.encode(*chain.views(chain.step))
    for _ in range(cfg.predictor_steps - 1):
        chain.gradient(z1.detach(), z2.detach())
        sgd_step(chain, predictor, lr * cfg.predictor_lr_mult)
    U = chain.gradient(z1, z2)
    sgd_step(chain, encoder, lr)
    sgd_step(chain, predictor, lr * cfg.predictor_lr_mult)
    return U, {"grad_norm": chain.G.norm()}


# ----------------------------------------------------------------------------------------------- k-NN and diagnostics
BLOCK = 1024  # images or queries at a time: bounds the memory of an evaluation
RECALIBRATION = 8192  # images of the bank from which the BatchNorm statistics are estimated anew (D7)
KNN_T = 0.1  # votes weigh exp((cos - 1) / KNN_T), as Wu et al. (2018) do


@contextlib.contextmanager
def full_float32():
    """No gradients and no TF32, which near collapse would report chance too early. (Products have none by default.)"""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def recalibrate(model, images):
    """Replace all running statistics by their mean over blocks of these uint8 images, as W is now (D7)."""
    blocks = [b for b in images.split(BLOCK) if len(b) > BLOCK // 2] or [images]  # a short one would count as a whole
    torch.optim.swa_utils.update_bn(map(normalise, blocks), model)


def load_model(path, recalibrate_on=None):
    """The SimSiam network of a checkpoint or sample, in evaluation mode: normalise(uint8 images) -> (p, z).

    recalibrate_on: uint8 training images (N, 3, 32, 32) for the BatchNorm statistics (`--bn recalibrated` takes 8,192,
    D7); None: those of the chain, which lag behind W. BadInput: no such file; ValueError: no such images.
    """
    model, saved = initial_network(0), read_checkpoint(path)
    nn.utils.vector_to_parameters(saved["weights"], model.parameters())
    model.load_state_dict(saved["buffers"], strict=False)
    if recalibrate_on is not None:
        if recalibrate_on.dtype != torch.uint8 or len(recalibrate_on) < 2:
            raise ValueError("recalibrate_on: give two or more uint8 images (N, 3, 32, 32)")
        recalibrate(model, recalibrate_on)
    return model.eval()


def features(model, images, kind):
    """Features (N, d) of uint8 images (N, 3, 32, 32), evaluation mode, no augmentation: z, d = 128, or trunk, 4,096."""
    network = model.eval().encoder if kind == "z" else model.eval().encoder.trunk
    return torch.cat([network(normalise(block)) for block in images.split(BLOCK)])


def knn_votes(train, train_labels, test, k):
    """Votes (N, classes) of the k training rows (M, d) nearest in cosine to each test row (N, d)."""
    train, classes, votes = unit_rows(train), int(train_labels.max()) + 1, []
    for rows in unit_rows(test).split(BLOCK):
        similarity, nearest = (rows @ train.T).topk(k, dim=1)
        weight = ((similarity - 1) / KNN_T).exp()
        votes.append(rows.new_zeros(len(rows), classes).scatter_add_(1, train_labels[nearest], weight))
    return torch.cat(votes)


def knn_accuracy(train, train_labels, test, test_labels, k):
    """Share of test rows (N, d) whose class wins the vote."""
    return (knn_votes(train, train_labels, test, k).argmax(dim=1) == test_labels).sum().item() / len(test)


def geometry(z):
    """Signs of collapse in z (N, d): the columns center ... dead_samples of docs/columns.md."""
    singular = torch.linalg.svdvals((z - z.mean(dim=0)).double())
    p = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "center": unit_rows(z).mean(dim=0).norm().item(),
        "effective_rank": torch.special.entr(p).sum().exp().item(),
        "dead_samples": (z == 0).all(dim=1).float().mean().item(),
    }


def log_likelihood(p, z, similarity):
    """log q_ij = log Q(z_j; mu = p_i) of the Note (B, B), up to its constant: log |cos|, cos or the unit Gaussian."""
    if similarity == "l2":
        return -torch.cdist(p.double(), z.double()).square() / 2
    s = unit_rows(p) @ unit_rows(z).T
    return s if similarity == "cos" else s.abs().clamp(torch.finfo(s.dtype).tiny, 1).log()


def information(p1, z1, p2, z2, similarity):
    """(mi, entropy, entropy_z) of the Note on a batch of B pairs, both directions averaged; mi <= log B.

    entropy = -mean_j log mean_i q_ij, mi = entropy + mean_i log q_ii (over images, D19). entropy falls also when the
    predictor alone learns; entropy_z, not in the Note, does without it: -mean_j log mean_{i != j} Q(z_j; z_i).
    """

    def direction(p, z):
        log_q, log_k = log_likelihood(p, z, similarity), log_likelihood(z, z, similarity).fill_diagonal_(-math.inf)
        entropy = -(log_q.logsumexp(dim=0) - math.log(len(log_q))).mean()
        entropy_z = -(log_k.logsumexp(dim=0) - math.log(len(log_k) - 1)).mean()
        return torch.stack([entropy + log_q.diagonal().mean(), entropy, entropy_z])

    return ((direction(p1, z2) + direction(p2, z1)) / 2).tolist()


def centering(chain, z1, z2):
    """The columns o_z, norm of the mean o_z of the unit rows Z of both views, and centering, the mean over the rows of
    cos(-dU/dz_a, o_z): positive if U draws the encodings to their centre (Zhang et al. 2022)."""
    z1, z2 = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    with torch.enable_grad():
        g1, g2 = torch.autograd.grad(energy(*chain.predict(z1, z2), chain.cfg.sg, chain.cfg.similarity), (z1, z2))
    o_z = unit_rows(torch.cat([z1, z2]).detach()).mean(dim=0, keepdim=True)
    towards = unit_rows(-torch.cat([g1, g2])) @ unit_rows(o_z).T
    return {"o_z": o_z.norm().item(), "centering": towards.mean().item()}


def batch_measures(chain):
    """The columns of metrics.csv that belong to the last minibatch, in training mode; `loss` is SimSiam's own."""
    similarity = chain.cfg.similarity
    p1, z1, p2, z2 = (x.float() for x in chain.predict(*chain.encode(*chain.last_views())))
    s12, s21 = cosines(p1, z1, p2, z2)
    row = dict(zip(("mi", "entropy", "entropy_z"), information(p1, z1, p2, z2, similarity), strict=True))
    row |= {
        "energy": energy(p1, z1, p2, z2, False, similarity).item(),
        "loss": -((s12 + s21) / 2).mean().item(),
        "negative_cos": (torch.cat([s12, s21]) < 0).float().mean().item(),
    }
    return row | centering(chain, z1, z2)


def fixed_subset(images, labels, count, which):
    """The first `count` of a fixed random order (all, in their own order, if None): the same in every run."""
    if count is None or count == len(images):
        return images, labels
    chosen = torch.randperm(len(images), generator=generator(0, "subset", kick=which))[:count].to(images.device)
    return images[chosen], labels[chosen]


def representation(cfg, model, data):
    """The k-NN and geometry columns of `model`, whose statistics and mode are changed (D7); None if not finite."""
    bank, bank_labels = fixed_subset(data.train, data.train_labels, cfg.knn_train, 0)
    test, test_labels = fixed_subset(data.test, data.test_labels, cfg.knn_test, 1)
    if cfg.bn == "recalibrated":
        count = min(RECALIBRATION, cfg.knn_train or len(data.train))
        recalibrate(model, fixed_subset(data.train, data.train_labels, count, 0)[0])
    test, bank = (features(model, images, cfg.knn_features) for images in (test, bank))
    z = test if cfg.knn_features == "z" else model.encoder.head(test)
    if not all(x.isfinite().all() for x in (bank, test, z)):  # an overflow in the network, W itself still finite
        return None
    mean, row = bank.mean(dim=0), geometry(z)
    row["knn"] = knn_accuracy(bank, bank_labels, test, test_labels, cfg.knn_k)
    row["knn_centered"] = knn_accuracy(bank - mean, bank_labels, test - mean, test_labels, cfg.knn_k)
    largest_class = test_labels.bincount().max().item() / len(test_labels)
    row["collapsed"] = "dead" if row["dead_samples"] > 0.5 else "constant" if row["center"] > 0.99 else "no"
    row["at_chance"] = "yes" if row["knn"] <= 1.2 * largest_class else "no"
    return row


def evaluate(chain):
    """The row of metrics.csv at W as it is now, a dictionary, but for the seconds; None if features or U overflow."""
    chain = copy.copy(chain)
    chain.model = copy.deepcopy(chain.model)  # the chain's own buffers and mode stay as they are (D7)
    with full_float32():
        row = representation(chain.cfg, chain.model, chain.data)
        chain.model.train()
        row = row and row | batch_measures(chain)
    if row is None or not math.isfinite(row["energy"]):
        return None
    measures = chain.measures | {"distance": rms(chain.W - chain.start), "weight_rms": rms(chain.W)}
    row |= {name: x.item() for name, x in measures.items()}
    return row | {"step": chain.step, "grad_evals": chain.step * chain.gradients_per_step}


# ---------------------------------------------------------------------------------------------------------------- run
METRICS = (
    "step grad_evals energy loss negative_cos knn knn_centered center effective_rank dead_samples mi entropy entropy_z "
    "o_z centering kinetic_temperature drift_to_noise distance weight_rms grad_norm collapsed at_chance seconds"
).split()
VERSION = 4  # of config.json and checkpoint.pt
CHECKPOINT_SECONDS = 60  # between checkpoints at most; evaluations, signals and the end save, too
NOT_IN_IDENTITY = ("samples", "updates", "eval_every", "keep_every", "device", "out")  # length, watching and places


def identity(cfg, chain):
    """What a chain and its tables are a function of: settings, content of the data, and the weights of --init."""
    own = {name: value for name, value in asdict(cfg).items() if name not in NOT_IN_IDENTITY}
    start = hashlib.sha256(chain.start.cpu().numpy()).hexdigest()[:16] if cfg.init else None
    return own | {"data": chain.data.source, "init": start, "version": VERSION}


def default_folder(cfg):
    """runs/ plus the method and every setting of its identity that differs from the default."""
    own = {name: value for name, value in asdict(cfg).items() if name not in ("method", *NOT_IN_IDENTITY)}
    parts = [(flag(name)[2:], value) for name, value in own.items() if value != getattr(Config, name)]
    parts = [f"no-{name}" if value is False else f"{name}-{value}" for name, value in parts]
    return Path("runs") / re.sub(r"[^\w.+-]+", "-", "_".join([cfg.method, *parts]))


def circumstances(device):
    """What else the numbers of a run may depend on, for config.json."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    git = "git describe --always --dirty"  # by a shell: there may be no git
    git = subprocess.run(git, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    versions = {name: importlib.metadata.version(name) for name in ("torchvision", "numpy", "pillow")}
    versions |= {"torch": torch.__version__, "python": sys.version.split()[0]}
    return versions | {"commit": git.stdout.strip(), "device": f"{device}, {kind}", "date": date}


def write_whole(path, content):
    """Write bytes, or a dictionary by torch.save, under a temporary name, then rename it: no file is half written."""
    if isinstance(content, dict):
        torch.save(content, buffer := io.BytesIO())
        content = buffer.getbuffer()
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def csv_line(cells):  # 9 digits tell any two float32 numbers apart; None is an empty cell
    return ",".join("" if v is None else f"{v:.9g}" if isinstance(v, float) else str(v) for v in cells) + "\n"


def tables(rows, energies, gradients_per_step):
    """{file name: bytes} of metrics.csv, a row per evaluation, and energy.csv, one per step."""
    evaluations = [[row.get(name) for name in METRICS] for row in rows]
    steps = [(t, t * gradients_per_step, U) for t, U in enumerate(energies)]
    content = {"metrics.csv": [METRICS, *evaluations], "energy.csv": [("step", "grad_evals", "energy"), *steps]}
    return {name: "".join(map(csv_line, table)).encode() for name, table in content.items()}


def saved_run(path, mine, gradients_per_step):
    """The checkpoint of the folder to go on from, None if nothing was saved yet; BadInput unless all in it fits.

    A save writes the tables, then the checkpoint; the very first has no rows yet. So after a kill the tables begin with
    what the checkpoint holds, and later rows are computed again. Tables that do not were changed, or rows were lost.
    """
    checkpoint, saved, rows, energies = path / "checkpoint.pt", None, [], []
    remedy = "put it back or choose another --out"
    if checkpoint.exists():
        saved = read_checkpoint(checkpoint)
        with bad_input(f"{checkpoint} is the checkpoint of no run ({{}}); {remedy}"):
            theirs, rows, energies, _ = dict(saved["identity"]), saved["rows"], saved["energies"], saved["seconds"]
        differing = [f"{k} (there {theirs.get(k)}, here {v})" for k, v in mine.items() if theirs.get(k) != v]
        if differing:
            raise BadInput(f"{checkpoint} is of another chain: {', '.join(differing)}; choose another --out")
    elif any((path / name).exists() for name in ("config.json", "samples")):
        raise BadInput(f"--out {path} holds a run, but no checkpoint.pt; {remedy}")
    for name, content in tables(rows, energies, gradients_per_step).items():
        with bad_input(f"{path / name} is not the table of {checkpoint} ({{}}); {remedy}"):
            there = (path / name).read_bytes() if (path / name).exists() else b"" if saved else content
            if not there.startswith(content) or (not saved and there != content):
                raise ValueError("rows are missing or changed" if saved else "which is not there")
    return saved


class Run:
    """A chain in its folder: the one loop of both methods, with tables, checkpoints and signals."""

    def __init__(self, cfg, signals, held):
        """Read and check all first: bad input must not change a file. The ExitStack `held` unlocks the folder."""
        self.cfg, self.signals, self.terminal = cfg, signals, sys.stdout is not None and sys.stdout.isatty()
        device = pick_device(cfg.device)
        init = load_model(cfg.init) if cfg.init else None
        self.say(f"images: {cfg.data}", rewritten=True)  # a folder takes its time
        data = load_data(cfg.data)
        check_sizes(cfg, data)
        self.chain = Chain(cfg, data, init, device)
        self.identity, self.path = identity(cfg, self.chain), Path(cfg.out) if cfg.out else default_folder(cfg)
        with bad_input(f"--out {self.path}: cannot make this folder ({{}}); choose another"):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(open(self.path / ".lock", "a"))  # gone with this process, however that ends
        with bad_input(f"--out {self.path} is in use by another process; wait for it or choose another"):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        saved = saved_run(self.path, self.identity, self.chain.gradients_per_step)
        self.rows, self.energies, seconds = [], [], 0.0  # of both tables; spent by earlier processes
        if saved:
            self.chain.restore(saved)
            self.rows, self.energies, seconds = saved["rows"], saved["energies"], saved["seconds"]
        self.shown = self.saved = time.monotonic()
        self.began = self.shown - seconds

    def go(self):
        """Run to the end, or to the first signal."""
        cfg, chain = self.cfg, self.chain
        left = max(0, chain.length - chain.step)
        config = {"identity": self.identity, "settings": asdict(cfg), "made by": circumstances(chain.device)}
        config["test images per class"] = chain.data.test_labels.bincount().tolist()
        on = config["made by"]["device"]
        self.say(f"{one_line(self.path)}: {cfg.method} on {on}, {left:,} steps from step {chain.step:,}")
        kept = f", {left // cfg.keep_every:,} kept samples of {len(chain.W) * 4e-6:.2g} MB" if cfg.keep_every else ""
        self.say(f"cost: {left * chain.gradients_per_step:,} gradients at batch {cfg.batch_size}{kept}")
        self.say(f"images: {chain.data.note or cfg.data}")
        if cfg.method == "sghmc" and cfg.sg:
            self.say("note: a stop-gradient field is the gradient of no energy, so this chain samples no posterior")
        if not self.rows:
            self.save()  # before the first row: see saved_run
        if left or not self.rows:  # a finished run is left as it is
            write_whole(self.path / "config.json", json.dumps(config, indent=1).encode())
        if not self.rows and not self.signals:
            self.say("step 0: evaluating the start")
            self.evaluate()
        first, began = chain.step, time.monotonic()
        while chain.step < chain.length and not self.signals:
            self.step()
            self.progress(chain.step - first, time.monotonic() - began)
        if self.signals and chain.step < chain.length:
            self.save()
            raise RunStopped(f"saved at step {chain.step}; the same command goes on from there", 128 + self.signals[0])
        self.say(summary(self.rows, cfg.knn_test or len(chain.data.test)))
        self.say(f"tables and checkpoint are in {one_line(self.path)}/")

    def step(self):
        """One step of the chain, and what is due after it: kept sample, evaluation, checkpoint."""
        cfg, chain = self.cfg, self.chain
        chain.advance()
        keep = cfg.keep_every and chain.step % cfg.keep_every == 0
        if chain.device.type == "cpu" or keep:  # on a GPU this would wait for the step; there save() looks
            self.check_finite()
        if keep:  # before the checkpoint: a kill between them would lose the sample
            (self.path / "samples").mkdir(exist_ok=True)
            write_whole(self.path / f"samples/{chain.step:06d}.pt", chain.state())
        if chain.step % cfg.eval_every == 0 or chain.step == chain.length:
            self.evaluate()
        elif time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.save()

    def check_finite(self, finite=True):
        """RunStopped if U, W or statistics were not finite since the last save: nothing bad is saved."""
        if not (finite and self.chain.finite):
            smaller = "--lr" if self.cfg.method == "sgd" else "--eps (stable below 2 sqrt(M / curvature of U))"
            text = f"energy, weights or features are not finite at step {self.chain.step}; the last good state is "
            raise RunStopped(f"{text}{self.path}/checkpoint.pt; try a smaller {smaller}", 3)

    def evaluate(self):
        """Add the row of metrics.csv for W as it is now, and save."""
        row = evaluate(self.chain)
        self.check_finite(row is not None)
        self.rows.append(row | {"seconds": time.monotonic() - self.began})
        self.say("step {step:,}: energy {energy:.4f}, k-NN {knn:.2%}, centre ratio {center:.4f}".format(**row))
        self.save()

    def save(self):
        """Write the tables, then the checkpoint that goes on from them."""
        self.check_finite()
        chain = self.chain
        new, chain.energies = chain.energies, []
        self.energies += torch.stack(new).tolist() if new and new[0] is not None else new
        for name, content in tables(self.rows, self.energies, chain.gradients_per_step).items():
            write_whole(self.path / name, content)
        own = {"identity": self.identity, "rows": self.rows, "energies": self.energies}
        write_whole(self.path / "checkpoint.pt", chain.state() | own | {"seconds": time.monotonic() - self.began})
        self.saved = time.monotonic()

    def say(self, text, rewritten=False):
        """Print a line; on a terminal one that the next rewrites, if so wished."""
        start, end = ("\r\033[K" if self.terminal else ""), "\n"
        if self.terminal and rewritten:  # cut to the terminal's width: a line that is wrapped cannot be rewritten
            text, end = text[: shutil.get_terminal_size().columns - 1], ""
        try:
            print(start + text, end=end, flush=True)
        except BrokenPipeError:  # the reader has gone, as `| head` does: save and stop
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            self.signals.append(signal.SIGPIPE)

    def progress(self, steps, seconds):
        """Rate and time left: after three steps, then twice a second on a terminal and every half minute elsewhere."""
        if steps == 3 or time.monotonic() - self.shown > (0.5 if self.terminal else 30):
            self.shown, chain, each = time.monotonic(), self.chain, seconds / steps
            left = datetime.timedelta(seconds=round(each * (chain.length - chain.step)))
            U = "" if (U := (chain.energies or self.energies)[-1]) is None else f", energy {float(U):.4f}"
            self.say(f"step {chain.step:,} of {chain.length:,}{U}, {each:.3g} s per step, {left} left", rewritten=True)


def pick_device(name):
    """The torch.device of --device, tried out; BadInput if it cannot be used."""
    with bad_input(f"--device {name} cannot be used here ({{}}); try --device cpu"):
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type not in ("cpu", "cuda"):
            raise ValueError("only cpu and cuda are supported")
        torch.randn(1, generator=torch.Generator(device), device=device)
    return device


def check_sizes(cfg, data):
    """BadInput where the settings ask for more images than there are, or for more updates than the schedule has."""
    train, test = len(data.train), len(data.test)
    there = {"batch_size": train, "knn_train": train, "knn_test": test, "knn_k": cfg.knn_train or train}
    for name, count in there.items():
        if (getattr(cfg, name) or 0) > count:
            raise BadInput(f"{flag(name)} {getattr(cfg, name)}: there are only {count} images; give at most that")
    horizon = cfg.epochs * (train // cfg.batch_size)
    if cfg.method == "sgd" and cfg.cosine and (cfg.updates or 0) > horizon:
        raise BadInput(f"--updates {cfg.updates}: the learning rate is 0 from {horizon} on; give more --epochs")


def summary(rows, tests):
    """The verdict, from the first and the last row of metrics.csv; k-NN was taken on this many test images."""
    start, last = rows[0]["knn"], rows[-1]
    error = math.sqrt(last["knn"] * (1 - last["knn"]) / tests)
    text = "done: collapsed: {collapsed} (centre ratio {center:.4f}), at chance: {at_chance}, k-NN {start:.2%} at the "
    text += "start, {knn:.2%} at step {step:,} (standard error {error:.2%})"
    if "drift_to_noise" in last:
        text += "\nin the first drift of the last sample the gradient's part was {drift_to_noise:.1g} of the noise's"
    return text.format(start=start, error=error, **last)


# ------------------------------------------------------------------------------------------------------- command line
class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message} (--help lists the settings)")


def parse(argv):
    """The Config of a command line, which is made from the fields of Config; BadInput says what is wrong with it."""
    parser = Parser(
        usage="python simsiam_sghmc.py [SETTING VALUE] ...", description=__doc__.split("\n\n")[0],
        epilog="The same command again resumes. [ ]: default; D1 ...: docs/decisions.md.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120),
        allow_abbrev=False, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    groups = {}
    for f in fields(Config):
        group, text, read, words = *f.metadata.values(), f.type.__origin__, f.type.__metadata__[0]
        groups[group] = groups.get(group) or parser.add_argument_group(group)
        options = {"type": read, "metavar": words if "|" in words else {int: "N", float: "X"}.get(read, "NAME")}
        if read is bool:
            options = {"action": argparse.BooleanOptionalAction}
        default = ("off", "on")[f.default] if read is bool else f.default
        text += "" if default is None else f" [{default}]"
        groups[group].add_argument(flag(f.name), help=text.replace("%", "%%"), **options)
    given = vars(parser.parse_args(argv))
    cfg = Config(**given)
    other = "SGD" if cfg.method == "sghmc" else "SGHMC"
    for f in fields(cfg):
        if f.name in given and f.metadata["group"] == other:
            raise BadInput(f"{flag(f.name)} is a setting of {other}, and this is --method {cfg.method}; leave it out")
    return cfg


@contextlib.contextmanager
def caught_signals():
    """The list that receives SIGINT and SIGTERM; a second one ends the process at once."""
    received = []

    def receive(signum, _frame):
        if received:
            os._exit(128 + signum)
        received.append(signum)
        with contextlib.suppress(OSError):  # not print(): this may have interrupted one
            os.write(1, b"\nstopping after this step (a second signal ends at once)\n")

    before = {s: signal.signal(s, receive) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def keep_freed_memory():
    """Ask glibc to keep freed memory: fresh pages, zeroed by the kernel, took 6 to 18 % of a gradient at batch 512."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        ctypes.CDLL(None).mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give back


def main(argv=None):
    """The command line. Exit codes: 0 done, 2 bad input, 3 stopped at run time, 130, 141 and 143 by a signal."""
    try:
        cfg = parse(argv)
        with caught_signals() as signals, contextlib.ExitStack() as held:
            run = Run(cfg, signals, held)
            keep_freed_memory()  # not before: what loading the data needed for a moment would be kept too
            run.go()
        return 0
    except BadInput as error:
        message, code = str(error), 2
    except RunStopped as error:
        message, code = error.args
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        code, message = 3, f"out of memory ({one_line(error)[:80]}); give a smaller --batch-size"
    except OSError as error:  # disk full, folder gone: write_whole left the last checkpoint as it was
        code, message = 3, f"cannot write the run ({one_line(error)}); mend that, then the same command goes on"
    if code != 128 + signal.SIGPIPE:  # nobody reads: quiet, as other tools are
        print("\r\033[K" * os.isatty(2) + f"simsiam_sghmc: {one_line(message)}", file=sys.stderr)  # see Run.say
    return code


if __name__ == "__main__":
    sys.exit(main())
