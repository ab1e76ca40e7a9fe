"""The formulas of the divergence against toys whose divergence is known, and the tool on small images."""

import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simsiam_sghmc import sghmc_step

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import divergence  # noqa: E402
import divergence_formulas as F  # noqa: E402
from divergence_formulas import Setting  # noqa: E402

SETTINGS = [
    Setting("toy", "x", L, eps, 40, alpha, mass, phi_std)
    for L in (1, 2, 3, 5)
    for eps, alpha, mass, phi_std in ((0.1, 0.1, 1.0, None), (0.3, 0.01, 0.25, None), (0.2, 0.2, 1.0, 0.3))
]


def step(s, x, z, grad):
    """One sample of the program from x (n,) with the rows z (2L, n) of normals; phi_std as the program reads it."""
    scale = np.ones((len(z), 1))
    scale[0] = (s.phi_std or s.mass**0.5) / s.mass**0.5
    rows = torch.as_tensor(z * scale)
    return sghmc_step(torch.as_tensor(x), rows, grad, eps=s.eps, L=s.L, alpha=s.alpha, mass=s.mass).numpy()


# ----------------------------------------------------------------------------------------------- the walk of a sample


@pytest.mark.parametrize("s", SETTINGS)
def test_the_weights_of_a_sample_are_those_of_the_programs_sampler(s):
    """One normal at a time gives a_j and the variances, a gradient at one half-kick at a time a_j again."""
    a, variances, v = F.walk_of(s)
    noise = step(s, np.zeros(2 * s.L), np.eye(2 * s.L), lambda X: 0.0)
    assert noise == pytest.approx(s.eps / s.mass * a * np.sqrt(variances))
    assert (noise**2).sum() == pytest.approx((s.eps / s.mass) ** 2 * v)
    for j in range(1, 2 * s.L):
        calls = itertools.count(1)
        D = step(s, np.zeros(1), np.zeros((2 * s.L, 1)), lambda X, calls=calls, j=j: float(next(calls) == j))
        assert D == pytest.approx(-s.eps / s.mass * a[j] * s.eps / 2)


