"""Chains of both methods: what a step computes, what it costs, and that every draw is a function of its step."""

import copy
import csv
import datetime
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LINE
from torch import nn

import reference_numpy
import simsiam_sghmc as s


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def chain(pictures):
    """chain(eps=..., ...) -> a Chain on the small images."""
    data = s.load_data(str(pictures))

    def make(init=None, **settings):
        settings = {"batch_size": 4, "knn_k": 3, "sg": False, "L": 2} | settings
        return s.Chain(s.Config(**settings), data, init, torch.device("cpu"))

    return make


def recorded_sample(c, monkeypatch):
    """Advance an SGHMC chain by one sample; returns the arguments that sghmc_step got, drawn and returned by it."""
    seen = {"z": [], "X": [], "g": []}
    step = s.sghmc_step

    def recording(w, z, grad, **settings):
        def rows():
            for row in z:
                seen["z"].append(row.clone())
                yield row

        def gradient(X):
            g = grad(X)
            seen["X"].append(X.clone())
            seen["g"].append(g.clone() if torch.is_tensor(g) else torch.full_like(X, g))
            return g

        seen.update(settings=settings, w=w.clone())
        return step(w, rows(), gradient, **settings)

    monkeypatch.setattr(s, "sghmc_step", recording)
    s.sghmc_update(c)
    return seen


def assert_sample_is_the_numpy_references(c, monkeypatch):
    seen = recorded_sample(c, monkeypatch)
    w, z = seen["w"].double().numpy(), [row.double().numpy() for row in seen["z"]]
    gradients = iter([g.double().numpy() for g in seen["g"]] + [np.zeros_like(w)])  # the last one never reaches W
    own = {k: v for k, v in seen["settings"].items() if k != "reuse_grad"}
    wanted = reference_numpy.sghmc_step(w, z, lambda X: next(gradients), **own)
    # each of the 2L+... float32 roundings moves the result by at most one unit roundoff of the largest term
    size = abs(w).max() + own["L"] * own["eps"] * 7 * max(own["mass"] ** -0.5, 1)
    assert abs(c.W.double().numpy() - wanted).max() <= 40 * own["L"] * 2.0**-24 * size
    assert abs(wanted - w).max() > 1e-3


@pytest.mark.parametrize("settings", [{}, {"mass": 4.0}, {"L": 3, "alpha": 0.1}, {"velocity_std": 0.1}])
def test_a_sample_of_the_chain_is_the_numpy_references_on_the_same_gradients(chain, monkeypatch, settings):
    assert_sample_is_the_numpy_references(chain(eps=0.01, **settings), monkeypatch)


def test_a_sample_of_the_whole_network_is_the_numpy_references_on_the_same_gradients(chain, whole_network, monkeypatch):
    c = chain(eps=0.01, mass=4.0, alpha=0.1, velocity_std=0.5)
    assert_sample_is_the_numpy_references(c, monkeypatch)
    assert c.W.shape == (1_668_096,)


def test_the_first_normal_alone_is_scaled_by_velocity_std(chain, monkeypatch):
    plain = recorded_sample(chain(), monkeypatch)["z"]
    monkeypatch.undo()
    scaled = recorded_sample(chain(velocity_std=0.25), monkeypatch)["z"]
    assert torch.equal(scaled[0], 0.25 * plain[0])
    assert all(torch.equal(a, b) for a, b in zip(scaled[1:], plain[1:], strict=True))
    rows = s.normals(0, 0, len(plain[0]), 4)  # the draws that the oracle tests for independence
    assert len(plain) == 4 and all(torch.equal(a, b) for a, b in zip(plain, rows, strict=True))


def test_velocity_std_is_in_units_of_phi_whatever_the_mass(chain, monkeypatch):
    z = recorded_sample(chain(mass=4.0, velocity_std=0.5), monkeypatch)["z"]
    assert float(z[0].std()) == pytest.approx(0.25, rel=0.01)  # Phi_0 = sqrt(M) z has std 0.5


def counted(c, monkeypatch):
    """A list that grows by one entry with each gradient that chain `c` computes."""
    calls, gradient = [], c.gradient
    monkeypatch.setattr(c, "gradient", lambda *encodings: calls.append(c.step) or gradient(*encodings))
    return calls


