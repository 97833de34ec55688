"""Stages that compress a model after its units are cut, and a report row for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.errors import ConstraintError
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.external import compressed_bytes
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.report.build import drift_rows, total_rows
from onnx_rnn_prune.report.schema import StageRow
from onnx_rnn_prune.validate import drift, latency


class Stage(Protocol):
    """One way to compress a whole model."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    def __call__(self, document: Document, data: Calibration, progress: Progress) -> Document:
        """The compressed document; the given one may be modified."""


def run_stages(
    opened: OpenedModel,
    document: Document,
    stages: Sequence[Stage],
    data: Calibration,
    progress: Progress,
) -> tuple[Document, list[StageRow]]:
    """Runs stages one after another.

    Returns:
        The result, and a row for the cut and for each stage: size, drift from the original and
            speedup over it after that step; no rows if there is no stage.
    """
    if not stages:
        return document, []
    rows = [_row("units", opened, document, data)]
    for stage in stages:
        progress(stage.name, 0, None)
        document = stage(document, data, progress)
        rows.append(_row(stage.name, opened, document, data))
    return document, rows


def _row(name: str, opened: OpenedModel, document: Document, data: Calibration) -> StageRow:
    model = document.write()
    judged, timed = opened.pairs(model, "the pruned model")
    totals = total_rows(opened, model)
    spent = latency(*timed, data.test.opening())
    found = drift(*judged, data.test)
    for output, values in found.items():
        if math.isinf(values.max_abs):
            raise ConstraintError(
                f"it makes output {output} infinite or NaN, unlike the original's",
                where=name,
                remedy="leave this step out, or give --data on which all outputs are finite",
            )
    return StageRow(
        name=name,
        params=totals.params_after,
        bytes=totals.bytes_after,
        compressed_bytes=compressed_bytes(model),
        drift=drift_rows(found, opened.judged, data.streams),
        speedup=spent.speedup,
        speedup_quartiles=spent.speedup_quartiles,
    )
