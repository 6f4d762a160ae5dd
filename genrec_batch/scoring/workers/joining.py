"""Joining a Ray cluster, and what goes wrong there as errors of ours.

Owns: addresses, the settings of Ray in this process, and which of Ray's errors is whose fault. Must not know: actors,
workers, the log. Ray is imported inside functions only.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genrec_batch.core.errors import ConfigError, EngineError, GenrecError, RetryError
from genrec_batch.runtime import signals

INSTALL = "pip install 'genrec-batch[ray]'"
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # unless the user has set them
NAMESPACE = "genrec-batch"
REACH_S = 10.0  # for the address of a cluster to answer; Ray itself waits for many minutes
HEAD_S = 20.0  # for the head of a cluster that was joined to be reached again; Ray itself gives up after 60
Ray = Any  # the module


def imported() -> Ray:
    """Return the module ray, which sends nothing to anybody unless the user wants it to.

    Raises:
        EngineError: it is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise EngineError(f"--ray needs the package ray: {INSTALL}") from error
    return ray


def joined(address: str) -> Ray:
    """Join the cluster of `--ray`, or start one on this machine, and return the module ray.

    Raises:
        ConfigError: that is no address, or the cluster refuses this user.
        EngineError: Ray is not installed, or another version than that of the cluster.
        RetryError: there is no cluster.
    """
    ray, where = imported(), f"--ray {address}"
    if address != "local":
        _check_address(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            **({"include_dashboard": False} if address == "local" else {}),
        )
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(f"{where}: the cluster wants another token than that of RAY_AUTH_TOKEN ({error})") from error
    except (ConnectionError, TimeoutError, ray.exceptions.RayError) as error:
        raise RetryError(f"{where}: no cluster can be joined there ({error})") from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        said = " ".join(str(error).replace("\\n", " ").split())
        raise EngineError(
            f"{where}: {said} Install the versions of the cluster here, or the other way round"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return ray


def _check_address(address: str) -> None:
    """Raise an error where an address is none, or nobody answers there."""
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if named in ("", "auto"):  # Ray finds a cluster of this machine, or says at once that there is none
        return
    where = f"--ray {address}" + (f" (RAY_ADDRESS={named})" if address == "auto" else "")
    host, _, port = named.rpartition(":")
    if "://" in named or not host or not port.isdecimal():
        raise ConfigError(
            f"{where}: an address is HOST:PORT of the cluster's head, auto or local; run the command on a node of the "
            "cluster (ray job submit), since OUTPUT and inputs must be where all nodes see them"
        )
    try:
        reach(named, REACH_S)
    except OSError as error:
        raise RetryError(f"{where}: no cluster can be joined there ({error})") from error


def reach(address: str, seconds: float) -> None:
    """Connect to an address and hang up.

    Raises:
        OSError: nobody answers, for some seconds.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S / 2).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)
        else:
            return


@contextmanager
def faults(ray: Ray, where: str) -> Iterator[None]:
    """Map what Ray raises in a block to errors of ours; an error of a task is the one that the task has raised.

    Raises:
        RetryError: something of the cluster was lost, or a disk of it is full.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, GenrecError):
            raise cause from error
        if isinstance(cause, ray.exceptions.RayError):
            raise _lost(ray, cause, where) from error
        raise
    except (ray.exceptions.RayError, ray.exceptions.ActorHandleNotFoundError) as error:
        raise _lost(ray, error, where) from error
    except SystemError as error:  # a signal arrived within Ray's own code
        for cause in (error.__cause__, error.__context__):
            if isinstance(cause, KeyboardInterrupt | signals.Terminated):
                raise cause from None
        raise


def _lost(ray: Ray, error: BaseException, where: str) -> RetryError:
    if isinstance(error, ray.exceptions.OutOfDiskError | ray.exceptions.ObjectStoreFullError):
        return RetryError(
            f"{where}: a node has no room for what is kept of the log (its object store and the disk that this spills "
            f"to are full: {said(error)}); free space, or set another folder or more memory when the cluster is "
            "started, and run the same command again"
        )
    return RetryError(
        f"{where}: the cluster has lost what it kept of the log ({said(error)}); parts that are written stay, and the "
        "same command reads the log again and continues"
    )


def said(error: BaseException) -> str:
    """Return an error of Ray in a line: that of Python's error, which is the last one, where there is one."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Error: " in lines[-1] else lines[0]
