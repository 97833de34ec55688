"""What is done with a model once its units are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_rnn_prune.compression.precision import read_quantize
from onnx_rnn_prune.compression.rank import read_rank
from onnx_rnn_prune.compression.sparsity import SparseStorage, read_zeros
from onnx_rnn_prune.compression.stage import Stage
from onnx_rnn_prune.options import Interface, Options
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig, require_torch
from onnx_rnn_prune.recovery.schedules import Schedule


@dataclass(frozen=True)
class Treatment:
    """What is done with a model once its units are chosen.

    Attributes:
        recover: how kept weights make up for cut ones; auto for the best that the data allows.
        schedule: how units leave.
        course: how long a recovery may learn.
        mode: shrink, or zero.
        interface: what callers of the result see.
        stages: what is done to the cut model.
    """

    recover: str
    schedule: Schedule
    course: TrainingConfig
    mode: str
    interface: Interface
    stages: Sequence[Stage] = ()

    @staticmethod
    def of(options: Options) -> Treatment:
        """What options ask for.

        Raises:
            PruneError: one of them means nothing, or needs PyTorch, which is missing.
        """
        asked, cut = options.recovery, options.cut
        if asked.recover == "distill":
            require_torch("--recover=distill")
        return Treatment(
            recover=asked.recover or "auto",
            schedule=Schedule(cut.schedule, cut.steps),
            course=TrainingConfig(asked.distill_minutes, options.inputs.seed),
            mode=cut.mode,
            interface=options.interface,
            stages=_stages(options),
        )

    @property
    def learns(self) -> bool:
        """Whether the kept weights are trained."""
        return self.recover == "distill"


def _stages(options: Options) -> tuple[Stage, ...]:
    """What is asked for, in the order in which it is done: what rounds comes late."""
    asked, given = options.compression, options.inputs.data is not None
    return (
        *([] if asked.rank is None else [read_rank(asked.rank)]),
        *([] if asked.sparsify is None else [read_zeros(asked.sparsify, asked.sparsify_by, given)]),
        *([] if asked.quantize is None else [read_quantize(asked.quantize)]),
        *([SparseStorage()] if asked.sparse_initializers else []),
    )
