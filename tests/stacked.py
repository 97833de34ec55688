"""A model of two layers, one after the other, and how wide they are in the end."""

import numpy as np
import onnx

HIDDEN, WIDTH = 8, 4


def stacked(idle):
    """Two GRUs one after the other; the units of one of them from the second on are not read."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[time, batch, {WIDTH}] x) => (float[time, batch, 3] logits) {{
            A = GRU <hidden_size = {HIDDEN}> (x, W1, R1, B1)
            a = Squeeze(A, axis)
            C = GRU <hidden_size = {HIDDEN}> (a, W2, R2, B2)
            c = Squeeze(C, axis)
            logits = MatMul(c, fc)
        }}
    """)
    arrays = {
        "W1": rng.normal(size=(1, 3 * HIDDEN, WIDTH)),
        "R1": rng.normal(size=(1, 3 * HIDDEN, HIDDEN)),
        "B1": rng.normal(size=(1, 6 * HIDDEN)),
        "W2": rng.normal(size=(1, 3 * HIDDEN, HIDDEN)),
        "R2": rng.normal(size=(1, 3 * HIDDEN, HIDDEN)),
        "B2": rng.normal(size=(1, 6 * HIDDEN)),
        "fc": rng.normal(size=(HIDDEN, 3)),
    }
    if idle == "first":
        arrays["W2"][:, :, 2:], arrays["R1"][:, :, 2:] = 0, 0
    if idle == "second":
        arrays["fc"][2:], arrays["R2"][:, :, 2:] = 0, 0
    for name, array in arrays.items():
        tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        proto.graph.initializer.append(tensor)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    for node, name in zip(proto.graph.node[::2], ("first", "second"), strict=False):
        node.name = name
    return proto


def widths(result):
    return {layer["name"]: layer["hidden_after"] for layer in result.report["layers"]}
