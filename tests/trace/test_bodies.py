"""Layers in the bodies of If, Loop and Scan, in functions, and behind frozen inputs."""

import cProfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rolling
from onnx_rnn_prune import PruneError, apply, bench, compare, inspect, prune
from onnx_rnn_prune.model.document import Document
from onnx_rnn_prune.model.intermediate import intermediate_outputs
from onnx_rnn_prune.model.runner import Runner
from onnx_rnn_prune.model.walk import Reads, all_nodes, messages
from onnx_rnn_prune.trace.plan import LayerPlan
from oracle.cells import CELLS, FORMS, Cell, draw_written, draw_written_case
from oracle.check import TRACED, check_case, check_prepared
from oracle.recovered import recovered

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

HIDDEN, WIDTH = 8, 3
RNG = np.random.default_rng(0)


def model(text, opset=17, functions=""):
    """A model from text, with weights for a GRU `W R B`, more with 2 and 3, and a head `V`."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}, "own" : 1]> {text} {functions}'
    )
    for suffix, width in (("", WIDTH), ("2", HIDDEN), ("3", WIDTH)):
        shapes = {"W": (1, 3 * HIDDEN, width), "R": (1, 3 * HIDDEN, HIDDEN), "B": (1, 6 * HIDDEN)}
        for name, shape in shapes.items():
            add(proto, name + suffix, 0.4 * RNG.standard_normal(shape).astype(np.float32))
    add(proto, "V", RNG.standard_normal((HIDDEN, 2)).astype(np.float32))
    add(proto, "one", np.array([1]))
    read = names_read(proto.graph)
    for tensor in [item for item in proto.graph.initializer if item.name not in read]:
        proto.graph.initializer.remove(tensor)
    return proto


def names_read(graph):
    names = {name for node in graph.node for name in node.input}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                names |= names_read(attribute.g) | {port.name for port in attribute.g.output}
    return names


def add(proto, name, value):
    proto.graph.initializer.append(numpy_helper.from_array(value, name))


def gru(result, x, weights=""):
    letters = ", ".join(f"{letter}{weights}" for letter in "WRB")
    return f"{result} = GRU <hidden_size = {HIDDEN}> ({x}, {letters})"


def feeds(count, **values):
    rng = np.random.default_rng(1)
    return [
        {
            "x": rng.standard_normal((7 + number % 3, 2, WIDTH)).astype(np.float32),
            **{name: np.array(options[number % len(options)]) for name, options in values.items()},
        }
        for number in range(count)
    ]


IF = f"""
m (float[t, b, {WIDTH}] x, bool yes) => (float[t, b, 2] scores) {{
    [if] scores = If (yes) <
        then_branch = then () => (float[t, b, 2] u) {{
            {gru("y", "x")} s = Squeeze (y, one) u = MatMul (s, V)
        }},
        else_branch = other () => (float[t, b, 2] v) {{
            n = Neg (x) {gru("y", "n")} s = Squeeze (y, one) r = Relu (s) v = MatMul (r, V)
        }}
    >
}}"""
LOOP = f"""
m (float[t, b, {WIDTH}] x, int64 times) => (float[n, t, b, 2] scores) {{
    true = Constant <value = bool {{1}}> ()
    [loop] last, scores = Loop (times, true, x) <
        body = turn (int64 i, bool go, float[t, b, {WIDTH}] z)
            => (bool go_on, float[t, b, {WIDTH}] z_next, float[t, b, 2] u) {{
            go_on = Identity (go) half = Constant <value = float {{0.5}}> ()
            z_next = Mul (z, half)
            {gru("y", "z")} s = Squeeze (y, one) u = MatMul (s, V)
        }}
    >
}}"""
NESTED = f"""
m (float[t, b, {WIDTH}] x, bool yes) => (float[t, b, 2] scores) {{
    {gru("y", "x")} s = Squeeze (y, one)
    [outer] scores = If (yes) <
        then_branch = a () => (float[t, b, 2] u) {{
            [inner] u = If (yes) <
                then_branch = c () => (float[t, b, 2] u1) {{
                    {gru("y2", "s", "2")} s2 = Squeeze (y2, one) u1 = MatMul (s2, V)
                }},
                else_branch = d () => (float[t, b, 2] u2) {{ u2 = MatMul (s, V) }}
            >
        }},
        else_branch = e () => (float[t, b, 2] v) {{ v = MatMul (s, V) }}
    >
}}"""
FUNCTION = f"""
m (float[t, b, {WIDTH}] x) => (float[t, b, 2] scores) {{
    scores = own.net (x, W, R, B, V, one)
}}"""
NET = f"""
<domain: "own", opset_import: ["" : 17, "own" : 1]>
net (x, W, R, B, V, one) => (scores) {{
    {gru("y", "x")} s = own.squeeze (y, one) scores = MatMul (s, V)
}}
<domain: "own", opset_import: ["" : 17]>
squeeze (y, one) => (s) {{ s = Squeeze (y, one) }}"""


@pytest.mark.parametrize("keep", [6, 4, 2])
@pytest.mark.parametrize(
    ("text", "functions", "choices"),
    [
        (IF, "", {"yes": [True, False]}),
        (LOOP, "", {"times": [3, 2]}),
        (NESTED, "", {"yes": [True, False]}),
        (FUNCTION, NET, {}),
    ],
    ids=["if", "loop", "nested", "function"],
)
def test_layers_in_bodies_are_cut(text, functions, choices, keep):
    original = model(text, functions=functions)
    result = prune(original, keep=keep, data=feeds(8, **choices))
    assert result.report["oracle"]["passed"]
    assert {row["hidden_after"] for row in result.report["layers"]} == {keep}
    assert result.model.ByteSize() < original.ByteSize()
    assert not result.report["warnings"]
    onnx.checker.check_model(result.model, full_check=True)


def test_equal_layers_in_both_branches_share_their_weights():
    result = prune(model(IF), keep=4, data=feeds(8, yes=[True, False]))
    sizes = [list(tensor.dims) for tensor in result.model.graph.initializer]
    assert sizes.count([1, 12, WIDTH]) == sizes.count([1, 12, 4]) == 1
    first, second = result.plan.layers.values()
    assert first.keep == second.keep
    assert {first.scope, second.scope} == {"if.then_branch", "if.else_branch"}


def test_units_flow_into_bodies():
    found = inspect(model(NESTED))
    ends = {(row["output"], row["end"]) for layer in found["layers"] for row in layer["outlets"]}
    assert ("Y", "absorbed") in ends


def test_a_branch_that_no_input_takes_is_left_alone():
    original = model(IF.replace(gru("y", "n"), gru("y", "n", "3")))
    result = prune(original, keep=4, data=feeds(8, yes=[True]))
    assert result.report["oracle"]["passed"]
    cut, idle = sorted(result.report["layers"], key=lambda row: row["hidden_after"])
    assert (cut["hidden_after"], cut["pinned"]) == (4, None)
    assert idle["hidden_after"] == 8 and "no input runs if.else_branch" in idle["pinned"]
    layers = {
        name: replace(kept, keep=tuple(lane[:4] for lane in kept.keep))
        for name, kept in result.plan.layers.items()
    }
    wanted = LayerPlan(8, ((0, 1, 2, 3),), idle["scope"])
    both = replace(result.plan, layers={**layers, idle["name"]: wanted})
    with pytest.raises(
        PruneError, match=f"^plan for {idle['name']}: it cannot be pruned: no input"
    ):
        apply(original, both, data=feeds(8, yes=[True]))


def test_equal_layers_that_read_other_units_are_fitted_apart():
    """Labels flow on to the second layer only in the branch that an input takes."""
    inside = f"""
        {gru("y%", "x")} s% = Squeeze (y%, one) {gru("z%", "s%", "2")}
        p% = Squeeze (z%, one) u% = MatMul (p%, V)
    """.replace("%", "{0}")
    original = model(f"""
        m (float[t, b, {WIDTH}] x, bool yes) => (float[t, b, 2] scores) {{
            [if] scores = If (yes) <
                then_branch = then () => (float[t, b, 2] u1) {{ {inside.format(1)} }},
                else_branch = other () => (float[t, b, 2] u2) {{ {inside.format(2)} }}
            >
        }}""")
    result = prune(original, keep=2, data=feeds(4, yes=[True]), recover="lstsq")
    assert result.report["oracle"]["passed"]
    assert {row["hidden_after"] for row in result.report["layers"]} == {2}
    taken, other = (result.model.graph.node[0].attribute[n].g for n in (0, 1))
    assert len(taken.node) != len(other.node)


def test_a_frozen_input_takes_its_branch_along():
    original = model(IF)
    result = prune(original, keep=4, freeze={"yes": True}, data=feeds(8))
    assert [port.name for port in result.model.graph.input] == ["x"]
    assert [node.op_type for node in result.model.graph.node].count("If") == 0
    whole = prune(original, keep=8, freeze={"yes": False}, data=feeds(8))
    feed = feeds(1)[0]
    wanted = Runner(original)({**feed, "yes": np.array(False)})["scores"]
    assert np.allclose(Runner(whole.model)(feed)["scores"], wanted, atol=1e-6)
    asked = {"freeze": {"yes": False}, "data": feeds(8)}  # as if the second had the input
    found = compare(original, whole.model, **asked, threads=2)
    assert found.drift["scores"].max_abs < 1e-6 and found.latency.threads == 2
    assert len(bench([original, whole.model], **asked).rows) == 2
    with pytest.raises(PruneError, match="no input 'no'"):
        compare(original, whole.model, freeze={"no": 1})


@pytest.mark.parametrize("values", [{"no": 1}, {"yes": "maybe"}, 3])
def test_what_cannot_be_frozen_is_named(values):
    with pytest.raises(PruneError, match="freeze="):
        prune(model(IF), freeze=values)


def nested(depth):
    """Ifs in both branches of Ifs, in text; each branch doubles what it is given, as `tN`."""
    numbers = iter(range(1 << 12))

    def branch(left):
        own = next(numbers)
        inner = f"o{own} = {choice(left)}" if left else f"o{own} = Relu (t{own})"
        return f"b{own} () => (float[a, b, c] o{own}) {{ t{own} = Add (x, x) {inner} }}"

    def choice(left):
        return f"If (c) <then_branch = {branch(left - 1)}, else_branch = {branch(left - 1)}>"

    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[a, b, c] x, bool c) => (float[a, b, c] y) {{ y = {choice(depth)} }}
    """)
    return proto, [f"t{number}" for number in range(next(numbers))]


