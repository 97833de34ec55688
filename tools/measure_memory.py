"""Memory and time of pruning, by model: `python tools/measure_memory.py`.

Each prune runs in a process of its own, which asks the system for the peak of its resident memory.
That peak begins with that of the process it was started from, so nothing but the standard library
is imported here before one starts. `python tools/fetch_models.py` gets the published models, which
are pruned on data of their own kind; see `workloads.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from fetch_models import default_folder
from pages import markdown, write_section

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
FEEDS = (8, 64)
# Stacks of GRU layers by name: units, layers, and numbers of feeds; 0 for none.
STACKS = {
    **{f"units_{units}": (units, 1, (0, 3)) for units in (512, 1024, 2048, 4096)},
    **{f"layers_{layers}": (32, layers, (0, 3)) for layers in (25, 100, 400)},
    "steps": (256, 1, (10, 40, 200)),
}
MADE = ("text_lstm", "large_lstm", "convolutions", *STACKS)
PUBLISHED_FEEDS = 8
FACTOR, BASE_MB = 4, 300
UNITS, WIDTH, CLASSES, STEPS = 1280, 512, 128, 24
STACK_STEPS, STACK_WIDTH = 500, 32
CONVOLUTIONS, CHANNELS, PICTURE = 6, 192, 24
NOTE = f"""\
Peak resident memory of the whole process, for `prune` at 50 % with recovery; the limit is
{FACTOR} x model size + {BASE_MB} MB. large_lstm has two LSTM layers of {UNITS} units with
random weights; units_N is one GRU layer of N units, layers_N are N of 32, and steps is one of
256, with random weights and feeds of {STACK_STEPS} steps; convolutions are {CONVOLUTIONS} of
{CHANNELS} channels, 3 x 3, on {PICTURE} x {PICTURE} images. They and published models, on feeds
or streams of their own kind, are pruned with `--layers all`. Time is CPU time on one thread:
ranking and least squares multiply H x H matrices, so it grows with the cube of the number of
units H, and linearly with layers and steps. All signals of one feed are in memory at once: with
far longer feeds or far more layers, that takes more than the {BASE_MB} MB allow. By
`python tools/measure_memory.py`."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Case:
    """A model to prune, a function that writes a number of feeds for it, and these numbers."""

    name: str
    model: Path
    write_feeds: Callable[[Path, int], None]
    counts: Sequence[int]
    layers: str = "recurrent"


@dataclass(frozen=True)
class Peak:
    """Peaks of resident memory in MB (10^6 bytes): after imports, and over all; when; and time."""

    start: float
    most: float
    stage: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """The cost of one prune.

    Attributes:
        name: of the model.
        model_mb: size of its file.
        feeds: the number of calibration feeds.
        peak: the peak memory.
    """

    name: str
    model_mb: float
    feeds: int
    peak: Peak

    @property
    def limit(self) -> float:
        """The maximum allowed, in MB."""
        return FACTOR * self.model_mb + BASE_MB

    @property
    def passed(self) -> bool:
        """Whether it stayed within the limit."""
        return self.peak.most <= self.limit


def apart(task: Callable[..., Result], *arguments: object) -> Result:
    """Calls a function of this module in a fresh process."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        return pool.submit(task, *arguments).result()


def peak_mb() -> float:
    """The peak of this process's resident memory so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(model: Path, feeds: Path, count: int, layers: str) -> Peak:
    """Prunes a model, without data if there are no feeds; called in a fresh process."""
    from onnx_rnn_prune import prune

    start, begun = peak_mb(), time.process_time()
    stages: list[tuple[str, float]] = []

    def watch(stage: str, done: int, total: int | None) -> None:
        stages.append((stage, peak_mb()))

    data = feeds if count else None
    stream = any(path.is_dir() for path in feeds.iterdir()) or None
    result = prune(model, keep=0.5, data=data, stream=stream, layers=layers, progress=watch)
    result.save(feeds / "pruned.onnx")
    most = peak_mb()
    # A peak present at the start of a stage was reached in an earlier one.
    reached = next((n for n, (_, value) in enumerate(stages) if value >= most), len(stages))
    return Peak(start, most, stages[max(reached - 1, 0)][0], time.process_time() - begun)


