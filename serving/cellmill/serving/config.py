"""What the endpoint serves and what it refuses: the YAML of `cellmill serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from cellmill.cluster import ClusterConfig
from cellmill.config import Config

MB = 1 << 20


class LimitsConfig(Config):
    """What one request may bring.

    Attributes
    ----------
    max_body_mb
        Largest body, in MB of 2**20 bytes. Answered with 413 before it is read where its length is declared.
    max_json_mb
        The same for JSON, which takes many times its size in memory.
    max_cells, max_genes, max_values
        Largest numbers of cells, of genes (columns) and of stored values (zeros too where the matrix is dense).
    parser_memory_mb
        Memory of the process that reads bodies; a body that unpacks to more ends it, and it alone.
    parser_seconds
        Time that reading one body may take.
    min_gene_match
        Least share of the model's genes that a request must have measured; below 0.1 a model refuses by itself.
    """

    max_body_mb: int = Field(256, ge=1)
    max_json_mb: int = Field(32, ge=1)
    max_cells: int = Field(50_000, ge=1)
    max_genes: int = Field(200_000, ge=1)
    max_values: int = Field(50_000_000, ge=1)
    parser_memory_mb: int = Field(2048, ge=128)
    parser_seconds: float = Field(60.0, gt=0)
    min_gene_match: float = Field(0.1, ge=0, le=1)


class ServedModel(Config):
    """One model folder behind the endpoint.

    Attributes
    ----------
    name
        How it is called in URLs.
    path
        The model folder; its manifest is verified before anything is served.
    replicas, cpus, gpus
        Copies of it, and what each holds on the cluster (fractions are fine).
    threads
        Threads that one replica computes with.
    max_tokens_per_batch
        Tokens of one forward pass; cells of several requests share it.
    max_queued_tokens
        Tokens that may wait in one replica; a request beyond is answered with 429.
    max_requests
        Requests that one replica works on at once; as many again may wait.
    linger_ms
        How long a batch that is not full waits for more cells.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    path: Path
    replicas: int = Field(1, ge=1)
    cpus: float = Field(0.1, ge=0)
    gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    max_tokens_per_batch: int = Field(32_768, ge=2)
    max_queued_tokens: int = Field(50_000_000, ge=1)
    max_requests: int = Field(32, ge=1)
    linger_ms: float = Field(2.0, ge=0)


class ServeConfig(Config):
    """One endpoint.

    Attributes
    ----------
    models
        What is served.
    host, port
        Where it listens. Keep the loopback and put a proxy with TLS and authentication before it on a network.
    replicas, cpus
        Copies of the gateway that reads requests, and what each holds on the cluster.
    request_seconds
        After this time a request is given up (408).
    start_seconds
        Time that the models may take to start.
    limits
        What one request may bring.
    cluster
        The Ray cluster.
    """

    models: tuple[ServedModel, ...] = Field(min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65_535)
    replicas: int = Field(1, ge=1)
    cpus: float = Field(0.1, ge=0)
    request_seconds: float = Field(600.0, gt=0)
    start_seconds: float = Field(300.0, gt=0)
    limits: LimitsConfig = LimitsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two models are called {twice[0]!r}")
        return self

    @property
    def url(self) -> str:
        """Address of the endpoint."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"
