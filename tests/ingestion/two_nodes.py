"""A cluster of two nodes with a cache each, and a driver with a third: ``-m ... SOURCE FOLDER``; ingests the source.

Prints, as JSON, names and checksums of the shards.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cellmill.atlas import Atlas
from cellmill.ingestion import ingest
from tests.ingestion.cells import config


def main() -> None:
    """Start the nodes, ingest, tell what came of it."""
    source, folder = map(Path, sys.argv[1:])

    def node(name: str) -> dict[str, Any]:
        return {"num_cpus": 1, "object_store_memory": 128 << 20, "env_vars": {"CELLMILL_CACHE": str(folder / name)}}

    cluster: Any = Cluster(initialize_head=True, head_node_args=node("head"))
    try:
        cluster.add_node(**node("worker"))
        os.environ["CELLMILL_CACHE"] = str(folder / "driver")
        ray.init(address=cluster.address, log_to_driver=False)
        ingest(config(folder / "ray", source, backend="ray", task_memory_mb=64, shard_cells=10_000))
    finally:
        ray.shutdown()
        cluster.shutdown()
    shards = Atlas.open(folder / "ray").snapshot().shards
    print(json.dumps([[entry.key, entry.checksum] for entry in shards]))


if __name__ == "__main__":
    main()
