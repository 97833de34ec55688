"""Model-local functions: those that hold recurrent layers are written out where they are called.

A function's body may be called from several places with other weights, so a layer in there is not
one layer. Functions that have nothing to do with recurrent layers stay functions.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import inliner


def inline_layers(model: onnx.ModelProto, ops: Iterable[str]) -> onnx.ModelProto:
    """The model with all functions written out that hold one of some operators at any depth.

    Returns:
        The model itself where there is none.
    """
    wanted = frozenset(ops)
    holding: set[tuple[str, str]] = set()
    while True:
        found = {
            (function.domain, function.name)
            for function in model.functions
            if _holds(function.node, wanted, holding)
        }
        if found == holding:
            break
        holding = found
    if not holding:
        return model
    return inliner.inline_selected_functions(model, sorted(holding | _called(model, holding)))


def _called(model: onnx.ModelProto, names: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What some functions call, directly or not: units flow through it."""
    known = {(function.domain, function.name): function for function in model.functions}
    found: set[tuple[str, str]] = set()
    left = set(names)
    while left:
        calls = {(node.domain, node.op_type) for name in left for node in known[name].node}
        left = (calls & known.keys()) - found
        found |= left
    return found


def _holds(
    nodes: Iterable[onnx.NodeProto], ops: frozenset[str], functions: set[tuple[str, str]]
) -> bool:
    for node in nodes:
        if node.op_type in ops or (node.domain, node.op_type) in functions:
            return True
        bodies = (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
        if any(_holds(body.node, ops, functions) for body in bodies):
            return True
    return False
