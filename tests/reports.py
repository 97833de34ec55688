"""Reports with made-up numbers, made by the schema."""

import math
from dataclasses import replace

from onnx_rnn_prune.data.streams import Streams
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.report import rolled
from onnx_rnn_prune.report import schema as made
from onnx_rnn_prune.validate import Detail, Latency, Oracle
from onnx_rnn_prune.validate.drift import Histogram, OverTime

LONG = "/encoder/" + "layers.3/" * 20 + "GRU"
NASTY = "a.b\\c <script>alert('1')</script> & \"q\" | `x` é 層 " + "n" * 200
NONE = "restoring costs more than shrinking saves"


def put(value, new, *way):
    """A report with another value at the end of a way, of names and numbers, through it."""
    if not way:
        return new
    step, *rest = way
    if isinstance(value, Record):
        return replace(value, **{step: put(getattr(value, step), new, *rest)})
    if isinstance(value, dict):
        return {**value, step: put(value[step], new, *rest)}
    return [put(item, new, *rest) if n == step else item for n, item in enumerate(value)]


def pruned():
    """What a prune may have done."""
    outlets = [
        made.OutletRow("Y", "absorbed", "/fc/MatMul", ""),
        made.OutletRow("Y", "absorbed", "/fc/MatMul_1", ""),
        made.OutletRow("Y_h", "restored", "hn", "graph output"),
        made.OutletRow("Y_c", "unused", "", ""),
    ]
    scope, sizes = "If_3.then_branch", (400, 160, 1_284_800, 308_480)
    return made.PruneReport(
        model="the model",
        mode="shrink",
        totals=made.Totals(1_300_000, 1_285_280, 5_200_000, 320_000, 308_960, 1_300_000),
        drift={
            "logits": made.DriftRow(0.3, 0.02, 0.0213, 0.999, 0.987),
            "hn": made.DriftRow(0, 0, 0, 1, None),
        },
        drift_details={},
        latency=Latency(4.12, 1.33, 3.1, (3.0, 3.2), 1, (4.12, 4.12), (1.33, 1.33), 90),
        data=made.DataRow("clips", 12, False, 9, 3, False, None),
        environment=made.Environment(
            "2030-01-02", "3.12.1", "1.0", None, "1.2", "0.6", "2.0", "Linux", 8
        ),
        warnings=["the model has [odd] names"],
        stages=[],
        states=[],
        layers=[
            made.LayerRow("/enc/LSTM[0]", "LSTM", "bidirectional", scope, *sizes, outlets, None),
            made.LayerRow("tiny", "GRU", "forward", "", 8, 8, 480, 480, [], NONE),
        ],
        oracle=Oracle(3.1e-7, True, 4),
        recovery=made.Recovery("auto", "lstsq", 0.01, 0, None, "least deviation"),
        seconds=3.2,
        keep="40%",
        criterion="reconstruction",
        allocate="uniform",
        budget=None,
    )


def whole():
    """A report of all parts that a page knows."""
    report = put(put(pruned(), LONG, "layers", 0, "name"), NASTY, "layers", 1, "name")
    outputs = {**report.drift, NASTY: replace(report.drift["logits"], nrmse=0.4)}
    stages = [
        made.StageRow(name, 10, 2_000_000, 1_900_000, outputs, 2.5, [1.9, 2.6])
        for name in ("units", "int8")
    ]
    return replace(
        report,
        model=f"folder/{LONG[-8:]}.onnx",
        drift=outputs,
        latency=Latency(4.12, 1.33, 3.1, (2.4, 3.5), 1, (4.0, 4.4), (1.3, 1.36), 200),
        drift_details={
            "logits": Detail(histogram(), over_time()),
            NASTY: Detail(histogram(), over_time()),
            "hn": Detail(None, None),
        },
        stages=stages,
        states=[made.StateRow(["a"], "h", NASTY, 9, 3)],
        data=replace(report.data, streams=Streams({"h": NASTY}, 3, 90, None)),
        command="onnx-rnn-prune prune 'my model.onnx' -o out.onnx",
        sensitivity=sensitivity(),
        search=search(),
    )