def write_large(path: Path) -> None:
    """Writes two LSTM layers with random weights, [batch, time, 512] to [batch, time, 128]."""
    import numpy as np
    import onnx

    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        large_lstm (float[time, batch, {WIDTH}] x) => (float[time, batch, {CLASSES}] logits) {{
            y1 = LSTM <hidden_size = {UNITS}> (x, w1, r1, b1)
            x2 = Squeeze(y1, directions)
            y2 = LSTM <hidden_size = {UNITS}> (x2, w2, r2, b2)
            x3 = Squeeze(y2, directions)
            logits = MatMul(x3, head)
        }}
    """)
    shapes: dict[str, tuple[int, ...]] = {"head": (UNITS, CLASSES)}
    for layer, width in (("1", WIDTH), ("2", UNITS)):
        shapes[f"w{layer}"] = (1, 4 * UNITS, width)
        shapes[f"r{layer}"] = (1, 4 * UNITS, UNITS)
        shapes[f"b{layer}"] = (1, 8 * UNITS)
    values = {
        name: (rng.standard_normal(shape, np.float32) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    values["directions"] = np.array([1])
    for name, value in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, path)


def write_stack(path: Path, units: int, layers: int) -> None:
    """Writes a stack of GRU layers with random weights, [time, batch, 32] to the same."""
    import numpy as np
    import onnx

    rng = np.random.default_rng(0)
    nodes, values, source = [], {"directions": np.array([1])}, "x"
    for number in range(layers):
        width = STACK_WIDTH if number == 0 else units
        nodes.append(f"y{number} = GRU <hidden_size = {units}> ({source}, w{number}, r{number})")
        nodes.append(f"s{number} = Squeeze (y{number}, directions)")
        for name, columns in (("w", width), ("r", units)):
            value = rng.standard_normal((1, 3 * units, columns), np.float32)
            values[f"{name}{number}"] = value / np.float32(np.sqrt(columns))
        source = f"s{number}"
    values["head"] = rng.standard_normal((units, STACK_WIDTH), np.float32)
    lines = "\n".join([*nodes, f"y = MatMul ({source}, head)"])
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        stack (float[time, batch, {STACK_WIDTH}] x) => (float[time, batch, {STACK_WIDTH}] y) {{
            {lines}
        }}
    """)
    for name, value in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, path)


def write_convolutions(path: Path) -> None:
    """Writes a chain of convolutions with random weights, [batch, channels, 24, 24]."""
    import numpy as np
    import onnx

    rng = np.random.default_rng(0)
    shape = f"float[batch, {CHANNELS}, {PICTURE}, {PICTURE}]"
    lines, source = [], "x"
    for number in range(CONVOLUTIONS):
        lines.append(f"c{number} = Conv <pads = [1, 1, 1, 1]> ({source}, w{number})")
        lines.append(f"r{number} = Relu (c{number})")
        source = f"r{number}"
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        convolutions ({shape} x) => ({shape} {source}) {{ {" ".join(lines)} }}
    """)
    for number in range(CONVOLUTIONS):
        value = rng.standard_normal((CHANNELS, CHANNELS, 3, 3), np.float32)
        value *= np.float32(np.sqrt(2 / (9 * CHANNELS)))
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f"w{number}"))
    onnx.save(model, path)


def picture_feeds(folder: Path, count: int) -> None:
    """Writes feeds of noise for `write_convolutions`'s model."""
    import numpy as np

    rng = np.random.default_rng(4)
    for number in range(count):
        x = rng.standard_normal((1, CHANNELS, PICTURE, PICTURE), np.float32)
        np.savez(folder / f"{number}.npz", x=x)


def stack_feeds(folder: Path, count: int) -> None:
    """Writes feeds of noise for `write_stack`'s models."""
    import numpy as np

    rng = np.random.default_rng(3)
    for number in range(count):
        x = rng.standard_normal((STACK_STEPS, 1, STACK_WIDTH), np.float32)
        np.savez(folder / f"{number}.npz", x=x)


def large_feeds(folder: Path, count: int) -> None:
    """Writes feeds of noise for `write_large`'s model."""
    import numpy as np

    rng = np.random.default_rng(1)
    for number in range(count):
        x = rng.standard_normal((STEPS, 1, WIDTH), np.float32)
        np.savez(folder / f"{number}.npz", x=x)


def published() -> list[str]:
    """The names of published models with a workload."""
    from workloads import WORKLOADS

    return list(WORKLOADS)


