"""Azurite, Microsoft's emulator of Azure's blobs, where it is installed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Published with the emulator."""


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Run the emulator; yield its endpoint. Skips the test where there is none."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not installed (npm install --global azurite)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with subprocess.Popen([*command, "--location", str(folder), "--blobPort", str(port)]) as child:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/{ACCOUNT}"
        finally:
            child.kill()


def environment(endpoint: str) -> dict[str, str]:
    """Return the environment variables under which obstore and deltalake speak to the emulator."""
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": endpoint,
        "AZURE_ALLOW_HTTP": "true",
    }


def make_container(endpoint: str, name: str) -> str:
    """Make a container and return its ``az://`` URL."""
    version, date = "2021-08-06", datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    said = f"x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    code = hmac.new(base64.b64decode(KEY), f"PUT{12 * chr(10)}{said}".encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(code).decode()}",
    }
    requests.put(f"{endpoint}/{name}?restype=container", headers=headers, timeout=10).raise_for_status()
    return f"az://{name}"
