"""Which arm of an experiment a user is in: a published hash of salt and id gives a bucket, arms are ranges.

Owns: the hashes, and the ranges that weights cut. Must not know: tables, models, what an arm does. In: ids as UTF-8
texts, an integer as its decimal digits. Out: a bucket for each, and its arm. The same texts give the same buckets in
every run, on every machine, and in a server, since nothing else enters.

- xxh64: xxh64 (seed 0) of the UTF-8 text SALT:USERID, mod 10,000.
- statsig: the first 8 bytes, big-endian, of the SHA-256 of the UTF-8 text SALT.USERID, mod 10,000; that is what
  Statsig's SDKs compare with a rule's pass percentage where SALT is its config's salt, a dot, and the rule's salt.
- growthbook: hash version 2 of GrowthBook's SDKs, where SALT is the seed: FNV-1a (32 bits, over UTF-16 code units) of
  SALT and USERID, written in decimal digits and hashed again, mod 10,000. The SDKs return a ten-thousandth of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from genrec_batch.core.arm_options import BUCKETS, GROWTHBOOK, STATSIG, XXH64, Arm
from genrec_batch.core.arrays import I32, I64, U8, U32

FNV_START, FNV_PRIME = 0x811C9DC5, 0x01000193
DIGITS = 10  # of the largest number of 32 bits


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The published arms of an experiment, in the order in which they take neighbouring ranges, and its shadows.

    A shadow takes its range from the top, beside the user's own arm, so that it moves nobody.
    """

    assign: str  # one of `ASSIGNS`
    salt: str
    firsts_A: I64  # first bucket of each published arm
    shadow_firsts_A: I64  # first bucket of each shadow; its last one is the last of all

    @staticmethod
    def of(arms: Sequence[Arm], *, salt: str, assign: str) -> Assignment:
        """Return the ranges of arms whose weights are checked."""
        shares_A = [arm.buckets for arm in arms if not arm.shadow]
        shadows = [BUCKETS - arm.buckets for arm in arms if arm.shadow]
        return Assignment(
            assign=assign,
            salt=salt,
            firsts_A=_firsts(shares_A, assign),
            shadow_firsts_A=np.array(shadows, np.int64),
        )

    def buckets(self, ids: Sequence[bytes]) -> I32:
        """Return the bucket of each of N ids, 0 to 9,999, [N]."""
        return buckets(ids, salt=self.salt, assign=self.assign)

    def arms(self, bucket_N: I32) -> I64:
        """Return the place of each bucket's arm among the published ones, [N]."""
        arm_N: I64 = np.searchsorted(self.firsts_A, bucket_N, side="right") - 1
        return arm_N

    def ranges(self) -> list[tuple[int, int]]:
        """Return the first and the last bucket of each published arm, then of each shadow."""
        lasts_A = [*(self.firsts_A[1:] - 1).tolist(), BUCKETS - 1]
        published = list(zip(self.firsts_A.tolist(), lasts_A, strict=True))
        return published + [(first, BUCKETS - 1) for first in self.shadow_firsts_A.tolist()]

    def shadowed(self, shadow: int, bucket_N: I32) -> U8:
        """Return which buckets a shadow is scored for, [N]."""
        there_N: U8 = bucket_N >= self.shadow_firsts_A[shadow]
        return there_N


def buckets(ids: Sequence[bytes], *, salt: str, assign: str) -> I32:
    """Return the bucket of each of N ids, given as UTF-8, [N]; `assign` is one of `ASSIGNS`."""
    if assign == GROWTHBOOK:
        return _growthbook(ids, salt)
    if assign == STATSIG:
        before, sha256 = f"{salt}.".encode(), hashlib.sha256
        heads = b"".join([sha256(before + each).digest()[:8] for each in ids])
        hash_N = np.frombuffer(heads, ">u8").astype(np.uint64)
    else:
        assert assign == XXH64, assign
        before, xxh64 = f"{salt}:".encode(), xxhash.xxh64_intdigest
        hash_N = np.array([xxh64(before + each) for each in ids], np.uint64)
    return (hash_N % np.uint64(BUCKETS)).astype(np.int32)


def _firsts(shares_A: Sequence[int], assign: str) -> I64:
    """Return the first bucket of each arm.

    GrowthBook's SDKs add weights as floats and compare a bucket's ten-thousandth with the sums: after 0.1 and 0.2 an
    arm begins at bucket 3,001, since the sum is a little over 0.3.
    """
    if assign != GROWTHBOOK:
        return np.cumsum([0, *shares_A[:-1]])
    ends, end = [0.0], 0.0
    for share in shares_A[:-1]:
        end += share / BUCKETS
        ends.append(end)
    return np.searchsorted(np.arange(BUCKETS) / BUCKETS, ends, side="left")


def _growthbook(ids: Sequence[bytes], salt: str) -> I32:
    joined = b"".join(ids)
    units: npt.NDArray[np.uint8 | np.uint16]
    if joined.isascii():
        units, lengths_N = np.frombuffer(joined, np.uint8), [len(each) for each in ids]
    else:
        wide = [each.decode().encode("utf-16-le") for each in ids]
        units, lengths_N = np.frombuffer(b"".join(wide), "<u2"), [len(each) // 2 for each in wide]
    start = FNV_START
    for unit in np.frombuffer(salt.encode("utf-16-le"), "<u2").tolist():
        start = (start ^ unit) * FNV_PRIME & 0xFFFFFFFF
    hash_N = _fnv1a(units, np.array(lengths_N, np.int64), start)
    return (_fnv1a_of_digits(hash_N) % np.uint32(BUCKETS)).astype(np.int32)


def _fnv1a(units: npt.NDArray[np.uint8 | np.uint16], lengths_N: I64, start: int) -> U32:
    """Return FNV-1a of N texts that lie end to end, each continued from `start`, [N]."""
    longest_first = np.argsort(-lengths_N, kind="stable")
    rest_N, place_N = lengths_N[longest_first], (np.cumsum(lengths_N) - lengths_N)[longest_first]
    hash_N = np.full(len(lengths_N), start, np.uint32)
    for unit in range(int(lengths_N.max(initial=0))):
        still = int(np.searchsorted(-rest_N, -unit, side="left"))  # texts that have this unit
        hash_N[:still] = (hash_N[:still] ^ units[place_N[:still] + unit]) * np.uint32(FNV_PRIME)
    in_order_N = np.empty_like(hash_N)
    in_order_N[longest_first] = hash_N
    return in_order_N


def _fnv1a_of_digits(number_N: U32) -> U32:
    """Return FNV-1a of the decimal digits of N numbers, [N]."""
    hash_N = np.full(len(number_N), FNV_START, np.uint32)
    for place in reversed(range(DIGITS)):
        power = np.uint32(10**place)
        digit_N = number_N // power % np.uint32(10) + np.uint32(ord("0"))
        there_N = (number_N >= power) if place else np.ones(len(number_N), np.bool_)
        hash_N = np.where(there_N, (hash_N ^ digit_N) * np.uint32(FNV_PRIME), hash_N)
    return hash_N
