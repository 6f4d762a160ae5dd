"""The metrics of a model in Triton's Python backend: users by what became of them, and sessions.

Owns: their names and labels. Must not know: requests, answers. Each instance has metrics of its own, with labels that
no other has: Triton would free what two of them share when the first of them ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genrec_batch.serving import sessions
from genrec_batch.serving.sessions import Sessions

USERS = "genrec_users"  # Triton's own metrics count a refused request as a success
LOOKUPS, EVICTED, BYTES = "genrec_session_lookups", "genrec_sessions_evicted", "genrec_session_bytes"
OUTCOMES = ("answered", "refused", "cancelled")


class Metrics:
    """The metrics of one instance; `users` has a counter for each outcome."""

    def __init__(self, backend: Any, labels: Mapping[str, str], kept: Sessions | None) -> None:
        self._families, self._labels, self._sessions = backend.MetricFamily, labels, kept
        self._held: list[Any] = []  # metrics end with their families
        self._counted_bytes = 0
        self.users = self._counters(USERS, "Users by what became of them", OUTCOMES)
        if kept is not None:
            about = "Users by whether their session went on, or why not"
            self.lookups = self._counters(LOOKUPS, about, sessions.OUTCOMES)
            self.evicted = self._metric(self._family(EVICTED, "Sessions that were dropped for others", "COUNTER"))
            self.bytes = self._metric(self._family(BYTES, "Bytes of all sessions", "GAUGE"))

    def count_sessions(self) -> None:
        """Count what happened to sessions since the last call."""
        if self._sessions is None:
            return
        outcomes, evicted = self._sessions.counted()
        for outcome, count in outcomes.items():
            self.lookups[outcome].increment(count)
        self.evicted.increment(evicted)
        self.bytes.increment(self._sessions.nbytes - self._counted_bytes)
        self._counted_bytes = self._sessions.nbytes

    def close(self) -> None:
        """Forget all sessions, and end the metrics."""
        if self._sessions is not None:
            self._sessions.clear()
            self.count_sessions()
        self._held.clear()

    def _family(self, name: str, description: str, kind: str) -> Any:
        family = self._families(name=name, description=description, kind=getattr(self._families, kind))
        self._held.append(family)
        return family

    def _metric(self, family: Any, **labels: str) -> Any:
        return family.Metric(labels={**self._labels, **labels})

    def _counters(self, name: str, description: str, outcomes: Sequence[str]) -> dict[str, Any]:
        family = self._family(name, description, "COUNTER")
        return {outcome: self._metric(family, outcome=outcome) for outcome in outcomes}
