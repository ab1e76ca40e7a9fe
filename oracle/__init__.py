"""The machinery of the oracle; its sentences stand in test_sghmc.py and test_energy.py.

    implementations   a module under test, and how it is loaded
    arithmetic        fractions, decimals, and the one comparison
    inputs            integers on a dyadic grid, from Hypothesis or from a seed
    sampler, cases    Algorithm 1 in fractions with its rounding bound; inputs for it
    energy, batches   Equation 2 in 60 digits with its rounding bounds; inputs for it
    sizes             the same for thousands of coordinates and of rows
    properties        a sentence about an implementation as a test, and the register of all of them
    variants          the reference with pieces of its code replaced
    known_bugs/       the table of known bugs and correct rewritings
    names, first_look the functions of a module, and one look at them before the tests
    diagnosis         which known bug gives these outputs, at any size?
    step_names        that of a sampler; energy_names: that of an energy
    probes, formula, coefficients   a sampler in its own numbers: one coordinate, one input at a time
    families          bugs of the energy with one unknown number, which no table lists
    precision         short formats inside
    calls, own_draws  a sampler that draws its own noise: one call; all that is seen of it
    chance            exact laws of statistics; generators, laws: names for wrong draws, and for wrong laws
    report, snippets  the end of a run; a failing case as Python
    vectors, check    test vectors for other languages, and their judge: python -m oracle

Imports go one way: the tests import the oracle, the oracle imports reference_numpy.
"""
