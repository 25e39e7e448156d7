"""Leakage: what two selections have in common, so that one can tell whether a test is a test.

Memory is bounded however many cells there are: their keys are dealt out to parts by their first bits, in temporary
files if they are many, and the selections are compared part by part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.atlas.cell_keys import as_items, shard_keys, text_hashes
from cellmill.atlas.content import feature_keys, splitmix64
from cellmill.atlas.part_rows import part_of_rows
from cellmill.atlas.selection import Selection
from cellmill.atlas.spill import Spill
from cellmill.config import Config
from cellmill.errors import ConfigError

U64 = npt.NDArray[np.uint64]

DONOR_COLUMNS = ("donor_id", "donor", "patient_id", "patient", "individual", "subject")
NEARLY_EMPTY = 200
_PART = 1 << 20
_LISTED = 1000


class Side(Config):
    """One of the two: which cells, and how many."""

    snapshot: str
    url: str
    where: str | None
    cells: int


class Pair(Config):
    """How many cells of a data set of B equal a cell of a data set of A."""

    a: str
    b: str
    cells: int


class Leakage(Config):
    """What A and B have in common.

    Attributes
    ----------
    a, b
        What was compared.
    equal_cells
        Cells of B whose counts equal those of a cell of A; of nearly empty cells, whose barcodes are equal too.
    by_dataset
        The same by data sets; where several of A have the cell, by the first.
    same_cells
        Cells of B that are in A: the same row of the same source.
    same_barcodes
        Cells of B whose data set and barcode are those of a cell of A.
    datasets, sources
        Data sets, and digests of sources, that both have.
    nearly_empty
        Nearly empty cells of A and B, which were compared by barcode as well.
    donor_columns
        The columns of A and of B that name donors; empty unless both have one.
    n_donors, donors
        How many donors are in both, and the first thousand, as ``data set: donor``. Only within data sets of one name
        does a donor's name say who it is: many studies have a donor 1.
    donor_names
        Names that donors of different data sets have in both; they may be the same person or not.
    """

    a: Side
    b: Side
    equal_cells: int
    by_dataset: tuple[Pair, ...]
    same_cells: int
    same_barcodes: int
    datasets: tuple[str, ...]
    sources: tuple[str, ...]
    nearly_empty: int
    donor_columns: tuple[str, ...]
    n_donors: int
    donors: tuple[str, ...]
    donor_names: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether no cell, barcode or donor of a data set is in both; of `donor_names` nobody knows."""
        return not (self.equal_cells or self.same_cells or self.same_barcodes or self.n_donors)


