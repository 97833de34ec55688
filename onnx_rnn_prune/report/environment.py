"""Where something was measured: what another run needs to compare."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata

# Those whose versions change what a model computes, or how fast.
_PACKAGES = ("onnx_rnn_prune", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy")


def environment() -> dict[str, str | int | None]:
    """The day (UTC), versions, system and number of processors; None where that is not known."""
    found: dict[str, str | int | None] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "python": platform.python_version(),
    }
    found |= {name: _version(name) for name in _PACKAGES}
    return {**found, "platform": platform.platform(), "cpu_count": os.cpu_count()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
