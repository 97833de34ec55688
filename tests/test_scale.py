"""Searches in several processes: the same result wherever trials run, whatever is killed."""

import contextlib
import gc
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_rnn_prune
from onnx_rnn_prune.calibration import open_three
from onnx_rnn_prune.errors import ConstraintError, PruneError
from onnx_rnn_prune.evidence import moments
from onnx_rnn_prune.evidence.evidence import Sampling, Tally
from onnx_rnn_prune.evidence.moments import Moments, MomentStore
from onnx_rnn_prune.opened_model import open_model
from onnx_rnn_prune.options import Inputs
from onnx_rnn_prune.search import executor
from onnx_rnn_prune.search.executor import Executor, Work
from onnx_rnn_prune.search.study import Study
from onnx_rnn_prune.search.worker_context import calibrated
from onnx_rnn_prune.traced_model import trace_model
from stacked import WIDTH, stacked

LIMIT = 0.6


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(15, 2, WIDTH)).astype(np.float32)} for _ in range(12)]


@pytest.fixture(scope="module")
def folder(feeds, tmp_path_factory):
    path = tmp_path_factory.mktemp("scale") / "clips"
    path.mkdir()
    for number, feed in enumerate(feeds):
        np.savez(path / f"{number}.npz", **feed)
    return path


def searched(feeds, **choices):
    return onnx_rnn_prune.search(stacked(None), data=feeds, max_nrmse=LIMIT, **choices)


def outcome(result):
    """All that must not depend on where trials ran."""
    return result.report["search"]["candidates"], result.plan.to_json()


@pytest.fixture(scope="module")
def alone(feeds):
    return outcome(searched(feeds))


@pytest.fixture(scope="module")
def dask():
    """A scheduler and two workers, each a process of its own."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        yield cluster


def test_two_processes_find_what_one_finds(feeds, alone):
    assert len(alone[0]) > 15
    assert outcome(searched(feeds, jobs=2)) == alone


def test_what_the_caller_froze_stays_out_of_garbage_collection():
    gc.freeze()
    before = gc.get_freeze_count()
    with Executor().open():
        pass
    assert gc.get_freeze_count() >= before


def test_a_cluster_finds_what_one_process_finds(folder, alone, dask, monkeypatch):
    """Also where data lie in a folder whose path holds from this one only."""
    monkeypatch.chdir(folder.parent)
    assert outcome(searched("clips", cluster=dask.scheduler_address)) == alone


def test_work_of_a_killed_worker_is_done_by_another(feeds, alone, dask):
    from distributed import Client

    killed = []

    def kill(client):
        while not killed:
            for worker, tasks in client.processing().items():
                if any(key.startswith("do-") for key in tasks):
                    killed.extend(client.run(os.getpid, workers=[worker]).values())
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.005)

    with Client(dask, set_as_default=False) as client:
        thread = threading.Thread(target=kill, args=(client,))
        thread.start()
        found = outcome(searched(feeds, cluster=dask.scheduler_address))
        thread.join()
    assert killed and found == alone


def test_a_killed_search_leaves_a_cluster_nothing_to_do(folder, dask, tmp_path):
    from distributed import Client

    onnx.save(stacked(None), tmp_path / "m.onnx")
    options = ["--max-nrmse", str(LIMIT), "--cluster", dask.scheduler_address]
    command = ["search", "m.onnx", "--data", folder, "-o", "out.onnx", *options]
    searching = subprocess.Popen([sys.executable, "-m", "onnx_rnn_prune", *command], cwd=tmp_path)

    def tasks(dask_scheduler):
        return [key for key in dask_scheduler.tasks if str(key).startswith("do-")]

    def wait_for(some):
        end = time.monotonic() + 60
        while bool(client.run_on_scheduler(tasks)) != some:
            assert time.monotonic() < end
            time.sleep(0.02)

    with Client(dask, set_as_default=False) as client:
        wait_for(True)
        searching.kill()
        searching.wait()
        wait_for(False)
    assert not (tmp_path / "out.onnx").exists()


# Forked, since that starts at once; nothing was run yet, so there are no threads to lose.
KILLS = """
import os, random, signal, sqlite3, sys, time
from onnx_rnn_prune.api import search
from onnx_rnn_prune.search import problem

