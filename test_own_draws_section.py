"""Samplers that draw their own noise (sghmc_sample). Each test is one sentence; the machinery is in oracle/.

All of them together reject a right sampler with probability 1e-6 at most; tests/test_own_draws.py calibrates that.
"""

import importlib
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import reference_numpy
from oracle import generators, laws
from oracle.calls import Broken, with_noise
from oracle.own_draws import look

DIAGNOSED = {}  # name of an implementation -> the first test that fails, which shows the diagnosis


def implementations():
    """The modules of SGHMC_IMPL, otherwise the reference with draws of its own."""
    found = []
    for place in os.environ.get("SGHMC_IMPL", "").split():
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        found.append(SimpleNamespace(name=place, module=module, dtype=getattr(module, "DTYPE", "float64"),
                                     scalar_mass=getattr(module, "MASS", "") == "scalar"))
    numpy = SimpleNamespace(sghmc_sample=with_noise(reference_numpy.sghmc_step))
    return found or [SimpleNamespace(name="numpy", module=numpy, dtype="float64", scalar_mass=False)]


def known_bugs():
    """(name, step with injected noise) of the table."""
    rows = json.loads((Path(reference_numpy.FOLDER) / "mutants.json").read_text())["mutants"]
    return [(row["name"], reference_numpy.variant((row["old"], row["new"]))["sghmc_step"]) for row in rows
            if row["target"] == "step" and row["kind"] == "mutant"]


def own_draws(check):
    """Make check(seen) -> facts a test of every implementation; the first failure adds the diagnosis."""
    @pytest.mark.parametrize("impl", implementations(), ids=lambda impl: impl.name)
    def test(impl):
        try:
            facts = check(look(impl))
        except Broken as error:
            facts = [str(error)]
        if facts:
            first = DIAGNOSED.setdefault(impl.name, check.__name__)
            cause = laws.diagnose(look(impl), known_bugs()) if first == check.__name__ else [f"as in {first}"]
            lines = [facts[0], *(["..."] if len(facts) > 1 else []), "Diagnosis: " + "\n           ".join(cause)]
            pytest.fail(f"{impl.name}: " + "\n".join(lines), pytrace=False)
    test.__name__, test.__doc__ = check.__name__, check.__doc__
    return test


# ------------------------------------------------------------------------------------------- exact, no statistics

@own_draws
def test_same_seed_gives_the_same_bits_and_another_seed_another_sample(seen):
    return seen.repeats()


@own_draws
def test_callers_params_and_gradients_are_left_as_they_were(seen):
    return seen.arguments()


@own_draws
def test_gradient_is_asked_at_each_position_of_the_path_and_the_path_ends_with_the_sample(seen):
    return seen.path()


@own_draws
def test_sample_moves_with_its_start_and_by_the_right_part_of_each_gradient_whatever_their_size(seen):
    """One seed, two calls: the noise cancels."""
    return seen.moved()


@own_draws
def test_own_noise_with_b_hat_above_the_friction_is_refused(seen):
    return seen.refuses()


# --------------------------------------------------------------------------------------------------------- in law

@own_draws
def test_increments_have_the_mean_and_the_covariance_of_algorithm_1(seen):
    """For L = 1, 2 and 3, with and without a mass, B^ = C / 4, alpha = 0, and three samples of a chain."""
    return seen.law()


@own_draws
def test_many_leapfrogs_and_a_mass_for_each_coordinate_keep_that_covariance(seen):
    return seen.deep_law()


@own_draws
def test_a_mass_for_each_coordinate_is_taken(seen):
    if isinstance(seen.mass_per_coordinate, str):
        pytest.skip(seen.mass_per_coordinate)
    return []


@own_draws
def test_tensors_of_a_single_number_have_the_law_of_all_others_over_many_seeds(seen):
    return seen.small_tensors()


@own_draws
def test_single_draws_are_normal_out_to_their_tails(seen):
    return generators.distribution(seen)


@own_draws
def test_no_draw_is_rounded_to_a_shorter_format(seen):
    return generators.digits(seen)


# ---------------------------------------------------------------------------------------------------- independence

@own_draws
def test_no_two_draws_are_equal(seen):
    """Between coordinates, tensors, leapfrogs and consecutive seeds, in whatever order."""
    return generators.sharing(seen)


@own_draws
def test_coordinates_tensors_leapfrogs_and_successive_samples_are_independent(seen):
    """Coordinates at distances from 1 to 2^16; tensors of one shape; each leapfrog of each of three samples."""
    return generators.independence(seen)
