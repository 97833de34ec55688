"""How many work at a search, and where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

from threadpoolctl import threadpool_limits

from onnx_rnn_prune.arguments import for_machine
from onnx_rnn_prune.data import absolute
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.search.cluster import cluster
from onnx_rnn_prune.search.workers import Here, Workers, processes


@dataclass(frozen=True)
class Crew:
    """How many work at a search, and where.

    Attributes:
        jobs: processes on this machine; with one, all is done in the caller's.
        cluster: the address of a Dask scheduler, whose workers do all instead.
    """

    jobs: int = 1
    cluster: str | None = None

    @contextmanager
    def open(self) -> Iterator[Workers]:
        """The workers, while they are needed; this process, too, multiplies with one thread."""
        with threadpool_limits(1, user_api="blas"), self._workers() as workers:
            yield workers

    def reachable(self, source: object) -> object:
        """The same data for workers that run in another folder."""
        return source if self.cluster is None else absolute(source)

    def _workers(self) -> AbstractContextManager[Workers]:
        if self.cluster is not None:
            return cluster(self.cluster)
        return nullcontext(Here()) if self.jobs == 1 else processes(self.jobs)


def read_crew(jobs: object, address: object) -> Crew:
    """Arguments as values that mean something.

    Raises:
        PruneError: one of them means nothing, or Dask is missing, which is needed.
    """
    count = for_machine(jobs, "--jobs")
    if address is None:
        return Crew(count)
    if not isinstance(address, str) or not address:
        raise PruneError(
            f"{address!r} is no address", where="--cluster", remedy="give tcp://host:port"
        )
    if count != 1:
        raise PruneError(
            "both say where trials are made",
            where="--jobs and --cluster",
            remedy="leave one of them out; a cluster has as many workers as were started",
        )
    if find_spec("distributed") is None:
        raise PruneError(
            "needs Dask, which is not installed",
            where="--cluster",
            remedy="run pip install 'onnx_rnn_prune[cluster]'",
        )
    return Crew(cluster=address)
