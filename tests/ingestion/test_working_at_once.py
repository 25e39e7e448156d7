"""Ingestions, withdrawals, rollbacks and collections without grace, all at once, and collections that are cut off."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.files import Unit
from cellmill.atlas.rollback import rollback
from cellmill.atlas.tags import add_tag
from cellmill.atlas.withdrawing import remove
from cellmill.errors import AtlasError, IntegrityError
from cellmill.ingestion import ingest, pipeline
from tests.ingestion.cells import config, counts, expected, make_adata, write
from tests.ingestion.test_collecting import files, grown

OBS = {"source": {"obs": {"donor": "donor"}}}


def test_all_at_once_and_nothing_is_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order, every snapshot that is left is whole, and what a rollback undid is ingested again."""
    monkeypatch.setattr(pipeline, "write_run", lambda *arguments: tmp_path)
    root, n = tmp_path / "atlas", 4
    adatas = [make_adata(18, seed=i) for i in range(n)]
    paths = [write(adata, tmp_path / f"s{i}.h5ad") for i, adata in enumerate(adatas)]
    ingest(config(root, paths[0], shard_cells=6, **OBS))
    failed: list[BaseException] = []
    done = threading.Event()

    def guarded(work: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def add() -> None:
        for path in paths[1:]:
            ingest(config(root, path, shard_cells=6, **OBS))

    def tidy() -> None:
        while not done.is_set():
            collect(Atlas.open(root), Forget(keep_last=2), grace_s=0)

    def turn() -> None:
        atlas = Atlas.open(root)
        add_tag(atlas, "begin", atlas.snapshot().version)
        while not done.is_set():
            with suppress(AtlasError):  # forgotten by then
                newest = atlas.snapshot().version
                rollback(atlas, newest)

    workers = [guarded(add), guarded(lambda: remove(Atlas.open(root), "donor = 'd1'", "consent"))]
    others = [guarded(tidy), guarded(turn)]
    for worker in workers:
        worker.join()
    done.set()
    for other in others:
        other.join()
    assert not failed, failed
    atlas = Atlas.open(root)
    for line in atlas.log():
        if not line.forgotten:
            atlas.verify(line.version).check()
    assert atlas.snapshot().select("donor = 'd1'").n_cells == 0
    for path in paths:
        ingest(config(root, path, shard_cells=6, **OBS))
    assert counts(root).equals(expected([adata[adata.obs["donor"] != "d1"] for adata in adatas]))


def test_a_collection_that_is_cut_off_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "atlas"
    adatas = grown(root, tmp_path)
    atlas = Atlas.open(root)
    delete = Unit.delete
    left: list[int] = [0]

    def fails(unit: Unit, storage: Any) -> None:
        if not left[0]:
            raise IntegrityError("The machine stops here.")
        left[0] -= 1
        delete(unit, storage)

    for left[0] in (0, 1, 1):
        with monkeypatch.context() as patch:
            patch.setattr(Unit, "delete", fails)
            with pytest.raises(IntegrityError, match="stops here"):
                collect(atlas, Forget(), grace_s=0)
        atlas.verify().check()
        with pytest.raises(AtlasError, match="forgotten"):
            atlas.snapshot(1)
    collect(atlas, Forget(), grace_s=0)
    newest = atlas.snapshot()
    named = {path for e in newest.shards for path in (e.cells_path, e.hash_run_path)}
    assert files(root, "cells", "hashes") == named
    assert counts(root).equals(expected(adatas))
