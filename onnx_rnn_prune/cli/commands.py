"""The commands: each parses, calls the function of its name and prints."""

from __future__ import annotations

import click

from onnx_rnn_prune import api, report
from onnx_rnn_prune.cli import options, pruning, searching
from onnx_rnn_prune.cli.outputs import show


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnx_rnn_prune")
def cli() -> None:
    """Make ONNX files with LSTM, GRU or RNN layers smaller and faster by removing units."""


@cli.command()
@click.argument("model", type=options.name)
@options.freeze
@options.data_option("--data", options.DATA_HELP)
@options.as_json
def inspect(model: str, freeze: dict[str, str], data: str | None, as_json: bool) -> None:
    """List the recurrent layers of MODEL, what they cost and what can be pruned."""
    with report.ProgressBars() as progress:
        found = api.inspect(model, data=data, freeze=freeze, progress=progress)
    show(found, report.inspect_table, as_json)


@cli.command()
@click.argument("a", type=options.name)
@click.argument("b", type=options.name)
@options.data_option("--data", options.DATA_HELP)
@click.option(
    "--max-nrmse",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Exit with 3 if an output deviates more: RMS difference / spread of A's output.",
)
@options.as_json
def compare(a: str, b: str, data: str | None, max_nrmse: float | None, as_json: bool) -> int:
    """Compare the outputs, size and speed of model B with those of A."""
    found = api.compare(a, b, data=data, max_nrmse=max_nrmse)
    show(found, report.compare_table, as_json)
    if found["passed"]:
        return 0
    click.echo(f"Error: an output deviates by more than {max_nrmse}", err=True)
    return 3


@cli.command()
@click.argument("models", nargs=-1, type=options.name, required=True, metavar="A [B ...]")
@options.data_option("--data", options.DATA_HELP)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@options.as_json
def bench(models: tuple[str, ...], data: str | None, threads: int, as_json: bool) -> None:
    """Time models against each other in one run."""
    found = api.bench(models, data=data, threads=threads)
    show(found, report.bench_table, as_json)


for _command in (pruning.prune, searching.search, pruning.plan, pruning.apply):
    cli.add_command(_command)
