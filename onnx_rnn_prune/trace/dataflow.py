"""The dataflow of a graph: which tensors are computed from which, and how.

An edge is a move, an entrywise operation or a product by a weight. Vertices are tensors, by name,
and products; all nodes that multiply by the same weight are one product. A value enters a body with
its node, leaves it with the node's outputs, and comes back to it where a Loop or Scan carries it
from turn to turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

import numpy as np
import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.constants import constant_shape, require_constant
from onnx_rnn_prune.model.walk import Link, all_nodes, links_of
from onnx_rnn_prune.operators import contracts, meets, moves, quantizes
from onnx_rnn_prune.operators.feed_forward import CONVOLUTIONS
from onnx_rnn_prune.operators.table import Rule, rule_of

# A tensor by its name, a product by its weight.
Vertex = Hashable
Edges = dict[Vertex, dict[Vertex, None]]
PRODUCTS: tuple[Rule, ...] = (
    contracts.matmul,
    contracts.gemm,
    contracts.conv,
    contracts.integer_matmul,
    contracts.integer_conv,
    contracts.quantized_matmul,
)
# Operators that pass on only their first input.
_MOVES: tuple[Rule, ...] = (moves.move, moves.pad, moves.pass_on, quantizes.in_steps)
_MEETS: tuple[Rule, ...] = (meets.meet, meets.normalize, moves.concat, quantizes.quantize)


@dataclass(frozen=True)
class Weight:
    """A constant of rank 2 or more, however it reaches the node that multiplies by it.

    Attributes:
        name: of the constant, or of the one that it is a slice of.
        shape: of that constant.
        key: equal for weights with the same entries.
    """

    name: str
    shape: tuple[int, ...]
    key: Hashable


@dataclass(frozen=True, eq=False)
class Product:
    """All nodes that multiply by one weight.

    Attributes:
        weight: the weight.
        nodes: the nodes, in the order of the graph.
        operands: names of the tensors that it multiplies.
        width: entries of an operand that are summed.
    """

    weight: Weight
    width: int
    nodes: list[gs.Node] = field(default_factory=list)
    operands: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of sums per operand; for a convolution, per position."""
        places = self.weight.shape[2:] if self.nodes[0].op.startswith("Conv") else ()
        return int(np.prod(self.weight.shape)) // max(self.width * int(np.prod(places)), 1)


@dataclass(frozen=True, eq=False)
class Dataflow:
    """The dataflow of a graph.

    Attributes:
        nodes: all nodes, bodies included.
        makers: by tensor, the node that computes it from others.
        after: for each vertex, those computed from it.
        before: the reverse of `after`.
        products: the vertices that are products.
        loop_carried: names of a body's inputs that come from the previous iteration, each with the
            tensor it takes its value from, and the Loop or Scan.
    """

    nodes: tuple[gs.Node, ...]
    makers: Mapping[Vertex, gs.Node]
    after: Edges
    before: Edges
    products: Mapping[Vertex, Product]
    loop_carried: Mapping[str, tuple[str, gs.Node]]

    def products_before(self, nodes: Iterable[gs.Node]) -> set[Vertex]:
        """The products whose sums reach the first inputs of some nodes."""
        inputs = [node.inputs[0].name for node in nodes]
        reached = reach(self.before, inputs, self.products.__contains__)
        return reached & self.products.keys()


def reach(
    edges: Edges, start: Iterable[Vertex], stop: Callable[[Vertex], bool], most: float = inf
) -> set[Vertex]:
    """All vertices reachable by at least one edge, without passing through those where it stops.

    The search ends once it has found more than `most`.
    """
    found: set[Vertex] = set()
    waiting = [item for vertex in start for item in edges.get(vertex, ())]
    while waiting and len(found) <= most:
        vertex = waiting.pop()
        if vertex not in found:
            found.add(vertex)
            if not stop(vertex):
                waiting += edges.get(vertex, ())
    return found


def dataflow(graph: gs.Graph, through: Container[str] = ()) -> Dataflow:
    """The dataflow of a graph whose tensors have unique names across bodies.

    Args:
        graph: the graph.
        through: further operators that pass on their first input.
    """
    nodes = tuple(all_nodes(graph))
    links = [link for node in nodes for link in links_of(node)]
    found = _Weights(links)
    products = _products(nodes, found)
    after: Edges = {}
    for node in nodes:
        made = {out.name: None for out in node.outputs if out.name}
        for tensor in node.inputs[:1] if node.op in through else _going_on(node):
            if tensor.name:
                after.setdefault(tensor.name, {}).update(made)
    for source, target, _ in links:
        if source.name and target.name:
            after.setdefault(source.name, {})[target.name] = None
    for vertex, product in products.items():
        for name in product.operands:
            after.setdefault(name, {})[vertex] = None
        made = {out.name: None for node in product.nodes for out in node.outputs[:1]}
        after.setdefault(vertex, {}).update(made)
    before: Edges = {}
    for source, targets in after.items():
        for target in targets:
            before.setdefault(target, {})[source] = None
    loop_carried = {target.name: (source.name, node) for source, target, node in links if node}
    makers = {node.outputs[0].name: node for node in nodes if node.inputs and node.outputs}
    return Dataflow(nodes, makers, after, before, products, loop_carried)


