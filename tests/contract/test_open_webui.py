"""Open WebUI's own request shapes get what it can show: lists, turns, tasks, waits, usage and errors.

The requests are those of Open WebUI 0.12.4, recorded on the wire (tests/contract/open_webui.py).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import wire
from tests.contract.open_webui import ASK, FORWARDED, HTML, PLAIN, STEP, TASK, Stage, builtin_tools, sent, stage, task
from tests.fakes import faults
from tests.fakes.openai_dialect import PIECES
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.gateway import ROOT, running_gateway
from tests.patience import LATE
from tests.wire import Reply

FAKE_VLLM = ROOT / "tests" / "fakes" / "fake_vllm.py"
pytestmark = pytest.mark.asyncio(loop_scope="module")

TASKS = (
    "title_generation", "follow_up_generation", "tags_generation", "emoji_generation", "query_generation",
    "image_prompt_generation", "autocomplete_generation", "function_calling", "moa_response_generation",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owui(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("openwebui")) as running:
        yield running


# -- the list of models: 3.1, 3.4


async def test_the_list_says_what_open_webui_shows(owui: Stage) -> None:
    models = await owui.models()
    meta = models["large"]["info"]["meta"]
    assert models["large"]["name"] == "The Large One"
    assert models["large"]["context_length"] == 128_000
    assert meta["description"] == "Knows most things."
    assert meta["tags"] == [{"name": "cloud"}]
    assert meta["capabilities"] == {"usage": True, "builtin_tools": True, "vision": True}
    assert models["local"]["name"] == "local"
    assert models["local"]["max_model_len"] == 2048


async def test_usage_is_on_and_tools_come_only_where_they_fit(owui: Stage) -> None:
    capabilities = {name: model["info"]["meta"]["capabilities"] for name, model in (await owui.models()).items()}
    assert all(shown["usage"] is True for shown in capabilities.values())
    with_tools = {name for name, shown in capabilities.items() if shown["builtin_tools"]}
    assert with_tools == {"large", "qwen3:8b"}


async def test_nothing_in_the_list_turns_open_webui_into_something_else(owui: Stage) -> None:
    """`pipelines` would make it speak another protocol; a null is a value that it does not expect."""
    reply = await wire.get(owui.gateway.url, "/v1/models", FORWARDED)
    assert b"pipeline" not in reply.body
    assert b"null" not in reply.body
    assert not [m for m in reply.json["data"] if {"state", "loaded_instances", "pipe"} & m.keys()]
    assert {m["status"]["value"] for m in reply.json["data"]} == {"available"}, "nothing here can be loaded or ejected"


async def test_every_user_sees_the_same_list(owui: Stage) -> None:
    """Open WebUI keeps one list for all of them."""
    admin = [*PLAIN, ("x-openwebui-user-role", "admin"), ("x-openwebui-user-id", "1")]
    assert await owui.models() == await owui.models(headers=admin) == await owui.models(headers=PLAIN)


@pytest.mark.parametrize("path", ["/v1/models", "/v1//models"])
async def test_a_base_url_may_end_with_a_slash(owui: Stage, path: str) -> None:
    assert "large" in await owui.models(path)


async def test_a_chat_at_a_base_url_with_a_slash(owui: Stage) -> None:
    assert (await owui.chat("large", path="/v1//chat/completions")).done


async def test_the_list_comes_at_once_while_an_upstream_hangs(tmp_path: Path) -> None:
    async with OpenAIUpstream() as vendor:
        with faults.black_hole() as hole:
            upstreams: list[Any] = [
                {"name": "a", "kind": "openai", "base_url": vendor.url},
                {"name": "b", "kind": "openai", "base_url": hole, "models": ["m2"], "when_down": "keep"},
                {"name": "c", "kind": "ollama", "base_url": hole.removesuffix("/v1")},
            ]
            config = {"upstreams": upstreams, "timeouts": {"connect": 9 * LATE}}
            async with running_gateway(config, tmp_path) as gateway:

                async def listed() -> set[str]:
                    reply = await wire.get(gateway.url, "/v1/models", FORWARDED, within=LATE)
                    return {model["id"] for model in reply.json["data"]}

                async with asyncio.timeout(LATE):
                    while not {"m", "m2"} <= await listed():
                        await asyncio.sleep(0.01)  # until the upstream that answers has been asked for its models
                for _ in range(10):
                    assert {"m", "m2"} <= await listed()


# -- a person's turn: 3.2, 3.3, 3.5


async def test_a_turn_with_all_the_built_in_tools(owui: Stage) -> None:
    tools = builtin_tools()
    assert len(json.dumps(tools)) > 26_000
    reply = await owui.chat("large", task(""), tools=tools, stream_options={"include_usage": True})
    assert reply.done
    assert sent(owui.vendor)["tools"] == tools
    assert reply.chunks[-1]["usage"]["completion_tokens"] > 0


async def test_tools_are_taken_out_where_they_would_break_the_engine(owui: Stage) -> None:
    reply = await owui.chat("local", tools=builtin_tools())
    assert reply.text == "One two three four five"
    assert not {"tools", "tool_choice"} & sent(owui.engine).keys()
    assert "tools" in (reply.header("x-gateway-dropped-params") or "")


async def test_a_tool_loop_goes_round(owui: Stage) -> None:
    """Open WebUI runs the call and asks again, with the history as OpenAI has it."""
    for model in ("large", "qwen3:8b"):
        first = await owui.chat(model, tools=builtin_tools(2))
        deltas = [call for chunk in first.chunks for c in chunk["choices"] for call in c["delta"].get("tool_calls", [])]
        assert all("index" in call for call in deltas), "an entry without an index is ignored"
        arguments = "".join(call["function"].get("arguments", "") for call in deltas)
        call = {"id": deltas[0]["id"], "type": "function"}
        call["function"] = {"name": "builtin_0", "arguments": arguments}
        again = await owui.chat(
            model, tools=builtin_tools(2),
            messages=[
                *ASK, {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": "Rome"},
            ],
        )  # fmt: skip
        assert again.text == "One two three four five", model


async def test_forwarded_identities_stop_at_the_gateway(owui: Stage) -> None:
    for server, model in ((owui.vendor, "large"), (owui.ollama, "qwen3:8b")):
        await owui.chat(model, task("title_generation") if model == "small" else task(""))
        headers = server.ledger[-1].request.headers
        assert not [name for name, value in headers if "openwebui" in name or "bob" in value or "B%C3" in value]


ONLY_OLLAMA: dict[str, Any] = {
    "num_ctx": 8192, "top_k": 40, "repeat_penalty": 1.1, "mirostat": 2, "mirostat_eta": 0.1, "keep_alive": "10m",
    "think": True, "format": "json", "min_p": 0.05, "num_gpu": 99, "use_mmap": True, "num_keep": 5, "tfs_z": 1,
    "reasoning_effort": "high", "custom_param": {"a": 1}, "logit_bias": {"50256": -100}, "stop": ["</s>", "User:"],
    "max_tokens": 50, "temperature": 0.7, "seed": 1, "function_calling": "native",
}  # fmt: skip


@pytest.mark.parametrize("model", ["large", "local", "qwen3:8b"])
async def test_a_models_settings_for_another_engine_do_no_harm(owui: Stage, model: str) -> None:
    reply = await owui.chat(model, **ONLY_OLLAMA)
    assert reply.status == 200, reply
    assert reply.done


@pytest.mark.parametrize("model", ["large", "local", "qwen3:8b"])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_either_limit_limits(owui: Stage, model: str, name: str) -> None:
    """Open WebUI renames the one to the other by the look of the model's name."""
    reply = await owui.chat(model, **{name: 2})
    assert [c["finish_reason"] for chunk in reply.chunks for c in chunk["choices"]][-1] == "length"


