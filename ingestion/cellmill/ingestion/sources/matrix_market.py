"""MatrixMarket text to compressed rows on disk: one pass for files in the order of cells, two for others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled
from cellmill.errors import CountsError, SourceError
from cellmill.ingestion.sources.stored_rows import write_rows

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_BLOCK = 1 << 22
_ENTRIES_AT_ONCE = 1 << 22
_LONGEST_LINE = 1 << 10
_LONGEST_HEADING = 1 << 20
_LARGEST = 2**31 - 1
_FINE, _SYNTAX, _RANGE, _NO_NUMBER = 0, 1, 2, 3
_FIX = "The file is damaged, or cut short: fetch it again."


@dataclass(frozen=True)
class Header:
    """What a MatrixMarket file says of itself.

    Attributes
    ----------
    n_rows, n_columns, n_entries
        Size of the matrix, and number of lines that follow.
    field
        ``integer``, ``real`` or ``pattern`` (no values: each is 1).
    """

    n_rows: int
    n_columns: int
    n_entries: int
    field: str


class MatrixMarket:
    """The text of a MatrixMarket file in coordinate format, read once from its beginning.

    Parameters
    ----------
    blocks
        The text.
    where
        The file, for messages.

    Raises
    ------
    SourceError
        It is no MatrixMarket file, or one of a kind that holds no table of counts.
    """

    def __init__(self, blocks: Iterator[bytes], where: str) -> None:
        self._blocks, self._where = blocks, where
        self._rest, self._at, self._read = b"", 0, 0
        self.header = self._read_header()
        self._rest = self._rest[self._at :]

    def write_rows(self, folder: Path, *, cells_are_columns: bool) -> None:
        """Write the matrix as compressed rows, one a cell, into a new folder.

        Memory is bounded whatever the size of the matrix and the order of its entries.

        Parameters
        ----------
        folder
            Where `StoredRows` will find them.
        cells_are_columns
            Whether the columns are the cells, as 10x writes them.

        Raises
        ------
        SourceError
            A line is no entry of the matrix, or there are more or fewer lines than the header says.
        CountsError
            A value is NaN or infinite.
        ResourceError
            The disk has no room.
        """
        header = self.header
        n_cells = header.n_columns if cells_are_columns else header.n_rows
        n_features = header.n_rows if cells_are_columns else header.n_columns
        dtype = np.dtype(np.float64 if header.field == "real" else np.int32)
        entries = self._entries()
        order = ((column, row, value) for row, column, value in entries) if cells_are_columns else entries
        write_rows(folder, order, (n_cells, n_features), header.n_entries, dtype, self._where)

    def _entries(self) -> Iterator[tuple[I32, I32, npt.NDArray[np.float64]]]:
        header, seen, line = self.header, 0, 0
        for block in self._whole_lines():
            text = np.frombuffer(block, np.uint8)
            most = block.count(b"\n")
            row, column, value = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.float64)
            n, read, state = _parse(
                text, header.field == "pattern", header.n_rows, header.n_columns, row, column, value
            )
            if state == _NO_NUMBER:
                raise CountsError(
                    f"A value is NaN or infinite, in line {line + read + 1:,} of the entries.",
                    where=self._where,
                    fix="Remove or repair those cells.",
                )
            if state != _FINE:
                what = "is no entry" if state == _SYNTAX else "names a place outside of the matrix"
                raise SourceError(f"Line {line + read + 1:,} of the entries {what}.", where=self._where, fix=_FIX)
            line += read
            seen += n
            if seen > header.n_entries:
                break
            if header.field == "integer" and n:
                self._check_integers(value[:n])
            if n:
                yield row[:n], column[:n], value[:n]
        if seen != header.n_entries:
            less = "fewer" if seen < header.n_entries else "more"
            raise SourceError(
                f"There are {less} entries ({seen:,}) than the header says ({header.n_entries:,}).",
                where=self._where,
                fix=_FIX,
            )

    def _check_integers(self, values: npt.NDArray[np.float64]) -> None:
        if float(np.abs(values).max()) > _LARGEST:
            raise SourceError(f"There are values above {_LARGEST}.", where=self._where, fix="No count is so large.")
        others = values[values != np.rint(values)]
        if others.size:
            raise SourceError(
                f"The header says that the values are integers, but some are not (such as {others[0]:.6g}).",
                where=self._where,
                fix="Values that are log-transformed or scaled are no counts: give the matrix of raw counts.",
            )

    def _whole_lines(self) -> Iterator[bytes]:
        """Yield the text in pieces that end with a line."""
        parts, size = [self._rest], len(self._rest)
        for block in self._blocks:
            cut = block.rfind(b"\n") + 1
            if not cut:
                parts.append(block)
                size += len(block)
                if size > _BLOCK + _LONGEST_LINE:
                    raise SourceError("There is a line without an end.", where=self._where, fix=_FIX)
                continue
            yield b"".join([*parts, block[:cut]])
            parts, size = [block[cut:]], len(block) - cut
        rest = b"".join(parts)
        if rest.strip():
            yield rest + b"\n"

    def _read_header(self) -> Header:
        words = self._line().decode("ascii", "replace").lower().split()
        if len(words) != 5 or words[0] != "%%matrixmarket":
            raise SourceError("The file is not in MatrixMarket format.", where=self._where, fix=_FIX)
        kind, form, field, symmetry = words[1:]
        # As scipy writes unsigned matrices.
        field = field.removeprefix("unsigned-")
        if (kind, form, symmetry) != ("matrix", "coordinate", "general") or field not in ("integer", "real", "pattern"):
            raise SourceError(
                f"The file holds a {' '.join(words[1:])}, not a table of counts.",
                where=self._where,
                fix="Write it as `matrix coordinate integer general`.",
            )
        line = b"%"
        while line.startswith(b"%") or not line.strip():
            line = self._line()
        try:
            n_rows, n_columns, n_entries = map(int, line.split())
        except ValueError:
            raise SourceError("The line with the matrix's size is damaged.", where=self._where, fix=_FIX) from None
        if min(n_rows, n_columns, n_entries) < 0 or max(n_rows, n_columns) > _LARGEST or n_entries > n_rows * n_columns:
            raise SourceError(
                f"A matrix of {n_rows:,} x {n_columns:,} with {n_entries:,} entries cannot be.",
                where=self._where,
                fix=_FIX,
            )
        return Header(n_rows, n_columns, n_entries, field)

    def _line(self) -> bytes:
        while (end := self._rest.find(b"\n", self._at)) < 0:
            block = next(self._blocks, b"")
            if not block and self._at < len(self._rest):
                end = len(self._rest)
                break
            if not block or len(self._rest) - self._at > _LONGEST_HEADING:
                raise SourceError("The file ends before its entries begin.", where=self._where, fix=_FIX)
            self._rest, self._at = self._rest[self._at :] + block, 0
        self._read += end + 1 - self._at
        if self._read > _LONGEST_HEADING:
            raise SourceError(
                f"The comments before the entries are longer than {_LONGEST_HEADING:,} bytes.",
                where=self._where,
                fix="Write the file again with shorter ones.",
            )
        line, self._at = self._rest[self._at : end], end + 1
        return line


@compiled
def _parse(
    text: npt.NDArray[np.uint8],
    pattern: bool,
    n_rows: int,
    n_columns: int,
    rows: I32,
    columns: I32,
    values: npt.NDArray[np.float64],
) -> tuple[int, int, int]:
    """Read lines ``row column value``; return how many entries and lines were read, and how it went."""
    n = 0
    line = 0
    i = 0
    size = text.size
    wanted = 2 if pattern else 3
    while i < size:
        field = 0
        row = np.int64(0)
        column = np.int64(0)
        value = 1.0
        while True:
            while text[i] == 32 or text[i] == 9 or text[i] == 13:
                i += 1
            if text[i] == 10:
                break
            if field == wanted:
                return n, line, _SYNTAX
            negative = text[i] == 45
            if negative or text[i] == 43:
                i += 1
            mantissa = 0.0
            exponent = 0
            digits = 0
            while 48 <= text[i] <= 57:
                mantissa = mantissa * 10.0 + (text[i] - 48)
                digits += 1
                i += 1
            if field == 2 and text[i] == 46:
                i += 1
                while 48 <= text[i] <= 57:
                    if digits < 18:
                        mantissa = mantissa * 10.0 + (text[i] - 48)
                        exponent -= 1
                    digits += 1
                    i += 1
            if digits == 0:
                # As NaN and infinity begin, in any spelling.
                named = text[i] == 78 or text[i] == 110 or text[i] == 73 or text[i] == 105
                return n, line, _NO_NUMBER if field == 2 and named else _SYNTAX
            if field == 2 and (text[i] == 101 or text[i] == 69):
                i += 1
                down = text[i] == 45
                if down or text[i] == 43:
                    i += 1
                power = 0
                start = i
                while 48 <= text[i] <= 57 and power < 1000:
                    power = power * 10 + (text[i] - 48)
                    i += 1
                if i == start:
                    return n, line, _SYNTAX
                exponent += -power if down else power
            if not (text[i] == 32 or text[i] == 9 or text[i] == 13 or text[i] == 10):
                return n, line, _SYNTAX
            if field < 2:
                if negative or mantissa > 2147483647.0:
                    return n, line, _RANGE
                if field == 0:
                    row = np.int64(mantissa)
                else:
                    column = np.int64(mantissa)
            else:
                value = mantissa / 10.0**-exponent if exponent < 0 else mantissa * 10.0**exponent
                value = -value if negative else value
            field += 1
        i += 1
        if field == 0:
            line += 1
            continue
        if field < wanted:
            return n, line, _SYNTAX
        if row < 1 or row > n_rows or column < 1 or column > n_columns:
            return n, line, _RANGE
        rows[n] = row - 1
        columns[n] = column - 1
        values[n] = value
        n += 1
        line += 1
    return n, line, _FINE
