"""MuData files: several modalities of one set of cells, each an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from cellmill.errors import SourceError
from cellmill.ingestion.config import JoinConfig, SourceConfig
from cellmill.ingestion.sources.anndata_group import AnnDataGroupSource
from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.hdf5 import hdf5_names, open_hdf5
from cellmill.ingestion.sources.hdf5_texts import read_array
from cellmill.ingestion.sources.hdf5_tree import Hdf5Tree
from cellmill.ingestion.sources.holding import hold, text_bytes
from cellmill.ingestion.sources.joined import Further, JoinedSource
from cellmill.ingestion.sources.modalities import MODALITY, modality_of_name
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.table import Table
from cellmill.ingestion.sources.tenx_features import digest_of_part
from cellmill.ingestion.sources.translating import reading_hdf5, translated

_LOOK = 32
_FIX = "Write the file again with mudata: `mdata.update(); mdata.write(path)`."


class ModalitySource(AnnDataGroupSource):
    """Cells of one modality, with the columns of ``obs`` that it has itself, that the file has, and its sisters have.

    A column that the file and a modality have is the file's; ``rna:total`` is the column ``total`` of the modality
    ``rna``, and ``total`` alone is it, too, unless the file or the modality itself has one.

    Parameters
    ----------
    place
        The file.
    name
        Name of the data set.
    file
        The open file.
    modality
        Which one.

    Raises
    ------
    SourceError
        It has no cells, its tables cannot be read, or ``obsmap`` speaks of other cells.
    """

    def __init__(self, place: Place, name: str, file: h5py.File, modality: str) -> None:
        super().__init__(place, name, Hdf5Tree(file[f"mod/{modality}"]))
        self.url = f"{place.url}: mod/{modality}"
        self.modality = modality
        self._file = file
        self._others: dict[str, tuple[Table, npt.NDArray[np.int64]]] = {}
        self._check_map()

    @cached_property
    def digest(self) -> str:
        """Digest of the file's bytes and of the modality's name."""
        return digest_of_part(self._place.digest, self.modality)

    def close(self) -> None:
        """Close the file, for all of its modalities."""
        self._file.close()

    def var(self, place: str) -> pd.DataFrame:
        """Return the features' table; what does not say of which modality it is, is of this one."""
        table = super().var(place)
        if MODALITY in table.columns:
            return table
        return table.assign(**{MODALITY: modality_of_name(self.modality)})

    @translated(reading_hdf5)
    def obs_columns(self) -> list[str]:
        """Return the names of all columns."""
        return list(self._columns)

    @translated(reading_hdf5)
    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows ``[start, stop)`` of columns, missing where a sister has no such cell."""
        frame = super().obs([], start, stop)
        for name in columns:
            key, column = self._columns[name]
            if key == self.modality:
                frame[name] = self._table("obs").column(column, start, stop)
                continue
            table, rows = self._other(key)
            mine = rows[start:stop]
            there = mine[mine >= 0]
            if not there.size:
                frame[name] = pd.Series(pd.NA, frame.index, dtype=object)
                continue
            low = int(there.min())
            values = table.column(column, low, int(there.max()) + 1)
            shifted = np.where(mine >= 0, mine - low, -1)
            frame[name] = pd.api.extensions.take(values, shifted, allow_fill=bool((mine < 0).any()))
        return frame

    @translated(reading_hdf5)
    def obs_blocks(self, columns: Sequence[str]) -> dict[str, int]:
        """Return the bytes of the chunks that are decoded as a whole, each column's in the table that has it."""
        found = super().obs_blocks([])
        for name in columns:
            key, column = self._columns[name]
            table = self._table("obs") if key == self.modality else self._other(key)[0]
            found |= table.blocks([column])
        return found

    @cached_property
    def _columns(self) -> dict[str, tuple[str, str]]:
        """Where each column is: in which table, and its name there."""
        found = {name: ("", name) for name in self._other("")[0].columns}
        tables = {self.modality: self._table("obs")}
        tables |= {name: self._other(name)[0] for name in self._file["mod"] if name != self.modality}
        for modality, table in tables.items():
            for name in table.columns:
                found.setdefault(name, (modality, name))
                found.setdefault(f"{modality}:{name}", (modality, name))
        return found

    def _other(self, key: str) -> tuple[Table, npt.NDArray[np.int64]]:
        """Return the table of another modality (of the file for ``""``), and its row for each cell; -1 for none."""
        if key not in self._others:
            path = f"mod/{key}/obs" if key else "obs"
            table = Table(self._file[path], f"{self._place.url}: {path}", Hdf5Tree(self._file))
            mine = self._table("obs")
            names = text_bytes(table.n_rows + mine.n_rows, table.index(0, _LOOK))
            hold(f"Matching {mine.n_rows:,} barcodes with {table.n_rows:,}", 2 * names, f"{self._place.url}: {path}")
            index = table.index().astype(str)
            if not index.is_unique:
                raise SourceError(f"Two cells of {path} have one name.", where=self._place.url, fix=_FIX)
            self._others[key] = table, index.get_indexer(mine.index().astype(str)).astype(np.int64)
        return self._others[key]

    def _check_map(self) -> None:
        """Refuse a file whose map of cells does not fit the names of the cells."""
        if "obsmap" not in self._file or self.modality not in self._file["obsmap"]:
            return
        found = np.asarray(read_array(self._file["obsmap"], self.modality, self._place.url)).astype(np.int64)
        table, rows = self._other("")
        wanted = np.zeros(table.n_rows, np.int64)
        if (rows >= 0).all():
            wanted[rows] = np.arange(1, rows.size + 1)
        if not np.array_equal(found, wanted):
            raise SourceError(
                f"obsmap/{self.modality} does not fit the names of the cells.", where=self._place.url, fix=_FIX
            )


