"""Token ids: append-only, never given twice."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from cellmill.errors import ConflictError, GeneMappingError, IntegrityError
from cellmill.genes import N_SPECIALS, SPECIALS, Feature, Vocabulary, VocabularyStore
from cellmill.genes.vocabulary import write_features
from cellmill.storage import Storage
from tests.children import forkserver


def gene(name: str) -> Feature:
    return Feature(name, name.lower(), "rna", "human", "test")


def peak(number: int) -> Feature:
    return Feature(f"hg38:chr1:{number}-{number + 500}", f"chr1:{number}-{number + 500}", "atac", "human", "hg38")


def test_specials_come_first() -> None:
    assert SPECIALS[:2] == ("<pad>", "<cls>")
    assert N_SPECIALS == 8
    assert Vocabulary().size == 8
    vocabulary = Vocabulary([gene("A")])
    assert vocabulary.lookup(["A", "B", "<pad>"]).tolist() == [8, -1, -1]
    assert vocabulary.ids == ["A"]
    assert "A" in vocabulary
    assert "B" not in vocabulary


_BATCHES = st.lists(st.lists(st.integers(0, 30).map(lambda i: gene(f"G{i}")), max_size=10), max_size=8)


@settings(max_examples=100, deadline=None)
@given(batches=_BATCHES)
def test_a_token_id_never_changes(batches: list[list[Feature]]) -> None:
    vocabulary, first_seen = Vocabulary(), dict[str, int]()
    for batch in batches:
        longer = vocabulary.extend(batch)
        for feature in batch:
            first_seen.setdefault(feature.id, N_SPECIALS + len(first_seen))
        assert longer.prefix(vocabulary.size) == vocabulary
        assert longer.prefix(vocabulary.size).digest() == vocabulary.digest()
        vocabulary = longer
    assert vocabulary.lookup(list(first_seen)).tolist() == list(first_seen.values())
    assert vocabulary.size == N_SPECIALS + len(first_seen)
    again = Vocabulary.from_parquet(vocabulary.to_parquet())
    assert again == vocabulary
    assert again.digest() == vocabulary.digest()


def test_digest_tells_order_and_fields_apart() -> None:
    digests = {
        Vocabulary([gene("A"), gene("B")]).digest(),
        Vocabulary([gene("B"), gene("A")]).digest(),
        Vocabulary([gene("A")]).digest(),
        Vocabulary([Feature("A", "a", "protein", "human", "test"), gene("B")]).digest(),
    }
    assert len(digests) == 4


def test_one_id_cannot_mean_two_features() -> None:
    vocabulary = Vocabulary([gene("A")])
    assert vocabulary.extend([Feature("A", "renamed", "rna", "human", "later")]) is vocabulary
    with pytest.raises(GeneMappingError, match="two features"):
        vocabulary.extend([Feature("A", "a", "protein", "human")])
    with pytest.raises(GeneMappingError, match="two features"):
        vocabulary.extend([gene("B"), Feature("B", "b", "rna", "mouse")])
    with pytest.raises(GeneMappingError, match="twice"):
        Vocabulary([gene("A"), gene("A")])
    with pytest.raises(GeneMappingError):
        vocabulary.extend([gene("")])
    with pytest.raises(GeneMappingError, match="never had"):
        vocabulary.prefix(10)


def test_bytes_that_are_no_vocabulary_are_refused() -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        Vocabulary.from_parquet(b"not parquet", "model/vocabulary.parquet")
    with pytest.raises(IntegrityError, match="starts at"):
        Vocabulary.from_parquet(write_features([gene("A")], 9))


def test_a_vocabulary_of_330_000_features_is_quick(tmp_path: Path) -> None:
    features = [Feature(f"GRCh38:chr1:{i}-{i + 500}", str(i), "atac", "human", "peaks") for i in range(330_000)]
    vocabulary = VocabularyStore(Storage(tmp_path)).allocate(features)
    tokens = vocabulary.lookup(vocabulary.ids)
    assert np.array_equal(tokens, np.arange(N_SPECIALS, vocabulary.size))


def test_allocation_is_idempotent_and_survives(tmp_path: Path) -> None:
    store = VocabularyStore(Storage(tmp_path))
    assert store.load().size == N_SPECIALS
    first = store.allocate([gene("A"), gene("B")])
    assert store.allocate([gene("B")]) == first
    second = VocabularyStore(Storage(tmp_path)).allocate([gene("C"), gene("A")])
    assert second.ids == ["A", "B", "C"]
    assert store.load() == second
    assert sorted(path.name for path in (tmp_path / "vocabulary").iterdir()) == ["000.parquet", "001.parquet"]


class OneAtATime:
    """A server's application that answers one request at a time: moto looks whether a key is there before it writes."""

    def __init__(self, app: Any) -> None:
        self.app, self.lock = app, threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        with self.lock:
            return list(self.app(environ, start_response))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, OneAtATime(DomainDispatcherApplication(create_backend_app)), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for key, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(key, value)
    requests.put(f"{url}/vocabularies", timeout=10).raise_for_status()
    yield "s3://vocabularies/atlas"
    server.shutdown()
    thread.join()


