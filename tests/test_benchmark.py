"""The benchmark times the program's own steps, divides what it should, and leaves other files alone."""

import json
import math
import signal
import sys
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import simsiam_sghmc
from simsiam_sghmc import Chain, Config, Images

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import benchmark  # noqa: E402
import peers  # noqa: E402

CPU = torch.device("cpu")


def at_once(f, *arguments):
    done = Future()
    done.set_result(f(*arguments))
    return done


@pytest.fixture
def images(monkeypatch):
    """Few images, which are also the gratings of this test."""
    pictures = torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Images(pictures, torch.arange(24) % 3, pictures[:12], torch.arange(12) % 3, "noise")
    monkeypatch.setattr(simsiam_sghmc, "load_data", lambda _: data)
    return data


@pytest.fixture
def bench(images):
    return benchmark.Bench(CPU, images, SimpleNamespace(submit=at_once), batch=4, product=8, bank=20, test=10)


def values(part, rounds=1):
    """{what: value} of the rows of a part whose contestants are stubs."""
    contestants, rows = part
    times = {name: f() for name, f in contestants.items()}
    return {row.what: row.factor * times[row.above] / times.get(row.below, 1) for row in rows}


def test_a_gradient_at_batch_512_is_082_tflop(whole_network):
    assert 512 * benchmark.flops_per_pair() / 1e12 == pytest.approx(0.82, rel=0.01)


def test_the_floor_is_the_gradient_of_the_network_on_ready_images(monkeypatch):
    called = []
    monkeypatch.setattr(benchmark, "seconds", lambda device, f: called.append(f) or 1.0)
    benchmark.floor_seconds(CPU, "bf16", 4)
    chain = next(x for cell in called[0].__closure__ if isinstance(x := cell.cell_contents, Chain))
    assert chain.cfg.precision == "bf16" and not chain.cfg.sg and not chain.G.any()
    called[0]()
    assert chain.G.any() and chain.step == 0
    views = next(x for cell in called[0].__closure__ if isinstance(x := cell.cell_contents, list))
    assert [(tuple(v.shape), v.is_contiguous(memory_format=torch.channels_last)) for v in views] == [
        ((4, 3, 32, 32), True)] * 2  # fmt: skip


@pytest.mark.parametrize("policy, gradients", [("kick", 3), ("sample", 2)])
def test_what_is_timed_is_the_programs_own_sample(bench, monkeypatch, policy, gradients):
    called = []
    monkeypatch.setattr(benchmark, "seconds", lambda device, f: called.append(f) or 1.0)
    benchmark.sample_seconds(bench, "bf16", policy, 2)
    chain = called[0].__self__
    cfg = Config(data="gratings", sg=False, eps=1e-4, batch_size=4, precision="bf16", batch_per=policy, L=2)
    other = Chain(cfg, bench.data, None, CPU)
    called[0](), other.advance()
    assert chain.cfg == cfg and torch.equal(chain.W, other.W) and chain.step == 1
    assert chain.gradients_per_step == gradients == benchmark.POLICIES[policy](2)


def test_a_sample_is_compared_with_as_many_gradients_as_it_takes(bench, monkeypatch):
    monkeypatch.setattr(benchmark, "floor_seconds", lambda device, p, batch: {"fp32": 2.0, "bf16": 0.5}[p])

    def sample_seconds(bench, p, policy, L):
        gradients = Chain(Config(batch_per=policy, L=L, batch_size=4), bench.data, None, CPU).gradients_per_step
        return 1.1 * gradients * {"fp32": 2.0, "bf16": 0.5}[p]

    monkeypatch.setattr(benchmark, "sample_seconds", sample_seconds)
    seen = values(benchmark.sample_part(bench))
    assert seen == {
        f"sample {p}, batch per {policy}, L {L}, over its gradients": pytest.approx(1.1)
        for L in (1, 3) for policy in ("kick", "sample") for p in ("fp32", "bf16")
    }  # fmt: skip
    assert {row.target for row in benchmark.sample_part(bench)[1]} == {"<= 1.06"}


