"""The commands: each calls the function of its name and prints the result."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import click

from onnx_rnn_prune import api
from onnx_rnn_prune.cli import outputs
from onnx_rnn_prune.cli.config import PROJECT, SECTION, defaults, read_config
from onnx_rnn_prune.cli.options import name, options_for
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import write_atomically, write_text
from onnx_rnn_prune.options import OPTIONS
from onnx_rnn_prune.report import terminal
from onnx_rnn_prune.report.inspection import inspect_table, sensitivity_table
from onnx_rnn_prune.report.markdown import compare_summary
from onnx_rnn_prune.report.pictures import sensitivity_png
from onnx_rnn_prune.report.plots import need_matplotlib
from onnx_rnn_prune.text import visible

# What was given on the command line, by name.
Given = dict[str, Any]


def _examples(*lines: str) -> str:
    """An epilog with examples of commands."""
    return "\n".join(("\b", "Examples:", *(f"  onnx-rnn-prune {line}" for line in lines)))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples("prune model.onnx -o small.onnx --keep 50% --data clips", "prune --help"),
)
@click.option(
    "--config",
    type=name,
    metavar="FILE",
    help=f"Read options from this TOML file, not from [tool.{SECTION}] in the nearest {PROJECT}.",
)
@click.version_option(package_name="onnx_rnn_prune")
@click.pass_context
def cli(context: click.Context, config: str | None) -> None:
    """Make ONNX models with LSTM, GRU or RNN layers smaller and faster by removing units."""
    name = context.invoked_subcommand
    try:
        found = read_config(config)
        if found is None or name is None:
            return
        values, ignored = defaults(found, cli, name)
    except PruneError as error:
        if not {"-h", "--help"}.intersection(shlex.split(str(context.obj))):
            raise
        click.echo(f"Warning: {error.for_shell}", err=True)
        return
    context.default_map = {name: values}
    if ignored:
        click.echo(f"Warning: {visible(ignored)}", err=True)


class Command(click.Command):
    """A command whose function takes all parameters as one mapping.

    Args:
        work: named as the command; its docstring is the help.
    """

    def __init__(
        self, work: Callable[[Given], int | None], params: list[click.Parameter], epilog: str
    ) -> None:
        super().__init__(work.__name__, params=params, help=work.__doc__, epilog=epilog)
        self._work = work

    def invoke(self, ctx: click.Context) -> int | None:
        """Checks the output files, then does the work."""
        outputs.check_outputs(ctx.params)
        return self._work(ctx.params)


def _command(
    *places: click.Argument, writes: Sequence[str], examples: Sequence[str]
) -> Callable[[Callable[[Given], int | None]], Command]:
    """Adds a command that calls the function of its name in `api`, whose options it has.

    Args:
        places: what is given without a flag; a model by default.
        writes: the options for files to write, and for printing.
        examples: command lines for the help.
    """

    def add(work: Callable[[Given], int | None]) -> Command:
        options = options_for(getattr(api, work.__name__), writes)
        given = places or [_file("model")]
        command = Command(work, [*given, *options], _examples(*examples))
        cli.add_command(command)
        return command

    return add


def _file(word: str) -> click.Argument:
    return click.Argument([word], type=name)


def _asked(given: Given) -> Given:
    """The options of the function that a command calls."""
    return {
        word: OPTIONS[word].default if OPTIONS[word].many and not value else value
        for word, value in given.items()
        if word in OPTIONS and word not in outputs.FILES
    }


def _called(function: Callable[..., Any], given: Given, *places: str) -> Any:
    """Calls a function on a model (and a plan) while showing its progress."""
    with terminal.ProgressBars() as progress:
        files = [given[place] for place in ("model", *places)]
        return function(*files, **_asked(given), progress=progress)


@_command(
    writes=["as_json"],
    examples=["inspect model.onnx", "inspect model.onnx --data clips --json"],
)
def inspect(given: Given) -> None:
    """List the recurrent layers of MODEL, their cost and what can be pruned."""
    found = _called(api.inspect, given)
    outputs.show(found, inspect_table, given["as_json"])


@_command(
    writes=["output", "save_plan", "json", "html", "summary"],
    examples=[
        "prune model.onnx -o small.onnx --keep 50% --data clips",
        "prune model.onnx -o small.onnx --budget params=60% --data clips",
        "prune model.onnx -o small.onnx --keep 50% --data clips --quantize int8",
    ],
)
def prune(given: Given) -> None:
    """Prune MODEL, check the result and write it to OUT."""
    result = _called(api.prune, given)
    pays = ("bytes",) if given["budget"] is not None else ("bytes", "ms")
    outputs.refuse_worse(result, given["model"], pays)
    outputs.write(result, given, terminal.prune_table)


@_command(
    writes=["output", "save_plan", "json", "html", "summary"],
    examples=[
        "search model.onnx -o small.onnx --data clips --max-nrmse 0.4",
        "search model.onnx -o small.onnx --data clips --params 60% --study study.db",
    ],
)
def search(given: Given) -> int:
    """Find how many units each layer of MODEL should keep, and write the result to OUT.

    Given a limit on quality, this finds the fastest result within it; otherwise, the best result
    that is as fast or as small as requested.
    """
    result = _called(api.search, given)
    outputs.write(result, given, terminal.search_table)
    if result.report.search is not None and result.report.search.met:
        return 0
    click.echo("Error: the result misses a limit on the test feeds, see above", err=True)
    return 3


@_command(
    writes=["png", "as_json"],
    examples=[
        "sensitivity model.onnx --data clips",
        "sensitivity model.onnx --data clips --metric agreement --png curves.png",
    ],
)
def sensitivity(given: Given) -> None:
    """Prune each layer of MODEL on its own to several widths; show how far the outputs deviate."""
    png = given["png"]
    if png is not None:
        need_matplotlib()
    found = _called(api.sensitivity, given)
    outputs.show(found, sensitivity_table, given["as_json"])
    if png is not None:
        write_atomically(png, sensitivity_png(found))
        if not given["as_json"]:
            outputs.say_written(png)


@_command(
    writes=["output"],
    examples=["plan model.onnx -o plan.json --keep 50% --data clips"],
)
def plan(given: Given) -> None:
    """Choose which units of MODEL to keep, and write the plan to OUT for `apply`."""
    chosen = _called(api.plan, given)
    chosen.save(given["output"])
    notes = tuple(outputs.for_shell(chosen.notes))
    outputs.console().print(terminal.plan_table(replace(chosen, notes=notes)))
    outputs.say_written(given["output"])


@_command(
    _file("model"),
    _file("plan"),
    writes=["output", "json", "html", "summary"],
    examples=["apply model.onnx plan.json -o small.onnx --data clips"],
)
def apply(given: Given) -> int:
    """Prune MODEL according to a PLAN written by `plan` or `prune --save-plan`.

    The plan is applied even if the result is larger or slower than MODEL; the exit code is then 3.
    """
    result = _called(api.apply, given, "plan")
    outputs.write(result, given, terminal.prune_table)
    return 3 if outputs.is_worse(result) else 0


@_command(
    writes=["output", "json"],
    examples=[
        "roll model.onnx -o rolled.onnx",
        "roll model.onnx -o rolled.onnx --data clips --json rolled.json",
    ],
)
def roll(given: Given) -> None:
    """Convert decomposed or unrolled recurrences in MODEL into LSTM, GRU and RNN layers.

    This is lossless: OUT computes the same as MODEL.
    """
    outputs.write(_called(api.roll, given), given, terminal.roll_table)


@_command(
    _file("a"),
    _file("b"),
    writes=["as_json", "summary"],
    examples=[
        "compare model.onnx small.onnx --data clips",
        "compare model.onnx small.onnx --data clips --max-nrmse 0.5",
    ],
)
def compare(given: Given) -> int:
    """Compare the outputs, size and speed of model B with those of A.

    Exits with 3 if an output deviates by more than --max-nrmse.
    """
    found = api.compare(given["a"], given["b"], **_asked(given))
    outputs.show(found, terminal.compare_table, given["as_json"])
    if given["summary"]:
        write_text(given["summary"], compare_summary(found))
    if found["passed"]:
        return 0
    click.echo(f"Error: an output deviates by more than {given['max_nrmse']}", err=True)
    return 3


@_command(
    click.Argument(["models"], nargs=-1, type=name, required=True, metavar="A [B ...]"),
    writes=["as_json"],
    examples=["bench model.onnx small.onnx --data clips"],
)
def bench(given: Given) -> None:
    """Time models against each other in one run."""
    found = api.bench(given["models"], **_asked(given))
    outputs.show(found, terminal.bench_table, given["as_json"])
