"""Runs of content hashes without the cells of shards that are gone."""

from __future__ import annotations

from collections.abc import Container, Sequence

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.hash_index import HashIndex
from cellmill.atlas.hash_run import Member
from cellmill.atlas.hash_run_writing import write_run
from cellmill.storage import Storage


def with_clean_runs(
    storage: Storage,
    stay: Sequence[ShardEntry],
    rewritten: Sequence[ShardEntry] = (),
    indexed: Container[tuple[str, str]] = (),
) -> list[ShardEntry]:
    """Return shards with runs that hold the hashes of cells of theirs and of no others.

    Parameters
    ----------
    storage
        The atlas's storage.
    stay
        Shards as they are in the snapshot; runs of theirs that have others, too, are written again.
    rewritten
        Shards without some of their cells, which are in no run yet.
    indexed
        Which of these (as planned) shall be in one.
    """
    index = HashIndex(storage, stay)
    mine = {Member.of(entry) for entry in stay if entry.hash_run}
    stale = {name for name, run in index.runs.items() if not mine.issuperset(run.members)}
    kept = [entry for entry in stay if entry.hash_run not in stale]
    again = [entry for entry in stay if entry.hash_run and entry.hash_run in stale]
    new = [entry for entry in rewritten if entry.planned in indexed]
    if again or new:
        name = write_run(storage, [*again, *new], [index.runs[name] for name in sorted(stale)])
        again, new = ([entry.model_copy(update={"hash_run": name}) for entry in some] for some in (again, new))
    others = [entry for entry in rewritten if entry.planned not in indexed]
    return sorted([*kept, *again, *new, *others], key=lambda entry: entry.key)
