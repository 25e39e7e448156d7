"""Errors that only a server has: a body too large, of an unknown kind, a task a model does not do, too much at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cellmill.errors import CellmillError, RequestError


class TooLargeError(RequestError):
    """A body, or what it unpacks to, is above a limit."""

    kind = "too_large"
    http_status = 413


class MediaTypeError(RequestError):
    """A body is of a kind that is not read, or an answer of a kind that is not written was asked for."""

    kind = "media_type"
    http_status = 415


class NotServedError(RequestError):
    """No such model or task is served here."""

    kind = "not_served"
    http_status = 404


class InvalidBodyError(RequestError):
    """A body is of a known kind, and what it says does not fit together."""

    kind = "invalid_body"
    http_status = 422


class OverloadedError(RequestError):
    """More work waits than the server has promised to hold."""

    kind = "overloaded"
    http_status = 429


class SlowBodyError(RequestError):
    """Reading a body took longer than the limit."""

    kind = "timeout"
    http_status = 408


class PredictionError(CellmillError):
    """A model gave an answer that is no answer."""

    kind = "prediction"
    http_status = 500


def revive(detail: Mapping[str, str]) -> CellmillError:
    """Return the error that `CellmillError.as_dict` described, of its own class and HTTP status."""
    kinds = {cls.kind: cls for cls in _below(CellmillError)}
    cls = kinds.get(detail.get("kind", ""), CellmillError)
    return cls(detail.get("what", ""), where=detail.get("where", ""), fix=detail.get("fix", ""))


def _below(cls: type[CellmillError]) -> Iterator[type[CellmillError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _below(child)