def test_what_is_shown_of_nested_branches_takes_nodes_in_proportion():
    added = []
    feed = {"x": np.ones((1, 2, 3), np.float32), "c": np.array(True)}
    for depth in (2, 3, 5):
        proto, names = nested(depth)
        document = Document.read(proto)
        before = sum(1 for _ in all_nodes(document.graph))
        shown = intermediate_outputs(document, names, np.float32)
        added.append((sum(1 for _ in all_nodes(document.graph)) - before) / len(names))
        seen = shown.calls(Runner(document, outputs=shown.outputs, optimize=False)(feed))
        taken = [name for name in names if seen[name]]
        assert taken == names[:depth] and len(shown.outputs) == 1  # the first branch of each
        for name in taken:
            assert np.array_equal(seen[name], [2 * feed["x"]])
    assert max(added) < 1.2 * min(added)


def test_a_body_whose_tensors_have_other_axes_than_it_declares_is_named():
    proto = model("""
        m (float[t, b] x) => (float[b, n] y) {
            five = Constant <value_int = 5> ()
            yes = Constant <value = bool {1}> ()
            y, all = Loop (five, yes, x) <body = body (int64 i, bool go, float[b] h)
                => (bool on, float[b] h2, float[b] out) {
                    on = Identity (go)  wide = Shape (h)  h2 = Relu (h)  out = Tanh (h2)
                }>
        }""")
    document = Document.read(proto)
    shown = intermediate_outputs(document, ["wide", "h2"], np.int64)
    with pytest.raises(PruneError, match="declares shapes"):
        shown.calls(
            Runner(document, outputs=shown.outputs, optimize=False)(
                {"x": np.ones((3, 2), np.float32)}
            )
        )