@pytest.mark.parametrize("s", SETTINGS)
def test_gradients_are_taken_at_the_places_whose_spread_and_correlation_the_formulas_use(s):
    places = []
    D = step(s, np.zeros(2 * s.L), np.eye(2 * s.L), lambda X: places.append(X.numpy()) or 0.0)
    at, sigma, r = F.half_kicks(s)
    assert [(x**2).sum() ** 0.5 for x in places] == pytest.approx(sigma)
    assert [x @ D / max((x @ x * (D @ D)) ** 0.5, 1e-300) for x in places] == pytest.approx(r)
    assert list(at) == [j // 2 for j in range(1, 2 * s.L)]


def test_the_distance_from_the_start_is_that_of_walks_that_were_run():
    s = SETTINGS[4]
    W, g = np.zeros(20_000), np.random.default_rng(0)
    for delta in F.distances_of(s, np.arange(s.samples)):
        assert np.sqrt((W**2).mean()) == pytest.approx(delta, rel=0.03)
        W = step(s, W, g.standard_normal((2 * s.L, len(W))), lambda X: 0.0)


# -------------------------------------------------------------------------------------------------------- divergences


def test_of_a_quadratic_energy_the_sum_over_a_chain_is_its_log_ratio_along_walks_that_were_run():
    """U = k/2 |x|^2 in 4 dimensions, L = 1: every transition is a normal, so the log-ratio of a path is known."""
    s, k, n, paths = Setting("toy", "x", 1, 0.2, 60, 0.1, 2.0), 0.7, 4, 20_000
    W0, g, std = np.linspace(1, 2, n), np.random.default_rng(1), s.eps / s.mass * F.walk_of(s)[2] ** 0.5
    W, log_ratio = np.tile(W0, paths), np.zeros(paths)
    for _ in range(s.samples):
        mean = step(s, W, np.zeros((2, len(W))), lambda X: k * X)
        new = step(s, W, g.standard_normal((2, len(W))), lambda X: 0.0)
        log_ratio += (((new - mean) ** 2 - (new - W) ** 2) / (2 * std**2)).reshape(paths, n).sum(axis=1)
        W = new
    G = k**2 * ((W0**2).sum() + n * F.distances_of(s, np.arange(s.samples)) ** 2)
    one = np.ones(s.samples)
    for kl in (F.kl_samples(s, G, one), F.kl_positions(s, G, G), F.kl_shift(s, G, G, one, F.whole, F.whole)):
        assert kl.sum() == pytest.approx(log_ratio.mean(), abs=4 * log_ratio.std() / paths**0.5)
        assert 0.2 < kl.sum() < 2


WAVES = np.array([0.5, 1.5, 3.0])  # wave numbers of three energies cos(k x), taken in turn


def decay(x):
    """E<g(X), g(X')> over E|g|^2 where X' - X ~ N(0, x), over phases and waves."""
    return np.exp(-np.multiply.outer(x, WAVES**2) / 2).mean(axis=-1)


def normal(x, mean, var):
    return np.exp(-((x - mean) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)


def exact(s, A, k, phase, points):
    """(KL(walk || chain) of D, of X_1 ... X_L) of one sample from 0 in 1-d, U = A/k cos(k x + phase).

    P_l = (X_l - X_{l-1}) / eps is normal given those before, so the density of D is an integral over P_1 ... P_{L-1}.
    """
    c, noise, kl = 1 - s.alpha, 2 * s.alpha, 0.0
    p = np.linspace(-6, 6, points)
    D = np.linspace(-6 * s.L, 6 * s.L, 301)
    steps = np.array([p[1] - p[0], D[1] - D[0]])
    paths = np.zeros((1, 0))  # (grid, l): P_1 ... P_l
    weight = {0: np.ones(1), 1: np.ones(1)}  # their density without and with forces
    for l in range(s.L):
        force = A * np.sin(k * s.eps * paths.sum(axis=1) + phase)
        shift, var = (s.eps / 2 * (1 + c) * force, noise * (1 + c * c)) if l else (s.eps / 2 * force, c * c + noise)
        mean = c * c * paths[:, -1] if l else 0 * force
        kl += (weight[0] * shift**2).sum() * steps[0] ** l / (2 * var)
        at = p if l < s.L - 1 else D - paths.sum(axis=1, keepdims=True)
        density = {f: weight[f][:, None] * normal(at, (mean + f * shift)[:, None], var) for f in (0, 1)}
        if l < s.L - 1:
            paths = np.concatenate([np.repeat(paths, points, axis=0), np.tile(p, len(paths))[:, None]], axis=1)
            weight = {f: x.ravel() for f, x in density.items()}
    walk, chain = (density[f].sum(axis=0) * steps[0] ** (s.L - 1) for f in (0, 1))
    keep = walk > 1e-12
    return (walk[keep] * np.log(walk[keep] / chain[keep])).sum() * steps[1], kl


def average(s, A, points=201, phases=4):
    """`exact` over waves and phases."""
    all_of_them = itertools.product(WAVES, np.arange(phases) * 2 * math.pi / phases + 0.1)
    return np.mean([exact(s, A, k, phase, points) for k, phase in all_of_them], axis=0)


@pytest.mark.parametrize("L, alpha, eps, points", [(2, 0.01, 1.0, 201), (2, 0.2, 0.3, 201), (3, 0.15, 0.7, 61)])
def test_with_gradients_that_vary_within_a_sample_the_divergence_is_that_of_the_exact_densities(L, alpha, eps, points):
    s, A, one = Setting("toy", "x", L, eps, 1, alpha), 0.03, np.ones(1)
    samples, positions = average(s, A, points)
    X = A**2 / 2 * one
    assert F.kl_samples(s, X, one, decay)[0] == pytest.approx(samples, rel=2e-3)
    assert abs(F.kl_samples(s, X, one)[0] / samples - 1) > 0.01  # of a gradient held constant
    assert F.kl_positions(s, X, X)[0] == pytest.approx(positions, rel=1e-3)  # both half-kicks at X_l have one gradient
    assert samples < F.kl_shift(s, X, X, one, decay, decay)[0] < 15 * samples


def test_the_upper_bound_holds_where_the_leading_order_fails():
    s, A, one = Setting("toy", "x", 2, 2.0, 1, 0.01), 0.3, np.ones(1)
    samples, _ = average(s, A)
    X = A**2 / 2 * one
    assert F.kl_samples(s, X, one, decay)[0] != pytest.approx(samples, rel=0.2)
    assert F.kl_shift(s, X, X, one, decay, decay)[0] > samples


def test_minibatches_that_are_seen_add_their_own_noise_once_for_each_half_kick():
    """Constant gradients, another minibatch at each half-kick: E|sum a_j g_j|^2 has G where the two are one."""
    s, one = Setting("toy", "x", 3, 0.1, 1), np.ones(1)
    a, _, v = F.walk_of(s)
    square = sum(x * y * (5.0 if i == j else 2.0) for (i, x), (j, y) in itertools.product(enumerate(a[1:]), repeat=2))
    seen = F.kl_shift(s, 5 * one, 2 * one, one, F.whole, F.whole)[0]
    assert seen == pytest.approx((s.eps / 2) ** 2 * square / (2 * v))


def test_the_bound_on_collapse_holds_as_often_as_it_says():
    """The share of the prior beyond the threshold is 0.002, m is 0.07 on average and 1 at collapse."""
    g, missed = np.random.default_rng(0), 0
    truth = 0.002 / (0.002 + 0.998 * 0.07)
    for _ in range(400):
        beyond = g.random(2000) < 0.002
        m = np.where(beyond, 1, g.uniform(0.04, 0.1, 2000))
        missed += F.weighted_prior(m, beyond, 1)["bound"] < truth
    assert missed <= 20
    wide = F.weighted_prior(np.array([0.04, 0.1] * 50), np.zeros(100, bool), 1)["bound"]
    assert wide == pytest.approx((1 - 40 ** (-1 / 100)) / (0.07 - 1.96 * 0.003 * (100 / 99) ** 0.5))
    for m, collapsed in ((np.full(10, 0.01), False), (np.ones(1000), True), (np.array([0.001, 1]), False)):
        assert F.weighted_prior(m, np.full(len(m), collapsed), 1)["bound"] == 1


def test_no_test_tells_two_normals_apart_more_often_than_the_bound_says():
    for distance in np.geomspace(1e-3, 10, 40):
        right = (1 + math.erf(distance / 2 / math.sqrt(2))) / 2  # of the best test of N(0, 1) against N(distance, 1)
        assert right <= F.best_test(distance**2 / 2)
    assert F.best_test(0.0) == F.best_test(-1e-9) == 0.5
    assert F.best_test(np.array([2e-4, 1e3])) == pytest.approx([0.505, 1])


# -------------------------------------------------------------------------------------------------------- the posterior


def test_the_limits_of_a_probability_are_those_of_the_exact_binomial():
    assert F.clopper_pearson(0, 3000) == pytest.approx((0, 1 - 0.025 ** (1 / 3000)))
    assert F.clopper_pearson(3000, 3000) == pytest.approx((0.025 ** (1 / 3000), 1))
    assert F.clopper_pearson(0, 3000, 0.05)[1] == pytest.approx(3 / 3000, rel=0.01)  # rule of three
    assert F.clopper_pearson(5, 10) == pytest.approx((0.18709, 0.81291), abs=1e-5)  # tables of the binomial
    for hits in (1, 4):
        low, high = F.clopper_pearson(hits, 9, 0.1)
        upper, lower = (
            sum(math.comb(9, i) * p**i * (1 - p) ** (9 - i) for i in counts)
            for p, counts in ((low, range(hits, 10)), (high, range(hits + 1)))
        )
        assert (upper, lower) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("scale", [1, 2.5, 8])
def test_the_bound_of_a_posterior_holds_where_prior_and_posterior_are_known(scale):
    """A prior of three kinds of network; the event is the rare one with the largest weight."""
    probability, m = np.array([0.7, 0.29, 0.01]), np.array([0.05, 0.1, 0.9])
    posterior = probability * m**scale / (probability * m**scale).sum()
    drawn = np.random.default_rng(0).choice(3, 4000, p=probability)
    row = F.weighted_prior(m[drawn], drawn == 2, scale)
    assert row["bound"] >= posterior[2] and row["prior_low"] < 0.01 < row["prior_high"]
    assert row["posterior_share"] == pytest.approx(posterior[2], rel=0.3)
    assert row["E_m"] == pytest.approx(probability @ m, abs=4 * row["E_m_se"])
    assert row["factor"] == pytest.approx((row["E_m"] - 1.96 * row["E_m_se"]) ** -scale)
    weights = m[drawn] ** scale
    assert row["ess"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_a_bound_that_says_nothing_is_one_even_where_the_weights_underflow():
    m, none = np.array([1e-3, 2e-3, 3e-3]), np.zeros(3, bool)
    row = F.weighted_prior(m, none, 5e4)
    assert row["bound"] == 1 and row["ess"] == pytest.approx(1) and row["posterior_share"] == 0


# -------------------------------------------------------------------------------------------------- measured curves


def test_a_curve_goes_through_its_points_and_keeps_the_law_of_networks_between_them():
    at, size = np.array([0, 1e-3, 0.1, 10]), 0.02
    law = 3 / (size**2 + at**2)
    between = np.array([0, 5e-4, 1e-3, 0.03, 1, 10])
    assert F.curve_at(between, at, law, size) == pytest.approx(3 / (size**2 + between**2))
    values = np.array([5.0, 4.0, 0.3, 2e-3])
    assert F.curve_at(at, at, values, size) == pytest.approx(values)
    assert F.curve_at(np.array([0.01]), at, values, size)[0] == pytest.approx(4.604, abs=1e-3)  # by hand


def test_a_sum_over_blocks_is_the_sum_over_all_samples():
    t, count = F.blocks(50_000)
    assert count.sum() == 50_000 and list(t[:3]) == [0, 1, 2] and len(t) < 1000
    assert (count / (1 + t)).sum() == pytest.approx((1 / np.arange(1, 50_001)).sum(), rel=1e-4)
    assert F.blocks(1) == (0, 1)


def test_decays_are_found_again_from_their_table_and_interpolated_between_places():
    rows = [
        {"delta": str(delta), "d": str(d), "X": str(value / (1 + (d / h) ** 1.2))}
        for delta, value, h in ((0.02, 7.0, 0.1), (2, -0.1, 0.4)) for d in (0, 0.01, 0.1, 0.3, 1, 3)
    ]  # fmt: skip
    decay, x = F.fitted_decay(rows, "X"), np.array([[0], [1e-3], [0.09], [4]])
    middle = 0.02 * math.sqrt(math.sqrt(2 * (1 + 100**2)) - 1)  # half-way in log(1 + (delta / 0.02)^2)
    left = decay(np.array([0.0, 0.02, middle, 2, 50]))(x)
    h = np.array([0.1, 0.1, 0.2, 0.4, 0.4])
    assert left == pytest.approx(1 / (1 + (x / h**2) ** 0.6), abs=0.02)


def test_the_products_leave_out_what_a_minibatch_has_with_itself():
    g, h = np.random.default_rng(0).normal(size=(2, 3, 5))
    table = np.array([[x @ y for y in h] for x in g])
    pairs = [table[i, j] for i in range(3) for j in range(3) if i != j]
    assert divergence.inner(torch.tensor(g), torch.tensor(h)) == pytest.approx((np.trace(table) / 3, np.mean(pairs)))


# ------------------------------------------------------------------------------------------------------------ the tool

FEW = "--networks 3 --seeds 1 --decay-seeds 1 --minibatches 2 --batch-size 4 --prior init".split()


@pytest.fixture(scope="module")
def measured(pictures, tmp_path_factory):
    """A folder of the tool's tables on small images."""
    out = tmp_path_factory.mktemp("measured") / "evidence"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "DECAY", ((0.02,), (0.03, 1)))
        assert divergence.main(["--data", str(pictures), "--out", str(out), *FEW]) == 0
        yield out


def tables(out):
    return {path.name: path.read_text() for path in out.glob("*.csv")}


def test_the_tables_have_the_columns_that_are_promised_and_all_rows(measured):
    lines = {name: text.splitlines() for name, text in tables(measured).items()}
    assert lines["prior.csv"][0] == "prior,seed,m,center,knn" and len(lines["prior.csv"]) == 1 + 3
    assert [line.split(",")[-1] != "" for line in lines["prior.csv"][1:]] == [True, False, False]  # k-NN of every 60th
    assert lines["divergence.csv"][0].startswith("figure,start,L,eps,samples,kl_first,kl_first_se,kl,kl_se,accuracy,")
    assert len(lines["divergence.csv"]) == 1 + 16 + 6 + 16 and len(lines["curve.csv"]) == 1 + 16


def test_a_run_that_was_cut_off_goes_on_to_the_same_tables(pictures, measured, tmp_path, capsys):
    out, whole = tmp_path / "evidence", tables(measured)
    out.mkdir()
    (out / "settings.json").write_text((measured / "settings.json").read_text())
    for name, keep in (("prior.csv", 2), ("curve.csv", 9)):
        (out / name).write_text("".join(whole[name].splitlines(keepends=True)[:keep]) + "random,0,torn")
    assert divergence.main(["--data", str(pictures), "--out", str(out), *FEW]) == 0
    assert tables(out) == whole
    assert "curve: 8 of 8" in capsys.readouterr().out
    assert divergence.main(["--out", str(out), "--part", "divergence"]) == 0 and tables(out) == whole  # without data


def test_the_gradients_of_the_curve_are_those_of_the_programs_energy(pictures, measured):
    chain = divergence.Chain(
        divergence.Config(sg=False, batch_size=4, precision="bf16"), divergence.S.load_data(str(pictures)), None,
        torch.device("cpu"),
    )  # fmt: skip
    g = []
    for b in range(2):
        chain.gradient(*chain.encode(*chain.views(b)))
        g.append(chain.G.double())
    row = (measured / "curve.csv").read_text().splitlines()[1].split(",")
    size = chain.W.double().square().mean().sqrt().item()
    assert row[:3] == ["random", "0", "0"] and float(row[3]) == pytest.approx(size, rel=1e-4)
    assert float(row[6]) == pytest.approx(((g[0] @ g[0] + g[1] @ g[1]) / 2).item(), rel=1e-5)
    assert float(row[7]) == pytest.approx((g[0] @ g[1]).item(), rel=1e-5)


def test_the_distances_of_the_decay_are_in_units_of_the_weights_at_the_place(pictures, monkeypatch):
    at, gradient = [], divergence.Chain.gradient

    def recorded(chain, *z):
        at.append(chain.W.clone())
        return gradient(chain, *z)

    monkeypatch.setattr(divergence.Chain, "gradient", recorded)
    args = SimpleNamespace(batch_size=4, precision="fp32", minibatches=2)
    delta = max(divergence.DISTANCES)  # far out: the weights there have the size delta, not that of the start
    divergence.place_measure(args, divergence.S.load_data(str(pictures)), (0.5,))("random", 0, delta)
    assert len(at) == 6  # two minibatches at the place, at d = 0 and at d = 0.5
    assert (at[-1] - at[0]).square().mean().sqrt().item() == pytest.approx(0.5 * delta, rel=0.01)


@pytest.mark.parametrize(
    "line, said",
    [
        ("--batch-size 5", "was measured with"),
        ("--batch-size 25", "only 24 images"),
        ("--minibatches 1", "2 to 100 minibatches"),
        ("--init nowhere.pt", "nowhere.pt"),
        ("--data nowhere", "nowhere"),
        ("--prior wide", "normal STD"),
        ("--colour red", "--colour"),
    ],
)
def test_bad_input_is_one_line_and_changes_no_file(pictures, measured, capsys, line, said):
    before = tables(measured)
    assert divergence.main(["--data", str(pictures), "--out", str(measured), *FEW, *line.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("divergence: ") and said in error and error.count("\n") == 1
    assert tables(measured) == before


def test_a_table_of_something_else_is_left_alone(pictures, measured, tmp_path, capsys):
    (tmp_path / "prior.csv").write_text("a,b\n1,2\n")
    assert divergence.main(["--data", str(pictures), "--out", str(tmp_path), *FEW]) == 2
    assert "prior.csv is not a table" in capsys.readouterr().err
    assert (tmp_path / "prior.csv").read_text() == "a,b\n1,2\n"


def test_the_part_that_measures_nothing_asks_for_a_folder_that_is_there_and_makes_none(tmp_path, capsys):
    assert divergence.main(["--part", "divergence", "--out", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err and not (tmp_path / "none").exists()
