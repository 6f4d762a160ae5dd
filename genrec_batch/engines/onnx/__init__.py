"""ONNX Runtime, and the graphs that it runs."""
