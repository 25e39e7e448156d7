"""Files of web servers: of one content as a whole, or not at all."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator

import requests

from cellmill.errors import DownloadError, SourceError
from cellmill.ingestion.sources.remote import Facts, bare, changed, patient, short

_LOOKS = 4
_WEB_BLOCK = 1 << 20
_CONNECT_S, _READ_S = 15, 60
_PLAIN = {"Accept-Encoding": "identity"}
_GONE = (404, 410)
_BUSY = (408, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class HttpFile:
    """A file on a web server.

    Parameters
    ----------
    url
        Where it is.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def facts(self) -> Facts | None:
        """See `RemoteFile`."""
        try:
            answer = patient(self._look, _LOOKS)
        except OSError as error:
            raise SourceError(f"The server does not answer: {short(error)}", where=bare(self.url)) from error
        if answer.status_code in _GONE:
            return None
        _refuse_pages(answer, self.url)
        return _facts(answer)

    def _look(self) -> requests.Response:
        answer = _session().head(self.url, timeout=(_CONNECT_S, _READ_S), allow_redirects=True, headers=_PLAIN)
        if answer.status_code in (403, 405, 501):
            # Some servers, and URLs signed for one method, answer GET alone.
            with self._get({}) as answer:
                pass
        return _answered(answer)

    def _get(self, headers: dict[str, str]) -> requests.Response:
        return _session().get(self.url, stream=True, timeout=(_CONNECT_S, _READ_S), headers=_PLAIN | headers)

    def blocks(self, start: int, facts: Facts, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """See `RemoteFile`."""
        # Without a tag nothing says that what comes now belongs to what came before.
        part = facts.tag and (start or stop is not None)
        wanted = f"bytes={start}-{'' if stop is None else stop - 1}"
        with self._get({"Range": wanted, "If-Range": facts.tag} if part else {}) as answer:
            _answered(answer)
            if answer.status_code in (*_GONE, 416):
                raise changed(self.url)
            _refuse_pages(answer, self.url)
            position = self._position(answer, facts)
            if position not in (0, start):
                raise changed(self.url)
            for block in answer.iter_content(_WEB_BLOCK):
                yield position, block
                position += len(block)

    def _position(self, answer: requests.Response, facts: Facts) -> int:
        """Return where an answer begins, once it is known to be of the content that is wanted."""
        if answer.status_code == 200:
            said = _facts(answer)
            other = None not in (said.size, facts.size) and said.size != facts.size
            if said.tag != facts.tag or (other and not facts.tag):
                raise changed(self.url)
            if other:
                raise OSError(f"the server sends {said.size} of {facts.size} bytes")
            return 0
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None:
            raise DownloadError(
                "The server does not say which part of the file it sends.",
                where=bare(self.url),
                fix="Fetch the file by another program, and give its path.",
            )
        # A server need not know `If-Range`.
        if found[2] not in ("*", str(facts.size)) or _tag(answer) not in ("", facts.tag):
            raise changed(self.url)
        return int(found[1])


class _Session(threading.local):
    """Connections of one thread of one process, which are used again."""

    process = 0
    session: requests.Session


_here = _Session()


def _session() -> requests.Session:
    if _here.process != os.getpid():
        _here.process, _here.session = os.getpid(), requests.Session()
    return _here.session


def _facts(answer: requests.Response) -> Facts:
    length = answer.headers.get("Content-Length")
    size = int(length) if length is not None and "Content-Encoding" not in answer.headers else None
    return Facts(size, _tag(answer))


def _tag(answer: requests.Response) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _answered(answer: requests.Response) -> requests.Response:
    if answer.status_code in _BUSY:
        raise OSError(f"HTTP {answer.status_code}")
    return answer


def _refuse_pages(answer: requests.Response, url: str) -> None:
    kind = answer.headers.get("Content-Type", "")
    # A page of HTML under a 2xx status is a log-in or a test for robots, not data.
    if answer.status_code not in (200, 206) or kind.startswith("text/html"):
        raise DownloadError(
            f"The server did not send the file (HTTP {answer.status_code}, {kind or 'no content type'}).",
            where=bare(url),
            fix="Open the URL in a browser: it may need a log-in, or be the page about the file, or of its folder.",
        )
