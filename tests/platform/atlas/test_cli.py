import json
from pathlib import Path
from typing import Any

import anndata as ad
import pytest
from typer.testing import CliRunner

from cellmill.atlas.cli import app
from cellmill.errors import ConfigError, IntegrityError
from tests.platform.atlas.builders import small_atlas


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def test_commands(tmp_path: Path) -> None:
    small_atlas(tmp_path / "atlas")
    atlas = str(tmp_path / "atlas")
    assert [line["message"] for line in run("log", atlas)["log"]] == ["two data sets", "created"]
    shown = run("show", atlas)
    assert shown["cells"] == 100
    assert shown["datasets"]["beta"]["licence"] == "CC0"
    found = run("query", atlas, "--where", "donor = 'd1'", "--limit", "3")
    assert (found["cells"], len(found["rows"])) == (20, 3)
    assert run("query", atlas, "--count", "donor")["counts"] == {"d3": 40, "d1": 20, "d2": 20, "(missing)": 20}
    assert run("verify", atlas)["sound"]
    assert run("read", atlas, str(tmp_path / "out.h5ad"), "-w", "donor = 'd2'")["cells"] == 20
    assert ad.read_h5ad(tmp_path / "out.h5ad").n_obs == 20
    with pytest.raises(ConfigError, match="exists"):
        run("read", atlas, str(tmp_path / "out.h5ad"))


def test_for_people_every_command_prints(tmp_path: Path) -> None:
    small_atlas(tmp_path)
    for arguments in (["log"], ["show"], ["query"], ["query", "--count", "donor"], ["verify"]):
        result = CliRunner().invoke(app, [arguments[0], str(tmp_path), *arguments[1:]])
        assert result.exit_code == 0, result.output


def test_verify_fails_on_damage(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    (tmp_path / atlas.snapshot().shards[0].shard_path / "X/data/c/0").unlink()
    with pytest.raises(IntegrityError, match="damaged"):
        run("verify", str(tmp_path))
