"""The walk forward: which models, runs and answers saw some cells."""

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
from typer.testing import CliRunner

from cellmill.atlas import Atlas
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.withdrawals import lift
from cellmill.atlas.withdrawing import remove
from cellmill.cli import load
from cellmill.errors import AtlasError, ConfigError, SourceError
from cellmill.forward import forward
from cellmill.ingestion import ingest
from cellmill.lineage import Lineage
from tests.ingestion.cells import config, make_adata
from tests.ingestion.cells import write as write_cells
from tests.platform.atlas.builders import small_atlas
from tests.platform.models.test_folder import write


def train(root: Path, name: str, atlas: Atlas, where: str | None, base: Any = None) -> Any:
    """Write the run and the model folder of a training on a selection, as training does."""
    snapshot = atlas.snapshot()
    parents = [snapshot.lineage(snapshot.select(where))]
    if base is not None:
        parents.append(base.lineage_node())
    run = Lineage(kind="run", name=name, digest=name, location=str(root / name), parents=tuple(parents))
    model = write(root / name / "model", lineage=run, name=name)
    run.save(root / name / "lineage.json")
    return model


def seen(thing: str, root: Path, where: str | None = None) -> dict[str, str]:
    return {f"{one.kind} {one.name}": one.saw for one in forward(thing, root, where).found}


def test_by_data_set_source_and_snapshot(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path / "atlas")
    root = tmp_path / "runs"
    train(root, "all", atlas, None)
    only = train(root, "alpha", atlas, "dataset = 'alpha'")
    train(root, "tuned", atlas, "dataset = 'alpha' and age < 10", base=only)
    (root / "answer.json").write_text(json.dumps({"model_digest": only.digest}))
    (root / "lost.json").write_text(json.dumps({"model_digest": "0" * 64}))
    with h5py.File(root / "cells.h5ad", "w") as file:
        file["uns/cellmill/model_digest"] = only.digest
    beta = next(entry for entry in atlas.snapshot().shards if entry.dataset == "beta")
    told = {f"{kind} {name}": "no" for kind in ("run", "model") for name in ("alpha", "tuned")}
    told |= {"run all": "yes", "model all": "yes", "prediction lost.json": "unknown"}
    told |= {"prediction answer.json": "no", "prediction cells.h5ad": "no"}
    for thing in ("beta", beta.source_digest, beta.source_digest[:10], beta.source_url):
        assert seen(thing, root) == told, thing
    everyone = {name: "unknown" if "lost" in name else "yes" for name in told}
    assert seen("alpha", root) == seen(f"{atlas.url}@1", root) == seen(atlas.url, root) == everyone
    (tmp_path / "alpha.h5ad").write_bytes(b"another file")
    assert set(seen(str(tmp_path / "alpha.h5ad"), root).values()) == {"no", "unknown"}
    counts = {one.name: one.cells for one in forward("alpha", root).found if one.kind == "model"}
    assert counts == {"all": 60, "alpha": 60, "tuned": 60}


