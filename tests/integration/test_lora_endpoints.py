"""vLLM's answers to loading, unloading and a first token, as 0.32 gives them, and what becomes of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.controlplane.contact import Contact
from gateway.controlplane.lora import LoadError, Unseen, Unsound, load, probe, steady, unload, version
from gateway.domain.secret import Secret
from gateway.domain.snapshot import Upstream
from tests.fakes.fake_vllm_http import VLLM, Fault, error

NAME = "pirate@0123456789ab"
LOAD, UNLOAD, COMPLETE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
WITHIN = 10.0


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
        await load(record(vllm), NAME, adapter, within=WITHIN)
        assert vllm.adapters == {NAME: adapter}
        await unload(record(vllm), NAME, within=WITHIN)
        assert vllm.adapters == {}


async def test_what_is_done_already_is_fine(adapter: str) -> None:
    async with VLLM() as vllm:
        await load(record(vllm), NAME, adapter, within=WITHIN)
        await load(record(vllm), NAME, adapter, within=WITHIN)
        await unload(record(vllm), NAME, within=WITHIN)
        await unload(record(vllm), NAME, within=WITHIN)


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
            await load(record(vllm), NAME, adapter, within=WITHIN)
    assert words in str(caught.value)
    assert caught.value.lasting is lasting


async def test_an_engine_that_is_gone_may_come_back(adapter: str) -> None:
    async with VLLM() as vllm:
        gone = record(vllm)
    attempts = (load(gone, NAME, adapter, within=WITHIN), unload(gone, NAME, within=WITHIN))
    for attempt in (*attempts, probe(gone, NAME, within=WITHIN)):
        with pytest.raises(LoadError) as caught:
            await attempt
        assert not caught.value.lasting


async def test_the_engines_words_come_on_one_line_and_bounded(adapter: str) -> None:
    async with VLLM() as vllm:
        vllm.says[LOAD] = (500, worker("\x1b[31m first\nsecond" + "x" * 10_000))
        with pytest.raises(LoadError) as caught:
            await load(record(vllm), NAME, adapter, within=WITHIN)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


async def test_a_folder_that_the_engine_does_not_see_is_told_apart(adapter: str) -> None:
    async with VLLM() as vllm:
        vllm.blind = True
        with pytest.raises(Unseen, match=r"`adapters\.store`"):
            await load(record(vllm), NAME, adapter, within=WITHIN)


async def test_an_engine_that_does_not_answer_is_not_waited_for_longer_than_told(adapter: str) -> None:
    async with VLLM() as vllm:
        vllm.says = dict.fromkeys((LOAD, UNLOAD, COMPLETE), Fault.HANG)
        engine = record(vllm)
        attempts = (load(engine, NAME, adapter, within=0.1), unload(engine, NAME, within=0.1))
        for attempt in (*attempts, probe(engine, NAME, within=0.1)):
            with pytest.raises(LoadError, match="did not answer within") as caught:
                await attempt
            assert not caught.value.lasting


# ---- the first token


async def test_an_adapter_that_answers_is_sound(adapter: str) -> None:
    async with VLLM(key="the-engines-key") as vllm:
        await load(record(vllm), NAME, adapter, within=WITHIN)
        await probe(record(vllm), NAME, within=WITHIN)
        assert vllm.probed == [NAME]


def answer(logprobs: Any) -> tuple[int, Any]:
    return 200, {"choices": [{"index": 0, "text": "", "logprobs": logprobs, "finish_reason": "length"}]}


NAN = error("Out of range float values are not JSON compliant: nan", "BadRequestError", 400)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        pytest.param((400, NAN), "NaN", id="what vLLM says of NaN"),
        pytest.param(answer({"token_logprobs": [], "tokens": []}), "no token", id="no token"),
        pytest.param(answer(None), "no token", id="no probability"),
        pytest.param(answer({"token_logprobs": [None], "tokens": [""]}), "no token", id="a token without one"),
        pytest.param((200, '{"choices": [{"logprobs": {"token_logprobs": [NaN]}}]}'), "NaN", id="NaN in the answer"),
    ],
)
async def test_weights_that_compute_nothing_are_found_out(said: tuple[int, Any], words: str) -> None:
    async with VLLM() as vllm:
        vllm.says[COMPLETE] = said
        with pytest.raises(Unsound, match=words) as caught:
            await probe(record(vllm), NAME, within=WITHIN)
        assert caught.value.lasting


async def test_a_first_token_without_text_is_a_token() -> None:
    async with VLLM() as vllm:
        vllm.says[COMPLETE] = answer({"token_logprobs": [0.0], "tokens": ["<|im_end|>"]})
        await probe(record(vllm), NAME, within=WITHIN)


@pytest.mark.parametrize(
    ("status", "body", "words", "lasting"),
    [
        (503, error("The engine is currently busy.", "Service Unavailable", 503), "busy", False),
        (500, error("EngineCore encountered an issue.", "InternalServerError", 500), "EngineCore", False),
        (404, error(f"The model `{NAME}` does not exist.", "NotFoundError", 404), "know it any more", False),
        (429, "slow down", "slow down", False),
        (400, error("no such thing", "BadRequestError", 400), "no such thing", True),
        (401, {"error": "Unauthorized"}, "api_key", True),
        (200, "<html>welcome</html>", "cannot be read", False),
        (200, {"choices": []}, "cannot be read", False),
    ],
)
async def test_an_engine_that_does_not_answer_rightly_now_says_nothing_about_the_weights(
    status: int, body: Any, words: str, lasting: bool
) -> None:
    async with VLLM() as vllm:
        vllm.says[COMPLETE] = (status, body)
        with pytest.raises(LoadError, match=words) as caught:
            await probe(record(vllm), NAME, within=WITHIN)
    assert not isinstance(caught.value, Unsound)
    assert caught.value.lasting is lasting


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"detail": "Not Found"}),
        (501, error("The model does not support Completions API", "NotImplementedError", 501)),
        (400, error("The model does not support Completions API", "BadRequestError", 400)),
    ],
)
async def test_an_engine_that_completes_no_text_is_taken_at_its_word(status: int, body: Any) -> None:
    async with VLLM() as vllm:
        vllm.says[COMPLETE] = (status, body)
        await probe(record(vllm), NAME, within=WITHIN)


# ---- which engines may be sent a load at any time (vllm#47724)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("0.26.0", True),
        ("0.32.0", True),
        ("0.26.0+cu130", True),
        ("0.26.0.post1", True),
        ("0.27.0rc1", True),
        ("0.26.1.dev4+g1a2b3c4", True),
        ("1.0", True),
        ("0.25.1", False),
        ("0.9.2", False),
        ("0.26.0rc2", False),
        ("0.26.0.dev7+g1a2b3c4", False),
        ("0.1.dev1+g1a2b3c4", False),
        ("dev", False),
        ("", False),
    ],
)
def test_only_a_version_that_surely_has_the_fix_is_steady(told: str, expected: bool) -> None:
    assert steady(told) is expected


async def test_an_engine_tells_its_version_and_may_keep_it_to_itself() -> None:
    async with VLLM(version="0.25.1") as vllm, Contact(record(vllm)) as contact:
        assert await version(contact, record(vllm)) == "0.25.1"
        for said in ((404, {"detail": "Not Found"}), (200, "<html>"), (200, ["0.32.0"]), (200, {"version": "\x1b[2J"})):
            vllm.says["/version"] = said
            assert await version(contact, record(vllm)) == ""
        vllm.says["/version"] = Fault.CUT
        assert await version(contact, record(vllm)) == ""
