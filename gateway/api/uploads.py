"""Archives that clients send: from the connection to the disk, piece by piece."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterable
from pathlib import Path
from typing import BinaryIO

from fastapi import Request

from gateway.domain.errors import InvalidRequest, Overloaded, StorageError, UnsupportedMediaType

_AT_ONCE = 4  # each may fill the disk up to EdgeLimits.max_upload_bytes
_PIECE = 1 << 20  # bytes that are written at a time


class Uploads:
    """Receives archives.  Their sizes and their pace are the guard's affair (api/guard.py)."""

    def __init__(self) -> None:
        self._running = 0

    async def receive(self, request: Request, folder: Path) -> Path:
        """The request's body as a file in `folder`, which is the caller's.

        Nothing is left of a body that does not come whole.  Raises StorageError when it cannot be kept, Overloaded, and
        starlette's ClientDisconnect.
        """
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise UnsupportedMediaType("Send the archive itself as the body (curl -T FILE), not a form.")
        if self._running == _AT_ONCE:
            raise Overloaded(f"{_AT_ONCE} archives are being received; send this one when one of them is done.")
        self._running += 1
        try:
            return await _received(request.stream(), folder)
        finally:
            self._running -= 1


async def _received(pieces: AsyncIterable[bytes], folder: Path) -> Path:
    part: str | None = None
    try:
        descriptor, part = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            size = await _written(pieces, file)
        if size == 0:
            raise InvalidRequest("The body is empty: send the archive as the body.")
        archive, part = Path(part), None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StorageError(f"The archive cannot be kept in {folder} ({reason}): make room there.") from error
    finally:
        if part is not None:
            os.unlink(part)
    return archive


async def _written(pieces: AsyncIterable[bytes], file: BinaryIO) -> int:
    """Writes the pieces in a thread, and returns how many bytes they had."""
    size = 0
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        if len(waiting) >= _PIECE:
            size += await asyncio.to_thread(file.write, waiting)
            waiting = bytearray()
    return size + await asyncio.to_thread(file.write, waiting)
