"""What an atlas keeps beside its cells: tags, forgotten snapshots, withdrawals."""

from __future__ import annotations

from cellmill.atlas.forgotten import all_forgotten
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.tags import all_tags
from cellmill.atlas.withdrawals import active_withdrawals, all_withdrawals, wholly_withdrawn, withdrawn_rows
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
        A withdrawal is damaged or lost, or was written down but not carried out.
    """
    storage = snapshot.atlas.storage
    wholly_withdrawn(storage)
    there = {withdrawal.number for withdrawal, _ in all_withdrawals(storage)}
    logged = {int(line.facts["withdrawal"]) for line in snapshot.atlas.commits() if "withdrawal" in line.facts}
    # Numbers are given one after the other, so a gap is one that is lost, even if nobody carried it out.
    if lost := (logged | set(range(1, max(there, default=0)))) - there:
        raise IntegrityError(
            f"Withdrawal {min(lost)} was made, and what it withdraws is lost: cells of it could come back.",
            where=storage.join("withdrawals"),
            fix="Restore the file from a copy of the atlas.",
        )
    withdrawals = active_withdrawals(storage)
    if not withdrawals or snapshot.version != snapshot.atlas.snapshot().version:
        return
    for entry in snapshot.shards:
        for withdrawal in withdrawals:
            n = int(withdrawn_rows(storage, entry, [withdrawal]).sum())
            if n:
                raise IntegrityError(
                    f"Withdrawal {withdrawal.number} was written down, but {n:,} cells of it are in the snapshot.",
                    where=storage.join(entry.cells_path),
                    fix=f'Finish it: cellmill atlas remove {snapshot.atlas.url} --where "{withdrawal.where}"',
                )
