"""What goes wrong on shared machines: kills, signals, damage, full disks, two processes, divergence, bad input."""

import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
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
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------------- a damaged run folder


def test_a_torn_last_line_is_mended_and_the_run_goes_on(run, begun, chains):
    for name in ("metrics.csv", "energy.csv"):
        with open(begun / name, "a") as file:
            file.write("3,9,1.")
    assert run(f"{LINE} 4")[0] == 0
    assert_same_run(chains[4], begun)


@pytest.mark.parametrize("damage", ["4,", "x,6,2.5", "1,6,2.5", "0,0,2.5\n0,0,2.5", ""])
def test_other_damage_of_a_table_is_named_and_nothing_is_overwritten(run, begun, damage):
    table = begun / "energy.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], damage, lines[2]]) + "\n")
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2 and contents(begun) == before
    one_line(err, "energy.csv", "line")


@pytest.mark.parametrize("name", ["metrics.csv", "energy.csv"])
def test_a_lost_table_is_not_silently_begun_anew(run, begun, name):
    (begun / name).unlink()
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2
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


def start_arguments(pictures, out, line):
    argv = f"--batch-size 4 --knn-k 3 --L 2 --eval-every 3 --checkpoint-every 2 --data {pictures} --out {out} {line}"
    return argv.split()


