"""What a store answers when it fails: which failures pass by themselves, and what a user is told of the others."""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PermissionDeniedError, UnauthenticatedError

from cellmill.errors import StorageError

T = TypeVar("T")
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_PATIENCE_S = 120.0
"""No failure is tried again after this time, whatever the number of attempts."""

_REFUSAL = re.compile(r"status code: 4(?!08|29)\d\d")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)


class ShortAnswerError(Exception):
    """An answer holds fewer bytes than were asked for."""


def patiently(ask: Callable[[], T], where: str) -> T:
    """Return what `ask` returns; what may pass by itself is tried again, a few times, with growing pauses.

    Raises
    ------
    FileNotFoundError, AlreadyExistsError
        What the store says of the file, at once.
    StorageError
        It failed time after time, or in a way that does not pass.
    """
    began, pause = time.monotonic(), _FIRST_PAUSE_S
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with translated(where):
                return ask()
        except StorageError as error:
            if not passes(error.__cause__) or attempt == _ATTEMPTS or time.monotonic() - began > _PATIENCE_S:
                raise
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    raise AssertionError("unreachable")


def passes(error: BaseException | None) -> bool:
    """Return whether a failure may pass by itself: connections that break, answers cut short, servers in trouble."""
    if isinstance(error, GenericError):
        return not _REFUSAL.search(str(error))
    return isinstance(error, ShortAnswerError | TimeoutError | ConnectionError)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn failures of a store or a disk within the block into errors that say what to do.

    Raises
    ------
    StorageError
        For every failure but a file that is missing or there already.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, AlreadyExistsError):
        raise
    except ShortAnswerError as error:
        raise StorageError(f"The store's answer is incomplete: {error}.", where=where, fix="Try again.") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise _refused(where) from error
    except BaseError as error:
        line = first_line(error)
        if "403 Forbidden" in line or "401 Unauthorized" in line:
            raise _refused(where) from error
        if "404 Not Found" in line:
            # Of a file that is missing, the store says so in another way.
            raise no_bucket(where) from error
        raise StorageError(
            f"The store does not answer: {line}.",
            where=where,
            fix="Check the address and the network, then run again: what is written stays.",
        ) from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                "There is no space left for the file.",
                where=where,
                fix="Make space, then run again: what is written stays.",
            ) from error
        if error.errno in _LOCKED:
            raise StorageError(
                "The file or folder may not be written or read.",
                where=where,
                fix="Check its permissions, and that the file system is not mounted read-only.",
            ) from error
        raise StorageError(f"The disk does not do it: {first_line(error)}.", where=where) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without a full stop."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".")


def no_bucket(where: str) -> StorageError:
    """Return the error of a bucket that is not there."""
    return StorageError("There is no such bucket.", where=where, fix="Make it, or check its name.")


def _refused(where: str) -> StorageError:
    return StorageError(
        "The store refuses access.",
        where=where,
        fix="Check the credentials in the environment, and what they allow.",
    )
