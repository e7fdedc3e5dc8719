"""A line of the content log is bounded, has no pictures, and is whole JSON whatever an upstream has sent."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dataplane.reply import Message
from gateway.dataplane.transcript import Transcript
from gateway.domain.content import Content
from gateway.telemetry.contentline import BOUND, line

NOTHING = Content("req_1", 0, "", "k", "k", "", "", "m", "", 200, "completed", {}, (), True, 0)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)
_NAMES = ["choices", "index", "delta", "message", "content", "tool_calls", "function", "arguments", "error", "text"]
_SHAPES = st.recursive(
    _VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4),
    max_leaves=30,
)


def told(**more: Any) -> dict[str, Any]:
    written = line(replace(NOTHING, **more))
    assert written.endswith(b"\n")
    assert written.count(b"\n") == 1
    parsed: dict[str, Any] = json.loads(written)
    return parsed


def stream(*deltas: dict[str, Any]) -> tuple[bytes, ...]:
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return (*(f"data: {json.dumps(event)}\n\n".encode() for event in events), b"data: [DONE]\n\n")


def size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def test_pictures_sounds_and_files_are_told_by_their_length_and_texts_are_kept() -> None:
    picture = "data:image/png;base64," + "A" * 1000
    parts = [
        {"type": "text", "text": "data:, is how such a URL begins"},
        {"type": "image_url", "image_url": {"url": picture, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "B" * 500, "format": "wav"}},
        {"type": "file", "file": {"file_data": picture, "filename": "a.png"}},
    ]
    body = {"messages": [{"role": "system", "content": "data:text"}, {"role": "user", "content": parts}]}
    system, user = told(body=body)["request"]["messages"]
    assert system["content"] == "data:text"
    assert user["content"] == [
        parts[0],
        {"type": "image_url", "image_url": {"url": "[1022 bytes]", "detail": "low"}},
        parts[2],
        {"type": "input_audio", "input_audio": {"data": "[500 bytes]", "format": "wav"}},
        {"type": "file", "file": {"file_data": "[1022 bytes]", "filename": "a.png"}},
    ]


def test_what_was_thought_is_told_once_and_apart_from_what_was_said() -> None:
    answer = stream(
        {"role": "assistant", "reasoning": "Hm", "reasoning_content": "Hm"}, {"reasoning_content": "m."},
        {"content": "Yes"}, {"content": "."},
    )  # fmt: skip
    assert told(answer=answer)["answer"] == {"choices": [{"index": 0, "content": "Yes.", "reasoning": "Hmm."}]}


def test_calls_of_several_tools_are_put_together_by_their_index() -> None:
    answer = stream(
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '":1}'}}]},
    )
    assert told(answer=answer)["answer"]["choices"][0]["tool_calls"] == [
        {"id": "a", "name": "f", "arguments": "{}"},
        {"id": "b", "name": "g", "arguments": '{"x":1}'},
    ]


def test_the_gateways_own_events_are_no_part_of_an_answer() -> None:
    status = b'data: {"event":{"type":"status","data":{"description":"Queued","done":false}}}\n\n'
    assert told(answer=(status, *stream({"content": "x"})))["answer"] == {"choices": [{"index": 0, "content": "x"}]}


@pytest.mark.parametrize("letter", ["x", "ü", "好", "🙂", '"', "\x00"])
def test_what_is_too_long_is_cut_at_a_character(letter: str) -> None:
    long = letter * BOUND
    written = told(
        body={"messages": [{"role": "user", "content": long}], "temperature": 1}, answer=stream({"content": long})
    )
    assert written["truncated"] is True
    asked = written["request"]["messages"][0]["content"]
    (answered,) = written["answer"]["choices"]
    for text in (asked, answered["content"]):
        assert text
        assert set(text) == {letter}
    for part in (written["request"], written["answer"]):
        assert BOUND * 0.9 < len(json.dumps(part, ensure_ascii=False).encode()) <= BOUND


def test_a_long_list_is_cut_at_an_item() -> None:
    written = told(body={"prompt": list(range(1_000_000))})
    prompt = written["request"]["prompt"]
    assert written["truncated"] is True
    assert prompt == list(range(len(prompt)))
    assert size(written["request"]) <= BOUND


@given(body=st.dictionaries(st.text(max_size=9), _VALUES, max_size=5))
def test_what_is_short_is_told_as_it_was(body: dict[str, Any]) -> None:
    written = told(body=body)
    assert written["truncated"] is False
    assert written["request"] == body


@given(events=st.lists(_SHAPES, max_size=5), streamed=st.booleans())
def test_whatever_an_upstream_sends_there_is_a_line(events: list[Any], streamed: bool) -> None:
    sent = [json.dumps(event).encode() for event in events]
    told(answer=tuple(b"data: " + event + b"\n\n" for event in sent) if streamed else tuple(sent[:1]))


@given(answer=st.lists(st.binary(max_size=50), max_size=5))
def test_also_when_it_is_no_json(answer: list[bytes]) -> None:
    assert told(answer=tuple(answer))["truncated"] is False


async def test_a_stream_without_end_is_not_kept_without_end() -> None:
    transcript = Transcript()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        await asyncio.sleep(0)

    hearing = transcript.hearing(send, "/v1/chat/completions")
    await hearing({"type": "http.response.start", "status": 200, "headers": []})
    (event,) = stream({"content": "x" * 100_000})[:1]
    for _ in range(300):
        await hearing({"type": "http.response.body", "body": event, "more_body": True})
    assert len(sent) == 301
    assert not transcript.whole
    assert transcript.size == sum(map(len, transcript.answer)) <= 16 * 1024 * 1024
    written = told(answer=tuple(transcript.answer), whole=transcript.whole)
    assert written["truncated"] is True
