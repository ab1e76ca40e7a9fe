"""The network of Appendix A.2 and its flat parameter vector."""

import pytest
import torch
from slim_network import SlimSimSiam
from torch import nn

import simsiam_sghmc as s

pytestmark = pytest.mark.usefixtures("whole_network")


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_network_has_the_parameters_of_appendix_a2():
    model = s.SimSiam()
    assert (count(model.encoder), count(model.predictor), count(model)) == (1_651_392, 16_704, 1_668_096)


def test_the_layers_come_in_the_order_of_appendix_a2():
    model = s.SimSiam()
    convolution = [nn.Conv2d, nn.ReLU] * 2 + [nn.MaxPool2d, nn.BatchNorm2d]
    assert [type(m) for m in model.encoder.trunk] == 3 * convolution + [nn.Flatten]
    assert [type(m) for m in model.encoder.head] == [nn.Linear, nn.ReLU]
    assert [type(m) for m in model.predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    sizes = [(3, 32), (32, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == sizes
    assert {(m.kernel_size, m.padding, m.stride) for m in convolutions} == {((3, 3), (1, 1), (1, 1))}


def test_the_slim_network_of_the_other_tests_is_this_one_but_for_its_widths():
    whole, slim = ([(name, type(m)) for name, m in model.named_modules()][1:] for model in (s.SimSiam(), SlimSimSiam()))
    assert whole == slim and SlimSimSiam.forward is s.SimSiam.forward
    assert 30 * count(SlimSimSiam()) < count(s.SimSiam())


def test_an_image_becomes_4096_trunk_features_and_128_numbers_that_are_not_negative():
    model, x = s.SimSiam(), torch.randn(5, 3, 32, 32)
    assert model.encoder.trunk(x).shape == (5, 4096)
    p, z = model(x)
    assert p.shape == z.shape == (5, 128)
    assert (z >= 0).all() and (p < 0).any()


def test_the_predictor_sees_the_raw_z():
    model = s.SimSiam().eval()
    p, z = model(torch.randn(4, 3, 32, 32))
    assert torch.equal(p, model.predictor(z))
    assert not torch.allclose(p, model.predictor(s.unit_rows(z)), atol=1e-3)


def test_the_parameters_are_views_of_one_flat_vector_and_gradients_add_into_another():
    model = s.initial_network(0)
    before = [p.detach().clone() for p in model.parameters()]
    W, G = s.flatten_parameters(model)
    assert W.shape == G.shape == (1_668_096,)
    assert torch.equal(W, torch.cat([p.flatten() for p in before]))
    W.mul_(2)
    assert all(torch.equal(p, 2 * b) for p, b in zip(model.parameters(), before, strict=True))
    p, z = model(torch.randn(4, 3, 32, 32))
    (p.square().sum() + z.sum()).backward()
    assert torch.equal(G, torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert G.norm() > 0


def test_the_initial_network_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, again, other = (nn.utils.parameters_to_vector(s.initial_network(k).parameters()) for k in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)
