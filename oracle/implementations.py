"""A module under test: how it is loaded, what it can do, and its answers as float64 arrays."""

import importlib
import importlib.util
import os
import shlex
import sys
import traceback
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

import reference_numpy
from oracle.names import CAPABILITIES, close_names, takes

ROOT = Path(__file__).resolve().parent.parent
BITS = {"float64": 53, "float32": 24}


class Broken(AssertionError):
    """An answer that cannot be judged at all; the message says why, in one line."""


class Unusable(Exception):
    """A module that cannot be tested: one line that says why."""


@dataclass(eq=False)
class Implementation:
    """A module under test; its functions are called through here and answer in float64 arrays."""

    name: str
    module: object
    dtype: str = "float64"
    ours: bool = False         # a built-in: U >= 0 and finite whatever the input, no slack
    scalar_mass: bool = False  # MASS = "scalar": no test passes a vector

    @property
    def u(self):
        """Unit roundoff."""
        return Fraction(1, 2 ** BITS[self.dtype])

    def has(self, capability):
        return callable(getattr(self.module, capability, None))

    def accepts(self, keyword):
        """Whether sghmc_step takes `mass` or `b_hat`; no test passes them otherwise."""
        if keyword.endswith(" per coordinate"):
            return self.accepts(keyword.split()[0]) and not self.scalar_mass
        return takes(getattr(self.module, "sghmc_step", None), keyword)

    def step(self, w, z, grad, **settings):
        """W_{t+1} as a float64 array (n,)."""
        return numbers(self.module.sghmc_step(w, z, grad, **settings), np.shape(w), "sghmc_step returns")

    def energy(self, *batch, **similarity):
        return float(numbers(self.module.energy(*batch, **similarity), (), "energy returns"))

    def energy_grad(self, *batch_and_stop_grad, **similarity):
        """(g_p1, g_z1, g_p2, g_z2) as float64 arrays (B, d)."""
        gradients = self.module.energy_grad(*batch_and_stop_grad, **similarity)
        assert len(gradients) == 4, f"energy_grad returns 4 arrays, not {len(gradients)}"
        return [numbers(g, np.shape(batch_and_stop_grad[0]), "energy_grad returns") for g in gradients]


def numbers(x, shape, what):
    """A float64 copy of any array-like: NumPy, jax, torch, lists, Python floats. Broken: it is none, or of another
    shape."""
    if x is None:
        raise Broken(f"{what} None instead of an array of shape {shape} (zeros, where nothing depends on it)")
    x = x.detach().cpu() if hasattr(x, "detach") else x  # a tensor that requires a gradient, or of a device
    if np.iscomplexobj(x):
        raise Broken(f"{what} complex numbers")
    try:
        array = np.asarray(x, dtype=np.float64).copy()
    except Exception as error:
        raise Broken(f"{what} {type(x).__name__}, which is no array of numbers: {error}") from None
    if array.shape != shape:
        kind = f" (a tuple of {len(x)})" if isinstance(x, tuple) else ""
        raise Broken(f"{what} shape {array.shape}{kind} instead of {shape}")
    return array


def where(error, module):
    """The place of an exception in the module's own code, or else in code that is neither ours nor installed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename == getattr(module, "__file__", None)]
    own = own or [f for f in frames if ROOT not in Path(f.filename).resolve().parents
                  and "site-packages" not in f.filename and f.filename != "reference_variant"]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


NUMPY = Implementation("numpy", reference_numpy, ours=True)
SINGLE = Implementation("single precision", None, "float32")  # for its unit roundoff alone


def places(text):
    """The entries of SGHMC_IMPL. A path with blanks is taken whole if there is such a file; quotes work too."""
    try:
        words, found = (text.split() if "'" not in text and '"' not in text else shlex.split(text)), []
    except ValueError as error:
        raise Unusable(f"SGHMC_IMPL: {error}") from None
    while words:
        longest = next((n for n in range(len(words), 1, -1) if file_of(" ".join(words[:n])).is_file()), 1)
        found.append(" ".join(words[:longest]))
        words = words[longest:]
    return found


def file_of(place):
    """A path as given, or else seen from this repository."""
    return Path(place) if Path(place).exists() else ROOT / place


def load(place):
    """The module behind one entry of SGHMC_IMPL, a dotted name or a file. Unusable: it cannot be tested."""
    def refuse(reason):
        raise Unusable(f"SGHMC_IMPL: {place}: {reason}")

    try:
        module = from_file(place, refuse) if place.endswith(".py") or os.sep in place else from_name(place)
    except Unusable:
        raise
    except (Exception, SystemExit) as error:  # a script that runs at its import may end with sys.exit()
        refuse(f"cannot be imported: {type(error).__name__}: {error}")
    if not any(hasattr(module, c) for c in CAPABILITIES):
        meant = close_names(module)
        refuse(meant[0] if meant else f"defines none of {', '.join(CAPABILITIES)}")
    dtype = str(getattr(module, "DTYPE", "float64"))
    known = [name for name in BITS if name in dtype]
    if not known:
        refuse(f"DTYPE must be float64 or float32, not {dtype}")
    mass = getattr(module, "MASS", "")
    if isinstance(mass, str) and mass not in ("", "scalar"):
        refuse(f'MASS must be "scalar" or left out, not {mass!r}')
    return Implementation(place, module, known[0], scalar_mass=mass == "scalar")


def from_file(place, refuse):
    """The module of a file; refuse(why) raises Unusable."""
    file = file_of(place)
    if not file.is_file():
        refuse("a folder, not a file" if file.is_dir() else "no such file")
    sys.path.insert(0, str(file.resolve().parent))  # as `python file` would: it may import its neighbours
    spec = importlib.util.spec_from_file_location(f"sghmc_impl_{file.stem}", file)
    if spec is None:
        refuse("not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_name(place):
    sys.path.insert(0, os.getcwd())
    return importlib.import_module(place)