@pytest.mark.parametrize("L", [1, 2, 3])
def test_a_sample_costs_2l_minus_1_gradients_or_l_with_one_batch(chain, monkeypatch, L):
    for settings, cost in (({}, 2 * L - 1), ({"batch_per": "sample"}, L), ({"energy_scale": 0.0}, 0)):
        c = chain(L=L, **settings)
        calls = counted(c, monkeypatch)
        s.sghmc_update(c)
        assert len(calls) == c.gradients_per_step == cost


def test_one_batch_per_sample_reuses_the_shared_gradient_and_moves_the_same(chain, monkeypatch):
    c, literal = chain(batch_per="sample", L=3), chain(batch_per="sample", L=3)
    calls, literal_calls = counted(c, monkeypatch), counted(literal, monkeypatch)
    step = s.sghmc_step
    s.sghmc_update(c)
    monkeypatch.setattr(s, "sghmc_step", lambda *a, **k: step(*a, **{**k, "reuse_grad": False}))
    s.sghmc_update(literal)
    assert torch.equal(c.W, literal.W)
    assert (len(calls), len(literal_calls)) == (3, 5)


def test_each_half_kick_has_a_minibatch_of_its_own_unless_it_is_per_sample(chain, monkeypatch):
    for per, different in (("kick", 3), ("sample", 1)):
        c, asked = chain(batch_per=per), []
        views = c.views
        monkeypatch.setattr(c, "views", lambda *a, views=views, asked=asked: asked.append(a) or views(*a))
        s.sghmc_update(c)
        assert len(set(asked)) == different


def test_energy_scale_zero_is_the_random_walk_of_the_same_normals(chain, monkeypatch):
    c = chain(energy_scale=0.0, eps=0.5)
    seen = recorded_sample(c, monkeypatch)
    assert all(g.abs().max() == 0 for g in seen["g"])
    monkeypatch.undo()
    walk = s.sghmc_step(seen["w"], s.normals(0, 0, len(c.W), 4), lambda X: 0.0, eps=0.5, L=2, alpha=0.01)
    assert torch.equal(c.W, walk) and (c.W - seen["w"]).std() > 0.5


def test_scale_and_prior_enter_the_gradient_as_written(chain, monkeypatch):
    plain = recorded_sample(chain(), monkeypatch)["g"][0]
    monkeypatch.undo()
    c = chain(energy_scale=8.0, prior_std=0.5)
    both = recorded_sample(c, monkeypatch)
    assert torch.allclose(both["g"][0], 8 * plain + both["w"] / 0.25, rtol=1e-5, atol=1e-6)


