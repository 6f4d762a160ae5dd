"""A real S3 server on this machine, with an empty bucket."""

from __future__ import annotations

import pytest

from tests import s3 as servers


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """The settings of an S3 server that has the bucket `logs`, as environment variables."""
    with servers.serving(tmp_path_factory.mktemp("store")) as server:
        server.bucket("logs")
        yield server.settings


@pytest.fixture(scope="module")
def s3(s3_server):
    """The URI of the bucket, which can be used while a module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in servers.open_to_all():
            patch.delenv(name)
        for name, value in s3_server.items():
            patch.setenv(name, value)
        yield "s3://logs"