def test_the_rate_of_a_gradient_is_its_work_per_time_over_that_of_a_product(
    bench, whole_network, monkeypatch
):
    rate, work = 7.0, 4 * 0.82e12 / 512
    monkeypatch.setattr(benchmark, "product_seconds", lambda device, p, n: 2 * n**3 / rate)
    share = {"fp32": 0.7, "bf16": 0.9}
    monkeypatch.setattr(benchmark, "floor_seconds", lambda device, p, batch: work / rate / share[p])
    seen = values(benchmark.gradient_part(bench))
    assert {what[-4:]: x for what, x in seen.items()} == {p: pytest.approx(x, rel=0.01) for p, x in share.items()}
    assert [row.target for row in benchmark.gradient_part(bench)[1]] == ["", ">= 0.85"]


def test_the_textbook_is_compared_at_its_own_precision_and_at_ours(bench, monkeypatch):
    monkeypatch.setattr(benchmark, "textbook_seconds", lambda device, batch, p: {"fp32": 60.0, "bf16": 30.0}[p])
    ours = {("fp32", "kick"): 20.0, ("bf16", "kick"): 10.0, ("fp32", "sample"): 12.0, ("bf16", "sample"): 6.0}
    asked = []
    monkeypatch.setattr(
        benchmark, "sample_seconds", lambda bench, p, policy, L: asked.append(L) or ours[p, policy]
    )  # fmt: skip
    part = benchmark.textbook_part(bench)
    assert values(part) == {
        "textbook fp32 over sample fp32, batch per kick": 3, "textbook bf16 over sample bf16, batch per kick": 3,
        "textbook fp32 over sample bf16, batch per kick": 6, "textbook fp32 over sample fp32, batch per sample": 5,
        "textbook bf16 over sample bf16, batch per sample": 5, "textbook fp32 over sample bf16, batch per sample": 10,
    }  # fmt: skip
    assert {row.what: row.target for row in part[1] if row.target} == {
        "textbook fp32 over sample bf16, batch per kick": ">= 3",
        "textbook fp32 over sample bf16, batch per sample": ">= 5",
    }
    assert set(asked) == {3} == {benchmark.TEXTBOOK_L}


def test_the_textbook_sample_is_algorithm_1_with_2L_gradients(bench, monkeypatch):
    monkeypatch.setitem(benchmark.CHAIN, "eps", 0.1)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)  # every normal is 1
    textbook = benchmark.Textbook(CPU, 2, L=2, workers=0)
    model, gradients = textbook.model, []
    before = [p.detach().clone() for p in model.parameters()]
    zero_grad = model.zero_grad
    model.zero_grad = lambda: gradients.append([p.grad for p in model.parameters()]) or zero_grad()
    textbook.sample("fp32")
    assert len(textbook.energies) == 4 and all(0 <= U < 10 for U in textbook.energies)
    _, first, second, third = gradients  # each of the half-kick before
    s = math.sqrt(0.02)
    for W, X, g1, g2, g3 in zip(before, model.parameters(), first, second, third, strict=True):
        Phi1 = 0.99 - 0.05 * g1 + s
        Phi3 = 0.99 * (0.99 * Phi1 - 0.05 * g2 + s) - 0.05 * g3 + s
        torch.testing.assert_close(X.detach(), W + 0.1 * Phi1 + 0.1 * Phi3, rtol=1e-5, atol=1e-6)


def test_the_textbook_sees_two_views_of_one_image_by_torchvisions_own_transforms(bench):
    names = " ".join(type(t).__name__ for t in benchmark.TwoViews.view.transforms)
    assert names == "ToPILImage RandomResizedCrop RandomHorizontalFlip RandomApply RandomGrayscale ToTensor Normalize"
    _, crop, flip, apply, grey, _, norm = benchmark.TwoViews.view.transforms
    jitter = apply.transforms[0]
    assert (crop.size, tuple(crop.scale), flip.p, apply.p, grey.p) == ((32, 32), (0.2, 1), 0.5, 0.8, 0.2)
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (*[(0.6, 1.4)] * 3, (-0.1, 0.1))
    assert (norm.mean, norm.std) == (simsiam_sghmc.MEAN, simsiam_sghmc.STD)
    one, two = benchmark.TwoViews(bench.data.train)[3]
    assert one.shape == two.shape == (3, 32, 32) and not torch.equal(one, two)


