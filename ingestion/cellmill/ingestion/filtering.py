"""Cells of a source that are wanted at all: a predicate over its own columns of obs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.predicate import Predicate, parse
from cellmill.errors import ConfigError
from cellmill.ingestion.obs import obs_table
from cellmill.ingestion.sources import Source


def parse_where(where: str | None, source: Source) -> Predicate | None:
    """Return the predicate of a source's configuration, None for all cells.

    Raises
    ------
    ConfigError
        It is not well-formed, or a column of it is not in the source.
    """
    if where is None:
        return None
    predicate = parse(where)
    try:
        predicate.check(source.obs_columns())
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{source.url}: where: {where}", fix=error.fix) from error
    return predicate


def wanted(source: Source, predicate: Predicate | None, start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Return which of the cells ``[start, stop)`` fulfil the predicate: bool [stop - start]."""
    if predicate is None:
        return np.ones(stop - start, bool)
    obs = source.obs(predicate.columns, start, stop)
    table = obs_table(obs, {name: name for name in predicate.columns}, where=source.url)
    columns = {name: _plain(column) for name, column in table.items()}
    mask: npt.NDArray[np.bool_] = predicate.mask(pa.table(columns)).to_numpy()
    return mask


def _plain(column: pa.Array) -> pa.Array:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
