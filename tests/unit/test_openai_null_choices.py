"""Open WebUI drops a chunk whose `choices` is null; no client of the API knows such a one."""

from __future__ import annotations

import pytest

from gateway.backends.openai import OpenAIDecoder


@pytest.mark.parametrize("usage", [b"", b',"usage":null'])
@pytest.mark.parametrize("choices", [b"", b',"choices":null'])
def test_a_chunk_without_choices_and_usage_goes_nowhere(choices: bytes, usage: bytes) -> None:
    decoder = OpenAIDecoder("m", wants_usage=True)
    assert decoder.feed(b'data: {"id":"c","model":"m"' + choices + usage + b"}\n\n") == b""


def test_the_same_with_a_usage_is_counted_and_shown_with_an_empty_list() -> None:
    decoder = OpenAIDecoder("m", wants_usage=True)
    assert decoder.feed(b'data: {"id":"c","choices":null,"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n') == b""
    assert decoder.usage is not None
    assert b'"choices":[]' in decoder.tail(decoder.usage, {})
