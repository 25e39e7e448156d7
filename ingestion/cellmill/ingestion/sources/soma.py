"""TileDB-SOMA experiments, local, in object stores, and those of the CELLxGENE Census."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from cellmill.digest import digest_of
from cellmill.errors import SourceError, StorageError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.arrow_columns import pandas_array
from cellmill.ingestion.sources.base import NAMED_COUNTS, Source
from cellmill.ingestion.sources.holding import hold
from cellmill.ingestion.sources.listing import children
from cellmill.ingestion.sources.modalities import MODALITY, TERMS, modality_of_name, with_modality
from cellmill.ingestion.sources.names import names_in
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.soma_address import address, tiledb_config
from cellmill.ingestion.sources.starts import EvenStarts, Starts
from cellmill.ingestion.sources.translating import first_line, translated

I64 = npt.NDArray[np.int64]

_JOINID = "soma_joinid"
_BARCODES = ("obs_id", "barcode", "cell_id", "index", "observation_joinid")
_MAIN, _RAW = "data", "raw"
_CONTENT = re.compile(r"__(fragments|commits)/")
_GROUP_MARKS = {"__group", "__tiledb_group.tdb"}
_SILENT = re.compile(r"curlCode: \d+, (.*)")
"""How TileDB tells that a store was not reached, or gave no whole answer."""
_FIX = "Fetch or write the experiment again; `tiledbsoma.open` says more."


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn TileDB's errors, which are many and of no common type, into ours."""
    from tiledbsoma import SOMAError

    try:
        yield
    except (SOMAError, RuntimeError, OSError, KeyError, ValueError, TypeError) as error:
        if found := _SILENT.search(str(error)):
            raise StorageError(
                f"The store does not answer: {found[1]}", where=where, fix="Check address and network, then run again."
            ) from error
        raise SourceError(f"TileDB-SOMA cannot read it: {first_line(error)}", where=where, fix=_FIX) from error


