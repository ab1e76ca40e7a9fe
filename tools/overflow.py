"""Would half precision end a chain? Features along the random walk when float16 holds what the layers give.

    python tools/overflow.py [--data FOLDER] [--out DIR]        writes DIR/overflow.csv, a row per place

The walk is W_0 + distance xi, xi ~ N(0, I), W_0 PyTorch's initialisation. The output of each convolution and linear
layer is rounded to float16, in which a number beyond 65,504 is infinite; BatchNorm's statistics are estimated from
that. A test image whose features are not finite counts as class 0, as an argmax over NaN gives it.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
import simsiam_sghmc as S  # noqa: E402

DISTANCES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 3.0, 4.0, 10.0)


def halved(model):
    """Let the layers of the model give float16 numbers."""
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(lambda _layer, _inputs, out: out.half().float())


def place(data, seed, distance, bank=2000, tests=1000):
    """(share of test images whose features are not finite, k-NN accuracy) at this distance from the initial network."""
    train, labels = S.fixed_subset(data.train, data.train_labels, min(bank, len(data.train)), 0)
    test, truth = S.fixed_subset(data.test, data.test_labels, min(tests, len(data.test)), 1)
    model = S.initial_network(seed)
    W, _ = S.flatten_parameters(model)
    halved(model)
    with S.full_float32():
        W += distance * torch.randn(len(W), generator=S.generator(seed, "noise"))
        S.recalibrate(model, train)
        rows, asked = (S.features(model, images, "z") for images in (train, test))
    finite, usable = asked.isfinite().all(dim=1), rows.isfinite().all(dim=1)
    guess = torch.zeros_like(truth)
    if usable.any() and finite.any():
        k = min(200, int(usable.sum()))
        guess[finite] = S.knn_votes(rows[usable], labels[usable], asked[finite], k).argmax(dim=1)
    return 1 - finite.float().mean().item(), (guess == truth).float().mean().item()


def main(argv=None):
    """The command line; returns the exit code: 0 done, 2 bad input."""
    try:
        parser = S.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--data", default="cifar10", metavar="NAME", help="as for simsiam_sghmc.py [cifar10]")
        parser.add_argument("--out", type=Path, default=Path("runs/evidence"), metavar="DIR", help="[runs/evidence]")
        parser.add_argument("--seeds", type=int, default=3, metavar="N", help="walks [3]")
        args = parser.parse_args(argv)
        if args.seeds < 1:
            raise S.BadInput(f"--seeds {args.seeds}: give a whole number >= 1")
        data, lines = S.load_data(args.data), [("seed", "distance", "not_finite", "knn")]
        args.out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        for seed in range(args.seeds):
            for distance in DISTANCES:
                lost, knn = place(data, seed, distance)
                print(f"seed {seed}, distance {distance:g}: {lost:.1%} not finite, k-NN {knn:.1%}", flush=True)
                lines.append((seed, distance, lost, knn))
        S.write_whole(args.out / "overflow.csv", "".join(map(S.csv_line, lines)).encode())
        return 0
    except (S.BadInput, OSError) as error:
        print(f"overflow: {S.one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
