"""The table of known bugs and correct rewritings: read by the tests, the diagnosis and the vector writer."""

import functools

from oracle.arithmetic import contents, decimals, differences
from oracle.implementations import Implementation
from oracle.known_bugs import energy, gradient, sizes, step
from oracle.variants import variant

TABLE = {"step": step.ROWS + sizes.STEP, "energy": energy.ROWS + sizes.ENERGY,
         "gradient": gradient.ROWS + sizes.GRADIENT}


@functools.cache
def implementation(row):
    """The reference, written as the row says."""
    return Implementation(row.name, variant(row.edits), row.dtype)


def bugs(*targets):
    """The rows of these targets that change a result, in the order of the table."""
    return [row for target in targets for row in TABLE[target] if row.changes_value]


def bugs_of_size(target):
    """The rows that change a result at real sizes alone."""
    return [row for row in TABLE[target] if row.sized]


@functools.cache
def in_decimals(row):
    """The reference, written as the row says, with decimals for floats and all digits in its result."""
    mutant = variant(row.edits, decimals=True)
    mutant.energy.__globals__["float"] = lambda U: U
    return mutant


def differentiated(row, batch):
    """U and the gradients of a bug of U, if a machine differentiates it: by differences, with errors of 1e-20."""
    key = row.name, *contents(*batch.arrays())
    if key not in DIFFERENTIATED:
        mutant = in_decimals(row)
        DIFFERENTIATED[key] = differences(lambda rows: mutant.energy(*rows), [decimals(x) for x in batch.arrays()])
    return DIFFERENTIATED[key]


DIFFERENTIATED = {}  # (name of the bug, batch) -> U and the gradients: whoever is judged, the batches are the same
