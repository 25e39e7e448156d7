"""One model, its predictor and its batches. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellmill.errors import GeneMappingError
from cellmill.models import ModelFolder
from cellmill.models.manifest import Task
from cellmill.serving.answers import Answer
from cellmill.serving.batching import Part, TokenBatcher
from cellmill.serving.cards import card_of
from cellmill.serving.cells import Cells
from cellmill.serving.config import ServedModel
from cellmill.serving.errors import NotServedError, PredictionError
from cellmill.serving.schemas import AnswerHead, GeneMatch

Columns = dict[str, npt.NDArray[Any]]


class Block(Protocol):
    """Cells in a model's tokens (`cellmill.tokens.CellBlock`)."""

    token: npt.NDArray[Any]
    count: npt.NDArray[Any]
    indptr: npt.NDArray[np.int64]
    cell_id: npt.NDArray[np.uint64]


class CellPredictor(Protocol):
    """What is needed of `cellmill.training.inference.Predictor`."""

    folder: ModelFolder

    def prepare(self, adata: ad.AnnData) -> Any:
        """Return an object with ``block`` (`Block`) and ``report`` (`cellmill.training.query.QueryReport`)."""

    def embed(self, block: Any) -> npt.NDArray[np.float32]:
        """Return float32[n, d]."""

    def annotate(self, block: Any) -> Any:
        """Return an object with ``labels`` object[n] and ``confidence`` float32[n]."""


class ModelEngine:
    """Answers requests to one model; concurrent requests share forward passes.

    Parameters
    ----------
    predictor
        The model.
    config
        Its name here, its budget of tokens, its queue.
    min_gene_match
        Least share of the model's genes that a request must have.
    """

    def __init__(self, predictor: CellPredictor, config: ServedModel, *, min_gene_match: float) -> None:
        self.predictor = predictor
        self.config = config
        self.min_gene_match = min_gene_match
        self.card = card_of(predictor.folder, config.name)
        # One thread computes, so that batches of both tasks do not compete; another reads the next request meanwhile.
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._batchers: dict[Task, TokenBatcher[Any, Columns]] = {
            task: TokenBatcher(
                self._embed if task == "embed" else self._annotate,
                budget=config.max_tokens_per_batch,
                max_queued=config.max_queued_tokens,
                linger=config.linger_ms / 1000,
                executor=self._compute,
            )
            for task in self.card.tasks
        }

    async def answer(self, task: Task, cells: Cells) -> Answer:
        """Return what the model says about the cells.

        Raises
        ------
        NotServedError
            The model does not do the task.
        GeneMappingError
            The genes are of another organism, too few are known, or too few of the model's are among them.
        TooLargeError, OverloadedError
            See `TokenBatcher.submit`.
        PredictionError
            The model's answer is not finite.
        """
        if task not in self._batchers:
            raise NotServedError(f"The model {self.config.name!r} does not {task}.", where="task")
        query = await asyncio.to_thread(lambda: self.predictor.prepare(cells.to_anndata()))
        match = GeneMatch(**{name: getattr(query.report, name) for name in GeneMatch.model_fields})
        self._check(match)
        parts = await self._batchers[task].submit(query.block, self._weights(query.block, match))
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        head = AnswerHead(
            model=self.config.name,
            model_digest=self.card.digest,
            task=task,
            n_cells=cells.n_cells,
            counts_from=cells.counts_from,
            genes=match,
        )
        return _checked(Answer(head=head, cells=cells.ids, columns=_plain(columns)))

    def close(self) -> None:
        """Give up what waits and end the thread."""
        for batcher in self._batchers.values():
            batcher.close()
        self._compute.shutdown(wait=False, cancel_futures=True)

    def _check(self, match: GeneMatch) -> None:
        if match.genes_used < self.min_gene_match * match.genes_of_model:
            raise GeneMappingError(
                f"The request has {match.genes_used:,} of the model's {match.genes_of_model:,} genes; at least "
                f"{self.min_gene_match:.0%} are needed.",
                where="genes",
                fix="Send all measured genes, not a selection of them.",
            )

    def _weights(self, block: Block, match: GeneMatch) -> npt.NDArray[np.int64]:
        """Return the number of tokens that each cell takes, or a bound of it."""
        tokens = self.predictor.folder.preprocessing.get("tokens", {})
        counted = np.diff(block.indptr).astype(np.int64)
        genes = counted if tokens.get("include_zero", "none") == "none" else np.full_like(counted, match.genes_of_model)
        return np.minimum(genes, int(tokens.get("max_genes", match.genes_of_model))) + 1

    def _embed(self, parts: Sequence[Part[Any]]) -> list[Columns]:
        vectors = self.predictor.embed(gather(parts))
        return [{"embeddings": rows} for rows in _scatter(vectors, parts)]

    def _annotate(self, parts: Sequence[Part[Any]]) -> list[Columns]:
        found = self.predictor.annotate(gather(parts))
        labels, confidence = _scatter(np.asarray(found.labels, dtype=object), parts), _scatter(found.confidence, parts)
        return [{"labels": a, "confidence": b} for a, b in zip(labels, confidence, strict=True)]


def warm_up(predictor: CellPredictor) -> None:
    """Embed one made-up cell: gene tables are loaded and kernels compiled before the first request comes.

    A model that cannot compute says so here, when it is started.
    """
    ids = tuple(predictor.folder.vocabulary.ids)
    n = len(ids)
    ones, columns = np.ones(n, dtype=np.uint32), np.arange(n, dtype=np.int32)
    cell = Cells(("warm-up",), ids, None, ones, columns, np.array([0, n], dtype=np.int64), "X")
    predictor.embed(predictor.prepare(cell.to_anndata()).block)


def gather(parts: Sequence[Part[Any]]) -> Any:
    """Return the cells of all parts as one block, in order."""
    first = parts[0].payload
    if len(parts) == 1 and parts[0].start == 0 and parts[0].stop == len(first.cell_id):
        return first
    spans = [(part.payload, part.payload.indptr[part.start], part.payload.indptr[part.stop]) for part in parts]
    lengths = np.concatenate([np.diff(part.payload.indptr[part.start : part.stop + 1]) for part in parts])
    indptr = np.zeros(lengths.size + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return dataclasses.replace(
        first,
        token=np.concatenate([block.token[start:stop] for block, start, stop in spans]),
        count=np.concatenate([block.count[start:stop] for block, start, stop in spans]),
        indptr=indptr,
        cell_id=np.concatenate([part.payload.cell_id[part.start : part.stop] for part in parts]),
    )


def _scatter(values: npt.NDArray[Any], parts: Sequence[Part[Any]]) -> list[npt.NDArray[Any]]:
    ends = np.cumsum([part.stop - part.start for part in parts])
    if len(values) != ends[-1]:
        raise PredictionError(f"The model gave {len(values)} answers for {ends[-1]} cells.")
    return np.split(values, ends[:-1])


def _plain(columns: Columns) -> dict[str, npt.NDArray[Any] | list[str]]:
    return {name: list(map(str, values)) if values.dtype == object else values for name, values in columns.items()}


def _checked(answer: Answer) -> Answer:
    for name, values in answer.columns.items():
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            raise PredictionError(f"The model's {name} are not finite.", where=answer.head.model)
    return answer
