"""Draw one run, or the figures of "Posterior Sampling on SimSiam", the controls and the argument, from run folders.

    python tools/figures.py RUN                    one run: k-NN, centre ratio and energy, into RUN/run.png
    python tools/figures.py RUNS... [--out DIR]    the figures of all runs below these folders, into RUNS/figures

A run below RUNS belongs to the figure whose name its path holds (runs/fig1/L3_eps1e-3_seed0, as run_grid.sh lays them
out) and is drawn only if its config.json says the same. Runs on other data or with other k-NN settings get a picture of
their own: fig1_2.png. prior.csv and divergence.csv, where RUNS hold them, give headline.png and the bands of fig1.png.
A line is the mean over the seeds of one setting, its shade their lowest to highest (of one seed's k-NN: one standard
error; of a long chain's U: lowest to highest in each stretch). Dotted: the same noise without any energy, and around it
the band in which the chains' mean k-NN must lie, where that is less than 20 points wide to each side.
"""

import argparse
import csv
import json
import math
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np

KNN = "knn_k knn_train knn_test knn_features bn".split()  # k-NN accuracies may be compared where these are the same
METRICS = "step energy knn center mi entropy entropy_z collapsed".split()
TABLES = {"prior": "prior m center".split(), "divergence": "figure L eps kl_first kl kl_se accuracy".split()}
TEXT, NEW = ("collapsed", "prior", "figure"), ("entropy_z",)  # columns of words; those that older tables lack
POINTS = 400  # a line of more points than this shows means over stretches: a picture has no room for 50,000
THRESHOLD = 0.99  # centre ratio above which the program calls a network collapsed
NOISE = "noise alone, in the same colour"
REFERENCES = {"untrained": (0, (7, 3)), "chance": (0, (1, 2)), f"threshold {THRESHOLD}": (0, (4, 1, 1, 1))}
NAMES = {"knn": "k-NN", "center": "centre ratio", "energy": "U", "mi": "information", "entropy": "entropy",
         "entropy_z": "entropy of z"}  # fmt: skip
LOSSES = {("abscos",): "energy U", ("cos",): "1 + cosine loss", ("l2",): "L2 loss"}

# Okabe and Ito's colours, told apart with any colour vision; markers repeat them for print
COLORS, MARKERS = "#0072B2 #D55E00 #009E73 #CC79A7 #56B4E9 #E69F00 #000000 #7F7F7F".split(), "os^DvPX*"


class BadInput(Exception):
    """One line on stderr, exit code 2."""


# ---------------------------------------------------------------------------------------------------------- run folders


class Run(NamedTuple):
    """One run folder: `chain` what the chain is a function of, `scale` what its k-NN may be compared under."""

    path: Path
    target: str | None
    chain: dict
    scale: tuple
    data: str  # in words
    tests: int | None  # images that k-NN is taken on, where that is known
    chance: float | None  # share of the largest class among them, where that is known
    metrics: dict  # column -> (rows,)
    energies: dict  # column -> (steps,)


def read_table(path, columns):
    """{column: (n,) array} of a CSV, empty cells as nan; a torn last line is dropped, other damage is BadInput."""
    lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
    header, *rows = csv.reader(lines or [",".join(columns)])
    if missing := sorted(set(columns) - set(header) - set(NEW)):
        raise BadInput(f"{path} has no column {', '.join(missing)}")
    table = {name: [] for name in columns}
    for line, row in enumerate(rows, 2):
        try:
            cells = dict(zip(header, row, strict=True))
            for name, values in table.items():
                cell = cells.get(name, "")
                values.append(cell if name in TEXT else float(cell or "nan"))
        except ValueError:
            raise BadInput(f"{path} is damaged in line {line}") from None
    return {name: np.array(values, str if name in TEXT else float) for name, values in table.items()}


