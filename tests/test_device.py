"""The host never waits for the device within a sample or an update, shown without a GPU.

The chain lives on PyTorch's "meta" device, whose tensors have shapes but no values: what would make the host wait for a
GPU, a value read or a shape that depends on values, cannot be had there at all. Numbers that stay on the host, such as
the mass M, do not count. What meta does not refuse is recorded: copies from the host to the device and back.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import simsiam_sghmc
from simsiam_sghmc import Chain, Config, Images

META = torch.device("meta")
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2"}
COPIES = {"_to_copy", "copy_", "_copy_from", "index_put_", "set_"}
FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy)
SETTINGS = {
    "kick": {"L": 2, "batch_per": "kick"},
    "sample": {"L": 2, "batch_per": "sample"},
    "random walk": {"L": 2, "energy_scale": 0},
    "prior": {"L": 1, "prior_std": 0.5, "energy_scale": 2.0},
    "random walk with prior": {"L": 1, "energy_scale": 0, "prior_std": 0.5},
    "cos": {"L": 1, "similarity": "cos", "sg": True},
    "l2": {"L": 1, "similarity": "l2"},
    "sgd": {"method": "sgd", "epochs": 20},
    "sgd, predictor": {"method": "sgd", "epochs": 20, "predictor_steps": 2},
}


def on_device(tensors):
    return [x.device.type for x in tree_leaves(tensors) if isinstance(x, torch.Tensor)]


class Operators(TorchDispatchMode):
    """Records the operators that would make the host wait."""

    def __init__(self):
        super().__init__()
        self.waiting, self.count = [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operator.overloadpacket.__name__
        before = on_device((args, kwargs))
        masks = [x for x in tree_leaves(args[1:]) if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
        indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_") and masks
        if "meta" in before and (name in READS or indexed):
            self.waiting.append(str(operator))
        result = operator(*args, **kwargs)
        self.count += 1
        if name in COPIES and len(set(before + on_device(result))) > 1:
            self.waiting.append(str(operator))
        return result


class Constants(TorchFunctionMode):
    """Records tensors made of Python numbers on the device: on a GPU a copy from the host, for which it waits."""

    def __init__(self):
        super().__init__()
        self.waiting = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in FROM_HOST and "meta" in on_device(result) and "meta" not in on_device(args):
            self.waiting.append(f"torch.{function.__name__}{args}")
        return result


@pytest.fixture
def meta_chain(monkeypatch):
    """meta_chain(settings) -> a Chain on the meta device, which has made views once: that copies constants to it.

    That device has no generators and no autocast: the draws get none, and precision is fp32.
    """
    seeded = simsiam_sghmc.generator

    def generator(seed, purpose, step=0, kick=0, device="cpu"):
        on_meta = torch.device(device) == META
        return SimpleNamespace(device=META) if on_meta else seeded(seed, purpose, step, kick, device)

    for name in ("rand", "randn", "randperm"):
        draw = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *shape, generator, draw=draw, device: draw(*shape, device=device))
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_settings: contextlib.nullcontext())

    def make(settings):
        images, labels = torch.zeros(24, 3, 32, 32, dtype=torch.uint8), torch.zeros(24, dtype=torch.int64)
        cfg = Config(**({"sg": False, "batch_size": 4} | settings))
        chain = Chain(cfg, Images(images, labels, images, labels, "none"), None, META)
        monkeypatch.setattr(simsiam_sghmc, "generator", generator)
        some = simsiam_sghmc.draw_augmentation(24, SimpleNamespace(device=META))
        simsiam_sghmc.apply_augmentation(chain.data.train, some)
        return chain

    return make


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_host_never_waits_for_the_device_within_a_step(meta_chain, settings):
    chain = meta_chain(settings)
    with Operators() as operators, Constants() as constants:
        chain.advance()
    assert not operators.waiting and not constants.waiting
    assert operators.count > 20 and chain.step == 1 and chain.W.device == META
