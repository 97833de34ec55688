"""Whether PyTorch is there."""

from __future__ import annotations

from importlib.util import find_spec

from onnx_rnn_prune.errors import PruneError


def require_torch(where: str) -> None:
    """Refuses where PyTorch is missing.

    Args:
        where: the option that needs it.

    Raises:
        PruneError: it is not installed.
    """
    if find_spec("torch") is None:
        raise PruneError(
            "needs PyTorch, which is not installed",
            where=where,
            remedy="run pip install 'onnx_rnn_prune[distill]'",
        )
