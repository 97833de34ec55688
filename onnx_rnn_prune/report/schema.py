"""The reports, as typed records that are built once.

Sizes are in bytes, times in milliseconds unless named seconds, shares between 0 and 1. Unknown
values are None; undefined ones are infinite or NaN, and null in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx_rnn_prune.data.streams import Streams
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.recovery.distill.configuration import TrainingSummary
from onnx_rnn_prune.report.rolled import RollingRow, WrittenRow
from onnx_rnn_prune.roll.rolling import Rolled
from onnx_rnn_prune.trace.invalid_nodes import InvalidNode
from onnx_rnn_prune.validate import Detail, Drift, Latency, Oracle


@dataclass(frozen=True, eq=False)
class OutletRow(Record):
    """One way in which a layer's output leaves it.

    Attributes:
        output: Y, Y_h or Y_c, which ends `at` a node or graph output, if anything reads it.
        end: absorbed, restored (for a `reason`), narrow (with kept units only) or unused.
    """

    output: str
    end: str
    at: str
    reason: str


@dataclass(frozen=True, eq=False)
class LayerRow(Record):
    """A layer before and after; `pinned`: why it was left alone. Shared weights count once."""

    name: str
    op: str
    direction: str
    scope: str
    hidden_before: int
    hidden_after: int
    params_before: int
    params_after: int
    outlets: Sequence[OutletRow]
    pinned: str | None


@dataclass(frozen=True, eq=False)
class Totals(Record):
    """Parameters of the model and of its recurrent layers, and bytes of its file."""

    params_before: int
    rnn_params_before: int
    bytes_before: int
    params_after: int
    rnn_params_after: int
    bytes_after: int


@dataclass(frozen=True, eq=False)
class DriftRow(Drift):
    """How far an output or signal is from the original's.

    Attributes:
        kind: state, index, ... for outputs whose own numbers say little.
        signal_of: for signals, the outputs that they are computed into.
    """

    kind: str | None = None
    signal_of: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class StageRow(Record):
    """The model after a step, against the original."""

    name: str
    params: int
    bytes: int
    compressed_bytes: int
    drift: Mapping[str, DriftRow]
    speedup: float
    speedup_quartiles: Sequence[float]


@dataclass(frozen=True, eq=False)
class StateRow(Record):
    """A state of the interface that became narrower: entries before and after."""

    layers: Sequence[str]
    input: str
    output: str
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class LosslessRow(Record):
    """Units of a layer that provably change nothing, by kind, and how many were removed."""

    layer: str
    dead: int
    zero: int
    constant: int
    duplicate: int
    removed: int


@dataclass(frozen=True, eq=False)
class Recovery(Record):
    """How the kept weights make up for the removed units.

    Attributes:
        asked, used: the recovery requested and the one used, for this `reason`.
        ridge: lambda of lstsq.
        rounds: refits on the pruned model's own signals.
        learning: how distill went.
    """

    asked: str
    used: str
    ridge: float | None = field(metadata={"key": "lambda"})
    rounds: int
    learning: TrainingSummary | None
    reason: str


@dataclass(frozen=True, eq=False)
class DataRow(Record):
    """The data used for calibration and validation.

    Attributes:
        source: where feeds come from; `random` if they were generated.
        calibration_feeds, heldout_feeds: their numbers; `shared` if validation used the same feeds.
        streams: how states carried from call to call were treated; None if there are none.
    """

    source: str
    feeds: int
    random: bool
    calibration_feeds: int
    heldout_feeds: int
    shared: bool
    streams: Streams | None


@dataclass(frozen=True, eq=False)
class Environment(Record):
    """Date (UTC), versions and machine, for comparing runs."""

    date: str
    python: str
    onnx_rnn_prune: str | None
    onnx: str | None
    onnxruntime: str | None
    onnx_graphsurgeon: str | None
    numpy: str | None
    platform: str
    cpu_count: int | None


@dataclass(frozen=True, eq=False)
class Splits(Record):
    """Numbers of feeds by purpose; `shared`: why some serve two purposes, or ''."""

    calibration: int
    validation: int
    test: int
    shared: str


@dataclass(frozen=True, eq=False)
class Candidate(Record):
    """A candidate of a search, numbered from 1.

    Attributes:
        recovery: the one it was judged with; `kept`: units by layer.
        ms: predicted time per run.
        quality: on the validation feeds, in its own units; `spread`: its standard error.
        meets: whether it meets the limits.
        frontier: whether no other candidate is both faster and better.
        picked: whether it became the result.
    """

    number: int
    recovery: str
    kept: Mapping[str, int]
    params: int
    bytes: int
    ms: float
    quality: float
    spread: float
    meets: bool
    frontier: bool
    picked: bool


@dataclass(frozen=True, eq=False)
class Tested(Record):
    """Quality of the result and of the original on the test feeds, and the loss."""

    quality: float
    original: float
    loss: float


@dataclass(frozen=True, eq=False)
class Limit(Record):
    """A limit on quality, speed, params or bytes.

    Attributes:
        asked: the maximum loss, milliseconds, parameters or bytes.
        reached: the value of the written file; the loss is that on the test feeds.
    """

    name: str
    asked: float
    reached: float
    met: bool


@dataclass(frozen=True, eq=False)
class SearchRows(Record):
    """How the result of a search was found.

    Attributes:
        goal: in words.
        quality: the name of the metric.
        quality_limit: the worst value accepted on the validation feeds.
        picked: the number of the candidate that became the result.
        limits: each of them; `met`: whether the result meets all.
    """

    goal: str
    quality: str
    higher_is_better: bool
    quality_limit: float | None
    candidates: Sequence[Candidate]
    picked: int
    splits: Splits
    test: Tested
    limits: Sequence[Limit]
    met: bool
    seconds: float


@dataclass(frozen=True, eq=False)
class Point(Record):
    """Deviation, metric and predicted time when a group keeps `kept` units."""

    kept: int
    nrmse: float
    metric: float | None
    ms: float


@dataclass(frozen=True, eq=False)
class Curve(Record):
    """Layers pruned together, their units per direction, and points by increasing `kept`."""

    layers: Sequence[str]
    units: int
    points: Sequence[Point]


@dataclass(frozen=True, eq=False)
class SensitivityReport(Record):
    """The units that each layer can spare; `metric`: what is measured beside the deviation."""

    metric: str | None
    layers: Sequence[Curve]
    splits: Splits
    streams: Streams | None
    warnings: Sequence[str]
    seconds: float


@dataclass(frozen=True, eq=False)
class PruneReport(Record):
    """The result of prune, apply or search.

    Attributes:
        drift: deviation of outputs, and of the signals behind some; details are of outputs only.
        stages: what each step did; empty if pruning was the only one.
        keep, criterion, allocate, budget: how units were chosen, in the user's words.
        lossless: the superfluous units found, with `lossless` only.
        search, sensitivity: of `search` only.
        command: the command line, if there was one.
        rolled: written-out recurrences that became layers.
        rolled_speedup: the speedup from rolling alone.
        share_of_others: share of the result's time in layers that were not eligible for pruning.
    """

    model: str
    mode: str
    totals: Totals
    drift: Mapping[str, DriftRow]
    drift_details: Mapping[str, Detail]
    latency: Latency
    data: DataRow
    environment: Environment
    warnings: Sequence[str]
    stages: Sequence[StageRow]
    states: Sequence[StateRow]
    layers: Sequence[LayerRow]
    oracle: Oracle
    recovery: Recovery
    seconds: float
    keep: str | None
    criterion: str | None
    allocate: str | None
    budget: str | None
    lossless: Sequence[LosslessRow] | None = None
    search: SearchRows | None = None
    sensitivity: SensitivityReport | None = None
    command: str | None = None
    rolled: Sequence[Rolled] | None = None
    rolled_speedup: float | None = None
    share_of_others: float | None = None


@dataclass(frozen=True, eq=False)
class Half(Record):
    """Savings if a layer, and those that must be pruned with it, keep half of their units.

    Attributes:
        units: kept by the layer and by each of those in `together`.
        params: weights saved in the whole model, including those that read the units.
        bytes: saved in the file; negative if restoring full width takes more.
        flops: saved per time step, or per position; dense layers and convolutions count if they are
            eligible for pruning.
        ms: saved per run: median, measured on the pruned file with one thread.
        speedup: of the whole model.
    """

    units: int
    together: Sequence[str]
    params: int
    bytes: int
    flops: int
    ms: float
    speedup: float
    speedup_quartiles: Sequence[float]


@dataclass(frozen=True, eq=False)
class ModelRow(Record):
    """A model: path, size, and its inputs and outputs in words."""

    path: str | None
    bytes: int
    params: int
    inputs: Sequence[str]
    outputs: Sequence[str]


@dataclass(frozen=True, eq=False)
class InspectedLayer(Record):
    """A layer, its cost (shared weights count once), its outlets, and what half would save."""

    name: str
    op: str
    direction: str
    scope: str
    hidden: int
    input: int
    params: int
    share_of_params: float
    flops_per_step: int
    time_ms: float | None
    share_of_time: float | None
    outlets: Sequence[OutletRow]
    pinned: str | None
    half: Half | None


@dataclass(frozen=True, eq=False)
class RefusedRow(InvalidNode):
    """A node that cannot run, described in `text`."""

    text: str


@dataclass(frozen=True, eq=False)
class TimedOn(Record):
    """How times were measured: the shapes of inputs (empty if nothing ran) and threads."""

    shapes: Mapping[str, Sequence[int]]
    random: bool
    threads: int


@dataclass(frozen=True, eq=False)
class InspectReport(Record):
    """The layers of a model before pruning."""

    model: ModelRow
    layers: Sequence[InspectedLayer]
    written_out: Sequence[WrittenRow]
    refused: Sequence[RefusedRow]
    remedies: Sequence[str]
    share_of_time: float | None
    timed_on: TimedOn
    warnings: Sequence[str]
    share_of_others: float | None = None
    rolling: RollingRow | None = None


@dataclass(frozen=True, eq=False)
class FileSizes(Record):
    """Bytes of two files."""

    a: int
    b: int


@dataclass(frozen=True, eq=False)
class CompareReport(Record):
    """Outputs, size and speed of one model beside those of another."""

    drift: Mapping[str, DriftRow]
    bytes: FileSizes
    latency: Latency
    max_nrmse: float | None
    passed: bool
    streams: Streams | None
    warnings: Sequence[str]


@dataclass(frozen=True, eq=False)
class BenchRow(Record):
    """Time per run, and the speedup relative to the first model."""

    model: str
    ms: float
    ratio: float
    ratio_quartiles: Sequence[float]


@dataclass(frozen=True, eq=False)
class BenchReport(Record):
    """Models that were timed against each other."""

    rows: Sequence[BenchRow]
    threads: int
    warnings: Sequence[str]
