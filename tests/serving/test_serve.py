"""The real line: model folders behind Ray Serve, asked over HTTP, against the same models offline."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from cellmill.errors import CellmillError, ConfigError, GeneMappingError, IntegrityError, ResourceError
from cellmill.models import ModelFolder
from cellmill.serving.client import Client
from cellmill.serving.config import LimitsConfig, ServeConfig, ServedModel
from cellmill.serving.server import running, serve
from cellmill.training import annotate, embed
from tests.training.small import cells, genes, make_model

CLASSES = ("alpha", "beta", "gamma")
NAMES = [gene.symbol for gene in genes()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def config_of(path: Path, **changes: object) -> ServeConfig:
    models = (
        ServedModel(name="types", path=path / "annotation", max_tokens_per_batch=2000),
        ServedModel(name="vectors", path=path / "embedding"),
    )
    return ServeConfig(models=models, port=free_port(), limits=LimitsConfig(max_body_mb=1)).model_copy(update=changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    make_model(path / "annotation", CLASSES, panel=150)
    make_model(path / "embedding")
    return path


@pytest.fixture(scope="module")
def url(folders: Path, ray_cluster: None) -> Iterator[str]:
    with running(config_of(folders)) as address:
        yield address


@pytest.mark.slow
def test_served_answers_equal_offline_ones(url: str, folders: Path) -> None:
    query = cells(60, NAMES)
    client = Client(url)
    offline = annotate(query, folders / "annotation")
    served = client.annotate(query, "types")
    assert served.obs["cellmill_label"].tolist() == offline.obs["cellmill_label"].tolist()
    np.testing.assert_allclose(served.obs["cellmill_confidence"], offline.obs["cellmill_confidence"], atol=1e-6)
    for key in ("model_digest", "n_cells", "genes_used", "genes_of_model", "organism", "counts_from"):
        assert served.uns["cellmill"][key] == offline.uns["cellmill"][key]
    for name, folder in (("vectors", "embedding"), ("types", "annotation")):
        vectors = embed(query, folders / folder).obsm["X_cellmill"]
        np.testing.assert_allclose(client.embed(query, name), vectors, atol=1e-6)
    raw = client.annotate_raw(query, "types")
    assert raw["labels"] == served.obs["cellmill_label"].tolist()
    assert raw["cells"] == list(query.obs_names)


@pytest.mark.slow
def test_concurrent_requests_get_their_own_answers(url: str, folders: Path) -> None:
    queries = [cells(1 + 5 * seed, NAMES, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda query: Client(url).embed(query, "types"), queries))
    for query, answer in zip(queries, answers, strict=True):
        np.testing.assert_allclose(answer, embed(query, folders / "annotation").obsm["X_cellmill"], atol=1e-6)


@pytest.mark.slow
def test_wrong_requests_through_the_proxy(url: str) -> None:
    client = Client(url)
    mouse = cells(3, [gene.symbol for gene in genes(organism="mouse")])
    with pytest.raises(GeneMappingError, match="mouse"):
        client.embed(mouse, "types")
    with pytest.raises(GeneMappingError):
        client.embed(cells(3, [f"unheard-of-{i}" for i in range(50)]), "vectors")
    with pytest.raises(CellmillError, match="does not annotate"):
        client.annotate(cells(3, NAMES), "vectors")
    headers = {"Content-Type": "application/x-hdf5"}
    for body in (b"x" * (2 << 20), iter([b"x" * (1 << 20)] * 2)):
        answer = requests.post(f"{url}/v1/models/types/embed", data=body, headers=headers, timeout=30)
        assert answer.status_code == 413
    answer = requests.post(f"{url}/v1/models/types/embed", data=b"x", headers=headers, timeout=30)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"kind", "what", "where", "fix"}
    for path in ("/v1/models/nobody", "/v1/other"):
        assert requests.get(url + path, timeout=30).status_code == 404


@pytest.mark.slow
def test_a_lost_replica_is_not_noticed(url: str) -> None:
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    (name,) = [actor["name"] for actor in actors if "model:types" in actor["name"]]
    replica = ray.get_actor(name, namespace="serve")
    before = Client(url).embed(cells(5, NAMES), "types")
    ray.kill(replica, no_restart=True)
    np.testing.assert_allclose(Client(url, timeout=60).embed(cells(5, NAMES), "types"), before, atol=1e-6)


@pytest.mark.slow
def test_what_cannot_be_served(url: str, folders: Path, tmp_path: Path) -> None:
    """Each is refused before anything starts, and the endpoint that runs is left alone."""
    tampered: ModelFolder = make_model(tmp_path / "tampered")
    weights = tampered.path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    wrong = config_of(folders, models=(ServedModel(name="x", path=tampered.path),))
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        serve(wrong, blocking=False)
    greedy = config_of(folders, models=(ServedModel(name="x", path=folders / "embedding", cpus=99),))
    with pytest.raises(ResourceError, match="99"):
        serve(greedy, blocking=False)
    graphic = config_of(folders, models=(ServedModel(name="x", path=folders / "embedding", gpus=99),))
    with pytest.raises(ResourceError, match="99 GPUs"):
        serve(graphic, blocking=False)
    with pytest.raises(ConfigError, match="serves an endpoint already"):
        serve(config_of(folders), blocking=False)
    assert requests.get(f"{url}/healthz", timeout=10).json()["models"] == ["types", "vectors"]
