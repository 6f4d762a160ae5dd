"""Which videos a user may get, and why a list is short, one user and one video at a time: the twin of `rules/`."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

Videos = AbstractSet[int]
Own = Mapping[int, Videos]  # of each user who has a list


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A set of rules as plain sets of video ids."""

    exclude: tuple[Videos, ...] = ()
    only: tuple[Videos, ...] = ()
    exclude_own: tuple[Own, ...] = ()
    only_own: tuple[Own, ...] = ()
    recommended: tuple[Own, ...] = ()
    fresh: Videos | None = None

    def removed_by(self, user: int, video: int) -> list[str]:
        """Return the kinds of the rules that remove a video for a user."""
        found = ["exclude" for listed in self.exclude if video in listed]
        found += ["only" for listed in self.only if video not in listed]
        found += ["exclude" for own in self.exclude_own if video in own.get(user, ())]
        found += ["only" for own in self.only_own if user in own and video not in own[user]]
        found += ["max-age"] if self.fresh is not None and video not in self.fresh else []
        found += ["exclude-recommended" for own in self.recommended if video in own.get(user, ())]
        return found

    def eligible(self, user: int, videos: Videos) -> set[int]:
        """Return the videos that a user may get."""
        return {video for video in videos if not self.removed_by(user, video)}


def why_short(eligible: Videos, seen: Videos, top_k: int) -> str | None:
    """Return why a list is short, None where it is whole."""
    if len(eligible) < top_k:
        return "few videos are eligible"
    return "all others were seen" if len(set(eligible) - set(seen)) < top_k else None