class SomaSource:
    """Cells of one measurement of an experiment.

    The layer ``data`` of the measurement's X is the place ``X``, every other layer ``layers/NAME``; that of the
    measurement called ``raw``, which `tiledbsoma.io` writes from ``raw.X``, is ``raw.X``. So an experiment that was
    made from an h5ad has the h5ad's places.

    Parameters
    ----------
    place
        The experiment.
    name
        Name of the data set.
    measurement
        The measurement; None takes the only one, or ``RNA``.

    Raises
    ------
    SourceError
        It is no experiment, is damaged, or the measurement is not there or not said.
    """

    def __init__(self, place: Place, name: str, measurement: str | None) -> None:
        self.name, self.url = name, place.url
        self._place = place
        import tiledbsoma

        context = tiledbsoma.SOMATileDBContext(tiledb_config=tiledb_config(place.location))
        self._experiment = cast(Any, tiledbsoma.open(address(place.location), context=context))
        try:
            if self._experiment.soma_type != "SOMAExperiment" or not {"obs", "ms"} <= set(self._experiment):
                raise SourceError("It is TileDB-SOMA, but no experiment.", where=self.url, fix="Give the experiment.")
            self._obs, self._ms = self._experiment.obs, self._experiment.ms
            self._measurement = self._choose(measurement)
            self._ids = self._read_ids()
            self._places = self._find_places()
            self.stamp = self._identity()
            if not len(self._ids):
                raise SourceError("There are no cells.", where=self.url)
        except BaseException:
            self.close()
            raise
        self._vars: dict[str, tuple[pd.DataFrame, I64]] = {}

    @property
    def digest(self) -> str:
        """Digest of the names of all fragments and commits, which TileDB never uses twice; no data are read for it."""
        return self.stamp

    def close(self) -> None:
        """Close the experiment."""
        self._experiment.close()

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self._ids)

    def places(self) -> Sequence[str]:
        """Return the layers whose names say counts, ``raw.X``, ``X``, and the other layers."""
        return self._places

    @translated(_reading)
    def starts(self, place: str) -> Starts:
        """Return where the values of each cell begin at `place`, as if cells were alike: only their number is known."""
        return EvenStarts([self.n_cells], [-(-self._stored(place) // self.n_cells)])

    @translated(_reading)
    def var(self, place: str) -> pd.DataFrame:
        """Return the features' table of the measurement."""
        return self._features(place)[0]

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return the columns of `var` with ids and symbols."""
        return names_in(self.var(place))

    @translated(_reading)
    def obs_columns(self) -> list[str]:
        """Return the names of the columns of the cells' table."""
        return [name for name in self._obs.keys() if name not in (_JOINID, self._barcode)]  # noqa: SIM118

    @translated(_reading)
    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows ``[start, stop)`` of columns of the cells' table, indexed by barcode."""
        ids = np.asarray(self._ids[start:stop], np.int64)
        names = [*dict.fromkeys([_JOINID, *([self._barcode] if self._barcode else []), *columns])]
        coords = (_coordinates(ids),) if tuple(self._obs.index_column_names) == (_JOINID,) else ()
        table = self._obs.read(coords, column_names=names).concat()
        frame = pd.DataFrame({name: pandas_array(table[name]) for name in names})
        frame = frame.set_index(_JOINID).loc[ids]
        index = frame[self._barcode].astype(str) if self._barcode else frame.index.astype(str)
        return frame[list(columns)].set_axis(pd.Index(index.tolist()), axis=0)

    @translated(_reading)
    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)`` of the matrix at `place`."""
        array = self._array(place)
        ids, features = np.asarray(self._ids[start:stop], np.int64), self._features(place)[1]
        shape = (ids.size, features.size)
        if not ids.size:
            return sparse.csr_matrix(shape)
        with _reading(f"{self.url}: {place}, cells {start} to {stop - 1}"):
            if array.soma_type == "SOMADenseNDArray":
                block = array.read((slice(int(ids[0]), int(ids[-1])), slice(None))).to_numpy()
                return sparse.csr_matrix(block[ids - ids[0]][:, features])
            parts = [
                [part[name].to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data")]
                for part in array.read((_coordinates(ids), slice(None))).tables()
            ]
        if not parts:
            return sparse.csr_matrix(shape)
        cells, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        row, column = np.searchsorted(ids, cells), np.searchsorted(features, columns)
        # Values of cells that were taken out of obs may still be there.
        mine = ids[np.minimum(row, ids.size - 1)] == cells
        if not np.array_equal(features[np.minimum(column, features.size - 1)][mine], columns[mine]):
            raise SourceError("The matrix names features that are not in var.", where=f"{self.url}: {place}", fix=_FIX)
        return sparse.csr_matrix((values[mine], (row[mine], column[mine])), shape=shape)

    def _read_ids(self) -> I64 | range:
        """Return the ids of all cells, ascending: a range if none is missing between them, as in the Census."""
        n, low, high = 0, 0, -1
        for part in self._ids_in_parts():
            low, high = min(int(part.min()), low) if n else int(part.min()), max(int(part.max()), high)
            n += part.size
        if high - low + 1 == n:
            return range(low, high + 1)
        hold(f"The ids of {n:,} cells", 8 * n, self.url)
        ids, at = np.empty(n, np.int64), 0
        for part in self._ids_in_parts():
            ids[at : at + part.size] = part
            at += part.size
        ids.sort()
        return ids

    def _ids_in_parts(self) -> Iterator[I64]:
        for table in self._obs.read(column_names=[_JOINID]):
            if len(table):
                yield table[_JOINID].to_numpy()

    @cached_property
    def _barcode(self) -> str | None:
        present = set(self._obs.keys())
        return next((name for name in _BARCODES if name in present), None)

    def _choose(self, wanted: str | None) -> str:
        names = [name for name in self._ms if name != _RAW] or list(self._ms)
        if wanted is None:
            wanted = names[0] if len(names) == 1 else "RNA"
            if wanted not in names:
                raise SourceError(
                    f"There are {len(names)} measurements: {', '.join(names)}.",
                    where=self.url,
                    fix=f"Say which with `group`, for instance `group: {names[0]}`." if names else _FIX,
                )
        if wanted not in self._ms:
            raise SourceError(
                f"There is no measurement {wanted!r}.", where=self.url, fix=f"There are: {', '.join(self._ms)}."
            )
        return wanted

    def _find_places(self) -> list[str]:
        found = list(self._measurement_at("X").X) if "X" in self._measurement_at("X") else []
        layers = [f"layers/{name}" for name in sorted(found) if name != _MAIN]
        named = [place for place in layers if place.removeprefix("layers/").lower() in NAMED_COUNTS]
        raw = ["raw.X"] if self._has_raw() else []
        own = ["X"] if _MAIN in found else []
        return [*named, *raw, *own, *(place for place in layers if place not in named)]

    def _has_raw(self) -> bool:
        return self._measurement != _RAW and _RAW in self._ms and "X" in self._ms[_RAW] and _MAIN in self._ms[_RAW].X

    def _measurement_at(self, place: str) -> Any:
        return self._ms[_RAW if place == "raw.X" else self._measurement]

    def _array(self, place: str) -> Any:
        if place not in self.places():
            raise SourceError(
                f"There is no matrix at {place!r}.", where=self.url, fix=f"There are: {', '.join(self.places())}."
            )
        layers = self._measurement_at(place).X
        return layers[_MAIN if place in ("X", "raw.X") else place.removeprefix("layers/")]

    def _stored(self, place: str) -> int:
        """Return the number of stored values."""
        array = self._array(place)
        return int(array.nnz) if array.soma_type == "SOMASparseNDArray" else int(np.prod(array.shape))

    def _features(self, place: str) -> tuple[pd.DataFrame, I64]:
        """Return the features' table in the order of its ids, and these."""
        key = "raw.X" if place == "raw.X" else "X"
        if key not in self._vars:
            table = self._measurement_at(key).var.read().concat().to_pandas()
            table = table.set_index(_JOINID).sort_index()
            ids = table.index.to_numpy()
            table = with_modality(table.set_index("var_id") if "var_id" in table.columns else table)
            called = modality_of_name(self._measurement)
            if MODALITY not in table.columns and called in TERMS.values():
                table = table.assign(**{MODALITY: called})
            self._vars[key] = table, ids
        return self._vars[key]

    def _identity(self) -> str:
        measurements = [self._measurement, *([_RAW] if self._has_raw() else [])]
        lines = [self._measurement, str(self.n_cells)]
        if self._place.is_opaque:
            # Nothing can be listed; a release of the Census does not change, and carries its date.
            lines += [self._place.location, *(f"{place} {self._stored(place)}" for place in self.places())]
        else:
            storage = self._place.storage
            folders = ["obs", *(f"ms/{name}/{part}" for name in measurements for part in ("var", "X"))]
            lines += [key for folder in folders for key in storage.list(folder) if _CONTENT.search(key)]
        return digest_of("\n".join(lines).encode())


class SomaFormat:
    """The format ``soma``; it needs tiledbsoma, the extra ``census``."""

    name = "soma"

    def recognises(self, place: Place) -> bool:
        """Return whether it is a URI of TileDB's own, or a folder that is a group with ``obs`` and ``ms``."""
        if place.is_opaque:
            return True
        names = set(children(place)) if place.is_dir else set()
        return bool(names & _GROUP_MARKS) and {"obs", "ms"} <= names

    def open(self, place: Place, name: str, config: SourceConfig) -> Source:
        """Open an experiment.

        Raises
        ------
        SourceError
            See `SomaSource`; or tiledbsoma is not installed.
        """
        _require_tiledbsoma(place.url)
        with _reading(place.url):
            return SomaSource(place, name, config.group)


FORMAT = SomaFormat()


def _require_tiledbsoma(where: str) -> None:
    if find_spec("tiledbsoma") is None:
        raise SourceError(
            "TileDB-SOMA experiments need tiledbsoma, which is not installed.",
            where=where,
            fix="Install it: pip install -c constraints.txt 'cellmill[census]'.",
        )


def _coordinates(ids: I64) -> Any:
    """Return sorted ids as a range if they are one."""
    return slice(int(ids[0]), int(ids[-1])) if ids[-1] - ids[0] + 1 == ids.size else ids
