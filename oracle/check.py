"""The judge of results that another language computed from the vectors."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oracle.arithmetic import difference
from oracle.diagnosis import (
    ENERGY_CANDIDATES,
    ENERGY_OF_SIZE,
    STEP,
    STEP_CANDIDATES,
    STEP_OF_SIZE,
    Observation,
    energy_of,
    equals,
    explain,
    gradient_name,
    in_parts,
    is_single,
    within,
)
from oracle.energy import NAMES
from oracle.implementations import BITS
from oracle.known_bugs import implementation
from oracle.sampler import sample
from oracle.vectors import DOUBLE, FLAGS, batch_of, case_of, read_vectors

# A JSON text, or a word for what is no number as C, C++, C#, Rust, Julia, R, Scheme, YAML and others print it.
WORDS = re.compile(r'''"(?:[^"\\]|\\.)*" | [-+]? (?<!\w)
    (?: \.? (?:nan|inf(?:inity)?) (?:\.0|16|32|64|\(\w*\))? | 1\.\#\w+ | na | \u221e ) (?!\w)''', re.I | re.X)
CANDIDATES = {"step": STEP_CANDIDATES + STEP_OF_SIZE, "energy": ENERGY_CANDIDATES + ENERGY_OF_SIZE}


@dataclass
class Verdict:
    """text: what is wrong with a result, None if nothing is; judged: False where no judgement is possible; aside: what
    of it is not judged; given: there is a result; double: in double precision, and a vector for either."""

    text: str = None
    judged: bool = True
    observation: Observation = None
    double: bool = True
    aside: str = ""
    given: bool = True


def read_results(path):
    """The parsed file; ValueError or OSError if it is no JSON. Any spelling of NaN and infinity is read."""
    def spelt_as_json(match):
        text = match.group().lower()
        if text.startswith('"'):
            return match.group()
        infinite = "inf" in text or "\u221e" in text
        return "NaN" if not infinite else "-Infinity" if text[0] == "-" else "Infinity"

    return json.loads(WORDS.sub(spelt_as_json, Path(path).read_text(encoding="utf-8-sig")), parse_int=float)


def check(results):
    """Judge [{"id", "w_new"} or {"id", "u", "grads"}]; prints a line per vector and the diagnoses; True if all pass.

    An id is "step/..." or "energy/..."; "dtype": "float32" sets the unit roundoff u; an energy may come without grads.
    ValueError: not of this form.
    """
    known = {f"{kind}/{name}": v for kind in ("step", "energy") for name, v in read_vectors(kind).items()}
    by_id = checked_results(results, known)
    verdicts = {name: verdict(v, by_id.get(name)) for name, v in known.items()}
    for name, x in verdicts.items():
        said = "    " if not x.judged else "pass" if x.text is None else "FAIL"
        print(f"{said}  {name}{'' if x.text is None else ': ' + x.text}{x.aside and f' ({x.aside})'}")
    for half in ("step", "energy"):
        for line in diagnosis(half, known, verdicts):
            print(line)
    judged = [x for x in verdicts.values() if x.judged]
    failures = sum(x.text is not None for x in judged)
    unjudged = f", {len(verdicts) - len(judged)} not judged" if len(judged) < len(verdicts) else ""
    print(f"{len(judged) - failures} passed, {failures} failed{unjudged}")
    return failures == 0


def checked_results(results, known):
    """The results by id; ValueError for unknown or repeated ids, unknown or missing keys, an unknown dtype."""
    by_id = {}
    for result in results if isinstance(results, list) else [results]:
        if not isinstance(result, dict) or not isinstance(result.get("id"), str) or result["id"] not in known:
            raise ValueError(f"not a result with the id of a vector: {str(result)[:80]}")
        name = result["id"]
        wanted = [{"w_new"}] if name.startswith("step/") else [{"u", "grads"}, {"u"}]
        if name in by_id or set(result) - {"dtype", "id"} not in wanted:
            keys = ", ".join(sorted(wanted[0]))
            raise ValueError(f"{name}: given twice, or its keys are not id, {keys}, maybe dtype")
        if result.get("dtype", "float64") not in list(BITS):
            raise ValueError(f"{name}: dtype must be float64 or float32, not {result['dtype']!r}")
        by_id[name] = result
    return by_id


def verdict(v, result):
    """The Verdict on one result."""
    if result is None:
        return Verdict("no result with this id", given=False)
    dtype = result.get("dtype", "float64")
    if dtype == "float32" and DOUBLE & set(v["flags"]):
        return Verdict("not judged: it asks for more than single precision has", judged=False)
    right, bounds = answers(v), bounds_of(v)
    try:
        got = answers(result, v.get("stop_grad"))
    except (TypeError, ValueError):
        return Verdict("not numbers")
    shapes = [(x.shape, right[name].shape) for name, x in got.items()]
    if any(a != b for a, b in shapes):
        return Verdict(f"shapes {[a for a, _ in shapes]} instead of {[b for _, b in shapes]}")
    parts = {name: (x, right[name], bounds[name] * 2.0 ** -BITS[dtype]) for name, x in got.items()}
    texts = [f"{name}: {difference(*part, within(*part))}" for name, part in parts.items() if not within(*part).all()]
    return Verdict(texts[0] if texts else None, True, observation(v, parts),
                   dtype == "float64" and not DOUBLE & set(v["flags"]), not_judged(v, parts))


def not_judged(v, parts):
    """What of a result is not judged, in words."""
    if "w_new" in v:
        return ""
    if len(parts) == 1:
        return "its gradients are not judged: there are none"
    rows = sum(bound is None for bounds in v["bound"]["grads"] for bound in bounds)
    return f"{rows} rows of its gradients are not judged where a cosine is 0, but for being finite" if rows else ""


def answers(x, stop_grad=None):
    """{name: float64 array} of a result or a vector."""
    if "w_new" in x:
        return {STEP: np.array(x["w_new"], dtype=np.float64)}
    stop_grad = x["stop_grad"] if stop_grad is None else stop_grad
    found = {"U": np.array(x["u"], dtype=np.float64)}
    grads = x.get("grads") or ()  # null and [] are no gradients
    if len(grads) not in (0, 4):
        raise ValueError("not four gradients")
    return found | {gradient_name(name, stop_grad): np.array(g, dtype=np.float64)
                    for name, g in zip(NAMES, grads, strict=False)}


def bounds_of(v):
    """{name: array} of a vector's bounds over u; one per row spread over the row, null is infinite."""
    if "w_new" in v:
        return {STEP: np.array(v["bound"])}
    rows = {gradient_name(x, v["stop_grad"]): np.array([np.inf if e is None else e for e in bound])[:, None]
            + 0 * np.array(v[x]) for x, bound in zip(NAMES, v["bound"]["grads"], strict=True)}
    return {"U": np.array(v["bound"]["u"]), **rows}


