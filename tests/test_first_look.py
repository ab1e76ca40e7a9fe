"""The look at a module before the tests: what makes them meaningless is one line, all else is left to them."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from oracle.first_look import problems
from oracle.implementations import NUMPY, ROOT, Implementation, Unusable, load
from oracle.known_bugs import TABLE, implementation

STEP = "def sghmc_step(w, z, grad, *, eps, L, alpha): "
PROBLEMS = {  # a module -> words of the only line
    "def enrgy(p1, z1, p2, z2): return 0.0": "defines enrgy: did you mean energy?",
    "def sghmc_steps(w, z, grad, *, eps, L, alpha): return w": "defines sghmc_steps: did you mean sghmc_step?",
    "def energy(*a): return 0.1\ndef energy_gradient(p1, z1, p2, z2, stop_grad): return [0 * p1] * 4":
        "defines energy_gradient: did you mean energy_grad?",
    "import sys\nsys.exit(0)": "cannot be imported: SystemExit: 0",
    "energy = 0.5": "energy is float, not a function",
    "def sghmc_step(w, z, grad, *, eps, L): return w":
        "cannot be called as sghmc_step(w, z, grad, *, eps, L, alpha): got an unexpected keyword argument 'alpha'",
    "def sghmc_step(w, z, grad, *, eps, L, alpha, mass): return w": "missing a required argument: 'mass'",
    "def energy(p1, z1): return 0.1": "too many positional arguments",
    STEP + "pass": "sghmc_step returns None: is a return missing?",
    STEP + "return w[:2]": "sghmc_step returns shape (2,) instead of (3,)",
    STEP + "return w + 1j": "sghmc_step returns complex numbers",
    STEP + "return w, z[0]": "sghmc_step returns shape (2, 3) (a tuple of 2) instead of (3,)",
    STEP + "return {'w': w}": "sghmc_step returns dict, which is no array of numbers",
    STEP + "\n    x = w\n    return x.clone()":
        "raises AttributeError: 'numpy.ndarray' object has no attribute 'clone' (FILE:3)",
    STEP + "return w - grad(w[None])[0]": "sghmc_step calls grad with shape (1, 3) instead of (3,)",
    STEP + "return w - grad('x')": "sghmc_step calls grad with str, which is no array of numbers",
    "import numpy as np\n" + STEP + "return w + np.random.rand(3)": "drawn apart from z; it is the momentum",
    "kept = []\n" + STEP + "\n    kept.append(z[0, 0])\n    return w + z[0] * len(kept)":
        "the same input gives other bits at the second call: something is kept between calls, or drawn apart from z$",
    "def energy(p1, z1, p2, z2): return p1[:, 0]": "energy returns shape (2,) instead of ()",
    "def energy_grad(p1, z1, p2, z2, stop_grad): return p1, p2": "energy_grad returns 2 arrays instead of (g_p1, ",
    "def energy_grad(p1, z1, p2, z2, stop_grad): return 0.0": "energy_grad returns float instead of four arrays",
    "def energy_grad(p1, z1, p2, z2, stop_grad): return p1, None if stop_grad else z1, p2, z2":
        "energy_grad, stop_grad=True, returns as g_z1 None instead of an array of shape (2, 2) (zeros, where nothing",
    "import reference_numpy as r\nG = [0, 0, 0, 0]\ndef energy_grad(*a):\n    G[:] = [x + y for x, y in zip(G, "
    "r.energy_grad(*a))]\n    return list(G)": "gradients add up, they are never set to zero",
    "from reference_numpy import energy as e\nDTYPE = 'float32'\ndef energy(*a): return e(*a)":
        "DTYPE is \"float32\", but the answers of energy carry more than 24 bits and are right to double precision",
    "def sghmc_sample(params, grad, seed, *, eps, L, alpha): return list(params.values())":
        "sghmc_sample returns list instead of a dictionary",
    "def sghmc_sample(params, grad, seed, *, eps, L, alpha): return grad(list(params))":
        "sghmc_sample calls grad with list, which has no 'a'",
}


def looked_at(tmp_path, text):
    """The lines about a module of this text: those of its loading, or those of the look."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    try:
        impl = load(str(file))
    except Unusable as error:
        return [str(error)]
    return problems(impl)


