"""A number in terms of the settings: a weight that is wrong by a factor mostly is so by a plain one, as 1 / eps."""

import itertools
import math

import numpy as np

POWERS = {"2": (-2, -1, -0.5, 0, 0.5, 1, 2), "eps": (-2, -1, -0.5, 0, 0.5, 1, 2), "M": (-2, -1, -0.5, 0, 0.5, 1, 2),
          "(1 - alpha)": (-2, -1, 0, 1, 2), "alpha": (-1, -0.5, 0, 0.5, 1), "L": (-2, -1, -0.5, 0, 0.5, 1, 2)}
MOST = 4  # the sum of the powers' sizes
RATE = " (a gradient moves X_(l+1) at the learning rate eps^2 / M)"  # beside a factor of gradients that has an eps
TABLES = {}  # settings -> (logarithms in order, their texts)


def symbols(eps, alpha, mass, L):
    return {"2": 2.0, "eps": eps, "M": mass, "(1 - alpha)": 1 - alpha, "alpha": alpha, "L": float(L)}


def atoms(eps, alpha):
    """Factors that are no powers of the settings."""
    c = 1 - alpha
    return {"": 1.0, "exp(-alpha)": math.exp(-alpha), "(1 - alpha / 2)": 1 - alpha / 2, "(1 - 2 alpha)": 1 - 2 * alpha,
            "(1 + alpha)": 1 + alpha, "(1 - alpha eps)": 1 - alpha * eps,
            "exp(-alpha / 2)": math.exp(-alpha / 2), "(1 - exp(-2 alpha))^0.5": (1 - math.exp(-2 * alpha)) ** 0.5,
            "(1 - (1 - alpha)^2)^0.5": (1 - c * c) ** 0.5, "(1 - (1 - alpha)^2)": 1 - c * c}


def table(eps, alpha, mass, L):
    """Logarithms of all formulas in order of size, with their texts and how long they are."""
    if (eps, alpha, mass, L) not in TABLES:
        values, found = symbols(eps, alpha, mass, L), []
        for powers in itertools.product(*POWERS.values()):
            size = sum(map(abs, powers))
            if size <= MOST:
                plain = sum(p * math.log(values[name]) for p, name in zip(powers, POWERS, strict=True))
                for atom, x in atoms(eps, alpha).items():
                    for sign in (1, -1) if atom and size <= 2 else (1,) if not atom else ():
                        found.append((plain + sign * math.log(x), size + bool(atom), powers, atom, sign))
        found.sort(key=lambda entry: entry[0])
        TABLES[eps, alpha, mass, L] = np.array([entry[0] for entry in found]), found
    return TABLES[eps, alpha, mass, L]


def words(x, error, settings):
    """The shortest formula for x > 0 or x < 0, None if there is none or if too many are as near as this. `error` is
    relative; `settings` are eps, alpha, mass and L, none of them plain."""
    if x == 0 or not math.isfinite(x):
        return None
    logs, found = table(**settings)
    a, b = np.searchsorted(logs, [math.log(abs(x)) - error, math.log(abs(x)) + error])
    if a == b or (b - a > 1 and len({round(e[0], 9) for e in found[a:b]}) > 1):
        return None
    _, _, powers, atom, sign = min(found[a:b], key=lambda entry: entry[1])
    return ("-" if x < 0 else "") + text(powers, atom, sign)


def text(powers, atom, sign):
    """2^0.5 eps / M and the like."""
    above, below = ([atom] if atom and sign > 0 else []), ([atom] if atom and sign < 0 else [])
    for name, p in zip(POWERS, powers, strict=True):
        if p:
            power = name if abs(p) == 1 else str(2 ** abs(p)) if name == "2" and p == int(p) else f"{name}^{abs(p):g}"
            (above if p > 0 else below).append(power)
    return " ".join(above or ["1"]) + "".join(f" / {x}" for x in below)
