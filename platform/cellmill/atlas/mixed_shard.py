"""Writing the shards of a compaction: cells are dealt out into temporary files, then each shard is written in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.atlas.cells import CATALOG, FIXED, CellsFile
from cellmill.atlas.compaction_plan import RECIPE, CompactionPlan
from cellmill.atlas.dealing import Heap, Heaps, row_ranges
from cellmill.atlas.entry import COMPACTED, ShardEntry
from cellmill.atlas.layout import index_dtype
from cellmill.atlas.measured import MEASURED, encode_measured, measured_by_part
from cellmill.atlas.part import Part, encode_parts
from cellmill.atlas.part_rows import parts_of_cells
from cellmill.atlas.predicate import kind
from cellmill.atlas.sealing import seal_shard, sealed_shard
from cellmill.atlas.shard import open_shard, read_tokens
from cellmill.atlas.threads import in_threads
from cellmill.atlas.writing import CountsWriter
from cellmill.errors import IntegrityError
from cellmill.genes import N_SPECIALS, Vocabulary
from cellmill.storage import Storage

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas

U32 = npt.NDArray[np.uint32]


def write_shards(atlas: Atlas, plan: CompactionPlan, progress: Callable[[int], None], threads: int) -> list[ShardEntry]:
    """Write the shards that are not there yet, and return the catalog rows of all, with no row hidden.

    So many threads deal shards out side by side, and so many write new ones. The bytes are the same with any number.

    Raises
    ------
    IntegrityError
        A shard that is read is missing or damaged, or the vocabulary is.
    StorageError
        There is no room for temporary files.
    """
    storage = atlas.storage
    found = {
        number: entry
        for number, digest in enumerate(plan.digests)
        if (entry := sealed_shard(storage, f"cells/{COMPACTED}/{digest}.parquet")) is not None
    }
    wanted = frozenset(range(len(plan.digests))) - found.keys()
    work = _Work(progress, plan.n_rows)
    if wanted:
        features = _Features.of(storage, plan)
        schema, types = _schema(storage, plan)
        parts = [
            part.model_copy(update={"types": {**types.get(part.key, {}), **part.types}}) for part in plan.parts.values()
        ]
        with _heaps(storage, plan, wanted, features.tokens.size) as heaps:
            in_threads(lambda entry: _deal(storage, entry, features.tokens, schema, heaps, work), plan.inputs, threads)
            making = _Making(storage, plan, features, parts, atlas.vocabulary())

            def make(number: int) -> ShardEntry:
                made = making.write(number, heaps.take(number), int(heaps.largest[number]))
                heaps.drop(number)
                work.written(made.n_rows)
                return made

            # Where cells are few a shard may get none.
            numbers = np.flatnonzero(heaps.n_cells).tolist()
            found |= dict(zip(numbers, in_threads(make, numbers, threads), strict=True))
    made = [found[number] for number in sorted(found)]
    if (n := sum(entry.n_rows for entry in made)) != plan.n_rows:
        raise IntegrityError(f"{plan.n_rows:,} cells were read, and {n:,} written.", where=storage.url)
    return made


class _Work:
    """Cells that are done: reading one is a half of it, writing it the other. Safe between threads."""

    def __init__(self, progress: Callable[[int], None], n: int) -> None:
        self._progress, self._left = progress, n
        self._halves = 0
        self._lock = threading.Lock()

    def read(self, cells: int) -> None:
        self._tell(cells)

    def written(self, cells: int) -> None:
        self._tell(cells)

    def _tell(self, cells: int) -> None:
        with self._lock:
            before = self._halves // 2
            self._halves += cells
            self._progress(self._halves // 2 - before)


@dataclass(frozen=True)
class _Features:
    """The columns of the new shards: those of all sources, in the order in which these have them.

    Attributes
    ----------
    tokens : uint32 [n_features]
        Of all.
    measured : uint32 [k] each
        Those of each source.
    """

    tokens: U32
    measured: dict[tuple[str, str], U32]

    @classmethod
    def of(cls, storage: Storage, plan: CompactionPlan) -> _Features:
        measured: dict[tuple[str, str], U32] = {}
        for entry in plan.inputs:
            if any(part.key not in measured for part in entry.sources):
                for part, tokens in measured_by_part(storage, entry, read_tokens(storage, entry)):
                    measured.setdefault(part.key, tokens)
        every = np.concatenate(list(measured.values()))
        _, first = np.unique(every, return_index=True)
        return cls(every[np.sort(first)], measured)


def _schema(storage: Storage, plan: CompactionPlan) -> tuple[pa.Schema, dict[tuple[str, str], dict[str, str]]]:
    """Return the columns of the new metadata, and the types of those sources whose columns become text."""
    types: dict[str, dict[pa.DataType, None]] = {}
    own: dict[tuple[str, str], dict[str, pa.DataType]] = {}
    for entry in plan.inputs:
        columns = {item.name: item.type for item in CellsFile(storage, entry).schema}
        for part in entry.sources:
            told = {name: pa.type_for_alias(text) for name, text in part.types.items()}
            own[part.key] = {**columns, **told}
            for name, one in own[part.key].items():
                types.setdefault(name, {})[one] = None
    fixed, last = {item.name: item.type for item in FIXED}, dict.fromkeys(CATALOG, pa.string())
    others = {name: _one_type(list(some)) for name, some in types.items() if name not in fixed | last}
    text = {name for name in others if len({kind(one) for one in types[name]} - {"null"}) > 1}
    differing = {
        key: {name: str(columns[name]) for name in sorted(text) if _is_other(columns.get(name))}
        for key, columns in own.items()
    }
    return pa.schema({**fixed, **others, **last}), differing


def _is_other(of: pa.DataType | None) -> bool:
    return of is not None and kind(of) not in ("text", "null")


def _one_type(types: Sequence[pa.DataType]) -> pa.DataType:
    """Return the type that holds values of some types: a number if all are numbers, else text."""
    known = [one for one in types if not pa.types.is_null(one)]
    if not known:
        return pa.null()
    try:
        schemas = [pa.schema([("", one)]) for one in known]
        found: pa.DataType = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()
    return found


def _heaps(storage: Storage, plan: CompactionPlan, wanted: frozenset[int], n_features: int) -> Heaps:
    kinds = {open_shard(storage, entry).count_dtype for entry in plan.inputs}
    share = len(wanted) / len(plan.digests)
    return Heaps(
        plan.seed,
        len(plan.digests),
        wanted,
        index_dtype=index_dtype(n_features),
        count_dtype=np.result_type(*kinds),
        bytes=int(plan.temporary_bytes * share),
    )


def _deal(storage: Storage, entry: ShardEntry, tokens: U32, schema: pa.Schema, heaps: Heaps, work: _Work) -> None:
    shard = open_shard(storage, entry)
    cells = _conformed(CellsFile(storage, entry).read(schema.names), schema)
    order = np.argsort(tokens)
    place = order[np.searchsorted(tokens, shard.tokens, sorter=order)].astype(np.int64)
    in_order = bool(np.all(np.diff(place) > 0))
    for a, b in row_ranges(shard.indptr):
        columns, counts, indptr = shard.gather([a], [b])
        moved = place[columns]
        if not in_order:
            # Columns ascend within a row.
            rows = np.repeat(np.arange(b - a), np.diff(indptr))
            by_place = np.lexsort((moved, rows))
            moved, counts = moved[by_place], counts[by_place]
        heaps.add(cells.slice(a, b - a), indptr, moved, counts)
        work.read(b - a)


def _conformed(cells: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [_cast(cells.column(item.name), item.type) for item in schema]
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, to: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == to else pc.cast(column, to)


class _Making:
    """Writes shards."""

    def __init__(
        self, storage: Storage, plan: CompactionPlan, features: _Features, parts: Iterable[Part], vocabulary: Vocabulary
    ) -> None:
        self._storage, self._plan, self._features = storage, plan, features
        self._parts = list(parts)
        tokens = features.tokens
        self._named = [vocabulary.features[token - N_SPECIALS] for token in tokens.tolist()]
        self._vocabulary = vocabulary.prefix(int(tokens.max(initial=0)) + 1)

    def write(self, number: int, heap: Heap, largest: int) -> ShardEntry:
        plan, features = self._plan, self._features
        n = heap.cells.num_rows
        counted = np.bincount(parts_of_cells(heap.cells, self._parts), minlength=len(self._parts)).tolist()
        parts = [
            part.model_copy(update={"n_rows": rows, "n_cells": rows})
            for part, rows in zip(self._parts, counted, strict=True)
        ]
        here = [part for part in parts if part.n_rows]
        draft = ShardEntry(
            dataset=COMPACTED,
            digest=plan.digests[number],
            n_cells=n,
            n_rows=n,
            n_features=features.tokens.size,
            nnz=int(heap.indptr[-1]),
            max_features=int(np.diff(heap.indptr).max(initial=0)),
            bytes=0,
            checksum="",
            organism=_common(part.organism for part in here),
            source_url="",
            source_digest=plan.content,
            licence=_common(part.licence for part in here),
            config_digest=plan.settings,
            recipe=RECIPE,
            vocabulary_size=self._vocabulary.size,
            vocabulary_digest=self._vocabulary.digest(),
            parts=encode_parts(here),
        )
        size = {"n_cells": n, "n_features": draft.n_features, "nnz": draft.nnz}
        writer = CountsWriter(self._storage, draft.shard_path, **size, largest=largest)
        for indices, data in heap.entries():
            writer.append(indices, data)
        known = writer.finish(heap.indptr, self._named, features.tokens, heap.cells["barcode"].to_pylist())
        cells = heap.cells
        for name, column in (("shard", [draft.digest] * n), ("row", np.arange(n, dtype=np.int32))):
            cells = cells.set_column(cells.schema.get_field_index(name), name, pa.array(column))
        about = encode_measured(features.tokens, {part.key: features.measured[part.key] for part in here})
        return seal_shard(self._storage, draft, cells.combine_chunks(), known, {MEASURED: about})


def _common(values: Iterable[Any]) -> str:
    found = set(values)
    return str(found.pop()) if len(found) == 1 else ""
