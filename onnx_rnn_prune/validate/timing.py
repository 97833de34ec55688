"""Run times of models, measured in alternation with the original, and of single nodes."""

from __future__ import annotations

import errno
import json
import os
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.runner import Feed, Runner, Streaming
from onnx_rnn_prune.model.scratch import temporary_folder, written_in
from onnx_rnn_prune.model.walk import nodes_by_key
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.validate.results import Called

# The most feeds that are tried in search of one that reaches a node.
_FEEDS = 8
_ROUNDS = 50
_SECONDS = 1.0
# Nodes that do next to nothing, which show how long a profiler event takes.
_IDLE = 64
# Seconds after which the median ratio of two models of 10 us is known to 0.3 %.
_LEAST = 0.1
# The approximate number of profiler events to read; each costs the time of several nodes.
_EVENTS = 15_000


@dataclass(frozen=True)
class Timing:
    """The run time of one of several models.

    Attributes:
        ms: the median time of a run, in milliseconds.
        ratio: the speedup relative to the first model: the median over rounds of its time / this
            one's, so that a machine that slows down for a while slows both.
        ratio_quartiles: the quartiles of these ratios.
        quartiles_ms: the quartiles of the times.
        busy_ms: the median processor time of a run, without what else the machine did.
    """

    ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int
    quartiles_ms: tuple[float, float]
    busy_ms: float


