"""The options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from onnx_rnn_prune.arguments import MODES
from onnx_rnn_prune.cli.names import FileName
from onnx_rnn_prune.compression.sparsity import SPARSIFIERS
from onnx_rnn_prune.cost.price import PRICES
from onnx_rnn_prune.data.sources import is_function_name
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.recovery.distill.configuration import read_loss
from onnx_rnn_prune.recovery.schedules import RECOVERIES, SCHEDULES
from onnx_rnn_prune.selection.criteria import CRITERIA
from onnx_rnn_prune.selection.criterion import parse_criterion
from onnx_rnn_prune.selection.request import STRATEGIES

DATA_FORMS = (
    "Inputs: a .npz file, a folder of them, a folder of test_data_set_* folders, or "
    "module:function."
)
DATA_HELP = f"{DATA_FORMS} Random inputs without it."

Command = TypeVar("Command", bound=Callable[..., Any])


name = FileName()


def find_modules_here(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Lets `module:function` name a module in the working folder, as `python -m` does."""
    if value is not None and is_function_name(value) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return value


def _criterion(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses what is no criterion; functions of the user's are looked for later."""
    if value is not None and not is_function_name(value):
        try:
            parse_criterion(value)
        except PruneError as error:
            raise click.BadParameter(f"{error.what}; {error.remedy}") from error
    return find_modules_here(context, parameter, value)


def _loss(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses what is no loss; functions of the user's are looked for later."""
    if value is not None and not is_function_name(value):
        try:
            read_loss(value)
        except PruneError as error:
            raise click.BadParameter(f"{error.what}; {error.remedy}") from error
    return find_modules_here(context, parameter, value)


def data_option(flag: str, text: str, required: bool = False) -> Callable[[Command], Command]:
    """An option that takes any form of data a command line can name."""
    return click.option(
        flag, type=name, metavar="PATH", callback=find_modules_here, required=required, help=text
    )


stream = click.option(
    "--stream/--no-stream",
    default=None,
    help="Take each folder of inputs as one stream, in order, whose states may be left out; or "
    "judge each call by itself. By default, the states in the inputs tell.",
)


eval_data = data_option("--eval-data", "Inputs to judge the result by; part of --data without it.")


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order in which they are listed."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _name_values(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    parts = [value.partition("=") for value in values]
    if not all(name and given for name, given, _ in parts):
        raise click.BadParameter("give NAME=VALUE")
    return {name: text for name, _, text in parts}


size = click.option(
    "--size",
    metavar="NAME=SIZES",
    multiple=True,
    callback=_name_values,
    help="Sizes of random inputs: input=1x512, or a named dimension, batch=4.",
)
steps = click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="In how many steps units are chosen, or fade out.",
)
schedule = click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="hard",
    show_default=True,
    help="How units leave: at once, by degrees, or some of both.",
)
loss = click.option(
    "--loss",
    metavar="NAME",
    callback=_loss,
    help="What taylor, fisher and distill learn from labels in the data: cross-entropy, or "
    "module:function.",
)
criterion = click.option(
    "--criterion",
    metavar="NAME",
    callback=_criterion,
    help=f"How units are ranked: {', '.join(CRITERIA)}; a sum of some, such as "
    "l2+0.5*activation; or module:function.",
)
seed = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="For random choices and random inputs.",
)
# The options that bound every choice of units.
limits = together(
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
    seed,
)
# The options that say which units are kept.
selection = together(
    click.option(
        "--keep",
        metavar="[LAYER=]AMOUNT",
        multiple=True,
        help="Units kept: 40%, 0.4, or 160 (units); 'encoder*=30%' for some layers.",
    ),
    click.option(
        "--budget",
        metavar="KIND=LIMIT",
        help="What to reach: params=30%, flops=2M, bytes=1MB.",
    ),
    data_option("--data", DATA_HELP),
    size,
    stream,
    criterion,
    click.option(
        "--allocate",
        type=click.Choice(STRATEGIES),
        default="uniform",
        show_default=True,
        help="How the cut is shared between layers.",
    ),
    click.option(
        "--per",
        type=click.Choice(PRICES),
        default="units",
        show_default=True,
        help="What a shared cut is paid in.",
    ),
    steps,
    limits,
)

# The options that leave no choice of units.
settled = together(
    click.option(
        "--lossless", is_flag=True, help="Remove just the units that provably change nothing."
    ),
    click.option(
        "--masks",
        type=name,
        metavar="FILE.npz",
        help="Units kept: an array of booleans for each layer, True to keep.",
    ),
)


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
# The options that say how kept weights make up for cut ones.
recover = together(
    click.option(
        "--recover",
        type=click.Choice((*RECOVERIES, "auto")),
        help="How the kept weights make up for the removed units.",
    ),
    click.option(
        "--distill-minutes",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        help="How long --recover distill may train.",
    ),
)


mode = click.option(
    "--mode",
    type=click.Choice(MODES),
    default="shrink",
    show_default=True,
    help="Remove units, or only set them to zero.",
)
shrink_states = click.option(
    "--shrink-states",
    is_flag=True,
    help="Let state inputs and outputs hold the kept units only.",
)
state_metadata = click.option(
    "--state-metadata",
    metavar="KEY",
    multiple=True,
    help="Update the width of a state in metadata KEY, its JSON (KEY:PATH), or a constant output.",
)


# The options that set single weights to zero.
zeros = together(
    click.option(
        "--sparsify",
        metavar="AMOUNT",
        help="Zeros in matrices: 50%, 2:4, block=4x1:50%, threshold=1e-3.",
    ),
    click.option(
        "--sparsify-by",
        type=click.Choice(SPARSIFIERS),
        help="Which weights become zero; obs lets the others make up for them.",
    ),
    click.option(
        "--sparse-initializers",
        is_flag=True,
        help="Store the entries that are not zero, where that is smaller.",
    ),
)


# The options that say what else is done once units are cut.
stages = together(
    click.option(
        "--rank",
        metavar="AMOUNT",
        help="Lower the rank of layers' inputs: 25%, 32 or energy=99%.",
    ),
    click.option(
        "--quantize", metavar="FORM", help="Hold weights in fewer bits: int8, fp16 or bits=4."
    ),
)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
