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
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import LINE, command
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


class Killed(BaseException):
    """Ends a run in this process where kill -9 would end it."""


def killed(*_):
    raise Killed


def results(folder):
    """Its contents but for config.json, which each start that is no bad input writes."""
    return {p: content for p, content in contents(folder).items() if p.name != "config.json"}


# ------------------------------------------------------------------------------- what lies in the folder of a run


TABLES = ("metrics.csv", "energy.csv")
# Does the chain of two samples go on to four, to the same bits as without a stop ("on"), or is the folder refused?
GOES_ON = """
                 checkpoint:
    tables:      there  missing  older  newer  of-another  altered  shorter
    there        on     no       on     no     no          no       no
    missing      no     on       no     no     no          no       no
    header       no     on       no     no     no          no       no
    older        no     no       on     no     no          no       no
    newer        on     no       on     on     no          no       no
    of-another   no     no       no     no     no          no       no
    altered      no     no       no     no     no          no       no
    shorter      no     no       on     no     no          no       no
    torn         no     no       on     no     no          no       no
    longer       on     no       on     no     no          no       no
"""
NAMES, *ROWS = [line.split() for line in GOES_ON.strip().splitlines()[1:]]
PAIRS = [(row[0], name, outcome) for row in ROWS for name, outcome in zip(NAMES[1:], row[1:], strict=True)]


def walk(chain):
    """A step that costs little and depends on the seed, the step and all weights before."""
    g = s.generator(chain.cfg.seed, "noise", chain.step)
    chain.W += torch.randn(len(chain.W), generator=g)
    chain.energies.append(chain.W.norm())
    chain.step += 1


def walk_row(chain):
    counts = {"step": chain.step, "grad_evals": chain.step * chain.gradients_per_step, "energy": float(chain.W.norm())}
    return counts | {"knn": 0.5, "center": 0.5, "collapsed": "no", "at_chance": "no"}


@contextlib.contextmanager
def walking():
    """In here the chain is a cheap walk and its rows are cheap: what is tested is the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s.Chain, "advance", walk)
        patch.setattr(s, "evaluate", walk_row)
        yield patch


@pytest.fixture(scope="session")
def sources(pictures, tmp_path_factory):
    """The folder of one run, copied after 0, 2 and 4 samples; one without a stop, one of another seed after 2."""
    root = tmp_path_factory.mktemp("sources")
    folders = {name: root / name for name in ("older", "there", "newer", "whole", "of-another")}
    with walking() as patch:
        patch.setattr(s.Chain, "advance", killed)
        with contextlib.suppress(Killed):
            s.main(command(pictures, folders["older"], f"{LINE} 2"))
    with walking():
        for earlier, later, samples in (("older", "there", 2), ("there", "newer", 4)):
            shutil.copytree(folders[earlier], folders[later])
            assert s.main(command(pictures, folders[later], f"{LINE} {samples}")) == 0
        assert s.main(command(pictures, folders["whole"], f"{LINE} 4")) == 0
        assert s.main(command(pictures, folders["of-another"], f"{LINE} 2 --seed 1")) == 0
    return folders


@pytest.fixture
def held(sources, tmp_path):
    """A run folder of the test's own, tmp_path/run, that holds two samples of the walk, which goes on in this test."""
    with walking():
        yield shutil.copytree(sources["there"], tmp_path / "run")


def altered_row(content):
    """The table with another last digit in its first row."""
    header, row, *rest = content.splitlines(keepends=True)
    return b"".join([header, row[:-2] + (b"1" if row[-2:-1] != b"1" else b"2") + b"\n", *rest])


CHANGES = {
    "altered": altered_row,
    "shorter": lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
    "torn": lambda content: content[:-3],
    "header": lambda content: content.splitlines(keepends=True)[0],
    "longer": lambda content: content + b"3,9,1.",  # a torn row of what a kill undid
}


def put(folder, name, state, sources):
    """Bring a table or checkpoint.pt of the folder into this state."""
    path = folder / name
    path.unlink(missing_ok=True)
    if state in sources:
        path.write_bytes((sources[state] / name).read_bytes())
    elif name in TABLES and state in CHANGES:
        path.write_bytes(CHANGES[state]((sources["there"] / name).read_bytes()))
    elif state == "shorter":
        path.write_bytes((sources["there"] / name).read_bytes()[:-100_000])
    elif state == "altered":
        saved = torch.load(sources["there"] / name, weights_only=True)
        saved["rows"][0]["knn"] += 0.125
        torch.save(saved, path)
    else:
        assert state == "missing"
        if name == "checkpoint.pt":
            (folder / "config.json").unlink()  # which is written after the first checkpoint


