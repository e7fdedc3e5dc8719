"""A client that reads slowly, but reads: its pace is its own, and no fault of the upstream."""

from __future__ import annotations

import asyncio

from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.integration.conftest import Serve

PIECE = "x" * 2**20
PIECES = 60
LIMIT = 1.0  # seconds


async def test_an_upstream_is_not_blamed_for_a_client_that_reads_slowly(serve: Serve) -> None:
    """More than all buffers on the way hold, so that the gateway has to wait for the client, and for longer than an
    upstream may be silent."""
    async with OpenAIUpstream({"m": Script(pieces=(PIECE,) * PIECES)}) as upstream:
        async with serve({"one": upstream}, timeouts={"byte_idle": LIMIT, "token_idle": LIMIT}) as gateway:
            async with gateway.asking() as client:
                status, headers = await client.head()
                attempt = await upstream.attempt(0)
                sent = -1
                while sent != attempt.sent:  # until nobody on the way takes more
                    sent = attempt.sent
                    await asyncio.sleep(1.5 * LIMIT)
                reply = await client.rest(status, headers)
            assert (reply.done, reply.complete) == (True, True)
            assert len(reply.text) == PIECES * len(PIECE)
            assert (await gateway.settled(reply)).reason == "completed"
