"""The Ray Serve edge: each model in a deployment of its own, and a gateway before them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cellmill.errors import CellmillError, ModelError, ResourceError
from cellmill.models import load_model
from cellmill.models.manifest import Task
from cellmill.serving.answers import Answer
from cellmill.serving.app import create_app
from cellmill.serving.bodies.parser import BodyParser
from cellmill.serving.cards import card_of
from cellmill.serving.cells import Cells
from cellmill.serving.config import LimitsConfig, ServeConfig, ServedModel
from cellmill.serving.errors import OverloadedError, revive
from cellmill.serving.model_engine import ModelEngine, warm_up
from cellmill.serving.schemas import ModelCard

logger = logging.getLogger(__name__)

_TRIES = 3
_STOP: dict[str, Any] = {"graceful_shutdown_timeout_s": 10.0, "graceful_shutdown_wait_loop_s": 0.1}


class ModelReplica:
    """One copy of one model.

    Parameters
    ----------
    config
        The model.
    digest
        What was verified when the endpoint was built; another content at the same path is refused.
    min_gene_match
        See `ModelEngine`.
    """

    def __init__(self, config: ServedModel, digest: str, min_gene_match: float) -> None:
        import torch

        from cellmill.training.inference import Predictor

        torch.set_num_threads(config.threads)
        folder = load_model(config.path)
        if folder.digest != digest:
            raise ModelError("The model folder is not the one that was to be served.", where=str(config.path))
        predictor = Predictor(folder, token_capacity=config.max_tokens_per_batch)
        warm_up(predictor)
        self.engine = ModelEngine(predictor, config, min_gene_match=min_gene_match)

    async def describe(self) -> ModelCard:
        """Return the model's card."""
        return self.engine.card

    async def answer(self, task: Task, cells: Cells) -> Answer | dict[str, str]:
        """Return the answer, or the error as data: Ray would wrap an exception into one of another class."""
        try:
            return await self.engine.answer(task, cells)
        except CellmillError as error:
            return error.as_dict()


class RemoteModel:
    """A model behind a deployment handle, as an `Endpoint`."""

    def __init__(self, handle: DeploymentHandle[Any], card: ModelCard) -> None:
        self._handle = handle
        self.card = card

    async def answer(self, task: Task, cells: Cells) -> Answer:
        """Return what the model says about the cells.

        Raises
        ------
        OverloadedError
            As many requests wait as the model's queue holds.
        ResourceError
            No replica answers.
        CellmillError
            As raised in the replica.
        """
        for _ in range(_TRIES):
            try:
                answer = await self._handle.answer.remote(task, cells)
            except BackPressureError as error:
                raise OverloadedError(
                    "The model has as many requests waiting as it takes.", where=self.card.name, fix="Try again later."
                ) from error
            except (RayActorError, DeploymentUnavailableError) as error:
                logger.warning("A replica of %s was lost: %s", self.card.name, type(error).__name__)
                continue
            if isinstance(answer, Answer):
                return answer
            raise revive(answer)
        raise ResourceError("The model's replicas do not answer.", where=self.card.name, fix="Try again later.")


class Gateway:
    """Takes requests: limits, validation, routing."""

    def __init__(
        self, limits: LimitsConfig, handles: Mapping[str, DeploymentHandle[Any]], cards: Mapping[str, Any]
    ) -> None:
        self.limits = limits
        self.parser = BodyParser(limits)
        self.parser.start()
        self.endpoints = {
            name: RemoteModel(handle, ModelCard.model_validate(cards[name])) for name, handle in handles.items()
        }

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application, made in the replica because it holds handles."""
        return create_app(self.endpoints, self.limits, self.parser)


def build(config: ServeConfig) -> Any:
    """Return the Ray Serve application of a configuration; nothing is started.

    Raises
    ------
    ModelError, IntegrityError
        A model folder is missing, incomplete or damaged.
    """
    handles: dict[str, Any] = {}
    cards: dict[str, Any] = {}
    for model in config.models:
        served = model.model_copy(update={"path": Path(model.path).expanduser().absolute()})
        folder = load_model(served.path)
        cards[model.name] = card_of(folder, model.name).model_dump(mode="json")
        replica = serve.deployment(
            name=f"model:{model.name}",
            num_replicas=served.replicas,
            max_ongoing_requests=served.max_requests,
            max_queued_requests=served.max_requests,
            ray_actor_options={"num_cpus": served.cpus, "num_gpus": served.gpus},
            max_constructor_retry_count=2,
            **_STOP,
        )(ModelReplica)
        handles[model.name] = replica.bind(served, folder.digest, config.limits.min_gene_match)
    gateway = serve.deployment(
        name="gateway",
        num_replicas=config.replicas,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": config.cpus},
        **_STOP,
    )(serve.ingress()(Gateway))
    return gateway.bind(config.limits, handles, cards)
