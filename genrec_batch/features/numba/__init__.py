"""The 1024 features, compiled by numba."""
