"""Keeping an atlas in order: verify, gc, remove."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.commands.options import DryRun, Json, Predicate, Reason, Version, Where_
from cellmill.console import console, emit, progress
from cellmill.errors import ConfigError


def verify(atlas: Where_, version: Version = None, as_json: Json = False) -> None:
    """Read every byte of a snapshot and compare it with its checksums."""
    opened = Atlas.open(atlas)
    total = sum(entry.bytes for entry in opened.snapshot(version).shards)
    with progress(total, "verifying", "bytes") as advance:
        found = opened.verify(version, progress=advance)

    def render() -> None:
        for damage in found.damage:
            console.print(Text.assemble(("damaged", "red"), f" {damage.where}: {damage.what}"))
        if found.sound:
            console.print(
                f"Snapshot {found.version} is sound: {found.shards} shards, {found.bytes / 1e6:,.1f} MB read."
            )

    emit({**found.model_dump(mode="json"), "sound": found.sound}, as_json, render)
    found.check()


def gc(
    atlas: Where_,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget old snapshots, and delete what only they hold.")
    ] = False,
    keep: Annotated[
        int, typer.Option("--keep", help="With --forget: so many of the newest snapshots stay.", min=1)
    ] = 1,
    before: Annotated[
        str | None, typer.Option("--before", help="With --forget: only snapshots older than this date, UTC.")
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            help="Minutes for which files that never were in a snapshot are spared; "
            "with --forget none are while withdrawals hold.",
            min=0,
        ),
    ] = 60.0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete what no snapshot needs; snapshots with a tag and the newest are never forgotten."""
    from cellmill.atlas.collecting import Forget, collect

    if not forget and (keep != 1 or before):
        raise ConfigError("--keep and --before say what is forgotten.", where="gc", fix="Add --forget.")
    opened = Atlas.open(atlas)
    wanted = Forget.model_validate({"keep_last": keep, "before": before}) if forget else None
    found = collect(opened, wanted, grace_s=60 * grace, dry_run=dry_run)

    def render() -> None:
        would = "would be " if dry_run else ""
        if found.forgotten:
            console.print(f"Snapshots {would}forgotten: {_ranges(found.forgotten)}")
        if found.tagged:
            console.print(f"Kept because of their tags: {_ranges(found.tagged)}")
        kinds = ", ".join(f"{n:,} of {kind}" for kind, n in sorted(found.units.items())) or "nothing"
        console.print(f"{found.files:,} files {would}deleted, {found.bytes / 1e6:,.1f} MB: {kinds}")
        if found.young or found.leased:
            console.print(f"Spared: {found.young:,} that are young, {found.leased:,} that a running process may need")
        for number, versions in found.withheld.items():
            console.print(f"Snapshots {_ranges(versions)} still hold cells of withdrawal {number}.", style="yellow")

        if found.untold:
            console.print(
                f"Snapshots {_ranges(found.untold)} are damaged: which cells of withdrawals they held is not "
                "known any more.",
                style="yellow",
            )

    emit({**found.model_dump(mode="json"), "dry_run": dry_run}, as_json, render)


def remove(
    atlas: Where_,
    where: Predicate = None,
    reason: Reason = "",
    lift: Annotated[int | None, typer.Option("--lift", help="Lift the withdrawal of this number instead.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Withdraw cells: from the newest snapshot, and from whatever is ingested later.

    Older snapshots keep them until `cellmill atlas gc --forget`.
    """
    from cellmill.atlas import withdrawals, withdrawing

    if (where is None) == (lift is None):
        raise ConfigError(
            "Say which cells, or which withdrawal is lifted.", where="remove", fix="Give --where or --lift."
        )
    if not reason.strip():
        raise ConfigError("A reason is needed.", where="remove", fix="Give --reason; it is kept with the atlas.")
    opened = Atlas.open(atlas)
    if lift is not None:
        if dry_run:
            raise ConfigError(
                "--lift has no --dry-run.", where="remove", fix="`cellmill atlas show` lists withdrawals."
            )
        lifted = withdrawals.lift(opened.storage, lift, reason)
        emit(
            {"lifted": lifted.model_dump(mode="json")},
            as_json,
            lambda: console.print(f"Lifted: {lifted.where}. Its cells come back when their source is ingested again."),
        )
        return
    assert where is not None
    done = withdrawing.remove(opened, where, reason, dry_run=dry_run)

    def render() -> None:
        total = sum(done.cells.values())
        listed = ", ".join(f"{n:,} of {name}" for name, n in done.cells.items()) or "none"
        if dry_run:
            console.print(f"{total:,} cells would be withdrawn from snapshot {done.snapshot}: {listed}")
            return
        console.print(f"Withdrawal {done.number}: {total:,} cells are gone ({listed}); snapshot {done.snapshot}")
        if done.known:
            console.print(
                f"{done.known:,} of them do not fulfil the predicate: another snapshot says so of the same cells"
            )
        if done.shown_again:
            console.print(f"{done.shown_again:,} cells that were hidden as their duplicates are shown again")
        console.print("Older snapshots keep them until `cellmill atlas gc --forget`.")

    emit({**done.model_dump(mode="json"), "dry_run": dry_run}, as_json, render)


def _ranges(numbers: tuple[int, ...]) -> str:
    """Return numbers with neighbours put together: 1-3, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