def _allocate(url: str, worker: int, barrier: Any) -> dict[str, int]:
    store = VocabularyStore(Storage.open(url))
    barrier.wait()
    seen: dict[str, int] = {}
    for step in range(6):
        mine = [gene(f"G{worker}_{step}_{i}") for i in range(3)]
        shared = [gene(f"shared{step}_{i}") for i in range(2)]
        neighbours = [peak(step * 8 + worker + i) for i in range(2)]
        vocabulary = store.allocate([*mine, *shared, *neighbours])
        ids = [feature.id for feature in (*mine, *shared, *neighbours)]
        tokens = vocabulary.lookup(ids).tolist()
        for feature_id, token in zip(ids, tokens, strict=True):
            assert seen.setdefault(feature_id, token) == token
    return seen


def _worker(url: str, worker: int, barrier: Any, environment: dict[str, str], results: Any) -> None:
    os.environ.update(environment)
    results.put(_allocate(url, worker, barrier))


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_eight_processes_never_get_one_id_twice(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each adds features of its own, features that all add, and peaks that two of them add."""
    url = str(tmp_path) if place == "disk" else request.getfixturevalue("bucket")
    context = forkserver()
    barrier, results = context.Barrier(8), context.Queue()
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    workers = [context.Process(target=_worker, args=(url, i, barrier, environment, results)) for i in range(8)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    final = VocabularyStore(Storage.open(url)).load()
    assert final.size == N_SPECIALS + 8 * 6 * 3 + 6 * 2 + 6 * 8 + 1
    for answer in answers:
        assert final.lookup(list(answer)).tolist() == list(answer.values())


class Beaten:
    """A storage in which another writer is always first."""

    url = "memory"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        return self.files[key]

    def list(self, prefix: str = "") -> list[str]:
        return list(self.files)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        start = N_SPECIALS + len(self.files)
        self.files[key] = write_features([gene(f"other{start}")], start)
        return False


def test_a_writer_that_always_loses_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellmill.genes.vocabulary_store.time.sleep", lambda seconds: None)
    with pytest.raises(ConflictError, match="lost to other writers"):
        VocabularyStore(Beaten()).allocate([gene("A")])


def test_damaged_segments_are_named(tmp_path: Path) -> None:
    store = VocabularyStore(Storage(tmp_path))
    for name in "ABC":
        store.allocate([gene(name)])
    folder = tmp_path / "vocabulary"
    middle = (folder / "001.parquet").read_bytes()

    def fresh() -> VocabularyStore:
        return VocabularyStore(Storage(tmp_path))

    (folder / "001.parquet").unlink()
    with pytest.raises(IntegrityError, match="missing") as caught:
        fresh().load()
    assert caught.value.where.endswith("vocabulary/001.parquet")
    (folder / "001.parquet").write_bytes(middle[:-20])
    with pytest.raises(IntegrityError, match="cannot be read"):
        fresh().load()
    (folder / "001.parquet").write_bytes(write_features([gene("B")], 10))
    with pytest.raises(IntegrityError, match="starts at token id 10"):
        fresh().load()
    (folder / "001.parquet").write_bytes(write_features([gene("A")], 9))
    with pytest.raises(IntegrityError, match="has one"):
        fresh().load()
    (folder / "001.parquet").write_bytes(middle)
    assert fresh().load().ids == ["A", "B", "C"]
