"""Gene names of any spelling to features of one release."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellmill.errors import GeneMappingError
from cellmill.genes.config import GeneConfig, Organism
from cellmill.genes.feature import Feature
from cellmill.genes.mapping import GeneMapping
from cellmill.genes.organism import detect_organism, in_lower_case
from cellmill.genes.peaks import is_peak
from cellmill.genes.resolve import Resolver
from cellmill.genes.status import CODE, KEPT, Status
from cellmill.genes.tables import GeneTable, load_orthologs, load_table

_MOST = 0.5


def harmonise(
    names: Sequence[str],
    *,
    organism: Organism,
    symbols: Sequence[str] | None = None,
    config: GeneConfig | None = None,
    lower_case: bool = False,
) -> GeneMapping:
    """Map the columns of a data set to features.

    Understood are Ensembl ids with and without version, approved symbols, previous symbols and aliases, assembly
    prefixes (``hg19_``, ``GRCh38_``, ``mm10___``), ids and symbols in one name, ``_PAR_Y``, dates that a
    spreadsheet made of symbols, and the suffixes of tools that make names unique. An id decides over a symbol.
    No name is mapped on a guess: what may mean several genes is ambiguous and has no place.

    Parameters
    ----------
    names
        One name a column: ids, symbols, or a mixture.
    organism
        The organism that was measured.
    symbols
        Second names of the same columns, asked where the first do not lead to a gene.
    config
        Duplicates, aliases, orthologs; limits on the loss are applied by ``GeneReport.check``.
    lower_case
        Whether names, if none has a capital letter, are also taken for symbols in lower case, as aliases. Only for an
        `organism` that somebody has named: human and mouse symbols differ by case alone.

    Raises
    ------
    ConfigError
        There is no table for `organism`.
    GeneMappingError
        `symbols` is not as long as `names`.
    """
    settings = config or GeneConfig()
    table = load_table(organism)
    first = [str(name) for name in names]
    second = [None] * len(first) if symbols is None else [str(symbol) for symbol in symbols]
    if len(second) != len(first):
        raise GeneMappingError(f"{len(second):,} symbols were given for {len(first):,} names.")
    lower = lower_case and in_lower_case(first) and in_lower_case(symbol for symbol in second if symbol)
    rows, statuses = _resolve(table, first, second, settings.aliases, lower)
    approved = table.row_of_symbol
    conflicts = np.fromiter(
        (
            symbol is not None and row >= 0 and approved.get(symbol, -1) >= 0 and approved[symbol] != row
            for row, symbol in zip(rows, second, strict=True)
        ),
        dtype=bool,
        count=len(first),
    )
    table, rows, statuses = _orthologs(table, rows, statuses, settings.ortholog_to)
    features, target = _features(table, rows, settings.duplicates == "keep")
    return GeneMapping(
        organism=organism,
        release=load_table(organism).release,
        names=tuple(first),
        features=features,
        target=target,
        codes=np.fromiter((CODE[status] for status in statuses), dtype=np.uint8, count=len(first)),
        conflicts=conflicts,
        hint=_hint(first, statuses, organism),
    )


def _resolve(
    table: GeneTable, names: list[str], symbols: Sequence[str | None], aliases: bool, lower_case: bool
) -> tuple[list[int], list[Status]]:
    """Return row and status of each column: plain ids and approved symbols at once, the rest one by one."""
    resolver = Resolver(table, frozenset(names).union(s for s in symbols if s), aliases, lower_case)
    by_id, by_symbol = table.row_of_id, table.row_of_symbol
    rows: list[int] = []
    statuses: list[Status] = []
    for name, symbol in zip(names, symbols, strict=True):
        row = by_id.get(name, -1)
        status = Status.MATCHED
        # A symbol alone settles a column only where no second name could hold an id.
        if row < 0 and symbol is None:
            row = by_symbol.get(name, -1)
        if row < 0:
            row, status = resolver(name, symbol)
        rows.append(row)
        statuses.append(status)
    return rows, statuses


def _orthologs(
    table: GeneTable, rows: list[int], statuses: list[Status], target: Organism | None
) -> tuple[GeneTable, list[int], list[Status]]:
    """Replace each row by its one-to-one ortholog's row in the table of `target`."""
    if target is None or target == table.organism:
        return table, rows, statuses
    other, pairs = load_table(target), load_orthologs(table.organism, target)
    found = [other.row_of_id.get(pairs.get(table.ids[row], ""), -1) if row >= 0 else -1 for row in rows]
    changed = [
        Status.NO_ORTHOLOG if row >= 0 and new < 0 else status
        for row, new, status in zip(rows, found, statuses, strict=True)
    ]
    return other, found, changed


def _features(table: GeneTable, rows: list[int], keep: bool) -> tuple[tuple[Feature, ...], np.ndarray]:
    """Return the features in order of first appearance, and each column's place among them."""
    place: dict[int, int] = {}
    copies: dict[int, int] = {}
    features: list[Feature] = []
    target = np.full(len(rows), -1, dtype=np.int32)
    for column, row in enumerate(rows):
        if row < 0:
            continue
        seen = place.get(row)
        if seen is None:
            place[row] = target[column] = len(features)
            features.append(table.feature(row))
        elif not keep:
            target[column] = seen
        else:
            copies[row] = copies.get(row, 0) + 1
            gene = table.feature(row)
            suffix = f"-{copies[row]}"
            target[column] = len(features)
            features.append(Feature(gene.id + suffix, gene.symbol + suffix, gene.modality, gene.organism, gene.release))
    return tuple(features), target


def _hint(names: list[str], statuses: list[Status], organism: Organism) -> str:
    """Say what the names look like, if most of them lead nowhere."""
    lost = [name for name, status in zip(names, statuses, strict=True) if status not in KEPT]
    if not names or len(lost) <= _MOST * len(names):
        return ""
    sample = lost[:: max(1, len(lost) // 1000)]
    if sum(name.strip().isdigit() for name in sample) > _MOST * len(sample):
        return "The names are numbers: say which column of `var` holds gene ids or symbols."
    if sum(is_peak(name) for name in sample) > _MOST * len(sample):
        return "The names look like genomic regions (ATAC peaks), not genes: set `modality: atac`, and `assembly`."
    other = detect_organism(names)
    if other is not None and other != organism:
        return f"The names look like {other} genes: set `organism: {other}`."
    return ""
