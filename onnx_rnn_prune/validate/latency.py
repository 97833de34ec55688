"""Latency: what a smaller model gains, measured in the same run as the original."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from onnx_rnn_prune.model.runner import Feed, Streaming
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.validate.results import Called


@dataclass(frozen=True)
class Timing:
    """How long one of several models takes for one feed.

    Attributes:
        ms: the median time of a run, in milliseconds.
        ratio: how many times faster it is than the first model: the median over rounds of the first
            one's time / its own, so that a machine that slows down for a while slows both.
        ratio_quartiles: what a quarter and three quarters of these ratios do not exceed.
        rounds: the number of timed runs.
        quartiles_ms: the times that a quarter and three quarters of the runs do not exceed.
    """

    ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int
    quartiles_ms: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Latency(Record):
    """How long a run takes before and after, in milliseconds; `speedup` above 1 is faster.

    All are medians over so many rounds, with the quartiles that lie around them. The speedup is the
    median of each round's ratio, which a busy machine disturbs less than it does the times.
    """

    before_ms: float
    after_ms: float
    speedup: float
    speedup_quartiles: tuple[float, float]
    threads: int
    before_quartiles_ms: tuple[float, float]
    after_quartiles_ms: tuple[float, float]
    rounds: int


def timings(
    models: Sequence[Called],
    feed: Feed | Sequence[Feed],
    *,
    seconds: float = 2.0,
    rounds: int = 200,
) -> tuple[Timing, ...]:
    """Times models against each other: warmed up, interleaved, each round in another order.

    Args:
        models: the models; the first is the one the others are compared with.
        feed: one feed that all of them take, or calls that follow one another and come in turn.
        seconds: about how long to measure in all; slow models get at least one round.
        rounds: the most rounds to run.
    """
    start = time.perf_counter()
    feeds = cycle([feed] if isinstance(feed, Mapping) else feed)
    used = [Streaming(model) for model in models]
    for feed in islice(feeds, 3):
        for model in used:
            model(feed)
        if time.perf_counter() - start > seconds / 5:
            break
    order = list(range(len(models)))
    times: list[list[float]] = [[] for _ in models]
    while len(times[0]) < rounds:
        feed = next(feeds)
        for index in order:
            run = models[index]
            ready = run.ready(used[index].given(feed))
            begin = time.perf_counter()
            outputs = run(ready)
            times[index].append((time.perf_counter() - begin) * 1000.0)
            used[index].gave(outputs)
        order.reverse()
        if time.perf_counter() - start > seconds:
            break
    return tuple(_timing(times[0], own) for own in times)


def latency(
    before: Called,
    after: Called,
    feed: Feed | Sequence[Feed],
    *,
    threads: int = 1,
    seconds: float = 2.0,
) -> Latency:
    """Times two models against each other; `threads` is what both runners were opened with."""
    old, new = timings([before, after], feed, seconds=seconds)
    return Latency(
        before_ms=old.ms,
        after_ms=new.ms,
        speedup=new.ratio,
        speedup_quartiles=new.ratio_quartiles,
        threads=threads,
        before_quartiles_ms=old.quartiles_ms,
        after_quartiles_ms=new.quartiles_ms,
        rounds=new.rounds,
    )


def _timing(first: Sequence[float], own: Sequence[float]) -> Timing:
    ratios = [one / max(other, 1e-9) for one, other in zip(first, own, strict=True)]
    return Timing(
        ms=statistics.median(own),
        ratio=statistics.median(ratios),
        ratio_quartiles=_quartiles(ratios),
        rounds=len(own),
        quartiles_ms=_quartiles(own),
    )


def _quartiles(times: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(times, (0.25, 0.75))
    return float(low), float(high)