def test_each_gradient_is_that_of_the_energy_at_its_own_position_and_minibatch(chain, monkeypatch):
    for sg in (False, True):
        c = chain(sg=sg, eps=0.01)
        model = copy.deepcopy(c.model)
        seen = recorded_sample(c, monkeypatch)
        monkeypatch.undo()
        for kick in range(3):  # at X_0, at X_1 and, on another minibatch, at X_1 again
            nn.utils.vector_to_parameters(seen["X"][kick], model.parameters())
            (p1, z1), (p2, z2) = (model(view) for view in c.views(0, kick))
            wanted = torch.autograd.grad(s.energy(p1, z1, p2, z2, sg), list(model.parameters()))
            wanted = torch.cat([g.flatten() for g in wanted])
            assert torch.allclose(seen["g"][kick], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
        assert not torch.equal(seen["X"][0], seen["X"][1]) and torch.equal(seen["X"][1], seen["X"][2])


def test_bf16_is_for_the_network_alone_and_never_for_w_its_draws_and_its_gradient(chain, monkeypatch):
    c = chain(precision="bf16")
    seen = recorded_sample(c, monkeypatch)
    assert {x.dtype for x in (c.W, seen["w"], *seen["z"], *seen["X"], *seen["g"])} == {torch.float32}
    assert c.last_views()[0].dtype == torch.float32 and c.encode(*c.views(0))[0].dtype == torch.bfloat16


def test_a_minibatch_is_a_function_of_seed_step_and_kick_and_has_no_image_twice(chain, monkeypatch):
    c = chain(batch_size=24)
    first = c.views(5, 1)[0]
    assert torch.equal(first, c.views(5, 1)[0])
    others = [c.views(5, 2)[0], c.views(6, 1)[0], chain(batch_size=24, seed=1).views(5, 1)[0], c.views(5, 1)[1]]
    assert all(not torch.equal(first, other) for other in others)
    assert len(c.data.train.unique(dim=0)) == 24
    monkeypatch.setattr(s, "apply_augmentation", lambda images, a: images)
    assert len(c.views(5, 1)[0].unique(dim=0)) == 24  # all of 24 images, so none twice


def test_no_two_of_fifty_thousand_samples_share_a_generator():
    states = {s.generator(0, "noise", t).initial_seed() % 2**32 for t in range(50_000)}
    assert len(states) == 50_000
    draws = [(0, "noise", 0), (1, "noise", 0), (0, "minibatch", 0), (0, "noise", 0, 1)]
    assert len({s.generator(*draw).initial_seed() for draw in draws}) == 4


def test_every_draw_depends_on_seed_and_step_and_those_of_a_minibatch_on_the_kick_too(chain, monkeypatch):
    monkeypatch.setattr(s, "apply_augmentation", lambda images, a: (images, a.factors))
    places = [(0, 5, 1), (0, 5, 2), (0, 6, 1), (1, 5, 1)]
    drawn = [chain(seed=seed).views(step, kick)[0] for seed, step, kick in places]
    drawn += [s.normals(seed, step, 9, 1) * 2 for seed, step in ((0, 5), (0, 6), (1, 5))]
    for part in (0, 1):
        for one, two in itertools.combinations([x[part] for x in drawn], 2):
            assert one.shape != two.shape or not torch.equal(one, two)


def test_an_sgd_epoch_shows_every_image_once(chain, monkeypatch):
    c = chain(method="sgd", warmup_epochs=0)
    c.data = c.data._replace(train=torch.arange(24, dtype=torch.uint8).view(24, 1, 1, 1).expand(24, 3, 32, 32).clone())
    shown = []
    monkeypatch.setattr(s, "apply_augmentation", lambda images, a: shown.append(images[:, 0, 0, 0].tolist()))
    for step in range(2 * c.per_epoch):
        c.views(step)
    epochs = [sorted(sum(shown[:12:2], [])), sorted(sum(shown[12::2], []))]
    assert epochs == [list(range(24))] * 2
    assert shown[:12] != shown[12:]


def test_two_settings_see_the_same_batches_and_noise(chain, monkeypatch):
    a = recorded_sample(chain(), monkeypatch)
    monkeypatch.undo()
    b = recorded_sample(chain(eps=0.5, alpha=0.3, energy_scale=3.0), monkeypatch)
    assert all(torch.equal(x, y) for x, y in zip(a["z"], b["z"], strict=True))
    assert torch.allclose(3 * a["g"][0], b["g"][0], rtol=1e-5)


def test_the_kinetic_temperature_is_that_of_the_momentum_after_the_last_computed_half_kick(chain, monkeypatch):
    c = chain(L=1, eps=0.25, mass=4.0)
    before = c.W.clone()
    seen = recorded_sample(c, monkeypatch)
    Phi = (1 - 0.01) * 2 * seen["z"][0] - 0.125 * seen["g"][0] + math.sqrt(2 * 0.01 * 4) * seen["z"][1]
    c.W.copy_(before)
    c.step = 0
    monkeypatch.undo()
    assert float(s.sghmc_update(c)[1]["kinetic_temperature"]) == pytest.approx(float((Phi**2 / 4).mean()), rel=1e-3)


def test_drift_to_noise_compares_the_two_terms_of_the_first_drift(chain, monkeypatch):
    c = chain(eps=0.25, mass=4.0, velocity_std=0.3, alpha=0.2)
    seen = recorded_sample(c, monkeypatch)
    noise = 0.8 * 2 * seen["z"][0] + math.sqrt(2 * 0.2 * 4) * seen["z"][1]
    wanted = (0.125 * seen["g"][0]).square().mean().sqrt() / noise.square().mean().sqrt()
    c = chain(eps=0.25, mass=4.0, velocity_std=0.3, alpha=0.2)
    monkeypatch.undo()
    assert float(s.sghmc_update(c)[1]["drift_to_noise"]) == pytest.approx(float(wanted), rel=0.01)


# ---------------------------------------------------------------------------------------------------------------- SGD


def rates(**settings):
    cfg = s.Config(method="sgd", **settings)
    return [s.learning_rate(cfg, epoch) for epoch in range(cfg.epochs)]


def test_the_learning_rate_warms_up_to_its_peak_in_epoch_ten_then_falls_as_a_cosine():
    lr = rates()
    assert lr[0] == pytest.approx(0.003) and lr[9] == pytest.approx(0.03) and lr[4] == pytest.approx(0.015)
    assert lr[10] == pytest.approx(0.03)
    assert lr[10 + 395] == pytest.approx(0.015)
    assert lr[799] == pytest.approx(0.015 * (1 + math.cos(math.pi * 789 / 790)))
    assert all(a >= b > 0 for a, b in zip(lr[9:], lr[10:], strict=False))


def test_updates_beyond_the_cosine_schedule_are_refused_and_a_constant_rate_has_no_end(run, pictures):
    line = "--method sgd --epochs 3 --warmup-epochs 0 --updates"  # an epoch has 6 updates
    code, _, err, folder = run(f"{line} 19")
    assert code == 2 and not folder.exists() and "--updates 19: the learning rate is 0 from 18 on" in err
    for accepted in (f"{line} 18", f"{line} 19 --no-cosine"):
        s.check_sizes(s.parse(f"{accepted} --batch-size 4 --knn-k 3".split()), s.load_data(str(pictures)))


def test_without_warm_up_and_cosine_the_learning_rate_is_constant():
    assert set(rates(warmup_epochs=0, cosine=False, epochs=20)) == {0.03}
    assert rates(warmup_epochs=0, epochs=20)[0] == 0.03


def plain_sgd(c, updates):
    """The same updates by torch's optimiser on the network's own parameters: a W to compare with."""
    model = copy.deepcopy(c.model)
    parameters = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    for p, q in zip(list(model.parameters()), parameters, strict=True):
        p.data, p.grad = q.data, None
    cfg = c.cfg
    encoder, predictor = (
        torch.optim.SGD(part.parameters(), cfg.lr, cfg.momentum, weight_decay=cfg.weight_decay)
        for part in (model.encoder, model.predictor)
    )
    for step in range(updates):
        encoder.param_groups[0]["lr"] = s.learning_rate(cfg, step // c.per_epoch)
        predictor.param_groups[0]["lr"] = encoder.param_groups[0]["lr"] * cfg.predictor_lr_mult
        z = [model.encoder(view) for view in c.views(step)]
        for left in reversed(range(cfg.predictor_steps)):
            z1, z2 = z if left == 0 else [x.detach() for x in z]
            model.zero_grad()
            s.energy(model.predictor(z1), z1, model.predictor(z2), z2, cfg.sg, cfg.similarity).backward()
            if left == 0:
                encoder.step()
            predictor.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.0, "sg": False, "similarity": "cos"}, {"predictor_steps": 3, "predictor_lr_mult": 2.0}],
)
def test_sgd_is_torchs_optimiser_on_the_networks_own_parameters(chain, settings):
    c = chain(method="sgd", **({"sg": True, "epochs": 4, "warmup_epochs": 2} | settings))
    wanted = plain_sgd(c, 9)
    for _ in range(9):
        c.advance()
    assert torch.equal(c.W, wanted) and not torch.equal(c.W, c.start)
    assert (c.step, c.gradients_per_step) == (9, 1)