def refused(run, folder, *words):
    """The chain is not gone on with in this folder: one line, exit code 2, and nothing in it is changed."""
    before = contents(folder)
    code, _, err, _ = run(f"{LINE} 4")
    assert code == 2 and contents(folder) == before
    one_line(err, *words)


@pytest.mark.parametrize("tables, checkpoint, outcome", PAIRS)
def test_tables_and_checkpoint_that_fit_go_on_to_the_same_end_and_others_are_refused(
    run, held, sources, tables, checkpoint, outcome
):
    for name, state in (*zip(TABLES, (tables, tables), strict=True), ("checkpoint.pt", checkpoint)):
        put(held, name, state, sources)
    if outcome == "on":
        assert run(f"{LINE} 4")[0] == 0
        assert_same_run(sources["whole"], held)
    else:
        refused(run, held, "checkpoint.pt")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("state", ["missing", "older", "of-another", "altered", "shorter", "torn", "header"])
def test_one_table_that_does_not_fit_is_named(run, held, sources, name, state):
    for table in TABLES:
        put(held, table, state if table == name else "there", sources)
    put(held, "checkpoint.pt", "there", sources)
    refused(run, held, name, "put it back")
    put(held, "checkpoint.pt", "missing", sources)
    if state not in ("missing", "header"):
        refused(run, held, ".csv", "no", "checkpoint.pt")


DAMAGE = {
    "cut": lambda row: row[: row.rindex(",")],
    "no step": lambda row: "x" + row[1:],
    "out of order": lambda row: "2" + row[1:],
    "twice": lambda row: row + "\n" + row,
    "a cell more": lambda row: row + ",1",
    "a foreign character": lambda row: row[:-1] + "\0",
    "empty": lambda row: "",
    "another line break": lambda row: row + "\r",
}


@pytest.mark.parametrize("name", TABLES)
def test_every_damage_to_a_row_is_named_and_nothing_is_overwritten(held, name):
    saved = torch.load(held / "checkpoint.pt", weights_only=True)
    head, row, last = (held / name).read_text().splitlines()
    for damage in DAMAGE.values():
        (held / name).write_text("\n".join([head, damage(row), last, ""]), newline="")
        before = contents(held)
        with pytest.raises(s.BadInput, match=f"{name} is not the table of .*rows are missing or changed.*put it back"):
            s.saved_run(held, saved["identity"], 3)
        assert contents(held) == before


def test_a_table_with_another_header_is_named_and_not_overwritten(run, held):
    for name in TABLES:
        good = (held / name).read_text()
        (held / name).write_text(good.replace("step", "sample", 1))
        refused(run, held, name, "put it back")
        (held / name).write_text(good)


@pytest.mark.parametrize("name", [*TABLES, "checkpoint.pt"])
def test_a_folder_in_the_place_of_a_file_is_named(run, held, name):
    (held / name).unlink()
    (held / name).mkdir()
    refused(run, held, name)


@pytest.mark.parametrize("content", [None, "", "[]", '{"identity": {}}'])
def test_config_json_is_written_anew_at_each_start(run, held, sources, content):
    (held / "config.json").unlink()
    if content is not None:
        (held / "config.json").write_text(content)
    assert run(f"{LINE} 4")[0] == 0
    assert_same_run(sources["whole"], held)
    there, whole = (json.loads((folder / "config.json").read_text()) for folder in (held, sources["whole"]))
    assert there["identity"] == whole["identity"] and there["settings"]["samples"] == 4


@pytest.mark.parametrize("rest", [["config.json"], ["samples"], ["config.json", "samples", *TABLES]])
def test_a_folder_that_lacks_its_checkpoint_is_refused(run, held, rest):
    (held / "samples").mkdir()
    (held / "samples/000002.pt").write_text("precious")
    for path in (held / "config.json", held / "checkpoint.pt", *(held / table for table in TABLES)):
        if path.name not in rest:
            path.unlink()
    if "samples" not in rest:
        shutil.rmtree(held / "samples")
    refused(run, held, "no checkpoint.pt; put it back")


