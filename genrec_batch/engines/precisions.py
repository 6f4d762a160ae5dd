"""Which precisions this machine computes, and which of them faster than fp32.

Owns: what was measured on each kind of processor. Must not know: whether a model bears one (`choose`).
"""

from __future__ import annotations

from pathlib import Path

from genrec_batch.engines.registry import entry


def computes_int8() -> bool:
    """Return whether this processor multiplies 8-bit integers fast enough for the torch engine (AVX-512 VNNI)."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "avx512_vnni" in flags.read_text()


def runs_here(precision: str) -> bool:
    """Return whether this processor computes a precision of the torch engine on a CPU; True for those of a GPU."""
    return precision not in ("int8", "int8-fast", "bf16-fast") or computes_int8()


def fast_precisions(name: str, place: str, mode: str) -> tuple[str, ...]:
    """Return the precisions that this hardware computes faster than fp32 in a mode of decoding, fastest first.

    On a GPU fp16-fast gains where keys and values are read again and again, which candidates do not.
    bf16 is faster than fp32 with AMX and on AMD. On Intel's AVX-512 without AMX it takes twice as long as fp32, and
    int8 is faster.
    """
    kind, flags = place.partition(":")[0], Path("/proc/cpuinfo")
    text = flags.read_text() if flags.exists() else ""
    fast: tuple[str, ...] = ()
    if kind == "cuda":
        fast = ("fp16-fast", "fp16") if mode == "slate" else ("fp16",)
    elif "amx_bf16" in text or ("avx512_bf16" in text and "AuthenticAMD" in text):
        fast = ("int8-fast", "bf16-fast", "bf16")
    elif computes_int8():
        fast = ("int8-fast", "int8")
    return tuple(precision for precision in fast if precision in entry(name).precisions[kind] and runs_here(precision))
