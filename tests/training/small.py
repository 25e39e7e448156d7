"""A small model folder, and cells of the genes it knows."""

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cellmill.genes import Feature, Vocabulary, load_table
from cellmill.lineage import Lineage
from cellmill.models import ModelFolder, save_model
from cellmill.tokens import TokenConfig
from cellmill.training.model import CellModel, ModelConfig
from cellmill.training.preprocessing import Preprocessing

N_GENES = 200


def genes(n: int = N_GENES, organism: str = "human") -> list[Feature]:
    """Return the first genes of the bundled table that have a symbol of their own."""
    table = load_table("mouse" if organism == "mouse" else "human")
    rows = sorted(row for symbol, row in table.row_of_symbol.items() if row >= 0 and symbol != table.ids[row])[:n]
    return [Feature(table.ids[row], table.symbols[row], "rna", organism, table.release) for row in rows]


def cells(n: int, names: Sequence[str], seed: int = 0) -> ad.AnnData:
    """Return cells with a few counts in every second gene or so."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(n, len(names))))
    counts[:, 0] += 1
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=pd.DataFrame(index=list(names)))


def make_model(
    path: Path, classes: Sequence[str] = (), panel: int | None = None, *, backwards: bool = False
) -> ModelFolder:
    """Write a model with random weights, its vocabulary in the order of the table or backwards."""
    torch.manual_seed(1)
    features = genes()[:: -1 if backwards else 1]
    vocabulary = Vocabulary(features)
    config = ModelConfig(
        n_tokens=vocabulary.size, d_model=16, n_layers=2, n_heads=2, d_ff=16, n_classes=len(classes), n_layers_cls=1
    )
    ids = None if panel is None else tuple(feature.id for feature in genes()[:panel])
    return save_model(
        path,
        name="small",
        task="annotate" if classes else "embed",
        config=config.model_dump(mode="json"),
        weights=CellModel(config).state_dict(),
        vocabulary=vocabulary,
        preprocessing=Preprocessing(tokens=TokenConfig(max_genes=32), panel=ids).model_dump(mode="json"),
        labels={"classes": list(classes)} if classes else {},
        metrics={},
        lineage=Lineage(kind="run", name="small", digest="0"),
    )
