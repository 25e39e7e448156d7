"""Tokenisation: counts of cells to packed token channels, in numba, without Ray and torch."""

from cellmill.tokens.block import CellBlock
from cellmill.tokens.conditions import Conditions
from cellmill.tokens.config import TokenConfig
from cellmill.tokens.hvg import highly_variable
from cellmill.tokens.modalities import Modalities
from cellmill.tokens.packed import PackedBatch
from cellmill.tokens.raw_counts import RawCounts
from cellmill.tokens.tokeniser import Tokeniser

__all__ = [
    "CellBlock",
    "Conditions",
    "Modalities",
    "PackedBatch",
    "RawCounts",
    "TokenConfig",
    "Tokeniser",
    "highly_variable",
]
