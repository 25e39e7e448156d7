"""Writing a run of content hashes, from the cells of shards and from other runs, as a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill.atlas.cell_keys import shard_keys
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.hash_run import BLOCK, HIDDEN, HashRun, Member, counts, encode_members, run_name, tail
from cellmill.atlas.overlay import read_overlay
from cellmill.atlas.sorted_records import FileReader, Reader, RunReader, merge, sort_records
from cellmill.scratch import ScratchFolder
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]

_SORTED_AT_ONCE = 1 << 21


def write_run(storage: Storage, entries: Sequence[ShardEntry], runs: Sequence[HashRun] = ()) -> str:
    """Write one run of the cells of some shards, hidden ones included, and return its name.

    Memory is bounded, whatever the number of cells: records are sorted piece by piece into temporary files, and merged
    into the run as it is written.

    Parameters
    ----------
    storage
        The atlas's storage.
    entries
        The shards, with the overlays that the snapshot will have.
    runs
        Runs that have some of these shards, with the same overlays; what they have is copied. The cells of the others
        are read from their metadata.
    """
    members = sorted(Member.of(entry) for entry in entries)
    name = run_name(members)
    path = f"hashes/{name}"
    if storage.exists(path):
        return name
    place = {member: i for i, member in enumerate(members)}
    there: set[Member] = set()
    readers: list[Reader] = []
    for run in runs:
        # Of two runs that have a shard the first gives it.
        found = [-1 if member in there else place.get(member, -1) for member in run.members]
        there.update(member for member in run.members if member in place)
        readers.append(RunReader(run, np.array(found, np.int64)))
    others = [entry for entry in entries if Member.of(entry) not in there]
    with ScratchFolder() as folder:
        readers += _sorted_pieces(storage, others, place, folder)
        whole = folder / "run"
        with whole.open("wb") as file:
            file.writelines(encoded(merge(readers), members))
        storage.put_file(path, whole)
    return name


def _sorted_pieces(
    storage: Storage, entries: Sequence[ShardEntry], place: dict[Member, int], folder: Path
) -> Iterator[FileReader]:
    """Write the records of shards to files, each sorted."""
    waiting: list[U64] = []
    n = number = 0
    for i, entry in enumerate(entries):
        waiting.append(_records(storage, entry, place[Member.of(entry)]))
        n += entry.n_rows
        if n >= _SORTED_AT_ONCE or i == len(entries) - 1:
            path = folder / f"{number}"
            sort_records(np.concatenate(waiting)).tofile(path)
            yield FileReader(path)
            waiting, n, number = [], 0, number + 1


def _records(storage: Storage, entry: ShardEntry, place: int) -> U64:
    records, _ = shard_keys(storage, entry)
    records[:, 2] |= np.uint64(place)
    records[read_overlay(storage, entry).hidden, 2] |= np.uint64(HIDDEN)
    return records


def encoded(blocks: Iterator[U64], members: Sequence[Member]) -> Iterator[bytes]:
    """Yield the bytes of a run."""
    state = hashlib.sha256()
    fences: list[U64] = []
    n = 0
    for block in blocks:
        fences.append(block[-n % BLOCK :: BLOCK].copy())
        n += len(block)
        data = block.astype("<u8", copy=False).tobytes()
        state.update(data)
        yield data
    encoded = encode_members(members)
    rest = b"".join(part.astype("<u8", copy=False).tobytes() for part in fences) + encoded + counts(n, len(encoded))
    state.update(rest)
    yield rest[:-16] + tail(n, len(encoded), state.digest())