@pytest.mark.parametrize("text", PROBLEMS, ids=range(len(PROBLEMS)))
def test_what_makes_the_tests_meaningless_is_said_in_one_line(tmp_path, text, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    found, words = looked_at(tmp_path, text), PROBLEMS[text].replace("FILE", str(tmp_path / "mine.py"))
    assert len(found) == 1 and found[0].startswith("SGHMC_IMPL: ") and "\n" not in found[0], found
    assert found[0].endswith(words[:-1]) if words.endswith("$") else words in found[0], found


def test_a_tensor_that_requires_a_gradient_is_an_array_like_any_other(tmp_path):
    pytest.importorskip("torch")
    text = "import torch\nfrom reference_numpy import sghmc_step as step\n" + STEP
    text += "return torch.nn.Parameter(torch.tensor(step(w, z, grad, eps=eps, L=L, alpha=alpha)))"
    assert looked_at(tmp_path, text) == []


def test_a_folder_is_called_one(tmp_path):
    with pytest.raises(Unusable, match="a folder, not a file"):
        load(str(tmp_path))


def test_each_capability_has_its_line():
    def raises(*a, **k):
        raise RuntimeError("no")

    module = SimpleNamespace(sghmc_step=raises, energy=lambda *a: None, energy_grad=NUMPY.module.energy_grad)
    found = problems(Implementation("mine", module))
    assert [line.partition(" returns ")[0].partition(" raises ")[0] for line in found] == [
        "SGHMC_IMPL: mine: sghmc_step", "SGHMC_IMPL: mine: energy"]


def test_helpers_beside_a_capability_are_no_slips(tmp_path):
    found = looked_at(tmp_path, "from reference_numpy import energy, cosine\nclass SGHMCStep: pass\n"
                      "def energies(batch): return 0\ndef _energy_grad(p1, z1, p2, z2, stop_grad): return 0\n"
                      "def energy_and_grad(p1, z1, p2, z2, stop_grad): return 0\nsghmc_stepp = 3\n")
    assert found == []


def test_wrong_numbers_are_left_to_the_tests():
    """Every known bug passes the look but the one that is not repeatable, and so does every rewriting."""
    for (target, rows), capability in zip(TABLE.items(), ("sghmc_step", "energy", "energy_grad"), strict=True):
        for row in rows:
            module = SimpleNamespace(**{capability: getattr(implementation(row).module, capability)})
            with np.errstate(all="ignore"):
                found = problems(Implementation(row.name, module, row.dtype))
            assert len(found) == (row.special == "a second call"), f"{target}, {row.name}: {found}"


def test_more_than_24_bits_are_noted_where_the_rest_is_single_precision(tmp_path, monkeypatch):
    from oracle import report

    monkeypatch.setattr(report, "NOTES", {})
    text = ("import numpy as np\nfrom reference_numpy import energy as e\nDTYPE = 'float32'\n"
            "def energy(*a): return -float(np.log(np.float64(np.float32(np.exp(-e(*a))))))\n")
    assert looked_at(tmp_path, text) == []
    assert any("carry more than 24 bits: judged by the bound of float32" in text for text in report.NOTES.values())


def test_a_mass_that_is_neither_scalar_nor_left_out_is_refused(tmp_path):
    energy = "from reference_numpy import energy\n"
    assert "MASS must be" in looked_at(tmp_path, energy + "MASS = 'number'")[0]
    assert looked_at(tmp_path, energy + "MASS = 2.0") == []  # a constant of its own


def test_the_run_ends_at_the_look_and_a_scalar_mass_loses_only_what_needs_a_vector(tmp_path):
    """From another folder, with a blank in the path."""
    def pytest_on(text, *arguments):
        (tmp_path / "my own.py").write_text(text)
        here = {k: v for k, v in os.environ.items() if k not in ("CI", "BUILD_NUMBER")}
        return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "test_sghmc.py",
                               *arguments], cwd=tmp_path, env={**here, "SGHMC_IMPL": str(tmp_path / "my own.py")},
                              capture_output=True, text=True)

    done = pytest_on(STEP + "pass")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == f"SGHMC_IMPL: {tmp_path / 'my own.py'}: sghmc_step returns None: is a return missing?\n"
    done = pytest_on("from reference_numpy import sghmc_step\nMASS = 'scalar'", "-k",
                     "mass_is or one_mass or b_hat_may or last_half_kick")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "3 passed, 2 skipped" in lines[-1], done.stdout
    for keyword in ("mass", "b_hat"):
        assert any(f"takes no {keyword} per coordinate: 1 test skipped" in line for line in lines), done.stdout
