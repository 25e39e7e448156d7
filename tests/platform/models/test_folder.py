"""Model folders: what is written is read back, and every kind of damage is found and named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellmill.errors import CellmillError, ConfigError, IntegrityError, ModelError
from cellmill.genes import Feature, Vocabulary
from cellmill.lineage import Lineage
from cellmill.models import ModelFolder, find_model, find_models, load_model, save_model
from cellmill.models.manifest import CONTENT

SOURCE = Lineage(kind="source", name="a.h5ad", digest="5" * 64, location="/data/a.h5ad", facts={"licence": "MIT"})
RUN = Lineage(kind="run", name="first", digest="r1", parents=(SOURCE,))
GENES = Vocabulary([Feature(f"ENSG{i:011d}", f"G{i}", organism="human") for i in range(5)])


def write(path: Path, **changes: Any) -> ModelFolder:
    values: dict[str, Any] = {
        "name": "small",
        "task": "annotate",
        "config": {"d_model": 4},
        "weights": {"w": torch.arange(6.0).reshape(2, 3), "b": np.arange(3, dtype=np.float32)},
        "vocabulary": GENES,
        "preprocessing": {"n_bins": 51, "panel": list(range(20))},
        "labels": {"cell_type": ["alpha", "beta"]},
        "metrics": {"cellmill": {"accuracy": 0.93, "f1": float("nan")}, "majority": {"accuracy": 0.3}, "cells": 10},
        "lineage": RUN,
    }
    return save_model(path, **(values | changes))


def test_round_trip(tmp_path: Path) -> None:
    saved = write(tmp_path / "m")
    read = load_model(tmp_path / "m")
    assert read == saved
    assert read.digest == hashlib.sha256((tmp_path / "m" / "manifest.json").read_bytes()).hexdigest()
    assert torch.equal(read.weights()["w"], torch.arange(6.0).reshape(2, 3))
    assert read.weights()["b"].tolist() == [0, 1, 2]
    assert read.vocabulary == GENES
    assert read.metrics["cellmill"] == {"accuracy": 0.93, "f1": None}
    assert read.lineage_node().sources() == (SOURCE,)
    assert [path.name for path in tmp_path.iterdir()] == ["m"], "the draft is gone"


def test_equal_content_gives_an_equal_digest(tmp_path: Path) -> None:
    assert write(tmp_path / "a").digest == write(tmp_path / "b").digest
    assert write(tmp_path / "c", config={"d_model": 5}).digest != write(tmp_path / "d").digest


def test_tied_and_strided_weights(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    read = write(tmp_path / "m", weights={"a": base, "b": base, "t": base.T}).weights()
    assert torch.equal(read["a"], read["b"])
    assert torch.equal(read["t"], base.T)


def test_card_tells_scores_labels_and_sources(tmp_path: Path) -> None:
    write(tmp_path / "m", description="Pancreas.", licence="Apache-2.0")
    card = (tmp_path / "m" / "README.md").read_text()
    for text in ("# small", "| cellmill | 0.93 | n/a |", "alpha, beta", "5" * 64, "MIT", "license: Apache-2.0"):
        assert text in card


def test_never_overwrites(tmp_path: Path) -> None:
    digest = write(tmp_path / "m").digest
    with pytest.raises(ConfigError, match="never overwritten"):
        write(tmp_path / "m")
    assert load_model(tmp_path / "m").digest == digest


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"task": "dance"}, ModelError),
        ({"weights": {}}, ModelError),
        ({"config": {"x": object()}}, ModelError),
        ({"preprocessing": {"x": float("inf")}}, ModelError),
    ],
)
def test_bad_content_leaves_nothing(tmp_path: Path, changes: dict[str, Any], kind: type[CellmillError]) -> None:
    with pytest.raises(kind):
        write(tmp_path / "m", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CONTENT)
def test_a_changed_byte_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m")
    path = tmp_path / "m" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=name):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("name", CONTENT)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    with pytest.raises(IntegrityError, match=name):
        load_model(tmp_path / "m")


def test_a_file_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m")
    (tmp_path / "m" / "extra.pkl").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"extra\.pkl"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("edit", "kind", "text"),
    [
        (lambda m: m.update(version=99), ModelError, "version 99"),
        (lambda m: m.update(format="other"), ModelError, "not that of a Cellmill model"),
        (lambda m: m["files"].pop("model.safetensors"), ModelError, "incomplete"),
        (lambda m: m["files"].update({"../x": m["files"]["config.json"]}), IntegrityError, "no file name"),
        (lambda m: m["files"]["config.json"].update(sha256="zz"), IntegrityError, "damaged"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, edit: Any, kind: type[CellmillError], text: str) -> None:
    write(tmp_path / "m")
    path = tmp_path / "m" / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(kind, match=text):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_no_model_folder(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "m")
    with pytest.raises(ModelError, match="not a model folder"):
        load_model(tmp_path / "m")


def test_finding_models(tmp_path: Path) -> None:
    a = write(tmp_path / "runs" / "a" / "model", name="a")
    b = write(tmp_path / "runs" / "b" / "model", name="b")
    write(tmp_path / "copy", name="b")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"format": "cellmill-model", "version": 7}')
    assert [entry.digest for entry in find_models(tmp_path)] == [b.digest, a.digest, b.digest]
    assert find_model(tmp_path, "a").path == tmp_path / "runs" / "a" / "model"
    assert find_model(tmp_path, b.digest[:8]).digest == b.digest
    with pytest.raises(ModelError, match="No model is called 'c'"):
        find_model(tmp_path, "c")
    write(tmp_path / "other-a", name="a", config={"d_model": 5})
    with pytest.raises(ModelError, match="several models"):
        find_model(tmp_path, "a")
