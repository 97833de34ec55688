"""Options are declared once: functions, commands, configuration and manual say the same of them."""

import ast
import re
from dataclasses import fields, is_dataclass
from inspect import Parameter, getdoc, signature
from pathlib import Path

import click
import pytest

from onnx_rnn_prune import api
from onnx_rnn_prune.arguments import Choice, Switch, flag_of
from onnx_rnn_prune.cli.commands import cli
from onnx_rnn_prune.cli.config import Config, defaults
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.options import ALLOCATIONS, GROUPS, OPTIONS, STRATEGIES, Options, Outputs
from onnx_rnn_prune.selection import strategies
from onnx_rnn_prune.selection.allocation import ALLOCATORS

MANUAL = Path(__file__).resolve().parent.parent / "tools" / "docs"
WRITTEN = {field.name for field in fields(Outputs)}


def arguments(function):
    """Keyword arguments with their defaults."""
    return {
        parameter.name: parameter.default
        for parameter in signature(function).parameters.values()
        if parameter.kind is Parameter.KEYWORD_ONLY
    }


def flags(command):
    return {
        opt
        for parameter in cli.commands[command].params
        if isinstance(parameter, click.Option)
        for opt in parameter.opts
        if opt.startswith("--")
    }


@pytest.mark.parametrize("command", cli.commands)
def test_functions_take_what_is_declared(command):
    """Each with the declared default, and the command of that name with a flag for each."""
    given = arguments(getattr(api, command))
    given.pop("progress", None)
    assert set(given) <= set(OPTIONS) - WRITTEN
    for name, default in given.items():
        if default is not Parameter.empty:
            assert OPTIONS[name].read(default, name) == OPTIONS[name].default, name
    writes = flags(command) - {flag_of(name) for name in given}
    assert writes <= {"--output", "--save-plan", "--json", "--html", "--summary", "--png"}
    assert flags(command) >= {flag_of(name) for name in given}


@pytest.mark.parametrize("command", cli.commands)
def test_every_option_is_a_key_of_a_configuration_file(command):
    """With its name; what it holds is read as a flag's value is."""
    values = {"criterion": "l2", "loss": "cross-entropy", "freeze": {"x": 1}, "size": {"x": 3}}
    table = {}
    for name in set(arguments(getattr(api, command))) & set(OPTIONS):
        kind = OPTIONS[name].kind
        value = values.get(name, getattr(kind, "names", ["1"])[0])
        table[name] = True if isinstance(kind, Switch) else value
    found = defaults(Config(Path("a.toml"), "", table, trusted=True), cli, command)[0]
    assert set(found) == set(table)
    assert {parameter.name for parameter in cli.commands[command].params} >= set(found)


def test_every_option_is_in_one_group_and_of_use():
    names = [field.name for group in GROUPS for field in fields(group)]
    assert sorted(names) == sorted(OPTIONS)
    taken = {name for command in cli.commands for name in arguments(getattr(api, command))}
    assert set(OPTIONS) - WRITTEN == taken - {"progress"}
    groups = {field.type for field in fields(Options)}
    assert groups == {group.__name__ for group in GROUPS if group is not Outputs}
    assert all(is_dataclass(group) and group.__dataclass_params__.frozen for group in GROUPS)


def documented(function):
    section = getdoc(function).partition("Args:\n")[2].partition("\n\n")[0]
    return set(re.findall(r"^    (\w+): ", section, re.MULTILINE))


@pytest.mark.parametrize("command", cli.commands)
def test_docstrings_speak_of_arguments_that_are_there(command):
    """Those of `prune` of all; other functions refer to it for those that they share."""
    function = getattr(api, command)
    there = set(signature(function).parameters)
    assert documented(function) <= there
    elsewhere = documented(api.prune) | documented(api.search) | {"planned", "plan", "threads"}
    assert there <= documented(function) | elsewhere | {"models"}
    if command == "prune":
        assert documented(function) == there


def rows(page, heading):
    """Cells of the table below a heading of the manual."""
    text = (MANUAL / page).read_text("utf-8").partition(f"## {heading}\n")[2]
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_manual_says_which_command_takes_what():
    said = {
        (flag, command)
        for cells in rows("configuration.md", "Which command takes what")
        for flag in re.findall(r"`(--[\w-]+)`", cells[0].replace("--no-", "--"))
        for command in re.findall(r"`(\w+)`", cells[1])
    }
    assert said == {(flag, command) for command in cli.commands for flag in flags(command)}


def test_the_manual_says_the_defaults():
    for cells in rows("pruning.md", "Options"):
        for flag in re.findall(r"`--([\w-]+)`", cells[0]):
            default = OPTIONS[flag.removeprefix("no-").replace("-", "_")].default
            if isinstance(default, str | int | float) and not isinstance(default, bool):
                assert cells[2].strip("` |") == str(default).removesuffix(".0"), flag


def test_messages_name_options_that_there_are():
    """By flags, as the command line calls them; elsewhere no text looks like one."""
    package = Path(api.__file__).parent
    texts = [
        (path.name, node.value)
        for path in sorted(package.rglob("*.py"))
        if path.parent.name != "cli" and path.name != "style.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = {(flag, name) for name, text in texts for flag in re.findall(r"--[a-z][a-z-]*", text)}
    flags = {flag.replace("--no-", "--") for flag, _ in named}
    assert flags <= {flag_of(option) for option in OPTIONS}


def test_choices_are_those_that_there_are():
    assert set(ALLOCATIONS) == {*ALLOCATORS, "joint"}
    assert set(STRATEGIES) == set(strategies.STRATEGIES)


@pytest.mark.parametrize("name", OPTIONS)
def test_values_of_a_wrong_kind_name_the_option(name):
    kind = OPTIONS[name].kind
    try:
        OPTIONS[name].read(object(), name)
    except PruneError as error:
        assert error.where == f"{name}=" and flag_of(name) in error.for_shell and error.remedy
        if isinstance(kind, Choice):
            assert all(choice in error.remedy for choice in kind.names)
    else:  # read by the part of the package that it concerns
        assert type(kind).__name__ in ("Text", "Named", "File", "Source")


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"stream": True, "data": None}, "stream="),
        ({"size": {"x": 3}, "data": "clips"}, "size="),
        ({"per": "ms"}, "per="),
        ({"lossless": True, "recover": "bias"}, "lossless="),
        ({"masks": {}, "align": 8}, "masks="),
        ({"schedule": "soft", "recover": "none"}, "schedule="),
        ({"mode": "zero", "budget": "params=30%"}, "budget="),
        ({"mode": "zero", "shrink_states": True}, "shrink_states="),
        ({"mode": "zero", "quantize": "int8"}, "mode="),
        ({"shrink_states": True, "rank": 3}, "shrink_states="),
        ({"sparsify_by": "obs"}, "sparsify_by="),
        ({"state_metadata": "key"}, "state_metadata="),
        ({"max_drop": 1}, "max_drop="),
        ({"better": "lower"}, "better="),
        ({"speedup": 2, "latency": 3}, "speedup= and latency="),
        ({"jobs": 2, "cluster": "tcp://here:1"}, "jobs= and cluster="),
    ],
)
def test_options_that_contradict_each_other(given, where):
    with pytest.raises(PruneError) as caught:
        Options.of(given)
    assert caught.value.where == where and caught.value.remedy
