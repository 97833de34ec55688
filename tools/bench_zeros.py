"""What zeros in single weights cost a published speech denoiser: `python tools/bench_zeros.py`.

Zeroes weights of NSNet2, by magnitude and by the second-order criterion, and denoises recordings
that were not used for fitting, as `bench_nsnet2.py` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bench_nsnet2 import CALIBRATION, EVALUATION, HIDDEN, KINDS, LONG, SHORT, feed, listen
from fetch_models import default_folder
from onnx_rnn_prune import prune
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.external import compressed_bytes, with_sparse
from onnx_rnn_prune.model.runner import Runner
from pages import markdown, write_section
from speech import mixtures, split

PATTERNS = ("50%", "2:4")
CRITERIA = ("magnitude", "obs")
UNITS = (HIDDEN,)
NOTE = f"""\
Calibrated on {CALIBRATION:.0f} s of noisy speech; SNR and gain RMSE on {EVALUATION:.0f} s of
other recordings without babble, as in [nsnet2](nsnet2.md). *Zeros* are in the GRU layers' W and
R and in the weight that reads the last layer. *Sparse*: the file with `--sparse-initializers`;
*compressed*: the dense file under zlib. Kernels are dense, so zeros save no time. By
`python tools/bench_zeros.py`."""


@dataclass(frozen=True)
class Sparse:
    """A model with zeros and how it was made."""

    model: onnx.ModelProto
    units: int
    pattern: str
    by: str


def make(path: Path, feeds: Sequence[object], units: int, pattern: str, by: str) -> Sparse:
    """Keeps `units` units of each layer, and zeroes weights."""
    print(f"{units} units, {pattern or 'no zeros'} {by}", file=sys.stderr)
    result = prune(path, keep=units, data=feeds, sparsify=pattern or None, sparsify_by=by or None)
    return Sparse(result.model, units, pattern, by)


def table(models: Sequence[Sparse], path: Path, folder: Path) -> str:
    """Rows in Markdown: size, SNR and the error of the gains against the original's."""
    pieces = mixtures(split(folder)["evaluation"], EVALUATION, LONG, 2, KINDS)
    pieces = [piece for piece in pieces if piece.noise != "babble"]
    original = listen(Runner(onnx.load(path)), pieces)
    lines = []
    for each in models:
        heard = listen(Runner(each.model), pieces)
        pairs = zip(heard.gains, original.gains, strict=True)
        error = float(np.sqrt(np.mean([np.mean(np.square(a - b)) for a, b in pairs])))
        snr, before = float(np.mean(heard.snr_db)), float(np.mean(original.snr_db))
        sizes = (each.model, with_sparse(each.model))
        cells = [str(each.units), each.pattern or "none", each.by]
        cells += [f"{model.ByteSize() / 1e6:.2f} MB" for model in sizes]
        cells += [f"{compressed_bytes(each.model) / 1e6:.2f} MB"]
        cells += [f"{snr:.2f} dB", f"{snr - before:+.2f} dB", f"{error:.4f}"]
        lines.append(cells)
    header = ["units", "zeros", "by", "file", "sparse", "compressed", "SNR", "change", "gain RMSE"]
    return f"{markdown(header, lines)}\n\n{NOTE}"


def main() -> int:
    """Runs the measurements; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--units", type=int, nargs="+", default=UNITS, help="units to keep")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="which weights go")
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    path, recordings = choices.models / "nsnet2.onnx", choices.models / "speech"
    try:
        sets = split(recordings)
        feeds = [feed(m) for m in mixtures(sets["calibration"], CALIBRATION, SHORT, 0, KINDS)]
        models = []
        for units in choices.units:
            models.append(make(path, feeds, units, "", ""))
            for pattern in choices.patterns:
                models += [make(path, feeds, units, pattern, by) for by in CRITERIA]
        text = table(models, path, recordings)
        print(text)
        if choices.write:
            write_section("zeros", text)
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_zeros: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
