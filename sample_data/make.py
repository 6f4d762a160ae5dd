"""Make the sample log and its two side tables again: `python sample_data/make.py [FOLDER]`.

The same rows every time; FOLDER is this script's own unless given.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from genrec_batch.demo.synthetic import SampleConfig, users_frame, videos_frame, write

CONFIG = SampleConfig(users=500, events_per_user=25, seed=7, videos=1_200, dirt=0.01)
WITHOUT_EVENTS = 5  # users of users.parquet who are not in the log: cold start


def make(folder: Path) -> dict[str, Any]:
    """Write events.parquet, users.parquet and videos.parquet into `folder`; return the counts of the events."""
    counts = write(CONFIG, folder / "events.parquet", overwrite=True)
    users_frame(CONFIG, without_events=WITHOUT_EVENTS).write_parquet(folder / "users.parquet")
    videos_frame(CONFIG).write_parquet(folder / "videos.parquet")
    return counts


if __name__ == "__main__":
    print(json.dumps(make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent), indent=2))
