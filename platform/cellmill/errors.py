"""Every error a user can meet: what went wrong, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class CellmillError(Exception):
    """Base of all errors that Cellmill raises on purpose.

    Parameters
    ----------
    what
        One sentence: what is wrong.
    where
        The file, key, shard, window or request it was found in.
    fix
        What the user can do about it.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments would be lost by the default reduction when Ray carries an error home.
        return (_rebuild, (type(self), self.what, self.where, self.fix))

    def as_dict(self) -> dict[str, str]:
        """Return the error as a JSON object, as printed by ``--json`` and sent by the server."""
        return {"kind": self.kind, "what": self.what, "where": self.where, "fix": self.fix}


def _rebuild(cls: type[CellmillError], what: str, where: str, fix: str) -> CellmillError:
    return cls(what, where=where, fix=fix)


class ConfigError(CellmillError):
    """A configuration file or an override is not valid."""

    kind = "config"
    exit_code = 2
    http_status = 422


class SourceError(CellmillError):
    """A source file is missing, unreadable or of another format than it claims."""

    kind = "source"
    exit_code = 3
    http_status = 400


class CountsError(CellmillError):
    """A matrix does not hold raw counts."""

    kind = "counts"
    exit_code = 4
    http_status = 422


class GeneMappingError(CellmillError):
    """Too many genes, or too many UMIs, have no place in the vocabulary."""

    kind = "genes"
    exit_code = 5
    http_status = 422


class AtlasError(CellmillError):
    """An atlas does not exist, or cannot do what was asked of it."""

    kind = "atlas"
    exit_code = 6
    http_status = 404


class ConflictError(AtlasError):
    """Another writer committed first and the retries are used up."""

    kind = "conflict"
    http_status = 409


class IntegrityError(CellmillError):
    """Stored bytes do not have the checksum they were written with."""

    kind = "integrity"
    exit_code = 7


class ModelError(CellmillError):
    """A model folder is missing, incomplete or made for another purpose."""

    kind = "model"
    exit_code = 8
    http_status = 404


class ResourceError(CellmillError):
    """The machine or the cluster has too little of something."""

    kind = "resources"
    exit_code = 9
    http_status = 503


class CheckpointError(CellmillError):
    """A run cannot be resumed from what is in its directory."""

    kind = "checkpoint"
    exit_code = 10


class DownloadError(CellmillError):
    """A data set could not be fetched."""

    kind = "download"
    exit_code = 11


class RequestError(CellmillError):
    """A request to the server cannot be answered as it stands."""

    kind = "request"
    exit_code = 12
    http_status = 400


class LockError(CellmillError):
    """A lock was lost to another process, so that what it protects may not be changed."""

    kind = "lock"
    exit_code = 13
    http_status = 409


class StorageError(CellmillError):
    """A disk or an object store refuses, is full, or does not answer."""

    kind = "storage"
    exit_code = 14
    http_status = 503


@contextmanager
def located(places: Mapping[str, Path]) -> Iterator[None]:
    """Name files in the errors that leave the block.

    Parameters
    ----------
    places
        What an error's ``where`` begins with when it speaks of a thing in memory (``AnnData``), and the file that the
        thing came from.
    """
    try:
        yield
    except CellmillError as error:
        for word, path in places.items():
            if error.where == word or error.where.startswith(f"{word}:"):
                raise type(error)(error.what, where=f"{path}{error.where[len(word) :]}", fix=error.fix) from error
        raise
