"""A sampler without a name for its bug, described by what its inputs contribute to W_{t+1}."""

from types import SimpleNamespace

from oracle.cases import generic_case
from oracle.sampler import positions, rounding_bound, run, unit_probes


def wrong_coefficients(impl):
    """What unit inputs contribute to the sample where that is wrong: by a common factor, exchanged, or anyhow."""
    case = generic_case(impl)
    probes = [SimpleNamespace(what=what, got=run(impl, p), right=positions(p)[-1], e=rounding_bound(impl, p))
              for what, p in unit_probes(case)]
    wrong = [p for p in probes if (abs(p.got - p.right) > p.e).any()]
    z = probes[: 2 * case.L + 1]
    noise, found = z[1:-1], []  # the last row has no effect
    factor, e = noise[0].got[0] / noise[0].right[0], noise[0].e[0] / noise[0].right[0]
    if all((abs(p.got - factor * p.right) <= p.e + e * p.right).all() for p in noise) and noise[0] in wrong:
        found.append(f"all z[1..] are {float(factor):.4g} times what they should be")
        wrong = [p for p in wrong if p not in noise]
    for p in wrong:
        same = [q.what for q in z if p in z and q is not p and (abs(p.got - q.right) <= p.e + q.e).all()]
        i = int((abs(p.got - p.right) > p.e).argmax())
        contributes = f"contributes {float(p.got[i]):.9g} to W_(t+1)[{i}], right is {float(p.right[i]):.9g}"
        found.append(f"{p.what} " + (f"has the coefficient of {same[0]}" if same else contributes))
    return "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "") if found else "all right"