def read_run(folder):
    """The Run in a folder with a config.json; BadInput names a file that cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
        chain, settings = dict(config["identity"]), dict(config["settings"])
        scale = (str(chain["data"]), *(settings[name] for name in KNN), settings.get("knn_t", 0.1))
        kind, images = scale[0].split()[0], Path(settings["data"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problem = " ".join(str(error).split())
        raise BadInput(f"{folder / 'config.json'} is not of a run ({type(error).__name__}: {problem})") from None
    counts = {"cifar10": [1000] * 10, "gratings": [200] * 10}.get(kind, [])  # test images of each class
    if not counts and (images / "test").is_dir():
        counts = [sum(1 for _ in c.iterdir()) for c in (images / "test").iterdir() if c.is_dir()]
    return Run(
        folder, next((part for part in reversed(folder.absolute().parts[:-1]) if part in EXPECTED), None), chain, scale,
        {"cifar10": "CIFAR-10", "gratings": "gratings"}.get(kind, f"images of {images.name}"),
        settings["knn_test"] or sum(counts) or None, max(counts) / sum(counts) if sum(counts) else None,
        read_table(folder / "metrics.csv", METRICS), read_table(folder / "energy.csv", ["step", "energy"]),
    )  # fmt: skip


def find(paths):
    """(runs, tables) in and below the paths: each Run once, of prior.csv and divergence.csv the first; or BadInput."""
    folders, tables = {}, {}
    for path in paths:
        found = {p.parent.resolve(): p.parent for p in sorted(path.rglob("config.json"))}
        here = {name: p for name in TABLES for p in sorted(path.rglob(f"{name}.csv"))[:1]}
        if not found and not here:
            raise BadInput(f"{path} holds no run folder (one with config.json)")
        folders |= found
        tables = {name: read_table(p, TABLES[name]) for name, p in here.items()} | tables
    return [read_run(folder) for folder in folders.values()], tables


CHAIN = {  # the paper's (Section 3.1); eps and L are free
    "method": "sghmc", "sg": False, "similarity": "abscos", "alpha": 0.01, "mass": 1, "velocity_std": 1,
    "energy_scale": 1, "prior_std": None, "batch_per": "kick", "init": None,
}  # fmt: skip
SGD, ANY, SOME = {"method": "sgd", "init": None}, repr, bool  # what these functions make of a fitting value is true
EXPECTED = {  # what the config.json of a run of each target must say
    "fig1": CHAIN, "null": CHAIN | {"energy_scale": 0}, "walk": CHAIN | {"energy_scale": 0, "init": ANY},
    "scale": CHAIN | {"sg": ANY, "energy_scale": ANY}, "fig2b": CHAIN | {"init": SOME},
    "fig2a": {"method": "sgd", "sg": False, "similarity": "cos", "init": SOME}, "note": SGD,
    "fig4": CHAIN | {"alpha": ANY, "mass": ANY, "velocity_std": {0.1, 0.01}.__contains__},
    "fig5": SGD | {"similarity": {"abscos", "cos"}.__contains__}, "pretrain": SGD | {"sg": True},
    "controls": CHAIN | {"sg": ANY, "energy_scale": {0, 1, 5e4}.__contains__, "eps": 1e-3},
}  # fmt: skip


def belongs(run):
    """Does config.json say that the run is one of the experiment in whose folder it lies?"""
    pairs = [(wanted, run.chain.get(name)) for name, wanted in EXPECTED.get(run.target, {}).items()]
    return bool(pairs) and all(wanted(value) if callable(wanted) else wanted == value for wanted, value in pairs)


# ---------------------------------------------------------------------------------------------------- labels and titles


def short(x):
    """0.001 -> "1e-3", 50000.0 -> "5e4", 1.0 -> "1": as run_grid.sh writes steps and scales."""
    mantissa, exponent = f"{x:.2e}".split("e")
    return f"{x:g}" if x == 0 or 1 <= x < 1000 else f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def fig5_label(c):
    without = {"SG": c["sg"], "warm-up": c["warmup_epochs"], "momentum": c["momentum"], "cosine decay": c["cosine"]}
    tricks = ", ".join(f"no {name}" for name, there in without.items() if not there) or "all tricks"
    return f"{'energy' if c['similarity'] == 'abscos' else 'cosine loss'}, {tricks}"


LABELS = {  # of a line, from what its chain is a function of
    "step": lambda c: f"eps {short(c['eps'])}" if "eps" in c else f"lr {short(c['lr'])}",
    "fig4": lambda c: f"{'velocity std' if c['mass'] == 1 else 'M = s^2, s ='} {c['velocity_std']:g}, alpha {c['alpha']:g}",
    "fig5": fig5_label,
    "controls": lambda c: f"energy scale {short(c['energy_scale'])}" + ", with SG" * c["sg"],
    "note": lambda c: f"{'SG' if c['sg'] else 'no SG'}, predictor steps {c['predictor_steps']}",
}


def labelled(runs, label, shown):
    """{path: label}; runs that would share a label although more differs than seed and start get the difference added.

    shown: the setting that tells the panels of the figure apart.
    """
    names = {}
    for run in runs:
        name, panel = label(run.chain), run.chain.get(shown)
        group = [r.chain for r in runs if (label(r.chain), r.chain.get(shown)) == (name, panel)]
        keys = [k for k in run.chain if k not in ("seed", "init") and len({str(chain.get(k)) for chain in group}) > 1]
        names[run.path] = name + "".join(f", {k.replace('_', ' ')} {run.chain[k]}" for k in keys)
    return names


def last(run, column):
    """The last value of a column of metrics.csv, nan where there is none."""
    return next((value for value in run.metrics[column][::-1] if np.isfinite(value)), math.nan)


def verdict(runs):
    """How many of the runs collapse, at any of the times seen: "none of 16 runs collapses"."""
    hit, n = sum(any(cell not in ("", "no") for cell in run.metrics["collapsed"]) for run in runs), len(runs)
    if n == 1:
        return "it collapses" if hit else "no collapse"
    return f"{'all' if hit == n else hit or 'none'} of {n} runs collapse{'s' * (hit < 2)}"


def ends(runs, column):
    """Where the runs end: "k-NN ends at 26 to 33 %"; of centre ratios whether they collapse, too."""
    values = [value for run in runs if np.isfinite(value := last(run, column))] or [math.nan]
    span = [f"{100 * v:.0f}" if column == "knn" else f"{v:.3g}" for v in (min(values), max(values))]
    text = f"{NAMES[column]} ends at {' to '.join(dict.fromkeys(span))}{' %' * (column == 'knn')}"
    return f"{text}: {verdict(runs)}" if column == "center" else text


def conditions(runs):
    """Under what the numbers of a picture stand."""
    batches, bits = (" and ".join(sorted({str(r.chain[key]) for r in runs})) for key in ("batch_size", "precision"))
    k, train, test, kind, bn = runs[0].scale[1:6]
    text = f"{runs[0].data}, batch {batches}, {bits}; {k}-NN on {train or 'all'} training, {test or 'all'} test images"
    return text + ", trunk features" * (kind != "z") + ", running BatchNorm statistics" * (bn != "recalibrated")


# --------------------------------------------------------------------------------------------------------------- lines


class Panel(NamedTuple):
    """What one panel shows: `runs` as lines by their labels, `walks` (runs without energy) at the steps `eps`."""

    title: str
    runs: list
    y: str
    walks: list = []
    eps: tuple = ()
    length: int = 0  # of the walks, in samples
    bounds: dict = {}  # eps: how far the mean of anything in [0, 1] can be from that of the walk


def gathered(x, y):
    """(x, mean, lowest, highest) of the finite y (n,) at each x, or over POINTS stretches where there are more."""
    order = np.argsort(x, kind="stable")
    order = order[np.isfinite(y[order])]
    x, y = x[order], y[order]
    starts = np.flatnonzero(np.diff(x, prepend=-math.inf))
    if not len(x):
        return x, y, y, y
    if len(starts) > POINTS:
        starts = starts[np.linspace(0, len(starts), POINTS + 1).astype(int)[:-1]]
    means = (np.add.reduceat(values, starts) / np.diff([*starts, len(x)]) for values in (x, y))
    return *means, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def curve(runs, y):
    """(x, mean, low, high) of the runs of one label; low to high is the shade: the seeds', or k-NN's standard error."""
    tables = [run.energies if y == "energy" else run.metrics for run in runs]
    x, mean, low, high = gathered(*(np.concatenate([table[column] for table in tables]) for column in ("step", y)))
    error = np.sqrt(mean * (1 - mean) / runs[0].tests) if y == "knn" and len(runs) == 1 and runs[0].tests else 0
    return x, mean, low - error, high + error


def walk_curve(walks, eps, length, column):
    """(x, mean): a column along the random walk of step eps, from walks of any step.

    Without energy and prior W_t - W_0 ~ N(0, t v eps^2 I), v a function of L and alpha: t samples of step E have the
    law of t (E/eps)^2 samples of eps.
    """
    x = np.concatenate([[], *(np.round(run.metrics["step"] * (run.chain["eps"] / eps) ** 2, 6) for run in walks)])
    y = np.concatenate([[], *(run.metrics[column] for run in walks)])
    return gathered(x[x <= length], y[x <= length])[:2]


def draw_lines(axes, panel, names, styles):
    """A line and its shade per label; dotted the walks, and around them the band that the divergence allows."""
    for eps in panel.eps:
        color, (x, y) = styles[LABELS["step"]({"eps": eps})]["color"], walk_curve(panel.walks, eps, panel.length, panel.y)
        if len(x) > 1:
            axes.plot(x, y, ":", color=color, linewidth=1.2, label=NOISE, zorder=1.8)
            bound = panel.bounds.get(eps, 1)
            if bound < 0.2:
                axes.fill_between(x, np.maximum(y - bound, 0), y + bound, color=color, alpha=0.1, linewidth=0)
    groups = {}
    for run in panel.runs:
        groups.setdefault(names[run.path], []).append(run)
    for name, runs in groups.items():
        x, y, low, high = curve(runs, panel.y)
        if len(x):
            axes.fill_between(x, low, high, color=styles[name]["color"], alpha=0.2, linewidth=0)
            axes.plot(x, y, label=name, linewidth=1.4, markersize=4, markerfacecolor="none",
                      markevery=max(1, len(x) // 8), **styles[name])  # fmt: skip


def draw_references(axes, panel, fresh):
    """Thin lines: the untrained level (row 0 of the runs without --init), chance, and the threshold of collapse."""
    start = [run.metrics[panel.y][0] for run in fresh if len(run.metrics["step"]) and run.metrics["step"][0] == 0]
    chances = {run.chance for run in [*panel.runs, *panel.walks]}
    chance = chances.pop() if panel.y == "knn" and len(chances) == 1 else None
    levels = (np.mean(start) if start else None, chance, THRESHOLD if panel.y == "center" else None)
    for level, (name, dashes) in zip(levels, REFERENCES.items(), strict=True):
        if level is not None and panel.y in ("knn", "center"):
            axes.axhline(level, color="0.3", linewidth=0.8, linestyle=dashes, label=name, zorder=1)


def dress(axes, title, x, y):
    """Title and names of the axes; shares in per cent."""
    axes.set_title(textwrap.fill(title, 44), fontsize=8)
    axes.set_xlabel(x, fontsize=8), axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    if y in ("k-NN accuracy", "right at most in"):
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g} %")


def draw_panel(axes, panel, names, styles, fresh):
    draw_lines(axes, panel, names, styles)
    draw_references(axes, panel, fresh)
    axes.grid(linewidth=0.3, color="0.85")
    methods, losses = ({run.chain[key] for run in panel.runs} for key in ("method", "similarity"))
    loss = LOSSES.get(tuple(losses), "loss (U; 1 + cosine loss)")
    y = {"knn": "k-NN accuracy", "energy": loss}.get(panel.y, NAMES[panel.y])
    dress(axes, panel.title, "updates" if methods == {"sgd"} else "samples", y)


def stretch(all_axes):
    """A logarithmic x axis, with 0, where some lines are so short that they would be a spot beside the others."""
    lines = [np.array(line.get_xdata()) for a in all_axes for line in a.lines if line.get_label() not in REFERENCES]
    lines = [x for x in lines if max(x, default=0) > 0]
    longest, shortest = (pick((max(x) for x in lines), default=1) for pick in (max, min))
    for axes in all_axes:
        axes.locator_params(axis="x", nbins=5, integer=True)
        if longest > 20 * shortest:
            least = max(1, 10 ** math.floor(math.log10(min(min(x[x > 0]) for x in lines))))
            axes.set_xscale("symlog", linthresh=least)
            axes.set_xlim(-0.3 * least, 1.6 * longest)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")


def canvas(rows, title, draw):
    """The picture with these rows of panels, draw(axes, panel) each; the title is broken where it would leave it."""
    from matplotlib.figure import Figure as Canvas

    columns = max(map(len, rows))
    width = max(6.4, 3.1 * columns)
    figure = Canvas(figsize=(width, 1.4 + 2.2 * len(rows)), layout="constrained")
    figure.suptitle("\n".join(textwrap.fill(line, int(14 * width)) for line in title.split("\n")), fontsize=9)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            draw(figure.add_subplot(len(rows), columns, i * columns + j + 1), panel)
    return figure


def draw_figure(rows, names, fresh, title):
    """The picture with these rows of Panels, one legend for all below them."""
    walks = {LABELS["step"]({"eps": eps}) for row in rows for panel in row for eps in panel.eps if panel.walks}
    order = sorted(set(names.values()) | walks)
    styles = {name: {"color": COLORS[i % 8], "marker": MARKERS[i % 8]} for i, name in enumerate(order)}
    figure = canvas(rows, title, lambda axes, panel: draw_panel(axes, panel, names, styles, fresh))
    stretch(figure.axes)
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for pair in legends for handle, label in zip(*pair, strict=True)}
    shown = [name for name in [*order, NOISE, *REFERENCES] if name in handles]
    columns = int(figure.get_figwidth() / (0.7 + 0.063 * max(map(len, shown), default=0)))
    figure.legend([handles[name] for name in shown], shown, loc="outside lower center", fontsize=8, frameon=False,
                  ncols=max(1, min(len(shown), columns)))  # fmt: skip
    return figure


# -------------------------------------------------------------------------------------------------------- the argument


def best_test(kl):
    """Share of the cases that a test of chain against walk can get right, by Pinsker's and Bretagnolle's bounds."""
    kl = np.maximum(kl, 0)
    return (1 + np.minimum(np.sqrt(kl / 2), np.sqrt(1 - np.exp(-kl)))) / 2


def collapse_bound(center, m):
    """At most this much of the posterior, the prior weighted by m, lies beyond the threshold (95 % confidence).

    Posterior(A) <= prior(A) / E[m]: Clopper and Pearson's upper limit over a lower one, 2.5 % for each to fail.
    """
    n, hits = len(m), int(np.sum(~(center <= THRESHOLD)))
    p = np.logspace(-7, 0, 20_001)[:-1]
    choose = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(hits + 1)]
    below = sum(np.exp(c + i * np.log(p) + (n - i) * np.log1p(-p)) for i, c in enumerate(choose))
    least = np.mean(m) - 1.96 * np.std(m) / math.sqrt(n)
    return min(1.0, p[below > 0.025].max() / least) if least > 0 else 1.0


def draw_posterior(axes, table):
    """Centre ratio of random networks under each prior, filled, and weighted by m = exp(-U), as a line."""
    bins, limits = np.arange(math.floor(100 * np.nanmin(table["center"])) - 1, 102) / 100, []
    for color, prior in zip(COLORS, dict.fromkeys(table["prior"]), strict=False):
        center, m = (table[name][table["prior"] == prior] for name in ("center", "m"))
        axes.hist(center, bins, weights=np.full(len(m), 1 / len(m)), color=color, alpha=0.35, label=prior)
        axes.hist(center, bins, weights=m / m.sum(), color=color, histtype="step")
        limits.append(collapse_bound(center, m))
    axes.axvline(THRESHOLD, color="0.3", linewidth=0.8, linestyle=(0, (4, 1, 1, 1)), label=f"threshold {THRESHOLD}")
    title = f"The posterior collapses with a probability below {100 * max(limits):.2g} % under each prior"
    dress(axes, title, "centre ratio (filled: prior, line: posterior)", "share of the networks")


def draw_tests(axes, table):
    """How often the best test tells the chains of Figure 1 from noise alone; dashed: without the first sample."""
    drawn = table["figure"] == "fig1"
    for color, L in zip(COLORS, sorted(set(table["L"][drawn])), strict=False):
        order = np.flatnonzero(drawn & (table["L"] == L))
        order = order[np.argsort(table["eps"][order])]
        eps, kl, se, first, right = (table[name][order] for name in ("eps", "kl", "kl_se", "kl_first", "accuracy"))
        spread = np.abs([best_test(kl - 2 * se) - best_test(kl), best_test(kl + 2 * se) - best_test(kl)])
        axes.errorbar(eps, right, spread, color=color, marker="o", markersize=3, linewidth=1, capsize=2, label=f"L {L:g}")
        axes.plot(eps, best_test(kl - first), "--", color=color, linewidth=0.8)
    axes.axhline(0.5, color="0.3", linewidth=0.8, linestyle=(0, (1, 2)), label="guessing")
    axes.set_xscale("log")
    low, high = (f"{100 * pick(table['accuracy'][drawn]):.0f}" for pick in (np.min, np.max))
    title = f"Chain or noise alone? The best test of all samples is right in at most {low} to {high} %"
    dress(axes, title, "eps (dashed: without the first sample)", "right at most in")


def draw_phase(axes, runs, y, table):
    """Where the runs end over (energy scale, eps): mean over the seeds, and half their range; the scale of KL 1."""
    scales, eps = (sorted({run.chain[name] for run in runs}) for name in ("energy_scale", "eps"))
    means = np.full((len(eps), len(scales)), np.nan)
    for i, j in np.ndindex(means.shape):
        values = [last(r, y) for r in runs if (r.chain["eps"], r.chain["energy_scale"]) == (eps[i], scales[j])]
        if values:
            means[i, j] = np.mean(values)
            text = f"{means[i, j]:.3g}" + f"\n± {(max(values) - min(values)) / 2:.1g}" * (len(values) > 1)
            axes.text(j, i, text, ha="center", va="center", fontsize=7)
    axes.imshow(means, origin="lower", aspect="auto", cmap="YlOrBr", vmax=1.5 * np.nanmax(means))
    axes.set_xticks(range(len(scales)), map(short, scales)), axes.set_yticks(range(len(eps)), map(short, eps))
    if 1 in scales:
        x, top = scales.index(1), len(eps) - 0.55
        axes.plot(x + np.array([-0.45, 0.45, 0.45, -0.45, -0.45]), [-0.45, -0.45, top, top, -0.45], label="the paper")
    L, sg = runs[0].chain["L"], runs[0].chain["sg"]
    for where in np.flatnonzero((table["figure"] == "fig1") & (table["L"] == L)) if table and not sg else ():
        if table["eps"][where] in eps and scales[0] > 0:
            i, scale = eps.index(table["eps"][where]), table["kl"][where] ** -0.5
            x = np.interp(math.log(scale), np.log(scales), range(len(scales)))
            axes.plot([x, x], [i - 0.45, i + 0.45], "--", color="black", label="all samples differ from noise by KL 1")
    dress(axes, f"L {L}{', with SG' * sg}: {ends(runs, y)}", "energy scale", "eps")


# -------------------------------------------------------------------------------------------------------------- figures


class Figure(NamedTuple):
    """What a picture shows of which runs, and how they are shared out to its panels."""

    title: str
    targets: list
    label: callable
    columns: list  # a row each; all in one row where there is one panel in each
    by: str | None = None  # the setting that tells the panels of a row apart, and its values' names
    names: dict = {}
    walks: tuple = ()  # targets drawn as noise alone, at the steps `eps`, over `length` samples
    eps: tuple = ()
    length: int = 0


EPS, BOTH, ALL = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), ["knn", "center"], ["knn", "center", "energy"]
LEAPFROGS, STEPS = {1: "(a) L 1", 2: "(b) L 2", 3: "(c) L 3", 5: "(d) L 5"}, {1e-3: "(a) eps 1e-3", 1e-2: "(b) eps 1e-2"}
METHODS, LOSS = {"sgd": "(a) SGD", "sghmc": "(b) SGHMC"}, {"abscos": "|cos|", "cos": "cosine", "l2": "L2"}
FIGURES = {
    "fig1": Figure("Figure 1: SGHMC without stop-gradient", ["fig1"], LABELS["step"], ["knn"], "L", LEAPFROGS,
                   ("null", "walk"), EPS[:4], 50_000),
    "fig2": Figure("Figure 2: from a pretrained SimSiam, without stop-gradient", ["fig2a", "fig2b"], LABELS["step"],
                   BOTH, "method", METHODS, ("walk",), EPS, 15_000),
    "fig3": Figure("Figure 3: energy of the chains of Figure 1", ["fig1"], LABELS["step"], ["energy"], "L", LEAPFROGS),
    "fig4": Figure("Figure 4: friction and deviation of velocities", ["fig4"], LABELS["fig4"], BOTH, "eps", STEPS),
    "fig5": Figure("Figure 5: SGD on the energy and on the cosine loss", ["fig5"], fig5_label, ALL),
    "pretrain": Figure("The SimSiam that Figure 2 starts from", ["pretrain"], fig5_label, ALL),
    "controls": Figure("Controls at L 3, eps 1e-3", ["controls"], LABELS["controls"], BOTH),
    "note": Figure("The Note: a loss and its parts", ["note"], LABELS["note"],
                   ["energy", "entropy_z", "entropy", "mi", "center"], "similarity", LOSS),
}  # fmt: skip


def panels_of(figure, runs, walks, table):
    """Rows of Panels: the runs shared out by the figure's setting, beside each the walks of its L and kind of start."""
    starts = {run.chain["init"] is None for run in runs}
    beside = [run for run in walks if run.chain["init"] is None in starts]
    values, rows = sorted({run.chain[figure.by] for run in [*runs, *walks]}) if figure.by else [None], []
    for y in figure.columns:
        rows.append([])
        for value in values:
            mine, noise = ([r for r in g if not figure.by or r.chain[figure.by] == value] for g in (runs, beside))
            title = [figure.names.get(value, f"{figure.by} {value}")] if figure.by else []
            title += [ends(mine, y) if mine else "noise alone"]
            fits = (table["figure"] == figure.targets[-1]) & (table["L"] == value) if table else ()
            bounds = dict(zip(table["eps"][fits], 2 * table["accuracy"][fits] - 1, strict=True)) if table else {}
            rows[-1].append(Panel(": ".join(title), mine, y, noise, figure.eps, figure.length, bounds))
    rows = [row for row in rows if any(len(curve(panel.runs, panel.y)[0]) for panel in row if panel.runs)]
    if not figure.by:
        return [sum(rows, [])]
    return [rows[0][:2], rows[0][2:]] if len(rows) == 1 and len(values) > 2 else rows


