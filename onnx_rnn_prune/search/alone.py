"""Each group of layers cut alone, to see what it can spare."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from onnx_rnn_prune.calibration import Calibration
from onnx_rnn_prune.interface import AS_BEFORE
from onnx_rnn_prune.opened_model import OpenedModel
from onnx_rnn_prune.progress import Progress
from onnx_rnn_prune.report.schema import SensitivityReport
from onnx_rnn_prune.search.driver import Bounds, run
from onnx_rnn_prune.search.executor import Crew
from onnx_rnn_prune.search.greedy import curve_asks
from onnx_rnn_prune.search.identity import key_of
from onnx_rnn_prune.search.memory import Memory
from onnx_rnn_prune.search.rows import sensitivity_rows
from onnx_rnn_prune.search.setting import Setting, open_setting
from onnx_rnn_prune.search.space import Space
from onnx_rnn_prune.search.trial import Strategy, Trial
from onnx_rnn_prune.selection.request import Request
from onnx_rnn_prune.validate.quality import Quality


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What cuts of one group of layers alone do to the outputs, and to a quality.

    Attributes:
        opened: the model.
        data: feeds to calibrate with and to measure on.
        quality: what is measured beside the deviation of the outputs.
        request: how units are ranked, and which layers may be cut.
        crew: how many make trials, and where.
        memory: a file that remembers trials, or None; that of a search serves.
    """

    opened: OpenedModel
    data: Calibration
    quality: Quality
    request: Request
    crew: Crew
    memory: Path | None

    def __call__(self, progress: Progress) -> SensitivityReport:
        """Cuts, recovers and runs."""
        start = time.perf_counter()
        memory = Memory(self.memory, key_of(self.opened, self.data, self.quality, self.request))
        with self.crew.open() as workers:
            setting = open_setting(
                self.opened, self.data, self.quality, self.request, AS_BEFORE,
                workers, memory, (), progress,
            )  # fmt: skip
            trials = self._tried(setting, memory, progress)
        left = setting.traced.left
        notes = [f"{name} is left alone: {why}" for name, why in left.items()]
        notes += self.request.bounds.notes(setting.lab.trace.groups)
        return sensitivity_rows(setting, self.data, trials, notes, start)

    def _tried(self, setting: Setting, memory: Memory, progress: Progress) -> list[Trial]:
        lab = setting.lab
        space = Space(
            lab.trace,
            lab.scores,
            self.request.bounds,
            setting.ms,
            lambda counts: True,
        )
        asks = sum(map(len, curve_asks(space).values()))

        def tell(what: str, done: int, total: int | None) -> None:
            progress("cutting layers one by one", done, total)

        bounds = Bounds(trials=asks, minutes=float("inf"))
        return run(_one_by_one(space), setting.attempts, memory, bounds, tell)


def _one_by_one(space: Space) -> Strategy:
    for asks in curve_asks(space).values():
        if asks:
            yield asks
