"""The wording of reports, for all renderers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from onnx_rnn_prune.data.streams import Streams
from onnx_rnn_prune.errors import as_arguments, as_flags
from onnx_rnn_prune.recovery.distill.configuration import TrainingSummary
from onnx_rnn_prune.report import schema
from onnx_rnn_prune.validate import Latency, Oracle
from onnx_rnn_prune.validate.quality import NRMSE

# Quartiles are shown if they are further apart than this share of the speedup.
_WIDE = 0.2
# Speedups between these count as equally fast: the medians of 300 pairs of runs of two copies of a
# file differed by up to 1 %.
SLOWER, FASTER = 0.98, 1.02
# Below this, two digits of a speedup would say 1.0x.
_NEAR = 1.05
# From this share of the time on, reports say that other layers could be pruned as well.
_LARGE = 0.2


_RECOVERIES = {
    "none": "none; the kept weights are unchanged",
    "lossless": "the effect of the removed units is folded into other weights and biases",
    "merge": "each removed unit is replaced by the kept one with the most similar weights",
    "bias": "the average contribution of the removed units is added to the biases",
    "lstsq": "the kept weights are refitted to make up for the removed units",
    "distill": "the smaller model is trained to match the original",
}
_ENDS_SHOWN = 3


def verdict(report: schema.PruneReport) -> str:
    """A few sentences: what pruning gained and lost, and whether the self-check passed."""
    latency, totals = report.latency, report.totals
    change = fewer(totals.bytes_before, totals.bytes_after)
    size = {"the same": "as large as before"}.get(change, change)
    size = size.replace("less", "smaller").replace("more", "larger")
    gain = faster(latency.speedup, latency.speedup_quartiles)
    sentences = [f"The pruned model is {gain} and its file {size}."]
    found = worst(report.drift)
    if found is not None:
        sentences.append(_deviation(report, found[1]))
    if report.rolled_speedup is not None:
        sentences.append(f"Rolling alone makes a run {faster(report.rolled_speedup)}.")
    if report.search is not None and not report.search.met:
        missed = [text for _, text in limit_sentences(report.search) if text.endswith(MISSED)]
        sentences.append(f"It does NOT meet the limits: {'; '.join(missed)}.")
    sentences.append(
        "The self-check passed: it matches the original with the removed units zeroed."
        if report.oracle.passed
        else "The self-check FAILED: it does not match the original with the removed units zeroed."
    )
    return " ".join(sentences)


def compared(report: schema.CompareReport) -> str:
    """Whether the second of two models is close enough to the first, in a sentence."""
    found, limit = worst(report.drift), report.max_nrmse
    apart = "cannot be measured" if found is None or found[1] is None else percent(found[1])
    text = f"The outputs' largest deviation is {apart} (RMSE relative to its standard deviation)"
    if limit is None:
        return f"{text}; no limit was given."
    state = "Passed" if report.passed else "Missed"
    return f"{state}: {text[0].lower()}{text[1:]}; the limit is {percent(limit)}."


def worst(drift: Mapping[str, schema.DriftRow]) -> tuple[str, float | None] | None:
    """The output that deviates most, and its deviation, None if undefined; None without outputs.

    States that callers hand back count only if there is nothing else.
    """
    # Indices have no distance, but the signals that decide them do, and are there as well. States
    # matter by what is computed from them.
    numbers = {name: values for name, values in drift.items() if values.kind is None} or drift
    if not numbers:
        return None
    for name, values in numbers.items():
        if not math.isfinite(values.nrmse):
            return name, None
    name = max(numbers, key=lambda name: numbers[name].nrmse)
    return name, numbers[name].nrmse


def _deviation(report: schema.PruneReport, error: float | None) -> str:
    where = " on random inputs, which says little about real ones" if report.data.random else ""
    if error is None:
        return f"The deviation of its outputs from the original's cannot be measured{where}."
    if error == 0:
        return f"Its outputs equal the original's{where}."
    return (
        f"Its outputs deviate from the original's by {percent(error)} (RMSE relative to their"
        f" standard deviation){where}."
    )


def kind(layer: schema.LayerRow | schema.InspectedLayer) -> str:
    """The operator, with its direction unless forward."""
    return layer.op if layer.direction == "forward" else f"{layer.op}, {layer.direction}"


def change(before: str, after: str) -> str:
    """`a -> b`, or just `a` if nothing changes."""
    return before if before == after else f"{before} -> {after}"


LAYER_COLUMNS = ("Layer", "Type", "Units", "Parameters", "Output")


# For a layer whose weights are counted with another layer.
SHARED = "shared"


def layer_cells(layers: Sequence[schema.LayerRow]) -> list[tuple[str, ...]]:
    """The table cells of each layer, by LAYER_COLUMNS."""
    return [
        (
            layer.name,
            kind(layer),
            change(str(layer.hidden_before), str(layer.hidden_after)),
            change(amount(layer.params_before), amount(layer.params_after))
            if layer.params_before
            else SHARED,
            outcome(layer),
        )
        for layer in layers
    ]


def outcome(layer: schema.LayerRow) -> str:
    """What became of a layer's outputs, or why it is as it was."""
    if layer.hidden_before == layer.hidden_after:
        return f"unchanged: {layer.pinned}" if layer.pinned else "unchanged"
    return ends(layer.outlets)


