"""One remote file: what is known of it before it is fetched, and its bytes from any position on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import requests
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.exceptions import PreconditionError as ChangedError

from cellmill.errors import DownloadError, SourceError
from cellmill.storage import Storage

_BLOCK = 1 << 24
_WEB_BLOCK = 1 << 20
_CONNECT_S, _READ_S = 15, 60
_PLAIN = {"Accept-Encoding": "identity"}


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

    def blocks(self, start: int, facts: Facts) -> Iterator[tuple[int, bytes]]:
        """Yield (position, bytes) from `start` on, or from the beginning where the server cannot continue.

        Raises
        ------
        OSError
            The connection failed; it may be tried again.
        DownloadError
            Trying again is of no use.
        """
        ...


class ObjectFile:
    """A file in an object store."""

    def __init__(self, url: str) -> None:
        self.url = url
        parent, _, self._key = url.rpartition("/")
        self._store = Storage.open(parent).store

    def facts(self) -> Facts | None:
        """See `RemoteFile`."""
        try:
            found = self._store.head(self._key)
        except (FileNotFoundError, NotFoundError):
            return None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise SourceError(
                "The store refuses access.", where=self.url, fix="Check the credentials in the environment."
            ) from error
        except BaseError as error:
            raise SourceError(f"The store does not answer: {short(error)}", where=self.url) from error
        return Facts(int(found["size"]), found["e_tag"] or str(found["last_modified"]))

    def blocks(self, start: int, facts: Facts) -> Iterator[tuple[int, bytes]]:
        """See `RemoteFile`."""
        assert facts.size is not None
        for first in range(start, facts.size, _BLOCK):
            wanted = {"range": (first, min(first + _BLOCK, facts.size)), "if_match": facts.tag or None}
            try:
                yield first, bytes(self._store.get(self._key, options=wanted).bytes())
            except ChangedError as error:
                raise changed(self.url) from error
            except BaseError as error:
                raise OSError(short(error)) from error


class HttpFile:
    """A file on a web server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def facts(self) -> Facts | None:
        """See `RemoteFile`."""
        try:
            answer = requests.head(self.url, timeout=(_CONNECT_S, _READ_S), allow_redirects=True, headers=_PLAIN)
            if answer.status_code in (403, 405, 501):
                # Some servers, and URLs signed for one method, answer GET alone.
                with requests.get(self.url, stream=True, timeout=(_CONNECT_S, _READ_S), headers=_PLAIN) as answer:
                    pass
        except requests.RequestException as error:
            raise SourceError(f"The server does not answer: {short(error)}", where=bare(self.url)) from error
        if answer.status_code in (404, 410):
            return None
        _refuse_pages(answer, self.url)
        return _facts(answer)

    def blocks(self, start: int, facts: Facts) -> Iterator[tuple[int, bytes]]:
        """See `RemoteFile`."""
        headers = dict(_PLAIN)
        if start and facts.tag:
            headers |= {"Range": f"bytes={start}-", "If-Range": facts.tag}
        try:
            with requests.get(self.url, stream=True, timeout=(_CONNECT_S, _READ_S), headers=headers) as answer:
                if answer.status_code >= 500:
                    raise OSError(f"HTTP {answer.status_code}")
                _refuse_pages(answer, self.url)
                position = start if answer.status_code == 206 else 0
                if position == 0 and _facts(answer) != facts:
                    raise changed(self.url)
                for block in answer.iter_content(_WEB_BLOCK):
                    yield position, block
                    position += len(block)
        except requests.RequestException as error:
            raise OSError(short(error)) from error


def remote_file(url: str) -> RemoteFile:
    """Return the file behind a URL."""
    return HttpFile(url) if is_web(url) else ObjectFile(url)


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


def _facts(answer: requests.Response) -> Facts:
    length = answer.headers.get("Content-Length")
    size = int(length) if length is not None and "Content-Encoding" not in answer.headers else None
    return Facts(size, answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


def _refuse_pages(answer: requests.Response, url: str) -> None:
    kind = answer.headers.get("Content-Type", "")
    # A page of HTML under a 2xx status is a log-in or a test for robots, not data.
    if answer.status_code not in (200, 206) or kind.startswith("text/html"):
        raise DownloadError(
            f"The server did not send the file (HTTP {answer.status_code}, {kind or 'no content type'}).",
            where=bare(url),
            fix="Open the URL in a browser: it may need a log-in, or be the page about the file, or of its folder.",
        )
