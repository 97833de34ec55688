"""Every command keeps its promises on broken and hostile files: see `fuzzing`.

`FUZZ_SEED` and `FUZZ_COUNT` say which cases, and how many; what is printed names the seeds.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FUZZING = Path(__file__).with_name("fuzzing.py")


def fuzz(*options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    paths = [str(FUZZING.parent.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, FUZZING, *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="cases run in forks of one process")
def test_some_cases():
    """The same ones each time, so that a failure is of what was changed."""
    fuzz("--seed", 1, "--count", 40, "--seconds", 25)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="cases run in forks of one process")
def test_many_cases():
    """New ones each time."""
    seed = os.environ.get("FUZZ_SEED") or int(time.time()) * 1000
    fuzz("--seed", seed, "--count", os.environ.get("FUZZ_COUNT", 2000))
