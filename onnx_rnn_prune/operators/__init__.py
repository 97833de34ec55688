"""What ONNX operators do to units, as one table; and the layers, as records."""
