"""run_grid.sh lists the paper's experiments and runs what is left of them. A stub stands in for the program."""

import collections
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import simsiam_sghmc

ROOT = Path(__file__).parents[1]
STUB = """#!{python} -S
import os, signal, sys, time
a = sys.argv[1:]
if a[0] == "-c":
    sys.exit("matplotlib" in a[1])
out, cwd = a[a.index("--out") + 1], os.getcwd()
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), time.sleep(0.3), sys.exit(143)))
os.makedirs(out, exist_ok=True)
print("step 3 of 10, 0.5 s per step, 4 s left", flush=True)
with open("calls", "a") as file:
    file.write(f"{{time.time()}} {{out}}\\n")
if "--slow" in os.environ.get("STUB", "") and os.environ["STUB"].split("=")[1] in out:
    open(out + "/checkpoint.pt", "w").write("half")
    time.sleep(60)
time.sleep(float(os.environ.get("NAP", "0")))
if os.environ.get("STUB", "--") in out:
    sys.exit("stub: no such luck")
open(out + "/checkpoint.pt", "w").write("whole")
print("done: collapsed: no\\ntables and checkpoint are in " + out)
"""


class Grid:
    """run_grid.sh with a stub as the program, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        stub = folder / "stub"
        stub.write_text(STUB.format(python=sys.executable))
        stub.chmod(0o755)
        names = ("OUT", "SEEDS", "JOBS", "SLURM_ARRAY_TASK_ID", "STUB", "NAP")
        self.environment = {k: v for k, v in os.environ.items() if k not in names} | {"PYTHON": str(stub)}

    def start(self, line="", **environment):
        return subprocess.Popen(
            ["bash", str(ROOT / "run_grid.sh"), *shlex.split(line)], cwd=self.folder, text=True,
            env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, line="", **environment):
        """(exit code, stdout, stderr)"""
        process = self.start(line, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def list(self, line="", **environment):
        code, out, err = self(f"{line} --list", **environment)
        assert (code, err) == (0, "")
        return [shlex.split(text) for text in out.splitlines()]

    def configs(self, line="", **environment):
        return [simsiam_sghmc.parse(words[2:])[0] for words in self.list(line, **environment)]

    def calls(self):
        """The run folders that the stub was started for, in order; forgets them."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.split(" ", 1)[1] for line in lines]


@pytest.fixture
def grid(tmp_path):
    return Grid(tmp_path)


def settings(configs, *names):
    """Sorted tuples of the settings named, once each."""
    rows = collections.Counter(tuple(getattr(cfg, name) for name in names) for cfg in configs)
    assert set(rows.values()) == {1}
    return set(rows)


LINES = {"fig1": 16, "pretrain": 1, "fig2a": 2, "fig2b": 6, "fig4": 16, "fig5": 6, "controls": 24, "null": 16}
LINES |= {"note": 12, "cpu": 96, "all": 99}


@pytest.mark.parametrize("target, count", LINES.items())
def test_every_target_lists_its_runs_and_starts_none(grid, target, count):
    lines = grid.list(target)
    assert len(lines) == count == len({words[-1] for words in lines})
    for words in lines:
        assert words[1] == str(ROOT / "simsiam_sghmc.py") and words.count("--out") == 1
        cfg = simsiam_sghmc.parse(words[2:])[0]
        assert cfg.out.startswith("runs/") and f"seed{cfg.seed}" in cfg.out
    assert not (grid.folder / "runs").exists() and grid.calls() == []


def test_figure_1_is_the_default_and_the_grid_of_section_3_1(grid):
    configs = grid.configs()
    steps = [(L, eps) for L in (1, 2, 3, 5) for eps in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert settings(configs, "L", "eps") == set(steps)
    paper = ("sghmc", False, "abscos", 0.01, 1, 1, 50_000, "kick", 1, None, 512, None)
    names = "method sg similarity alpha mass phi_std samples batch_per energy_scale prior_std batch_size init".split()
    assert {tuple(getattr(cfg, name) for name in names) for cfg in configs} == {paper}
    assert [cfg.out for cfg in configs[:2]] == ["runs/fig1/L1_eps1e-1_seed0", "runs/fig1/L1_eps1e-2_seed0"]


def test_the_null_is_figure_1_at_energy_scale_0(grid):
    names = [f for f in simsiam_sghmc.Config.__dataclass_fields__ if f not in ("energy_scale", "out", "eval_every")]
    null = grid.configs("null")
    assert settings(null, *names) == settings(grid.configs("fig1"), *names)
    assert {cfg.energy_scale for cfg in null} == {0}


def test_figure_2_starts_from_the_pretraining_of_the_same_seed(grid):
    (pretraining,) = grid.configs("pretrain", SEEDS="3")
    assert (pretraining.method, pretraining.sg, pretraining.similarity) == ("sgd", True, "cos")
    assert (pretraining.epochs, pretraining.updates, pretraining.lr, pretraining.warmup_epochs) == (800, None, 0.03, 10)
    a, b = grid.configs("fig2a", SEEDS="3"), grid.configs("fig2b", SEEDS="3")
    assert {cfg.init for cfg in a + b} == {pretraining.out + "/checkpoint.pt"}
    assert settings(a, "lr", "method", "sg", "similarity", "updates") == {
        (lr, "sgd", False, "cos", 50 * 97) for lr in (0.03, 0.003)
    }
    assert max(cfg.eval_every for cfg in a) < 97  # several times within the first epoch
    steps = {(eps, 3, "sghmc", False, "abscos", 15_000) for eps in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)}
    assert settings(b, "eps", "L", "method", "sg", "similarity", "samples") == steps


def test_figure_4_runs_both_readings_of_the_velocities(grid):
    configs = grid.configs("fig4")
    readings = [(1, 0.1), (1, 0.01), (0.01, 0.1), (0.0001, 0.01)]  # mass, standard deviation of Phi_0
    rest = [(alpha, eps, 3, 2000, False) for alpha in (0.1, 0.01) for eps in (1e-3, 1e-2)]
    assert settings(configs, "mass", "phi_std", "alpha", "eps", "L", "samples", "sg") == {
        (*reading, *others) for reading in readings for others in rest
    }


def test_figure_5_runs_five_scenarios_and_the_cosine_loss(grid):
    configs = grid.configs("fig5")
    assert {(cfg.method, cfg.updates, cfg.epochs) for cfg in configs} == {("sgd", 400 * 97, 800)}
    assert settings(configs, "similarity", "sg", "warmup_epochs", "momentum", "cosine") == {
        ("abscos", True, 10, 0.9, True),
        ("abscos", True, 0, 0.9, True),
        ("abscos", True, 10, 0, True),
        ("abscos", True, 0, 0.9, False),
        ("abscos", False, 10, 0.9, True),
        ("cos", True, 10, 0.9, True),
    }


STAR = {
    (0, 1e-3, None, False, "kick"),
    (1, 1e-3, None, False, "kick"),
    (1e3, 1e-3, None, False, "kick"),
    (5e4, 1e-3, None, False, "kick"),
    (5e4, pytest.approx(1e-3 / 5e4**0.5, rel=1e-6), None, False, "kick"),
    (5e4, 1e-3, 0.1, False, "kick"),
    (5e4, 1e-3, None, True, "kick"),
    (1, 1e-3, None, False, "sample"),
} if False else None