def parameters_of(module):
    return sum(p.numel() for p in module.parameters())


def test_extra_predictor_steps_move_the_predictor_alone(chain, monkeypatch):
    still = {"warmup_epochs": 0, "momentum": 0.0, "weight_decay": 0.0}  # then no gradient means no move
    one, many = (chain(method="sgd", predictor_steps=k, **still) for k in (1, 4))
    n = parameters_of(one.model.encoder)
    moved, step = [], s.sgd_step

    def recording(*args):
        before = many.W.clone()
        step(*args)
        moved.append([part for part, at in parts.items() if not torch.equal(before[at], many.W[at])])

    parts = {"encoder": slice(0, n), "predictor": slice(n, None)}
    monkeypatch.setattr(s, "sgd_step", recording)
    s.sgd_update(many)
    assert moved == [["predictor"]] * 3 + [["encoder"], ["predictor"]]
    monkeypatch.undo()
    s.sgd_update(one)
    assert many.gradients_per_step == one.gradients_per_step == 1  # whole ones are counted
    assert not torch.equal(one.W[n:], many.W[n:])


def test_predictor_lr_mult_scales_the_predictors_move_alone(chain):
    one, half = (chain(method="sgd", predictor_lr_mult=m, warmup_epochs=0) for m in (1.0, 0.5))
    s.sgd_update(one)
    s.sgd_update(half)
    n = parameters_of(one.model.encoder)
    assert torch.equal(one.W[:n], half.W[:n])
    assert torch.allclose((half.W - half.start)[n:], (one.W - one.start)[n:] / 2, atol=1e-7)


