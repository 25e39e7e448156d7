"""Memory that is used again is never used twice at once."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from cellmill.memory import Memory

N = 1 << 18


def address(array: Any) -> int:
    return int(array.ctypes.data)


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    memory = Memory()
    whole = memory.empty(N, np.uint16)
    place = address(whole)
    assert whole.size == N
    assert whole.dtype == np.uint16
    view = whole[7:].view(np.uint8)[3:]
    view[:] = 1
    del whole
    other = memory.empty(N, np.uint16)
    other[:] = 2
    assert address(other) != place
    assert np.all(view == 1)
    del view
    # Another type and a somewhat smaller size will do.
    again = memory.empty(N // 5, np.float64)
    assert address(again) == place


def test_what_is_idle_makes_room_for_what_is_new() -> None:
    memory = Memory()
    small = [memory.empty(N, np.uint8) for _ in range(8)]
    held = sum(part.nbytes for part in small)
    del small[4:], small[0]
    idle = memory.idle_bytes
    assert held / 2 < idle < held
    large = memory.empty(2 * N, np.uint8)
    assert memory.idle_bytes <= idle - large.nbytes
    assert memory.empty(0, np.int64).size == 0
    assert memory.empty(3, np.int64).base is None


def test_threads_never_share_memory() -> None:
    memory = Memory()
    wrong: list[int] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        held: list[Any] = []
        for turn in range(300):
            array = memory.empty(int(rng.integers(1 << 16, 1 << 18)), np.uint8)
            array[:] = number
            held.append(array[turn % 100 :])
            if len(held) > 3:
                wrong.extend(1 for part in held if np.any(part != number))
                del held[int(rng.integers(4))]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert memory.idle_bytes > 0