# An "interpreter" that answers as tools/peers.py does: 4 gradients in fp32, 2 in bf16, and what packages write between
FAKE = f"""#!{sys.executable}
import sys
print("FutureWarning: 2.0 is old", file=sys.stderr)
print("ready", flush=True)
for line in sys.stdin:
    open(sys.argv[0] + ".asked", "a").write(" ".join([*sys.argv[1:], line]))
    print("still a warning", file=sys.stderr, flush=True)
    print({{"fp32": 4, "bf16": 2}}[line.strip()], flush=True)
"""


@pytest.fixture
def interpreter(tmp_path):
    """Writes an executable file that stands for the interpreter of --peers."""

    def write(text):
        path = tmp_path / "python"
        path.write_text(text)
        path.chmod(0o755)
        return path

    return write


def test_peers_take_turns_with_the_others_and_get_rows_per_sample_and_per_gradient(
    interpreter, bench, monkeypatch, tmp_path, capsys
):
    ours = {("fp32", "kick"): 20.0, ("bf16", "kick"): 10.0, ("fp32", "sample"): 12.0, ("bf16", "sample"): 6.0}
    monkeypatch.setattr(benchmark, "textbook_seconds", lambda *_: 1.0)
    monkeypatch.setattr(benchmark, "sample_seconds", lambda bench, p, policy, L: ours[p, policy])
    monkeypatch.setattr(benchmark, "seconds", lambda device, f: {4: 120.0, 2: 60.0}.get(f()))
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda *_: nullcontext(bench.other))
    python, out = interpreter(FAKE), tmp_path / "b.json"
    line = f"--rounds 2 --device cpu --parts textbook --peers {python} --out {out}"
    monkeypatch.setattr(benchmark, "FULL", {"cpu": benchmark.QUICK})
    assert benchmark.main(line.split()) == 0
    result, text = json.loads(out.read_text()), capsys.readouterr().out
    rows = {row["what"]: row["value"] for row in result["rows"] if row["what"].startswith("peers")}
    assert rows == pytest.approx({
        "peers fp32 over sample fp32, batch per kick": 6,
        "peers fp32 over sample fp32, batch per kick, per gradient": 7.5,
        "peers bf16 over sample bf16, batch per kick": 6,
        "peers bf16 over sample bf16, batch per kick, per gradient": 15,
        "peers fp32 over sample bf16, batch per kick": 12,
        "peers fp32 over sample bf16, batch per kick, per gradient": 15,
        "peers fp32 over sample fp32, batch per sample": 10,
        "peers fp32 over sample fp32, batch per sample, per gradient": 7.5,
        "peers bf16 over sample bf16, batch per sample": 10,
        "peers bf16 over sample bf16, batch per sample, per gradient": 15,
        "peers fp32 over sample bf16, batch per sample": 20,
        "peers fp32 over sample bf16, batch per sample, per gradient": 15,
    })  # fmt: skip
    assert all(what in text for what in rows) and "left out" not in text
    assert [r["peers fp32"] for r in result["timings"]["textbook"]] == [120, 120]
    asked = f"{ROOT / 'tools' / 'peers.py'} cpu 8 3"
    asked = [f"{asked} {p}" for p in ("fp32", "bf16") * 3]  # one of each before the rounds
    assert Path(f"{python}.asked").read_text().splitlines() == asked


def test_without_peers_the_textbook_has_its_six_rows_alone(bench):
    contestants, rows = benchmark.textbook_part(bench)
    assert len(rows) == 6 and len(contestants) == 6 and not [what for what in contestants if "peers" in what]


