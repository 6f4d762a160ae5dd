"""Synthetic logs of any size in the events contract, made quickly and in bounded memory.

Owns: the interface for the `sample` command and for tests: `write`, `users_frame`, `videos_frame`. Must not know:
scoring, models, engines. Every draw is a hash of the seed, a purpose and the number of a user, session or event, so a
row is the same whatever chunk it is made in, and two runs write the same bytes.

    world (who, when) -> views (what is watched, in which order) -> log (columns) -> write (files)
"""

from __future__ import annotations

from genrec_batch.demo.synthetic.log import users_frame, videos_frame
from genrec_batch.demo.synthetic.world import Order, SampleConfig
from genrec_batch.demo.synthetic.write import write

__all__ = ["Order", "SampleConfig", "users_frame", "videos_frame", "write"]
