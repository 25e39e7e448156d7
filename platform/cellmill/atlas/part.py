"""A part of a shard: the cells of it that came from one source. Most shards have one; compacted ones have many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache

from pydantic import Field, TypeAdapter

from cellmill.config import Config


class Part(Config):
    """The cells of a shard that came from one source.

    Attributes
    ----------
    dataset, organism, source_url, source_digest, licence
        What the cells are, and the file that they came from.
    config_digest, recipe
        As the shards had them that the cells were first in.
    withdrawals
        Numbers of the withdrawals that took cells of the source, with commas between; empty for none.
    n_rows, n_cells
        Rows of the shard that are of the source, and how many of these the snapshot holds.
    files
        Digests of the source's files, with blanks between; empty for one file.
    types
        Types of columns that other parts have as another kind; the shard has these columns as text.
    """

    dataset: str
    organism: str
    source_url: str
    source_digest: str
    licence: str
    config_digest: str
    recipe: int
    withdrawals: str = ""
    n_rows: int
    n_cells: int
    files: str = ""
    types: dict[str, str] = Field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Data set and digest of the source: no two parts of a snapshot's shard have the same."""
        return self.dataset, self.source_digest

    @property
    def made(self) -> tuple[str, str]:
        """Data set and digest of the resolved configuration: what an ingestion plans as a whole."""
        return self.dataset, self.config_digest


_PARTS = TypeAdapter(tuple[Part, ...])


def encode_parts(parts: Iterable[Part]) -> str:
    """Return parts as the catalog has them, in the order of their keys; those without rows are left out."""
    kept = sorted((part for part in parts if part.n_rows), key=lambda part: part.key)
    found = [part.model_dump(exclude_defaults=True) for part in kept]
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=4096)
def decode_parts(text: str) -> tuple[Part, ...]:
    """Return the parts that a catalog row names."""
    return _PARTS.validate_json(text)


def joined(withdrawals: Iterable[str]) -> str:
    """Return the numbers of several lists of withdrawals as one."""
    numbers = {int(number) for some in withdrawals for number in some.split(",") if number}
    return ",".join(str(number) for number in sorted(numbers))
