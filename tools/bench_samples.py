"""What pruning costs the sample models: `python tools/bench_samples.py`.

Prunes each to half of its units with its calibration data, and evaluates the result on its held-out
data. Calibration and held-out data are disjoint. Distillation needs PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from onnx_rnn_prune import PruneResult, inspect, prune
from onnx_rnn_prune.calibration import open_data
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.validate import timings
from pages import markdown, write_section
from sample_metrics import METRICS, SAMPLES, Feed, evaluate, heldout

KEEP = "50%"
SECONDS = 6.0
METRIC_TEXTS = {"accuracy": "{:.1%}", "perplexity": "{:.2f}", "snr_db": "{:.1f} dB"}
METRIC_NAMES = {"accuracy": "accuracy", "perplexity": "perplexity", "snr_db": "SNR"}
NOTE = f"""\
Half of all units removed (`--keep {KEEP}`). Units are chosen and weights refitted on unlabelled
calibration inputs; the metric is on labelled held-out inputs, disjoint from these. *recovered*
is what `prune` does by default; *distilled* is `--recover distill`; *not recovered* keeps the
same units with `--recover none`; *l2* keeps the units with the largest weights, also without
recovery, which needs no data. Lower is better for perplexity. Speed is the original's time over
the pruned model's on one thread, for one held-out sequence of the given length, the median over
interleaved runs. Over five draws of six of its eight calibration files, the SNR of stream_lstm
is 17.7 dB with a standard deviation of 0.5 dB; with errors weighted by their effect on the next
layer, it is 17.6 and 0.4. By `python tools/bench_samples.py`, which needs PyTorch."""


@dataclass(frozen=True)
class Row:
    """The results for one sample model.

    Attributes:
        name: of the model.
        network: its layers.
        metric: what is measured on held-out data.
        before: the original's value.
        recovered: with the defaults of `prune`.
        distilled: with `--recover distill`.
        plain: with the same units and no recovery.
        weakest: with units chosen by their weights and no recovery.
        params: share of the parameters left.
        size: share of the bytes left.
        speedup: the original's time over the pruned model's.
        steps: length of the timed sequence.
        passed: whether all four results passed the self-check.
    """

    name: str
    network: str
    metric: str
    before: float
    recovered: float
    distilled: float
    plain: float
    weakest: float
    params: float
    size: float
    speedup: float
    steps: int
    passed: bool


def network(name: str) -> str:
    """The recurrent layers of a sample model, in words."""
    return " + ".join(
        f"{layer['direction'].replace('forward', '')} {layer['op']} {layer['hidden']}".strip()
        for layer in inspect(SAMPLES / f"{name}.onnx")["layers"]
    )


def typical(name: str) -> tuple[Feed, int]:
    """The held-out sequence of median length as a batch of one, and its length."""
    lengths: list[tuple[int, int]] = []
    sequences: list[Feed] = []
    for feed, _ in heldout(name):
        value = next(iter(feed.values()))
        lengths += [(value.shape[1], len(sequences))] * len(value)
        sequences.append({key: value[:1] for key, value in feed.items()})
    steps, number = sorted(lengths)[len(lengths) // 2]
    opened = open_model(SAMPLES / f"{name}.onnx")
    # Opening it as data fills in states, which start at zero.
    return next(iter(open_data(opened, Inputs(sequences[number])).calibration)), steps


def speedup(name: str, pruned: onnx.ModelProto) -> tuple[float, int]:
    """The speedup of a pruned sample model, and the length of the sequence it was timed on."""
    feed, steps = typical(name)
    original = Runner(onnx.load(SAMPLES / f"{name}.onnx"), name=name)
    times = timings([original, Runner(pruned, name="pruned")], feed, seconds=SECONDS, rounds=1000)
    return times[1].ratio, steps


def cut(name: str, criterion: str | None, recover: str | None) -> tuple[PruneResult, float]:
    """A pruned sample model and its metric on held-out data."""
    result = prune(
        SAMPLES / f"{name}.onnx",
        keep=KEEP,
        data=SAMPLES / name / "calibration",
        criterion=criterion,
        recover=recover,
    )
    return result, evaluate(result.model.SerializeToString(), name)[1]


def measure(name: str) -> Row:
    """Prunes a sample model in three ways and measures them."""
    metric, before = evaluate(SAMPLES / f"{name}.onnx", name)
    result, recovered = cut(name, None, None)
    distilled = cut(name, None, "distill")
    plain, weakest = cut(name, None, "none"), cut(name, "l2", "none")
    totals = result.report["totals"]
    results = (result, distilled[0], plain[0], weakest[0])
    ratio, steps = speedup(name, result.model)
    return Row(
        name=name,
        network=network(name),
        metric=metric,
        before=before,
        recovered=recovered,
        distilled=distilled[1],
        plain=plain[1],
        weakest=weakest[1],
        params=totals["params_after"] / totals["params_before"],
        size=totals["bytes_after"] / totals["bytes_before"],
        speedup=ratio,
        steps=steps,
        passed=all(each.report["oracle"]["passed"] for each in results),
    )


def table(measured: Sequence[Row]) -> str:
    """The rows in Markdown."""
    header = ["model", "network", "metric", "original", "recovered", "distilled"]
    header += ["not recovered", "l2"]
    header += ["parameters left", "file size left", "speed", "self-check"]
    lines = []
    for row in measured:
        values = (row.before, row.recovered, row.distilled, row.plain, row.weakest)
        lines.append(
            [
                row.name,
                row.network,
                METRIC_NAMES[row.metric],
                *(METRIC_TEXTS[row.metric].format(value) for value in values),
                f"{row.params:.0%}",
                f"{row.size:.0%}",
                f"{row.speedup:.1f}x ({row.steps} steps)",
                "passed" if row.passed else "failed",
            ]
        )
    return f"{markdown(header, lines)}\n\n{NOTE}"


def main() -> int:
    """Runs the measurements; the exit code is 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    measured = []
    try:
        for name in choices.only:
            print(name, file=sys.stderr)
            measured.append(measure(name))
        text = table(measured)
        print(text)
        if choices.write:
            write_section("samples", text)
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_samples: {error}", file=sys.stderr)
        return 1
    return 0 if all(row.passed for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
