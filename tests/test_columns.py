"""Each column of metrics.csv a second time, in plain NumPy and float64, from its definition in words.

The network is asked for its outputs; all that is made of them is made here. The inputs are such that near-by wrong
definitions give other numbers: test_the_inputs_tell_wrong_definitions_apart.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LINE
from test_chain import read
from torch import nn

import simsiam_sghmc as s

pytestmark = pytest.mark.usefixtures("whole_network_in_this_file")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images
K = 7
CASES = {
    "kick": {"eps": 0.002, "L": 2, "sg": False, "energy_scale": 8.0, "prior_std": 0.5, "mass": 4.0, "alpha": 0.2,
             "velocity_std": 0.3},
    "sample": {"eps": 0.001, "L": 3, "batch_per": "sample", "similarity": "cos", "bn": "running"},
    "sgd": {"method": "sgd", "sg": False, "similarity": "l2", "lr": 1e-4, "warmup_epochs": 0, "knn_train": 25,
            "knn_test": 21},
    "bf16": {"eps": 0.001, "L": 1, "precision": "bf16"},
    "start": {"knn_train": 30, "knn_features": "trunk"},
}  # fmt: skip
COLUMNS = {}


def column(definition):
    """Enter a definition, a function of a case, under its name in metrics.csv."""
    COLUMNS[definition.__name__] = definition
    return definition


# ----------------------------------------------------------------------------------------------------------- the chains


def images():
    """40 training and 30 test images in four classes of unequal sizes, other ones in each part; ten stand twice."""
    rng = np.random.default_rng(3)
    patterns = rng.normal(0, 28, (4, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    parts = []
    for counts in ((16, 8, 4, 2), (5, 14, 8, 3)):
        labels = np.repeat(np.arange(4), counts)
        noise = rng.normal(0, 70, (len(labels), 3, 32, 32)) + rng.normal(0, 30, (len(labels), 3, 1, 1))
        parts.append([(120 + patterns[labels] + noise).clip(0, 255).astype(np.uint8), labels])
    train, labels = parts[0]
    parts[0] = [np.concatenate([train, train[:10]]), np.concatenate([labels, labels[:10]])]
    return s.Images(*(torch.from_numpy(x) for part in parts for x in part), "drawn here")


def beginning(kind, data):
    """A network to start from: weights of another seed, running statistics that are of no batch.

    For "start" the units fire later, so that some images fire none.
    """
    model = s.initial_network(5)
    if kind == "start":
        with torch.no_grad():
            firing = evaluated(model, subset(data.train, 30, 0), data.test)[0]
            model.encoder.head[0].bias -= firing.amax(dim=1).quantile(0.3)
    g = torch.Generator().manual_seed(7)
    for b in model.buffers():
        if b.is_floating_point():
            b[:] = 0.01 + 0.05 * torch.rand(b.shape, generator=g)
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request, whole_network_in_this_file):
    """A chain after two steps (or none), its row by evaluate, and what the last step saw."""
    data, settings = images(), CASES[request.param]
    network = beginning(request.param, data)
    start = nn.utils.parameters_to_vector(network.parameters()).double().detach().numpy()
    cfg = s.Config(**{"batch_size": 6, "knn_k": K, **settings})
    chain = s.Chain(cfg, data, network, torch.device("cpu"))
    case = SimpleNamespace(name=request.param, cfg=cfg, chain=chain, start=start, calls=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s, "sghmc_step", recording(s.sghmc_step, case))
        gradient = chain.gradient
        patch.setattr(chain, "gradient", lambda *z: (setattr(case, "calls", case.calls + 1), gradient(*z))[1])
        for _ in range(0 if case.name == "start" else 2):
            case.before = chain.W.clone()
            chain.advance()
    case.row = s.evaluate(chain) | {"seconds": None}
    case.features, case.minibatch = features(case), minibatch(case)
    return case


def recording(step, case):
    """sghmc_step that keeps in `case` the normals and gradients of its last call, in float64."""

    def call(w, z, grad, **settings):
        case.z, case.g = [], []

        def rows():
            for row in z:
                case.z.append(row.double().numpy())
                yield row

        def gradient(X):
            g = grad(X)
            case.g.append(g.double().numpy())
            return g

        return step(w, rows(), gradient, **settings)

    return call


# ------------------------------------------------------------------------------------------------ what the network says


def normalised(x):
    return (x / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def subset(x, count, kick):
    """The first `count` of the fixed random order."""
    return x if count is None else x[torch.randperm(len(x), generator=s.generator(0, "subset", kick=kick))[:count]]


def evaluated(model, recalibrate_on, *parts):
    """The last layer's inputs h of uint8 images before its ReLU, and the trunk's output: ((N, 128), (N, 4096)) a part.

    Evaluation mode; the BatchNorm statistics are those of these training images unless they are None.
    """
    model = copy.deepcopy(model).train()

    def estimate(layer, inputs):
        x = inputs[0].transpose(0, 1).flatten(1)
        layer.running_mean, layer.running_var = x.mean(dim=1), x.var(dim=1)

    if recalibrate_on is not None:
        hooks = [m.register_forward_pre_hook(estimate) for m in model.encoder.trunk if isinstance(m, nn.BatchNorm2d)]
        with torch.no_grad():
            model.encoder(normalised(recalibrate_on))
        for hook in hooks:
            hook.remove()
        for m in model.encoder.trunk:  # the training pass itself has moved them
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = 0.0
    model.eval()
    with torch.no_grad():
        trunks = [model.encoder.trunk(normalised(x)) for x in parts]
        return sum([(model.encoder.head[0](trunk), trunk) for trunk in trunks], ())


def features(case):
    """(bank, its labels, test, its labels, z of the test images), float64."""
    cfg, data = case.cfg, case.chain.data
    bank, labels = (subset(x, cfg.knn_train, 0) for x in (data.train, data.train_labels))
    test, test_labels = (subset(x, cfg.knn_test, 1) for x in (data.test, data.test_labels))
    outputs = evaluated(case.chain.model, bank if cfg.bn == "recalibrated" else None, bank, test)
    bank_z, bank_trunk, z, trunk = (x.double().numpy() for x in outputs)
    bank_z, z = bank_z.clip(0), z.clip(0)
    if cfg.knn_features == "trunk":
        return bank_trunk, labels.numpy(), trunk, test_labels.numpy(), z
    return bank_z, labels.numpy(), z, test_labels.numpy(), z


def last_views(case):
    """The two views of the last minibatch: with L leapfrogs a sample has 2L-1 of them, or one."""
    cfg, chain = case.cfg, case.chain
    if case.name == "start":
        return chain.views(0, 0)
    per_kick = cfg.method == "sghmc" and cfg.batch_per == "kick"
    return chain.views(1, 2 * cfg.L - 2 if per_kick else 0)


def minibatch(case):
    """(p1, z1, p2, z2) of the last minibatch, training mode, in the precision of the chain, as float64."""
    model, views = copy.deepcopy(case.chain.model).train(), last_views(case)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case.cfg.precision == "bf16"):
        outputs = [model(view) for view in views]
    return [x.double().numpy() for pair in outputs for x in pair]


def predictor(case, z):
    """p (..., B, 128) of batches z by the predictor's two layers, with the batch's own statistics between them."""
    first, norm, _, last = case.chain.model.predictor
    W1, b1, gamma, beta, W2, b2 = (
        x.detach().double().numpy() for x in (first.weight, first.bias, norm.weight, norm.bias, last.weight, last.bias)
    )
    h = z @ W1.T + b1
    h = gamma * (h - h.mean(axis=-2, keepdims=True)) / np.sqrt(h.var(axis=-2, keepdims=True) + 1e-5) + beta
    return h.clip(0) @ W2.T + b2


# ----------------------------------------------------------------------------------------------------- the definitions


def norms(x):
    return np.sqrt((x**2).sum(axis=-1, keepdims=True))


def unit(x):
    return x / np.where(norms(x) > 0, norms(x), 1)


def pair_cosines(p1, z1, p2, z2):
    return (unit(p1) * unit(z2)).sum(axis=-1), (unit(p2) * unit(z1)).sum(axis=-1)


def potential(p1, z1, p2, z2, similarity):
    if similarity == "l2":
        return (((p1 - z2) ** 2).sum(axis=-1) / 4 + ((p2 - z1) ** 2).sum(axis=-1) / 4).mean(axis=-1)
    one, two = pair_cosines(p1, z1, p2, z2)
    if similarity == "cos":
        return 1 - (one + two).mean(axis=-1) / 2
    return -np.log(((abs(one) + abs(two)) / 2).mean(axis=-1))


@column
def step(case):
    """Samples or updates done."""
    return 0 if case.name == "start" else 2


@column
def grad_evals(case):
    """Gradients that were computed."""
    return case.calls


@column
def energy(case):
    """U of the last minibatch, without scale and prior."""
    return potential(*case.minibatch, case.cfg.similarity)


@column
def loss(case):
    """SimSiam's own, with its sign: minus the mean cosine of prediction and encoding."""
    return -np.mean(pair_cosines(*case.minibatch))


