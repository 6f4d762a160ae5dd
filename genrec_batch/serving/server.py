"""A running Triton server, as a follower sees it over HTTP: which versions are ready, loading one, asking it.

Owns: Triton's HTTP protocol, and which failure is whose. Must not know: versions on the disk, registries.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from genrec_batch.core.errors import ConfigError, EngineError, RetryError
from genrec_batch.serving.triton import ARM, COUNT, LOG_PROB, REQUEST, VERSION, VIDEO_ID

OK, FULL, UNAVAILABLE = 200, 429, 503
EACH_S, QUICK_S = 0.2, 10.0  # between two looks at a load, and for every request that computes nothing
POLLS = "polling is enabled"  # Triton's answer to a load where it looks itself


@dataclass(frozen=True, kw_only=True)
class Server:
    """The HTTP endpoint of a server, and the name of the model there."""

    url: str
    model: str
    patience_s: float  # for which a version may load

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--triton {self.url!r}: the URL of its HTTP port, such as http://127.0.0.1:8000")

    def check_up(self) -> None:
        """Raise RetryError where the server does not answer."""
        self._asked("GET", "/v2/health/live")

    def is_ready(self, number: int) -> bool:
        """Return whether a version answers requests; a server that does not answer has none."""
        try:
            return self._asked("GET", f"/v2/models/{self.model}/versions/{number}/ready")[0] == OK
        except RetryError:
            return False

    def load(self, number: int) -> None:
        """Let the server load the newest version, and wait until it is ready.

        Raises:
            EngineError: the server cannot load it, with the reason; or it does not in time, or ends meanwhile.
        """
        try:
            code, text = self._asked("POST", f"/v2/repository/models/{self.model}/load", {}, self.patience_s)
            if code != OK and POLLS not in text:
                raise EngineError(f"{self.url} cannot load it: {_reason(text)}")
            until = time.monotonic() + self.patience_s
            while not self.is_ready(number):
                self._check_loading(number)
                if time.monotonic() > until:
                    raise EngineError(
                        f"{self.url} has not loaded it in {self.patience_s:g} s; it must run with "
                        "--model-control-mode explicit, or poll, over the same repository (or raise --load-timeout)"
                    )
                time.sleep(EACH_S)
        except RetryError as error:
            raise EngineError(f"the server ended, or was cut off, while it loaded the version: {error}") from error

    def has_loaded(self, number: int) -> bool:
        """Wait while the server loads a version, and return whether it answers; a server that is not there has none.

        A version that is withdrawn meanwhile may leave Triton 2.51 loading for ever, and nothing else can be loaded.
        """
        until = time.monotonic() + self.patience_s
        try:
            while self._state(number)[0] == "LOADING" and time.monotonic() < until:
                time.sleep(EACH_S)
        except RetryError:
            return False
        return self.is_ready(number)

    def _check_loading(self, number: int) -> None:
        state, reason = self._state(number)
        if state == "UNAVAILABLE" and reason:
            raise EngineError(f"{self.url} cannot load it: {_reason(reason)}")

    def _state(self, number: int) -> tuple[str, str]:
        """Return Triton's word for what a version is, and why; nothing where it does not know it."""
        _, text = self._asked("POST", "/v2/repository/index", {})
        mine = [each for each in json.loads(text) if (each["name"], each.get("version")) == (self.model, str(number))]
        return (mine[0].get("state", ""), mine[0].get("reason", "")) if mine else ("", "")

    def answer(self, request: str) -> dict[str, Any]:
        """Return what the version that is live answers to a request, and its number.

        Raises:
            EngineError: the request is refused; RetryError: the queue stays full, or the server does not answer.
        """
        tensor = {"name": REQUEST, "datatype": "BYTES", "shape": [1, 1], "data": [request]}
        until = time.monotonic() + QUICK_S
        while True:
            code, text = self._asked("POST", f"/v2/models/{self.model}/infer", {"inputs": [tensor]}, self.patience_s)
            if code == OK:
                return _facts(json.loads(text))
            if code not in (FULL, UNAVAILABLE):
                raise EngineError(f"{self.url} refuses a request: {_reason(text)}")
            if time.monotonic() > until:
                raise RetryError(f"{self.url} has no room for a request: {_reason(text)}")
            time.sleep(EACH_S)

    def _asked(self, method: str, path: str, body: Any = None, seconds: float = QUICK_S) -> tuple[int, str]:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, content, method=method)  # noqa: S310 (checked)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310 (checked above)
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise RetryError(f"--triton {self.url} does not answer ({getattr(error, 'reason', error)})") from error


def _facts(body: dict[str, Any]) -> dict[str, Any]:
    outputs = {each["name"]: each["data"] for each in body["outputs"]}
    count = outputs[COUNT][0]
    return {
        "number": int(body["model_version"]),
        "version": outputs[VERSION][0],
        "arm": outputs[ARM][0],
        "videos": outputs[VIDEO_ID][:count],
        "log_probs": outputs[LOG_PROB][:count],
    }


def _reason(text: str) -> str:
    """Return what Triton says, on one line without a traceback."""
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]
    return " ".join(text.partition("\n\nAt:")[0].split())[:500]
