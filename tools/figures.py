"""Draw the figures of "Posterior Sampling on SimSiam", its pretraining, the controls and the Note from run folders.

    python tools/figures.py RUNS... --out DIR

RUNS are run folders or folders that contain them, at any depth. A run belongs to the figure whose name its path holds
(runs/fig1/L3_eps1e-3_seed0, as run_grid.sh lays them out) and is drawn only if its config.json says the same. Runs on
other data or at another scale (batch, precision, k-NN settings) get a picture of their own: fig1_2.png. Each seed is a
line of its own, nothing is averaged but the energy along the chain; unfinished runs are drawn as far as they are.
"""

import argparse
import csv
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

TARGETS = ("fig1", "fig2a", "fig2b", "fig4", "fig5", "controls", "null", "walk", "note", "pretrain")
SCALE = "batch_size precision knn_k knn_t knn_train knn_test knn_features bn".split()
METRICS = "step grad_evals energy knn center mi entropy drift_to_noise distance".split()
POINTS = 400  # energies of a chain are averaged down to this many: a line has no room for 50,000
CHANCE = 0.1  # ten classes of equal size in CIFAR-10 and gratings; the tables do not hold the number of classes

# Okabe and Ito's colours, told apart with any colour vision; line style and marker repeat them for print
STYLES = [
    {"color": color, "linestyle": line, "marker": marker}
    for color, line, marker in zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F"),
        ("-", "--", "-.", ":", "-", "--", "-.", ":"),
        ("o", "s", "^", "D", "v", "P", "X", "*"),
        strict=True,
    )
]


class BadInput(Exception):
    """One line on stderr, exit code 2."""


# ---------------------------------------------------------------------------------------------------------- run folders


class Run(NamedTuple):
    """One run folder: `chain` what the chain is a function of, `scale` what its numbers may be compared under."""

    path: Path
    target: str | None
    chain: dict
    scale: tuple
    metrics: dict  # column -> (rows,)
    energies: dict  # column -> (steps,)


def number(cell):
    return float(cell) if cell else math.nan


def read_table(path, columns):
    """{column: (n,) array} of a CSV, empty cells as nan; a torn last line is dropped, other damage is BadInput."""
    if not path.exists():
        return {name: np.empty(0) for name in columns}
    *lines, _torn = path.read_text(errors="replace").split("\n")
    rows = list(csv.reader(lines))
    if rows and not set(columns) <= set(rows[0]):
        raise BadInput(f"{path} has no column {', '.join(sorted(set(columns) - set(rows[0])))}")
    places = [rows[0].index(name) for name in columns] if rows else []
    values = []
    for line, row in enumerate(rows[1:], 2):
        try:
            if len(row) != len(rows[0]):
                raise ValueError
            values.append([number(row[place]) for place in places])
        except ValueError:
            raise BadInput(f"{path} is damaged in line {line}") from None
    table = np.array(values).reshape(len(values), len(columns))
    return dict(zip(columns, table.T, strict=True))


def read_run(folder):
    """The Run in a folder with a config.json; BadInput names a file that cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
        chain, settings = dict(config["identity"]), dict(config["settings"])
        scale = (str(chain["data"]), *(settings[name] for name in SCALE))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise BadInput(f"{folder / 'config.json'} is not of a run ({type(error).__name__}: {problem})") from None
    target = next((part for part in reversed(folder.absolute().parts[:-1]) if part in TARGETS), None)
    metrics, energies = (read_table(folder / f"{name}.csv", columns) for name, columns in (
        ("metrics", METRICS), ("energy", ["step", "grad_evals", "energy"])))  # fmt: skip
    return Run(folder, target, chain, scale, metrics, energies)


def find_runs(paths):
    """All runs in and below the paths, each once, sorted by path; BadInput where a path holds none."""
    folders = {}
    for path in map(Path, paths):
        found = sorted(p.parent for p in path.rglob("config.json")) if path.is_dir() else []
        if not found:
            raise BadInput(f"{path} holds no run folder (one with config.json)")
        folders |= {p.resolve(): p for p in found}
    return [read_run(folder) for folder in folders.values()]


def plain(chain, **different):
    """Is this the paper's chain (Section 3.1), but for the settings named? eps and L are free."""
    usual = {
        "method": "sghmc", "sg": False, "similarity": "abscos", "alpha": 0.01, "mass": 1, "velocity_std": 1,
        "energy_scale": 1, "prior_std": None, "batch_per": "kick", "init": None,
    }  # fmt: skip
    return all(chain.get(name) == value for name, value in (usual | different).items() if value is not any)


