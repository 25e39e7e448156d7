"""Object stores: opened with bounded patience, and read in ranges whose length is verified."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from obstore.exceptions import BaseError, NotSupportedError
from obstore.store import from_url

from cellmill.store_errors import ShortAnswerError

RETRIES = 5
RETRY_S = 60
FIRST_PAUSE_S = 0.1
"""How often, and for how long, one request is tried again, and the pause before the first time."""

SILENCE_S = 30.0
"""How long a connection may bring nothing."""


class EmptyFileError(Exception):
    """The file has no bytes."""


_NO_RANGE = re.compile(r"416 Range Not Satisfiable|non-partial response|bytes 0--1/0")


def open_store(url: str) -> Any:
    """Return the obstore store of a URL, with bounded patience.

    One request is tried again a few times with growing pauses where the server is in trouble or the connection breaks.
    """
    # Options given here replace those of the environment, of which only this one is in use.
    plain = any(
        os.environ.get(f"{kind}_ALLOW_HTTP", "").lower() in ("1", "true") for kind in ("AWS", "AZURE", "GOOGLE")
    )
    return from_url(
        url,
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_S),
            "backoff": {"init_backoff": timedelta(seconds=FIRST_PAUSE_S), "max_backoff": timedelta(seconds=5)},
        },
        client_options={
            "timeout": "600s",
            "read_timeout": timedelta(seconds=SILENCE_S),
            "connect_timeout": "10s",
            "allow_http": plain,
        },
    )


def fetch(store: Any, key: str, part: Any) -> bytes:
    """Return a range of a file: (start, end), ``{"offset": start}`` or ``{"suffix": n}``.

    Ranges are asked for even where all is wanted: the answer then says which bytes it should hold, so that one
    that is cut short is seen.
    """
    try:
        found = store.get(key, options={"range": part})
        content = bytes(found.bytes())
    except NotSupportedError:
        # Azure knows no ranges from the end.
        size = int(store.head(key)["size"])
        return fetch(store, key, {"offset": max(0, size - part["suffix"])})
    except BaseError as error:
        # No range of an empty file can be satisfied.
        if isinstance(part, dict) and _NO_RANGE.search(str(error)) and not int(store.head(key)["size"]):
            raise EmptyFileError from error
        raise
    first, last = found.range
    wanted = part[1] - part[0] if isinstance(part, tuple) else last - first
    if len(content) != last - first or len(content) != wanted:
        raise ShortAnswerError(f"{len(content):,} bytes came of {wanted:,}")
    return content


def find_spans(starts: Sequence[int], ends: Sequence[int], gap: int) -> list[tuple[int, int]]:
    """Return ranges, those near to each other as one; empty ones are left out."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted((start, end) for start, end in zip(starts, ends, strict=True) if end > start):
        if spans and start - spans[-1][1] <= gap:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((start, end))
    return spans