def workload_feeds(models: Path, name: str, folder: Path, count: int) -> None:
    """Writes the first feeds of a published model's workload; a sub-folder for each stream."""
    import numpy as np

    from workloads import WORKLOADS

    work = WORKLOADS[name](models, name)
    for number, given in enumerate(work.data[:count]):
        place, feeds = (folder / f"{number}", given) if work.streams else (folder, [given])
        place.mkdir(exist_ok=True)
        for call, feed in enumerate(feeds):
            values = {key: value for key, value in feed.items() if key != "labels"}
            np.savez(place / f"{number}_{call:04}.npz", allow_pickle=False, **values)


def text_feeds(folder: Path, count: int) -> None:
    """Writes the sample's own feeds and, if too few, shifted copies."""
    import numpy as np

    sources = sorted((SAMPLES / "text_lstm" / "calibration").glob("*.npz"))
    for number in range(count):
        with np.load(sources[number % len(sources)]) as archive:
            turned = {
                name: np.roll(archive[name], number // len(sources), axis=1)
                for name in archive.files
            }
        np.savez(folder / f"{number}.npz", **turned)


def cases(models: Path, names: Sequence[str], counts: Sequence[int], scratch: Path) -> list[Case]:
    """The models to prune; one that is not there is left out, and it is said so."""
    large, convolutions = scratch / "large_lstm.onnx", scratch / "convolutions.onnx"
    for name, path, write in (
        ("large_lstm", large, write_large),
        ("convolutions", convolutions, write_convolutions),
    ):
        if name in names:
            apart(write, path)
    known = [
        Case("text_lstm", SAMPLES / "text_lstm.onnx", text_feeds, counts),
        Case("large_lstm", large, large_feeds, counts),
        Case("convolutions", convolutions, picture_feeds, (0, 8), layers="all"),
    ]
    for name, (units, layers, numbers) in STACKS.items():
        if name in names:
            apart(write_stack, scratch / f"{name}.onnx", units, layers)
            known.append(Case(name, scratch / f"{name}.onnx", stack_feeds, numbers))
    for name in [name for name in names if name not in MADE]:
        path = models / f"{name}.onnx"
        feeds = partial(workload_feeds, models, name)
        known.append(Case(name, path, feeds, (PUBLISHED_FEEDS,), layers="all"))
        if not path.exists():
            remedy = f"python tools/fetch_models.py {name} --to {models}"
            print(f"skipped {name}: no {path}; run {remedy}", file=sys.stderr)
    return [case for case in known if case.name in names and case.model.exists()]


def rows(models: Path, names: Sequence[str], counts: Sequence[int], scratch: Path) -> list[Row]:
    """Prunes every model with every number of feeds."""
    found = []
    for case in cases(models, names, counts, scratch):
        for count in case.counts:
            print(f"{case.name}, {count} feeds", file=sys.stderr)
            folder = scratch / f"{case.name}_{count}"
            folder.mkdir()
            apart(case.write_feeds, folder, count)
            peak = apart(measure, case.model, folder, count, case.layers)
            found.append(Row(case.name, case.model.stat().st_size / 1e6, count, peak))
    return found


def table(measured: Sequence[Row]) -> str:
    """The rows in Markdown."""
    header = [
        "model",
        "size",
        "feeds",
        "peak",
        "of it imports",
        "reached while",
        "limit",
        "kept",
        "time",
    ]
    lines = [
        [
            row.name,
            f"{row.model_mb:.1f} MB",
            str(row.feeds),
            f"{row.peak.most:.0f} MB",
            f"{row.peak.start:.0f} MB",
            row.peak.stage,
            f"{row.limit:.0f} MB",
            "yes" if row.passed else "no",
            f"{row.peak.seconds:.0f} s",
        ]
        for row in measured
    ]
    return f"{markdown(header, lines)}\n\n{NOTE}"


def main() -> int:
    """Runs all cases; the exit code is 1 if a prune exceeded its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    names = [*MADE, *apart(published)]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="models to prune")
    parser.add_argument("--feeds", type=int, nargs="+", default=FEEDS, help="numbers of feeds")
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measured = rows(choices.models, choices.only, choices.feeds, Path(scratch))
    text = table(measured)
    print(text)
    if choices.write:
        write_section("memory", text)
    return 0 if all(row.passed for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
