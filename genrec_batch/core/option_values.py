"""How the text of an option becomes a value, and checks that options of several commands share.

Owns: moments, spans of time, sizes, blends, and the forms of `--batch-size` and `--device`. Must not know: which
options there are.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

from genrec_batch.core.errors import ConfigError, nearest

LARGEST_WEIGHT = 1_000_000
UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def moment_us(text: str, flag: str) -> int:
    """Return the moment that `flag` names, in ISO 8601 and UTC unless it says otherwise, as epoch microseconds.

    Raises:
        ConfigError: not an ISO 8601 date or moment.
    """
    iso, such_as = text.strip(), "2026-04-30 or 2026-04-30T23:59:59Z"
    try:
        moment = dt.datetime.fromisoformat(iso[:-1] + "+00:00" if iso.endswith(("Z", "z")) else iso)
    except ValueError:
        raise ConfigError(f"{flag} {text!r}: not a moment in ISO 8601, such as {such_as}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.timezone.utc)
    if not 1970 < moment.year < 2262:
        raise ConfigError(f"{flag} {text!r}: a moment from 1971 to 2261")
    return int((moment - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)) / dt.timedelta(microseconds=1))


def span_us(text: str, flag: str) -> int:
    """Return the span of time that `flag` names, such as 12h, 7d or 2w, in microseconds.

    Raises:
        ConfigError: not a number above 0 with its unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*", text)
    span = int(float(match[1]) * UNITS_S[match[2]] * 1_000_000) if match else 0
    if not 0 < span < 2**62:
        raise ConfigError(f"{flag} {text!r}: a span of time in m, h, d or w, such as 12h or 7d")
    return span


def is_span(text: str) -> bool:
    """Return whether an option's text is a span of time, not a moment."""
    return text.strip().endswith(tuple(UNITS_S))


def since_us(text: str, as_of_us: int) -> int:
    """Return the moment that `--since` names, itself or by a span before as-of, as epoch microseconds.

    Raises:
        ConfigError: neither a moment nor a span of time.
    """
    return as_of_us - span_us(text, "--since") if is_span(text) else moment_us(text, "--since")


def check_since(text: str | None, as_of_us: int | None) -> None:
    """Raise ConfigError unless `--since` is a moment or a span, and before `--as-of`."""
    if text is not None and since_us(text, as_of_us or 0) >= (as_of_us or 2**63):
        raise ConfigError(f"--since {text!r}: not before --as-of")


def size_bytes(text: str, flag: str) -> int:
    """Return the size that `flag` names, such as 512MiB or 8GiB, in bytes.

    Raises:
        ConfigError: not a number of KiB, MiB or GiB, or less than 1 MiB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B?\s*", text, re.IGNORECASE)
    count = float(match[1]) * 1024 ** (1 + "KMGT".index(match[2].upper())) if match else 0
    if count < 1 << 20:
        raise ConfigError(f"{flag} {text!r}: a size from 1MiB, such as 512MiB or 8GiB")
    return int(count)


def blend_of(text: str, names: Sequence[str]) -> dict[str, float]:
    """Return the weight that `--weights` gives to each of its names, which are some of `names`.

    Raises:
        ConfigError: an unknown name, a name given twice, or not a number of usual size.
    """
    parsed: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (side.strip() for side in part.partition("="))
        if name not in names:
            raise ConfigError(f"--weights: {name!r} is not one of {', '.join(names)}.{nearest(name, list(names))}")
        try:
            weight = float(number)
        except ValueError:
            raise ConfigError(f"--weights: {part.strip()!r} is not NAME=NUMBER") from None
        if name in parsed or not abs(weight) <= LARGEST_WEIGHT:
            largest = f"{LARGEST_WEIGHT:,}"
            raise ConfigError(
                f"--weights: {name!r} is given twice or is not a finite number from -{largest} to {largest}"
            )
        parsed[name] = weight
    return parsed


def check_batch_size(text: str) -> None:
    """Raise ConfigError unless `--batch-size` is auto or a whole number above 0."""
    if text != "auto" and not (text.isdigit() and int(text) > 0):
        raise ConfigError(f"--batch-size {text!r}: auto or a whole number above 0")


def check_device(text: str, *, several: bool = False) -> None:
    """Raise ConfigError unless `--device` names a device, or where that is possible `several`."""
    numbers = text.removeprefix("cuda:").split(",")
    some = text.startswith("cuda:") and all(number.isdigit() for number in numbers)
    some = some and len(numbers) == (len(set(map(int, numbers))) if several else 1)
    if text not in ("auto", "cpu", "cuda") and not some:
        raise ConfigError(f"--device {text!r}: auto, cpu, cuda or cuda:N{', or cuda:N,M for some' if several else ''}")


def check_positions(have: int, *, events: int, items: int) -> None:
    """Raise ConfigError, naming the largest that fit, unless a model's positions hold a history and what follows it.

    Args:
        have: positions of the model; the first is for the features.
        events: of the longest history.
        items: read one after the other behind it; candidates are read side by side and count as one.
    """
    need = 1 + events + items
    if need > have:
        most = {"max-events": have - 1 - items, "top-k": have - 1 - events if items > 1 else 0}
        ways = " or ".join(f"--{name} {value}" for name, value in most.items() if value > 0)
        raise ConfigError(
            f"--max-events {events}{f' with --top-k {items}' if items > 1 else ''} needs {need} positions, "
            f"the model has {have}: at most {ways or f'{have - 1} of both together'}"
        )
