"""Names of bugs that fit the whole answer, descriptions of what has none, and what a failing run prints."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from oracle.arithmetic import Disagreement
from oracle.batches import generic_batch
from oracle.cases import generic_case
from oracle.corner_cases import integer_cases
from oracle.energy_names import diagnose_energy
from oracle.formula import words
from oracle.implementations import NUMPY, ROOT, Implementation
from oracle.inputs import Draw
from oracle.known_bugs import TABLE, bugs_of_size, implementation
from oracle.probes import probe_case, responses
from oracle.sampler import assert_step
from oracle.snippets import snippet
from oracle.step_names import RIGHT, diagnose_step
from oracle.variants import variant

GRAD = "return _vector(grad(X.copy()), w.shape, 'grad(X)')"
CHECKED = "w, Z, M, B_hat = _checked(w, z, eps, L, alpha, mass, b_hat)"
NORMAL = "return Z[j] if j < len(Z) else np.zeros_like(w)"
FIRST = "Phi = (1 - alpha) * Phi - eps / 2 * dU(X) + noise_std * normal(2 * l + 1)"
DRIFT = "X = X + eps / M * Phi"
KNOWN = "your output equals that of a known bug: "


def by_gradient(change):
    return {GRAD: f"G = _vector(grad(X.copy()), w.shape, 'grad(X)')\nreturn {change}"}


def then(line):
    return {CHECKED: f"{CHECKED}\n{line}"}


STEPS = {  # how the reference is changed -> words of the diagnosis
    # known bugs that sit somewhere only
    "a vector of masses is its own root": (
        {"np.sqrt(M)": "(M if np.ndim(mass) else np.sqrt(M))"},
        f"with a mass for each coordinate {KNOWN}momentum: M used as its standard deviation ("),
    "the last drift is lost if L is even": ({"range(L)": "range(L - 1 + L % 2)"},
                                            f"where L is even {KNOWN}loop: L - 1 leapfrogs ("),
    "the remainder of 4 has no friction": (
        {"X = w.copy()": "X = w.copy()\nalpha = alpha * (np.arange(len(w)) < len(w) // 4 * 4)"},
        f"in coordinate 4 of 5; coordinates 4 to 6 of 7; coordinates 1108 to 1110 of 1111 {KNOWN}friction: none ("),
    "the mean of the masses": (then("M = M.mean() + 0 * M"), f"{KNOWN}mass: the mean of the masses"),
    # weights in terms of the settings
    "noise of a quarter of the variance and B^": (
        {"noise_variance = 2 * (C - B_hat) * eps": "noise_variance = (C - B_hat) * eps / 8"},
        "all noise z[1..]: 1 / 4 times what it should be"),
    "B^ of the velocities": ({"noise_variance = 2 * (C - B_hat) * eps": "noise_variance = 2 * (C - B_hat * M) * eps"},
                             "with b_hat: B^ is taken off the noise variance M times (right: 2 B^ eps"),
    "eps twice in a later kick": ({FIRST: FIRST.replace("eps / 2", "(eps / 2 if l == 0 else eps * eps / 4)")},
                                  "the gradient at X_1 in X_2 - X_1: eps / 2 times what it should be in the opening"),
    "momentum times eps^2": ({"Phi = np.sqrt(M) * normal(0)": "Phi = eps * eps * np.sqrt(M) * normal(0)"},
                             "z[0] in X_1 - X_0: eps^2 times what it should be"),
    "half a drift in the first leapfrog": ({DRIFT: "X = X + eps / M * Phi / (2 if l == 0 else 1)"},
                                           "z[0] in X_1 - X_0: 1 / 2 times what it should be"),
    "a row that is not used": ({NORMAL: f"if j == 3:\n    return np.zeros_like(w)\n{NORMAL}"},
                               "z[3] in X_2 - X_1: not used"),
    # rows, coordinates
    "rows shifted": ({NORMAL: "return Z[(j + 3) % len(Z)]"}, "rows of z in the wrong places: used are z[0] as z[4]"),
    "a ring of 20 rows": ({NORMAL: "return Z[j % 20]"}, "at L = 23: rows of z in the wrong places: used are z[0] as "),
    "neighbours mixed": ({DRIFT: "X = X + eps / M * np.roll(Phi, 1)"},
                         "coordinates are mixed: z[0] of coordinate 0 moves coordinate 1 by"),
    "the answer in reverse order": ({"return X": "return X[::-1].copy()"},
                                    "coordinates are mixed: W_t of coordinate 0 moves coordinate 3 by 1 in X_3"),
    "noise in blocks of 16": ({NORMAL: "return np.resize(Z[j][:16], w.shape)"},
                              "z[0] of coordinate 0 moves coordinate 16 by"),
    "the masses of the first block": (
        {DRIFT: "X = X + eps / np.resize(M[:1000], w.shape) * Phi"},
        "wrong in coordinates 1000 to 1110 of 1111 alone: the drift eps M^-1 Phi divides by the mass of coordinate "
        "i - 1000 in coordinate i"),
    # what depends on W or on the size of a gradient
    "weight decay": (by_gradient("G + 0.0003 * X"), "weight decay: 0.0003 times the position is added to each grad"),
    "decoupled weight decay": ({DRIFT: "X = 0.999 * X + eps / M * Phi"},
                               "weight decay: each move keeps 0.999 of the position"),
    "clipped by value": (by_gradient("np.clip(G, -3, 3)"), "gradient clipped: each entry is cut off at 3"),
    "clipped by norm": (by_gradient("G * np.minimum(1, 5 / np.sqrt((G * G).sum()))"), "cut off at the norm 5"),
    "normalised": (by_gradient("G / np.sqrt((G * G).sum())"), "gradient clipped: it is brought to the norm 1"),
    "draws cut off": ({NORMAL: "return np.clip(Z[j], -1, 1)"}, "z[0] clipped: each entry is cut off at 1"),
    "large draws dropped": ({NORMAL: "return Z[j] * (abs(Z[j]) < 2)"}, "counts as 0, of 1 as "),
    "B^ cut off": (then("B_hat = np.minimum(B_hat, 0.01)"), "b_hat = 0.05 lowers the noise variance as 0.01 should"),
    "something added": ({"return X": "return X + 1e-7"}, "every coefficient is right, but X_3 is off by 1e-07 in"),
    # what small inputs in floats do not show
    "integer masses rounded": (then("M = M // 2 * 2 if np.asarray(mass).dtype.kind == 'i' else M"),
                               "all right; wrong with a mass of integers alone: W_(t+1)[0] is "),
    "no kick without a gradient": (
        {FIRST: f"G = dU(X)\n{FIRST.replace('dU(X)', 'G')} if G.any() else Phi"},
        "wrong in no gradient of the cases asked: W_(t+1)[0] is "),
    "kept by a relative distance": (
        {CHECKED: f"{CHECKED}\nlast = []",
         GRAD: "last[:] = last if last and (abs(X - last[0]) <= 1e-6 * abs(X)).all() else [X.copy(), grad(X.copy())]\n"
               "return last[1]"}, f"{KNOWN}gradient: kept where the position is nearly the same ("),
    "rows reused in the last L % 4 leapfrogs": (
        {NORMAL: "return Z[(j - 1) % 8 + 1 if j > (L // 4 * 4 or L) * 2 else j]"},
        "at L = 23: rows of z in the wrong places: used are z[1] as z[1] and z[41]"),
    "the caller's array added to": (
        {CHECKED: "caller, (w, Z, M, B_hat) = (w, _checked(w, z, eps, L, alpha, mass, b_hat))", "return X":
         "caller[:] = X\nreturn X"}, "the caller's w is written"),
    # short formats
    "half precision": (by_gradient("G.astype(np.float16)"), "precision: the gradient is rounded to float16"),
    "float32 draws": ({"Phi = np.sqrt(M) * normal(0)": "Phi = np.sqrt(M) * normal(0).astype(np.float32)"},
                      "precision: z[0], or the momentum, is rounded to float32"),
    "the result in half precision": ({"return X": "return X.astype(np.float16).astype(float)"},
                                     "precision: W_t, or the position, is rounded to float16"),
    "a float32 setting": (then("eps = np.float64(np.float32(eps))"), "a setting, or a constant made from one, passes"),
}


def step(edits):
    return Implementation("wrong", SimpleNamespace(sghmc_step=variant(edits).sghmc_step))


@pytest.mark.parametrize("name", STEPS)
def test_wrong_samplers_are_named_where_the_bug_sits_or_described_by_their_coefficients(name):
    edits, expected = STEPS[name]
    text = diagnose_step(step(edits))
    assert expected in text and (KNOWN in expected or KNOWN not in text), text


def velocities(*, lr, noise=1.0):
    """Algorithm 1 for u = eps M^-1 Phi: lr(eps, M) is the learning rate of its gradients, right is eps^2 / M; noise:
    the factor of its draws."""
    def sghmc_step(w, z, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0):
        X, u, scale = np.array(w), noise * eps / np.sqrt(mass) * z[0], noise * eps / mass
        for j in range(1, 2 * L):
            u = (1 - alpha) * u - lr(eps, mass) / 2 * grad(X)
            u = u + scale * np.sqrt(2 * (alpha * mass - b_hat * eps)) * z[j]
            X = X + u if j % 2 else X
        return X
    return Implementation("wrong", SimpleNamespace(sghmc_step=sghmc_step))


def test_a_learning_rate_of_eps_instead_of_eps_squared_is_named_whatever_else_is_wrong():
    assert diagnose_step(velocities(lr=lambda eps, M: eps**2 / M)).startswith("b_hat = 2 C")
    for lr, name in ((lambda eps, M: eps / M, "no eps"), (lambda eps, M: 2 * eps / M, "neither eps nor 1/2")):
        assert diagnose_step(velocities(lr=lr)).startswith(f"{KNOWN}gradient: {name} (")
    text = diagnose_step(velocities(lr=lambda eps, M: eps / M, noise=1.5))
    assert "all gradients: 1 / eps times what it should be (a gradient moves X_(l+1) at the learning rate eps^2" in text


def test_the_square_root_of_an_integer_mass_is_not_cut_off():
    def sghmc_step(w, z, grad, *, eps, L, alpha, mass=1.0):
        root = np.sqrt(mass) if np.asarray(mass).dtype.kind == "f" else np.floor(np.sqrt(mass))
        shift = np.zeros((2 * L + 1, 1))
        shift[0] = root / np.sqrt(mass) - 1  # of the first row, which the right step multiplies by sqrt(M)
        return NUMPY.module.sghmc_step(w, np.array(z) * (1 + shift), grad, eps=eps, L=L, alpha=alpha, mass=mass)

    impl = Implementation("cut", SimpleNamespace(sghmc_step=sghmc_step))
    assert "with a mass of integers" in diagnose_step(impl)
    with pytest.raises(Disagreement):
        for case in integer_cases(Draw(0), impl):
            assert_step(impl, case)


def test_right_samplers_have_nothing_to_be_told():
    for row in TABLE["step"]:
        if row.kind == "rewriting" and row.name != "coordinate by coordinate":  # slow in Python, for 1111 of them
            assert diagnose_step(implementation(row)) == RIGHT, row.name


def test_special_bugs_are_named():
    size = {"gradient: cut off at the norm 1000": "gradient clipped: it is cut off at the norm 1000.",
            "gradient: left out where its norm is below 1e-8": "gradient of 1.45519e-11 counts as 0, of 1 as 1: ",
            "eps: not let below 1e-5": "wrong with a tiny eps alone: "}
    for row in TABLE["step"]:
        if row.special:
            assert size.get(row.name, row.name) in diagnose_step(implementation(row)), row.name


def test_bugs_of_size_are_named_and_others_described_where_they_show():
    for target in TABLE:
        for row in bugs_of_size(target):
            diagnose = diagnose_step if target == "step" else diagnose_energy
            assert diagnose(implementation(row)).startswith(f"{KNOWN}{row.name} ("), row.name
    text = diagnose_step(step({DRIFT: "X[:50000] = (X + eps / M * Phi)[:50000]"}))
    assert text.startswith(f"in coordinates 50000 to 65542 of 65543 {KNOWN}result: W_t returned ("), text
    text = diagnose_energy(gradients(lambda g, stop: [*g[:2], g[2] * (np.arange(len(g[2])) < 2000)[:, None], g[3]]))
    assert text.startswith("small batches are right. Wrong: dU/dp2: wrong in rows 2000, 2001, "), text


def test_numbers_cut_off_or_dropped_by_their_size_are_named_with_it_and_nothing_else_is_accused():
    clipped = diagnose_step(step({"return X": "return np.clip(X, -1e6, 1e6)"}))
    assert clipped == "W_t clipped: each entry is cut off at 1e+06."
    assert diagnose_step(step(by_gradient("np.clip(G, -1e10, 1e10)"))) == (
        "gradient clipped: each entry is cut off at 1e+10.")
    for settings, expected in (("eps = min(eps, 1.0)", "wrong with a huge eps alone"),
                               ("M = np.maximum(M, 0.01)", "wrong with a tiny mass alone")):
        text = diagnose_step(step(then(settings)))
        assert text.startswith(expected) and KNOWN not in text, text
    ring = diagnose_step(step({NORMAL: "return Z[j % 60]"}))
    assert "at L = 130: rows of z in the wrong places: used are z[0] as z[0] and z[60] and z[120]" in ring, ring


def test_a_setting_of_an_earlier_call_is_named():
    kept = {}

    def cached(w, z, grad, *, mass=1.0, **settings):
        mass = kept.setdefault((len(w), settings["L"]), mass)
        return NUMPY.module.sghmc_step(w, z, grad, mass=mass, **settings)

    text = diagnose_step(Implementation("wrong", SimpleNamespace(sghmc_step=cached)))
    assert text.startswith("mass: kept between calls, a call with mass = 1.7 gets the sample of the call before"), text


def test_an_answer_of_zeros_has_no_name():
    zeros = Implementation("zeros", SimpleNamespace(sghmc_step=lambda w, *a, **k: 0 * w, energy=lambda *a: 0.0,
                                                    energy_grad=lambda *a: [0 * x for x in a[:4]]))
    assert KNOWN not in diagnose_step(zeros) + diagnose_energy(zeros)


def test_the_remainder_of_blocks_is_named_and_no_mass_is_accused():
    edits = {"X = w.copy()": "X = w.copy()\nalpha = alpha * (np.arange(len(w)) < len(w) // 8 * 8)"}
    text = diagnose_step(step(edits))
    assert f"{KNOWN}friction: none (" in text and "mass" not in text, text
    assert text.endswith("The other coordinates are right: wrong are the last n % 8."), text


def test_a_gradient_in_half_precision_is_seen_in_single_precision_too():
    right = step({"return X": "return np.float32(X)"})
    half = replace(step(by_gradient("np.float32(G.astype(np.float16))")), dtype="float32")
    assert diagnose_step(half) == "precision: the gradient is rounded to float16."
    assert diagnose_step(replace(right, dtype="float32")) == RIGHT


def test_small_gradients_dropped_are_no_single_precision():
    text = diagnose_step(step(by_gradient("np.where(abs(G) > 1e-3, G, 0)")))
    assert "single" not in text and "float" not in text, text


def test_a_part_of_the_answer_is_not_the_whole():
    """At L = 3 this is noise without the factor 2, at L = 1 and 4 it is right: no name."""
    text = diagnose_step(step({"noise_variance = 2 * (C - B_hat) * eps":
                               "noise_variance = 2 * (C - B_hat) * eps / (1 + (L == 3))"}))
    assert KNOWN not in text and "all noise z[1..]: 1 / 2^0.5 times what it should be" in text


def test_responses_of_the_reference_are_right_in_every_coordinate_and_mix_none():
    for mass in (2.89, np.array([2.89, 0.3, 1.7, 5.5])):
        seen = responses(NUMPY, probe_case(mass=mass))
        assert not any(seen.cross.values())
        assert all((abs(seen.own[key] - seen.right[key]) <= seen.error[key[0]]).all() for key in seen.own)


def test_a_formula_is_found_for_plain_numbers_and_for_no_others():
    settings = dict(eps=0.1, alpha=0.13, mass=2.89, L=3)
    for x, text in ((0.05, "eps / 2"), (-1, "-1"), (2**0.5, "2^0.5"), (1 / 0.87, "1 / (1 - alpha)"),
                    (28.9, "M / eps"), (np.exp(-0.13), "exp(-alpha)"), (0.25, "1 / 4")):
        assert words(x, 1e-11, settings) == text
    rng = np.random.default_rng(0)
    assert sum(words(x, 1e-11, settings) is not None for x in np.exp(rng.uniform(-5, 5, 3000))) == 0


# --------------------------------------------------------------------------------------------------------- energies

def unit(rows, delta=0.0):
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + delta)


def energy_of(value=lambda m: -np.log(m), size=abs, norm=unit, mean=np.mean):
    """U = value(mean of size(s)) of rows that norm(rows) has normalised, as one writes it by hand."""
    def energy(p1, z1, p2, z2):
        p1, z1, p2, z2 = map(norm, (p1, z1, p2, z2))
        return float(value(mean((size((p1 * z2).sum(axis=1)) + size((p2 * z1).sum(axis=1))) / 2)))
    return energy


def chunks(s):
    return np.mean([s[i:i + 30].mean() for i in range(0, len(s), 30)])


def stepped(s):
    return np.float16(abs(s)).astype(float)  # of 11 bits


ENERGIES = {
    "log(m + 1e-7)": (energy_of(lambda m: -np.log(m + 1e-7)), "1e-07 is added inside the logarithm"),
    "norms + 1e-8": (energy_of(norm=lambda x: unit(x, 1e-8)), "1e-08 is added to the norm of each row"),
    "smooth absolute value": (energy_of(size=lambda s: np.sqrt(s * s + 1e-6)), "1e-06 is added under the root"),
    "U by another factor": (energy_of(lambda m: -1.7 * np.log(m)), "U is multiplied by 1.7"),
    "m by another factor": (energy_of(lambda m: -np.log(m * 1.25)), "m is multiplied by 1.25"),
    "clamped": (energy_of(lambda m: -np.log(np.maximum(m, 1e-6))), "m is not let below 1e-06"),
    "clamped above": (energy_of(size=lambda s: np.minimum(abs(s), 0.999)), "m does not reach 1, it is 0.999"),
    "short rows": (energy_of(norm=lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 0.25)),
                   "rows of p1 shorter by a factor of 16 give U = "),
    "chunk means": (energy_of(mean=chunks), "chunks of 30 rows: the short last chunk weighs as much"),
    "last chunk dropped": (energy_of(mean=lambda s: s[:len(s) // 30 * 30 or len(s)].mean()),
                           "only the first 2040 of 2049 rows count"),
    "first 60 features": (energy_of(norm=lambda x: unit(x[:, :60])), "only the first 60 of 2049 features count"),
    "half precision": (energy_of(size=stepped), "rounded to float16"),
    "logarithm of each view": (None, "energy: logarithm of each view ("),
}


@pytest.mark.parametrize("name", list(ENERGIES)[:-1])
def test_wrong_energies_are_named_by_their_constant_their_part_or_their_format(name):
    energy, expected = ENERGIES[name]
    text = diagnose_energy(Implementation("wrong", SimpleNamespace(energy=energy)))
    assert expected in text and KNOWN not in text, text


def test_an_energy_by_hand_is_right():
    text = diagnose_energy(Implementation("right", SimpleNamespace(energy=energy_of(norm=lambda x: unit(x, 1e-300)))))
    assert text.startswith("the generic batch comes out right")


def test_special_bugs_of_the_energy_are_named_and_so_are_norms_along_the_wrong_axis():
    texts = {row.name: diagnose_energy(replace(implementation(row), module=SimpleNamespace(
        energy=implementation(row).module.energy))) for row in TABLE["energy"] if row.special}
    assert texts["energy: cosines of 0 left out of the count"].endswith("mean is over 5 pairs of rows instead of 6")
    assert "both views of such a pair" in texts["energy: both views left out where one has a row of zeros"]

    def crosswise(x):
        return x / np.linalg.norm(x, axis=1, keepdims=len(x) != x.shape[1])

    text = diagnose_energy(Implementation("wrong", SimpleNamespace(energy=energy_of(norm=crosswise))))
    assert text.startswith("the norms stand along the wrong axis where there are as many rows as features"), text


def test_numbers_are_printed_with_the_digits_that_differ():
    text = diagnose_energy(Implementation("wrong", SimpleNamespace(
        energy=lambda *a: NUMPY.module.energy(*a) * (1 + 1e-11 * (len(a[0]) == 2)))))
    got, right = text.partition("U: ")[2].split(" in 2 rows of 2, but right in 3 rows of 4")[0].split(", right is ")
    assert got != right and "(m " not in text, text


def smooth(change):
    """The gradient of Equation 2 with change(s) for the sign of s, as one writes it by hand."""
    def energy_grad(p1, z1, p2, z2, stop_grad):
        norms, (p1, z1, p2, z2) = zip(*((np.linalg.norm(x, axis=1)[:, None], unit(x)) for x in (p1, z1, p2, z2)),
                                      strict=True)
        s, t = ((a * b).sum(axis=1)[:, None] for a, b in ((p1, z2), (p2, z1)))
        scale = -1 / (abs(s) + abs(t)).sum()
        g = (change(s) * (z2 - s * p1), change(t) * (p2 - t * z1), change(t) * (z1 - t * p2), change(s) * (p1 - s * z2))
        return [scale * x / n * (not stop_grad or i % 2 == 0) for i, (x, n) in enumerate(zip(g, norms, strict=True))]
    return Implementation("wrong", SimpleNamespace(energy_grad=energy_grad))


def test_a_smooth_sign_is_named_with_its_number():
    assert diagnose_energy(smooth(lambda s: s / np.sqrt(s * s + 1e-9))) == (
        "the gradient of |s| is not its sign but s / sqrt(s^2 + delta), delta = 1e-09")
    assert "s / (|s| + delta), delta = 1e-06" in diagnose_energy(smooth(lambda s: s / (abs(s) + 1e-6)))
    stopped = gradients(lambda g, stop: [g[0], 0 * g[1], 0 * g[2], g[3]] if stop else g)
    assert "its sign" not in diagnose_energy(stopped)
    text = diagnose_energy(smooth(lambda s: np.sign(s) * (1 - 3e-9)))
    assert "off by up to 3e-09 of itself" in text, text


def gradients(change):
    return Implementation("wrong", SimpleNamespace(energy_grad=lambda *a: change(NUMPY.module.energy_grad(*a), a[4])))


def test_wrong_gradients_are_named_by_their_order_or_described_output_by_output():
    text = diagnose_energy(gradients(lambda g, stop: [g[3], g[0], g[1], g[2]]))
    assert "outputs exchanged: energy_grad returns the gradients of z2, p1, z1, p2;" in text
    text = diagnose_energy(gradients(lambda g, stop: [1.5 * g[0], g[1], g[2], g[3]]))
    assert text == "no known bug. Wrong: dU/dp1, dU/dp1 with stop-gradient: 1.5 times what it should be"
    text = diagnose_energy(gradients(lambda g, stop: [*g[:2], g[2].astype(np.float16).astype(float), g[3]]))
    assert text == "precision: dU/dp2, dU/dp2 with stop-gradient are rounded to float16."
    text = diagnose_energy(gradients(lambda g, stop: [len(x) ** 2 * x for x in g]))
    assert text.startswith("no known bug. Wrong: dU/dp1, dU/dz1, ") and "B^2 times what it should be" in text
    text = diagnose_energy(gradients(lambda g, stop: [*g[:2], g[2] * (np.arange(len(g[2])) > 0)[:, None], g[3]]))
    assert text == "no known bug. Wrong: dU/dp2, dU/dp2 with stop-gradient: wrong in row 0 of 3 alone"


def test_no_two_bugs_are_pieced_together_for_one_gradient():
    """dU/dp1 of one bug and dU/dp2 of another are no reason to accuse of both."""
    long, sign = (implementation(row).module.energy_grad for row in TABLE["gradient"] if row.name in (
        "gradient: no 1/norm for P", "gradient: wrong sign"))
    mixed = Implementation("wrong", SimpleNamespace(energy_grad=lambda *a: [long(*a)[0], *sign(*a)[1:]]))
    assert KNOWN not in diagnose_energy(mixed)


# ------------------------------------------------------------------------------------------------- what is printed

def printed(lines):
    """What the lines of a snippet print, their functions taken from the reference."""
    shown = []
    exec("\n".join(lines).replace("print(", "shown.append("), {"shown": shown})
    return shown


def test_a_failing_case_can_be_pasted(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"from oracle.variants import variant\nm = variant({STEPS['weight decay'][0]!r})\n"
                    "sghmc_step = m.sghmc_step\nenergy = lambda *a: 2 * m.energy(*a)\n")
    mine = SimpleNamespace(__file__=str(file), sghmc_step=step(STEPS["weight decay"][0]).module.sghmc_step,
                           energy=lambda *a: 2 * NUMPY.module.energy(*a))
    impl = Implementation(str(file), mine)
    recorded = replace(generic_case(L=2), g=np.ones((3, 4)))
    for case in (generic_case(L=2), replace(generic_case(L=2), kappa=0.5, mass=np.array([1.0, 2, 3, 4]), b_hat=0.0)):
        lines = snippet(impl, case)
        assert printed(lines)[0] == eval(lines[-1].partition("now ")[2].partition(", right")[0])
        assert eval(lines[-1].partition("right ")[2]) == pytest.approx(NUMPY.step(
            case.w, case.z, lambda x, case=case: case.A @ x - case.b + case.kappa * abs(x), **case.settings()))
    assert "# the gradients g at the positions X" in "\n".join(snippet(impl, recorded))
    lines = snippet(impl, generic_batch())
    assert lines[-1].startswith(f"# now {printed(lines)[0]!r}, right ")
    assert snippet(NUMPY, generic_case(L=2)) == []


def test_a_failing_run_prints_at_most_60_lines_each_cause_once(tmp_path):
    """The worst that there is: everything is wrong. (Own draws have six lines at most: test_own_draws.py.)"""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def sghmc_step(w, z, grad, *, eps, L, alpha, mass=1.0, b_hat=0.0):\n"
        "    return w + eps * grad(w)[::-1] + z[1] ** 2\n"
        "def energy(p1, z1, p2, z2): return float(abs(p1 * z1).sum() - 3)\n"
        "def energy_grad(p1, z1, p2, z2, stop_grad): return z1, p1 + 1, p2, abs(z2)\n")
    done = run_on("mine.py", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 1700, done.stdout
    for half in ("sampler", "energy"):
        assert sum(line.startswith(f"mine.py, {half}: ") and "tests fail" not in line for line in lines) == 1
    assert "In Python:" in lines


def run_on(place, folder):
    here = {k: v for k, v in os.environ.items() if k not in ("CI", "BUILD_NUMBER")}
    some = "hides_no_bug or a_torque or worked_example or positions_in or last_half_kick or keeps_no_state or refused"
    return subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", ROOT / "test_sghmc.py",
                           ROOT / "test_energy.py", "-k", some], cwd=folder, env={**here, "SGHMC_IMPL": place},
                          capture_output=True, text=True)
