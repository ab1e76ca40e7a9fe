"""A picture shows what the run folders hold: the data behind each axis, its labels, its title; and nothing else."""

import importlib.util
import json
import math
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import simsiam_sghmc
from simsiam_sghmc import METRICS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import figures  # noqa: E402

drawing = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason='needs matplotlib: pip install -e ".[figures]"'
)
COLUMNS = ("knn", "center", "energy", "mi", "entropy", "entropy_z")
SMALL = "--batch-size 64 --knn-train 3000 --knn-test 1500"
DIVERGENCE = "figure,start,L,eps,samples,kl_first,kl_first_se,kl,kl_se,accuracy\n"


def made_up(seed, column, step):
    """A value of no meaning, other for each run, column and step, of the size that such values have."""
    x = (math.sin(17 * seed + 5 * COLUMNS.index(column) + step / 7) + 1) / 2
    return {"knn": 0.2 + 0.2 * x, "center": 0.5 + 0.3 * x}.get(column, 3 * x)


def make_run(folder, line, data="gratings", steps=(0, 5, 10), collapsed="no", start="untrained", tests=None):
    """A run folder with the program's own config.json and made-up tables; returns {column: its values}."""
    cfg = simsiam_sghmc.parse([*shlex.split(line), "--data", data])
    start = torch.full((1,), float(len(start)))
    chain = SimpleNamespace(data=SimpleNamespace(source=data if data == "gratings" else "images 0123"), start=start)
    config = {"identity": simsiam_sghmc.identity(cfg, chain), "settings": asdict(cfg)}
    config |= {"test images per class": tests} if tests else {}  # older runs have no such line
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    number = sum(map(ord, str(folder.name) + folder.parent.name))
    table = {column: [made_up(number, column, step) for step in steps] for column in COLUMNS}
    rows = [{"step": step, "collapsed": collapsed} | {c: table[c][i] for c in COLUMNS} for i, step in enumerate(steps)]
    lines = [",".join(METRICS)] + [",".join(str(row.get(name, "")) for name in METRICS) for row in rows]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    lines = ["step,grad_evals,energy"] + [f"{step},{step},{u}" for step, u in zip(steps, table["energy"], strict=True)]
    (folder / "energy.csv").write_text("\n".join(lines) + "\n")
    return table | {"step": list(steps)}


def drawn(*paths):
    """{name: matplotlib Figure} of everything that these paths allow."""
    return dict(figures.pictures(*figures.find(list(paths))))