# ---------------------------------------------------------------------------------------------------- tables, resume


def test_every_column_of_the_tables_is_filled_where_it_applies(run):
    _, out, err, folder = run("--no-sg --samples 4 --eps 0.01")
    rows = read(folder / "metrics.csv")
    assert list(rows[0]) == s.METRICS and [r["step"] for r in rows] == ["0", "2", "4"]
    assert [r["grad_evals"] for r in rows] == ["0", "6", "12"]
    assert all(v != "" for r in rows[1:] for v in r.values())
    assert {k for k, v in rows[0].items() if v == ""} == {"kinetic_temperature", "drift_to_noise", "grad_norm"}
    energies = read(folder / "energy.csv")
    assert [(r["step"], r["grad_evals"]) for r in energies] == [("0", "0"), ("1", "3"), ("2", "6"), ("3", "9")]
    assert all(float(r["energy"]) > 0 for r in energies)
    assert "collapsed" in out and err == ""


def test_the_energy_of_row_t_is_that_of_w_t_on_the_first_minibatch(run, pictures):
    _, _, _, folder = run("--no-sg --samples 2 --eps 0.01 --keep-every 1")
    model = s.load_model(folder / "samples/000001.pt").train()
    c = s.Chain(s.Config(batch_size=4, L=2, sg=False), s.load_data(str(pictures)), None, torch.device("cpu"))
    v1, v2 = c.views(1, 0)
    (p1, z1), (p2, z2) = model(v1), model(v2)
    U = float(s.energy(p1, z1, p2, z2, False).detach())
    assert float(read(folder / "energy.csv")[1]["energy"]) == pytest.approx(U, rel=1e-5)


def assert_same_run(one, two):
    a, b = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (one, two))
    assert a.keys() == b.keys() and torch.equal(a["weights"], b["weights"])
    assert all(torch.equal(a["buffers"][k], b["buffers"][k]) for k in a["buffers"])
    assert "momentum" not in a or torch.equal(a["momentum"], b["momentum"])
    assert (a["step"], a["energies"]) == (b["step"], b["energies"])
    for name in ("metrics.csv", "energy.csv"):
        rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in read(f / name)] for f in (one, two)]
        assert rows[0] == rows[1]


def test_a_resumed_chain_is_the_uninterrupted_one_bit_for_bit(run, begun, chains):
    code, out, _, folder = run(f"{LINE} 4")
    assert code == 0 and "from step 2" in out
    assert_same_run(chains[4], folder)


def assert_resumed_is_uninterrupted(run, line):
    whole, parts = run(f"{line} 4", "whole"), run(f"{line} 2", "parts")
    assert whole[0] == parts[0] == 0
    code, out, _, folder = run(f"{line} 4", "parts")
    assert code == 0 and "from step 2" in out
    assert_same_run(whole[3], folder)


@pytest.mark.parametrize("line", [
    "--no-sg --L 1 --precision bf16 --batch-per sample --samples", "--method sgd --updates"
])  # fmt: skip
def test_a_resumed_run_in_bf16_or_by_sgd_is_the_uninterrupted_one_bit_for_bit(run, line):
    assert_resumed_is_uninterrupted(run, line)


def test_a_resumed_chain_of_the_whole_network_is_the_uninterrupted_one_bit_for_bit(run, whole_network, tmp_path):
    assert_resumed_is_uninterrupted(run, "--no-sg --batch-size 2 --knn-train 4 --knn-test 4 --L 1 --samples")
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["weights"].shape == (1_668_096,)


