"""What rolling and pruning bring for decomposed recurrences: `python tools/bench_roll.py`.

Without arguments, it decomposes cells itself, with 128 units and 100 steps, one sequence, one
thread. Named models are measured as well: `MODEL.onnx`, or `MODEL.onnx:INPUT=1x100x16`. With
`--make`, Keras 3 and TensorFlow are installed into a temporary environment, and a model exported by
them is measured: Masking, two GRUs, Dense. `--keras FILE` exports that model and does nothing else.
With `--write`, the table goes into tools/results/roll.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

UNITS, INPUTS, STEPS = 128, 16, 100
KERAS = ("keras==3.15.1", "tensorflow-cpu==2.21.0", "tf2onnx==1.17.0", "onnx")


@dataclass(frozen=True)
class Case:
    """A model to measure.

    Attributes:
        name: in the table.
        model: the model, or its path.
        size: sizes of its inputs.
    """

    name: str
    model: str | onnx.ModelProto
    size: dict[str, tuple[int, ...]]


def export_keras(path: str) -> None:
    """Writes the Keras model."""
    keras: Any = import_module("keras")
    keras.utils.set_random_seed(0)
    given = keras.Input((None, INPUTS), name="x")
    found = keras.layers.Masking()(given)
    for _ in range(2):
        found = keras.layers.GRU(UNITS, return_sequences=True)(found)
    model = keras.Model(given, keras.layers.Dense(10)(found))
    model(np.zeros((2, STEPS, INPUTS), np.float32))
    model.export(path, format="onnx", verbose=False)


def made(folder: Path) -> Case:
    """The Keras model, from an environment in this folder."""
    venv.create(folder / "environment", with_pip=True)
    python = str(folder / "environment" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *KERAS], check=True)
    path = folder / "keras.onnx"
    keras = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    subprocess.run([python, __file__, "--keras", str(path)], check=True, env=keras)
    name = "Keras 3: Masking, two GRUs, Dense"
    return Case(name, onnx.load(path), {"x": (1, STEPS, INPUTS)})


def written() -> Iterator[Case]:
    """Cells decomposed by the writer in the tests."""
    rolling: Any = import_module("rolling")  # of the tests
    rolling.WIDTH, rolling.UNITS = INPUTS, UNITS
    rolling.STATE = (rolling.STATE[0], ["batch", UNITS])
    # As large as in trained layers: with larger weights, rounding errors grow from step to step.
    rolling.drawn = lambda rng, *shape: rng.normal(0, UNITS**-0.5, shape).astype(np.float32)
    size = {"x": (STEPS, 1, INPUTS)}
    for kind in ("lstm", "gru", "rnn"):
        width = {"width": INPUTS} if kind == "rnn" else {}
        step = getattr(rolling, kind)(np.random.default_rng(0), **width)
        states = {"h0": (1, UNITS), **({"c0": (1, UNITS)} if kind == "lstm" else {})}
        sizes = {**size, **states}
        yield Case(f"{kind.upper()}, Loop", rolling.repeated(step), sizes)
        yield Case(f"{kind.upper()}, Scan", rolling.repeated(step, "Scan"), sizes)
        masked = rolling.repeated(step, mask="blend")
        yield Case(f"{kind.upper()}, masked Loop", masked, {**sizes, "mask": (STEPS, 1, 1)})
        yield Case(f"{kind.upper()}, unrolled", rolling.unrolled(step, STEPS), sizes)


def measured(case: Case) -> list[str]:
    """A row of the table for a model."""
    from onnx_rnn_prune import ConstraintError, prune, roll

    report = roll(case.model, size=case.size).report
    if report.latency is None:
        reasons = "; ".join(row.reason for row in report.left)
        return [case.name, "not rolled", "", reasons or "nothing recognised"]
    spread = [f"{number:.1f}" for number in report.latency.speedup_quartiles]
    cells = ", ".join(f"{row.op} {row.units}" for row in report.rolled)
    try:
        cut = prune(case.model, keep=0.5, size=case.size).report.latency.speedup
        pruned = f"{cut:.1f}x"
    except ConstraintError as error:
        pruned = str(error)
    return [
        case.name,
        f"{cells}, equal to {report.max_abs_diff:.0e}",
        f"{report.latency.speedup:.1f}x ({spread[0]} to {spread[1]})",
        pruned,
    ]


def main() -> None:
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--keras", metavar="FILE")
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.keras:
        export_keras(given.keras)
        return
    from pages import markdown, write_section

    cases = list(written())
    if given.make:
        with tempfile.TemporaryDirectory() as folder:
            cases.append(made(Path(folder)))
    for text in given.models:
        path, _, sizes = text.partition(":")
        pairs = (item.split("=") for item in sizes.split(",") if item)
        size = {name: tuple(map(int, shape.split("x"))) for name, shape in pairs}
        cases.append(Case(Path(path).stem, path, size))
    header = ["model", "became", "speedup, rolled", "rolled, half of the units"]
    table = markdown(header, [measured(case) for case in cases])
    print(table)
    if given.write:
        write_section("roll", table)


if __name__ == "__main__":
    main()
