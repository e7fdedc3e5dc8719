"""Archives that clients send: refused before they are read, kept whole or not at all, never in memory."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gateway.api.head import EdgeLimits
from tests.integration.administration import ADMIN_KEY, CHAT, LIMITS, administered
from tests.patience import LATE
from tests.wire import Wire, connected

MIB = 1 << 20
PATH = "/admin/v1/adapters/pirate/archive"


@pytest.fixture
async def gateway(tmp_path: Path):
    async with administered(tmp_path) as running:
        yield running


def head(size: int | None, *lines: str, key: str = ADMIN_KEY, path: str = PATH) -> bytes:
    framing = "transfer-encoding: chunked" if size is None else f"content-length: {size}"
    fields = [f"PUT {path} HTTP/1.1", "host: gateway", framing, f"authorization: Bearer {key}", *lines]
    return "\r\n".join([*fields, "", ""]).encode()


async def pour(wire: Wire) -> None:
    """Sends for as long as somebody reads."""
    while True:
        await wire.send(bytes(MIB))


async def comes(true: Callable[[], bool]) -> None:
    """Waits for what another task does."""
    async with asyncio.timeout(LATE):
        while not true():
            await asyncio.sleep(0.005)


async def refused(wire: Wire, status: int) -> str:
    async with asyncio.timeout(LATE):
        reply = await wire.reply()
    assert reply.status == status, reply.body
    return str(reply.error["message"])


async def test_leave_to_send_comes_after_the_key_was_looked_at(gateway):
    async with connected(gateway.url) as wire:
        await wire.send(head(5, "expect: 100-continue", key=CHAT))
        await refused(wire, 401)
        assert await asyncio.wait_for(wire.closed(), LATE) == b""
    async with connected(gateway.url) as wire:
        await wire.send(head(5, "expect: 100-continue", path="/admin/v1/adapters/Pirate/archive"))
        await refused(wire, 400)
    async with connected(gateway.url) as wire:
        await wire.send(head(5, "expect: 100-continue"))
        assert (await wire.head())[0] == 100
        await wire.send(b"12345")
        assert (await wire.reply()).status == 202
    assert len(gateway.adapters.begun) == 1


async def test_gigabytes_without_a_key_are_refused_at_once_and_not_read(gateway):
    async with connected(gateway.url) as wire:
        await wire.send(head(8 * MIB, key=CHAT))
        await refused(wire, 401)  # nothing of the body was sent
    async with connected(gateway.url) as wire:
        await wire.send(head(8 * MIB, key=CHAT))
        with pytest.raises(ConnectionError):  # it ends after the moment in which the refusal can be read
            await asyncio.wait_for(pour(wire), LATE)
    assert gateway.parts() == []


async def test_a_client_that_closes_after_its_refusal_finds_it_closed(gateway, caplog):
    async with connected(gateway.url) as wire:
        await wire.send(head(8 * MIB, "connection: close", key=CHAT))
        await refused(wire, 401)
        assert await asyncio.wait_for(wire.closed(), LATE) == b""
    assert not caplog.records


async def test_a_size_over_the_limit_is_refused_by_its_head(gateway):
    async with connected(gateway.url) as wire:
        await wire.send(head(8 * MIB + 1, "expect: 100-continue"))
        assert str(8 * MIB) in await refused(wire, 413)
    async with connected(gateway.url) as wire:  # the larger limit is this route's alone, however its path is written
        await wire.send(head(MIB, path="/admin/v1/adapters/pirate/archive/"))
        await refused(wire, 413)


async def test_the_limit_is_the_same_for_a_path_that_is_escaped_and_for_a_whole_url(gateway):
    for path in ("/admin/v1/adapters/pirate/%61rchive", "http://gateway" + PATH):
        async with connected(gateway.url) as wire:
            await wire.send(head(MIB, path=path) + bytes(MIB))
            assert (await wire.reply()).status == 202


async def test_nothing_is_left_of_an_archive_whose_sender_leaves(gateway):
    async with connected(gateway.url) as wire:
        await wire.send(head(4 * MIB) + bytes(2 * MIB))
        await comes(lambda: bool(gateway.parts()))
    await comes(lambda: gateway.parts() == [])
    async with connected(gateway.url) as wire:
        await wire.send(head(None) + b"10\r\n" + bytes(16) + b"\r\n")
        await comes(lambda: bool(gateway.parts()))
        wire.reset()
        await comes(lambda: gateway.parts() == [])
    assert gateway.adapters.begun == {}


async def test_an_archive_is_not_kept_in_memory(tmp_path):
    size = 128 * MIB
    process = psutil.Process()
    async with administered(tmp_path, EdgeLimits(max_body_bytes=MIB, max_upload_bytes=size)) as gateway:
        gateway.adapters.imported = lambda name, source, content, *rest: {"size": len(content)}
        async with connected(gateway.url) as wire:
            await wire.send(head(size))
            before = process.memory_info().rss
            piece = bytes(MIB)
            for _ in range(size // MIB - 1):
                await wire.send(piece)
            assert process.memory_info().rss - before < 48 * MIB
            (part,) = gateway.uploads.iterdir()
            await comes(lambda: part.stat().st_size > size - 4 * MIB)
    assert list(gateway.uploads.iterdir()) == []


async def test_a_full_disk_is_told_and_leaves_nothing(gateway, monkeypatch):
    real = tempfile.mkstemp

    def full(**where: Path) -> tuple[int, str]:
        descriptor, name = real(**where)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(tempfile, "mkstemp", full)
    async with connected(gateway.url) as wire:
        await wire.send(head(3 * MIB) + bytes(3 * MIB))
        assert "No space left on device" in await refused(wire, 507)
    assert gateway.parts() == []


async def test_a_folder_that_is_gone_is_told(gateway):
    gateway.uploads.rmdir()
    async with connected(gateway.url) as wire:
        await wire.send(head(5, "expect: 100-continue"))
        assert str(gateway.uploads) in await refused(wire, 507)


async def test_an_archive_that_comes_too_slowly_is_given_up(tmp_path):
    limits = EdgeLimits(body_timeout=1.0, max_upload_bytes=LIMITS.max_upload_bytes)
    async with administered(tmp_path, limits) as gateway:
        async with connected(gateway.url) as wire:
            await wire.send(head(MIB) + b"x")
            await comes(lambda: bool(gateway.parts()))
            await refused(wire, 408)
        await comes(lambda: gateway.parts() == [])


async def test_only_so_many_archives_are_received_at_once(gateway):
    async with connected(gateway.url) as one, connected(gateway.url) as two, connected(gateway.url) as three:
        async with connected(gateway.url) as four:
            for wire in (one, two, three, four):
                await wire.send(head(2))
            await comes(lambda: len(gateway.parts()) == 4)
            async with connected(gateway.url) as fifth:
                await fifth.send(head(2) + b"xy")
                await refused(fifth, 503)
        await comes(lambda: len(gateway.parts()) == 3)
        async with connected(gateway.url) as fifth:
            await fifth.send(head(2) + b"xy")
            assert (await fifth.reply()).status == 202
