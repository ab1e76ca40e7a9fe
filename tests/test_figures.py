"""The figures show what the run folders hold, as far as they go, and nothing that they do not."""

import importlib.util
import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import simsiam_sghmc
from simsiam_sghmc import ENERGY, METRICS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import figures  # noqa: E402

drawing = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason='needs matplotlib: pip install -e ".[figures]"'
)
TARGETS = ("fig1", "fig2a", "fig2b", "fig4", "fig5", "controls", "null", "note", "pretrain")


def commands(target, **environment):
    """The configurations that run_grid.sh lists for a target."""
    clean = {k: v for k, v in os.environ.items() if k not in ("OUT", "SEEDS", "JOBS", "SLURM_ARRAY_TASK_ID")}
    command = ["bash", str(ROOT / "run_grid.sh"), target, "--list"]
    text = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout
    return [simsiam_sghmc.parse(shlex.split(line)[2:])[0] for line in text.splitlines()]


def make_run(folder, cfg, evaluations=12):
    """A run folder with the program's own config.json and made-up tables: a decay that is faster the larger eps is."""
    sgd = cfg.method == "sgd"
    length = (cfg.updates or cfg.epochs * 97) if sgd else cfg.samples
    per_step = 1 if sgd else (2 * cfg.L - 1) * (cfg.energy_scale > 0)
    speed = (cfg.lr if sgd else cfg.eps) ** 0.25 * (3 if sgd and not cfg.sg else 1) * (1 + 0.1 * cfg.seed)
    folder.mkdir(parents=True)
    identity = simsiam_sghmc.identity(cfg, SimpleNamespace(identity="cifar10"), "0123" if cfg.init else None)
    config = {"version": 1, "identity": identity, "settings": asdict(cfg)}
    (folder / "config.json").write_text(json.dumps(config))
    start = 0.8 if cfg.init else 0.4
    lines, energies = [",".join(METRICS)], [",".join(ENERGY)]
    for step in np.linspace(0, length, evaluations).astype(int):
        left = math.exp(-4 * speed * step / length)
        row = {"step": step, "grad_evals": step * per_step, "energy": 1.5 * left, "knn": 0.1 + (start - 0.1) * left}
        row |= {"center": 1 - 0.4 * left, "mi": 2 * (1 - left), "entropy": 3 * left, "drift_to_noise": cfg.eps * left}
        lines.append(",".join(f"{row.get(name, '')}" for name in METRICS))
    for step in np.linspace(0, length - 1, 5 * evaluations).astype(int):
        U = 1.5 * math.exp(-4 * speed * step / length) * (1 + 0.1 * math.sin(step))
        energies.append(f"{step},{step * per_step},{U if per_step else ''}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "energy.csv").write_text("\n".join(energies) + "\n")
    return folder


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    """A made-up run folder for every line of every target: root/<target>/<name>."""
    root = tmp_path_factory.mktemp("grid")
    for target in TARGETS:
        for cfg in commands(target, OUT=str(root)):
            make_run(Path(cfg.out), cfg)
    return root


def drawn(paths, out, capsys):
    """(names of the PNGs, what was printed) after drawing paths."""
    code = figures.main([*map(str, paths), "--out", str(out)])
    text = capsys.readouterr()
    assert (code, text.err) == (0, "")
    names = sorted(p.stem for p in out.glob("*.png"))
    assert names == sorted(p.stem for p in out.glob("*.svg"))
    return names, text.out


def refused(paths, out, capsys):
    """The line on stderr of a call that ends with exit code 2."""
    assert figures.main([*map(str, paths), "--out", str(out)]) == 2
    text = capsys.readouterr()
    assert text.err.startswith("figures: ") and text.err.count("\n") == 1
    return text.err


def first(grid, target):
    return sorted((grid / target).iterdir())[0]


def test_every_run_of_the_grid_is_one_of_the_figure_in_whose_folder_it_lies(grid):
    runs = figures.find_runs([grid])
    assert len(runs) == 99 and all(figures.belongs(run) for run in runs)


def test_a_run_in_the_folder_of_another_figure_does_not_belong_there(grid):
    runs = {f"{run.target}/{run.path.name}": run for run in figures.find_runs([grid])}
    moved = {
        "fig1/L3_eps1e-3_seed0": ["null", "fig2a", "fig2b", "fig4", "fig5", "note", "pretrain"],
        "null/L3_eps1e-3_seed0": ["fig1", "fig2a", "fig2b", "fig4", "fig5", "note", "pretrain"],
        "fig2a/lr3e-2_seed0": ["fig1", "null", "fig2b", "fig4", "fig5", "controls", "note", "pretrain"],
        "fig2b/eps1e-2_seed0": ["fig1", "null", "fig2a", "fig4", "fig5", "controls", "note", "pretrain"],
        "fig4/mass0.01_alpha0.1_eps1e-2_seed0": ["fig1", "null", "fig2a", "fig2b", "fig5", "note", "pretrain"],
        "fig5/no-sg_seed0": ["fig1", "null", "fig2a", "fig2b", "fig4", "controls", "pretrain"],
        "controls/scale5e4_sg_seed0": ["fig1", "null", "fig2a", "fig2b", "fig4", "fig5", "note", "pretrain"],
    }
    for name, targets in moved.items():
        assert not any(figures.belongs(runs[name]._replace(target=target)) for target in [*targets, None]), name
    cosine = runs["fig2b/eps1e-2_seed0"].chain | {"similarity": "cos"}  # a chain, but of no figure
    assert not any(figures.belongs(runs["fig1/L3_eps1e-3_seed0"]._replace(target=t, chain=cosine)) for t in TARGETS)


def test_labels_tell_the_lines_of_a_panel_apart(grid):
    counts = {"fig1": 4, "null": 4, "fig2a": 2, "fig2b": 6, "fig4": 8, "fig5": 6, "controls": 8, "note": 4}
    label = {"fig2a": figures.fig2_label, "fig2b": figures.fig2_label, "fig4": figures.fig4_label}
    label |= {"fig5": figures.fig5_label, "controls": figures.controls_label, "note": figures.note_label}
    panel = {"fig4": "eps", "note": "similarity", "fig5": "method", "controls": "L"}
    for target, count in counts.items():
        runs = figures.find_runs([grid / target])
        names = figures.labelled(runs, label.get(target, figures.eps_label), panel.get(target, "L" if target in (
            "fig1", "null") else "method"))  # fmt: skip
        assert len(set(names.values())) == count, target


def test_runs_that_differ_in_more_than_the_label_says_are_told_apart(grid):
    (run,) = figures.find_runs([first(grid, "fig2a")])
    other = run._replace(path=Path("other"), chain=run.chain | {"weight_decay": 0.0, "seed": 1})
    names = figures.labelled([run, other], figures.fig2_label, "method")
    assert names[run.path] == "lr 3e-2, weight_decay 0.0005" and names[Path("other")] == "lr 3e-2, weight_decay 0.0"


def test_seeds_of_one_chain_share_a_label(grid):
    names = figures.labelled(figures.find_runs([grid / "controls"]), figures.controls_label, "L")
    assert sorted(list(names.values()).count(name) for name in set(names.values())) == [3] * 8


def test_tables_are_read_up_to_a_torn_last_line_and_no_further(tmp_path):
    table = tmp_path / "energy.csv"
    table.write_text("step,grad_evals,energy\n0,0,1.5\n1,5,\n2,1")
    columns = figures.read_table(table, ["step", "energy"])
    np.testing.assert_array_equal(columns["step"], [0, 1])
    np.testing.assert_array_equal(columns["energy"], [1.5, np.nan])
    table.write_text("step,grad_evals,energy\n0,0,1.5\n1,nonsense,\n2,10,1\n")
    for damaged in ("1,nonsense,", "1,5", "1,5,1,2"):
        table.write_text(f"step,grad_evals,energy\n0,0,1.5\n{damaged}\n2,10,1\n")
        with pytest.raises(figures.BadInput, match="line 3"):
            figures.read_table(table, ["step", "grad_evals"])


def test_long_chains_are_averaged_over_stretches_and_empty_cells_left_out():
    x, y = np.arange(10_000.0), np.where(np.arange(10_000) % 2, np.nan, 7.0)
    at, value = figures.thinned(x, y)
    assert len(at) == figures.POINTS and (value == 7).all()
    assert at[0] == np.mean(np.arange(0, 24, 2))  # 5,000 values in 400 stretches of 12 or 13
    np.testing.assert_array_equal(figures.thinned(x[:3], y[:3])[0], [0, 2])


@pytest.mark.parametrize(
    "number, text", [(0.1, "1e-1"), (1e-4, "1e-4"), (5e4, "5e4"), (0, "0"), (1, "1"), (4.472e-6, "4.47e-6")]
)
def test_steps_are_written_as_in_the_paper(number, text):
    assert figures.short(number) == text


@drawing
def test_all_figures_are_drawn_from_the_grid_alone(grid, tmp_path, capsys):
    some = [grid / "fig2a", *(first(grid, target) for target in TARGETS if target != "fig2a")]
    names, _ = drawn(some, tmp_path / "out", capsys)
    assert names == ["controls", "distance", "fig1", "fig2", "fig3", "fig4", "fig5", "note", "null", "pretrain"]
    svg = (tmp_path / "out" / "fig2.svg").read_text()
    assert all(text in svg for text in ("lr 3e-2", "eps 1e-1", "untrained", "chance", "batch 512"))


@drawing
def test_random_walks_are_drawn_against_their_distance_alone(tmp_path, capsys):
    for cfg in commands("cpu", SEEDS="0"):
        if "/walk/L5" in cfg.out or cfg.out.endswith("cpu/fig1/L5_eps1e-1_seed0"):
            make_run(tmp_path / cfg.out, cfg)
    names, _ = drawn([tmp_path], tmp_path / "out", capsys)
    assert names == ["distance", "fig1", "fig3"]
    svg = (tmp_path / "out" / "distance.svg").read_text()
    assert ">random walk<" in svg and ">with energy<" in svg and "rms of W_t - W_0" in svg


@drawing
def test_a_walk_is_drawn_beside_the_chain_with_the_energy(tmp_path, capsys):
    for cfg in commands("cpu", SEEDS="0"):
        if "1/L3_eps1e-1" in cfg.out or "null/L3_eps1e-1" in cfg.out:
            make_run(tmp_path / cfg.out, cfg)
    names, text = drawn([tmp_path], tmp_path / "out", capsys)
    assert names == ["distance", "fig1", "fig3", "null"] and "null.png: 2 runs" in text
    svg = (tmp_path / "out" / "null.svg").read_text()
    assert ">eps 1e-1<" in svg and ">eps 1e-1, no energy<" in svg and "gradient evaluations" not in svg


@drawing
def test_the_title_says_what_thin_lines_are_where_there_are_some(tmp_path, capsys):
    walks = [cfg for cfg in commands("cpu", SEEDS="0 1") if "null/L3_eps1e-1" in cfg.out]
    for cfg in walks:
        make_run(tmp_path / cfg.out, cfg)
    drawn([tmp_path], tmp_path / "two", capsys)
    drawn([tmp_path / walks[0].out], tmp_path / "one", capsys)
    told = {p: "thin lines" in (tmp_path / p).read_text() for p in ("two/null.svg", "one/null.svg", "two/distance.svg")}
    assert told == {"two/null.svg": True, "one/null.svg": False, "two/distance.svg": False}


@drawing
def test_the_axis_of_k_nn_ends_just_above_the_highest_line_of_its_row():
    from matplotlib.figure import Figure

    row = Figure().subplots(1, 2, sharey=True)
    row[0].plot([0, 1], [0.1, 0.4]), row[1].plot([0, 1], [0.1, 0.2])
    figures.from_zero(row)
    assert row[0].get_ylim() == row[1].get_ylim() == pytest.approx((0, 0.46))
    row[1].plot([0, 1], [0, 0.99])
    figures.from_zero(row)
    assert row[0].get_ylim() == (0, 1.02)


@drawing
def test_missing_figures_and_misplaced_runs_are_named_and_not_drawn(grid, tmp_path, capsys):
    cfg = commands("fig5")[0]
    make_run(tmp_path / "runs" / "fig1" / "not-a-chain", cfg)
    make_run(tmp_path / "runs" / "alone", cfg)
    names, text = drawn([first(grid, "fig4"), tmp_path / "runs"], tmp_path / "out", capsys)
    assert names == ["fig4"]
    assert "no runs for fig1, pretrain, fig2, fig3, fig5, null, controls, distance, note" in text
    assert "not-a-chain is not a run of fig1" in text and "alone is in no folder" in text


@drawing
def test_runs_at_another_scale_get_a_picture_of_their_own(grid, tmp_path, capsys):
    (cfg,) = (cfg for cfg in commands("cpu", SEEDS="0") if cfg.out.endswith("cpu/fig1/L1_eps1e-2_seed0"))
    make_run(tmp_path / cfg.out, cfg)
    names, text = drawn([first(grid, "fig1"), tmp_path], tmp_path / "out", capsys)
    assert names == ["fig1", "fig1_2", "fig3", "fig3_2"]
    assert "fig1_2.png: 1 runs, data cifar10, batch 64, bf16" in text


@drawing
def test_unfinished_runs_are_drawn_as_far_as_they_are(tmp_path, capsys):
    begun, torn, empty, bare = commands("fig1")[:4]
    make_run(tmp_path / "fig1" / "begun", begun, evaluations=1)
    path = make_run(tmp_path / "fig1" / "torn", torn) / "metrics.csv"
    path.write_text(path.read_text()[:-20])
    path = make_run(tmp_path / "fig1" / "empty", empty) / "metrics.csv"
    path.write_text(path.read_text().split("\n")[0] + "\n")
    (make_run(tmp_path / "fig1" / "bare", bare) / "energy.csv").unlink()
    names, text = drawn([tmp_path], tmp_path / "out", capsys)
    assert names == ["fig1", "fig3"] and "fig1.png: 3 runs" in text
    assert "eps 1e-4" not in (tmp_path / "out" / "fig3.svg").read_text()  # it has no energies: no line, no label


@drawing
def test_the_same_runs_give_the_same_bytes(grid, tmp_path, capsys):
    for out in ("one", "two"):
        drawn([first(grid, "fig5")], tmp_path / out, capsys)
    for name in ("fig5.png", "fig5.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@drawing
def test_bad_input_is_one_line_and_exit_code_2(grid, tmp_path, capsys):
    assert "holds no run folder" in refused([tmp_path], tmp_path / "out", capsys)
    folder = make_run(tmp_path / "runs" / "fig1" / "a", commands("fig1")[0])
    lines = (folder / "metrics.csv").read_text().split("\n")
    (folder / "metrics.csv").write_text("\n".join([*lines[:3], "x" + lines[3], *lines[4:]]))
    assert "metrics.csv is damaged in line 4" in refused([tmp_path / "runs"], tmp_path / "out", capsys)
    (folder / "metrics.csv").write_text("step,knn\n0,1\n")
    assert "has no column" in refused([tmp_path / "runs"], tmp_path / "out", capsys)
    (folder / "config.json").write_text("{}")
    assert "config.json is not of a run" in refused([tmp_path / "runs"], tmp_path / "out", capsys)
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_one_line_names_the_extra(grid, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install -e ".[figures]"' in refused([grid], tmp_path / "out", capsys)
