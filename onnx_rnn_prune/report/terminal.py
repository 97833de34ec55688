"""Terminal output: tables, sentences and progress bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from onnx_rnn_prune.report import schema, wording
from onnx_rnn_prune.report.names import Cell, brief, short_names
from onnx_rnn_prune.report.rolled import RollReport
from onnx_rnn_prune.report.wording import (
    amount,
    amount_change,
    duration,
    faster,
    percent,
    size,
    size_change,
    time_change,
)
from onnx_rnn_prune.text import presentable, visible
from onnx_rnn_prune.trace.plan import Plan

# Maximum rows in the table of candidates.
_MOST_ROWS = 12
# Names longer than this leave no room for others beside them.
_LONG = 16


class _Table(Table):
    """A table that narrows its gaps before it wraps words."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wanted = Measurement.get(console, options.update_width(10_000), self).maximum
        if wanted > options.max_width:
            self.padding = (0, 1, 0, 0)
        return super().__rich_console__(console, options)


def new_table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table; the columns in `numbers` are right-aligned."""
    table = _Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        right = column in numbers
        # rich would otherwise truncate long names.
        table.add_column(
            column, justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return table


def sentence(label: str, text: str) -> Text:
    """A labelled line; names in it are never taken for markup."""
    return Text.assemble((f"{label}: ", "bold"), text)


def warning(text: str) -> Text:
    """A warning."""
    return Text.assemble(("Warning: ", "bold yellow"), text)


def note_on_names(shortened: bool) -> list[Text]:
    """A line saying that names are shortened, if they are."""
    if not shortened:
        return []
    text = "shortened here; --only, --skip and --keep take the full names, which --json shows"
    return [sentence("Layer names", text)]


def prune_table(report: schema.PruneReport) -> Group:
    """The report of a prune: layers, sizes, speed, checks, warnings."""
    report, shortened = brief(presentable(report))
    parts: list[RenderableType] = [_layers(report.layers), _gains(report)]
    if report.stages:
        parts.append(_stages(report.stages))
    parts += [sentence(label, text) for label, text in wording.sentences(report)]
    return Group(*parts, *map(warning, report.warnings), *note_on_names(shortened))


def _layers(layers: Sequence[schema.LayerRow]) -> Table:
    table = new_table(*wording.LAYER_COLUMNS, numbers=wording.LAYER_COLUMNS[2:4])
    for name, *others, outputs in wording.layer_cells(layers):
        table.add_row(Cell(name), *others, Cell(outputs))
    return table


def _gains(report: schema.PruneReport) -> Table:
    table = new_table("", "Before", "After", "", numbers=("Before", "After"))
    totals, threads = report.totals, wording.counted(report.latency.threads, "thread")
    recurrent = amount_change(totals.rnn_params_before, totals.rnn_params_after)
    table.add_row("Parameters", *amount_change(totals.params_before, totals.params_after))
    table.add_row("  of recurrent layers", *recurrent)
    table.add_row("File size", *size_change(totals.bytes_before, totals.bytes_after))
    table.add_row(f"Time per run ({threads})", *time_change(report.latency))
    return table


def _stages(stages: Sequence[schema.StageRow]) -> Table:
    """Each step compared with the original."""
    numbers = ("File size", "Compressed", "Speed", "Deviation")
    table = new_table("Step", *numbers, numbers=numbers)
    for stage in stages:
        found = wording.worst(stage.drift)
        table.add_row(
            Text(stage.name),
            size(stage.bytes),
            size(stage.compressed_bytes),
            wording.times(stage.speedup, stage.speedup_quartiles),
            percent(found[1]) if found else "unknown",
        )
    return table


def plan_table(plan: Plan) -> Group:
    """The number of units that each layer keeps."""
    table = new_table("Layer", "Units", "Kept", numbers=("Units", "Kept"))
    short = short_names(plan.layers)
    for name, layer in plan.layers.items():
        before = layer.hidden_size
        # The directions of one layer keep equally many.
        after = len(layer.keep[0])
        table.add_row(
            Cell(visible(short[name])),
            wording.change(str(before), str(after)),
            percent(after / before),
        )
    return Group(table, *map(warning, presentable(plan.notes)))


def compare_table(report: schema.CompareReport) -> Group:
    """How far the outputs of two models differ, and what the second one gains."""
    report = presentable(report)
    parts = [
        sentence(label, text.replace("the original", "the first"))
        for label, text in wording.drift_sentences(report.drift)
    ]
    sizes = size_change(report.bytes.a, report.bytes.b)
    parts.append(sentence("File size", "{} -> {} ({})".format(*sizes)))
    parts.append(sentence("Time per run", "{} -> {}, {}".format(*time_change(report.latency))))
    if report.streams is not None:
        parts.append(sentence("States", wording.streams(report.streams)))
    return Group(*parts, *map(warning, report.warnings))


def bench_table(report: schema.BenchReport) -> Group:
    """How long the models take for one run."""
    report = presentable(report)
    table = new_table("Model", "Time per run", "", numbers=("Time per run",))
    for number, row in enumerate(report.rows):
        relation = "" if number == 0 else _against_first(row)
        table.add_row(Text(row.model), duration(row.ms), relation)
    caption = f"Median of interleaved runs, {wording.counted(report.threads, 'thread')}."
    return Group(table, Text(caption), *map(warning, report.warnings))


def _against_first(row: schema.BenchRow) -> str:
    change = faster(row.ratio, row.ratio_quartiles)
    speed, space, spread = change.partition(" (")
    relation = "as" if speed == "equally fast" else "than"
    return f"{speed} {relation} the first{space}{spread}"


def roll_table(report: RollReport) -> Group:
    """What was rolled, what was not, and the gain."""
    report = presentable(report)
    parts: list[RenderableType] = [sentence("Rolled", str(row)) for row in report.rolled]
    if not report.rolled:
        parts.append(Text("Nothing was rolled; the file was copied unchanged."))
    parts += [sentence("Not rolled", f"{row.at}: {row.reason}") for row in report.left]
    latency = report.latency
    if latency is not None:
        proof = f"outputs agree to {report.max_abs_diff:.1e} on {report.feeds} feeds"
        speed = "{} -> {} per run, {}".format(*time_change(latency))
        threads = wording.counted(latency.threads, "thread")
        sizes = "{} -> {} ({})".format(*size_change(report.bytes_before, report.bytes_after))
        nodes = f"{report.nodes_before} -> {report.nodes_after} nodes"
        parts += [
            sentence("Proof", proof),
            sentence("Speed", f"{speed}, {threads}, on {wording.shapes(report.timed_on)}"),
            sentence("Size", f"{sizes}, {nodes}"),
        ]
        if report.bytes_after > report.bytes_before and latency.speedup < wording.FASTER:
            parts.append(warning("the rolled file is larger and no faster: keep the original"))
    return Group(*parts)


def search_table(report: schema.PruneReport) -> Group:
    """The Pareto-optimal candidates, the picked one, and whether it meets the limits."""
    shown, _ = brief(presentable(report))
    if shown.search is None:
        return prune_table(report)
    cuts = _frontier(shown.search, [row.name for row in shown.layers])
    lines = [sentence(label, text) for label, text in _search_sentences(shown.search)]
    return Group(prune_table(report), cuts, *lines)


def _frontier(search: schema.SearchRows, layers: Sequence[str]) -> Table:
    wide = max(map(len, layers), default=0) > _LONG
    kept = "Units kept (layers as above)" if wide else "Units kept"
    quality = wording.quality_name(search.quality).capitalize()
    numbers = ("No.", "Parameters", "File size", "Predicted\ntime", quality)
    table = new_table("No.", kept, *numbers[1:], "Goal", numbers=numbers)
    rows = [search.candidates[number] for number in wording.frontier(search)]
    # Thinned out evenly if there are many; the picked one stays.
    every = -(-len(rows) // _MOST_ROWS)
    for row in (row for n, row in enumerate(rows) if n % every == 0 or row.picked):
        state = "picked" if row.picked else "met" if row.meets else "missed"
        counts = [f"{name} {count}" for name, count in row.kept.items()]
        if wide:  # names would take most of the table
            counts = [str(row.kept.get(name, "all")) for name in layers]
        table.add_row(
            str(row.number),
            Text(", ".join(counts)),
            amount(row.params),
            size(row.bytes),
            duration(row.ms),
            _estimate(search.quality, row),
            state,
        )
    return table


def _uncertainty(search: schema.SearchRows) -> str:
    if any(0.0 < row.spread < math.inf for row in search.candidates):
        return "standard error; limits must hold with that margin"
    return "not shown: one validation feed or stream gives no standard error; give more data"


def _estimate(name: str, row: schema.Candidate) -> str:
    """A quality and its standard error."""
    known = math.isfinite(row.spread) and row.spread > 0.0
    error = f" ± {wording.quality(name, row.spread)}" if known else ""
    return wording.quality(name, row.quality) + error


def _search_sentences(search: schema.SearchRows) -> list[tuple[str, str]]:
    name, splits, test = search.quality, search.splits, search.test
    lines = [
        ("Goal", search.goal),
        (
            "Tried",
            f"{len(search.candidates)} candidates; number {search.picked} was picked; to write"
            " another one, add --pick NUMBER with the same --study",
        ),
        ("±", _uncertainty(search)),
        (
            "Feeds",
            f"{splits.calibration} for calibration, {splits.validation} for validation,"
            f" {splits.test} for test",
        ),
        (
            "Test",
            f"{wording.quality_name(name)} {wording.quality(name, test.quality)};"
            f" the original's is {wording.quality(name, test.original)}",
        ),
    ]
    return lines + wording.limit_sentences(search)


class ProgressBars:
    """One progress bar per task, removed at the end; call it to report progress.

    Nothing is shown where standard error is not a terminal.

    Args:
        console: where to draw; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Reports that `done` of `total` steps (None: unknown) of a task are done."""
        count = str(done) if total is None else f"{done}/{total}"
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(
                escape(visible(what)), total=total, count=count
            )
        self._progress.update(self._tasks[what], completed=done, total=total, count=count)
