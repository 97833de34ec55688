"""Work on a Dask cluster, which is imported only here and only where it is used."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.search.workers import (
    InMemory,
    Item,
    Mapper,
    Result,
    Work,
    Workers,
    do,
    pack,
)

# Seconds for a scheduler to answer, and for workers to be there.
_PATIENCE = 30


@dataclass(frozen=True, eq=False)
class Cluster:
    """Workers of a Dask cluster do the work; what one leaves undone, Dask gives to another.

    Attributes:
        client: of `distributed`.
        address: of the scheduler.
    """

    client: Any
    address: str

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        content = pack(work.recipe, "--cluster")
        packed = InMemory(hashlib.sha256(content).hexdigest(), content)
        with warnings.catch_warnings():  # of its size; it is sent but once
            warnings.simplefilter("ignore", UserWarning)
            # As the result of a task it can be made again, which what is scattered cannot: that
            # is lost with the workers that hold it.
            sent = self.client.submit(_same, packed, pure=False)
        return partial(self._done, sent)

    def _done(self, sent: Any, items: Sequence[Any]) -> Iterator[Any]:
        for future in self.client.map(do, [sent] * len(items), items, pure=False):
            yield self._result(future)

    def _result(self, future: Any) -> Any:
        from distributed import KilledWorker, TimeoutError

        while True:
            try:
                return future.result(timeout=_PATIENCE)
            except PruneError:
                raise
            except TimeoutError:
                _require_workers(self.client, self.address)
            except ImportError as error:
                raise PruneError(
                    f"a worker lacks what it needs ({error})",
                    where=self.address,
                    remedy="install the same packages on all workers",
                ) from error
            except (KilledWorker, CancelledError, OSError) as error:
                raise PruneError(
                    f"the cluster gave a trial up ({type(error).__name__}: {error})",
                    where=self.address,
                    remedy="look at its logs; with --study, a search goes on where it stopped",
                ) from error


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """The workers of a scheduler.

    Raises:
        PruneError: it does not answer, or has no workers.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise PruneError(
            f"no Dask scheduler answers ({error})",
            where=address,
            remedy="start one with `dask scheduler`, and give its address: tcp://host:port",
        ) from error
    with client:
        _require_workers(client, address)
        yield Cluster(client, address)


def _require_workers(client: Any, address: str) -> None:
    from distributed import TimeoutError

    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        raise PruneError(
            "the cluster has no workers",
            where=address,
            remedy=f"start some with `dask worker {address}`",
        ) from error


def _same(packed: InMemory) -> InMemory:
    return packed
