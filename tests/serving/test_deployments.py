"""The edge to Ray Serve: what the gateway makes of refusals, losses and errors of a model's replicas."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from cellmill.config import parse_config
from cellmill.errors import ConfigError, GeneMappingError, ResourceError
from cellmill.serving.answers import Answer
from cellmill.serving.cells import Cells
from cellmill.serving.config import ServeConfig
from cellmill.serving.deployments import RemoteModel
from cellmill.serving.errors import OverloadedError
from cellmill.serving.schemas import AnswerHead, GeneMatch, ModelCard
from cellmill.serving.startup import start, verify_models

CARD = ModelCard(name="a", digest="0", tasks=["embed"], labels={}, n_genes=1, metrics={})
MATCH = GeneMatch(organism="human", genes_in=1, genes_used=1, genes_of_model=1, umis_used=1.0)
HEAD = AnswerHead(model="a", model_digest="0", task="embed", n_cells=0, counts_from="X", genes=MATCH)
ANSWER = Answer(head=HEAD, cells=(), columns={})
NONE = np.empty(0)
CELLS = Cells((), ("A",), None, NONE.astype(np.uint32), NONE.astype(np.int32), np.zeros(1, np.int64), "X")


class Handle:
    """Gives its replies one after the other: an exception is raised."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.answer = self

    async def remote(self, task: str, cells: Cells) -> Any:
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def ask(*replies: Any) -> Answer:
    return asyncio.run(RemoteModel(cast(Any, Handle(*replies)), CARD).answer("embed", CELLS))


def test_a_lost_replica_is_tried_again() -> None:
    assert ask(RayActorError(), RayActorError(), ANSWER) is ANSWER
    with pytest.raises(ResourceError, match="do not answer"):
        ask(*[RayActorError()] * 3)


def test_back_pressure_is_429() -> None:
    with pytest.raises(OverloadedError) as caught:
        ask(BackPressureError(num_queued_requests=3, max_queued_requests=3))
    assert caught.value.http_status == 429


def test_an_error_comes_back_as_itself() -> None:
    with pytest.raises(GeneMappingError, match="No genes") as caught:
        ask(GeneMappingError("No genes.", where="var", fix="Send genes.").as_dict())
    assert (caught.value.where, caught.value.fix) == ("var", "Send genes.")


def test_a_missing_model_is_named_before_anything_starts(tmp_path: Path) -> None:
    models = [{"name": "a", "path": str(tmp_path / "nothing")}]
    with pytest.raises(Exception, match="not a model folder"):
        verify_models(parse_config(ServeConfig, {"models": models}, where="test"))


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(tmp_path: Path, ray_cluster: None) -> None:
    from tests.training.small import make_model

    make_model(tmp_path / "m")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        models = [{"name": "a", "path": str(tmp_path / "m")}]
        config = parse_config(ServeConfig, {"models": models, "port": port}, where="test")
        with pytest.raises(ConfigError, match="cannot listen") as caught:
            start(config)
    assert str(port) in caught.value.where
