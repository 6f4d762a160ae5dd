"""PyTorch on a CPU."""
