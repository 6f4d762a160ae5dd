"""The slow twin of `rules/assign.py`: one id after the other, each hash as its definition says."""

import hashlib

import xxhash

BUCKETS = 10_000


def bucket(user, salt, assign):
    """The bucket of one id, an integer or a string."""
    text = str(user)
    if assign == "xxh64":
        return xxhash.xxh64(f"{salt}:{text}".encode(), seed=0).intdigest() % BUCKETS
    if assign == "statsig":
        return int.from_bytes(hashlib.sha256(f"{salt}.{text}".encode()).digest()[:8], "big") % BUCKETS
    return fnv1a32(str(fnv1a32(salt + text))) % BUCKETS


def fnv1a32(text):
    """FNV-1a of 32 bits over the UTF-16 code units of a text."""
    units = text.encode("utf-16-le")
    value = 0x811C9DC5
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = ((value ^ (low | high << 8)) * 0x01000193) % 2**32
    return value


def arm(user, salt, assign, weights):
    """The place of a user's arm among weights in percent; neighbouring ranges in their order."""
    n = bucket(user, salt, assign)
    if assign == "growthbook":  # as the SDKs: a float against sums of floats
        end = 0.0
        for place, weight in enumerate(weights):
            end += round(weight * 100) / BUCKETS
            if n / BUCKETS < end:
                return place
        return len(weights) - 1
    end = 0
    for place, weight in enumerate(weights):
        end += round(weight * 100)
        if n < end:
            return place
    raise AssertionError(weights)