@pytest.mark.parametrize(
    "words, reason",
    [
        ("print('Traceback'); sys.exit('ModuleNotFoundError: No module named lightly')", "No module named lightly"),
        ("print('ready', flush=True); input(); sys.exit('RuntimeError: no memory')", "RuntimeError: no memory"),
        ("print('ready', flush=True)", "ended without a word"),
        ("", "ended without a word"),
        (None, "No such file"),
    ],
)
def test_peers_that_cannot_start_are_left_out_with_one_line_and_the_rest_runs(
    interpreter, images, tmp_path, capsys, words, reason
):
    python = tmp_path / "none" if words is None else interpreter(f"#!{sys.executable}\nimport sys\n{words}")
    line = f"--quick --device cpu --parts gradient --out {tmp_path / 'b.json'} --peers {python}"
    assert benchmark.main(line.split()) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("peers: left out, ") and reason in first and str(python) in first
    assert "batch 8" in rest[0] and [x[:4] for x in rest[1:]] == ["rate", "rate", "writ"]


def test_peers_that_end_within_a_round_end_the_benchmark_with_their_last_words(
    interpreter, bench, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda *_: nullcontext(bench.other))
    monkeypatch.setattr(benchmark, "PARTS", {"made": lambda bench: ({"peers": lambda: bench.peers.sample("fp32")}, [])})
    three = "for n in (3, 3): input(), print(n, flush=True)\ninput(), sys.exit('no memory')"
    python = interpreter(f"#!{sys.executable}\nimport sys\nprint('ready', flush=True)\n{three}")
    line = f"--quick --device cpu --parts made --out {tmp_path / 'b.json'} --peers {python}"
    assert benchmark.main(line.split()) == 2
    assert capsys.readouterr().err == f"benchmark: {python}: no memory\n"


