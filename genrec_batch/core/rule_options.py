"""The options of `score` that say which videos may be recommended, and what fills a list that they leave short.

Owns: their sentences, defaults and checks. Must not know: how a rule is read or carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genrec_batch.core.declare import option
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.option_values import is_span, span_us

WAYS = "popular, popular:7d, popular:by=COLUMN or popular:7d:by=COLUMN"


@dataclass(frozen=True, kw_only=True)
class MaxAge:
    """`--max-age`: the column of upload times, None for the one that is obviously it, and the largest age."""

    column: str | None
    span_us: int


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """`--fallback`: the window of views that count, None for the whole log, and the column of groups, if any."""

    span_us: int | None
    by: str | None


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """Which videos may be recommended to whom, and what fills short lists."""

    exclude: tuple[str, ...] = option(
        "Table of video_id, or a text with an id on each line: never recommend these videos. With a column user_id "
        "only not to that user, with from and until only while as-of is between them; may be repeated.",
        (),
        panel="Rules",
        identity="content",
    )
    only: tuple[str, ...] = option(
        "Table like that of --exclude: recommend no other videos. With a column user_id, users without a row get any "
        "video; may be repeated, and then a video must be in each.",
        (),
        panel="Rules",
        identity="content",
    )
    exclude_recommended: tuple[str, ...] = option(
        "Earlier output of this command: recommend to no user again what it has for that user; may be repeated.",
        (),
        panel="Rules",
        identity="content",
    )
    again_after: str = option(
        "Age, from as-of to as-of, beyond which an output of --exclude-recommended no longer counts, such as 12h or "
        "7d.",
        "7d",
        panel="Rules",
    )
    max_age: str | None = option(
        "Recommend only videos up to this age at as-of, such as 30d, or COLUMN=30d with the column of --videos that "
        "has the time of upload.",
        panel="Rules",
    )
    fallback: str | None = option(
        "Fill short lists and those of cold users with the most viewed videos: popular, popular:7d for the views of "
        "the 7 days before as-of, popular:7d:by=COLUMN for those of users with the same value of a column of --users "
        "or of the log.",
        panel="Rules",
    )

    @property
    def has_sources(self) -> bool:
        """Whether rows say where they come from, in a column `source`."""
        return self.fallback is not None

    def check_rules(self, *, videos: str | None, candidates: str | None) -> None:
        """Check the rules, beside `--videos` and `--candidates`.

        Raises:
            ConfigError: a value is not of its form, or an option lacks the one that it goes with.
        """
        span_us(self.again_after, "--again-after")
        if self.max_age_of() is not None and videos is None:
            raise ConfigError(f"--max-age {self.max_age} goes with --videos, which has the times of upload")
        if self.fallback_of() is not None and candidates is not None:
            raise ConfigError(
                f"--fallback {self.fallback} goes without --candidates, which names all videos that a user may get"
            )
        for flag, paths in (
            ("exclude", self.exclude),
            ("only", self.only),
            ("exclude-recommended", self.exclude_recommended),
        ):
            again = next((path for at, path in enumerate(paths) if path in paths[:at]), None)
            if again is not None:
                raise ConfigError(f"--{flag} {again} is given twice; give it once")

    def check_not_replaced(self, target: str | None) -> None:
        """Raise ConfigError where the output is one of `--exclude-recommended`."""
        for path in self.exclude_recommended if target is not None else ():
            if Path(path).resolve() == Path(str(target)).resolve():
                raise ConfigError(
                    f"--exclude-recommended {path}: this run's OUTPUT would replace it; name another OUTPUT"
                )

    def again_after_us(self) -> int:
        """Return `--again-after` in microseconds."""
        return span_us(self.again_after, "--again-after")

    def max_age_of(self) -> MaxAge | None:
        """Return `--max-age`, None where it is not given.

        Raises:
            ConfigError: not a span of time, perhaps behind the name of a column.
        """
        if self.max_age is None:
            return None
        column, _, span = self.max_age.rpartition("=")
        if "=" in self.max_age and not column.strip():
            raise ConfigError(f"--max-age {self.max_age!r}: no column before =; such as 30d or created_at=30d")
        return MaxAge(column=column.strip() or None, span_us=span_us(span, "--max-age"))

    def fallback_of(self) -> Fallback | None:
        """Return `--fallback`, None where it is not given.

        Raises:
            ConfigError: not one of its forms.
        """
        if self.fallback is None:
            return None
        way, *rest = self.fallback.split(":")
        by = rest.pop().strip()[len("by=") :].strip() if rest and rest[-1].strip().startswith("by=") else None
        span = rest.pop() if rest else None
        if way.strip() != "popular" or rest or by == "" or (span is not None and not is_span(span)):
            raise ConfigError(f"--fallback {self.fallback!r}: {WAYS}")
        return Fallback(span_us=None if span is None else span_us(span, "--fallback"), by=by)