def test_another_chain_is_refused_for_its_setting(run, held, sources):
    for name in ("config.json", "checkpoint.pt", *TABLES):
        (held / name).write_bytes((sources["of-another"] / name).read_bytes())
    refused(run, held, "another chain: seed (there 1, here 0)")


@pytest.mark.parametrize("version", [3, 5])
def test_a_checkpoint_of_another_version_is_refused(run, held, version):
    saved = torch.load(held / "checkpoint.pt", weights_only=True)
    saved["identity"]["version"] = version
    torch.save(saved, held / "checkpoint.pt")
    refused(run, held, f"another chain: version (there {version}, here 4)")


def test_a_run_whose_folder_is_taken_away_ends_and_makes_no_other(run, held, monkeypatch):
    monkeypatch.setattr(s.Chain, "advance", lambda chain: (held.rename(held.with_name("elsewhere")), walk(chain)))
    code, _, err, _ = run(f"{LINE} 3")
    assert code == 3 and not held.exists()
    one_line(err, "cannot write the run")


@pytest.mark.parametrize("missing", ["identity", "rows", "energies", "seconds"])
def test_a_checkpoint_that_lacks_what_a_run_keeps_as_samples_do_is_refused(run, held, missing):
    saved = torch.load(held / "checkpoint.pt", weights_only=True)
    del saved[missing]
    torch.save(saved, held / "checkpoint.pt")
    refused(run, held, f"the checkpoint of no run (KeyError('{missing}'))")


# ------------------------------------------------------------------------------------------------ unusable checkpoints


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
    refused(run, begun, "checkpoint.pt")
    if kind != "another chain":  # which --init may be
        code, _, err, _ = run(f"{LINE} 4 --init {begun}/checkpoint.pt", "other")
        assert code == 2 and not (tmp_path / "other").exists()
        one_line(err, "checkpoint.pt")
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("kind", ["text", "pickle", "torch pickle"])
def test_nobody_is_advised_to_execute_what_is_in_a_foreign_file(run, begun, kind):
    bad_checkpoints()[kind](begun / "checkpoint.pt")
    assert "weights_only" not in run(f"{LINE} 4")[2]


@pytest.mark.parametrize(
    "cause, shown",
    [
        (RuntimeError("it failed. To load it all the same, do this"), "it failed"),
        (OSError(2, "No such file", "v1. final/none.pt"), "[Errno 2] No such file: 'v1. final/none.pt'"),
        (KeyError("weights"), "KeyError('weights')"),
        (ValueError(), "ValueError"),
    ],
)
def test_of_a_cause_the_first_sentence_is_shown_with_names_of_files_whole(cause, shown):
    with pytest.raises(s.BadInput) as raised, s.bad_input("no good ({})"):
        raise cause
    assert str(raised.value) == f"no good ({shown})"


@pytest.mark.parametrize("text, code", [("can't allocate memory: you tried 9", 3), ("an illegal memory access", None)])
def test_only_what_says_that_it_cannot_allocate_is_out_of_memory(run, monkeypatch, text, code):
    def fails(_chain):
        raise RuntimeError(text)

    monkeypatch.setattr(s.Chain, "advance", fails)
    if code is None:
        with pytest.raises(RuntimeError, match=text):
            run("--no-sg --samples 1")
    else:
        assert run("--no-sg --samples 1")[0] == code


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


@pytest.mark.parametrize(
    "other, key",
    [("--eps 0.02", "eps"), ("--seed 1", "seed"), ("--sg", "sg"), ("--batch-size 5", "batch_size"), ("--L 1", "L"),
     ("--alpha 0.1", "alpha"), ("--mass 2", "mass"), ("--precision bf16", "precision"),
     ("--similarity cos", "similarity"),
     ("--prior-std 1", "prior_std"), ("--velocity-std 0.5", "velocity_std"), ("--knn-k 2", "knn_k"),
     ("--knn-train 24", "knn_train"), ("--knn-test 12", "knn_test"), ("--knn-features trunk", "knn_features"),
     ("--bn running", "bn"), ("--batch-per sample", "batch_per"), ("--energy-scale 2", "energy_scale")],
)  # fmt: skip
def test_another_chain_or_evaluation_in_the_same_folder_is_refused_and_the_setting_named(run, begun, other, key):
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 2 {other}")
    assert code == 2 and contents(begun) == before
    one_line(err, f"another chain: {key} (there ")


