"""What reading columns of a Parquet file side by side takes: of each, a buffer, a page, and what the library keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

_BUFFERS = 1 << 23
"""Of all columns together, but never less than is read at once from a disk."""
_LEAST, _MOST = 1 << 13, 1 << 20
_COLUMN_BYTES = 1 << 12
"""Of a column that is read, beside its buffer and its page."""
_METADATA_COPIES = 9
"""Of what the file says about its chunks, when it is taken apart."""
_HEADER = 64
_FIELD = 0x15
"""In Thrift's compact protocol: the next field, a number of 32 bits."""


def buffer_bytes(n_columns: int) -> int:
    """Return the size of the buffer of a column, where so many are read side by side."""
    return max(_LEAST, min(_MOST, _BUFFERS // max(n_columns, 1)))


def reading_bytes(metadata: pq.FileMetaData, columns: Sequence[str], file: Any) -> int:
    """Return what reading columns without lists takes, in the group of rows where it is most.

    Parameters
    ----------
    metadata
        Of the file.
    columns
        Their names.
    file
        The file, for sizes of pages: that of the first is taken for all, since writers fill pages to a limit.
    """
    wanted = set(columns)
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    largest = max(groups, key=lambda group: int(group.total_byte_size), default=None)
    every = (largest.column(i) for i in range(largest.num_columns)) if largest is not None else ()
    chunks = [chunk for chunk in every if chunk.path_in_schema in wanted]
    if not chunks:
        return 0
    page = _page_bytes(file, max(chunks, key=lambda chunk: int(chunk.total_uncompressed_size)))
    buffer = buffer_bytes(len(chunks))
    read = sum(min(buffer, chunk.total_compressed_size) for chunk in chunks)
    decoded = sum(min(page, chunk.total_uncompressed_size) for chunk in chunks)
    return int(read + decoded + len(chunks) * _COLUMN_BYTES + metadata.serialized_size * _METADATA_COPIES)


def _page_bytes(file: Any, chunk: Any) -> int:
    """Return the decoded size of a chunk's first page, and of its dictionary; of the whole chunk if nothing says it."""
    places = [chunk.data_page_offset]
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        places.append(chunk.dictionary_page_offset)
    total = 0
    for place in places:
        file.seek(place)
        size = _decoded_size(file.read(_HEADER))
        if size is None:
            return int(chunk.total_uncompressed_size)
        total += size
    return total


def _decoded_size(header: bytes) -> int | None:
    """Return the second number of a page's header (its kind is the first), None if there is none."""
    at, numbers = 0, []
    for _ in range(2):
        if at >= len(header) or header[at] != _FIELD:
            return None
        at, value, shift = at + 1, 0, 0
        while at < len(header) and shift < 35:
            byte = header[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        # Numbers are written so that small negative ones are short, too.
        numbers.append(value >> 1 if not value & 1 else -1)
    return numbers[1] if numbers[1] >= 0 else None
