"""How many processes train, and where they run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cellmill.config import Config


class WorkersConfig(Config):
    """The processes of a run.

    Attributes
    ----------
    backend
        ``ray`` starts `n` workers through Ray Train; ``local`` trains in this process, without a cluster.
    n
        Number of workers (ranks).
    cpus, gpus
        What each reserves; fractions are fine. Leave CPUs for the data tasks.
    retries
        How often the group is started again, from the newest checkpoint, after a worker was lost.
    """

    backend: Literal["ray", "local"] = "ray"
    n: int = Field(1, ge=1)
    cpus: float = Field(0.5, gt=0)
    gpus: float = Field(0.0, ge=0)
    retries: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _local_is_one(self) -> Self:
        if self.backend == "local" and self.n != 1:
            raise ValueError("the local backend is one process: set n to 1, or backend to ray")
        return self
