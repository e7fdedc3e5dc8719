"""B-5, B-6: a malformed request is a 4xx in OpenAI's form at once, and no upstream ever hears of it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.integration.rig import AUTH, PROMPT, Rig, chat, rig
from tests.patience import LATE

pytestmark = pytest.mark.asyncio(loop_scope="module")

MARK = "wombat-7731"  # stands in each bad body and in no answer
CHAT = "/v1/chat/completions"
STATUSES = {400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 422, 431, 429}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """One gateway for all: what one bad request breaks, the next one finds."""
    async with OpenAIUpstream() as upstream:
        async with rig(tmp_path_factory.mktemp("bad"), {"one": upstream}, server={"max_body_mib": 1}) as running:
            yield running
            assert not upstream.ledger
            assert (await running.chat()).text == "One two three four five"


async def refused(gateway: Rig, body: Any, path: str = CHAT, kind: str = "application/json") -> wire.Reply:
    """The answer, checked: a 4xx in OpenAI's form, small, no echo."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with asyncio.timeout(LATE), wire.connected(gateway.url) as client:
        await client.request("POST", path, data, (("content-type", kind), *AUTH))
        reply = await client.reply()
    assert reply.status in STATUSES, reply
    assert reply.error["type"]
    assert len(reply.body) < 2000
    assert MARK.encode() not in reply.body
    assert PROMPT.encode() not in reply.body
    assert reply.header("x-request-id")
    return reply


def body(**changes: Any) -> dict[str, Any]:
    return {**chat(stream=False), "user": MARK, **changes}


GOOD = json.dumps(body()).encode()
NESTED = b'{"model":"m","user":"wombat-7731","messages":'
MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"wombat-7731"',
    "a number": b"17",
    "half": GOOD[: len(GOOD) // 2],
    "two documents": GOOD + GOOD,
    "something after it": GOOD + b" wombat-7731",
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "gzip": gzip.compress(GOOD),
    "invalid UTF-8": GOOD.replace(b"wombat", b"\xff\xfe"),
    "a lone surrogate": GOOD.replace(b"wombat", b"\\ud800"),
    "an encoded surrogate": GOOD.replace(b"wombat", b"\xed\xa0\x80"),
    "NUL": GOOD.replace(b"wombat", b"\x00"),
    "NaN": GOOD[:-1] + b',"temperature":NaN}',
    "infinity": GOOD[:-1] + b',"temperature":-Infinity}',
    "a number beyond all": GOOD[:-1] + b',"temperature":1e400}',
    "5000 digits": GOOD[:-1] + b',"seed":' + b"7" * 5000 + b"}",
    "deep lists": NESTED + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": NESTED + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "65 levels": NESTED + b"[" * 65 + b"]" * 65 + b"}",
    "deep and open": b"[" * 500_000,
    "the model twice": GOOD[:-1] + b',"model":"other"}',
    "the model twice, escaped": GOOD[:-1] + b',"\\u006dodel":"other"}',
    "stream twice": GOOD[:-1] + b',"stream":true}',
    "a role twice": GOOD.replace(b'"role":', b'"role": "system", "role":'),
    "a comment": b"// wombat-7731\n" + GOOD,
    "single quotes": GOOD.replace(b'"', b"'"),
    "a trailing comma": GOOD[:-1] + b",}",
}

WRONG: dict[str, dict[str, Any]] = {
    "no model": {"model": None},
    "empty model": {"model": ""},
    "model as number": {"model": 5},
    "model as list": {"model": ["m"]},
    "long model": {"model": "x" * 300},
    "no messages": {"messages": None},
    "empty messages": {"messages": []},
    "messages as text": {"messages": MARK},
    "messages as object": {"messages": {}},
    "message as text": {"messages": [MARK]},
    "message as list": {"messages": [[]]},
    "no role": {"messages": [{"content": MARK}]},
    "role as number": {"messages": [{"role": 5, "content": MARK}]},
    "content as number": {"messages": [{"role": "user", "content": 5}]},
    "content as object": {"messages": [{"role": "user", "content": {"text": MARK}}]},
    "stream as text": {"stream": "true"},
    "stream as number": {"stream": 1},
    "stream options without stream": {"stream_options": {"include_usage": True}},
    "stream options as list": {"stream": True, "stream_options": []},
    "n zero": {"n": 0},
    "n negative": {"n": -1},
    "n huge": {"n": 10**9},
    "n fraction": {"n": 1.5},
    "n true": {"n": True},
    "n text": {"n": "1"},
    "max_tokens zero": {"max_tokens": 0},
    "max_tokens negative": {"max_tokens": -1},
    "max_tokens 2^63": {"max_tokens": 2**63},
    "max_tokens beyond 64 bits": {"max_tokens": 2**70},
    "max_completion_tokens text": {"max_completion_tokens": "5"},
    "temperature text": {"temperature": MARK},
    "temperature true": {"temperature": True},
    "temperature list": {"temperature": []},
    "top_p object": {"top_p": {}},
    "tools object": {"tools": {}},
    "response_format text": {"response_format": "json"},
    "stop number": {"stop": 5},
    "logit_bias list": {"logit_bias": []},
    "seed fraction": {"seed": 1.5},
    "user list": {"user": []},
    "metadata list": {"metadata": []},
    "chat_template_kwargs list": {"chat_template_kwargs": []},
    "a trap for the tokenizer": {"chat_template_kwargs": {"tokenize": True}},
}

