"""Calibration time besides running the model: `python tools/measure_calibration.py`.

`python tools/fetch_models.py` gets the models; see bench_models.py for their other requirements.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fetch_models import default_folder
from onnx_rnn_prune.calibration import open_data
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.evidence.evidence import collect
from onnx_rnn_prune.model.runner import Streaming
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.progress import silent
from onnx_rnn_prune.traced_model import trace_model
from pages import markdown, write_section
from workloads import WORKLOADS

MODELS = ("ppocr_rec", "captcha_crnn", "seizure", "silero_vad_sequence", "oskut")
PASSES, SECONDS = 3, 5.0
NOTE = f"""\
CPU seconds, one thread, all layers. A pass runs the original on the calibration feeds;
calibration also outputs everything that readers read, and accumulates its moments. The limit is
{PASSES} passes plus {SECONDS:.0f} s. By `python tools/measure_calibration.py`."""


def measure(folder: Path, name: str) -> list[str]:
    """The row of one model."""
    work, path = WORKLOADS[name](folder, name), folder / f"{name}.onnx"
    opened = open_model(path, layers=("all",))
    feeds = open_data(opened, Inputs(data=work.data, stream=work.streams or None)).calibration
    names = [layer.name for layer in opened.layers]
    traced = trace_model(opened, names, feeds)
    run = Streaming(opened.run())

    def plain() -> None:
        for feed in feeds:
            run(feed)

    def calibrate() -> None:
        collect(traced.document, traced.trace, traced.readers, feeds, silent)

    passed, took = seconds(plain), seconds(calibrate)
    limit = PASSES * passed + SECONDS
    texts = [f"{value:.1f} s" for value in (passed, took, limit)]
    return [name, str(len(feeds)), str(len(names)), *texts, "yes" if took <= limit else "no"]


def seconds(work: Callable[[], None]) -> float:
    """Processor time of some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    """Runs the measurements; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(MODELS))
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    header = ["model", "feeds", "layers", "a pass", "calibration", "limit", "kept"]
    try:
        rows = [measure(choices.models, name) for name in choices.only]
        text = f"{markdown(header, rows)}\n\n{NOTE}"
        print(text)
        if choices.write:
            write_section("calibration", text)
    except (PruneError, ValueError, OSError) as error:
        print(f"measure_calibration: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
