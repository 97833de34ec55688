"""Adapts the sizes in an operator's parameters to tensors that were cut.

Shape arithmetic goes on as if nothing had been cut: Shape reports full lengths, and only an
operator that moves the shorter tensor gets its parameter scaled down. So a size may be computed in
any way, and used for anything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_value, require_constant
from onnx_rnn_prune.model.edit import (
    add_constant,
    fresh_name,
    insert_before,
    insert_node,
    replace_constant,
    set_input,
)
from onnx_rnn_prune.model.runner import Array
from onnx_rnn_prune.operators.base import Cut


def resize_target(graph: gs.Graph, node: gs.Node, cuts: Mapping[str, Cut]) -> None:
    """Reshape and Expand: scales the entry for the axis that gets shorter."""
    cut = cuts.get(node.outputs[0].name)
    if cut is None:
        return
    new, old = cut.ratio
    if len(node.inputs) == 1:  # Reshape before opset 5
        target = np.array(node.attrs["shape"])
        node.attrs["shape"] = _scaled(target, cut.axis, new, old).tolist()
        return
    target_or_none = constant_value(node.inputs[1], graph.opset)
    if target_or_none is None:
        set_input(node, 1, _rescaled(graph, node.inputs[1], cut, new, old, before=node))
        return
    position = cut.axis - (cut.rank - target_or_none.size)
    if position >= 0:
        scaled = _scaled(target_or_none, position, new, old)
        replace_constant(graph, node, 1, scaled)


def _scaled(target: Array, position: int, new: int, old: int) -> npt.NDArray[np.int64]:
    result = np.array(target, dtype=np.int64)
    if result[position] > 0 and result[position] % old == 0:
        result[position] = result[position] // old * new
    return result


def _rescaled(
    graph: gs.Graph, sizes: gs.Tensor, cut: Cut, new: int, old: int, *, before: gs.Node
) -> gs.Tensor:
    """Adds nodes that scale one entry n of a computed shape from a multiple of `old` down to `new`.

    The result is n - n / old * (old - new), in lowest terms and rounded towards zero: -1 (the
    rest), 0 (unchanged) and 1 (broadcast) stay as they are.
    """
    common = math.gcd(new, old)
    per, less = np.ones(cut.rank, dtype=np.int64), np.zeros(cut.rank, dtype=np.int64)
    per[cut.axis], less[cut.axis] = old // common, (old - new) // common
    tensor = sizes
    for op, factor in (("Div", per), ("Mul", less)):
        tensor = _computed(graph, op, sizes, [tensor, factor], before)
    return _computed(graph, "Sub", sizes, [sizes, tensor], before)


def _computed(
    graph: gs.Graph, op: str, sizes: gs.Tensor, inputs: list[gs.Tensor | Array], before: gs.Node
) -> gs.Variable:
    name = f"{sizes.name}_{op.lower()}"
    result = gs.Variable(fresh_name(graph, name))
    tensors = [
        item if isinstance(item, gs.Tensor) else add_constant(graph, f"{name}_by", item)
        for item in inputs
    ]
    insert_before(graph, gs.Node(op, result.name, inputs=tensors, outputs=[result]), before=before)
    return result


def resize_shape(graph: gs.Graph, node: gs.Node, cuts: Mapping[str, Cut]) -> None:
    """Shape: reports the full length, if that entry may be read."""
    cut = cuts[node.inputs[0].name]
    first = int(node.attrs.get("start", 0)) % cut.rank
    last = int(node.attrs.get("end", cut.rank))
    last = last + cut.rank if last < 0 else min(last, cut.rank)
    position = cut.axis - first
    if not first <= cut.axis < last or not _entry_read(node.outputs[0], position, last - first):
        return
    full = node.outputs[0]
    inner = gs.Variable(fresh_name(graph, f"{full.name}_cut"))
    node.outputs[0] = inner
    new, old = cut.ratio
    factors = np.ones((2, last - first), dtype=np.int64)
    factors[:, position] = old, new
    product = gs.Variable(fresh_name(graph, f"{full.name}_mul"))
    for op, factor, source, result in (
        ("Div", factors[1], product, full),
        ("Mul", factors[0], inner, product),
    ):
        name = f"{full.name}_{op.lower()}"
        by = add_constant(graph, f"{name}_by", factor)
        insert_node(graph, gs.Node(op, name, inputs=[source, by], outputs=[result]), after=node)


def _entry_read(sizes: gs.Tensor, position: int, count: int) -> bool:
    """Whether one entry of a shape may be read."""
    for reader in sizes.outputs:
        index = constant_value(reader.inputs[1]) if reader.op == "Gather" else None
        if index is None or position in np.ravel(index) % count:
            return True
    return not sizes.outputs


def resize_split(graph: gs.Graph, node: gs.Node, cuts: Mapping[str, Cut]) -> None:
    """Split: the length of each part."""
    cut = cuts[node.inputs[0].name]
    if int(node.attrs.get("axis", 0)) % cut.rank != cut.axis:
        return
    total, parts = cut.mask.size, len(node.outputs)
    sizes = node.attrs.get("split")
    if len(node.inputs) > 1 and node.inputs[1].name:
        sizes = np.ravel(require_constant(node.inputs[1], graph.opset))
    if sizes is None:
        chunk = -(-total // parts)
        sizes = [min(chunk, total - chunk * part) for part in range(parts)]
    ends = np.cumsum(sizes)
    after = [int(part.sum()) for part in np.split(cut.mask, ends[:-1])]
    if graph.opset < 13:
        node.attrs["split"] = after
    else:
        node.attrs.pop("num_outputs", None)
        name = f"{node.outputs[0].name}_sizes"
        set_input(node, 1, add_constant(graph, name, np.array(after, dtype=np.int64)))


def resize_gather(graph: gs.Graph, node: gs.Node, cuts: Mapping[str, Cut]) -> None:
    """Gather: the positions of the remaining entries."""
    cut = cuts[node.inputs[0].name]
    if int(node.attrs.get("axis", 0)) % cut.rank != cut.axis:
        return
    index = constant_value(node.inputs[1], graph.opset)
    assert index is not None
    wanted = np.asarray(index, dtype=np.int64) % cut.mask.size
    places = np.cumsum(cut.mask) - 1
    value = places[wanted[cut.mask[wanted]]].astype(index.dtype)
    replace_constant(graph, node, 1, value)


def resize_slice(graph: gs.Graph, node: gs.Node, cuts: Mapping[str, Cut]) -> None:
    """Slice: start and end."""
    cut = cuts[node.inputs[0].name]
    fields = _slice_fields(graph, node)
    axes = fields["axes"] % cut.rank
    if cut.axis not in axes:
        return
    where = int(np.flatnonzero(axes == cut.axis)[0])
    size, before = cut.mask.size, np.concatenate([[0], np.cumsum(cut.mask)])
    step = int(fields["steps"][where])
    span = slice(int(fields["starts"][where]), int(fields["ends"][where]), step)
    start, end, _ = span.indices(size)
    back = 0 if step > 0 else 1  # backwards, it takes start, start - 1, ..., end + 1
    new_start = int(before[start + back]) - back
    new_end = int(before[end + back]) - back
    if new_end < 0:
        new_end = -int(before[-1]) - 1
    for name, value in (("starts", new_start), ("ends", new_end)):
        changed = fields[name].copy()
        changed[where] = value
        if len(node.inputs) == 1:
            node.attrs[name] = changed.tolist()
        else:
            replace_constant(graph, node, 1 if name == "starts" else 2, changed)


def _slice_fields(graph: gs.Graph, node: gs.Node) -> dict[str, npt.NDArray[np.int64]]:
    names = ("starts", "ends", "axes", "steps")
    fields: dict[str, npt.NDArray[np.int64]] = {}
    for slot, name in enumerate(names, start=1):
        value: object = node.attrs.get(name)
        if slot < len(node.inputs) and node.inputs[slot].name:
            value = constant_value(node.inputs[slot], graph.opset)
        if value is not None:
            fields[name] = np.ravel(np.asarray(value, dtype=np.int64))
    if "axes" not in fields:
        fields["axes"] = np.arange(fields.get("starts", np.zeros(0)).size)
    fields.setdefault("steps", np.ones(fields["axes"].size, dtype=np.int64))
    return fields


def resize_groups(graph: gs.Graph, node: gs.Node, cuts: Mapping[str, Cut]) -> None:
    """The number of groups: one per channel in a depthwise convolution, else those that remain."""
    new, old = cuts[node.inputs[0].name].ratio
    if "num_groups" in node.attrs:
        node.attrs["num_groups"] = int(node.attrs["num_groups"]) * new // old
    if int(node.attrs.get("group", 1)) == old > 1:
        node.attrs["group"] = new


def resize_scaled(graph: gs.Graph, node: gs.Node, cuts: Mapping[str, Cut]) -> None:
    """Resize: the entry for the channels, if sizes are given."""
    cut = cuts.get(node.outputs[0].name)
    if cut is None or len(node.inputs) < 4 or not node.inputs[3].name or "axes" in node.attrs:
        return
    sizes = constant_value(node.inputs[3], graph.opset)
    new, old = cut.ratio
    if sizes is None:
        set_input(node, 3, _rescaled(graph, node.inputs[3], cut, new, old, before=node))
    else:
        replace_constant(graph, node, 3, _scaled(sizes, cut.axis, new, old))
