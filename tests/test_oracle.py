"""What the oracle says about itself: the kill matrix, names, loading, vectors, ports."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
from torch_adapter import torch_adapter

import test_energy  # noqa: F401  (it registers its properties)
import test_sghmc  # noqa: F401  (likewise)
from oracle.__main__ import main
from oracle.arithmetic import INFINITY, assert_close, rational
from oracle.batches import generic_batch
from oracle.cases import generic_case
from oracle.check import verdict
from oracle.diagnosis import energy_of, right_energy, same
from oracle.energy import NAMES, Batch, energy_bound, gradient_bounds, truth, value
from oracle.energy_names import diagnose_energy
from oracle.implementations import NUMPY, ROOT, SINGLE, Implementation, Unusable, load, places
from oracle.inputs import Draw
from oracle.known_bugs import TABLE, bugs, bugs_of_size, implementation
from oracle.properties import PROPERTIES, first_failure
from oracle.sampler import fits, positions, rounding_bound, run
from oracle.step_names import diagnose_step
from oracle.variants import variant
from oracle.vectors import STEP_KEYS, batch_of, case_of, checked_vectors, read_vectors, vectors

CHECKS = {check.__name__: check for check, _ in PROPERTIES}
BUG = {row.name: implementation(row).module for target in TABLE for row in bugs(target)}


# --------------------------------------------------------------------------------------------------------- kill matrix

@pytest.mark.parametrize("target, capability, touched", [
    ("step", "sghmc_step", ["sghmc_step"]), ("energy", "energy", ["energy", "energy_grad"]),
    ("gradient", "energy_grad", [])], ids=["step", "energy", "gradient"])
def test_every_known_bug_is_killed_and_every_rewriting_accepted(target, capability, touched, capsys):
    """Every bug fails a property of its capability, a bug of size one at real sizes. Every rewriting passes all of what
    it touched; the rest is the reference, which passes them by itself."""
    lines, wrong, counts = [], [], {"bug": [0, 0], "rewriting": [0, 0]}
    for row in TABLE[target]:
        impl = implementation(row)
        tested = [capability] if row.kind == "bug" else touched
        impl = replace(impl, module=SimpleNamespace(**{name: getattr(impl.module, name) for name in tested}))
        failed = first_failure(impl, sized=row.sized)
        right = (row.kind == "bug") == (failed is not None)
        counts[row.kind][0] += right
        counts[row.kind][1] += 1
        lines.append(f"{row.kind:10}  {row.name:58}  {failed or 'passes'}")
        wrong += [] if right else lines[-1:]
    print("\n".join(lines))
    with capsys.disabled():
        print("\n{}: {} of {} known bugs killed, {} of {} correct rewritings accepted".format(
            target, *counts["bug"], *counts["rewriting"]))
    assert not wrong, "\n".join(wrong)


def test_a_replacement_ignores_comments_blanks_and_line_breaks_but_must_match_exactly_once():
    half = {"noise_variance  =  (2 * (C - B_hat)\n  * eps)  # other layout": "noise_variance = C * eps"}
    same_bug = variant(half).sghmc_step
    assert run(Implementation("half", SimpleNamespace(sghmc_step=same_bug)), replace(generic_case(), b_hat=0.0)).all()
    for old in ("no_such_name = 1", "np.zeros_like(Z1)\n", "eps / 2 * dU(X)"):
        if old.startswith("np"):
            variant({old: "Z1"})
        else:
            with pytest.raises(ValueError, match="times instead of once"):
                variant({old: "0"})


def test_each_single_setting_is_blind_to_some_bug_and_the_generic_setting_to_none():
    def hidden(**setting):
        case = replace(generic_case(L=setting.get("L", 3)), **setting)
        with np.errstate(all="ignore"):
            right = run(NUMPY, case)
            bound = rounding_bound(NUMPY, case)
            return {row.name for row in bugs("step") if (abs(run(implementation(row), case) - right) <= bound).all()}

    assert hidden() == set()
    assert {"drift: no M^-1", "momentum: mass ignored", "noise: mass ignored"} <= hidden(mass=1.0)
    assert {"gradient: stale in the second kick", "noise: one draw for both kicks"} <= hidden(L=1)
    assert {"noise: variance used as standard deviation"} <= hidden(alpha=0.5, mass=1.0, b_hat=0.0)
    assert {"noise: none", "friction: wrong sign", "friction: exp(-alpha)"} <= hidden(alpha=0.0, b_hat=0.0)


# -------------------------------------------------------------------------------------------------- names of the bugs

def step_of(edits):
    """The reference's step with a few replacements, and nothing else."""
    return Implementation("wrong", SimpleNamespace(sghmc_step=variant(edits).sghmc_step))


