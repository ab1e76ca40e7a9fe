"""Can a chain of the paper be told from a random walk, and can its posterior collapse? Answered without running it.

    python tools/divergence.py                                        CIFAR-10: hours on two cores; again: it goes on
    python tools/divergence.py --data gratings --out quick --quick    minutes, to see that it works

    part        writes              what
    prior       prior.csv           random networks: m = mean |cos| and centre ratio of a minibatch of 64 pairs, k-NN
                posterior.csv       from it: the posterior, the prior weighted by m^scale
    curve       curve.csv           at W_0 + delta xi: G = E|g|^2 and X = E<g, g'> of the gradients of two minibatches
                decay.csv           the same products between that place and one a further d away
    divergence  divergence.csv      from them: how far each chain of Figures 1, 2b and 4 is from its random walk

The walk is the chain at energy scale 0, W_t = W_0 + delta_t xi with xi ~ N(0, I) and delta_t^2 = t v (eps / M)^2, so
KL(walk || chain), an expectation under the walk, needs gradients at W_0 + delta xi and no chain.
"""

import argparse
import json
import math
import re
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]
import divergence_formulas as F  # noqa: E402

import simsiam_sghmc as S  # noqa: E402
from simsiam_sghmc import BadInput, Chain, Config, csv_line  # noqa: E402

PRIORS = ("init", "normal 0.0166", "normal 1")  # 0.0166: the rms weight of a network trained for 7,000 updates
DISTANCES = (0, 3e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.04, 0.08, 0.2, 0.5, 1.5, 5, 15, 50, 150)
DECAY = (0, 0.02, 0.2, 1.5), (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)  # delta; d over the rms weight there
SCALES = (1, 2, 4, 8, 64, 512, 50_000)  # of the energy
HEADERS = {
    "prior": ("prior", "seed", "m", "center", "knn"),
    "curve": ("start", "seed", "delta", "size", "minibatches", "energy", "G", "X"),
    "decay": ("start", "seed", "delta", "d", "G", "X"),
}

# ------------------------------------------------------------------------------------------------------- measurements
def read_table(out, name):
    """The whole rows of a table, dictionaries of strings; a torn last one is cut off."""
    path, header = out / f"{name}.csv", HEADERS[name]
    if not path.parent.is_dir():
        raise BadInput(f"there is no folder {out}; leave --part out to measure what it needs")
    lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else [",".join(header)]
    if lines[:1] != [",".join(header)] or any(line.count(",") != len(header) - 1 for line in lines):
        raise BadInput(f"{path} is not a table of this tool; put it back or choose another --out")
    S.write_whole(path, "".join(line + "\n" for line in lines).encode())
    return [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]


def measured(out, name, todo, measure):
    """Append measure(*key), the rows of each key (prior, seed or start, seed, ...) in todo that has none yet."""
    done = {tuple(row.values())[: len(todo[0])] for row in read_table(out, name)} if todo else set()
    todo = [key for key in todo if tuple(csv_line(key)[:-1].split(",")) not in done]
    began = shown = time.monotonic()
    for i, key in enumerate(todo, 1):
        with open(out / f"{name}.csv", "a") as file:
            file.write("".join(csv_line((*key, *row)) for row in measure(*key)))
        if i == len(todo) or time.monotonic() - shown > 30:
            shown = time.monotonic()
            left = (shown - began) / i * (len(todo) - i) / 60
            print(f"{name}: {i:,} of {len(todo):,}, {left:.0f} minutes left", flush=True)


def network_measure(data):
    """measure(prior, seed) -> [(m, center, knn)]: each network on a minibatch of its own, every 60th with k-NN."""
    bank, tests = min(2000, len(data.train)), min(1000, len(data.test))
    knn = {"knn_train": bank, "knn_test": tests, "knn_k": min(200, bank)}
    cfg = Config(sg=False, precision="bf16", batch_size=min(64, bank), **knn)
    chain = Chain(cfg, data, None, torch.device("cpu"))

    def measure(prior, seed):
        if prior == "init":
            chain.W.copy_(torch.nn.utils.parameters_to_vector(S.initial_network(seed).parameters()))
        else:
            chain.W.copy_(float(prior.split()[1]) * torch.randn(len(chain.W), generator=S.generator(seed, "network")))
        chain.model.train()
        with S.full_float32():
            p1, z1, p2, z2 = chain.predict(*chain.encode(*chain.views(seed)))
            m, center = (-S.energy(p1, z1, p2, z2, False)).exp(), S.unit_rows(torch.cat([z1, z2])).mean(dim=0).norm()
            knn = S.representation(cfg, chain.model, data)["knn"] if seed % 60 == 0 else ""
        return [(m.item(), center.item(), knn)]

    return measure


