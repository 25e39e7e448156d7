"""HTTP: routes, kinds of bodies and answers, and every refusal, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from cellmill.errors import CountsError, GeneMappingError
from cellmill.genes import Feature, Vocabulary
from cellmill.lineage import Lineage
from cellmill.models import ModelFolder, save_model
from cellmill.serving.answers import read_answer
from cellmill.serving.app import create_app
from cellmill.serving.bodies.kinds import ARROW, H5AD, JSON
from cellmill.serving.bodies.parser import BodyParser
from cellmill.serving.client import Client
from cellmill.serving.config import LimitsConfig, ServedModel
from cellmill.serving.endpoint import Endpoint
from cellmill.serving.errors import NotServedError, OverloadedError
from cellmill.serving.model_engine import ModelEngine
from tests.serving.live import listening
from tests.serving.samples import GENES, SmallPredictor, adata, h5ad

LIMITS = LimitsConfig(max_body_mb=2, max_json_mb=1, max_cells=2000, parser_memory_mb=512)
SOURCE = Lineage(kind="source", name="a.h5ad", digest="5" * 64, facts={"licence": "MIT"})


def folder(path: Path, task: Any) -> ModelFolder:
    return save_model(
        path,
        name="small",
        task=task,
        config={},
        weights={"w": np.zeros(1)},
        vocabulary=Vocabulary([Feature(f"E{i}", name) for i, name in enumerate(GENES)]),
        preprocessing={"tokens": {"max_genes": 4}},
        labels={"classes": GENES} if task == "annotate" else {},
        metrics={},
        lineage=SOURCE,
    )


class Failing:
    """A model that fails as it is told to."""

    def __init__(self, card: Any, error: Exception) -> None:
        self.card = card
        self.error = error

    async def answer(self, task: Any, cells: Any) -> Any:
        raise self.error


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> SmallPredictor:
    return SmallPredictor(folder(tmp_path_factory.mktemp("models") / "a", "annotate"))


@pytest.fixture(scope="module")
def url(predictor: SmallPredictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    served = ServedModel(name="a", path=Path("a"), max_tokens_per_batch=50, linger_ms=5)
    engine = ModelEngine(predictor, served, min_gene_match=0.3)
    embedder = SmallPredictor(folder(tmp_path_factory.mktemp("models") / "e", "embed"))
    endpoints: dict[str, Endpoint] = {
        "a": engine,
        "e": ModelEngine(embedder, served.model_copy(update={"name": "e"}), min_gene_match=0.3),
        "busy": Failing(engine.card, OverloadedError("Too much waits.")),
        "broken": Failing(engine.card, ZeroDivisionError("secret detail")),
    }
    parser = BodyParser(LIMITS)
    with listening(create_app(endpoints, LIMITS, parser)) as address:
        yield address
    parser.close()


def post(url: str, path: str, body: Any, kind: str = JSON, **headers: str) -> requests.Response:
    return requests.post(url + path, data=body, headers={"Content-Type": kind, **headers}, timeout=60)


def document(n: int = 3, genes: list[str] = GENES) -> bytes:
    return json.dumps({"genes": genes, "cells": [{"counts": [i + 1] * len(genes)} for i in range(n)]}).encode()


def error_of(response: requests.Response) -> dict[str, str]:
    found: dict[str, str] = response.json()["error"]
    assert set(found) == {"kind", "what", "where", "fix"}
    assert "Traceback" not in response.text
    return found


def test_what_is_served(url: str) -> None:
    assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok", "models": ["a", "e", "busy", "broken"]}
    client = Client(url)
    cards = {card["name"]: card for card in client.models()}
    assert cards["a"]["tasks"] == ["embed", "annotate"]
    assert cards["e"]["tasks"] == ["embed"]
    assert cards["a"]["lineage"] is None
    assert Lineage.model_validate(client.model("a")["lineage"]).sources() == (SOURCE,)


def test_answers_carry_digest_and_gene_match(url: str, predictor: SmallPredictor) -> None:
    answer = post(url, "/v1/models/a/annotate", document()).json()
    assert answer["model_digest"] == predictor.folder.digest
    assert (answer["model"], answer["task"], answer["n_cells"]) == ("a", "annotate", 3)
    assert answer["genes"] == {
        "organism": "human",
        "genes_in": 6,
        "genes_used": 6,
        "genes_of_model": 6,
        "umis_used": 1.0,
    }
    assert answer["cells"] == ["0", "1", "2"]
    assert answer["labels"] == ["INS"] * 3
    assert answer["confidence"] == [0.5] * 3


def test_json_and_arrow_answers_agree_exactly(url: str) -> None:
    body = h5ad(adata(40))
    plain = post(url, "/v1/models/a/embed", body, H5AD)
    arrow = post(url, "/v1/models/a/embed", body, "application/octet-stream", Accept=f"{ARROW}, */*;q=0.1")
    assert plain.headers["content-type"] == JSON
    assert arrow.headers["content-type"] == ARROW
    read = read_answer(arrow.content)
    assert read.head.model_dump(mode="json") == {k: plain.json()[k] for k in read.head.model_dump()}
    assert np.array_equal(np.float32(plain.json()["embeddings"]), read.columns["embeddings"])
    assert list(read.cells) == plain.json()["cells"] == list(adata(40).obs_names)
    matrix = np.asarray(adata(40).X.todense())
    assert np.array_equal(read.columns["embeddings"], np.stack([matrix.sum(1), (matrix > 0).sum(1)], axis=1))


def test_concurrent_requests_keep_to_themselves(url: str, predictor: SmallPredictor) -> None:
    predictor.calls.clear()
    cells = [adata(1 + seed % 9, seed) for seed in range(24)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda each: Client(url).embed(each, "a"), cells))
    for each, answer in zip(cells, answers, strict=True):
        matrix = np.asarray(each.X.todense())
        assert np.array_equal(answer, np.stack([matrix.sum(1), (matrix > 0).sum(1)], axis=1))
    assert max(predictor.calls) <= 25, "at least two tokens a cell, fifty a batch"


def test_the_client_annotates_in_parts(url: str) -> None:
    cells = adata(25)
    whole = Client(url).annotate(cells, "a")
    parts = Client(url, cells_per_request=10).annotate(cells, "a")
    assert parts.obs["cellmill_label"].tolist() == whole.obs["cellmill_label"].tolist()
    assert parts.uns["cellmill"]["n_cells"] == 25
    assert parts.uns["cellmill"]["counts_from"] == "X"
    logged = cells.copy()
    logged.X = np.log1p(logged.X)
    with pytest.raises(CountsError):
        Client(url).annotate(logged, "a")
    with pytest.raises(NotServedError, match="No model is called 'nobody'"):
        Client(url).embed(cells, "nobody")
    mouse = cells.copy()
    mouse.var_names = [f"Xyz{i}" for i in range(cells.n_vars)]
    with pytest.raises(GeneMappingError, match="None of the genes"):
        Client(url).embed(mouse, "a")


@pytest.mark.parametrize(
    ("path", "body", "kind", "headers", "status", "text"),
    [
        ("/v1/models/nobody/embed", document(), JSON, {}, 404, "No model is called"),
        ("/v1/models/a/dance", document(), JSON, {}, 404, "no task"),
        ("/v1/models/e/annotate", document(), JSON, {}, 404, "does not annotate"),
        ("/v2/other", b"", JSON, {}, 404, "nothing here"),
        ("/v1/models/a/embed", b"a,b", "text/csv", {}, 415, "text/csv"),
        ("/v1/models/a/embed", document(), JSON, {"Accept": "text/html"}, 415, "answer"),
        ("/v1/models/a/embed", document(), JSON, {"Content-Encoding": "gzip"}, 415, "gzip"),
        ("/v1/models/a/embed", b"x" * (3 << 20), H5AD, {}, 413, "larger than 2 MB"),
        ("/v1/models/a/embed", b"x" * (3 << 19), JSON, {}, 413, "larger than 1 MB"),
        ("/v1/models/a/embed", b"{", JSON, {}, 422, "Invalid JSON"),
        ("/v1/models/a/embed", b"", JSON, {}, 422, "JSON"),
        ("/v1/models/a/embed", b"x", H5AD, {}, 400, "h5ad"),
        ("/v1/models/a/embed", document(2001), JSON, {}, 413, "2,001 cells"),
        ("/v1/models/a/embed", document(genes=["Xyz"]), JSON, {}, 422, "None of the genes"),
        ("/v1/models/a/embed", document(genes=["INS"]), JSON, {}, 422, "1 of the model's 6 genes"),
        ("/v1/models/busy/embed", document(), JSON, {}, 429, "waits"),
        ("/v1/models/broken/embed", document(), JSON, {}, 500, "failed"),
    ],
)
def test_refusals(url: str, path: str, body: bytes, kind: str, headers: dict[str, str], status: int, text: str) -> None:
    response = post(url, path, body, kind, **headers)
    assert response.status_code == status
    error = error_of(response)
    assert text in error["what"]
    assert "secret" not in response.text
    if status == 429:
        assert int(response.headers["retry-after"]) > 0


def test_a_wrong_method_is_an_error_of_ours(url: str) -> None:
    response = requests.get(f"{url}/v1/models/a/embed", timeout=10)
    assert response.status_code == 405
    error_of(response)


def test_a_chunked_body_is_cut_at_the_limit(url: str) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 1 << 16
            yield b"x" * (1 << 16)

    try:
        response = post(url, "/v1/models/a/embed", pieces(), H5AD)
    except requests.ConnectionError:
        pass  # the connection was closed while we were still sending
    else:
        assert response.status_code == 413
        assert error_of(response)["kind"] == "too_large"
    assert sent < 100 << 20
    small = post(url, "/v1/models/a/embed", iter([document()[:10], document()[10:]]), JSON)
    assert small.status_code == 200


def test_the_documentation_resolves(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for name in text.split('"#/components/schemas/')[1:]:
        assert name.split('"')[0] in schemas
    body = document["paths"]["/v1/models/{name}/annotate"]["post"]["requestBody"]["content"]
    assert set(body) == {H5AD, "application/octet-stream", JSON, ARROW}
    assert {"CellsBody", "AnnotateAnswer", "EmbedAnswer", "ErrorAnswer"} <= set(schemas)