def test_each_body_is_looked_at_once_for_what_it_reads():
    looked = Counter()

    class Counted(Reads):
        def graph(self, graph):
            looked[graph.name] += 1
            return super().graph(graph)

    text = "o0 = Relu (x)"
    for level in range(9):
        branches = [f"{way}{level} () => (float[n] o{level}) {{ {text} }}" for way in "ab"]
        text = "o{} = If (yes) <then_branch = {}, else_branch = {}>".format(level + 1, *branches)
    proto = model(f"m (float[n] x, bool yes) => (float[n] o9) {{ {text} }}")
    reads = Counted()
    found = [reads(node) for node in messages(proto, onnx.NodeProto)]
    assert found[0] == {"yes", "x", *(f"o{level}" for level in range(9))}
    assert sum(looked.values()) == 2**10 - 2


def test_a_cut_state_that_a_body_declares_with_another_rank_is_named():
    proto = onnx.load(FIXTURES / "cell_sru_loop.onnx")
    (loop,) = (node for node in proto.graph.node if node.op_type == "Loop")
    dims = loop.attribute[0].g.input[-1].type.tensor_type.shape.dim
    dims.add().CopyFrom(dims[-1])
    with pytest.raises(PruneError, match="declares shapes"):
        prune(proto, keep=0.5, layers="all")


