"""What the command line says of itself: help with examples that run, completion, the version."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from onnx_rnn_prune import api
from onnx_rnn_prune.cli import run
from onnx_rnn_prune.cli.commands import cli

COMMANDS = tuple(cli.commands)
NAME = "onnx-rnn-prune"
SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"


def examples(command):
    """The lines behind Examples at the end of a command's help, as they are printed."""
    text = command.get_help(click.Context(command, info_name=NAME))
    end = text.partition("\n  Examples:\n")[2]
    return [line.strip() for line in end.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the examples speak of: model.onnx, clips, a smaller model and a plan."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(SAMPLES / "digits_gru.onnx", folder / "model.onnx")
    shutil.copytree(SAMPLES / "digits_gru" / "calibration", folder / "clips")
    result = api.prune(folder / "model.onnx", data=folder / "clips")
    result.save(folder / "small.onnx")
    result.plan.save(folder / "plan.json")
    return folder


@pytest.mark.parametrize("command", [cli, *cli.commands.values()], ids=lambda each: each.name)
def test_help_ends_with_examples(command):
    found = examples(command)
    assert found and all(line.startswith(f"{NAME} ") for line in found)
    if command is not cli:
        assert all(line.startswith(f"{NAME} {command.name} ") for line in found)


@pytest.mark.parametrize(
    "line", [line for each in (cli, *cli.commands.values()) for line in examples(each)]
)
def test_examples_run(line, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    code = run(shlex.split(line)[1:])
    assert code == 0, capsys.readouterr().err
    output = re.search(r"(?:-o|--png) (\S+)", line)
    assert output is None or Path(output[1]).stat().st_size > 0


def test_the_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{NAME}, version {version('onnx_rnn_prune')}\n"


def complete(words):
    """What is offered for the last of some words, as (kind, text)."""
    environment = {
        "_ONNX_RNN_PRUNE_COMPLETE": "bash_complete",
        "COMP_WORDS": f"{NAME} {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    done = subprocess.run(
        [sys.executable, "-m", "onnx_rnn_prune"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [tuple(line.split(",", 1)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", [("plain", name) for name in sorted(COMMANDS)]),
        ("sen", [("plain", "sensitivity")]),
        ("prune --quan", [("plain", "--quantize")]),
        ("prune --allocate g", [("plain", "global")]),
        ("prune mod", [("file", "mod")]),
        ("prune model.onnx -o sm", [("file", "sm")]),
        ("prune model.onnx --data cl", [("file", "cl")]),
        ("bench a.onnx b", [("file", "b")]),
        ("--config py", [("file", "py")]),
    ],
)
def test_words_are_completed(words, found):
    assert complete(words) == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_script(shell):
    done = subprocess.run(
        [sys.executable, "-m", "onnx_rnn_prune"],
        env={**os.environ, "_ONNX_RNN_PRUNE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_ONNX_RNN_PRUNE_COMPLETE" in done.stdout and done.stderr == ""
