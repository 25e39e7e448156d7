"""The model: embeddings, transformer and decoders over a packed batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellmill.errors import ConfigError, ModelError
from cellmill.training.model.batch import Label, TorchBatch
from cellmill.training.model.config import ModelConfig
from cellmill.training.model.decoders import ClsDecoder, ExprDecoder, MVCDecoder
from cellmill.training.model.embedding import MASK_VALUE, CategoryValues, ContinuousValues, NormedEmbedding, gather
from cellmill.training.model.layers import TransformerEncoder
from cellmill.training.model.layout import Queries


@dataclass(frozen=True)
class Embedded:
    """Input vectors of a batch; two passes over the same batch may share them."""

    tokens: Tensor
    """``[tokens, d]``."""
    genes: Tensor
    """``[distinct genes, d]``: the gene part alone."""


@dataclass(frozen=True)
class Encoded:
    """Outputs of the transformer."""

    hidden: Tensor
    """``[rows, d]``: all tokens of the batch, its targets, or nothing, as `readout` says."""
    cell: Tensor
    """``[cells, d]``: output of ``<cls>``, in the order of the packed batch."""
    genes: Tensor
    """``[distinct genes, d]``: input embedding of the genes of the batch."""
    batch: TorchBatch
    readout: Queries

    @property
    def gene_embedding(self) -> Tensor:
        """Input embedding of each token's gene, ``[tokens, d]``."""
        return gather(self.batch.gene_row, self.genes)


