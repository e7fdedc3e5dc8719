"""Parameters that reach into the engine: by no way without the right to them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.openai_upstream import OpenAIUpstream
from tests.integration.conftest import Serve


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
@pytest.mark.parametrize("value", ["x", 1, ["do_remote_prefill"], {"do_remote_prefill": True}])
async def test_vllms_extra_arguments_are_no_way_around(serve: Serve, name: str, value: Any) -> None:
    """vLLM puts `vllm_xargs` where it keeps its own transfer parameters and reads them from there."""
    async with OpenAIUpstream() as upstream, serve({"one": upstream}, kind="vllm") as gateway:
        reply = await gateway.chat(vllm_xargs={"harmless": 1, name: value})
        assert (reply.status, reply.error["code"]) == (403, "permission_denied")
        assert not upstream.ledger


async def test_other_extra_arguments_pass(serve: Serve) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}, kind="vllm") as gateway:
        assert (await gateway.chat(vllm_xargs={"ngram_size": 35})).done
        assert upstream.ledger[0].request.json["vllm_xargs"] == {"ngram_size": 35}
        assert (await gateway.chat(vllm_xargs=7)).status == 400