async def test_an_alias_that_looks_like_a_reasoning_model_brings_a_developer(owui: Stage) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *ASK]
    for model, server in (("local", owui.engine), ("qwen3:8b", owui.ollama), ("large", owui.vendor)):
        assert (await owui.chat(model, messages=messages, max_completion_tokens=9)).done
        role = "developer" if model == "large" else "system"
        assert sent(server)["messages"][0] == {"role": role, "content": "Be brief."}


async def test_continue_goes_on_with_the_assistants_words(owui: Stage) -> None:
    messages = [*ASK, {"role": "assistant", "content": "The capital of"}]
    for model, server in (("local", owui.engine), ("qwen3:8b", owui.ollama), ("large", owui.vendor)):
        assert (await owui.chat(model, messages=messages)).done
        assert sent(server)["messages"][-1] == messages[-1]
    assert sent(owui.engine)["continue_final_message"] is True
    assert sent(owui.engine)["add_generation_prompt"] is False
    await owui.chat("local")
    assert "continue_final_message" not in sent(owui.engine)
    await owui.chat("local", PLAIN, messages=messages)  # other clients mean what they send
    assert "continue_final_message" not in sent(owui.engine)


#: What a connection of the kind llama.cpp adds to "Continue".
GO_ON: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}


async def test_continue_of_a_connection_with_buttons_is_the_same(owui: Stage) -> None:
    messages = [*ASK, {"role": "assistant", "content": "The capital of"}]
    for model, server in (("local", owui.engine), ("qwen3:8b", owui.ollama), ("large", owui.vendor)):
        assert (await owui.chat(model, messages=messages, **GO_ON)).done
        assert sent(server)["messages"][-1] == messages[-1]
        assert (GO_ON.items() <= sent(server).items()) == (model == "local"), model
        assert model == "local" or not GO_ON.keys() & sent(server).keys()