def named(row, text):
    return f"known bug: {row.name} (" in text and all(place in text for place in row.seen_in)


def test_known_bugs_of_the_sampler_give_different_outputs_and_are_named():
    case = generic_case()
    outputs = [(row.name, run(implementation(row), case)) for row in bugs("step")] + [("none", positions(case)[-1])]
    bound = rounding_bound(SINGLE, case)  # apart even in single precision
    for i, (name, x) in enumerate(outputs):
        equal = [other for other, y in outputs[:i] if (abs(x - y) <= 2 * bound).all()]
        assert not equal, f"{name} gives the output of {equal}"
    for row in bugs("step"):
        assert named(row, diagnose_step(implementation(row))), row.name


def test_known_bugs_of_the_sampler_are_named_beside_a_wrong_b_hat_or_mass():
    ignored = {"w, Z, M, B_hat = _checked(w, z, eps, L, alpha, mass, b_hat)":
               "w, Z, M, B_hat = _checked(w, z, eps, L, alpha, mass, 0)"}
    texts = {row: diagnose_step(step_of({**ignored, **row.edits})) for row in bugs("step")
             if not row.name.startswith("B^") and not set(ignored) & set(row.edits)}
    for row, text in texts.items():
        assert "your output equals that of a known bug: " in text and f"{row.name} (" in text, text
        elsewhere = "Elsewhere no known bug fits: b_hat may be wrong as well." in text
        assert text.startswith("at b_hat = 0 ") == elsewhere, text
    assert sum("at b_hat = 0 " in text for text in texts.values()) == len(texts) - 4  # those four have no b_hat in them
    text = diagnose_step(step_of({"X = w.copy()": "X = w.copy()\nalpha = alpha / 2",
                                  "Phi = np.sqrt(M) * normal(0)": "Phi = np.sqrt(M * M * M) * normal(0)"}))
    assert "at mass = 1 and b_hat = 0 your output equals that of a known bug: friction: alpha / 2" in text


def test_unknown_bugs_of_the_sampler_are_described_by_their_coefficients():
    def described(edits):
        return diagnose_step(step_of(edits)).partition("no known bug. One input at a time: ")[2]

    quarter = {"noise_variance = 2 * (C - B_hat) * eps": "noise_variance = 0.5**3 * (C - B_hat) * eps"}
    assert described(quarter).startswith("all noise z[1..]: 1 / 4 times what")
    other_order = described({"normal(2 * l + 1)": "normal(1 + l)", "normal(2 * l + 2)": "normal(1 + L + l)"})
    assert other_order.startswith("rows of z in the wrong places: used are z[2] as z[3], z[3] as z[5], z[4] as z[2], ")
    first = "Phi = (1 - alpha) * Phi - eps / 2 * dU(X) + noise_std * normal(2 * l + 1)"
    assert described({first: f"alpha = alpha * 0.9\n{first}"}).endswith("; and 10 more.")


def test_a_missing_value_error_is_said_to_be_that_and_not_a_bug_of_other_settings():
    clamped, everywhere = (implementation(row) for row in TABLE["step"] if row.refuses)
    with pytest.raises(AssertionError, match="instead of a ValueError. There the noise variance .* is negative"):
        CHECKS["test_b_hat_larger_than_the_friction_is_refused"](clamped, Draw(0))
    assert diagnose_step(clamped).startswith("b_hat = 2 C in all coordinates is not refused: ")
    assert diagnose_step(everywhere).startswith("b_hat = 2 C in one coordinate is not refused: ")


