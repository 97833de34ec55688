"""Rolling: turns unrolled recurrences into operators."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx_rnn_prune.calibration import feeds_for
from onnx_rnn_prune.data import input_paths
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import is_apart, stored_bytes
from onnx_rnn_prune.model.files import WrittenModel, check_output, load_model, write_atomically
from onnx_rnn_prune.model.runner import OURS, Feed, Runner
from onnx_rnn_prune.model.walk import all_nodes
from onnx_rnn_prune.opened_model import ModelSource, as_run, read_document
from onnx_rnn_prune.options import Options
from onnx_rnn_prune.progress import Progress, silent
from onnx_rnn_prune.report.rolled import RollReport, rolling_row
from onnx_rnn_prune.roll.feeding import proof_feeds
from onnx_rnn_prune.roll.rolling import roll as roll_document
from onnx_rnn_prune.trace.decomposed import with_reasons
from onnx_rnn_prune.trace.invalid_nodes import find_invalid_nodes
from onnx_rnn_prune.validate import latency

# A single step gains nothing from becoming an operator.
_FEWEST = 2
# The number of the user's feeds on which a rolled model is tried.
_MOST_FEEDS = 8


@dataclass(frozen=True, eq=False)
class RollResult(WrittenModel):
    """A model whose unrolled recurrences became operators."""

    report: RollReport

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Saves like any result; if nothing was rolled, a file is copied byte for byte."""
        if self.apart or self.report.rolled or not Path(self.report.model).is_file():
            return super().save(path)
        check_output(path, self.inputs)
        write_atomically(path, Path(self.report.model).read_bytes())
        return (Path(path),)


def roll(
    model: ModelSource,
    *,
    data: object = None,
    size: object = None,
    seed: int = 0,
    progress: Progress = silent,
) -> RollResult:
    """Turns recurrences that an exporter wrote out into LSTM, GRU and RNN nodes, without loss.

    A dense layer that was copied for each step becomes one layer, too. Each is verified: one step
    of a recurrence in double precision to 1e-10, the whole model in onnxruntime to 1e-5.
    What cannot be verified stays as it is, and the report says why.

    Arguments as in `api.prune`; the model is also verified and timed on `data`.

    Raises:
        PruneError: it is not a model, does not load, or does not run on random inputs.
    """
    start = time.perf_counter()
    asked = Options.of(locals()).inputs
    inputs = input_paths(model, data)
    name = "the model" if isinstance(model, onnx.ModelProto) else str(model)
    original = load_model(model)
    for node in find_invalid_nodes(Document.read(original).graph):
        raise PruneError(str(node), where=name, remedy=node.remedy)
    runnable = as_run(original)
    before = Runner(runnable, name=name)
    document = read_document(runnable.write() if isinstance(runnable, Document) else runnable)
    progress("rolling", 0, None)
    feeds: list[Feed] = []
    if data is not None:
        given = feeds_for(document, lambda: before, data, None)
        feeds = [dict(feed) for feed, _ in zip(given, range(_MOST_FEEDS), strict=False)]
    feeds += proof_feeds(document, before, asked.size or {}, asked.seed)
    found = with_reasons(roll_document(document, feeds, _FEWEST))
    written = found.document.write() if found.rolled else original
    timed = feeds[0] if data is not None or asked.size else max(feeds, key=_entries)
    after = Runner(as_run(written), name="the rolled model", remedy=OURS)
    rows = rolling_row(found, None)
    report = RollReport(
        model=name,
        rolled=rows.rolled,
        left=rows.left,
        feeds=len(feeds),
        max_abs_diff=found.error,
        bytes_before=stored_bytes(original, like=original),
        bytes_after=stored_bytes(written, like=original),
        nodes_before=_nodes(document),
        nodes_after=_nodes(found.document),
        latency=latency(before, after, timed) if found.rolled else None,
        timed_on={name: list(value.shape) for name, value in timed.items()},
        seconds=time.perf_counter() - start,
    )
    return RollResult(written, report, apart=is_apart(written), inputs=inputs)


def _entries(feed: Feed) -> int:
    return sum(value.size for value in feed.values())


def _nodes(document: Document) -> int:
    return sum(1 for _ in all_nodes(document.graph))
