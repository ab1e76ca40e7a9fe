"""run_grid.sh lists the paper's experiments and runs what is left of them. A stub stands in for the program."""

import collections
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import simsiam_sghmc

ROOT = Path(__file__).parents[1]
STUB = """#!{python} -S
import os, signal, sys, time
a = sys.argv[1:]
if a[0] == "-c":
    sys.exit("matplotlib" in a[1])
out = a[a.index("--out") + 1]
signal.signal(signal.SIGTERM, lambda *_: (open("saved", "a").write(out + "\\n"), sys.exit(143)))
os.makedirs(out, exist_ok=True)
print("threads:", os.environ.get("OMP_NUM_THREADS"))
print("step 3 of 10, 0.5 s per step, 4 s left", flush=True)
with open("calls", "a") as file:
    file.write(f"{{time.time()}} {{out}}\\n")
if os.environ.get("SLOW", "--") in out:
    open(out + "/checkpoint.pt", "w").write("half")
    time.sleep(60)
time.sleep(float(os.environ.get("NAP", "0")))
if os.environ.get("FAIL", "--") in out:
    print("stub: no such luck", file=sys.stderr)
    sys.exit(3)
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
        names = ("OUT", "SEEDS", "JOBS", "SLURM_ARRAY_TASK_ID", "OMP_NUM_THREADS")
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
LINES |= {"note": 12, "cpu": 125, "long": 2, "all": 99}


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


def test_controls_change_one_factor_at_a_time_on_three_seeds(grid):
    configs = grid.configs("controls")
    star = [
        (0, 1e-3, None, False, "kick"),
        (1, 1e-3, None, False, "kick"),
        (1e3, 1e-3, None, False, "kick"),
        (5e4, 1e-3, None, False, "kick"),
        (5e4, 4.47213595e-6, None, False, "kick"),  # 1e-3 / sqrt(5e4)
        (5e4, 1e-3, 0.1, False, "kick"),
        (5e4, 1e-3, None, True, "kick"),
        (1, 1e-3, None, False, "sample"),
    ]
    names = "energy_scale eps prior_std sg batch_per seed".split()
    assert settings(configs, *names) == {(*point, seed) for point in star for seed in (0, 1, 2)}
    assert {(cfg.L, cfg.method, cfg.alpha, cfg.mass) for cfg in configs} == {(3, "sghmc", 0.01, 1)}
    assert abs(4.47213595e-6 * 5e4**0.5 - 1e-3) < 1e-11


def test_the_note_varies_similarity_stop_gradient_and_predictor_steps(grid):
    varied = {(s, sg, k) for s in ("abscos", "cos", "l2") for sg in (True, False) for k in (1, 5)}
    configs = grid.configs("note")
    assert settings(configs, "similarity", "sg", "predictor_steps") == varied
    assert {(cfg.method, cfg.batch_size, cfg.precision) for cfg in configs} == {("sgd", 64, "bf16")}


def test_cpu_covers_every_figure_at_one_small_scale(grid):
    configs = grid.configs("cpu")
    counts = collections.Counter(Path(cfg.out).parent.name for cfg in configs)
    assert counts.pop("walk") == 22 and counts.pop("running-bn") == 2 and counts.pop("pretrain") == 1
    assert counts == {"fig1": 24, "null": 12, "fig2a": 6, "fig2b": 6, "fig4": 16, "fig5": 12, "controls": 24}
    short = [cfg for cfg in configs if "pretrain" not in cfg.out]
    scale = {(cfg.batch_size, cfg.precision, cfg.knn_train, cfg.knn_test) for cfg in short}
    assert scale == {(64, "bf16", 3000, 1500)}
    made = [cfg.out for cfg in configs]
    for place, cfg in enumerate(configs):
        assert not cfg.init or made.index(cfg.init.removesuffix("/checkpoint.pt")) < place
    assert settings(grid.configs("cpu", SEEDS="7"), "out") and {c.seed for c in grid.configs("cpu", SEEDS="7")} == {7}


def test_the_long_chains_are_one_of_figure_1_and_its_walk_on_the_same_noise(grid):
    configs = grid.configs("long")
    (chosen,) = (cfg for cfg in grid.configs("fig1") if (cfg.L, cfg.eps) == (1, 0.1))
    for cfg, scale in zip(configs, (1, 0), strict=True):
        names = [f.name for f in dataclasses.fields(cfg) if f.metadata["group"] in ("method", "SGHMC")]
        different = [name for name in names if getattr(cfg, name) != getattr(chosen, name)]
        assert different == ([] if scale else ["energy_scale"]) and cfg.energy_scale == scale
    assert len({(cfg.seed, cfg.batch_size, cfg.precision) for cfg in configs}) == 1


def test_one_sample_of_the_walk_has_the_law_of_ten_thousand(grid):
    """Samples without energy are independent: 10,000 at eps add up to N(0, 10,000 V), the law of one at 100 eps."""
    walks = [cfg for cfg in grid.configs("cpu") if "/walk/" in cfg.out and not cfg.init]
    figure_1 = {(cfg.L, round(100 * cfg.eps, 9), cfg.samples // 10_000) for cfg in grid.configs("fig1")}
    assert settings(walks, "L", "eps", "samples") == figure_1
    pretrained = [cfg for cfg in grid.configs("cpu") if "/walk/" in cfg.out and cfg.init]
    figure_2b = {(cfg.L, round(100 * cfg.eps, 9), 2) for cfg in grid.configs("fig2b")}  # its 15,000 lie between
    assert settings(pretrained, "L", "eps", "samples") == figure_2b
    walks += pretrained
    assert {(cfg.energy_scale, cfg.prior_std, cfg.alpha, cfg.sg) for cfg in walks} == {(0, None, 0.01, False)}
    w, z = torch.randn(7, dtype=torch.float64), torch.randn(10, 7, dtype=torch.float64)
    for L in (1, 2, 3, 5):
        moves = [  # linear in the normals, the same whatever w, and in proportion to eps
            simsiam_sghmc.sghmc_step(start, z, lambda X: 0.0, eps=eps, L=L, alpha=0.01) - start
            for start, eps in ((w, 0.1), (0 * w, 0.001))
        ]
        assert torch.allclose(moves[0], 100 * moves[1], rtol=1e-9)


def test_all_is_every_target_but_cpu_with_starts_before_what_needs_them(grid):
    lines = [words[-1] for words in grid.list("all")]
    parts = [target for target in LINES if target not in ("cpu", "long", "all")]
    assert sorted(lines) == sorted(words[-1] for target in parts for words in grid.list(target))
    assert lines[0] == "runs/pretrain/seed0"


def test_seeds_and_out_name_the_folders(grid):
    lines = grid.list("fig5", SEEDS="4 11", OUT="a b/c")
    assert [words[-3:] for words in lines[:2]] == [[s, "--out", f"a b/c/fig5/all-tricks_seed{s}"] for s in ("4", "11")]
    assert len(lines) == 12


def test_flags_win_over_those_of_the_target(grid):
    configs = grid.configs("fig1 --samples 7 --data 'my pictures' --batch-size=8")
    assert {(cfg.samples, cfg.data, cfg.batch_size) for cfg in configs} == {(7, "my pictures", 8)}
    assert [words[-1] for words in grid.list("--samples 7")] == ["7"] * 16  # the default target


def test_an_array_task_takes_one_line(grid):
    assert grid.list("fig4", SLURM_ARRAY_TASK_ID="15") == grid.list("fig4")[15:]
    code, out, err = grid("fig4", SLURM_ARRAY_TASK_ID="3")
    assert code == 0 and grid.calls() == [grid.list("fig4")[3][-1]]
    assert "tools/figures.py runs --out runs/figures" in out


@pytest.mark.parametrize(
    "flags, cost, time",
    [
        ("", "450,000 gradients, 90,000 samples", "6.2 hours"),  # 450,000 x 0.1 s / 2 jobs
        ("--samples 100", "3,000 gradients, 600 samples", "2.5 minutes"),
    ],
)
def test_the_cost_is_said_first_and_the_time_after_the_first_gradients(grid, flags, cost, time):
    code, out, err = grid(f"fig2b --init start.pt {flags}", JOBS="2", NAP="0.5")
    assert (code, err) == (2, "run_grid: fig2b needs start.pt of a finished: bash run_grid.sh pretrain\n")
    (grid.folder / "start.pt").write_text("x")
    code, out, err = grid(f"fig2b --init start.pt {flags}", JOBS="2", NAP="0.25")
    first, second, *_ = out.splitlines()
    assert first.startswith(f"fig2b: 6 runs, 0 of them finished; to do: {cost} or updates")
    assert second == f"0.1 s per gradient: about {time} for all, evaluations apart"


@pytest.mark.parametrize(
    "line, gradients",
    [
        ("", "3,600,000"),  # 4 eps x 50,000 samples x (1 + 3 + 5 + 9)
        ("fig1 --batch-per sample --samples 10", "440"),  # 4 x 10 x (1 + 2 + 3 + 5)
        ("null", "0"),
        ("pretrain", "77,600"),  # 800 epochs of 97 updates
        ("pretrain --batch-size 64 --epochs 2", "1,562"),
        ("fig5", "232,800"),
    ],
)
def test_gradients_are_counted_as_the_program_counts_them(grid, line, gradients):
    assert f"to do: {gradients} gradients" in grid(line, JOBS="16")[1].splitlines()[0]


def test_finished_runs_are_skipped_and_others_started_again(grid):
    assert grid("fig5", JOBS="6")[0] == 0
    assert len(grid.calls()) == 6
    code, out, _ = grid("fig5", JOBS="6")
    assert code == 0 and grid.calls() == [] and out.startswith("fig5: 6 runs, 6 of them finished; to do: 0 gradients")
    (grid.folder / "runs/fig5/no-sg_seed0/checkpoint.pt").unlink()  # the result is gone, whatever the log says
    assert grid("fig5", JOBS="6")[0] == 0 and grid.calls() == ["runs/fig5/no-sg_seed0"]
    assert grid("fig5 --updates 50000", JOBS="6")[0] == 0 and len(grid.calls()) == 6  # longer is not finished


def test_jobs_share_the_cores_unless_the_threads_are_given(grid):
    log = grid.folder / "runs/fig2a/lr3e-2_seed0.log"
    for environment, threads in (({}, "None"), ({"JOBS": "64"}, "1"), ({"JOBS": "64", "OMP_NUM_THREADS": "5"}, "5")):
        assert grid("fig2a --init stub", **environment)[0] == 0
        assert f"threads: {threads}\n" in log.read_text()
        log.unlink()


def test_a_failing_run_stops_no_other_and_is_named_at_the_end(grid):
    code, out, err = grid("fig1", FAIL="eps1e-2", JOBS="8")  # some are yet to start when the first ones fail
    assert code == 1 and len(grid.calls()) == 16
    assert err.splitlines()[0] == "failed: runs/fig1/L1_eps1e-2_seed0: exit code 3, stub: no such luck"
    assert "4 of 16 failed" in err.splitlines()[-1] and len(err.splitlines()) == 5
    assert "stub: no such luck" in (grid.folder / "runs/fig1/L1_eps1e-2_seed0.log").read_text()
    assert grid("fig1", JOBS="16")[0] == 0 and len(grid.calls()) == 4


@pytest.mark.long
def test_two_jobs_run_at_the_same_time(grid):
    began = time.monotonic()
    assert grid("fig2a --init stub", JOBS="1", NAP="0.6")[0] == 0
    alone = time.monotonic() - began
    began = time.monotonic()
    assert grid("fig2a --init stub", JOBS="2", NAP="0.6", OUT="again")[0] == 0
    assert alone > 1.2 and time.monotonic() - began < alone - 0.3


@pytest.mark.long
def test_a_run_waits_for_the_start_it_needs(grid):
    code, out, _ = grid("cpu", SEEDS="0", JOBS="60", NAP="0.1")
    done = [line.split()[1] for line in out.splitlines() if line.startswith("done")]
    start = "runs/cpu/pretrain/seed0"
    assert code == 0 and len(done) == 81
    assert all(done.index(start) < done.index(path) for path in done if "fig2" in path or "pretrained" in path)
    code, _, err = grid("cpu", SEEDS="0", JOBS="60", OUT="other", FAIL="pretrain")
    assert code == 1 and err.count("its start other/cpu/pretrain/seed0/checkpoint.pt is not there") == 14


def test_figure_2_wants_a_finished_pretraining(grid):
    for target in ("fig2a", "fig2b"):
        code, out, err = grid(target)
        want = f"run_grid: {target} needs runs/pretrain/seed0/checkpoint.pt of a finished: bash run_grid.sh pretrain\n"
        assert (code, out, err) == (2, "", want)
    half = grid.folder / "runs/pretrain/seed0"
    half.mkdir(parents=True)
    (half / "checkpoint.pt").write_text("half")
    (half.parent / "seed0.log").write_text("step 3 of 77,600\n")
    assert grid("fig2a")[0] == 2
    assert grid("pretrain")[0] == 0 and grid("fig2a")[0] == 0


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_runs_once_and_the_same_command_goes_on(grid, number, code):
    process = grid.start("fig5", JOBS="3", SLOW="no-")
    until = time.monotonic() + 20
    while len(list(grid.folder.glob("runs/fig5/no-*/checkpoint.pt"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code and err == "" and out.count("stopped runs/fig5/no-") == 3
    assert len((grid.folder / "saved").read_text().splitlines()) == 3
    begun = grid.calls()
    assert grid("fig5", JOBS="6")[0] == 0
    assert sorted(begun + grid.calls()) == sorted([words[-1] for words in grid.list("fig5")] + [
        path for path in begun if "no-" in path])  # fmt: skip


def test_bad_input_is_one_line_and_exit_code_2(grid):
    (grid.folder / "hides").mkdir()
    (grid.folder / "hides" / "torch.py").write_text("raise ImportError(name='torch')")
    for line, environment, word in (
        ("fig7", {}, "no target 'fig7'"),
        ("", {"JOBS": "0"}, "JOBS"),
        ("", {"SEEDS": "1,2"}, "SEEDS"),
        ("--out here", {}, "OUT="),
        ("--seed 3", {}, "SEEDS="),
        ("", {"SLURM_ARRAY_TASK_ID": "16"}, "lines 0 to 15"),
        ("", {"PYTHON": "no-such-python"}, "PYTHON="),
        ("", {"PYTHON": sys.executable, "PYTHONPATH": "hides"}, "has no torch"),
    ):
        code, out, err = grid(line, **environment)
        assert (code, out) == (2, "") and err.startswith("run_grid: ") and err.count("\n") == 1 and word in err
    assert not (grid.folder / "runs").exists()


@pytest.mark.long
def test_a_bad_flag_is_refused_in_the_words_of_the_program_itself(grid):
    code, out, err = grid("fig1 --sampels 3", PYTHON=sys.executable)
    assert (code, out) == (2, "") and err.startswith("run_grid: unrecognized arguments: --sampels 3;")
    assert err.count("\n") == 1
    assert not (grid.folder / "runs").exists()


@pytest.mark.long
def test_a_missing_image_folder_is_named_before_anything_runs_but_may_be_listed(grid, pictures):
    code, out, err = grid("fig1 --data elsewhere", PYTHON=sys.executable)
    assert (code, out) == (2, "") and err == "run_grid: --data elsewhere: no folder elsewhere/train here\n"
    assert not (grid.folder / "runs").exists()
    assert len(grid.list("fig1 --data elsewhere", PYTHON=sys.executable)) == 16


@pytest.mark.long
def test_the_program_itself_runs_through_the_grid(grid, pictures):
    line = f"fig5 --data '{pictures}' --batch-size 4 --knn-k 3 --updates 2 --eval-every 1"
    code, out, err = grid(line, SLURM_ARRAY_TASK_ID="4", PYTHON=sys.executable, OUT="a b")
    assert (code, err) == (0, "") and "done    a b/fig5/no-sg_seed0" in out
    assert (grid.folder / "a b/fig5/no-sg_seed0/metrics.csv").read_text().count("\n") == 4
    assert (grid.folder / "a b/fig5/no-sg_seed0.log").read_text().splitlines()[-1].startswith("finished: ")
