"""The vocabulary in an atlas: segments that are written once, so that no id is ever given twice."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable
from typing import Protocol

from cellmill.errors import ConflictError, IntegrityError
from cellmill.genes.feature import Feature
from cellmill.genes.vocabulary import Vocabulary, read_features, write_features

_FOLDER = "vocabulary"
_SEGMENT = re.compile(rf"^{_FOLDER}/(\d{{3,}})\.parquet$")
_ATTEMPTS = 200
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.5


class SegmentStorage(Protocol):
    """What the store needs of a storage."""

    @property
    def url(self) -> str:
        """Where the storage is, for errors."""

    def get(self, key: str) -> bytes:
        """Return the bytes under `key`."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write under `key` unless something is there, atomically."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys below `prefix`."""


class VocabularyStore:
    """Reads and extends the vocabulary of an atlas.

    ``vocabulary/000.parquet``, ``001.parquet``, ... each hold the features that one allocation added. Whoever
    writes the next number owns the token ids after the last; all others read it and try the number after.

    Parameters
    ----------
    storage
        The atlas's storage.
    """

    def __init__(self, storage: SegmentStorage) -> None:
        self.storage = storage
        self._known = Vocabulary()
        self._n_read = 0

    def load(self) -> Vocabulary:
        """Return the vocabulary as it is now.

        Raises
        ------
        IntegrityError
            A segment is missing, cannot be read, or does not continue the one before.
        """
        numbers = sorted(int(found[1]) for key in self.storage.list(_FOLDER) if (found := _SEGMENT.match(key)))
        if numbers != list(range(len(numbers))) or len(numbers) < self._n_read:
            missing = next((i for i, number in enumerate(numbers) if i != number), len(numbers))
            raise IntegrityError(
                "A segment of the vocabulary is missing.",
                where=f"{self.storage.url}/{_key(missing)}",
                fix="Restore the file from a copy of the atlas.",
            )
        vocabulary = self._known
        for number in numbers[self._n_read :]:
            where = f"{self.storage.url}/{_key(number)}"
            features, start = read_features(self.storage.get(_key(number)), where)
            if start != vocabulary.size:
                raise IntegrityError(
                    f"The segment starts at token id {start:,}; the ones before it end at {vocabulary.size:,}.",
                    where=where,
                )
            longer = vocabulary.extend(features)
            if longer.size != vocabulary.size + len(features):
                raise IntegrityError("The segment gives an id to a feature that has one.", where=where)
            vocabulary = longer
        self._known, self._n_read = vocabulary, len(numbers)
        return vocabulary

    def allocate(self, features: Iterable[Feature]) -> Vocabulary:
        """Give token ids to the features that have none, and return the vocabulary that holds them all.

        Safe while others do the same: on return every id is durable, and no other feature has it.

        Raises
        ------
        ConflictError
            Others were first, time after time.
        GeneMappingError
            An id stands for another modality or organism already.
        """
        wanted = tuple(features)
        pause = _FIRST_PAUSE_S
        for _ in range(_ATTEMPTS):
            vocabulary = self.load()
            new = vocabulary.missing(wanted)
            if not new:
                return vocabulary
            if self.storage.put_if_absent(_key(self._n_read), write_features(new, vocabulary.size)):
                return self.load()
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        raise ConflictError(
            f"{_ATTEMPTS} attempts to extend the vocabulary were lost to other writers.",
            where=f"{self.storage.url}/{_FOLDER}",
            fix="Run again; fewer ingests at once help.",
        )


def _key(number: int) -> str:
    return f"{_FOLDER}/{number:03d}.parquet"
