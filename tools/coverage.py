"""Test of pruning on all available models: `python tools/coverage.py`.

Prunes every published model that is present (`python tools/fetch_models.py`) and every model of
tests/fixtures to several shares of units, choosing other units for each, and checks the results:
the same outputs as the zeroed original, a valid file, the same interface, fewer bytes. The exit
code is 1 if a check failed, or if a model with recurrent layers that onnxruntime runs could not be
pruned.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

import streaming
from fetch_models import default_folder
from model_feeds import PUBLISHED, Feed, feeds_for, step_feeds
from onnx_rnn_prune import PruneResult, apply, inspect, prune
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.model.writing import leave_open
from onnx_rnn_prune.opened_model import as_run
from onnx_rnn_prune.report.wording import times
from onnx_rnn_prune.selection.profitability import worse
from onnx_rnn_prune.traced_model import as_proven
from onnx_rnn_prune.validate import either_order, timings
from pages import markdown, write_section
from time_limit import TooLong, time_limit

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
SHARES = (0.75, 0.5, 0.25)
TIMED = 0.5
SECONDS = 240.0  # time limit per model
HEADER = (
    "model",
    "layers",
    "ends",
    "left alone",
    "difference at 75, 50, 25 %",
    "checker",
    "interface",
    "size",
    "speed at 50 %",
)
NOTE = """\
Each model is pruned to 75, 50 and 25 % of its units, drawn at random from all layers. *Ends*:
in how many places the layers' outputs were absorbed into smaller weights or restored to full
width. *Difference*: the largest of any output between the smaller file and the original with
the same units zeroed, on feeds of several batch sizes and lengths. *Checker*: onnx.checker with
full_check, if the original passes. *Interface*: inputs, outputs, opsets, metadata, domain and
doc string match the original's. *Speed*: the original's time over the smaller file's on one
thread, the median over pairs of runs, with quartiles if they are far apart or span 1; a model
with states as inputs runs one step of one sequence. *Refused*: `prune` writes no such file,
since it is slower; *whole*: nothing is pruned, since the file would be no smaller. By
`python tools/coverage.py`, as is the second table: chunk-by-chunk voice activity detection with
the state carried along, comparing speech probabilities before and after `prune --stream` at
50 %, calibrated on six streams of 5 s."""


@dataclass(frozen=True)
class Cut:
    """The result for one share of units.

    Attributes:
        result: the smaller model and its report.
        difference: the largest difference from the zeroed model.
        speed: times faster than the original, with quartiles, and whether prune refuses to write
            such a file for that.
        faults: the checks that failed.
    """

    result: PruneResult
    difference: float
    speed: str
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table; `faults` is what is wrong with it."""

    cells: tuple[str, ...]
    faults: tuple[str, ...] = ()


def recurrent_ops(graph: onnx.GraphProto) -> Iterator[str]:
    """The types of recurrent nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        if node.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
            yield node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from recurrent_ops(inner)


def interface(model: onnx.ModelProto) -> tuple[object, ...]:
    """The interface of a model: everything a user sees except its numbers."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    ports = onnx.GraphProto(input=model.graph.input, output=model.graph.output)
    leave_open(ports)
    return (
        [
            value.SerializeToString()
            for value in (*ports.input, *ports.output)
            if value.name not in defaults
        ],
        sorted((entry.key, entry.value) for entry in model.metadata_props),
        sorted((opset.domain, opset.version) for opset in model.opset_import),
        (model.domain, model.doc_string, model.graph.doc_string, model.graph.name),
        (model.ir_version, model.producer_name, model.producer_version, model.model_version),
    )


