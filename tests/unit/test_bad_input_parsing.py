"""B-5, B-6: what is parsed is what was meant, or it is refused; nothing else ever comes out of the parser."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dataplane.admit import build_call, parse
from gateway.domain.call import Client, Endpoint
from gateway.domain.errors import InvalidRequest, Refusal
from gateway.domain.principal import Principal
from tests.tiers import repeated

GOOD: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {
        "model": "m", "messages": [{"role": "user", "content": "say \"hi\\\" {[ \u00e9 \U0001f600"}], "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0.5, "n": 1, "max_tokens": 7, "stop": ["a", "b"],
        "logit_bias": {"1": 2},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    },
    Endpoint.COMPLETIONS: {"model": "m", "prompt": ["a", "b"], "echo": True, "logprobs": 3},
    Endpoint.EMBEDDINGS: {"model": "m", "input": [[1, 2], [3]], "encoding_format": "base64"},
    Endpoint.TOKENIZE: {"model": "m", "prompt": "a"},
}  # fmt: skip

#: What JSON of a client may hold: integers of 64 bits, finite numbers, text without lone surrogates.
_LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text('"\\{}[]:,u0022', max_size=12)
)  # fmt: skip
_KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.text('"\\u0022', max_size=6)
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=20
)
_BODIES = st.dictionaries(_KEYS, _VALUES, max_size=5)


@settings(max_examples=150, deadline=None)
@given(body=_BODIES, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 2))
def test_every_sound_body_is_read_as_it_is(body: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode()
    assert parse(raw) == body


@settings(max_examples=150, deadline=None)
@given(body=_BODIES, key=_KEYS, first=_VALUES, second=_VALUES, depth=st.integers(0, 3), ascii_only=st.booleans())
def test_a_key_that_appears_twice_is_found_wherever_it_is(
    body: dict[str, Any], key: str, first: Any, second: Any, depth: int, ascii_only: bool
) -> None:
    """Also when it is written in two ways, which are the same key to a parser."""
    one, other = json.dumps(key, ensure_ascii=ascii_only), "".join(f"\\u{unit:04x}" for unit in _utf16(key))
    twice = f'{{{one}:{json.dumps(first)},"{other}":{json.dumps(second)}}}'
    for _ in range(depth):
        twice = f'[{{"k":{twice}}}]'
    marker = "duplicates stand here"
    raw = json.dumps({"outer": body, "inner": marker}).replace(f'"{marker}"', twice).encode()
    with pytest.raises(InvalidRequest, match="twice"):
        parse(raw)


def _utf16(text: str) -> list[int]:
    data = text.encode("utf-16-le")
    return [data[i] | data[i + 1] << 8 for i in range(0, len(data), 2)]


@pytest.mark.parametrize("depth", [64, 65, 200, 1000, 5000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_is_bounded(depth: int, opening: str, closing: str) -> None:
    times, rest = divmod(depth - 1, len(closing))
    raw = ('{"a":' + "[" * rest + opening * times + "1" + closing * times + "]" * rest + "}").encode()
    if depth <= 64:
        assert parse(raw)
    else:
        with pytest.raises(InvalidRequest):
            parse(raw)


@pytest.mark.parametrize(
    "raw",
    [b"", b" ", b"nul", b"null", b"[]", b"17", b'"a"', b"true", b"{", b"}", b'{"a"}', b'{"a":}', b'{"a":1,}',
     b"{'a':1}", b'{"a":1}{"b":2}', b'{"a":1} x', b"\xef\xbb\xbf{}", "{}".encode("utf-16"), "{}".encode("utf-32"),
     b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\\ud800"}', b'{"\\udfff":1}', b'{"a":"\\u12"}', b'{"a":"\\x41"}',
     b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e400}', b'{"a":01}', b'{"a":.5}', b'{"a":+1}',
     b'{"a":0x1}', b'{"a":1_0}', b'{"a":"\n"}', b'{"a":"\x00"}', b"\x00{}", b"{}\x00", b"// c\n{}", b"{/**/}"],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(raw)


def test_a_number_of_5000_digits_is_not_taken_for_another() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"a"}],"seed":' + b"7" * 5000 + b"}"
    with pytest.raises(InvalidRequest):
        build_call(Endpoint.CHAT, parse(raw), len(raw), "r", Principal("p"), Client())


@repeated(20_000, 2_000_000)
def test_any_mutation_of_a_good_body_is_read_or_refused(repetitions: int) -> None:
    """Nothing but a Refusal ever comes out, and what is let through is canonical JSON again."""
    chance = random.Random(repetitions)
    endpoints = list(GOOD)
    bodies = {endpoint: json.dumps(body, ensure_ascii=False).encode() for endpoint, body in GOOD.items()}
    pieces = [
        *(bytes([byte]) for byte in b'"\\{}[],:-0\x00\xff'), b"\\ud800", b"1e999", b"NaN", b"null", b"true",
        b"1.5", b"-1", b"9" * 40, b'""', b"{}", b"[]", b'"model":', b'"stream":',
    ]  # fmt: skip
    admitted, refusals = 0, set()
    for _ in range(repetitions):
        endpoint = chance.choice(endpoints)
        raw = bytearray(bodies[endpoint])
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(raw))
            raw[at : at + chance.choice((0, 0, 1, 5, 20))] = chance.choice(pieces)
        try:
            call = build_call(endpoint, parse(bytes(raw)), len(raw), "r", Principal("p"), Client())
        except Refusal as refusal:
            refusals.add((refusal.status, len(refusal.body())))
        else:
            admitted += 1
            assert orjson.loads(orjson.dumps(call.body)) == call.body
    assert all(400 <= status < 500 and size < 2000 for status, size in refusals)
    assert admitted > repetitions // 100  # the mutations are not so wild that only the parser is tried
