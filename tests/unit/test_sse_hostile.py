"""B-16, B-17: whatever an upstream sends, the client gets `data:` lines of a known shape, or a clean failure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.backends.base import DecodeFault
from gateway.backends.openai import OpenAIDecoder
from gateway.domain.errors import Reason
from tests.wire import split_events

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "physical"}
LAST = {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def said(content: Any) -> dict[str, Any]:
    return {**CHUNK, "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}


def event(payload: Any) -> bytes:
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def relay(*stream: bytes) -> tuple[list[bytes], Reason | None]:
    """The events that went out, and why the stream failed, if it did."""
    decoder = OpenAIDecoder("public", False)
    out = bytearray()
    try:
        for piece in stream:
            out += decoder.feed(piece)
        decoder.end()
    except DecodeFault as fault:
        return split_events(bytes(out) + fault.flushed), fault.reason
    return split_events(bytes(out)), None


def texts(events: list[bytes]) -> list[Any]:
    return [choice["delta"].get("content") for item in events for choice in json.loads(item)["choices"]]


@pytest.mark.parametrize("content", ["a\x00b", "\ufffe\uffff", "</script><script>alert(1)", "\u2028", "\\", '"'])
@pytest.mark.parametrize("escaped", [True, False])
def test_strange_text_passes_byte_for_byte(content: str, escaped: bool) -> None:
    payload = json.dumps(said(content), ensure_ascii=escaped, separators=(",", ":")).encode()
    events, reason = relay(event(payload), event(LAST), event(b"[DONE]"))
    assert reason is None
    assert events[0] == payload.replace(b"physical", b"public")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"\xed\xa0\x80"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"\x00"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":NaN}}]}',
        b'{"choices":[{"index":0,',
        b"<html><body>502 Bad Gateway</body></html>",
        b"undefined",
        b'"text"',
        b"[]",
        b"17",
        b"null",
        b"[" * 100_000,
        b'{"choices":' + b"[" * 100_000,
    ],
)
def test_what_is_no_chunk_ends_the_stream(payload: bytes) -> None:
    events, reason = relay(event(said("before")), event(payload), event(said("after")), event(b"[DONE]"))
    assert texts(events) == ["before"]
    assert reason is Reason.UPSTREAM_PROTOCOL


def test_a_lone_surrogate_passes_or_ends_the_stream() -> None:
    payload = json.dumps(said("\ud800")).encode()
    events, reason = relay(event(payload), event(LAST), event(b"[DONE]"))
    assert reason is Reason.UPSTREAM_PROTOCOL or b"\\ud800" in events[0]


def test_only_data_passes() -> None:
    """Open WebUI acts on events that a server sends (CVE-2025-64496): no field but `data` ever reaches it."""
    hostile = (
        b"event: execute\nid: 9\nretry: 0\n: comment\n" + event(said("one")) +
        b"event: execute\ndata: " + json.dumps({"event": {"type": "execute", "data": {"code": "alert(1)"}}}).encode() +
        b"\n\nid: 1\n\nretry: 0\n\n<script>alert(1)</script>\n\n" + event(LAST) + event(b"[DONE]")
    )  # fmt: skip
    events, reason = relay(hostile)
    assert reason is None
    assert texts(events) == ["one", None]


def test_an_upstreams_status_event_does_not_ride_on_a_chunk() -> None:
    events, _ = relay(event({**said("one"), "event": {"type": "execute"}}), event(LAST), event(b"[DONE]"))
    assert texts(events) == ["one", None]
    assert b"execute" not in b"".join(events)


def test_an_early_done_ends_the_answer() -> None:
    events, reason = relay(event(said("one")), event(b"[DONE]"), event(said("two")), event({"error": {"message": "x"}}))
    assert (texts(events), reason) == (["one"], None)
    events, reason = relay(event(said("one")) + event(b"[DONE]") + event(said("two")))
    assert (texts(events), reason) == (["one"], None)


_HALF = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}


@pytest.mark.parametrize("done", [b"", event(b"[DONE]")])
@pytest.mark.parametrize(
    "failure",
    [
        {"error": {"message": "CUDA error at 0x7f01", "type": "InternalServerError", "param": None, "code": 500}},
        {"error": "out of memory"},
        {"error": {"message": "m"}, "choices": []},
        {**CHUNK, "error": {"code": 502, "message": "m"}, "choices": [_HALF]},  # as OpenRouter sends it
    ],
)
def test_an_error_event_fails_the_stream_also_when_done_follows(failure: dict[str, Any], done: bytes) -> None:
    events, reason = relay(event(said("one")), event(failure), done)
    assert texts(events) == ["one"]
    assert reason is Reason.UPSTREAM_STATUS


_TWO = event(said("two"))


@pytest.mark.parametrize(
    "ending",
    [b"", _TWO[:-1], _TWO[:-20], b"data: [DON", b": bye\n\n", b"data:", event({**CHUNK, "choices": []})],
)
def test_an_end_without_done_or_a_reason_is_no_end(ending: bytes) -> None:
    _, reason = relay(event(said("one")), ending)
    assert reason is Reason.UPSTREAM_PROTOCOL


def test_an_end_without_done_is_fine_when_every_choice_has_said_why_it_ends() -> None:
    """Some vendors never send `[DONE]`."""
    assert relay(event(said("one")), event(LAST))[1] is None
    second = {**CHUNK, "choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": None}]}
    assert relay(event(said("one")), event(second), event(LAST))[1] is Reason.UPSTREAM_PROTOCOL


@pytest.mark.parametrize("lie", [-1, 1.5, 10**18, "12", None, True, [], {}])
def test_a_usage_that_cannot_be_is_not_believed(lie: Any) -> None:
    decoder = OpenAIDecoder("public", True)
    usage = {"prompt_tokens": 3, "completion_tokens": lie, "total_tokens": lie}
    decoder.feed(event(said("one")) + event({**CHUNK, "choices": [], "usage": usage}) + event(b"[DONE]"))
    assert decoder.usage is None
    assert decoder.tokens == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _shaped(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these keys or without them, each now right, now anything at all."""
    return st.fixed_dictionaries({}, optional={key: value | _JSON for key, value in keys.items()})


