"""run_grid.sh lists the paper's experiments, line by line as written here by hand, and runs what is left of them.

A stub stands in for the program wherever the program itself is not needed. No test waits for a time: each waits for a
file or an exit, LIMIT is what only a hang reaches, and whatever a test started is killed at its end.
"""

import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import simsiam_sghmc

ROOT = Path(__file__).parents[1]
LIMIT = 300  # s
STUB = """#!/bin/sh
# Instead of python: notes what it is called for. Names that contain $SLOW last until the file `release` is there, those
# that contain $FAIL fail, those that contain $WAITS last until $MEET runs have begun.
case $1 in
-c) cat >/dev/null; exit ;;
*/figures.py) shift; echo "$*" >>drawn; exit "${DRAWS:-0}" ;;
esac
case $1 in */divergence.py) echo "chains: verdict"; echo "posterior: verdict"; echo "1 of 9, 3 s left" ;; esac
while [ $# -gt 0 ]; do
    case $1 in --out) out=$2 ;; --init) init=$2 ;; esac
    shift
done
[ -z "$init" ] || [ "$(cat "$init")" = whole ] || exit 9
mkdir -p busy/$$
ls busy | wc -l >>together
echo "$out" >>calls
echo "$CUDA_VISIBLE_DEVICES" >>gpus
echo "threads: $OMP_NUM_THREADS"
case $out in *${SLOW:---}*)
    trap 'echo "$out" >>signals' HUP INT TERM
    echo half >"$out/checkpoint.pt"
    until [ -e release ]; do sleep 0.05; done
    echo "$out" >>ended
    exit 143 ;;
esac
case $out in *$WAITS*) until [ "$(wc -l <calls)" -ge "${MEET:-0}" ]; do sleep 0.02; done ;; esac
case $out in *${FAIL:---}*) echo "no such luck" >&2; rmdir busy/$$; exit 3 ;; esac
[ ! -e "tables/${out##*/}" ] || cp "tables/${out##*/}" "$out/metrics.csv"
echo whole >"$out/checkpoint.pt"
rmdir busy/$$
"""

# ------------------------------------------------------------------------------------------------ the paper, by hand
# TABLE[target][name of the run, without its seed] = the settings that differ from the program's defaults. The defaults
# that the figures rely on: SGHMC, alpha 0.01, M = 1, 50,000 samples, a batch of 512 per half-kick, energy scale 1, no
# prior; SGD with momentum 0.9, peak rate 0.03, 10 epochs of warm-up, cosine decay, 800 epochs.

STEPS = ("1e-1", "1e-2", "1e-3", "1e-4")
NO_SG = {"sg": False}
SGD = {"method": "sgd", "similarity": "cos"}
TWO_CORES = {"batch_size": 64, "precision": "bf16", "knn_train": 3000, "knn_test": 1500}
QUICK = {"data": "gratings", "batch_size": 32, "knn_train": 2000, "knn_test": 500, "eval_every": 25}
FLAT = {"warmup_epochs": 0, "cosine": False}


def lengths(samples, eval_every):
    return {"samples": samples, "eval_every": eval_every}


def section_3_1(L, eps, **more):
    return NO_SG | {"L": L, "eps": float(eps)} | more


def star(prefix, length):
    """One factor at a time around L 3, eps 1e-3; 4.47213595e-6 is 1e-3 / sqrt(50,000)."""
    around = {
        "scale0": {"energy_scale": 0, **NO_SG},
        "scale1": NO_SG,
        "scale1e3": {"energy_scale": 1e3, **NO_SG},
        "scale5e4": {"energy_scale": 5e4, **NO_SG},
        "scale5e4_eps-over-sqrtN": {"energy_scale": 5e4, "eps": 4.47213595e-6, **NO_SG},
        "scale5e4_prior0.1": {"energy_scale": 5e4, "prior_std": 0.1, **NO_SG},
        "scale5e4_sg": {"energy_scale": 5e4},
        "batch-per-sample": {"batch_per": "sample", **NO_SG},
    }
    return {prefix + name: row | length for name, row in around.items()}


def velocities(prefix, length):
    """Friction 0.1 and 0.01, eps 1e-3 and 1e-2, std 0.1 and 0.01 of Phi_0 alone, or of M = std^2 throughout."""
    readings = {
        "velocity-std0.1": {"velocity_std": 0.1},
        "velocity-std0.01": {"velocity_std": 0.01},
        "mass0.01": {"mass": 0.01},
        "mass0.0001": {"mass": 0.0001},
    }
    return {
        f"{prefix}{name}_alpha{alpha}_eps{eps}": NO_SG | {"alpha": float(alpha), "eps": float(eps)} | reading | length
        for name, reading in readings.items() for alpha in ("0.1", "0.01") for eps in ("1e-3", "1e-2")
    }  # fmt: skip


