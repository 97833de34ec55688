"""Cells that are no operator, drawn: which, how they are written out, and what reads them."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from onnx_rnn_prune.opened_model import follow
from onnx_rnn_prune.operators.feed_forward import all_layers
from onnx_rnn_prune.trace.decomposed import state_products
from onnx_rnn_prune.trace.plan import Plan
from onnx_rnn_prune.traced_model import trace_model
from oracle.check import PROVED, TRACED, Case, draw_mask

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from fixtures.cells import CELLS, ENDS, FORMS, STARTS, Cell


def draw_written(seed: int) -> Cell:
    """Cells, forms, initial states and readers in turn, so that few seeds show all of each."""
    rng = random.Random(seed)
    name, form = list(CELLS)[seed % len(CELLS)], rng.choice(FORMS)
    end = rng.choice(ENDS)
    end = "head" if end == "softmax" and name == "conv_lstm" else end
    units = rng.choice([6, 8])
    return Cell(name, form, rng.choice(STARTS), end, units, np.random.default_rng(seed))


def draw_written_case(b: Cell, seed: int) -> Case:
    """Follows the units of a cell's layers, and draws which are kept."""
    model = b.model()
    opened = follow(model, "the drawn model", rolls=False)
    graph = opened.document.graph
    carried = state_products(graph)
    names = [layer.name for layer in all_layers(graph) if layer.key in carried]
    traced = trace_model(opened, names, [b.feeds(*TRACED, seed)])
    plan = Plan.from_mask("", traced.trace, draw_mask(traced.trace, random.Random(seed + 1)))
    feeds = [b.feeds(*sizes, seed=seed + 1) for sizes in PROVED]
    return Case(model, traced, Plan.from_json(plan.to_json()), feeds)
