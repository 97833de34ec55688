"""Comparison with onnxsim's structured pruning: `python tools/bench_onnxsim.py` (needs onnxsim).

onnxsim cuts chains of convolutions and dense layers but no recurrent operators. It gets the same
data, for channel scores (Wanda) and its ridge finetune of dense layers. `prune` then leaves the
same number of parameters.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fetch_models import default_folder
from onnx_rnn_prune import compare, prune
from onnx_rnn_prune.calibration import opened_feeds
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Feed, Runner
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.validate import timings
from pages import markdown, write_section
from streaming import DETECTORS
from workloads import WORKLOADS, Workload, outcomes

NAMES = (
    "seizure",
    "silero_vad_sequence",
    "oskut",
    "silero_vad_no_lstm",
    "silero_vad_half",
    "ppocr_rec",
)
SPARSITIES = (0.25, 0.5)
SECONDS_PER_MODEL = 3.0
# Calls that onnxsim is calibrated with: it keeps their activations in memory.
CALLS = 200
# If ours is slower at the same size, it is shrunk by this factor until it is not.
SMALLER = 0.85
NOTE = """\
*onnxsim*: its structured pruning of that share of channels, scored on calibration data, and its
ridge fine-tuning on the same data. *same size*:
`prune --layers all --allocate global --per params` with `--budget` at the share of parameters
that onnxsim left; *same speed*, where that is slower: the same, pruned further. Output
deviation and agreement on test data, as in [models](models.md); speeds are median ratios of
interleaved runs on one thread of a busy machine. Where onnxsim prunes nothing or fails, only
its row is shown. By `python tools/bench_onnxsim.py`."""


@dataclass(frozen=True)
class Rival:
    """A model pruned by one of the two.

    Attributes:
        label: by which of them, and how.
        model: the model.
        params: share of the original's parameters left.
    """

    label: str
    model: onnx.ModelProto
    params: float


def theirs(path: Path, work: Workload, sparsity: float) -> Rival:
    """onnxsim's result for a model, with everything it offers for this."""
    import onnxsim  # type: ignore[import-not-found,unused-ignore]

    original = onnx.load(path)
    simple, _ = onnxsim.simplify(original)
    data = _plain(path, work, CALLS)
    cut = onnxsim.apply_structured_wanda_pruning(simple, data, sparsity=sparsity)
    cut = onnxsim.apply_pruning_finetune(simple, cut, calibration_data=data)
    return Rival(f"onnxsim {sparsity:.0%}", cut, _params(cut) / _params(simple))


def _plain(path: Path, work: Workload, calls: int) -> list[dict[str, Any]]:
    """Feeds as the original gets them, with states but without labels."""
    inputs = {value.name for value in onnx.load(path).graph.input}
    found = []
    for feed, _ in outcomes(path, onnx.load(path), work.data):
        found.append({name: value for name, value in feed.items() if name in inputs})
    return found[:: max(len(found) // calls, 1)]


def _params(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(each.dims)) for each in model.graph.initializer)


def ours(path: Path, work: Workload, label: str, share: float) -> Rival:
    """The result of `prune` at this share of the parameters, in one step."""
    result = prune(
        path,
        budget=f"params={share:.2%}",
        layers="all",
        allocate="global",
        per="params",
        data=work.data,
        eval_data=work.tests,
        stream=work.streams or None,
    )
    totals = result.report.totals
    return Rival(label, result.model, totals.params_after / totals.params_before)


def measure(path: Path, work: Workload) -> list[list[str]]:
    """The table cells of a model's rows."""
    original, rows = onnx.load(path), []
    for sparsity in SPARSITIES:
        print(f"{work.name}, {sparsity:.0%}", file=sys.stderr)
        try:
            rival = theirs(path, work, sparsity)
        except RuntimeError as error:  # from writing a model or reading it back
            print(error, file=sys.stderr)
            return [[work.name, "onnxsim", "fails", "", "", ""]]
        versions = [rival]
        if rival.params < 1.0:
            versions.append(ours(path, work, "same size", rival.params))
            their, own = _speeds(path, work, [original, *(each.model for each in versions)])
            share = rival.params
            while own < their and share > 0.3:
                share *= SMALLER
                faster = ours(path, work, "same speed", share)
                own = _speeds(path, work, [original, faster.model])[0]
                versions[2:] = [faster]
        speeds = _speeds(path, work, [original, *(each.model for each in versions)])
        rows += [_row(path, work, *pair) for pair in zip(versions, speeds, strict=True)]
        if rival.params == 1.0:
            break
    return rows


def _speeds(path: Path, work: Workload, models: Sequence[onnx.ModelProto]) -> list[float]:
    """Speedups of the others over the first."""
    feeds: Sequence[Feed] = list(work.timed)
    if work.streams:
        feeds = list(opened_feeds(open_model(path), [feeds], True))
    runners = [Runner(model, name=work.name) for model in models]
    found = timings(runners, feeds, seconds=SECONDS_PER_MODEL * len(models), rounds=1000)
    return [each.ratio for each in found[1:]]


def _row(path: Path, work: Workload, version: Rival, speed: float) -> list[str]:
    detector = DETECTORS.get(work.name)
    report = compare(path, version.model, data=work.tests, stream=work.streams or None)
    output = list(report.drift)[-1] if detector is None else detector.probability
    value = work.measure(outcomes(path, version.model, work.tests))
    texts = [f"{version.params:.0%}", f"{speed:.2f}x", f"{report.drift[output].nrmse:.1%}"]
    return [work.name, version.label, *texts, work.text.format(value)]


def main() -> int:
    """Runs the measurements; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder to read")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--results", type=Path, default=default_folder().parent / "onnxsim.json")
    parser.add_argument("--again", action="store_true", help="measure what is in results, too")
    parser.add_argument("--write", action="store_true", help="put the table into tools/results")
    choices = parser.parse_args()
    path = choices.results
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    try:
        for name in choices.only:
            if choices.again or name not in known:
                work = WORKLOADS[name](choices.models, name)
                known[name] = measure(choices.models / f"{name}.onnx", work)
                path.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
        rows = [row for name in NAMES for row in known.get(name, ())]
        header = ["model", "cut by", "parameters left", "speed", "deviation", "agreement"]
        text = f"{markdown(header, rows)}\n\n{NOTE}"
        print(text)
        if choices.write:
            write_section("onnxsim", text)
    except ImportError:
        print("bench_onnxsim: pip install onnxsim==0.8.1", file=sys.stderr)
        return 1
    except (PruneError, ValueError, OSError) as error:
        print(f"bench_onnxsim: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
