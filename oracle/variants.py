"""The reference with pieces of its code replaced: known bugs, correct rewritings, and 60-digit decimals for floats.

A replacement is matched on syntax trees: comments, blanks, line breaks and needless parentheses do not count, so the
reference may be formatted at will. It must match exactly once: a change of the reference cannot turn bugs into no-ops.
"""

import ast
import functools
import textwrap
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import reference_numpy

SOURCE = Path(reference_numpy.__file__).read_text(encoding="utf-8")


class DecimalNumpy:
    """NumPy with decimals in place of float64: they round alike on every machine, which BLAS, SIMD and libm do not."""

    float64 = Decimal
    log = staticmethod(np.vectorize(Decimal.ln, otypes=[object]))

    def __getattr__(self, name):
        return getattr(np, name)


def variant(edits=None, *, decimals=False):
    """The functions of the reference after replacements {old code: new code}.

    old is one expression or a run of statements; new may be empty. With decimals, arguments must be Decimals and the
    caller sets the precision. ValueError: old does not occur exactly once.
    """
    edits = {**({"import numpy as np": ""} if decimals else {}), **(edits or {})}
    changed = {}
    for old, new in edits.items():
        replace(old, new, changed)
    namespace = {"__name__": "reference_variant", "np": DecimalNumpy()}
    for i, unit in enumerate(units()):
        exec(compiled(changed[i]) if i in changed else unit.code, namespace)
    return SimpleNamespace(**{name: f for name, f in namespace.items() if not name.startswith("__")})


@dataclass
class Unit:
    """A top-level statement of the reference: its source, its code, and what text() says of all syntax in it."""

    source: str
    code: object
    texts: frozenset


@functools.cache
def units():
    """The reference, cut so that a replacement costs no more than the function that it is in."""
    trees = [ast.Module([node], []) for node in ast.parse(SOURCE).body]
    return [Unit(ast.unparse(tree), compiled(tree), frozenset(map(ast.dump, ast.walk(tree)))) for tree in trees]


def compiled(tree):
    return compile(ast.fix_missing_locations(tree), "reference_variant", "exec")


def replace(old, new, changed):
    """Replaces the code `old` by `new` in changed, {number of a unit: its syntax tree}; ValueError unless old occurs
    exactly once."""
    before, after = (ast.parse(textwrap.dedent(code)).body for code in (old, new))
    is_expression = len(before) == 1 and isinstance(before[0], ast.Expr)
    swap = Expressions(before[0].value, after[0].value) if is_expression else Statements(before, after)
    first = text(before[0].value if is_expression else before[0])
    for i, unit in enumerate(units()):
        if i in changed or first in unit.texts:
            changed[i] = swap.visit(changed.get(i) or ast.parse(unit.source))
    if swap.count != 1:
        raise ValueError(f"a replacement matches {swap.count} times instead of once: {old!r}")


@functools.lru_cache(maxsize=100_000)
def text(node):
    """What decides whether two pieces of code are the same."""
    return ast.dump(node)


class Expressions(ast.NodeTransformer):
    """Replaces every expression equal to `old`."""

    def __init__(self, old, new):
        self.kind, self.old, self.new, self.count = type(old), text(old), new, 0

    def visit(self, node):
        if type(node) is self.kind and ast.dump(node) == self.old:
            self.count += 1
            return self.new
        return self.generic_visit(node)


class Statements(ast.NodeTransformer):
    """Replaces every run of statements equal to `old`."""

    def __init__(self, old, new):
        self.kinds, self.old = [type(x) for x in old], [text(x) for x in old]
        self.new, self.count = new, 0

    def visit(self, node):
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block:
                setattr(node, name, self.swapped(block))
        return self.generic_visit(node)

    def swapped(self, block):
        """The block, a list of statements, with each run of `old` replaced; never empty."""
        n = len(self.old)
        for i in reversed(range(len(block) - n + 1)):
            run = block[i:i + n]
            if [type(x) for x in run] == self.kinds and [ast.dump(x) for x in run] == self.old:
                self.count += 1
                block[i:i + n] = self.new
        return block or [ast.Pass()]
