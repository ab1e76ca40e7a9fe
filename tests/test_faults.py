"""What goes wrong on shared machines: kills, signals, damage, full disks, two processes, divergence, bad input."""

import contextlib
import errno
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch
from conftest import LINE
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chain import assert_same_run, read

import simsiam_sghmc as s


def one_line(err, *words):
    """stderr holds one line that contains the words, and no traceback."""
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("simsiam_sghmc: "), err
    assert all(word in lines[0] for word in words), (words, lines[0])


def contents(folder):
    """Every file with its bytes, every folder."""
    return {p: p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


# ------------------------------------------------------------------------------------------------- a damaged run folder


def test_a_torn_last_line_is_mended_and_the_run_goes_on(run, begun, chains):
    for name in ("metrics.csv", "energy.csv"):
        with open(begun / name, "a") as file:
            file.write("3,9,1.")
    assert run(f"{LINE} 4")[0] == 0
    assert_same_run(chains[4], begun)


DAMAGE = {
    "cut": lambda row: row[: row.rindex(",")],
    "no step": lambda row: "x" + row[1:],
    "out of order": lambda row: "2" + row[1:],
    "twice": lambda row: row + "\n" + row,
    "a cell more": lambda row: row + ",1",
    "a foreign character": lambda row: row[:-1] + "\0",
    "empty": lambda row: "",
}


@pytest.mark.parametrize("name", ["metrics.csv", "energy.csv"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_before_the_last_line_is_named_and_nothing_is_overwritten(run, begun, name, damage):
    head, row, last = (begun / name).read_text().splitlines()
    (begun / name).write_text("\n".join([head, DAMAGE[damage](row), last, ""]))
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2 and contents(begun) == before
    one_line(err, f"{name} is damaged in line {3 if damage in ('twice', 'out of order') else 2}", "put the file back")


def test_a_table_with_another_header_is_named_and_not_overwritten(run, begun):
    for name in ("metrics.csv", "energy.csv"):
        good = (begun / name).read_text()
        (begun / name).write_text(good.replace("step", "sample", 1))
        before = contents(begun)
        code, _, err, _ = run(f"{LINE} 4")
        assert code == 2 and contents(begun) == before
        one_line(err, f"{name} is damaged in line 1")
        (begun / name).write_text(good)


@pytest.mark.parametrize("lost", ["the last line break", "a row"])
def test_no_saved_row_of_metrics_is_lost_in_silence(run, begun, lost):
    table = begun / "metrics.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines)[:-1] if lost == "the last line break" else lines[0] + lines[2])
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2 and contents(begun) == before
    one_line(err, "metrics.csv")


@pytest.mark.parametrize("name", ["metrics.csv", "energy.csv"])
def test_a_lost_table_is_not_silently_begun_anew(run, begun, name):
    (begun / name).unlink()
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2 and contents(begun) == before
    one_line(err, name, "lacks")


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil-was-here",))


def bad_checkpoints():
    good = torch.zeros(5)
    return {
        "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("not a checkpoint"),
        "pickle": lambda path: path.write_bytes(pickle.dumps(Evil())),
        "torch pickle": lambda path: torch.save({"weights": Evil()}, path),
        "other network": lambda path: torch.save({"weights": good, "buffers": {}, "step": 1}, path),
        "other keys": lambda path: torch.save({"state_dict": good}, path),
        "another chain": lambda path: torch.save(torch.load(path, weights_only=True) | {"identity": {}}, path),
        "a list": lambda path: torch.save([good], path),
        "other types": lambda path: torch.save({"weights": 3, "buffers": 4, "step": 1}, path),
    }


@pytest.mark.parametrize("kind", list(bad_checkpoints()))
def test_an_unusable_checkpoint_is_named_executes_nothing_and_stays(run, begun, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad_checkpoints()[kind](begun / "checkpoint.pt")
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2 and contents(begun) == before
    one_line(err, "checkpoint.pt")
    if kind != "another chain":  # which --init may be
        code, _, err, _ = run(f"{LINE} 4 --init {begun}/checkpoint.pt", "other")
        assert code == 2 and not (tmp_path / "other").exists()
        one_line(err, "checkpoint.pt")
    assert not (tmp_path / "evil-was-here").exists()


def test_a_foreign_pickle_is_one_line_without_a_warning_beside_it(run, begun):
    bad_checkpoints()["pickle"](begun / "checkpoint.pt")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        assert run(f"{LINE} 4")[0] == 2
    assert not [w for w in warned if w.category is UserWarning]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_init_that_is_not_finite_is_refused(run, begun, tmp_path, value):
    saved = torch.load(begun / "checkpoint.pt", weights_only=True)
    saved["weights"][7] = value
    torch.save(saved, tmp_path / "bad.pt")
    code, _, err, folder = run(f"{LINE} 2 --init {tmp_path}/bad.pt", "other")
    assert code == 2 and not folder.exists()
    one_line(err, "bad.pt", "not finite")


def test_the_config_of_another_version_and_another_chain_is_named_as_of_another_version(run, begun):
    path = begun / "config.json"
    path.write_text(json.dumps({"version": 0, "identity": {}}))
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2
    one_line(err, f"{path} is of version 0", "choose another --out")


@pytest.mark.parametrize("change", ["version", "text", "list", "nothing left"])
def test_a_config_that_cannot_be_compared_is_named_and_kept(run, begun, change):
    path = begun / "config.json"
    config = json.loads(path.read_text())
    changed = {"version": json.dumps(config | {"version": 99}), "text": "{", "list": "[]", "nothing left": "{}"}
    path.write_text(changed[change])
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2 and contents(begun) == before
    one_line(err, "config.json")


def test_results_without_a_config_are_not_overwritten(run, begun):
    (begun / "config.json").unlink()
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 2")
    assert code == 2 and contents(begun) == before
    one_line(err, "no config.json")


@pytest.mark.parametrize(
    "other, key",
    [("--eps 0.02", "eps"), ("--seed 1", "seed"), ("--sg", "sg"), ("--batch-size 5", "batch_size"), ("--L 1", "L"),
     ("--alpha 0.1", "alpha"), ("--mass 2", "mass"), ("--precision bf16", "precision"),
     ("--similarity cos", "similarity"),
     ("--prior-std 1", "prior_std"), ("--method sgd", "method"), ("--velocity-std 0.5", "velocity_std")],
)  # fmt: skip
def test_another_chain_in_the_same_folder_is_refused_and_the_setting_named(run, begun, other, key):
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 2 {other}")
    assert code == 2 and contents(begun) == before
    one_line(err, key, "another chain")


def test_length_evaluation_and_paths_are_not_part_of_a_chain(run, begun):
    other = "--eval-every 1 --knn-k 2 --checkpoint-every 1 --bn running --knn-features trunk"
    code, _, _, folder = run(f"{LINE} 3 {other}")
    assert code == 0 and [r["step"] for r in read(folder / "metrics.csv")] == ["0", "2", "3"]


# --------------------------------------------------------------------------------------------------- kills and signals


class Killed(BaseException):
    """Ends a run in this process where kill -9 would end it."""


def kill_at_write(monkeypatch, number, torn):
    """The run ends in its n-th write: of that file the last bytes are missing, nothing is renamed, nothing tidied."""
    real, left = os.fsync, [number]

    def fsync(descriptor):
        real(descriptor)
        left[0] -= 1
        if left[0] == 0:
            os.ftruncate(descriptor, max(os.fstat(descriptor).st_size - torn, 0))
            monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)
            raise Killed

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_run_that_dies_in_any_write_goes_on_to_the_same_end(run, begun, chains, monkeypatch):
    for number in itertools.count(1):  # both tables on opening, a row, energies, checkpoint
        kill_at_write(monkeypatch, number, 5 * (number % 2))
        try:
            assert run(f"{LINE} 4")[0] == 0
            break
        except Killed:
            monkeypatch.undo()
    assert number == 6
    assert_same_run(chains[4], begun)


@pytest.mark.long
def test_a_kill_loses_no_kept_sample(run, begun, chains, monkeypatch):
    kill_at_write(monkeypatch, 6, 0)  # the last one: two tables, a row, then sample, energies, checkpoint in some order
    with contextlib.suppress(Killed):
        run(f"{LINE} 4 --keep-every 2")
    monkeypatch.undo()
    assert run(f"{LINE} 4 --keep-every 2")[0] == 0
    assert_same_run(chains[4], begun)
    kept = torch.load(begun / "samples/4.pt", weights_only=True)["weights"]
    assert torch.equal(kept, torch.load(begun / "checkpoint.pt", weights_only=True)["weights"])


def start_arguments(pictures, out, line):
    argv = f"--batch-size 4 --knn-k 3 --L 2 --eval-every 3 --checkpoint-every 2 --data {pictures} --out {out} {line}"
    return argv.split()


def start(pictures, out, line):
    command = [sys.executable, s.__file__, *start_arguments(pictures, out, line)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(pictures, folder, line):
    process = start(pictures, folder, line)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")


def wait_for_rows(path, count, process):
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") <= count):
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits_with_128_and_its_number(run, begun, chains, monkeypatch, number):
    sample = s.sghmc_sample
    monkeypatch.setattr(s, "sghmc_sample", lambda chain: (signal.raise_signal(number), sample(chain))[1])
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 128 + number
    one_line(err, "saved at step 3", "same command")
    assert torch.load(begun / "checkpoint.pt", weights_only=True)["step"] == 3
    monkeypatch.undo()
    assert run(f"{LINE} 4")[0] == 0
    assert_same_run(chains[4], begun)


def test_a_second_signal_ends_at_once(monkeypatch):
    left = []
    monkeypatch.setattr(s.os, "_exit", left.append)
    with s.caught_signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT] and left == []
        signal.raise_signal(signal.SIGINT)
    assert left == [130]


def test_a_signal_before_the_first_step_leaves_a_folder_that_the_same_command_can_use(run, chains, monkeypatch):
    load = s.load_data
    monkeypatch.setattr(s, "load_data", lambda *a: (signal.raise_signal(signal.SIGINT), load(*a))[1])
    code, _, err, folder = run(f"{LINE} 2")
    assert code == 130
    one_line(err, "same command")
    monkeypatch.undo()
    assert run(f"{LINE} 2")[0] == 0
    assert_same_run(chains[2], folder)


KINDS = {
    "sghmc": "--no-sg --eps 0.01",
    "sghmc in bf16 from a checkpoint": "--init {init} --precision bf16 --no-sg --eps 0.01",
    "sgd": "--method sgd",
    "sgd in bf16 from a checkpoint": "--init {init} --method sgd --precision bf16",
}


def of_kind(kind, chains):
    return KINDS[kind].format(init=chains[2] / "checkpoint.pt")


def length(number):
    return f" --samples {number} --updates {number}"


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_kills_at_random_moments_change_nothing(pictures, tmp_path, chains, kind):
    line, rng, table = of_kind(kind, chains), random.Random(0), tmp_path / "parts/energy.csv"
    for _ in range(20):
        rows = table.read_text().count("\n") if table.exists() else 0
        process = start(pictures, tmp_path / "parts", line + length(100_000))
        process.stdout.readline()  # the opening: before it there is little to disturb
        wait_for_rows(table, rows + rng.randrange(-1, 3), process)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -9
    step = torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"]
    assert step >= 2
    whole = line + length(step + 6 - step % 6)  # so that all of --eval-every fall into it
    finish(pictures, tmp_path / "parts", whole)
    finish(pictures, tmp_path / "whole", whole)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


KILLED_WHILE_WRITING = """
import os, signal, sys
import simsiam_sghmc
left, torn = [int(sys.argv[1])], int(sys.argv[2])
def fatal(real):
    def call(*arguments):
        real(*arguments)
        left[0] -= 1
        if left[0] == 0:
            if real is fsync:
                os.ftruncate(arguments[0], max(os.fstat(arguments[0]).st_size - torn, 0))
            os.kill(os.getpid(), signal.SIGKILL)
    return call
fsync = os.fsync
os.fsync, os.replace = fatal(os.fsync), fatal(os.replace)
sys.exit(simsiam_sghmc.main(sys.argv[3:]))
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_in_the_middle_of_each_kind_of_write_and_after_each_renaming_changes_nothing(
    pictures, tmp_path, chains, kind
):
    line = of_kind(kind, chains)
    argv = start_arguments(pictures, tmp_path / "parts", line + length(100_000))
    for write in range(1, 21):  # config, tables on opening, row 0, energies, checkpoint, ... of a run that goes on
        command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(write), str(5 * (write % 3)), *argv]
        assert subprocess.run(command, capture_output=True, cwd=Path(s.__file__).parent).returncode == -9
    step = torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"]
    whole = line + length(step + 6 - step % 6)
    finish(pictures, tmp_path / "parts", whole)
    finish(pictures, tmp_path / "whole", whole)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.long
def test_signals_to_a_real_process_save_and_a_second_one_ends_at_once(pictures, tmp_path, chains):
    line = KINDS["sghmc"]
    for first, *second in ([signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 2, [signal.SIGTERM, signal.SIGINT]):
        slow = " --L 2000" if second else ""  # another chain: its first step outlasts the test
        out = tmp_path / ("slow" if second else "parts")
        process = start(pictures, out, line + length(100_000) + slow)
        process.stdout.readline()  # the opening: from now on signals are caught
        wait_for_rows(out / "metrics.csv", 1, process)
        time.sleep(0.5)
        process.send_signal(first)
        if second:
            while "stopping" not in process.stdout.readline():
                pass
            process.send_signal(*second)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + (second or [first])[0]
        step = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
        if second:
            assert (step, err) == (0, "")
        else:
            one_line(err, f"saved at step {step}")
    whole = line + length(step := torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"] // 6 * 6 + 6)
    finish(pictures, tmp_path / "parts", whole)
    finish(pictures, tmp_path / "whole", whole)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_second_process_on_the_same_folder_is_refused(run, begun):
    script = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); "
    script += "print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script, str(begun / ".lock")], stdout=subprocess.PIPE)
    other.stdout.readline()
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 4")
    other.kill()
    other.wait()
    assert code == 2 and contents(begun) == before
    one_line(err, "in use by another process")


def test_a_run_keeps_its_folder_from_others_until_it_ends(run, begun, chains, monkeypatch):
    sample, codes = s.sghmc_sample, []
    monkeypatch.setattr(s, "sghmc_sample", lambda chain: (codes.append(run(f"{LINE} 4")[0]), sample(chain))[1])
    assert run(f"{LINE} 4")[0] == 0 and codes == [2, 2]
    assert_same_run(chains[4], begun)


# -------------------------------------------------------------------------------------------- full disks and divergence


def full_disk_after(monkeypatch, writes, name):
    """The n-th fsync of a file of this name fails as a full disk does."""
    real, left = os.fsync, [writes]

    def fsync(descriptor):
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("name, writes", [("checkpoint.pt", 0), pytest.param("energy.csv", 1, marks=pytest.mark.long)])
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(run, begun, chains, monkeypatch, name, writes):
    full_disk_after(monkeypatch, writes, name)  # the tables are also written, cut back, on opening
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 3
    one_line(err, "No space left", "same command")
    assert torch.load(begun / "checkpoint.pt", weights_only=True)["step"] == 2
    assert not list(begun.glob("*.tmp"))
    monkeypatch.undo()
    assert run(f"{LINE} 4")[0] == 0
    assert_same_run(chains[4], begun)


@pytest.mark.long
def test_a_file_size_limit_is_reported_as_a_full_disk_is(run, begun, chains):
    """A real failure of write(), where full_disk_after imitates one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        code, _, err, _ = run(f"{LINE} 4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 3
    one_line(err, "too large", "same command")
    assert torch.load(begun / "checkpoint.pt", weights_only=True)["step"] == 2
    assert run(f"{LINE} 4")[0] == 0
    assert_same_run(chains[4], begun)


SGD_DIVERGES = "--method sgd --lr 1e18 --warmup-epochs 0 --updates 9"


@pytest.mark.parametrize("line, word", [("--no-sg --eps 1e18 --samples 50", "2 sqrt(M / k)"), (SGD_DIVERGES, "--lr")])
def test_a_diverging_run_stops_where_it_diverges_with_the_last_good_state(run, line, word):
    code, _, err, folder = run(line)
    assert code == 3
    one_line(err, "not finite at step", word, "checkpoint.pt")
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["weights"].isfinite().all()
    assert all("nan" not in line and "inf" not in line for line in (folder / "energy.csv").read_text().splitlines())


@pytest.mark.parametrize("where", ["weights", "energy"])
def test_no_step_is_made_after_the_one_that_is_not_finite_and_nothing_of_it_is_written(run, begun, monkeypatch, where):
    sample, made = s.sghmc_sample, []

    def broken(chain):
        made.append(chain.step)
        step = sample(chain)
        if chain.step < 3:
            return step
        if where == "weights":
            chain.W[7] = float("inf")
            return step
        return step | {"energy": torch.tensor(float("nan"))}

    monkeypatch.setattr(s, "sghmc_sample", broken)
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 9 --eval-every 5 --checkpoint-every 7")
    assert code == 3 and made == [2, 3] and contents(begun) == before
    one_line(err, "not finite at step 3", "smaller --eps", f"{begun}/checkpoint.pt")


@pytest.mark.parametrize(
    "line, word", [("--no-sg --eps 1e3", "--eps"), ("--method sgd --lr 1e9 --warmup-epochs 0", "--lr")]
)
def test_an_overflow_in_the_network_stops_the_run_as_a_divergence_does(run, line, word):
    code, _, err, folder = run(f"{line} --samples 9 --updates 9 --eval-every 1")
    assert code == 3
    one_line(err, "not finite at step", f"try a smaller {word}", "checkpoint.pt")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert all(x.isfinite().all() for x in (saved["weights"], *saved["buffers"].values()))


def test_running_statistics_that_overflow_are_seen_in_their_step(run, begun, monkeypatch):
    sample = s.sghmc_sample

    def overflowing(chain):
        step = sample(chain)
        chain.model.predictor[1].running_var[3] = float("inf")
        return step

    monkeypatch.setattr(s, "sghmc_sample", overflowing)
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 9 --eval-every 5 --checkpoint-every 7")
    assert code == 3 and contents(begun) == before
    one_line(err, "not finite at step 2")


def test_features_that_overflow_in_an_evaluation_are_no_row_of_the_table(run, begun, monkeypatch):
    features = s.features
    monkeypatch.setattr(s, "features", lambda *a: features(*a) * float("inf"))
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 9")
    assert code == 3 and contents(begun) == before
    one_line(err, "not finite at step 4", "smaller --eps")


# ------------------------------------------------------------------------------------------------------------ bad input


BAD_VALUES = """
    --eps --mass --velocity-std --prior-std --lr --predictor-lr-mult   : 0 -1 nan inf x
    --alpha --momentum                                                 : -0.1 1 nan inf x
    --energy-scale --weight-decay                                      : -1 nan inf x
    --knn-t                                                            : 0 -1 nan x
    --L --samples --epochs --updates --knn-k --eval-every              : 0 -3 1.5 x
    --knn-train --knn-test --checkpoint-every --predictor-steps        : 0 1.5
    --warmup-epochs --seed --keep-every                                : -1 x
    --batch-size                                                       : 0 1 -4 x 25
    --knn-k --knn-train                                                : 25
    --knn-test                                                         : 13
    --method --similarity --batch-per --precision --bn --knn-features  : other
    --device                                                           : tpu cuda:99 meta
    --init                                                             : /no/such/file.pt /
    --sg --epsilon --ep                                                : yes
"""
BAD_FLAGS = [
    (name, value)
    for names, values in (line.split(" : ") for line in BAD_VALUES.strip().splitlines())
    for name in names.split()
    for value in values.split()
]
BAD_FLAGS += [("--knn-k", "4 --knn-train 3"), ("--warmup-epochs", "5 --epochs 5 --method sgd")]
BAD_FLAGS += [("--eps", ""), ("--device", ""), ("--data", "/no/such/folder")]


@pytest.mark.parametrize("name, value", BAD_FLAGS, ids=lambda v: v or "empty")
def test_a_bad_setting_is_one_line_with_exit_code_2_and_no_file(name, value, run, tmp_path):
    before = contents(tmp_path)
    code, _, err, folder = run(f"{name} {value}") if value else run(f"{name}=")
    assert code == 2 and contents(tmp_path) == before and not folder.exists()
    one_line(err)
    assert name.lstrip("-") in err or value in err


EXTREMES = """
    --eps --mass --velocity-std --prior-std --lr --predictor-lr-mult   : 1e-300 1e300
    --energy-scale --weight-decay                                      : 1e300
    --knn-t                                                            : 1e-300
    --samples --epochs --updates --eval-every --checkpoint-every       : HUGE
    --warmup-epochs --seed --keep-every --L --predictor-steps          : HUGE
    --init --data --out --data-dir                                     :
"""


@pytest.mark.parametrize("names, values", [line.split(":") for line in EXTREMES.strip().splitlines()])
def test_a_setting_that_is_empty_or_no_number_of_this_machine_is_refused(names, values, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where an empty --out would make its folder
    for name in names.split():
        for value in values.replace("HUGE", "9" * 400).split() or [""]:
            method = "sgd" if name in "--lr --weight-decay --predictor-lr-mult --warmup-epochs".split() else "sghmc"
            before = contents(tmp_path)
            code, _, err, _ = run(f"--samples 4 --updates 4 --method {method} {name}={value}")
            assert code == 2 and contents(tmp_path) == before
            one_line(err, name)


def picture(path, size=(32, 32)):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


BAD_FOLDERS = ["absent", "empty", "a file", "only train", "one class", "empty class", "other classes", "no images"]
BAD_FOLDERS += ["torn image", "cut image", "no class folders"]


def bad_folders(root):
    """{what: folder with images that cannot be used}."""
    folders = {what: root / what.replace(" ", "-") for what in BAD_FOLDERS}
    for what, folder in folders.items():
        if what in ("absent", "a file"):
            continue
        folder.mkdir(parents=True)
        if what == "empty":
            continue
        for split in ("train", "test"):
            for name in ("a", "b"):
                picture(folder / split / name / "x.png")
    folders["a file"].write_text("")
    for path in folders["only train"].glob("test/*/*"):
        path.unlink()
    for split in ("train", "test"):
        (folders["one class"] / split / "b/x.png").unlink()
        (folders["one class"] / split / "b").rmdir()
    (folders["empty class"] / "train/b/x.png").unlink()
    (folders["other classes"] / "test/b").rename(folders["other classes"] / "test/c")
    for path in list(folders["no images"].rglob("*.png")):
        path.rename(path.with_suffix(".txt"))
    (folders["torn image"] / "test/a/x.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    cut = folders["cut image"] / "train/b/x.png"
    cut.write_bytes(cut.read_bytes()[:60])
    for path in list(folders["no class folders"].rglob("*.png")):
        path.rename(path.parent.with_suffix(".png"))
        path.parent.rmdir()
    return folders


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_a_bad_data_folder_is_one_line_that_names_it(what, tmp_path, capfd):
    folder = bad_folders(tmp_path / "data")[what]
    before = contents(tmp_path)
    assert s.main(["--data", str(folder), "--batch-size", "2", "--out", str(tmp_path / "run")]) == 2
    one_line(capfd.readouterr().err, "--data", str(folder))
    assert contents(tmp_path) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["file", "below a file", "not to be made", "read-only"])
def test_an_out_that_cannot_be_a_folder_or_written_to_is_one_line(what, run, tmp_path):
    (tmp_path / "file").write_text("precious")
    out = {"file": "file", "below a file": "file/run", "not to be made": "/proc/run", "read-only": "/proc/self"}[what]
    code, _, err, _ = run(f"{LINE} 2", out)
    assert code == 2
    one_line(err, "--out")
    assert (tmp_path / "file").read_text() == "precious"


def called(line, folder):
    """main(line) under the rules for every command line, good or bad; returns the exit code."""
    before, out, err = contents(folder), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            code = s.main(line)
    assert not [w for w in warned if issubclass(w.category, (UserWarning, RuntimeWarning))]
    assert code in (0, 2, 3)
    if code:
        one_line(err.getvalue())
    else:
        assert err.getvalue() == "" and "done" in out.getvalue()
    if code == 2:
        assert contents(folder) == before
    return code


FLAGS = [f for f in s.fields(s.Config) if f.name not in ("data_dir", "out")]
GOOD = {int: ["1", "2", "3"], float: ["1e-6", "0.01", "0.5"]}
GOOD |= {"device": ["cpu"], "data": ["pictures"], "init": ["start"]}
BAD = ["0", "-1", "1.5", "nan", "-inf", "x", "", "-", "--", "1,5", "\u0662 ", "no/such"]
DATA = "--batch-size 2 --knn-k 3 --knn-train 6 --knn-test 6 --L 1 --samples 1 --updates 2 --data pictures".split()


@st.composite
def words(draw):
    """A flag of Config with a value: three in four of its own kind, though not of its own range."""
    f = draw(st.sampled_from(FLAGS))
    kind = f.metadata["kind"]
    if kind is bool:
        return [draw(st.sampled_from([s.flag(f.name), "--no-" + s.flag(f.name)[2:]]))]
    own = list(kind) if isinstance(kind, tuple) else GOOD.get(f.name) or GOOD[kind]
    return [s.flag(f.name), draw(st.sampled_from(own if draw(st.integers(0, 3)) else BAD))]


@pytest.mark.parametrize("examples", [15, pytest.param(1000, marks=pytest.mark.long)])
def test_every_command_line_ends_as_documented_and_its_repetition_changes_nothing(examples, pictures, chains, tmp_path):
    places = {"pictures": str(pictures), "start": str(chains[2] / "checkpoint.pt")}
    codes = []

    @settings(max_examples=examples)
    @given(st.lists(words(), max_size=5))
    def holds(line):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            line = [places.get(word, word) for word in sum(line, DATA)] + ["--out", folder + "/run"]
            codes.append(called(line, folder))
            after = contents(folder)
            assert called(line, folder) == codes[-1]
            assert codes[-1] == 3 or contents(folder) == after

    holds()
    assert {0, 2} <= set(codes)


# ---------------------------------------------------------------------------------------------- names, opening, summary


def test_the_default_folder_is_named_by_what_differs_from_the_defaults():
    names = {
        "": "sghmc",
        "--eps 0.1 --no-sg --L 5": "sghmc_no-sg_eps-0.1_L-5",
        "--samples 7 --device cpu --checkpoint-every 3": "sghmc",
        "--method sgd --similarity cos --data /tmp/a/cifar": "sgd_similarity-cos_data-a-cifar",
        "--init runs/pretrain/checkpoint.pt": "sghmc_init-pretrain-checkpoint",
    }
    for line, name in names.items():
        assert s.default_folder(s.parse(line.split())[0]) == Path("runs") / name


def test_a_setting_of_the_other_method_is_noted(run, begun):
    _, out, err, _ = run(f"{LINE} 2 --lr 0.1")
    assert "does not use --lr" in out and err == ""


def test_the_opening_states_the_cost_and_that_a_stop_gradient_chain_samples_no_posterior(pictures):
    data = s.load_data(str(pictures), "")
    for line, words in (
        ("", "50,000 steps = 250,000 gradients"),
        ("--L 5 --batch-per sample --no-sg", "50,000 steps = 250,000 gradients"),
        ("--energy-scale 0", "= 0 gradients"),
        ("--method sgd --epochs 11", "66 steps = 66 gradients"),
    ):
        cfg = s.parse(["--batch-size", "4", *line.split()])[0]
        text = s.opening(cfg, s.Chain(cfg, data, None, torch.device("cpu")))
        assert words in text and ("no posterior" in text) == (cfg.sg and cfg.method == "sghmc")


def test_another_evaluation_of_the_same_chain_is_noted(run, begun):
    assert "note:" not in run(f"{LINE} 2")[1]
    code, out, err, _ = run(f"{LINE} 2 --knn-k 2 --bn running --eval-every 1 --seed 0")
    assert (code, err) == (0, "") and "--knn-k was 3 in the first rows of metrics.csv, now 2" in out
    assert "--bn was recalibrated" in out and "--eval-every" not in out


def test_a_chain_that_is_longer_than_asked_for_has_nothing_left_to_do(run, begun):
    code, out, _, _ = run(f"{LINE} 1")
    assert code == 0 and "from step 2, 0 steps = 0 gradients" in out


def test_a_log_file_has_no_control_characters_and_the_summary_names_verdict_and_folder(run, begun):
    _, out, _, folder = run(f"{LINE} 5")
    assert re.search(r"[\x00-\x09\x0b-\x1f]", out) is None
    assert f"{folder}/" in out and "collapsed: " in out and "left" in out


def test_the_summary_gives_the_error_of_k_nn_and_the_weight_of_the_gradient(tmp_path):
    first, last = ({"step": step, "knn": knn, "center": 0.5, "collapsed": "no", "at_chance": "no"} for step, knn in (
        (0, 0.375), (1200, 0.25)))  # fmt: skip
    last["drift_to_noise"] = 1.3e-5
    rows = [",".join(str(row.get(name, "")) for name in s.METRICS) for row in (first, last)]
    (tmp_path / "metrics.csv").write_text("\n".join([",".join(s.METRICS), *rows, ""]))
    text = s.summary(tmp_path, tests=12)
    assert "37.50% at the start, 25.00% at step 1,200 (standard error 12.50%)" in text  # sqrt(0.25 x 0.75 / 12)
    assert "the gradient's part was 1e-05 of the noise's" in text and text.endswith(f"{tmp_path}/")
