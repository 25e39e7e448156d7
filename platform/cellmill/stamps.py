"""What an answer of a model says about where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cellmill.errors import SourceError


def read_stamp(path: Path, *, fix: str = "") -> dict[str, Any]:
    """Return the stamp of an answer: a saved JSON of the server, or an h5ad that was annotated or embedded.

    Raises
    ------
    SourceError
        The file is neither.
    """
    if path.suffix == ".json":
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise SourceError(f"The file is not valid JSON: {error}", where=str(path)) from error
        return data if isinstance(data, dict) else {}
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = file.get("uns/cellmill")
            if group is None:
                return {}
            return {key: _scalar(group[key][()]) for key in group}
    except OSError as error:
        raise SourceError("The file is neither JSON nor h5ad.", where=str(path), fix=fix) from error


def _scalar(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