def checker_fault(model: onnx.ModelProto) -> str:
    """What onnx.checker reports with full_check, in one line, or an empty string."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return " ".join(str(error).split())[:120]
    return ""


def cut(path: Path, feeds: list[Feed], share: float) -> Cut:
    """Prunes a model to a share of its units, and checks the result.

    Raises:
        PruneError: it cannot be pruned.
    """
    original = onnx.load(path)
    # Nothing is fitted, so one feed will do; the comparison below uses all.
    result = prune(
        path,
        keep=share,
        criterion="random",
        allocate="global",
        seed=round(100 * share),
        data=feeds[:1],
        recover="none",
    )
    zeroed = apply(path, result.plan, data=feeds[:1], recover="none", mode="zero")

    def load(rewritten: bool) -> tuple[Runner, Runner]:
        one, other = (
            as_proven(Document.read(each.model), name, rewritten)
            for each, name in ((zeroed, "zeroed"), (result, "smaller"))
        )
        return one, other

    proof = either_order(load, feeds)
    faults = [] if proof.passed else [f"at {share:.0%} {proof.reason}"]
    if not result.report["oracle"]["passed"]:
        faults.append(f"at {share:.0%} the self-check fails: {result.report['oracle']['reason']}")
    found = checker_fault(result.model)
    if found and not checker_fault(original):
        faults.append(f"at {share:.0%} checker: {found}")
    if interface(result.model) != interface(original):
        faults.append(f"at {share:.0%} the interface changes")
    totals = result.report["totals"]
    if result.plan.cut() and totals["bytes_after"] >= totals["bytes_before"]:
        faults.append(
            f"at {share:.0%} {totals['bytes_before']} become {totals['bytes_after']} bytes"
        )
    speed = _speed(original, result, feeds[:1] if result.plan.cut() else [], path)
    if speed.endswith(_SLOWER):
        faults.append(f"at {share:.0%} slower: {speed}")
    return Cut(result, proof.max_abs_diff, speed, tuple(faults))


# Smaller slowdowns are noise or irrelevant.
_NOTED, _SLOWER, _REFUSED = 0.97, "slower", "refused"


def _speed(
    original: onnx.ModelProto, result: PruneResult, feeds: Sequence[Feed], path: Path
) -> str:
    """The speedup over the original, and what follows if it is below 1."""
    for feed in [*step_feeds(path), *feeds][: len(feeds)]:
        runners = [Runner(as_run(model), name=path.name) for model in (original, result.model)]
        found = timings(runners, feed)[1]
        text = times(found.ratio, found.ratio_quartiles)
        spent = replace(
            result.report.latency,
            speedup=found.ratio,
            speedup_quartiles=found.ratio_quartiles,
        )
        if worse(replace(result.report, latency=spent), ("ms",)) is not None:
            return f"{text}, {_REFUSED}"
        below = found.ratio_quartiles[1] < 1.0 and found.ratio < _NOTED
        return f"{text}, {_SLOWER}" if below else text
    return "whole"


def measure(path: Path) -> Row:
    """The row of one model."""
    model = onnx.load(path)
    counts = Counter(recurrent_ops(model.graph))
    nodes = ", ".join(f"{count} {op}" for op, count in counts.items()) or "none"
    try:
        feeds = feeds_for(path)
    except PruneError as error:
        return _empty(path, nodes, f"the original does not run: {_refusal(path) or error.what}", "")
    try:
        with time_limit(SECONDS):
            found = inspect(path)
            cuts = [cut(path, feeds, share) for share in SHARES]
    except PruneError as error:
        fault = error.what if counts else ""
        return _empty(path, nodes, f"cannot be pruned: {error.what}", fault)
    except (Exception, TooLong) as error:  # every model gets a row
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        return _empty(path, nodes, fault, fault)
    return _row(path, nodes, found, cuts, bool(checker_fault(model)))


def _refusal(path: Path) -> str:
    """The message of `inspect` about nodes that nothing can run."""
    try:
        return "; ".join(row["text"] for row in inspect(path)["refused"])
    except PruneError:
        return ""


def _empty(path: Path, nodes: str, reason: str, fault: str) -> Row:
    cells = (path.stem, nodes, "", _cell(reason), "", "", "", "", "")
    return Row(cells, (fault,) if fault else ())


def _row(
    path: Path, nodes: str, found: Mapping[str, Any], cuts: Sequence[Cut], unchecked: bool
) -> Row:
    faults = [fault for each in cuts for fault in each.faults]
    report = cuts[SHARES.index(TIMED)].result.report
    ends = Counter(
        outlet["end"]
        for layer in report["layers"]
        for outlet in layer["outlets"]
        if outlet["end"] != "unused"
    )
    alone = [f"{layer['name']}: {layer['pinned']}" for layer in report["layers"] if layer["pinned"]]
    alone += [note for note in found["warnings"] if "is not pruned" in note]
    totals = report["totals"]
    checks = {"checker": "passed", "interface": "same"}
    for word in checks:
        if any(word in fault for fault in faults):
            checks[word] = "fails"
    if unchecked:
        checks["checker"] = "original fails"
    cells = (
        path.stem,
        nodes,
        ", ".join(f"{count} {end}" for end, count in sorted(ends.items())),
        _cell("; ".join(alone)) or "0",
        ", ".join("0" if each.difference == 0 else f"{each.difference:.1e}" for each in cuts),
        checks["checker"],
        checks["interface"],
        f"{_kilobytes(totals['bytes_before'])} to {_kilobytes(totals['bytes_after'])} kB",
        cuts[SHARES.index(TIMED)].speed,
    )
    return Row(cells, tuple(faults))


def _kilobytes(count: int) -> str:
    return f"{count / 1000:.1f}" if count < 100_000 else f"{count / 1000:.0f}"


def _cell(text: str) -> str:
    """A text escaped for a table cell."""
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= 160 else f"{text[:157]}..."


def paths(models: Path, only: Sequence[str]) -> list[Path]:
    """The published models that are present, and the fixtures; those named, if any are."""
    present = [models / f"{name}.onnx" for name in PUBLISHED]
    found = [path for path in present if path.exists()] + sorted(FIXTURES.glob("*.onnx"))
    return [path for path in found if not only or path.stem in only]


def main() -> int:
    """Runs all checks; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="models to prune")
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    rows: list[Row] = []
    for path in paths(choices.models, choices.only):
        rows.append(measure(path))
        said = "; ".join(rows[-1].faults) or "well"
        print(f"{path.stem}: {said}", file=sys.stderr)
    stream, passed = streaming.table(choices.models, choices.only or list(streaming.DETECTORS))
    failed = [row for row in rows if row.faults]
    lines = [f"- {row.cells[0]}: {_cell('; '.join(row.faults))}" for row in failed]
    summary = f"{len(rows)} models, {len(failed)} with failed checks"
    parts = [markdown(HEADER, [row.cells for row in rows]), stream, NOTE]
    text = "\n\n".join(
        filter(None, [*parts, f"{summary}{':' if lines else '.'}", "\n".join(lines)])
    )
    print(text)
    if choices.write:
        write_section("coverage", text)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
