"""Draw one run, or the figures of "Posterior Sampling on SimSiam", the controls and the argument, from run folders.

    python tools/figures.py RUN                    one run: k-NN, centre ratio and energy, into RUN/run.png
    python tools/figures.py RUN RUN...             several in one picture beside the first, if one is of no figure
    python tools/figures.py RUNS... [--out DIR]    the figures of all runs below these folders, into RUNS/figures

A run below RUNS belongs to the figure whose name its path holds (runs/fig1/L3_eps1e-3_seed0) if its config.json says
the same. Other data, k-NN settings or, in fig5, schedules get a picture of their own: fig1_2.png. prior.csv and
divergence.csv, where RUNS hold them, give headline.png and bands in fig1.png. A line is the mean over the seeds of one
setting, its shade their lowest to highest (of a long chain's U: in each stretch; one seed's k-NN: bars of one standard
error). Dotted: the same noise without energy, and the band in which the chains' mean k-NN must lie, where that is +- 10
points or less.
"""

import argparse
import json
import math
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import numpy as np
from divergence_formulas import Setting, best_test, distances_of, weighted_prior

KNN = "knn_k knn_train knn_test knn_features bn".split()  # k-NN accuracies may be compared where these are the same
METRICS = "step energy knn center mi entropy entropy_z collapsed".split()
TABLES = {"prior": "prior m center".split(), "divergence": "figure start L eps kl_first kl kl_se accuracy".split()}
TEXT, NEW = ("collapsed", "prior", "figure", "start"), ("entropy_z",)  # columns of words; those that older tables lack
POINTS = 400  # a line of more points than this shows means over stretches: a picture has no room for 50,000
THRESHOLD = 0.99  # centre ratio above which the program calls a network collapsed
NOISE = "noise alone, in the same colour"
REFERENCES = {"untrained": (0, (7, 3)), "chance": (0, (1, 2)), f"threshold {THRESHOLD}": (0, (4, 1, 1, 1))}
Y_NAMES = {"knn": "k-NN accuracy", "center": "centre ratio", "mi": "information", "entropy_z": "H(z)"}
LOSSES = {"abscos": "energy U", "cos": "1 + cosine loss", "l2": "L2 loss", "abscos+cos": "U or 1 + cosine loss"}
UNITS = {"sgd": "updates", "sgd+sghmc": "samples or updates"}
FOREIGN = {"sgd": "eps L alpha mass velocity_std batch_per energy_scale prior_std"}  # settings of the other method
FOREIGN["sghmc"] = "lr momentum weight_decay epochs warmup_epochs cosine predictor_steps predictor_lr_mult"

# Okabe and Ito's colours, told apart with any colour vision; markers repeat them for print
COLORS, MARKERS = "#0072B2 #D55E00 #009E73 #CC79A7 #56B4E9 #E69F00 #000000 #7F7F7F".split(), "os^DvPX*"
# A run folder: chain is what its chain is a function of, scale what its k-NN may be compared under, data its images in
# words, tests how many k-NN is taken on, chance the share of their largest class (None where that cannot be known),
# metrics and energies its tables, {column: (rows,)}
Run = namedtuple("Run", "path target chain scale data tests chance metrics energies")
# What a picture shows: `columns` in a row each (in one row where none has several panels), panels by the setting `by`,
# whose values have `names` (of the columns, without it), targets drawn as noise alone, at each of eps, over length, and
# settings `apart`, whose values have a picture each
FIELDS = "title targets label columns by names walks eps length apart"
Figure = namedtuple("Figure", FIELDS, defaults=(None, {}, (), (), 0, ()))
# L: of the walks drawn; bounds: by how much the mean of anything in [0, 1] can differ from the walk's, at each eps
Panel = namedtuple("Panel", "title runs y walks figure L bounds")


class BadInput(Exception):
    """One line on stderr, exit code 2. (Not the program's, whose import takes as long as torch's.)"""


# ------------------------------------------------------------------------------------ run folders, their labels, titles
def read_table(path, columns):
    """{column: (n,) array} of a CSV, empty cells as nan; a torn last line is dropped, other damage is BadInput."""
    lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
    header, *rows = [line.split(",") for line in lines] or [columns]
    if missing := sorted(set(columns) - set(header) - set(NEW)):
        raise BadInput(f"{path} has no column {', '.join(missing)}")
    table = {name: [] for name in columns}
    for line, row in enumerate(rows, 2):
        try:
            cells = dict(zip(header, row, strict=True))
            for name, values in table.items():
                values.append(cells.get(name, "") if name in TEXT else float(cells.get(name) or "nan"))
        except ValueError:
            raise BadInput(f"{path} is damaged in line {line}") from None
    return {name: np.array(values, str if name in TEXT else float) for name, values in table.items()}


