"""From one written name to one row of the gene table."""

from __future__ import annotations

from collections.abc import Collection

from cellmill.genes.spelling import (
    control_kind,
    date_candidates,
    orf_spellings,
    take_apart,
    undotted,
    without_unique_suffix,
)
from cellmill.genes.status import Status
from cellmill.genes.tables import AMBIGUOUS, GeneTable, load_controls

_NONE = -1
Found = tuple[int, Status]


class Resolver:
    """Finds the gene that a column means: an id decides over a symbol, an approved symbol over other names.

    Parameters
    ----------
    table
        The organism's genes.
    present
        All names of the input: ``TBCE-1`` is read as a second ``TBCE`` only if there is a ``TBCE``.
    aliases
        Whether previous symbols, aliases and dates are followed.
    lower_case
        Whether the names are symbols and aliases in lower case.
    """

    def __init__(self, table: GeneTable, present: Collection[str], aliases: bool, lower_case: bool = False) -> None:
        self.table = table
        self.present = present
        self.aliases = aliases
        self.lower_case = lower_case
        self.controls = load_controls()
        # R's make.names leaves no dash: then a dot may stand for one, before it means anything else.
        self.dotted = not any("-" in name for name in present)
        self.id_prefix = {"human": "ENSG0", "mouse": "ENSMUSG0"}[table.organism]

    def __call__(self, name: str, symbol: str | None) -> Found:
        """Return the row (-1: none) and the status of a column with this name and, perhaps, this symbol."""
        retired = False
        symbols: list[str] = []
        for text in (name, symbol):
            if not text:
                continue
            spelling = take_apart(text)
            if spelling.organism not in (None, self.table.organism):
                return _NONE, Status.OTHER_SPECIES
            if spelling.ensembl is not None:
                found = self._by_id(spelling.ensembl, spelling.par_y)
                if found[1] is not Status.RETIRED:
                    return found
                retired = True
            if spelling.symbol:
                symbols.append(spelling.symbol)
        last: Found = (_NONE, Status.UNKNOWN)
        for text in symbols:
            row, status = self._by_symbol(text)
            if row >= 0:
                return row, Status.REPLACED if retired else status
            if status is not Status.UNKNOWN:
                last = (row, status)
        return (_NONE, Status.RETIRED) if retired else last

    def _by_id(self, gene: str, par_y: bool) -> Found:
        row = self.table.row_of_id.get(gene, _NONE)
        if row >= 0:
            return row, Status.REPLACED if par_y else Status.MATCHED
        row = self.table.row_of_replaced.get(gene, _NONE)
        if row >= 0:
            return row, Status.REPLACED
        if gene in self.controls:
            return _NONE, Status(self.controls[gene])
        return _NONE, Status.RETIRED if gene.startswith(self.id_prefix) else Status.OTHER_SPECIES

    def _by_symbol(self, name: str) -> Found:
        if self.dotted and name not in self.table.row_of_symbol:
            for spelling in undotted(name):
                row = self.table.row_of_symbol.get(spelling, _NONE)
                if row >= 0:
                    return row, Status.MATCHED
        found = self._exact(name)
        if found[1] is not Status.UNKNOWN:
            return found
        kind = self.controls.get(name) or control_kind(name)
        if kind is not None:
            return _NONE, Status(kind)
        if self.aliases:
            found = self._one_of(date_candidates(name) or orf_spellings(name) or undotted(name))
            if found[1] is not Status.UNKNOWN:
                return found
        base = without_unique_suffix(name)
        if base is not None and base in self.present:
            return self._by_symbol(base)
        return _NONE, Status.UNKNOWN

    def _exact(self, name: str) -> Found:
        row = self.table.row_of_symbol.get(name, _NONE)
        if row >= 0:
            return row, Status.MATCHED
        if row == _NONE and self.aliases:
            others = self.table.row_of_lower_case if self.lower_case else self.table.row_of_other
            row = others.get(name.lower() if self.lower_case else name, _NONE)
            if row >= 0:
                return row, Status.ALIAS
        return _NONE, Status.AMBIGUOUS if row == AMBIGUOUS else Status.UNKNOWN

    def _one_of(self, names: tuple[str, ...]) -> Found:
        """Return the gene that all of `names` agree on, asking aliases only if none was ever a gene's symbol.

        What data sets hold are the symbols of their time: ``3-Mar`` was MARCH3, not MAR3, an alias of RTL3.
        """
        known = {name: found for name in names if (found := self._exact(name))[1] is not Status.UNKNOWN}
        official = [found for name, found in known.items() if self.table.is_symbol(name)]
        rows = {row for row, _ in official or known.values()}
        if not rows:
            return _NONE, Status.UNKNOWN
        if len(rows) > 1 or _NONE in rows:
            return _NONE, Status.AMBIGUOUS
        return rows.pop(), Status.ALIAS
