"""Output of the commands: files, and tables on the console."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType

from onnx_rnn_prune.arguments import File, options_of
from onnx_rnn_prune.data import input_paths
from onnx_rnn_prune.errors import ConstraintError, Note, PruneError
from onnx_rnn_prune.model.checks import real_path
from onnx_rnn_prune.model.files import check_output, write_text
from onnx_rnn_prune.options import OPTIONS, Outputs
from onnx_rnn_prune.pipeline import PruneResult
from onnx_rnn_prune.record import Record, mapped, to_json
from onnx_rnn_prune.report.markdown import prune_summary
from onnx_rnn_prune.report.terminal import sentence
from onnx_rnn_prune.rolling import RollResult
from onnx_rnn_prune.selection.profitability import worse
from onnx_rnn_prune.text import visible

R = TypeVar("R", bound=Record)
W = TypeVar("W", PruneResult, RollResult)
V = TypeVar("V")
Given = Mapping[str, Any]
# The options that name output files.
FILES = options_of(Outputs)

# Wide enough for layer names; a pipe has no width.
_PIPE_WIDTH = 120


def check_outputs(given: Given) -> None:
    """Refuses outputs that cannot or must not be written, before the work starts."""
    paths = [Path(given[word]) for word in FILES if isinstance(given.get(word), str)]
    read: list[object] = []
    for word, value in given.items() if paths else ():
        if word not in OPTIONS:  # an argument
            read += value if isinstance(value, tuple) else [value]
        elif word not in FILES and isinstance(OPTIONS[word].kind, File):
            read.append(value)
    inputs = input_paths(*read)
    for number, path in enumerate(paths):
        check_output(path, inputs)
        if real_path(path) in map(real_path, paths[:number]):
            raise PruneError(
                "two outputs have this name", where=str(path), remedy="choose another file"
            )


def is_worse(result: PruneResult) -> bool:
    """Whether a result is larger or slower than the original."""
    cut = result.report.mode == "shrink" and result.plan.cut()
    return bool(cut) and worse(result.report) is not None


def refuse_worse(result: PruneResult, model: str, pays: Sequence[str]) -> None:
    """Refuses a result that is worse than the original.

    Args:
        pays: what a cut must not increase: bytes, and ms per run.

    Raises:
        ConstraintError: it does.
    """
    found = result.report
    if found.mode != "shrink":
        return
    if not result.plan.cut():
        pinned = {row.pinned: row.name for row in found.layers}
        if all(pinned) and not (found.stages or found.rolled):
            reasons = "; ".join(f"{name}: {reason}" for reason, name in pinned.items())
            raise ConstraintError(
                f"no layer can be pruned ({reasons}); no file was written",
                where=model,
                remedy="list all layers with inspect; choose others with --layers",
            )
        return
    reason = worse(found, pays)
    if reason is not None:
        narrow = found.states or found.data.streams is None
        shrink = "" if narrow else "add --shrink-states, "
        raise ConstraintError(
            f"{reason}; no file was written",
            where=model,
            remedy=f"prune more units or fewer layers, {shrink}or add --budget bytes=100% to"
            " --keep if only size matters",
        )


def write(result: W, given: Given, table: Callable[[Any], RenderableType]) -> None:
    """Writes a result and its by-products, and shows its report.

    Args:
        given: the files to write, by option name.

    Raises:
        PruneError: a file cannot be written; unless it is the model, all else is written and shown.
    """
    command = click.get_current_context().obj
    result = replace(result, report=replace(for_shell(result.report), command=command))
    found = result.report
    puts: dict[str, Callable[[str], None]] = {
        "json": lambda path: write_text(path, to_json(found) + "\n")
    }
    if isinstance(result, PruneResult):
        report = result.report
        puts = {"save_plan": result.plan.save, **puts, "html": result.save_html}
        puts["summary"] = lambda path: write_text(path, prune_summary(report))
    written: list[str | Path] = [*result.save(given["output"])]
    failed: list[PruneError] = []
    for word, put in puts.items():
        path = given.get(word)
        try:
            if path:
                put(path)
                written.append(path)
        except PruneError as error:
            failed.append(error)
    show(result.report, table)
    say_written(*written)
    if failed:
        raise failed[0]


def show(content: R, table: Callable[[R], RenderableType], as_json: bool = False) -> None:
    """Prints a report as a table, or as JSON."""
    content = for_shell(content)
    if as_json:
        click.echo(to_json(content, getattr(sys.stdout, "encoding", None) or "utf-8"))
    else:
        console().print(table(content))


def for_shell(value: V) -> V:
    """A report, or texts, with notes worded for the command line."""
    worded: V = mapped(value, lambda text: text.for_shell if isinstance(text, Note) else text)
    return worded


def say_written(*paths: str | Path | None) -> None:
    """Prints the names of the written files."""
    console().print(sentence("Written", ", ".join(visible(str(path)) for path in paths if path)))


def console() -> Console:
    """Standard output, for tables."""
    file = sys.stdout or io.StringIO()  # None if the caller closed it
    fixed = None if file.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=file, width=fixed, highlight=False, markup=False, emoji=False)