def test_by_predicate_the_selection_decides(tmp_path: Path) -> None:
    """A model that was trained without a donor did not see it, though the data set was there."""
    atlas = small_atlas(tmp_path / "atlas")
    root = tmp_path / "runs"
    d1 = "donor = 'd1'"
    train(root, "all", atlas, None)
    spared = train(root, "spared", atlas, "donor != 'd1'")
    train(root, "heir", atlas, "donor = 'd3'", base=train(root, "some", atlas, "age < 4"))
    train(root, "clean", atlas, "donor = 'd3'", base=spared)
    imported = Lineage(kind="run", name="imported", digest="i")
    write(root / "imported/model", lineage=imported, name="imported")
    wanted = {"all": "yes", "spared": "no", "some": "yes", "heir": "yes", "clean": "no", "imported": "unknown"}

    def models(thing: str, where: str | None = None) -> dict[str, str]:
        return {one.name: one.saw for one in forward(thing, root, where).found if one.kind == "model"}

    assert models(atlas.url, d1) == wanted
    cells = {one.name: one.cells for one in forward(atlas.url, root, d1).found if one.kind == "model"}
    assert cells == {"all": 20, "spared": None, "some": 2, "heir": 2, "clean": None, "imported": None}

    remove(atlas, d1, "consent")
    train(root, "later", atlas, None)
    wanted["later"] = "no"
    assert models(f"{atlas.url}#1") == wanted

    # What was forgotten is remembered by how many cells of each source there were, and which were selected.
    collect(atlas, Forget(), grace_s=0)
    told = {one.name: one for one in forward(f"{atlas.url}#1", root).found if one.kind == "model"}
    wanted |= {"some": "unknown", "heir": "unknown"}
    assert {name: one.saw for name, one in told.items()} == wanted
    assert (told["all"].cells, told["spared"].cells, told["some"].cells) == (20, None, None)
    assert "it was made from 20 of 20" in told["all"].why
    assert "of 20 were selected" in told["some"].why
    # Forgotten or not, what was made after the removal saw none, be the withdrawal lifted or not.
    atlas.commit(remove=[atlas.snapshot().shards[0].key])
    collect(atlas, Forget(), grace_s=0)
    assert models(f"{atlas.url}#1") == wanted
    lift(atlas.storage, 1, "again")
    assert models(f"{atlas.url}#1") == wanted


@pytest.mark.parametrize("readable", [True, False])
def test_a_withdrawal_is_asked_for_the_cells_that_it_knows_by_other_snapshots(tmp_path: Path, readable: bool) -> None:
    """The snapshot of the training has the same cells under a name that the predicate does not have."""
    root, cells = tmp_path / "runs", make_adata(30, seed=1)
    cells.obs["batch"] = "b"
    path = write_cells(cells, tmp_path / "a.h5ad")
    for column in ("batch", "donor"):
        ingest(config(tmp_path / "atlas", path, source={"obs": {column: "donor"}}))
        atlas = Atlas.open(tmp_path / "atlas")
        train(root, f"by {column}", atlas, None)
        train(root, f"most by {column}", atlas, "n_genes > 0 and source_row > 3")
        train(root, f"few by {column}", atlas, "source_row < 3")
    remove(atlas, "donor = 'd1'", "consent")
    train(root, "after", atlas, None)
    if not readable:
        collect(atlas, Forget(), grace_s=0)
    found = {one.name: (one.saw, one.cells) for one in forward(f"{atlas.url}#1", root).found if one.kind == "model"}
    most, few = (("yes", 9), ("yes", 1)) if readable else (("yes", 6), ("unknown", None))
    assert found == {
        "after": ("no", None),
        **{f"{name} {column}": one for column in ("batch", "donor") for name, one in
           (("by", ("yes", 10)), ("most by", most), ("few by", few))},
    }  # fmt: skip


def test_a_snapshot_that_was_forgotten_before_the_withdrawal(tmp_path: Path) -> None:
    """What its record does not say the sizes of the files may tell."""
    root = tmp_path / "runs"
    path = write_cells(make_adata(30, seed=1), tmp_path / "a.h5ad")
    settings = config(tmp_path / "atlas", path, source={"obs": {"donor": "donor"}})
    ingest(settings)
    atlas = Atlas.open(tmp_path / "atlas")
    train(root, "all", atlas, None)
    train(root, "most", atlas, "source_row < 25")
    train(root, "few", atlas, "source_row < 15")
    atlas.fence("another snapshot")
    collect(atlas, Forget(), grace_s=0)
    remove(atlas, "donor = 'd1'", "consent")
    collect(atlas, Forget(), grace_s=0)
    found = {one.name: (one.saw, one.cells) for one in forward(f"{atlas.url}#1", root).found if one.kind == "model"}
    assert found == {"all": ("yes", 10), "most": ("yes", 5), "few": ("unknown", None)}


