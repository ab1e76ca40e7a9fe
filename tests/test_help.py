"""--help is a page to work from: groups, defaults, sources; what is no setting is refused with a way on."""

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


def test_every_command_of_the_readme_is_accepted():
    text = re.sub(r"```.*?```", "", (Path(__file__).parents[1] / "README.md").read_text(), flags=re.S)
    shown = [line for line in text.splitlines() if line.startswith("    ")] + re.findall(r"`([^`]+)`", text)
    commands = [part for line in shown for part in re.findall(r"simsiam_sghmc\.py (--[^#&]*)", line)]
    assert len(commands) >= 4
    for command in commands:
        s.parse(shlex.split(command))