def lines(axes):
    """{label: (x, y)} of what is drawn as a line."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def shown(figure):
    """[(title, x label, y label)] of the panels, from the top left."""
    return [(a.get_title().replace("\n", " "), a.get_xlabel(), a.get_ylabel()) for a in figure.axes]


def refused(paths, capsys, *options):
    """The line on stderr of a call that ends with exit code 2."""
    assert figures.main([*map(str, paths), *options]) == 2
    text = capsys.readouterr()
    assert text.err.startswith("figures: ") and text.err.count("\n") == 1
    return text.err


# ------------------------------------------------------------------------------------------------------- run folders


def test_every_run_of_the_grid_is_one_of_the_figure_in_whose_folder_it_lies(tmp_path):
    """But for the controls beyond the four lines of their picture."""
    left_out = set()
    for target in ("all", "cpu", "note"):
        text = subprocess.run(["bash", str(ROOT / "run_grid.sh"), target, "--list"], capture_output=True, text=True)
        for line in text.stdout.splitlines():
            words = shlex.split(line)
            cfg = simsiam_sghmc.parse(words[2:])
            start = SimpleNamespace(data=SimpleNamespace(source="cifar10"), start=torch.zeros(1))
            chain = simsiam_sghmc.identity(cfg, start)
            if cfg.method == "sghmc":
                chain["velocity_std"] = cfg.phi_std
            target = next((part for part in Path(cfg.out).parts if part in figures.EXPECTED), None)
            run = figures.Run(Path(cfg.out), target, chain, *[None] * 6)
            if not figures.belongs(run):
                left_out.add(f"{target}/{Path(cfg.out).name[:-6]}")
    extra = ("scale1e3", "scale5e4_eps-over-sqrtN", "scale5e4_prior0.1", "batch-per-sample")
    assert {name for name in left_out if not name.startswith("None")} == {f"controls/{name}" for name in extra}


def test_a_run_in_the_folder_of_another_figure_does_not_belong_there(tmp_path):
    start = "--init start.pt"
    lines = {
        "fig1": "--no-sg --eps 0.1", "null": "--no-sg --energy-scale 0", "fig2b": f"--no-sg {start}",
        "walk": f"--no-sg --energy-scale 0 {start}",
        "fig2a": f"--no-sg --method sgd --similarity cos {start}", "fig4": "--no-sg --mass 0.01",
        "fig5": "--no-sg --method sgd", "pretrain": "--sg --method sgd --similarity cos",
        "scale": "--sg --energy-scale 8", "controls": "--sg --energy-scale 5e4 --eps 1e-3",
        "note": "--sg --method sgd --similarity l2",
    }  # fmt: skip
    fits = {}
    for name, line in lines.items():
        make_run(tmp_path / name / "run", line)
        (run,) = figures.find([tmp_path / name])[0]
        fits[name] = {target for target in lines if figures.belongs(run._replace(target=target))}
        assert run.target == name and not figures.belongs(run._replace(target=None))
        assert figures.belongs(run._replace(target="itself"))
    assert fits == {
        "fig1": {"fig1", "scale"}, "null": {"null", "walk", "scale", "controls"}, "fig2b": {"fig2b"}, "walk": {"walk"},
        "fig2a": {"fig2a"}, "fig4": {"fig4"}, "fig5": {"fig5", "note"}, "pretrain": {"pretrain", "fig5", "note"},
        "scale": {"scale"}, "controls": {"controls", "scale"}, "note": {"note", "pretrain"},
    }  # fmt: skip


def test_tables_are_read_by_name_up_to_a_torn_last_line_and_no_further(tmp_path):
    table = tmp_path / "energy.csv"
    table.write_text("energy,step,dead_units\n1.5,0,7\n,1,7\n2,2")
    columns = figures.read_table(table, ["step", "energy", "entropy_z"])
    np.testing.assert_array_equal(columns["step"], [0, 1])
    np.testing.assert_array_equal(columns["energy"], [1.5, np.nan])
    assert np.isnan(columns["entropy_z"]).all()  # older tables have none
    for damaged in ("nonsense,1,7", "1,5", "1,5,1,2"):
        table.write_text(f"energy,step,dead_units\n1.5,0,7\n{damaged}\n2,2,7\n")
        with pytest.raises(figures.BadInput, match="line 3"):
            figures.read_table(table, ["step", "energy"])


def test_the_chance_and_the_number_of_test_images_are_those_of_the_data(tmp_path):
    for name, count in (("ant", 6), ("bee", 3), ("cat", 1)):
        (tmp_path / "pictures" / "test" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "pictures" / "test" / name / f"{i}.png").touch()
    make_run(tmp_path / "fig1" / "a", "--no-sg", data=str(tmp_path / "pictures"))
    make_run(tmp_path / "fig1" / "b", "--no-sg --knn-test 7", data=str(tmp_path / "gone"))
    make_run(tmp_path / "fig1" / "c", "--no-sg")
    make_run(tmp_path / "fig1" / "d", "--no-sg", data=str(tmp_path / "gone"), tests=[1, 2, 5])
    make_run(tmp_path / "fig1" / "e", "--no-sg --knn-test 3", data=str(tmp_path / "pictures"), tests=[1, 1, 2])
    known = {run.path.name: (run.tests, run.chance, run.data) for run in figures.find([tmp_path])[0]}
    assert known.pop("c") == (2000, 0.1, "gratings")
    assert known == {"a": (10, 0.6, "images of pictures"), "b": (7, None, "images of gone"),
                     "d": (8, 5 / 8, "images of gone"), "e": (3, 1 / 2, "images of pictures")}  # fmt: skip


@drawing
def test_a_list_of_test_images_that_is_none_is_named(tmp_path, capsys):
    for i, tests in enumerate((7, ["many"], {"ant": None})):
        make_run(tmp_path / str(i), "--no-sg", tests=tests)
        assert "config.json is not of a run" in refused([tmp_path / str(i)], capsys)


@drawing
def test_a_chance_that_one_run_knows_is_that_of_all_runs_on_the_same_images(tmp_path):
    make_run(tmp_path / "fig1" / "old", "--no-sg --eps 0.1", data=str(tmp_path / "gone"))
    make_run(tmp_path / "fig1" / "new", "--no-sg --eps 0.01", data=str(tmp_path / "gone"), tests=[1, 3])
    assert lines(drawn(tmp_path)["fig1"].axes[0])["chance"][1] == [0.75, 0.75]
    make_run(tmp_path / "fig1" / "other", "--no-sg --eps 0.001", data=str(tmp_path / "gone"), tests=[2, 3])
    assert "chance" not in lines(drawn(tmp_path)["fig1"].axes[0])  # they cannot both be right


def test_config_json_of_the_program_before_is_read(tmp_path):
    """Version 2 had the velocities' deviation worked out, fewer keys in its identity, and the weight of a vote."""
    make_run(tmp_path / "fig4" / "new", "--no-sg --mass 0.01")
    config = json.loads((tmp_path / "fig4" / "new" / "config.json").read_text())
    old = {"identity": {k: v for k, v in config["identity"].items() if k not in ("lr", "version", "knn_k")}}
    old["identity"]["velocity_std"] = 0.1
    old |= {"version": 2, "settings": config["settings"] | {"knn_t": 0.1, "data_dir": "data"}}
    make_run(tmp_path / "fig4" / "old", "--no-sg --mass 0.01 --seed 1")
    (tmp_path / "fig4" / "old" / "config.json").write_text(json.dumps(old))
    new, old = figures.find([tmp_path])[0]
    assert figures.belongs(new) and figures.belongs(old) and new.scale == old.scale
    names = figures.labelled([new, old], figures.LABELS["fig4"], "eps")
    assert set(names.values()) == {"M = s^2, s 0.1, alpha 0.01"}


# ------------------------------------------------------------------------------------------------------------ words


def test_labels_tell_the_lines_of_a_panel_apart_and_seeds_share_one(tmp_path):
    wanted = {
        "--no-sg --eps 1e-3 --init pretrained.pt": ("step", "eps 1e-3"),
        "--method sgd --no-sg --lr 0.003": ("step", "lr 3e-3"),
        "--no-sg --mass 0.0001 --alpha 0.1": ("fig4", "M = s^2, s 0.01, alpha 0.1"),
        "--no-sg --velocity-std 0.1": ("fig4", "velocity std 0.1, alpha 0.01"),
        "--method sgd --sg": ("fig5", "energy, all tricks"),
        "--method sgd --no-sg --warmup-epochs 0 --momentum 0 --no-cosine --similarity cos":
            ("fig5", "cosine loss, no SG, no warm-up, no momentum, no cosine decay"),
        "--sg --energy-scale 5e4": ("controls", "energy scale 5e4, with SG"),
        "--no-sg --energy-scale 0": ("controls", "energy scale 0"),
        "--method sgd --no-sg --predictor-steps 5": ("note", "no SG, predictor steps 5"),
    }  # fmt: skip
    for i, (line, (label, text)) in enumerate(wanted.items()):
        for seed in (0, 1):
            make_run(tmp_path / str(i) / str(seed), f"{line} --seed {seed}", start=seed * "another start")
        names = figures.labelled(figures.find([tmp_path / str(i)])[0], figures.LABELS[label], "method")
        assert [*names.values()] == [text, text]


