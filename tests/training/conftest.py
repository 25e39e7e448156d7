"""A small atlas for the tests of training runs."""

from pathlib import Path

import numpy as np
import pytest

from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from tests.training.small import cells, genes

N_CELLS = 90


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ninety cells of two donors and three kinds that express different genes; one cell has no kind."""
    folder = tmp_path_factory.mktemp("atlas")
    found = cells(N_CELLS, [gene.id for gene in genes()], seed=3)
    kinds = np.array(["alpha", "beta", "gamma"])[np.arange(N_CELLS) % 3]
    counts = found.X.toarray()
    for i, kind in enumerate(("alpha", "beta", "gamma")):
        counts[np.ix_(kinds == kind, np.arange(20 * i + 1, 20 * i + 21))] += 9
    found.X = counts.astype(np.float32)
    found.obs["kind"] = kinds.astype(object)
    found.obs.loc["cell4", "kind"] = None
    found.obs["first_kind"] = kinds == "alpha"
    found.obs["donor"] = np.where(np.arange(N_CELLS) < 60, "d1", "d2")
    path = folder / "cells.h5ad"
    found.write_h5ad(path)
    source = SourceConfig(path=str(path), organism="human", licence="CC0-1.0", obs="all")
    ingest(IngestConfig(atlas=str(folder / "atlas"), sources=(source,), backend="local", output=folder / "run"))
    return str(folder / "atlas")


@pytest.fixture(scope="session")
def file(atlas: str) -> Path:
    """Return the h5ad that the atlas was made of."""
    return Path(atlas).parent / "cells.h5ad"