def calls_per_layer(depth):
    """How many functions `inspect` calls for each layer, one in each branch of nested Ifs."""
    numbers = iter(range(1 << 12))

    def branch(left):
        own = next(numbers)
        inner = choice(f"o{own}", left) if left else f"o{own} = Relu (s{own})"
        layer = f"{gru(f'y{own}', 'x')} s{own} = Squeeze (y{own}, one)"
        return f"b{own} () => (float[t, b, {HIDDEN}] o{own}) {{ {layer} {inner} }}"

    def choice(result, left):
        branches = f"then_branch = {branch(left - 1)}, else_branch = {branch(left - 1)}"
        return f"{result} = If (yes) <{branches}>"

    proto = model(f"""
        m (float[t, b, {WIDTH}] x, bool yes) => (float[t, b, {HIDDEN}] y) {{ {choice("y", depth)} }}
    """)
    inspect(proto)  # imports, and what is computed once
    with cProfile.Profile() as profile:
        inspect(proto)
    return sum(entry.callcount for entry in profile.getstats()) / next(numbers)


def test_layers_in_nested_branches_take_work_in_proportion():
    assert calls_per_layer(4) < 1.2 * calls_per_layer(2)


MIN_GRU = f"""
m (float[t, b, {WIDTH}] x) => (float[t, b, 2] scores, float[b, 2] end) {{
    total = ReduceSum (x, axes)
    start = MatMul (total, zeros)
    [scan] last, hs = Scan <num_scan_inputs = 1, body = turn (
        float[b, {HIDDEN}] h, float[b, {WIDTH}] xt
    ) => (float[b, {HIDDEN}] h_next, float[b, {HIDDEN}] out) {{
        zx = MatMul (xt, U) zb = Add (zx, c) z = Sigmoid (zb)
        nx = MatMul (xt, N) n = Add (nx, c)
        stay = Sub (unit, z) kept = Mul (stay, h) new = Mul (z, n)
        h_next = Add (kept, new) out = Identity (h_next)
    }}> (start, x)
    scores = MatMul (hs, V)
    end = MatMul (last, V)
}}"""