def belongs(run):
    """Does config.json say that the run is one of the experiment in whose folder it lies?"""
    c = run.chain
    sgd, fresh = c["method"] == "sgd", c["init"] is None
    return {
        "fig1": plain(c),
        "null": plain(c, energy_scale=0),
        "walk": plain(c, energy_scale=0, init=any),
        "fig2a": sgd and not c["sg"] and c["similarity"] == "cos" and not fresh,
        "fig2b": not fresh and plain(c, init=c["init"]),
        "fig4": plain(c, alpha=any, mass=any, velocity_std=any) and c["velocity_std"] != 1,
        "fig5": sgd and fresh and c["similarity"] != "l2",
        "note": sgd and fresh,
        "pretrain": sgd and fresh and c["sg"],
        "controls": plain(c, sg=any, energy_scale=any, prior_std=any, batch_per=any),
        None: False,
    }[run.target]


# -------------------------------------------------------------------------------------------------------------- labels


def short(x):
    """0.001 -> "1e-3", 50000.0 -> "5e4", 1.0 -> "1": as run_grid.sh writes steps and scales."""
    mantissa, exponent = f"{x:.2e}".split("e")
    return f"{x:g}" if x == 0 or 1 <= x < 1000 else f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def eps_label(c):
    return f"eps {short(c['eps'])}"


def null_label(c):
    return eps_label(c) + ", no energy" * (c["energy_scale"] == 0)


def fig2_label(c):
    return f"lr {short(c['lr'])}" if c["method"] == "sgd" else eps_label(c)


def fig4_label(c):
    reading = "velocity std" if c["mass"] == 1 else "M = s^2, s ="
    return f"{reading} {c['velocity_std']:g}, alpha {c['alpha']:g}"


def fig5_label(c):
    without = {"SG": not c["sg"], "warm-up": not c["warmup_epochs"], "momentum": not c["momentum"],
               "cosine decay": not c["cosine"]}  # fmt: skip
    left_out = [name for name, missing in without.items() if missing]
    loss = "energy" if c["similarity"] == "abscos" else "cosine loss"
    return f"{loss}, {'no ' + ', no '.join(left_out) if left_out else 'all tricks'}"


def controls_label(c):
    parts = [f"scale {short(c['energy_scale'])}"]
    parts += [] if c["eps"] == 1e-3 else [eps_label(c)]
    parts += [] if c["prior_std"] is None else [f"prior std {c['prior_std']:g}"]
    parts += ["with SG"] if c["sg"] else []
    parts += [] if c["batch_per"] == "kick" else ["batch per sample"]
    return ", ".join(parts)


def distance_label(c):
    name = "random walk" if c["energy_scale"] == 0 else "with energy"
    return name + ("" if c["init"] is None else ", pretrained")  # of any L and eps: the distance tells them apart


def note_label(c):
    return f"{'SG' if c['sg'] else 'no SG'}, {c['predictor_steps']} predictor step{'s' * (c['predictor_steps'] > 1)}"


def labelled(runs, label, shown):
    """{path: label}; runs that would share a label although more differs than seed and start get the difference added.

    shown: the setting that tells the panels of the figure apart.
    """
    groups = {}
    for run in runs:
        groups.setdefault((label(run.chain), run.chain[shown]), []).append(run)
    names = {}
    for (name, _), group in groups.items():
        keys = [k for k in group[0].chain if len({str(run.chain.get(k)) for run in group}) > 1]
        keys = [k for k in keys if k not in ("seed", "init")]
        for run in group:
            names[run.path] = name + "".join(f", {k} {run.chain.get(k)}" for k in keys)
    return names


# -------------------------------------------------------------------------------------------------------------- panels

X_NAMES = {"step": "samples", "grad_evals": "gradient evaluations", "distance": "rms of W_t - W_0"}
UPDATES = "updates (= gradient evaluations)"
Y_NAMES = {
    "knn": "k-NN accuracy", "center": "centre ratio", "energy": "energy U", "mi": "information (mi)",
    "entropy": "entropy", "drift_to_noise": "drift / noise",
}  # fmt: skip


class Panel(NamedTuple):
    """What one panel shows."""

    title: str
    runs: list
    x: str
    y: str
    table: str = "metrics"
    log: str = ""  # the axes that are logarithmic, of "xy"
    first: float = math.inf  # steps shown


