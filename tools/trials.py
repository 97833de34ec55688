"""Trials of pruning methods on models with a task, and a file of outcomes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx

import onnx_rnn_prune
from onnx_rnn_prune import prune
from onnx_rnn_prune.errors import PruneError
from tasks import TASKS
from time_limit import TooLong, time_limit

TOOLS = Path(__file__).resolve().parent
MEASURING = ("tasks.py", "segmentation.py", "speech.py", "sample_metrics.py", "bench_nsnet2.py")


@dataclass(frozen=True)
class Method:
    """Arguments of `prune`; defaults are those with data, without training."""

    criterion: str = "reconstruction"
    recover: str = "lstsq"
    allocate: str = "uniform"
    steps: int = 1
    per: str = "units"
    schedule: str = "hard"
    rank: str | None = None
    sparsify: str | None = None
    sparsify_by: str | None = None
    quantize: str | None = None
    distill_minutes: float = 2.0

    @property
    def trains(self) -> bool:
        """Whether it uses gradient descent, which costs far more."""
        return self.recover == "distill"

    @property
    def ways(self) -> list[str]:
        """How the cut is allocated and scheduled, and what else is done to the model."""
        parts = [self.allocate if self.per == "units" else f"{self.allocate} per {self.per}"]
        if self.schedule != "hard":
            parts.append(f"{self.schedule} in {self.steps} steps")
        elif self.steps > 1:
            parts.append(f"{self.steps} steps")
        parts += [] if self.rank is None else [f"rank {self.rank}"]
        parts += [] if self.sparsify is None else [f"zeros {self.sparsify} by {self.sparsify_by}"]
        parts += [] if self.quantize is None else [self.quantize]
        return parts

    def __str__(self) -> str:
        ways = [way for way in self.ways if way != "uniform"]
        return ", ".join([self.criterion, *ways, f"recovery {self.recover}"])


@dataclass(frozen=True)
class Trial:
    """One model cut by one method; no method means the original.

    Attributes:
        task: name of the model.
        keep: share of units that stay.
        seed: draws the calibration data, and is passed to `prune`.
        method: how it is cut.
    """

    task: str
    keep: str = "100%"
    seed: int = 0
    method: Method | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial.

    Attributes:
        trial: the trial.
        code: the code that measured it, see `fingerprint`.
        value: the task's metric; None where there is none.
        reason: why there is none.
        used: the recovery that was finally used.
        seconds: time for choosing, cutting and proving.
    """

    trial: Trial
    code: str
    value: float | None
    reason: str = ""
    used: str = ""
    seconds: float = 0.0


def fingerprint() -> str:
    """A checksum of the package's code and of the measuring code."""
    package = Path(str(onnx_rnn_prune.__file__)).parent
    digest = hashlib.sha256()
    for path in [*sorted(package.rglob("*.py")), *(TOOLS / name for name in MEASURING)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def run(folder: Path, trial: Trial, code: str, limit: float) -> Outcome:
    """Prunes and measures; an outcome that is impossible or too slow gets a reason."""
    task, method = TASKS[trial.task], trial.method
    try:
        if method is None:
            return Outcome(trial, code, task.score(folder, onnx.load(task.path(folder))))
        feeds = task.feeds(folder, trial.seed)
        start = time.perf_counter()
        with time_limit(limit):
            result = prune(
                task.path(folder), keep=trial.keep, data=feeds, seed=trial.seed, **asdict(method)
            )
        seconds = time.perf_counter() - start
        used = str(result.report["recovery"]["used"])
        return Outcome(trial, code, task.score(folder, result.model), "", used, seconds)
    except (PruneError, TooLong) as error:
        return Outcome(trial, code, None, reason=str(error))


@dataclass
class Cache:
    """A file with one outcome per line; the last one of a trial counts.

    Args:
        path: of the file, which need not exist.
        code: outcomes of other code are ignored; "" accepts any.
    """

    path: Path
    code: str
    outcomes: dict[Trial, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            for line in self.path.read_text("utf-8").splitlines():
                outcome = _parse(json.loads(line))
                if outcome.code == self.code or not self.code:
                    self.outcomes[outcome.trial] = outcome

    def add(self, outcome: Outcome) -> None:
        """Stores an outcome; one without a value will be tried again."""
        self.outcomes[outcome.trial] = outcome
        if outcome.value is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")


def _parse(line: Mapping[str, object]) -> Outcome:
    values = dict(line)
    trial = values.pop("trial")
    assert isinstance(trial, dict)
    method = trial.pop("method")
    return Outcome(
        trial=Trial(**trial, method=None if method is None else Method(**method)),
        **values,  # type: ignore[arg-type]
    )


def run_all(
    folder: Path, trials: Iterable[Trial], cache: Cache, code: str, limit: float, jobs: int
) -> Iterator[Outcome]:
    """Runs the trials missing from the cache, several at a time, and stores their outcomes."""
    missing = [trial for trial in dict.fromkeys(trials) if trial not in cache.outcomes]
    with ProcessPoolExecutor(jobs) as pool:
        running = [pool.submit(run, folder, trial, code, limit) for trial in missing]
        for done in as_completed(running):
            outcome = done.result()
            cache.add(outcome)
            yield outcome
