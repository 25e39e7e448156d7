"""The content hash of a cell: what it is by its counts alone, wherever and whenever it is met."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled, inlined

U64 = npt.NDArray[np.uint64]


def feature_keys(feature_ids: Sequence[str]) -> U64:
    """Return two 64-bit keys of each feature: the halves of blake2b of its id.

    Returns
    -------
    uint64[n_features, 2]
    """
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in feature_ids)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2).astype(np.uint64)


def content_hash(indptr: npt.NDArray[Any], indices: npt.NDArray[Any], data: npt.NDArray[Any], keys: U64) -> U64:
    """Return the 128-bit content hash of each cell.

    The hash is a function of the set of (feature id, count) with count > 0: neither the order of columns, nor token
    ids, nor features that the cell does not express play a part. Each pair is mixed into 128 bits, the pairs are
    added modulo 2**64 in both halves, and the sums are mixed once more with the number of pairs.

    Parameters
    ----------
    indptr, indices, data
        Counts as CSR, each column at most once in a row; float counts must be integers.
    keys : uint64[n_features, 2]
        `feature_keys` of the columns.

    Returns
    -------
    uint64[n_cells, 2]
        High and low half. The low half serves as cell id where a cell has no other.
    """
    out = np.empty((indptr.size - 1, 2), dtype=np.uint64)
    first, second = np.ascontiguousarray(keys[:, 0]), np.ascontiguousarray(keys[:, 1])
    _content_hash(indptr, indices, data, first, second, out)
    return out


@inlined
def mix(x: np.uint64) -> np.uint64:
    """Return the finaliser of splitmix64: a bijection of 64-bit numbers whose every output bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def _content_hash(
    indptr: npt.NDArray[Any], indices: npt.NDArray[Any], data: npt.NDArray[Any], first: U64, second: U64, out: U64
) -> None:
    for row in range(indptr.size - 1):
        entries = slice(indptr[row], indptr[row + 1])
        out[row, 0], out[row, 1] = hash_row(indices[entries], data[entries], first, second)


@compiled
def hash_row(
    columns: npt.NDArray[Any], counts: npt.NDArray[Any], first: U64, second: U64
) -> tuple[np.uint64, np.uint64]:
    """Return both halves of the content hash of one cell; see `content_hash`."""
    high, low, n = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(counts.size):
        count = np.uint64(counts[i])
        column = np.uintp(columns[i])
        spread = count * np.uint64(0x9E3779B97F4A7C15)
        # A mask in place of a branch lets the compiler work on several entries at once.
        present = np.uint64(count != 0)
        mask = np.uint64(0) - present
        high += mask & mix(first[column] ^ spread)
        low += mask & mix(second[column] + spread)
        n += present
    return mix(high ^ (n * np.uint64(0xD6E8FEB86659FD93))), mix(low + (n * np.uint64(0xA0761D6478BD642F)))


def cell_ids(source_digest: str, source_rows: npt.NDArray[np.int64]) -> U64:
    """Return the ids of cells by the file and the row they came from, stable when shards are made anew.

    splitmix64 of (first 8 bytes of the source's digest) xor row: different rows of a file never share an id.

    Parameters
    ----------
    source_digest
        Hexadecimal.
    source_rows : int64[n]
        Row in the source.

    Returns
    -------
    uint64[n]
    """
    base = np.uint64(int(source_digest[:16], 16))
    return splitmix64(source_rows.astype(np.uint64) ^ base)


def splitmix64(x: U64) -> U64:
    """Return the next output of the splitmix64 generator for each state (Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_bytes(hashes: U64) -> npt.NDArray[np.uint8]:
    """Return hashes as bytes, high half first, big-endian: bytes sort as the numbers do.

    Parameters
    ----------
    hashes : uint64[n, 2]

    Returns
    -------
    uint8[n, 16]
    """
    return np.ascontiguousarray(hashes.astype(">u8")).view(np.uint8).reshape(-1, 16)