def test_known_bugs_of_the_energy_give_different_outputs():
    known = right_energy(SINGLE, generic_batch(), (False, True))
    bounds = {part: 2 * bound for part, (_, bound) in known.items()}
    answers = [(row.name, energy_of((row, "as written"), generic_batch(), (False, True)))
               for row in bugs("energy", "gradient")] + [("none", {name: want for name, (want, _) in known.items()})]
    for i, (name, x) in enumerate(answers):  # apart even in single precision
        equal = [other for other, y in answers[:i] if all(same(x[part], y[part], bounds[part]) for part in known)]
        assert not equal, f"{name} gives the output of {equal}"


@pytest.mark.parametrize("target", ["energy", "gradient"])
def test_known_bugs_of_the_energy_are_named(target):
    for row in bugs(target):
        with np.errstate(all="ignore"):
            assert named(row, diagnose_energy(implementation(row))), row.name


def diagnosis_of(**functions):
    return diagnose_energy(replace(NUMPY, module=SimpleNamespace(**functions)))


def test_a_wrong_energy_with_its_own_gradient_is_named():
    """As whoever lets a machine differentiate has it: U and gradients are wrong together."""
    rows = [row for row in bugs("energy") if not row.no_decimals]
    assert len(rows) + 2 == len(bugs("energy"))
    for i, row in enumerate(rows):
        made = {}  # by the size of the batch

        def answer(*batch, row=row, made=made):
            if len(batch[0]) not in made:
                made[len(batch[0])] = energy_of((row, "differentiated"), Batch(*batch[:4]), (False, True))
            return made[len(batch[0])]

        def energy(*batch, answer=answer):
            return answer(*batch)["U"]

        def energy_grad(*batch, answer=answer):
            return [answer(*batch)[f"dU/d{name}{' with stop-gradient' * batch[4]}"] for name in NAMES]

        text = diagnosis_of(energy=energy, energy_grad=energy_grad)
        assert f"your output equals that of a known bug: {row.name} (" in text
        if i % 8 == 0:
            text = diagnosis_of(energy=energy, energy_grad=lambda *a: [0 * x + 1 for x in a[:4]])
            assert f"your U equals that of a known bug: {row.name} (" in text
            assert text.endswith("And your whole gradient is wrong too, but by no known bug.")


def test_bugs_of_u_and_of_single_gradients_are_named_side_by_side_and_a_nan_is_a_value():
    half, sign = BUG["energy: half lost"], BUG["gradient: wrong sign"]
    long = BUG["gradient: no 1/norm for P"]
    text = diagnosis_of(energy=half.energy, energy_grad=sign.energy_grad)
    assert "your U equals that of a known bug: energy: half lost (" in text
    assert "your whole gradient equals that of a known bug: gradient: wrong sign (" in text
    text = diagnosis_of(energy_grad=lambda *a: [long.energy_grad(*a)[0], *NUMPY.energy_grad(*a)[1:]])
    assert "your dU/dp1 and dU/dp1 with stop-gradient equals that of a known bug: gradient: no 1/norm for P (" in text
    unclamped = BUG["energy: no absolute value, the mean not clamped"].energy
    assert "your output equals that of a known bug: energy: no absolute value" in diagnosis_of(energy=unclamped)
    assert diagnosis_of(energy=lambda *_: np.nan) == "no known bug. Wrong: U: not finite"
    text = diagnosis_of(energy=lambda *_: -1, energy_grad=lambda *a: [np.nan * x for x in a[:4]])
    assert text.startswith("no known bug. Wrong: U: -1, right is 2.52009288 (m 2.71828 instead of ")
    assert text.endswith(": not finite")


def test_wrong_normalisations_are_what_people_write():
    """The four that scaling each row beforehand would change, in three lines each."""
    by_hand = {
        "energy: normalised over the batch": lambda x: x / np.linalg.norm(x, axis=0),
        "energy: normalised by the whole batch": lambda x: x / np.linalg.norm(x),
        "energy: squared norm": lambda x: x / (x * x).sum(axis=1, keepdims=True),
        "energy: epsilon added to the norms": lambda x: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-3)}
    for name, normalise in by_hand.items():
        p1, z1, p2, z2 = map(normalise, generic_batch().arrays())
        U = -np.log(np.mean((abs((p1 * z2).sum(axis=1)) + abs((p2 * z1).sum(axis=1))) / 2))
        found = value(Implementation(name, BUG[name]), generic_batch())
        assert_close(found, Decimal(float(U)), Decimal("1e-12"), name)


