"""Generative pretraining: from a snapshot to a model folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from cellmill.atlas import Atlas
from cellmill.errors import CheckpointError
from cellmill.lineage import Lineage
from cellmill.models import ModelFolder, load_model, save_model
from cellmill.runs import Run
from cellmill.training.checkpoint import newest
from cellmill.training.conditions import TABLE as CONDITIONS
from cellmill.training.conditions import KnownConditions, training_conditions
from cellmill.training.config import PretrainConfig
from cellmill.training.decoder_labels import DecoderLabels, decoder_labels
from cellmill.training.evaluate import loss_figure
from cellmill.training.job import CHECKPOINTS, Cells, Job
from cellmill.training.launch import launch
from cellmill.training.preprocessing import Preprocessing, check_values, panel_ids
from cellmill.training.setup import choose_panel, choose_variable, panel_skipped, pin_snapshot, select
from cellmill.training.warm_start import GENES, warm_start
from cellmill.training.watch import watching
from cellmill.training.weights import weights_of

_LOG = logging.getLogger("cellmill.training")

PARTS = ("gep", "gepc", "gen")


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run left behind.

    Attributes
    ----------
    run
        Its directory.
    model
        The model folder.
    metrics
        Those of the last steps: loss, its parts, cells a second.
    """

    run: Run
    model: ModelFolder
    metrics: dict[str, float]


def pretrain(config: PretrainConfig, *, resume: bool = False) -> PretrainResult:
    """Train a model to generate the expression of unseen genes from seen ones, and from the cell embedding.

    Parameters
    ----------
    config
        See `PretrainConfig`. The run's directory then holds ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``,
        ``plots/loss.png``, ``lineage.json``, ``checkpoints/`` and ``model/``.
    resume
        Go on with the run in ``config.output`` from its newest complete checkpoint.

    Raises
    ------
    ConfigError
        A key is wrong, no cell is selected, or the directory holds another run; see also `training_conditions`.
    ModelError, IntegrityError, GeneMappingError
        See `warm_start` and `training_conditions`.
    CheckpointError
        The run cannot be resumed under this configuration.
    ResourceError
        There are too few CPUs, or workers were lost too often.
    """
    config = pin_snapshot(config, resume=resume)
    atlas = Atlas.open(config.atlas)
    selection = select(atlas, config.snapshot, config.where, key="where")
    vocabulary = atlas.vocabulary()
    start = warm_start(config, vocabulary)
    before = None if start is None else DecoderLabels.read(start.folder.labels)
    knew = None if start is None else KnownConditions.read(start.folder.labels, where=str(start.folder.path))
    told = decoder_labels(config, selection, vocabulary, before)
    if start is not None:
        model_config = start.model.model_copy(update=told.sizes())
    else:
        model_config = config.model.resolve(n_tokens=vocabulary.size, n_bins=config.tokens.n_bins, **told.sizes())
        check_values(model_config, config.tokens)
    run = Run.create(config.output, "pretrain", config, resume=resume)
    lineage = Lineage(
        kind="run",
        name=config.name,
        digest=config.fingerprint(),
        location=str(run.path),
        facts={"what": "pretrain", "cells": selection.n_cells},
        parents=(selection.snapshot.lineage(selection), *([] if start is None else [start.folder.lineage_node()])),
    )
    run.lineage(lineage)
    skip = config.stream.on_corrupt == "skip"
    panel = choose_panel(run.path, selection, vocabulary, config.panel, skip=skip)
    variable = choose_variable(run.path, selection, vocabulary, config.variable, config.tokens, skip=skip)
    conditions = training_conditions(config.conditions, knew, selection, vocabulary, panel, config.tokens)
    if conditions is not None:
        model_config = model_config.model_copy(update={"n_conditions": len(conditions.known.names)})
    rows = {} if start is None or before is None else {GENES: start.rows, **told.rows(before)}
    job = Job(
        run=run.path,
        config=config,
        cells=Cells(
            atlas=atlas.url,
            snapshot=selection.snapshot.version,
            where=config.where,
            tokens=config.tokens,
            panel=panel,
            prefer=variable,
            conditions=conditions,
        ),
        task="generate",
        model=model_config,
        init=None if start is None else start.folder.path,
        cell_prompt_after=config.cell_prompt_after,
        init_rows={**rows, **({} if start is None or conditions is None else {CONDITIONS: conditions.rows})},
        decoder_labels=told,
    )
    left_out = run_job(job, run, f"pretrain {config.name}")
    metrics = last_metrics(run)
    model = write_model(
        job,
        run,
        task="embed",
        vocabulary=vocabulary,
        preprocessing=Preprocessing(
            tokens=config.tokens, panel=panel_ids(panel, vocabulary), variable=panel_ids(variable, vocabulary)
        ),
        labels={**told.document(), **({} if conditions is None else conditions.known.document())},
        metrics={"pretraining": {name: value for name, value in metrics.items() if name in ("loss", "mre", *PARTS)}},
        lineage=lineage,
    )
    new = {} if start is None else {"features new to the model": start.n_new}
    skipped = {"skipped_cells": job.skipped(), "panel_skipped_cells": panel_skipped(run.path)}
    without = {} if conditions is None else {"cells_without_condition": conditions.n_without}
    facts = {"cells": selection.n_cells, "never_drawn_cells": left_out, **skipped, **new, **without}
    run.summary({**facts, "model": str(model.path), "model_digest": model.digest, **metrics})
    run.close()
    return PretrainResult(run, model, metrics)


def run_job(job: Job, run: Run, description: str) -> int:
    """Train, showing progress, and draw the loss; return how many cells the sampling never draws."""
    done = job.steps_done()
    whole = job.stream(0, job.config.workers.n)
    per_epoch, left_out = whole.steps_per_epoch, whole.left_out
    if left_out:
        _LOG.warning("%d of the selected cells are never drawn (stream.sampling).", left_out)
    with watching(run.path, total_steps=job.total_steps(per_epoch), done=done, description=description):
        stream = job.config.stream
        data_cpus = stream.data_cpus if stream.backend == "ray" else None
        launch(job, job.config.workers, run=run.path, data_cpus=data_cpus)
    run.figure("loss", loss_figure(run.metrics(), parts=(*PARTS, "accuracy")))
    return left_out


def write_model(job: Job, run: Run, *, preprocessing: Preprocessing, **parts: Any) -> ModelFolder:
    """Write the model of the last checkpoint into the run's directory, or return the one that is there.

    Raises
    ------
    CheckpointError
        Training has left no checkpoint.
    """
    path = run.path / "model"
    if path.exists():
        return load_model(path)
    found = newest(run.path / CHECKPOINTS)
    if found is None:
        raise CheckpointError("The run has no complete checkpoint.", where=str(run.path), fix="Start it again.")
    return save_model(
        path,
        name=job.config.name,
        config=job.model.model_dump(mode="json"),
        weights=weights_of(found),
        preprocessing=preprocessing.model_dump(mode="json"),
        **parts,
    )


def last_metrics(run: Run) -> dict[str, float]:
    """Return the last line of the run's metrics, without its step and time."""
    lines = run.metrics()
    return {key: float(value) for key, value in lines[-1].items() if key not in ("step", "time")} if lines else {}
