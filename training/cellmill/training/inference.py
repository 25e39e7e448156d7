"""Embedding and annotating cells with a model folder: no cluster, the same code offline and behind an endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cellmill.config import parse_config
from cellmill.errors import ModelError
from cellmill.genes import Vocabulary
from cellmill.models import ModelFolder, load_model
from cellmill.tokens import CellBlock, Conditions, Modalities, PackedBatch, TokenConfig, Tokeniser
from cellmill.training.collation import Collator
from cellmill.training.conditions import CONDITION, KnownConditions
from cellmill.training.model import CellModel, ModelConfig
from cellmill.training.preprocessing import Preprocessing, first_tokens
from cellmill.training.query import Query, to_query

EMBEDDING, LABEL, CONFIDENCE, ABOUT = "X_cellmill", "cellmill_label", "cellmill_confidence", "cellmill"


@dataclass(frozen=True)
class Annotation:
    """Predicted classes of cells.

    Attributes
    ----------
    labels
        Most probable class of each cell.
    confidence : float32[n]
        Its probability.
    probabilities : float32[n, classes]
        Of every class, in the order of the model's classes.
    """

    labels: npt.NDArray[np.object_]
    confidence: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


class Network:
    """A trained model with what stands before it, ready to compute.

    Parameters
    ----------
    model
        The model, with its weights.
    vocabulary
        Token ids of its features.
    preprocessing
        How cells become tokens.
    classes
        Names of its classes, if it has a classifier.
    conditions
        What it knows of conditions of cells; None for nothing.
    device
        Where to compute; a GPU if there is one.
    token_capacity
        Tokens of one forward pass.
    """

    def __init__(
        self,
        model: CellModel,
        *,
        vocabulary: Vocabulary,
        preprocessing: Preprocessing,
        classes: Sequence[str] = (),
        conditions: KnownConditions | None = None,
        device: str | None = None,
        token_capacity: int = 32_768,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.vocabulary = vocabulary
        self.classes = tuple(classes)
        self.panel = preprocessing.panel_tokens(vocabulary)
        self._model = model.to(self.device).eval()
        self._conditions = conditions
        self._preprocessing = preprocessing
        self._modalities = Modalities.of(vocabulary)
        self._tokeniser = self._make_tokeniser(None)
        self._capacity = token_capacity
        self._collate = Collator(self.device, "cell", model.config)

    def prepare(self, adata: ad.AnnData, *, counts: str = "auto") -> Query:
        """Find the counts, map the genes to the model's, and refuse what does not fit; see `to_query`.

        A model that knows conditions takes those of the cells from the column of ``obs`` that it learnt them from;
        without the column cells have none.

        Raises
        ------
        ConfigError, GeneMappingError
            See `to_query` and `KnownConditions.of_query`.
        """
        query = to_query(adata, self.vocabulary, self.panel, place=counts)
        found = None if self._conditions is None else self._conditions.of_query(adata.obs, self.vocabulary, self.panel)
        if found is None:
            return query
        channel, codes, n_with = found
        block = replace(query.block, labels={CONDITION: codes})
        return Query(block, query.report.model_copy(update={"cells_with_condition": n_with}), channel)

    def embed(self, block: CellBlock, conditions: Conditions | None = None) -> npt.NDArray[np.float32]:
        """Return one vector of length 1 for each cell, float32[n, d]; conditions are those of `prepare`."""
        with torch.inference_mode():
            cells = [torch.nn.functional.normalize(cell.float(), dim=-1) for cell in self._cells(block, conditions)]
            return np.asarray(torch.cat(cells).cpu().numpy(), dtype=np.float32)

    def annotate(self, block: CellBlock, conditions: Conditions | None = None) -> Annotation:
        """Return the class of each cell with its probability; conditions are those of `prepare`.

        Raises
        ------
        ModelError
            The model was not made to annotate.
        """
        self.require_classes()
        with torch.inference_mode():
            logits = [self._model.classify(cell).float() for cell in self._cells(block, conditions)]
            probabilities = torch.cat(logits).softmax(-1).cpu().numpy()
        best = probabilities.argmax(axis=1)
        names = np.asarray(self.classes, dtype=object)
        return Annotation(names[best], probabilities[np.arange(len(best)), best], probabilities)

    def require_classes(self) -> None:
        """Check that the model can annotate.

        Raises
        ------
        ModelError
            It has no classes.
        """
        if not self.classes:
            raise ModelError(
                "This model has no classes: it embeds, but does not annotate.",
                where="model",
                fix="Fine-tune it with `cellmill finetune`, or give a model that was.",
            )

    def _make_tokeniser(self, conditions: Conditions | None) -> Tokeniser:
        """Return what makes tokens; genes that were marked in training or are by these conditions stay in a cell."""
        known, kept = self._conditions, self._preprocessing
        marked = self.vocabulary.lookup(() if known is None else known.marked).astype(np.uint32)
        if conditions is not None:
            marked = np.concatenate([marked, conditions.token])
        return Tokeniser(
            for_inference(kept.tokens),
            self.panel,
            always=first_tokens(kept.tokens, self.vocabulary, self.panel, marked),
            prefer=kept.variable_tokens(self.vocabulary),
            modalities=self._modalities,
            conditions=conditions,
        )

    def _cells(self, block: CellBlock, conditions: Conditions | None) -> Iterator[torch.Tensor]:
        tokeniser = self._tokeniser if conditions is None else self._make_tokeniser(conditions)
        packed = tokeniser.tokenise(block, seed=0, epoch=0)
        for part in _parts(packed, self._capacity):
            (batch,) = self._collate([part]).arrive()
            yield self._model(batch, readout="cell").cell


class Predictor(Network):
    """A model folder, ready to compute.

    Parameters
    ----------
    model
        The folder, or its path.
    device, token_capacity
        As in `Network`.

    Raises
    ------
    ModelError, IntegrityError
        The folder is missing, damaged, or not of this kind.
    """

    def __init__(
        self, model: ModelFolder | Path | str, *, device: str | None = None, token_capacity: int = 32_768
    ) -> None:
        self.folder = model if isinstance(model, ModelFolder) else load_model(model)
        where = self.folder.path
        shape = parse_config(ModelConfig, dict(self.folder.config), where=str(where / "config.json"))
        preprocessing = parse_config(
            Preprocessing, dict(self.folder.preprocessing), where=str(where / "preprocessing.json")
        )
        super().__init__(
            _load(CellModel(shape), self.folder),
            vocabulary=self.folder.vocabulary,
            preprocessing=preprocessing,
            classes=self.folder.labels.get("classes", ()),
            conditions=KnownConditions.read(self.folder.labels, where=str(where / "labels.json")),
            device=device,
            token_capacity=token_capacity,
        )


def embed(adata: ad.AnnData, model: ModelFolder | Path | str, *, counts: str = "auto") -> ad.AnnData:
    """Return a copy of the AnnData with ``obsm["X_cellmill"]``, one vector of length 1 a cell.

    Parameters
    ----------
    adata
        Cells with raw counts.
    model
        A model folder.
    counts
        Where the counts are: ``auto``, ``X``, ``raw.X`` or ``layers/NAME``.

    Raises
    ------
    CountsError, GeneMappingError, ModelError, IntegrityError
        See `to_query` and `Predictor`.
    """
    predictor = Predictor(model)
    query = predictor.prepare(adata, counts=counts)
    result = adata.copy()
    result.obsm[EMBEDDING] = predictor.embed(query.block, query.conditions)
    result.uns[ABOUT] = _about(predictor, query)
    return result


def annotate(adata: ad.AnnData, model: ModelFolder | Path | str, *, counts: str = "auto") -> ad.AnnData:
    """Return a copy of the AnnData with ``obs["cellmill_label"]`` and ``obs["cellmill_confidence"]``.

    Parameters and errors are those of `embed`.
    """
    predictor = Predictor(model)
    predictor.require_classes()
    query = predictor.prepare(adata, counts=counts)
    annotation = predictor.annotate(query.block, query.conditions)
    result = adata.copy()
    result.obs[LABEL] = pd.Categorical(annotation.labels, categories=list(predictor.classes))
    result.obs[CONFIDENCE] = annotation.confidence
    result.uns[ABOUT] = _about(predictor, query)
    return result


def for_inference(tokens: TokenConfig) -> TokenConfig:
    """Return the settings without what training alone does: no gene to generate, none masked."""
    return tokens.model_copy(update={"prompt_ratios": (), "mask_ratio": 0.0})


def _load(model: CellModel, folder: ModelFolder) -> CellModel:
    try:
        model.load_state_dict(folder.weights(), strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"The weights do not fit the configuration: {str(error).splitlines()[-1].strip()}",
            where=str(folder.path),
            fix="config.json and model.safetensors do not belong together; write the model again.",
        ) from error
    return model


def _parts(packed: PackedBatch, capacity: int) -> Iterator[PackedBatch]:
    """Yield consecutive cells, as many as the capacity holds, at least one."""
    ends = packed.cu_seqlens[1:].astype(np.int64)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + capacity, side="right")))
        yield packed.select(np.arange(start, stop))
        start = stop


def _about(predictor: Predictor, query: Query) -> dict[str, object]:
    folder = predictor.folder
    return {
        "model": folder.name,
        "model_digest": folder.digest,
        "task": folder.task,
        "n_cells": query.block.n_cells,
        **query.report.model_dump(),
    }
