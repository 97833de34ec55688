"""What reports hold: each is built once and never edited.

Sizes are in bytes, times in milliseconds unless a name says seconds, shares between 0 and 1. What
is not known is None; what has no measure is infinite or not a number, null in JSON."""

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
    """What became of a layer; `pinned` says why it was left alone; shared weights count once."""

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
        kind: of outputs whose own numbers say little: state, index, ...
        signal_of: of signals, the outputs that are judged by them.
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
    """How many units of a layer provably change nothing, by kind, and how many of them go."""

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
        asked, used: what the user named, and what was chosen, for this `reason`.
        ridge: lambda of lstsq.
        rounds: refits on the cut model's own signals.
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
    """What was calibrated and judged on.

    Attributes:
        source: where feeds come from; `random` says whether they are made up.
        calibration_feeds: how many something was fitted on.
        heldout_feeds: how many chose among candidates; `shared` says whether these are the same.
        streams: of states that callers carry from call to call; None where there are none.
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
    """What another run needs to compare: the day (UTC), versions, the machine."""

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
    """How many feeds calibrated, selected and were reported on; why some are `shared`, or ''."""

    calibration: int
    validation: int
    test: int
    shared: str


@dataclass(frozen=True, eq=False)
class Candidate(Record):
    """A cut that a search tried, counted from 1.

    Attributes:
        recovery: by which it was judged; `kept` are units, by layer.
        ms: predicted time of a run.
        quality: on the validation feeds, in its own units; `spread` is its standard error.
        meets: whether it is within the limits.
        frontier: whether no other one is both faster and better.
        picked: whether it was finished.
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
    """Quality of the result and of the original on test feeds, and what was lost."""

    quality: float
    original: float
    loss: float


@dataclass(frozen=True, eq=False)
class Limit(Record):
    """One thing that was asked for: quality, speed, params or bytes.

    Attributes:
        asked: the most that is allowed: of the loss, in milliseconds, in parameters or bytes.
        reached: what the written file has, the loss being that on the test feeds.
    """

    name: str
    asked: float
    reached: float
    met: bool


@dataclass(frozen=True, eq=False)
class SearchRows(Record):
    """How a cut was found.

    Attributes:
        goal: what was asked for, in words.
        quality: the name of what is kept within a limit.
        quality_limit: the worst value that is accepted on the validation feeds.
        picked: the number of the candidate that was finished.
        limits: what was asked for; `met` says whether the result is within all of them.
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
    """What is left when a layer keeps so many units: deviation, the metric, and predicted time."""

    kept: int
    nrmse: float
    metric: float | None
    ms: float


@dataclass(frozen=True, eq=False)
class Curve(Record):
    """Layers that are cut together, their units per direction, and points that rise in `kept`."""

    layers: Sequence[str]
    units: int
    points: Sequence[Point]


@dataclass(frozen=True, eq=False)
class SensitivityReport(Record):
    """What each layer can spare; `metric` is the name of what is measured beside the deviation."""

    metric: str | None
    layers: Sequence[Curve]
    splits: Splits
    streams: Streams | None
    warnings: Sequence[str]
    seconds: float


@dataclass(frozen=True, eq=False)
class PruneReport(Record):
    """What prune, apply or search did.

    Attributes:
        drift: how far outputs are off, and signals behind some of them; details are of outputs.
        stages: what each step did; none where the cut was the only one.
        keep, criterion, allocate, budget: how units were chosen, in the user's words.
        lossless: where only superfluous units went, what there were of them.
        search, sensitivity: of `search` only.
        command: the command line, where there was one.
        rolled: recurrences that were written out and are layers now.
        rolled_speedup: by that alone, of a run.
        share_of_others: of a run of the result, what layers take that were not to be pruned.
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
    """What a model saves where one layer, and what must be cut with it, keeps half of its units.

    Attributes:
        units: what the layer keeps, and with it the layers in `together`.
        params: weights fewer in the whole model, its readers' included.
        bytes: bytes fewer in files; negative where restoring full width takes more.
        flops: operations fewer, per step and sequence, or place; those of dense layers and
            convolutions count where such may be cut.
        ms: milliseconds of a run fewer, measured on the cut file, one thread, the median.
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
    """A model: where it lies, what it holds, its inputs and outputs in words."""

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
    """A node that cannot run, and a sentence on it."""

    text: str


@dataclass(frozen=True, eq=False)
class TimedOn(Record):
    """Shapes of the feed that was timed, by input (none where nothing ran), and how."""

    shapes: Mapping[str, Sequence[int]]
    random: bool
    threads: int


@dataclass(frozen=True, eq=False)
class InspectReport(Record):
    """What can be known of a model before anything is cut."""

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
    """How far the outputs of one model are from those of another, and what it gains."""

    drift: Mapping[str, DriftRow]
    bytes: FileSizes
    latency: Latency
    max_nrmse: float | None
    passed: bool
    streams: Streams | None
    warnings: Sequence[str]


@dataclass(frozen=True, eq=False)
class BenchRow(Record):
    """Time of a run, and how many times faster than the first model that is."""

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
