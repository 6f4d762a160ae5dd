"""What a version of a repository serves: one model, or the arms of an experiment, each with a model of its own.

Owns: the file `serving.json`, and which arm answers whom: the same hash of the same salt as in a run of `score`, so a
user has the same arm in the nightly file and in real time. Must not know: how a model answers, Triton. In: the folder
of a version, then the bytes of requests. Out: for each an `Answer`, or the error that refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genrec_batch.core.arm_options import Arm
from genrec_batch.core.arrays import I32, I64
from genrec_batch.core.errors import GenrecError, InputError, ModelError, without_frames
from genrec_batch.events.schema_file import ColumnNames
from genrec_batch.rules.assign import Assignment
from genrec_batch.serving import asks
from genrec_batch.serving.asks import Ask, Id
from genrec_batch.serving.options import Serving
from genrec_batch.serving.served import Answer, Served
from genrec_batch.serving.sessions import Sessions

MODEL_FOLDER, ARMS_FOLDER, VIDEOS_FILE, SERVING_FILE = "model", "arms", "videos.parquet", "serving.json"


@dataclass(frozen=True, kw_only=True)
class Arms:
    """One model, or several by arm."""

    served: tuple[Served, ...]
    names: tuple[str, ...]  # of the arms; one empty name where there is no experiment
    assignment: Assignment | None
    sessions: Sessions | None = None

    @staticmethod
    def open(folder: Path, *, elsewhere: Mapping[str, str] | None = None) -> Arms:
        """Open a version of a model repository.

        Args:
            folder: that of the version.
            elsewhere: engine, device and precision in the place of those of the version.

        Raises:
            ModelError: a file is missing or damaged.
            EngineError: the engine, its device or its precision is not there.
        """
        try:
            stored = json.loads((folder / SERVING_FILE).read_text())
            serving = Serving.of({**stored["serving"], **(elsewhere or {})})
            names = ColumnNames(**stored["schema"])
            arms = [Arm(name=a["name"], model="", buckets=a["buckets"], shadow=False, own={}) for a in stored["arms"]]
            salt, assign = stored["salt"], stored["assign"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{folder / SERVING_FILE}: missing or damaged ({error}); export the model again"
            ) from error
        names_of_arms = tuple(arm.name for arm in arms) or ("",)
        sessions = None
        if serving.session_cache_mb:
            sessions = Sessions(
                most_bytes=serving.session_cache_mb << 20,
                refresh=serving.session_refresh,
                max_events=serving.max_events,
            )
        folders = [folder / ARMS_FOLDER / arm.name for arm in arms] or [folder / MODEL_FOLDER]
        return Arms(
            served=tuple(
                Served.of(each, folder / VIDEOS_FILE, serving, names, sessions=sessions, arm=arm)
                for each, arm in zip(folders, names_of_arms, strict=True)
            ),
            names=names_of_arms,
            assignment=Assignment.of(arms, salt=salt, assign=assign) if arms else None,
            sessions=sessions,
        )

    @property
    def serving(self) -> Serving:
        """The options of the export, which all arms share."""
        return self.served[0].serving

    def assigned(self, ids: Sequence[Id]) -> tuple[I32, I64]:
        """Return the bucket of each user of an experiment, and the place of their arm, [N]."""
        assert self.assignment is not None
        bucket_N = self.assignment.buckets([str(each).encode() for each in ids])
        return bucket_N, self.assignment.arms(bucket_N)

    def answers(self, contents: Sequence[bytes]) -> list[Answer | GenrecError]:
        """Return the answer to each request, or why it is refused, in order."""
        asked = [self._asked(content) for content in contents]
        if self.assignment is None:
            return self.served[0].answers(asked)
        found: list[Answer | GenrecError] = [InputError("not answered")] * len(asked)
        bucket_N, arm_N = self.assigned([_user(each) for each in asked])
        for place, (name, served) in enumerate(zip(self.names, self.served, strict=True)):
            mine = [row for row, arm in enumerate(arm_N) if arm == place]
            for row, answer in zip(mine, served.answers([asked[row] for row in mine]), strict=True):
                if isinstance(answer, Answer):
                    found[row] = replace(answer, arm=name, bucket=int(bucket_N[row]))
                else:
                    found[row] = answer
        return found

    def _asked(self, content: bytes) -> Ask | GenrecError:
        try:
            ask = asks.read(content, top_k=self.serving.top_k, most_events=self.serving.most_events)
        except GenrecError as error:
            return without_frames(error)
        if self.assignment is not None and ask.user_id is None:
            return InputError("user_id is missing: it decides which arm of the experiment answers")
        return ask


def _user(asked: Ask | GenrecError) -> Id:
    """Return the id that decides who refuses or answers a request; a refused one may have none."""
    return "" if isinstance(asked, GenrecError) or asked.user_id is None else asked.user_id
