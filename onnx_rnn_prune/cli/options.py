"""The options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from onnx_rnn_prune.data.values import is_function_name
from onnx_rnn_prune.flow.arguments import MODES
from onnx_rnn_prune.flow.recovery import RECOVERIES
from onnx_rnn_prune.plan.allocation import ALLOCATORS
from onnx_rnn_prune.score.criteria import CRITERIA

DATA_HELP = (
    "Inputs: a .npz file, a folder of them, a folder of test_data_set_* folders, or "
    "module:function. Random inputs without it."
)

Command = TypeVar("Command", bound=Callable[..., Any])


def name(value: str) -> str:
    """Takes the name of a file or of data; an empty one is the slip of a script."""
    if not value:
        raise click.BadParameter("the name is empty")
    return value


def _find_modules_here(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Lets `module:function` name a module in the working folder, as `python -m` does."""
    if value is not None and is_function_name(value) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return value


def data_option(flag: str, text: str) -> Callable[[Command], Command]:
    """An option that takes any form of data a command line can name."""
    return click.option(flag, type=name, metavar="PATH", callback=_find_modules_here, help=text)


_SELECTION = (
    click.option("--keep", metavar="AMOUNT", help="Units kept: 40%, 0.4, or 160 (units)."),
    click.option(
        "--budget",
        metavar="KIND=LIMIT",
        help="What to reach: params=30%, flops=2M, bytes=1MB.",
    ),
    data_option("--data", DATA_HELP),
    click.option("--criterion", type=click.Choice(tuple(CRITERIA)), help="How units are ranked."),
    click.option(
        "--allocate",
        type=click.Choice(tuple(ALLOCATORS)),
        default="uniform",
        show_default=True,
        help="How the cut is shared between layers.",
    ),
    click.option("--only", metavar="GLOB", multiple=True, help="Prune only these layers."),
    click.option("--skip", metavar="GLOB", multiple=True, help="Leave these layers alone."),
    click.option(
        "--align",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Prefer multiples of this many units.",
    ),
    click.option(
        "--min-units",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Keep at least so many units per layer.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="For random choices and random inputs.",
    ),
)


def selection(command: Command) -> Command:
    """The options that say which units are kept."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


def _name_values(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    parts = [value.partition("=") for value in values]
    if not all(name and given for name, given, _ in parts):
        raise click.BadParameter("give NAME=VALUE")
    return {name: text for name, _, text in parts}


freeze = click.option(
    "--freeze",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_name_values,
    help="Fix an input to a value; it and the branches not taken go.",
)
output = click.option(
    "-o", "--output", "out", type=name, metavar="OUT", required=True, help="File to write."
)
recover = click.option(
    "--recover",
    type=click.Choice((*RECOVERIES, "auto")),
    help="How the kept weights make up for the removed units.",
)
mode = click.option(
    "--mode",
    type=click.Choice(MODES),
    default="shrink",
    show_default=True,
    help="Remove units, or only set them to zero.",
)
_STATES = (
    click.option(
        "--shrink-states",
        is_flag=True,
        help="Let state inputs and outputs hold the kept units only.",
    ),
    click.option(
        "--state-metadata",
        metavar="KEY",
        multiple=True,
        help="Metadata that holds the width of a state.",
    ),
)


def states(command: Command) -> Command:
    """The options that say what states look like from outside."""
    for option in reversed(_STATES):
        command = option(command)
    return command


_STAGES = (
    click.option(
        "--rank",
        metavar="AMOUNT",
        help="Lower the rank of layers' inputs: 25%, 32 or energy=99%.",
    ),
    click.option(
        "--quantize", metavar="FORM", help="Hold weights in fewer bits: int8, fp16 or bits=4."
    ),
)


def stages(command: Command) -> Command:
    """The options that say what else is done once units are cut."""
    for option in reversed(_STAGES):
        command = option(command)
    return command


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
