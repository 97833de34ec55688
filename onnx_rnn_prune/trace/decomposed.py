"""Recurrent layers that an exporter decomposed into products, sums and activations.

**A recurrence is a value that returns, through an activation, to the weight that produced it.** In
the dataflow, where all nodes that multiply by the same weight are one product, it is a cycle with a
product and an activation on it. The cycle closes through a loop-carried value of a Loop or Scan;
or, in an unrolled loop, because all steps share one product.

A single step closes no cycle. It is recognized by how an LSTM or a GRU updates its state: a sum in
which a gate, the sigmoid of a product, multiplies the old state, and the tanh of a product of the
same operand is added. A single step of an RNN without gates is indistinguishable from a dense
layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import permutations
from math import inf

import onnx_graphsurgeon as gs

from onnx_rnn_prune.model.walk import all_nodes, node_key, places
from onnx_rnn_prune.operators.recurrent import CELLS
from onnx_rnn_prune.operators.table import rule_of
from onnx_rnn_prune.record import Record
from onnx_rnn_prune.roll.rolling import Rolling
from onnx_rnn_prune.roll.steps import downstream
from onnx_rnn_prune.trace.dataflow import (
    PRODUCTS,
    Dataflow,
    Product,
    Vertex,
    circles,
    dataflow,
    reach,
)

# The activations that the specification allows in LSTM, GRU and RNN.
_ACTIVATIONS = frozenset(
    ("Sigmoid", "Tanh", "Relu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu", "Elu", "Softsign")
)
# A normalized state is still a state; a decomposed normalization ends with a Div.
_NORMALIZING = frozenset(
    ("Div", "GroupNormalization", "LayerNormalization", "LpNormalization", "RMSNormalization",
     "MeanVarianceNormalization", "SimplifiedLayerNormalization")
)  # fmt: skip
_GATES = frozenset(("Sigmoid", "HardSigmoid"))
_SUMS = frozenset(("Add", "Sub", "Sum"))
UNROLLED, STEP = "unrolled", "single step"
_LAYERS = "export torch.nn.LSTM, GRU or RNN instead of cells in a Python loop"
_REBUILD = "rebuild the layer with its weights in PyTorch, and export that with dynamo=False"
# Advice by exporter and kind.
_ADVICE = {
    ("pytorch", UNROLLED): f"{_LAYERS}, with dynamo=False, since dynamo=True unrolls RNN",
    ("pytorch", STEP): f"{_LAYERS} or steps; from Keras, export with the TensorFlow backend",
    (
        "tf2onnx",
        "loop",
    ): "tf2onnx exports nodes for an LSTM without a mask and, in Keras 2, a GRU with"
    f" reset_after=True; otherwise, {_REBUILD}",
    ("jax2onnx", "loop"): _REBUILD,
}
NO_CELL = "its steps compute something other than an LSTM, GRU or RNN"
_ANY = "export again from a layer, not from cells, so that the file has LSTM, GRU or RNN nodes"
# More tensors than a cell has between products and new state; long residual sums have more.
_MOST = 64


@dataclass(frozen=True, eq=False)
class DecomposedRecurrence(Record):
    """A recurrence without a recurrent operator.

    Attributes:
        kind: loop, scan, unrolled or single step.
        at: the Loop or Scan, or the first of the nodes.
        nodes: names of the nodes that multiply the state by weights.
        weights: names of these weights.
        steps: the number of unrolled steps; 1 in a loop.
        units: entries of the state.
        like: the recurrent operator with as many gates, or empty.
        scope: path to the graph that holds it; empty for the main graph.
    """

    kind: str
    at: str
    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    steps: int
    units: int
    like: str
    scope: str

    def __str__(self) -> str:
        name = self.like or "recurrence"
        article = "an" if self.like in ("LSTM", "RNN") else "a"
        what = f"{article} {name} of {self.units} units is decomposed"
        if self.kind == UNROLLED:
            how = f"unrolled over {self.steps} steps ({self.nodes[0]} to {self.nodes[-1]})"
        elif self.kind == STEP:
            how = f"a single step ({', '.join(self.nodes)})"
        else:
            op = self.kind.title()
            how = f"in the {op} {self.at.removeprefix(f'{op} ')} ({', '.join(self.nodes)})"
        return f"{what}, {how}" + (f", in {self.scope}" if self.scope else "")


def find_decomposed(graph: gs.Graph) -> tuple[DecomposedRecurrence, ...]:
    """The recurrences of a graph and its bodies that are not recurrent nodes."""
    flow = dataflow(graph)
    homes = [(place.scope, place.graph.nodes) for place in places(graph)]
    scopes = {title(node): scope for scope, nodes in homes for node in nodes}
    found, known = [], []
    for circle in _circles(flow):
        known.append(flow.products_before(_activations(flow, circle)))
        steps = _steps(flow, circle, known[-1])
        products = _on(flow, circle)
        found.append(_written(*_kind(flow, circle), products, steps, _units(flow, circle)))
    for step in _single_steps(flow, known):
        found.append(_written(STEP, None, step, 1, max(product.width for product in step)))
    return tuple(replace(item, scope=scopes[item.at]) for item in found)


def with_reasons(rolling: Rolling) -> Rolling:
    """The result of rolling, with a reason for each recurrence that stays decomposed."""
    graph, left = rolling.document.graph, dict(rolling.left)
    nodes = list(all_nodes(graph))
    for item in find_decomposed(graph):
        made = {out.name for node in nodes if title(node) in item.nodes for out in node.outputs}
        if item.at not in left and downstream(nodes, made).isdisjoint(left):
            left[item.at] = NO_CELL
    return replace(rolling, left=left)


def advice(written: Iterable[DecomposedRecurrence], producer: str) -> str:
    """How to export without decomposed recurrences; empty if there are none."""
    found = {_ADVICE.get((producer.lower(), item.kind), _ANY): None for item in written}
    return "; ".join(found)


def title(node: gs.Node) -> str:
    """How messages about a recurrence name a node."""
    return node.name or f"{node.op} {node_key(node)}"


def _written(
    kind: str, carrier: gs.Node | None, products: list[Product], steps: int, units: int
) -> DecomposedRecurrence:
    nodes = [node for product in products for node in product.nodes]
    roots = {product.weight.name: product for product in products}
    gates = sum(product.rows for product in roots.values()) / max(units, 1)
    likely = [cell.op for cell in CELLS if len(cell.gates) == gates]
    at = nodes[0] if carrier is None else carrier
    return DecomposedRecurrence(
        kind=kind,
        at=title(at),
        nodes=tuple(map(title, nodes)),
        weights=tuple(roots),
        steps=steps if kind == UNROLLED else 1,
        units=units,
        like=likely[0] if likely else "",
        scope="",
    )


def _circles(flow: Dataflow) -> list[set[Vertex]]:
    """The cycles of the dataflow that contain a product and an activation."""
    numbers = {vertex: number for number, vertex in enumerate(flow.products)}
    found = {}
    for circle in circles(flow):
        first = min((numbers[vertex] for vertex in circle if vertex in numbers), default=None)
        if first is not None and _activations(flow, circle):
            found[first] = circle
    return [found[number] for number in sorted(found)]


def _activations(flow: Dataflow, vertices: set[Vertex]) -> list[gs.Node]:
    active = [node for node in flow.nodes if node.op in _ACTIVATIONS and node.inputs]
    return [node for node in active if any(out.name in vertices for out in node.outputs)]


def _on(flow: Dataflow, circle: set[Vertex]) -> list[Product]:
    return [product for vertex, product in flow.products.items() if vertex in circle]


def _kind(flow: Dataflow, circle: set[Vertex]) -> tuple[str, gs.Node | None]:
    """How a cycle closes, and the Loop or Scan that carries it, if any."""
    for name, (source, node) in flow.loop_carried.items():
        if name in circle and source in circle:
            return node.op.lower(), node
    return UNROLLED, None


def _units(flow: Dataflow, circle: set[Vertex]) -> int:
    """Width of the state: as many entries as products sum.

    Where products sum the input as well, concatenated with the state, the number of rows tells: a
    quarter of it for a single product with a sigmoid behind it, as in an LSTM; for several, as in a
    GRU, that of the smallest.
    """
    products = _on(flow, circle)
    makes = [flow.makers.get(name) for product in products for name in product.operands]
    if not all(node is not None and node.op == "Concat" for node in makes):
        return max(product.width for product in products)
    gated = any(node.op == "Sigmoid" for node in _activations(flow, circle))
    rows = min(product.rows for product in products)
    return max(rows // 4 if gated and len(products) == 1 else rows, 1)


def _steps(flow: Dataflow, circle: set[Vertex], entering: set[Vertex]) -> int:
    """The number of unrolled steps.

    One for each occurrence of a product; and one more where the state before the first of them is
    itself made by the cell, whose product with the known initial state was computed in advance.

    Args:
        entering: the products that feed its activations, those of the input included.
    """
    products = _on(flow, circle)
    first = {name for product in products for name in product.operands if name not in circle}
    made = [node for name in first for node in _sources(flow, name).activations]
    before = not entering.isdisjoint(flow.products_before(made))
    return max(len(product.nodes) for product in products) + before


@dataclass(frozen=True)
class _Sources:
    """The sources of a tensor, back to products and activations.

    Attributes:
        activations: those where the search ended.
        bare: tensors with no producer, such as inputs.
        within: all tensors on the paths.
    """

    activations: list[gs.Node]
    bare: set[Vertex]
    within: set[Vertex]


def _single_steps(flow: Dataflow, known: list[set[Vertex]]) -> list[list[Product]]:
    """The products of single steps, which lie on no cycle, one list per cell."""
    found: dict[frozenset[Vertex], None] = {}
    for node in flow.nodes:
        if node.op in _SUMS and node.outputs:
            gates = _gating(flow, node)
            if gates and not any(gates & others for others in known):
                found.setdefault(gates)
                known = [*known, set(gates)]
    return [_of_state(flow, gates) for gates in found]


def _of_state(flow: Dataflow, gates: frozenset[Vertex]) -> list[Product]:
    """The product of a gate that has the shape of R; all of them if none has.

    If W has that shape too, the product whose operand comes from an input or initializer is taken.
    """
    products = [product for vertex, product in flow.products.items() if vertex in gates]
    counts = {len(cell.gates) for cell in CELLS if len(cell.gates) > 1}
    fitting = [product for product in products if product.rows / product.width in counts]
    fitting.sort(key=lambda p: not _sources(flow, p.operands[0]).bare)
    return fitting[:1] or products


def _gating(flow: Dataflow, total: gs.Node) -> frozenset[Vertex] | None:
    """The products of the gates if a sum is the new state of a cell, else None."""
    name = total.outputs[0].name
    sources = _sources(flow, name, _MOST)
    candidates = [node for node in sources.activations if node.op == "Tanh"]
    if not candidates or len(sources.within) > _MOST:
        return None
    operands = _operands(flow, candidates)
    for name in sources.within if operands else ():
        node = flow.makers.get(name)
        if node is None or node.op != "Mul":
            continue
        for gate, kept in permutations(node.inputs, 2):
            if _sources(flow, kept.name).bare:
                opened = _sources(flow, gate.name).activations
                for sigmoid in (item for item in opened if item.op == "Sigmoid"):
                    if operands.intersection(_operands(flow, [sigmoid])):
                        return frozenset(flow.products_before([sigmoid]))
    return None


def _sources(flow: Dataflow, name: Vertex, most: float = inf) -> _Sources:
    def is_activation(vertex: Vertex) -> bool:
        return vertex in flow.makers and flow.makers[vertex].op in _ACTIVATIONS

    def stops(vertex: Vertex) -> bool:
        return vertex in flow.products or is_activation(vertex)

    within = {name} if stops(name) else {name, *reach(flow.before, [name], stops, most)}
    ends = [flow.makers[vertex] for vertex in within if is_activation(vertex)]
    bare = {v for v in within if v not in flow.before and v not in flow.products}
    constants = {t.name for n in ends for t in n.inputs if isinstance(t, gs.Constant)}
    return _Sources(ends, bare - constants, within)


def _operands(flow: Dataflow, nodes: Iterable[gs.Node]) -> set[str]:
    """The operands of the products whose sums reach some activations."""
    before = flow.products_before(nodes)
    return {name for vertex in before for name in flow.products[vertex].operands}


def state_products(graph: gs.Graph) -> frozenset[str]:
    """Keys of the products that produce a state: **recurrent layers without an operator**.

    A state is a value on a cycle: through a Loop or Scan; through an activation, because unrolled
    steps share a weight; through a gate, even behind a normalization; or one in which the products
    of three such steps meet. A node that multiplies by such a weight, or that reaches the state
    through no other product, produces entries of the state.
    """
    nodes = list(all_nodes(graph))
    turning = any(node.op in ("Loop", "Scan") for node in nodes)
    products = [node for node in nodes if rule_of(node) in PRODUCTS[:3] and len(node.inputs) > 1]
    weights = [node.inputs[1].name for node in products]
    if not turning and len(set(weights)) == len(weights):
        return frozenset()
    flow = dataflow(graph, _NORMALIZING)
    results = {result for result, _ in flow.loop_carried.values()}
    states = set().union(*_circles(dataflow(graph)))
    for circle in circles(flow):
        gated = any(node.op in _GATES for node in _activations(flow, circle))
        states |= circle if gated or not results.isdisjoint(circle) else set()
    for product in flow.products.values():
        states |= _meeting(flow, product)
    found: set[str] = set()
    for vertex, product in flow.products.items():
        made = reach(flow.after, [vertex], flow.products.__contains__)
        if vertex in states or states & (made - flow.products.keys()):
            found.update(map(node_key, product.nodes))
    return frozenset(found)


def _meeting(flow: Dataflow, product: Product) -> set[Vertex]:
    """The tensors in which the first three steps of a product meet, entry by entry."""
    if len(product.nodes) < 3:
        return set()
    apart = ("Concat", "If")
    ends = {t.name for node in flow.nodes if node.op in apart for t in node.outputs}
    ends |= flow.products.keys()
    made = [[out.name for out in node.outputs] for node in product.nodes[:3]]
    return set.intersection(*(reach(flow.after, names, ends.__contains__) for names in made)) - ends
