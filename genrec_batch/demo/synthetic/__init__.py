"""Synthetic logs of any size in the events contract, made quickly and in bounded memory.

Owns: the way in for the `sample` command and for tests: `write`, `users_frame`, `videos_frame`. Must not know: scoring,
models, engines. Every draw is a hash of the seed, a purpose and the number of a user, session or event (`draws.py`), so
a row is the same whatever chunk it is made in, and two runs write the same bytes.

    draws -> world (who, when) -> views (what is watched) -> arranging (in which order) -> log (columns) -> files
"""

from __future__ import annotations

from genrec_batch.demo.synthetic.traits import users_frame, videos_frame
from genrec_batch.demo.synthetic.world import Order, SampleConfig
from genrec_batch.demo.synthetic.write import write

__all__ = ["Order", "SampleConfig", "users_frame", "videos_frame", "write"]
