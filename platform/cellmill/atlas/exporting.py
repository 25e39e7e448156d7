"""A snapshot as an atlas of Arrow files: the same cells under the same names, for whoever reads Arrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cellmill.atlas.arrow_writing import write_arrow
from cellmill.atlas.atlas import Atlas
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.shard import open_shard
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.standing import Standing
from cellmill.atlas.writing import checksum, shard_keys
from cellmill.config import Config
from cellmill.digest import digest_of_file
from cellmill.errors import AtlasError, IntegrityError
from cellmill.scratch import ScratchFolder
from cellmill.storage import Storage

_PART = 1 << 26
"""Bytes of a file that are copied at once."""


class Export(Config):
    """What was exported.

    Attributes
    ----------
    atlas, snapshot
        The new atlas, and the number of its snapshot.
    exported_from
        Identity of the snapshot that was exported.
    shards, cells, bytes
        How much it holds.
    """

    atlas: str
    snapshot: int
    exported_from: str
    shards: int
    cells: int
    bytes: int


def export_arrow(snapshot: Snapshot, url: str | Path, *, progress: Callable[[int], None] | None = None) -> Export:
    """Write a snapshot as an atlas whose shards are Arrow files; an export that was cut off is finished.

    Data sets, digests of shards, metadata, hidden cells, withdrawals and vocabulary are those of the snapshot, so that
    it is selected, streamed and verified as the snapshot is, in the same order: a position in the one is a position in
    the other. The files hold ``cell_id``, ``barcode`` and the lists ``genes`` (token ids) and ``counts``, each in the
    smallest type that holds those of its shard. They are uncompressed, and anything that reads Arrow reads them, for
    instance Hugging Face's `datasets`::

        numbers = List(Value("uint32"))
        features = Features(cell_id=Value("uint64"), barcode=Value("string"), genes=numbers, counts=numbers)
        load_dataset("arrow", data_files="OUT/shards/*/*.arrow", features=features)

    Rows that the snapshot hides, such as duplicates, are in the files as they are in the shards; only `cellmill` leaves
    them out. Which token is which gene stands in ``OUT/vocabulary/*.parquet``. What is withdrawn from the atlas later
    has to be withdrawn from the export too.

    Parameters
    ----------
    snapshot
        What to export.
    url
        Path or URL of the new atlas.
    progress
        Called with the number of cells written since the last call.

    Raises
    ------
    AtlasError
        There is another atlas at `url`, or the snapshot holds cells that were withdrawn since.
    IntegrityError
        A shard is missing or damaged.
    """
    source = snapshot.atlas
    newest = source.snapshot().version
    _refuse_withdrawn(snapshot, source.withdrawals(newest))
    target = _target(source, snapshot, url)
    for prefix in ("vocabulary", "withdrawals"):
        _copy(source.storage, target.storage, source.storage.list(prefix))
    entries = []
    for entry in snapshot.shards:
        entries.append(_shard(source.storage, target.storage, entry))
        if progress is not None:
            progress(entry.n_cells)
    _copy(source.storage, target.storage, sorted({entry.hash_run_path for entry in entries if entry.hash_run}))
    facts = {"exported_from": snapshot.name}
    number = target.commit(entries, message=f"exported from {snapshot.name}", facts=facts, ledger=source.ledger(newest))
    return Export(
        atlas=target.url,
        snapshot=number,
        exported_from=snapshot.name,
        shards=len(entries),
        cells=snapshot.n_cells,
        bytes=sum(entry.bytes for entry in entries),
    )


def _refuse_withdrawn(snapshot: Snapshot, withdrawals: Sequence[Standing]) -> None:
    storage = snapshot.atlas.storage
    n = 0
    for entry in snapshot.shards:
        gone = [one.rows(storage, entry).either for one in withdrawals]
        n += int(np.logical_or.reduce(gone).sum()) if gone else 0
    if n:
        raise AtlasError(
            f"{n:,} cells of snapshot {snapshot.version} were withdrawn since.",
            where=snapshot.atlas.url,
            fix="Export the newest snapshot.",
        )


def _target(source: Atlas, snapshot: Snapshot, url: str | Path) -> Atlas:
    if not Storage.open(url).exists("atlas.json"):
        return Atlas.create(url, source.organisms, exported_from=snapshot.name)
    target = Atlas.open(url)
    if target.exported_from != snapshot.name:
        raise AtlasError(
            f"There is an atlas already, which is no export of {snapshot.name}.",
            where=target.url,
            fix="Choose another path.",
        )
    return target


def _shard(source: Storage, target: Storage, entry: ShardEntry) -> ShardEntry:
    """Write one shard, its metadata last, and return its row of the catalog."""
    draft = entry.model_copy(update={"layout": "arrow"})
    known = {}
    if not target.exists(draft.cells_path):
        shard = open_shard(source, entry)
        metadata = source.get(entry.cells_path)
        cells = CellsFile(source, entry).read(["cell_id", "barcode", "n_features"])
        if not np.array_equal(cells["n_features"].to_numpy(), np.diff(shard.indptr)):
            raise IntegrityError(
                "The cells' numbers of features are not those of the shard's rows.", where=source.join(entry.cells_path)
            )
        with ScratchFolder() as folder:
            path = folder / "shard.arrow"
            write_arrow(path, shard, cells)
            known[draft.shard_path] = digest_of_file(path), path.stat().st_size
            target.put_file(draft.shard_path, path)
        if entry.overlay:
            _copy(source, target, [entry.overlay_path])
        target.put(draft.cells_path, metadata)
    total, size = checksum(target, shard_keys(target, draft.dataset, draft.digest, draft.layout), known)
    return draft.model_copy(update={"bytes": size, "checksum": total})


def _copy(source: Storage, target: Storage, keys: list[str]) -> None:
    for key in keys:
        size = source.size(key)
        starts = range(0, size, _PART)
        target.put_parts(key, (source.get_ranges(key, [at], [min(at + _PART, size)])[0] for at in starts))