def test_single_precision_is_called_that_only_if_the_outputs_are_single_precision_numbers():
    single = Implementation("float32", torch_adapter("float32").module)
    for text in (diagnose_step(single), diagnose_energy(single)):
        assert text == "right to single precision: look for a hidden float32, or set DTYPE = 'float32'."
    off = Implementation("off", SimpleNamespace(
        sghmc_step=lambda *a, **k: NUMPY.step(*a, **k) * (1 + 1e-9), energy=lambda *a: NUMPY.energy(*a) + 1e-9))
    assert "single" not in diagnose_step(off) and "single" not in diagnose_energy(off)


# ------------------------------------------------------------------------------------------------------------- loading

def test_implementations_that_cannot_be_tested_are_an_error_and_never_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name, text, reason in (("empty.py", "x = 1", "defines none of"),
                               ("broken.py", "import not_there", "No module named"),
                               ("half.py", "DTYPE = 'float16'\ndef energy(): pass", "DTYPE must be"),
                               ("syntax.py", "def", "SyntaxError")):
        (tmp_path / name).write_text(text)
        with pytest.raises(Unusable, match=reason):
            load(str(tmp_path / name))
    for place in ("no_such_module", "no/such/file.py"):
        with pytest.raises(Unusable, match=place):
            load(place)
    done = oracle_on("empty.py", tmp_path, "test_energy.py")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("SGHMC_IMPL: empty.py: defines none of") and len(done.stderr.splitlines()) == 1


def test_a_module_that_draws_its_own_noise_is_a_module(tmp_path):
    (tmp_path / "own.py").write_text("def sghmc_sample(params, grad, seed, *, eps, L, alpha): return params")
    assert load(str(tmp_path / "own.py")).has("sghmc_sample")


def test_paths_with_blanks_are_taken_whole(tmp_path):
    first, second = tmp_path / "my own sampler.py", tmp_path / "b.py"
    for file in (first, second):
        file.write_text("from reference_numpy import energy")
    assert places(f"{first} {second} pkg.module") == [str(first), str(second), "pkg.module"]
    assert places(f"'{first}' b") == [str(first), "b"] and places("") == []


def oracle_on(place, folder, *arguments, **environment):
    """pytest on a file of sentences, from another folder, with SGHMC_IMPL = place."""
    here = {k: v for k, v in os.environ.items() if k not in ("CI", "BUILD_NUMBER")}  # else pytest repeats all texts
    files = [ROOT / x if x.endswith(".py") else x for x in arguments]
    return subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files], cwd=folder,
                          env={**here, "SGHMC_IMPL": place, **environment}, capture_output=True, text=True)


def test_a_failure_shows_the_diagnosis_once_at_the_end_without_tracebacks_from_any_folder(tmp_path):
    half = {"m = np.mean((np.abs(s12) + np.abs(s21)) / 2)": "m = np.mean(np.abs(s12) + np.abs(s21))"}
    (tmp_path / "mine.py").write_text(f"from oracle.variants import variant\nenergy = variant({half}).energy\n")
    done = oracle_on("mine.py", tmp_path, "test_energy.py", "-k", "a_batch_that_hides_no_bug or worked_example")
    diagnosis = "mine.py, energy: your output equals that of a known bug: energy: half lost"
    assert done.returncode == 1 and len(done.stdout.splitlines()) < 35, done.stdout
    assert done.stdout.count("known bug: ") == 1 and diagnosis in done.stdout, done.stdout
    assert "mine.py defines no sghmc_step, energy_grad, sghmc_sample: skipped" in done.stdout
    assert not any(word in done.stdout for word in ("reference_numpy.py", "During handling", "Falsifying", "Draw 1"))