_CHOICE = _shaped(
    index=st.integers(0, 3),
    delta=_shaped(content=st.text(max_size=5), tool_calls=st.lists(_JSON, max_size=2), role=st.just("assistant")),
    text=st.text(max_size=5),
    finish_reason=st.sampled_from([None, "stop"]),
)
_EVENT = _shaped(
    model=st.text(max_size=5),
    choices=st.lists(_CHOICE, max_size=3),
    usage=_shaped(prompt_tokens=st.integers(0, 9), completion_tokens=st.integers(0, 9)),
    error=st.just({"message": "m"}),
    timings=st.none(),
    event=st.just({"type": "status"}),
)


@settings(max_examples=600, deadline=None)
@given(payloads=st.lists(_EVENT | _JSON, max_size=6), done=st.booleans())
@example(payloads=[{"choices": [{"index": [], "delta": {"content": "a"}}]}], done=True)
@example(payloads=[{"choices": 5}], done=True)
@example(payloads=[{"choices": [{"index": 0, "delta": 5, "finish_reason": {}}]}], done=True)
@example(payloads=[{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}, "model": 1}], done=True)
def test_any_json_gives_clean_chunks_or_a_clean_failure(payloads: list[Any], done: bool) -> None:
    stream = b"".join(map(event, payloads)) + (event(b"[DONE]") if done else b"")
    decoder = OpenAIDecoder("public", True)
    try:
        out = decoder.feed(stream)
        decoder.end()
        out += decoder.tail(decoder.usage, {}) if decoder.usage else b""
    except DecodeFault as fault:
        out = fault.flushed
    assert decoder.tokens <= sum(
        len(p.get("choices") or ()) for p in payloads if isinstance(p, dict) and isinstance(p.get("choices"), list)
    )
    for payload in split_events(out):
        if payload != b"[DONE]":
            chunk = json.loads(payload)
            assert isinstance(chunk, dict)
            assert chunk.get("model") in (None, "public")
            assert "event" not in chunk
            assert "error" not in chunk or not chunk["error"]


@settings(max_examples=500, deadline=None)
@given(
    stream=st.lists(
        st.binary(max_size=60) | st.sampled_from([b"data: ", b"\n\n", b"\r", b"{}", b"[DONE]"]), max_size=20
    )
)
def test_any_bytes_give_clean_lines_or_a_clean_failure(stream: list[bytes]) -> None:
    events, reason = relay(*stream)
    assert reason in (None, Reason.UPSTREAM_PROTOCOL, Reason.UPSTREAM_STATUS)
    assert all(json.loads(item) is not None for item in events)


@pytest.mark.parametrize(
    "names", [b'"model":12,"model":1', b'"model":"a","model":"b"', b'"model": "a"', b'"model" : "a"']
)
def test_the_model_is_renamed_however_it_is_written(names: bytes) -> None:
    events, _ = relay(event(b"{" + names + b',"choices":[{"index":0,"delta":{"content":"\\"model\\":\\"a\\""}}]}'))
    assert json.loads(events[0])["model"] == "public"
    assert texts(events) == ['"model":"a"']
