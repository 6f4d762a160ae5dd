"""`servers`: addresses of `--engine triton://`, and what is said of those that are none."""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.core.servers import Servers, is_servers, servers_of
from genrec_batch.reports.options import ProfileConfig, RunConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("triton://a:8001", {"addresses": ("a:8001",)}),
        ("triton://A.example,b:9001", {"addresses": ("a.example:8001", "b:9001")}),
        ("triton://[::1]:8001,[fe80::1%eth0]", {"addresses": ("[::1]:8001", "[fe80::1%eth0]:8001")}),
        ("tritons://a:443/exp?wait=5", {"addresses": ("a:443",), "tls": True, "model": "exp", "wait_s": 5.0}),
        ("triton://a?wait=0.5", {"addresses": ("a:8001",), "wait_s": 0.5}),
    ],
)
def test_an_address_is_read(text, expected):
    assert is_servers(text)
    assert ScoreConfig(engine=text).engine == text
    assert servers_of(text) == Servers(**({"model": "genrec", "tls": False, "wait_s": 60.0} | expected))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("triton://", "'' is no HOST:PORT"),
        ("triton://a:80001", "'a:80001' is no HOST:PORT"),
        ("triton://a:0", "no HOST:PORT"),
        ("triton://a:8001,", "'' is no HOST:PORT"),
        ("triton://::1:8001", r"an IPv6 address stands in brackets, \[::1\]:8001"),
        ("triton://a:8001,A", "a:8001 is named twice"),
        ("triton://me:secret@a:8001", "Triton knows no user and password"),
        ("triton://a:8001/", "'' is no name of a model"),
        ("triton://a:8001?timeout=3", "only wait=SECONDS"),
        ("triton://a:8001?wait=soon", "only wait=SECONDS"),
        ("trition://a:8001", "is not one of auto, tensorrt, onnxruntime, torch, triton://HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused(text, said):
    with pytest.raises(ConfigError, match=said) as refused:
        ScoreConfig(engine=text)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            ScoreConfig,
            {"device": "cuda:1"},
            "--device cuda:1: the servers of --engine triton://a have their own device",
        ),
        (RunConfig, {"explain": "7"}, "--engine triton://a: --explain, which shows each step, needs an engine of this"),
        (ProfileConfig, {}, "--engine triton://a: profile needs an engine of this machine"),
    ],
)
def test_what_servers_cannot_do_is_refused(kind, options, said):
    with pytest.raises(ConfigError, match=said):
        kind(engine="triton://a", **options)
