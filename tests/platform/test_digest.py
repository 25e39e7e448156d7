"""The digest of content, of whatever size and however it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from cellmill.digest import digest_of, digest_of_file

BLOCK = 1 << 19


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_a_file_is_known_by_the_blake3_of_its_bytes(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    path = tmp_path / "file"
    path.write_bytes(content)
    assert digest_of_file(path) == digest_of(content) == digest_of(memoryview(content)) == blake3(content).hexdigest()
    path.write_bytes(content + b"\0")
    assert digest_of_file(path) != digest_of(content)


def test_a_digest_is_what_the_specification_says() -> None:
    # Two of the test vectors that BLAKE3 is published with: bytes count up, modulo 251.
    assert digest_of(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    content = bytes(n % 251 for n in range(1024))
    assert digest_of(content) == "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"
