"""What an atlas keeps beside its cells: tags, forgotten snapshots, withdrawals."""

from __future__ import annotations

from cellmill.atlas.forgotten import all_forgotten
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.standing import lost, standing
from cellmill.atlas.tags import all_tags
from cellmill.atlas.taken import read_taken
from cellmill.atlas.withdrawals import all_withdrawals, wholly_withdrawn
from cellmill.errors import IntegrityError


def check_tags(snapshot: Snapshot) -> None:
    """Read all tags, and find those of snapshots that are not there.

    Raises
    ------
    IntegrityError
        A tag is damaged, or its snapshot was never made or is forgotten.
    """
    forgotten = {record.version for record in all_forgotten(snapshot.atlas.storage)}
    newest = snapshot.atlas.snapshot().version
    for tag in all_tags(snapshot.atlas.storage):
        if tag.version > newest or tag.version in forgotten:
            raise IntegrityError(
                f"The tag {tag.name!r} is of snapshot {tag.version}, which is not there.",
                where=snapshot.atlas.url,
                fix=f"cellmill atlas tag {snapshot.atlas.url} {tag.name} --delete",
            )


def check_withdrawals(snapshot: Snapshot) -> None:
    """Read all that is known of withdrawals, and find cells of the newest snapshot that should be gone.

    Raises
    ------
    IntegrityError
        A withdrawal is damaged, changed or lost, or was written down but not carried out.
    """
    storage = snapshot.atlas.storage
    wholly_withdrawn(storage)
    newest = snapshot.atlas.snapshot().version
    ledger = snapshot.atlas.ledger(newest)
    there = {withdrawal.number for withdrawal, _ in all_withdrawals(storage)}
    # Numbers are given one after the other, so a gap is one that is lost, even if nobody carried it out.
    if gone := (ledger.keys() | set(range(1, max(there, default=0)))) - there:
        raise lost(storage, min(gone))
    withdrawals = standing(storage, ledger)
    for number in ledger.keys() - {one.number for one in withdrawals}:
        read_taken(storage, number, ledger[number].cells)  # of one that was lifted
    if snapshot.version != newest:
        return
    for entry in snapshot.shards:
        for one in withdrawals:
            n = int(one.rows(storage, entry).either.sum())
            if n:
                raise IntegrityError(
                    f"Withdrawal {one.number} was written down, but {n:,} cells of it are in the snapshot.",
                    where=storage.join(entry.cells_path),
                    fix=f'Finish it: cellmill atlas remove {snapshot.atlas.url} --where "{one.withdrawal.where}"',
                )
