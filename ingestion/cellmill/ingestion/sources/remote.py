"""One remote file: what is known of it before it is fetched, and its bytes from any position on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from cellmill.errors import DownloadError, SourceError

T = TypeVar("T")
ATTEMPTS = 6
_FIRST_PAUSE_S = 0.2


@dataclass(frozen=True)
class Facts:
    """What a store says of a file.

    Attributes
    ----------
    size
        Bytes, None where the server does not say.
    tag
        Changes when the file does: ETag or time of change; empty where the server gives neither.
    """

    size: int | None
    tag: str


class RemoteFile(Protocol):
    """A file behind a URL."""

    url: str

    def facts(self) -> Facts | None:
        """Return what is known of it, None if there is no such file."""
        ...

    def blocks(self, start: int, facts: Facts, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (position, bytes) from `start` on, or from the beginning where the server cannot continue.

        Parameters
        ----------
        start
            Where to begin.
        facts
            What is known of the file: bytes of another content are never yielded.
        stop
            Where to end; what lies behind may be yielded nevertheless.

        Raises
        ------
        OSError
            The connection failed; it may be tried again.
        DownloadError
            Trying again is of no use.
        """
        ...


def read_part(file: RemoteFile, facts: Facts, start: int = 0, stop: int | None = None) -> bytes:
    """Return bytes ``[start, stop)`` of a file, all of them, and of no other content than is known.

    Raises
    ------
    SourceError
        The file ends before.
    DownloadError
        It was changed, or the server does not send it in full, time after time.
    """
    stop = facts.size if stop is None else stop
    if stop is not None and facts.size is not None and stop > facts.size:
        what = f"The file ends before byte {stop:,}."
        raise SourceError(what, where=bare(file.url), fix="Fetch or copy it again as a whole.")
    if stop == start:
        return b""

    def ask() -> bytes:
        found = bytearray()
        for position, block in file.blocks(start, facts, stop):
            found += block[max(0, start - position) :]
            if stop is not None and len(found) >= stop - start:
                break
        if stop is not None and len(found) < stop - start:
            raise OSError(f"{len(found):,} bytes came of {stop - start:,}")
        return bytes(found if stop is None else found[: stop - start])

    try:
        return patient(ask)
    except OSError as error:
        raise DownloadError(
            f"It was asked for {ATTEMPTS} times and did not come: {short(error)}",
            where=bare(file.url),
            fix="Check the network and run again.",
        ) from error


def patient(ask: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Return what `ask` returns; where it raises `OSError` it is asked again, a few times, with growing pauses."""
    for attempt in range(1, attempts):
        try:
            return ask()
        except OSError:
            time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1) * (1 + random.random()))
    return ask()


def is_web(url: str) -> bool:
    """Return whether a URL is one of a web server."""
    return url.startswith(("http://", "https://"))


_SECRET = ("x-amz-", "x-goog-", "signature", "sig", "token", "expires", "awsaccesskeyid", "googleaccessid", "policy")


def bare(url: str) -> str:
    """Return a URL without passwords and signatures, as it may be written down."""
    parts = urlsplit(url)
    if not is_web(url):
        return url
    kept = [item for item in parts.query.split("&") if item and not item.lower().startswith(_SECRET)]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="&".join(kept), fragment="").geturl()


def changed(url: str) -> DownloadError:
    """Return the error of a file that is not what it was a moment ago."""
    return DownloadError("The file was changed while it was fetched.", where=bare(url), fix="Run again.")


def short(error: Exception) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
