"""Files that carry the checksum of all their bytes: where it stands, the checksum is taken over zeros."""

from __future__ import annotations

import hashlib
import re

EMPTY_SEAL = "seal:" + "0" * 64
"""What is to be written, once, into a file that shall be sealed."""

_SEAL = re.compile(rb"seal:([0-9a-f]{64})")


def seal(content: bytes) -> bytes:
    """Return the bytes of a file with their checksum in the place of the empty seal.

    Raises
    ------
    ValueError
        There is not exactly one empty seal.
    """
    empty = EMPTY_SEAL.encode()
    if content.count(empty) != 1:
        raise ValueError("a file to be sealed has one empty seal")
    return content.replace(empty, b"seal:" + hashlib.sha256(content).hexdigest().encode())


def is_sealed(content: bytes) -> bool:
    """Return whether the bytes of a file are those that were sealed."""
    return any(
        hashlib.sha256(content[: found.start()] + EMPTY_SEAL.encode() + content[found.end() :]).hexdigest().encode()
        == found[1]
        for found in _SEAL.finditer(content)
    )
