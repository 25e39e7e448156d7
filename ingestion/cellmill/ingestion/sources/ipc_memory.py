"""What the batches of an Arrow file take when they are decoded, known from their headings."""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa

from cellmill.ingestion.sources.holding import hold

_FILE_MAGIC = 8
_HEADER, _BUFFERS, _COMPRESSION, _OF_DICTIONARY = 2, 2, 3, 1
"""Numbers of fields in Arrow's schemas of messages, batches and dictionaries."""


def refuse_large_batches(source: Any, *, stream: bool, where: str) -> None:
    """Refuse a file of which a batch is decoded to more than a task has memory for; nothing is decoded for it.

    Parameters
    ----------
    source
        The file, mapped.
    stream
        Whether it is a stream, without a table of its batches.
    where
        It, for messages.

    Raises
    ------
    ResourceError
        There is such a batch.
    OSError
        The file is damaged.
    """
    source.seek(0 if stream else _FILE_MAGIC)
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type in ("record batch", "dictionary"):
            hold("A batch of rows", _decoded_bytes(message), where)


def _decoded_bytes(message: Any) -> int:
    """Return the bytes of a message's buffers when they are decoded, 0 where they are used as they lie in the file."""
    heading, body = memoryview(message.metadata), message.body
    try:
        batch = _table(heading, _at(heading, 0), _HEADER)
        if batch is not None and message.type == "dictionary":
            batch = _table(heading, batch, _OF_DICTIONARY)
        if batch is None:
            raise OSError("A message has no batch.")
        buffers = _field(heading, batch, _BUFFERS)
        if body is None or buffers is None or _field(heading, batch, _COMPRESSION) is None:
            return 0
        first = _at(heading, buffers)
        (n,) = struct.unpack_from("<I", heading, first)
        total, content = 0, memoryview(body)
        for number in range(n):
            offset, length = struct.unpack_from("<qq", heading, first + 4 + 16 * number)
            if length:
                # Of what does not become smaller, it is said that it is as it was.
                (size,) = struct.unpack_from("<q", content, offset)
                total += max(size, length)
        return total
    except struct.error as error:
        raise OSError("The heading of a batch is damaged.") from error


def _at(heading: memoryview, place: int) -> int:
    """Follow an offset, as flat buffers have them: it counts from where it stands."""
    return int(place + struct.unpack_from("<I", heading, place)[0])


def _field(heading: memoryview, table: int, number: int) -> int | None:
    """Return where a field of a table is, None if it is not there."""
    known = table - struct.unpack_from("<i", heading, table)[0]
    (size,) = struct.unpack_from("<H", heading, known)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", heading, known + 4 + 2 * number)
    return table + offset if offset else None


def _table(heading: memoryview, table: int, number: int) -> int | None:
    place = _field(heading, table, number)
    return None if place is None else _at(heading, place)
