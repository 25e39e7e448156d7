"""Which kinds of body are read, by content type."""

from __future__ import annotations

from typing import Literal

from cellmill.serving.errors import MediaTypeError

Kind = Literal["h5ad", "json", "arrow"]

ARROW = "application/vnd.apache.arrow.stream"
H5AD = "application/x-hdf5"
JSON = "application/json"

CONTENT_TYPES: dict[str, Kind] = {
    H5AD: "h5ad",
    "application/octet-stream": "h5ad",
    JSON: "json",
    ARROW: "arrow",
}


def kind_of(content_type: str) -> Kind:
    """Return the kind of a body with this ``Content-Type``.

    Raises
    ------
    MediaTypeError
        It is none that is read.
    """
    essence = content_type.partition(";")[0].strip().lower()
    kind = CONTENT_TYPES.get(essence)
    if kind is None:
        raise MediaTypeError(
            f"A body of the type {essence or '(none)'!r} is not read.",
            where="Content-Type",
            fix=f"Send one of: {', '.join(CONTENT_TYPES)}.",
        )
    return kind