@dataclass(frozen=True, eq=False)
class Latency(Record):
    """The time of a run before and after, in milliseconds; `speedup` above 1 is faster.

    All are medians over `rounds`, with quartiles. The speedup is the median of the rounds' ratios,
    which a busy machine disturbs less than the times.
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
    least: float = 0.0,
) -> tuple[Timing, ...]:
    """Times models against each other: warmed up, interleaved, in alternating order.

    Args:
        models: the models; the others are compared with the first.
        feed: one feed that all of them take, or consecutive calls, which take turns.
        seconds: about how long to measure in all; slow models get at least one round.
        rounds: the most rounds to run, unless they take less than `least`.
        least: the least seconds to measure, so that a short disturbance cannot affect all runs.
    """
    start = time.perf_counter()
    feeds = cycle([feed] if isinstance(feed, Mapping) else feed)
    used = [Streaming(model) for model in models]
    for feed in islice(feeds, 3):
        for model in used:
            model(feed)
        if time.perf_counter() - start > seconds / 5:
            break
    order, warm = list(range(len(models))), time.perf_counter()
    times: list[list[float]] = [[] for _ in models]
    busy: list[list[float]] = [[] for _ in models]
    while len(times[0]) < rounds or time.perf_counter() - warm < least:
        feed = next(feeds)
        for index in order:
            run, ready = models[index].runner, models[index].ready(used[index].given(feed))
            begin, own = time.perf_counter(), time.thread_time()
            outputs = run(ready)
            times[index].append((time.perf_counter() - begin) * 1000.0)
            busy[index].append((time.thread_time() - own) * 1000.0)
            used[index].gave(outputs)
        order.reverse()
        if time.perf_counter() - start > seconds:
            break
    return tuple(_timing(times[0], *own) for own in zip(times, busy, strict=True))


def latency(
    before: Called,
    after: Called,
    feed: Feed | Sequence[Feed],
    *,
    threads: int = 1,
    seconds: float = 2.0,
) -> Latency:
    """Times two models against each other; both were opened with `threads` threads."""
    old, new = timings([before, after], feed, seconds=seconds, least=_LEAST)
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


def _timing(first: Sequence[float], own: Sequence[float], busy: Sequence[float]) -> Timing:
    ratios = [one / max(other, 1e-9) for one, other in zip(first, own, strict=True)]
    return Timing(
        ms=statistics.median(own),
        ratio=statistics.median(ratios),
        ratio_quartiles=_quartiles(ratios),
        rounds=len(own),
        quartiles_ms=_quartiles(own),
        busy_ms=statistics.median(busy),
    )


def _quartiles(times: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(times, (0.25, 0.75))
    return float(low), float(high)


@dataclass(frozen=True)
class NodeTime:
    """The time of a node in the runs that reach it, on one thread.

    Attributes:
        ms: milliseconds per run, over all iterations if it is in a loop.
        share: share of the time of a run without profiling.
        feed: the number of the first feed whose run reached it.
    """

    ms: float
    share: float
    feed: int


@dataclass(frozen=True)
class Profile:
    """The times of some nodes.

    Attributes:
        nodes: by key; without those that no run reached, or that onnxruntime fused into another.
        runs: the microseconds of each run, and those of the nodes that it reached, by key.
    """

    nodes: Mapping[str, NodeTime]
    runs: Sequence[tuple[float, Mapping[str, float]]]

    def share_of(self, keys: Iterable[str]) -> float:
        """The share of some nodes together in the runs that reach one; 0 if none does."""
        wanted = set(keys)
        spent = [
            (sum(own for key, own in nodes.items() if key in wanted), whole)
            for whole, nodes in self.runs
            if not wanted.isdisjoint(nodes)
        ]
        return _share(*map(_middle, zip(*spent, strict=True))) if spent else 0.0


_MARK = re.compile(rf"{OWN}timed_\d+")
_KERNEL = "_kernel_time"
_RUN = "model_run"
# Nodes converted to another layout are renamed after the tensor that they make.
_LAYOUT = re.compile(r"_nchwc(_token_\d+)?$")


@dataclass(frozen=True)
class _Marked:
    """Maps events of onnxruntime's profile back to nodes.

    Attributes:
        names: their keys, by the names that they were given.
        makers: their operators and keys, by the tensors that they make, alone or fused with others.
    """

    names: Mapping[str, str]
    makers: Mapping[str, list[tuple[str, str]]]

    def key(self, event: Mapping[str, Any]) -> str | None:
        """The key of the marked node whose kernel an event is about, or None."""
        label = str(event.get("name"))
        if not label.endswith(_KERNEL):
            return None
        mark = _MARK.search(label)  # onnxruntime adds words to the names of what it fuses
        if mark is not None:
            return self.names.get(mark[0])
        made, renamed = _LAYOUT.subn("", label.removesuffix(_KERNEL))
        if not renamed:
            return None
        name = str(event.get("args", {}).get("op_name"))
        return next((key for op, key in self.makers.get(made, []) if name.endswith(op)), None)


def _mark(nodes: Mapping[str, gs.Node], keys: Sequence[str]) -> _Marked:
    names: dict[str, str] = {}
    makers: dict[str, list[tuple[str, str]]] = {}
    for number, key in enumerate(keys):
        node = nodes[key]
        node.name = f"{OWN}timed_{number}"
        names[node.name] = key
        for tensor in _fusible(node):
            makers.setdefault(tensor, []).append((node.op, key))
    return _Marked(names, makers)


def _fusible(node: gs.Node) -> Iterator[str]:
    """The tensors that a node makes, alone or fused with the nodes after it.

    What onnxruntime fuses depends on its version; never two of the node's own operator.
    """
    last = node
    while len(last.outputs) == 1:
        (tensor,) = last.outputs
        yield tensor.name
        if len(tensor.outputs) != 1 or tensor.outputs[0].op == node.op:
            return
        last = tensor.outputs[0]


def node_times(
    document: Document, keys: Sequence[str], feeds: Iterable[Feed], name: str
) -> Profile:
    """Times nodes while the whole model runs, optimized as for users.

    Profiling takes time, many times that of a small node. So each profiled run is followed by one
    without profiling, which gives the time of the run, and nodes that do nothing show what an event
    adds to the time of its node.

    Args:
        document: the model; not modified.
        keys: keys of the nodes, see `walk.node_key`.
        feeds: feeds to run; the first few take turns.
        name: the model's name in errors.

    Raises:
        PruneError: the model does not run on them.
    """
    marked = document.copy()
    nodes = nodes_by_key(marked.graph)
    found = _mark(nodes, keys)
    given = list(islice(feeds, _FEEDS))
    rounds = min(_ROUNDS, max(_EVENTS // (len(nodes) * len(given)), 1))
    whole, events = _profiled(marked, given, rounds, name)
    runs = list(zip(whole, _by_run(events, found, _note_time()), strict=True))
    return Profile(_averages(runs, len(given)), runs)


def _profiled(
    model: Document | onnx.ModelProto, feeds: Sequence[Feed], rounds: int, name: str
) -> tuple[list[float], list[dict[str, Any]]]:
    """Microseconds of runs without profiling, and the events of as many runs with it, in order."""
    times: list[float] = []
    with temporary_folder() as folder:
        runner = Runner(model, profile=Path(folder) / "times", name=name)
        plain = Runner(model, name=name)
        for feed in feeds:  # warms up
            runner(feed), plain(feed)
        start = time.perf_counter()
        while not times or (
            len(times) < rounds * len(feeds) and time.perf_counter() - start < _SECONDS
        ):
            for feed in feeds:
                runner(feed)
                begin = time.perf_counter()
                plain(feed)
                times.append((time.perf_counter() - begin) * 1e6)
        with written_in(folder):
            events = _notes(runner.profiled())
    ends = [at for at, event in enumerate(events) if event.get("name") == _RUN]
    return times, events[ends[len(feeds) - 1] + 1 :]


def _notes(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # onnxruntime does not report that it cannot write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    return found


@cache
def _note_time() -> float:
    """Microseconds by which profiling seems to prolong a node."""
    value = helper.make_tensor_value_info("0", TensorProto.FLOAT, ["n"])
    chains = [
        helper.make_model(
            helper.make_graph(
                [helper.make_node("Neg", [str(n)], [str(n + 1)]) for n in range(count)],
                "idle",
                [value],
                [helper.make_tensor_value_info(str(count), TensorProto.FLOAT, ["n"])],
            ),
            opset_imports=[helper.make_opsetid("", 14)],
            ir_version=8,
        )
        for count in (_IDLE, 1)
    ]
    feed = {"0": np.zeros(1, np.float32)}
    whole, events = _profiled(chains[0], [feed], _ROUNDS, "nodes that do nothing")
    single, _ = _profiled(chains[1], [feed], _ROUNDS, "nodes that do nothing")
    noted = [float(event["dur"]) for event in events if str(event["name"]).endswith(_KERNEL)]
    return max(_middle(noted) - (_middle(whole) - _middle(single)) / (_IDLE - 1), 0.0)


def _middle(values: Iterable[float]) -> float:
    """The mean of the middle half: times are whole microseconds, and some runs are disturbed."""
    ordered = sorted(values)
    rest = len(ordered) // 4
    return statistics.fmean(ordered[rest : len(ordered) - rest])


def _share(own: float, whole: float) -> float:
    return min(max(own, 0.0) / max(whole, 1e-9), 1.0)


def _by_run(
    events: Iterable[Mapping[str, Any]], marked: _Marked, note: float
) -> list[dict[str, float]]:
    """For each run, the microseconds of the nodes that it reached, by key.

    Args:
        note: microseconds to subtract for each event.
    """
    runs: list[dict[str, float]] = []
    spent: dict[str, float] = {}
    for event in events:  # the event of a run follows those of its nodes
        if event.get("name") == _RUN:
            runs.append(spent)
            spent = {}
        node = marked.key(event)
        if node is not None:
            spent[node] = spent.get(node, 0.0) + float(event.get("dur", 0)) - note
    return runs


def _averages(runs: Sequence[tuple[float, dict[str, float]]], feeds: int) -> dict[str, NodeTime]:
    found: dict[str, list[tuple[float, float, int]]] = {}
    for number, (whole, spent) in enumerate(runs):
        for key, own in spent.items():
            found.setdefault(key, []).append((own, whole, number % feeds))
    return {
        key: NodeTime(
            max(own, 0.0) / 1000.0,
            _share(own, _middle(whole for _, whole, _ in times)),
            min(feed for _, _, feed in times),
        )
        for key, times in found.items()
        for own in [_middle(own for own, _, _ in times)]
    }
