"""What a request may say: one user's recent events and what is wanted for that user, as one JSON object.

Owns: the names of its fields, their types, and the limits of its size. Must not know: what a column of events means
(`columns`), videos, the model. In: the bytes of a request. Out: an `Ask`, or an error with the field at fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genrec_batch.core.errors import InputError, nearest

Id = int | str
MOST_BYTES = 8 << 20  # of one request
MOST_IDS = 100_000  # of a list of videos
MOST_COLUMNS = 1000  # of events
MOST_RULES = 64  # entries of `weights` and `max_per`
WHOLE = {int}
IDS = {int, str}
FIELDS = (
    "user_id", "events", "as_of", "total_events", "seen", "profile", "profile_vector", "extra_features", "candidates",
    "top_k", "weights", "max_per", "exclude", "only", "include_seen",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What decides how a list is made, the same for many requests."""

    top_k: int
    weights: str | None  # as `--weights`
    max_per: str | None  # as `--max-per`
    include_seen: bool
    given: bool  # whether the request names the candidates


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One user's request: types are checked, meanings are not."""

    wanted: Wanted
    user_id: Id | None  # of an experiment, whose arm it decides
    events: Mapping[str, list[Any]]  # columns of equal length
    as_of: int | float | str | None  # None: the newest event
    total_events: int | None  # all of the user's events up to as-of; None: those of the request
    seen: list[Id]  # beside the videos of the events
    candidates: list[Id]
    exclude: list[Id]
    only: list[Id] | None
    profile: list[float] | Mapping[str, Any] | None
    profile_vector: list[float] | None
    extra_features: list[float] | None


def read(content: bytes, *, top_k: int, most_events: int) -> Ask:
    """Return the request of some bytes.

    Args:
        content: a JSON object in UTF-8.
        top_k: of a request that does not say it.
        most_events: of one request.

    Raises:
        InputError: it is too large, no JSON object, or a field is unknown or of a wrong type.
    """
    if len(content) > MOST_BYTES:
        raise InputError(f"the request has {len(content):,} bytes, at most {MOST_BYTES:,}: send the newest events only")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is no JSON in UTF-8 ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"the request is {_kind(fields)}, expected an object with the field 'events'")
    for name in fields:
        if name not in FIELDS:
            raise InputError(f"the request has the field {name!r}, which is unknown.{nearest(name, list(FIELDS))}")
    given = fields.get("candidates")
    return Ask(
        wanted=Wanted(
            top_k=_count(fields, "top_k", top_k, least=1),
            weights=_pairs(fields, "weights"),
            max_per=_pairs(fields, "max_per"),
            include_seen=_flag(fields, "include_seen"),
            given=given is not None,
        ),
        user_id=_user(fields.get("user_id")),
        events=_events(fields.get("events"), most_events),
        as_of=_moment(fields.get("as_of")),
        total_events=None if fields.get("total_events") is None else _count(fields, "total_events", 0),
        seen=_ids(fields, "seen") or [],
        candidates=_ids(fields, "candidates") or [],
        exclude=_ids(fields, "exclude") or [],
        only=_ids(fields, "only"),
        profile=_profile(fields.get("profile")),
        profile_vector=_floats(fields, "profile_vector"),
        extra_features=_floats(fields, "extra_features"),
    )


def _events(given: Any, most: int) -> dict[str, list[Any]]:
    """Return columns of equal length."""
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(values, list) for values in given.values()):
        raise InputError('events: expected an object with a list for each column, such as {"video_id": [7, 9]}')
    if len(given) > MOST_COLUMNS:
        raise InputError(f"events: {len(given):,} columns, at most {MOST_COLUMNS:,}")
    lengths = {name: len(values) for name, values in given.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in list(lengths.items())[:8])
        raise InputError(f"events: its columns have different lengths ({said}); null stands for a missing value")
    if lengths and (rows := next(iter(lengths.values()))) > most:
        raise InputError(
            f"events: {rows:,} events, at most {most:,}; send the newest, and the others' videos as 'seen'"
        )
    return given


def _user(value: Any) -> Id | None:
    if value is None or type(value) in IDS:
        return value  # type: ignore[no-any-return]
    raise InputError(f"user_id: {_kind(value)}, expected a whole number or a string")


def _moment(value: Any) -> int | float | str | None:
    if value is None or (isinstance(value, (int, float, str)) and not isinstance(value, bool)):
        return value
    raise InputError(f"as_of: {_kind(value)}, expected a moment in ISO 8601 or as an epoch")


def _count(fields: Mapping[str, Any], name: str, default: int, *, least: int = 0) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise InputError(f"{name}: {_shown(value)}, expected a whole number from {least}")
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"{name}: {_shown(value)}, expected true or false")
    return value


def _ids(fields: Mapping[str, Any], name: str) -> list[Id] | None:
    values = fields.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not set(map(type, values)) <= IDS:
        raise InputError(f"{name}: expected a list of video ids, whole numbers or strings")
    if len(values) > MOST_IDS:
        raise InputError(f"{name}: {len(values):,} videos, at most {MOST_IDS:,}")
    return values


def _floats(fields: Mapping[str, Any], name: str) -> list[float] | None:
    values = fields.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        raise InputError(f"{name}: expected a list of numbers")
    return values


def _profile(value: Any) -> list[float] | Mapping[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    if not isinstance(value, list):
        raise InputError(f"profile: {_kind(value)}, expected an object of columns or a list of numbers")
    return _floats({"profile": value}, "profile")


def _pairs(fields: Mapping[str, Any], name: str) -> str | None:
    """Return an object of numbers as the text of the option of `score` of this name."""
    value = fields.get(name)
    if value is None or value == {}:
        return None
    numbers = isinstance(value, dict) and all(type(each) in (int, float) for each in value.values())
    if not numbers or len(value) > MOST_RULES or any(sign in key for key in value for sign in ",="):
        raise InputError(f'{name}: expected an object of names and numbers, such as {{"engagement": 0.3}}')
    return ",".join(f"{key}={number!r}" for key, number in sorted(value.items()))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a Boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (bool, int, float, type(None))) else _kind(value)