def test_the_same_command_gives_the_same_bits(run, chains):
    assert_same_run(run(f"{LINE} 2")[3], chains[2])


def test_a_finished_run_started_again_changes_nothing(run, begun, chains):
    before = {p: p.read_bytes() for p in begun.iterdir()}
    code, out, _, folder = run(f"{LINE} 2")
    assert code == 0 and "done" in out
    assert {p: p.read_bytes() for p in begun.iterdir()} == before


def test_a_chain_starts_from_a_checkpoint_of_either_method(run, chains):
    trained = run("--method sgd --updates 2", "trained")[3]
    for start, line in ((chains[2], "--method sgd --updates 1"), (trained, "--samples 1")):
        begun = run(f"{line} --init {start}/checkpoint.pt", f"after-{start.name}")[3]
        first, last = read(begun / "metrics.csv")[0], read(start / "metrics.csv")[-1]
        columns = ("knn", "center", "effective_rank")
        assert [first[k] for k in columns] == [last[k] for k in columns]
        assert first["distance"] == "0" and first["step"] == "0"


def test_kept_samples_are_named_by_their_step(run):
    _, _, _, folder = run("--no-sg --samples 4 --energy-scale 0 --keep-every 2")
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["000002.pt", "000004.pt"]


def test_config_json_says_what_the_numbers_may_depend_on(chains):
    config = json.loads((chains[2] / "config.json").read_text())
    made_by = config["made by"]
    assert config["identity"]["eps"] == config["settings"]["eps"] == 0.01 and config["settings"]["samples"] == 2
    assert made_by["torch"] == torch.__version__ and made_by["device"] == "cpu, 1 threads"
    assert {"torchvision", "numpy", "pillow", "python", "commit"} < made_by.keys()
    assert datetime.datetime.fromisoformat(made_by["date"]).tzinfo and config["test images per class"] == [4, 4, 4]


def test_what_a_run_reads_and_keeps_is_said_at_its_start(run):
    out = run("--no-sg --samples 4 --energy-scale 0 --keep-every 2")[1]
    assert "train: 24 images of 3 classes" in out
    assert ", 2 kept samples of 0.22 MB" in out  # the slim network's 54,728 float32 numbers
    assert "kept" not in run("--no-sg --samples 1", "other")[1]


def test_load_model_recalibrates_on_two_or_more_uint8_images_only(chains):
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    s.load_model(chains[2] / "checkpoint.pt", images)
    for wrong in (images[:1], images.float(), images.long()):
        with pytest.raises(ValueError, match="two or more uint8 images"):
            s.load_model(chains[2] / "checkpoint.pt", wrong)


def test_init_takes_a_run_folder_for_its_checkpoint(run, chains):
    starts = {"by-folder": chains[4], "by-file": chains[4] / "checkpoint.pt"}
    by_folder, by_file = (run(f"--samples 1 --init {start}", name)[3] for name, start in starts.items())
    assert_same_run(by_folder, by_file)


@pytest.mark.parametrize("settings, shown", [("--no-sg", True), ("--no-sg --energy-scale 0", False)])
def test_the_line_of_progress_shows_the_energy_where_there_is_one(run, settings, shown):
    *_, folder = done = run(f"{settings} --samples 3")
    line = next(line for line in done[1].splitlines() if " s per step" in line)
    energy = (folder / "energy.csv").read_text().splitlines()[3].split(",")[2]
    assert line.startswith(f"step 3 of 3, energy {float(energy):.4f}, " if shown else "step 3 of 3, ")
    assert ("energy" in line) == shown


