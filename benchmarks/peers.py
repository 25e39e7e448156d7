"""Other writers, each in an interpreter of its own: ``python benchmarks/peers.py NAME WARM_UP.h5ad INPUT.h5ad FOLDER``.

Nothing of Cellmill is imported. Prints CPU seconds, seconds, and peak memory of the second input as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path


def annbatch(source: str, folder: Path) -> None:
    """Write a shuffled collection with annbatch's defaults, through the codecs that its manual asks for."""
    import zarr
    from annbatch import DatasetCollection

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    DatasetCollection(str(folder / "collection.zarr")).add_adatas([source])


def scbank(source: str, folder: Path) -> None:
    """Write the documented layout of scGPT's scBank: a table of ids and values, one row a cell, and the vocabulary.

    As its `DataBank.from_anndata` does: columns become tokens, rows become two arrays, `datasets` writes parquet.
    """
    import anndata as ad
    import numpy as np
    from datasets import Dataset

    adata = ad.read_h5ad(source)
    vocabulary = {name: number for number, name in enumerate(adata.var_names)}
    tokens = np.array([vocabulary.get(name, -100) for name in adata.var_names], int)
    matrix = adata.X
    genes, expressions = [], []
    for row in range(matrix.shape[0]):
        entries = slice(matrix.indptr[row], matrix.indptr[row + 1])
        own = tokens[matrix.indices[entries]]
        known = own != -100
        genes.append(own[known])
        expressions.append(matrix.data[entries][known])
    table = Dataset.from_dict({"id": list(range(matrix.shape[0])), "genes": genes, "expressions": expressions})
    table.to_parquet(str(folder / "X.datatable.parquet"))
    (folder / "gene_vocab.json").write_text(json.dumps(vocabulary))
    (folder / "manifest.json").write_text(json.dumps({"on_disk_format": "parquet", "main_data": "X"}))


def main() -> None:
    """Run one writer on a small input to load what it needs, then on the one that is measured."""
    name, warm_up, source, folder = sys.argv[1:]
    writer = {"annbatch": annbatch, "scbank": scbank}[name]
    with contextlib.redirect_stdout(sys.stderr), open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        for number, path in enumerate((warm_up, source)):
            target = Path(folder) / str(number)
            target.mkdir()
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            writer(path, target)
            after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_gb": after.ru_maxrss * 1024 / 1e9}))


if __name__ == "__main__":
    main()