def test_runs_that_differ_in_more_than_the_label_says_are_told_apart_within_a_panel(tmp_path):
    for L, batch in ((1, 16), (1, 64), (3, 64)):
        make_run(tmp_path / f"fig1/L{L}_{batch}", f"--no-sg --L {L} --eps 0.1 --batch-size {batch}")
    names = figures.labelled(figures.find([tmp_path])[0], figures.LABELS["step"], "L")
    names = {path.name: name for path, name in names.items()}
    assert names == {"L1_16": "eps 1e-1, batch size 16", "L1_64": "eps 1e-1, batch size 64", "L3_64": "eps 1e-1"}


def test_titles_say_how_many_collapse_and_where_the_runs_end(tmp_path):
    for i, collapsed in enumerate(("no", "constant", "dead")):
        make_run(tmp_path / "fig5" / str(i), f"--method sgd --sg --seed {i}", collapsed=collapsed)
    runs = figures.find([tmp_path])[0]
    tables = [{"knn": [0.5, at], "center": [0.5, c], "energy": [2, np.nan]} for at, c in ((0.26, 0.9), (0.331, 0.6))]
    first, second = (run._replace(metrics=run.metrics | {k: np.array(v) for k, v in table.items()})
                     for run, table in zip(runs, tables, strict=False))  # fmt: skip
    assert figures.ends([first, second], "knn") == "k-NN accuracy ends at 26 to 33\xa0%"
    assert figures.ends([first], "center") == "centre ratio ends at 0.9: no collapse"
    assert figures.ends([first, second], "center") == "centre ratio ends at 0.6 to 0.9: 1 of 2 runs collapses"
    assert figures.ends([first, second], "energy") == "U ends at 2"
    cosine = first._replace(chain=first.chain | {"similarity": "cos"})
    assert figures.ends([first, cosine], "energy") == "loss ends at 2"
    assert figures.verdict(runs) == "2 of 3 runs collapse" and figures.verdict(runs[1:2]) == "it collapses"
    assert figures.verdict(runs[1:]) == "all of 2 runs collapse"
    assert figures.verdict(runs[:1] * 2) == "none of 2 runs collapses"
    came_back = runs[0]._replace(metrics=runs[0].metrics | {"collapsed": ["no", "constant", "no"]})
    assert figures.verdict([came_back]) == "it collapses"


def test_steps_are_written_as_in_the_paper():
    numbers = {0.1: "1e-1", 1e-4: "1e-4", 5e4: "5e4", 0: "0", 1: "1", 512: "512", 4.472e-6: "4.47e-6"}
    assert {number: figures.short(number) for number in numbers} == numbers


# ------------------------------------------------------------------------------------------------------------ lines


def test_long_chains_are_averaged_over_stretches_and_empty_cells_left_out():
    x, y = np.arange(10_000.0), np.where(np.arange(10_000) % 2, np.nan, np.arange(10_000) % 4)
    at, mean, low, high = figures.gathered(x, y)
    assert len(at) == figures.POINTS and at[0] == np.mean(np.arange(0, 24, 2))  # 5,000 values, 12 or 13 a stretch
    assert mean[0] == 1 and (low == 0).all() and (high == 2).all()
    at, mean, low, high = figures.gathered(np.array([5.0, 0, 5, 9]), np.array([1.0, 4, 3, np.nan]))
    assert [*map(list, (at, mean, low, high))] == [[0, 5], [4, 2], [4, 1], [4, 3]]


def test_a_line_is_the_mean_of_its_seeds_and_one_seed_has_the_standard_error_of_its_test_images(tmp_path):
    one, two = (make_run(tmp_path / f"fig1/{s}", f"--no-sg {SMALL} --seed {s}") for s in (0, 1))
    runs = figures.find([tmp_path])[0]
    x, mean, low, high = figures.curve(runs, "knn")
    pairs = np.array([one["knn"], two["knn"]])
    np.testing.assert_allclose([x, mean, low, high], [[0, 5, 10], pairs.mean(0), pairs.min(0), pairs.max(0)])
    x, mean, low, high = figures.curve(runs[:1], "knn")
    error = np.sqrt(pairs[0] * (1 - pairs[0]) / 1500)
    np.testing.assert_allclose([mean, low, high], [pairs[0], pairs[0] - error, pairs[0] + error])
    x, mean, low, high = figures.curve(runs[:1], "center")
    np.testing.assert_allclose([mean, low, high], [one["center"]] * 3)


def test_a_walk_of_a_hundredfold_step_is_ten_thousand_times_as_long(tmp_path):
    table = make_run(tmp_path / "walk/a", "--no-sg --energy-scale 0 --eps 10", steps=(0, 1, 2, 6))
    (run,) = figures.find([tmp_path])[0]
    x, y = figures.walk_curve([run], 0.1, 3, 50_000, "knn")
    np.testing.assert_allclose([x, y], [[0, 10_000, 20_000], table["knn"][:3]])
    x, _ = figures.walk_curve([run], 100, 3, 50_000, "knn")
    assert list(x) == [0]  # parts of a sample are none


def variance(L):
    """Of W_1 - W_0 over eps^2 without energy: the squared answers to each row of normals alone."""
    zero = torch.zeros(1)
    answers = [
        simsiam_sghmc.sghmc_step(zero, row[:, None], lambda X: 0.0, eps=1, L=L, alpha=0.01) for row in torch.eye(2 * L)
    ]
    return float(torch.cat(answers).square().sum())