def test_the_other_method_in_the_same_folder_is_refused(run, begun):
    before = contents(begun)
    code, _, err, _ = run("--no-sg --method sgd --updates 2")
    assert code == 2 and contents(begun) == before
    one_line(err, "another chain: method (there sghmc, here sgd)")


def test_length_watching_and_places_are_not_part_of_a_chain(run, begun):
    code, _, _, folder = run(f"{LINE} 3 --eval-every 1 --keep-every 1 --device cpu")
    assert code == 0 and [r["step"] for r in read(folder / "metrics.csv")] == ["0", "2", "3"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["settings"]["samples"], config["settings"]["eval_every"]) == (3, 1)  # of this start
    assert config["identity"]["version"] == 4 and not config["identity"].keys() & {"samples", "eval_every", "out"}


# --------------------------------------------------------------------------------------------------- kills and signals


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


def dies_in_each_write(run, line, monkeypatch):
    """Start the run again and again, until it comes to its end; each start dies one write later than that before."""
    for number in itertools.count(1):
        monkeypatch.setattr(s, "CHECKPOINT_SECONDS", -1)  # a checkpoint after each step
        kill_at_write(monkeypatch, number, 5 * (number % 2))
        try:
            assert run(line)[0] == 0
            return number
        except Killed:
            monkeypatch.undo()


def test_a_run_that_dies_in_any_write_goes_on_to_the_same_end(run, begun, chains, monkeypatch):
    # start 1 dies in config.json, 2 to 4 in the tables and the checkpoint of step 3, 5 in a table of step 4
    assert dies_in_each_write(run, f"{LINE} 4", monkeypatch) == 6
    assert_same_run(chains[4], begun)
    assert not list(begun.glob("*.tmp"))


def test_a_run_that_dies_in_any_write_of_its_start_goes_on_to_the_same_end(run, chains, tmp_path, monkeypatch):
    # start 1 dies in config.json, 2 to 4 in the save before the first row, 5 to 7 in that of the row, 8 at step 1
    assert dies_in_each_write(run, f"{LINE} 2", monkeypatch) == 9
    assert_same_run(chains[2], tmp_path / "run")


def test_a_checkpoint_is_never_older_than_a_minute_and_a_step(run, begun, monkeypatch):
    clock, saved, write = [0.0], [], s.write_whole

    def advance(chain):
        chain.step += 1
        chain.energies.append(torch.tensor(0.5))
        clock[0] += 25

    monkeypatch.setattr(s, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(s.Chain, "advance", advance)

    def writes(path, content):
        if path.name == "checkpoint.pt":
            saved.append(content["step"])
        write(path, content)

    monkeypatch.setattr(s, "write_whole", writes)
    assert run(f"{LINE} 12 --eval-every 7")[0] == 0
    assert saved == [5, 7, 10, 12]  # 75 s after the start; the evaluation; 75 s after that; the end


@pytest.mark.long
def test_a_kill_loses_no_kept_sample(run, begun, chains, monkeypatch):
    kill_at_write(monkeypatch, 5, 0)  # the last one: config.json, then sample, tables, checkpoint in some order
    with contextlib.suppress(Killed):
        run(f"{LINE} 4 --keep-every 2")
    monkeypatch.undo()
    assert run(f"{LINE} 4 --keep-every 2")[0] == 0
    assert_same_run(chains[4], begun)
    kept = torch.load(begun / "samples/000004.pt", weights_only=True)["weights"]
    assert torch.equal(kept, torch.load(begun / "checkpoint.pt", weights_only=True)["weights"])


HANG = 600  # seconds that only a process which hangs will ever take
SLIM = """
import sys
sys.path.append("tests")
import simsiam_sghmc, slim_network
simsiam_sghmc.SimSiam = slim_network.SlimSimSiam
simsiam_sghmc.CHECKPOINT_SECONDS = -1  # a checkpoint after each step
"""
SAVES_AT_EACH_STEP = f"{SLIM}sys.exit(simsiam_sghmc.main(sys.argv[1:]))"


@pytest.fixture
def popen():
    """popen(argv) -> a process with pipes, which is killed when it hangs and at the end of the test at the latest."""
    started = []

    def call(argv, **settings):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(argv, cwd=Path(s.__file__).parent, **pipes | settings)
        watch = threading.Timer(HANG, process.kill)
        watch.daemon = True
        watch.start()
        started.append((process, watch))
        return process

    yield call
    for process, watch in started:
        watch.cancel()
        process.kill()
        process.communicate()


@pytest.fixture
def start(popen, pictures):
    """start(run folder, line) -> a process that runs the program on the small images and saves after each step."""

    def call(out, line):
        return popen([sys.executable, "-c", SAVES_AT_EACH_STEP, *command(pictures, out, f"--eval-every 3 {line}")])

    return call


@pytest.fixture
def finish(start):
    """finish(run folder, line): such a process to its end."""

    def call(out, line):
        process = start(out, line)
        _, err = process.communicate()
        assert (process.returncode, err) == (0, "")

    return call


def wait_for_line(process, word):
    """Read what the process prints up to the line with this word."""
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"the process ended without {word!r}: {process.stderr.read()}")


