"""Errors of the libraries that read files, as errors of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from cellmill.errors import SourceError

P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self")


@contextmanager
def reading_hdf5(where: str) -> Iterator[None]:
    """Turn what HDF5 raises on meeting damaged bytes, which is of many types, into a `SourceError`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, SystemError) as error:
        raise SourceError(
            f"The file is damaged: {first_line(error)}", where=where, fix="Fetch or copy it again."
        ) from error


def translated(
    reading: Callable[[str], AbstractContextManager[None]],
) -> Callable[[Callable[Concatenate[Self, P], R]], Callable[Concatenate[Self, P], R]]:
    """Return a decorator of methods of sources, that reads within a context made of the source's URL."""

    def decorate(method: Callable[Concatenate[Self, P], R]) -> Callable[Concatenate[Self, P], R]:
        @wraps(method)
        def call(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> R:
            source: Any = self
            with reading(source.url):
                return method(self, *args, **kwargs)

        return call

    return decorate


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its type."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
