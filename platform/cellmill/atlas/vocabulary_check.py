"""Whether a vocabulary still is the one that shards were written with."""

from __future__ import annotations

from collections.abc import Sequence

from cellmill.atlas.entry import ShardEntry
from cellmill.errors import IntegrityError
from cellmill.genes import Vocabulary


def check_vocabulary(vocabulary: Vocabulary, shards: Sequence[ShardEntry], where: str) -> None:
    """Refuse a vocabulary that lacks features which shards were written with, or has others in their place.

    Parameters
    ----------
    vocabulary
        Read after the rows of the shards.
    shards
        Rows of the catalog; that with the largest vocabulary counts.
    where
        Of the vocabulary, for the error.

    Raises
    ------
    IntegrityError
        Segments of it are lost or replaced: a new feature would get a token id that another one has.
    """
    if not shards:
        return
    last = max(shards, key=lambda entry: entry.vocabulary_size)
    size = last.vocabulary_size
    if size > vocabulary.size or vocabulary.prefix(size).digest() != last.vocabulary_digest:
        raise IntegrityError(
            f"The vocabulary's first {size:,} tokens are not those that shards were written with.",
            where=where,
            fix="Restore its segments from a copy of the atlas.",
        )