START = "runs/pretrain/seed{seed}/checkpoint.pt"
SMALL_START = "runs/cpu/pretrain/seed0/checkpoint.pt"  # one for all seeds
SHORT = TWO_CORES | {"epochs": 800, "warmup_epochs": 0, "lr": 0.01}  # SGD at the scale of two cores
FIGURE_5 = {"method": "sgd", "updates": 400 * 97, "eval_every": 194}  # 400 epochs of 800
NOTE = TWO_CORES | FLAT | {"method": "sgd", "updates": 300, "eval_every": 50, "lr": 0.01}
LONG = TWO_CORES | {"batch_size": 16} | section_3_1(1, "1e-1", **lengths(50_000, 2500))
SCALE = TWO_CORES | lengths(300, 50)
TABLE = {
    "quick": {
        **{f"quick/scale/L1_eps1e-1_scale{s}": section_3_1(1, 0.1, energy_scale=float(s), samples=100) | QUICK
           for s in ("0", "1", "512", "5e4")},
        "quick/scale/L1_eps1e-1_scale5e4_sg": {"L": 1, "eps": 0.1, "energy_scale": 5e4, "samples": 100} | QUICK,
        "quick/fig5/no-sg-cos": SGD | NO_SG | FLAT | {"updates": 100} | QUICK,
        "quick/fig5/sg-cos": SGD | FLAT | {"updates": 100} | QUICK,
    },
    "fig1": {f"fig1/L{L}_eps{eps}": section_3_1(L, eps) for L in (1, 2, 3, 5) for eps in STEPS},
    "pretrain": {"pretrain/": SGD | {"eval_every": 970}},
    "fig2a": {
        f"fig2a/lr{lr}": SGD | NO_SG | {"lr": float(lr), "updates": 50 * 97, "eval_every": 25, "init": START}
        for lr in ("3e-2", "3e-3")
    },
    "fig2b": {
        f"fig2b/eps{eps}": section_3_1(3, eps, **lengths(15_000, 100), init=START)
        for eps in (*STEPS, "1e-5", "1e-6")
    },
    "fig4": velocities("fig4/", lengths(2000, 50)),
    "fig5": {
        "fig5/all-tricks": FIGURE_5,
        "fig5/no-warmup": FIGURE_5 | {"warmup_epochs": 0},
        "fig5/no-momentum": FIGURE_5 | {"momentum": 0},
        "fig5/no-warmup-no-cosine": FIGURE_5 | {"warmup_epochs": 0, "cosine": False},
        "fig5/no-sg": FIGURE_5 | {"sg": False},
        "fig5/cosine-loss": FIGURE_5 | {"similarity": "cos"},
    },
    "controls": star("controls/", lengths(10_000, 200)),
    "null": {
        f"null/L{L}_eps{eps}": section_3_1(L, eps, energy_scale=0, eval_every=2500)
        for L in (1, 2, 3, 5) for eps in STEPS
    },
    "note": {
        f"note/{like}_{sg}_predictor-steps{k}":
            NOTE | {"similarity": like, "sg": sg == "sg", "predictor_steps": k} | ({"lr": 1e-4} if like == "l2" else {})
        for like in ("abscos", "cos", "l2") for sg in ("sg", "no-sg") for k in (1, 5)
    } | {
        f"entropy/cos_sg_{name}": SGD | NOTE | varied for name, varied in {
            "predictor-lr5": {"predictor_lr_mult": 5}, "predictor-lr10": {"predictor_lr_mult": 10},
            "frozen-encoder": {"predictor_lr_mult": 1e10, "lr": 1e-12},
            "momentum0_lr1e-2": {"momentum": 0}, "momentum0_lr1e-1": {"momentum": 0, "lr": 0.1},
        }.items()
    },
    "scale": {
        **{f"scale/L{L}_eps{eps}_scale{s}": section_3_1(L, eps, energy_scale=float(s)) | SCALE
           for L in (1, 3) for eps in STEPS[:3] for s in ("1", "8", "64", "512", "4e3", "5e4")},
        **{f"scale/L1_eps1e-1_scale{s}_sg": SCALE | {"L": 1, "eps": 0.1, "energy_scale": float(s)}
           for s in ("1", "8", "64", "512", "4e3", "5e4")},
        **{f"scale/L1_eps{eps}_scale5e4_sg": SCALE | {"L": 1, "eps": float(eps), "energy_scale": 5e4}
           for eps in STEPS[1:3]},
    },
    "cpu": {
        "cpu/pretrain/": SGD | SHORT | {"updates": 7000, "eval_every": 500, "knn_train": 4000, "knn_test": 2000},
        **star("cpu/controls/", TWO_CORES | lengths(40, 20)),
        "cpu/fig5/no-sg-cos": SGD | NO_SG | SHORT | {"updates": 300, "eval_every": 50},
        "cpu/fig5/no-sg-abscos": {"method": "sgd"} | NO_SG | SHORT | {"updates": 300, "eval_every": 50},
        "cpu/fig5/cosine-loss": SGD | SHORT | {"updates": 600, "eval_every": 200},
        "cpu/fig5/energy-loss": {"method": "sgd"} | SHORT | {"updates": 600, "eval_every": 200},
        **{f"cpu/fig1/L3_eps{eps}": section_3_1(3, eps, **lengths(60, 30)) | TWO_CORES for eps in STEPS},
        **{f"cpu/null/L3_eps{eps}": section_3_1(3, eps, **lengths(60, 30), energy_scale=0) | TWO_CORES
           for eps in STEPS},
        **{f"cpu/fig2a/lr{lr}": SGD | NO_SG | SHORT | {"lr": float(lr), "updates": 300, "eval_every": 50,
                                                     "init": SMALL_START} for lr in ("3e-2", "3e-3")},
        **{f"cpu/walk/L{L}_100eps{eps}":
           section_3_1(L, eps, energy_scale=0, **lengths(5, 1 if L == 3 else 5)) | TWO_CORES
           for L in (1, 2, 3, 5) for eps in ("1e1", "1e0", "1e-1", "1e-2")},
        **{f"cpu/walk/pretrained_L3_100eps{eps}":
           section_3_1(3, eps, energy_scale=0, **lengths(2, 1), init=SMALL_START) | TWO_CORES
           for eps in ("1e1", "1e0", *STEPS)},
        **{f"cpu/fig2b/eps{eps}": section_3_1(3, eps, **lengths(20, 10), init=SMALL_START) | TWO_CORES
           for eps in (*STEPS, "1e-5", "1e-6")},
        **{f"cpu/running-bn/L3_eps{eps}": section_3_1(3, eps, **lengths(60, 30), bn="running") | TWO_CORES
           for eps in ("1e-1", "1e-3")},
        **{f"cpu/fig1/L{L}_eps{eps}": section_3_1(L, eps, **lengths(30, 30)) | TWO_CORES
           for L in (1, 2, 5) for eps in STEPS},
        **velocities("cpu/fig4/", TWO_CORES | lengths(10, 10)),
    },
    "long": {
        "long/fig1/L1_eps1e-1": LONG, "long/null/L1_eps1e-1": LONG | {"energy_scale": 0},
        **{f"long/walk/L1_eps{e}": section_3_1(1, e, energy_scale=0, **lengths(10, 1)) | TWO_CORES
           for e in ("1e1", "3e0", "1e0", "3e-1", "1e-1", "3e-2", "1e-2", "3e-3", "1e-3", "3e-4")},
    },
}  # fmt: skip
ON_THREE_SEEDS = ("controls/", "cpu/controls/", "cpu/fig5/", "cpu/fig1/L3", "cpu/null/", "cpu/fig2a/")


