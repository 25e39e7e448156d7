"""Other loaders, each in an interpreter of its own: ``python benchmarks/stream_peers.py NAME INPUT.h5ad FOLDER BATCH``.

Nothing of Cellmill is imported. What a loader reads is made from the h5ad once and kept in `FOLDER`. See
`benchmarks.turns`. Every loader gives shuffled batches and is set as its manual advises or as it measured best, in this
process: workers of torch's DataLoader do not make a cell cheaper.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from turns import Row, take_turns


def annbatch(source: str, folder: Path, batch: int) -> Iterable[Any]:
    """Return batches of scipy's CSR from a shuffled collection, through the codecs that its manual asks for."""
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    path = folder / "collection.zarr"
    if not path.exists():
        with made(path) as partial:
            DatasetCollection(str(partial)).add_adatas([source])
    collection = DatasetCollection(str(path), mode="r")
    loader = Loader(batch_size=batch, chunk_size=256, preload_nchunks=64, shuffle=True, drop_last=True)
    return again(loader.use_collection(collection))


def scdataset(source: str, folder: Path, batch: int) -> Iterable[Any]:
    """Return batches of scipy's CSR from an uncompressed h5ad."""
    import h5py
    from anndata.io import sparse_dataset
    from scdataset import BlockShuffling, scDataset

    class Rows:
        def __init__(self) -> None:
            self.matrix = sparse_dataset(h5py.File(source)["X"])

        def __len__(self) -> int:
            return int(self.matrix.shape[0])

        def __getitem__(self, rows: Any) -> Any:
            return self.matrix[rows]

    blocks = BlockShuffling(block_size=64)
    return again(scDataset(Rows(), blocks, batch_size=batch, fetch_factor=16, drop_last=True))


def annloader(source: str, folder: Path, batch: int) -> Iterable[Any]:
    """Return batches of dense tensors, which is all that it gives, from an uncompressed h5ad."""
    import anndata
    from anndata.experimental import AnnLoader

    loader = AnnLoader(anndata.read_h5ad(source, backed="r"), batch_size=batch, shuffle=True, drop_last=True)
    return (view.X for view in again(loader))  # nothing is read before


def scdl(source: str, folder: Path, batch: int) -> Iterable[Any]:
    """Return batches of torch's CSR from uncompressed arrays in mapped memory."""
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset
    from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch
    from torch.utils.data import DataLoader

    path = folder / "scdl"
    if not path.exists():
        with made(path) as partial:
            SingleCellMemMapDataset(str(partial), h5ad_path=source, data_dtype="uint16", use_X_not_raw=True)
    dataset: Any = SingleCellMemMapDataset(str(path))
    collate = collate_sparse_matrix_batch
    return again(DataLoader(dataset, batch_size=batch, shuffle=True, drop_last=True, collate_fn=collate))


def soma(source: str, folder: Path, batch: int) -> Iterable[Any]:
    """Return batches of scipy's CSR from an experiment."""
    import tiledbsoma
    import tiledbsoma.io
    import tiledbsoma_ml

    path = folder / "experiment"
    if not path.exists():
        with made(path) as partial:
            tiledbsoma.io.from_h5ad(str(partial), Path(source), measurement_name="RNA")
    query = tiledbsoma.Experiment.open(str(path)).axis_query(measurement_name="RNA")
    dataset = tiledbsoma_ml.ExperimentDataset(
        query=query, layer_name="data", batch_size=batch, io_batch_size=16_384, return_sparse_X=True
    )
    return again(tiledbsoma_ml.experiment_dataloader(dataset))


def scgpt(source: str, folder: Path, batch: int) -> Iterable[Any]:
    """Return batches of the algorithm of scGPT's collator, cell by cell, of cells that lie in memory as tensors.

    Values are put in 51 bins with ties drawn at random, 1,200 of ``<cls>`` and the genes are kept, values are masked.
    """
    import anndata
    import torch

    matrix = anndata.read_h5ad(source, backed="r").X[: 4 * batch]
    edges_at, rng = np.linspace(0, 1, 50), np.random.default_rng(0)
    cells = []
    for i in range(matrix.shape[0]):
        row = slice(matrix.indptr[i], matrix.indptr[i + 1])
        genes = np.concatenate([[0], matrix.indices[row] + 1])
        cells.append((torch.from_numpy(genes), torch.from_numpy(np.concatenate([[-2], matrix.data[row]]))))

    def bins(values: Any) -> Any:
        edges = np.quantile(values, edges_at)
        left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
        return np.ceil(rng.random(values.size) * (right - left) + left)

    def collate(some: list[Any]) -> tuple[Any, ...]:
        length = min(1200, max(len(genes) for genes, _ in some))
        gene, expr = torch.zeros(len(some), length, dtype=torch.long), torch.full((len(some), length), -2.0)
        for i, (genes, values) in enumerate(some):
            binned = values.clone()
            binned[1:] = torch.from_numpy(bins(values[1:].numpy()))
            if len(genes) > length:
                kept = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(len(genes) - 1)[: length - 1]])
                genes, binned = genes[kept], binned[kept]
            gene[i, : len(genes)], expr[i, : len(genes)] = genes, binned
        chance = torch.full(expr.shape, 0.4)
        chance[expr == -2] = 0
        chance[:, 0] = 0
        return gene, expr, expr.masked_fill(torch.bernoulli(chance).bool(), -1)

    def batches() -> Iterator[Any]:
        while True:
            for first in range(0, len(cells), batch):
                yield collate(cells[first : first + batch])

    return batches()


LOADERS = {
    "annbatch": annbatch,
    "scdataset": scdataset,
    "annloader": annloader,
    "scdl": scdl,
    "soma": soma,
    "scgpt": scgpt,
}


def again(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield batches epoch after epoch."""
    while True:
        yield from loader


@contextlib.contextmanager
def made(path: Path) -> Iterator[Path]:
    """Give a place to write to, which becomes `path` when all is written."""
    partial = path.with_name(f"partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    partial.rename(path)


def main() -> None:
    """Take turns; a round is a number of whole batches."""
    name, source, folder, batch, batches = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    settings = source, Path(folder), int(batch)
    # What a loader reads is made in a process of its own, whose memory is not that of the loader.
    making = multiprocessing.get_context("spawn").Process(target=LOADERS[name], args=settings)
    making.start()
    making.join()
    loader = iter(LOADERS[name](*settings))

    def run(_: int) -> int:
        taken = sum(1 for _ in islice(loader, int(batches)))
        return taken * int(batch)

    row: Row = run
    take_turns({name: row})


if __name__ == "__main__":
    main()
