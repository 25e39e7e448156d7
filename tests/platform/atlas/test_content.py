import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cellmill.atlas.content import cell_ids, content_hash, feature_keys, hash_bytes, splitmix64

NAMES = [f"ENSG{i:011d}" for i in range(40)]
MASK = (1 << 64) - 1


def hashes(matrix: sparse.csr_matrix, names: list[str]) -> list[bytes]:
    found = content_hash(matrix.indptr.astype(np.int64), matrix.indices, matrix.data, feature_keys(names))
    return [bytes(row) for row in hash_bytes(found)]


def slow_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_hash(cell: dict[str, int]) -> bytes:
    import hashlib

    high = low = n = 0
    for name, count in cell.items():
        if count:
            digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
            first, second = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
            spread = count * 0x9E3779B97F4A7C15 & MASK
            high = (high + slow_mix(first ^ spread)) & MASK
            low = (low + slow_mix((second + spread) & MASK)) & MASK
            n += 1
    high = slow_mix(high ^ (n * 0xD6E8FEB86659FD93 & MASK))
    low = slow_mix((low + n * 0xA0761D6478BD642F) & MASK)
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


cells = st.lists(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 2**32 - 1), max_size=12), max_size=6)


@given(cells, st.permutations(range(40)))
def test_hash_equals_a_slow_reference_whatever_the_order_of_columns(
    rows: list[dict[str, int]], order: list[int]
) -> None:
    names = [NAMES[i] for i in order]
    place = {name: i for i, name in enumerate(names)}
    matrix = sparse.lil_matrix((len(rows), 40), dtype=np.uint32)
    for i, row in enumerate(rows):
        for name, count in row.items():
            matrix[i, place[name]] = count
    assert hashes(matrix.tocsr(), names) == [slow_hash(row) for row in rows]


def test_hash_tells_counts_and_genes_apart_and_not_dtypes() -> None:
    matrix = sparse.csr_matrix(np.array([[1, 2, 0], [2, 1, 0], [1, 2, 1], [0, 0, 0]], dtype=np.uint8))
    assert len(set(hashes(matrix, NAMES[:3]))) == 4
    assert hashes(matrix.astype(np.float32), NAMES[:3]) == hashes(matrix, NAMES[:3])


def test_cell_ids_differ_within_a_source_and_are_stable() -> None:
    ids = cell_ids("ab" * 32, np.arange(100_000))
    assert np.unique(ids).size == ids.size
    assert np.array_equal(cell_ids("ab" * 32, np.arange(50, 60)), ids[50:60])
    # First outputs of splitmix64 for seed 0, as published with the algorithm.
    assert int(splitmix64(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_a_million_different_cells_have_different_hashes() -> None:
    # Each is like many others but for one count, which is the likeness that cells have.
    n, digits, base = 1_000_000, 4, 32
    number = np.arange(n)
    counts = np.stack([number // base**i % base + 1 for i in range(digits)], axis=1)
    columns = np.tile(np.arange(digits), n)
    found = content_hash(np.arange(n + 1) * digits, columns, counts.ravel(), feature_keys(NAMES[:digits]))
    assert len(np.unique(found[:, 0])) == len(np.unique(found[:, 1])) == n