def test_a_damaged_snapshot_is_forgotten_all_the_same_and_cannot_tell(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path / "atlas")
    train(tmp_path / "runs", "all", atlas, None)
    damaged = [entry.cells_path for entry in atlas.snapshot().shards if entry.dataset == "alpha"]
    remove(atlas, "donor = 'd1'", "consent")
    for path in damaged:
        (tmp_path / "atlas" / path).write_bytes(b"not what it was")
    assert collect(atlas, Forget(), grace_s=0).untold == (1,)
    assert set(seen(f"{atlas.url}#1", tmp_path / "runs").values()) == {"unknown"}


def test_a_column_that_was_not_kept_cannot_tell(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path / "atlas")
    train(tmp_path / "runs", "all", atlas, None)
    (model, run) = forward(atlas.url, tmp_path / "runs", "sample = 'x'").found
    assert (model.saw, run.saw) == ("unknown", "unknown")
    assert "no column 'sample'" in model.why


def test_another_atlas_is_asked_where_it_is(tmp_path: Path) -> None:
    atlas, other = small_atlas(tmp_path / "atlas"), small_atlas(tmp_path / "other")
    train(tmp_path / "runs", "all", other, None)
    assert set(seen(atlas.url, tmp_path / "runs", "donor = 'd1'").values()) == {"yes"}
    (tmp_path / "other").rename(tmp_path / "moved")
    assert set(seen(atlas.url, tmp_path / "runs", "donor = 'd1'").values()) == {"unknown"}


@pytest.mark.parametrize(
    "predicate", ["donor == 'd1'", "donor='d1'", "age<4 and donor != 'd2'", "donor is null", "has(donor, 'd1')"]
)
def test_a_predicate_without_its_atlas_is_refused(tmp_path: Path, predicate: str) -> None:
    train(tmp_path / "runs", "all", small_atlas(tmp_path / "atlas"), None)
    with pytest.raises(ConfigError, match="none is given") as caught:
        forward(predicate, tmp_path / "runs")
    assert "ATLAS -w" in caught.value.fix


def test_a_name_that_nothing_knows_has_no_answer(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path / "atlas")
    root = tmp_path / "runs"
    train(root, "only", atlas, "dataset = 'alpha'")
    beta = next(entry for entry in atlas.snapshot().shards if entry.dataset == "beta")
    for unknown in ("betta", "donor == ", "d1", "0123456789"):
        with pytest.raises(SourceError, match="knows a data set"):
            forward(unknown, root)
    # What the atlas holds, or held, is known though no lineage names it; bytes are what their digest says.
    known = ("beta", beta.source_url, beta.source_digest[:10], "0" * 64)
    for name in known:
        assert set(seen(name, root).values()) == {"no"}
    atlas.commit(remove=[beta.key])
    assert set(seen("beta", root).values()) == {"no"}
    (tmp_path / "atlas").rename(tmp_path / "moved")
    with pytest.raises(SourceError, match="knows a data set"):
        forward("beta", root)
    assert set(seen("beta", tmp_path).values()) == {"no"}
    assert forward("betta", tmp_path / "moved").found == ()


def test_the_command(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path / "atlas")
    train(tmp_path / "runs", "all", atlas, None)
    arguments = ["--forward", atlas.url, "--root", str(tmp_path / "runs"), "-w", "donor = 'd1'"]
    import typer

    app = typer.Typer()
    from cellmill.trace import lineage

    app.command()(lineage)
    assert load("lineage").name == "lineage"
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert [one["saw"] for one in json.loads(result.stdout)["forward"]["found"]] == ["yes", "yes"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    with pytest.raises(ConfigError, match="forward"):
        raise CliRunner().invoke(app, [atlas.url, "-w", "donor = 'd1'"]).exception or AssertionError
    with pytest.raises(AtlasError, match="no withdrawal 9"):
        forward(f"{atlas.url}#9", tmp_path)
    with pytest.raises(ConfigError, match="well-formed"):
        forward(atlas.url, tmp_path, "donor =")
