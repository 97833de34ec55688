"""What single nodes take of a model's time."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.runner import Feed, Runner
from onnx_rnn_prune.model.scratch import temporary_folder
from onnx_rnn_prune.model.walk import nodes_by_key

# Most feeds that are tried for one that comes by a node.
_FEEDS = 8
_ROUNDS = 20
_SECONDS = 1.0
# About so many notes are read, each of which takes as long as many a node.
_EVENTS = 40_000


@dataclass(frozen=True)
class NodeTime:
    """What a node takes of the runs that come by it: one thread, the median over runs.

    To take notes costs time, too: where a whole run takes microseconds, the share is a lower bound.

    Attributes:
        ms: milliseconds of a run; of all turns where it is in a loop.
        share: of the run's time.
        feed: the number of the first feed whose run came by it.
    """

    ms: float
    share: float
    feed: int


@dataclass(frozen=True)
class Profile:
    """What some nodes take of the runs that come by one of them.

    Attributes:
        nodes: by key; those that no run comes by, and those that onnxruntime fused, are missing.
        share: of all of them together, the median over runs; 0 where there are none.
    """

    nodes: Mapping[str, NodeTime]
    share: float


def node_times(
    document: Document, keys: Sequence[str], feeds: Iterable[Feed], name: str
) -> Profile:
    """Times nodes while the whole model runs, as onnxruntime rewrites it for users.

    Args:
        document: the model; it is not changed.
        keys: of the nodes, see `walk.node_key`.
        feeds: what to run; the first few are taken, in turns.
        name: how errors call the model.

    Raises:
        PruneError: the model does not run on them.
    """
    marked = document.copy()
    nodes, names = nodes_by_key(marked.graph), {}
    for number, key in enumerate(keys):
        nodes[key].name = f"{OWN}timed_{number}"
        names[nodes[key].name] = key
    given = list(islice(feeds, _FEEDS))
    with temporary_folder() as folder:
        runner = Runner(marked, profile=Path(folder) / "times", name=name)
        for feed in given:  # warms up; these runs are left out
            runner(feed)
        start, count = time.perf_counter(), 0
        rounds = min(_ROUNDS, max(_EVENTS // (len(nodes) * len(given)), 1))
        while count < rounds and (count == 0 or time.perf_counter() - start < _SECONDS):
            for feed in given:
                runner(feed)
            count += 1
        events = json.loads(runner.profiled().read_text("utf-8"))
    runs = _by_run(events, names)[len(given) :]
    shares = [_share(sum(spent.values()), whole) for whole, spent in runs if spent]
    return Profile(_medians(runs, len(given)), statistics.median(shares) if shares else 0.0)


def _share(own: float, whole: float) -> float:
    return own / max(whole, own, 1e-9)


def _by_run(
    events: Iterable[Mapping[str, object]], names: Mapping[str, str]
) -> list[tuple[float, dict[str, float]]]:
    """For each run its microseconds, and those of the nodes that it came by, by key."""
    runs: list[tuple[float, dict[str, float]]] = []
    spent: dict[str, float] = {}
    for event in events:  # a run is noted when it ends, behind its nodes
        label, duration = str(event.get("name")), float(str(event.get("dur", 0)))
        if label == "model_run":
            runs.append((duration, spent))
            spent = {}
        node = names.get(label.removesuffix("_kernel_time"))
        if node is not None and label.endswith("_kernel_time"):
            spent[node] = spent.get(node, 0.0) + duration
    return runs


def _medians(runs: Sequence[tuple[float, dict[str, float]]], feeds: int) -> dict[str, NodeTime]:
    found: dict[str, list[tuple[float, float, int]]] = {}
    for number, (whole, spent) in enumerate(runs):
        for key, own in spent.items():
            found.setdefault(key, []).append((own, _share(own, whole), number % feeds))
    return {
        key: NodeTime(
            statistics.median(own for own, _, _ in times) / 1000.0,
            statistics.median(share for _, share, _ in times),
            min(feed for _, _, feed in times),
        )
        for key, times in found.items()
    }
