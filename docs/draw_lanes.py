"""Draw `lanes.svg` from a real plan: ``python docs/draw_lanes.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cellmill.stream.layout import group_layout
from cellmill.stream.plan import EpochPlan, Windows

COLOURS = ("#4477aa", "#ee6677", "#ccbb44")
LINE, TEXT = "#333333", "#222222"
CELL, WIDE, HIGH = 7, 24, 22
LEFT = 118
WORLD_SIZE, STEP = 2, 4


def picture() -> str:
    """Return the picture: three shards, the order of an epoch, four lanes, two workers."""
    counts = np.array([48, 28, 20])
    plan = EpochPlan(counts=counts, lanes=4, share=2, window=8, run=4, seed=6, epoch=0)
    parts: list[str] = []
    text(parts, 0, 31, "three shards")
    for i, shard in enumerate(np.repeat(np.arange(3), counts).tolist()):
        box(parts, LEFT + CELL * i, 18, CELL, 18, COLOURS[shard])
    text(parts, 0, 87, "order of the epoch")
    shards = plan.order.pieces(0, plan.n_cells)
    for i, shard in enumerate(np.repeat(shards.shard, shards.length).tolist()):
        box(parts, LEFT + CELL * i, 74, CELL, 18, COLOURS[shard])
    text(parts, LEFT, 64, "runs of neighbouring cells, cut into windows that are dealt to the lanes:", small=True)
    start, top = 0, 150
    for window in range(plan.n_windows):
        begin, end = plan.bounds(window), plan.bounds(window + 1)
        for place, size in enumerate((end - begin).tolist()):
            if not size:
                continue
            lane = plan.place_of(place)
            frame(parts, LEFT + CELL * start, 74, CELL * size, 18)
            text(parts, LEFT + CELL * (start + size / 2) - 3, 105, str(lane), small=True)
            start += size
            group = group_layout(plan, Windows(window, window + 1, np.array([place]), int(begin[place])))
            origin = np.repeat(group.pieces.shard, group.pieces.length)[group.cells]
            left, row = LEFT + WIDE * int(begin[place]), top + 30 * lane
            for i, shard in enumerate(origin.tolist()):
                box(parts, left + WIDE * i, row, WIDE, HIGH, COLOURS[shard])
            frame(parts, left, row, WIDE * size, HIGH)
    for lane in range(plan.lanes):
        text(parts, 0, top + 30 * lane + 15, f"lane {lane}, rank {lane % WORLD_SIZE}")
    x, wide = LEFT + WIDE * plan.share * STEP, WIDE * plan.share
    dashed = f'fill="none" stroke="{TEXT}" stroke-width="2.5" stroke-dasharray="6 3"'
    parts.append(f'<rect x="{x}" y="{top - 8}" width="{wide}" height="{30 * plan.lanes + 8}" rx="3" {dashed}/>')
    text(parts, x - 4, top - 14, f"global batch of step {STEP}: {plan.share} cells of each lane", small=True)
    text(
        parts, LEFT, top + 30 * plan.lanes + 18, "a lane's windows are shuffled one by one; steps go right", small=True
    )
    style = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="13"'
    head = (
        f'<svg {style} viewBox="0 0 800 {top + 30 * plan.lanes + 30}"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def box(parts: list[str], x: float, y: float, width: float, height: float, colour: str) -> None:
    """Add a cell."""
    parts.append(f'<path d="M{x:g} {y:g}h{width:g}v{height:g}h-{width:g}z" fill="{colour}" stroke="white"/>')


def frame(parts: list[str], x: float, y: float, width: float, height: float) -> None:
    """Add the outline of a window."""
    parts.append(
        f'<path d="M{x:g} {y:g}h{width:g}v{height:g}h-{width:g}z" fill="none" stroke="{LINE}" stroke-width="2"/>'
    )


def text(parts: list[str], x: float, y: float, words: str, *, small: bool = False) -> None:
    """Add a text whose baseline begins at a point."""
    size = ' font-size="11"' if small else ""
    parts.append(f'<text x="{x:g}" y="{y:g}" fill="{TEXT}"{size}>{words}</text>')


if __name__ == "__main__":
    Path(__file__).with_name("lanes.svg").write_text(picture())