def test_walks_of_other_leapfrogs_are_the_same_walk_at_another_speed(tmp_path):
    table = make_run(tmp_path / "walk/a", "--no-sg --energy-scale 0 --eps 1 --L 5", steps=(0, 1, 2))
    x, y = figures.walk_curve(figures.find([tmp_path])[0], 0.5, 1, 50_000, "knn")
    np.testing.assert_allclose([x, y], [np.array([0, 4, 8]) * variance(5) / variance(1), table["knn"]], rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- pictures


@drawing
def test_figure_1_has_the_papers_four_panels_with_chains_walks_and_what_the_divergence_allows(tmp_path):
    runs, walks = {}, {}
    for L in (1, 2, 3, 5):
        for eps in (1e-1, 1e-3):
            runs[L, eps] = make_run(tmp_path / f"fig1/L{L}_{eps}", f"--no-sg --L {L} --eps {eps}")
        walks[L] = make_run(tmp_path / f"null/L{L}", f"--no-sg --L {L} --eps 0.1 --energy-scale 0", steps=(0, 4, 8))
    make_run(tmp_path / "walk/pretrained", "--no-sg --L 1 --eps 0.1 --energy-scale 0 --init x.pt", steps=(0, 3))
    (tmp_path / "divergence.csv").write_text(
        DIVERGENCE + "1,random,3,0.1,50000,0,0,0,0,0.54\n1,random,1,0.1,50000,0,0,0,0,0.56\n"
        "2b,pretrained,3,0.1,15000,0,0,0,0,0.51\n1,random,5,0.1,50000,0,0,0,0,0.7\n"
    )
    picture = drawn(tmp_path)["fig1"]
    title = picture.get_suptitle()
    assert "none of 8 runs collapses" in title and "gratings, batch 512" in title and "200-NN on all training" in title
    assert [panel[1:] for panel in shown(picture)] == [("samples", "k-NN accuracy")] * 4
    for axes, letter, L, bound in zip(picture.axes, "abcd", (1, 2, 3, 5), (0.12, None, 0.08, None), strict=True):
        assert axes.get_title().startswith(f"({letter}) L {L}: k-NN accuracy ends at")
        seen = lines(axes)
        assert seen.keys() == {"eps 1e-1", "eps 1e-3", figures.NOISE, "noise alone, eps 1e-2", "untrained", "chance"}
        for eps in (1e-1, 1e-3):
            x, y = seen[f"eps {figures.short(eps)}"]
            assert x == [0, 5, 10] and y == pytest.approx(runs[L, eps]["knn"])
        dotted = {line.get_color(): line for line in axes.lines if line.get_label() == figures.NOISE}
        color = next(line.get_color() for line in axes.lines if line.get_label() == "eps 1e-1")
        pairs = [(k, t, y) for k in walks for t, y in zip((0, 4, 8), walks[k]["knn"], strict=True)]
        noise = [(t * variance(k) / variance(L), y) for k, t, y in pairs]
        noise = [(0, np.mean([y for x, y in noise if x == 0])), *sorted((x, y) for x, y in noise if x >= 1)]
        np.testing.assert_allclose(np.transpose(noise), dotted[color].get_data(), rtol=1e-5)
        start = np.mean([t["knn"][0] for t in [*runs.values(), *walks.values()]])
        assert seen["untrained"][1] == pytest.approx([start] * 2) and seen["chance"][1] == [0.1, 0.1]
        bands = [c.get_paths()[0].vertices[:, 1] for c in axes.collections if c.get_alpha() == 0.1]
        assert len(bands) == (L == 3)  # 0.54 is +- 8 points; 0.56 would be 12, too wide to say anything
        for band in bands:
            low, high = min(y for _, y in noise) - bound, max(y for _, y in noise) + bound
            assert [band.min(), band.max()] == pytest.approx([low, high])
    assert len({axes.get_ylim() for axes in picture.axes}) == 1
    assert picture.axes[0].yaxis.get_major_formatter()(0.335, 0) == "33.5 %"
    assert picture.axes[0].xaxis.get_major_formatter()(50_000, 0) == "50,000"


@drawing
def test_noise_alone_at_a_step_without_chains_is_named_in_the_legend(tmp_path):
    make_run(tmp_path / "fig2b/a", "--no-sg --eps 1e-3 --init x.pt")
    make_run(tmp_path / "walk/a", "--no-sg --eps 1 --energy-scale 0 --init x.pt", steps=(0, 1, 2))
    picture = drawn(tmp_path)["fig2"]
    named = {"noise alone, eps 1e-1", "noise alone, eps 1e-2"}  # 100 and 200, 10,000 samples
    assert lines(picture.axes[0]).keys() - figures.REFERENCES.keys() == named | {"eps 1e-3"}
    texts, handles = picture.legends[0].get_texts(), picture.legends[0].get_lines()
    legend = {text.get_text(): handle for text, handle in zip(texts, handles, strict=True)}
    assert {line.get_color() for line in picture.axes[0].lines if line.get_label() in named} == {
        legend[name].get_color() for name in named}  # fmt: skip
    assert len({legend[name].get_color() for name in [*named, "eps 1e-3"]}) == 3 and figures.NOISE not in legend


STARTED = "--init pretrained.pt"
KNN, CENTRE = ("k-NN accuracy", "k-NN accuracy", "knn"), ("centre ratio", "centre ratio", "center")
LOSSES = [("abscos", "|cos|", "U", "energy U"), ("cos", "cosine", "loss", "1 + cosine loss")]
LOSSES.append(("l2", "L2", "loss", "L2 loss"))
BOTH_LOSSES = {"energy, all tricks": "fig5/a", "cosine loss, all tricks": "fig5/b"}
SCALES = {"energy scale 0": "controls/0", "energy scale 1": "controls/1", "energy scale 5e4, with SG": "controls/sg"}
WANTED = {  # name: (runs as target/name: line; panels: start of the title, x, y, column, label: run)
    "fig2": ({
        "fig2a/a": f"--method sgd --no-sg --similarity cos --lr 0.03 {STARTED}",
        "fig2b/b": f"--no-sg --eps 1e-2 {STARTED}",
    }, [
        (f"{method}: {start}", x, y, column, {label: path})
        for start, y, column in (KNN, CENTRE)
        for method, x, label, path in (("(a) SGD", "updates", "lr 3e-2", "fig2a/a"),
                                       ("(b) SGHMC", "samples", "eps 1e-2", "fig2b/b"))
    ]),
    "fig3": ({f"fig1/L{L}": f"--no-sg --eps 1e-2 --L {L}" for L in (1, 2, 3, 5)}, [
        (f"({letter}) L {L}: U ends", "samples", "energy U", "energy", {"eps 1e-2": f"fig1/L{L}"})
        for letter, L in zip("abcd", (1, 2, 3, 5), strict=True)
    ]),
    "fig4": ({
        "fig4/a": "--no-sg --eps 1e-3 --velocity-std 0.1", "fig4/b": "--no-sg --eps 1e-2 --velocity-std 0.1",
        "fig4/c": "--no-sg --eps 1e-2 --mass 0.01",
    }, [
        (f"{name}: {start}", "samples", y, column, runs)
        for start, y, column in (KNN, CENTRE)
        for name, runs in (
            ("(a) eps 1e-3", {"velocity std 0.1, alpha 0.01": "fig4/a"}),
            ("(b) eps 1e-2", {"velocity std 0.1, alpha 0.01": "fig4/b", "M = s^2, s 0.1, alpha 0.01": "fig4/c"}),
        )
    ]),
    "fig5": ({"fig5/a": "--method sgd --sg", "fig5/b": "--method sgd --sg --similarity cos"}, [
        ("(a) k-NN", "updates", *KNN[1:], BOTH_LOSSES), ("centre ratio", "updates", *CENTRE[1:], BOTH_LOSSES),
        ("(b) loss ends", "updates", "U or 1 + cosine loss", "energy", BOTH_LOSSES),
    ]),
    "pretrain": ({"pretrain/a": "--method sgd --sg --similarity cos"}, [
        (title, "updates", y, column, {"cosine loss, all tricks": "pretrain/a"})
        for title, y, column in (KNN, CENTRE, ("loss ends", "1 + cosine loss", "energy"))
    ]),
    "controls": ({
        "controls/0": "--no-sg --energy-scale 0", "controls/1": "--no-sg", "controls/sg": "--sg --energy-scale 5e4",
    }, [(title, "samples", y, column, SCALES) for title, y, column in (KNN, CENTRE)]),
    "note": ({f"note/{loss}": f"--method sgd --no-sg --similarity {loss}" for loss, *_ in LOSSES}, [
        (f"{name}: {title or U} ends", "updates", y or label, column, {"no SG, predictor steps 1": f"note/{loss}"})
        for title, y, column in ((None, None, "energy"), ("H(z)", "H(z)", "entropy_z"), ("entropy",) * 3,
                                 ("information", "information", "mi"), CENTRE)
        for loss, name, U, label in LOSSES
    ]),
}  # fmt: skip


@drawing
@pytest.mark.parametrize("name", WANTED)
def test_each_panel_shows_the_column_that_it_names_of_the_runs_that_it_names(tmp_path, name):
    given, panels = WANTED[name]
    tables = {path: make_run(tmp_path / path, line) for path, line in given.items()}
    fresh = [tables[path] for path, line in given.items() if STARTED not in line]
    picture = drawn(tmp_path)[name]
    assert len(picture.axes) == len(panels)
    for axes, (title, x, y, column, runs) in zip(picture.axes, panels, strict=True):
        assert axes.get_title().startswith(title) and (axes.get_xlabel(), axes.get_ylabel()) == (x, y)
        seen = lines(axes)
        for label, path in runs.items():
            assert seen.pop(label) == (tables[path]["step"], pytest.approx(tables[path][column]))
        references = {"untrained": np.mean([t[column][0] for t in fresh])} if fresh else {}
        references |= {"chance": 0.1} if column == "knn" else {"threshold 0.99": 0.99}
        references = references if column in ("knn", "center") else {}
        levels = {label: at for label, (_, at) in seen.items()}
        assert levels == {label: pytest.approx([at, at]) for label, at in references.items()}
    labels = {text.get_text() for text in picture.legends[0].get_texts()}
    assert labels == {label for axes in picture.axes for label in lines(axes)}


@drawing
def test_one_run_is_drawn_with_the_untrained_level_chance_and_threshold_beside_its_tables(tmp_path, capsys):
    table = make_run(tmp_path / "first", f"--no-sg {SMALL}", collapsed="constant")
    assert figures.main([str(tmp_path / "first")]) == 0
    assert (tmp_path / "first" / "run.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{tmp_path}/first/run.png\n"
    assert figures.main([str(tmp_path / "first"), "--out", str(tmp_path / "new/out")]) == 0
    assert (tmp_path / "new/out/run.png").exists()
    (run,), _ = figures.find([tmp_path / "first"])
    picture = dict(figures.pictures([run._replace(target="itself")], {}))["run"]
    assert picture.get_suptitle().startswith("first: it collapses\ngratings, batch 64, fp32; 200-NN on 3000 training")
    assert [panel[2] for panel in shown(picture)] == ["k-NN accuracy", "centre ratio", "energy U"]
    knn, center, energy = map(lines, picture.axes)
    assert (knn["this run"][1], center["this run"][1], energy["this run"][1]) == (
        table["knn"], table["center"], table["energy"])  # fmt: skip
    assert (knn["untrained"][1][0], center["untrained"][1][0]) == (table["knn"][0], table["center"][0])
    assert knn["chance"][1][0] == 0.1 and center["threshold 0.99"][1][0] == 0.99 and energy.keys() == {"this run"}


def compared(tmp_path, monkeypatch, **runs):
    """The one picture that the program makes of run folders given by their names; its file is not painted."""
    from matplotlib.figure import Figure

    seen, pictures = {}, figures.pictures

    def keep(*given):
        seen.update(pictures(*given))
        return seen.items()

    monkeypatch.setattr(figures, "pictures", keep)
    monkeypatch.setattr(Figure, "savefig", lambda picture, path, dpi: path.write_text("a picture"))
    for name, line in runs.items():
        if not (tmp_path / name).exists():
            make_run(tmp_path / name, line, start=line)
    assert figures.main([*(str(tmp_path / name) for name in runs), "--out", str(tmp_path / "out")]) == 0
    assert seen.keys() == {"run"} and (tmp_path / "out/run.png").exists()
    return seen["run"]


@drawing
@pytest.mark.parametrize("first, second, labels", [
    ("--no-sg --eps 0.1", "--no-sg --eps 0.01", ["eps 0.1", "eps 0.01"]),
    ("--sg --L 1", "--no-sg --L 1 --prior-std 2", ["sg, no prior std", "no sg, prior std 2.0"]),
    ("--no-sg --eps 0.1 --seed 3", "--no-sg --eps 0.1", ["seed 3", "seed 0"]),
    ("--method sgd --sg --lr 0.1", "--no-sg --mass 4", ["method sgd, sg", "method sghmc, no sg"]),
    ("--method sgd --sg --similarity l2", "--method sgd --sg", ["similarity l2", "similarity abscos"]),
    ("--no-sg", "--no-sg --samples 3", ["this run"] * 2),  # longer: the same chain
])  # fmt: skip
def test_runs_given_by_their_names_are_lines_of_one_picture_told_apart_by_their_settings(
    tmp_path, monkeypatch, first, second, labels
):
    picture = compared(tmp_path, monkeypatch, a=first, b=second)
    assert picture.axes[2].get_ylabel() == ("loss" if "l2" in first else "energy U")
    assert picture.get_suptitle().startswith("a, b: none of 2 runs collapses\n")
    for axes in picture.axes:
        assert lines(axes).keys() - figures.REFERENCES.keys() == set(labels)
        x = "updates" if "l2" in first else "samples or updates" if "lr" in first else "samples"
        assert axes.get_xlabel() == x


@drawing
def test_runs_from_different_starts_are_told_apart(tmp_path, monkeypatch):
    picture = compared(tmp_path, monkeypatch, a="--no-sg", b=f"--no-sg {STARTED}", c=f"--no-sg {STARTED} --samples 2")
    names = lines(picture.axes[0]).keys() - figures.REFERENCES.keys()
    assert len(names) == 3 and "no init" in names and all(name.startswith(("no init", "init ")) for name in names)


@drawing
def test_named_runs_of_one_figure_stay_in_its_picture_and_a_stranger_makes_them_a_comparison(tmp_path, monkeypatch):
    paths = {f"fig1/L{L}": f"--no-sg --L {L}" for L in (1, 3)}
    for path, line in paths.items():
        make_run(tmp_path / path, line)
    assert figures.main([str(tmp_path / path) for path in paths]) == 0
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["fig1.png", "fig3.png"]
    picture = compared(tmp_path, monkeypatch, stranger="--no-sg --L 2", **paths)
    assert lines(picture.axes[0]).keys() - figures.REFERENCES.keys() == {"L 1", "L 2", "L 3"}


@drawing
def test_a_run_from_a_checkpoint_has_no_untrained_level(tmp_path):
    make_run(tmp_path / "first", f"--no-sg {STARTED}")
    (run,), _ = figures.find([tmp_path / "first"])
    picture = dict(figures.pictures([run._replace(target="itself")], {}))["run"]
    assert "untrained" not in lines(picture.axes[0]) | lines(picture.axes[1])


@drawing
def test_the_spread_is_a_shade_of_several_seeds_and_bars_of_one(tmp_path):
    tables = [make_run(tmp_path / f"fig1/{s}", f"--no-sg --L 1 --seed {s}") for s in (0, 1)]
    one = make_run(tmp_path / "fig1/3", "--no-sg --L 3")
    left, right = drawn(tmp_path)["fig1"].axes
    (shade,), (bars,) = left.collections, right.collections
    knn = np.array([table["knn"] for table in tables])
    vertices = shade.get_paths()[0].vertices
    for i, step in enumerate((0, 5, 10)):
        y = vertices[vertices[:, 0] == step][:, 1]
        assert (y.min(), y.max()) == pytest.approx((knn[:, i].min(), knn[:, i].max()))
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    error = [math.sqrt(y * (1 - y) / 2000) for y in one["knn"]]
    assert ends == [pytest.approx([y - e, y + e]) for y, e in zip(one["knn"], error, strict=True)]


@drawing
@pytest.mark.parametrize("length, scale", [(300, "symlog"), (30, "linear")])
def test_a_long_line_does_not_make_a_spot_of_a_short_one_and_no_point_lies_on_the_frame(tmp_path, length, scale):
    make_run(tmp_path / "fig1/short", "--no-sg --eps 0.1")
    make_run(tmp_path / "fig1/long", "--no-sg --eps 0.01", steps=(0, length))
    (axes,) = drawn(tmp_path)["fig1"].axes
    assert axes.get_xscale() == scale
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for x, y in lines(axes).values():
        assert low < min(y) and max(y) < high and (len(x) == 2 and x[1] == 1 or left < min(x) and max(x) < right)


@pytest.fixture(scope="module")
def argument(tmp_path_factory):
    """The pictures of made-up tables and runs of the argument, and the numbers behind them."""
    folder = tmp_path_factory.mktemp("argument")
    g = np.random.default_rng(0)
    center, m = np.round(g.normal(0.6, 0.02, 400), 4), g.uniform(0.05, 0.1, 400)
    center[0], m[0] = 0.995, 0.4  # one is collapsed, and heavy
    rows = [f"made,{i},{m[i]},{center[i]}," for i in range(400)]
    (folder / "prior.csv").write_text("prior,seed,m,center,knn\n" + "\n".join(rows) + "\n")
    kl = {(1, 0.1): 0.5, (1, 0.01): 0.02, (3, 0.1): 1.2, (3, 0.01): 0.08}
    rows = [f"1,random,{L},{eps},50000,{x / 4},0,{x},{x / 10},{figures.best_test(x)}" for (L, eps), x in kl.items()]
    rows.append("4,random,3,0.001,2000,9,0,9,9,0.99")
    (folder / "divergence.csv").write_text(DIVERGENCE + "\n".join(rows) + "\n")
    ended = {}
    for s in (1, 8, 512):
        for eps in (0.1, 0.01):
            for seed in (0, 1):
                path = folder / f"scale/{s}_{eps}_{seed}"
                line = f"--no-sg --L 1 --eps {eps} --energy-scale {s} --seed {seed}"
                ended[s, eps, seed] = make_run(path, line, collapsed="constant" if s == 512 else "no")
    with_sg = make_run(folder / "scale/sg", "--sg --L 1 --eps 0.1 --energy-scale 8")
    pictures = drawn(folder)
    posterior, tests, phase = pictures["headline"].axes
    return SimpleNamespace(center=center, m=m, kl=kl, ended=ended, with_sg=with_sg, pictures=pictures,
                           posterior=posterior, tests=tests, phase=phase)  # fmt: skip


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@drawing
def test_the_posterior_is_shown_beside_its_prior(argument):
    posterior, center, m = argument.posterior, argument.center, argument.m
    filled, weighted = (container for container in (posterior.patches[: -1], posterior.patches[-1]))
    bins = np.array([bar.get_x() for bar in filled] + [filled[-1].get_x() + filled[-1].get_width()])
    np.testing.assert_allclose([bar.get_height() for bar in filled], np.histogram(center, bins)[0] / 400)
    outline = weighted.get_xy()
    heights = np.histogram(center, bins, weights=m)[0] / m.sum()
    assert set(np.round(outline[:, 1], 9)) == set(np.round([0, *heights], 9))
    assert lines(posterior)["threshold 0.99"][0] == [0.99, 0.99] and posterior.get_xlabel().startswith("centre ratio")
    p = np.linspace(0, 0.1, 1_000_001)  # the largest under which at most one of 400 is no surprise
    upper = p[(1 - p) ** 400 + 400 * p * (1 - p) ** 399 >= 0.025].max()
    bound = upper / (m.mean() - 1.96 * m.std() / 20)
    assert sorted(legend(posterior)) == [f"prior made: at most {100 * bound:.2g} % beyond", "threshold 0.99"]
    moved = abs(m[center > 0.99].sum() / m.sum() - (center > 0.99).mean())
    assert f"at most {100 * moved:.1f} points" in posterior.get_title().replace("\n", " ")


@drawing
def test_the_best_tests_are_shown_over_the_steps(argument):
    tests, kl = argument.tests, argument.kl
    for container, L in zip(tests.containers, (1, 3), strict=True):
        x, y = container[0].get_data()
        assert container.get_label() == f"L {L}" and list(x) == [0.01, 0.1]
        assert list(y) == pytest.approx([figures.best_test(kl[L, eps]) for eps in x])
        bars = container[2][0].get_segments()
        assert [bar[:, 1].tolist() for bar in bars] == [
            pytest.approx([figures.best_test(kl[L, eps] * f) for f in (0.8, 1.2)]) for eps in x]  # fmt: skip
    dashed = [list(line.get_ydata()) for line in tests.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    dashed = dashed[:-1]  # the last is the level of guessing
    assert dashed == [pytest.approx([figures.best_test(0.75 * kl[L, eps]) for eps in (0.01, 0.1)]) for L in (1, 3)]
    low, high = (round(100 * figures.best_test(x)) for x in (0.02, 1.2))
    assert f"at most {low} to {high} %" in tests.get_title().replace("\n", " ")
    assert tests.get_xlabel().startswith("eps") and tests.get_xscale() == "log"
    assert lines(tests)["guessing"][1] == [0.5, 0.5] and tests.yaxis.get_major_formatter()(0.625, 0) == "62.5 %"
    assert sorted(legend(tests)) == ["L 1", "L 3", "guessing"]


@drawing
def test_where_runs_end_is_shown_over_scale_and_step(argument):
    pictures, phase, ended, with_sg = argument.pictures, argument.phase, argument.ended, argument.with_sg
    rows = [*pictures["scale"].axes]
    columns = ("center", "knn", "energy")
    for axes, column in [(phase, "center"), *zip(rows[:3], columns, strict=True)]:
        cells = {text.get_position(): text.get_text() for text in axes.texts}
        for (j, s), (i, eps) in ((a, b) for a in enumerate((1, 8, 512)) for b in enumerate((0.01, 0.1))):
            pair = [ended[s, eps, seed][column][-1] for seed in (0, 1)]
            assert cells[j, i] == f"{np.mean(pair):.3f}\n±{abs(pair[0] - pair[1]) / 2:.3f}"
            assert axes.images[0].get_array()[i, j] == pytest.approx(np.mean(pair))
        assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "8", "512"]
        assert [t.get_text() for t in axes.get_yticklabels()] == ["1e-2", "1e-1"]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("energy scale", "eps")
        assert axes.get_ylim()[0] < axes.get_ylim()[1]  # the largest step at the top
        box = lines(axes)["the paper"][0]
        assert min(box) == -0.45 and max(box) == 0.45
        dashes = [line.get_data() for line in axes.lines if line.get_linestyle() == "--"]
        places = {y[0]: x[0] for x, y in dashes}  # the scale of KL 1 is kl^-1/2, on the way from 1 over 8 to 512
        assert places[0.55] == pytest.approx(math.log(0.5**-0.5) / math.log(8))
        assert places[-0.45] == pytest.approx(math.log(0.02**-0.5) / math.log(8))
    assert rows[3].texts[0].get_text() == f"{with_sg['center'][-1]:.3f}" and len(rows[3].lines) == 0
    assert rows[3].get_title().startswith("L 1, with SG: centre ratio")
    assert "4 of\n12 runs collapse" in phase.get_title()
    assert legend(phase) == ["the paper", "all samples differ from noise by KL 1"]


def test_the_best_test_is_bounded_by_both_inequalities():
    assert figures.best_test(np.array([0, 0.02])) == pytest.approx([0.5, 0.55])
    assert figures.best_test(4.0) == pytest.approx((1 + math.sqrt(1 - math.exp(-4))) / 2)


@drawing
def test_all_text_lies_inside_the_picture(tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for path, line in (WANTED["fig2"][0] | WANTED["fig4"][0] | WANTED["fig5"][0] | WANTED["fig3"][0]).items():
        make_run(tmp_path / path, f"{line} --knn-train 49999 --knn-test 9999 --bn running --knn-features trunk",
                 data="a_rather_long_name_of_a_folder", steps=(0, 7, 39_999))  # fmt: skip
    make_run(tmp_path / "scale/a", "--no-sg --energy-scale 8")
    (tmp_path / "prior.csv").write_text("prior,seed,m,center,knn\nPyTorch's initialisation,0,0.07,0.6,\n")
    pictures = drawn(tmp_path)
    assert len(pictures) == 7
    for name, picture in pictures.items():
        canvas = FigureCanvasAgg(picture)
        canvas.draw()
        box, (width, height) = picture.get_tightbbox(canvas.get_renderer()), picture.get_size_inches()
        assert 0 <= box.x0 and 0 <= box.y0 and box.x1 <= width and box.y1 <= height, name


@drawing
def test_runs_with_other_k_nn_settings_get_a_picture_of_their_own_and_no_picture_is_a_copy(tmp_path, capsys):
    for i, knn in enumerate(("", "--knn-test 1000")):
        make_run(tmp_path / f"fig1/{i}", f"--no-sg {knn}")
    make_run(tmp_path / "fig5/misplaced", "--no-sg")
    make_run(tmp_path / "first", "--no-sg")  # one's own run, of no figure: nothing to remark
    assert figures.main([str(tmp_path)]) == 0
    names = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert names == ["fig1.png", "fig1_2.png", "fig3.png", "fig3_2.png"]
    assert len({(tmp_path / "figures" / name).read_bytes() for name in names}) == 4
    text = capsys.readouterr().out
    assert text.startswith("left out: 1 that are no run of the figure of their folder") and text.count("\n") == 5


@drawing
def test_figure_4_has_a_picture_for_each_size_of_batch_and_says_it_once(tmp_path):
    for size in (16, 64):
        make_run(tmp_path / f"fig4/{size}", f"--no-sg --eps 1e-2 --velocity-std 0.1 --batch-size {size}")
    titles = {name: picture.get_suptitle() for name, picture in drawn(tmp_path).items()}
    assert titles.keys() == {"fig4", "fig4_2"} and [titles[name].count("batch") for name in sorted(titles)] == [1, 1]
    assert "batch 16," in titles["fig4"] and "batch 64," in titles["fig4_2"]


@drawing
def test_figure_5_has_a_picture_for_each_schedule_and_says_which(tmp_path):
    lengths = {"a": "--lr 0.01", "b": "--lr 0.03 --epochs 20", "c": "--lr 0.03 --epochs 20 --no-cosine"}
    for name, line in lengths.items():
        make_run(tmp_path / "fig5" / name, f"--method sgd --sg {line}")
    pictures = drawn(tmp_path)
    wanted = {"fig5": ({"energy, all tricks"}, ", lr 0.01, epochs 800"),
              "fig5_2": ({"energy, all tricks", "energy, no cosine decay"}, ", lr 0.03, epochs 20")}  # fmt: skip
    assert pictures.keys() == wanted.keys()
    for name, (labels, end) in wanted.items():
        assert lines(pictures[name].axes[0]).keys() - figures.REFERENCES.keys() == labels
        assert pictures[name].get_suptitle().replace("\n", " ").endswith(end)


@drawing
def test_no_two_of_many_lines_look_alike(tmp_path, monkeypatch):
    runs = {f"run{seed}": f"--no-sg --seed {seed}" for seed in range(20)}
    picture = compared(tmp_path, monkeypatch, **runs)
    drawn = [line for line in picture.axes[0].lines if line.get_label().startswith("seed")]
    looks = {(line.get_color(), line.get_marker()) for line in drawn}
    assert len(looks) == 20


@drawing
def test_unfinished_runs_are_drawn_as_far_as_they_are(tmp_path):
    begun, torn, empty, bare = (tmp_path / "fig1" / name for name in ("begun", "torn", "empty", "bare"))
    make_run(begun, "--no-sg --eps 0.1", steps=(0,))
    make_run(torn, "--no-sg --eps 0.01")
    (torn / "metrics.csv").write_text((torn / "metrics.csv").read_text()[:-20])
    make_run(empty, "--no-sg --eps 0.001")
    (empty / "metrics.csv").write_text((empty / "metrics.csv").read_text().split("\n")[0] + "\n")
    make_run(bare, "--no-sg --eps 0.0001")
    (bare / "energy.csv").unlink()
    pictures = drawn(tmp_path)
    seen = {label: x for label, (x, _) in lines(pictures["fig1"].axes[0]).items() if label.startswith("eps")}
    assert seen == {"eps 1e-1": [0], "eps 1e-2": [0, 5], "eps 1e-4": [0, 5, 10]}
    assert lines(pictures["fig3"].axes[0]).keys() == {"eps 1e-1", "eps 1e-2"}  # no row of metrics.csv: not begun


@drawing
def test_the_same_runs_give_the_same_bytes(tmp_path):
    make_run(tmp_path / "first", "--no-sg")
    for out in ("one", "two"):
        assert figures.main([str(tmp_path / "first"), "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "one/run.png").read_bytes() == (tmp_path / "two/run.png").read_bytes()


@drawing
def test_bad_input_and_nothing_to_draw_are_one_line_and_exit_code_2(tmp_path, capsys):
    assert "holds no run folder" in refused([tmp_path], capsys)
    assert "holds no run folder" in refused([tmp_path / "none"], capsys)
    folder = tmp_path / "runs" / "elsewhere" / "a"
    make_run(folder, "--no-sg")
    figures.main([str(tmp_path / "runs")])
    assert "nothing to draw" in capsys.readouterr().err
    rows = (folder / "metrics.csv").read_text().split("\n")
    (folder / "metrics.csv").write_text("\n".join([*rows[:2], "x" + rows[2], *rows[3:]]))
    assert "metrics.csv is damaged in line 3" in refused([tmp_path / "runs"], capsys)
    (folder / "metrics.csv").write_text("step,knn\n0,1\n")
    assert "has no column" in refused([tmp_path / "runs"], capsys)
    (folder / "config.json").write_text("{}")
    assert "config.json is not of a run" in refused([folder], capsys)
    assert [p.name for p in (tmp_path / "runs").rglob("*.png")] == []


def test_without_matplotlib_one_line_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install -e ".[figures]"' in refused([tmp_path], capsys)
