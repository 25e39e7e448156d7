"""One training job: everything a worker needs to train, resume and save, in a form that travels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellmill.atlas import Atlas
from cellmill.models import load_model
from cellmill.runs import Run
from cellmill.stream import Stream
from cellmill.tokens import Modalities, PackedBatch, TokenConfig, Tokeniser
from cellmill.training import checkpoint
from cellmill.training.agreement import Agreement
from cellmill.training.collation import Collator
from cellmill.training.conditions import CONDITION, TrainingConditions
from cellmill.training.config import TrainingConfig
from cellmill.training.decoder_labels import BATCH, DecoderLabels
from cellmill.training.engine import Engine
from cellmill.training.loop import LoopConfig, run_loop
from cellmill.training.model import CellModel, ModelConfig
from cellmill.training.preprocessing import first_tokens
from cellmill.training.skipping import skipped_by_all
from cellmill.training.task import LABEL, TaskName, Trainee, build_task
from cellmill.training.warm_start import grown
from cellmill.training.weights import load_pretrained

CHECKPOINTS = "checkpoints"
FREE = (
    "name",
    "output",
    "workers",
    "checkpoint",
    "log_every",
    "zero_stage",
    "stream.backend",
    "stream.data_cpus",
    "stream.prefetch",
    "stream.group_cells",
    "stream.group_mb",
    "stream.object_store_mb",
    "stream.task_retries",
    "stream.cache_gb",
    "stream.on_corrupt",
    "compare_scratch",
    "test_where",
)
"""Settings that a resumed run may change, because the training does not depend on them."""


@dataclass(frozen=True)
class Cells:
    """Which cells are streamed, and how they become tokens of the model.

    Attributes
    ----------
    atlas, snapshot, where
        The cells.
    tokens, panel
        How cells become tokens, and the atlas tokens that are kept (None: all).
    prefer
        Atlas tokens that are sampled first.
    token_map
        int64[size of the atlas' vocabulary]: token in the model of each token in the atlas; None where they are
        equal. Tokens without a place in the model are not in the panel.
    label, classes
        Column of the cells and its classes, for annotation.
    conditions
        Of the cells; None for none.
    """

    atlas: str
    snapshot: int
    where: str | None
    tokens: TokenConfig
    panel: npt.NDArray[np.uint32] | None
    prefer: npt.NDArray[np.uint32] | None = None
    token_map: npt.NDArray[np.int64] | None = None
    label: str | None = None
    classes: tuple[str, ...] = ()
    conditions: TrainingConditions | None = None


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and how; called on every rank.

    Attributes
    ----------
    run
        The run's directory; all workers see the same.
    config
        The run's resolved configuration.
    cells
        What it learns from.
    task
        What it learns.
    model, init
        Shape of the model, and the model folder that its weights start from.
    init_rows
        int64[n] each: row of its table of embeddings for each of this model's, -1 for a new one, by the name of the
        table; empty where they are the same.
    decoder_labels
        What the decoders see beside the model's outputs.
    """

    run: Path
    config: TrainingConfig
    cells: Cells
    task: TaskName
    model: ModelConfig
    init: Path | None
    cell_prompt_after: int = 0
    init_rows: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    decoder_labels: DecoderLabels = field(default_factory=DecoderLabels)

    def __call__(self) -> None:
        """Train on this rank, from the newest checkpoint if there is one, to the end."""
        # The workers of a machine share its cores.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        source = _Source(self.cells, self.stream(rank, world_size), self.config.token_capacity)
        task = build_task(self.task, cell_prompt_after=self.cell_prompt_after)
        engine = Engine(Trainee(self.initial_model(), task), self.config.optimizer, zero_stage=self.config.zero_stage)
        per_epoch = source.steps_per_epoch
        plan = {"lanes": source.lanes, "steps_per_epoch": per_epoch, "total_steps": self.total_steps(per_epoch)}
        start = self._resume(engine, source, plan)
        skipped_before = self.skipped()
        run = Run.open(self.run) if rank == 0 else None

        def log(metrics: Mapping[str, float], step: int) -> None:
            if run is not None:
                run.log(metrics, step)

        def save(step: int) -> None:
            checkpoint.save(
                self.run / CHECKPOINTS,
                engine.state(),
                steps=step,
                position=source.position(step),
                config=self.config.model_dump(mode="json"),
                plan=plan,
                skipped=skipped_by_all(source.stream, skipped_before, engine.device),
                keep=self.config.checkpoint.keep,
            )

        loop = LoopConfig(
            total_steps=plan["total_steps"],
            optimizer=self.config.optimizer,
            seed=self.config.seed,
            log_every=self.config.log_every,
            save_every=self.config.checkpoint.every_steps or per_epoch,
        )
        modality = self.decoder_labels.of_token(Atlas.open(self.cells.atlas).vocabulary())
        collate = Collator(engine.device, task.readout, self.model, modality)
        run_loop(engine, source, source.split, collate, task, loop, start=start, log=log, save=save)
        if run is not None:
            run.close()

    def steps_done(self) -> int:
        """Return the steps that the newest checkpoint holds, 0 without one.

        Raises
        ------
        CheckpointError
            It was written under another configuration.
        """
        found = checkpoint.newest(self.run / CHECKPOINTS)
        if found is None:
            return 0
        now = self.config.model_dump(mode="json")
        checkpoint.require_same(now, found.marker.config, where=str(found.path), free=FREE)
        return found.marker.steps

    def skipped(self) -> dict[str, int]:
        """Return the cells that the newest checkpoint's run had left out because their shards are damaged, by shard."""
        found = checkpoint.newest(self.run / CHECKPOINTS)
        return {} if found is None else found.marker.skipped

    def stream(self, rank: int, world_size: int) -> Stream:
        """Return the stream of this rank's cells, in the lanes that the run began with."""
        atlas = Atlas.open(self.cells.atlas)
        selection = atlas.snapshot(self.cells.snapshot).select(self.cells.where)
        labels = {LABEL: (self.cells.label, self.cells.classes)} if self.cells.label is not None else {}
        if self.decoder_labels.column is not None:
            labels[BATCH] = (self.decoder_labels.column, self.decoder_labels.batches)
        conditions = self.cells.conditions
        if conditions is not None:
            labels[CONDITION] = (conditions.known.rule.by, conditions.classes)
        channel = None if conditions is None else conditions.channel
        vocabulary = atlas.vocabulary()
        tokeniser = Tokeniser(
            self.cells.tokens,
            self.cells.panel,
            always=first_tokens(
                self.cells.tokens, vocabulary, self.cells.panel, None if channel is None else channel.token
            ),
            prefer=self.cells.prefer,
            modalities=Modalities.of(vocabulary),
            conditions=channel,
        )
        found = checkpoint.newest(self.run / CHECKPOINTS)
        lanes = self.config.stream.lanes if found is None else int(found.marker.plan["lanes"])
        # One seed rules the run; the stream's own only sets orders of the same run apart.
        stream = self.config.stream.model_copy(
            update={"lanes": lanes, "seed": self.config.seed + self.config.stream.seed}
        )
        return Stream(selection, tokeniser, stream, rank=rank, world_size=world_size, labels=labels)

    def total_steps(self, per_epoch: int) -> int:
        """Return the optimizer steps of the whole run."""
        return self.config.steps or per_epoch * (self.config.epochs or 1)

    def initial_model(self) -> CellModel:
        """Return the model before the first step, the same on every rank."""
        torch.manual_seed(self.config.seed)
        model = CellModel(self.model)
        if self.init is not None:
            weights = load_model(self.init).weights()
            weights = grown(weights, model.state_dict(), self.init_rows)
            load_pretrained(model, weights, where=str(self.init))
        return model

    def _resume(self, engine: Engine, source: _Source, plan: Mapping[str, Any]) -> int:
        found = checkpoint.newest(self.run / CHECKPOINTS)
        if found is None:
            return 0
        now = {"plan": plan, "position": source.position(found.marker.steps)}
        then = {"plan": found.marker.plan, "position": found.marker.position}
        checkpoint.require_same(now, then, where=str(found.path))
        with found.tensors() as tensors:
            engine.load_state(tensors, steps=found.marker.steps)
        return found.marker.steps


class _Source:
    """The stream with tokens of the model."""

    def __init__(self, cells: Cells, stream: Stream, capacity: int) -> None:
        stream.check_capacity(capacity)
        self._cells = cells
        self._capacity = capacity
        self._agreement = Agreement()
        self.stream = stream
        self.lanes = stream.lanes
        self.steps_per_epoch = stream.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[PackedBatch]:
        """Yield this rank's cells of each global step."""
        token_map = self._cells.token_map
        for packed in self.stream.epoch(epoch, start_step):
            yield packed if token_map is None else replace(packed, gene=token_map[packed.gene].astype(np.uint32))

    def position(self, steps: int) -> dict[str, Any]:
        """Return where the stream stands after some steps of the run."""
        epoch, step = divmod(steps, self.steps_per_epoch)
        return self.stream.position(epoch, step).model_dump(mode="json")

    def split(self, packed: PackedBatch) -> list[PackedBatch]:
        """Cut a rank's cells of a step into as many parts as the rank needs that needs most; collective."""
        parts = self._agreement.largest(self.stream.micro_batch_count(packed, self._capacity))
        return self.stream.micro_batches(packed, parts, self._capacity)
