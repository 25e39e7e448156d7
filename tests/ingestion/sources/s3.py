"""An S3 server in a process of its own, and a bucket in it for each test."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    # TileDB holds the interpreter's lock while it waits: a server in this process could never answer.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    command = [sys.executable, "-m", "moto.server", "--host", host, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for key, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(key, value)
    name = f"cells-{tmp_path.name.replace('_', '-').lower()}"
    try:
        for _ in range(300):
            with contextlib.suppress(requests.ConnectionError):
                requests.put(f"http://{host}:{port}/{name}", timeout=10).raise_for_status()
                break
            time.sleep(0.1)
        yield f"s3://{name}"
    finally:
        server.terminate()
        server.wait()
