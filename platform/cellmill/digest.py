"""What large content is known by, sources and shards: its BLAKE3, in hexadecimal, as ``b3sum`` prints it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

_BLOCK = 1 << 19


def digest_of(content: bytes | memoryview) -> str:
    """Return the digest of bytes: 64 hexadecimal digits."""
    return blake3(content).hexdigest()


def digest_of_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Return the digest of a file's bytes: 64 hexadecimal digits.

    Parameters
    ----------
    path
        The file.
    advance
        Called with the number of bytes that were read since the last call.
    """
    state, block = blake3(), memoryview(bytearray(_BLOCK))
    # Mapping it would be a little faster, but who maps a file is killed when another process cuts it short.
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(block):
            state.update(block[:n])
            if advance is not None:
                advance(n)
    return state.hexdigest()
