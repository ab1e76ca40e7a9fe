"""The benchmark's own arithmetic, that it measures the program's own steps, and that it leaves other files alone."""

import json
import sys
from pathlib import Path

import pytest
import torch

import simsiam_sghmc
from simsiam_sghmc import Images

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import benchmark  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def images(monkeypatch):
    """Few images, which are also the gratings of this test."""
    pictures = torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(24) % 3
    data = Images(pictures, labels, pictures, labels, "noise")
    monkeypatch.setattr(simsiam_sghmc, "load_data", lambda *_: data)
    return data


@pytest.fixture
def bench(images):
    return benchmark.Bench(CPU, images, 1, frozenset(benchmark.PARTS), False)


def test_points_on_a_line_have_no_residual_and_one_off_it_shows():
    assert benchmark.line_fit([1, 2, 3, 5], [5, 7, 9, 13]) == pytest.approx((2, 3, 0), abs=1e-9)
    slope, intercept, residual = benchmark.line_fit([0, 1, 2], [1, 1, 4])
    assert (slope, intercept, residual) == pytest.approx((1.5, 0.5, 1))


def test_ratios_are_taken_within_a_round_so_that_a_slow_spell_cancels():
    rounds = [{"a": 2, "b": 1}, {"a": 200, "b": 100}, {"a": 3, "b": 1}, {"b": 7}]
    assert benchmark.median_ratio(rounds, "a", "b") == 2
    assert benchmark.median(rounds, "a") == 3


def test_contestants_take_turns_and_the_long_ones_spare_the_last_round():
    called = []
    contestants = {name: lambda name=name: called.append(name) or len(called) for name in ("x", "long y")}
    times = benchmark.race(contestants, 3, sparing=["long"])
    assert called == ["x", "long y", "x", "long y", "x"]
    assert times == [{"x": 1, "long y": 2}, {"x": 3, "long y": 4}, {"x": 5}]
    assert benchmark.race(contestants, 1, sparing=["long"])[0].keys() == contestants.keys()


def test_a_target_is_met_or_not_and_a_quick_run_does_not_judge(bench):
    row = benchmark.Row("sample", "a sample", 1.1, "x floor")
    assert benchmark.judged(bench, row, "<=", 1.08).met is False
    assert benchmark.judged(bench, row, ">=", 1.08).met is True
    assert "NOT MET" in benchmark.text_of(benchmark.judged(bench, row, "<=", 1.08))
    assert benchmark.judged(bench._replace(quick=True), row, "<=", 1.08).met is None


def test_a_gradient_at_batch_512_is_082_tflop():
    assert 512 * benchmark.flops_per_pair() / 1e12 == pytest.approx(0.82, rel=0.01)


@pytest.mark.parametrize("policy", ["kick", "sample"])
def test_what_is_timed_is_the_programs_own_sample(bench, policy):
    settings = {"L": 2, "batch_per": policy}
    step, chain, other = simsiam_sghmc.sghmc_step, *(benchmark.new_chain(bench, 4, **settings) for _ in range(2))
    parts = benchmark.split(chain)
    simsiam_sghmc.sghmc_sample(other)
    assert torch.equal(chain.W, other.W) and chain.step == 1 and len(chain.pending) == 1
    assert chain.grad_evals == benchmark.POLICIES[policy](2)
    assert parts.keys() == {"augmentation", "gradient", "noise and update", "logging"} and min(parts.values()) > 0
    assert simsiam_sghmc.sghmc_step is step


def test_the_textbook_sample_moves_and_takes_2L_gradients(bench):
    textbook = benchmark.Textbook(CPU, bench.data.train, 2, L=2, workers=1)
    before = [p.clone() for p in textbook.model.parameters()]
    textbook.sample("fp32")
    assert len(textbook.energies) == 4 and all(0 <= U < 10 for U in textbook.energies)
    assert not any(torch.equal(p, q) for p, q in zip(before, textbook.model.parameters(), strict=True))


@pytest.mark.long
def test_a_quick_run_prints_its_rows_and_writes_them(images, tmp_path, capsys):
    out = tmp_path / "b.json"
    assert benchmark.main(["--quick", "--device", "cpu", "--parts", "rate,floor", "--out", str(out)]) == 0
    result, text = json.loads(out.read_text()), capsys.readouterr().out
    assert result.keys() == {"benchmark", "quick", "rounds", "machine", "rows", "raw"}
    assert result["quick"] is True and result["rounds"] == 1 and result["machine"]["device"] == "cpu"
    assert {row["part"] for row in result["rows"]} == {"rate", "floor"}
    assert all(row["value"] > 0 and row["met"] is None and row["what"] in text for row in result["rows"])
    assert [list(race["rounds"][0]) for race in result["raw"]["race"].values()] == [
        ["product fp32", "floor fp32", "product bf16", "floor bf16"], ["floor fp32", "floor bf16"]
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [out]
    benchmark.checked_out(out)
    assert "will be replaced" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["--parts rate,speed", "--rounds 0", "--device tpu", "--out no/b.json", "--out .", "--fast"]
)
def test_bad_input_is_one_line_and_exit_code_2(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(line.split()) == 2
    text = capsys.readouterr()
    assert text.err.startswith("benchmark: ") and text.err.count("\n") == 1 and not text.out


def test_a_file_that_is_no_result_is_left_as_it_is(tmp_path, capsys):
    other = tmp_path / "notes.json"
    other.write_text('{"mine": 1}')
    assert benchmark.main(["--quick", "--out", str(other)]) == 2
    assert other.read_text() == '{"mine": 1}' and str(other) in capsys.readouterr().err
