"""Catalogue of public data sets, and a fetch that checks what it gets."""

from cellmill.ingestion.datasets.entries import DatasetEntry, catalogue, find
from cellmill.ingestion.datasets.fetching import cache_folder, fetch

__all__ = ["DatasetEntry", "cache_folder", "catalogue", "fetch", "find"]
