"""A data file behind a URL: streamed, with progress, checked and unpacked."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import requests

from cellmill.console import progress
from cellmill.errors import DownloadError
from cellmill.ingestion.datasets.entries import UrlFile

_CONNECT_S, _READ_S = 15, 60
_BLOCK = 1 << 20
_ATTEMPTS = 3


def fetch_from_url(file: UrlFile, scratch: Path, fresh: Path, by_hand: str) -> None:
    """Download into `scratch`, check the md5 where one is known, and write the data file to `fresh`.

    Raises
    ------
    DownloadError
        The server does not answer or does not send the file, the checksum differs, or it does not unpack.
    """
    raw = scratch / "download"
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            digest = _stream(file.url, raw, by_hand)
            break
        except requests.RequestException as error:
            if attempt == _ATTEMPTS:
                raise DownloadError(
                    f"The download failed {_ATTEMPTS} times: {_short(error)}",
                    where=file.url,
                    fix=f"Check the network and proxy settings. By hand: {by_hand}",
                ) from error
    if file.md5 is not None and digest != file.md5:
        raise DownloadError(
            f"The download has the md5 {digest}, not {file.md5}.", where=file.url, fix=f"Fetch again. {by_hand}"
        )
    try:
        _unpack(file, raw, fresh)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"The download does not unpack as {file.unpack}: {error}.", where=file.url, fix=by_hand
        ) from error


def _stream(url: str, raw: Path, by_hand: str) -> str:
    """Write the body to `raw` and return its md5."""
    state = hashlib.md5(usedforsecurity=False)
    with requests.get(url, stream=True, timeout=(_CONNECT_S, _READ_S)) as answer:
        kind = answer.headers.get("Content-Type", "")
        if answer.status_code >= 500:
            answer.raise_for_status()
        # A page of HTML under a 2xx status is a log-in or a test for robots, not data.
        if answer.status_code != 200 or kind.startswith("text/html"):
            raise DownloadError(
                f"The server did not send the file (HTTP {answer.status_code}, {kind or 'no content type'}).",
                where=url,
                fix=by_hand,
            )
        length = answer.headers.get("Content-Length")
        encoded = "Content-Encoding" in answer.headers
        total = int(length) if length is not None and not encoded else None
        received = 0
        with raw.open("wb") as sink, progress(total, urlparse(url).netloc, unit="bytes") as advance:
            for block in answer.iter_content(_BLOCK):
                sink.write(block)
                state.update(block)
                received += len(block)
                advance(len(block))
    if total is not None and received != total:
        raise requests.ConnectionError(f"the connection ended after {received:,} of {total:,} bytes")
    return state.hexdigest()


def _unpack(file: UrlFile, raw: Path, fresh: Path) -> None:
    if file.unpack == "none":
        raw.replace(fresh)
    elif file.unpack == "gzip":
        with gzip.open(raw) as source, fresh.open("wb") as sink:
            shutil.copyfileobj(source, sink, _BLOCK)
    else:
        with zipfile.ZipFile(raw) as archive:
            names = [name for name in archive.namelist() if name.endswith(file.member or "")]
            if len(names) != 1:
                raise zipfile.BadZipFile(f"{len(names)} files end with {file.member!r}")
            with archive.open(names[0]) as source, fresh.open("wb") as sink:
                shutil.copyfileobj(source, sink, _BLOCK)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
