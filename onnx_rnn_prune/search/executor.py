"""Runs work in this process, in worker processes, or on a Dask cluster.

Work is a function of items, with the same results wherever it runs: they come in the order of the
items, and matrix products, whose rounding depends on the number of threads, use a single one.
"""

# `joblib.Parallel` is unsuitable: its processes form one pool for the whole program, which may be
# the caller's own, outlives a search, and cannot be shut down through its public API; and on a
# cluster, it hangs once no worker is left, and cancels nothing when a search ends.

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import cloudpickle
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from threadpoolctl import threadpool_limits

from onnx_rnn_prune.data import absolute
from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.scratch import temporary_folder, written_in
from onnx_rnn_prune.options import Effort, Inputs

Item = TypeVar("Item")
Result = TypeVar("Result")
# Maps items to results, lazily and in order.
Mapper = Callable[[Sequence[Item]], Iterator[Result]]

# Seconds allowed for a pool to queue items (it takes milliseconds); between a worker's checks that
# its parent is alive; and for a scheduler to answer, and to have workers.
_QUEUEING, _GLANCE, _PATIENCE = 5.0, 0.5, 30


@dataclass(frozen=True, eq=False)
class Work(Generic[Item, Result]):
    """A function, and a recipe to make it in another process.

    Attributes:
        function: for this process.
        recipe: makes the function in another process; sent there once.
    """

    function: Callable[[Item], Result]
    recipe: Callable[[], Callable[[Item], Result]]


class Workers(Protocol):
    """Workers that run work."""

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        """Sends work to all workers; returns a function that maps it over items.

        Raises:
            PruneError: it cannot be sent; or, while iterating over results, a worker raised one or
                no worker is left.
        """


@dataclass(frozen=True)
class Executor:
    """The number of workers of a search, and where they run.

    Attributes:
        jobs: number of processes on this machine; with one, work runs in the caller's.
        cluster: address of a Dask scheduler, whose workers are used instead.
    """

    jobs: int = 1
    cluster: str | None = None

    @staticmethod
    def of(effort: Effort) -> Executor:
        """The executor for the given options.

        Raises:
            PruneError: Dask is needed and missing.
        """
        if effort.cluster is not None and find_spec("distributed") is None:
            raise PruneError(
                "needs Dask, which is not installed",
                where="--cluster",
                remedy="run pip install 'onnx_rnn_prune[cluster]'",
            )
        return Executor(effort.jobs, effort.cluster)

    @contextmanager
    def open(self) -> Iterator[Workers]:
        """Opens the workers; this process, too, multiplies matrices on one thread meanwhile."""
        with threadpool_limits(1, user_api="blas"), self._workers() as workers, _frozen():
            yield workers

    def reachable(self, inputs: Inputs) -> Inputs:
        """The inputs, with paths that workers in another folder can read."""
        if self.cluster is None:
            return inputs
        return replace(inputs, data=absolute(inputs.data), eval_data=absolute(inputs.eval_data))

    def _workers(self) -> AbstractContextManager[Workers]:
        if self.cluster is not None:
            return _cluster(self.cluster)
        return nullcontext(_Here()) if self.jobs == 1 else _processes(self.jobs)


@contextmanager
def _frozen() -> Iterator[None]:
    """Excludes existing objects from garbage collection, which runs after each trial.

    They stay excluded if the caller had frozen some: all can be unfrozen only together.
    """
    before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not before:
            gc.unfreeze()


@dataclass(frozen=True)
class _Packed:
    """A pickled recipe, or the file that holds it; equal ones have equal digests."""

    digest: str
    content: bytes | Path = field(compare=False, repr=False)


def _pack(work: Work[Any, Any], option: str) -> _Packed:
    try:
        content: bytes = cloudpickle.dumps(work.recipe)
    except Exception as error:  # user objects may raise anything
        raise PruneError(
            f"data or metric cannot be sent to other processes ({type(error).__name__}: {error})",
            where=option,
            remedy="give files or module:function, or leave the option out",
        ) from error
    return _Packed(hashlib.sha256(content).hexdigest(), content)


def do(packed: _Packed, item: Any) -> Any:
    """Runs an item in a worker."""
    with np.errstate(all="ignore"):
        return _function(packed)(item)


