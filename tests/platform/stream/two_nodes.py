"""A cluster of two nodes: one has a trainer and no CPU for data, the other has data tasks: ``-m ... ATLAS FOLDER``.

Prints, as JSON, the trainer's node, the digest of what it got, the nodes where cells were tokenised with the bytes of
their counts, the bytes of the packed batches, and the bytes that arrived in each node's object store.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from ray._private import internal_api
from ray.cluster_utils import Cluster

from cellmill.atlas import Atlas
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig, Tokeniser

TOKENS = TokenConfig(max_genes=64)


class Noting(Tokeniser):
    """Notes the node that it works on, and how many bytes it got."""

    def __init__(self, folder: Path) -> None:
        super().__init__(TOKENS)
        self._folder = folder

    def tokenise(self, block: CellBlock, **keys: Any) -> PackedBatch:
        if block.n_cells:
            node = ray.get_runtime_context().get_node_id()
            with (self._folder / node).open("a") as file:
                file.write(f"{block.token.nbytes + block.count.nbytes}\n")
        return super().tokenise(block, **keys)


class Trainer:
    """Consumes the stream."""

    def train(self, url: str, folder: str) -> tuple[str, int, str]:
        config = StreamConfig(batch_size=256, group_cells=2048, backend="ray", data_cpus=1.0)
        stream = Stream(Atlas.open(url).snapshot().select(), Noting(Path(folder)), config)
        batches = list(stream.epoch(0))
        names = ("gene", "value", "cell_id", "n_pcpt", "cu_seqlens")
        size = sum(getattr(batch, name).nbytes for batch in batches for name in names)
        return ray.get_runtime_context().get_node_id(), size, digest(batches)


def digest(batches: Iterable[PackedBatch]) -> str:
    """Return the digest of the batches' cells and tokens."""
    found = hashlib.sha256()
    for batch in batches:
        for array in (batch.cell_id, batch.gene, batch.value):
            found.update(array.tobytes())
    return found.hexdigest()


def main() -> None:
    """Start the nodes, stream an epoch, tell what happened where."""
    url, folder = sys.argv[1:]
    memory = 128 << 20
    cluster: Any = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "resources": {"trainer": 1}, "object_store_memory": memory},
    )
    try:
        cluster.add_node(num_cpus=1, object_store_memory=memory)
        ray.init(address=cluster.address, log_to_driver=False)
        remote: Any = ray.remote(num_cpus=1, resources={"trainer": 1})(Trainer)
        node, packed, found = ray.get(remote.remote().train.remote(url, folder))
        stored = {}
        for about in ray.nodes():
            stats: Any = internal_api.node_stats(about["NodeManagerAddress"], about["NodeManagerPort"])
            stored[about["NodeID"]] = int(stats.store_stats.cumulative_created_bytes)
    finally:
        ray.shutdown()
        cluster.shutdown()
    made = {path.name: sum(map(int, path.read_text().split())) for path in Path(folder).iterdir()}
    print(json.dumps({"trainer": node, "packed": packed, "digest": found, "stored": stored, "made": made}))


if __name__ == "__main__":
    main()
