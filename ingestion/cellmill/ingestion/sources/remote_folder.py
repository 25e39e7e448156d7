"""A remote folder whose files are known: what is read of them is whole, and as it was when they were listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cellmill.ingestion.sources.remote import Facts, RemoteFile, read_part


class RemoteFolder:
    """Files of a folder, as `StorageStore` reads them.

    Parameters
    ----------
    url
        Names the folder.
    child
        Returns a file by its name.
    facts
        What was known of each file when the folder was looked at.
    """

    def __init__(self, url: str, child: Callable[[str], RemoteFile], facts: Mapping[str, Facts]) -> None:
        self.url, self._child, self._facts = url, child, facts

    def get(self, key: str) -> bytes:
        """Return all of a file; raises as `read_part`."""
        return read_part(self._child(key), self._facts[key])

    def get_ranges(self, key: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Return ranges of a file; raises as `read_part`."""
        file, facts = self._child(key), self._facts[key]
        return [read_part(file, facts, start, end) for start, end in zip(starts, ends, strict=True)]

    def get_tail(self, key: str, n: int) -> bytes:
        """Return the end of a file; raises as `read_part`."""
        facts = self._facts[key]
        if facts.size is None:
            return self.get(key)[-n:]
        return read_part(self._child(key), facts, max(0, facts.size - n))