@column
def negative_cos(case):
    """The share of those cosines below 0."""
    return np.mean(np.stack(pair_cosines(*case.minibatch)) < 0)


def vote(bank, labels, test, test_labels):
    """k-NN accuracy: the K nearest by cosine vote with exp((cos - 1) / 0.1)."""
    right = 0
    for row, label in zip(unit(test), test_labels, strict=True):
        similarity = unit(bank) @ row
        nearest = np.argsort(-similarity, kind="stable")[:K]
        right += np.bincount(labels[nearest], np.exp((similarity[nearest] - 1) / 0.1)).argmax() == label
    return right / len(test)


@column
def knn(case):
    """The vote on the features as they are."""
    return vote(*case.features[:4])


@column
def knn_centered(case):
    """The vote after the mean of the bank is taken from both."""
    bank, labels, test, test_labels, _ = case.features
    return vote(bank - bank.mean(axis=0), labels, test - bank.mean(axis=0), test_labels)


@column
def center(case):
    """Length of the mean of the unit rows of z, test images."""
    return np.sqrt((unit(case.features[4]).mean(axis=0) ** 2).sum())


@column
def effective_rank(case):
    """exp of the entropy of the singular values of the centred z, which are divided by their sum."""
    z = case.features[4]
    p = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
    p = p[p > 0] / p.sum()
    return np.exp(-(p * np.log(p)).sum())