def observation(v, parts):
    """The Observation of a result. In a large batch gradients by differences take too long: there a bug that a machine
    differentiated is ruled out by its U alone."""
    def ask(candidate):
        if "w_new" in v:
            return {STEP: sample(implementation(candidate[0]), case_of(v))}
        return energy_of(candidate, batch_of(v), (v["stop_grad"],))

    def ask_large(candidate):
        answer = ask((candidate[0], "as written"))
        given = {name: got for name, (got, _, _) in parts.items()}
        return answer if candidate[1] == "as written" else {**given, "U": answer["U"]}

    large = "large" in v["flags"] and "u" in v
    return Observation(parts, ask_large) if large else Observation(parts, ask, ("w_new" in v, v["id"]))


def diagnosis(half, known, verdicts):
    """Lines that say what the failures of one half have in common: a known bug, single precision, a flag."""
    mine = {name: x for name, x in verdicts.items() if name.startswith(half + "/") and x.given and x.judged}
    failed = [name for name, x in mine.items() if x.text is not None]
    if not failed:
        return
    in_order = sorted(mine, key=lambda name: ("generic" not in name, name not in failed))
    seen = [mine[name].observation for name in in_order if mine[name].observation]
    double = [mine[name].observation for name in in_order if mine[name].double]
    if double and all(x and is_single(x) for x in double):
        yield f"{half}: right to single precision; say \"dtype\": \"float32\", or look for a hidden float32."
        return
    wrong = set().union(*(x.wrong for x in seen))
    candidates = [x for x in CANDIDATES[half] if possible(x, seen, wrong)]
    found = explain(seen, candidates or CANDIDATES[half][:1])
    if found.whole:
        yield f"{half}: {equals(found.whole)}"
    elif found.wrong:
        yield f"{half}: {in_parts(found, seen) if half == 'energy' else 'no known bug.'}"
    yield from shared_flags(failed, [name for name in mine if name not in failed], known)


def possible(candidate, seen, wrong):
    """Whether a known bug explains any wrong part in all vectors; the others need not be tried on all parts."""
    for x in seen:
        wrong = wrong - (set(x.parts) - x.fits(candidate))
        if not wrong:
            return False
    return True


def shared_flags(failed, passed, known):
    """The flags that all failures have, if possible those that no success has; and the other way round."""
    flags = {name: set(known[name]["flags"]) for name in [*failed, *passed]}
    common = set.intersection(*(flags[name] for name in failed))
    alone = common - set().union(*(flags[name] for name in passed))
    who, they, have = ("The failure", "it", "has") if len(failed) == 1 else ("All failures", "they", "have")
    for flag in sorted(alone or common):
        others = sum(flag in flags[name] for name in passed)
        also = f"{others} of those that pass" if others else f"only {they}"
        yield f"  {who}, and {also}, {have} the flag {flag}: {FLAGS[flag]}"
    if passed:
        spared = set.intersection(*(flags[name] for name in passed)) - set().union(*(flags[name] for name in failed))
        for flag in sorted(spared):
            yield f"  Only vectors with the flag {flag} pass: {FLAGS[flag]}"