def read_run(folder):
    """The Run in a folder with a config.json; BadInput names a file that cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
        chain, settings = dict(config["identity"]), dict(config["settings"])
        chain = {name: value for name, value in chain.items() if name not in FOREIGN[chain["method"]].split()}
        if chain["method"] == "sghmc" and chain["velocity_std"] is None:
            chain["velocity_std"] = chain["mass"] ** 0.5  # the default
        scale = (str(chain["data"]), *(settings[name] for name in KNN), settings.get("knn_t", 0.1))
        kind, images = scale[0].split()[0], Path(settings["data"])
        counts = [int(n) for n in config.get("test images per class", ())]  # older runs do not say
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise BadInput(f"{folder / 'config.json'} is not of a run ({problem})") from None
    counts = counts or {"cifar10": [1000] * 10, "gratings": [200] * 10}.get(kind)
    counts = counts or [sum(1 for _ in c.iterdir()) for c in (images / "test").glob("*") if c.is_dir()]
    return Run(
        folder, next((part for part in folder.absolute().parts[-2::-1] if part in EXPECTED), None), chain, scale,
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


CHAIN = dict(  # the paper's (Section 3.1); eps and L are free
    method="sghmc", sg=False, similarity="abscos", alpha=0.01, mass=1, velocity_std=1, energy_scale=1, prior_std=None,
    batch_per="kick", init=None,
)  # fmt: skip
SGD, ANY, SOME = {"method": "sgd", "init": None}, repr, bool  # what these functions make of a fitting value is true
EXPECTED = {  # what the config.json of a run of each target must say
    "fig1": CHAIN, "null": CHAIN | {"energy_scale": 0}, "walk": CHAIN | {"energy_scale": 0, "init": ANY},
    "scale": CHAIN | {"sg": ANY, "energy_scale": ANY}, "fig2b": CHAIN | {"init": SOME},
    "fig2a": {"method": "sgd", "sg": False, "similarity": "cos", "init": SOME}, "note": SGD,
    "fig4": CHAIN | {"alpha": ANY, "mass": ANY, "velocity_std": {0.1, 0.01}.__contains__},
    "fig5": SGD | {"similarity": {"abscos", "cos"}.__contains__}, "pretrain": SGD | {"sg": True},
    "itself": {"method": ANY}, "controls": CHAIN | {"sg": ANY, "energy_scale": {0, 1, 5e4}.__contains__, "eps": 1e-3},
}  # fmt: skip


def belongs(run):
    """Does config.json say that the run is one of the experiment in whose folder it lies?"""
    pairs = [(wanted, run.chain.get(name)) for name, wanted in EXPECTED.get(run.target, {}).items()]
    return bool(pairs) and all(wanted(value) if callable(wanted) else wanted == value for wanted, value in pairs)


def short(x):
    """0.001 -> "1e-3", 50000.0 -> "5e4", 1.0 -> "1": as run_grid.sh writes steps and scales."""
    mantissa, exponent = f"{x:.2e}".split("e")
    return f"{x:g}" if x == 0 or 1 <= x < 1000 else f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


TRICKS = {"sg": "SG", "warmup_epochs": "warm-up", "momentum": "momentum", "cosine": "cosine decay"}
LABELS = {  # of a line, from what its chain is a function of
    "step": lambda c: f"lr {short(c['lr'])}" if c.get("method") == "sgd" else f"eps {short(c['eps'])}",
    "fig4": lambda c: "M = s^2, s " * (c["mass"] != 1) + "velocity std " * (c["mass"] == 1)
    + f"{c['velocity_std']:g}, alpha {c['alpha']:g}",
    "fig5": lambda c: ("energy, " if c["similarity"] == "abscos" else "cosine loss, ")
    + (", ".join(f"no {name}" for key, name in TRICKS.items() if not c[key]) or "all tricks"),
    "controls": lambda c: f"energy scale {short(c['energy_scale'])}" + ", with SG" * c["sg"],
    "note": lambda c: f"{'SG' if c['sg'] else 'no SG'}, predictor steps {c['predictor_steps']}",
}


def labelled(runs, label, shown):
    """{path: label, and what runs of one label differ in} apart from `shown` and, beside a label, seed and start."""
    names = {}
    for run in runs:
        name, panel = label(run.chain), run.chain.get(shown)
        group = [r.chain for r in runs if (label(r.chain), r.chain.get(shown)) == (name, panel)]
        keys = [k for k in run.chain if len({str(c[k]) for c in group if k in c}) > 1]  # older runs have fewer
        keys = [k for k in keys if k not in ("seed", "init") or not name]
        more = [f"no {k}" if v in ("None", "False") else k if v == "True" else f"{k} {v}"
                for k, v in ((k.replace("_", " "), str(run.chain[k])) for k in keys)]  # fmt: skip
        names[run.path] = ", ".join([name] * bool(name) + more) or "this run"
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
    """Where the runs end: "k-NN accuracy ends at 26 to 33 %"; of centre ratios whether they collapse, too."""
    values = [value for run in runs if np.isfinite(value := last(run, column))] or [math.nan]
    span = [f"{100 * v:.0f}" if column == "knn" else f"{v:.3g}" for v in (min(values), max(values))]
    loss = "U" if {run.chain["similarity"] for run in runs} == {"abscos"} else "loss"
    name = loss if column == "energy" else Y_NAMES.get(column, column)
    text = f"{name} ends at {' to '.join(dict.fromkeys(span))}{chr(160) + '%' if column == 'knn' else ''}"
    return f"{text}: {verdict(runs)}" if column == "center" else text


def conditions(runs):
    """Under what the numbers of a picture stand."""
    batches, bits = (" and ".join(sorted({str(r.chain[key]) for r in runs})) for key in ("batch_size", "precision"))
    k, train, test, kind, bn = runs[0].scale[1:6]
    text = f"{runs[0].data}, batch {batches}, {bits}; {k}-NN on {train or 'all'} training, {test or 'all'} test images"
    return text + ", trunk features" * (kind != "z") + ", running BatchNorm statistics" * (bn != "recalibrated")


# --------------------------------------------------------------------------------------------------------------- lines
def gathered(x, y):
    """(x, mean, lowest, highest) of the finite y (n,) at each x, or over POINTS stretches where there are more."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    x, y = np.sort(x), y[np.argsort(x, kind="stable")]
    starts = np.flatnonzero(np.diff(x, prepend=-math.inf))
    if not len(x):
        return x, y, y, y
    if len(starts) > POINTS:
        starts = starts[np.linspace(0, len(starts), POINTS + 1).astype(int)[:-1]]
    means = (np.add.reduceat(values, starts) / np.diff([*starts, len(x)]) for values in (x, y))
    return *means, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def curve(runs, y):
    """(x, mean, low, high) of the runs of one label; low to high is the shade: the seeds', or k-NN's standard error."""
    columns = [(t["step"], t[y]) for t in (run.energies if y == "energy" else run.metrics for run in runs)]
    x, mean, low, high = gathered(*map(np.concatenate, zip(*columns, strict=True)))
    error = np.sqrt(mean * (1 - mean) / runs[0].tests) if y == "knn" and len(runs) == 1 and runs[0].tests else 0
    return x, mean, low - error, high + error


