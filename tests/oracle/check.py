"""What must be true of every model, plan and input."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from models import FOREIGN, Builder
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.runner import Feed, Runner
from onnx_rnn_prune.opened_model import follow
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.operators.labels import Mask
from onnx_rnn_prune.operators.layers import Layer
from onnx_rnn_prune.operators.recurrent import find_layers
from onnx_rnn_prune.options import Interface
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.trace.trace import Trace
from onnx_rnn_prune.traced_model import TracedModel, as_proven, tolerance_of, trace_model
from onnx_rnn_prune.validate import oracle

Finder = Callable[[gs.Graph], Sequence[Layer]]
# Time steps and sequences: to trace with, and to prove on.
TRACED = (5, 3)
PROVED = [(5, 3), (7, 2), (2, 4)]


@dataclass(frozen=True)
class Case:
    """A drawn model with a plan for it."""

    model: onnx.ModelProto
    traced: TracedModel
    plan: Plan
    feeds: list[Feed]


def draw_case(b: Builder, seed: int, find: Finder = find_layers) -> Case:
    """Prepares some of the layers of a model, and draws which units are kept."""
    rng = random.Random(seed)
    model = b.model()
    opened = follow(model, "the drawn model")
    names = [layer.name for layer in find(opened.document.graph)]
    chosen = names if rng.random() < 0.7 else rng.sample(names, rng.randint(1, len(names)))
    traced = trace_model(opened, chosen, traced_feeds(b, seed))
    plan = Plan.from_mask("", traced.trace, draw_mask(traced.trace, rng))
    feeds = [b.feeds(*sizes, seed=seed + 1) for sizes in PROVED]
    return Case(model, traced, Plan.from_json(plan.to_json()), feeds)


def traced_feeds(b: Builder, seed: int) -> list[Feed]:
    """One feed, and where there are branches so many that most are taken."""
    return [b.feeds(*TRACED, seed=seed + n) for n in range(4 if "yes" in b.inputs else 1)]


def check_outside(case: Case, source: Document, feeds: list[Feed], seed: int) -> bool:
    """Where states can hold kept units only, the model with such states is proven, too."""
    names = tuple(case.traced.trace.units.lanes)
    traced = trace_model(case.traced.opened, names, feeds, Interface(shrink_states=True))
    if not traced.outside.states:
        return False
    plan = Plan.from_mask("", traced.trace, draw_mask(traced.trace, random.Random(seed)))
    shrunk = traced.cut(plan, "shrink")
    found = traced.narrow(plan, traced.document, shrunk, case.feeds)
    onnx.checker.check_model(found.document.write(), full_check=True)
    return True


def draw_mask(trace: Trace, rng: random.Random) -> Mask:
    """Any legal choice: equally many atoms wherever lanes are tied."""
    keep = np.zeros(trace.units.count, dtype=bool)
    for group in trace.groups:
        count = rng.randint(1, group.size)
        for atoms in group.atoms:
            keep[atoms[rng.sample(range(group.size), count)]] = True
    return keep


def check_case(case: Case, document: Document | None = None) -> None:
    """Zeroed and shrunk compute the same; the shrunk model is valid and fits in the same place."""
    traced = case.traced
    assert not traced.trace.restored, "a prepared model has nothing left to restore"
    document = traced.document if document is None else document
    zeroed = traced.cut(case.plan, "zero", document)
    shrunk = traced.cut(case.plan, "shrink", document)
    written = shrunk.write()
    check_valid(case.model, written)
    check_sizes(written, case.plan)
    for optimize in (False, True):
        left, right = (as_proven(each, "it", optimize) for each in (zeroed, shrunk))
        found = oracle(left, right, case.feeds, tolerance_of(document))
        assert found, f"optimize={optimize}: {found.reason}"


def check_prepared(case: Case) -> None:
    """Preparing changes nothing that can be seen."""
    before, after = runner(case.model, False), runner(case.traced.document.write(), False)
    found = oracle(before, after, case.feeds, tolerance=1e-6)
    assert found, f"prepare changed the model: {found.reason}"


def check_valid(original: onnx.ModelProto, shrunk: onnx.ModelProto) -> None:
    foreign = any(node.domain == FOREIGN for node in original.graph.node)
    onnx.checker.check_model(shrunk, full_check=not foreign)
    assert list(shrunk.graph.input) == list(original.graph.input)
    assert list(shrunk.graph.output) == list(original.graph.output)
    names = [name for node in shrunk.graph.node for name in node.output if name]
    names += [tensor.name for tensor in shrunk.graph.initializer]
    assert len(names) == len(set(names)), "every tensor is defined once"


def check_sizes(shrunk: onnx.ModelProto, plan: Plan) -> None:
    found = {layer.name: layer for layer in all_layers(Document.read(shrunk).graph)}
    for name, layer in plan.layers.items():
        if name in found:
            assert found[name].hidden == len(layer.keep[0]), name


def runner(model: onnx.ModelProto, optimize: bool) -> Runner:
    return Runner(model, optimize=optimize)
