"""Fine-tuning for cell-type annotation, judged on cells held out, beside simple methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np

from cellmill.atlas import Atlas, Selection, read_snapshot
from cellmill.errors import CheckpointError, ConfigError
from cellmill.genes import Vocabulary
from cellmill.lineage import Lineage
from cellmill.models import ModelFolder
from cellmill.runs import Run
from cellmill.stream import as_text, class_counts
from cellmill.training.checkpoint import newest
from cellmill.training.conditions import TABLE as CONDITIONS
from cellmill.training.config import FinetuneConfig
from cellmill.training.decoder_labels import DecoderLabels
from cellmill.training.evaluate import (
    confusion,
    confusion_figure,
    logistic_regression,
    majority_class,
    score,
)
from cellmill.training.inference import Network
from cellmill.training.job import CHECKPOINTS, Cells, Job
from cellmill.training.model import CellModel
from cellmill.training.pretraining import run_job, write_model
from cellmill.training.setup import panel_skipped, pin_snapshot, select
from cellmill.training.start import Start, start_from
from cellmill.training.weights import weights_of

FINE_TUNED, SCRATCH, LOGISTIC, MAJORITY = "fine-tuned", "from scratch", "logistic regression", "majority class"


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning left behind.

    Attributes
    ----------
    run
        Its directory.
    model
        The model folder.
    scores
        By method: ``accuracy``, ``macro_f1`` and the numbers of cells and classes they are over.
    unlabelled
        Cells without a class, left out of training and of the test.
    """

    run: Run
    model: ModelFolder
    scores: dict[str, dict[str, float]]
    unlabelled: dict[str, int]


def finetune(config: FinetuneConfig, *, resume: bool = False) -> FinetuneResult:
    """Teach a model the classes of the training cells, and judge it on cells that it has not seen.

    Parameters
    ----------
    config
        See `FinetuneConfig`. The run's directory then holds what `pretrain` writes, ``plots/confusion.png``, and the
        scores in ``summary.json``.
    resume
        Go on with the run in ``config.output`` from its newest complete checkpoint.

    Raises
    ------
    ConfigError
        A key is wrong, no cell is selected, training and test cells overlap, there are fewer than two classes, or
        the test cells have conditions that neither the training cells nor the model have.
    CheckpointError, ModelError, IntegrityError, GeneMappingError, ResourceError
        See `pretrain` and `start_from`.
    """
    config = pin_snapshot(config, resume=resume)
    atlas = Atlas.open(config.atlas)
    train = select(atlas, config.snapshot, config.train_where, key="train_where")
    test = select(atlas, config.snapshot, config.test_where, key="test_where")
    _require_apart(train, test)
    names, n_without = _classes(train, config.label)
    run = Run.create(config.output, "finetune", config, resume=resume)
    vocabulary = atlas.vocabulary()
    start = start_from(config, run=run.path, selection=train, vocabulary=vocabulary, n_classes=len(names))
    _check_conditions(start, test, vocabulary)
    lineage = _lineage(config, run, train, start)
    run.lineage(lineage)
    job = Job(
        run=run.path,
        config=config,
        cells=Cells(
            atlas=atlas.url,
            snapshot=train.snapshot.version,
            where=config.train_where,
            tokens=start.preprocessing.tokens,
            panel=start.panel,
            prefer=start.prefer,
            token_map=start.token_map,
            label=config.label,
            classes=names,
            conditions=start.conditions,
        ),
        task="annotate",
        model=start.model,
        init=config.init.absolute() if config.init else None,
        init_rows={} if start.conditions is None else {CONDITIONS: start.conditions.rows},
    )
    left_out = run_job(job, run, f"fine-tune {config.name}")
    lost: dict[str, dict[str, int]] = {"train": {}, "test": {}}
    skipping = config.stream.on_corrupt == "skip"
    tested = read_snapshot(test.snapshot, vocabulary, config.test_where, lost["test"] if skipping else None)
    held_out = _Labelled.of(tested, config.label)
    predictions = {FINE_TUNED if config.init else SCRATCH: _predict(job, start, held_out)}
    if config.compare_scratch and config.init is not None:
        predictions[SCRATCH] = _from_scratch(job, start, held_out)
    seen = read_snapshot(train.snapshot, vocabulary, config.train_where, lost["train"] if skipping else None)
    learnt = _Labelled.of(seen, config.label)
    predictions[LOGISTIC] = _logistic(learnt, held_out, start, seed=config.seed)
    predictions[MAJORITY] = majority_class(learnt.labels, len(held_out.labels)).tolist()

    scores = {method: score(held_out.labels, guess, names) for method, guess in predictions.items()}
    main = next(iter(predictions))
    _draw(run, held_out.labels, predictions[main], names)
    tables = {method: found.model_dump() for method, found in scores.items()}
    kept = {} if start.folder is None else DecoderLabels.read(start.folder.labels).document()
    kept |= {} if start.conditions is None else start.conditions.known.document()
    model = write_model(
        job,
        run,
        task="annotate",
        vocabulary=start.vocabulary,
        preprocessing=start.preprocessing,
        labels={**kept, "label": config.label, "classes": list(names)},
        metrics=tables,
        lineage=lineage,
    )
    unlabelled = {"train": n_without, "test": held_out.n_without}
    run.summary(
        {
            "scores": tables,
            "classes": names,
            "unlabelled": unlabelled,
            "never_drawn_cells": left_out,
            **({} if start.conditions is None else {"cells_without_condition": start.conditions.n_without}),
            "skipped_cells": job.skipped(),
            "panel_skipped_cells": panel_skipped(run.path),
            "scores_skipped_cells": lost,
            "model": str(model.path),
            "model_digest": model.digest,
        }
    )
    run.close()
    return FinetuneResult(run, model, tables, unlabelled)