def ends(outlets: Sequence[schema.OutletRow]) -> str:
    """Where a layer's outputs end up, a line for each case."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for outlet in outlets:
        groups.setdefault((outlet.output, outlet.end, outlet.reason), []).append(outlet.at)
    lines = []
    for (output, end, reason), places in groups.items():
        where = _enumerate([name for name in places if name])
        if end == "absorbed":
            lines.append(f"{output}: read by smaller weights" + (f" in {where}" if where else ""))
        elif end == "restored":
            at = f" for {where}" if where else ""
            lines.append(f"{output}: restored to full width{at}" + (reason and f" ({reason})"))
        elif end == "narrow":
            lines.append(f"{output}: holds only the kept units")
        else:
            lines.append(f"{output}: not used")
    return "\n".join(lines)


def _enumerate(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - _ENDS_SHOWN
    shown = ", ".join(names[:_ENDS_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def sentences(report: schema.PruneReport) -> list[tuple[str, str]]:
    """Labelled sentences about what the tables do not show.

    Options are named as flags in the report of a command, and as arguments in any other.
    """
    named = as_arguments if report.command is None else as_flags
    lines = [("Rolled", str(row)) for row in report.rolled or ()]
    if report.rolled_speedup is not None:
        both = faster(report.latency.speedup)
        lines.append(("Rolling", f"alone: {faster(report.rolled_speedup)}; with pruning: {both}"))
    later = [stage.name for stage in report.stages[1:]]
    lines += [("Self-check", _self_check(report.oracle, report.mode, later))]
    lines += [
        ("State", f"{row.input} and {row.output}: {row.before} -> {row.after} entries")
        for row in report.states
    ]
    lines += drift_sentences(report.drift)
    lines += [("Lossless", _superfluous(row)) for row in report.lossless or ()]
    lines += [("Recovery", _recovery(report.recovery)), ("Data", _data(report.data))]
    if report.data.streams is not None:
        lines.append(("States", streams(report.data.streams)))
    others = report.share_of_others
    if others is not None and others > _LARGE:
        text = (
            f"dense layers and convolutions, which take {percent(others)} of the result's run time"
        )
        lines.append(("Not pruned", f"{text}; --layers=all prunes them as well"))
    return [(label, named(text)) for label, text in lines]


def frontier(search: schema.SearchRows) -> list[int]:
    """The indices of the Pareto-optimal candidates and of the picked one, fastest first."""
    shown = [n for n, row in enumerate(search.candidates) if row.frontier or row.picked]
    return sorted(shown, key=lambda n: search.candidates[n].ms)


MISSED = "MISSED"


def limit_sentences(search: schema.SearchRows) -> list[tuple[str, str]]:
    """For each limit, the value that the written file reaches on the test feeds."""
    show: dict[str, Callable[[float], str]] = {
        "speed": duration,
        "params": amount,
        "bytes": size,
        "quality": partial(quality, search.quality),
    }
    names = {"speed": "time per run", "params": "parameters", "bytes": "file size"}
    lines = []
    for limit in search.limits:
        what = names.get(limit.name, f"loss of {quality_name(search.quality)}")
        if search.quality == NRMSE.name and limit.name == "quality":
            what = "deviation"
        reached, asked = (show[limit.name](value) for value in (limit.reached, limit.asked))
        verdict = "met" if limit.met else MISSED
        lines.append(("Limit", f"{what} {reached}, at most {asked}: {verdict}"))
    return lines


def drift_sentences(drift: Mapping[str, schema.DriftRow]) -> list[tuple[str, str]]:
    """For each output, its deviation in words."""
    return [(drift_title(name, values), _apart(values)) for name, values in drift.items()]


def drift_title(name: str, values: schema.DriftRow) -> str:
    """What a deviation is of: an output, a state or a signal."""
    if values.signal_of:
        return f"Signal {name}, behind {_enumerate(values.signal_of)}"
    return f"Output {name}, a state" if values.kind == "state" else f"Output {name}"


def _apart(values: schema.DriftRow) -> str:
    agreement = values.top1_agreement
    top = "" if agreement is None else f"; same top answer in {percent(agreement)}"
    if values.unequal:
        often = "once" if values.unequal == 1 else f"{values.unequal} times"
        top += f"; lengths differ {often}, compared up to the shorter"
    if values.rmse == 0:
        return "the same as the original's" + ("" if agreement == 1.0 else top)
    if values.kind == "index" and agreement is not None:
        return f"the same as the original's in {percent(agreement)}"
    if not math.isfinite(values.nrmse):
        return f"its deviation cannot be measured: one of the two is all zero or not a number{top}"
    return (
        f"deviates {percent(values.nrmse)} from the original (RMSE relative to its standard"
        f" deviation){top}"
    )


def _self_check(oracle: Oracle, mode: str, later: Sequence[str]) -> str:
    pair = (
        "the smaller file equals the full-size file with the removed units zeroed"
        if mode == "shrink"
        else "the file with the removed units zeroed equals the smaller file without them"
    )
    state = "passed" if oracle.passed else "FAILED"
    why = f", since {oracle.reason}" if oracle.passed and oracle.reason else ""
    text = f"{pair} (largest difference {oracle.max_abs_diff:.1g}{why}): {state}"
    return text + (f"; checked before {', '.join(later)}" if later else "")


def _superfluous(row: schema.LosslessRow) -> str:
    """The superfluous units of a layer, and how many of them were removed."""
    kinds = {"dead": row.dead, "zero": row.zero, "constant": row.constant}
    kinds["duplicate"] = row.duplicate
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    if not found:
        return f"{row.layer} has no superfluous units"
    return f"{row.layer} has {found} units; {row.removed} of them were removed"


def _recovery(recovery: schema.Recovery) -> str:
    text = _RECOVERIES[recovery.used]
    if recovery.ridge is not None and recovery.used == "lstsq":
        text += f" (least squares, lambda {recovery.ridge:.2g})"
    if recovery.learning is not None:
        text += f" ({_learning(recovery.learning)})"
    return text + (f"; {recovery.reason}" if recovery.reason else "")


def _learning(learning: TrainingSummary) -> str:
    reasons = ", ".join(sorted(set(learning.missing.values())))
    scope = "as a whole" if learning.whole else f"piece by piece, since {reasons}"
    return f"{learning.steps} steps in {learning.seconds:.0f} s, trained {scope}"


def _data(data: schema.DataRow) -> str:
    if data.random:
        return (
            f"none given; random inputs were used ({data.source}) and nothing was calibrated, so"
            " the deviations say little about real inputs (give some with --data)"
        )
    text = f"{data.source}, {data.feeds} feed{'s' if data.feeds != 1 else ''}"
    if data.shared:
        return (
            f"{text}, used for both calibration and validation, so the deviations may look better"
            " than they are (give others with --eval-data)"
        )
    return f"{text}: {data.calibration_feeds} for calibration, {data.heldout_feeds} for validation"


def counted(count: int, what: str) -> str:
    """A number with its noun."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def streams(row: Streams) -> str:
    """How states that callers carry from call to call were treated."""
    pairs = ", ".join(f"{source} from {result}" for source, result in row.states.items())
    if row.count:
        return (
            f"each model carries its own states from call to call, as in production ({pairs}):"
            f" {counted(row.count, 'stream')}, {counted(row.calls, 'call')} in all"
        )
    start = "starting from the states in its inputs, or from zero if there are none"
    text = f"each call was evaluated on its own, {start} ({pairs})"
    if row.asked is False:
        return text
    return (
        f"{text}; in production, errors accumulate: to measure this, give consecutive calls with"
        " the states that the original returned, or without states but with --stream"
    )


