"""An S3 server for the session, and proxies before it that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from cellmill import remote_store, store_errors
from tests.faults.flaky_proxy import FAULTS
from tests.faults.s3_server import environment, make_bucket, process


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again soon: the servers of these tests are well again at once."""
    monkeypatch.setattr(store_errors, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote_store, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server in a process of its own."""
    with process("tests.faults.s3_server") as url:
        yield url


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://`` URL of an empty bucket; this process speaks to its server."""
    for key, value in environment(s3_server).items():
        monkeypatch.setenv(key, value)
    return make_bucket(s3_server)


@pytest.fixture
def flaky(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Return a function that puts a failing proxy between this process and the server, and returns its URL."""
    with ExitStack() as stack:

        def start(rate: float, seed: int = 0, faults: tuple[str, ...] = FAULTS, refuse: str = "") -> str:
            arguments = (s3_server, str(rate), str(seed), ",".join(faults), refuse)
            url = stack.enter_context(process("tests.faults.flaky_proxy", *arguments))
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            return url

        yield start
