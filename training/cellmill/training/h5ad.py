"""Reading and writing the h5ad files of a command, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import anndata as ad

from cellmill.errors import SourceError


def read_cells(path: Path) -> ad.AnnData:
    """Read an h5ad.

    Raises
    ------
    SourceError
        The file is missing or is not an h5ad.
    """
    if not path.is_file():
        raise SourceError("The file does not exist.", where=str(path), fix="Check the path.")
    try:
        return ad.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"The file is not an h5ad that can be read: {first}", where=str(path), fix="Write it with anndata."
        ) from error


def write_cells(adata: ad.AnnData, path: Path) -> None:
    """Write an h5ad beside its target and rename it, so that no reader sees a part.

    Raises
    ------
    SourceError
        The folder does not exist or cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        adata.write_h5ad(partial)
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SourceError(f"The file cannot be written: {error}", where=str(path), fix="Check the folder.") from error
