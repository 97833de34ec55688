"""What fewer bits and a lower rank bring: `python tools/bench_precision.py`.

Compresses the sample models, and one with large layers of random weights, in several ways.
Calibration and held-out data are disjoint.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bench_samples import KEEP, METRIC_NAMES, METRIC_TEXTS, SECONDS, typical
from measure_memory import STEPS, UNITS, WIDTH, write_large
from onnx_rnn_prune import prune
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Feed, Runner
from onnx_rnn_prune.validate import timings
from pages import markdown, write_section
from sample_metrics import METRICS, SAMPLES, evaluate

LARGE = "large_lstm"


@dataclass(frozen=True)
class Treatment:
    """One way to compress a model.

    Attributes:
        keep: units that stay.
        rank: rank of the layers' input weights.
        quantize: the number format.
    """

    keep: str | float = 1.0
    rank: str | None = None
    quantize: str | None = None


TREATMENTS: Mapping[str, Treatment] = {
    "half of the units": Treatment(KEEP),
    "int8": Treatment(quantize="int8"),
    "half of the units, int8": Treatment(KEEP, quantize="int8"),
    "half of the units, fp16": Treatment(KEEP, quantize="fp16"),
    "half of the units, bits=4": Treatment(KEEP, quantize="bits=4"),
    "rank 50%": Treatment(rank="50%"),
}
NOTE = f"""\
`--keep {KEEP}`, `--quantize` and `--rank`, with calibration data and metrics as in
[samples](samples.md); lower is better for perplexity. *Deviation*: of the outputs from the
original's on held-out inputs, relative to their spread. Speed is the original's time over the
result's, interleaved on one thread of a processor without VNNI, for one sequence of the given
length. large_lstm is the case where the recurrent operator takes nearly all of the time: two
LSTM layers of {UNITS} units with random weights, not calibrated. With random weights all units
matter equally, so the deviation says nothing about trained models. By
`python tools/bench_precision.py`."""


@dataclass(frozen=True)
class Row:
    """The result for one model.

    Attributes:
        model: its name, with the length of the timed sequence.
        treatment: as in `TREATMENTS`; empty for the original.
        metric: on held-out data, as text.
        deviation: the largest of any output.
        size: share of the bytes left.
        speed: the original's time over its own.
    """

    model: str
    treatment: str
    metric: str
    deviation: float
    size: float
    speed: float


def measure(name: str, path: Path, data: Path | None, feed: Feed, steps: int) -> list[Row]:
    """Compresses one model in every way."""
    results = {}
    for label, way in TREATMENTS.items():
        try:
            results[label] = prune(
                path, keep=way.keep, rank=way.rank, quantize=way.quantize, data=data
            )
        except PruneError as error:  # inputs of size 1 have no lower rank
            print(f"{name}: {error}", file=sys.stderr)
    runners = [Runner(onnx.load(path), name=name)]
    runners += [Runner(result.model, name=label) for label, result in results.items()]
    times = timings(runners, feed, seconds=3.0 * SECONDS, rounds=1000)
    size = path.stat().st_size
    rows = [Row(f"{name} ({steps} steps)", "", _metric(path, name), 0.0, 1.0, 1.0)]
    for (label, result), timing in zip(results.items(), times[1:], strict=True):
        report = result.report
        deviation = max(values["nrmse"] for values in report["drift"].values())
        share = report["totals"]["bytes_after"] / size
        metric = _metric(result.model.SerializeToString(), name)
        rows.append(Row("", label, metric, deviation, share, timing.ratio))
    return rows


def _metric(model: Path | bytes, name: str) -> str:
    if name not in METRICS:
        return ""
    kind, value = evaluate(model, name)
    return f"{METRIC_NAMES[kind]} {METRIC_TEXTS[kind].format(value)}"


def measure_large() -> list[Row]:
    """Compresses the large model with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{LARGE}.onnx"
        write_large(path)
        noise = np.random.default_rng(1).standard_normal((STEPS, 1, WIDTH), np.float32)
        return measure(LARGE, path, None, {"x": noise}, STEPS)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    header = ["model", "treatment", "metric", "deviation", "file size left", "speed"]
    lines = [
        [
            row.model,
            row.treatment or "original",
            row.metric,
            f"{row.deviation:.1%}" if row.treatment else "",
            f"{row.size:.0%}",
            f"{row.speed:.2f}x",
        ]
        for row in rows
    ]
    return f"{markdown(header, lines)}\n\n{NOTE}"


def main() -> int:
    """Runs the measurements; the exit code is 1 if something failed."""
    names = [*METRICS, LARGE]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    rows: list[Row] = []
    try:
        for name in choices.only:
            print(name, file=sys.stderr)
            if name == LARGE:
                rows += measure_large()
            else:
                path, data = SAMPLES / f"{name}.onnx", SAMPLES / name / "calibration"
                rows += measure(name, path, data, *typical(name))
        text = table(rows)
        print(text)
        if choices.write:
            write_section("precision", text)
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_precision: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
