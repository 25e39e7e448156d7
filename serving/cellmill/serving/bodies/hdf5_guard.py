"""What may be touched in an HDF5 file that a stranger sent: data inside the file, of plain types, of bounded size."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from cellmill.serving.errors import InvalidBodyError, TooLargeError

_STRINGS_PER_READ = 4096
_LONGEST_TEXT_MB = 64


def child(group: Any, name: str) -> Any:
    """Return a member of a group, None where there is none.

    Raises
    ------
    InvalidBodyError
        It is a link, which could lead out of the file.
    """
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise InvalidBodyError("Links are not followed.", where=_place(group, name), fix="Send the data itself.")
    return group[name]


def numbers(dataset: Any, max_values: int) -> npt.NDArray[Any]:
    """Return the values of a numeric data set.

    Raises
    ------
    InvalidBodyError
        It is stored outside of the file, or does not hold numbers.
    TooLargeError
        It claims more values than are taken.
    """
    _check_inside(dataset)
    if dataset.dtype.kind not in "iufb":
        raise InvalidBodyError(
            f"{dataset.dtype} is read as numbers nowhere; object arrays are never read.", where=str(dataset.name)
        )
    size = int(np.prod(dataset.shape, dtype=object))
    if size > max_values:
        raise TooLargeError(
            f"The array claims {size:,} values; at most {max_values:,} are taken.",
            where=str(dataset.name),
            fix="Send the cells in several requests.",
        )
    if dataset.chunks is not None and int(np.prod(dataset.chunks, dtype=object)) > max_values:
        raise TooLargeError("A chunk of the array claims more values than are taken.", where=str(dataset.name))
    values: npt.NDArray[Any] = dataset[()]
    return values


def strings(dataset: Any, max_values: int) -> list[str]:
    """Return the values of a data set of strings; a categorical group is decoded.

    Raises
    ------
    InvalidBodyError, TooLargeError
        As in `numbers`; also where the texts together are longer than 64 MB.
    """
    if isinstance(dataset, h5py.Group):
        return _categories(dataset, max_values)
    _check_inside(dataset)
    if len(dataset.shape) != 1 or dataset.shape[0] > max_values:
        raise TooLargeError(
            f"The array has shape {dataset.shape}; one dimension of at most {max_values:,} is taken.",
            where=str(dataset.name),
        )
    if dataset.dtype.kind in "iu":
        return [str(value) for value in dataset[()].tolist()]
    variable = h5py.check_string_dtype(dataset.dtype)
    if variable is None:
        raise InvalidBodyError(f"{dataset.dtype} is not text; object arrays are never read.", where=str(dataset.name))
    found: list[str] = []
    length = 0
    for start in range(0, dataset.shape[0], _STRINGS_PER_READ):
        for value in dataset[start : start + _STRINGS_PER_READ].tolist():
            text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
            length += len(text)
            found.append(text)
        if length > _LONGEST_TEXT_MB << 20:
            raise TooLargeError(f"The names are longer than {_LONGEST_TEXT_MB} MB.", where=str(dataset.name))
    return found


def _categories(group: Any, max_values: int) -> list[str]:
    codes, categories = child(group, "codes"), child(group, "categories")
    if codes is None or categories is None:
        values = child(group, "values")
        if values is None or isinstance(values, h5py.Group):
            raise InvalidBodyError("This is neither text nor a categorical.", where=str(group.name))
        return strings(values, max_values)
    names = strings(categories, max_values)
    at = numbers(codes, max_values)
    if at.ndim != 1 or at.dtype.kind not in "iu" or (at.size and int(at.max()) >= len(names)):
        raise InvalidBodyError("The codes of a categorical do not fit its categories.", where=str(group.name))
    return [names[i] if i >= 0 else "" for i in at.tolist()]


def _check_inside(dataset: Any) -> None:
    if not isinstance(dataset, h5py.Dataset):
        raise InvalidBodyError("An array was expected here.", where=str(getattr(dataset, "name", "")))
    if dataset.external or dataset.is_virtual:
        raise InvalidBodyError("The array is stored outside of the file.", where=str(dataset.name))


def _place(group: Any, name: str) -> str:
    return f"{str(group.name).rstrip('/')}/{name}"
