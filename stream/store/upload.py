"""Uploads a local file in parts, a bounded number at once, and ends the upload when it fails or is cancelled."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import anyio
import obstore

from stream.store.locations import StoreLimits

__all__ = ["upload_file"]


UNDER_WAY = 1.0
"""Seconds that a cancelled upload gives parts that are under way: a server may keep one that ends after an abort."""


class _StoppableFile:
    """What obstore reads a file through; once stopped it raises, on which obstore aborts the upload."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._stopped = False

    def read(self, size: int = -1) -> bytes:
        if self._stopped:
            time.sleep(UNDER_WAY)
            msg = "the upload was cancelled"
            raise OSError(msg)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._file.close()


async def upload_file(raw: Any, key: str, path: Path, limits: StoreLimits) -> int:
    """Write the content of a file under a key; its size in bytes.

    A failed upload is aborted by obstore. Cancelling its future would leave the parts on the server, out of sight but
    paid for: so a cancelled upload is told to end, and waited for at most ``limits.abort`` seconds. Parts that a killed
    process leaves are for the bucket's lifecycle rule (abort incomplete multipart uploads).
    """
    source = await asyncio.to_thread(_StoppableFile, path)
    size = source.seek(0, 2)
    source.seek(0)
    reader: Any = source
    putting = asyncio.ensure_future(
        obstore.put_async(raw, key, reader, chunk_size=limits.part, max_concurrency=limits.parts_together)
    )
    try:
        await asyncio.shield(putting)
    except asyncio.CancelledError:
        source.stop()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([putting], timeout=limits.abort)
        raise
    finally:
        if putting.done():
            _ = putting.cancelled() or putting.exception()  # told to whoever awaited it, or of a cancelled upload
        else:
            putting.cancel()
        source.close()
    return size
