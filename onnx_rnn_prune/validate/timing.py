"""How long models take, measured in the same run as the original, and single nodes of them."""

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

# Most feeds that are tried for one that comes by a node.
_FEEDS = 8
_ROUNDS = 50
_SECONDS = 1.0
# Nodes that do next to nothing, from which the time of a note is known.
_IDLE = 64
# Seconds in which the median ratio of two models of 10 us is known to 0.3 %.
_LEAST = 0.1
# About so many notes are read, each of which takes as long as many a node.
_EVENTS = 15_000


@dataclass(frozen=True)
class Timing:
    """How long one of several models takes for one feed.

    Attributes:
        ms: the median time of a run, in milliseconds.
        ratio: how many times faster it is than the first model: the median over rounds of the first
            one's time / its own, so that a machine that slows down for a while slows both.
        ratio_quartiles: what a quarter and three quarters of these ratios do not exceed.
        quartiles_ms: the times that a quarter and three quarters of the runs do not exceed.
        busy_ms: the median time in which the processor was at a run, and at nothing else between.
    """

    ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int
    quartiles_ms: tuple[float, float]
    busy_ms: float


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
    least: float = 0.0,
) -> tuple[Timing, ...]:
    """Times models against each other: warmed up, interleaved, each round in another order.

    Args:
        models: the models; the first is the one the others are compared with.
        feed: one feed that all of them take, or calls that follow one another and come in turn.
        seconds: about how long to measure in all; slow models get at least one round.
        rounds: the most rounds to run, unless they take less than `least`.
        least: seconds for which to go on in any case: what else the machine does in one moment is
            then not all that is seen of short runs.
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
    """Times two models against each other; `threads` is what both runners were opened with."""
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
    """What a node takes of the runs that come by it, on one thread.

    Attributes:
        ms: milliseconds of a run; of all turns where it is in a loop.
        share: of the time of a run in which nothing is profiled.
        feed: the number of the first feed whose run came by it.
    """

    ms: float
    share: float
    feed: int


@dataclass(frozen=True)
class Profile:
    """What some nodes take of the runs that come by one of them.

    Attributes:
        nodes: by key; those that no run comes by are missing, as are those that onnxruntime fused
            into another node.
        runs: for each run its microseconds, and those of the nodes that it came by, by key.
    """

    nodes: Mapping[str, NodeTime]
    runs: Sequence[tuple[float, Mapping[str, float]]]

    def share_of(self, keys: Iterable[str]) -> float:
        """Of some nodes together, of the runs that come by one; 0 where none does."""
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
# Nodes brought to another layout are named anew, after the tensor that they make.
_LAYOUT = re.compile(r"_nchwc(_token_\d+)?$")


@dataclass(frozen=True)
class _Marked:
    """How nodes are found again in notes that onnxruntime takes.

    Attributes:
        names: their keys, by the names that they were given.
        makers: their operators and keys, by the tensors that they make, alone or fused to others.
    """

    names: Mapping[str, str]
    makers: Mapping[str, list[tuple[str, str]]]

    def key(self, event: Mapping[str, Any]) -> str | None:
        """Of the node whose kernel a note is about, if it is one of them."""
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
    """The tensors that a node makes by itself, and with those behind it that are its only readers.

    Which of them onnxruntime fuses depends on its version; never two of the node's own operator.
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
    """Times nodes while the whole model runs, as onnxruntime rewrites it for users.

    Taking notes takes time, many times as long as a small node. So each profiled run is followed by
    one that is not, whose time is that of the run; and what a note adds to the time of its node is
    known from nodes that do nothing.

    Args:
        document: the model; it is not changed.
        keys: of the nodes, see `walk.node_key`.
        feeds: what to run; the first few are taken, in turns.
        name: how errors call the model.

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
    """Microseconds of runs without notes, and the notes of as many other runs, in order."""
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
    except ValueError as error:  # onnxruntime says nothing where it cannot write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    return found


@cache
def _note_time() -> float:
    """Microseconds that a node seems to take longer because its time is noted."""
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
    """The mean of the middle half: notes are in whole microseconds, and some runs are disturbed."""
    ordered = sorted(values)
    rest = len(ordered) // 4
    return statistics.fmean(ordered[rest : len(ordered) - rest])


def _share(own: float, whole: float) -> float:
    return min(max(own, 0.0) / max(whole, 1e-9), 1.0)


def _by_run(
    events: Iterable[Mapping[str, Any]], marked: _Marked, note: float
) -> list[dict[str, float]]:
    """For each run the microseconds of the nodes that it came by, by key.

    Args:
        note: microseconds of each that are spent on noting it.
    """
    runs: list[dict[str, float]] = []
    spent: dict[str, float] = {}
    for event in events:  # a run is noted when it ends, behind its nodes
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