def shapes(feed: Mapping[str, Sequence[int]]) -> str:
    """Shapes of inputs, by name."""
    return ", ".join(f"{name} {list(sizes)}" for name, sizes in feed.items())


def amount(value: float) -> str:
    """A count to three digits: `950`, `12.3 k`, `1.23 M`."""
    return _scaled(value, ("", " k", " M", " G", " T"))


def size(value: float) -> str:
    """A number of bytes: `950 B`, `12.3 kB`, `1.23 MB`."""
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def duration(ms: float) -> str:
    """A time given in milliseconds: `0.412 ms`, `12.3 ms`, `1.23 s`."""
    return f"{_digits(ms / 1000)} s" if ms >= 999.5 else f"{_digits(ms)} ms"


def quality_name(name: str) -> str:
    """The name of a quality for readers."""
    return "deviation" if name == NRMSE.name else name


def quality(name: str, value: float | None) -> str:
    """A quality in its own units; deviations are shares."""
    if value is None or not math.isfinite(value):
        return "unknown"
    return percent(value) if name == NRMSE.name else f"{value:.4g}"


def percent(share: float | None) -> str:
    """A share: `2.1 %`, `under 0.01 %`; never rounded to 0 or 100 % when it is not."""
    if share is None or not math.isfinite(share):
        return "unknown"
    value = 100 * share
    if 0 < value < 0.01:
        return "under 0.01 %"
    if 99.9 < value < 100:
        return "over 99.9 %"
    return f"{_digits(value, 2)} %" if value < 10 else f"{value:.1f} %".replace(".0 %", " %")


