"""Does SimSiam need the stop-gradient, or does a sampler that explores the loss landscape avoid collapse too?

A reference implementation of "Posterior Sampling on SimSiam" (de Mello, Zhang, Ribeiro, 2023), to be read from top to
bottom; each section uses only those above it:

    energy (Equation 2) - sampler (Algorithm 1) - configuration - randomness - network (A.2) - data - augmentation -
    k-NN and diagnostics - the run folder - chains (SGHMC, SGD) - run - command line

    python simsiam_sghmc.py --eps 1e-3 --L 3 --no-sg                     the paper's chain on CIFAR-10
    python simsiam_sghmc.py --method sgd --sg --similarity cos           the paper's standard SimSiam
    python simsiam_sghmc.py --help

D1 ... D20 are the numbered decisions of README.md: where the paper is silent, or can be read in two ways.
"""

import argparse
import contextlib
import copy
import csv
import ctypes
import difflib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections import OrderedDict
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torch import nn

# ------------------------------------------------------------------------------------------------ energy (Equation 2)


def unit_rows(x):
    """Rows of x (B, d) divided by their Euclidean norms, in float32 or wider; an all-zero row stays zero.

    Each row is scaled by its largest entry first, so that entries of 1e-20 or 1e20 neither vanish nor overflow when
    squared. The scale cancels, hence it needs no gradient; a zero row is divided by infinity: value and gradient 0.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
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
    value stays, the gradient through Z is gone. Finite for every finite input: m is clamped to [tiny, 1] (D20).
    The mean is inside the logarithm (D4). Of the Note: "cos" is SimSiam's loss + 1, "l2" the Gaussian's -log Q.
    """
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


def half_kick_std(M, B_hat, eps, alpha):
    """sqrt of the noise variance 2 (C - B^) eps of one half-kick; C eps = alpha M. ValueError: M <= 0, B^ > C."""
    C_eps = alpha * M
    rounding = 4 * torch.finfo(M.dtype).eps * C_eps
    if not ((M > 0) & (M < math.inf)).all() or not (B_hat * eps <= C_eps + rounding).all():
        raise ValueError("need 0 < mass < inf and B^ <= C = alpha M / eps: else 2 (C - B^) eps is no noise variance")
    return (2 * (C_eps - B_hat * eps)).clamp_min(0).sqrt()


def sghmc_step(w, z, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0, reuse_grad=False):
    """One sample of stochastic gradient Hamiltonian Monte Carlo, kick-drift-kick (Algorithm 1): W_t -> W_{t+1}.

        1  Phi ~ N(0, M);  X = W_t                                                  alpha = M^-1 C eps
        2  for l = 0 .. L-1:
        3     Phi = (1 - alpha) Phi - eps/2 grad U(X) + N(0, 2 C eps)
        4     X   = X + eps M^-1 Phi
        5     Phi = (1 - alpha) Phi - eps/2 grad U(X) + N(0, 2 C eps)
        6  W_{t+1} = X                                                              (printed as W_t: a misprint, D1)

    w (n,) position, any floating dtype, never written. z: iterable of rows (n,) of standard normals, one for line 1
    and one for each half-kick. grad: (n,) -> (n,) or a number, called at the half-kicks in order. mass M and b_hat B^:
    numbers or (n,); with B^ (Equation 1) the noise is N(0, 2 (C - B^) eps). Line 5 of the last leapfrog never reaches
    W_{t+1}: it is left out, so grad is called 2L-1 times; with `reuse_grad`, for a U that stays the same throughout
    the sample, L times. ValueError: eps or mass not in (0, inf), L < 1, alpha outside [0, 1), B^ > C.
    """
    if not (0 < eps < math.inf and L >= 1 and 0 <= alpha < 1):
        raise ValueError(f"need 0 < eps < inf, L >= 1 and 0 <= alpha < 1, got eps={eps}, L={L}, alpha={alpha}")
    M, B_hat = (torch.as_tensor(x, dtype=w.dtype) for x in (mass, b_hat))
    noise_std = half_kick_std(M, B_hat, eps, alpha)
    z = iter(z)

    Phi = M.sqrt() * next(z)  # 1
    X = w
    g = grad(X)
    for l in range(L):  # 2
        Phi = (1 - alpha) * Phi - eps / 2 * g + noise_std * next(z)  # 3
        X = X + eps / M * Phi  # 4
        if l == L - 1:
            return X  # 6
        g = grad(X)
        Phi = (1 - alpha) * Phi - eps / 2 * g + noise_std * next(z)  # 5
        g = g if reuse_grad else grad(X)


# ---------------------------------------------------------------------------------------------------- configuration


class BadInput(Exception):
    """Something the user gave cannot be used: one line on stderr, exit code 2, no file changed."""

    code = 2


# 1e-18 and 1e18: the square, which the equations take, is still a float32 number
POSITIVE = ("a number > 0, from 1e-18 to 1e18", lambda v: 1e-18 <= v <= 1e18)
NOT_NEGATIVE = ("a number >= 0, at most 1e18", lambda v: 0 <= v <= 1e18)
FRACTION = ("a number in [0, 1)", lambda v: 0 <= v < 1)
TEMPERATURE = ("a number >= 0.01, or inf", lambda v: v >= 0.01)
COUNT = ("a whole number >= 1, below 2^63", lambda v: 1 <= v < 2**63)
NATURAL = ("a whole number >= 0, below 2^63", lambda v: 0 <= v < 2**63)
PAIR = ("a whole number >= 2", lambda v: v >= 2)


def setting(default, group, kind, text, rule=None):
    """A field of Config; `kind` is a type or the tuple of choices, `rule` a pair of words and test for its values."""
    return field(default=default, metadata={"group": group, "kind": kind, "text": text, "rule": rule})


