"""A column that is text in one shard, numbers or truth values in the next, is compared as in the table of all."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.atlas import Atlas
from cellmill.atlas.cells import unify
from cellmill.atlas.predicate import kind, parse
from cellmill.atlas.pruning import decide
from cellmill.atlas.summary import facts
from cellmill.atlas.withdrawals import all_withdrawals
from cellmill.atlas.withdrawing import remove
from cellmill.errors import ConfigError
from tests.platform.atlas.builders import add_shard, random_counts
from tests.platform.atlas.test_pruning import entry

TYPES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): st.sampled_from(["7", "D7", "true", "0.5", "", "-1"]),
    pa.int32(): st.sampled_from([-1, 0, 7, 8]),
    pa.float32(): st.sampled_from([0.5, 7.0, -1.0]),
    pa.float64(): st.sampled_from([0.5, 7.0, 8.0]),
    pa.bool_(): st.booleans(),
    pa.null(): st.none(),
}


@st.composite
def shards(draw: st.DrawFn) -> pa.Table:
    of = draw(st.sampled_from(list(TYPES)))
    some = st.none() | TYPES[of]
    values = st.lists(st.just(draw(some)) if draw(st.booleans()) else some, min_size=1, max_size=4)
    return pa.table({"donor": pa.array(draw(values), of)})


LITERALS = ["'7'", "'D7'", "'true'", "'0.5'", "'-1'", "7", "7.0", "-1", "0.5", "true"]
literals = st.sampled_from(LITERALS)
leaves = st.one_of(
    st.builds("donor {} {}".format, st.sampled_from(["=", "!="]), literals),
    st.builds("donor {} {}".format, st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from(LITERALS[:5])),
    st.builds("{} = donor".format, literals),
    st.builds("donor {} [{}, {}]".format, st.sampled_from(["in", "not in"]), literals, literals),
    st.sampled_from(["donor is null", "contains(donor, '7')", "has(donor, '7')"]),
)
predicates = st.recursive(leaves, lambda inner: st.builds("not ({} and {})".format, inner, inner), max_leaves=3)


@settings(max_examples=300)
@given(st.lists(shards(), min_size=1, max_size=4), predicates)
def test_shards_answer_as_the_table_of_all(tables: list[pa.Table], text: str) -> None:
    kinds = frozenset(kind(table.schema.types[0]) for table in tables) - {"null"}
    if len(kinds) < 2:
        return
    predicate = parse(text).over({"donor": kinds})
    answers: list[bool] = []
    for table in tables:
        rows = predicate.mask(table).to_pylist()
        decided = decide(predicate, facts(entry(table), ["donor"]))
        assert decided is None or rows == [decided] * table.num_rows
        answers += rows
    assert predicate.mask(unify(tables)).to_pylist() == answers


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    donors = {"a": ["D7", "7", None, "D8"], "b": [7, 8, 9, None], "c": [True, False, True, True]}
    atlas = Atlas.create(tmp_path)
    atlas.commit(
        [
            add_shard(atlas, name, random_counts(4, 5, seed=i), obs={"donor": some, "age": [1, 2, 3, 4]})
            for i, (name, some) in enumerate(donors.items())
        ]
    )
    return atlas


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("donor == 'D7'", ["a-0"]),
        ("donor == 7", ["a-1", "b-0"]),
        ("donor == '7'", ["a-1", "b-0"]),
        ("donor in ['D8', 9, true]", ["a-3", "b-2", "c-0", "c-2", "c-3"]),
        ("dataset == 'a' and donor == 'D7'", ["a-0"]),
        ("donor > 7", ["b-1", "b-2"]),
        ("donor >= 'D7'", ["a-0", "a-3", "c-0", "c-1", "c-2", "c-3"]),
        ("donor", ["c-0", "c-2", "c-3"]),
        ("donor = age or donor is null", ["a-2", "b-3"]),
    ],
)
def test_select_and_remove(atlas: Atlas, where: str, rows: list[str]) -> None:
    snapshot = atlas.snapshot()
    assert snapshot.columns["donor"] == pa.string()
    assert snapshot.cells(["barcode"], where).column("barcode").to_pylist() == rows
    assert sum(remove(atlas, where, "consent", dry_run=True).cells.values()) == len(rows)
    remove(atlas, where, "consent")
    assert atlas.snapshot().n_cells == 12 - len(rows)


@pytest.mark.parametrize("where", ["age == '1'", "age", "dataset > 5", "age < true"])
def test_a_column_of_one_kind_is_still_refused(atlas: Atlas, where: str) -> None:
    with pytest.raises(ConfigError, match="cannot be applied"):
        atlas.snapshot().select(where)
    with pytest.raises(ConfigError, match="cannot be applied"):
        remove(atlas, where, "consent")
    assert not all_withdrawals(atlas.storage)


def test_an_order_that_no_shard_has_is_refused(atlas: Atlas) -> None:
    (gone,) = (shard.key for shard in atlas.snapshot().shards if shard.dataset == "b")
    atlas.commit(remove=[gone])
    with pytest.raises(ConfigError, match="cannot be applied"):
        atlas.snapshot().select("donor > 7")
