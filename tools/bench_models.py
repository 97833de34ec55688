"""How much faster published models get at the same quality: `python tools/bench_models.py`.

For each model, `search` looks for the fastest cut of recurrent layers, and of all layers, within a
limit on the loss; then 8-bit integers are tried on the result. With `--training`, models that stay
below a speedup of 2 are cut further and trained. Each model's row is kept in a file of the folder
`--results`, so that an interrupted run can be resumed and several processes can share the models;
with `--again`, rows of older code are measured again. `python tools/fetch_models.py` gets the
models and data; images of text need Pillow and Matplotlib, and captchas `pip install
captcha==0.6.0`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from fetch_models import default_folder
from onnx_rnn_prune import prune, search
from onnx_rnn_prune.calibration import opened_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Feed, Runner
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.pipeline import PruneResult
from onnx_rnn_prune.validate import timings
from pages import markdown, write_section
from trials import fingerprint
from workloads import WORKLOADS, Workload, outcomes

WAYS = {"recurrent": "recurrent layers", "all": "all layers"}
INTEGERS = "all layers, int8"
TRAINED = "all layers, trained"
LABELS = (*WAYS.values(), INTEGERS, TRAINED)
TWICE = 2.0
# What a search with training is asked for: it times other feeds than the table, of other sizes.
ASKED = 2.2
SECONDS_PER_MODEL = 3.0
NOTE = """\
Speed at the limit: 99 % agreement with the original's decisions, or a 1 % loss in the task's
metric (SNR in dB, F1). `search` selects on the validation set, with a margin of one standard
error; the value beside each speed is from test feeds not used for fitting or selection: other
recordings, messages, paragraphs or words. *int8*: `--quantize int8` on the model with all
layers pruned, where that is within the limit and faster still. *Trained*:
`search --speedup 2.2x --recover distill` on models that stay below 2x, whatever the loss; the
other columns are without training. Speeds are median ratios of interleaved runs on one thread;
1x means that `search` found nothing faster within the limit in the time it had, and wrote
nothing. By `python tools/bench_models.py`."""


@dataclass(frozen=True)
class Version:
    """The result of one way to speed up a model.

    Attributes:
        speed: the original's time over its own; 1 where it stayed as it was.
        value: the quality on the test feeds.
        params: share of the parameters left.
        widths: units kept, by layer.
        seconds: time taken to find it.
        reason: why it stayed as it was.
    """

    speed: float
    value: float
    params: float
    widths: Mapping[str, int]
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """The results for one model.

    Attributes:
        name: of the model.
        metric: name of its quality.
        text: the format of its values.
        kind: kind of data.
        original: the quality of the original on the test feeds.
        limit: the lowest accepted quality.
        code: checksum of the code that measured.
        versions: by label, see `LABELS`.
    """

    name: str
    metric: str
    text: str
    kind: str
    original: float
    limit: float
    code: str
    versions: Mapping[str, Version]

    @staticmethod
    def read(values: Mapping[str, object]) -> Row:
        """A row from the output of `asdict`."""
        versions = values["versions"]
        assert isinstance(versions, dict)
        read = {label: Version(**each) for label, each in versions.items()}
        return Row(**{**values, "versions": read})  # type: ignore[arg-type]


def measure(path: Path, work: Workload, minutes: float, training: float, code: str) -> Row:
    """Looks for the fastest cut in every way; all results are timed in turns.

    Args:
        path: of the model.
        work: its workload.
        minutes: time limit of each search.
        training: the same for a search with training; 0 for none.
        code: checksum of the code that measures.
    """
    found: dict[str, PruneResult] = {}
    reasons: dict[str, str] = {}
    took: dict[str, float] = {}
    for layers, label in WAYS.items():
        start = time.perf_counter()
        print(f"{work.name}, {label}", file=sys.stderr)
        try:
            found[label] = sought(path, work, layers, minutes, {"max_drop": f"{work.drop:.0%}"})
        except PruneError as error:
            reasons[label] = str(error)
            print(error, file=sys.stderr)
        took[label] = time.perf_counter() - start
    cut = next((found[label] for label in reversed(WAYS.values()) if label in found), None)
    start = time.perf_counter()
    try:
        source = path if cut is None else cut.model
        found[INTEGERS] = integers(path, work, source)
    except PruneError as error:
        reasons[INTEGERS] = str(error)
    took[INTEGERS] = time.perf_counter() - start
    row = compared(path, work, found, reasons, took, code)
    if not training or max(version.speed for version in row.versions.values()) >= TWICE:
        return row
    start = time.perf_counter()
    print(f"{work.name}, {TRAINED}", file=sys.stderr)
    try:
        goal = {"speedup": ASKED, "recover": "distill", "distill_minutes": training / 2}
        found[TRAINED] = sought(path, work, "all", training, goal)
    except PruneError as error:
        reasons[TRAINED] = str(error)
        print(error, file=sys.stderr)
    took[TRAINED] = time.perf_counter() - start
    return compared(path, work, found, reasons, took, code)


def sought(
    path: Path, work: Workload, layers: str, minutes: float, goal: Mapping[str, Any]
) -> PruneResult:
    """The result of `search` for a goal, given as arguments."""
    return search(
        path,
        data=work.data,
        eval_data=work.tests,
        stream=work.streams or None,
        metric=work.measure,
        layers=layers,
        minutes=minutes,
        **goal,
    )


def integers(path: Path, work: Workload, source: Path | onnx.ModelProto) -> PruneResult:
    """A model computing in 8-bit integers, within the limit on the selection feeds.

    Raises:
        PruneError: nothing can be computed so, or the loss is larger.
    """
    result = prune(source, keep=1.0, quantize="int8")
    value = work.measure(outcomes(path, result.model, work.data))
    least = work.least(work.measure(outcomes(path, onnx.load(path), work.data)))
    if value < least:
        texts = work.text.format(value), work.text.format(least)
        raise PruneError("{} of at least {}".format(*texts), where="int8", remedy="leave it out")
    return result


def compared(
    path: Path,
    work: Workload,
    found: Mapping[str, PruneResult],
    reasons: Mapping[str, str],
    took: Mapping[str, float],
    code: str,
) -> Row:
    """The row of a model; all results are run in turns."""
    original = onnx.load(path)
    models = [original, *(result.model for result in found.values())]
    runners = [Runner(model, name=work.name) for model in models]
    feeds: Sequence[Feed] = list(work.timed)
    if work.streams:
        feeds = list(opened_feeds(open_model(path), [feeds], True))
    times = timings(runners, feeds, seconds=SECONDS_PER_MODEL * len(runners), rounds=1000)
    values = [work.measure(outcomes(path, model, work.tests)) for model in models]
    before = values[0]
    versions = {
        label: Version(1.0, before, 1.0, {}, took[label], reason)
        for label, reason in reasons.items()
    }
    for (label, result), timing, value in zip(found.items(), times[1:], values[1:], strict=True):
        totals = result.report.totals
        widths = {row.name: row.hidden_after for row in result.report.layers}
        share = totals.params_after / totals.params_before
        versions[label] = Version(timing.ratio, value, share, widths, took[label])
    limit = work.least(before)
    return Row(work.name, work.metric, work.text, work.kind, before, limit, code, versions)


def known_rows(folder: Path) -> dict[str, Row]:
    """The rows of a folder, by model."""
    paths = sorted(folder.glob("*.json"))
    return {path.stem: Row.read(json.loads(path.read_text("utf-8"))) for path in paths}


def keep_row(folder: Path, row: Row) -> None:
    """Stores a row in a file of its own, replacing an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{row.name}.partial"
    partial.write_text(json.dumps(asdict(row), indent=1) + "\n", "utf-8")
    partial.replace(folder / f"{row.name}.json")


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    header = ["model", "data", "original", *LABELS, "parameters left", "took"]
    lines = []
    for row in rows:
        cells = [_cell(row, label) for label in LABELS]
        left = row.versions[WAYS["all"]].params
        took = sum(each.seconds for each in row.versions.values())
        value = f"{row.metric} {row.text.format(row.original)}"
        lines.append([row.name, row.kind, value, *cells, f"{left:.0%}", f"{took / 60:.1f} min"])
    return f"{markdown(header, lines)}\n\n{NOTE}"


