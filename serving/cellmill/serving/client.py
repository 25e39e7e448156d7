"""A client for the endpoint: AnnData in, AnnData or arrays out."""

from __future__ import annotations

from io import BytesIO
from typing import Any
from urllib.parse import quote

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import requests

from cellmill.errors import CellmillError, RequestError
from cellmill.serving.answers import Answer, read_answer
from cellmill.serving.bodies.kinds import ARROW, H5AD, JSON
from cellmill.serving.errors import revive
from cellmill.training.query import SYMBOL_COLUMNS, find_counts


class Client:
    """Talks to one endpoint.

    Parameters
    ----------
    url
        Its address, such as ``http://127.0.0.1:8000``.
    timeout
        Seconds to wait for an answer.
    cells_per_request
        Larger AnnData are sent in several requests.
    """

    def __init__(self, url: str, *, timeout: float = 600.0, cells_per_request: int = 5_000) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.cells_per_request = cells_per_request
        self._session = requests.Session()

    def models(self) -> list[dict[str, Any]]:
        """Return the cards of all models that are served."""
        found: list[dict[str, Any]] = self._get("/v1/models")["models"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        """Return the card of one model, with its lineage."""
        return self._get(f"/v1/models/{quote(name, safe='')}")

    def embed(self, cells: ad.AnnData, model: str) -> npt.NDArray[np.float32]:
        """Return one vector a cell, float32[n, d].

        Raises
        ------
        CellmillError
            What the server answered, of the kind it was there.
        """
        parts = self._in_parts(only_counts(cells)[0], model, "embed")
        return np.concatenate([np.asarray(part.columns["embeddings"], dtype=np.float32) for part in parts])

    def annotate(self, cells: ad.AnnData, model: str) -> ad.AnnData:
        """Return a copy with ``obs["cellmill_label"]``, ``obs["cellmill_confidence"]`` and ``uns["cellmill"]``.

        The columns are those that `cellmill annotate` writes. Raises as `embed` does.
        """
        slim, place = only_counts(cells)
        parts = self._in_parts(slim, model, "annotate")
        head = parts[0].head
        result = cells.copy()
        labels = [label for part in parts for label in part.columns["labels"]]
        result.obs["cellmill_label"] = pd.Categorical(labels)
        result.obs["cellmill_confidence"] = np.concatenate([np.asarray(part.columns["confidence"]) for part in parts])
        result.uns["cellmill"] = {
            **head.model_dump(mode="json", exclude={"genes", "n_cells"}),
            **head.genes.model_dump(mode="json"),
            "n_cells": cells.n_obs,
            "counts_from": place,
        }
        return result

    def annotate_raw(self, cells: ad.AnnData, model: str) -> dict[str, Any]:
        """Return the server's JSON answer to one request with all cells. Raises as `embed` does."""
        answer: dict[str, Any] = self._post(only_counts(cells)[0], model, "annotate", JSON).json()
        return answer

    def _in_parts(self, cells: ad.AnnData, model: str, task: str) -> list[Answer]:
        if cells.n_obs == 0:
            raise RequestError("There are no cells to send.", where="AnnData")
        return [
            read_answer(self._post(cells[at : at + self.cells_per_request], model, task, ARROW).content)
            for at in range(0, cells.n_obs, self.cells_per_request)
        ]

    def _post(self, cells: ad.AnnData, model: str, task: str, accept: str) -> requests.Response:
        return self._send(
            "POST",
            f"/v1/models/{quote(model, safe='')}/{task}",
            data=to_h5ad(cells),
            headers={"Content-Type": H5AD, "Accept": accept},
        )

    def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self._send("GET", path).json()
        return found

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            response = self._session.request(method, self.url + path, timeout=self.timeout, **options)
        except requests.RequestException as error:
            raise RequestError(
                f"The endpoint does not answer: {type(error).__name__}.", where=self.url + path, fix="Is it running?"
            ) from error
        if not response.ok:
            raise _error_of(response)
        return response


def only_counts(cells: ad.AnnData) -> tuple[ad.AnnData, str]:
    """Return the raw counts and the names alone, which is all that is sent, and where the counts were.

    Raises
    ------
    CountsError
        The AnnData holds no raw counts.
    """
    counts, var, place = find_counts(cells)
    slim = ad.AnnData(counts, obs=pd.DataFrame(index=cells.obs_names), var=var.filter(list(SYMBOL_COLUMNS)))
    return slim, place


def to_h5ad(cells: ad.AnnData) -> bytes:
    """Return an AnnData as the bytes of an h5ad file."""
    sink = BytesIO()
    with h5py.File(sink, "w") as file:
        ad.io.write_elem(file, "/", cells)
    return sink.getvalue()


def _error_of(response: requests.Response) -> CellmillError:
    try:
        detail = response.json()["error"]
        return revive(detail)
    except (ValueError, KeyError, TypeError):
        return RequestError(f"The endpoint answered {response.status_code}.", where=response.url)
