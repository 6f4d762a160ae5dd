"""The PyTorch engine on a CPU with loops compiled by numba."""
