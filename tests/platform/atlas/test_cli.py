import json
from pathlib import Path
from typing import Any

import anndata as ad
import pytest
from typer.testing import CliRunner

from cellmill import console
from cellmill.atlas import Atlas
from cellmill.atlas.cli import app
from cellmill.errors import AtlasError, ConfigError, IntegrityError
from tests.platform.atlas.builders import add_shard, random_counts, small_atlas


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
    for arguments in (
        ["log"],
        ["show"],
        ["query"],
        ["query", "--count", "donor"],
        ["verify"],
        ["tag", "v1"],
        ["tag"],
        ["diff", "0"],
        ["leakage", "-w", "dataset = 'alpha'", "-w", "dataset = 'beta'"],
        ["show", "--dataset", "alpha"],
        ["remove", "--where", "donor = 'd1'", "--reason", "consent", "--dry-run"],
        ["remove", "--where", "donor = 'd1'", "--reason", "consent"],
        ["remove", "--lift", "1", "--reason", "a mistake"],
        ["show"],
        ["rollback", "v1", "--dry-run"],
        ["rollback", "v1"],
        ["rollback", "v1"],
        ["gc", "--dry-run"],
        ["gc", "--forget", "--keep", "2"],
        ["log"],
        ["tag", "v1", "--delete"],
    ):
        result = CliRunner().invoke(app, [arguments[0], str(tmp_path), *arguments[1:]])
        assert result.exit_code == 0, result.output


def test_donors_of_one_name_in_different_data_sets_are_never_said_to_be_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = Atlas.create(tmp_path)
    donors = {"one": "D1", "two": "D1", "three": "D3"}
    shards = [
        add_shard(atlas, name, random_counts(10, 30, seed=seed), obs={"donor": [donor] * 10})
        for seed, (name, donor) in enumerate(donors.items())
    ]
    atlas.commit(shards)
    monkeypatch.setattr(console.console, "_width", 200)

    def said(other: str) -> str:
        sides = ["-w", "dataset = 'one'", "-w", f"dataset = '{other}'"]
        return CliRunner().invoke(app, ["leakage", str(tmp_path), *sides]).output

    assert "in different data sets, the same person or not: D1" in said("two")
    assert "No cell and no donor is in both." not in said("two")
    assert "No cell and no donor is in both." in said("three")


def test_history_by_the_command_line(tmp_path: Path) -> None:
    small_atlas(tmp_path)
    atlas = str(tmp_path)
    assert run("tag", atlas, "v1", "-m", "as published")["tag"]["version"] == 1
    removed = run("remove", atlas, "--where", "donor = 'd3'", "--reason", "consent")
    assert (removed["cells"], removed["dropped"], removed["snapshot"]) == ({"beta": 40}, 1, 2)
    change = run("diff", atlas, "v1")["datasets"]["beta"]
    assert (change["kind"], change["cells_removed"], change["shards_removed"]) == ("removed", 40, 1)
    assert run("show", atlas, "--version", "v1")["cells"] == 100
    shown = run("show", atlas)
    assert shown["withdrawals"][0]["where"] == "donor = 'd3'"
    with pytest.raises(AtlasError, match="withdrawn since"):
        run("rollback", atlas, "v1")
    run("remove", atlas, "--lift", "1", "--reason", "a mistake")
    assert run("rollback", atlas, "v1")["snapshot"] == 3
    assert run("gc", atlas, "--forget")["tagged"] == [1]
    assert [line["tags"] for line in run("log", atlas, "--limit", "3")["log"]] == [[], [], ["v1"]]
    assert run("tag", atlas, "v1", "--delete")["deleted"]
    assert run("tag", atlas)["tags"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["remove"],
        ["remove", "--where", "donor = 'd1'"],
        ["remove", "--where", "donor = 'd1'", "--lift", "1"],
        ["gc", "--keep", "3"],
        ["tag", "--delete"],
        ["leakage"],
        ["leakage", "-w", "donor = 'd1'"],
    ],
)
def test_half_a_command_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    small_atlas(tmp_path)
    with pytest.raises(ConfigError):
        run(arguments[0], str(tmp_path), *arguments[1:])


def test_verify_fails_on_damage(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    (tmp_path / atlas.snapshot().shards[0].shard_path / "X/data/c/0").unlink()
    with pytest.raises(IntegrityError, match="damaged"):
        run("verify", str(tmp_path))


def test_a_data_set_shows_the_licences_of_all_its_sources(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    atlas.commit(
        [
            add_shard(atlas, "both", random_counts(10, 30, seed=seed), licence=licence)
            for seed, licence in enumerate(["MIT", "CC-BY-NC-4.0"])
        ]
    )
    for row in (run("show", str(tmp_path))["datasets"]["both"], run("show", str(tmp_path), "--dataset", "both")):
        assert row["licence"] == "CC-BY-NC-4.0, MIT"
        assert sorted(source["licence"] for source in row["sources"]) == ["CC-BY-NC-4.0", "MIT"]
