"""What is made once a machine out of a source, for sources that can only be read from their beginning."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cellmill.errors import ResourceError
from cellmill.ingestion.datasets.fetching import cache_folder
from cellmill.ingestion.sources.cache import cache_limit


def prepared(identity: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` filled, now or in an earlier process of this machine.

    Folders are in ``$CELLMILL_CACHE/prepared``, and those not used for longest are deleted when they take more than
    ``$CELLMILL_CACHE_GB``. Processes that want the same one wait for one of them to make it.

    Parameters
    ----------
    identity
        What it is made of, and how: another text is another folder.
    make
        Fills a folder that does not exist yet. It may be called again after a crash.

    Raises
    ------
    ResourceError
        The folder cannot be written.
    """
    root = cache_folder() / "prepared"
    key = hashlib.sha256(identity.encode()).hexdigest()[:40]
    target, partial = root / key, root / f"{key}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    make(partial)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
                os.replace(partial, target)
            os.utime(target)
    except OSError as error:
        raise ResourceError(
            f"The cache cannot be written: {error.strerror or error}.",
            where=str(root),
            fix="Set CELLMILL_CACHE to a folder with room that can be written.",
        ) from error
    _shrink(root, keep=target)
    return target


def _shrink(root: Path, keep: Path) -> None:
    """Delete the folders that were not used for longest, until the rest fits."""
    folders = [path for path in root.iterdir() if path.is_dir() and path.suffix != ".partial"]
    sizes = {path: sum(part.stat().st_size for part in path.iterdir()) for path in folders}
    total = sum(sizes.values())
    for path in sorted(folders, key=lambda path: path.stat().st_mtime):
        if total <= cache_limit():
            return
        if path != keep:
            # Who has its files open keeps them; who comes later makes it again.
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