class CellModel(nn.Module):
    """A transformer over the genes of a cell, after scGPT (Cui et al., Nature Methods 2024).

    Parameters
    ----------
    config
        Its shape and options.

    Notes
    -----
    Parameter names and shapes are those of published scGPT checkpoints: the preset ``scgpt`` without label
    embeddings and classifier has exactly their 163 tensors.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.config = config
        self.encoder = NormedEmbedding(config.n_tokens, d)
        self.flag_encoder = nn.Embedding(2, d)
        self.value_encoder = (
            ContinuousValues(d) if config.value_encoder == "continuous" else CategoryValues(config.n_bins, d)
        )
        # Row 0 means "no condition": a frozen zero.
        self.condition_encoder = nn.Embedding(config.n_conditions + 1, d, 0) if config.n_conditions else None
        self.transformer_encoder = TransformerEncoder(config)
        self.batch_encoder = NormedEmbedding(config.n_batch_labels, d) if config.n_batch_labels else None
        self.mod_encoder = NormedEmbedding(config.n_modalities, d) if config.n_modalities else None
        self.decoder = ExprDecoder(config.d_context, d)
        self.mvc_decoder = MVCDecoder(config.d_context, d) if config.mvc else None
        self.cls_decoder = ClsDecoder(d, config.n_classes, config.n_layers_cls) if config.n_classes else None

    def forward(self, batch: TorchBatch, cell_prompt: Tensor | None = None, readout: Queries = "all") -> Encoded:
        """Embed and encode a batch; see :meth:`encode`."""
        return self.encode(batch, self.embed(batch), cell_prompt, readout)

    def embed(self, batch: TorchBatch) -> Embedded:
        """Return input vectors: gene + value (or the flag of a generative token) + condition.

        Raises
        ------
        ModelError
            The batch has tokens, bins or conditions that this model does not know.
        """
        self._check(batch)
        genes = self.encoder(batch.genes)
        tokens = gather(batch.gene_row, genes) + self._value_embedding(batch)
        if self.condition_encoder is not None and batch.condition is not None:
            tokens = tokens + self.condition_encoder(batch.condition)
        return Embedded(tokens, genes)

    def encode(
        self,
        batch: TorchBatch,
        embedded: Embedded,
        cell_prompt: Tensor | None = None,
        readout: Queries = "all",
    ) -> Encoded:
        """Run the transformer.

        Parameters
        ----------
        batch
            The batch that was embedded.
        embedded
            Its input vectors.
        cell_prompt
            ``[cells, d]`` in the order of the packed batch: takes the place of the input vector of ``<cls>``.
        readout
            Which outputs are wanted besides the cell embedding: ``all`` tokens, ``targets`` (generative and masked
            tokens) or ``cell`` (none). The last layer skips what nobody reads.
        """
        layout = batch.layout
        x = embedded.tokens
        if cell_prompt is not None:
            x = x.index_copy(0, layout.cls_rows, batch.by_place(cell_prompt).to(x.dtype))
        queries = batch.queries(readout)
        out = self.transformer_encoder(x, layout, queries)
        if queries == "cell":
            cell, hidden = out, out[:0]
        else:
            plan = layout.plan(queries)
            cell = gather(plan.first, out)
            if readout == "all":
                hidden = out
            else:
                hidden = gather(batch.targets if queries == "all" else plan.own[0], out)
        return Encoded(hidden, batch.by_cell(cell), embedded.genes, batch, readout)

    def decode_values(self, encoded: Encoded) -> Tensor:
        """Predict the value of each row of ``encoded.hidden`` from its output, ``[rows]``."""
        x = encoded.hidden
        extra = self._label_embedding(encoded)
        predicted: Tensor = self.decoder(x if extra is None else torch.cat([x, extra], dim=-1))
        return predicted

    def decode_from_cell(self, encoded: Encoded) -> Tensor:
        """Predict the values of the same rows from the cell embedding and the gene alone, ``[rows]``.

        Raises
        ------
        ConfigError
            The model was built without this decoder.
        """
        if self.mvc_decoder is None:
            raise ConfigError(
                "The model has no decoder from the cell embedding.", where="model.mvc", fix="Set `model.mvc: true`."
            )
        batch, rows = encoded.batch, self._rows(encoded)
        cell_of_row = self._row_cells(encoded)
        key = gather(cell_of_row, self.mvc_decoder.key(self._cell_context(encoded)))
        if self.mod_encoder is not None:
            modality = self.mod_encoder(torch.arange(self.config.n_modalities, device=batch.device))
            empty = modality.new_zeros(modality.shape)
            by_modality = self.mvc_decoder.key(torch.cat([empty, modality], dim=-1))
            key = key + gather(_at(self._modality(batch), rows), by_modality)
        query = gather(_at(batch.gene_row, rows), self.mvc_decoder.query(encoded.genes))
        return (query * key).sum(-1)

    def classify(self, cell: Tensor) -> Tensor:
        """Return logits ``[cells, n_classes]`` of cell embeddings ``[cells, d]``.

        Raises
        ------
        ConfigError
            The model was built without a classifier.
        """
        if self.cls_decoder is None:
            raise ConfigError(
                "The model has no classifier.", where="model.n_classes", fix="Set it to the number of classes."
            )
        logits: Tensor = self.cls_decoder(cell)
        return logits

    def _value_embedding(self, batch: TorchBatch) -> Tensor:
        flag = self.flag_encoder(torch.ones(1, dtype=torch.int64, device=batch.device))
        if batch.value_row is not None:
            # Few distinct values: encode each once, then look up.
            numbers = torch.arange(-2.0, self.config.n_bins, device=batch.device)
            numbers[0], numbers[1] = MASK_VALUE, batch.cls_value
            embedding = gather(batch.value_row, torch.cat([flag, self.value_encoder(numbers)]))
        else:
            embedding = self.value_encoder(cast("Tensor", batch.value))
            if batch.layout.n_generative:
                embedding = torch.where(batch.is_gen.unsqueeze(-1), flag, embedding)
        if not (self.training and self.config.dropout):
            return embedding
        dropped = functional.dropout(embedding, self.config.dropout)
        return torch.where(batch.is_gen.unsqueeze(-1), embedding, dropped) if batch.layout.n_generative else dropped

    def _label_embedding(self, encoded: Encoded) -> Tensor | None:
        """Return what is concatenated to ``encoded.hidden``, ``[rows, d]``."""
        extra: Tensor | None = None
        if self.batch_encoder is not None:
            extra = gather(self._row_cells(encoded), self.batch_encoder(self._batch_label(encoded.batch)))
        if self.mod_encoder is not None:
            table = self.mod_encoder(torch.arange(self.config.n_modalities, device=encoded.batch.device))
            modality = gather(_at(self._modality(encoded.batch), self._rows(encoded)), table)
            extra = modality if extra is None else extra + modality
        return extra

    def _cell_context(self, encoded: Encoded) -> Tensor:
        if self.batch_encoder is not None:
            return torch.cat([encoded.cell, self.batch_encoder(self._batch_label(encoded.batch))], dim=-1)
        if self.mod_encoder is not None:
            return torch.cat([encoded.cell, torch.zeros_like(encoded.cell)], dim=-1)
        return encoded.cell

    def _batch_label(self, batch: TorchBatch) -> Tensor:
        label = batch.labels.get("batch")
        if label is None:
            raise ConfigError(
                "The model uses batch labels and the cells have none.",
                where="label 'batch'",
                fix="Stream a label named `batch`, or set `model.n_batch_labels: 0`.",
            )
        check_label("batch", label, self.config.n_batch_labels, batch.n_cells)
        return label.ids

    def _modality(self, batch: TorchBatch) -> Tensor:
        if batch.modality is None:
            raise ConfigError(
                "The model uses modalities and the tokens have none.",
                where="model.n_modalities",
                fix="Pass the modality of each token, stream a label named `modality`, or set it to 0.",
            )
        return batch.modality

    @staticmethod
    def _rows(encoded: Encoded) -> Tensor | None:
        return None if encoded.readout == "all" else encoded.batch.targets

    @staticmethod
    def _row_cells(encoded: Encoded) -> Tensor:
        return encoded.batch.token_cell() if encoded.readout == "all" else encoded.batch.target_cell

    def _check(self, batch: TorchBatch) -> None:
        config = self.config
        problem = ""
        if batch.largest_gene >= config.n_tokens:
            problem = f"token {batch.largest_gene}, but the vocabulary has {config.n_tokens}"
        elif batch.largest_bin >= config.n_bins:
            problem = f"bin {batch.largest_bin}, but there are {config.n_bins}"
        elif batch.largest_condition > config.n_conditions:
            problem = f"condition {batch.largest_condition}, but there are {config.n_conditions}"
        elif batch.value_row is None and config.value_encoder == "category":
            problem = "values that are not binned, but the value encoder has one vector per bin"
        if problem:
            raise ModelError(
                f"The batch does not fit the model: it has {problem}.",
                where="model input",
                fix="Tokenise with the vocabulary and the preprocessing of the model.",
            )


def check_label(name: str, label: Label, n_classes: int, n_cells: int) -> None:
    """Check that every cell has a label below `n_classes`.

    Raises
    ------
    ConfigError
        A label is unknown or too large.
    """
    if label.n_known < n_cells or label.largest >= n_classes:
        unknown = n_cells - label.n_known
        what = f"{unknown} of {n_cells} cells have none" if unknown else f"label {label.largest} of {n_classes} classes"
        raise ConfigError(f"Labels do not fit the model: {what}.", where=f"label {name!r}", fix="Check the classes.")


def _at(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]