def faster(ratio: float, quartiles: Sequence[float] | None = None) -> str:
    """A speedup: `3.1x faster`, `1.2x slower`, `equally fast (0.99x)`, `2.1x faster (2x to 3x)`.

    Args:
        ratio: the median of the time before over the time after.
        quartiles: of that, if known. If 1 is between them, the difference is within the noise; if
            they are far apart, they are shown.
    """
    if SLOWER < ratio < FASTER:
        return f"equally fast ({ratio:.2f}x)"
    low, high = quartiles or (ratio, ratio)
    if low <= 1 <= high:
        return f"not measurably faster ({ratio:.2f}x)"
    if ratio < 1:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
        word = "slower"
    else:
        word = "faster"
    spread = f" ({_digits(low, 2)}x to {_digits(high, 2)}x)" if high - low > _WIDE * ratio else ""
    return f"{_digits(ratio, 3 if ratio < _NEAR else 2)}x {word}{spread}"


def times(ratio: float, quartiles: Sequence[float] | None = None) -> str:
    """A speedup as a factor, `2.50x`, with its quartiles if they are far apart or include 1."""
    low, high = quartiles or (ratio, ratio)
    plain = high - low <= _WIDE * ratio and not low <= 1 <= high
    return f"{ratio:.2f}x" if plain or low == high else f"{ratio:.2f}x ({low:.2f}x to {high:.2f}x)"


def fewer(before: float, after: float) -> str:
    """A change in words: `67 % less`, `3 % more`, `the same`."""
    if before == after or not before:
        return "the same"
    return f"{percent(abs(after / before - 1))} {'less' if after < before else 'more'}"


def amount_change(before: float, after: float) -> tuple[str, str, str]:
    """Two counts, and the change between them in words."""
    return amount(before), amount(after), fewer(before, after)


def size_change(before: float, after: float) -> tuple[str, str, str]:
    """As `amount_change`, for numbers of bytes."""
    return size(before), size(after), fewer(before, after)


def time_change(latency: Latency) -> tuple[str, str, str]:
    """As `amount_change`, for times."""
    gain = faster(latency.speedup, latency.speedup_quartiles)
    return duration(latency.before_ms), duration(latency.after_ms), gain


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    # Rounding to three digits may reach the next unit.
    while value >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    return f"{value:.0f}{units[0]}" if power == 0 else f"{_digits(value)}{units[power]}"


def _digits(value: float, digits: int = 3) -> str:
    """A number to that many significant digits, without an exponent."""
    if value == 0:
        return "0"
    # The exponent of the rounded number: 0.9996 to three digits is 1.00.
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    places = digits - 1 - exponent
    return f"{value:.{max(0, places)}f}"
