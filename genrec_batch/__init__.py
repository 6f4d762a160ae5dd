"""Batch scoring with a generative recommender: a Parquet log of views in, ranked videos for each user out.

`from genrec_batch import score, Scorer` is the Python API; both load on first use, so the command line starts fast.
"""

__version__ = "0.1.0"
__all__ = ["Scorer", "__version__", "score"]


def __getattr__(name: str) -> object:
    if name in ("score", "Scorer"):
        from genrec_batch import api

        return getattr(api, name)
    raise AttributeError(f"module 'genrec_batch' has no attribute {name!r}")
