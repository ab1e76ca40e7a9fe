"""k-NN, signs of collapse and the Note's information, against plain NumPy and closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simsiam_sghmc as s


def brute_force_knn(train, train_labels, test, test_labels, k):
    """The protocol in float64, one test row at a time."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    right = 0
    for row, label in zip(unit[1], test_labels, strict=True):
        similarity = unit[0] @ row
        nearest = np.argsort(-similarity)[:k]
        votes = np.zeros(train_labels.max() + 1)
        for j in nearest:
            votes[train_labels[j]] += np.exp((similarity[j] - 1) / 0.1)
        right += votes.argmax() == label
    return right / len(test_labels)


@pytest.mark.parametrize("k", [1, 7, 50, 200])
def test_knn_accuracy_is_that_of_a_brute_force_vote(k):
    rng = np.random.default_rng(k)
    labels, test_labels = rng.integers(0, 5, 400), rng.integers(0, 5, 150)
    centres = rng.normal(size=(5, 16))
    train = centres[labels] + 2 * rng.normal(size=(400, 16))
    test = (centres[test_labels] + 2 * rng.normal(size=(150, 16))) * rng.uniform(0.1, 9, (150, 1))
    wanted = brute_force_knn(train, labels, test, test_labels, k)
    tensors = [torch.from_numpy(x) for x in (train.astype(np.float32), labels, test.astype(np.float32), test_labels)]
    assert s.knn_accuracy(*tensors, k) == pytest.approx(wanted, abs=1e-12)
    assert 0.25 < wanted < 0.95


def test_the_votes_are_the_summed_weights_of_the_nearest_by_class():
    train, test = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]]), torch.tensor([[2.0, 0], [0, 3]])
    votes = s.knn_votes(train, torch.tensor([0, 1, 1, 2]), test, k=2)
    near = math.exp((0.5**0.5 - 1) / 0.1)
    assert torch.allclose(votes, torch.tensor([[1, near, 0], [0, 1 + near, 0]]), atol=1e-6)


def test_knn_accuracy_ignores_the_length_of_rows_and_the_order_of_the_bank():
    g = torch.Generator().manual_seed(0)
    bank, labels = torch.randn(300, 8, generator=g), torch.randint(0, 3, (300,), generator=g)
    test, test_labels = torch.randn(90, 8, generator=g), torch.randint(0, 3, (90,), generator=g)
    order = torch.randperm(300, generator=g)
    plain = s.knn_accuracy(bank, labels, test, test_labels, 20)
    assert s.knn_accuracy(8 * bank[order], labels[order], test / 4, test_labels, 20) == plain


def test_rectified_gaussian_features_look_healthy():
    z = torch.randn(4000, 128, generator=torch.Generator().manual_seed(0)).clamp_min(0)
    signs = s.geometry(z)
    assert signs["center"] == pytest.approx(math.sqrt(1 / math.pi), abs=0.01)  # E[z]^2 / E[z^2] = 1/pi
    assert signs["effective_rank"] > 120 and signs["dead_samples"] == 0


def test_a_constant_output_has_centre_ratio_one():
    signs = s.geometry(torch.rand(1, 128).expand(500, 128))
    assert signs["center"] == pytest.approx(1, abs=1e-6)


def test_dead_samples_is_the_share_of_zero_rows():
    z = torch.rand(40, 8) + 0.1
    z[:, :2] = 0
    z[:10] = 0
    assert s.geometry(z)["dead_samples"] == 0.25
    silent = s.geometry(torch.zeros(40, 8))
    assert silent["dead_samples"] == 1 and all(math.isfinite(v) for v in silent.values())


def test_the_effective_rank_counts_equal_directions():
    z = torch.cat([torch.eye(6), -torch.eye(6)]) @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(torch.cat([torch.eye(6), -torch.eye(6)])[:, :6], full_matrices=False)
    assert s.geometry(u @ v)["effective_rank"] == pytest.approx(6, abs=1e-4)
    assert s.geometry(z[:, :1] * torch.ones(1, 6))["effective_rank"] == pytest.approx(1, abs=1e-4)


def test_loss_is_simsiams_and_negative_cos_the_share_of_negative_cosines():
    p1, z2 = torch.tensor([[2.0, 0], [3, 0], [0, 1]]), torch.tensor([[5.0, 0], [-1, 0], [0.6, -0.8]])  # 1, -1, -0.8
    p2, z1 = torch.tensor([[0.0, 1], [1, 0], [4, 0]]), torch.tensor([[1.0, 0], [0.6, 0.8], [2, 0]])  # 0, 0.6, 1
    outputs = {"cfg": s.Config(), "last_views": lambda: (), "encode": lambda: (z1, z2)}
    chain = SimpleNamespace(**outputs, predict=lambda z1, z2: (p1 + 0 * z1, z1, p2 + 0 * z2, z2))
    measures = s.batch_measures(chain)
    assert measures["loss"] == pytest.approx(-(1 - 1 - 0.8 + 0 + 0.6 + 1) / 6, abs=1e-6)
    assert measures["negative_cos"] == pytest.approx(2 / 6)
    assert measures["energy"] == pytest.approx(-math.log((1 + 1 + 0.8 + 0 + 0.6 + 1) / 6), abs=1e-6)