def inner(g, h):
    """(mean <g_b, h_b>, mean <g_b, h_b'> over b != b') of gradients g, h (k, n) on the same k minibatches."""
    table, k = g @ h.T, len(g)
    return table.trace().item() / k, (table.sum() - table.trace()).item() / (k * (k - 1))


def place_measure(args, data, relative):
    """measure(start, seed, delta) -> rows of curve.csv, or of decay.csv where there are `relative` distances d."""

    def measure(start, seed, delta):
        place, kind = DISTANCES.index(delta), len(relative)
        init = None if start == "random" else S.load_model(start)
        cfg = Config(sg=False, batch_size=args.batch_size, seed=seed, precision=args.precision)
        chain = Chain(cfg, data, init, torch.device("cpu"))
        noise, size = S.generator(seed, "noise", place, kind), S.rms(chain.W).item()
        W = chain.W + delta * torch.randn(len(chain.W), generator=noise)

        def gradients(d, k):
            """(g (k, n) in float64, mean U), always on the same minibatches, at a place d away from W."""
            chain.W.copy_(W + d * math.hypot(size, delta) * torch.randn(len(W), generator=noise) if d else W)
            U, g = [], []
            for b in range(100 * place, 100 * place + k):
                U.append(chain.gradient(*chain.encode(*chain.views(b, kind))).item())
                g.append(chain.G.double())
            return torch.stack(g), sum(U) / k

        g, U = gradients(0, 2 if relative else args.minibatches)
        if relative:
            return [(d, *inner(g, gradients(d, 2)[0])) for d in (0, *relative)]
        return [(size, args.minibatches, U, *inner(g, g))]

    return measure


# ------------------------------------------------------------------------------------------------------ the verdicts
def write_rows(path, rows):
    S.write_whole(path, (csv_line(rows[0]) + "".join(csv_line(row.values()) for row in rows)).encode())


def judge_prior(out):
    """posterior.csv from prior.csv, and a line of verdict for each prior."""
    rows, table = read_table(out, "prior"), []
    for prior, scale in product(dict.fromkeys(row["prior"] for row in rows), SCALES):
        of = [list(row.values())[2:] for row in rows if row["prior"] == prior]
        m, center, knn = np.array([[float(x or "nan") for x in row] for row in of]).T
        row = {"prior": prior, "scale": scale, "networks": len(m), "center": center.mean(), "center_sd": center.std()}
        seen, weights = np.isfinite(knn), (m / m.max()) ** scale
        row |= {"knn": knn[seen].mean(), "knn_min": knn[seen].min(), "knn_networks": int(seen.sum())}
        row |= F.weighted_prior(m, center > 0.99, scale) | {"posterior_center": np.average(center, weights=weights)}
        table.append(row | {"posterior_knn": np.average(knn[seen], weights=weights[seen] + 1e-300)})
        if scale == 1:
            text = "posterior, prior {prior} ({networks:,} networks): E[m] = {E_m:.4f} +- {E_m_se:.4f}, so nothing is "
            text += "more than {factor:.1f} times as probable as under the prior; centre ratio {center:.3f} +- "
            text += "{center_sd:.3f}; collapsed {prior_share:.1%} of the prior, {posterior_share:.1%} of the "
            text += "posterior, at most {bound:.1%} (95 %)"
            print(text.format(**table[-1]))
    write_rows(out / "posterior.csv", table)


