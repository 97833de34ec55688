"""Running one operator by itself, in ONNX's reference implementation.

Used where an operator only moves entries: there the reference is exact for every type, integers
included, which onnxruntime's kernels do not all take.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.model.writing import make_attribute


def evaluate(node: gs.Node, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs of a node for given inputs; None stands for an omitted input.

    Raises:
        PruneError: it is no such operator as ONNX has, whatever onnxruntime makes of it.
    """
    names = ["" if value is None else f"i{slot}" for slot, value in enumerate(inputs)]
    results = [f"o{slot}" for slot in range(len(node.outputs))]
    message = onnx.helper.make_node(node.op, names, results, domain=node.domain or "")
    message.attribute.extend(make_attribute(name, value) for name, value in node.attrs.items())
    feeds = {name: value for name, value in zip(names, inputs, strict=True) if name}
    # A whole model, since a node by itself would be taken for one of the newest opset.
    graph = onnx.helper.make_graph(
        [message],
        "one_node",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in results],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        outputs = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # it trusts nodes, and fails in many ways on those that are wrong
        raise PruneError(
            f"it is not a valid {node.op}: {error}",
            where=f"node '{node.name or results[0]}'",
            remedy="check the file with onnx.checker, and export it again",
        ) from error
    return [np.asarray(output) for output in outputs]
