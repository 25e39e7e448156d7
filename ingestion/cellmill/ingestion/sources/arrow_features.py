"""Tables of genes beside Parquet and Arrow files."""

from __future__ import annotations

from functools import cached_property

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from cellmill.errors import SourceError
from cellmill.ingestion.sources.arrow_parts import reading
from cellmill.ingestion.sources.base import INDEX
from cellmill.ingestion.sources.listing import children
from cellmill.ingestion.sources.names import names_in
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.remote import is_web

NUMBERS = ("token_id", "token_ids", "gene_index", "gene_idx", "feature_index", "feature_idx", "soma_joinid", "index")
"""Columns with the numbers by which cells name their features; without one, features are numbered from 0."""

_NAMES = ("gene_metadata", "genes", "features", "var")
_ENDINGS = (".parquet", ".arrow", ".feather", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
_LARGEST = 1 << 30


class FeatureTable:
    """What is known of the features.

    Parameters
    ----------
    frame
        A row for each feature.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    @cached_property
    def numbers(self) -> pa.Array:
        """The number of each feature: int64 [n]."""
        column = next((name for name in NUMBERS if name in self.frame.columns), None)
        if column is None or not pd.api.types.is_integer_dtype(self.frame[column]):
            return pa.array(range(len(self.frame)), pa.int64())
        return pa.array(self.frame[column].to_numpy(), pa.int64())

    @cached_property
    def texts(self) -> pa.Array:
        """The id of each feature: string [n]."""
        ids = names_in(self.frame)[0]
        values = self.frame.index if ids == INDEX else self.frame[ids]
        return pa.array([str(value) for value in values], pa.string())


def find_table(place: Place, named: str | None) -> Place | None:
    """Return the table of genes that is named, or lies beside the data or in ``metadata`` there or a level above.

    Raises
    ------
    SourceError
        The one that is named does not exist.
    """
    if named is not None:
        found = Place(named)
        if not found.exists:
            raise SourceError("The table of genes does not exist.", where=found.url, fix="Check `features`.")
        return found
    folder = place.location if place.is_dir else place.location.rpartition("/")[0]
    for where in folders_of_tables(folder):
        there = Place(where)
        names = [f"{name}{ending}" for name in _NAMES for ending in _ENDINGS]
        if not is_web(where):
            listed = set(children(there)) if not there.is_local or there.is_dir else set()
            names = [name for name in names if name in listed]
        for name in names:
            candidate = Place(f"{where}/{name}")
            if candidate.location != place.location and candidate.exists and not candidate.is_dir:
                return candidate
    return None


def folders_of_tables(folder: str) -> list[str]:
    """Return where a table of genes may lie, of data in a folder."""
    above = folder.rpartition("/")[0]
    # Above a bucket or a server there is nothing but others.
    return [folder, f"{folder}/metadata", *([f"{above}/metadata"] if not above.endswith(":/") else [])]


def read_table(place: Place) -> FeatureTable:
    """Read a table of genes.

    Raises
    ------
    SourceError
        It is damaged or too large, or has a feature twice.
    """
    path = place.local_path()
    if path.stat().st_size > _LARGEST:
        raise SourceError("The table of genes has more than 1 GB.", where=place.url, fix="Is it the right file?")
    with reading(place.url):
        if place.name.endswith(".parquet"):
            table = pyarrow.parquet.read_table(path)
        elif place.name.endswith((".arrow", ".feather")):
            table = pyarrow.feather.read_table(path)
        else:
            delimiter = "\t" if ".tsv" in place.name else ","
            table = pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter))
        frame = table.to_pandas()
    found = FeatureTable(frame)
    if len(found.numbers.unique()) != len(frame):
        raise SourceError("The table of genes numbers two features alike.", where=place.url, fix="Make it unique.")
    return found
