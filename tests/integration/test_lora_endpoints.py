"""vLLM's answers to loading and unloading, as 0.32 gives them, and what becomes of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.controlplane.lora import LoadError, load, unload
from gateway.domain.secret import Secret
from gateway.domain.snapshot import Upstream
from tests.fakes.fake_vllm_http import VLLM, error

NAME = "pirate@0123456789ab"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def record(vllm: VLLM, key: str = "the-engines-key") -> Upstream:
    port = int(vllm.url.rsplit(":", 1)[1].removesuffix("/v1"))
    headers = (("authorization", Secret(f"Bearer {key}")),)
    return Upstream("gpu", "vllm", "http", "127.0.0.1", port, "/v1", headers)


def worker(cause: str) -> dict[str, Any]:
    text = f"Call to add_lora method failed: Worker failed with error '{cause}', please check the stack trace above for"
    return error(f"{text} the root cause", "InternalServerError", 500)


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    (tmp_path / "adapter_config.json").write_text("{}")
    return str(tmp_path)


async def test_what_is_loaded_is_listed_and_what_is_unloaded_is_not(adapter: str) -> None:
    async with VLLM(key="the-engines-key") as vllm:
        await load(record(vllm), NAME, adapter)
        assert vllm.adapters == {NAME: adapter}
        await unload(record(vllm), NAME)
        assert vllm.adapters == {}


async def test_what_is_done_already_is_fine(adapter: str) -> None:
    async with VLLM() as vllm:
        await load(record(vllm), NAME, adapter)
        await load(record(vllm), NAME, adapter)
        await unload(record(vllm), NAME)
        await unload(record(vllm), NAME)


@pytest.mark.parametrize(
    ("status", "body", "words", "lasting"),
    [
        (500, worker("LoRA rank 64 is greater than max_lora_rank 16."), "rank 64 is greater", True),
        (500, worker("[Errno 20] Not a directory: '/store/x'"), "Not a directory: '/store/x'", True),
        (500, worker("vLLM does not yet support DoRA."), "does not yet support DoRA", True),
        (404, error("Loading lora x failed: No adapter found for /store/x", "NotFoundError", 404), "this very", True),
        (404, {"detail": "Not Found"}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING", True),
        (400, error("'x' conflicts with a served base model.", "InvalidUserInput", 400), "conflicts", True),
        (401, {"error": "Unauthorized"}, "api_key", True),
        (503, error("The engine is currently busy.", "Service Unavailable", 503), "busy", False),
        (500, "Internal Server Error", "Internal Server Error", False),
    ],
)
async def test_a_refusal_is_told_by_its_words_and_not_by_its_status(
    adapter: str, status: int, body: Any, words: str, lasting: bool
) -> None:
    async with VLLM() as vllm:
        vllm.says[LOAD] = (status, body)
        with pytest.raises(LoadError) as caught:
            await load(record(vllm), NAME, adapter)
    assert words in str(caught.value)
    assert caught.value.lasting is lasting


async def test_an_engine_that_is_gone_may_come_back(adapter: str) -> None:
    async with VLLM() as vllm:
        gone = record(vllm)
    for attempt in (load(gone, NAME, adapter), unload(gone, NAME)):
        with pytest.raises(LoadError) as caught:
            await attempt
        assert not caught.value.lasting


async def test_the_engines_words_come_on_one_line_and_bounded(adapter: str) -> None:
    async with VLLM() as vllm:
        vllm.says[LOAD] = (500, worker("\x1b[31m first\nsecond" + "x" * 10_000))
        with pytest.raises(LoadError) as caught:
            await load(record(vllm), NAME, adapter)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