def thinned(x, y):
    """x and y averaged over at most POINTS stretches of equal length; cells without a value are left out."""
    there = np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def draw_lines(axes, panel, names, styles):
    """One line per run; runs with the same label (the seeds) share a style, and all but the first are thinner."""
    seen, cloud = set(), panel.x == "distance"  # a cloud of points: each marked, none thicker, and the start has none
    for run in panel.runs:
        table, name = getattr(run, panel.table), names[run.path]
        shown = (table["step"] < panel.first) & (table["step"] >= int(cloud))
        x, y = thinned(table[panel.x][shown], table[panel.y][shown])
        if not len(x) or (panel.x == "grad_evals" and len(x) > 1 and x[-1] == 0):  # a random walk takes no gradients
            continue
        first = name not in seen and not cloud
        seen.add(name)
        axes.plot(
            x, y, label=name, linewidth=1.4 if first else 0.7, markersize=4.5 if first else 3, markerfacecolor="none",
            markevery=1 if cloud else max(1, len(x) // 8), **styles[name],
        )  # fmt: skip


def draw_references(axes, column, fresh):
    """Thin lines: the level of untrained networks (row 0 of the runs without --init) and, for k-NN, chance."""
    start = [run.metrics[column][0] for run in fresh if len(run.metrics["step"]) and run.metrics["step"][0] == 0]
    if start:
        axes.axhline(np.mean(start), color="0.3", linewidth=0.8, linestyle=(0, (7, 3)), label="untrained", zorder=1)
    if column == "knn":
        axes.axhline(CHANCE, color="0.3", linewidth=0.8, linestyle=(0, (1, 2)), label="chance", zorder=1)


def dress(axes, panel, leftmost):
    """Scales, limits, grid and names of a panel."""
    axes.grid(linewidth=0.3, color="0.85")
    axes.tick_params(labelsize=7)
    axes.set_title(panel.title, fontsize=9)
    sgd = all(run.chain["method"] == "sgd" for run in panel.runs)
    axes.set_xlabel(UPDATES if sgd else X_NAMES[panel.x], fontsize=8)
    if leftmost:
        axes.set_ylabel(Y_NAMES[panel.y], fontsize=8)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    if panel.y == "center":
        axes.set_ylim(0, 1.02)
    values = np.concatenate([np.ravel(line.get_ydata()) for line in axes.lines] or [[]])
    values = values[values > 0]
    if "y" in panel.log and len(values) and values.max() > 30 * values.min():
        axes.set_yscale("log")


def from_zero(row):
    """The same y axis in all panels of a row: from 0 to just above what is there, at least to twice chance."""
    top = max((np.max(line.get_ydata()) for axes in row for line in axes.lines), default=1)
    for axes in row:
        axes.set_ylim(0, min(1.02, max(2 * CHANCE, 1.15 * top)))


def logarithmic(row):
    """The same logarithmic x axis, with 0, for the panels of a row."""
    drawn = [line for axes in row for line in axes.lines if line.get_label() not in ("untrained", "chance")]
    x = np.concatenate([line.get_xdata() for line in drawn] or [[]])
    if (x > 0).any():
        for axes in row:
            axes.set_xscale("symlog", linthresh=10 ** math.floor(math.log10(x[x > 0].min())))
            axes.set_xlim(0, 1.1 * x.max())


def draw(rows, names, fresh, title, **subplots):
    """The matplotlib Figure with these rows of Panels, one legend for all below them."""
    from matplotlib.figure import Figure

    order = sorted(set(names.values()))
    styles = {name: STYLES[i % len(STYLES)] for i, name in enumerate(order)}
    width, height = max(6.4, 2.9 * len(rows[0])), 1.3 + 2.1 * len(rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False, **subplots)
    for row, line in zip(rows, axes, strict=True):
        for i, (panel, panel_axes) in enumerate(zip(row, line, strict=True)):
            draw_lines(panel_axes, panel, names, styles)
            if panel.y in ("knn", "center"):
                draw_references(panel_axes, panel.y, fresh)
            dress(panel_axes, panel, i == 0 or subplots.get("sharey") != "row")
        if "x" in row[0].log:
            logarithmic(line)
        from_zero([panel_axes for panel, panel_axes in zip(row, line, strict=True) if panel.y == "knn"])
    handles = {}
    for panel_axes in axes.flat:
        for handle, label in zip(*panel_axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    shown = [name for name in [*order, "untrained", "chance"] if name in handles]
    columns = int(width / (0.8 + 0.07 * max(map(len, shown), default=0)))
    figure.legend(
        [handles[name] for name in shown], shown, loc="outside lower center", fontsize=8, frameon=False,
        ncols=max(1, min(len(shown), columns)),
    )  # fmt: skip
    figure.suptitle(title, fontsize=9)
    return figure


# ------------------------------------------------------------------------------------------------------------- figures


def split(runs, setting, title):
    """[(title, runs)], a panel each, in the order of a setting's values."""
    values = sorted({run.chain[setting] for run in runs})
    return [(title(value), [run for run in runs if run.chain[setting] == value]) for value in values]


def two_rows_each(panels, *against, log=""):
    """Rows of panels, k-NN and centre ratio against each of these columns; log: the axes that are so in grad_evals."""
    rows = []
    for x in against:
        for y in ("knn", "center"):
            scale = log if x == "grad_evals" else ""
            rows.append([Panel("" if rows else title, runs, x, y, log=scale) for title, runs in panels])
    return rows


def leapfrogs(L):
    letter = {1: "(a) ", 2: "(b) ", 3: "(c) ", 5: "(d) "}.get(L, "")  # the paper's
    return f"{letter}{L} leapfrog{'s' * (L > 1)} per sample"


def steps(eps):
    return {1e-3: "(a) ", 1e-2: "(b) "}.get(eps, "") + f"eps {short(eps)}"


def fig1(runs, fresh, title):
    rows = two_rows_each(split(runs, "L", leapfrogs), "step", "grad_evals")
    return draw(rows, labelled(runs, eps_label, "L"), fresh, title, sharex="row", sharey="row")


def null(runs, fresh, title):
    rows = two_rows_each(split(runs, "L", leapfrogs), "step")  # a walk takes no gradients
    return draw(rows, labelled(runs, null_label, "L"), fresh, title, sharex="row", sharey="row")


def pretrain(runs, fresh, title):
    columns = ("knn", "k-NN accuracy"), ("center", "centre ratio"), ("energy", "loss of a minibatch")
    row = [Panel(name, runs, "step", y, log="y") for y, name in columns]
    return draw([row], labelled(runs, fig5_label, "method"), fresh, title)


def fig2(runs, fresh, title):
    a, b = ([run for run in runs if run.target == target] for target in ("fig2a", "fig2b"))
    panels = [("(a) SGD without SG", a), ("(b) SGHMC without SG", b)]
    rows = two_rows_each([panel for panel in panels if panel[1]], "step", "grad_evals", log="x")
    return draw(rows, labelled(runs, fig2_label, "method"), fresh, title, sharey="row")


def fig3(runs, fresh, title):
    panels = split(runs, "L", leapfrogs)
    rows = [
        [Panel(name if x == "step" else "", part, x, "energy", "energies", "y") for name, part in panels]
        for x in ("step", "grad_evals")
    ]
    return draw(rows, labelled(runs, eps_label, "L"), fresh, title, sharex="row", sharey="row")


def fig4(runs, fresh, title):
    rows = two_rows_each(split(runs, "eps", steps), "step", "grad_evals")
    return draw(rows, labelled(runs, fig4_label, "eps"), fresh, title, sharex="row", sharey="row")


def fig5(runs, fresh, title):
    first, longest = 14_000, max((table[-1] for run in runs if len(table := run.energies["step"])), default=0)
    loss = "(b) loss" + (f", first {first:,} updates" if longest >= first else "")
    row = [
        Panel("(a) k-NN accuracy", runs, "step", "knn"),
        Panel("(a') centre ratio", runs, "step", "center"),
        Panel(loss, runs, "step", "energy", "energies", "y", first),
    ]
    return draw([row], labelled(runs, fig5_label, "method"), fresh, title)


def controls(runs, fresh, title):
    columns = ("knn", "", "k-NN accuracy"), ("center", "", "centre ratio"), ("energy", "y", "energy U"), (
        "drift_to_noise", "y", "drift / noise of a first drift")  # fmt: skip
    rows = [
        [Panel(name if x == "step" else "", runs, x, y, log=log) for y, log, name in columns]
        for x in ("step", "grad_evals")
    ]
    return draw(rows, labelled(runs, controls_label, "L"), fresh, title, sharex="row")


def distance(runs, fresh, title):
    row = [Panel(name, runs, "distance", y, log="x") for y, name in (
        ("knn", "k-NN accuracy"), ("center", "centre ratio"), ("energy", "energy U of a minibatch"))]  # fmt: skip
    return draw([row], {run.path: distance_label(run.chain) for run in runs}, fresh, title)


def note(runs, fresh, title):
    panels = split(runs, "similarity", {"abscos": "|cos| (Equation 2)", "cos": "cosine", "l2": "L2"}.get)
    rows = [
        [Panel(name if y == "energy" else "", part, "step", y) for name, part in panels]
        for y in ("energy", "entropy", "mi", "center")
    ]
    return draw(rows, labelled(runs, note_label, "similarity"), fresh, title, sharex="row")


FIGURES = {  # name: (targets whose runs it shows, targets drawn beside them, how it is drawn, title)
    "fig1": (["fig1"], [], fig1, "Figure 1: SGHMC without stop-gradient"),
    "pretrain": (["pretrain"], [], pretrain, "The SimSiam that Figure 2 starts from (loss: 1 + L)"),
    "fig2": (["fig2a", "fig2b"], [], fig2, "Figure 2: from a pretrained SimSiam, without stop-gradient"),
    "fig3": (["fig1"], [], fig3, "Figure 3: energy along the chains of Figure 1"),
    "fig4": (["fig4"], [], fig4, "Figure 4: friction and standard deviation of the velocities"),
    "fig5": (["fig5"], [], fig5, "Figure 5: the energy as the loss of SimSiam (cosine loss: 1 + L)"),
    "null": (["null"], ["fig1"], null, "Figure 1 without its energy (a random walk), and with it where it was run"),
    "controls": (["controls"], [], controls, "Controls: one factor at a time around L 3, eps 1e-3, scale 1"),
    "distance": (["walk", "null"], ["fig1", "fig2b"], distance, "With and without energy: chains and their distance"),
    "note": (["note"], [], note, "The Note: the loss, its entropy and its information"),
}


def scale_text(scale):
    """Under what the numbers of a picture stand, for its title."""
    data, s = scale[0], dict(zip(SCALE, scale[1:], strict=True))
    bank = f"{s['knn_train'] or 'all'} training and {s['knn_test'] or 'all'} test images"
    data = data.replace("images ", "image folder ")[:21]  # of its hash the beginning
    text = f"data {data}, batch {s['batch_size']}, {s['precision']}; k-NN: k {s['knn_k']}, t {s['knn_t']:g}, {bank}"
    text += "" if s["knn_features"] == "z" else ", trunk features"
    return text if s["bn"] == "recalibrated" else text + ", running BatchNorm statistics"


def draw_all(runs, out):
    """Write every figure that these runs allow to out/, as PNG and SVG; say what was drawn and what was left out."""
    import matplotlib

    for run in runs:
        if run.target is None:
            print(f"left out: {run.path} is in no folder named after a figure ({', '.join(TARGETS)})")
        elif not belongs(run):
            print(f"left out: {run.path} is not a run of {run.target}, says its config.json")
    runs = [run for run in runs if belongs(run) and len(run.metrics["step"])]
    missing = []
    for name, (targets, beside, figure, title) in FIGURES.items():
        mine = [run for run in runs if run.target in targets + beside]
        scales = {run.scale for run in mine if run.target in targets}
        scales = sorted(scales, key=lambda scale: (-scale[1], str(scale)))
        missing += [] if scales else [name]
        for i, scale in enumerate(scales, 1):
            part = [run for run in mine if run.scale == scale]
            fresh = [run for run in runs if run.scale == scale and run.chain["init"] is None]
            path = out / (name if i == 1 else f"{name}_{i}")
            with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):  # the same bytes every time
                several = name != "distance" and len({run.chain["seed"] for run in part}) > 1
                seeds = "; thin lines: further seeds" * several
                picture = figure(part, fresh, f"{title}\n{scale_text(scale)}{seeds}")
                picture.savefig(f"{path}.png", dpi=150)
                picture.savefig(f"{path}.svg", metadata={"Date": None})
            print(f"{path}.png: {len(part)} runs, {scale_text(scale)}")
    if missing:
        print(f"no runs for {', '.join(missing)}")


def main(argv=None):
    """The command line; returns the exit code: 0 done, 2 bad input."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that contain them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pictures go")
    arguments = parser.parse_args(argv)
    try:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise BadInput('matplotlib is missing: pip install -e ".[figures]"') from None
        runs = find_runs(arguments.runs)
        arguments.out.mkdir(parents=True, exist_ok=True)
        draw_all(runs, arguments.out)
        return 0
    except (BadInput, OSError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