def test_a_line_that_is_to_be_rewritten_fits_the_terminal(run, monkeypatch, capfd):
    monkeypatch.setattr(s.sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    out = run("--no-sg --samples 3")[1]
    rewritten = [line.split("\n")[0] for line in out.split("\r\033[K") if " of 3, " in line]
    assert rewritten and all(len(line) == 19 for line in rewritten)


def test_the_tables_tell_any_two_float32_numbers_apart():
    numbers = [1.0, float(np.nextafter(np.float32(1), np.float32(2)))]
    lines = s.tables([], numbers, 1)["energy.csv"].decode().splitlines()[1:]
    assert [np.float32(line.split(",")[-1]) for line in lines] == [np.float32(x) for x in numbers]


def test_kept_samples_load_as_the_network_they_were(run):
    _, _, _, folder = run("--no-sg --samples 2 --keep-every 1")
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["000001.pt", "000002.pt"]
    kept, final = s.load_model(folder / "samples/000002.pt"), s.load_model(folder / "checkpoint.pt")
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(kept(x)[0], final(x)[0]) and not kept.training
    assert not torch.equal(kept(x)[0], s.load_model(folder / "samples/000001.pt")(x)[0])


def test_an_evaluation_leaves_the_chain_alone(chain):
    c = chain()
    c.advance()
    before, weights = [b.clone() for b in c.model.buffers()], c.W.clone()
    s.evaluate(c)
    assert all(torch.equal(a, b) for a, b in zip(before, c.model.buffers(), strict=True))
    assert torch.equal(weights, c.W) and c.model.training
    assert all(m.momentum == 0.1 for m in c.model.modules() if isinstance(m, nn.BatchNorm2d))


def test_an_evaluation_is_in_full_float32_whatever_the_precision_of_the_chain(chain):
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    c = chain(precision="bf16")
    before = [switch.allow_tf32 for switch in switches]
    torch.backends.cudnn.allow_tf32 = True
    with s.full_float32():
        assert not any(switch.allow_tf32 for switch in switches)
        z, trunk = (s.features(c.model, c.data.test, kind) for kind in ("z", "trunk"))
    assert z.dtype == trunk.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value
    plain = s.evaluate(chain())
    assert all(s.evaluate(c)[k] == plain[k] for k in ("knn", "center", "effective_rank"))
    assert c.encode(*c.views(0))[0].dtype == torch.bfloat16


@pytest.mark.parametrize("part, settings", [("head", {"knn_features": "trunk"}), ("predictor", {"similarity": "l2"})])
def test_an_overflow_that_the_features_do_not_show_is_a_divergence_too(chain, monkeypatch, part, settings):
    c = chain(**settings)
    layer = c.model.encoder.head[0] if part == "head" else c.model.predictor[3]
    if part == "head":  # of the test images alone
        monkeypatch.setattr(s, "batch_measures", lambda *a: {"energy": 0.0})
    assert s.evaluate(c) is not None
    layer.weight.data.fill_(1e38)
    assert s.evaluate(c) is None


@pytest.mark.parametrize(
    "center, dead_samples, verdict",
    [(0.99, 0.5, "no"), (0.9901, 0.5, "constant"), (0.3, 0.51, "dead"), (0.9901, 0.51, "dead")],
)
def test_a_chain_is_constant_above_centre_ratio_099_and_dead_above_half_of_the_rows(
    chain, monkeypatch, center, dead_samples, verdict
):
    monkeypatch.setattr(s, "geometry", lambda z: {"center": center, "dead_samples": dead_samples})
    assert s.evaluate(chain())["collapsed"] == verdict


@pytest.mark.parametrize("knn, verdict", [(0.399, "yes"), (0.401, "no")])
def test_at_chance_is_at_most_twelve_tenths_of_the_largest_class(chain, monkeypatch, knn, verdict):
    found = iter([knn, 0.8 - knn])  # the second, of the centred features, would give the other verdict
    monkeypatch.setattr(s, "knn_accuracy", lambda *a: next(found))
    assert s.evaluate(chain())["at_chance"] == verdict  # three classes of four test images each


def test_knn_centered_is_the_vote_after_the_banks_mean_is_taken_from_both(chain, monkeypatch):
    seen = []
    monkeypatch.setattr(s, "knn_accuracy", lambda *a: seen.append(a) or len(seen) / 10)
    row = s.evaluate(chain(knn_train=20))
    assert (row["knn"], row["knn_centered"]) == (0.1, 0.2)
    (bank, bank_labels, test, test_labels, *_), centred = seen
    assert bank.shape == (20, 128) and test.shape == (12, 128)
    wanted = (bank - bank.mean(dim=0), bank_labels, test - bank.mean(dim=0), test_labels, 3)
    assert all(torch.equal(a, b) if torch.is_tensor(b) else a == b for a, b in zip(centred, wanted, strict=True))


def test_recalibrated_features_depend_on_the_weights_alone_and_running_ones_do_not(chain):
    for bn, alone in (("recalibrated", True), ("running", False)):
        c = chain(bn=bn)
        first = s.evaluate(c)
        for b in c.model.buffers():
            if b.is_floating_point():
                b.mul_(3).add_(1)
        assert (s.evaluate(c)["effective_rank"] == first["effective_rank"]) == alone


def test_recalibration_is_the_average_of_batch_statistics(chain):
    c = chain()
    x = s.normalise(c.data.train)
    convolution = c.model.encoder.trunk[:5]
    with torch.no_grad(), s.full_float32():
        s.recalibrate(c.model, c.data.train)
        found = [b.clone() for norm in (c.model.encoder.trunk[5], c.model.predictor[1]) for b in norm.buffers()]
        before_norm = [convolution(x).transpose(0, 1).flatten(1), c.model.predictor[0](c.model.encoder(x)).T]
    wanted = [y for rows in before_norm for y in (rows.mean(dim=1), rows.var(dim=1), torch.tensor(1))]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))  # the last: one batch


