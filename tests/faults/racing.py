"""Processes that ingest overlapping cells into one atlas at once, and what must be true of it afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import anndata as ad

from cellmill.atlas import Atlas
from cellmill.ingestion import ingest, pipeline
from tests import warm  # noqa: F401 - loads what its children need
from tests.ingestion.cells import config, make_adata, write

COMMON, OWN = 6, 8
"""Cells that all data sets share, and cells of their own."""


def race(url: str, processes: int, commits: int) -> list[tuple[str, int]]:
    """Run the race in forks of one warm process; return data set and version of each acknowledged commit."""
    command = [sys.executable, "-m", "tests.faults.racing", url, str(processes), str(commits)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    return [tuple(item) for line in done.stdout.splitlines() if line.startswith("[[") for item in json.loads(line)]


def check(url: str, acknowledged: list[tuple[str, int]]) -> None:
    """Check that the history is linear, that nothing acknowledged is lost, and that no cell is there twice."""
    atlas = Atlas.open(url)
    snapshot = atlas.snapshot()
    versions = sorted(version for _, version in acknowledged)
    assert versions == list(range(1, len(acknowledged) + 1)), "versions are consecutive, each given once"
    assert snapshot.version == versions[-1]
    assert {entry.dataset for entry in snapshot.shards} == {name for name, _ in acknowledged}
    for name, version in acknowledged:
        before, after = (
            {(entry.key, entry.n_cells, entry.overlay) for entry in atlas.snapshot(v).shards}
            for v in (version - 1, version)
        )
        assert before < after, "a commit keeps what was there right before it"
        assert {key[0] for key, _, _ in after - before} == {name}, "and adds what it says"
    hashes = Counter(snapshot.cells(["content_hash"]).column(0).to_pylist())
    assert set(hashes.values()) == {1}
    assert len(hashes) == COMMON + OWN * len(acknowledged)
    assert atlas.verify().sound


def _commits(url: str, folder: Path, number: int, commits: int) -> list[tuple[str, int]]:
    common = make_adata(COMMON, 30, seed=0)
    found = []
    for i in range(commits):
        adata: Any = ad.concat([common, make_adata(OWN, 30, seed=1 + number * commits + i)])
        name = f"p{number}-{i}"
        adata.obs_names = [f"{name}-{cell}" for cell in range(adata.n_obs)]
        settings = config(Path("unused"), write(adata, folder / f"{name}.h5ad"), duplicates={"min_genes": 1})
        found.append((name, ingest(settings.model_copy(update={"atlas": url})).snapshot))
    return found


def main() -> None:
    """Fork, commit, and tell."""
    url, processes, commits = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # Figures and pages of a run are made after its commit, and take longer than all of the rest.
    setattr(pipeline, "write_run", lambda *_: Path())  # noqa: B010 - the type checker knows it from elsewhere
    folder = Path(tempfile.mkdtemp(prefix="cellmill-race-"))
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            try:
                found = _commits(url, folder, number, commits)
                os.write(1, (json.dumps(found) + "\n").encode())
                os._exit(0)
            except BaseException:  # noqa: BLE001 - told, and the parent fails
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    shutil.rmtree(folder)
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    main()