ELSEWHERE: dict[str, tuple[str, Any]] = {
    "completions without prompt": ("/v1/completions", {"model": "m"}),
    "completions with a number": ("/v1/completions", {"model": "m", "prompt": 5}),
    "completions with an object": ("/v1/completions", {"model": "m", "prompt": {}}),
    "embeddings without input": ("/v1/embeddings", {"model": "m"}),
    "embeddings of nothing": ("/v1/embeddings", {"model": "m", "input": []}),
    "embeddings of an object": ("/v1/embeddings", {"model": "m", "input": {}}),
    "embeddings in a strange format": ("/v1/embeddings", {"model": "m", "input": "a", "encoding_format": "hex"}),
    "tokenize without prompt": ("/tokenize", {"model": "m"}),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_json_is_a_400(gateway: Rig, name: str) -> None:
    assert (await refused(gateway, MALFORMED[name])).status == 400


@pytest.mark.parametrize("name", WRONG)
async def test_a_parameter_that_cannot_be_is_a_400_that_names_it(gateway: Rig, name: str) -> None:
    reply = await refused(gateway, body(**WRONG[name]))
    assert reply.status == 400
    assert reply.error["param"] in WRONG[name]


@pytest.mark.parametrize("name", ELSEWHERE)
async def test_the_other_endpoints_are_no_more_lenient(gateway: Rig, name: str) -> None:
    path, wrong = ELSEWHERE[name]
    assert (await refused(gateway, wrong, path)).status == 400


@pytest.mark.parametrize("name", ["chat_template", "kv_transfer_params", "priority", "request_id"])
async def test_what_reaches_into_the_engine_needs_a_right(gateway: Rig, name: str) -> None:
    assert (await refused(gateway, body(**{name: MARK}))).status == 403


@pytest.mark.parametrize(
    "model",
    [
        "other",
        "M",
        "m ",
        "../../etc/passwd",
        "/etc/passwd",
        "m\x00",
        "m\r\nx-a: 1",
        "ｍ",
        "m@",
        "one/m",
        "__proto__",
        "м",
    ],
)
async def test_a_model_that_is_none_is_a_404(gateway: Rig, model: str) -> None:
    reply = await refused(gateway, body(model=model))
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "*/*",
    ],
)
async def test_what_is_not_declared_json_is_a_415(gateway: Rig, kind: str) -> None:
    """A browser sends text/plain to any site without asking it first."""
    assert (await refused(gateway, GOOD, kind=kind)).status == 415


async def test_a_body_over_the_limit_is_a_413(gateway: Rig) -> None:
    reply = await wire.post(gateway.url, CHAT, body(pad="x" * 2**20), AUTH)
    assert reply.status == 413
    assert reply.error["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", CHAT, 405), ("PUT", CHAT, 405), ("TRACE", CHAT, 405), ("DELETE", "/v1/models", 405),
     ("POST", "/v1/models", 405), ("GET", "/", 404), ("GET", "/v1/engines", 404), ("POST", "/api/pull", 404),
     ("POST", "/v1/load_lora_adapter", 404), ("POST", f"{CHAT}/", 404),
     ("GET", "/v1/models/nope", 404), ("GET", "/v1/models/..%2f..%2fetc", 404)],
)  # fmt: skip
async def test_a_route_that_is_none_is_an_error_in_the_same_form(
    gateway: Rig, method: str, path: str, status: int
) -> None:
    async with wire.connected(gateway.url) as client:
        await client.request(method, path, headers=AUTH)
        reply = await asyncio.wait_for(client.reply(), LATE)
    assert reply.status == status
    assert reply.error["message"]


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NEVER_RIGHT = {
    "model": _ANY.filter(lambda value: not isinstance(value, str)),
    "messages": _ANY.filter(lambda value: not isinstance(value, list)),
    "stream": _ANY.filter(lambda value: not isinstance(value, bool) and value is not None),
    "n": _ANY.filter(lambda value: not isinstance(value, int) and value is not None),
    "tools": _ANY.filter(lambda value: not isinstance(value, list) and value is not None),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(sorted(_NEVER_RIGHT)))
async def test_no_value_of_the_wrong_kind_gets_through(gateway: Rig, data: st.DataObject, name: str) -> None:
    wrong = body(**{name: data.draw(_NEVER_RIGHT[name])})
    assert (await refused(gateway, wrong)).status == 400


@settings(max_examples=150, deadline=None)
@given(noise=st.binary(max_size=200))
async def test_no_noise_gets_through(gateway: Rig, noise: bytes) -> None:
    assert (await refused(gateway, noise)).status == 400


async def test_a_thousand_bad_requests_leave_no_trace(gateway: Rig) -> None:
    """In memory; the fixture sees to the rest."""
    deep = MALFORMED["deep objects"]

    async def some() -> None:
        async with wire.connected(gateway.url) as client:
            for _ in range(50):
                await client.post(CHAT, deep, AUTH)
                assert (await client.reply()).status == 400

    await some()
    before = psutil.Process().memory_info().rss
    await asyncio.gather(*(some() for _ in range(20)))
    assert psutil.Process().memory_info().rss - before < 20 * 2**20
