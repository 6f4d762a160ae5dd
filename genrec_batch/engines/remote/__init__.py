"""The engine of `--engine triton://HOST:PORT`: Triton servers that compute whole batches."""
