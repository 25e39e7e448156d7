"""Which features were measured in which cells of a shard: those of its columns, or of a compacted shard some of them.

A compacted shard has the columns of all of its sources. The file of its cells' metadata says which of them each source
has, so that a count of zero is told from a gene that nobody looked for.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

import google_crc32c
import numpy as np
import numpy.typing as npt

from cellmill.atlas.cells import CellsFile
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.part import Part
from cellmill.atlas.part_rows import part_of_rows
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]

MEASURED = b"cellmill.measured"
"""Key of the schema's metadata in the file of the cells."""


@dataclass(frozen=True)
class Measured:
    """What was measured in a shard.

    Attributes
    ----------
    sets : uint32 [k] each
        Tokens, each set once.
    of_row : int32 [n_rows] or None
        Which set each row has; None where there is one set.
    """

    sets: tuple[U32, ...]
    of_row: I32 | None

    @property
    def nbytes(self) -> int:
        """Memory that it takes beside the shard's own tokens."""
        if self.of_row is None:
            return 0
        return self.of_row.nbytes + sum(tokens.nbytes for tokens in self.sets)


def encode_measured(tokens: U32, sets: Mapping[tuple[str, str], U32]) -> bytes:
    """Return what the file of the cells says of what was measured.

    Parameters
    ----------
    tokens : uint32 [n_features]
        Of the shard's columns.
    sets : uint32 [k] each
        Tokens that each source has, by the key of its part.
    """
    packed = {key: np.packbits(np.isin(tokens, some)).tobytes() for key, some in sets.items()}
    different = sorted(set(packed.values()))
    content = {
        "sets": [base64.b64encode(bits).decode() for bits in different],
        "of": {"/".join(key): different.index(bits) for key, bits in sorted(packed.items())},
    }
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    return json.dumps({"crc32c": google_crc32c.value(text.encode()), "content": text}).encode()


def read_measured(storage: Storage, entry: ShardEntry, tokens: U32) -> Measured:
    """Return what was measured in a shard that has these tokens as its columns.

    Raises
    ------
    IntegrityError
        The file of the cells does not say it, or is damaged.
    """
    if not entry.parts:
        return Measured((tokens,), None)
    sets, of_part = _read(storage, entry, tokens)
    numbers = np.array([of_part[part.key] for part in entry.sources], np.int32)
    if len(sets) == 1:
        return Measured(sets, None)
    return Measured(sets, numbers[part_of_rows(storage, entry)])


def measured_by_part(storage: Storage, entry: ShardEntry, tokens: U32) -> list[tuple[Part, U32]]:
    """Return the tokens that were measured in each part of a shard: uint32 [k] each."""
    if not entry.parts:
        return [(entry.sources[0], tokens)]
    sets, of_part = _read(storage, entry, tokens)
    return [(part, sets[of_part[part.key]]) for part in entry.sources]


def _read(storage: Storage, entry: ShardEntry, tokens: U32) -> tuple[tuple[U32, ...], dict[tuple[str, str], int]]:
    try:
        told = json.loads((CellsFile(storage, entry).schema.metadata or {})[MEASURED])
        if google_crc32c.value(told["content"].encode()) != told["crc32c"]:
            raise ValueError("it does not have the checksum it was written with")
        content = json.loads(told["content"])
        packed = [np.frombuffer(base64.b64decode(bits), np.uint8) for bits in content["sets"]]
        sets = tuple(tokens[np.unpackbits(bits, count=tokens.size).astype(bool)] for bits in packed)
        of_part = {part.key: int(content["of"]["/".join(part.key)]) for part in entry.sources}
        if any(number >= len(sets) for number in of_part.values()):
            raise ValueError("it names a set that is not there")
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"Which features were measured cannot be read: {error!r}.", where=storage.join(entry.cells_path)
        ) from error
    return sets, of_part
