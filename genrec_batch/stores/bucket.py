"""One bucket, container or server, and its objects: listed, read, written, copied and removed (package obstore).

Owns: opening a store, conditional writes, retries and their limit, and which error of a store is which of Python's.
Must not know: what is in an object, which objects belong together. In: a URI. Out: bytes, and errors without secrets:
credentials come from the environment only, and obstore keeps them.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from genrec_batch.core.errors import ConfigError, EngineError

S = TypeVar("S")
T = TypeVar("T")

INSTALL = "pip install 'genrec-batch[store]'"
PATIENCE = "GENREC_BATCH_STORE_PATIENCE"  # seconds; see `patience_s`
PATIENCE_S = 120.0
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
PROBE = "probe-"  # of objects that are written to see whether it is allowed
CHUNK = 8 << 20  # bytes of each request of a large upload: S3 takes 10,000 of them
AT_ONCE = 16  # requests that are under way at the same time
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
STATUS = re.compile(r"status code: (\d{3})")
PASSING = re.compile(  # what obstore says of errors that may be gone the next time, after its own retries
    r"HTTP error: |error sending request|after \d+ retries|timed? ?out|connection (reset|closed)", re.IGNORECASE
)
PASSING_STATUS = re.compile(r"5\d\d|429|408")
PASSING_CODE = re.compile(  # of answers with another status
    r"SlowDown|TooManyRequests|RequestTimeout\b|InternalError|ServiceUnavailable|ExpiredToken|RequestExpired"
    r"|OperationAborted"
)
NO_CREDENTIALS = (
    "no credentials were found: no role of this machine gives any, and the environment has none; set those that the "
    "store's own tools use, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
ROLE = re.compile(r"/latest/(api/token|meta-data)|/metadata/identity|/computeMetadata/")  # of a machine
NO_TLS = "builder error"  # of a request to a server that may not be asked so
QUERY = re.compile(r"(https?://[^\s?]+)\?[^\s:]+")  # signatures are in it
BODY = re.compile(r"<\?xml.*|<Error>.*", re.DOTALL)
FIELDS = re.compile(r"<(?:Code|Message)>([^<]*)<")


class ConditionError(OSError):
    """An object is not, or no longer, what a conditional write was for."""


def is_uri(path: str | Path) -> bool:
    """Return whether a path is the URI of a store, also one that a `Path` has with one slash less."""
    return URI.match(str(path)) is not None and not str(path).startswith("file:/")


def uri_of(path: str | Path) -> str:
    """Return a URI with both slashes, which a `Path` has lost."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/+", lambda found: f"{found[1].lower()}://", str(path)).rstrip("/")


def patience_s() -> float:
    """Return for how many seconds a request is repeated before a store counts as out of reach.

    Raises:
        ConfigError: the variable is not a number above 0.
    """
    given = os.environ.get(PATIENCE)
    try:
        found = PATIENCE_S if not given else float(given)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise ConfigError(f"{PATIENCE}={given}: not a number of seconds above 0")
    return found


def check_endpoint() -> None:
    """Raise ConfigError where a variable names a server in another way than as a URL, which obstore panics at."""
    for name in ENDPOINTS:
        given = os.environ.get(name)
        if given and not re.match(r"https?://[^/]", given):
            raise ConfigError(f"{name}: not the URL of a server; write it as http://HOST:PORT or https://HOST")