def unknown():
    """The same where nothing that may be without measure has one."""
    report, apart = whole(), made.DriftRow(math.inf, math.inf, math.inf, None, None)
    drift = dict.fromkeys(report.drift, apart)
    candidates = [replace(row, quality=math.nan) for row in report.search.candidates]
    points = [made.Point(kept, math.inf, None, 1.0) for kept in (8, 64)]
    report = replace(
        report,
        drift=drift,
        stages=[replace(row, drift=drift) for row in report.stages],
        search=replace(report.search, candidates=candidates, quality_limit=None),
    )
    return put(report, points, "sensitivity", "layers", 0, "points")


def histogram():
    counts = [int(1e4 / (1 + (n - 20) ** 2)) for n in range(41)]
    return Histogram([(n - 20.5) * 2e-5 for n in range(42)], counts, 12)


def over_time():
    return OverTime(list(range(0, 400, 10)), [0.02 + 0.0002 * n for n in range(40)])


def splits():
    return made.Splits(9, 3, 4, "")


def sensitivity(metric=None, names=((LONG,), (NASTY, "b", "c", "d"))):
    value = None if metric is None else 2.0
    points = [made.Point(kept, (64 - kept) / 64, value, 1.0) for kept in (8, 32, 64)]
    curves = [made.Curve(list(each), 64, points) for each in names]
    return made.SensitivityReport(metric, curves, splits(), None, [], 1.0)


def search():
    rows = [(3.0, 0.02, True), (2.0, 0.1, True), (2.5, 0.12, False), (1.0, 0.4, True)]
    candidates = [
        made.Candidate(
            number=number,
            recovery="lstsq",
            kept={LONG: 10 * number, NASTY: 5},
            params=1000 * number,
            bytes=4000 * number,
            ms=ms,
            quality=quality,
            spread=0.01,
            meets=quality < 0.2,
            frontier=frontier,
            picked=number == 2,
        )
        for number, (ms, quality, frontier) in enumerate(rows, start=1)
    ]
    return made.SearchRows(
        goal=f"the fastest of {NASTY}",
        quality="nrmse",
        higher_is_better=False,
        quality_limit=0.2,
        candidates=candidates,
        picked=2,
        splits=splits(),
        test=made.Tested(0.11, 0.0, 0.11),
        limits=[made.Limit("quality", 0.2, 0.11, True)],
        met=True,
        seconds=12.3,
    )


def inspected():
    """What inspect may find."""
    layer = made.InspectedLayer(
        name="rnn",
        op="GRU",
        direction="forward",
        scope="",
        hidden=128,
        input=40,
        params=65_000,
        share_of_params=0.66,
        flops_per_step=130_000,
        time_ms=0.5,
        share_of_time=0.25,
        outlets=[made.OutletRow("Y", "absorbed", "head", "")],
        pinned=None,
        half=made.Half(64, ["twin"], 40_000, 160_000, 90_000, 0.2, 1.25, (1.2, 1.3)),
    )
    pinned = replace(layer, name="other", pinned="its weights are inputs", half=None)
    idle = replace(layer, name="idle", time_ms=None, share_of_time=None, outlets=[], half=None)
    written = rolled.WrittenRow(
        "loop", "n", (), (), 1, 8, "RNN", "", text="an RNN is decomposed", in_place=False
    )
    return made.InspectReport(
        model=made.ModelRow("a.onnx", 400_000, 98_500, ["x: float32[?]"], ["y"]),
        layers=[layer, pinned, idle],
        written_out=[written],
        refused=[made.RefusedRow("n", "GRU", "", "why", "how", text="node n cannot")],
        remedies=["export again"],
        share_of_time=0.75,
        timed_on=made.TimedOn({"x": [2, 7]}, random=True, threads=1),
        warnings=[],
    )


def compared():
    """What compare may find."""
    report, sizes = pruned(), made.FileSizes(100, 50)
    return made.CompareReport(report.drift, sizes, report.latency, None, True, None, [])