@column
def dead_samples(case):
    """The share of rows of z that are 0 throughout."""
    return np.mean([not row.any() for row in case.features[4]])


def log_likelihood(p, z, similarity):
    """log Q(z_j; p_i) (B, B) up to a constant: of |cos|, of exp(cos) or of the unit Gaussian's density."""
    if similarity == "l2":
        return -((p[:, None] - z[None]) ** 2).sum(axis=2) / 2
    cosine = unit(p) @ unit(z).T
    return cosine if similarity == "cos" else np.log(np.maximum(abs(cosine), np.finfo(np.float32).tiny))


def log_mean_exp(x):
    return x.max() + np.log(np.exp(x - x.max()).mean())


def both_directions(case, quantity):
    p1, z1, p2, z2 = case.minibatch
    return (quantity(p1, z2) + quantity(p2, z1)) / 2


@column
def mi(case):
    """entropy minus the mean of -log Q(z_i; p_i)."""

    def nll(p, z):
        return -np.diag(log_likelihood(p, z, case.cfg.similarity)).mean()

    return entropy(case) - both_directions(case, nll)


@column
def entropy(case):
    """-mean over j of the log of the mean over i of Q(z_j; p_i)."""

    def of_one_view(p, z):
        return -np.mean([log_mean_exp(of_z_j) for of_z_j in log_likelihood(p, z, case.cfg.similarity).T])

    return both_directions(case, of_one_view)


@column
def entropy_z(case):
    """-mean over j of the log of the mean over i != j of Q(z_j; z_i)."""

    def of_one_view(_, z):
        log_q = log_likelihood(z, z, case.cfg.similarity)
        return -np.mean([log_mean_exp(np.delete(of_z_j, j)) for j, of_z_j in enumerate(log_q.T)])

    return both_directions(case, of_one_view)


def centre(z1, z2):
    """The mean of the unit rows of both views."""
    return unit(np.concatenate([z1, z2])).mean(axis=0)


