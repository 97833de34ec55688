"""What came of it, in the words of someone who has to decide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnx_rnn_prune.report.numbers import faster, fewer, percent

Report = Mapping[str, Any]


def verdict(report: Report) -> str:
    """One to three sentences on what a prune gained, what it cost, and whether that is proven.

    Args:
        report: the dict of `PruneResult.report`; what it lacks is left out.
    """
    gains = []
    latency = report.get("latency") or {}
    if latency.get("speedup") is not None:
        gains.append(f"is {faster(latency['speedup'], latency.get('speedup_quartiles'))}")
    totals = report.get("totals") or {}
    before, after = totals.get("bytes_before"), totals.get("bytes_after")
    if before and after is not None:
        change = fewer(before, after)
        word = {"less": "smaller", "more": "larger"}.get(change.rpartition(" ")[2])
        share = change.rpartition(" ")[0]
        gains.append(f"its file {share} {word}" if word else "its file as large as before")
    sentences = [f"The pruned model {' and '.join(gains)}."] if gains else []
    found = worst(report.get("drift") or {})
    if found is not None:
        sentences.append(_deviation(report, found[1]))
    oracle = report.get("oracle")
    if oracle is not None:
        sentences.append(
            "The self-check passed: it computes what the original does without the removed units."
            if oracle["passed"]
            else "The self-check FAILED: it does not compute what it should."
        )
    return " ".join(sentences)


def compared(report: Report) -> str:
    """Whether the second of two models is close enough to the first, in a sentence.

    Args:
        report: what `compare` returns.
    """
    found, limit = worst(report["drift"]), report.get("max_nrmse")
    apart = "cannot be measured" if found is None or found[1] is None else percent(found[1])
    text = f"The outputs' largest deviation is {apart} (RMS, relative to the spread of the first)"
    if limit is None:
        return f"{text}; no limit was given."
    state = "Passed" if report["passed"] else "Missed"
    return f"{state}: {text[0].lower()}{text[1:]}; the limit is {percent(limit)}."


def worst(drift: Mapping[str, Report]) -> tuple[str, float | None] | None:
    """The output that deviates most and by how much, None where that is without measure.

    States that callers hand back count where there is nothing else. None where there are no
    outputs.
    """
    if not drift:
        return None
    # An index is not off by a distance; what decides about it is, and that is there, too. States
    # that come back matter for what comes of them.
    numbers = {name: values for name, values in drift.items() if not values.get("kind")}
    errors = {name: values.get("nrmse") for name, values in (numbers or drift).items()}
    for name, error in errors.items():
        if error is None or not math.isfinite(error):
            return name, None
    return max(errors.items(), key=lambda pair: float(pair[1] or 0.0))


def _deviation(report: Report, error: float | None) -> str:
    data = report.get("data") or {}
    where = " on made-up inputs, which says little about real ones" if data.get("random") else ""
    if error is None:
        return f"How far its outputs deviate from the original's cannot be measured{where}."
    if error == 0:
        return f"Its outputs are the original's{where}."
    return (
        f"Its outputs deviate from the original's by {percent(error)} of their spread (RMS){where}."
    )
