"""Batch scoring with a generative recommender: a Parquet log of views in, ranked videos per user out."""

__version__ = "0.1.0"