async def test_continue_before_the_first_word_begins_an_answer(owui: Stage) -> None:
    silent = {"role": "assistant", "content": "", "reasoning_content": "Let me see."}
    assert (await owui.chat("local", messages=[*ASK, silent], **GO_ON)).done
    assert not GO_ON.keys() & sent(owui.engine).keys()


async def test_earlier_thoughts_reach_only_those_that_have_a_field_for_them(owui: Stage) -> None:
    """A connection of the kind llama.cpp sends them, whichever model thought them."""
    said = {"role": "assistant", "content": "Rome."}
    thought = {**said, "reasoning_content": "Let me see."}
    messages = [*ASK, thought, {"role": "user", "content": "And of France?"}]
    wanted = {"local": thought, "qwen3:8b": {**said, "thinking": "Let me see."}, "large": said}
    for model, server in (("local", owui.engine), ("qwen3:8b", owui.ollama), ("large", owui.vendor)):
        assert (await owui.chat(model, messages=messages)).done
        assert sent(server)["messages"][1] == wanted[model], model
    await owui.chat("large", PLAIN, messages=messages)  # other clients mean what they send
    assert sent(owui.vendor)["messages"][1] == thought


async def test_pictures_and_files_come_inlined(owui: Stage) -> None:
    picture = "data:image/png;base64," + base64.b64encode(os.urandom(6_000_000)).decode()
    content = [
        {"type": "text", "text": "<attached_files>\n<file type='file' url='1'/>\n</attached_files>\n\n"},
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    assert (await owui.chat("large", messages=[{"role": "user", "content": content}])).done
    assert sent(owui.vendor)["messages"][0]["content"] == content


async def test_a_body_may_come_in_chunks_of_unknown_number(owui: Stage) -> None:
    body = json.dumps({"stream": True, "model": "large", "messages": ASK}).encode()
    headers = [*FORWARDED, ("transfer-encoding", "chunked"), ("content-type", "application/json")]
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "host: g", *(f"{n}: {v}" for n, v in headers), "", ""])
    async with wire.connected(owui.gateway.url) as client:
        await client.send(head.encode())
        for start in range(0, len(body), 7):
            piece = body[start : start + 7]
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await client.send(b"0\r\n\r\n")
        reply = await client.reply()
    assert reply.done


@pytest.mark.parametrize("model", ["large", "local", "qwen3:8b"])
async def test_a_stream_is_one_that_open_webui_reads(owui: Stage, model: str) -> None:
    reply = await owui.chat(model, stream_options={"include_usage": True})
    assert (reply.header("content-type") or "").startswith("text/event-stream")
    assert reply.header("content-encoding") is None
    assert reply.header("x-accel-buffering") == "no"
    assert reply.done
    for chunk in reply.chunks:
        assert not [name for name in ("choices", "timings", "type", "event", "error") if chunk.get(name, 0) is None]
        assert all(choice["delta"] is not None for choice in chunk["choices"])


async def test_thoughts_come_where_open_webui_folds_them(owui: Stage) -> None:
    reply = await owui.chat("qwen3:8b")
    thoughts = [c["delta"].get("reasoning_content", "") for chunk in reply.chunks for c in chunk["choices"]]
    assert "".join(thoughts) == "Let me see."


# -- background tasks: 3.2, 3.3


