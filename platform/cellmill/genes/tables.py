"""The bundled gene tables: releases, other names, retired ids, orthologs, controls."""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Any, get_args

import pandas as pd
import pyarrow.parquet as pq

from cellmill.errors import ConfigError
from cellmill.genes.config import Organism
from cellmill.genes.feature import Feature

AMBIGUOUS = -2


def read_table(name: str) -> pd.DataFrame:
    """Return one of the bundled tables, such as ``human_genes`` or ``orthologs``."""
    data = files("cellmill.genes").joinpath("data", f"{name}.parquet").read_bytes()
    table: pd.DataFrame = pq.ParquetFile(BytesIO(data)).read(use_threads=False).to_pandas()
    return table


@lru_cache(maxsize=1)
def sources() -> dict[str, Any]:
    """Return where the bundled tables come from: releases, packages with sha256, licences."""
    text = files("cellmill.genes").joinpath("data", "sources.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


class GeneTable:
    """The genes of one organism in one release, and every other name that leads to them.

    Rows are positions in `ids`. A name that may mean several genes leads to `AMBIGUOUS`.

    Attributes
    ----------
    ids, symbols
        Ensembl ids without version, and approved symbols (the id where a gene has none).
    row_of_id
        Ensembl id to row.
    row_of_replaced
        Ids that the release does not have, or has as chrY's copy of a chrX gene, to the row that stands for them.
    row_of_symbol
        Approved symbol to row.
    row_of_other
        Previous symbol or alias to row.
    previous
        The names in `row_of_other` that were approved symbols, or a release's symbols, before.
    """

    def __init__(self, organism: Organism) -> None:
        genes = read_table(f"{organism}_genes")
        names = read_table(f"{organism}_names")
        retired = read_table(f"{organism}_retired")
        self.organism: Organism = organism
        self.release: str = sources()["releases"][organism]
        self.licence: str = sources()["upstream"]["Ensembl and GENCODE"]
        self.ids: list[str] = genes["id"].tolist()
        self.symbols: list[str] = genes["symbol"].where(genes["symbol"] != "", genes["id"]).tolist()
        self.biotypes: list[str] = genes["biotype"].tolist()
        row = {gene: i for i, gene in enumerate(self.ids)}
        same = (genes["canonical"] == genes["id"]).tolist()
        self.row_of_id = {gene: i for i, gene in enumerate(self.ids) if same[i]}
        self.row_of_replaced = dict(zip(retired["retired"], map(row.__getitem__, retired["id"]), strict=True))
        canonical: list[str] = genes["canonical"].tolist()
        self.row_of_replaced.update((g, row[canonical[i]]) for i, g in enumerate(self.ids) if not same[i])
        self.row_of_symbol = dict.fromkeys(set(genes["symbol"]) - {""}, AMBIGUOUS)
        owned = genes[genes["owner"]]
        self.row_of_symbol.update(zip(owned["symbol"].tolist(), owned.index.tolist(), strict=True))
        targets: list[str | None] = names["id"].tolist()
        rows = [AMBIGUOUS if target is None else row[target] for target in targets]
        self.row_of_other: dict[str, int] = dict(zip(names["name"].tolist(), rows, strict=True))
        self.previous = frozenset(names.loc[names["kind"] == "previous", "name"])
        self._candidates = names[names["id"].isna()].set_index("name")["candidates"]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def row_of_lower_case(self) -> dict[str, int]:
        """Every symbol, previous symbol and alias in lower case, to row; an approved symbol decides over the others."""
        found: dict[str, int] = {}
        for rows in (self.row_of_other, self.row_of_symbol):
            level: dict[str, int] = {}
            for name, row in rows.items():
                lower = name.lower()
                level[lower] = row if level.get(lower, row) == row else AMBIGUOUS
            found.update(level)
        return found

    def feature(self, row: int) -> Feature:
        """Return the feature of one row."""
        return Feature(self.ids[row], self.symbols[row], "rna", self.organism, self.release)

    def is_symbol(self, name: str) -> bool:
        """Return whether `name` is, or was, the symbol of a gene rather than an alias."""
        return name in self.row_of_symbol or name in self.previous

    def candidates(self, name: str) -> str:
        """Return the genes that an ambiguous previous symbol or alias may mean, "" where that is not recorded."""
        return str(self._candidates.get(name, ""))


@lru_cache(maxsize=2)
def load_table(organism: Organism) -> GeneTable:
    """Return the bundled table of one organism; read once a process.

    Raises
    ------
    ConfigError
        There is no table for that organism.
    """
    known = get_args(Organism)
    if organism not in known:
        raise ConfigError(
            f"There is no gene table for {organism!r}.", where="organism", fix=f"Use one of: {', '.join(known)}."
        )
    return GeneTable(organism)


@lru_cache(maxsize=2)
def load_orthologs(source: Organism, target: Organism) -> dict[str, str]:
    """Return the one-to-one orthologs from one organism's Ensembl ids to another's."""
    pairs = read_table("orthologs")
    return dict(zip(pairs[source].tolist(), pairs[target].tolist(), strict=True))


@lru_cache(maxsize=1)
def load_controls() -> dict[str, str]:
    """Return spike-in and viral feature ids with their kind: ``spike_in`` or ``viral``."""
    controls = read_table("controls")
    return dict(zip(controls["id"].tolist(), controls["kind"].tolist(), strict=True))
