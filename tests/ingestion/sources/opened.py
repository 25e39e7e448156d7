"""Opening a place as an ingestion does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cellmill.ingestion import SourceConfig
from cellmill.ingestion.sources import Place, Source, registry


def opened(path: Path | str, **settings: Any) -> Source:
    return registry.open_source(Place(path), "data", SourceConfig(path=str(path), **settings))


def format_of(path: Path | str) -> str:
    return registry.resolve(Place(path), SourceConfig(path=str(path))).name


def whole(source: Source, place: str = "X", step: int | None = None) -> npt.NDArray[Any]:
    """Return all rows, read `step` at a time."""
    n = source.n_cells
    blocks = [source.rows(place, start, min(start + (step or n), n)).toarray() for start in range(0, n, step or n)]
    return np.concatenate(blocks)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CELLMILL_CACHE", str(folder))
    return folder