problem.predicted = lambda *_: lambda counts: float(sum(counts))  # as in all tests
model, data, study, limit = *sys.argv[1:4], float(sys.argv[4])

def remembered():
    try:
        base = sqlite3.connect(f"file:{study}?mode=ro", uri=True)
        (count,) = base.execute("SELECT count(*) FROM record").fetchone()
        base.close()
        return count
    except sqlite3.OperationalError:
        return 0

kills, draw = 0, random.Random(0)
while kills < 10:
    wanted = remembered() + draw.randrange(3)
    child = os.fork()
    if child == 0:
        search(model, data=data, max_nrmse=limit, study=study)
        os._exit(0)
    ended = 0
    while remembered() < wanted and not ended:
        time.sleep(0.002)
        ended, _ = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(draw.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_search_killed_ten_times_ends_as_one_left_alone(folder, alone, tmp_path):
    study = tmp_path / "study"
    onnx.save(stacked(None), tmp_path / "model.onnx")
    arguments = [tmp_path / "model.onnx", folder, study, LIMIT]
    subprocess.run([sys.executable, "-c", KILLS, *map(str, arguments)], check=True, timeout=120)
    with closing(sqlite3.connect(study)) as base:
        remembered = base.execute("SELECT count(*) FROM record WHERE key LIKE '%trial%'")
        assert remembered.fetchone()[0] > 2
    assert outcome(searched(folder, study=study)) == alone


def running(mark):
    """The processes of this machine that were given a mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found.append(process)
    return found


def until(condition, seconds=60.0):
    """Waits for something."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


BUSY = """
import time
from onnx_rnn_prune.search.executor import Executor
from onnx_rnn_prune.search.executor import Work
def work(item):
    print("begun", flush=True)
    time.sleep(1000)
with Executor(2).open() as workers:
    list(workers.send(Work(work, lambda: work))(range(2)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_workers_that_are_busy_end_with_the_process_that_began_them(tmp_path):
    mark = str(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        env={**os.environ, "MARK_OF_THIS_TEST": mark},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    process.kill()
    process.communicate(timeout=60)  # at the end of what workers may write, too
    until(lambda: not running(mark))


def test_nothing_temporary_is_left_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    onnx_rnn_prune.sensitivity(stacked(None), data=folder, jobs=2)
    gc.collect()
    assert list(tmp_path.glob("onnx_rnn_prune.*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_search_that_is_ended(end, folder, tmp_path):
    """Not its processes, nor their semaphores; where it had the time, not its folders either."""
    scratch, study = tmp_path / "scratch", tmp_path / "study"
    scratch.mkdir()
    onnx.save(stacked(None), tmp_path / "model.onnx")
    mark = f"MARK_OF_THIS_TEST={tmp_path}"
    options = ["--data", folder, "--max-nrmse", str(LIMIT), "--jobs", "2", "--study", study]
    command = ["search", tmp_path / "model.onnx", "-o", tmp_path / "o.onnx", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "onnx_rnn_prune", *command],
        env={**os.environ, "TMPDIR": str(scratch), **dict([mark.split("=")])},
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: study.exists() and study.stat().st_size and len(running(mark)) > 3)
    process.send_signal(end)
    _, said = process.communicate(timeout=60)
    until(lambda: not running(mark))
    assert not list(Path("/dev/shm").glob(f"*loky-{process.pid}-*"))
    assert not (tmp_path / "o.onnx").exists()
    if end == signal.SIGTERM:
        assert (process.returncode, said.split()[-1]) == (143, "Terminated"), said
        assert list(scratch.iterdir()) == []
    Study(study, "any")  # it can be read


def test_errors_in_workers_are_those_of_this_process(feeds):
    own = os.getpid()

    def metric(results):
        if os.getpid() != own:
            raise ValueError("no such thing")
        return float(np.mean([np.abs(outputs["logits"]).max() for _, outputs in results]))

    with pytest.raises(PruneError) as caught:
        onnx_rnn_prune.search(stacked(None), data=feeds, metric=metric, max_drop=0.1, jobs=2)
    assert str(caught.value) == "metric: it failed with ValueError: no such thing; fix it"


def test_a_killed_process_is_one_clear_error():
    def fragile(item):
        if item == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    message = r"^jobs=: a worker process was killed.*study="
    with pytest.raises(PruneError, match=message), Executor(2).open() as workers:
        list(workers.send(Work(fragile, lambda: fragile))(range(20)))


def test_a_failure_ends_the_processes_at_once():
    """Though more is asked for, and those that work at it are busy."""

    def slow(item):
        if item == 1:
            raise PruneError("odd", where="here")
        time.sleep(0.1 if item == 0 else 30.0)

    start = time.perf_counter()
    with pytest.raises(PruneError, match=r"^here: odd$"), Executor(2).open() as workers:
        list(workers.send(Work(slow, lambda: slow))(range(20)))
    assert time.perf_counter() - start < 25.0


def test_workers_that_read_other_data_are_noticed(feeds):
    own = os.getpid()
    data = lambda: feeds if os.getpid() == own else feeds[::-1]  # noqa: E731
    with pytest.raises(PruneError, match=r"a worker reads different data"):
        searched(data, jobs=2)


def test_what_cannot_be_sent_is_said(feeds):
    lock = threading.Lock()

    def data():
        with lock:
            return feeds

    with pytest.raises(PruneError, match=r"^jobs=: data or metric cannot be sent .*TypeError"):
        searched(data, jobs=2)


def test_workers_multiply_with_one_thread_and_give_results_in_order():
    def threads(seconds):
        time.sleep(seconds)
        return seconds, {lib["num_threads"] for lib in blas()}

    waits = [0.3, 0.0, 0.2, 0.0]
    for own in (Executor(), Executor(2)):
        with own.open() as workers:
            found = list(workers.send(Work(threads, lambda: threads))(waits))
        assert found == [(wait, {1}) for wait in waits]


def blas():
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    return [lib for lib in threadpool_info() if lib["user_api"] == "blas"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"jobs": 0}, r"^jobs=: 0 is not a whole number"),
        ({"cluster": 8786}, r"^cluster=: 8786 is not an address"),
        ({"jobs": 2, "cluster": "tcp://127.0.0.1:1"}, r"^jobs= and cluster=: both set"),
        ({"cluster": "nonsense://here"}, r"^nonsense://here: no Dask scheduler answers"),
        ({"cluster": "tcp://127.0.0.1:1"}, r"^tcp://127.0.0.1:1: no Dask scheduler answers"),
    ],
)
def test_places_for_trials_that_mean_nothing(choices, message, feeds, monkeypatch):
    pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr(executor, "_PATIENCE", 1)
    with pytest.raises(PruneError, match=message):
        searched(feeds, **choices)


def test_a_cluster_without_workers_is_said(feeds, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr(executor, "_PATIENCE", 1)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty:
        address = empty.scheduler_address
        with pytest.raises(PruneError, match=r"has no workers; start some with `dask worker tcp"):
            searched(feeds, cluster=address)


def test_dask_is_needed_for_clusters_only(feeds, monkeypatch):
    monkeypatch.setattr(executor, "find_spec", lambda name: None)
    with pytest.raises(PruneError, match=r"^cluster=: needs Dask.*onnx_rnn_prune\[cluster\]"):
        searched(feeds, cluster="tcp://127.0.0.1:1")


@pytest.mark.parametrize("kind", [PruneError, ConstraintError])
def test_errors_travel_whole(kind):
    error = pickle.loads(pickle.dumps(kind("is wrong", where="here", remedy="fix it")))
    assert type(error) is kind and str(error) == "here: is wrong; fix it"
    assert (error.what, error.where, error.remedy) == ("is wrong", "here", "fix it")


@pytest.mark.parametrize("width", [3, 400])  # in memory, in a file
def test_shelves_travel_and_merge(width):
    rng = np.random.default_rng(0)
    samples = {name: rng.normal(size=(40, width)) + 3 for name in "ab"}
    first = MomentStore.of({name: Moments.of(part[:11]) for name, part in samples.items()})
    rest = MomentStore.of({name: Moments.of(part[11:]) for name, part in samples.items()})
    first.merge(pickle.loads(pickle.dumps(rest)))
    for name, whole in samples.items():
        wanted, found = Moments.of(whole), first[name]
        assert found.count == 40
        np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-12)
        np.testing.assert_allclose(found.comoment, wanted.comoment, rtol=1e-9, atol=1e-9)


def test_a_wide_matrix_is_added_to_no_more_often_than_it_takes_samples_to_fill_it(monkeypatch):
    """To read and write it in a file takes longer than the products of a few samples."""
    store, added = MomentStore(), list[str]()
    add = MomentStore._add_rows
    monkeypatch.setattr(
        MomentStore,
        "_add_rows",
        lambda self, name, *given: (added.append(name), add(self, name, *given))[1],
    )
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(20, 500)).astype(np.float32) for _ in range(60)]
    for part in parts:
        store.gather("wide", part)
        store.gather("narrow", part[:, :2])
    wanted, found = Moments.of(np.concatenate(parts)), store["wide"]
    assert added == ["wide", "wide"]  # 2.4 MB of samples, 2 MB in the matrix
    np.testing.assert_allclose(found.comoment, wanted.comoment, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("last", [None, 300, 600])
def test_matrices_in_files_hold_what_ones_in_memory_do(last, weighed):
    """Also where more samples come once they were looked at."""
    rng, store = np.random.default_rng(0), MomentStore()
    samples = (rng.normal(size=(90, 600)) + rng.normal(size=600)).astype(np.float32)
    weights = rng.uniform(0.5, 2.0, 90) if weighed else None
    places = rng.permutation(600)[:400]
    for end in (30, 60, 90):
        rows = slice(end - 30, end)
        own, weighed_by = samples[rows], None if weights is None else weights[rows]
        sides = (own, None) if last is None else (own[:, :-last], own[:, -last:])
        store.gather("wide", *sides, weighed_by)
        wanted = Moments.of(samples[:end], last, None if weights is None else weights[:end])
        found = store["wide"]
        assert found.count == pytest.approx(wanted.count)
        np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-12)
        np.testing.assert_allclose(found.comoment, wanted.comoment, rtol=1e-9, atol=1e-9)
        if last is None:
            known = store.covariance("wide", places)
            np.testing.assert_allclose(known, wanted.covariance(places), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(store.variance("wide"), wanted.variance, rtol=1e-9)


@pytest.mark.parametrize("weighed", [False, True])
def test_products_of_very_wide_signals_are_in_single_precision(monkeypatch, weighed):
    monkeypatch.setattr(moments, "_SINGLE", 0)
    rng, store = np.random.default_rng(0), MomentStore()
    samples = (rng.normal(size=(2000, 600)) + 30 * rng.normal(size=600)).astype(np.float32)
    weights = rng.uniform(0.5, 2.0, 2000) if weighed else None
    store.gather("wide", samples, weights=weights)
    wanted, found = Moments.of(samples, weights=weights), store["wide"]
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-12)
    spread = np.sqrt(np.diag(wanted.comoment))
    errors = np.abs(found.comoment - wanted.comoment) / np.outer(spread, spread)
    assert 1e-10 < errors.max() < 1e-5 and np.median(errors) < 1e-7


def test_parts_of_the_data_tell_what_all_of_it_does(feeds):
    opened = open_model(stacked(None))
    data = open_three(opened, Inputs(feeds))
    traced = trace_model(opened, ["first", "second"], data.calibration)
    every = Sampling.whole(data.calibration, traced.readers)
    shards = [replace(every, streams=part) for part in ((0, 1, 2), (3,), (4, 5))]
    parts = [calibrated(traced, data.calibration, shard) for shard in shards]
    merged = reduce(Tally.merge, parts).evidence()
    whole = calibrated(traced, data.calibration, replace(every, streams=tuple(range(6)))).evidence()
    np.testing.assert_allclose(merged.activity, whole.activity, rtol=1e-12)
    assert merged.emphasis.keys() == whole.emphasis.keys()
    for name, emphasis in whole.emphasis.items():
        np.testing.assert_allclose(merged.emphasis[name], emphasis, rtol=1e-6)