# A worker keeps the function for the next item. It depends on the argument alone, and at most one
# is kept.
@lru_cache(maxsize=1)
def _function(packed: _Packed) -> Callable[[Any], Any]:
    threadpool_limits(1, user_api="blas")
    held = packed.content
    function: Callable[[Any], Any] = pickle.loads(
        held if isinstance(held, bytes) else held.read_bytes()
    )()
    gc.freeze()
    return function


class _Here:
    """Runs work in this process."""

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        return partial(map, work.function)


@dataclass(frozen=True, eq=False)
class _Processes:
    """Runs work in other processes on this machine; it is sent through a folder."""

    pool: ProcessPoolExecutor
    jobs: int
    folder: Path

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        packed = _pack(work, "--jobs")
        path = self.folder / packed.digest
        assert isinstance(packed.content, bytes)
        with written_in(self.folder):
            path.write_bytes(packed.content)
        return partial(self._done, _Packed(packed.digest, path))

    def _done(self, packed: _Packed, items: Sequence[Any]) -> Iterator[Any]:
        # The pool queues two items per process, and gets no more. It fails if shut down before all
        # its items are queued.
        asked: deque[Future[Any]] = deque()
        try:
            for item in items:
                if len(asked) == 2 * self.jobs:
                    yield asked.popleft().result()
                asked.append(self.pool.submit(do, packed, item))
            while asked:
                yield asked.popleft().result()
        except BrokenExecutor as error:
            raise PruneError(
                "a worker process was killed or ran out of memory",
                where="--jobs",
                remedy="lower it; with --study, a search resumes where it stopped",
            ) from error
        finally:
            end = time.monotonic() + _QUEUEING
            while not all(f.running() or f.done() for f in asked) and time.monotonic() < end:
                time.sleep(0.001)


@contextmanager
def _processes(jobs: int) -> Iterator[Workers]:
    """Opens the given number of worker processes; they end with the context."""
    with temporary_folder() as folder, _modules_from_elsewhere():
        # They are killed in the end, so this folder holds their temporary files.
        own = {"TMPDIR": folder}
        pool = ProcessPoolExecutor(jobs, initializer=_end_with, initargs=(os.getpid(),), env=own)
        try:
            yield _Processes(pool, jobs, Path(folder))
        finally:
            # An interruption may come before a thread of the pool has started, which then cannot be
            # joined; workers left over end with this process.
            with suppress(RuntimeError):
                pool.shutdown(kill_workers=True)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, whatever ended that.

    Linux could send a signal, but would do so already when the parent's starting thread ends.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_GLANCE)
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


@contextmanager
def _modules_from_elsewhere() -> Iterator[None]:
    """Keeps processes started meanwhile from importing modules from the working folder.

    It may be anyone's. They are given this process's module search path. From Python 3.11 on.
    """
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@dataclass(frozen=True, eq=False)
class _Cluster:
    """Runs work on a Dask cluster, which reassigns the items of lost workers.

    Dask is imported only here and only when used.
    """

    client: Any
    address: str

    def send(self, work: Work[Item, Result]) -> Mapper[Item, Result]:
        packed = _pack(work, "--cluster")
        with warnings.catch_warnings():  # about its size; it is sent only once
            warnings.simplefilter("ignore", UserWarning)
            # The result of a task can be recomputed; scattered data would be lost with the workers
            # that hold it.
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
                self.require_workers()
            except ImportError as error:
                raise PruneError(
                    f"a worker lacks a required package ({error})",
                    where=self.address,
                    remedy="install the same packages on all workers",
                ) from error
            except (KilledWorker, CancelledError, OSError) as error:
                raise PruneError(
                    f"the cluster gave up on a trial ({type(error).__name__}: {error})",
                    where=self.address,
                    remedy="check its logs; with --study, a search resumes where it stopped",
                ) from error

    def require_workers(self) -> None:
        """Waits until there is a worker."""
        from distributed import TimeoutError

        try:
            self.client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise PruneError(
                "the cluster has no workers",
                where=self.address,
                remedy=f"start some with `dask worker {self.address}`",
            ) from error


def _same(packed: _Packed) -> _Packed:
    return packed


@contextmanager
def _cluster(address: str) -> Iterator[Workers]:
    """The workers of a scheduler."""
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
        found = _Cluster(client, address)
        found.require_workers()
        yield found