def expected(target):
    """{run folder: row of TABLE} of all lines of a target."""
    seeds = {name: (0, 1, 2) if name.startswith(ON_THREE_SEEDS) else (0,) for name in TABLE[target]}
    return {
        f"runs/{name}_seed{seed}".replace("/_", "/"): row
        for name, row in TABLE[target].items() for seed in seeds[name]
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- running the script


def members(session):
    """The numbers of all processes that the first process of this session started, and theirs."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.getsid(pid) == session:
                yield pid
        except ProcessLookupError:
            pass


def heeded():
    """A shell can trap no signal that was ignored when it began, as SIGINT is in the background of a script."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


class Grid:
    """run_grid.sh with a stub as the program, in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        self.program("stub", STUB)
        (folder / "start").write_text("whole\n")  # a checkpoint made by hand, for --init
        names = "OUT SEEDS JOBS SLURM_ARRAY_TASK_ID OMP_NUM_THREADS CUDA_VISIBLE_DEVICES".split()
        self.environment = {k: v for k, v in os.environ.items() if k not in names}
        self.environment |= {"PYTHON": str(folder / "stub"), "PATH": f"{folder}:{os.environ['PATH']}"}

    def program(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def start(self, line="", script=ROOT / "run_grid.sh", **environment):
        process = subprocess.Popen(
            ["bash", str(script), *shlex.split(line)], cwd=self.folder, text=True,
            env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=heeded,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def __call__(self, line="", **environment):
        """(exit code, stdout, stderr)"""
        process = self.start(line, **environment)
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err

    def list(self, line="", **environment):
        code, out, err = self(f"{line} --list", **environment)
        assert (code, err) == (0, "")
        return [shlex.split(text) for text in out.splitlines()]

    def lines(self, name):
        """The lines of a file that the stub writes."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def calls(self):
        """The run folders that the stub was started for, in order; forgets them."""
        lines = self.lines("calls")
        (self.folder / "calls").unlink(missing_ok=True)
        return lines

    def until(self, true):
        end = time.monotonic() + LIMIT
        while not true():
            assert self.processes[-1].poll() is None and time.monotonic() < end
            time.sleep(0.05)

    def stop(self):
        """Kill whatever is left of what was started, and what it may have started meanwhile."""
        for process in self.processes:
            killed = set()
            while new := set(members(process.pid)) - killed:
                for pid in new:
                    os.kill(pid, signal.SIGKILL)
                killed |= new
            process.communicate()


@pytest.fixture
def grid(tmp_path):
    grid = Grid(tmp_path)
    yield grid
    grid.stop()


# --------------------------------------------------------------------------------------------------------- the lists


@functools.cache
def listed(target):
    """The lines that the script lists for a target, each a list of words."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OUT", "SEEDS", "SLURM_ARRAY_TASK_ID", "PYTHON")}
    command = ["bash", str(ROOT / "run_grid.sh"), target, "--list"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=LIMIT).stdout
    return [shlex.split(line) for line in text.splitlines()]


def out_of(words):
    return words[words.index("--out") + 1]


@functools.cache
def settings_of(target):
    """{run folder: all settings} of the lines of a target, as the program itself reads them."""
    program = str(ROOT / "simsiam_sghmc.py")
    return {out_of(words): asdict(simsiam_sghmc.parse(words[2:])) for words in listed(target) if words[1] == program}


@pytest.mark.parametrize("target", TABLE)
def test_a_target_lists_the_runs_of_the_table_and_no_other(target):
    runs = [out_of(words) for words in listed(target) if words[1].endswith("simsiam_sghmc.py")]
    assert sorted(runs) == sorted(expected(target))
    assert all(words[0] == "python" and words.count("--out") == 1 for words in listed(target))


@pytest.mark.parametrize("target, run", [(target, run) for target in TABLE for run in expected(target)])
def test_every_setting_of_a_line_is_the_table_s(target, run):
    row = dict(expected(target)[run])
    seed = int(run.rpartition("seed")[2])
    if "init" in row:
        row["init"] = row["init"].format(seed=seed)
    want = asdict(simsiam_sghmc.Config()) | row | {"seed": seed, "out": run}
    assert settings_of(target)[run] == want


def test_the_sizes_of_the_targets_are_these():
    sizes = {target: len(listed(target)) for target in TABLE}
    assert sizes == {
        "quick": 8, "fig1": 16, "pretrain": 1, "fig2a": 2, "fig2b": 6, "fig4": 16, "fig5": 6, "controls": 24,
        "null": 16, "note": 17, "scale": 44, "cpu": 125, "long": 12,
    }  # fmt: skip


def test_quick_begins_with_what_needs_no_chain():
    first = listed("quick")[0]
    assert first == [
        "python", str(ROOT / "tools/divergence.py"), "--quick", "--data", "gratings", "--out", "runs/quick"
    ]  # fmt: skip


def test_quick_takes_the_images_given_in_all_its_lines(grid):
    for words in grid.list("quick --data 'my pictures'"):
        places = [i for i, word in enumerate(words) if word == "--data"]
        assert words[places[-1] + 1] == "my pictures"


def test_all_is_every_target_but_those_for_two_cores_and_begins_with_the_longest():
    parts = [target for target in TABLE if target not in ("quick", "cpu", "scale", "long")]
    assert sorted(listed("all")) == sorted(words for target in parts for words in listed(target))
    assert out_of(listed("all")[0]) == "runs/pretrain/seed0"


def test_figure_1_is_the_default_target(grid):
    assert [out_of(words) for words in grid.list()] == [out_of(words) for words in listed("fig1")]
    assert not (grid.folder / "runs").exists() and grid.calls() == []


def test_seeds_and_out_name_the_folders(grid):
    lines = grid.list("fig5", SEEDS="4 11", OUT="a b/c")
    assert [words[-3:] for words in lines[:2]] == [[s, "--out", f"a b/c/fig5/all-tricks_seed{s}"] for s in ("4", "11")]
    assert len(lines) == 12
    inits = [words[words.index("--init") + 1] for words in grid.list("fig2a", SEEDS="4 11", OUT="a b")]
    assert inits == [f"a b/pretrain/seed{seed}/checkpoint.pt" for seed in (4, 11, 4, 11)]
    assert {words[words.index("--seed") + 1] for words in grid.list("cpu", SEEDS="7")} == {"7"}


def test_flags_win_over_those_of_the_target(grid):
    for line in ("fig1 --samples 7 --batch-size=8", "--samples 7 --batch-size 8"):
        for words in grid.list(f"{line} --data 'my pictures'"):
            cfg = simsiam_sghmc.parse(words[2:])
            assert (cfg.samples, cfg.data, cfg.batch_size) == (7, "my pictures", 8)
    assert simsiam_sghmc.parse(grid.list("cpu --eval-every 3")[0][2:]).eval_every == 3  # names do not tell of it


@pytest.mark.parametrize(
    "line",
    ["fig1 --eps 1e-3", "--L=2", "null --eps 1", "fig2a --lr 1", "fig2b --eps 1", "fig4 --alpha 0.5", "fig4 --mass 2",
     "fig4 --velocity-std=1", "fig5 --momentum 0.5", "fig5 --sg", "fig5 --no-sg", "fig5 --cosine", "fig5 --no-cosine",
     "fig5 --warmup-epochs 3", "fig5 --similarity cos", "controls --energy-scale 3", "controls --prior-std 3",
     "controls --batch-per kick", "note --predictor-steps 2", "note --lr 1", "scale --energy-scale 3", "scale --no-sg",
     "cpu --init a.pt", "cpu --bn running", "long --energy-scale 1", "quick --energy-scale 1", "all --L 2"],
)  # fmt: skip
def test_a_flag_that_the_target_varies_is_refused(grid, line):
    code, out, err = grid(line)
    flag = line.split("--")[1].replace("=", " ").split()[0]
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"run_grid: --{flag}: the lines of ") and not (grid.folder / "runs").exists()


def test_one_sample_of_the_walk_has_the_law_of_ten_thousand():
    """Samples without energy are independent: 10,000 at eps add up to N(0, 10,000 V), the law of one at 100 eps."""
    for figure, walk, samples in (("fig1", "cpu/walk/L", 5), ("fig2b", "cpu/walk/pretrained", 2)):
        chains = [cfg for cfg in settings_of(figure).values()]
        walks = [cfg for out, cfg in settings_of("cpu").items() if out.startswith(f"runs/{walk}")]
        steps = sorted((cfg["L"], round(100 * cfg["eps"], 9)) for cfg in chains)
        assert sorted((cfg["L"], round(cfg["eps"], 9)) for cfg in walks) == steps
        assert {cfg["samples"] for cfg in walks} == {samples}
    w = torch.randn(7, dtype=torch.float64)
    for L in (1, 2, 3, 5):
        z = torch.randn(2 * L + 1, 7, dtype=torch.float64)
        moves = [  # linear in the normals, the same whatever w, and in proportion to eps
            simsiam_sghmc.sghmc_step(start, z, lambda X: torch.zeros_like(X), eps=eps, L=L, alpha=0.01) - start
            for start, eps in ((w, 0.1), (0 * w, 0.001))
        ]
        assert torch.allclose(moves[0], 100 * moves[1], rtol=1e-9)


# ----------------------------------------------------------------------------------------------------------- running


def test_finished_runs_are_skipped_and_others_started_again(grid):
    code, out, err = grid("fig5", JOBS="6")
    assert (code, err) == (0, "") and len(grid.calls()) == 6 and out.startswith("fig5: 6 runs, 6 of them to do")
    code, out, err = grid("fig5", JOBS="6")
    assert (code, err) == (0, "") and grid.calls() == [] and out.startswith("fig5: 6 runs, 0 of them to do")
    log = grid.folder / "runs/fig5/no-sg_seed0/log.txt"
    log.write_text(log.read_text() + "$ somebody went on\n")
    assert grid("fig5", JOBS="6")[0] == 0 and grid.calls() == ["runs/fig5/no-sg_seed0"]
    assert grid("fig5 --updates 50000", JOBS="6")[0] == 0 and len(grid.calls()) == 6  # longer is not finished


def test_an_array_task_takes_one_line_and_draws_nothing(grid):
    assert grid.list("fig4", SLURM_ARRAY_TASK_ID="15") == grid.list("fig4")[15:]
    assert grid("fig4", SLURM_ARRAY_TASK_ID="3")[0] == 0
    assert grid.calls() == [out_of(listed("fig4")[3])] and grid.lines("drawn") == []


def test_pictures_are_drawn_of_all_runs_and_are_no_condition(grid):
    assert grid("pretrain", OUT="a b")[0] == 0 and grid.lines("drawn") == ["a b --out a b/figures"]
    assert grid("pretrain", OUT="a b", DRAWS="2")[0] == 0 and len(grid.lines("drawn")) == 2


def test_a_failing_run_stops_no_other_and_is_named_at_the_end(grid):
    code, out, err = grid("fig1", FAIL="eps1e-2", JOBS="3")
    assert code == 1 and len(grid.calls()) == 16
    assert err.splitlines() == [
        f"failed: runs/fig1/L{L}_eps1e-2_seed0: exit code 3, no such luck" for L in (1, 2, 3, 5)
    ]  # fmt: skip
    assert "exit code 3, no such luck runs/fig1/L1_eps1e-2_seed0" in out
    assert grid("fig1", JOBS="16")[0] == 0 and len(grid.calls()) == 4


def test_a_run_that_is_killed_is_named_too(grid):
    process = grid.start("fig2a --init start", SLOW="lr3e-2")
    grid.until(lambda: (grid.folder / "runs/fig2a/lr3e-2_seed0/checkpoint.pt").exists())
    (busy,) = (grid.folder / "busy").iterdir()
    os.kill(int(busy.name), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1 and err.startswith("failed: runs/fig2a/lr3e-2_seed0: exit code 137,")
    assert len(grid.calls()) == 2


def test_as_many_run_at_the_same_time_as_jobs_says_and_no_more(grid):
    assert grid("fig1", JOBS="3", MEET="3")[0] == 0  # the first three wait for one another
    assert max(map(int, grid.lines("together"))) <= 3
    (grid.folder / "together").unlink()
    assert grid("fig1", OUT="again")[0] == 0 and set(map(int, grid.lines("together"))) == {1}


def test_a_run_begins_after_the_one_that_it_starts_from(grid):
    """The stub ends with code 9 where its --init is not whole; the pretraining is the last to end of the first pass."""
    code, out, err = grid("cpu", SEEDS="0", JOBS="8", WAITS="cpu/pretrain", MEET="67")  # 14 of the 81 need a start
    assert (code, err) == (0, "") and len(grid.calls()) == 81


def test_nothing_starts_from_a_run_that_failed(grid):
    code, _, err = grid("cpu", SEEDS="0", JOBS="8", FAIL="cpu/pretrain")
    assert code == 1 and len(grid.calls()) == 81 - 14
    assert err.count("its start runs/cpu/pretrain/seed0/checkpoint.pt is not there or not finished") == 14


def test_figure_2_wants_a_finished_pretraining(grid):
    for target in ("fig2a", "fig2b"):
        want = f"run_grid: {target} starts from runs/pretrain/seed0/checkpoint.pt, which is not there or not finished"
        assert grid(target) == (2, "", f"{want}: bash run_grid.sh pretrain\n")
    half = grid.folder / "runs/pretrain/seed0"
    half.mkdir(parents=True)
    (half / "checkpoint.pt").write_text("whole")
    (half / "log.txt").write_text("step 3 of 77,600\n")
    assert grid("fig2a")[0] == 2 and grid.calls() == []
    assert grid("pretrain")[0] == 0 and grid("fig2a")[0] == 0
    assert len(grid.calls()) == 3


def test_jobs_share_the_cores_unless_the_threads_are_given(grid):
    log = grid.folder / "runs/fig2a/lr3e-2_seed0/log.txt"
    for environment, threads in (({}, ""), ({"JOBS": "64"}, "1"), ({"JOBS": "64", "OMP_NUM_THREADS": "5"}, "5")):
        assert grid("fig2a --init start", **environment)[0] == 0
        assert f"threads: {threads}\n" in log.read_text()
        log.unlink()


@pytest.mark.parametrize(
    "line, there, environment, want",
    [
        ("", "0 1 2", {}, ["0", "1"]),
        ("", "0 1 2", {"CUDA_VISIBLE_DEVICES": "5,7"}, ["5", "7"]),
        ("", "0", {}, ["0", "0"]),
        ("", "0 1 2", {"CUDA_VISIBLE_DEVICES": ""}, ["", ""]),  # the user hides them all
        ("--device cuda:1", "0 1 2", {}, ["", ""]),
        ("", "", {}, ["", ""]),
    ],
)
def test_jobs_share_the_gpus(grid, line, there, environment, want):
    grid.program("nvidia-smi", f"#!/bin/sh\nfor i in {there}; do echo $i; done\n")
    assert grid(f"fig2a --init start {line}", JOBS="2", MEET="2", **environment)[0] == 0
    assert sorted(grid.lines("gpus")) == want


@pytest.mark.parametrize(
    "number, whom, code",
    [(signal.SIGINT, os.killpg, 130), (signal.SIGINT, os.kill, 130), (signal.SIGTERM, os.kill, 143),
     (signal.SIGHUP, os.killpg, 129)],
)  # fmt: skip
def test_each_run_gets_one_signal_and_the_same_command_goes_on(grid, number, whom, code):
    """killpg is what a terminal does at Ctrl-C. The script waits for its runs, and a second signal changes nothing."""
    process = grid.start("fig5", JOBS="3", SLOW="/no-")
    slow = sorted(f"runs/fig5/{name}_seed0" for name in ("no-momentum", "no-warmup", "no-warmup-no-cosine"))
    grid.until(lambda: all((grid.folder / run / "checkpoint.pt").exists() for run in slow))
    for _ in range(2):
        whom(process.pid, number)
        grid.until(lambda: len(grid.lines("signals")) >= 3)
    (grid.folder / "release").touch()
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (code, "") and "the same command goes on from here" in out
    assert sorted(grid.lines("signals")) == slow == sorted(grid.lines("ended"))
    assert sorted(grid.calls()) == sorted(["runs/fig5/all-tricks_seed0", *slow])
    assert grid("fig5")[0] == 0
    assert sorted(grid.calls()) == sorted([*slow, "runs/fig5/no-sg_seed0", "runs/fig5/cosine-loss_seed0"])


def test_a_closed_pipe_stops_the_runs_as_a_signal_does(grid):
    process = grid.start("fig5", JOBS="2", SLOW="no-warmup_", WAITS="no-momentum", MEET="100")
    slow = grid.folder / "runs/fig5/no-warmup_seed0/checkpoint.pt"
    grid.until(lambda: slow.exists() and "runs/fig5/no-momentum_seed0" in grid.lines("calls"))
    process.stdout.close()  # as `| head` does; the script finds it at its next line
    process.stdout = None
    with open(grid.folder / "calls", "a") as file:
        file.write(100 * "that no-momentum ends\n")
    grid.until(lambda: grid.lines("signals"))
    (grid.folder / "release").touch()
    _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (141, "")
    assert grid.lines("signals") == grid.lines("ended") == ["runs/fig5/no-warmup_seed0"]


def test_the_script_may_change_while_its_runs_go_on(grid):
    text = (ROOT / "run_grid.sh").read_text()
    grid.program("copy.sh", text)
    process = grid.start("fig2a --init start", grid.folder / "copy.sh", WAITS="lr3e-2", MEET="100")
    grid.until(lambda: grid.lines("calls"))
    (grid.folder / "copy.sh").write_text("# what a pull may do\n" + text)
    with open(grid.folder / "calls", "a") as file:
        file.write(100 * "that it ends\n")
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (0, "") and out.count("finished ") == 2


def test_quick_says_three_verdicts_from_log_and_tables(grid):
    tables = grid.folder / "tables"
    tables.mkdir()
    ends = [0.61, 0.62, 0.93, 0.99, 0.71, 0.999, 0.5]
    for words, end in zip(listed("quick")[1:], ends, strict=True):
        row = f"{end},step,{'constant' if end > 0.98 else 'no'}"
        (tables / Path(out_of(words)).name).write_text(f"center,knn,collapsed\n0.6,0.4,no\n{row}\n")
    log = grid.folder / "runs/quick/log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("$ python divergence.py\nposterior: of a run that was interrupted\nexit code 143, stopped\n")
    code, out, err = grid("quick")
    assert (code, err) == (0, "") and out.count("posterior") == 1
    assert out.splitlines()[-3:] == [
        "chains: verdict",
        "posterior: verdict",
        "scale: centre ratio (collapsed?) without energy 0.610 (no), at scale 1 0.620 (no), at 512 0.930 (no), "
        "at 5e4 0.990 (constant), with stop-gradient 0.710 (no); "
        "SGD without stop-gradient 0.999 (constant), with it 0.500 (no)",
    ]
    assert grid.calls()[0] == "runs/quick"


# --------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_line_and_exit_code_2(grid):
    for line, environment, word in (
        ("fig7", {}, "no target 'fig7'"),
        ("", {"JOBS": "0"}, "JOBS"),
        ("", {"SEEDS": "1,2"}, "SEEDS"),
        ("", {"SEEDS": "0 1 0"}, "SEEDS='0 1 0': a seed twice"),
        ("", {"OUT": "start"}, "OUT='start'"),
        ("", {"OUT": "start/below"}, "OUT='start/below'"),
        ("--out here", {}, "OUT="),
        ("--seed 3", {}, "SEEDS="),
        ("", {"SLURM_ARRAY_TASK_ID": "16"}, "lines 0 to 15"),
        ("", {"SLURM_ARRAY_TASK_ID": "x"}, "lines 0 to 15"),
        ("", {"PYTHON": "no-such-python"}, "PYTHON="),
    ):
        code, out, err = grid(line, **environment)
        assert (code, out) == (2, "") and err.startswith("run_grid: ") and err.count("\n") == 1 and word in err
    assert not (grid.folder / "runs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(grid):
    (grid.folder / "locked").mkdir(mode=0o555)
    for out in ("locked", "locked/below"):
        code, text, err = grid("fig1", OUT=out)
        assert (code, text) == (2, "") and err.startswith(f"run_grid: OUT='{out}'") and err.count("\n") == 1


LONG = pytest.mark.long


@pytest.mark.parametrize("fault, words", [
    pytest.param(lambda root: shutil.rmtree(root / "train"), "--data: there is no folder images/train ", marks=LONG),
    pytest.param(lambda root: (root / "test/bee/1.png").write_text("no"),
                 "--data: cannot use the image images/test/bee/1.png", marks=LONG),
    pytest.param(lambda root: shutil.rmtree(root / "train/bee"), "--data images: train/ and test/ need images of ",
                 marks=LONG),
    (lambda root: None, "--batch-size 512: there are only 24 images"),
])  # fmt: skip
def test_what_is_wrong_with_the_images_is_said_once_before_anything_runs(grid, pictures, fault, words):
    shutil.copytree(pictures, grid.folder / "images")
    fault(grid.folder / "images")
    code, out, err = grid("fig1 --data images", PYTHON=sys.executable, JOBS="4")
    assert (code, out) == (2, "images: images\n")
    assert err.startswith(f"run_grid: {words}") and err.count("\n") == 1
    assert not (grid.folder / "runs").exists()


@pytest.mark.long
def test_cifar_10_that_cannot_be_downloaded_is_named_once_before_anything_runs(grid):
    (grid.folder / "data").write_text("no folder")
    code, out, err = grid("fig1", PYTHON=sys.executable, JOBS="4")
    assert (code, out) == (2, "images: cifar10\n") and err.count("\n") == 1
    assert err.startswith("run_grid: cannot get CIFAR-10 into data/")
    assert not (grid.folder / "runs").exists()


@pytest.mark.long
@pytest.mark.parametrize("line, words", [
    ("fig1 --sampels 3", "unrecognized arguments: --sampels 3"),
    ("fig1 --lr 3", "--lr is a setting of SGD"),
    ("fig1 --list --samples x", "--samples"),
])  # fmt: skip
def test_a_bad_flag_is_refused_in_the_words_of_the_program_itself(grid, line, words):
    code, out, err = grid(line, PYTHON=sys.executable)
    assert (code, out) == (2, "") and err.startswith("run_grid: ") and words in err and err.count("\n") == 1
    assert not (grid.folder / "runs").exists()


@pytest.mark.long
def test_a_python_without_torch_is_one_line(grid):
    (grid.folder / "hides").mkdir()
    (grid.folder / "hides" / "torch.py").write_text("raise ImportError(\"No module named 'torch'\")")
    code, out, err = grid("", PYTHON=sys.executable, PYTHONPATH="hides")
    assert (code, out, err) == (2, "", "run_grid: No module named 'torch'\n")


def test_ctrl_c_while_settings_and_images_are_checked_ends_without_a_traceback(grid):
    (grid.folder / "hides").mkdir()
    (grid.folder / "hides" / "torch.py").write_text(f"import time\nopen('here', 'w')\ntime.sleep({2 * LIMIT})")
    process = grid.start(PYTHON=sys.executable, PYTHONPATH="hides")
    grid.until(lambda: (grid.folder / "here").exists())
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "") and not (grid.folder / "runs").exists()


@pytest.mark.long
def test_a_missing_image_folder_may_be_listed(grid):
    assert len(grid.list("fig1 --data elsewhere", PYTHON=sys.executable)) == 16


@pytest.mark.long
def test_the_program_itself_runs_through_the_grid_and_saves_at_a_signal(grid, pictures):
    line = f"fig5 --data '{pictures}' --batch-size 4 --knn-k 3 --epochs 1000000 --eval-every 1000000"
    task = {"SLURM_ARRAY_TASK_ID": "4", "PYTHON": sys.executable, "OUT": "a b", "OMP_NUM_THREADS": "1"}
    process = grid.start(f"{line} --updates 1000000", **task)
    log = grid.folder / "a b/fig5/no-sg_seed0/log.txt"
    grid.until(lambda: log.exists() and "per step" in log.read_text())
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and "saved at step" in log.read_text().splitlines()[-1]
    saved = torch.load(log.parent / "checkpoint.pt", weights_only=True)["step"]
    code, out, err = grid(f"{line} --updates {saved + 2}", **task)
    assert (code, err) == (0, "") and "finished a b/fig5/no-sg_seed0" in out
    assert torch.load(log.parent / "checkpoint.pt", weights_only=True)["step"] == saved + 2
