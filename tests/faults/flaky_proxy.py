"""An HTTP proxy that loses requests, loses answers, delays and truncates them, as its seed has it."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tests.faults.s3_server import _end_with_parent

FAULTS = ("500 before", "503 before", "reset before", "500 after", "reset after", "cut", "short", "slow")
"""Before or after the request has reached the server; an answer that breaks off, or that says it is shorter."""

SILENT = ("never", "stalls")
"""No answer, or half of one, on a connection that stays open."""

# Two more are no faults of a web server: "whole", which knows no ranges, and "untagged", which gives no ETag or time.


class Proxy(ThreadingHTTPServer):
    """Forwards to `target`, but not always."""

    daemon_threads = True

    def __init__(self, target: str, rate: float, seed: int, faults: tuple[str, ...], refuse: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.rate, self.faults, self.refuse = rate, faults, refuse
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def draw(self, method: str, path: str) -> str:
        """Return the fault of a request, empty for none."""
        with self.lock:
            self.counts["requests"] += 1
            if self.refuse and self.refuse in f"{method} {path}":
                fault = "403"
            else:
                fault = self.random.choice(self.faults) if self.random.random() < self.rate else ""
            if fault:
                self.counts[fault] += 1
            return fault

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a client that hangs up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def _pass(self) -> None:
        if self.path == "/__counts":
            self._answer(200, {}, json.dumps(self.server.counts).encode())
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.draw(self.command, self.path)
        if fault == "403":
            self._answer(403, {}, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
            return
        if fault in ("500 before", "503 before"):
            self._answer(int(fault[:3]), {}, b"<Error><Code>InternalError</Code></Error>")
            return
        if fault == "reset before":
            self._reset()
            return
        if fault == "never":
            self._wait()
            return
        if fault == "whole":
            del self.headers["Range"]
        status, headers, content = self._forward(body)
        if fault == "untagged":
            headers = {name: value for name, value in headers.items() if name.lower() not in ("etag", "last-modified")}
        if fault == "500 after":
            self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
        elif fault == "reset after":
            self._reset()
        elif fault == "cut" and len(content) > 1:
            self._answer(status, headers, content, sent=content[: len(content) // 2])
            self._reset()
        elif fault == "stalls" and self.command == "GET" and len(content) > 1:
            self._answer(status, headers, content, sent=content[: len(content) // 2])
            self._wait()
        elif fault == "short" and self.command == "GET" and len(content) > 1:
            self._answer(status, headers, content[: len(content) // 2])
        else:
            if fault == "slow":
                time.sleep(0.05)
            self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        path, headers = _of_amazon(self.path, dict(self.headers))
        connection.request(self.command, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        drop = ("connection", "transfer-encoding", "date", "server")
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in drop}
        connection.close()
        return answer.status, headers, content

    def _answer(self, status: int, headers: dict[str, str], content: bytes, sent: bytes | None = None) -> None:
        lengths = [name for name in headers if name.lower() == "content-length"]
        # The answer to HEAD says how long the file is, though nothing follows.
        length = headers[lengths[0]] if lengths and self.command == "HEAD" else str(len(content))
        self.send_response(status)
        for name, value in headers.items():
            if name not in lengths:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if sent is None else sent)

    def _wait(self) -> None:
        self.wfile.flush()
        self.connection.recv(1)
        self.close_connection = True

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def _of_amazon(path: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return path and headers as an S3 server knows them; those of Google's store, of the same XML, are others."""
    signed = "AWS4" in headers.get("authorization", "")
    if headers.get("user-agent", "").startswith("object_store/") and not signed:
        headers["authorization"] = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"
        name, mark, query = path.partition("?")
        path = f"{quote(unquote(name))}{mark}{query}"
    if headers.pop("x-goog-if-generation-match", "") == "0":
        headers["If-None-Match"] = "*"
    return path, headers


def main() -> None:
    """Proxy ``target rate seed faults refuse`` until the parent goes away; the port is printed."""
    target, rate, seed, faults, refuse = sys.argv[1:]
    proxy = Proxy(target, float(rate), int(seed), tuple(faults.split(",")), refuse)
    print(proxy.server_address[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    proxy.serve_forever()


if __name__ == "__main__":
    main()