def wait_for_rows(path, count, process):
    while not path.exists() or path.read_text().count("\n") <= count:
        assert process.poll() is None, process.stderr.read()
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


def test_a_signal_in_the_last_evaluation_does_not_take_the_verdict_from_a_finished_run(run, monkeypatch):
    measure = s.evaluate

    def stopped(chain):
        if chain.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return measure(chain)

    monkeypatch.setattr(s, "evaluate", stopped)
    code, out, err, _ = run("--no-sg --samples 2")
    assert (code, err) == (0, "") and "done: collapsed" in out


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
    "sghmc": "--no-sg --eps 0.01 --samples",
    "sghmc in bf16 from a checkpoint": "--init {init} --precision bf16 --no-sg --eps 0.01 --samples",
    "sgd": "--method sgd --epochs 100000 --updates",
    "sgd in bf16 from a checkpoint": "--init {init} --method sgd --precision bf16 --epochs 100000 --updates",
}
ENDLESS = 100_000


def of_kind(kind, chains):
    return KINDS[kind].format(init=chains[2] / "checkpoint.pt")


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_kills_at_random_moments_change_nothing(start, finish, tmp_path, chains, kind):
    line, rng, table = of_kind(kind, chains), random.Random(0), tmp_path / "parts/energy.csv"
    for _ in range(20):
        rows = table.read_text().count("\n") if table.exists() else 0
        process = start(tmp_path / "parts", f"{line} {ENDLESS}")
        process.stdout.readline()  # the opening: before it there is little to disturb
        wait_for_rows(table, rows + rng.randrange(-1, 3), process)
        time.sleep(rng.uniform(0, 0.3))  # no wait for anything: the moment of the kill
        process.kill()
        process.communicate()
        assert process.returncode == -9
    step = torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"]
    assert step >= 2
    whole = f"{line} {step + 6 - step % 6}"  # so that all of --eval-every fall into it
    finish(tmp_path / "parts", whole)
    finish(tmp_path / "whole", whole)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


