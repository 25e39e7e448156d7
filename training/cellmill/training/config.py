"""What a training run is told: the YAML of `cellmill pretrain` and `cellmill finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cellmill.config import Config
from cellmill.stream import StreamConfig
from cellmill.tokens import TokenConfig
from cellmill.training.architecture import ArchitectureConfig
from cellmill.training.checkpoint import CheckpointConfig
from cellmill.training.conditions import ConditionsConfig
from cellmill.training.schedule import OptimizerConfig
from cellmill.training.workers import WorkersConfig

PROMPT_RATIOS = (0.25, 0.5, 0.75)
"""Shares of a cell's genes that pretraining generates."""


class PanelConfig(Config):
    """Genes that are chosen: the most variable ones of the training cells.

    Attributes
    ----------
    n_top
        Number of genes.
    batch_key
        Column of the cell metadata; genes are then chosen within each batch and ranked by how many choose them.
    modality
        Of the features that are chosen from.
    """

    n_top: int = Field(2000, ge=1)
    batch_key: str | None = None
    modality: str = "rna"


class TrainingConfig(Config):
    """What pretraining and fine-tuning have in common.

    Attributes
    ----------
    name
        A name for people; the model folder carries it.
    output
        The run's directory.
    atlas, snapshot
        Path or URL of the atlas, and the snapshot's number or tag (None: the newest). The run writes the number down.
    panel
        Genes that the model sees; None: all.
    variable
        Genes that ``tokens.sampling: variable_first`` takes first; 2,000 by default.
    conditions
        Conditions of tokens, see `ConditionsConfig`; None takes those of the model that the training goes on from, if
        it has some; ``none`` trains without, and the new model knows none.
    stream
        Batch size, shuffling, and where data tasks run.
    model
        Shape of the model.
    optimizer, zero_stage
        How weights are updated, and what DeepSpeed ZeRO spreads over the workers.
    epochs, steps
        How long: passes over the cells, or optimizer steps. Exactly one is given.
    token_capacity
        Tokens that one forward pass may hold; a worker's cells of a step are split into micro-batches below it.
    log_every
        Steps between two lines of metrics.
    seed
        Of everything random: initial weights, order (with `stream.seed` added), sampling, dropout.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output: Path
    atlas: str
    snapshot: int | str | None = None
    panel: PanelConfig | None = None
    variable: PanelConfig | None = None
    conditions: ConditionsConfig | Literal["none"] | None = None
    stream: StreamConfig = StreamConfig()
    model: ArchitectureConfig = ArchitectureConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    zero_stage: int = Field(1, ge=0, le=3)
    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    token_capacity: int = Field(65_536, ge=1)
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(10, ge=1)
    seed: int = Field(0, ge=0, lt=1 << 62)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either `epochs` or `steps`")
        return self


class PretrainConfig(TrainingConfig):
    """A pretraining run.

    Attributes
    ----------
    where
        Predicate over the cell metadata, such as ``donor != 'human4' and n_genes >= 500``.
    init
        Folder of a model to go on from, for instance after the atlas has grown; None starts from random weights.
    tokens
        How a cell becomes tokens. The model has to generate a quarter, a half or three quarters of a cell's genes,
        unless `prompt_ratios` says other shares, or `mask_ratio` has it predict hidden values instead.
    cell_prompt_after
        Step from which each batch is also generated from the cell embedding.
    batch_label
        Column of the cells whose classes, such as donors, are told to the decoders as the batch of each cell, so that
        cell embeddings need not hold it; None for none.
    modalities
        Whether the decoders are told the modality of each token.
    """

    where: str | None = None
    init: Path | None = None
    tokens: TokenConfig = TokenConfig(prompt_ratios=PROMPT_RATIOS)
    cell_prompt_after: int = Field(0, ge=0)
    batch_label: str | None = None
    modalities: bool = False

    @field_validator("tokens", mode="before")
    @classmethod
    def _generate_unless_told_otherwise(cls, given: Any) -> Any:
        told = given.model_dump(exclude_unset=True) if isinstance(given, TokenConfig) else given
        if not isinstance(told, dict) or {"prompt_ratios", "mask_ratio"} & set(told):
            return given
        return {**told, "prompt_ratios": PROMPT_RATIOS}

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.tokens.prompt_ratios or self.tokens.mask_ratio):
            raise ValueError("there is nothing to learn: give `tokens.prompt_ratios` or `tokens.mask_ratio`")
        return self


class FinetuneConfig(TrainingConfig):
    """A fine-tuning run for cell-type annotation.

    Attributes
    ----------
    init
        Folder of the pretrained model; None starts from random weights.
    label
        Column of the cell metadata that holds the class.
    train_where, test_where
        Predicates that select the cells to learn from and the cells to be judged on; they may not overlap.
    tokens, panel, variable
        None takes those of the pretrained model.
    compare_scratch
        Train the same model once more from random weights and judge it beside.
    """

    init: Path | None = None
    label: str = "cell_type"
    train_where: str | None = None
    test_where: str | None = None
    tokens: TokenConfig | None = None
    compare_scratch: bool = False
