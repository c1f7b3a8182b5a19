"""Run a compiled, GIL-free kernel over blocks of rows on the slot's threads. Not a scheduler."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike, NDArray

    from stream.stage import Slot

__all__ = ["buffer", "for_row_blocks"]


def for_row_blocks(work: Callable[[int, int], None], rows: int, *, threads: int = 1, block: int = 64) -> None:
    """Call ``work(first, last)`` for consecutive blocks of rows, on ``threads`` threads.

    The kernel must write only rows ``first:last``, so the result does not depend on the number of threads.

    Raises
    ------
    Exception
        The first exception of any block.
    """
    starts = range(0, rows, block)
    if threads <= 1 or len(starts) == 1:
        for first in starts:
            work(first, min(first + block, rows))
        return
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work, first, min(first + block, rows)) for first in starts]
        for future in futures:
            future.result()


def buffer(slot: Slot, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Array over memory that the slot keeps between jobs; contents undefined.

    The first touch of fresh memory costs seconds per GB, so large temporaries are asked for here by a name of their
    own ("stage.purpose").
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = slot.scratch.get(name)
    if raw is None or raw.nbytes < size:
        raw = slot.scratch[name] = np.empty(size, dtype=np.uint8)
    return raw[:size].view(dtype).reshape(shape)
