"""What ONNX operators do to units: one table, and the layers as records."""
