"""Flipping bytes of an atlas: in every file that a snapshot needs."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import anndata as ad
import pandas as pd

from cellmill.atlas import Atlas, read
from cellmill.atlas.tags import add_tag
from cellmill.atlas.withdrawing import remove
from cellmill.errors import CellmillError
from cellmill.ingestion import ingest
from tests.faults.points import kind_of
from tests.ingestion.cells import config, counts, make_adata, write

NOT_NEEDED = ("reports", "leases", "staging", "forgotten")


def rich_atlas(folder: Path) -> Path:
    """Return an atlas with two data sets that share cells, a replaced one, a tag, and a withdrawn donor."""
    first = make_adata(60, 30, seed=1)
    twins = ad.concat([first[:20], make_adata(30, 30, seed=2)])
    twins.obs_names = [f"twin-{i}" for i in range(twins.n_obs)]
    settings = {"shard_cells": 25, "duplicates": {"min_genes": 1}}
    atlas = folder / "atlas"
    ingest(config(atlas, write(first, folder / "a.h5ad"), **settings, source={"obs": "all"}))
    ingest(config(atlas, write(twins, folder / "b.h5ad"), **settings, source={"obs": "all"}))
    add_tag(Atlas.open(atlas), "release", message="of µ")
    remove(Atlas.open(atlas), "donor = 'd2' and dataset = 'b'", "asked for")
    return atlas


def needed(atlas: Path) -> list[Path]:
    """Return the files that the newest snapshot or the tagged one needs, of an atlas without garbage."""
    # Some files say all by their names: they have no byte to flip.
    paths = sorted(path for path in atlas.rglob("*") if path.is_file() and path.stat().st_size)
    return [path for path in paths if path.relative_to(atlas).parts[0] not in NOT_NEEDED]


def is_found(atlas: Path) -> bool:
    """Return whether verification finds damage, or the atlas refuses to be opened."""
    try:
        there = Atlas.open(atlas)
        return not (there.verify().sound and there.verify("release").sound)
    except CellmillError:
        return True


def is_refused_or_right(atlas: Path, wanted: pd.DataFrame) -> bool:
    """Return whether reading all cells fails with a clear error or gives what it did."""
    try:
        found = counts(Atlas.open(atlas))
    except CellmillError:
        return True
    return found.equals(wanted)


def flip(atlas: Path, n: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Flip `n` bits, one after the other, in files drawn by kind; return how many by kind, and what went unnoticed."""
    chance = random.Random(seed)
    by_kind: dict[str, list[Path]] = {}
    for path in needed(atlas):
        by_kind.setdefault(kind_of(path.relative_to(atlas).as_posix()), []).append(path)
    wanted = counts(atlas)
    assert read(atlas).n_obs > 0
    done: Counter[str] = Counter()
    unnoticed = []
    for number in range(n):
        # The first draws go through all kinds.
        kind = sorted(by_kind)[number % len(by_kind)] if number < 2 * len(by_kind) else chance.choice(sorted(by_kind))
        path = chance.choice(by_kind[kind])
        original = path.read_bytes()
        at, bit = chance.randrange(len(original)), chance.randrange(8)
        flipped = bytearray(original)
        flipped[at] ^= 1 << bit
        path.write_bytes(bytes(flipped))
        done[kind] += 1
        if not is_found(atlas):
            unnoticed.append(f"{path.relative_to(atlas)} byte {at} bit {bit}")
        elif kind.startswith("shard") and not is_refused_or_right(atlas, wanted):
            unnoticed.append(f"read: {path.relative_to(atlas)} byte {at} bit {bit}")
        path.write_bytes(original)
    assert not is_found(atlas)
    return done, unnoticed