KILLED_WHILE_WRITING = f"""{SLIM}
import os, signal
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
    popen, finish, pictures, tmp_path, chains, kind
):
    line = of_kind(kind, chains)
    argv = command(pictures, tmp_path / "parts", f"--eval-every 3 {line} {ENDLESS}")
    for write in range(1, 21):  # config, tables, checkpoint, ... of a run that goes on
        process = popen([sys.executable, "-c", KILLED_WHILE_WRITING, str(write), str(5 * (write % 3)), *argv])
        process.communicate()
        assert process.returncode == -9
    step = torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"]
    whole = f"{line} {step + 6 - step % 6}"
    finish(tmp_path / "parts", whole)
    finish(tmp_path / "whole", whole)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_ctrl_c_while_torch_is_read_ends_without_a_traceback(popen, tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('reading', flush=True)\ntime.sleep(600)\n")
    process = popen([sys.executable, s.__file__, "--help"], env=os.environ | {"PYTHONPATH": str(tmp_path)})
    wait_for_line(process, "reading")
    process.send_signal(signal.SIGINT)
    assert (process.communicate()[1], process.returncode) == ("", -signal.SIGINT)


@pytest.mark.long
def test_signals_to_a_real_process_save_and_a_second_one_ends_at_once(start, finish, tmp_path, chains):
    line = KINDS["sghmc"]
    for first, *second in ([signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 2, [signal.SIGTERM, signal.SIGINT]):
        slow = " --L 1000000" if second else ""  # another chain: its first step outlasts the test
        out = tmp_path / ("slow" if second else "parts")
        process = start(out, f"{line} {ENDLESS}{slow}")
        wait_for_line(process, "from step")  # the opening: from now on signals are caught
        wait_for_rows(out / "metrics.csv", 1, process)
        process.send_signal(first)
        if second:
            wait_for_line(process, "stopping")
            process.send_signal(*second)
        _, err = process.communicate()
        assert process.returncode == 128 + (second or [first])[0]
        step = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
        if second:
            assert (step, err) == (0, "")
        else:
            one_line(err, f"saved at step {step}")
    whole = f"{line} {torch.load(tmp_path / 'parts/checkpoint.pt', weights_only=True)['step'] // 6 * 6 + 6}"
    finish(tmp_path / "parts", whole)
    finish(tmp_path / "whole", whole)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_reader_that_goes_away_saves_the_run_and_nobody_is_told(popen, run, whole_network, pictures, tmp_path):
    line = "--no-sg --L 1 --batch-size 2 --knn-train 4 --knn-test 4 --samples"  # little, for the network is whole
    process = popen([sys.executable, s.__file__, *command(pictures, tmp_path / "run", f"{line} {ENDLESS}")])
    wait_for_line(process, "step 2: energy")
    process.stdout.close()  # as `| head` does; the run notices when it next prints
    process.stdout = None
    _, err = process.communicate()
    assert (process.returncode, err) == (141, "")
    step = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"]
    assert step >= 2  # where it next prints: at 3 or 4, later if this test was slow
    length = max(step, 4)
    assert run(f"{line} {length}")[0] == 0
    assert_same_run(run(f"{line} {length}", "other")[3], tmp_path / "run")


def test_a_second_process_on_the_same_folder_is_refused(popen, run, begun):
    script = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); print(1, flush=True); "
    other = popen([sys.executable, "-c", script + "sys.stdin.read()", str(begun / ".lock")])
    wait_for_line(other, "1")
    refused(run, begun, "in use by another process")


def test_a_refused_run_lets_go_of_its_folder_while_its_error_is_kept(run, begun, monkeypatch):
    error = s.BadInput("kept, with the frames of its traceback")

    def refuse(*_):
        raise error

    monkeypatch.setattr(s, "saved_run", refuse)
    assert run(f"{LINE} 4")[0] == 2 and error.__traceback__
    monkeypatch.undo()
    assert run(f"{LINE} 4")[0] == 0


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


@pytest.mark.parametrize("name, writes", [("checkpoint.pt", 0), pytest.param("energy.csv", 0, marks=pytest.mark.long)])
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(run, begun, chains, monkeypatch, name, writes):
    full_disk_after(monkeypatch, writes, name)
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


@pytest.mark.parametrize("line, word", [("--no-sg --eps 1e18 --samples 50", "2 sqrt(M / curvature of U)"), (SGD_DIVERGES, "--lr")])
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
        U, measures = sample(chain)
        if chain.step == 3 and where == "weights":
            chain.W[7] = float("inf")
        elif chain.step == 3:
            U = torch.tensor(float("nan"))
        return U, measures

    monkeypatch.setattr(s, "sghmc_sample", broken)
    before = results(begun)
    code, _, err, _ = run(f"{LINE} 9 --eval-every 5")
    assert code == 3 and made == [2, 3] and results(begun) == before
    one_line(err, "not finite at step 4", "smaller --eps", f"{begun}/checkpoint.pt")


@pytest.mark.parametrize(
    "line, word",
    [("--no-sg --eps 1e3 --samples", "--eps"), ("--method sgd --lr 1e9 --warmup-epochs 0 --updates", "--lr")],
)
def test_an_overflow_in_the_network_stops_the_run_as_a_divergence_does(run, line, word):
    code, _, err, folder = run(f"{line} 9 --eval-every 1")
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
    before = results(begun)
    code, _, err, _ = run(f"{LINE} 9 --eval-every 5")
    assert code == 3 and results(begun) == before
    one_line(err, "not finite at step 3")


def test_features_that_overflow_in_an_evaluation_are_no_row_of_the_table(run, begun, monkeypatch):
    features = s.features
    monkeypatch.setattr(s, "features", lambda *a: features(*a) * float("inf"))
    before = results(begun)
    code, _, err, _ = run(f"{LINE} 9")
    assert code == 3 and results(begun) == before
    one_line(err, "not finite at step 4", "smaller --eps")


# ------------------------------------------------------------------------------------------------------------ bad input


BAD_VALUES = """
    --eps --mass --velocity-std --prior-std --lr --predictor-lr-mult   : 0 -1 nan inf x
    --alpha --momentum                                                 : -0.1 1 nan inf x
    --energy-scale --weight-decay                                      : -1 nan inf x
    --L --samples --epochs --updates --knn-k --eval-every              : 0 -3 1.5 x
    --knn-train --knn-test --predictor-steps                           : 0 1.5
    --warmup-epochs --seed --keep-every                                : -1 x
    --batch-size                                                       : 0 1 -4 x 25
    --knn-k --knn-train                                                : 25
    --knn-test                                                         : 13
    --method --similarity --batch-per --precision --bn --knn-features  : other
    --device                                                           : tpu cuda:99 meta
    --init                                                             : /no/such/file.pt /
    --sg --epsilon --ep --knn-t --data-dir --checkpoint-every          : 1