@column
def o_z(case):
    """Its length."""
    _, z1, _, z2 = case.minibatch
    return np.sqrt((centre(z1, z2) ** 2).sum())


@column
def centering(case):
    """Mean over the rows of both views of the cosine between -dU/dz and the centre; differences of U over 2e-6.

    Through the predictor, and through the targets unless the stop-gradient holds them.
    """
    _, z1, _, z2 = case.minibatch

    def U(a1, a2):
        targets = (z1, z2) if case.cfg.sg else (a1, a2)
        return potential(predictor(case, a1), targets[0], predictor(case, a2), targets[1], case.cfg.similarity)

    gradient = np.zeros((2, *z1.shape))
    for view, row in np.ndindex(gradient.shape[:2]):
        h = np.zeros((z1.shape[1], *gradient.shape))  # moves of one number of this row each
        h[:, view, row] = 1e-6 * np.eye(z1.shape[1])
        gradient[view, row] = (U(z1 + h[:, 0], z2 + h[:, 1]) - U(z1 - h[:, 0], z2 - h[:, 1])) / 2e-6
    return (unit(-np.concatenate(gradient)) @ unit(centre(z1, z2)[None]).T).mean()


def of_samples(definition):
    """A column that only a sample has: None for SGD and before the first step."""

    def call(case):
        return definition(case) if case.cfg.method == "sghmc" and case.name != "start" else None

    call.__name__ = definition.__name__
    return column(call)