@pytest.mark.parametrize(("keep", "foreign"), [(6, False), (4, False), (2, False), (2, True)])
def test_units_come_back_from_turn_to_turn(keep, foreign):
    """A minGRU: no product reads its state, which holds the units of two dense layers.

    What an operator that onnxruntime lacks reads of it can be compared with the original.
    """
    hidden = 32 if foreign else HIDDEN  # of fewer units, none go: a matrix widens them again
    original = model(MIN_GRU.replace(f"[b, {HIDDEN}]", f"[b, {hidden}]"))
    if foreign:
        original.graph.initializer.pop()  # V, which is added again, larger
        add(original, "V", RNG.standard_normal((hidden, 2)).astype(np.float32))
        node = onnx.helper.make_node("Mystery", ["hs"], ["strange"], domain="elsewhere.example")
        original.graph.node.append(node)
        strange = onnx.helper.make_tensor_value_info("strange", onnx.TensorProto.FLOAT, ["n"])
        original.graph.output.append(strange)
        original.opset_import.add(domain="elsewhere.example", version=1)
    for name, shape in {"U": (WIDTH, hidden), "N": (WIDTH, hidden), "c": (hidden,)}.items():
        add(original, name, RNG.standard_normal(shape).astype(np.float32))
    add(original, "zeros", np.zeros((WIDTH, hidden), np.float32))
    add(original, "unit", np.float32(1))
    add(original, "axes", np.array([0]))
    original.graph.node[0].attribute.append(onnx.helper.make_attribute("keepdims", 0))
    result = prune(original, keep=keep, data=feeds(8))
    assert result.report["oracle"]["passed"]
    assert {row["hidden_after"] for row in result.report["layers"]} == {keep}
    assert result.report["drift"].keys() == {"scores", "end", *["hs"] * foreign}
    onnx.checker.check_model(result.model, full_check=not foreign)


LARGE = 32
DECODER = f"""
m (int64 n, float[1, b, {LARGE}] h0, float[1, b, {WIDTH}] x) => (
    float[n, b, {WIDTH}] ys, float[1, b, {LARGE}] hn
) {{
    true = Constant <value = bool {{1}}> ()
    size = Shape (h0)
    c0 = ConstantOfShape (size)
    hn, cn, last, ys = Loop (n, true, h0, c0, x) <body = turn (
        int64 i, bool go, float[1, b, {LARGE}] h, float[1, b, {LARGE}] c, float[1, b, {WIDTH}] z
    ) => (
        bool on, float[1, b, {LARGE}] h1, float[1, b, {LARGE}] c1, float[1, b, {WIDTH}] z1,
        float[b, {WIDTH}] y
    ) {{
        on = Identity (go) s, h1, c1 = LSTM <hidden_size = {LARGE}> (z, L, K, , , h, c)
        two = Squeeze (s, both) y = MatMul (two, E) z1 = Unsqueeze (y, zero)
    }}>
}}"""


@pytest.mark.parametrize("keep", [24, 16, 8])
def test_states_of_a_layer_stay_narrow_from_turn_to_turn(keep):
    """A decoder reads what it made; its own states are picked once, and widened once."""
    original = model(DECODER)
    shapes = {
        "L": (1, 4 * LARGE, WIDTH),
        "K": (1, 4 * LARGE, LARGE),
        "E": (LARGE, WIDTH),
    }
    for name, shape in shapes.items():
        add(original, name, (0.4 * RNG.standard_normal(shape)).astype(np.float32))
    add(original, "both", np.array([0, 1]))
    add(original, "zero", np.array([0]))
    data = [
        {
            "n": np.array(3 + number % 2),
            "h0": RNG.standard_normal((1, 2, LARGE)).astype(np.float32),
            "x": RNG.standard_normal((1, 2, WIDTH)).astype(np.float32),
        }
        for number in range(8)
    ]
    result = prune(original, keep=keep, data=data)
    assert result.report["oracle"]["passed"]
    assert [row["hidden_after"] for row in result.report["layers"]] == [keep]
    (loop,) = (node for node in result.model.graph.node if node.op_type == "Loop")
    ops = [node.op_type for node in loop.attribute[0].g.node]
    assert [op for op in ops if op != "Add"] == [
        "Identity",
        "LSTM",
        "Squeeze",
        "MatMul",
        "Unsqueeze",
    ]
    assert loop.attribute[0].g.input[2].type.tensor_type.shape.dim[2].dim_value == keep


