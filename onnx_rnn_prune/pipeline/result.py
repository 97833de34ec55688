"""A pruned model with the proof beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx_rnn_prune.model.external import whole_model
from onnx_rnn_prune.model.files import check_output, save_apart, save_model
from onnx_rnn_prune.report.html import write_html
from onnx_rnn_prune.report.schema import PruneReport
from onnx_rnn_prune.trace.plan import Plan


@dataclass(frozen=True, eq=False)
class PruneResult:
    """A pruned model and the proof beside it.

    Attributes:
        written: the pruned model; weights that were not touched may lie in the original's files.
        plan: which units were kept.
        report: its attributes, or as a mapping its keys, are those of the JSON report.
        apart: whether weights are saved in a file of their own, as the original's are.
        inputs: files and folders that were read.
    """

    written: onnx.ModelProto
    plan: Plan
    report: PruneReport
    apart: bool = False
    inputs: tuple[Path, ...] = ()

    @property
    def model(self) -> onnx.ModelProto:
        """The pruned model with all of its weights.

        Raises:
            PruneError: it is larger than one message can be.
        """
        return whole_model(self.written)

    def save_html(self, path: str | Path) -> None:
        """Writes the report as one HTML file that needs nothing else, and never over an input.

        Raises:
            PruneError: the place cannot be written.
        """
        check_output(path, self.inputs)
        write_html(self.report, path)

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Writes the model, whole or not at all, and never over an input.

        Returns:
            The path, and where weights lie apart that of `<path>.<digest of them>.data`.
        """
        check_output(path, self.inputs)
        save = save_apart if self.apart else save_model
        return save(self.written, path, self.inputs)
