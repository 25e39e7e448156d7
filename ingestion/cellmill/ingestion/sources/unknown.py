"""What a file that no format recognises looks like."""

from __future__ import annotations

from cellmill.ingestion.sources.hdf5 import hdf5_names, is_hdf5
from cellmill.ingestion.sources.place import Place

_SIGNATURES = (
    (b"\x1f\x8b", "it is compressed with gzip; unpack it."),
    (b"PK\x03\x04", "it is a zip archive; unpack it."),
    (b"RDX", "it is R data; write an h5ad from R."),
    (b"X\n", "it is R data; write an h5ad from R."),
    (b"BZh", "it is compressed with bzip2; unpack it."),
    (b"\xfd7zXZ", "it is compressed with xz; unpack it."),
    *((bytes([0x80, n]), "it is a Python pickle, which is never loaded: it could run anything.") for n in range(2, 6)),
    (b"<", "it is a page of HTML or XML; its URL may be that of the page about the file."),
)


def describe(place: Place) -> str:
    """Return a sentence that says what a place looks like."""
    if place.is_dir:
        return "it is a folder, but of no known kind."
    if is_hdf5(place):
        names = sorted(hdf5_names(place))
        return f"it is HDF5, but holds {', '.join(names[:8]) or 'nothing'} at its root, which is no layout of these."
    head = place.head()
    if not head:
        return "it is empty."
    for signature, text in _SIGNATURES:
        if head.startswith(signature):
            return text
    if all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head):
        return "it is text."
    return f"it is not HDF5, and begins with the bytes {head[:8].hex(' ')}."
