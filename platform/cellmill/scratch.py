"""Temporary folders that do not outlive their owner for long: what a killed process left, the next one deletes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "cellmill-scratch-"


class ScratchFolder:
    """An empty folder among the system's temporary ones, which is deleted at the end of the block.

    Its owner holds a lock on it, which ends with the process. Folders whose lock nobody holds are deleted when a new
    one is made.

    Attributes
    ----------
    path
        Where it is.
    """

    def __init__(self) -> None:
        delete_left_folders()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            # Until it is locked, another process may take it for one that was left, and delete it.
            with suppress(FileNotFoundError):
                self._handle = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self._handle, fcntl.LOCK_EX)
                if self.path.exists():
                    return
                os.close(self._handle)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.delete()

    def delete(self) -> None:
        """Delete the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._handle)


def delete_left_folders() -> None:
    """Delete the folders on this machine whose owners are dead."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