def allows_http(uri: str) -> bool:
    """Return whether a store may be asked without TLS: of S3 where a variable names such a server, unless forbidden."""
    if os.environ.get("AWS_ALLOW_HTTP", "true").lower() not in ("true", "1"):
        return uri.startswith("http://")
    return uri.startswith(("http://", "s3://", "s3a://"))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An object as a store lists it."""

    key: str
    bytes: int
    version: Mapping[str, str]  # by which a conditional write knows it: its ETag, and what else the store has
    modified: str


class Bucket:
    """The bucket, container or server of a URI; its objects have keys inside of it, and URIs."""

    def __init__(self, uri: str, flag: str) -> None:
        """Open the store of a URI, without a request yet; `flag` names it in errors.

        Raises:
            EngineError: the package obstore is not installed.
            ConfigError: see `patience_s` and `check_endpoint`.
            OSError: the URI names no store that obstore knows.
        """
        try:
            self._obstore: Any = import_module("obstore")
            stores = import_module("obstore.store")
        except ImportError as error:
            raise EngineError(f"{flag} {uri}: a store needs the package obstore: {INSTALL}") from error
        check_endpoint()
        parts = urlsplit(uri_of(uri))
        self.root = f"{parts.scheme}://{parts.netloc}"
        self.key = uri[uri.find("://") + 3 :].removeprefix(parts.netloc).lstrip("/")  # of the URI
        wait = patience_s()
        client = {"connect_timeout": timedelta(seconds=min(10.0, wait)), "timeout": timedelta(seconds=wait / 2)}
        retries = {"max_retries": 12, "retry_timeout": timedelta(seconds=wait)}
        allow = {"allow_http": True} if allows_http(self.root) else {}

        def opened() -> Any:
            try:
                return stores.from_url(self.root, client_options={**client, **allow}, retry_config=retries)
            except self._obstore.exceptions.BaseError as error:
                forms = "URIs of stores begin with s3://BUCKET/, gs://BUCKET/ or az://CONTAINER/"
                raise OSError(f"{said(error)}; {forms}") from None

        self._at = self._asked(opened)

    def _asked(self, ask: Callable[[], T]) -> T:
        """Map what obstore raises to the errors of files.

        Raises:
            ConditionError: of a conditional write.
            FileNotFoundError, PermissionError, ConnectionError, OSError: see their names.
        """
        known = self._obstore.exceptions
        try:
            return ask()
        except (known.NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(said(error)) from None
        except (known.AlreadyExistsError, known.PreconditionError) as error:
            raise ConditionError(said(error)) from None
        except (known.PermissionDeniedError, known.UnauthenticatedError) as error:
            raise (ConnectionError if is_passing(said(error)) else PermissionError)(said(error)) from None
        except (known.BaseError, ValueError) as error:
            if ROLE.search(str(error)):
                raise PermissionError(NO_CREDENTIALS) from None
            if NO_TLS in str(error):
                allowed = "a server without TLS (http://) is asked with AWS_ALLOW_HTTP=true"
                raise OSError(f"{said(error)}; {allowed}") from None
            status = STATUS.search(str(error))
            kind = PermissionError if status and status[1] in ("401", "403") else OSError
            raise (ConnectionError if is_passing(said(error)) else kind)(said(error)) from None

    def uri(self, key: str) -> str:
        """Return the URI of an object."""
        return f"{self.root}/{key}"

    def entry(self, key: str) -> Entry | None:
        """Return an object's size and version, None where there is none."""
        try:
            found = self._asked(lambda: self._obstore.head(self._at, key))
        except FileNotFoundError:
            return None
        return _entry(found)

    def below(self, prefix: str) -> list[Entry]:
        """Return all objects in a folder by rising key; `prefix` is one without a slash at its end, "" for all."""
        listed = self._asked(lambda: [each for many in self._obstore.list(self._at, prefix or None) for each in many])
        found = [_entry(each) for each in listed if not (each["size"] == 0 and each["path"].endswith("/"))]
        return sorted(found, key=lambda each: each.key)

    def get(self, key: str) -> tuple[bytes, Mapping[str, str]] | None:
        """Return the bytes and the version of a small object, None where there is none."""

        def ask() -> tuple[bytes, Mapping[str, str]]:
            found = self._obstore.get(self._at, key)
            return bytes(found.bytes()), _version(found.meta)

        try:
            return self._asked(ask)
        except FileNotFoundError:
            return None

    def range(self, key: str, start: int, length: int) -> bytes:
        """Return some bytes of an object; OSError where it cannot be read."""
        return self._asked(lambda: bytes(self._obstore.get_range(self._at, key, start=start, length=length)))

    def put(self, key: str, content: bytes | Path) -> None:
        """Write an object, whole or not at all; a large file goes in several requests at once."""
        self._asked(lambda: self._obstore.put(self._at, key, content, chunk_size=CHUNK, max_concurrency=AT_ONCE // 2))

    def probe(self, beginning: str) -> None:
        """Write and remove an object whose key begins so: OSError where this may not be done."""
        key = f"{beginning}{PROBE}{secrets.token_hex(8)}"
        self.put(key, b"may this user write here?")
        self.remove([key])

    def put_if(self, key: str, content: bytes, before: Mapping[str, str] | None) -> Mapping[str, str]:
        """Write an object if it is still of the version `before`, or if there is none (None); return its new version.

        A request that was answered too late is repeated, so an object that has just this content is its success.

        Raises:
            ConditionError: somebody else has written it.
        """
        mode = "create" if before is None else dict(before)
        try:
            return _version(self._asked(lambda: self._obstore.put(self._at, key, content, mode=mode)))
        except ConditionError:
            found = self.get(key)
            if found is None or found[0] != content:
                raise
            return found[1]

    def copy(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Copy objects inside of the store, several at once; FileNotFoundError where one is not there."""
        self._all(lambda pair: self._obstore.copy(self._at, *pair), pairs)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there do not matter."""

        def one(key: str) -> None:
            try:
                self._asked(lambda: self._obstore.delete(self._at, key))
            except FileNotFoundError:
                return

        self._all(one, keys)

    def fetch(self, pairs: Iterable[tuple[str, Path]]) -> None:
        """Write objects to files, several at once; FileNotFoundError where one is not there."""

        def one(pair: tuple[str, Path]) -> None:
            with pair[1].open("wb") as opened:
                for chunk in self._obstore.get(self._at, pair[0]).stream(min_chunk_size=CHUNK // 2):
                    opened.write(chunk)

        self._all(one, pairs)

    def _all(self, work: Callable[[Any], None], items: Iterable[Any]) -> None:
        in_threads(lambda item: self._asked(lambda: work(item)), list(items), AT_ONCE)


def in_threads(work: Callable[[S], T], items: Sequence[S], at_once: int) -> list[T]:
    """Do work for each of the items, several at once; after an error nothing more is begun."""
    if at_once < 2 or len(items) < 2:
        return [work(item) for item in items]
    pool = ThreadPoolExecutor(min(at_once, len(items)), thread_name_prefix="store")
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


def is_passing(text: str) -> bool:
    """Return whether what a store says may be gone the next time: it is out of reach, busy, or a token has expired."""
    status = STATUS.search(text)
    if status is None:
        return PASSING.search(text) is not None
    return bool(PASSING_STATUS.fullmatch(status[1]) or PASSING_CODE.search(text))


def said(error: BaseException) -> str:
    """Return what a store says, on one line, without the query of a URL and without what it repeats of a request."""
    text = QUERY.sub(r"\1", str(error).split("\n\nDebug source")[0])
    body = BODY.search(text)
    if body:
        text = text[: body.start()] + ", ".join(FIELDS.findall(body[0]))
    return " ".join(text.split())


def _entry(found: Mapping[str, Any]) -> Entry:
    return Entry(
        key=str(found["path"]), bytes=int(found["size"]), version=_version(found), modified=str(found["last_modified"])
    )


def _version(found: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(found[name]) for name in ("e_tag", "version") if found.get(name)}