def circles(flow: Dataflow) -> Iterator[set[Vertex]]:
    """The strongly connected components with a cycle.

    By Kosaraju's algorithm, since there may be as many products as nodes.
    """
    seen: set[Vertex] = set()
    for vertex in reversed(_finished(flow.after)):
        if vertex not in seen:
            circle = {vertex, *reach(flow.before, [vertex], seen.__contains__)} - seen
            seen |= circle
            if len(circle) > 1 or vertex in flow.after.get(vertex, ()):
                yield circle


def _finished(edges: Edges) -> list[Vertex]:
    """Vertices in depth-first postorder."""
    found: list[Vertex] = []
    seen: set[Vertex] = set()
    for root in edges:
        waiting = [] if root in seen else [(root, iter(edges[root]))]
        seen.add(root)
        while waiting:
            vertex, others = waiting[-1]
            following = next((other for other in others if other not in seen), None)
            if following is None:
                found.append(vertex)
                waiting.pop()
            else:
                seen.add(following)
                waiting.append((following, iter(edges.get(following, ()))))
    return found


def _going_on(node: gs.Node) -> list[gs.Tensor]:
    """The inputs whose entries reach the outputs, moved or mapped one by one."""
    rule = rule_of(node)
    if rule is contracts.gemm:
        return list(node.inputs[2:])  # the addend C
    if rule in _MOVES:
        return list(node.inputs[:1])
    if rule not in _MEETS:
        return []
    if node.op == "Div":
        # A quotient of two computed values ends a normalization; with one constant, a sigmoid.
        computed = [tensor for tensor in node.inputs if constant_shape(tensor) is None]
        return computed if len(computed) == 1 else []
    return list(node.inputs)


class _Weights:
    """Finds the weights that nodes multiply by.

    Args:
        links: all pairs of tensors with the same value, to find loop invariants.
    """

    def __init__(self, links: Iterable[Link]) -> None:
        links = list(links)
        self._first = {inner.name: outer for outer, inner, node in links if node is None}
        self._next = {inner.name: outer for outer, inner, node in links if node is not None}

    def __call__(self, tensor: gs.Tensor) -> Weight | None:
        """The weight that a tensor holds; None if it is no weight or changes during the run."""
        key = ""
        for _ in range(len(self._first) + 1):
            shape = constant_shape(tensor)
            if shape is not None:
                return Weight(tensor.name, shape, key or tensor.name) if len(shape) > 1 else None
            whole = self._unmoved(tensor)
            if whole.name not in self._first or not self._stays(whole):
                return None
            key = key or ("" if whole is tensor else tensor.name)  # a slice differs from it
            tensor = self._first[whole.name]
        return None

    def _stays(self, tensor: gs.Tensor) -> bool:
        """Whether a Loop passes a tensor on unchanged to the next iteration."""
        later = self._next.get(tensor.name)
        return later is not None and self._unmoved(later, "Identity Cast").name == tensor.name

    def _unmoved(self, tensor: gs.Tensor, ops: str = "") -> gs.Tensor:
        """The source of a tensor, back through moves, or through the given operators only."""
        while tensor.inputs and rule_of(tensor.inputs[0]) in _MOVES:
            node = tensor.inputs[0]
            if not node.inputs or (ops and node.op not in ops.split()):
                break
            tensor = node.inputs[0]
        return tensor


def _products(nodes: Iterable[gs.Node], weight_of: _Weights) -> dict[Vertex, Product]:
    """The products of a graph by vertex; those with the same weight are one."""
    found: list[tuple[gs.Node, int, Weight]] = []
    for node in nodes:
        if rule_of(node) in PRODUCTS and len(node.inputs) > 1:
            weights = [weight_of(tensor) for tensor in node.inputs[:2]]
            known = [(slot, weight) for slot, weight in enumerate(weights) if weight is not None]
            if len(known) == 1:
                found.append((node, *known[0]))
    same = _same_entries((node.inputs[slot], weight) for node, slot, weight in found)
    products: dict[Vertex, Product] = {}
    for node, slot, weight in found:
        width = weight.shape[_summed(node, slot, len(weight.shape))]
        vertex = (same.get(weight.key, weight.key), node.op, width)
        product = products.setdefault(vertex, Product(weight, width))
        product.nodes.append(node)
        product.operands.append(node.inputs[1 - slot].name)
    return products


def _summed(node: gs.Node, slot: int, rank: int) -> int:
    """The axis of a weight along which a product sums."""
    if node.op in CONVOLUTIONS:
        return 1
    axis = rank - 1 if slot == 0 else rank - 2
    turned = node.op == "Gemm" and node.attrs.get("transB" if slot else "transA", 0)
    return 2 * rank - 3 - axis if turned else axis


def _same_entries(weights: Iterable[tuple[gs.Tensor, Weight]]) -> dict[Hashable, Hashable]:
    """Digests, by key, of weights that share their shape with others."""
    groups: dict[tuple[int, ...], dict[Hashable, gs.Tensor]] = {}
    for tensor, weight in weights:
        if constant_shape(tensor) is not None:
            groups.setdefault(weight.shape, {})[weight.key] = tensor
    return {
        key: hashlib.sha256(np.asarray(require_constant(tensor), order="C").tobytes()).digest()
        for group in groups.values()
        if len(group) > 1
        for key, tensor in group.items()
    }
