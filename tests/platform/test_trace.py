"""The walk from whatever a person points at back to the source files."""

import json
from pathlib import Path

import h5py
import pytest

from cellmill.errors import SourceError
from cellmill.trace import trace
from tests.platform.models.test_folder import SOURCE, write


def test_every_way_to_name_a_model_leads_to_its_sources(tmp_path: Path) -> None:
    model = write(tmp_path / "models" / "m")
    answer, cells = tmp_path / "answer.json", tmp_path / "cells.h5ad"
    answer.write_text(json.dumps({"model_digest": model.digest, "task": "annotate", "n_cells": 3}))
    with h5py.File(cells, "w") as file:
        file["uns/cellmill/model_digest"] = model.digest
        file["uns/cellmill/n_cells"] = 3
    for thing in (str(model.path), model.digest, model.digest[:8], str(answer), str(cells)):
        walk = trace(thing, tmp_path)
        assert walk.sources() == (SOURCE,)
        assert any(node.kind == "model" and node.digest == model.digest for node in walk.walk())
    assert trace(str(answer), tmp_path).facts["cells"] == 3


def test_a_name_of_several_models_is_not_guessed(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", config={"d_model": 5})
    with pytest.raises(SourceError) as caught:
        trace("small", tmp_path)
    assert "several models" in caught.value.fix


@pytest.mark.parametrize("text", ["{}", "[1]", "not json"])
def test_a_file_without_a_stamp_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answer.json"
    path.write_text(text)
    with pytest.raises(SourceError):
        trace(str(path), tmp_path)
    with pytest.raises(SourceError, match="Nothing is known"):
        trace("0123456789", tmp_path)
