"""ASGI middleware: a body above the limit is refused, from its declared length or while it arrives."""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellmill.errors import RequestError
from cellmill.serving.errors import MediaTypeError, TooLargeError


class BodyLimit:
    """Passes requests on to `app` as long as their bodies are short enough.

    Parameters
    ----------
    app
        The application.
    limit_of
        Largest number of bytes for a ``Content-Type``.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int]) -> None:
        self.app = app
        self.limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self.limit_of(headers.get(b"content-type", ""))
        refusal = _refusal(headers, limit)
        if refusal is not None:
            await _refuse(send, refusal)
            return
        seen = 0
        started = False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except TooLargeError as error:
            if started:
                raise
            await _refuse(send, error)


def _refusal(headers: dict[bytes, str], limit: int) -> RequestError | None:
    encoding = headers.get(b"content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # What it unpacks to is not known before it is unpacked.
        return MediaTypeError(
            f"Bodies with Content-Encoding {encoding!r} are not read.",
            where="Content-Encoding",
            fix="Send the body as it is; h5ad and Arrow bodies may be compressed inside.",
        )
    declared = headers.get(b"content-length")
    if declared is None:
        return None
    if not declared.isascii() or not declared.isdigit():
        return RequestError("Content-Length is not a number.", where="Content-Length")
    return _too_large(limit) if int(declared) > limit else None


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"The body is larger than {limit / (1 << 20):,.0f} MB.", where="body", fix="Send the cells in several requests."
    )


async def _refuse(send: Send, error: RequestError) -> None:
    body = json.dumps({"error": error.as_dict()}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The rest of the body is not read, so the connection cannot be used again.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
