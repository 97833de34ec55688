"""A loss of labels, tried before any work is done."""

from __future__ import annotations

from dataclasses import replace

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.recovery.distill.configuration import read_loss, require_torch
from onnx_rnn_prune.study.feeding import Data
from onnx_rnn_prune.study.opening import Opened
from onnx_rnn_prune.trace.states import plain_outputs


def labelled(data: Data, loss: object, opened: Opened, *learning: bool) -> Data:
    """The data with a loss of the labels in them.

    Args:
        data: feeds.
        loss: as the user gives it; None for none.
        opened: the original, on which the loss is tried.
        learning: whether what could learn from the loss is asked for.

    Raises:
        PruneError: there is no such loss, or nothing learns from it; PyTorch, data or labels are
            missing, or those of the first feed that has some and the loss do not suit each other.
    """
    found = read_loss(loss)
    if found is None:
        return data
    if not any(learning):
        raise PruneError(
            "nothing learns from it",
            where="--loss",
            remedy="add --criterion=taylor or fisher, or --recover=distill, or leave it out",
        )
    require_torch("--loss")
    if not data.given:
        raise PruneError("there is no data", where="--loss", remedy="pass --data with labels")
    first = next((feed for feed in data.fitting if feed.labels is not None), None)
    if first is None:
        raise PruneError(
            "no feed to learn from has labels",
            where=data.fitting.source,
            remedy="put an array 'labels' beside the inputs of each feed, or leave --loss out",
        )
    found.of_runs(opened.run(), [first], plain_outputs(opened.document))
    return replace(data, loss=found)
