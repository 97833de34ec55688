"""Which outputs of a model hold sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx

from onnx_rnn_prune.model import signature
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.edit import OWN
from onnx_rnn_prune.model.external import without_values
from onnx_rnn_prune.operators.recurrent import find_layers

# Entries of the largest constant whose values inference looks at: shapes have no more.
_SHAPES = 64


def time_axes(document: Document) -> dict[str, int]:
    """The outputs that hold time steps, each with the axis on which they lie.

    The size of a layer's first axis has a name, if it may vary, and shape inference carries that
    on to the outputs. What other tensors are declared to be is left aside: many exporters make up a
    name for each, and an outdated size would be believed, however large. A size that is fixed
    tells nothing, nor does one that inference cannot follow.

    Args:
        document: a model whose layers are all laid out with time first.
    """
    model = document.write(partial(without_values, most=_SHAPES))
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    _name_sizes(model.graph.input)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    values = [*inferred.graph.input, *inferred.graph.value_info]
    known = {port.name: port.dims for port in signature.ports(values) if port.dims}
    read = [tensor.name for layer in find_layers(document.graph) if (tensor := layer.input("X"))]
    sizes = {known[name][0] for name in read if name in known}
    # Where batches are said to be as large as sequences are long, there is no telling them apart.
    sizes -= {dim for name in read if name in known for dim in known[name][1:]}
    found = {}
    for port in signature.outputs(inferred):
        axes = [n for n, dim in enumerate(port.dims or ()) if isinstance(dim, str) and dim in sizes]
        if len(axes) == 1:
            found[port.name] = axes[0]
    return found


def _name_sizes(inputs: Sequence[onnx.ValueInfoProto]) -> None:
    """Gives open sizes that have no name of their own one that nothing else has."""
    for value, port in zip(inputs, signature.ports(inputs), strict=True):
        for axis, dim in enumerate(port.dims or ()):
            if dim is None:
                value.type.tensor_type.shape.dim[axis].dim_param = f"{OWN}{port.name}_{axis}"