@pytest.mark.parametrize("name", TASKS)
async def test_a_background_task_goes_to_the_small_model(owui: Stage, name: str) -> None:
    before = len(owui.engine.ledger)
    reply = await owui.chat("local", task(name), stream=False, messages=TASK, max_tokens=1000)
    assert json.loads(reply.json["choices"][0]["message"]["content"]) == {"title": "Capital"}
    assert reply.json["model"] == "local", "the answer has the name that was asked for"
    assert sent(owui.vendor)["model"] == "small"
    assert len(owui.engine.ledger) == before


async def test_a_persons_own_turn_does_not(owui: Stage) -> None:
    await owui.chat("local", task(""))
    assert sent(owui.engine)["model"] == "local"


# -- waiting: finding 4


async def queued(owui: Stage, before: int = 0) -> list[Reply]:
    """The answers of those that had to wait for the only place: so many that are not Open WebUI, and behind them one
    that is, after it was shown its place."""
    number = len(owui.vendor.ledger)
    others = [asyncio.create_task(owui.chat("busy", PLAIN))]
    await owui.vendor.attempt(number)
    others += [asyncio.create_task(owui.chat("busy", PLAIN)) for _ in range(before)]
    async with asyncio.timeout(3 * LATE), wire.connected(owui.gateway.url) as client:
        while await owui.gateway.metric("gateway_requests_waiting", upstream="narrow") < before:
            pass
        await client.post("/v1/chat/completions", {"stream": True, "model": "busy", "messages": ASK}, FORWARDED)
        head = await client.head()  # comes with the first line of the status
        for following in range(before + 2):
            attempt = await owui.vendor.attempt(number + following)
            for _ in PIECES:
                attempt.wanted.release()
        shown = await client.rest(*head)
        first, *plain = await asyncio.gather(*others)
    assert first.done
    return [*plain, shown]


async def test_a_place_in_the_queue_is_shown_and_then_taken_away(owui: Stage) -> None:
    (reply,) = await queued(owui)
    statuses = [chunk["event"] for chunk in reply.chunks if "event" in chunk]
    assert [status["type"] for status in statuses] == ["status"] * len(statuses)
    assert statuses[0]["data"] == {"description": "Queued, position 1", "done": False}
    assert statuses[-1]["data"]["done"] is True
    said = [chunk for chunk in reply.chunks if "event" not in chunk]
    assert reply.chunks == [{"event": status} for status in statuses] + said
    assert "".join(c["delta"].get("content", "") for chunk in said for c in chunk["choices"])
    assert reply.done


async def test_an_engine_that_loads_is_shown_and_then_answers(tmp_path: Path) -> None:
    engine = {"model": "base", "command": [sys.executable, str(FAKE_VLLM)], "env": {"FAKE_VLLM": "boot=3"}}
    upstreams = [{"name": "local", "kind": "vllm", "engine": engine}]
    async with running_gateway({"upstreams": upstreams}, tmp_path, wait=False) as gateway:
        body = {"stream": True, "model": "base", "messages": ASK}
        reply = await wire.post(gateway.url, "/v1/chat/completions", body, FORWARDED)
    shown = [chunk["event"]["data"] for chunk in reply.chunks if "event" in chunk]
    assert shown[0]["description"].startswith("the engine 'local' is starting")
    assert shown[-1]["done"] is True
    assert reply.done
    assert [chunk for chunk in reply.chunks if "choices" in chunk]


async def test_nobody_else_is_shown_a_status(owui: Stage) -> None:
    """Other clients fail on a chunk without choices."""
    reply, _ = await queued(owui, before=1)
    assert all("choices" in chunk for chunk in reply.chunks)
    assert reply.done


async def test_stop_reaches_whatever_works_for_it_at_once(owui: Stage) -> None:
    """In the queue, before the first byte and in the middle of an answer."""
    for model in ("hangs", "stalls"):
        number = len(owui.vendor.ledger)
        async with wire.connected(owui.gateway.url) as client:
            await client.post("/v1/chat/completions", {"stream": True, "model": model, "messages": ASK}, FORWARDED)
            attempt = await owui.vendor.attempt(number)
            if model == "stalls":
                await client.head()
                await client.chunk()
            client.close()
            await asyncio.wait_for(attempt.over.wait(), LATE)
        assert attempt.outcome == "left", model


# -- usage: finding 3