"""
BAD_FLAGS = [
    (name, value)
    for names, values in (line.split(" : ") for line in BAD_VALUES.strip().splitlines())
    for name in names.split()
    for value in values.split()
]
BAD_FLAGS += [("--knn-k", "4 --knn-train 3"), ("--warmup-epochs", "5 --epochs 5")]
BAD_FLAGS += [("--eps", ""), ("--device", ""), ("--data", "/no/such/folder")]


def method_of(name):
    """The flag that chooses the method to which this flag belongs."""
    groups = {s.flag(f.name): f.metadata["group"] for f in s.fields(s.Config)}
    return "--method sgd" if groups.get(name) == "SGD" else ""


@pytest.mark.parametrize("name, value", BAD_FLAGS, ids=lambda v: v or "empty")
def test_a_bad_setting_is_one_line_with_exit_code_2_and_no_file(name, value, run, tmp_path):
    before = contents(tmp_path)
    code, _, err, folder = run(f"{method_of(name)} {name} {value}") if value else run(f"{name}=")
    assert code == 2 and contents(tmp_path) == before and not folder.exists()
    one_line(err)
    assert name.lstrip("-") in err or value in err


EXTREMES = """
    --eps --mass --velocity-std --prior-std --lr --predictor-lr-mult   : 1e-300 1e300
    --energy-scale --weight-decay                                      : 1e300
    --samples --epochs --updates --eval-every                          : HUGE
    --warmup-epochs --seed --keep-every --L --predictor-steps          : HUGE
    --init --data --out                                                :
