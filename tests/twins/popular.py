"""How popular videos fill a list, one user at a time: the twin of `rules/popular.py` and `events/views.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence


def ranked(views: Iterable[int]) -> list[int]:
    """Return videos by falling number of views, equal ones by id."""
    counts = Counter(views)
    return sorted(counts, key=lambda video: (-counts[video], video))


def filled(
    given: Sequence[int],
    lists: Sequence[Sequence[int]],
    may: Callable[[int], bool],
    top_k: int,
    *,
    cold: bool,
    promoted: Iterable[int] = (),
    within_caps: Callable[[Sequence[int]], bool] = lambda _: True,
) -> list[tuple[int, str]]:
    """Return a list of videos and where each is from: popular ones first for a cold user, else last.

    Promoted videos stay at their places.
    """
    kept = {place: video for place, video in enumerate(given) if not cold or video in promoted}
    others: list[tuple[int, str]] = []
    offered = [(video, "popular") for popular in lists for video in popular if may(video)]
    offered += [(video, "model") for video in given]
    for video, source in offered:
        listed = [*kept.values(), *(other for other, _ in others)]
        if len(listed) < top_k and video not in listed and within_caps([*listed, video]):
            others.append((video, source))
    found = []
    for place in range(top_k):
        if place in kept:
            found.append((kept[place], "model"))
        elif others:
            found.append(others.pop(0))
    return found