@dataclass(frozen=True)
class _Labelled:
    """Cells that have a class."""

    cells: ad.AnnData
    labels: list[str]
    n_without: int

    @classmethod
    def of(cls, cells: ad.AnnData, label: str) -> _Labelled:
        known = cells.obs[label].notna().to_numpy()
        kept = cells[known]
        return cls(kept, as_text(kept.obs[label].tolist()), int((~known).sum()))


def _require_apart(train: Selection, test: Selection) -> None:
    learnt, tested = (np.concatenate(found.column("cell_id")) for found in (train, test))
    shared = len(np.intersect1d(learnt, tested))
    if shared:
        raise ConfigError(
            f"{shared:,} cells are both in training and in the test, so the scores would mean nothing.",
            where="train_where, test_where",
            fix="Choose predicates that exclude each other, such as donor != 'd4' and donor == 'd4'.",
        )


def _check_conditions(start: Start, test: Selection, vocabulary: Vocabulary) -> None:
    """Refuse test cells whose conditions the model will not know."""
    if start.conditions is not None:
        known = start.conditions.known
        values = [value for value in class_counts(test, known.rule.by) if not known.rule.is_none(value)]
        known.channel(values, vocabulary, start.panel, where=f"test_where: column {known.rule.by!r}")


def _classes(train: Selection, label: str) -> tuple[tuple[str, ...], int]:
    """Return the classes of the training cells, and the number of cells that have none."""
    names = class_counts(train, label)
    if len(names) < 2:
        raise ConfigError(
            f"The training cells have {len(names)} classes in {label!r}; at least two are needed.",
            where="label",
            fix="Name another column, or widen `train_where`.",
        )
    return tuple(sorted(names)), train.n_cells - sum(names.values())


def _lineage(config: FinetuneConfig, run: Run, train: Selection, start: Start) -> Lineage:
    parents = [train.snapshot.lineage(train)]
    if start.folder is not None:
        parents.append(start.folder.lineage_node())
    return Lineage(
        kind="run",
        name=config.name,
        digest=config.fingerprint(),
        location=str(run.path),
        facts={"what": "finetune", "label": config.label, "cells": train.n_cells},
        parents=tuple(parents),
    )


def _predict(job: Job, start: Start, cells: _Labelled) -> Sequence[str]:
    """Return the classes that the job's last checkpoint predicts, by the code that serves it later."""
    found = newest(job.run / CHECKPOINTS)
    if found is None:
        raise CheckpointError("The run has no complete checkpoint.", where=str(job.run), fix="Start it again.")
    model = CellModel(job.model)
    model.load_state_dict(weights_of(found))
    network = Network(
        model,
        vocabulary=start.vocabulary,
        preprocessing=start.preprocessing,
        classes=job.cells.classes,
        conditions=None if start.conditions is None else start.conditions.known,
    )
    query = network.prepare(cells.cells)
    labels: Sequence[str] = network.annotate(query.block, query.conditions).labels.tolist()
    return labels


def _from_scratch(job: Job, start: Start, cells: _Labelled) -> Sequence[str]:
    directory = job.run / "scratch"
    run = Run.create(directory, "finetune", job.config, resume=directory.exists())
    scratch = replace(job, run=run.path, init=None)
    run_job(scratch, run, f"{job.config.name} from scratch")
    run.close()
    return _predict(scratch, start, cells)


def _logistic(train: _Labelled, test: _Labelled, start: Start, *, seed: int) -> Sequence[str]:
    """Return what logistic regression predicts from the model's genes."""
    genes = list(train.cells.var_names) if start.preprocessing.panel is None else list(start.preprocessing.panel)
    matrices = [_columns(found.cells, genes) for found in (train, test)]
    guess: Sequence[str] = logistic_regression(matrices[0], train.labels, matrices[1], seed=seed).tolist()
    return guess


def _columns(cells: ad.AnnData, genes: list[str]) -> Any:
    """Return csr counts over `genes`; a gene that the cells have not measured is zero."""
    from scipy import sparse

    place = cells.var_names.get_indexer(genes)
    found = np.flatnonzero(place >= 0)
    pick = sparse.csr_matrix((np.ones(len(found), np.float32), (place[found], found)), shape=(cells.n_vars, len(genes)))
    return sparse.csr_matrix(cells.X @ pick)


def _draw(run: Run, true: Sequence[str], guess: Sequence[str], classes: tuple[str, ...]) -> None:
    names = sorted({*true, *classes})
    run.figure("confusion", confusion_figure(confusion(true, guess, names), names))