def test_a_short_last_block_does_not_count_as_a_whole_one(chain, monkeypatch):
    monkeypatch.setattr(s, "BLOCK", 11)  # of 24 images: 11, 11 and 2
    c, stems = chain(), []
    for images in (c.data.train, c.data.train[:22]):
        with s.full_float32():
            s.recalibrate(c.model, images)
        stems.append(c.model.encoder.trunk[5].running_var.clone())
    assert torch.equal(*stems)


def documented(first):
    """The Python of docs/running.md that begins with these words."""
    page = (Path(__file__).parents[1] / "docs/running.md").read_text()
    return next(code for code in re.findall(r"```python\n(.*?)```", page, re.S) if code.startswith(first))


def test_the_documented_sampler_on_a_model_of_ones_own_runs_and_moves_it():
    names = {}
    exec(documented("import torch\nfrom simsiam_sghmc"), names)
    assert names["t"] == 99 and names["W"].isfinite().all() and names["G"].abs().max() > 0


def test_the_documented_lines_on_loading_a_network_give_predictions_and_encodings(chains, chain):
    code = documented("from simsiam_sghmc import load_data").replace('load_data("gratings").train', "pictures")
    names = {"pictures": chain().data.train}
    exec(re.sub(r"runs/[^\"]*", str(chains[2] / "checkpoint.pt"), code), names)
    W = nn.utils.parameters_to_vector(names["model"].parameters())
    assert torch.equal(W, torch.load(chains[2] / "checkpoint.pt", weights_only=True)["weights"])
    assert names["p"].shape == names["z"].shape == (24, 128) and names["z"].min() >= 0
    with torch.no_grad():
        wanted = s.load_model(chains[2] / "checkpoint.pt", names["images"])(s.normalise(names["images"]))
    assert torch.allclose(names["p"], wanted[0]) and torch.allclose(names["z"], wanted[1])
    assert not names["model"].training


def test_the_documented_vote_and_probe_are_those_of_the_kept_samples(run, chain, capfd):
    folder, data = run("--no-sg --samples 3 --keep-every 1")[3], chain().data
    code = documented("from pathlib").replace('load_data("gratings")', "images").replace("k=200", "k=3")
    names = {"images": data}
    exec(code.replace("runs/first", str(folder)), names)
    votes = 0
    for step in (1, 2, 3):
        model = s.load_model(folder / f"samples/00000{step}.pt", data.train)
        with torch.no_grad():
            bank, test = (s.features(model, images, "z") for images in (data.train, data.test))
        votes = votes + s.knn_votes(bank, data.train_labels, test, 3)
    assert torch.allclose(names["votes"], votes) and votes.shape == (12, 3)
    exec(documented("import torch\nmean"), names)
    probed = names["probe"]((names["bank"] - names["mean"]) / names["std"]).argmax(dim=1)
    assert (probed == data.train_labels).all()  # 24 points in 128 dimensions are separable
    printed = [float(line.split()[1]) for line in capfd.readouterr().out.splitlines() if line.startswith("accuracy")]
    assert printed[0] == pytest.approx((votes.argmax(dim=1) == data.test_labels).float().mean().item())
    assert 0.5 <= printed[1] <= 1
