"""A warm process that forks a child for each thing to be done, so that a child can be killed at any point of it."""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from cellmill.atlas import Atlas, lease, read
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.compacting import compact
from cellmill.atlas.withdrawing import remove
from cellmill.ingestion import IngestConfig, ingest, pipeline
from cellmill.ingestion.sources import registry
from tests import warm  # noqa: F401 - loads what its children need
from tests.faults.points import Point, Points

LEASE_S = 1.0
"""How long leases of the dead live."""


def _ingest(folder: Path, paths: list[str]) -> None:
    sources = [{"path": path, "dataset": "cells", "organism": "human", "obs": "all"} for path in paths]
    settings = {"shard_cells": 40, "backend": "local", "duplicates": {"min_genes": 1}}
    ingest(IngestConfig.model_validate({"atlas": str(folder / "atlas"), "sources": sources, **settings}))


def _remove(folder: Path, where: str) -> None:
    remove(Atlas.open(folder / "atlas"), where, "asked for")


def _collect(folder: Path, forget: bool) -> None:
    collect(Atlas.open(folder / "atlas"), Forget() if forget else None, grace_s=0)


def _compact(folder: Path, shard_cells: int) -> None:
    (folder / "tmp").mkdir(exist_ok=True)
    tempfile.tempdir = str(folder / "tmp")
    compact(Atlas.open(folder / "atlas"), shard_cells=shard_cells)


def _without_space(folder: Path, paths: list[str]) -> None:
    """Ingest where no file may be longer than this."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
    _ingest(folder, paths)


def _as_nobody(folder: Path, paths: list[str]) -> None:
    """Ingest into a folder of another user, from which this one may only read."""
    registry.formats()  # compiled code is kept beside the sources, where nobody may not write
    if os.geteuid() == 0:
        os.setuid(65534)
    else:
        (folder / "atlas").chmod(0o555)
        (folder / "atlas/leases").chmod(0o555)
    assert read(folder / "atlas").n_obs
    _ingest(folder, paths)


ACTIONS: dict[str, Callable[..., None]] = {
    "ingest": _ingest,
    "remove": _remove,
    "collect": _collect,
    "compact": _compact,
    "without space": _without_space,
    "as nobody": _as_nobody,
}


def main() -> None:
    """Do what is read, a JSON array a line: action, folder, argument, point to die at."""
    lease.Lease.__init__.__kwdefaults__["ttl_s"] = LEASE_S  # type: ignore[index]
    # Figures and pages of a run are made after its commit, and take longer than all of the rest.
    setattr(pipeline, "write_run", lambda *_: Path())  # noqa: B010 - the type checker knows it from elsewhere
    print("ready", flush=True)
    for line in sys.stdin:
        action, folder, argument, fatal = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os._exit(_run(action, Path(folder), argument, tuple(fatal) if fatal else None, writer))
        os.close(writer)
        with os.fdopen(reader) as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), json.loads(told or "[]")]), flush=True)


def _run(action: str, folder: Path, argument: Any, fatal: Point | None, writer: int) -> int:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of this process
    points = Points(fatal)
    points.install()
    told: Any = points.passed
    try:
        ACTIONS[action](folder, argument)
        code = 0
    except BaseException:  # noqa: BLE001 - told to the parent
        told, code = traceback.format_exc(), 1
    with os.fdopen(writer, "w") as pipe:
        json.dump(told, pipe)
    return code


class Zygote:
    """The warm process, from outside."""

    def __init__(self, process: Popen[str]) -> None:
        self._process = process

    def run(self, action: str, folder: Path, argument: Any, fatal: Point | None = None) -> tuple[int, Any]:
        """Do something in a child; return its exit code (-9 where it was killed), and the points that it passed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([action, str(folder), argument, fatal]), file=self._process.stdin, flush=True)
        code, told = json.loads(self._process.stdout.readline())
        return code, told

    def complete(self, action: str, folder: Path, argument: Any) -> list[Point]:
        """Do something to its end; return the points that were passed."""
        code, told = self.run(action, folder, argument)
        assert code == 0, told
        return [(name, phase, number) for name, phase, number in told]


@contextmanager
def zygote() -> Iterator[Zygote]:
    """Start the warm process."""
    with Popen([sys.executable, "-m", "tests.faults.zygote"], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield Zygote(process)
        process.kill()


if __name__ == "__main__":
    main()
