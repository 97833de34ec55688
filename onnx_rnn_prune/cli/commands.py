"""The commands: each parses, calls the function of its name and prints."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType

from onnx_rnn_prune import api, report
from onnx_rnn_prune.cli import options
from onnx_rnn_prune.data import places
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import check_output, weight_files, weights_beside
from onnx_rnn_prune.report.table import sentence

# Wide enough for layer names; a pipe has no width of its own.
_PIPE_WIDTH = 120


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
    _print(found, report.inspect_table, as_json)


@cli.command()
@click.argument("model", type=options.name)
@options.output
@options.freeze
@options.selection
@options.settled
@options.data_option("--eval-data", "Inputs to judge the result by; part of --data without it.")
@options.schedule
@options.recover
@options.mode
@options.shrink_states
@options.state_metadata
@options.zeros
@options.stages
@click.option(
    "--json",
    "json_path",
    type=options.name,
    metavar="REPORT",
    help="Also write the report as JSON.",
)
@click.option(
    "--save-plan", type=options.name, metavar="PLAN", help="Also write which units are kept."
)
def prune(
    model: str,
    out: str,
    freeze: dict[str, str],
    keep: tuple[str, ...],
    budget: str | None,
    lossless: bool,
    masks: str | None,
    data: str | None,
    eval_data: str | None,
    criterion: str | None,
    allocate: str,
    per: str,
    steps: int,
    schedule: str,
    recover: str | None,
    distill_minutes: float,
    mode: str,
    shrink_states: bool,
    state_metadata: tuple[str, ...],
    sparsify: str | None,
    sparsify_by: str | None,
    sparse_initializers: bool,
    rank: str | None,
    quantize: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    align: int,
    min_units: int,
    seed: int,
    json_path: str | None,
    save_plan: str | None,
) -> None:
    """Prune MODEL, check the result and write it to OUT."""
    outputs = [out, *_beside(out, model), json_path, save_plan]
    _check_outputs(outputs, [model, data, eval_data, masks])
    with report.ProgressBars() as progress:
        result = api.prune(
            model,
            keep=keep or None,
            budget=budget,
            lossless=lossless,
            masks=masks,
            data=data,
            eval_data=eval_data,
            criterion=criterion,
            allocate=allocate,
            per=per,
            steps=steps,
            schedule=schedule,
            recover=recover,
            distill_minutes=distill_minutes,
            mode=mode,
            shrink_states=shrink_states,
            state_metadata=state_metadata,
            sparsify=sparsify,
            sparsify_by=sparsify_by,
            sparse_initializers=sparse_initializers,
            rank=rank,
            quantize=quantize,
            only=only,
            skip=skip,
            align=align,
            min_units=min_units,
            freeze=freeze,
            seed=seed,
            progress=progress,
        )
    files = result.save(out)
    if save_plan:
        result.plan.save(save_plan)
    if json_path:
        report.write_json(result.report, json_path)
    _print(result.report, report.prune_table)
    _saved(*files, save_plan, json_path)


@cli.command()
@click.argument("model", type=options.name)
@options.output
@options.freeze
@options.selection
@options.shrink_states
def plan(
    model: str,
    out: str,
    freeze: dict[str, str],
    keep: tuple[str, ...],
    budget: str | None,
    data: str | None,
    criterion: str | None,
    allocate: str,
    per: str,
    steps: int,
    shrink_states: bool,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    align: int,
    min_units: int,
    seed: int,
) -> None:
    """Choose the units of MODEL to keep and write the choice to OUT, for `apply`."""
    _check_outputs([out], [model, data])
    with report.ProgressBars() as progress:
        chosen = api.plan(
            model,
            keep=keep or None,
            budget=budget,
            data=data,
            criterion=criterion,
            allocate=allocate,
            per=per,
            steps=steps,
            shrink_states=shrink_states,
            only=only,
            skip=skip,
            align=align,
            min_units=min_units,
            freeze=freeze,
            seed=seed,
            progress=progress,
        )
    chosen.save(out)
    _console().print(report.plan_table(chosen))
    _saved(out)


@cli.command()
@click.argument("model", type=options.name)
@click.argument("plan_path", type=options.name, metavar="PLAN")
@options.output
@options.freeze
@options.mode
@options.shrink_states
@options.state_metadata
@options.schedule
@options.steps
@options.zeros
@options.stages
@options.recover
@options.data_option("--data", options.DATA_HELP)
def apply(
    model: str,
    plan_path: str,
    out: str,
    freeze: dict[str, str],
    mode: str,
    shrink_states: bool,
    state_metadata: tuple[str, ...],
    schedule: str,
    steps: int,
    sparsify: str | None,
    sparsify_by: str | None,
    sparse_initializers: bool,
    rank: str | None,
    quantize: str | None,
    recover: str | None,
    distill_minutes: float,
    data: str | None,
) -> None:
    """Prune MODEL by a PLAN that `plan` or `prune --save-plan` wrote."""
    _check_outputs([out, *_beside(out, model)], [model, plan_path, data])
    with report.ProgressBars() as progress:
        result = api.apply(
            model,
            plan_path,
            mode=mode,
            shrink_states=shrink_states,
            state_metadata=state_metadata,
            schedule=schedule,
            steps=steps,
            sparsify=sparsify,
            sparsify_by=sparsify_by,
            sparse_initializers=sparse_initializers,
            rank=rank,
            quantize=quantize,
            recover=recover,
            distill_minutes=distill_minutes,
            data=data,
            freeze=freeze,
            progress=progress,
        )
    files = result.save(out)
    _print(result.report, report.prune_table)
    _saved(*files)


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
    _print(found, report.compare_table, as_json)
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
    _print(found, report.bench_table, as_json)


def _beside(out: str, model: str) -> list[str]:
    """The file of weights that comes with a result if the model has its weights apart."""
    return [str(weights_beside(out))] if weight_files(model) else []


def _check_outputs(outputs: Sequence[str | None], inputs: Sequence[str | None]) -> None:
    """Refuses what cannot be written, or must not be, before the work is done."""
    paths = [Path(path) for path in outputs if path is not None]
    given = places(*inputs)
    for number, path in enumerate(paths):
        check_output(path, given)
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise PruneError(
                "two outputs have this name", where=str(path), remedy="name another file"
            )


def _print(
    content: Mapping[str, Any],
    table: Callable[[Mapping[str, Any]], RenderableType],
    as_json: bool = False,
) -> None:
    if as_json:
        click.echo(report.to_json(content))
    else:
        _console().print(table(content))


def _saved(*paths: str | Path | None) -> None:
    _console().print(sentence("Written", ", ".join(str(path) for path in paths if path)))


def _console() -> Console:
    file = sys.stdout or io.StringIO()  # there is none where the caller closed it
    fixed = None if file.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=file, width=fixed, highlight=False, markup=False, emoji=False)
