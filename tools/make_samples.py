"""Make, train and export the sample models: `python tools/make_samples.py`.

Needs torch, onnx, onnxruntime, scikit-learn and pip. Takes about seven minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from sample_metrics import METRICS, SAMPLES, evaluate
from samples import digits_gru, stream_lstm, text_lstm, vowels_bilstm
from samples.common import Sample, read_card, save, start_over

BUILDERS: dict[str, Callable[[Path], Sample]] = {
    "digits_gru": digits_gru.build,
    "vowels_bilstm": vowels_bilstm.build,
    "text_lstm": text_lstm.build,
    "stream_lstm": stream_lstm.build,
}
UNITS = {
    "accuracy": "{:.1%} accuracy",
    "perplexity": "{:.2f} perplexity",
    "snr_db": "{:.1f} dB SNR",
}
README = """\
# Sample models

Small recurrent models, trained on real data, to prune and to measure what pruning costs.

| file | task | network | data and licence | held out |
| --- | --- | --- | --- | --- |
{rows}

`NAME/calibration/*.npz` are unlabelled feeds from the training part; state inputs are left out and
start at zero. `NAME/heldout/*.npz` are feeds with `labels`, which no training step has seen:
`tools/sample_metrics.py` computes the last column from them.

Regenerate everything with `python tools/make_samples.py`.
"""


def table_row(path: Path) -> str:
    """The README's row for one model, from its metadata and held-out data."""
    card = read_card(path)
    metric, value = evaluate(path, path.stem, path.parent)
    data = f"{card['data']}; {card['licence']}"
    score = "; ".join(filter(None, (UNITS[metric].format(value), card.get("baseline"))))
    cells = (f"`{path.name}`", card["task"], card["network"], data, score)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Makes the requested models, and the README of the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SAMPLES, help="folder to write to")
    cache = Path.home() / ".cache" / "onnx_rnn_prune" / "wheels"
    parser.add_argument("--cache", type=Path, default=cache, help="folder of the data's wheels")
    parser.add_argument("--only", nargs="+", choices=list(BUILDERS), default=list(BUILDERS))
    choices = parser.parse_args()
    for name in choices.only:
        start = time.perf_counter()
        print(f"{name}:", flush=True)
        start_over()
        save(BUILDERS[name](choices.cache), choices.out)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    made = [path for name in METRICS if (path := choices.out / f"{name}.onnx").exists()]
    rows = "\n".join(table_row(path) for path in made)
    (choices.out / "README.md").write_text(README.format(rows=rows), "utf-8")
    print(rows)


if __name__ == "__main__":
    main()
