"""Draw the figures of "Posterior Sampling on SimSiam", the controls and the Note from run folders.

    python tools/figures.py RUNS... --out DIR

RUNS are run folders or folders that contain them, at any depth. A run belongs to the figure whose name its path holds
(runs/fig1/L3_eps1e-3_seed0, as run_grid.sh lays them out) and is drawn only if its config.json says the same. Runs on
other data or at another scale (batch, precision, k-NN settings) get a picture of their own: fig1_2.png. Each seed is a
line of its own, nothing is averaged but the energy along the chain; unfinished runs are drawn as far as they are.
"""

import argparse
import csv
import itertools
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

TARGETS = ("fig1", "fig2a", "fig2b", "fig4", "fig5", "controls", "null", "note", "pretrain")
SCALE = "batch_size precision knn_k knn_t knn_train knn_test knn_features bn".split()
METRICS = "step grad_evals energy knn center mi entropy drift_to_noise".split()
POINTS = 400  # energies of a chain are averaged down to this many: a line has no room for 50,000
CHANCE = 0.1  # ten classes of equal size in CIFAR-10 and gratings; the tables do not hold the number of classes
SAMPLES, GRADIENTS, UPDATES = "samples", "gradient evaluations", "updates (= gradient evaluations)"

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
    """{column: (n,) float array} of a CSV, empty cells as nan; a torn last line is dropped, other damage is BadInput."""
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
        "fig2a": sgd and not c["sg"] and c["similarity"] == "cos" and not fresh,
        "fig2b": not fresh and plain(c, init=c["init"]),
        "fig4": plain(c, alpha=any, mass=any, velocity_std=any) and c["velocity_std"] != 1,
        "fig5": sgd and fresh and c["similarity"] != "l2",
        "note": sgd and fresh,
        "pretrain": sgd and fresh and c["sg"],
        "controls": plain(c, sg=any, energy_scale=any, prior_std=any, batch_per=any),
        None: False,
    }[run.target]


# -------------------------------------------------------------------------------------------------------------- panels


def short(x):
    """0.001 -> 1e-3, 50000.0 -> 5e4, 0.01 stays: as the settings are written in the paper and in run_grid.sh."""
    text = f"{x:g}"
    if x and not 0.01 <= abs(x) < 10_000:
        mantissa, exponent = f"{x:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text


def thinned(x, y):
    """Means of x and y over at most POINTS stretches of equal length; cells without a value are left out."""
    there = np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def lines(axes, runs, label, x, y, styles, table="metrics"):
    """One line per run; runs with the same label (the seeds) share a style, and all but the first are thinner."""
    drawn = set()
    for run in runs:
        name, source = label(run), getattr(run, table)
        at, value = thinned(source[x], source[y])
        if not len(at):
            continue
        first, many = name not in drawn, len(at) > 60
        drawn.add(name)
        axes.plot(
            at, value, label=name if first else None, linewidth=1.3 if first else 0.7, markersize=3.5 if first else 2,
            markevery=max(1, len(at) // 8), markerfacecolor="white" if many else None, **styles[name],
        )  # fmt: skip


def references(axes, column, fresh):
    """Thin lines: what untrained networks have (row 0 of the runs without --init) and, for k-NN, chance."""
    values = [run.metrics[column][0] for run in fresh if len(run.metrics[column])]
    if values:
        axes.axhline(np.mean(values), color="0.35", linewidth=0.7, linestyle=(0, (6, 2)), label="untrained", zorder=1)
    if column == "knn":
        axes.axhline(CHANCE, color="0.35", linewidth=0.7, linestyle=(0, (1, 2)), label="chance", zorder=1)


NAMES = {
    "knn": "k-NN accuracy", "center": "centre ratio", "energy": "energy U", "mi": "information (mi)",
    "entropy": "entropy", "drift_to_noise": "drift / noise",
}  # fmt: skip


def style_of(names):
    """{label: style} for labels in the order given."""
    return {name: STYLES[i % len(STYLES)] for i, name in enumerate(names)}


def dress(axes, x, y, first_column, last_row, title):
    """Labels, limits and grid of a panel."""
    axes.grid(linewidth=0.3, color="0.85")
    axes.tick_params(labelsize=7)
    if title:
        axes.set_title(title, fontsize=9)
    if first_column:
        axes.set_ylabel(NAMES[y], fontsize=8)
    if last_row:
        axes.set_xlabel(x, fontsize=8)
    if y in ("knn", "center"):
        axes.set_ylim(0, 1.02)
