"""Inputs and outputs of a model: the names, types and sizes that callers must know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_rnn_prune.model.walk import Reads

Dim = int | str | None
# Names that exporters give unknown sizes; two of them need not be equal.
_PLACEHOLDERS = {"", "?", "*", "-1", "none", "unk", "unknown"}


@dataclass(frozen=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: its name in the graph.
        dtype: the NumPy type of its entries (object for strings); None if it is not a tensor (a
            sequence, a map, an optional).
        dims: for each axis a fixed size, the name of an open one, or None; None instead of a tuple
            if even the rank is open.
    """

    name: str
    dtype: np.dtype[Any] | None
    dims: tuple[Dim, ...] | None

    @property
    def sizes(self) -> tuple[int | str, ...]:
        """By axis, a fixed size, or the name of an open one: as declared, or `input[axis]`."""
        dims = enumerate(self.dims or ())
        return tuple(f"{self.name}[{n}]" if dim is None else dim for n, dim in dims)

    def __str__(self) -> str:
        kind = "?" if self.dtype is None else "str" if self.dtype == object else self.dtype.name
        if self.dims is None:
            return f"{self.name}: {kind}"
        sizes = ", ".join("?" if dim is None else str(dim) for dim in self.dims)
        return f"{self.name}: {kind}[{sizes}]"


def inputs(model: onnx.ModelProto) -> tuple[Port, ...]:
    """The inputs that a caller must feed, in order.

    Graph inputs with a default value (an initializer of the same name) are left out.
    """
    defaults = {tensor.name for tensor in model.graph.initializer}
    defaults |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return tuple(_port(value) for value in model.graph.input if value.name not in defaults)


def outputs(model: onnx.ModelProto) -> tuple[Port, ...]:
    """The outputs of the model, in order."""
    return ports(model.graph.output)


def ports(values: Iterable[onnx.ValueInfoProto]) -> tuple[Port, ...]:
    """The ports for some declarations, in order."""
    return tuple(map(_port, values))


def changed_defaults(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """The inputs whose default value (an initializer) an edit changed or left unread.

    Before IR version 4, every initializer had to be listed as an input, so that does not count.
    """
    if before.ir_version < 4:
        return []
    listed = {value.name for value in before.graph.input}
    defaults, edited = (
        {t.name: t for t in model.graph.initializer if t.name in listed}
        for model in (before, after)
    )
    lost = Reads().all(before.graph.node) - Reads().all(after.graph.node)
    return [n for n, t in defaults.items() if n in lost or n not in edited or edited[n] != t]


def _port(value: onnx.ValueInfoProto) -> Port:
    if value.type.WhichOneof("value") != "tensor_type":
        return Port(value.name, None, None)
    tensor = value.type.tensor_type
    dtype = None
    if tensor.elem_type != onnx.TensorProto.UNDEFINED:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    dims = tuple(_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    return Port(value.name, dtype, dims)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        # Some exporters write -1 for a size that may vary.
        return dim.dim_value if dim.dim_value >= 0 else None
    name = dim.dim_param.strip()
    return None if name.lower() in _PLACEHOLDERS else name
