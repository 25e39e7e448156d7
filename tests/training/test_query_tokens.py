"""A cell becomes the same tokens on its way through the atlas and as a query."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.atlas import Atlas, read
from cellmill.genes import load_table
from cellmill.ingestion import ingest
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import TokenConfig, Tokeniser
from cellmill.training.query import to_query


@pytest.mark.parametrize(
    "tokens",
    [
        TokenConfig(value="log1p", normalize_total=1e4, max_genes=100),
        TokenConfig(value="midrank", max_genes=100),
        TokenConfig(value="midrank", max_genes=100, include_zero="panel"),
    ],
    ids=["log1p", "midrank", "zeros"],
)
def test_query_and_stream_agree(tmp_path: Path, tokens: TokenConfig) -> None:
    rng = np.random.default_rng(0)
    matrix = sparse.csr_matrix(rng.poisson(0.8, (30, 60)).astype(np.float32))
    genes = pd.DataFrame(index=load_table("human").ids[1000:1060])
    ingest(ad.AnnData(matrix, var=genes), atlas=tmp_path / "atlas", dataset="cells")
    atlas = Atlas.open(tmp_path / "atlas")
    vocabulary = atlas.vocabulary()
    panel = np.sort(vocabulary.lookup(genes.index[::3].tolist())).astype(np.uint32)
    tokeniser = Tokeniser(tokens, panel)

    cells = read(str(tmp_path / "atlas"))
    query = tokeniser.tokenise(to_query(cells, vocabulary, panel).block, seed=0, epoch=0)
    stream = Stream(atlas.snapshot().select(), tokeniser, StreamConfig(backend="local", batch_size=30))
    (batch,) = stream.epoch(0)
    place = {int(cell): at for at, cell in enumerate(batch.cell_id)}
    assert len(place) == 30
    for at, cell in enumerate(cells.obs["cell_id"]):
        one, other = query.select(np.array([at])), batch.select(np.array([place[int(cell)]]))
        order, other_order = np.argsort(one.gene), np.argsort(other.gene)
        np.testing.assert_array_equal(one.gene[order], other.gene[other_order])
        np.testing.assert_allclose(one.value[order], other.value[other_order], rtol=1e-6)