"""


@pytest.mark.parametrize("names, values", [line.split(":") for line in EXTREMES.strip().splitlines()])
def test_a_setting_that_is_empty_or_no_number_of_this_machine_is_refused(names, values, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where an empty --out would make its folder
    for name in names.split():
        for value in values.replace("HUGE", "9" * 400).split() or [""]:
            before = contents(tmp_path)
            code, _, err, _ = run(f"{method_of(name) or '--samples 4'} {name}={value}")
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


FLAGS = [f for f in s.fields(s.Config) if f.name not in ("method", "out")]
GOOD = {int: ["1", "2", "3"], float: ["1e-6", "0.01", "0.5"]}
GOOD |= {"device": ["cpu"], "data": ["pictures"], "init": ["start"]}
BAD = ["0", "-1", "1.5", "nan", "-inf", "x", "", "-", "--", "1,5", "\u0662 ", "no/such"]
DATA = "--batch-size 2 --knn-k 3 --knn-train 6 --knn-test 6 --data pictures".split()
METHODS = {"SGHMC": "--method sghmc --L 1 --samples 1".split(), "SGD": "--method sgd --updates 2".split()}


@st.composite
def words(draw, method):
    """A flag of Config with a value: nine in ten of this method, three in four of its own kind, not its own range."""
    of_all = draw(st.integers(0, 9)) == 0
    f = draw(st.sampled_from([f for f in FLAGS if of_all or f.metadata["group"] not in METHODS.keys() - {method}]))
    kind, (choices, _) = f.type.__origin__, f.type.__metadata__
    if kind is bool:
        return [draw(st.sampled_from([s.flag(f.name), "--no-" + s.flag(f.name)[2:]]))]
    own = choices.split("|") if "|" in choices else GOOD.get(f.name) or GOOD[kind]
    return [s.flag(f.name), draw(st.sampled_from(own if draw(st.integers(0, 3)) else BAD))]


@st.composite
def command_lines(draw):
    method = draw(st.sampled_from(list(METHODS)))
    return sum(draw(st.lists(words(method), max_size=5)), DATA + METHODS[method])


@pytest.mark.parametrize("examples", [8, pytest.param(1000, marks=pytest.mark.long)])
def test_every_command_line_ends_as_documented_and_its_repetition_changes_nothing(examples, pictures, chains, tmp_path):
    places = {"pictures": str(pictures), "start": str(chains[2] / "checkpoint.pt")}
    codes = []

    @settings(max_examples=examples)
    @given(command_lines())
    def holds(line):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            line = [places.get(word, word) for word in line] + ["--out", folder + "/run"]
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
        "--samples 7 --device cpu --eval-every 3 --keep-every 2": "sghmc",
        "--knn-k 20 --bn running": "sghmc_knn-k-20_bn-running",
        "--method sgd --similarity cos --data /tmp/a/cifar": "sgd_similarity-cos_data--tmp-a-cifar",
        "--init runs/pretrain/checkpoint.pt": "sghmc_init-runs-pretrain-checkpoint.pt",
    }
    for line, name in names.items():
        assert s.default_folder(s.parse(line.split())) == Path("runs") / name


def test_a_setting_of_the_other_method_is_refused_and_changes_nothing(run, begun):
    before = contents(begun)
    code, _, err, _ = run(f"{LINE} 2 --lr 0.1")
    assert code == 2 and contents(begun) == before
    one_line(err, "--lr is a setting of SGD", "leave it out")


@pytest.mark.parametrize(
    "line, steps, gradients",
    [("", "50,000", "150,000"), ("--L 5 --batch-per sample --no-sg", "50,000", "250,000"),
     ("--energy-scale 0", "50,000", "0"), ("--method sgd --epochs 11", "66", "66")],
)  # fmt: skip
def test_the_opening_states_the_cost_and_that_a_stop_gradient_chain_samples_no_posterior(
    run, monkeypatch, line, steps, gradients
):
    monkeypatch.setattr(s.Chain, "advance", killed)
    load = s.load_data
    monkeypatch.setattr(s, "load_data", lambda *a: (signal.raise_signal(signal.SIGINT), load(*a))[1])
    code, out, _, _ = run(line)
    assert code == 130 and f"{steps} steps from step 0" in out and f"cost: {gradients} gradients at batch 4" in out
    assert ("no posterior" in out) == ("sgd" not in line and "--no-sg" not in line)


def test_a_chain_that_is_longer_than_asked_for_has_nothing_left_to_do(run, begun):
    code, out, _, _ = run(f"{LINE} 1")
    assert code == 0 and "0 steps from step 2" in out and "cost: 0 gradients" in out


def test_a_log_file_has_no_control_characters_and_the_summary_names_verdict_and_folder(run, begun):
    _, out, _, folder = run(f"{LINE} 5")
    assert re.search(r"[\x00-\x09\x0b-\x1f]", out) is None
    assert f"{folder}/" in out and "collapsed: " in out and "left" in out


def test_the_summary_gives_the_error_of_k_nn_and_the_weight_of_the_gradient():
    first, last = ({"step": step, "knn": knn, "center": 0.5, "collapsed": "no", "at_chance": "no"} for step, knn in (
        (0, 0.375), (1200, 0.25)))  # fmt: skip
    last["drift_to_noise"] = 1.3e-5
    text = s.summary([first, last], tests=12)
    assert "37.50% at the start, 25.00% at step 1,200 (standard error 12.50%)" in text  # sqrt(0.25 x 0.75 / 12)
    assert text.endswith("the gradient's part was 1e-05 of the noise's")