def alone(run):
    """The picture of one run."""
    figure, name = Figure("", [""], None, ALL), run.path.absolute().name
    rows, fresh = panels_of(figure, [run], [], {}), [run] * (run.chain["init"] is None)
    return draw_figure(rows, {run.path: name}, fresh, f"{name}: {verdict([run])}\n{conditions([run])}")


def pictures(runs, tables):
    """Yields (name, what it is made of, picture) for everything that these runs and tables allow."""
    table = tables.get("divergence", {})
    for name, figure in FIGURES.items():
        mine = [run for run in runs if run.target in figure.targets]
        for i, scale in enumerate(sorted({run.scale for run in mine}, key=str)):
            part, near = ([run for run in group if run.scale == scale] for group in (mine, runs))
            walks, fresh = [r for r in near if r.target in figure.walks], [r for r in near if r.chain["init"] is None]
            title = figure.title if "center" in figure.columns else f"{figure.title}: {verdict(part)}"
            names, rows = labelled(part, figure.label, figure.by), panels_of(figure, part, walks, table)
            picture = draw_figure(rows, names, fresh, f"{title}\n{conditions(part)}")
            yield name + f"_{i + 1}" * (i > 0), f"{len(part)} runs, {conditions(part)}", picture
    phase = {}
    for run in sorted((run for run in runs if run.target == "scale"), key=lambda run: (run.chain["sg"], run.chain["L"])):
        phase.setdefault((run.chain["sg"], run.chain["L"]), []).append(run)
    rows = [[(draw_phase, group, y, table) for y in ("center", "knn", "energy")] for group in phase.values()]
    if rows:
        title = "Where the runs end over energy scale and step\n" + conditions(sum(phase.values(), []))
        yield "scale", f"{sum(map(len, phase.values()))} runs", canvas(rows, title, lambda axes, p: p[0](axes, *p[1:]))
    parts = [(draw_posterior, tables["prior"])] * ("prior" in tables) + [(draw_tests, table)] * bool(table)
    parts += [max(rows, key=lambda row: len(row[0][1]))[0]] if rows else []
    if parts:
        title = "The paper's energy cannot be told from none; where it begins to matter, chains collapse"
        picture = canvas([parts], title, lambda axes, p: p[0](axes, *p[1:]))
        for axes in picture.axes:
            axes.legend(fontsize=6, frameon=False)
        yield "headline", ", ".join(part[0].__name__ for part in parts), picture


def main(argv=None):
    """The command line; returns the exit code: 0 done, 2 bad input."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that contain them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the pictures go")
    given = parser.parse_args(argv)
    try:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise BadInput('matplotlib is missing: pip install -e ".[figures]"') from None
        runs, tables = find(given.runs)
        single = len(runs) == 1 and runs[0].path in given.runs
        for run in runs:
            if not single and not belongs(run):
                print(f"left out: {run.path} is in no folder of a figure, or not a run of it; give it alone")
        fitting = [run for run in runs if (single or belongs(run)) and len(run.metrics["step"])]
        drawn = [("run", "1 run", alone(run)) for run in fitting] if single else list(pictures(fitting, tables))
        if not drawn:
            raise BadInput(f"nothing to draw in {', '.join(map(str, given.runs))}")
        out = given.out or given.runs[0] / ("" if single else "figures")
        out.mkdir(parents=True, exist_ok=True)
        for name, what, picture in drawn:
            picture.savefig(out / f"{name}.png", dpi=150)
            print(f"{out / name}.png: {what}")
        return 0
    except (BadInput, OSError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
