"""The status page on the loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cellmill.errors import ConfigError
from cellmill.ingestion.schedule.board import Board

_HOST = "127.0.0.1"


@contextmanager
def serving(board: Board, port: int | None) -> Iterator[str | None]:
    """Serve a board while the block runs; yields the URL, or None without a port.

    Raises
    ------
    ConfigError
        The port is taken.
    """
    if port is None:
        yield None
        return
    try:
        server = ThreadingHTTPServer((_HOST, port), _handler(board))
    except OSError as error:
        raise ConfigError(
            f"The status page cannot be served: {error.strerror or error}.",
            where=f"{_HOST}:{port}",
            fix="Set `status.port` to another port, or to null for no page; the atlas has the status as well.",
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="status page", daemon=True)
    thread.start()
    try:
        yield f"http://{_HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(board: Board) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/status.json":
                self._send(200, "application/json", board.json())
            elif path in ("/", "/status.html"):
                self._send(200, "text/html; charset=utf-8", board.html())
            else:
                self._send(404, "text/plain", b"There are / and /status.json.\n")

        def _send(self, code: int, kind: str, content: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the terminal free of requests."""

    return Handler
