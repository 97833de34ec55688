"""The commands: each parses, calls the function of its name and prints."""

from __future__ import annotations

import shlex

import click

from onnx_rnn_prune import api, report
from onnx_rnn_prune.cli import files, looking, options, pruning, searching
from onnx_rnn_prune.cli.config import PROJECT, SECTION, defaults, read_config
from onnx_rnn_prune.cli.examples import examples
from onnx_rnn_prune.cli.outputs import check_outputs, show
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.text import visible


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "onnx-rnn-prune prune model.onnx -o small.onnx --keep 50% --data clips",
        "onnx-rnn-prune prune --help",
    ),
)
@click.option(
    "--config",
    type=options.name,
    metavar="FILE",
    help=f"Options in TOML; [tool.{SECTION}] of the nearest {PROJECT} without it.",
)
@click.version_option(package_name="onnx_rnn_prune")
@click.pass_context
def cli(context: click.Context, config: str | None) -> None:
    """Make ONNX files with LSTM, GRU or RNN layers smaller and faster by removing units."""
    name = context.invoked_subcommand
    try:
        found = read_config(config)
        if found is None or name is None:
            return
        chosen = defaults(found, cli, name)
    except PruneError as error:
        if not {"-h", "--help"}.intersection(shlex.split(str(context.obj))):
            raise
        click.echo(f"Warning: {error}", err=True)
        return
    context.default_map = {name: chosen.values}
    if chosen.ignored:
        click.echo(f"Warning: {visible(chosen.ignored)}", err=True)


@cli.command(
    epilog=examples(
        "onnx-rnn-prune inspect model.onnx",
        "onnx-rnn-prune inspect model.onnx --data clips --json",
    )
)
@click.argument("model", type=options.name)
@options.freeze
@options.data_option("--data", options.DATA_HELP)
@options.size
@options.stream
@options.as_json
def inspect(
    model: str,
    freeze: dict[str, str],
    data: str | None,
    size: dict[str, str],
    stream: bool | None,
    as_json: bool,
) -> None:
    """List the recurrent layers of MODEL, what they cost and what can be pruned."""
    with report.ProgressBars() as progress:
        found = api.inspect(
            model, data=data, size=size, stream=stream, freeze=freeze, progress=progress
        )
    show(found, report.inspect_table, as_json)


@cli.command(
    epilog=examples(
        "onnx-rnn-prune compare model.onnx small.onnx --data clips",
        "onnx-rnn-prune compare model.onnx small.onnx --data clips --max-nrmse 0.5",
    )
)
@click.argument("a", type=options.name)
@click.argument("b", type=options.name)
@options.data_option("--data", options.DATA_HELP)
@options.size
@options.stream
@click.option(
    "--max-nrmse",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Exit with 3 if an output deviates more: RMS difference / spread of A's output.",
)
@options.as_json
@files.summary
def compare(
    a: str,
    b: str,
    data: str | None,
    size: dict[str, str],
    stream: bool | None,
    max_nrmse: float | None,
    as_json: bool,
    summary: str | None,
) -> int:
    """Compare the outputs, size and speed of model B with those of A."""
    check_outputs([summary], [a, b, data])
    found = api.compare(a, b, data=data, size=size, stream=stream, max_nrmse=max_nrmse)
    show(found, report.compare_table, as_json)
    if summary:
        report.write_text(report.compare_summary(found), summary)
    if found["passed"]:
        return 0
    click.echo(f"Error: an output deviates by more than {max_nrmse}", err=True)
    return 3


@cli.command(
    epilog=examples(
        "onnx-rnn-prune bench model.onnx small.onnx --data clips",
    )
)
@click.argument("models", nargs=-1, type=options.name, required=True, metavar="A [B ...]")
@options.data_option("--data", options.DATA_HELP)
@options.size
@options.stream
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@options.as_json
def bench(
    models: tuple[str, ...],
    data: str | None,
    size: dict[str, str],
    stream: bool | None,
    threads: int,
    as_json: bool,
) -> None:
    """Time models against each other in one run."""
    found = api.bench(models, data=data, size=size, stream=stream, threads=threads)
    show(found, report.bench_table, as_json)


for _command in (pruning.prune, searching.search, looking.sensitivity, pruning.plan, pruning.apply):
    cli.add_command(_command)
