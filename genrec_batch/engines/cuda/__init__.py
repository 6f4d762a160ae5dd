"""PyTorch and Triton kernels on a GPU."""