@dataclass(frozen=True)
class Config:
    """Every setting: the command line is made from these lines, with the symbol or source of each."""

    method: str = setting("sghmc", "method", ("sghmc", "sgd"), "sample the posterior, or train (A.5)")
    sg: bool = setting(True, "method", bool, "stop-gradient on Z (Equation 2); the paper's chains: --no-sg")
    similarity: str = setting("abscos", "method", ("abscos", "cos", "l2"), "Equation 2, SimSiam's own, or L2 (Note)")

    eps: float = setting(1e-3, "SGHMC", float, "step size eps of a leapfrog (Section 3.1)", POSITIVE)
    L: int = setting(3, "SGHMC", int, "leapfrogs per sample (Section 3.1)", COUNT)
    alpha: float = setting(0.01, "SGHMC", float, "friction alpha = M^-1 C eps (Section 3.1)", FRACTION)
    mass: float = setting(1.0, "SGHMC", float, "M, a multiple of the identity (Section 3.1, D6)", POSITIVE)
    velocity_std: float = setting(None, "SGHMC", float, "std of the draw Phi_0; sqrt(M) if not given (D6)", POSITIVE)
    samples: int = setting(50_000, "SGHMC", int, "length of the chain (Figure 1)", COUNT)
    batch_per: str = setting("kick", "SGHMC", ("kick", "sample"), "a minibatch per half-kick, or per sample (D3)")
    energy_scale: float = setting(1.0, "SGHMC", float, "factor on U; 0 = random walk, no gradients (D5)", NOT_NEGATIVE)
    prior_std: float = setting(None, "SGHMC", float, "adds |W|^2 / (2 std^2) to U; off if not given (D5)", POSITIVE)

    lr: float = setting(0.03, "SGD", float, "peak learning rate (Section 3.2, D10)", POSITIVE)
    momentum: float = setting(0.9, "SGD", float, "momentum (A.5)", FRACTION)
    weight_decay: float = setting(5e-4, "SGD", float, "weight decay (D11)", NOT_NEGATIVE)
    epochs: int = setting(800, "SGD", int, "horizon of the schedule (Figure 2)", COUNT)
    updates: int = setting(None, "SGD", int, "length; all of --epochs if not given (D16)", COUNT)
    warmup_epochs: int = setting(10, "SGD", int, "epochs of linear warm-up (A.5)", NATURAL)
    cosine: bool = setting(True, "SGD", bool, "cosine decay after the warm-up (A.5)")
    predictor_steps: int = setting(1, "SGD", int, "predictor updates per update of the encoder (Note)", COUNT)
    predictor_lr_mult: float = setting(1.0, "SGD", float, "factor on the predictor's learning rate (Note)", POSITIVE)

    data: str = setting("cifar10", "data", str, "cifar10, gratings, or a folder of train/<class>/* and test/<class>/*")
    data_dir: str = setting("data", "data", str, "where cifar10 is downloaded to")
    batch_size: int = setting(512, "data", int, "images per minibatch (Section 3)", PAIR)

    eval_every: int = setting(500, "evaluation", int, "samples or updates between evaluations", COUNT)
    knn_k: int = setting(200, "evaluation", int, "neighbours k (Section 3.1)", COUNT)
    knn_t: float = setting(0.1, "evaluation", float, "votes weigh exp((cos - 1) / t); inf: all alike", TEMPERATURE)
    knn_train: int = setting(None, "evaluation", int, "random training images as bank; else all", COUNT)
    knn_test: int = setting(None, "evaluation", int, "random test images; else all", COUNT)
    knn_features: str = setting("z", "evaluation", ("z", "trunk"), "128-d z, or the 4,096-d input of its layer (D14)")
    bn: str = setting("recalibrated", "evaluation", ("recalibrated", "running"), "BatchNorm at evaluation (D7)")

    seed: int = setting(0, "system", int, "seed of every draw", NATURAL)
    device: str = setting("auto", "system", str, "auto, cpu, cuda, cuda:1 ...")
    precision: str = setting("fp32", "system", ("fp32", "bf16"), "of the network in the gradients; k-NN is always fp32")
    init: str = setting(None, "system", str, "start from this checkpoint.pt or sample instead of a random network")
    out: str = setting(None, "system", str, "run folder; if not given, runs/ and what differs from the defaults")
    checkpoint_every: int = setting(100, "system", int, "samples or updates between checkpoints", COUNT)
    keep_every: int = setting(0, "system", int, "keep each n-th sample in samples/; 0: none", NATURAL)

    def __post_init__(self):
        for f in fields(self):
            value, kind, rule = getattr(self, f.name), f.metadata["kind"], f.metadata["rule"]
            if isinstance(kind, tuple) and value not in kind:
                raise BadInput(f"{flag(f.name)} {value}: choose from {', '.join(kind)}")
            if value == "":  # an unset shell variable
                raise BadInput(f"{flag(f.name)} is empty: give a value or leave it out")
            if value is not None and rule and not rule[1](value):
                raise BadInput(f"{flag(f.name)} {value}: give {rule[0]}")
        if self.method == "sgd" and self.warmup_epochs >= self.epochs:
            raise BadInput(f"--warmup-epochs {self.warmup_epochs}: give fewer than --epochs {self.epochs}")

    @property
    def phi_std(self):
        """Standard deviation of the momentum draw Phi_0 (A.4, D6)."""
        return self.velocity_std or math.sqrt(self.mass)


def flag(name):
    """The command-line spelling of a field of Config."""
    return "--" + name.replace("_", "-")


def one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


# --------------------------------------------------------------------------------------------------------- randomness

PURPOSES = ("network", "minibatch", "augmentation", "noise", "epoch", "subset")


