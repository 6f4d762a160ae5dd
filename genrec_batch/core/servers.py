"""The form of `--engine triton://HOST:PORT[,HOST:PORT][/MODEL]`: which servers compute.

Owns: what such an address may hold, and its checks. Must not know: how a server is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from genrec_batch.core.errors import ConfigError, nearest

PLAIN, TLS = "triton", "tritons"
FORM = "triton://HOST:PORT[,HOST:PORT][/MODEL][?wait=SECONDS]"
GRPC_PORT = 8001  # Triton's default
MODEL = "genrec"  # of `model export --name`
WAIT_S = 60.0
HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]+))?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Triton servers that have the same model."""

    addresses: tuple[str, ...]  # HOST:PORT of gRPC, an IPv6 host in brackets
    model: str  # its name in the repositories
    tls: bool
    wait_s: float  # for a server, where none answers


def is_servers(engine: str) -> bool:
    """Return whether `--engine` names servers."""
    return engine.partition("://")[0] in (PLAIN, TLS) and "://" in engine


def servers_of(engine: str) -> Servers:
    """Return the servers that `--engine` names.

    Raises:
        ConfigError: not of the form.
    """
    scheme, _, rest = engine.partition("://")
    rest, _, query = rest.partition("?")
    hosts, slash, model = rest.partition("/")
    if "@" in hosts:
        raise ConfigError(f"--engine {scheme}://...@...: Triton knows no user and password; expected {FORM}")
    addresses = [_address(each, engine) for each in hosts.split(",")]
    twice = sorted({each for each in addresses if addresses.count(each) > 1})
    if twice:
        raise ConfigError(f"--engine {engine}: {twice[0]} is named twice")
    if slash and not NAME.fullmatch(model):
        raise ConfigError(f"--engine {engine}: {model!r} is no name of a model; expected {FORM}")
    return Servers(addresses=tuple(addresses), model=model or MODEL, tls=scheme == TLS, wait_s=_wait_s(query, engine))


def check_engine(engine: str, device: str, names: Sequence[str]) -> None:
    """Raise ConfigError unless `--engine` is one of some names, or servers; these have devices of their own."""
    if is_servers(engine):
        servers_of(engine)
        if device.startswith("cuda"):
            raise ConfigError(f"--device {device}: the servers of --engine {engine} have their own device; omit it")
    elif engine not in names:
        hint = nearest(engine, list(names))
        raise ConfigError(f"--engine {engine!r} is not one of {', '.join(names)}, {FORM}.{hint}")


def check_here(engine: str, what: str) -> None:
    """Raise ConfigError for servers where `what` needs an engine of this machine."""
    if is_servers(engine):
        raise ConfigError(f"--engine {engine}: {what} needs an engine of this machine; name another one")


def _address(text: str, engine: str) -> str:
    found = HOST.fullmatch(text)
    port = int(found["port"] or GRPC_PORT) if found else 0
    if not found or not 0 < port < 2**16:
        hint = "; an IPv6 address stands in brackets, [::1]:8001" if text.count(":") > 1 else ""
        raise ConfigError(f"--engine {engine}: {text!r} is no HOST:PORT{hint}; expected {FORM}")
    return f"{found['host'].lower()}:{port}"


def _wait_s(query: str, engine: str) -> float:
    """Return the seconds of `?wait=`."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    wait = given.pop("wait", str(WAIT_S))
    if given or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", wait):
        raise ConfigError(f"--engine {engine}: after '?' only wait=SECONDS may stand; expected {FORM}")
    return float(wait)
