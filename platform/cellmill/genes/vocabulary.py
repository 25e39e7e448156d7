"""Token ids of features: special tokens first, then features in order of first appearance, append-only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cached_property
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.errors import GeneMappingError, IntegrityError
from cellmill.genes.feature import Feature
from cellmill.seal import EMPTY_SEAL, is_sealed, seal

SPECIALS: tuple[str, ...] = ("<pad>", "<cls>", *(f"<reserved-{i}>" for i in range(2, 8)))
"""Special tokens; a token's id is its position."""
N_SPECIALS = len(SPECIALS)
_COLUMNS = tuple(item.name for item in fields(Feature))
_SCHEMA = pa.schema([("token", pa.uint32()), *((name, pa.string()) for name in _COLUMNS)])


class Vocabulary:
    """An immutable list of features; a longer vocabulary never changes a token id of a shorter one.

    Parameters
    ----------
    features
        In order of first appearance; the first has token id ``N_SPECIALS``.

    Raises
    ------
    GeneMappingError
        An id is empty or stands twice.
    """

    def __init__(self, features: Iterable[Feature] = ()) -> None:
        self.features: tuple[Feature, ...] = tuple(features)
        self._token = {feature.id: N_SPECIALS + i for i, feature in enumerate(self.features)}
        if len(self._token) < len(self.features) or "" in self._token:
            raise GeneMappingError(
                "A vocabulary holds an id twice, or an empty one.", where=_first_bad([f.id for f in self.features])
            )

    def __repr__(self) -> str:
        return f"Vocabulary({len(self.features):,} features, {self.digest()[:12]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.features == other.features

    def __hash__(self) -> int:
        return hash(self.digest())

    def __contains__(self, feature_id: object) -> bool:
        return feature_id in self._token

    @property
    def size(self) -> int:
        """Number of token ids, special tokens included: one more than the largest id."""
        return N_SPECIALS + len(self.features)

    @cached_property
    def ids(self) -> list[str]:
        """Feature ids; the first has token id ``N_SPECIALS``."""
        return [feature.id for feature in self.features]

    def lookup(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the token id of each feature id, -1 where it is not in the vocabulary.

        Returns
        -------
        int64[n]
        """
        find = self._token.get
        return np.fromiter((find(feature_id, -1) for feature_id in ids), dtype=np.int64, count=len(ids))

    def extend(self, features: Iterable[Feature]) -> Vocabulary:
        """Return a vocabulary with the features that are not in this one appended, in the order given.

        Raises
        ------
        GeneMappingError
            An id is empty, or stands for another modality or organism already.
        """
        return self._appended(self.missing(features))

    def missing(self, features: Iterable[Feature]) -> tuple[Feature, ...]:
        """Return the features that are not in this vocabulary, each once, in the order given.

        Raises
        ------
        GeneMappingError
            An id is empty, or stands for another modality or organism already.
        """
        new: dict[str, Feature] = {}
        for feature in features:
            token = self._token.get(feature.id)
            known = self.features[token - N_SPECIALS] if token is not None else new.setdefault(feature.id, feature)
            if not feature.id or (known.modality, known.organism) != (feature.modality, feature.organism):
                raise GeneMappingError(
                    f"The id {feature.id!r} stands for two features: {known.organism or 'any'} {known.modality} and "
                    f"{feature.organism or 'any'} {feature.modality}.",
                    where="vocabulary",
                    fix="Give the feature an id of its own.",
                )
        return tuple(new.values())

    def prefix(self, size: int) -> Vocabulary:
        """Return the vocabulary as it was when it had `size` token ids."""
        if not N_SPECIALS <= size <= self.size:
            raise GeneMappingError(f"The vocabulary has {self.size:,} token ids and never had {size:,}.")
        return self if size == self.size else Vocabulary(self.features[: size - N_SPECIALS])

    def digest(self) -> str:
        """Return the sha256 over all features in order; equal digests mean equal token ids."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        state = hashlib.sha256()
        for feature in self.features:
            state.update("\x1f".join((*_texts(feature), "\n")).encode())
        return state.hexdigest()

    def to_parquet(self) -> bytes:
        """Return the vocabulary as parquet: token, id, symbol, modality, organism, release."""
        return write_features(self.features, N_SPECIALS)

    @classmethod
    def from_parquet(cls, data: bytes, where: str = "vocabulary") -> Vocabulary:
        """Read what `to_parquet` returned.

        Raises
        ------
        IntegrityError
            The bytes are not a vocabulary, or its token ids have gaps.
        """
        features, start = read_features(data, where)
        if start != N_SPECIALS:
            raise IntegrityError(f"The vocabulary starts at token id {start}, not at {N_SPECIALS}.", where=where)
        return cls(features)

    def _appended(self, new: tuple[Feature, ...]) -> Vocabulary:
        return Vocabulary(self.features + new) if new else self


def _texts(feature: Feature) -> tuple[str, ...]:
    """Return the fields of a feature in their order."""
    return tuple(getattr(feature, name) for name in _COLUMNS)


def write_features(features: Sequence[Feature], start: int) -> bytes:
    """Return features as parquet, the first with token id `start`."""
    columns = [[getattr(feature, name) for feature in features] for name in _COLUMNS]
    tokens = np.arange(start, start + len(features), dtype=np.uint32)
    sink = BytesIO()
    with pq.ParquetWriter(sink, _SCHEMA, compression="zstd") as writer:
        writer.write_table(pa.table([tokens, *columns], schema=_SCHEMA))
        writer.add_key_value_metadata({"cellmill": EMPTY_SEAL})
    return seal(sink.getvalue())


def read_features(data: bytes, where: str) -> tuple[list[Feature], int]:
    """Return the features in parquet bytes and the token id of the first.

    Raises
    ------
    IntegrityError
        The bytes are not such a table, or its token ids have gaps.
    """
    try:
        if not is_sealed(data):
            raise OSError("its bytes do not have the checksum they were written with")
        table = pq.ParquetFile(BytesIO(data)).read(use_threads=False)
        columns = [table.column(name).to_pylist() for name in _COLUMNS]
        tokens = table.column("token").to_numpy().astype(np.int64)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise IntegrityError(
            f"The vocabulary cannot be read: {error}.", where=where, fix="Restore the file from a copy of the atlas."
        ) from error
    start = int(tokens[0]) if tokens.size else N_SPECIALS
    if not np.array_equal(tokens, np.arange(start, start + tokens.size)):
        raise IntegrityError("The token ids of the vocabulary have gaps.", where=where)
    return [Feature(*row) for row in zip(*columns, strict=True)], start


def _first_bad(ids: list[str]) -> str:
    seen: set[str] = set()
    for feature_id in ids:
        if not feature_id or feature_id in seen:
            return repr(feature_id)
        seen.add(feature_id)
    return ""