def test_a_foreign_module_needs_no_torch_nor_the_tests_of_the_program_and_what_it_lacks_is_skipped_with_a_reason(
    tmp_path
):
    """The tests of the program, in tests/, would end the run here: they import torch."""
    (tmp_path / "torch.py").write_text("raise ImportError('the oracle imports torch')")
    (tmp_path / "energy_only.py").write_text("from reference_numpy import energy")
    done = oracle_on("energy_only.py", tmp_path, "-rs", "test_sghmc.py", "test_energy.py", str(ROOT / "tests"),
                     "-k", "worked_example or leaves_a_torque or last_half_kick_never", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 2 skipped" in done.stdout
    assert "energy_only.py defines no sghmc_step, energy_grad, sghmc_sample: skipped" in done.stdout


# ------------------------------------------------------------------------------------------------------------- vectors

def test_vectors_are_what_the_command_writes_byte_for_byte():
    for name, text in vectors().items():
        assert (ROOT / "vectors" / name).read_bytes() == text.encode(), f"{name}: run python -m oracle vectors"
    assert sum(path.stat().st_size for path in (ROOT / "vectors").iterdir()) < 400_000


def test_step_vectors_agree_with_rational_arithmetic_to_the_last_bit():
    for name, v in read_vectors("step").items():
        case = case_of(v)
        X = positions(case)
        assert v["w_new"] == [float(x) for x in X[-1]], name
        assert v["trajectory"] == [[float(x) for x in row] for row in X], name
        order = [(j + 1) // 2 for j in range(2 * case.L)]
        assert v["g"] == [[float(x) for x in case.force(X[l], l)] for l in order], name
        if not {"exact", "wide"} & set(v["flags"]):
            for single in (SINGLE, NUMPY):
                assert (rounding_bound(single, case) <= single.u * rational(v["bound"]) * (1 + NUMPY.u)).all(), name


def test_flags_of_the_step_vectors_say_what_they_are():
    for name, v in read_vectors("step").items():
        case, flags = case_of(v), v["flags"]
        facts = {"exact": fits(case, 24) and v["bound"] == [0] * case.n, "leapfrog": case.alpha == 0,
                 "wide": fits(case, 53) and not fits(case, 24) and v["bound"] == [0] * case.n,
                 "unit_mass": np.all(case.mass == 1), "one_leapfrog": case.L == 1, "b_hat": np.any(case.b_hat != 0),
                 "diagonal_mass": isinstance(v["mass"], list), "asymmetric": (case.A != case.A.T).any(),
                 "many_leapfrogs": case.L > 20, "large": case.n > 128 and case.n % 8, "diagonal": case.A.ndim == 1}
        for flag, holds in facts.items():
            assert (flag in flags) == bool(holds), f"{name}: {flag}"


def test_energy_vectors_agree_with_60_digit_decimals_and_their_flags_are_true():
    """`bound` is that of oracle/energy.py over u, for u = 2^-24, to six digits; null where a cosine is 0. Nearly
    orthogonal rows have it for u = 2^-53: in single precision there is none."""
    def printed(bound):
        return None if bound == INFINITY else float(f"{bound * u.u.denominator:.6g}")

    for name, v in read_vectors("energy").items():
        batch = batch_of(v)
        right, u = truth(batch, v["stop_grad"]), NUMPY if "orthogonal" in v["flags"] else SINGLE
        assert v["u"] == float(round(right.U, 45)), name
        assert v["grads"] == [[[float(round(x, 45)) for x in row] for row in g] for g in right.grads], name
        assert v["bound"]["u"] == printed(energy_bound(u, batch, right)), name
        bounds = gradient_bounds(u, batch, right)
        assert v["bound"]["grads"] == [[printed(e) for e in column[:, 0]] for column in bounds], name
        norms = [x for n in right.norms for x in n[:, 0] if x < INFINITY]
        facts = {"generic": bool(v["wrong"]), "stop_grad": v["stop_grad"], "zero_row": len(norms) < 4 * len(batch.p1),
                 "collinear": all(((1 - abs(s)) < Decimal("1e-50")).all() for s in right.s) and v["u"] == 0,
                 "large": any(size > 128 and size % 8 for size in batch.p1.shape),
                 "orthogonal": right.m < Decimal("2e-9"),
                 "scaled": min(norms) < Decimal("1e-5") or max(norms) > Decimal("1e5")}
        assert set(v["flags"]) == {flag for flag, holds in facts.items() if holds}, name


def test_generic_vectors_hide_no_known_bug():
    for name, v in read_vectors("step").items():
        if "generic" in v["flags"]:
            listed = {wrong["name"] for wrong in v["wrong"]}
            assert listed == {row.name for row in bugs("step")}, name
            bound = SINGLE.u * 2 * rational(v["bound"])  # apart even in single precision
            answers = [v["w_new"]] + [wrong["w_new"] for wrong in v["wrong"]]
            for i, x in enumerate(answers):
                assert not any((abs(rational(x) - rational(y)) <= bound).all() for y in answers[:i]), (name, i)
    listed = {wrong["name"] for v in read_vectors("energy").values() for wrong in v["wrong"]}
    assert listed == {row.name for row in bugs("energy", "gradient") if not row.no_decimals}


def test_vectors_with_unknown_keys_repeated_ids_or_unexplained_flags_are_refused():
    def spoil(change):
        content = json.loads((ROOT / "vectors" / "step.json").read_text())
        change(content)
        with pytest.raises(ValueError):
            checked_vectors(content, STEP_KEYS)

    spoil(lambda c: c.update(extra=1))
    spoil(lambda c: c.update(format=2))
    spoil(lambda c: c["vectors"][0].update(extra=1))
    spoil(lambda c: c["vectors"][0].pop("w"))
    spoil(lambda c: c["vectors"][0].update(id=c["vectors"][1]["id"]))
    spoil(lambda c: c["vectors"][0]["flags"].append("unexplained"))


# --------------------------------------------------------------------------------------------------------- the judge

def results_of(impl, *flags):
    """What a program in another language would write, for the vectors with any of the flags, or for all."""
    files = [read_vectors(kind).items() for kind in ("step", "energy")]
    steps, energies = ({name: v for name, v in file if not flags or {*flags} & {*v["flags"]}} for file in files)
    results = [{"id": f"step/{name}", "w_new": [float(x) for x in run(impl, case_of(v))]} for name, v in steps.items()]
    for name, v in energies.items():
        batch = batch_of(v).arrays()
        grads = [g.tolist() for g in impl.energy_grad(*batch, v["stop_grad"])]
        results.append({"id": f"energy/{name}", "u": impl.energy(*batch), "grads": grads})
    return [{**result, "dtype": impl.dtype} for result in results]


def of(name):
    return next(implementation(row) for target in TABLE for row in TABLE[target] if row.name == name)


@pytest.fixture
def check(tmp_path, capsys):
    """check(results or text) -> (exit code, stdout), one line on stderr exactly if the code is 2."""
    def judge(results):
        (tmp_path / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
        code = main(["check", str(tmp_path / "results.json")])
        out, err = capsys.readouterr()
        assert (code == 2) == (len(err.splitlines()) == 1) and "Traceback" not in err
        return code, out
    return judge


def test_check_passes_right_results_and_refuses_what_is_none(check):
    for impl in (NUMPY, torch_adapter("float64"), torch_adapter("float32")):
        assert check(results_of(impl))[0] == 0, impl.name
    good = results_of(NUMPY)
    assert check(good[1:])[0] == 1
    for result, key in ((good[0], "w_new"), (good[-1], "u")):
        for bad in (None, "x", [], float("nan"), [[1.0]]):
            assert check([{**r, key: bad} if r is result else r for r in good])[0] == 1
    for unreadable in ("", "{", "[1]", "3", {"a": 1}, good + good[:1], [{"id": "step/unknown", "w_new": []}],
                       [{**good[0], "extra": 1}], [{**good[0], "dtype": "float16"}], [{"id": good[0]["id"]}],
                       [{"id": [], "u": 1}], [{**good[0], "dtype": ["float64"]}]):
        assert check(unreadable)[0] == 2, unreadable


def test_check_reads_nan_and_infinity_in_any_spelling_as_wrong_numbers_and_judges_the_rest(check):
    good = results_of(NUMPY)
    text = json.dumps([{**r, "w_new": ["@"] * 4} if r["id"] == "step/paper" else {**r, "u": "@"}
                       if r["id"] == "energy/batch" else r for r in good])
    for words in ("nan -nan NaN NAN +NaN", "nan(0x8) -nan(ind) .nan NaN32 +nan.0", "NA null -1.#IND 1.#QNAN NaN",
                  "inf -inf +Inf INF 1.#INF", "Infinity -Infinity +Infinity -.inf -inf.0",
                  f"\u221e -\u221e 1e999 -1{'0' * 400} inf32", '"nan" "-inf" "nan" "nan" "inf"',
                  '"x" "x" "x" "x" "-nan(ind)"'):
        content = text
        for word in words.split():
            content = content.replace('"@"', word, 1)
        code, out = check(content)
        assert code == 1 and f"{len(good) - 2} passed, 2 failed" in out, (words, out)
        entries = "not numbers" if "x" in words.split('"') else "W_(t+1): got "
        assert f"FAIL  step/paper: {entries}" in out and "FAIL  energy/batch: " in out, words
        assert entries == "not numbers" or "(4 of 4 are wrong)" in out, words


def test_check_says_what_it_does_not_judge(check):
    out = check(results_of(torch_adapter("float32")))[1]
    for name in ("step/wide", "step/wide-deep", "energy/orthogonal"):
        assert f"      {name}: not judged: it asks for more than single precision has" in out
    assert out.endswith(f"{out.count('pass  ')} passed, 0 failed, 3 not judged\n")
    kink = "2 rows of its gradients are not judged where a cosine is 0, but for being finite"
    assert f"pass  energy/zero-row ({kink})" in out


def test_check_judges_an_energy_without_gradients_and_says_that_there_are_none(check):
    for absent in ({}, {"grads": None}, {"grads": []}):
        results = [r if "w_new" in r else {"id": r["id"], "u": r["u"], **absent} for r in results_of(NUMPY)]
        code, out = check(results)
        assert code == 0 and "pass  energy/generic (its gradients are not judged: there are none)" in out, absent
        code, out = check([{**r, "u": 2 * r["u"]} if "u" in r else r for r in results])
        assert code == 1 and "energy: your output equals that of a known bug: energy: log doubled (" in out, absent


def test_check_names_the_flag_that_all_failures_share(check):
    out = check(results_of(of("B^: ignored")))[1]
    assert "All failures, and only they, have the flag b_hat: the estimate B^" in out
    text = json.dumps([{**r, "w_new": "x"} if r["id"] in ("step/generic", "step/exact-b-hat") else r
                       for r in results_of(NUMPY)])
    assert "All failures, and 2 of those that pass, have the flag b_hat: the estimate B^" in check(text)[1]
    one = [{**r, "w_new": "x"} if r["id"] == "step/asymmetric" else r for r in results_of(NUMPY)]
    assert "The failure, and only it, has the flag asymmetric: " in check(one)[1]
    assert "Only vectors with the flag one_leapfrog pass: " in check(results_of(of("loop: one leapfrog whatever L")))[1]


def test_check_recognises_single_precision_beside_vectors_that_it_cannot_hold(check):
    """Of each half; and numbers that are no single precision numbers are not called that."""
    single = [{k: x for k, x in r.items() if k != "dtype"} for r in results_of(torch_adapter("float32"))]
    code, out = check(single)
    assert code == 1 and "step: right to single precision; " in out and "energy: right to single precision; " in out
    off = [{**r, "w_new": [x + 1e-9 for x in r["w_new"]]} if "w_new" in r else {**r, "u": r["u"] + 1e-9}
           for r in single]
    assert "single" not in check(off)[1]


def test_check_names_no_bug_that_a_passing_vector_rules_out(check):
    for name, other in (("stop-gradient: missing", "inverted"), ("stop-gradient: inverted", "missing")):
        out = check(results_of(of(name)))[1]
        assert f"energy: your output equals that of a known bug: {name} (" in out and other not in out, name
        out = check(results_of(of(name), "stop_grad"))[1]  # where both answer the same
        assert name in out and f"Or: stop-gradient: {other}" in out or f"{other} (" in out, name


def test_check_names_bugs_of_size_and_refuses_small_numbers_added_to_the_mean(check):
    few = {"size: noise repeated after 4096 coordinates", "size: nothing moved after 4096 coordinates",
           "size: B^ of the first 1024 in every block", "size: nothing moved after 65536 coordinates",
           "size: the noise of 64 rows again and again", "size: at most 50 leapfrogs",
           "size: mean of the means of chunks of 1024 pairs", "size: dot product of the first 512 features",
           "size: no gradient for pairs after the first 512", "size: gradient of the first 1024 features"}
    for row in (row for target in TABLE for row in bugs_of_size(target)):
        code, out = check(results_of(implementation(row), "generic", "large", "many_leapfrogs"))
        failed = {line.split()[1].rstrip(":") for line in out.splitlines()
                  if line.startswith("FAIL") and "no result" not in line}
        assert failed <= {"step/thousand", "step/many-leapfrogs", "energy/large-batch", "energy/long-rows"}, row.name
        assert bool(failed) == (row.name not in few) == (f"{row.name} (" in out), (row.name, out)
    for tiny in ("1e-2", "1e-4", "1e-6", "1e-8"):
        for edits in ({"np.clip(m, TINY, np.float64(1))": f"np.clip(m, {tiny}, np.float64(1))"},
                      {"return float(0 - np.log(m))": f"return float(0 - np.log(m + {tiny}))"}):
            out = check(results_of(Implementation(tiny, variant(edits)), "orthogonal"))[1]
            assert "FAIL  energy/orthogonal: U: got " in out, edits


def test_check_names_the_bug_of_wrong_results(check):
    for target in TABLE:
        for row in bugs(target):
            if not row.no_decimals:
                with np.errstate(all="ignore"):
                    code, out = check(results_of(implementation(row), "generic"))
                assert code == 1 and "known bug: " in out and f"{row.name} (" in out, row.name


def test_check_shows_the_first_wrong_entry_and_names_what_a_part_of_the_output_equals(check):
    def answer(**wrong):
        return check([{"id": "energy/generic", "u": v["u"], "grads": v["grads"], **wrong}])[1]

    v = read_vectors("energy")["generic"]
    half, sign = (next(wrong for wrong in v["wrong"] if wrong["name"] == name)
                  for name in ("energy: half lost", "gradient: wrong sign"))
    assert verdict(v, {"u": v["u"], "grads": v["grads"]}).text is None
    assert "known bug: energy: half lost (" in answer(u=half["u"])
    both = answer(u=half["u"], grads=sign["grads"])
    assert "your U equals that of a known bug: energy: half lost (" in both
    assert "your whole gradient equals that of a known bug: gradient: wrong sign (" in both
    assert "absolute value" in answer(u=float("nan"))
    other = [v["grads"][0], [[*row[:2], 9, 9] for row in v["grads"][1]], *v["grads"][2:]]
    assert (f"dU/dz1: got 9.0 in [0][2], right {v['grads'][1][0][2]}, allowed error " in answer(grads=other))
    assert "(6 of 12 are wrong)" in answer(grads=other)


def test_command_line_shows_its_usage_and_exits_with_2_on_bad_usage(capsys):
    for arguments in (["-h"], ["check", "-h"], ["vectors", "--help"]):
        assert main(arguments) == 0 and capsys.readouterr().out.startswith("usage: ")
    for arguments in ([], ["check"], ["vectors", "more"], ["check", "/no/such/file"], ["help"]):
        code = main(arguments)
        out, err = capsys.readouterr()
        assert code == 2 and len(err.splitlines()) == 1 and not out, arguments
    done = subprocess.run([sys.executable, "-m", "oracle", "help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (2, err, "")


# --------------------------------------------------------------------------------------------------------------- ports

@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_port_passes_the_vectors(tmp_path):
    done = subprocess.run(["node", ROOT / "ports" / "port.mjs"], capture_output=True, text=True, check=True)
    (tmp_path / "results.json").write_text(done.stdout)
    assert main(["check", str(tmp_path / "results.json")]) == 0


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_port_passes_this_oracle(tmp_path):
    done = oracle_on("ports/jax_port.py", tmp_path, "-q", "test_sghmc.py", "test_energy.py")
    assert done.returncode == 0, done.stdout
