"""Whether compiled kernels can be used: numba is installed, and they load.

Owns: the warnings where they cannot. Must not know: which kernels there are. It imports no numba itself.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from genrec_batch.runtime.console import LOG


def loads(load: Callable[[], object], otherwise: str) -> bool:
    """Return whether `load`, which imports kernels, succeeds; `otherwise` says what NumPy does where it does not.

    Raises:
        RetryError: see `load`.
    """
    if find_spec("numba") is None:
        return False
    try:
        load()
        from genrec_batch.runtime.jit import warn_if_not_cached
    except ImportError as error:
        LOG.warning("numba is installed but does not load (%s); %s, more slowly", error, otherwise)
        return False
    warn_if_not_cached()
    return True
