"""Answers: one column of results beside the names of the cells, as JSON or as an Arrow IPC stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.serving.bodies.kinds import ARROW, JSON
from cellmill.serving.errors import MediaTypeError
from cellmill.serving.schemas import AnswerHead

HEAD_KEY = b"cellmill"
"""Key of the Arrow schema's metadata under which the head stands as JSON."""


@dataclass(frozen=True)
class Answer:
    """What a model says about the cells of a request.

    Parameters
    ----------
    head
        Model, digest, task, numbers, gene match.
    cells
        Names of the cells.
    columns
        Results in the order of the cells: ``embeddings`` float32[n, d]; or ``labels`` and ``confidence`` float32[n].
    """

    head: AnswerHead
    cells: tuple[str, ...]
    columns: dict[str, npt.NDArray[Any] | list[str]]

    def to_json(self) -> bytes:
        """Return the answer as JSON (`EmbedAnswer`, `AnnotateAnswer`); float32 values survive the way exactly."""
        document = self.head.model_dump(mode="json") | {"cells": self.cells}
        for name, values in self.columns.items():
            document[name] = values if isinstance(values, list) else values.tolist()
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()

    def to_arrow(self) -> bytes:
        """Return the answer as an Arrow IPC stream: ``cell`` and the results, the head in the schema's metadata."""
        arrays: dict[str, Any] = {"cell": pa.array(self.cells, pa.string())}
        for name, values in self.columns.items():
            arrays[name] = _array(values)
        table = pa.table(arrays).replace_schema_metadata({HEAD_KEY: self.head.model_dump_json().encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return cast(bytes, sink.getvalue().to_pybytes())


def read_answer(body: bytes) -> Answer:
    """Read what `Answer.to_arrow` returned."""
    with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
        table = reader.read_all()
    columns: dict[str, npt.NDArray[Any] | list[str]] = {}
    for name in table.column_names[1:]:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            columns[name] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
        elif pa.types.is_string(column.type):
            columns[name] = column.to_pylist()
        else:
            columns[name] = column.to_numpy()
    head = AnswerHead.model_validate_json(table.schema.metadata[HEAD_KEY])
    return Answer(head=head, cells=tuple(table.column("cell").to_pylist()), columns=columns)


def answer_type(accept: str) -> str:
    """Return the content type of the answer for an ``Accept`` header: JSON, unless Arrow is preferred.

    Raises
    ------
    MediaTypeError
        Neither is accepted.
    """
    wanted: list[tuple[float, str]] = []
    for item in (accept or "*/*").split(","):
        essence, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            wanted.append((float(quality), essence))
        except ValueError:
            wanted.append((0.0, essence))
    for weight, essence in sorted(wanted, key=lambda pair: -pair[0]):
        if weight <= 0:
            continue
        if essence == ARROW:
            return ARROW
        if essence in (JSON, "application/*", "*/*"):
            return JSON
    raise MediaTypeError(
        "No accepted kind of answer is written here.", where="Accept", fix=f"Accept {JSON} or {ARROW}."
    )


def _array(values: npt.NDArray[Any] | list[str]) -> Any:
    if isinstance(values, list):
        return pa.array(values, pa.string())
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
    return pa.array(values)
