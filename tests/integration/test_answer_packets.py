"""An answer's head and body leave together: two packets would be two system calls, and two wake-ups of the client."""

from __future__ import annotations

import asyncio

import pytest

from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.integration.conftest import Serve
from tests.integration.rig import AUTH, chat
from tests.patience import LATE


class Packets(asyncio.Protocol):
    """Keeps what arrives apart, as it arrives."""

    def __init__(self, enough: bytes) -> None:
        self.arrived: list[bytes] = []
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._enough = enough

    def data_received(self, data: bytes) -> None:
        self.arrived.append(data)
        if self._enough in b"".join(self.arrived) and not self.whole.done():
            self.whole.set_result(None)


@pytest.mark.parametrize("stream", [False, True])
async def test_head_and_body_come_as_one(serve: Serve, stream: bool) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway:
        packets = Packets(b"[DONE]" if stream else b'"usage"')
        place = wire.urlsplit(gateway.url)
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: packets, place.hostname, place.port)
        body = wire.json.dumps(chat(stream=stream)).encode()
        lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json",
                 f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in AUTH)]  # fmt: skip
        transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        await asyncio.wait_for(packets.whole, LATE)
        transport.close()
        head, _, rest = packets.arrived[0].partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert rest


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_an_answer_without_a_body_leaves_too(serve: Serve, method: str) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway, wire.connected(gateway.url) as client:
        await client.request(method, "/livez")
        status, headers = await asyncio.wait_for(client.head(), LATE)
        assert (status, dict(headers)["allow"]) == (405, "GET")


async def test_the_leave_to_send_a_body_does_not_wait_for_the_answer(serve: Serve) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway, wire.connected(gateway.url) as client:
        body = wire.json.dumps(chat(stream=False)).encode()
        lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json",
                 "expect: 100-continue", f"content-length: {len(body)}",
                 *(f"{name}: {value}" for name, value in AUTH)]  # fmt: skip
        await client.send("\r\n".join([*lines, "", ""]).encode())
        assert (await asyncio.wait_for(client.head(), LATE))[0] == 100
        await client.send(body)
        reply = await asyncio.wait_for(client.reply(), LATE)
        assert (reply.status, reply.complete) == (200, True)
