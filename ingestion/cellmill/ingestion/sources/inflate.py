"""Bytes of a file that may be gzipped, a bounded piece at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from cellmill.errors import SourceError

_GZIP = b"\x1f\x8b"
_PIECE = 1 << 22
_SUSPICIOUS_BYTES = 1 << 26
_SUSPICIOUS_RATIO = 300


def inflated(blocks: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed if it is gzipped (of several members, too).

    Parameters
    ----------
    blocks
        The file's bytes as they are stored.
    where
        The file, for messages.

    Raises
    ------
    SourceError
        The compressed bytes are damaged, cut short, or grow into hundreds of times their size.
    """
    source = iter(blocks)
    first = next(source, b"")
    while len(first) < 2 and (more := next(source, b"")):
        first += more
    if not first.startswith(_GZIP):
        yield first
        yield from source
        return
    taken = grown = 0
    decoder = zlib.decompressobj(wbits=31)
    fresh = True
    for block in _chain(first, source):
        taken += len(block)
        rest = block
        while rest:
            if decoder.eof:
                # Zeros after the last member are padding, as gzip itself reads them.
                rest = rest if rest.strip(b"\0") else b""
                decoder, fresh = (zlib.decompressobj(wbits=31), True) if rest else (decoder, fresh)
                continue
            fresh = False
            try:
                piece = decoder.decompress(rest, _PIECE)
            except zlib.error as error:
                raise SourceError(f"The gzipped bytes are damaged: {error}.", where=where, fix=_FIX) from error
            grown += len(piece)
            rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            used = taken - len(rest)
            if grown > _SUSPICIOUS_BYTES and grown > used * _SUSPICIOUS_RATIO:
                raise SourceError(
                    f"{used / 1e6:,.1f} MB of the file have grown to more than {grown / 1e6:,.0f} MB.",
                    where=where,
                    fix="No table of counts is compressed so well: fetch the file again.",
                )
            if piece:
                yield piece
    if not decoder.eof or fresh:
        raise SourceError("The gzipped file is cut short.", where=where, fix=_FIX)


_FIX = "Fetch the file again."


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def lines(blocks: Iterable[bytes], where: str, most: int) -> list[str]:
    """Return the lines of a text of at most `most` bytes, without the empty ones at its end.

    Raises
    ------
    SourceError
        The text is longer, or is not UTF-8.
    """
    parts, size = [], 0
    for block in blocks:
        size += len(block)
        if size > most:
            raise SourceError(
                f"The table is larger than {most / 1e6:,.0f} MB.", where=where, fix="Is it the right file?"
            )
        parts.append(block)
    try:
        text = b"".join(parts).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"The file is no UTF-8 text: {error}.", where=where, fix=_FIX) from error
    found = text.split("\n")
    while found and not found[-1].strip():
        found.pop()
    return [line.rstrip("\r") for line in found]