# What tools/peers.py uses of the packages: the views are the image as it is and its mirror image, the steps downhill
PACKAGES = {
    "lightly/transforms.py": """from torchvision.transforms.functional import hflip, to_tensor
class SimSiamTransform:
    def __init__(self, *sizes, **settings):
        self.settings = sizes, settings
    def __call__(self, image):
        return [to_tensor(image), to_tensor(hflip(image))]
""",
    "posteriors/sgmcmc/sghmc.py": """from types import SimpleNamespace
import torch
def build(log_posterior, **settings):
    def update(state, batch):
        state.batches.append(batch)
        grads, (value, aux) = torch.func.grad_and_value(log_posterior, has_aux=True)(state.params, batch)
        params = {name: p + settings["lr"] * grads[name] for name, p in state.params.items()}
        assert isinstance(aux, torch.Tensor)
        return SimpleNamespace(params=params, log_posterior=value, batches=state.batches), aux
    init = lambda params: seen.append(SimpleNamespace(params=params, batches=[], settings=settings)) or seen[-1]
    return SimpleNamespace(init=init, update=update)
seen = []
""",
    "lightly/__init__.py": "", "posteriors/__init__.py": "", "posteriors/sgmcmc/__init__.py": "",
}  # fmt: skip


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder with PACKAGES, from which this process and its children import."""
    for name, text in PACKAGES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    known = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - known:
        if name.partition(".")[0] in ("lightly", "posteriors"):
            del sys.modules[name]


def test_the_peers_draw_L_steps_on_our_energy_with_our_network_and_settings(packages, images):
    chain = peers.Assembled("cpu", 6, 2, 0)
    assert chain.loader.dataset.transform.settings == (
        (32,), {"gaussian_blur": 0, "normalize": {"mean": simsiam_sghmc.MEAN, "std": simsiam_sghmc.STD}})  # fmt: skip
    before = {name: p.clone() for name, p in chain.params.items()}
    found = chain.sample("fp32")
    (state,) = sys.modules["posteriors.sgmcmc.sghmc"].seen
    assert len(found) == len(state.batches) == chain.gradients == 2 and all(len(v) == 6 for v in state.batches[0])
    assert state.settings == {"lr": benchmark.CHAIN["eps"], "alpha": pytest.approx(Config.alpha / 1e-4)}
    view1, view2 = state.batches[0]
    assert torch.equal(view1, view2.flip(3)) and not torch.equal(view1, view2)
    model = simsiam_sghmc.initial_network(0)
    (p1, z1), (p2, z2) = model(view1), model(view2)
    assert found[0] == pytest.approx(-simsiam_sghmc.energy(p1, z1, p2, z2, False).item(), rel=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in chain.params.items())
    assert chain.sample("fp32") and sys.modules["posteriors.sgmcmc.sghmc"].seen[-1].params.keys() == before.keys()


def test_only_the_peers_network_is_in_bf16_and_only_when_asked(packages, images, monkeypatch):
    chain, seen, cosine = peers.Assembled("cpu", 6, 1, 0), [], torch.cosine_similarity
    chain.model.encoder.trunk[0].register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    monkeypatch.setattr(torch, "cosine_similarity", lambda p, z: seen.append(p.dtype) or cosine(p, z))
    chain.sample("fp32"), chain.sample("bf16")
    assert seen == [torch.float32] * 4 + [torch.bfloat16] * 2 + [torch.float32] * 2


# What the first import of a package does to the program in the process of the peers: no 12,000 gratings, few channels
LITTLE = f"""import sys
import simsiam_sghmc, torch
sys.path.append({str(ROOT / "tests")!r})
from slim_network import SlimSimSiam
images, labels = torch.zeros(24, 3, 32, 32, dtype=torch.uint8), torch.zeros(24, dtype=torch.int64)
simsiam_sghmc.load_data = lambda name: simsiam_sghmc.Images(images, labels, images, labels, name)
simsiam_sghmc.SimSiam = SlimSimSiam
"""


def test_the_process_of_the_peers_counts_its_gradients_and_ends_with_its_input(packages):
    (packages / "lightly/__init__.py").write_text(LITTLE)
    with peers.Peers(sys.executable, "cpu", 4, 2) as process:
        assert process.gradients == {"fp32": 2, "bf16": 2} and process.sample("fp32") == 2
    assert process.returncode == 0


def test_forward_passes_are_those_of_an_evaluation(bench, monkeypatch):
    """As many images through the network, in the same mode and size of block."""
    monkeypatch.setattr(simsiam_sghmc, "BLOCK", 8)
    monkeypatch.setattr(simsiam_sghmc, "RECALIBRATION", 16)
    monkeypatch.setattr(benchmark, "seconds", lambda device, f: f())
    monkeypatch.setattr(
        simsiam_sghmc, "Config", lambda **settings: Config(**settings, knn_k=3)
    )  # fmt: skip
    seen = []
    flatten = simsiam_sghmc.flatten_parameters

    def watched(model):
        model.encoder.trunk[0].register_forward_hook(lambda m, x, y: seen.append((len(x[0]), m.training)))
        return flatten(model)

    monkeypatch.setattr(simsiam_sghmc, "flatten_parameters", watched)
    contestants, (row,) = benchmark.evaluation_part(bench)
    assert (row.above, row.below, row.target) == ("evaluation", "its forward passes", "<= 1.15")
    assert contestants[row.above].args[1].func is simsiam_sghmc.evaluate
    passes = []
    for contestant in contestants.values():
        seen.clear()
        contestant()
        passes.append(sorted(seen))
    assert passes[0] == passes[1] and sum(n for n, training in passes[0] if not training) == 20 + 10


@pytest.mark.parametrize("awaited, found", [("", True), ("step done", True), ("never", False)])
def test_the_start_is_timed_up_to_the_line_awaited_and_the_program_is_ended(bench, monkeypatch, awaited, found):
    slow, started = "import time; time.sleep(120)" if found else "", []

    class Popen(benchmark.subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(benchmark.subprocess, "Popen", Popen)
    monkeypatch.setattr(benchmark, "PROGRAM", f"print('line one'); print('first step done', flush=True); {slow}")
    assert math.isfinite(benchmark.start_seconds(bench, awaited)) == found
    assert not found or started[0].returncode == -signal.SIGKILL


def test_the_programs_first_step_is_announced_after_it(monkeypatch, capsys):
    steps = []
    monkeypatch.setattr(Chain, "advance", lambda chain: (steps.append(chain), print("stepping")))
    monkeypatch.setattr(simsiam_sghmc, "main", lambda: Chain.advance("chain") and 0)
    monkeypatch.setattr(sys, "argv", ["-c", str(ROOT), "--samples", "1"])
    with pytest.raises(SystemExit):
        exec(benchmark.PROGRAM, {})
    assert steps == ["chain"] and sys.argv == ["-c", "--samples", "1"]
    assert capsys.readouterr().out == "stepping\nfirst step done\n"
    contestants, rows = benchmark.start_part(None)
    assert {row.what: contestants[row.above].args[1] for row in rows} == {
        "seconds to the first line": "", "seconds to the first step": "step done"}  # fmt: skip


def test_contestants_take_turns_and_a_ratio_is_the_median_of_those_within_a_round(bench, monkeypatch, tmp_path, capsys):
    times, called = {"a": [2.0, 200.0, 9.0], "b": [1.0, 100.0, 3.0]}, []
    contestants = {name: lambda name=name: called.append(name) or times[name][called.count(name) - 1] for name in times}
    rows = [benchmark.Row("a over b", "a", "b", 10, "<= 2"), benchmark.Row("a alone", "a")]
    monkeypatch.setattr(benchmark, "PARTS", {"made": lambda _: (contestants, rows)})
    benchmark.measure(bench, ["made"], 3, tmp_path / "b.json")
    result, text = json.loads((tmp_path / "b.json").read_text()), capsys.readouterr().out
    assert called == ["a", "b"] * 3
    assert result["rows"] == [
        {"part": "made", "what": "a over b", "value": 20, "target": "<= 2"},
        {"part": "made", "what": "a alone", "value": 9, "target": ""},
    ]
    assert result["timings"]["made"] == [{"a": 2, "b": 1}, {"a": 200, "b": 100}, {"a": 9, "b": 3}]
    assert "a over b" in text and "20.000  <= 2" in text and "batch 4" in text


def test_seconds_are_of_one_call(monkeypatch):
    clock, called = iter([10.0, 13.5]), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.seconds(CPU, lambda: called.append(1)) == 3.5 and called == [1]


def test_a_quick_run_prints_its_rows_and_replaces_an_earlier_result(images, tmp_path, capsys):
    out = tmp_path / "b.json"
    for _ in range(2):
        assert benchmark.main(["--quick", "--device", "cpu", "--parts", "gradient", "--out", str(out)]) == 0
    result, text = json.loads(out.read_text()), capsys.readouterr().out
    assert result.keys() == {"machine", "rows", "timings"} and result["machine"].endswith("batch 8")
    assert len(result["timings"]["gradient"]) == 1
    assert all(row["value"] > 0 and row["what"] in text for row in result["rows"]) and len(result["rows"]) == 2
    assert list(tmp_path.iterdir()) == [out] and benchmark.FULL["cpu"] == (512, 4096, 2048, 1000)
    assert [*benchmark.PARTS] == ["gradient", "sample", "textbook", "evaluation", "start"]


@pytest.mark.parametrize(
    "line", ["--parts gradient,speed", "--rounds 0", "--device tpu", "--out no/b.json", "--out .", "--fast"]
)
def test_bad_input_is_one_line_and_exit_code_2(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(line.split()) == 2
    text = capsys.readouterr()
    assert text.err.startswith("benchmark: ") and text.err.count("\n") == 1 and not text.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ['{"mine": 1}', "[1]", "text"])
def test_a_file_that_is_no_result_is_left_as_it_is(tmp_path, capsys, content):
    other = tmp_path / "notes.json"
    other.write_text(content)
    assert benchmark.main(["--quick", "--out", str(other)]) == 2
    assert other.read_text() == content and str(other) in capsys.readouterr().err
