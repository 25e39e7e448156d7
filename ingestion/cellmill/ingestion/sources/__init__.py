"""Sources: files and folders that hold cells, read by blocks of rows."""

from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.memory import AnnDataSource
from cellmill.ingestion.sources.place import Place

__all__ = ["AnnDataSource", "Place", "Source"]