MANY = [*range(18), *(pytest.param(seed, marks=pytest.mark.draws) for seed in range(18, 150))]


@pytest.mark.parametrize("seed", MANY)
def test_zero_is_shrink_for_cells_that_are_no_operator(seed):
    """minGRU, SRU, coupled gates, projections, ConvLSTM, a norm; in Loop and Scan, and unrolled."""
    b = draw_written(seed)
    case = draw_written_case(b, seed)
    assert not case.traced.left and case.traced.layers
    check_prepared(case)
    check_case(case)
    if seed % 3 == 0:
        found = [b.feeds(*TRACED, seed=number) for number in range(4)]
        keep = case.plan.mask(case.traced.trace)
        check_case(case, recovered(case.traced, keep, found, ridge=1e-2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CELLS)
def test_cells_that_are_no_operator_are_cut_where_they_are(name, form):
    b = Cell(name, form, "zeros", "head", 40, np.random.default_rng(0))
    data = [b.feeds(5, 2 + number % 2, number) for number in range(6)]
    keep = {"loop": 0.5, "scan": 0.25, "unrolled": 0.25}[form]
    result = prune(b.model(), keep=keep, data=data)
    assert result.report["oracle"]["passed"]
    rows = result.report["layers"]
    assert all(abs(row["hidden_after"] - keep * row["hidden_before"]) < 1 for row in rows), rows
    assert {row["op"] for row in rows} <= {"MatMul", "Gemm", "Conv", "LSTM"}
    assert not any("is decomposed" in text for text in result.report["warnings"])
    assert result.report["totals"]["bytes_after"] < result.report["totals"]["bytes_before"]


PLACED = f"""
m (float[t, b, {WIDTH}] x) => (float[t, b, 2] scores) {{
    shape = Shape (x) first = Constant <value = int64 {{0}}> ()
    t = Gather <axis = 0> (shape, first) second = Constant <value = int64 {{1}}> ()
    b = Gather <axis = 0> (shape, second) true = Constant <value = bool {{1}}> ()
    zero = Constant <value = int64[1] {{0}}> () wide = Constant <value = int64[1] {{{HIDDEN}}}> ()
    b1 = Reshape (b, one) t1 = Reshape (t, one)
    single = Concat <axis = 0> (b1, wide) all = Concat <axis = 0> (t1, b1, wide)
    h0 = ConstantOfShape (single) empty = ConstantOfShape (all)
    last, hs = Loop (t, true, h0, empty) <body = turn (
        int64 i, bool go, float[b, {HIDDEN}] h, float[t, b, {HIDDEN}] seen
    ) => (bool on, float[b, {HIDDEN}] h1, float[t, b, {HIDDEN}] now) {{
        on = Identity (go) xi = Gather <axis = 0> (x, i)
        zx = MatMul (xi, U) z = Sigmoid (zx) nx = MatMul (xi, N) n = Tanh (nx)
        kept = Mul (z, h) h1 = Add (kept, n)
        u = Unsqueeze (h1, zero) form = Shape (u) at = Expand (i, form)
        now = ScatterElements <axis = 0> (seen, at, u)
    }}>
    d = Shape (hs) back = Sub (t, one) places = Expand (back, d)
    turned = GatherElements <axis = 0> (hs, places)
    sum = Add (turned, hs) scores = MatMul (sum, V)
}}"""


@pytest.mark.parametrize("keep", [6, 4, 2])
def test_units_are_placed_step_by_step(keep):
    original = model(PLACED)
    for name in "UN":
        add(original, name, RNG.standard_normal((WIDTH, HIDDEN)).astype(np.float32))
    result = prune(original, keep=keep, data=feeds(8))
    assert result.report["oracle"]["passed"]
    assert [row["hidden_after"] for row in result.report["layers"]] == [keep, keep]
    ends = [outlet["end"] for row in result.report["layers"] for outlet in row["outlets"]]
    assert set(ends) == {"absorbed"}


def carried(body, start="float[b, 40] h"):
    """A simple cell in a Loop, whose state starts as `h`."""
    given = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        main (float[t, b, 60] x, bool flag, {start}) => (float[t, b, m] y, float[b, 2] z)
            <int64 zero = {{0}}> {{
            sizes = Shape (x)
            n = Gather (sizes, zero)
            none = Identity (flag)
            [loop] last, y = Loop (n, , h) <body = turn (int64 i, bool go, float[b, k] s)
                => (bool on, float[b, k] new, float[b, m] out) {{
                on = Identity (go)
                xt = Gather (x, i)
                [in] xw = MatMul (xt, W)
                [back] sr = MatMul (s, R)
                sum = Add (xw, sr)
                new = Tanh (sum)
                {body}
            }}>
            [head] z = MatMul (last, V)
        }}
    """)
    rng = np.random.default_rng(0)
    for name, shape in (("W", (60, 40)), ("R", (40, 40)), ("V", (40, 2))):
        add(given, name, (rng.standard_normal(shape) / 6).astype(np.float32))
    return given


def carried_feeds(**sizes):
    rng = np.random.default_rng(1)
    feeds = []
    for number in range(6):
        batch = 1 + number % 3
        feed = {
            "x": rng.standard_normal((4 + number, batch, 60)),
            "flag": np.array(number % 2 == 0),
        }
        feed |= {name: rng.standard_normal((batch, size)) for name, size in sizes.items()}
        feeds.append({k: v if v.dtype == bool else v.astype(np.float32) for k, v in feed.items()})
    return feeds


def test_a_state_is_widened_before_all_branches_that_read_it():
    body = """out = If (flag) <
        then_branch = a () => (float[b, m] o1) { o1 = Softmax <axis = -1> (s) },
        else_branch = c () => (float[b, m] o2) { o2 = LogSoftmax <axis = -1> (s) }>"""
    result = prune(carried(body), keep=0.5, data=carried_feeds(h=40), layers="all", roll=False)
    assert {row.name: row.hidden_after for row in result.report.layers}["back"] == 20


@pytest.mark.parametrize("constant", [True, False])
def test_a_state_that_starts_as_one_number_for_all_units_is_left_whole(constant):
    model = carried("out = MatMul (new, V)", "float[b, 1] unused" if constant else "float[b, 1] h")
    if constant:
        add(model, "h", np.zeros((1, 1), np.float32))
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    back = next(node for node in loop.attribute[0].g.node if node.name == "back")
    back.op_type, back.input[1] = "Mul", "half"  # R could not read what is broadcast
    add(model, "half", np.array(0.5, np.float32))
    feeds = carried_feeds(**{"unused" if constant else "h": 1})
    result = prune(model, keep=0.5, data=feeds, layers="all", roll=False)
    assert all(row.hidden_after == row.hidden_before for row in result.report.layers)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_units_are_followed_through_sequences_that_a_loop_fills(axis):
    """It stacks its outputs itself then, which is the same."""
    proto = rolling.repeated(rolling.gru(np.random.default_rng(0)), joined=axis)
    names = [row["name"] for row in inspect(proto, roll=False)["layers"]]
    masks = dict.fromkeys(names, np.tile(np.arange(rolling.UNITS) % 2 == 0, 3))
    cut, zeroed = (prune(proto, masks=masks, roll=False, mode=mode) for mode in ("shrink", "zero"))
    assert cut.report["oracle"]["passed"] and len(cut.plan.cut()) == 2
    assert not {node.op for node in all_nodes(Document.read(cut.model).graph)} & SEQUENCES
    for feed in rolling.feeds(proto):
        one, other = (Runner(each.model, name="cut")(feed)["ys"] for each in (cut, zeroed))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


SEQUENCES = {"SequenceEmpty", "SequenceInsert", "ConcatFromSequence"}
