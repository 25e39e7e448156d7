"""An S3 server in a process of its own: moto behind a lock, so that conditional writes are atomic as they are on S3."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

_NUMBERS = itertools.count()
_ROOT = Path(__file__).resolve().parents[2]


class Serialised:
    """A WSGI application that handles one write at a time."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            found: Iterable[bytes] = self._app(environ, start_response)
            return found
        with self._lock:
            return list(self._app(environ, start_response))


def serve() -> None:
    """Serve until the parent goes away; the port is printed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any, **__: Any) -> None:
            pass

    app = Serialised(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    server.serve_forever()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


@contextmanager
def process(module: str, *arguments: str) -> Iterator[str]:
    """Run a server module in a process of its own; yield its URL."""
    command = [sys.executable, "-m", module, *arguments]
    # The tests' own modules are found from here, wherever a test has gone.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as child:
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(child.stdout.readline())}"
        finally:
            child.kill()


def environment(url: str) -> dict[str, str]:
    """Return the environment variables under which obstore and deltalake speak to a server."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
    }


def make_bucket(url: str) -> str:
    """Make a bucket of a new name and return its ``s3://`` URL."""
    name = f"cells-{os.getpid()}-{next(_NUMBERS)}"
    requests.put(f"{url}/{name}", timeout=10).raise_for_status()
    return f"s3://{name}"


if __name__ == "__main__":
    serve()
