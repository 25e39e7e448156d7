"""Ticks killed at every point: the next one loses nothing and repeats nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cellmill.atlas import Atlas
from tests.ingestion.cells import make_adata, write
from tests.ingestion.schedule.clockwork import schedule

ROOT = Path(__file__).resolve().parents[3]
Run = Callable[..., Any]
HOOK = "import os, sys; open(sys.argv[1], 'a').write(os.environ['CELLMILL_DATASETS'] + '\\n')"


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Return what runs a tick in a child of a warm process and gives its exit code, or several at once and theirs."""
    warm = subprocess.Popen(
        [sys.executable, "-m", "tests.ingestion.schedule.killing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )

    def one(config: Any, point: str = "", passing: int = 1, rivals: int = 0) -> Any:
        assert warm.stdin is not None
        assert warm.stdout is not None
        order = {"config": config.model_dump(mode="json"), "point": point, "passing": passing, "rivals": rivals or 1}
        warm.stdin.write(json.dumps(order) + "\n")
        warm.stdin.flush()
        codes = json.loads(warm.stdout.readline())
        return codes if rivals else codes[0]

    yield one
    warm.stdin.close()  # type: ignore[union-attr]
    assert warm.wait(timeout=30) == 0


class World:
    """Three sources in an atlas, of which one then changes, one goes, and one comes."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder, self.data, self.atlas = folder, folder / "data", folder / "atlas"
        self.data.mkdir(parents=True)
        for seed, name in enumerate("abc"):
            write(make_adata(12, seed=seed), self.data / f"{name}.h5ad")
        self.config = schedule(
            self.atlas,
            self.data / "*.h5ad",
            vanished={"policy": "remove"},
            hook={"command": [sys.executable, "-c", HOOK, str(folder / "hooks")]},
        )
        assert run(self.config) == 0
        write(make_adata(14, seed=7), self.data / "a.h5ad")
        (self.data / "c.h5ad").unlink()
        write(make_adata(9, seed=8), self.data / "d.h5ad")

    def content(self) -> tuple[int, list[tuple[str, str, int]]]:
        """Return the newest snapshot's number, and what is in it."""
        snapshot = Atlas.open(self.atlas).snapshot()
        return snapshot.version, [(entry.digest, entry.checksum, entry.n_cells) for entry in snapshot.shards]

    def hooks(self) -> list[str]:
        return (self.folder / "hooks").read_text().split()

    def states(self) -> list[dict[str, Any]]:
        paths = sorted((self.atlas / "schedule/nightly/state").glob("*.json"))
        return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def world(run: Run, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "here", run)


@pytest.fixture(scope="module")
def before(world: World) -> Path:
    kept = world.folder.with_name("before")
    shutil.copytree(world.folder, kept)
    return kept


@pytest.fixture(scope="module")
def undisturbed(world: World, before: Path, run: Run) -> tuple[int, list[tuple[str, str, int]]]:
    assert run(world.config) == 0
    assert world.hooks() == ["a,b,c", "c,a,d"]
    return world.content()


@pytest.mark.parametrize(
    ("point", "passing"),
    [
        ("shards written, before the commit", 1),
        ("after a commit", 1),
        ("before a state is written", 2),
        ("after a commit", 3),
        ("after the hook", 1),
        pytest.param("after the lock", 1, marks=pytest.mark.soak),
        pytest.param("after a state is written", 1, marks=pytest.mark.soak),
        pytest.param("before the hook", 1, marks=pytest.mark.soak),
        pytest.param("after looking", 1, marks=pytest.mark.soak),
        pytest.param("before a state is written", 1, marks=pytest.mark.soak),
        pytest.param("shards written, before the commit", 2, marks=pytest.mark.soak),
        pytest.param("before a commit", 2, marks=pytest.mark.soak),
        pytest.param("after a commit", 2, marks=pytest.mark.soak),
        pytest.param("after a state is written", 2, marks=pytest.mark.soak),
        pytest.param("before a state is written", 3, marks=pytest.mark.soak),
        pytest.param("after a state is written", 3, marks=pytest.mark.soak),
        pytest.param("after a state is written", 4, marks=pytest.mark.soak),
        pytest.param("after a state is written", 5, marks=pytest.mark.soak),
        pytest.param("after a source", 1, marks=pytest.mark.soak),
    ],
)
def test_a_killed_tick_loses_and_repeats_nothing(
    world: World, before: Path, undisturbed: tuple[int, Any], run: Run, point: str, passing: int
) -> None:
    shutil.rmtree(world.folder)
    shutil.copytree(before, world.folder)  # with the times of the files: they are part of the fingerprints
    assert run(world.config, point, passing) == -signal.SIGKILL
    Atlas.open(world.atlas).verify().check()
    assert run(world.config) == 0
    assert world.content() == undisturbed
    # A hook is run once; if the process died before it was written down that it had run, twice.
    late = point == "after the hook"
    assert world.hooks() == ["a,b,c", "c,a,d"] + ["c,a,d"] * late
    last = world.states()[-1]
    assert (last["pending"], last["owed"], last["snapshot"]) == ([], None, undisturbed[0])
    numbers = [state["number"] for state in world.states()]
    assert run(world.config) == 0
    assert [state["number"] for state in world.states()] == numbers
    assert world.content() == undisturbed


def test_of_processes_that_tick_at_once_one_works(run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        write(make_adata(12, seed=seed), tmp_path / f"{name}.h5ad")
    config = schedule(tmp_path / "atlas", tmp_path / "*.h5ad")
    codes = run(config, rivals=6)
    # Whoever looks after the winner has ended finds nothing to do; all others are skipped.
    assert set(codes) <= {0, 2}
    assert 2 in codes
    lines = (tmp_path / "atlas/schedule/nightly/log-2026-03.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert (events.count("landed"), events.count("skipped")) == (3, codes.count(2))
    assert Atlas.open(tmp_path / "atlas").snapshot().version == 3
