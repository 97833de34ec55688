"""What is done with a model once its units are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_rnn_prune.arguments import MODES, one_of, step_count
from onnx_rnn_prune.compression.precision import read_quantize
from onnx_rnn_prune.compression.rank import read_rank
from onnx_rnn_prune.compression.sparsity import read_storage, read_zeros
from onnx_rnn_prune.compression.stage import Stage
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.interface import Interface, read_interface
from onnx_rnn_prune.recovery.distill.configuration import TrainingConfig
from onnx_rnn_prune.recovery.schedules import SCHEDULES, Schedule, read_recovery, read_training


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

    @property
    def learns(self) -> bool:
        """Whether the kept weights are trained."""
        return self.recover == "distill"


def read_treatment(
    recover: str | None,
    distill_minutes: float,
    schedule: str,
    steps: int,
    mode: str,
    shrink_states: bool,
    state_metadata: str | Sequence[str],
    stages: Sequence[Stage],
    seed: int,
) -> Treatment:
    """Arguments as values that mean something.

    Raises:
        PruneError: one of them means nothing.
    """
    wanted = read_recovery(recover)
    leaving = Schedule(one_of(schedule, SCHEDULES, "--schedule"), step_count(steps, "--steps"))
    if leaving.kind != "hard" and wanted in ("none", "bias", "merge"):
        raise PruneError(
            f"with --recover={wanted}, nothing learns while units fade out",
            where="--schedule",
            remedy="choose hard, or another recovery",
        )
    learning = read_training(recover, distill_minutes, seed)
    one_of(mode, MODES, "--mode")
    interface = read_interface(shrink_states, state_metadata, mode)
    if stages and (shrink_states or mode == "zero"):
        raise PruneError(
            f"{stages[0].name} cannot be done to such a file",
            where="--shrink-states" if shrink_states else "--mode",
            remedy="leave one of the two out",
        )
    return Treatment(wanted, leaving, learning, mode, interface, stages)


def read_stages(
    rank: str | float | None,
    sparsify: object,
    sparsify_by: object,
    sparse_initializers: object,
    quantize: str | None,
    given: bool,
) -> tuple[Stage, ...]:
    """What is asked for, in the order in which it is done: what rounds comes late.

    Raises:
        PruneError: an argument means nothing, or needs data, and there is none.
    """
    return (
        *([] if rank is None else [read_rank(rank)]),
        *read_zeros(sparsify, sparsify_by, given),
        *([] if quantize is None else [read_quantize(quantize)]),
        *read_storage(sparse_initializers),
    )
