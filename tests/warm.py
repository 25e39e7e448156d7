"""Imported by processes that fork children: what each of them would load again is there.

numba's own tables are read when the first compiled kernel is called, which takes longer than a small ingestion; so does
the table of genes. Of threads there are only Arrow's and those of linear algebra, which a fork of them starts anew.
"""

from __future__ import annotations

import importlib

import numpy as np

from cellmill.atlas.content import content_hash, feature_keys
from cellmill.genes.tables import load_table

_LATE = (
    "anndata.io",
    "cellmill.genes",
    "cellmill.ingestion.pipeline",
    "cellmill.ingestion.sources.h5ad",
    "deltalake",
    "obstore.store",
    "scipy.linalg",
    "zarr.storage",
)

for _module in _LATE:
    importlib.import_module(_module)
content_hash(np.array([0, 1]), np.array([0]), np.array([1]), feature_keys(["any"]))
load_table("human")