def walk_curve(walks, eps, L, length, column):
    """(x, mean): a column along the random walk of eps and L, from walks of any others.

    Without energy and prior W_t - W_0 ~ N(0, t v eps^2 I), v of L and alpha: the walks are one, at other speeds.
    """
    chains = [(eps, L), *((run.chain["eps"], run.chain["L"]) for run in walks)]
    speed, *speeds = (distances_of(Setting("", "", L, eps, 0), 1) ** 2 for eps, L in chains)  # Var(W_1 - W_0)
    times = [np.round(run.metrics["step"] * (v / speed), 6) for run, v in zip(walks, speeds, strict=True)]
    x = np.concatenate([[], *times])
    y = np.concatenate([[], *(run.metrics[column] for run in walks)])
    seen = (x <= length) & ((x == 0) | (x >= 1))
    return gathered(x[seen], y[seen])[:2]


def draw_lines(axes, panel, names, styles):
    """A line and its shade per label; dotted the walks, and around them the band that the divergence allows."""
    for eps in panel.figure.eps:
        x, y = walk_curve(panel.walks, eps, panel.L, panel.figure.length, panel.y)
        if len(x) > 1:
            name, bound = LABELS["step"]({"eps": eps}), panel.bounds.get(eps, 1)
            color, label = styles[name]["color"], NOISE if name in names.values() else f"noise alone, {name}"
            axes.plot(x, y, ":", color=color, linewidth=1.2, label=label, zorder=1.8)
            if bound <= 0.1:
                axes.fill_between(x, np.maximum(y - bound, 0), y + bound, color=color, alpha=0.1, linewidth=0)
    for name in dict.fromkeys(names[run.path] for run in panel.runs):
        runs = [run for run in panel.runs if names[run.path] == name]
        x, y, low, high = curve(runs, panel.y)
        if len(x):
            if len(runs) > 1 or len(x) == POINTS:
                axes.fill_between(x, low, high, color=styles[name]["color"], alpha=0.2, linewidth=0)
            else:
                axes.vlines(x, low, high, color=styles[name]["color"], linewidth=0.7)
            axes.plot(x, y, label=name, linewidth=1.4, markersize=4, markerfacecolor="none",
                      markevery=max(1, len(x) // 8), **styles[name])  # fmt: skip


def draw_references(axes, panel, fresh):
    """Thin lines: the untrained level (row 0 of the runs without --init), chance, and the threshold of collapse."""
    start = [run.metrics[panel.y][0] for run in fresh if len(run.metrics["step"]) and run.metrics["step"][0] == 0]
    chances = {run.chance for run in [*panel.runs, *panel.walks, *fresh]} - {None}  # all are of the same images
    chance = chances.pop() if panel.y == "knn" and len(chances) == 1 else None
    levels = np.mean(start) if start else None, chance, THRESHOLD if panel.y == "center" else None
    for level, (name, dashes) in zip(levels, REFERENCES.items(), strict=True):
        if level is not None and panel.y in ("knn", "center"):
            axes.axhline(level, color="0.3", linewidth=0.8, linestyle=dashes, label=name, zorder=1)


def dress(axes, title, x, y):
    """Title and names of the axes; shares in per cent."""
    axes.set_title(textwrap.fill(title, 44), fontsize=8)
    axes.set_xlabel(x, fontsize=8), axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    if y in ("k-NN accuracy", "best test is right in at most"):
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g} %")


def stretch(all_axes):
    """A logarithmic x axis, with 0, where some lines would be a spot beside others; one y axis for the same y."""
    lines = [line.get_xdata() for a in all_axes for line in a.lines if line.get_label() not in REFERENCES]
    longest, shortest = (pick((max(x) for x in lines if max(x) > 0), default=1) for pick in (max, min))
    for axes in all_axes:
        axes.locator_params(axis="x", nbins=5, integer=True)
        if longest > 20 * shortest:
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(-0.3, 1.6 * longest)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
        same = [other.get_ylim() for other in all_axes if other.get_ylabel() == axes.get_ylabel()]
        if axes.get_ylabel() in ("k-NN accuracy", "centre ratio", "energy U"):
            axes.set_ylim(min(low for low, _ in same), max(high for _, high in same))


def canvas(rows, title):
    """(figure, [(axes, panel)]) of these rows of panels; the title is broken where it would leave the picture."""
    from matplotlib.figure import Figure as Canvas

    columns = max(map(len, rows))
    width = max(6.4, 3.1 * columns)
    figure = Canvas(figsize=(width, 1.4 + 2.2 * len(rows)), layout="constrained")
    figure.suptitle("\n".join(textwrap.fill(line, int(14 * width)) for line in title.split("\n")), fontsize=9)
    places = ((i * columns + j + 1, panel) for i, row in enumerate(rows) for j, panel in enumerate(row))
    return figure, [(figure.add_subplot(len(rows), columns, place), panel) for place, panel in places]


def draw_figure(rows, names, fresh, title):
    """The picture with these rows of Panels, one legend for all below them."""
    walks = {LABELS["step"]({"eps": e}) for row in rows for panel in row for e in panel.figure.eps if panel.walks}
    order = sorted(set(names.values()) | walks)
    styles = {name: {"color": COLORS[i % 8], "marker": MARKERS[(i + i // 8) % 8]} for i, name in enumerate(order)}
    figure, panels = canvas(rows, title)
    for axes, panel in panels:
        draw_lines(axes, panel, names, styles)
        draw_references(axes, panel, fresh)
        axes.grid(linewidth=0.3, color="0.85")
        methods, losses = ("+".join(sorted({r.chain[key] for r in panel.runs})) for key in ("method", "similarity"))
        y = LOSSES.get(losses, "loss") if panel.y == "energy" else Y_NAMES.get(panel.y, panel.y)
        dress(axes, panel.title, UNITS.get(methods, "samples"), y)
    stretch(figure.axes)
    handles = {k: v for a in figure.axes for v, k in zip(*a.get_legend_handles_labels(), strict=True)}
    shown = [name for name in [*order, *sorted({*handles} - {*order, *REFERENCES}), *REFERENCES] if name in handles]
    columns = min(len(shown), int(figure.get_figwidth() / (0.7 + 0.063 * max(map(len, shown), default=0)))) or 1
    handles = [handles[name] for name in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


# -------------------------------------------------------------------------------------------------------- the argument
def draw_posterior(axes, table):
    """Centre ratio of random networks under each prior, filled, and weighted by m = exp(-U), a line."""
    bins, moved = np.arange(math.floor(100 * np.nanmin(table["center"])) - 1, 102) / 100, []
    for color, prior in zip(COLORS, dict.fromkeys(table["prior"]), strict=False):
        center, m = (table[name][table["prior"] == prior] for name in ("center", "m"))
        beyond = ~(center <= THRESHOLD)
        bound = weighted_prior(m, beyond, 1)["bound"] if len(m) > 1 else 1.0  # 95 % confidence
        label = f"prior {prior}" + (f": at most {100 * bound:.2g} % beyond" if bound < 0.5 else "")
        axes.hist(center, bins, weights=np.full(len(m), 1 / len(m)), color=color, alpha=0.35, label=label)
        axes.hist(center, bins, weights=m / m.sum(), color=color, histtype="step")
        moved.append(abs(m[beyond].sum() / m.sum() - beyond.mean()))
    axes.axvline(THRESHOLD, color="0.3", linewidth=0.8, linestyle=(0, (4, 1, 1, 1)), label=f"threshold {THRESHOLD}")
    title = f"exp(-U) moves the share of collapsed networks by at most {100 * max(moved):.1f} points"
    dress(axes, title, "centre ratio (filled: prior, line: posterior)", "share of the networks")


def draw_tests(axes, table):
    """How often the best test tells the chains of Figure 1 from noise alone; dashed: without the first sample."""
    drawn = table["figure"] == "1"
    for color, L in zip(COLORS, sorted(set(table["L"][drawn])), strict=False):
        order = sorted(np.flatnonzero(drawn & (table["L"] == L)), key=lambda i: table["eps"][i])
        eps, kl, se, first, right = (table[name][order] for name in ("eps", "kl", "kl_se", "kl_first", "accuracy"))
        lower, upper = np.maximum(kl - 2 * se, 0), kl + 2 * se
        spread = best_test(kl) - best_test(lower), best_test(upper) - best_test(kl)
        axes.errorbar(eps, right, spread, color=color, marker="o", markersize=3, capsize=2, label=f"L {L:g}")
        axes.plot(eps, best_test(np.maximum(kl - first, 0)), "--", color=color, linewidth=0.8)
    axes.axhline(0.5, color="0.3", linewidth=0.8, linestyle=(0, (1, 2)), label="guessing")
    axes.set_xscale("log")
    low, high = (f"{100 * pick(table['accuracy'][drawn]):.0f}" for pick in (np.min, np.max))
    title = f"Chain or noise alone? The best test of all samples is right in at most {low} to {high} %"
    dress(axes, title, "eps (dashed: without the first sample)", "best test is right in at most")


def draw_phase(axes, runs, y, table):
    """Where the runs end over (energy scale, eps): mean over the seeds, and half their range; the scale of KL 1."""
    scales, eps = (sorted({run.chain[name] for run in runs}) for name in ("energy_scale", "eps"))
    means = np.full((len(eps), len(scales)), np.nan)
    for i, j in np.ndindex(means.shape):
        values = [last(r, y) for r in runs if (r.chain["eps"], r.chain["energy_scale"]) == (eps[i], scales[j])]
        if values:
            means[i, j] = np.mean(values)
            text = f"{means[i, j]:.3f}" + f"\n±{(max(values) - min(values)) / 2:.3f}" * (len(values) > 1)
            axes.text(j, i, text, ha="center", va="center", fontsize=6)
    axes.imshow(means, origin="lower", aspect="auto", cmap="YlOrBr", vmax=1.5 * np.nanmax(means))
    axes.set_xticks(range(len(scales)), map(short, scales)), axes.set_yticks(range(len(eps)), map(short, eps))
    if 1 in scales:
        x, top = scales.index(1), len(eps) - 0.55
        axes.plot(x + np.array([-0.45, 0.45, 0.45, -0.45, -0.45]), [-0.45, -0.45, top, top, -0.45], label="the paper")
    L, sg = runs[0].chain["L"], runs[0].chain["sg"]
    mine = np.flatnonzero((table["figure"] == "1") & (table["L"] == L)) if table and not sg else ()
    least = scales[0] == 0  # 0 has no place on the logarithmic way from scale to scale
    for step, kl in ((table["eps"][i], table["kl"][i]) for i in mine):
        if step in eps:
            x, i = np.interp(-math.log(kl) / 2, np.log(scales[least:]), range(least, len(scales))), eps.index(step)
            axes.plot([x, x], [i - 0.45, i + 0.45], "--", color="0.5", label="all samples differ from noise by KL 1")
    dress(axes, f"L {L}{', with SG' * sg}: {ends(runs, y)}", "energy scale", "eps")


# -------------------------------------------------------------------------------------------------------------- figures
EPS, BOTH, ALL = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), ["knn", "center"], ["knn", "center", "energy"]
LEAPFROGS = {1: "(a) L 1", 2: "(b) L 2", 3: "(c) L 3", 5: "(d) L 5"}  # the paper's letters
STEPS = {1e-3: "(a) eps 1e-3", 1e-2: "(b) eps 1e-2"}
METHODS, LOSS = {"sgd": "(a) SGD", "sghmc": "(b) SGHMC"}, {"abscos": "|cos|", "cos": "cosine", "l2": "L2"}
STEP, PARTS = LABELS["step"], ["energy", "entropy_z", "entropy", "mi", "center"]
FIGURES = {
    "run": Figure("", ["itself"], lambda _: "", ALL),
    "fig1": Figure("Figure 1: SGHMC without stop-gradient", ["fig1"], STEP, ["knn"], "L", LEAPFROGS, ("null", "walk"),
                   EPS[:4], 50_000),
    "fig2": Figure("Figure 2: from a pretrained SimSiam, without stop-gradient", ["fig2a", "fig2b"], STEP, BOTH,
                   "method", METHODS, ("walk",), EPS, 15_000),
    "fig3": Figure("Figure 3: energy of the chains of Figure 1", ["fig1"], STEP, ["energy"], "L", LEAPFROGS),
    "fig4": Figure("Figure 4: velocities", ["fig4"], LABELS["fig4"], BOTH, "eps", STEPS, apart=("batch_size",)),
    "fig5": Figure("Figure 5: SGD on the energy and on the cosine loss", ["fig5"], LABELS["fig5"], ALL, None,
                   {"knn": "(a)", "energy": "(b)"}, apart=("lr", "epochs")),
    "pretrain": Figure("The SimSiam that Figure 2 starts from", ["pretrain"], LABELS["fig5"], ALL),
    "controls": Figure("Controls at L 3, eps 1e-3", ["controls"], LABELS["controls"], BOTH),
    "note": Figure("The Note: a loss and its parts", ["note"], LABELS["note"], PARTS, "similarity", LOSS),
}  # fmt: skip


def panels_of(figure, runs, walks, table):
    """Rows of Panels: the runs shared out by the figure's setting, beside each the walks of its L and kind of start."""
    starts = {run.chain["init"] is None for run in runs}
    beside = [run for run in walks if (run.chain["init"] is None) in starts]
    values, rows = sorted({run.chain[figure.by] for run in [*runs, *beside]}) if figure.by else [None], []
    for y in figure.columns:
        row = []
        for value in values:
            mine, noise = ([r for r in g if r.chain.get(figure.by) == value] for g in (runs, beside))
            noise = beside if figure.by == "L" else noise  # one walk at four speeds
            L = value if figure.by == "L" else 3
            name = figure.names.get(value, f"{figure.by} {value}") + ":" if figure.by else figure.names.get(y, "")
            wanted = (figure.targets[-1][3:], L, starts == {True})
            kinds = zip(table["figure"], table["L"], table["start"] == "random", strict=True) if table else ()
            bounds = {table["eps"][i]: 2 * table["accuracy"][i] - 1 for i, kind in enumerate(kinds) if kind == wanted}
            title = f"{name} {ends(mine, y) if mine else 'noise alone'}".strip()
            row.append(Panel(title, mine, y, noise, figure, L, bounds))
        if any(len(curve(panel.runs, y)[0]) for panel in row if panel.runs):
            rows += [row[:2], row[2:]] if figure.columns[1:] == [] and len(row) > 2 else [row]
    return rows if figure.by else [sum(rows, [])] * bool(rows)


def pictures(runs, tables):
    """Yields (name, picture) for everything that these runs and tables allow."""
    runs, table = [run for run in runs if belongs(run) and len(run.metrics["step"])], tables.get("divergence", {})
    for name, figure in FIGURES.items():
        groups = {}
        for run in (run for run in runs if run.target in figure.targets):
            groups.setdefault(str((run.scale, *map(run.chain.get, figure.apart))), []).append(run)
        for i, (_, part) in enumerate(sorted(groups.items())):
            near = [run for run in runs if run.scale == part[0].scale]
            walks, fresh = [r for r in near if r.target in figure.walks], [r for r in near if r.chain["init"] is None]
            title = f"{figure.title or ', '.join(run.path.absolute().name for run in part)}: {verdict(part)}"
            title += f"\n{conditions(part)}"
            title += "".join(f", {key} {part[0].chain.get(key)}" for key in figure.apart if key != "batch_size")
            if rows := panels_of(figure, part, walks, table):
                picture = draw_figure(rows, labelled(part, figure.label, figure.by), fresh, title)
                yield name + f"_{i + 1}" * (i > 0), picture
    yield from argument([run for run in runs if run.target == "scale"], tables)


def argument(runs, tables):
    """Yields ("scale", picture) and ("headline", picture), as far as there are runs and tables for them."""
    groups, table = {}, tables.get("divergence", {})
    for run in sorted(runs, key=lambda run: (run.chain["sg"], run.chain["L"])):
        groups.setdefault((run.scale, *(run.chain[k] for k in ("batch_size", "sg", "L"))), []).append(run)
    rows = [[(draw_phase, group, y, table) for y in ("center", "knn", "energy")] for group in groups.values()]
    parts = [(draw, tables[k]) for k, draw in (("prior", draw_posterior), ("divergence", draw_tests)) if k in tables]
    parts += [max(rows, key=lambda row: len(row[0][1]))[0]] if rows else []
    ended = "Where runs end over energy scale and step (box: the paper's; dashed: KL to noise 1 over all samples)\n"
    ended += "\n".join(dict.fromkeys(map(conditions, groups.values())))
    asked = "Does the posterior collapse, does a chain feel its energy, and from which energy scale on?"
    for name, title, grid in (("scale", ended, rows), ("headline", asked, [parts] * bool(parts))):
        if grid:
            figure, panels = canvas(grid, title)
            for axes, (draw, *given) in panels:
                draw(axes, *given)
                handles = {k: v for v, k in zip(*axes.get_legend_handles_labels(), strict=True)}
                if name == "headline":
                    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
                    axes.legend(handles.values(), handles, fontsize=6, frameon=False, **below)
            yield name, figure


def main(argv=None):
    """The command line; returns the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that contain them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the pictures go")
    given = parser.parse_args(argv)
    try:
        import matplotlib  # noqa: F401

        runs, tables = find(given.runs)
        named = all(run.path in given.runs for run in runs) and (len(runs) == 1 or None in {r.target for r in runs})
        runs = [run._replace(target="itself") for run in runs] if named else runs
        if others := [run for run in runs if run.target and not belongs(run)]:
            print(f"left out: {len(others)} that are no run of the figure of their folder, such as {others[0].path}")
        if not (drawn := list(pictures(runs, tables))):
            raise BadInput(f"nothing to draw in {', '.join(map(str, given.runs))}")
        first = given.runs[0]
        out = given.out or (first / "figures" if not named else first if len(runs) == 1 else first.parent)
        out.mkdir(parents=True, exist_ok=True)
        for name, picture in drawn:
            picture.savefig(out / f"{name}.png", dpi=150)
            print(out / f"{name}.png")
        return 0
    except (BadInput, OSError, ImportError) as error:
        missing = 'matplotlib is missing: pip install -e ".[figures]"'
        print(f"figures: {missing if isinstance(error, ImportError) else error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
