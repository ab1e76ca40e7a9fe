"""--help is a page to work from: groups, defaults, sources; what is no setting is refused with a way on."""

import ast
import bisect
import dataclasses
import re
import shlex
import symtable
from pathlib import Path

import pytest

import simsiam_sghmc as s


@pytest.fixture
def page(capsys):
    with pytest.raises(SystemExit) as stop:
        s.main(["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_every_setting_with_its_default(page):
    for f in dataclasses.fields(s.Config):
        (line,) = re.findall(rf"^  {s.flag(f.name)}[ ,].*$", page, re.M)
        shown = {True: "on", False: "off"}[f.default] if isinstance(f.default, bool) else f.default
        assert line.endswith(f"[{shown}]") != (f.default is None), line


def test_the_settings_stand_in_the_groups_of_config(page):
    groups = {}
    for line in page.splitlines():
        if heading := re.fullmatch(r"(\w+):", line):
            names = groups.setdefault(heading[1], [])
        elif name := re.match(r"  --(?!no-)([\w-]+)", line):
            names.append(name[1].replace("-", "_"))
    wanted = {}
    for f in dataclasses.fields(s.Config):
        wanted.setdefault(f.metadata["group"], []).append(f.name)
    assert {name: groups[name] for name in wanted} == wanted


DEFAULTS = """
    method sghmc  sg True  similarity abscos
    eps 0.001  L 3  alpha 0.01  mass 1.0  velocity_std None  samples 50000  batch_per kick  energy_scale 1.0
    prior_std None
    lr 0.03  momentum 0.9  weight_decay 0.0005  epochs 800  updates None  warmup_epochs 10  cosine True
    predictor_steps 1  predictor_lr_mult 1.0
    data cifar10  batch_size 512
    eval_every 500  knn_k 200  knn_train None  knn_test None  knn_features z  bn recalibrated
    seed 0  device auto  precision fp32  init None  out None  keep_every 0
"""  # the paper's, and where it is silent those of the decisions


def test_the_defaults_are_the_papers():
    defaults = {name: str(value) for name, value in dataclasses.asdict(s.Config()).items()}
    assert defaults == dict(entry.split() for entry in re.split(r"  +|\n", DEFAULTS) if entry)


def test_help_fits_120_columns(page):
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize("given", ["--sampels 3", "--batchsize=8", "--sgg", "--sampl 3", "more"])
def test_what_is_no_setting_is_named_with_the_way_to_those_there_are(given):
    with pytest.raises(s.BadInput) as refusal:
        s.parse([*given.split(), "--eps", "1"])
    said = str(refusal.value)
    assert given in said and said.endswith(" (--help lists the settings)")


OTHER = {"sghmc": "SGD", "sgd": "SGHMC"}
GIVEN = {bool: [], int: ["20"], float: ["0.5"]}


@pytest.mark.parametrize("method", OTHER)
def test_each_setting_of_the_other_method_is_refused_and_all_others_are_accepted(method):
    refused = [f for f in dataclasses.fields(s.Config) if f.metadata["group"] == OTHER[method]]
    assert len(refused) > 8
    for f in refused:
        with pytest.raises(s.BadInput, match=f"{s.flag(f.name)} is a setting of {OTHER[method]}.*leave it out"):
            s.parse(["--method", method, s.flag(f.name), *GIVEN.get(f.type.__origin__, [str(f.default)])])
    for f in dataclasses.fields(s.Config):
        if f.metadata["group"] not in ("method", OTHER[method]):
            s.parse(["--method", method, s.flag(f.name), *GIVEN.get(f.type.__origin__, [str(f.default)])])


def sections(source):
    """[(name, first line)] of the banners of a module."""
    banners = ((re.fullmatch(r"# -{20,} (.+)", line), at) for at, line in enumerate(source.splitlines(), 1))
    return [(banner[1], at) for banner, at in banners if banner]


def global_names(table):
    """The names that a function or class, and what stands in it, takes from its module."""
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    return own.union(*map(global_names, table.get_children()))


def uses_of_later_sections(source):
    """[(line, name)] of what a top-level statement takes from a section below its own."""
    starts = [at for _, at in sections(source)]
    statements = [(bisect.bisect(starts, statement.lineno), statement) for statement in ast.parse(source).body]
    bodies = {table.get_lineno(): table for table in symtable.symtable(source, "", "exec").get_children()}
    section_of, uses = {}, []
    for number, statement in statements:
        names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        defines = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        for name in [statement.name] if defines else names:
            section_of.setdefault(name, number)
        outside = [*statement.decorator_list, *getattr(statement, "bases", [])] if defines else [statement]
        loaded = {n.id for part in outside for n in ast.walk(part) if isinstance(n, ast.Name)}
        first = min([statement.lineno, *(d.lineno for d in statement.decorator_list)]) if defines else 0
        inside = bodies.get(statement.lineno) or bodies.get(first)
        uses += [(number, statement.lineno, name) for name in loaded | (global_names(inside) if inside else set())]
    return [(line, name) for number, line, name in uses if section_of.get(name, 0) > number]


def test_each_section_of_the_program_uses_only_those_above_it_and_the_docstring_lists_them():
    source = Path(s.__file__).read_text()
    assert uses_of_later_sections(source) == []
    listed = re.search(r"only those above it: (.*?)\.\n", " ".join(s.__doc__.split()) + ".\n")[1]
    listed = [name.strip() for name in listed.split(" python ")[0].rstrip(". ").split(" - ")]
    assert listed == [name.removeprefix("the ") for name, _ in sections(source)]


def test_a_use_of_a_later_section_is_seen():
    first, second = "# " + "-" * 30 + " one\n", "# " + "-" * 30 + " two\n"
    later = second + "LATER = 1\n@print\nclass Later:\n    pass\n"
    for use in ("def f():\n    return [LATER for _ in ()]\n", "class C:\n    def f(self):\n        return Later\n",
                "X = lambda: LATER\n", "@Later\ndef f():\n    pass\n", "class C(Later):\n    pass\n"):  # fmt: skip
        assert len(uses_of_later_sections(first + use + later)) == 1, use
    for good in ("def f(LATER):\n    return LATER\n", "def f():\n    LATER = 2\n    return LATER\n"):
        assert uses_of_later_sections(first + good + later) == []
    within = "def g():\n    return f(A)\ndef f(x):\n    return x\n"
    assert uses_of_later_sections(first + "A = 1\n" + second + within) == []


def test_every_command_of_the_readme_and_of_the_docs_is_accepted():
    root = Path(__file__).parents[1]
    pages = [page.read_text() for page in (root / "README.md", *root.glob("docs/*.md"))]
    pages = [re.sub(r"```.*?```", "", page, flags=re.S) for page in pages]
    shown = [line for page in pages for line in page.splitlines() if line.startswith("    ")]
    shown += [code for page in pages for code in re.findall(r"`([^`]+)`", page)]
    commands = [part for line in shown for part in re.findall(r"simsiam_sghmc\.py (--[^#&]*)", line)]
    assert len(commands) >= 3
    for command in commands:
        s.parse(shlex.split(command))
