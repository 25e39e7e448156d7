"""Ingestion: files become a snapshot of an atlas, genes harmonised, counts checked, every loss reported."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellmill.ingestion.config import IngestConfig, JoinConfig, QualityConfig, SourceConfig
    from cellmill.ingestion.pipeline import ingest
    from cellmill.ingestion.result import IngestResult

_HOME = {
    "IngestConfig": "config",
    "IngestResult": "result",
    "JoinConfig": "config",
    "QualityConfig": "config",
    "SourceConfig": "config",
    "ingest": "pipeline",
}

__all__ = ["IngestConfig", "IngestResult", "JoinConfig", "QualityConfig", "SourceConfig", "ingest"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
