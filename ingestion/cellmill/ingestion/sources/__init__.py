"""Sources: files that hold cells, read by blocks of rows."""

from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.h5ad import H5adSource
from cellmill.ingestion.sources.memory import AnnDataSource

__all__ = ["AnnDataSource", "H5adSource", "Source"]
