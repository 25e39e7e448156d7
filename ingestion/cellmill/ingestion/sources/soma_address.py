"""Where TileDB finds an experiment, and with which settings."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from cellmill.errors import ConfigError

CENSUS_BUCKET = "cellxgene-census-public-us-west-2"
"""Bucket of the releases of the CELLxGENE Census, open to anyone."""

_CENSUS = re.compile(r"^census:(?P<version>\d{4}-\d{2}-\d{2})(/(?P<organism>[a-z_]+))?$")
_ORGANISMS = {"human": "homo_sapiens", "mouse": "mus_musculus"}
_READ_BYTES = 1 << 26

RETRIES = 2
"""How often TileDB tries a request again; a store that never answers is given up after three times these seconds."""
CONNECT_S, SILENCE_S = 10.0, 10.0
"""How long it waits for a connection, and how long one may bring nothing."""


def address(location: str) -> str:
    """Return the URI of an experiment as TileDB spells it.

    ``census:2025-11-08/homo_sapiens`` is the human part of that release (also ``/human``, ``/mouse``; human is meant
    where nothing is said).

    Raises
    ------
    ConfigError
        A release of the Census is not named by its date.
    """
    if location.startswith("census:"):
        match = _CENSUS.match(location)
        if match is None:
            raise ConfigError(
                "A release of the CELLxGENE Census is named by its date and organism.",
                where=location,
                fix="Write it as census:2025-11-08/homo_sapiens; `stable` and `latest` mean another one each month.",
            )
        organism = match["organism"] or "human"
        version = match["version"]
        folder = f"s3://{CENSUS_BUCKET}/cell-census/{version}/soma/census_data"
        return f"{folder}/{_ORGANISMS.get(organism, organism)}"
    scheme = urlsplit(location).scheme
    spelling = {"s3a": "s3", "gcs": "gcs", "gs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
    return location.replace(f"{scheme}://", f"{spelling[scheme]}://", 1) if scheme in spelling else location


def tiledb_config(location: str) -> dict[str, str | float]:
    """Return TileDB's settings: small buffers, few threads, bounded patience, and the endpoint of the environment."""
    settings: dict[str, str | float] = {
        # A task has one CPU and bounded memory; by default TileDB takes a gigabyte for each column.
        "soma.init_buffer_bytes": _READ_BYTES,
        "sm.mem.total_budget": 8 * _READ_BYTES,
        "sm.compute_concurrency_level": 1,
        "sm.io_concurrency_level": 4,
        "vfs.s3.connect_max_tries": RETRIES,
        "vfs.s3.connect_timeout_ms": int(CONNECT_S * 1000),
        "vfs.s3.request_timeout_ms": int(SILENCE_S * 1000),
        "vfs.gcs.request_timeout_ms": int(SILENCE_S * 1000),
        "vfs.azure.max_retries": RETRIES,
        "rest.retry_count": RETRIES,
    }
    if location.startswith("census:"):
        return settings | {"vfs.s3.region": "us-west-2", "vfs.s3.no_sign_request": "true"}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        settings["vfs.s3.region"] = region
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        parts = urlsplit(endpoint)
        settings["vfs.s3.endpoint_override"] = parts.netloc
        settings["vfs.s3.scheme"] = parts.scheme
        settings["vfs.s3.use_virtual_addressing"] = "false"
    return settings
