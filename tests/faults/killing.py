"""Killing one process at a point, and what must be true afterwards."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad

from cellmill.atlas import Atlas, read
from cellmill.atlas.collecting import collect
from tests.faults.points import Point, named
from tests.faults.zygote import LEASE_S, Zygote
from tests.ingestion.cells import make_adata, write


def exists(folder: Path) -> bool:
    """Return whether there is an atlas."""
    return (folder / "atlas/atlas.json").exists()


def state(folder: Path) -> str:
    """Return a digest of the newest snapshot: all that is in it but times; an atlas that is not there has none."""
    shards = Atlas.open(folder / "atlas").snapshot().shards if exists(folder) else ()
    rows = [entry.model_dump(exclude={"created"}) for entry in shards]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


def contents(folder: Path) -> set[str]:
    """Return the names of all data files of the atlas, of all half-written ones, and of temporary ones."""
    root = folder / "atlas"
    kept = ("shards", "cells", "overlays", "hashes", "staging")
    paths = [path for path in root.rglob("*") if path.is_file()]
    temporary = {path.relative_to(folder).as_posix() for path in (folder / "tmp").rglob("*")}
    return temporary | {
        path.relative_to(root).as_posix()
        for path in paths
        if path.relative_to(root).parts[0] in kept or path.suffix == ".partial"
    }


@dataclass
class Scenario:
    """Something that is done to an atlas, once undisturbed, then killed at its points.

    Parameters
    ----------
    name
        For the report.
    before
        Folder with the sources, and with the atlas before.
    action, argument
        What is done.
    """

    name: str
    before: Path
    action: str
    argument: Any

    def prepare(self, zygote: Zygote, scratch: Path) -> None:
        """Do it undisturbed."""
        self.old = state(self.before)
        whole = scratch / f"{self.name}-whole"
        shutil.copytree(self.before, whole)
        self.points = zygote.complete(self.action, whole, self.argument)
        self.new = state(whole)
        zygote.complete("collect", whole, False)
        self.files = contents(whole)
        shutil.rmtree(whole)

    def kill(self, zygote: Zygote, point: Point, scratch: Path, collects: bool) -> None:
        """Do it again, killed at a point, and do it once more.

        Parameters
        ----------
        collects
            Whether garbage is collected in between, which takes from the second run what the first one left.
        """
        folder = scratch / "killed"
        shutil.copytree(self.before, folder)
        code, told = zygote.run(self.action, folder, self.argument, point)
        assert code == -9, (point, code, told)
        found = state(folder)
        assert found in (self.old, self.new), point
        if exists(folder):
            _check_readers(folder, cut_off=True)
        if collects and exists(folder):
            # Leases of the dead end by themselves.
            atlas = Atlas.open(folder / "atlas")
            collect(atlas, grace_s=0, clock=lambda: time.time() + 2 * LEASE_S)
            assert state(folder) == found, point
            _check_readers(folder, cut_off=True)
        zygote.complete(self.action, folder, self.argument)
        assert state(folder) == self.new, point
        _check_readers(folder)
        collect(Atlas.open(folder / "atlas"), grace_s=0, clock=lambda: time.time() + 2 * LEASE_S)
        assert not contents(folder) ^ self.files, point
        assert state(folder) == self.new, point
        shutil.rmtree(folder)


def _check_readers(folder: Path, cut_off: bool = False) -> None:
    atlas = Atlas.open(folder / "atlas")
    # A removal that was cut off is told of until it is done; what is there is sound all the same.
    told = [damage.what for damage in atlas.verify().damage]
    assert not [what for what in told if not (cut_off and "was written down" in what)]
    snapshot = atlas.snapshot()
    if snapshot.n_cells:
        assert read(folder / "atlas").n_obs == snapshot.n_cells


def scenarios(zygote: Zygote, scratch: Path) -> list[Scenario]:
    """Return a first ingestion, a changed source, a removal of a donor, a collection, and a compaction, undisturbed."""
    empty = scratch / "empty"
    empty.mkdir()
    first, second = scratch / "first.h5ad", scratch / "second.h5ad"
    adata = make_adata(100, 30, seed=1)
    write(adata, first)
    twins = ad.concat([adata[:25], make_adata(50, 30, seed=2)])
    twins.obs_names = [f"other-{name}" for name in twins.obs_names]
    write(twins, second)
    changing = scratch / "changing.h5ad"
    write(adata, changing)
    both = [str(changing), str(second)]
    there = scratch / "there"
    there.mkdir()
    zygote.complete("ingest", there, both)
    adata.X[:5] *= 2
    write(adata, changing)
    aged = scratch / "aged"
    shutil.copytree(there, aged)
    zygote.complete("ingest", aged, both)
    found = [
        Scenario("first ingestion", empty, "ingest", [str(first), str(second)]),
        Scenario("changed source", there, "ingest", both),
        Scenario("removal", aged, "remove", "donor = 'd1'"),
        Scenario("collection", aged, "collect", True),
        Scenario("compaction", aged, "compact", 30),
    ]
    for scenario in found:
        scenario.prepare(zygote, scratch)
    return found


def draw(found: list[Scenario], n: int, seed: int) -> list[tuple[Scenario, Point]]:
    """Return `n` points: every name and phase of every scenario before any comes again."""
    chance = random.Random(seed)

    def one(scenario: Scenario, name: str, phase: str) -> tuple[Scenario, Point]:
        return scenario, chance.choice([point for point in scenario.points if point[:2] == (name, phase)])

    every = [(scenario, *which) for scenario in found for which in named(scenario.points)]
    chance.shuffle(every)
    drawn = [one(*item) for item in every[:n]]
    while len(drawn) < n:
        scenario = chance.choice(found)
        drawn.append((scenario, chance.choice(scenario.points)))
    return drawn
