"""What the original gives for feeds that many candidates are judged by: it runs on each once."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from onnx_rnn_prune.data import Feeds
from onnx_rnn_prune.model.runner import Array, Feed, Runner

# What is kept on disk; feeds that follow are run on each time.
_MOST_BYTES = 1 << 30


class Answers:
    """Feeds, each with what a model gives for it.

    What it gives lies in a scratch folder, so that memory does not grow with the number of feeds.

    Args:
        load: the model; it is loaded only for as long as something is not known yet.
        feeds: the same ones each time.
    """

    def __init__(self, load: Callable[[], Runner], feeds: Feeds) -> None:
        self._load, self._feeds = load, feeds
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._known = self._bytes = 0

    def __iter__(self) -> Iterator[tuple[Feed, dict[str, Array]]]:
        runner = None
        for number, feed in enumerate(self._feeds):
            path = Path(self._folder.name) / str(number)
            if number < self._known:
                yield feed, pickle.loads(path.read_bytes())
                continue
            runner = runner or self._load()
            found = runner(feed)
            if number == self._known and self._bytes < _MOST_BYTES:
                self._bytes += path.write_bytes(pickle.dumps(found))
                self._known += 1
            yield feed, found
