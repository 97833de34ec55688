"""What pruning costs a published word segmenter: `python tools/bench_lac.py`.

Prunes lac (two bidirectional GRU layers of 128 units) with unlabelled paragraphs of a newspaper,
and segments others. `python tools/fetch_models.py lac lac_tables newspaper` gets model and data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from fetch_models import default_folder
from onnx_rnn_prune import prune
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.options import RECOVERIES
from onnx_rnn_prune.validate import timings
from pages import markdown, write_section
from segmentation import CALIBRATION, EVALUATION, TRAINING, Text

HIDDEN = 128
UNITS = (64,)
MEASURED = ("none", "lstsq", "distill")
# So few that a run ends before a busy machine takes the core away: with 100, the original's runs
# get interrupted and the pruned model's do not, which looks like a speedup of 9x.
TIMED_CHARACTERS = 30
SECONDS_PER_MODEL = 3.0
MINUTES = 16.0  # of training
NOTE = f"""\
Units per direction in both layers; F1 of whole words, calibrated on {CALIBRATION} unlabelled
paragraphs from the first half of January 1998 (distill: {TRAINING}, and {MINUTES:.0f} minutes
of training) and measured on {EVALUATION} from the second half, all from one newspaper, whose
segmentation rules differ from those of lac's training data. Speed at {TIMED_CHARACTERS}
characters on one thread. By `python tools/bench_lac.py`."""


@dataclass(frozen=True)
class Row:
    """Results of one version of the model.

    Attributes:
        units: of each direction of both layers.
        recovery: the recovery method.
        speedup: the original's time over its own.
        f1: of words, 0 to 1.
        size: bytes of the file.
    """

    units: int
    recovery: str
    speedup: float
    f1: float
    size: int


@dataclass(frozen=True)
class Pruned:
    """A pruned model and how it was made."""

    model: onnx.ModelProto
    units: int
    recovery: str


def cut(path: Path, units: int, recovery: str, text: Text) -> Pruned:
    """Prunes both layers to `units` units."""
    feeds = text.feeds(TRAINING if recovery == "distill" else CALIBRATION)
    result = prune(path, keep=units, data=feeds, recover=recovery, distill_minutes=MINUTES)
    return Pruned(result.model, units, str(result.report["recovery"]["used"]))


def measure(path: Path, models: Sequence[Pruned], text: Text) -> list[Row]:
    """Rows of the original and the pruned models, timed in turns on one thread."""
    models = [Pruned(onnx.load(path), HIDDEN, ""), *models]
    runners = [Runner(each.model, name=f"{each.units} units") for each in models]
    characters = "".join(itertools.chain(*text.evaluation))[:TIMED_CHARACTERS]
    times = timings(runners, text.tables.feed(characters), seconds=SECONDS_PER_MODEL * len(runners))
    return [
        Row(
            units=each.units,
            recovery=each.recovery,
            speedup=timing.ratio,
            f1=text.f1(each.model),
            size=each.model.ByteSize(),
        )
        for each, timing in zip(models, times, strict=True)
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, the original's first."""
    header = ["units", "recovery", "speed", "F1", "change", "file size"]
    original, *others = rows
    size = f"{original.size / 1e6:.1f} MB"
    lines = [[f"{HIDDEN} (original)", "", "1.00x", f"{original.f1:.1%}", "", size]]
    for each in others:
        change, size = each.f1 / original.f1 - 1.0, f"{each.size / 1e6:.1f} MB"
        cells = [str(each.units), each.recovery, f"{each.speedup:.2f}x", f"{each.f1:.1%}"]
        lines.append([*cells, f"{change:+.1%}", size])
    return f"{markdown(header, lines)}\n\n{NOTE}"


def bench(folder: Path, units: Sequence[int], recoveries: Sequence[str]) -> list[Row]:
    """The rows, the original's first.

    Raises:
        PruneError: the model or its data are not there.
    """
    text, path = Text.read(folder), folder / "lac.onnx"
    models = []
    for count in units:
        for recovery in recoveries:
            print(f"{count} units, recovery {recovery}", file=sys.stderr)
            models.append(cut(path, count, recovery, text))
    return measure(path, models, text)


def main() -> int:
    """Runs the measurements; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--units", type=int, nargs="+", default=UNITS, help="units to keep")
    parser.add_argument(
        "--recover", nargs="+", choices=RECOVERIES, default=MEASURED, help="recoveries to measure"
    )
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    try:
        rows = bench(choices.models, choices.units, choices.recover)
        text = table(rows)
        print(text)
        if choices.json:
            numbers = [asdict(each) for each in rows]
            choices.json.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
        if choices.write:
            write_section("lac", text)
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_lac: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