def _cell(row: Row, label: str) -> str:
    version = row.versions.get(label)
    if version is None or (label == TRAINED and version.reason):
        return ""
    others = [row.versions[way].speed for way in WAYS.values()]
    if version.reason or (label == INTEGERS and version.speed <= max(others)):
        return "" if label == INTEGERS else "1x"
    return f"{version.speed:.2f}x ({row.text.format(version.value)})"


def main() -> int:
    """Runs the measurements; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--minutes", type=float, default=3.0, help="that each search may take")
    parser.add_argument(
        "--training", type=float, default=0.0, help="minutes of a search with training"
    )
    parser.add_argument("--results", type=Path, default=default_folder().parent / "bench_models")
    parser.add_argument(
        "--again", action="store_true", help="measure what other code measured, too"
    )
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    folder, text, code = choices.results, "", fingerprint()
    try:
        for name in choices.only:
            known = known_rows(folder).get(name)
            if known is None or (choices.again and known.code != code):
                work, path = WORKLOADS[name](choices.models, name), choices.models / f"{name}.onnx"
                keep_row(folder, measure(path, work, choices.minutes, choices.training, code))
            rows = known_rows(folder)
            text = table([rows[name] for name in WORKLOADS if name in rows])
            if choices.write:
                write_section("models", text)
        print(text)
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
