from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.atlas import ShardEntry
from cellmill.atlas.predicate import parse
from cellmill.atlas.pruning import decide
from cellmill.atlas.summary import column_types, facts, summarise
from cellmill.errors import ConfigError


def entry(table: pa.Table, **fields: Any) -> ShardEntry:
    text = ("checksum", "organism", "source_url", "source_digest", "licence", "config_digest", "vocabulary_digest")
    numbers = ("n_cells", "n_features", "nnz", "max_features", "bytes", "recipe", "vocabulary_size")
    own = {"dataset": "alpha", "digest": "x", "n_rows": table.num_rows, **summarise(table), **fields}
    return ShardEntry.model_validate({**dict.fromkeys(text, "-"), **dict.fromkeys(numbers, 1), **own})


texts = st.sampled_from(["", "a", "b", "bb", "c || a", "é", "x" * 80])
columns = {
    "donor": (pa.string(), texts),
    "age": (pa.int32(), st.integers(-3, 3)),
    "big": (pa.uint64(), st.sampled_from([0, 2**53, 2**53 + 1, 2**64 - 1])),
    "share": (pa.float32(), st.sampled_from([0.0, -0.0, 0.1, 0.5, 1.0, float("inf"), float("nan")])),
    "fresh": (pa.bool_(), st.booleans()),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    n = draw(st.integers(1, 5))
    found = {}
    for name, (kind, values) in columns.items():
        if draw(st.integers(0, 4)):
            # Often one value throughout, sometimes none.
            some = st.just(draw(st.none() | values)) if draw(st.booleans()) else st.none() | values
            found[name] = pa.array(draw(st.lists(some, min_size=n, max_size=n)), kind)
    return pa.table({"n_genes": pa.array(range(n), pa.int32()), **found})


literals = st.sampled_from(["'a'", "'b'", "''", "0", "1", "-1", "0.1", "0.5", "1e300", "9007199254740993", "true"])
names = st.sampled_from([*columns, "dataset", "row", "nowhere"])
leaves = st.one_of(
    st.builds("{} {} {}".format, names, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), literals),
    st.builds("{} < {} <= {}".format, literals, names, literals),
    st.builds("{} {} [{}, {}]".format, names, st.sampled_from(["in", "not in"]), literals, literals),
    st.builds("{} is {}".format, names, st.sampled_from(["null", "not null"])),
    st.builds("{}({}, 'a')".format, st.sampled_from(["contains", "has"]), names),
    st.sampled_from(["fresh", "true", "false"]),
)
predicates = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=4,
)


@settings(max_examples=200)
@given(tables(), predicates)
def test_what_is_decided_for_a_shard_is_what_its_rows_say(table: pa.Table, text: str) -> None:
    predicate = parse(text)
    shard = entry(table)
    decided = decide(predicate, facts(shard, predicate.columns))
    if decided is None:
        return
    whole = table
    for name in predicate.columns:
        if name not in whole.column_names:
            n = table.num_rows
            own = {"dataset": pa.array(["alpha"] * n), "row": pa.array(np.arange(n, dtype=np.int32))}
            whole = whole.append_column(name, own.get(name, pa.nulls(n)))
    try:
        rows = predicate.mask(whole).to_pylist()
    except ConfigError:
        # Of values that are missing, or that the catalog does not tell, it does not see that they are of another kind.
        known = facts(shard, predicate.columns)
        assert len(known) < len(predicate.columns) or any(one.least is None for one in known.values())
        return
    assert rows == [decided] * table.num_rows


@pytest.mark.parametrize(
    ("text", "decided"),
    [
        ("dataset = 'beta'", False),
        ("dataset in ['alpha', 'beta'] and age >= 1", True),
        ("licence = 'MIT'", True),
        ("contains(source_url, 'http') or organism = 'mouse'", False),
        ("source_digest is null", True),
        ("age > 3", False),
        ("age < 2", None),
        ("donor = 'd2'", None),
        ("donor = 'd9'", False),
        ("not (donor = 'd9')", None),  # a missing donor is neither
        ("donor is not null", None),
        ("nowhere is null", True),
        ("contains(one, 'x')", True),
        ("is_duplicate", False),
        ("age < 'x'", None),
    ],
)
def test_decisions(text: str, decided: bool | None) -> None:
    table = pa.table({"age": [1, 2, 3], "donor": ["d1", None, "d3"], "one": ["xy"] * 3})
    predicate = parse(text)
    shard = entry(table, licence="MIT", source_digest="", organism="human")
    assert decide(predicate, facts(shard, predicate.columns)) is decided


def test_a_summary_tells_types_or_nothing() -> None:
    table = pa.table({"content_hash": pa.array([bytes(16)], pa.binary(16)), "share": pa.array([0.5], pa.float32())})
    assert column_types(entry(table)) == {"content_hash": pa.binary(16), "share": pa.float32()}
    nested = table.append_column("list", pa.array([[1]]))
    assert column_types(entry(nested)) is None
    assert facts(entry(nested), ["share", "dataset"]).keys() == {"dataset"}
    # Where the snapshot marks rows, the catalog does not know which.
    assert not facts(entry(table, overlay="abc"), ["is_duplicate"])
