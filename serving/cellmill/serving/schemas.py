"""What goes over the wire: request and answer bodies, as documented in ``/openapi.json``."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cellmill.models.manifest import Task


class Schema(BaseModel):
    """Base of all wire schemas: a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JsonCell(Schema):
    """One cell. ``counts`` is either by gene name (genes left out are zero), or one number for each of ``genes``."""

    id: str | None = Field(None, description="Name of the cell; its position where it is left out.")
    counts: dict[str, float] | list[float] = Field(description="Raw counts: UMIs or reads, no normalisation.")


class JsonMatrix(Schema):
    """Counts of all cells as compressed sparse rows: cell i has ``indptr[i]:indptr[i+1]``."""

    data: list[float] = Field(description="Raw counts.")
    indices: list[int] = Field(description="Position in `genes` of each value.")
    indptr: list[int] = Field(min_length=1, description="n_cells + 1 offsets.")


class CellsBody(Schema):
    """Cells to be embedded or annotated: ``cells``, or ``matrix`` with ``genes``."""

    genes: list[str] | None = Field(None, description="Ensembl ids or symbols, with or without version.")
    cells: list[JsonCell] | None = None
    ids: list[str] | None = Field(None, description="Names of the cells of `matrix`.")
    matrix: JsonMatrix | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.cells is None) == (self.matrix is None):
            raise ValueError("give either `cells` or `matrix`")
        if self.matrix is not None and self.genes is None:
            raise ValueError("`matrix` needs `genes`")
        if self.cells is not None and self.ids is not None:
            raise ValueError("`ids` belongs to `matrix`; cells carry their own `id`")
        return self


class GeneMatch(Schema):
    """How the genes of a request meet those of a model."""

    organism: str
    genes_in: int = Field(description="Columns of the request.")
    genes_used: int = Field(description="Genes of the model that the request has measured.")
    genes_of_model: int = Field(description="Genes that the model looks at.")
    umis_used: float = Field(description="Share of the request's UMIs in those genes.")


class AnswerHead(Schema):
    """What every answer carries."""

    model: str
    model_digest: str = Field(description="sha256 of the model's manifest; `cellmill lineage` walks on from it.")
    task: Task
    n_cells: int
    counts_from: str = Field(description="Where in the body the counts were found.")
    genes: GeneMatch


class EmbedAnswer(AnswerHead):
    """Answer of ``embed``: one vector a cell."""

    cells: list[str]
    embeddings: list[list[float]]


class AnnotateAnswer(AnswerHead):
    """Answer of ``annotate``: one label a cell, with the probability the model gives it."""

    cells: list[str]
    labels: list[str]
    confidence: list[float]


class ModelCard(Schema):
    """A model that is served."""

    name: str
    digest: str
    tasks: list[Task]
    labels: dict[str, list[str]] = Field(description="Names of classes, by what they are classes of.")
    n_genes: int = Field(description="Genes that the model looks at.")
    metrics: dict[str, object] = Field(description="What was measured when it was made.")
    lineage: dict[str, object] | None = Field(None, description="What it was made from; only for one model.")


class ModelList(Schema):
    """All models that are served."""

    models: list[ModelCard]


class Health(Schema):
    """The endpoint takes requests."""

    status: str
    models: list[str]


class ErrorDetail(Schema):
    """An error: what went wrong, where, and how to fix it."""

    kind: str
    what: str
    where: str
    fix: str


class ErrorAnswer(Schema):
    """Body of every answer that is not 2xx."""

    error: ErrorDetail