def test_a_subset_is_random_without_repetition_and_the_same_in_every_run():
    x, labels = torch.arange(100), torch.arange(100) + 7
    chosen, its_labels = s.fixed_subset(x, labels, 30, 0)
    assert torch.equal(its_labels, chosen + 7) and len(chosen.unique()) == 30 and chosen.max() > 80
    torch.manual_seed(5)
    assert torch.equal(s.fixed_subset(x, labels, 50, 0)[0][:30], chosen)  # a larger one begins with it
    assert not torch.equal(s.fixed_subset(x, labels, 30, 1)[0], chosen)  # the test images' is another one
    assert s.fixed_subset(x, labels, None, 0)[0] is x


def test_the_features_are_z_or_what_enters_its_layer(pictures, whole_network):
    model, images = s.initial_network(0), s.load_data(str(pictures)).test
    with s.full_float32():
        z, trunk = (s.features(model, images, kind) for kind in ("z", "trunk"))
        assert z.shape == (12, 128) and trunk.shape == (12, 4096)
        assert torch.equal(z, model.encoder.head(trunk))
        alone = model.encoder(s.normalise(images[3:4]))
    assert torch.allclose(z[3], alone[0], atol=1e-5)  # evaluation mode: an image's features do not depend on its batch


SIMILARITIES = pytest.mark.parametrize("similarity", ["abscos", "cos", "l2"])


@SIMILARITIES
def test_constant_outputs_carry_no_information(similarity):
    p, z = torch.rand(1, 16).expand(32, 16), torch.rand(1, 16).expand(32, 16)
    mi, *_ = s.information(p, z, p, z, similarity)
    assert mi == pytest.approx(0, abs=1e-5)


@SIMILARITIES
def test_information_is_at_most_log_b_and_free_of_the_batch_order(similarity):
    g = torch.Generator().manual_seed(0)
    p1, z1, p2, z2 = (torch.randn(24, 8, generator=g) for _ in range(4))
    order = torch.randperm(24, generator=g)
    measured = s.information(p1, z1, p2, z2, similarity)
    assert len(measured) == 3 and measured[0] <= math.log(24)
    shuffled = s.information(p1[order], z1[order], p2[order], z2[order], similarity)
    assert shuffled == pytest.approx(measured, abs=1e-5)


@SIMILARITIES
def test_separable_pairs_carry_log_b_where_the_density_can_be_sharp(similarity):
    z = 20 * torch.eye(32)
    mi, *_ = s.information(z, z, z, z, similarity)
    if similarity == "cos":  # exp(cos) varies by a factor e^2 at most
        assert mi < 2
    else:
        assert mi == pytest.approx(math.log(32), abs=1e-4)


def test_for_cos_the_information_is_log_b_minus_the_cross_entropy_of_matching():
    g = torch.Generator().manual_seed(1)
    p, z = torch.randn(16, 8, generator=g), torch.randn(16, 8, generator=g)
    logits = s.unit_rows(p) @ s.unit_rows(z).T
    cross_entropy = torch.nn.functional.cross_entropy(logits.T, torch.arange(16))  # which i belongs to z_j
    mi, *_ = s.information(p, z, p, z, "cos")
    assert mi == pytest.approx(math.log(16) - float(cross_entropy), abs=1e-5)


@pytest.mark.parametrize("similarity, constant", [("cos", 1.0), ("l2", 0.0)])
def test_the_negative_log_likelihood_is_the_energy_up_to_a_constant(similarity, constant):
    g = torch.Generator().manual_seed(2)
    p1, z1, p2, z2 = (torch.randn(12, 6, generator=g) for _ in range(4))
    mi, entropy, _ = s.information(p1, z1, p2, z2, similarity)
    U = float(s.energy(p1, z1, p2, z2, False, similarity))
    assert entropy - mi == pytest.approx(U - constant, abs=1e-5)  # D = -log Q + constant: the Note's first step


@SIMILARITIES
def test_zero_rows_give_numbers_not_nan(similarity):
    x = torch.randn(8, 4)
    x[3] = 0
    assert all(math.isfinite(v) for v in s.information(x, x, torch.zeros(8, 4), x, similarity))


@given(st.integers(0, 2**32 - 1))
def test_the_energy_never_exceeds_the_negative_log_likelihood_of_abscos(seed):
    g = torch.Generator().manual_seed(seed)
    p1, z1, p2, z2 = (torch.randn(6, 5, generator=g, dtype=torch.float64) for _ in range(4))
    mi, entropy, _ = s.information(p1, z1, p2, z2, "abscos")
    assert float(s.energy(p1, z1, p2, z2, False)) <= entropy - mi + 1e-9  # Jensen; NLL = entropy - mi
