"""B-14: wherever the network cuts a stream, the client gets the same events, byte for byte."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.backends.sse import EventSplitter
from tests.unit.streams import RECORDED, decode, dressed, reference
from tests.wire import split_events

STREAMS = dict(dressed())


@pytest.mark.parametrize("name", STREAMS)
def test_every_split_in_two_gives_the_same_events(name: str) -> None:
    stream = STREAMS[name]
    wanted = reference(stream)
    assert wanted
    for offset in range(len(stream) + 1):
        splitter = EventSplitter()
        assert splitter.feed(stream[:offset]) + splitter.feed(stream[offset:]) == wanted, offset


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_in_single_bytes_gives_the_same_answer(name: str) -> None:
    stream = STREAMS[name]
    whole, decoder = decode([stream])
    sliced, slow = decode([stream[i : i + 1] for i in range(len(stream))])
    assert sliced == whole
    assert (slow.usage, slow.tokens, slow.finished) == (decoder.usage, decoder.tokens, True)
    assert slow.tail(slow.usage, {}) == decoder.tail(decoder.usage, {}) if decoder.usage else True


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(STREAMS)), cuts=st.lists(st.integers(0, 20_000), max_size=40))
def test_any_cuts_give_the_same_answer(name: str, cuts: list[int]) -> None:
    stream = STREAMS[name]
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(places)]
    assert decode(pieces)[0] == decode([stream])[0]


@pytest.mark.parametrize("name", STREAMS)
def test_an_event_goes_out_with_its_last_byte(name: str) -> None:
    """No event waits for the one after it: as soon as its empty line is there it is out."""
    stream = STREAMS[name]
    splitter = EventSplitter()
    seen = 0
    for end in range(1, len(stream) + 1):
        seen += len(splitter.feed(stream[end - 1 : end]))
        assert seen == len(reference(stream[:end])), end


@pytest.mark.parametrize("name", RECORDED)
def test_payloads_are_the_upstreams_bytes(name: str) -> None:
    """Under the upstream's own model name nothing is changed but a `created` that moves on (llama.cpp's): only the
    usage chunk and `[DONE]` are held back."""
    sent = reference(RECORDED[name])
    own = json.loads(sent[0])["model"]
    out, decoder = decode([RECORDED[name]], model=own)
    created = re.search(rb'"created":\d+', sent[0])[0]
    kept = [re.sub(rb'"created":\d+', created, event) for event in sent[:-1] if json.loads(event)["choices"]]
    assert split_events(out) == kept
    renamed, _ = decode([RECORDED[name]], model="a name of ours")
    old, new = json.dumps(own).encode(), b'"a name of ours"'
    assert split_events(renamed) == [event.replace(b'"model":' + old, b'"model":' + new) for event in kept]
    assert decoder.finished


@pytest.mark.parametrize("name", RECORDED)
def test_the_usage_chunk_comes_at_the_end_and_only_when_asked_for(name: str) -> None:
    sent = [json.loads(event) for event in reference(RECORDED[name])[:-1]]
    reported = [event["usage"] for event in sent if not event["choices"] and event.get("usage")]
    _, decoder = decode([RECORDED[name]], wants_usage=False)
    assert decoder.tail(decoder.usage, {}) == b"data: [DONE]\n\n"
    _, asked = decode([RECORDED[name]], wants_usage=True)
    if reported:
        chunk, done = split_events(asked.tail(asked.usage, {"cost": 1}))
        assert done == b"[DONE]"
        assert json.loads(chunk)["usage"] == {**reported[-1], "cost": 1}
        assert json.loads(chunk)["choices"] == []
        assert json.loads(chunk)["model"] == "public"
        assert json.loads(chunk)["id"] == sent[0]["id"]
        assert decoder.usage.completion == reported[-1]["completion_tokens"]