async def test_usage_carries_what_people_want_to_see(owui: Stage) -> None:
    begun = time.monotonic()
    reply = await owui.chat("large", stream_options={"include_usage": True})
    took = time.monotonic() - begun
    usage = reply.chunks[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["cost"] == pytest.approx((usage["prompt_tokens"] * 2 + usage["completion_tokens"] * 8) / 1e6)
    slowest, fastest = (usage["completion_tokens"] - 1) / took, 10 / STEP
    assert slowest * 0.99 < usage["tokens_per_second"] < fastest
    assert usage["upstream"] == "vendor"
    assert usage["time_to_first_token_ms"] >= 0


async def test_a_model_without_prices_has_no_cost(owui: Stage) -> None:
    usage = (await owui.chat("local", stream_options={"include_usage": True})).chunks[-1]["usage"]
    assert "cost" not in usage
    assert usage["tokens_per_second"] > 0


async def test_other_clients_get_usage_as_openai_has_it(owui: Stage) -> None:
    usage = (await owui.chat("large", PLAIN, stream_options={"include_usage": True})).chunks[-1]["usage"]
    assert usage.keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}


# -- errors: 3.6, 6


async def test_an_upstreams_words_on_a_refused_request_are_shown(owui: Stage) -> None:
    reply = await owui.chat("refuses")
    assert (reply.status, reply.error["message"]) == (400, "Too many tools.")


async def test_nobody_ever_sees_html(owui: Stage) -> None:
    for stream in (True, False):
        reply = await owui.chat("html", stream=stream)
        assert reply.status == 502
        assert reply.error["message"]
        assert HTML[:6] not in reply.body


async def test_a_connection_that_drops_ends_in_an_error_that_can_be_shown(owui: Stage) -> None:
    reply = await owui.chat("cut")
    assert reply.text == "One two"
    assert reply.failure["message"]
    assert "choices" not in json.loads(reply.events[-1]), "an error beside choices is ignored"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("POST", "/v1/chat/completions", PLAIN[1:], b"{}", 401),
        ("GET", "/v1/models", [("authorization", "Bearer wrong")], b"", 401),
        ("POST", "/v1/chat/completions", PLAIN, b'{"model":"absent","messages":[{"role":"user"}]}', 404),
        ("POST", "/v1/chat/completions", PLAIN, b"{", 400),
        ("POST", "/v1/chat/completions", PLAIN, b'{"model":"large","messages":[]}', 400),
        ("POST", "/v1/chat/completions", PLAIN, b'{"model":"large","messages":"x"}', 400),
        ("GET", "/v1/chat/completions", PLAIN, b"", 405),
        ("POST", "/v1/models", PLAIN, b"{}", 405),
        ("GET", "/v1/audio/voices", PLAIN, b"", 404),
        ("GET", "/v1/audio/models", PLAIN, b"", 404),
        ("POST", "/v1/messages/count_tokens", PLAIN, b"{}", 404),
        ("GET", "/", PLAIN, b"", 404),
    ],
)
async def test_every_refusal_is_json_with_a_message(
    owui: Stage, method: str, path: str, headers: list[tuple[str, str]], body: bytes, status: int
) -> None:
    async with wire.connected(owui.gateway.url) as client:
        await client.request(method, path, body, [("content-type", "application/json"), *headers])
        reply = await client.reply()
    assert reply.status == status
    assert reply.error["message"]


async def test_a_body_that_is_too_large_is_refused_and_64_mib_is_not(owui: Stage) -> None:
    body = b'{"model":"large","messages":[{"role":"user","content":"%b"}]}'
    full = body % (b"a" * ((64 << 20) - len(body) + 2))
    assert len(full) == 64 << 20
    assert (await wire.post(owui.gateway.url, "/v1/chat/completions", full, FORWARDED)).status == 200
    async with wire.connected(owui.gateway.url) as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 67108865\r\n")
        fields = [*FORWARDED, ("content-type", "application/json")]
        await client.send("".join(f"{name}: {value}\r\n" for name, value in fields).encode() + b"\r\n")
        reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


async def test_embeddings_for_its_knowledge(owui: Stage) -> None:
    body = {"input": ["one", "two"], "model": "nomic:latest"}
    reply = await wire.post(owui.gateway.url, "/v1/embeddings", body, FORWARDED)
    assert [len(one["embedding"]) for one in reply.json["data"]] == [8, 8]
    shown = (await owui.models())["nomic:latest"]["info"]["meta"]
    assert shown["hidden"] is True, "a model for embeddings is not one to chat with"