def find_leakage(a: Selection, b: Selection, *, donor: str | Sequence[str] | None = None) -> Leakage:
    """Compare two selections, of one atlas or of two.

    Parameters
    ----------
    a, b
        For instance what a model is trained on, and what it is tested on.
    donor
        Column that names donors, or that of A and that of B; by default the first known one that both have, else the
        first known one of each.

    Raises
    ------
    ConfigError
        One of them has no cells, or no such column, or more than two columns are named.
    """
    for name, side in (("A", a), ("B", b)):
        if not side.n_cells:
            raise ConfigError(f"{name} has no cells.", where=side.where or side.snapshot.atlas.url)
    n_parts = max(1, -(-max(a.n_cells, b.n_cells) // _PART))
    pairs: Counter[tuple[int, int]] = Counter()
    same_cells = same_barcodes = 0
    with _Keys(n_parts) as left, _Keys(n_parts) as right:
        left.add(a)
        right.add(b)
        for number in range(n_parts):
            pairs.update(_equal(left.contents.part(number), right.contents.part(number)))
            same_cells += _common(left.ids.part(number), right.ids.part(number))
            same_barcodes += _common(left.barcodes.part(number), right.barcodes.part(number))
        by_dataset = tuple(
            Pair(a=left.datasets[i], b=right.datasets[j], cells=n) for (i, j), n in sorted(pairs.items())
        )
    columns = _donor_columns(a, b, [donor] if isinstance(donor, str) else donor or ())
    ours, theirs = (_donors(side, column) for side, column in zip((a, b), columns or ("", ""), strict=True))
    both = sorted(ours & theirs)
    names = {name for _, name in ours} & {name for _, name in theirs} - {name for _, name in both}
    return Leakage(
        a=_side(a),
        b=_side(b),
        equal_cells=pairs.total(),
        by_dataset=by_dataset,
        same_cells=same_cells,
        same_barcodes=same_barcodes,
        datasets=tuple(sorted({name for name, _ in left.sources} & {name for name, _ in right.sources})),
        sources=tuple(sorted({digest for _, digest in left.sources} & {digest for _, digest in right.sources})),
        nearly_empty=left.nearly_empty + right.nearly_empty,
        donor_columns=columns,
        n_donors=len(both),
        donors=tuple(f"{dataset}: {name}" for dataset, name in both[:_LISTED]),
        donor_names=tuple(sorted(names)[:_LISTED]),
    )


class _Keys:
    """The keys of a selection's cells, dealt out to parts: contents with data sets, ids, barcodes with data sets."""

    def __init__(self, n_parts: int) -> None:
        self.contents, self.ids, self.barcodes = Spill(4, n_parts), Spill(1, n_parts), Spill(1, n_parts)
        self.datasets: list[str] = []
        self.nearly_empty = 0
        self.sources: set[tuple[str, str]] = set()
        """Data set and digest of each source that the selection has cells of."""

    def __enter__(self) -> _Keys:
        return self

    def __exit__(self, *arguments: Any) -> None:
        for spill in (self.contents, self.ids, self.barcodes):
            spill.__exit__(*arguments)

    def add(self, selection: Selection) -> None:
        every = (name for entry in selection.shards for name in entry.datasets)
        numbers = {name: i for i, name in enumerate(dict.fromkeys(every))}
        self.datasets = list(numbers)
        storage = selection.snapshot.atlas.storage
        for i, entry in enumerate(selection.shards):
            keys, table = shard_keys(storage, entry, "n_genes", "cell_id")
            near = table.column("n_genes").to_numpy() < NEARLY_EMPTY
            keys[~near, 2] = 0
            part = part_of_rows(storage, entry)
            number = np.array([numbers[one.dataset] for one in entry.sources], np.uint64)[part]
            contents = np.column_stack([keys, number])
            salt = feature_keys([one.dataset for one in entry.sources])[part, 0]
            names = splitmix64(text_hashes(table.column("barcode")) ^ salt)
            rows = selection.rows(i)
            chosen = slice(None) if rows is None else rows
            self.nearly_empty += int(near[chosen].sum())
            self.sources.update(entry.sources[at].key for at in np.unique(part[chosen]).tolist())
            ids = table.column("cell_id").to_numpy().astype(np.uint64)
            # Nearly empty cells are often equal: their barcodes spread them.
            spread = np.where(near, keys[:, 0] ^ splitmix64(keys[:, 2]), keys[:, 0])
            for spill, values, first in (
                (self.contents, contents, spread),
                (self.ids, ids[:, None], ids),
                (self.barcodes, names[:, None], names),
            ):
                spill.add(values[chosen], _part(first[chosen], spill.n_parts))


def _part(first: U64, n_parts: int) -> npt.NDArray[np.int64]:
    return ((first >> np.uint64(32)) * np.uint64(n_parts) >> np.uint64(32)).astype(np.int64)


def _equal(left: U64, right: U64) -> Counter[tuple[int, int]]:
    """Return how many cells of the right equal one of the left, by data sets."""
    if not len(left) or not len(right):
        return Counter()
    kinds, kind = np.unique(as_items(np.concatenate([left[:, :3], right[:, :3]])), return_inverse=True)
    owner = np.full(len(kinds), -1, np.int64)
    order = np.argsort(-left[:, 3].astype(np.int64), kind="stable")  # the first data set is written last
    owner[kind[: len(left)][order]] = left[order, 3].astype(np.int64)
    whose = owner[kind[len(left) :]]
    hit = np.flatnonzero(whose >= 0)
    found, counts = np.unique(np.stack([whose[hit], right[hit, 3].astype(np.int64)]), axis=1, return_counts=True)
    return Counter({(int(i), int(j)): int(n) for (i, j), n in zip(found.T, counts, strict=True)})


def _common(left: U64, right: U64) -> int:
    return int(np.isin(right[:, 0], left[:, 0]).sum())


def _donor_columns(a: Selection, b: Selection, wanted: Sequence[str]) -> tuple[str, ...]:
    if len(wanted) > 2:
        raise ConfigError("Two things are compared.", where="donor", fix="Name one column, or that of A and that of B.")
    if wanted:
        columns = wanted[0], wanted[-1]
        for side, column in zip((a, b), columns, strict=True):
            side.snapshot.check_columns([column])
        return columns
    ours, theirs = ([name for name in DONOR_COLUMNS if name in side.snapshot.columns] for side in (a, b))
    both = [name for name in ours if name in theirs]
    if both:
        return both[0], both[0]
    return (ours[0], theirs[0]) if ours and theirs else ()


def _donors(selection: Selection, column: str) -> set[tuple[str, str]]:
    """Return data set and name of each donor: as many as there are donors, not as there are cells."""
    return set(_donor_names(selection, column)) if column else set()


def _donor_names(selection: Selection, column: str) -> Iterator[tuple[str, str]]:
    for i, entry in enumerate(selection.shards):
        values = selection.snapshot.shard_cells(entry, ["dataset", column])
        rows = selection.rows(i)
        if rows is not None:
            values = values.take(pa.array(rows))
        names = pa.table([values.column(0), pc.cast(values.column(1), pa.string())], ["dataset", "donor"])
        for pair in names.group_by(["dataset", "donor"]).aggregate([]).to_pylist():
            if pair["donor"] is not None:
                yield pair["dataset"], pair["donor"]


def _side(selection: Selection) -> Side:
    snapshot = selection.snapshot
    return Side(snapshot=snapshot.name, url=snapshot.atlas.url, where=selection.where, cells=selection.n_cells)
