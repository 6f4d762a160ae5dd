"""Leases, by `lease`: one holder at a time, and a successor once it has ended. In a store in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from genrec_batch.stores import lease
from genrec_batch.stores.bucket import ConditionError
from genrec_batch.stores.lease import HeldError, Lease


class Memory:
    """A bucket of one process with the same conditions as a real one (`test_bucket.py`)."""

    def __init__(self):
        self.objects, self.count = {}, 0

    def get(self, key):
        return self.objects.get(key)

    def put_if(self, key, content, before):
        found = self.objects.get(key)
        if (None if found is None else found[1]) != before:
            raise ConditionError(key)
        self.count += 1
        self.objects[key] = content, self.count
        return self.count

    def remove(self, keys):
        for key in keys:
            self.objects.pop(key, None)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("BEAT_S", 0.05), ("LOOK_S", 0.02), ("SPAN_S", 0.5)):
        monkeypatch.setattr(lease, name, seconds)


def test_a_lease_that_is_renewed_is_held_and_one_that_was_released_is_free():
    bucket = Memory()
    first = Lease(bucket, "a")
    with pytest.raises(HeldError, match="on "):
        Lease(bucket, "a")
    first.release()
    first.release()
    assert not bucket.objects
    Lease(bucket, "a").release()


def test_a_lease_that_nobody_renews_is_taken_over_and_its_holder_finds_out(monkeypatch):
    bucket = Memory()
    monkeypatch.setattr(lease, "BEAT_S", 3600)
    stopped = Lease(bucket, "a")
    second = Lease(bucket, "a")
    second.renew()
    for _ in range(2):
        with pytest.raises(HeldError, match="taken over"):
            stopped.renew()
    stopped.release()
    assert json.loads(bucket.objects["a"][0])["owner"] == second._about["owner"]
    second.release()


def test_the_lease_of_a_process_that_is_gone_is_taken_over_at_once(monkeypatch):
    bucket = Memory()
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    about = {"owner": "x", "host": "h", "process": lease._process(gone.pid), "beat": 1}
    bucket.put_if("a", json.dumps(about).encode(), None)
    monkeypatch.setattr(lease, "SPAN_S", 3600)
    assert about["process"]
    assert not lease._is_gone(about)
    gone.communicate()
    taken = Lease(bucket, "a")
    taken.release()
    elsewhere = {**about, "process": "another-machine " + about["process"].partition(" ")[2]}
    assert not lease._is_gone(elsewhere)
    assert not lease._is_gone({**about, "process": lease._process(os.getpid())})
    assert not lease._is_gone({})


@pytest.mark.parametrize("content", [b"", b"[1]", b"{"])
def test_an_object_that_is_no_lease_is_taken_over_once_nobody_changes_it(content):
    bucket = Memory()
    bucket.put_if("a", content, None)
    Lease(bucket, "a").release()
