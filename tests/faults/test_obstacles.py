"""Two who do the same at once, no space, no permission: a clear error or the right end, and nothing half done."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cellmill.atlas import Atlas
from tests.faults.killing import contents, state
from tests.faults.zygote import Zygote, zygote
from tests.ingestion.cells import make_adata, write


@pytest.fixture(scope="module")
def processes() -> Iterator[tuple[Zygote, Zygote]]:
    with zygote() as one, zygote() as other:
        yield one, other


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder that every user may read."""
    path = Path(tempfile.mkdtemp(prefix="cellmill-"))
    path.chmod(0o755)
    write(make_adata(100, 30, seed=1), path / "a.h5ad")
    write(make_adata(60, 30, seed=2), path / "b.h5ad")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def paths(folder: Path) -> list[str]:
    return [str(folder / "a.h5ad"), str(folder / "b.h5ad")]


def check(folder: Path, wanted: str) -> None:
    assert state(folder) == wanted
    Atlas.open(folder / "atlas").verify().check()
    assert not [name for name in contents(folder) if name.endswith(".partial")]


def test_two_ingestions_of_the_same_sources_at_once_end_as_one(
    processes: tuple[Zygote, Zygote], folder: Path, paths: list[str]
) -> None:
    (folder / "alone").mkdir()
    processes[0].complete("ingest", folder / "alone", paths)
    wanted = state(folder / "alone")
    for number in range(2):
        both = folder / str(number)
        both.mkdir()
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda process, both=both: process.run("ingest", both, paths), processes))
        assert [code for code, _ in done] == [0, 0], done
        check(both, wanted)
        assert Atlas.open(both / "atlas").snapshot().version == 1


def test_one_of_two_that_is_killed_does_not_hold_the_other_up(
    processes: tuple[Zygote, Zygote], folder: Path, paths: list[str]
) -> None:
    (folder / "alone").mkdir()
    processes[0].complete("ingest", folder / "alone", paths)
    both = folder / "both"
    both.mkdir()
    with ThreadPoolExecutor(2) as pool:
        killed = pool.submit(processes[0].run, "ingest", both, paths, ("put shard counts", "after", 1))
        other = pool.submit(processes[1].run, "ingest", both, paths)
    assert killed.result()[0] in (-9, 0)  # there was nothing left to write for it
    assert other.result()[0] == 0, other.result()
    assert state(both) == state(folder / "alone")
    Atlas.open(both / "atlas").verify().check()


def test_a_full_disk_is_told_and_nothing_is_half_done(
    processes: tuple[Zygote, Zygote], folder: Path, paths: list[str]
) -> None:
    processes[0].complete("ingest", folder, paths[:1])
    before = state(folder)
    code, told = processes[0].run("without space", folder, paths)
    assert code == 1
    assert "StorageError: There is no space left" in told
    check(folder, before)
    processes[0].complete("ingest", folder, paths)
    assert Atlas.open(folder / "atlas").snapshot().n_cells == 160
    Atlas.open(folder / "atlas").verify().check()


def test_an_atlas_that_may_only_be_read_is_read_and_told_of(
    processes: tuple[Zygote, Zygote], folder: Path, paths: list[str]
) -> None:
    processes[0].complete("ingest", folder, paths[:1])
    before, files = state(folder), contents(folder)
    code, told = processes[0].run("as nobody", folder, paths)
    assert code == 1
    assert "StorageError: The file or folder may not be written" in told
    assert (state(folder), contents(folder)) == (before, files)