@of_samples
def kinetic_temperature(case):
    """Mean of Phi^2 / M after line 3 of the last leapfrog: no later half-kick is computed."""
    cfg, z = case.cfg, iter(case.z)
    noise = np.sqrt(2 * cfg.alpha * cfg.mass)  # 2 C eps with C = alpha M / eps
    gradients = [case.g[i] for i in ((i + 1) // 2 for i in range(2 * cfg.L - 1))] if len(case.g) == cfg.L else case.g
    Phi = np.sqrt(cfg.mass) * next(z)
    for g in gradients:
        Phi = (1 - cfg.alpha) * Phi - cfg.eps / 2 * g + noise * next(z)
    return (Phi**2).mean() / cfg.mass


@of_samples
def drift_to_noise(case):
    """rms of eps^2 / 2M x gradient over that of the random part of the first drift, eps / M x (friction x Phi + N)."""
    cfg = case.cfg
    noise = (1 - cfg.alpha) * np.sqrt(cfg.mass) * case.z[0] + np.sqrt(2 * cfg.alpha * cfg.mass) * case.z[1]
    return cfg.eps / 2 * np.sqrt((case.g[0] ** 2).mean()) / np.sqrt((noise**2).mean())


@column
def distance(case):
    """rms of the way from W_0."""
    return np.sqrt(((case.chain.W.double().numpy() - case.start) ** 2).mean())


@column
def weight_rms(case):
    """rms of W, its mean included."""
    return np.sqrt((case.chain.W.double().numpy() ** 2).mean())


@column
def grad_norm(case):
    """Euclidean norm of dU/dW where the last step began, on its first minibatch, without scale and prior."""
    if case.name == "start":
        return None
    model = s.initial_network(0).train()
    nn.utils.vector_to_parameters(case.before, model.parameters())
    views = case.chain.views(1, 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=case.cfg.precision == "bf16"):
        (p1, z1), (p2, z2) = (model(view) for view in views)
    U = s.energy(p1, z1, p2, z2, case.cfg.sg, case.cfg.similarity)
    return np.sqrt(sum((g.double().numpy() ** 2).sum() for g in torch.autograd.grad(U, list(model.parameters()))))


@column
def collapsed(case):
    """dead: more than half the rows of z are 0; constant: center above 0.99."""
    return "dead" if dead_samples(case) > 0.5 else "constant" if center(case) > 0.99 else "no"


@column
def at_chance(case):
    """Whether knn is at most 1.2 x the share of the largest class of the test images."""
    labels = case.features[3]
    return "yes" if knn(case) <= 1.2 * max(np.mean(labels == label) for label in range(4)) else "no"


@column
def seconds(_):
    """Not of the evaluation: test_seconds_are_those_since_the_run_began_over_all_its_processes."""


# The outputs are float32, from two orders of summation: 1e-4 leaves room for units next to their threshold. A norm of
# 1,668,096 float32 numbers is summed in float32. The random part of the first drift is expected by the program and
# drawn here: five standard errors 1 / sqrt(2n).
TOLERANCE = {"drift_to_noise": 5 / np.sqrt(2 * 1_668_096)}
TOLERANCE |= dict.fromkeys(("grad_norm", "distance", "weight_rms", "centering"), 1e-3)


@pytest.mark.parametrize("name", s.METRICS)
def test_each_column_is_what_its_definition_gives(case, name):
    if (case.name, name) == ("bf16", "centering"):
        pytest.skip("the differences of U would be those of bf16")
    wanted = COLUMNS[name](case)
    if wanted is None or isinstance(wanted, str):
        assert case.row.get(name) == wanted
    else:
        assert case.row[name] == pytest.approx(wanted, rel=TOLERANCE.get(name, 1e-4), abs=1e-6)


def test_the_inputs_tell_wrong_definitions_apart(case):
    row = case.row
    _, labels, _, test_labels, _ = case.features
    shares = [np.bincount(x).max() / len(x) for x in (labels, test_labels)]
    assert abs(shares[0] - shares[1]) > 0.01 and shares[1] > 0.3  # of four classes
    assert row["knn"] != row["knn_centered"] and 0.25 < row["knn"] < 0.6
    assert (row["dead_samples"] > 0.2) == (case.name == "start")
    if case.name == "start":
        return
    views, last = case.chain.views, last_views(case)
    others = [views(0, 0), views(2, 0)] + ([views(1, 0)] if case.name == "kick" else [])
    assert not any(torch.equal(last[0], other[0]) for other in others)
    assert row["distance"] < row["weight_rms"] / 4 and row["grad_norm"] > 1


def test_distance_and_weight_rms_do_not_take_a_mean_away():
    chain = s.Chain(s.Config(batch_size=6, knn_k=K), images(), None, torch.device("cpu"))
    W = chain.W.double().numpy() + 0.03125
    chain.W += 0.03125
    row = s.evaluate(chain)
    assert row["distance"] == pytest.approx(0.03125, rel=1e-3)
    assert row["weight_rms"] == pytest.approx(np.sqrt((W**2).mean()), rel=1e-3)


@pytest.mark.parametrize("knn, verdict", [(0.559, "yes"), (0.561, "no")])  # 1.2 x 14 of the 30 test images = 0.56
def test_at_chance_goes_by_the_test_images_own_classes(monkeypatch, knn, verdict):
    monkeypatch.setattr(s, "knn_accuracy", lambda *a: knn)
    chain = s.Chain(s.Config(batch_size=6, knn_k=K), images(), None, torch.device("cpu"))
    assert s.evaluate(chain)["at_chance"] == verdict


@pytest.mark.parametrize(
    "knn_train, count", [(None, 8192), (9000, 8192), (8193, 8192), (8191, 8191), (5, 5)], ids=lambda v: str(v)
)
def test_the_statistics_are_those_of_8192_training_images_or_of_the_bank(monkeypatch, knn_train, count):
    seen = []
    monkeypatch.setattr(s, "recalibrate", lambda model, images: seen.append(images))
    monkeypatch.setattr(s, "features", lambda model, images, kind: torch.rand(len(images), 128))
    train, test = torch.arange(9500), torch.arange(40)
    data = s.Images(train, train % 4, -1 - test, test % 4, "numbers")
    s.representation(s.Config(knn_train=knn_train, knn_k=3), None, data)
    assert torch.equal(seen[0], subset(train, count, 0)) and len(seen) == 1


def test_seconds_are_those_since_the_run_began_over_all_its_processes(run, monkeypatch):
    clock = [100.0]

    def ten_seconds(chain):
        clock[0] += 10
        chain.step += 1
        chain.energies.append(torch.tensor(0.5))

    monkeypatch.setattr(s, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(s.Chain, "advance", ten_seconds)
    assert run(f"{LINE} 2")[0] == 0
    clock[0] = 3.0  # of another process, whose clock began later
    folder = run(f"{LINE} 4")[3]
    assert [row["seconds"] for row in read(folder / "metrics.csv")] == ["0", "20", "40"]
