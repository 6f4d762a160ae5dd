"""How kernels are compiled.

Owns: the options of numba, its cache of compiled kernels, arrays without a reference count, and pointers. Must not
know: what a kernel computes. numba caches a kernel in NUMBA_CACHE_DIR, else beside its source, else in the home folder,
and compiles it again when the kernel's own file changes, but not when this one does. So a kernel calls only kernels of
its own file, and a change here needs one in each file with kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from genrec_batch.runtime.console import LOG

F = TypeVar("F", bound=Callable[..., Any])
FOLDER = Path(__file__).parent
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}  # x / 0 is NaN or infinity, as everywhere in NumPy
REORDERED = {"reassoc", "contract", "nsz", "arcp"}  # of LLVM's fast-math flags, those that keep NaN and infinity
_NOT_CACHED: list[str] = []  # kernels for which numba found no folder that can be written


def kernel(*, inline: bool = False, signature: str | None = None, reorder: bool = False) -> Callable[[F], F]:
    """Return the decorator that compiles a function on its first call, without Python objects and without the GIL.

    `inline` merges a kernel into its callers, which numba then caches with it. `signature` compiles it at once.
    `reorder` allows sums in any order and fused products, so that loops over floats vectorize; the last bits of a
    result then depend on the processor.

    A kernel with `reorder` that others call must be inline, and they must have `reorder` too. Otherwise each caller has
    a copy of it, optimized once more, and the linker takes the one that is loaded first for all: bits would depend on
    what is in the cache.
    """
    fast: Any = REORDERED if reorder else False

    def compiled(function: F) -> F:
        arguments: Any = () if signature is None else (signature,)
        njit: Any = numba.njit
        try:
            made: F = njit(*arguments, cache=not inline, forceinline=inline, fastmath=fast, **_OPTIONS)(function)
        except RuntimeError:  # no folder can be written
            _NOT_CACHED.append(function.__name__)
            made = njit(*arguments, forceinline=inline, fastmath=fast, **_OPTIONS)(function)
        return made

    return compiled


@cache
def warn_if_not_cached() -> None:
    """Warn, once, where numba could not cache a kernel that is loaded by now."""
    if _NOT_CACHED:
        LOG.warning(
            "compiled kernels cannot be cached: neither %s nor the home folder can be written, so every run compiles "
            "them again, for about twenty seconds; set NUMBA_CACHE_DIR to a folder that can be written",
            FOLDER,
        )


def _borrowed(_typing: Any, array: Any) -> Any:
    """Return the array of a kernel's argument, without a reference count.

    numba counts the references of every slice, with a locked instruction each time. A kernel's caller holds its arrays
    until the kernel returns, so a kernel may borrow its arguments, but never an array that it allocates.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        null: Any = cgutils.get_null_value
        view.meminfo, view.parent = null(view.meminfo.type), null(view.parent.type)
        return view._getvalue()  # noqa: SLF001 - the name that numba's own lowering calls it by

    return array(array), codegen


borrowed: Any = intrinsic(_borrowed)


def _to_pointer(_typing: Any, address: Any) -> Any:
    """Return an address as a pointer, for `array_at`."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(address), codegen


pointer_to: Any = intrinsic(_to_pointer)
array_at: Any = numba.carray  # type: ignore[attr-defined]


def _will_write(_typing: Any, address: Any) -> Any:
    """Prefetch the cache line at an address before it is written."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        place = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        name = "llvm.prefetch.p0" if place.type.is_opaque else "llvm.prefetch.p0i8"
        declared: Any = cgutils.get_or_insert_function
        function = declared(builder.module, kind, name)
        builder.call(function, [place, *(ir.Constant(number, x) for x in (1, 3, 1))])
        return context.get_dummy_value()

    return numba.types.void(address), codegen


will_write: Any = intrinsic(_will_write)
