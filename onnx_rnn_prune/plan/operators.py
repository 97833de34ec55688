"""How long recurrent operators take on this machine: measured once, and kept in a file."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnx_rnn_prune.cells import CELLS
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.files import write_atomically
from onnx_rnn_prune.model.runner import Runner

STEPS = 64
_ROUNDS = 15
_GATES = {cell.op: len(cell.gates) for cell in CELLS if not cell.domain}


@dataclass(frozen=True)
class Operator:
    """A recurrent operator by what its time depends on.

    Attributes:
        op: LSTM, GRU or RNN.
        direction: forward, reverse or bidirectional.
        inputs: width of X.
        units: of each direction.
        batch: sequences side by side.
    """

    op: str
    direction: str
    inputs: int
    units: int
    batch: int

    def __str__(self) -> str:
        return " ".join(map(str, astuple(self)))


def cache_folder() -> Path:
    """Where what was measured on this machine is kept; XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnx_rnn_prune"


class OperatorTimes:
    """Milliseconds of operators on random inputs: 64 steps, one thread, the median.

    Args:
        path: a JSON file that keeps them, by machine and operator; one that is no such file counts
            as empty, and a place that cannot be written keeps nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / "operators.json"
        self._machine = " ".join(
            (platform.node(), platform.machine(), f"onnxruntime {onnxruntime.__version__}")
        )

    def __call__(self, operators: Sequence[Operator]) -> list[float]:
        """The time of each; those that were never timed are timed now, in turns."""
        known = self._read().get(self._machine, {})
        missing = [operator for operator in dict.fromkeys(operators) if str(operator) not in known]
        if missing:
            found = dict(zip(map(str, missing), _timed(missing), strict=True))
            known = {**known, **found}
            self._keep(found)
        return [known[str(operator)] for operator in operators]

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            found = json.loads(self._path.read_text("utf-8"))
            return {
                machine: {name: float(ms) for name, ms in times.items()}
                for machine, times in found.items()
            }
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _keep(self, found: dict[str, float]) -> None:
        times = self._read()  # another process may have written meanwhile
        times[self._machine] = {**times.get(self._machine, {}), **found}
        with contextlib.suppress(OSError, PruneError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(times, indent=1, sort_keys=True).encode())


def _timed(operators: Sequence[Operator]) -> list[float]:
    runners = [_alone(operator) for operator in operators]
    rng = np.random.default_rng(0)
    feeds = [
        {"X": rng.normal(size=(STEPS, each.batch, each.inputs)).astype(np.float32)}
        for each in operators
    ]
    times: list[list[float]] = [[] for _ in operators]
    for _ in range(_ROUNDS):
        for own, runner, feed in zip(times, runners, feeds, strict=True):
            start = time.perf_counter()
            runner(feed)
            own.append((time.perf_counter() - start) * 1000.0)
    return [statistics.median(own) for own in times]


def _alone(operator: Operator) -> Runner:
    """An operator with random weights."""
    gates, rng = _GATES[operator.op], np.random.default_rng(operator.units)
    directions = 2 if operator.direction == "bidirectional" else 1
    shapes = {
        "W": (gates * operator.units, operator.inputs),
        "R": (gates * operator.units, operator.units),
    }
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.1, (directions, *shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    node = helper.make_node(
        operator.op,
        ["X", "W", "R"],
        ["Y"],
        hidden_size=operator.units,
        direction=operator.direction,
    )
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "B", operator.inputs])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "alone", [x], [y], weights)
    return Runner(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    )
