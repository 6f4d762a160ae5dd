"""Prefill and decode, on whatever device there is."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported, which else reports its use