def judge_chains(out):
    """divergence.csv from curve.csv and decay.csv, and a line of verdict on Figure 1."""
    decay, table, curves = read_table(out, "decay"), [], {"random": {}}
    for row in read_table(out, "curve"):
        start, seed, *numbers = row.values()
        curves.setdefault(start, {}).setdefault(seed, []).append([float(x) for x in numbers])
    columns = HEADERS["curve"][2:]
    with S.bad_input("{}"):  # the tables may not reach as far as the chains do
        left = {x: [F.fitted_decay([row for row in decay if row["start"] == x], name) for name in "GX"] for x in curves}
        for s in F.settings([start for start in curves if start != "random"] or ["random"]):
            seeds = [dict(zip(columns, np.array(sorted(x)).T, strict=True)) for x in curves[s.start].values()]
            table.append(F.summary(s, [F.divergences(s, curve, *left[s.start]) for curve in seeds]))
    write_rows(out / "divergence.csv", table)
    for eps in (1e-4, 1e-3, 1e-2, 1e-1):
        rows = [row for row in table if (row["figure"], row["eps"]) == ("1", eps)]
        whole, rest = (", ".join(f"{row[k]:.1%}" for row in rows) for k in ("accuracy", "accuracy_rest"))
        print(f"chain, Figure 1, eps {eps:g}: the best test of 50,000 samples against a random walk is right, to "
              f"leading order, in at most {whole} (L 1, 2, 3, 5); of all but the first sample {rest}")  # fmt: skip


def parse(argv):
    parser = S.Parser(usage="python tools/divergence.py [SETTING VALUE] ...", description=__doc__,
                      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    parser.add_argument("--data", default="cifar10", metavar="NAME", help="as for simsiam_sghmc.py [cifar10]")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), metavar="DIR", help="tables [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="300 networks, every other distance, 8 minibatches of 64")
    parser.add_argument("--init", nargs="*", default=[], metavar="CHECKPOINT", help="measure the curve from here, too")
    parts = ("prior", "curve", "divergence")
    parser.add_argument("--part", nargs="+", default=parts, choices=parts, help="only these parts")
    parser.add_argument("--prior", nargs="+", default=PRIORS, metavar="NAME", help=f"init, or normal STD [{PRIORS}]")
    for name, default, text in (
        ("networks", 3000, "of each prior"), ("seeds", 5, "of the curve"), ("decay-seeds", 3, "of the decay"),
        ("minibatches", 4, "at each place, two or more"), ("batch-size", 512, "of the curve"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} [{default}]")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the curve's gradients [bf16]")
    args = parser.parse_args(argv)
    args.distances, args.decay = DISTANCES, DECAY
    if args.quick:
        args.networks, args.prior, args.minibatches, args.batch_size, args.seeds = 300, PRIORS[:1], 8, 64, 1
        args.distances, args.decay, args.decay_seeds = DISTANCES[:1] + DISTANCES[1::2], ((0.02,), DECAY[1][::2]), 1
    for prior in args.prior:
        if prior != "init" and not re.fullmatch(r"normal [0-9.e-]+", prior):
            raise BadInput(f"--prior {prior}: give init or, for N(0, STD^2), 'normal STD'")
    if not (2 <= args.minibatches <= 100 and args.networks > 1 < args.batch_size and args.seeds > 0 < args.decay_seeds):
        raise BadInput("give 2 to 100 minibatches, at least 2 images in each, 2 networks and 1 seed")
    return args


def check_folder(args, data):
    """Make the folder; BadInput if its tables were measured otherwise."""
    if args.batch_size > len(data.train):
        raise BadInput(f"--batch-size {args.batch_size}: there are only {len(data.train)} images for it")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "settings.json"
    mine = {"data": data.source, **{k: getattr(args, k) for k in ("batch_size", "minibatches", "precision")}}
    theirs = json.loads(path.read_text()) if path.exists() else mine
    if theirs != mine:
        raise BadInput(f"{args.out} was measured with {theirs}, this is {mine}; choose another --out")
    S.write_whole(path, json.dumps(mine).encode())


def main(argv=None):
    """The command line; returns the exit code: 0 done, 2 bad input."""
    try:
        args = parse(argv)
        if set(args.part) != {"divergence"}:
            data = S.load_data(args.data)
            check_folder(args, data)
            S.keep_freed_memory()
        if "prior" in args.part:
            measured(args.out, "prior", [*product(args.prior, range(args.networks))], network_measure(data))
            judge_prior(args.out)
        if "curve" in args.part:
            tables = ("curve", args.seeds, args.distances, ()), ("decay", args.decay_seeds, *args.decay)
            for name, seeds, *deltas, d in tables:
                todo = [*product(("random", *args.init), range(seeds), *deltas)]
                measured(args.out, name, todo, place_measure(args, data, d))
        if "divergence" in args.part:
            judge_chains(args.out)
        return 0
    except (BadInput, OSError) as error:
        print(f"divergence: {S.one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("divergence: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
