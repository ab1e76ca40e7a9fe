"""tools/overflow.py: what float16 does to features along the walk."""

import csv
import sys
from pathlib import Path

import pytest
import torch

import simsiam_sghmc as s

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import overflow  # noqa: E402

pytestmark = pytest.mark.usefixtures("whole_network")  # float16 overflows in sums over as many channels


def test_near_the_start_half_precision_gives_what_single_precision_does(pictures):
    data = s.load_data(str(pictures))
    lost, knn = overflow.place(data, 0, 0.0)
    model = s.initial_network(0)
    with s.full_float32():
        s.recalibrate(model, s.fixed_subset(data.train, data.train_labels, 24, 0)[0])
        bank, test = (s.features(model, images, "z") for images in (data.train, data.test))
    assert lost == 0 and knn == s.knn_accuracy(bank, data.train_labels, test, data.test_labels, 24)


def test_far_out_no_image_is_left_and_all_are_called_class_0(pictures):
    data = s.load_data(str(pictures))
    assert overflow.place(data, 0, 10.0) == (1, pytest.approx(4 / 12))
    assert overflow.place(data._replace(test_labels=torch.ones(12, dtype=torch.int64)), 0, 10.0) == (1, 0)


def test_what_a_layer_gives_is_rounded_to_half_precision():
    layer = torch.nn.Linear(1, 1, bias=False)
    model = torch.nn.Sequential(layer, torch.nn.Sequential(torch.nn.Identity()))
    overflow.halved(model)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        out = model(torch.tensor([[1 + 2.0**-12], [65_505.0], [70_000.0]])).flatten().tolist()
    assert out == [1, 65_504, float("inf")]


def test_the_table_has_a_row_per_walk_and_distance(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overflow, "place", lambda data, seed, distance: (seed / 2, distance / 10))
    assert overflow.main(["--data", str(pictures), "--out", str(tmp_path / "new/out"), "--seeds", "2"]) == 0
    rows = list(csv.DictReader(open(tmp_path / "new/out/overflow.csv")))
    places = [(float(row["seed"]), float(row["distance"])) for row in rows]
    assert places == [(seed, distance) for seed in (0, 1) for distance in overflow.DISTANCES]
    assert all(float(r["not_finite"]) == float(r["seed"]) / 2 for r in rows)
    assert all(float(r["knn"]) == float(r["distance"]) / 10 for r in rows)


def test_the_command_of_the_readme_writes_below_runs(pictures, tmp_path, monkeypatch):
    data = s.load_data(str(pictures))
    monkeypatch.setattr(s, "load_data", lambda name: data if name == "cifar10" else None)
    monkeypatch.setattr(overflow, "place", lambda *walk: (0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    assert overflow.main([]) == 0
    assert len((tmp_path / "runs/evidence/overflow.csv").read_text().splitlines()) == 1 + 3 * len(overflow.DISTANCES)


def test_bad_input_is_one_line(tmp_path, capsys):
    assert overflow.main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert overflow.main(["--sedes", "3"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and all(line.startswith("overflow: ") for line in err) and not (tmp_path / "x").exists()


def test_what_cannot_be_used_is_said_before_the_first_walk(pictures, tmp_path, monkeypatch, capsys):
    walks = []
    monkeypatch.setattr(overflow, "place", lambda *walk: walks.append(walk) or (0.0, 0.0))
    (tmp_path / "file").touch()
    for line, words in (
        (["--out", str(tmp_path / "file")], "file"),
        (["--out", str(tmp_path / "x"), "--seeds", "0"], "--seeds 0"),
        (["--out", str(tmp_path / "x"), "--seeds", "-1"], "--seeds -1"),
    ):
        assert overflow.main(["--data", str(pictures), *line]) == 2
        err = capsys.readouterr().err
        assert err.startswith("overflow: ") and err.count("\n") == 1 and words in err
    assert walks == [] and not (tmp_path / "x").exists()