class MuDataSource(JoinedSource):
    """Cells that all modalities of a file have; those that one lacks are counted.

    Parameters
    ----------
    place
        The file.
    config
        What is said about it.
    modalities
        Its modalities; the cells are in the order of the first.
    """

    def __init__(self, place: Place, config: SourceConfig, modalities: Sequence[ModalitySource]) -> None:
        first, *others = modalities
        said = {"genome": config.genome, "assembly": config.assembly}
        further = [Further(JoinConfig.model_validate(said), other, False) for other in others]
        super().__init__(first, config, further)
        self.url, self.stamp = place.url, place.stamp
        self._place = place

    @cached_property
    def digest(self) -> str:
        """Digest of the file's bytes."""
        return self._place.digest


class H5muFormat:
    """The format ``h5mu``."""

    name = "h5mu"

    def recognises(self, place: Place) -> bool:
        """Return whether a file has modalities and a table of cells."""
        return {"obs", "mod"} <= hdf5_names(place)

    def open(self, place: Place, name: str, config: SourceConfig) -> Source:
        """Open a file: all modalities, or the one that ``group`` names or ``modality`` means.

        Raises
        ------
        SourceError
            It is damaged, has no such modality, or its modalities have no cell in common.
        """
        file = open_hdf5(place)
        try:
            with reading_hdf5(place.url):
                chosen = _choose(file, config, place.url)
                modalities = [ModalitySource(place, name, file, modality) for modality in chosen]
                return modalities[0] if len(modalities) == 1 else MuDataSource(place, config, modalities)
        except BaseException:
            file.close()
            raise


FORMAT = H5muFormat()


def _choose(file: h5py.File, config: SourceConfig, where: str) -> list[str]:
    """Return the modalities that are read, genes first."""
    if int(file.attrs.get("axis", 0)) != 0:
        raise SourceError(
            "The modalities share features, not cells.", where=where, fix="Write each modality as a file of its own."
        )
    missing = [name for name in file["mod"] if "obs" not in file[f"mod/{name}"] or "var" not in file[f"mod/{name}"]]
    if missing or "obs" not in file or not len(file["mod"]):
        raise SourceError(
            f"mod/{missing[0]} is no AnnData." if missing else "There are no modalities.", where=where, fix=_FIX
        )
    order: Any = file["mod"].attrs.get("mod-order", ())
    names = [str(name) for name in order if str(name) in file["mod"]]
    names += [name for name in file["mod"] if name not in names]
    names.sort(key=lambda name: modality_of_name(name) != "rna")
    if config.group is not None:
        if config.group not in names:
            raise SourceError(
                f"There is no modality {config.group!r}.", where=where, fix=f"There are: {', '.join(names)}."
            )
        return [config.group]
    if config.modality == "auto":
        return names
    of_kind = [name for name in names if modality_of_name(name) == config.modality]
    if len(of_kind) != 1:
        raise SourceError(
            f"{len(of_kind)} modalities are called like {config.modality}.",
            where=where,
            fix=f"Name the one that is meant with `group`. There are: {', '.join(names)}.",
        )
    return of_kind