def start(pictures, out, line):
    command = [sys.executable, s.__file__, *start_arguments(pictures, out, line)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(path, count, process):
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") <= count):
        time.sleep(0.01)


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_end(pictures, tmp_path, chains, run):
    process = start(pictures, tmp_path / "parts", f"{LINE} 100000 --eval-every 2")
    wait_for_rows(tmp_path / "parts/energy.csv", 4, process)  # the rows come before their checkpoint
    process.kill()
    process.communicate(timeout=60)
    step = torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"]
    assert process.returncode == -9 and step >= 2
    length = f"{LINE} {step + 2 - step % 2}"  # a multiple of --eval-every: both runs evaluate at the same steps
    shutil.copytree(chains[2], tmp_path / "whole")
    for out in ("parts", "whole"):
        assert run(length, out)[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits_with_128_and_its_number(run, begun, chains, monkeypatch, number):
    sample = s.sghmc_sample
    monkeypatch.setattr(s, "sghmc_sample", lambda chain: (signal.raise_signal(number), sample(chain))[1])
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 128 + number
    one_line(err, "saved at step 3", "same command")
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


def finish(pictures, folder, line):
    assert start(pictures, folder, line).wait(300) == 0


KINDS = {
    "sghmc": f"{LINE} 12",
    "sghmc in bf16 from a checkpoint": f"--init {{init}} --precision bf16 {LINE} 12",
    "sgd": "--method sgd --updates 12",
    "sgd in bf16 from a checkpoint": "--init {init} --method sgd --precision bf16 --updates 12",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_kills_at_random_moments_change_nothing(pictures, tmp_path, chains, kind):
    line = KINDS[kind].format(init=chains[2] / "checkpoint.pt").replace(" 12", " 60")
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        process = start(pictures, tmp_path / "parts", line)
        while process.poll() is None and not (tmp_path / "parts/energy.csv").exists():
            time.sleep(0.01)
        time.sleep(2 + 3 * float(torch.rand((), generator=rng)))  # importing torch takes about two seconds of these
        process.kill()
        process.communicate()
    finish(pictures, tmp_path / "parts", line)
    finish(pictures, tmp_path / "whole", line)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


KILLED_WHILE_WRITING = """
import os, signal, sys
import simsiam_sghmc
left, tear, fsync = [int(sys.argv[1])], int(sys.argv[2]), os.fsync
def torn(descriptor):
    fsync(descriptor)
    left[0] -= 1
    if left[0] == 0:
        os.ftruncate(descriptor, max(os.fstat(descriptor).st_size - tear, 0))
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = torn
sys.exit(simsiam_sghmc.main(sys.argv[3:]))
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_in_the_middle_of_each_kind_of_write_changes_nothing(pictures, tmp_path, chains, kind):
    line = KINDS[kind].format(init=chains[2] / "checkpoint.pt")
    argv = start_arguments(pictures, tmp_path / "parts", line)
    for write in range(1, 12):  # config, tables on opening, row 0, energies, checkpoint, ... of a run that goes on
        command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(write), str(5 * (write % 2)), *argv]
        assert subprocess.run(command, capture_output=True, cwd=Path(s.__file__).parent).returncode in (-9, 0)
    finish(pictures, tmp_path / "parts", line)
    finish(pictures, tmp_path / "whole", line)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_second_process_on_the_same_folder_is_refused(run, begun):
    script = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
    script += "print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script, str(begun / ".lock")], stdout=subprocess.PIPE)
    other.stdout.readline()
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 4")
    other.kill()
    other.wait()
    assert code == 2 and contents(begun) == before
    one_line(err, "in use by another process")
    assert run(f"{LINE} 4")[0] == 0


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


@pytest.mark.parametrize("name, writes", [("checkpoint.pt", 0), ("energy.csv", 1)])
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


SGD_DIVERGES = "--method sgd --lr 1e30 --warmup-epochs 0 --updates 9"


@pytest.mark.parametrize("line, word", [("--no-sg --eps 1e30 --samples 50", "--eps"), (SGD_DIVERGES, "--lr")])
def test_a_diverging_run_stops_where_it_diverges_with_the_last_good_state(run, line, word):
    code, _, err, folder = run(line)
    assert code == 3
    one_line(err, "not finite at step", word, "checkpoint.pt")
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["weights"].isfinite().all()
    assert all("nan" not in line and "inf" not in line for line in (folder / "energy.csv").read_text().splitlines())


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
BAD_FLAGS += [("--eps", ""), ("--device", "")]


@pytest.mark.parametrize("name, value", BAD_FLAGS, ids=lambda v: v or "empty")
def test_a_bad_setting_is_one_line_with_exit_code_2_and_no_file(name, value, run, tmp_path):
    before = contents(tmp_path)
    code, _, err, folder = run(f"{name} {value}") if value else run(f"{name}=")
    assert code == 2 and contents(tmp_path) == before and not folder.exists()
    one_line(err)
    assert name.lstrip("-") in err or value in err


def picture(path, size=(32, 32)):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


BAD_FOLDERS = ["absent", "empty", "a file", "only train", "one class", "empty class", "other classes", "no images"]
BAD_FOLDERS += ["torn image"]


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
    return folders


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_a_bad_data_folder_is_one_line_that_names_it(what, tmp_path, capfd):
    folder = bad_folders(tmp_path / "data")[what]
    before = contents(tmp_path)
    assert s.main(["--data", str(folder), "--batch-size", "2", "--out", str(tmp_path / "run")]) == 2
    one_line(capfd.readouterr().err, "--data", str(folder))
    assert contents(tmp_path) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["file", "below a file", "no access"])
def test_an_out_that_cannot_be_a_folder_is_one_line(what, run, tmp_path):
    (tmp_path / "file").write_text("precious")
    out = {"file": "file", "below a file": "file/run", "no access": "/proc/run"}[what]
    code, _, err, _ = run(f"{LINE} 2", out)
    assert code == 2
    one_line(err, "--out")
    assert (tmp_path / "file").read_text() == "precious"


FLAGS = [f for f in s.fields(s.Config) if f.name not in ("data_dir", "out", "data", "samples", "updates")]
VALUES = st.sampled_from("0 1 2 -1 0.5 nan inf 1e-300 1e300 x cos sgd bf16".split() + ["", "9" * 30])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(FLAGS), VALUES, st.booleans()), max_size=5))
def test_no_command_line_yields_a_traceback(words):
    line = []
    for f, value, no in words:
        name = s.flag(f.name)
        line += [("--no-" + name[2:]) if no else name] if f.metadata["kind"] is bool else [name, value]
    try:
        cfg, given = s.parse(line)
    except s.BadInput as error:
        assert error.code == 2 and "\n" not in str(error)
    else:
        assert all(getattr(cfg, k) == v for k, v in given.items())


# ------------------------------------------------------------------------------------------------- help, names, summary


def test_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        s.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in s.fields(s.Config):
        assert s.flag(f.name) in text
        assert f.default is None or f"[{f.default}]" in text


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


def test_a_log_file_has_no_control_characters_and_the_summary_names_verdict_and_folder(run, begun):
    _, out, _, folder = run(f"{LINE} 5")
    assert re.search(r"[\x00-\x09\x0b-\x1f]", out) is None
    assert f"{folder}/" in out and "collapsed: " in out and "left" in out
