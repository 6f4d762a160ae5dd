"""A model on disk and in memory: sizes, weights, catalog."""
