"""The functions that a module may define, slips in their names, and whether they can be called as the tests do."""

import inspect

CALLS = {"sghmc_step": "sghmc_step(w, z, grad, *, eps, L, alpha)", "energy": "energy(p1, z1, p2, z2)",
         "energy_grad": "energy_grad(p1, z1, p2, z2, stop_grad)",
         "sghmc_sample": "sghmc_sample(params, grad, seed, *, eps, L, alpha)"}
CAPABILITIES = tuple(CALLS)
SETTINGS = dict(eps=0.1, L=2, alpha=0.13)


def close_names(module):
    """Lines about names that are nearly those of a capability which the module lacks."""
    found = []
    for name, x in list(vars(module).items()):
        if name in CAPABILITIES and not callable(x):
            found.append(f"{name} is {type(x).__name__}, not a function")
        meant = [c for c in CAPABILITIES if not hasattr(module, c) and near(name, c) and can_be(x, module, c)]
        found += [f"defines {name}: did you mean {meant[0]}?"] if meant else []
    return found


def can_be(x, module, capability):
    """Whether x is a function of this module that could be called as the capability; helpers look different."""
    return (callable(x) and not inspect.isclass(x) and getattr(x, "__module__", "") == module.__name__
            and not mismatch(x, capability))


def near(name, capability):
    """Whether a name is a slip: two letters wrong at most, or a longer form (energy_gradient)."""
    a, b = (x.lower().replace("_", "") for x in (name, capability))
    longer = capability != "energy" and a.startswith(b)
    return not name.startswith("_") and (distance(a, b) <= 2 or longer)


def distance(a, b):
    """How many letters must be inserted, dropped or replaced to get from one word to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def takes(function, keyword):
    """Whether a function can be called with this keyword."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # none, or compiled code without a signature
        return True
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def mismatch(function, capability):
    """Why a function cannot be called as the tests do, or None."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled code without a signature
        return None
    positional = CALLS[capability].partition("(")[2].partition(", *")[0].strip(")").split(", ")
    try:
        signature.bind(*positional, **(SETTINGS if "*" in CALLS[capability] else {}))
    except TypeError as error:
        return str(error)
    return None
