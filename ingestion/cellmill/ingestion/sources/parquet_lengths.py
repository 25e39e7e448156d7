"""How long the lists of a Parquet column are, read from its pages without decoding a value.

Pages begin with levels that say at which values a new list begins, one bit a value and mostly less. Of a page only its
levels are taken apart, so that a list of any length takes no memory before it is known to be one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas.jit import compiled
from cellmill.ingestion.sources.holding import hold

I64 = npt.NDArray[np.int64]

_HEADING, _LONGEST_HEADING = 1 << 8, 1 << 22
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_RLE = 3
"""The encoding of levels that all writers of this century's Parquet use."""
_CODECS = {"SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd", "LZ4": "lz4_raw"}
_BAD = -1


def list_lengths(metadata: pq.FileMetaData, column: str, file: Any, where: str) -> Iterator[I64]:
    """Yield the lengths of the lists of a column, group of rows by group of rows; of an empty list it is 1.

    Parameters
    ----------
    metadata
        Of the file.
    column
        Its name; it holds lists of numbers or text.
    file
        The file.
    where
        It, for messages.

    Raises
    ------
    OSError
        A page is damaged.
    ResourceError
        A page, or the lengths of all lists of a group, do not fit into a task.
    """
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(j) for j in range(group.num_columns))
        chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
        hold("Where the lists of a group of rows begin", 8 * group.num_rows, where)
        lengths = np.zeros(group.num_rows, np.int64)
        found, seen = 0, 0
        for levels, n in _levels(chunk, file, f"{where}: {column}"):
            found = _count(levels, n, lengths, found)
            seen += n
            if found == _BAD:
                raise OSError("The levels of a page are damaged.")
        if found != lengths.size or seen != chunk.num_values:
            raise OSError(f"The lists of {column} are not as many as the file says.")
        yield lengths


def _levels(chunk: Any, file: Any, where: str) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """Yield the encoded levels of each page of a column's chunk, and how many there are."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    end, seen = at + chunk.total_compressed_size, 0
    while seen < chunk.num_values and at < end:
        header, size = _heading(file, at)
        kind, decoded, stored = header[1], header[2], header[3]
        if min(decoded, stored) < 0:
            raise OSError("A page has no size.")
        hold("A page", decoded + stored, where)
        if kind in (_DATA, _DATA_2):
            about = header[5 if kind == _DATA else 8]
            file.seek(at + size)
            if kind == _DATA_2:
                levels = np.frombuffer(file.read(min(about[6], stored)), np.uint8)
            else:
                levels = _first_levels(_decoded(file.read(stored), chunk.compression, decoded), about[4])
            seen += about[1]
            yield levels, about[1]
        at += size + stored


def _first_levels(page: npt.NDArray[np.uint8], encoding: int) -> npt.NDArray[np.uint8]:
    if encoding != _RLE:
        raise OSError("Its levels are encoded as nobody does any more.")
    (size,) = struct.unpack_from("<I", page.data) if page.size >= 4 else (0,)
    return page[4 : 4 + size]


def _decoded(stored: bytes, compression: str, size: int) -> npt.NDArray[np.uint8]:
    if compression == "UNCOMPRESSED":
        return np.frombuffer(stored, np.uint8)
    if compression not in _CODECS:
        raise OSError(f"Pages are compressed with {compression}, which is not known.")
    if compression == "LZ4" and stored[:8] == struct.pack(">II", size, max(0, len(stored) - 8)):
        # As Hadoop wrote it.
        stored = stored[8:]
    return np.frombuffer(pa.Codec(_CODECS[compression]).decompress(stored, size), np.uint8)


def _heading(file: Any, at: int) -> tuple[dict[int, Any], int]:
    """Return the header of the page at a place, and its size: it may hold examples of values, of any length."""
    length = _HEADING
    while True:
        file.seek(at)
        text = file.read(length)
        try:
            reader = _Compact(text)
            return reader.struct(), reader.at
        except (IndexError, struct.error):
            if len(text) < length or length >= _LONGEST_HEADING:
                raise OSError("A page has no header.") from None
            length *= 8
        except KeyError:
            raise OSError("The header of a page is damaged.") from None


class _Compact:
    """Reads what is written in Thrift's compact protocol: structures as dictionaries by the numbers of their fields."""

    def __init__(self, text: bytes) -> None:
        self._text, self.at = text, 0

    def struct(self) -> dict[int, Any]:
        """Read one structure."""
        found: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            gap = kind >> 4
            number = number + gap if gap else self._zigzag()
            found[number] = self._value(kind & 15)
        return found

    def _value(self, kind: int, *, in_list: bool = False) -> Any:
        if kind in (1, 2):
            return self._byte() == 1 if in_list else kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._take(8)
        if kind == 8:
            return self._take(self._number())
        if kind in (9, 10):
            heading = self._byte()
            n = heading >> 4 if heading >> 4 < 15 else self._number()
            return [self._value(heading & 15, in_list=True) for _ in range(n)]
        if kind == 12:
            return self.struct()
        raise KeyError(kind)

    def _byte(self) -> int:
        value = self._text[self.at]
        self.at += 1
        return value

    def _take(self, n: int) -> bytes:
        if self.at + n > len(self._text):
            raise IndexError
        self.at += n
        return self._text[self.at - n : self.at]

    def _number(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise KeyError("a number has no end")

    def _zigzag(self) -> int:
        value = self._number()
        return value >> 1 ^ -(value & 1)


@compiled
def _count(levels: npt.NDArray[np.uint8], n: int, lengths: I64, found: int) -> int:
    """Count the values of each list in one page; return how many lists there are so far.

    Parameters
    ----------
    levels
        Runs of equal levels, and packed bits: 0 where a list begins.
    n
        Values of the page.
    lengths : int64 [lists of the group]
        Of those that were found; the last may go on in this page.
    found
        How many were found before.
    """
    at, seen = 0, 0
    while seen < n:
        header: Any = np.int64(0)
        shift = 0
        while True:
            if at >= levels.size or shift > 56:
                return _BAD
            byte = np.int64(levels[at])
            at += 1
            header |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        many = header >> 1
        if header & 1:
            for _ in range(many):
                if at >= levels.size:
                    return _BAD
                bits = levels[at]
                at += 1
                for bit in range(min(8, n - seen)):
                    if not (bits >> bit) & 1:
                        if found >= lengths.size:
                            return _BAD
                        found += 1
                    elif found == 0:
                        return _BAD
                    lengths[found - 1] += 1
                seen = min(n, seen + 8)
        else:
            if at >= levels.size or many == 0:
                return _BAD
            level = levels[at]
            at += 1
            many = min(many, n - seen)
            if level & 1:
                if found == 0:
                    return _BAD
                lengths[found - 1] += many
            else:
                if found + many > lengths.size:
                    return _BAD
                lengths[found : found + many] += 1
                found += many
            seen += many
    return found
