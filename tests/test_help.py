"""--help is a page to work from: groups, defaults, and an example per group that can be run as it stands."""

import dataclasses
import re
import shlex
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


def test_the_example_of_each_group_is_accepted_and_uses_the_group(page):
    groups = {f.metadata["group"] for f in dataclasses.fields(s.Config)}
    examples = dict(re.findall(r"^(\w+):\n  example: (.*?)   +\S", page, re.M))
    assert set(examples) == groups
    for group, example in examples.items():
        _, given = s.parse(shlex.split(example))
        assert any(f.metadata["group"] == group for f in dataclasses.fields(s.Config) if f.name in given)


def test_help_fits_120_columns(page):
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize(
    "given, meant",
    [("--sampels 3", "--samples"), ("--batchsize=8", "--batch-size"), ("--sgg", "--sg"), ("--qqq", None)],
)
def test_a_misspelt_setting_is_met_with_the_one_that_was_meant(given, meant):
    with pytest.raises(s.BadInput) as refusal:
        s.parse([*given.split(), "--eps", "1"])
    said = str(refusal.value)
    assert given in said and said.endswith(f"; did you mean {meant}?" if meant else " (--help lists the settings)")


def test_every_command_of_the_readme_is_accepted():
    text = re.sub(r"```.*?```", "", (Path(__file__).parents[1] / "README.md").read_text(), flags=re.S)
    shown = [line for line in text.splitlines() if line.startswith("    ")] + re.findall(r"`([^`]+)`", text)
    commands = [part for line in shown for part in re.findall(r"simsiam_sghmc\.py (--[^#&]*)", line)]
    assert len(commands) >= 4
    for command in commands:
        s.parse(shlex.split(command))