def generator(seed, purpose, step=0, kick=0, device="cpu"):
    """The torch.Generator of one draw, a function of (seed, step, purpose): no state to save, any step on its own.

    torch's CPU generator keeps 32 bits of its seed, and among hashed seeds of 50,000 samples two would soon agree.
    So only (seed, purpose, kick) are hashed; steps then follow at an odd distance and meet again after 2^32 of them.
    """
    base = np.random.SeedSequence([seed, PURPOSES.index(purpose), kick]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed((int(base) + step * 0x9E3779B97F4A7C15) % 2**64)


def normals(seed, step, n, device="cpu"):
    """Rows (n,) of standard normals for sample `step`, without end: the momentum's first, then the half-kicks'."""
    g = generator(seed, "noise", step, device=device)
    while True:
        yield torch.randn(n, generator=g, device=device)


# ------------------------------------------------------------------------------------------------------ network (A.2)


def double_conv(inputs, middle, outputs):
    """Two 3x3 convolutions with ReLU, 2x2 max-pooling, BatchNorm: the block that A.2 repeats three times."""
    return [
        nn.Conv2d(inputs, middle, 3, padding=1), nn.ReLU(),
        nn.Conv2d(middle, outputs, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.BatchNorm2d(outputs),
    ]  # fmt: skip


class SimSiam(nn.Module):
    """Encoder + projector (1,651,392 parameters: trunk and head) and predictor (16,704) of A.2.

    forward: images (B, 3, 32, 32), normalised -> (p, z), each (B, 128) and raw; the predictor sees the raw z (D13).
    """

    def __init__(self):
        super().__init__()
        blocks = double_conv(3, 32, 64) + double_conv(64, 128, 128) + double_conv(128, 256, 256)
        trunk = nn.Sequential(*blocks, nn.Flatten())  # (B, 4096)
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
    """Turn the parameters into views of one flat vector W (n,), encoder first; returns (W, G), G the gradients' views.

    The sampler then sees one vector (D8), and backward() adds the gradient into G without a copy.
    """
    parameters = list(model.parameters())
    W = nn.utils.parameters_to_vector(parameters).detach().clone()
    G = torch.zeros_like(W)
    nn.utils.vector_to_parameters(W, parameters)
    for p, g in zip(parameters, G.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)
    return W, G


def read_checkpoint(path):
    """The dictionary of a checkpoint or sample, loaded as plain tensors and numbers; BadInput names what is wrong."""
    try:
        with warnings.catch_warnings():  # of foreign pickles: the one line below says it
            warnings.simplefilter("ignore")
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"no such checkpoint: {path}") from None
    except Exception as error:  # a truncated zip, a foreign file, a pickle that names other classes: many types
        raise BadInput(f"{path} is not a checkpoint that can be read ({type(error).__name__})") from None
    parts = {"weights": torch.Tensor, "buffers": dict, "step": int}
    if not isinstance(saved, dict) or not all(isinstance(saved.get(name), kind) for name, kind in parts.items()):
        raise BadInput(f"{path} is not a checkpoint of this program: it has no weights, buffers and step")
    with torch.device("meta"):  # shapes without values
        model = SimSiam()
    shapes = {name: b.shape for name, b in model.named_buffers()} | {"W": (sum(p.numel() for p in model.parameters()),)}
    found = {name: getattr(b, "shape", None) for name, b in saved["buffers"].items()} | {"W": saved["weights"].shape}
    if found != shapes:
        raise BadInput(f"{path} holds another network: {tuple(found['W'])} weights, here {shapes['W']}")
    if not all(x.isfinite().all() for x in (saved["weights"], *saved["buffers"].values())):
        raise BadInput(f"{path} holds numbers that are not finite; give an earlier checkpoint or sample")
    return saved


def load_model(path):
    """The SimSiam network of a checkpoint or sample, in evaluation mode: normalise(uint8 images) -> (p, z).

    Its BatchNorm statistics are the chain's running ones, which lag behind moving weights: `recalibrate` it on training
    images for what `--bn recalibrated` evaluates (D7).
    """
    model, saved = initial_network(0), read_checkpoint(path)
    nn.utils.vector_to_parameters(saved["weights"], model.parameters())
    model.load_state_dict(saved["buffers"], strict=False)
    return model.eval()


# --------------------------------------------------------------------------------------------------------------- data


class Images(NamedTuple):
    """Images as uint8 (N, 3, 32, 32), labels (N,) int64; `identity` names the training images in config.json."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    identity: str


OTHER_DATA = "--data gratings needs no file, --data FOLDER takes train/<class>/* and test/<class>/* images"


def load_data(data, data_dir):
    """The Images that --data names; BadInput says which file cannot be used."""
    if data == "gratings":
        return Images(*gratings(10_000, seed=1), *gratings(2_000, seed=2), "gratings")
    if data == "cifar10":
        return Images(*cifar10(data_dir, True), *cifar10(data_dir, False), "cifar10")
    train, test = (image_folder(Path(data) / split) for split in ("train", "test"))
    if train[2] != test[2] or len(train[2]) < 2:
        raise BadInput(f"--data {data}: train/ and test/ need the same two or more class folders")
    return Images(*train[:2], *test[:2], "images " + hashlib.sha256(train[0].numpy()).hexdigest()[:16])


def cifar10(data_dir, train):
    """CIFAR-10 by torchvision, downloaded and checked on first use: (images, labels)."""
    dataset = functools.partial(torchvision.datasets.CIFAR10, data_dir, train)
    try:
        try:
            part = dataset()
        except RuntimeError:  # not there or not whole
            Path(data_dir).mkdir(parents=True, exist_ok=True)
            with open(Path(data_dir) / ".lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # of the runs that begin together one downloads, the others wait
                part = dataset(download=True)
    except Exception as error:  # no network, a bad checksum, a torn archive, a full disk: many types
        raise BadInput(f"cannot get CIFAR-10 into {data_dir}/ ({one_line(error)}); {OTHER_DATA}") from None
    return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)


def image_folder(root):
    """Images of root/<class>/*, resized to 32x32 where they are not: (images, labels, class names)."""
    try:
        part = torchvision.datasets.ImageFolder(str(root))
    except (OSError, RuntimeError) as error:
        why = one_line(error) if root.is_dir() else "not there"
        raise BadInput(f"--data: no image folder {root} ({why}); the default is cifar10, {OTHER_DATA}") from None
    images = np.empty((len(part), 32, 32, 3), np.uint8)
    for image, (path, _) in zip(images, part.samples, strict=True):
        try:
            picture = part.loader(path)
            image[:] = picture if picture.size == (32, 32) else picture.resize((32, 32))
        except Exception as error:  # the image library raises a type of its own for each way to be broken
            raise BadInput(f"--data: cannot read the image {path} ({one_line(error)}); mend or remove it") from None
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets), part.classes


def gratings(count, seed):
    """Ten classes of coloured sinusoidal gratings (not in the paper): (images uint8 (N, 3, 32, 32), labels (N,)).

    The class sets orientation, frequency and a pair of colours; the instance sets the phase, a jitter of all three,
    two small coloured blobs and pixel noise. The noise keeps an untrained network well below what training reaches.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    column = (count, 1, 1)
    y, x = np.mgrid[-1:1:32j, -1:1:32j].astype(np.float32)
    angle = (labels % 5 * math.pi / 8 + rng.normal(0, 0.08, count)).reshape(column)  # 0 to 90 degrees: flips keep it
    frequency = (np.where(labels < 5, 5.0, 15.0) * rng.lognormal(0, 0.12, count)).reshape(column)
    wave = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * math.pi, column))
    pairs = np.random.default_rng(0).uniform(0.3, 0.7, (10, 2, 3))
    low, high = (pairs[labels] + rng.normal(0, 0.03, (count, 2, 3))).transpose(1, 0, 2)[..., None, None]
    images = low + (high - low) * (0.5 + 0.5 * wave[:, None])
    for _ in range(2):
        cy, cx, radius = rng.uniform(-1, 1, column), rng.uniform(-1, 1, column), rng.uniform(0.1, 0.2, column)
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / radius**2)[:, None]
        images += blob * (rng.uniform(0, 1, (count, 3, 1, 1)) - images)
    images += rng.normal(0, 0.4, images.shape)
    return torch.from_numpy((255 * images.clip(0, 1)).astype(np.uint8)), torch.from_numpy(labels)


# ------------------------------------------------------------------------------------------------------- augmentation

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10 (D12)
GREY = (0.2989, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = range(5)


@functools.cache
def constant(values, device):
    """A tensor of these numbers, copied to the device once: the host would wait for each copy to a GPU."""
    return torch.tensor(values, device=device)


def normalise(images):
    """uint8 or [0, 1] float images (N, 3, 32, 32) -> float32 with CIFAR-10's mean and std, channels last for speed."""
    images = images / 255 if images.dtype == torch.uint8 else images
    mean, std = (constant(values, images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    images = (images - mean) / std
    return images.contiguous(memory_format=torch.channels_last)


class Augmentation(NamedTuple):
    """Parameters of one random view for each of n images; all (n,), order (n, 4)."""

    top: torch.Tensor
    left: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    flip: torch.Tensor
    order: torch.Tensor  # the four jitters in the order in which this image gets them
    factors: torch.Tensor  # (n, 4), by jitter: brightness, contrast, saturation, hue
    jitter: torch.Tensor
    grey: torch.Tensor


def draw_augmentation(n, g, size=32):
    """Draw n views as SimSiam's CIFAR recipe does, by torchvision's own rules (Section 3, D12).

    RandomResizedCrop(scale (0.2, 1), ratio (3/4, 4/3)): ten tries, the first box that fits, else the whole image.
    """
    device = g.device

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=g, device=device)

    area = size * size * uniform(0.2, 1, 10)
    ratio = torch.exp(uniform(math.log(3 / 4), math.log(4 / 3), 10))
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (0 < width) & (width <= size) & (0 < height) & (height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)
    width, height = (torch.where(fits, x, size).gather(1, first).squeeze(1) for x in (width, height))
    top = (uniform(0, 1) * (size - height + 1)).floor()
    left = (uniform(0, 1) * (size - width + 1)).floor()
    flip = uniform(0, 1) < 0.5
    order = uniform(0, 1, 4).argsort(dim=1)
    strength = constant((0.4, 0.4, 0.4, 0.1), device)
    factors = constant((1.0, 1.0, 1.0, 0.0), device) + strength * uniform(-1, 1, 4)
    return Augmentation(top, left, height, width, flip, order, factors, uniform(0, 1) < 0.8, uniform(0, 1) < 0.2)


def interpolation(start, length, size=32):
    """Matrices (n, size, size) that resize `length` pixels from `start` on to `size` pixels, bilinearly.

    Output o reads at clamp((o + 0.5) length/size - 0.5, 0, length - 1) + start, between two neighbours inside the
    crop, as torchvision does; sampling the whole image on a grid would read across the crop's edge.
    """
    pixel = torch.arange(size, device=start.device)
    at = (pixel + 0.5) * (length / size)[:, None] - 0.5
    at = at.clamp_min(0).minimum(length[:, None] - 1) + start[:, None]
    return (1 - (at[:, :, None] - pixel).abs()).clamp_min(0)


def grey_scale(x):
    r, g, b = x.unbind(dim=1)
    return (GREY[0] * r + GREY[1] * g + GREY[2] * b)[:, None]  # (n, 1, 32, 32)


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
    """The views (n, 3, 32, 32), float32 and normalised, of uint8 images (n, 3, 32, 32) under parameters `a`.

    Hue comes once per image, at a place of its own among the four jitters: the blends before it are done, then hue,
    then the blends after it. So it is computed once, and no image is selected by value (which would wait on a GPU).
    """
    rows, columns = interpolation(a.top, a.height), interpolation(a.left, a.width)
    columns = torch.where(a.flip[:, None, None], columns.flip(1), columns)
    x = rows[:, None] @ (images / 255) @ columns[:, None].transpose(2, 3)
    order = torch.where(a.jitter[:, None], a.order, NOTHING)
    hue_at = (a.order == HUE).int().argmax(dim=1)
    for place in range(3):
        x = blend(x, torch.where(hue_at > place, order[:, place], NOTHING), a.factors)
    x = shift_hue(x, a.factors[:, HUE] * a.jitter)
    for place in range(1, 4):
        x = blend(x, torch.where(hue_at < place, order[:, place], NOTHING), a.factors)
    x = torch.where(a.grey[:, None, None, None], grey_scale(x), x)
    return normalise(x)


# ----------------------------------------------------------------------------------------------- k-NN and diagnostics

BLOCK = 1024  # images or queries at a time: bounds the memory of an evaluation
RECALIBRATION = 8192  # images of the bank from which the BatchNorm statistics are estimated anew (D7)


@contextlib.contextmanager
def full_float32():
    """No gradients and no TF32: near collapse the differences between features shrink with their variance, and TF32
    would report chance too early."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def recalibrate(model, images):
    """Replace the encoder's running statistics by the cumulative average over these images, as W is now (D7)."""
    for m in model.encoder.trunk:
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = None  # cumulative average
    model.train()
    for block in images.split(BLOCK):
        model.encoder.trunk(normalise(block))


def features(model, images, kind):
    """Features (N, d) of uint8 images (N, 3, 32, 32), evaluation mode, no augmentation: z, d = 128, or trunk, 4,096."""
    network = model.eval().encoder if kind == "z" else model.eval().encoder.trunk
    return torch.cat([network(normalise(block)) for block in images.split(BLOCK)])


def knn_accuracy(train, train_labels, test, test_labels, k, t):
    """Share of test rows (N, d) whose class wins the vote of the k training rows (M, d) nearest in cosine.

    Votes weigh exp((cos - 1) / t), t = inf alike (k = 200: Section 3.1; the weights: Wu et al. 2018).
    """
    train, classes = unit_rows(train), int(train_labels.max()) + 1
    right = torch.zeros((), device=test.device)
    for rows, labels in zip(unit_rows(test).split(BLOCK), test_labels.split(BLOCK), strict=True):
        similarity, nearest = (rows @ train.T).topk(k, dim=1)
        weight = ((similarity - 1) / t).exp()
        votes = torch.zeros(len(rows), classes, device=rows.device).scatter_add_(1, train_labels[nearest], weight)
        right += (votes.argmax(dim=1) == labels).sum()
    return right.item() / len(test)


def rms(x):
    return x.norm() / x.numel() ** 0.5


def geometry(z):
    """Signs of collapse in z (N, d): see the columns center ... dead_samples in README.md."""
    Z = unit_rows(z)
    singular = torch.linalg.svdvals((z - z.mean(dim=0)).double())
    p = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "center": Z.mean(dim=0).norm().item(),
        "z_std": (z.shape[1] ** 0.5 * Z.std(dim=0, correction=0).mean()).item(),
        "effective_rank": torch.special.entr(p).sum().exp().item(),
        "dead_units": (z == 0).all(dim=0).float().mean().item(),
        "dead_samples": (z == 0).all(dim=1).float().mean().item(),
    }


def information(p1, z1, p2, z2, similarity):
    """(mi, entropy) of the Note on a batch of B pairs, both directions averaged; mi <= log B.

    q_ij = Q(z_j; mu = p_i), the likelihood of view j under prediction i: |cos|, exp(cos), or the Gaussian.
    NLL = -mean_i log q_ii,  entropy = -mean_j log mean_i q_ij,  mi = entropy - NLL (information over images, D19).
    """

    def direction(p, z):
        """(mi, entropy) of the targets z under the predictions p."""
        if similarity == "l2":
            log_q = -torch.cdist(p.double(), z.double()).square() / 2
        else:
            s = unit_rows(p) @ unit_rows(z).T
            log_q = s if similarity == "cos" else s.abs().clamp_max(1).log()
        log_q = log_q.clamp_min(math.log(torch.finfo(torch.float32).tiny))
        entropy = -(log_q.logsumexp(dim=0) - math.log(len(log_q))).mean()
        return torch.stack([entropy + log_q.diagonal().mean(), entropy])

    return ((direction(p1, z2) + direction(p2, z1)) / 2).tolist()


def batch_measures(p1, z1, p2, z2, similarity):
    """The columns energy ... entropy of metrics.csv that belong to one minibatch; `loss` is SimSiam's own (signed)."""
    s12, s21 = cosines(p1, z1, p2, z2)
    mi, entropy = information(p1.float(), z1.float(), p2.float(), z2.float(), similarity)
    return {
        "energy": energy(p1, z1, p2, z2, False, similarity).item(),
        "loss": -((s12 + s21) / 2).mean().item(),
        "negative_cos": (torch.cat([s12, s21]) < 0).float().mean().item(),
        "mi": mi,
        "entropy": entropy,
    }


def fixed_subset(images, labels, count, kick):
    """The first `count` of a fixed random order (all, in their own order, if None): the same in every run."""
    if count is None or count == len(images):
        return images, labels
    chosen = torch.randperm(len(images), generator=generator(0, "subset", kick=kick))[:count].to(images.device)
    return images[chosen], labels[chosen]


def evaluate(chain):
    """The k-NN, geometry and minibatch columns of metrics.csv at W as it is now: a dictionary."""
    chain = copy.copy(chain)
    chain.model = copy.deepcopy(chain.model)  # the chain's own buffers and mode stay as they are (D7)
    cfg, model, data = chain.cfg, chain.model, chain.data
    bank, bank_labels = fixed_subset(data.train, data.train_labels, cfg.knn_train, 0)
    test, test_labels = fixed_subset(data.test, data.test_labels, cfg.knn_test, 1)
    with full_float32():
        row = batch_measures(*chain.predict(*chain.encode(*chain.last_views())), cfg.similarity)
        if cfg.bn == "recalibrated":
            count = min(RECALIBRATION, cfg.knn_train or len(data.train))
            recalibrate(model, fixed_subset(data.train, data.train_labels, count, 0)[0])
        test, bank = (features(model, images, cfg.knn_features) for images in (test, bank))
        z = test if cfg.knn_features == "z" else model.encoder.head(test)
        # an overflow in the network or in U, W itself still finite
        if not (all(x.isfinite().all() for x in (bank, test, z)) and math.isfinite(row["energy"])):
            raise FloatingPointError
        row |= geometry(z)
        row["knn"] = knn_accuracy(bank, bank_labels, test, test_labels, cfg.knn_k, cfg.knn_t)
        mean = bank.mean(dim=0)
        row["knn_centered"] = knn_accuracy(bank - mean, bank_labels, test - mean, test_labels, cfg.knn_k, cfg.knn_t)
    largest_class = test_labels.bincount().max().item() / len(test_labels)
    row["collapsed"] = "dead" if row["dead_samples"] > 0.5 else "constant" if row["center"] > 0.99 else "no"
    row["at_chance"] = "yes" if row["knn"] <= 1.2 * largest_class else "no"
    return row


# ------------------------------------------------------------------------------------------------------ the run folder

METRICS = (
    "step grad_evals energy loss negative_cos knn knn_centered center z_std effective_rank dead_units dead_samples mi "
    "entropy kinetic_temperature drift_to_noise distance weight_rms grad_norm collapsed at_chance seconds"
).split()
ENERGY = ["step", "grad_evals", "energy"]
VERSION = 2  # of config.json and checkpoint.pt
LENGTH = ("samples", "updates")
NOT_IN_NAME = ("method", *LENGTH, "data_dir", "device", "out", "checkpoint_every", "keep_every")


def identity(cfg, data, init):
    """What a chain is a function of: the settings of its method, and the content of its data and of --init."""
    groups = ("method", "SGHMC" if cfg.method == "sghmc" else "SGD")
    names = [f.name for f in fields(cfg) if f.metadata["group"] in groups and f.name not in LENGTH]
    chosen = {name: getattr(cfg, name) for name in [*names, "batch_size", "seed", "precision"]}
    if cfg.method == "sghmc":
        chosen["velocity_std"] = cfg.phi_std
    return chosen | {"data": data.identity, "init": init}


def default_folder(cfg):
    """runs/ plus the method and every setting that differs from its default; length, device and paths apart."""
    parts = [cfg.method]
    for f in fields(cfg):
        value, name = getattr(cfg, f.name), f.name.replace("_", "-")
        if value != f.default and f.name not in NOT_IN_NAME:
            if f.name in ("data", "init"):
                value = "-".join(Path(value).parts[-2:]).removesuffix(".pt")
            parts.append({True: name, False: f"no-{name}"}[value] if f.metadata["kind"] is bool else f"{name}-{value}")
    return Path("runs") / re.sub(r"[^\w.+-]+", "-", "_".join(parts))


def write_whole(path, content):
    """Write bytes to a temporary name, to the disk, then rename: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RunFolder:
    """config.json, metrics.csv, energy.csv, checkpoint.pt and samples/ of one chain, for one process at a time."""

    def __init__(self, cfg, chain_identity):
        """Open or make the folder; BadInput if it holds another chain, is in use or cannot be made."""
        self.path = Path(cfg.out) if cfg.out else default_folder(cfg)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.path / ".lock", "a")
        except OSError as error:
            raise BadInput(f"--out {self.path}: cannot make this folder ({one_line(error)}); choose another") from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with its process, however that ends
        except OSError:
            raise BadInput(f"--out {self.path} is in use by another process; wait for it or choose another") from None
        path, self.identity = self.path / "config.json", chain_identity
        self.settings = asdict(cfg)  # of the command that began the run
        if path.exists():
            self.settings = compare_identity(path, chain_identity)
        elif any((self.path / name).exists() for name in ("checkpoint.pt", "metrics.csv", "energy.csv")):
            raise BadInput(f"--out {self.path} holds results but no config.json; put it back or choose another folder")
        else:
            software = {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__}
            config = {"version": VERSION, "identity": chain_identity, "settings": self.settings, "software": software}
            write_whole(path, json.dumps(config, indent=1).encode())

    def load(self):
        """The checkpoint to go on from, both tables cut back to its step; None where nothing was saved yet."""
        path = self.path / "checkpoint.pt"
        saved = read_checkpoint(path) if path.exists() else None
        if saved and saved.get("identity") != self.identity:
            raise BadInput(f"{path} is of another chain than config.json beside it; put the right one back")
        step = saved["step"] if saved else -1
        metrics = kept_rows(self.path / "metrics.csv", METRICS, step)
        energies = kept_rows(self.path / "energy.csv", ENERGY, step - 1)
        if saved and (len(energies), len(metrics)) != (step + 1, saved["rows"] + 1):
            raise BadInput(f"{self.path}: metrics.csv or energy.csv lacks rows up to step {step}; put the file back")
        for name, lines in (("metrics.csv", metrics), ("energy.csv", energies)):
            write_whole(self.path / name, "".join(line + "\n" for line in lines).encode())
        return saved

    def append(self, name, rows):
        """Rows of cells at the end of a table: None is an empty cell, 9 digits tell any two float32 numbers apart."""
        cells = [["" if v is None else f"{v:.9g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
        with open(self.path / name, "a") as file:
            file.writelines(",".join(line) + "\n" for line in cells)
            file.flush()
            os.fsync(file.fileno())

    def save(self, name, content):
        path, buffer = self.path / name, io.BytesIO()
        path.parent.mkdir(exist_ok=True)
        torch.save(content, buffer)
        write_whole(path, buffer.getbuffer())


def compare_identity(path, mine):
    """The settings in the config.json at `path`; BadInput unless it is of this version and describes this chain."""
    try:
        config = json.loads(path.read_text())
        version, theirs, settings = config["version"], config["identity"], dict(config.get("settings", {}))
        differing = [f"{k} (there {theirs.get(k)}, here {v})" for k, v in mine.items() if theirs.get(k) != v]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} cannot be read ({one_line(error)}); put it back or choose another --out") from None
    if version != VERSION:
        raise BadInput(f"{path} is of version {version}, this program writes {VERSION}; choose another --out")
    if differing:
        raise BadInput(f"{path.parent} holds another chain: {', '.join(differing)}; choose another --out")
    return settings


def kept_rows(path, header, last):
    """The lines of a table up to step `last`; a torn last line is dropped, other damage is BadInput."""
    kept, previous = [",".join(header)], -1
    *lines, _torn = path.read_text(errors="replace").split("\n") if path.exists() else [""]
    for number, line in enumerate(lines, 1):
        cells = line.split(",")
        if number == 1 and cells == header:
            continue
        sound = len(cells) == len(header) and cells[0].isdecimal() and re.fullmatch(r"[-+.,\w]+", line)
        if number == 1 or not sound or int(cells[0]) <= previous:
            raise BadInput(f"{path} is damaged in line {number}; mend that line or put the file back")
        previous = int(cells[0])
        kept += [line] if previous <= last else []
    return kept


# ------------------------------------------------------------------------------------------------------------- chains


class Chain:
    """The state of a run: network, its flat W (n,) and G (n,), images on the device, steps and gradients done."""

    def __init__(self, cfg, data, init, device):
        """`init`: the dictionary of a checkpoint to start from, or None for a random network."""
        self.cfg, self.device, self.step, self.grad_evals = cfg, device, 0, 0
        self.model = initial_network(cfg.seed).to(device)
        self.data = Images(*(x.to(device) for x in data[:4]), data.identity)
        self.W, self.G = flatten_parameters(self.model)
        self.momentum = torch.zeros_like(self.W)
        if init:
            self.restore({"weights": init["weights"], "buffers": init["buffers"]})
        self.start = self.W.clone()
        self.per_epoch = len(data.train) // cfg.batch_size  # the last incomplete batch is dropped (D11)
        self.length = cfg.samples if cfg.method == "sghmc" else cfg.updates or cfg.epochs * self.per_epoch
        self.optimisers = sgd_optimisers(self)
        self.last, self.pending = {}, []  # columns of the last step; (step, grad_evals, U, finite) since the last save

    def restore(self, saved):
        """Take over what `saved` holds of a checkpoint."""
        self.W.copy_(saved["weights"])
        self.model.load_state_dict(saved["buffers"], strict=False)
        self.momentum.copy_(saved.get("momentum", self.momentum))
        self.step, self.grad_evals = saved.get("step", 0), saved.get("grad_evals", 0)

    def state(self):
        """The checkpoint: everything the rest of the chain depends on, since every draw is a function of its step."""
        state = {"config": asdict(self.cfg), "step": self.step, "grad_evals": self.grad_evals}
        state |= {"weights": self.W.cpu(), "buffers": {k: b.cpu() for k, b in self.model.named_buffers()}}
        return state | ({"momentum": self.momentum.cpu()} if self.cfg.method == "sgd" else {})

    def views(self, step, kick=0):
        """Two augmented views of a minibatch, each (B, 3, 32, 32): a function of (seed, step, kick) alone (D17)."""
        cfg, n, B, place = self.cfg, len(self.data.train), self.cfg.batch_size, 0
        if cfg.method == "sgd":  # shuffled epochs
            epoch, place = divmod(step, self.per_epoch)
            g = generator(cfg.seed, "epoch", epoch, device=self.device)
        else:
            g = generator(cfg.seed, "minibatch", step, kick, self.device)
        chosen = torch.randperm(n, generator=g, device=self.device)[place * B : (place + 1) * B]
        images = self.data.train[chosen]
        g = generator(cfg.seed, "augmentation", step, kick, self.device)
        return tuple(apply_augmentation(images, draw_augmentation(B, g)) for _ in range(2))

    def last_views(self):
        """The minibatch of the last gradient, or of the first one before there is any."""
        kicks = self.cfg.method == "sghmc" and self.cfg.batch_per == "kick" and self.step > 0
        return self.views(max(self.step - 1, 0), 2 * self.cfg.L - 2 if kicks else 0)

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.precision == "bf16")

    def encode(self, view1, view2):
        """(z1, z2): each view is a forward pass of its own (D7)."""
        with self.autocast():
            return self.model.encoder(view1), self.model.encoder(view2)

    def predict(self, z1, z2):
        """(p1, z1, p2, z2), the arguments of the energy."""
        with self.autocast():
            p1, p2 = self.model.predictor(z1), self.model.predictor(z2)
        return p1, z1, p2, z2

    def gradient(self, z1, z2):
        """U of a minibatch from its encodings; G becomes its gradient with respect to all that the network computed."""
        self.G.zero_()
        U = energy(*self.predict(z1, z2), self.cfg.sg, self.cfg.similarity)
        U.backward()
        return U.detach()


def sghmc_sample(chain):
    """W_t -> W_{t+1} by one sghmc_step on minibatch energies; 2L-1 gradients, or L with one batch per sample (D3)."""
    cfg, t = chain.cfg, chain.step
    calls, seen = itertools.count(), {"row": {}}

    def grad(X):
        """Gradient of energy_scale U + |W|^2 / (2 prior_std^2) at X; keeps what the tables need."""
        kick, seen["X"], g = next(calls), X, 0.0
        chain.W.copy_(X)
        if cfg.energy_scale > 0:
            U = chain.gradient(*chain.encode(*chain.views(t, kick if cfg.batch_per == "kick" else 0)))
            chain.grad_evals += 1
            g = chain.G if cfg.energy_scale == 1 else cfg.energy_scale * chain.G
            if kick == 0:
                seen["row"] = {"energy": U, "grad_norm": chain.G.norm()}
        if cfg.prior_std:
            g = g + X / cfg.prior_std**2
        if kick == 0:
            seen["force"] = rms(torch.as_tensor(g))
        return g

    z = normals(cfg.seed, t, len(chain.W), chain.device)
    z = itertools.chain([cfg.phi_std / math.sqrt(cfg.mass) * next(z)], z)
    once = cfg.batch_per == "sample"
    W = sghmc_step(chain.W.clone(), z, grad, eps=cfg.eps, L=cfg.L, alpha=cfg.alpha, mass=cfg.mass, reuse_grad=once)
    chain.W.copy_(W)
    Phi = cfg.mass * (W - seen["X"]) / cfg.eps  # after the last computed half-kick: the last drift shows it
    # the first drift is eps/M ((1 - alpha) Phi_0 - eps/2 g + N(0, 2 alpha M)): its second term over the random ones
    noise = math.sqrt((1 - cfg.alpha) ** 2 * cfg.phi_std**2 + 2 * cfg.alpha * cfg.mass)
    drift_to_noise = cfg.eps / 2 * seen["force"] / noise
    return seen["row"] | {"kinetic_temperature": (Phi.square() / cfg.mass).mean(), "drift_to_noise": drift_to_noise}


def learning_rate(cfg, epoch):
    """Learning rate of SGD in an epoch (from 0): linear warm-up per epoch, then cosine per epoch to 0 (D10)."""
    if epoch < cfg.warmup_epochs:
        return cfg.lr * (epoch + 1) / cfg.warmup_epochs
    if not cfg.cosine:
        return cfg.lr
    done = min(1, (epoch - cfg.warmup_epochs) / (cfg.epochs - cfg.warmup_epochs))  # 1: beyond --epochs, 0 for good
    return cfg.lr * (1 + math.cos(math.pi * done)) / 2


def sgd_optimisers(chain):
    """torch's SGD on the encoder's and on the predictor's part of W; their momentum is kept in chain.momentum."""
    cfg, optimisers = chain.cfg, []
    n = sum(p.numel() for p in chain.model.encoder.parameters())
    for part in (slice(0, n), slice(n, None)):
        weights = nn.Parameter(chain.W[part])
        weights.grad = chain.G[part]
        optimiser = torch.optim.SGD([weights], lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
        optimiser.state[weights]["momentum_buffer"] = chain.momentum[part]
        optimisers.append(optimiser)
    return optimisers


def sgd_update(chain):
    """One update of encoder and predictor by SGD (A.5), after predictor_steps - 1 updates of the predictor alone.

    The Note's bound is tighter the better the predictor is, so it moves first, on the same encodings. Those partial
    gradients stop at z and cost next to nothing: grad_evals counts whole ones.
    """
    cfg, (encoder, predictor) = chain.cfg, chain.optimisers
    lr = learning_rate(cfg, chain.step // chain.per_epoch)
    encoder.param_groups[0]["lr"], predictor.param_groups[0]["lr"] = lr, lr * cfg.predictor_lr_mult
    z1, z2 = chain.encode(*chain.views(chain.step))
    for _ in range(cfg.predictor_steps - 1):
        chain.gradient(z1.detach(), z2.detach())
        predictor.step()
    U = chain.gradient(z1, z2)
    chain.grad_evals += 1
    grad_norm = chain.G.norm()
    encoder.step()
    predictor.step()
    return {"energy": U, "grad_norm": grad_norm}


def advance(chain):
    """One sample or update. What it leaves for the tables stays on the device until it is saved."""
    t, grad_evals = chain.step, chain.grad_evals
    chain.last = sghmc_sample(chain) if chain.cfg.method == "sghmc" else sgd_update(chain)
    chain.step += 1
    U = chain.last.get("energy")
    watched = [chain.W, *chain.model.buffers()] + ([] if U is None else [U])
    finite = torch.stack([x.isfinite().all() for x in watched]).all()
    chain.pending.append((t, grad_evals, U, finite))


# ---------------------------------------------------------------------------------------------------------------- run


class RunStopped(Exception):
    """The run ended before its last step; what the last checkpoint holds is good. One line on stderr."""

    def __init__(self, message, code=3):
        super().__init__(message)
        self.code = code


class Run:
    """A chain in its folder: the one loop of both methods, with tables, checkpoints and signals."""

    def __init__(self, cfg):
        """Read and check everything first: bad input must not change a file."""
        device = pick_device(cfg.device)
        init = read_checkpoint(cfg.init) if cfg.init else None
        data = load_data(cfg.data, cfg.data_dir)
        check_sizes(cfg, data)
        self.cfg, self.chain = cfg, Chain(cfg, data, init, device)
        start = hashlib.sha256(self.chain.start.cpu().numpy()).hexdigest()[:16] if init else None
        self.folder = RunFolder(cfg, identity(cfg, data, start))
        self.saved = self.folder.load()
        self.began = self.shown = time.monotonic()
        if self.saved:
            self.chain.restore(self.saved)
            self.began -= self.saved["seconds"]
        self.rows = self.saved["rows"] if self.saved else 0  # of metrics.csv
        self.terminal = sys.stdout.isatty()

    def go(self, signals):
        """Run to the end; `signals` fills with the signals received, the first of which asks to save and stop."""
        cfg, chain = self.cfg, self.chain
        self.say(f"{self.folder.path}: {opening(cfg, chain)}")
        for f in fields(cfg):
            value = getattr(cfg, f.name)
            first = self.folder.settings.get(f.name, value)
            if f.metadata["group"] == "evaluation" and f.name != "eval_every" and value != first:
                self.say(f"note: {flag(f.name)} was {first} in the first rows of metrics.csv, now {value}")
        if not self.saved:
            if signals:
                raise RunStopped("stopped before the first step; the same command begins it", 128 + signals[0])
            self.say("step 0: evaluating the start")
            self.evaluate()
            self.save()
        first, began = chain.step, time.monotonic()
        while chain.step < chain.length and not signals:
            advance(chain)
            if chain.device.type == "cpu":  # elsewhere this look would wait for the sample; evaluate and save look too
                self.check_finite(newest=True)
            due = chain.step % cfg.eval_every == 0 or chain.step == chain.length
            if due:
                self.evaluate()
            if cfg.keep_every and chain.step % cfg.keep_every == 0:  # before the checkpoint: a kill between them
                self.check_finite()  # would lose the sample
                self.folder.save(f"samples/{chain.step}.pt", chain.state())
            if due or chain.step % cfg.checkpoint_every == 0:
                self.save()
            self.progress(chain.step - first, time.monotonic() - began)
        if chain.step < chain.length:
            self.save()
            raise RunStopped(f"saved at step {chain.step}; the same command goes on from there", 128 + signals[0])
        self.say(summary(self.folder.path, cfg.knn_test or len(chain.data.test)))

    def check_finite(self, newest=False):
        """RunStopped at the first step since the last save after which U or W was not finite: nothing bad is saved."""
        steps = self.chain.pending[-1:] if newest else self.chain.pending
        finite = torch.stack([step[3] for step in steps]).tolist() if steps else []
        if not all(finite):
            raise self.diverged("energy, weights or statistics", steps[finite.index(False)][0])

    def diverged(self, what, step):
        remedy = "--eps (leapfrog is stable for eps < 2 sqrt(M / k), k the largest curvature of the energy)"
        return RunStopped(
            f"{what} are not finite at step {step}; the last good state is {self.folder.path}/checkpoint.pt; "
            f"try a smaller {'--lr' if self.cfg.method == 'sgd' else remedy}"
        )

    def evaluate(self):
        """Append the row of metrics.csv for W as it is now."""
        chain = self.chain
        self.check_finite()
        try:
            row = {"step": chain.step, "grad_evals": chain.grad_evals} | evaluate(chain)
        except FloatingPointError:
            raise self.diverged("features", chain.step) from None
        row |= {"distance": rms(chain.W - chain.start).item(), "weight_rms": rms(chain.W).item()}
        row |= {name: value.item() for name, value in chain.last.items() if name != "energy"}
        row["seconds"] = time.monotonic() - self.began
        self.say("step {step:,}: energy {energy:.4f}, k-NN {knn:.2%}, centre ratio {center:.4f}".format(**row))
        self.folder.append("metrics.csv", [[row.get(name) for name in METRICS]])
        self.rows += 1

    def save(self):
        """Write the energies since the last save, then the checkpoint."""
        self.check_finite()
        chain = self.chain
        energies = [step[2] for step in chain.pending]
        values = torch.stack(energies).tolist() if energies and energies[0] is not None else energies
        self.folder.append("energy.csv", [(*step[:2], U) for step, U in zip(chain.pending, values, strict=True)])
        own = {"identity": self.folder.identity, "rows": self.rows, "seconds": time.monotonic() - self.began}
        self.folder.save("checkpoint.pt", chain.state() | own)
        chain.pending = []

    def say(self, text, rewritten=False):
        """Print a line; on a terminal one that the next rewrites, if so wished."""
        print(f"\r\033[K{text}" if self.terminal else text, end="" if self.terminal and rewritten else "\n", flush=True)

    def progress(self, steps, seconds):
        """Rate and time left: after three steps, then twice a second on a terminal and every half minute elsewhere."""
        if steps == 3 or time.monotonic() - self.shown > (0.5 if self.terminal else 30):
            self.shown, chain = time.monotonic(), self.chain
            left = duration(seconds / steps * (chain.length - chain.step))
            text = f"step {chain.step:,} of {chain.length:,}, {seconds / steps:.3g} s per step, {left} left"
            self.say(text, rewritten=True)


def duration(seconds):
    """90 -> "1.5 min", for people."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def pick_device(name):
    """The torch.device of --device, tried out; BadInput if it cannot be used."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type not in ("cpu", "cuda"):
            raise ValueError("only cpu and cuda are supported")
        torch.randn(1, generator=torch.Generator(device), device=device)
    except Exception as error:  # an unknown name, no driver, no such number: many types
        raise BadInput(f"--device {name} cannot be used here ({one_line(error)[:80]}); try --device cpu") from None
    return device


def check_sizes(cfg, data):
    """BadInput where the data are smaller than what the settings ask of them."""
    for name, asked, there in (
        ("--batch-size", cfg.batch_size, len(data.train)),
        ("--knn-train", cfg.knn_train, len(data.train)),
        ("--knn-test", cfg.knn_test, len(data.test)),
        ("--knn-k", cfg.knn_k, cfg.knn_train or len(data.train)),
    ):
        if asked and asked > there:
            raise BadInput(f"{name} {asked}: there are only {there} images for it; give at most that")


def opening(cfg, chain):
    """What this run is and what it will cost."""
    per_step, left, horizon = 1, max(0, chain.length - chain.step), cfg.epochs * chain.per_epoch
    if cfg.method == "sghmc":
        per_step = (2 * cfg.L - 1 if cfg.batch_per == "kick" else cfg.L) * (cfg.energy_scale > 0)
    threads = f" ({torch.get_num_threads()} threads)" if chain.device.type == "cpu" else ""
    text = f"{cfg.method} on {chain.device}{threads} from step {chain.step:,}, "
    text += f"{left:,} steps = {left * per_step:,} gradients"
    if cfg.method == "sghmc" and cfg.sg:
        text += "\nnote: a stop-gradient field is not the gradient of any energy, so this chain samples no posterior"
    if cfg.method == "sgd" and cfg.cosine and chain.length > horizon:
        text += f"\nnote: the learning rate is 0 from update {horizon:,} on, where the {cfg.epochs} --epochs end"
    return text


def summary(path, tests):
    """The verdict, from the first and the last row of metrics.csv; k-NN was taken on this many test images."""
    with open(path / "metrics.csv", newline="") as file:
        first, *_, last = 2 * list(csv.DictReader(file))
    start, end = float(first["knn"]), float(last["knn"])
    text = f"done: collapsed: {last['collapsed']} (centre ratio {float(last['center']):.4f}), at chance: "
    text += f"{last['at_chance']}, k-NN {start:.2%} at the start, {end:.2%} at step {int(last['step']):,} "
    text += f"(standard error {math.sqrt(end * (1 - end) / tests):.2%})"
    if last["drift_to_noise"]:
        ratio = float(last["drift_to_noise"])
        text += f"\nin the first drift of the last sample the gradient's part was {ratio:.1g} of the noise's"
    return f"{text}\ntables and checkpoint are in {path}/"


# ------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    def error(self, message):
        unknown = re.findall("^unrecognized arguments: (--[^ =]+)", message)
        near = [name for word in unknown for name in difflib.get_close_matches(word, self._option_string_actions, n=1)]
        raise BadInput(message + (f"; did you mean {near[0]}?" if near else " (--help lists the settings)"))


EXAMPLES = {  # for --help
    "method": "--method sgd --no-sg --similarity cos                  SGD without stop-gradient: it collapses",
    "SGHMC": "--no-sg --eps 1e-2 --L 5 --samples 2000                a chain of Figure 1, shorter",
    "SGD": "--method sgd --lr 3e-3 --updates 4850 --no-cosine      50 epochs at a constant rate after the warm-up",
    "data": "--data photos --batch-size 128                         photos/train/cat/1.png, photos/test/cat/2.png, ...",
    "evaluation": "--eval-every 50 --knn-train 5000 --knn-test 2000       often, on fixed subsets",
    "system": "--init runs/a/checkpoint.pt --seed 1                   from another run's last state",
}


def parse(argv):
    """(Config, the settings that were given): the command line is made from the fields of Config."""
    parser = Parser(
        usage="python simsiam_sghmc.py [SETTING VALUE] ...", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        description=__doc__.split("\n\n")[0], epilog="The same command again resumes. [ ]: default; D1 ...: README.md.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=120),
    )  # fmt: skip
    groups = {}
    for f in fields(Config):
        group, kind, text = (f.metadata[k] for k in ("group", "kind", "text"))
        groups[group] = groups.get(group) or parser.add_argument_group(group, "example: " + EXAMPLES[group])
        options = {"type": kind, "metavar": {int: "N", float: "X", str: "NAME"}.get(kind)}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif isinstance(kind, tuple):
            options = {"choices": kind}
        default = ("off", "on")[f.default] if kind is bool else f.default
        text += "" if default is None else f" [{default}]"
        groups[group].add_argument(flag(f.name), help=text.replace("%", "%%"), **options)
    given = vars(parser.parse_args(argv))
    return Config(**given), given


@contextlib.contextmanager
def caught_signals():
    """The list that receives SIGINT and SIGTERM; a second one ends the process at once."""
    received = []

    def receive(signum, _frame):
        if received:
            os._exit(128 + signum)
        received.append(signum)
        with contextlib.suppress(OSError):  # not print(): the handler may have interrupted one
            os.write(1, b"\nstopping after this step (a second signal ends at once)\n")

    main_thread = threading.current_thread() is threading.main_thread()  # only there can handlers be set
    before = {s: signal.signal(s, receive) for s in (signal.SIGINT, signal.SIGTERM)} if main_thread else {}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def keep_freed_memory():
    """Ask glibc to keep freed memory in the process instead of returning each large tensor to the system.

    Fresh pages are zeroed by the kernel: on the CPU that took 5 to 40 % of a gradient at batch 512.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give back


def main(argv=None):
    """The command line; returns the exit code: 0 done, 2 bad input, 3 stopped at run time, 130 and 143 by a signal."""
    try:
        cfg, given = parse(argv)
        for f in fields(cfg):
            if f.name in given and f.metadata["group"] == ("SGD" if cfg.method == "sghmc" else "SGHMC"):
                print(f"note: --method {cfg.method} does not use {flag(f.name)}")
        with caught_signals() as signals:
            run = Run(cfg)
            keep_freed_memory()  # not before: what loading the data needed for a moment would be kept too
            run.go(signals)
        return 0
    except (BadInput, RunStopped) as error:
        code, message = error.code, str(error)  # the exception itself would keep the run, and with it the lock
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        code, message = 3, f"out of memory ({one_line(error)[:80]}); give a smaller --batch-size"
    except OSError as error:  # disk full, folder gone: write_whole left the last checkpoint as it was
        code, message = 3, f"cannot write the run ({one_line(error)}); mend that, then the same command goes on"
    print(f"simsiam_sghmc: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
