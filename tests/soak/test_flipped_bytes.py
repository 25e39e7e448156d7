"""A thousand flipped bits in the files that snapshots need: verification finds each, and readers are never misled."""

import time
from pathlib import Path

import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.collecting import Forget, collect
from tests.faults.flipping import flip, rich_atlas
from tests.soak.results import write_results

pytestmark = pytest.mark.soak

FLIPS = 1000


def test_a_thousand_flipped_bytes_are_all_found(tmp_path: Path) -> None:
    began = time.monotonic()
    atlas = rich_atlas(tmp_path)
    collect(Atlas.open(atlas), Forget(), grace_s=0)
    done, unnoticed = flip(atlas, FLIPS, seed=1)
    write_results(
        "flipped_bytes",
        flips=sum(done.values()),
        by_kind=dict(done),
        unnoticed=len(unnoticed),
        seconds=round(time.monotonic() - began, 1),
    )
    assert not unnoticed
